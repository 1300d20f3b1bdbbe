use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was not used for so long may be used up later: timers ring late, by a part of each pause, and without this the sum of
/// it would be lost.
const LATE: Duration = Duration::from_millis(100);

/// Holds all transfers of one direction together to a number of bytes per second.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Option<f64>,
    /// When all that was let through so far has had its time.
    free_at: Mutex<Option<Instant>>,
    passed: AtomicU64,
}

impl Limiter {
    /// `rate` in bytes per second; without one nothing is held back.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|rate| rate.max(1) as f64), free_at: Mutex::new(None), passed: AtomicU64::new(0) }
    }

    /// Counts bytes that pass now and says how long to wait before the next.
    pub fn pass(&self, bytes: usize) -> Duration {
        self.passed.fetch_add(bytes as u64, Ordering::Relaxed);
        self.pass_at(bytes, Instant::now())
    }

    /// Bytes that passed were of a transfer that failed.
    pub fn in_vain(&self, bytes: u64) {
        self.passed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// All bytes that passed, but those in vain.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    fn pass_at(&self, bytes: usize, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // Time that nobody used is lost beyond that: no burst follows a pause.
        let free = match *free_at {
            Some(at) if at < now => at.max(now.checked_sub(LATE).unwrap_or(now)),
            Some(at) => at,
            None => now,
        };
        let end = free + Duration::from_secs_f64(bytes as f64 / rate);
        *free_at = Some(end);
        end.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_users_share_the_rate_and_pauses_save_next_to_nothing() {
        let limiter = Limiter::new(Some(1000));
        let start = Instant::now();
        assert_eq!(limiter.pass_at(500, start), Duration::from_millis(500));
        assert_eq!(limiter.pass_at(500, start), Duration::from_secs(1), "the second waits for the first");
        let later = start + Duration::from_secs(60);
        assert_eq!(limiter.pass_at(1000, later), Duration::from_secs(1) - LATE);
        // Whoever comes late each time is not slower for it.
        let (limiter, mut now) = (Limiter::new(Some(1000)), start);
        for _ in 0..100 {
            now += limiter.pass_at(10, now) + Duration::from_millis(3);
        }
        assert!(now - start < Duration::from_millis(1010), "{:?} for a second's worth", now - start);
        assert_eq!(Limiter::new(None).pass(1 << 30), Duration::ZERO);
    }
}
