//! How much a thread allocates while it does one thing: so the host sees a plugin that takes more than it may.
//!
//! The program (or a test) makes [`Metered`] its global allocator; without that [`measure`] sees nothing. What is counted
//! are Rust allocations of the calling thread, less what the same thread frees. Memory that a C library takes by `malloc`
//! is not seen: what such a plugin may use is measured by a test of its own.
#![deny(unsafe_code)]

mod allocator;

pub use allocator::Metered;

use std::cell::Cell;

thread_local! {
    /// Bytes allocated less bytes freed since the measurement began.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most of it.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// What one measurement saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The most that was held at once beyond the beginning, in bytes.
    pub peak: usize,
    /// What is still held at the end beyond the beginning; negative if more was freed than taken.
    pub kept: isize,
}

/// Runs `work` and counts what this thread allocates meanwhile. Measurements may lie within each other.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Usage) {
    /// Restores the outer measurement, also when `work` panics.
    struct Outer(isize, isize);
    impl Drop for Outer {
        fn drop(&mut self) {
            let (held, peak) = (HELD.get(), PEAK.get());
            HELD.set(self.0 + held);
            PEAK.set(self.1.max(self.0 + peak));
        }
    }
    let outer = Outer(HELD.replace(0), PEAK.replace(0));
    let result = work();
    let usage = Usage { peak: PEAK.get().max(0).unsigned_abs(), kept: HELD.get() };
    drop(outer);
    (result, usage)
}

/// Notes a change of what this thread holds. A thread that is ending has no place left to note it.
fn note(change: isize) {
    let noted = HELD.try_with(|held| {
        let now = held.get() + change;
        held.set(now);
        now
    });
    if let Ok(now) = noted {
        // Both live as long as the thread; the second fails only if the first did.
        PEAK.try_with(|peak| peak.set(peak.get().max(now))).unwrap_or_default();
    }
}
