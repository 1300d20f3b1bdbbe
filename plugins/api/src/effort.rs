use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI32, Ordering};

/// How hard a step works, in its own unit (a compression level), within bounds that somebody chose.
///
/// Decoding never depends on it. The host turns it while frames go through the step; workers look at it once per frame.
#[derive(Debug)]
pub struct Effort {
    bounds: RangeInclusive<i32>,
    usual: i32,
    now: AtomicI32,
}

impl Effort {
    /// A dial that stands at `usual`, which is moved into `bounds` if it lies outside.
    pub fn new(bounds: RangeInclusive<i32>, usual: i32) -> Self {
        let usual = usual.max(*bounds.start()).min(*bounds.end());
        Self { bounds, usual, now: AtomicI32::new(usual) }
    }

    /// Where it may stand.
    pub fn bounds(&self) -> &RangeInclusive<i32> {
        &self.bounds
    }

    /// Where it stands when nothing presses.
    pub fn usual(&self) -> i32 {
        self.usual
    }

    /// Where it stands.
    pub fn get(&self) -> i32 {
        self.now.load(Ordering::Relaxed)
    }

    /// Turns it to `value`, or as far as its bounds allow; says where it stands then.
    pub fn set(&self, value: i32) -> i32 {
        let value = value.max(*self.bounds.start()).min(*self.bounds.end());
        self.now.store(value, Ordering::Relaxed);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bounds() {
        let effort = Effort::new(1..=9, 3);
        assert_eq!((effort.get(), effort.set(20), effort.get(), effort.set(-3)), (3, 9, 9, 1));
        assert_eq!(Effort::new(5..=9, 3).usual(), 5);
    }
}
