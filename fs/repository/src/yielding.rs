//! Who goes first: uploads and encoders give way to reads that somebody waits for, each for a bounded time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::repository::lock;
use crate::stats::count;

/// Longest that an encoder leaves the processor to reads before its next frame.
pub(crate) const BEFORE_FRAME: Duration = Duration::from_millis(20);
/// Longest that an upload leaves the store to reads before it begins.
pub(crate) const BEFORE_UPLOAD: Duration = Duration::from_millis(200);

/// Reads that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    running: Mutex<u64>,
    none: Condvar,
    yields: AtomicU64,
}

/// A read that somebody waits for, as long as this lives.
#[derive(Debug)]
pub struct Waiting<'a>(&'a Reads);

impl Reads {
    pub(crate) fn begin(&self) -> Waiting<'_> {
        *lock(&self.running) += 1;
        Waiting(self)
    }

    /// Waits until nobody waits for a read, at most for `longest`.
    pub(crate) fn give_way(&self, longest: Duration) {
        let mut running = lock(&self.running);
        if *running == 0 {
            return;
        }
        count(&self.yields, 1);
        let end = Instant::now() + longest;
        while *running > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            running = self.none.wait_timeout(running, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How often something gave way.
    pub(crate) fn yields(&self) -> u64 {
        self.yields.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut running = lock(&self.0.running);
        *running -= 1;
        if *running == 0 {
            self.0.none.notify_all();
        }
    }
}

/// Bounds how many uploads run at the same time; can be moved while they do.
#[derive(Debug)]
pub(crate) struct Gate {
    limit: AtomicUsize,
    most: usize,
    running: Mutex<usize>,
    changed: Condvar,
}

/// Leave for one upload.
pub(crate) struct Passed<'a>(&'a Gate);

impl Gate {
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { limit: AtomicUsize::new(most), most, running: Mutex::new(0), changed: Condvar::new() }
    }

    /// Moves the bound, within 1 and the most there may be.
    pub(crate) fn set(&self, limit: usize) {
        let _running = lock(&self.running);
        self.limit.store(limit.clamp(1, self.most), Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Waits for leave.
    pub(crate) fn pass(&self) -> Passed<'_> {
        let mut running = lock(&self.running);
        while *running >= self.limit() {
            running = self.changed.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Passed(self)
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_gives_way_goes_on_with_the_last_read_or_after_its_time() {
        let reads = Reads::default();
        reads.give_way(Duration::from_secs(60));
        assert_eq!(reads.yields(), 0);
        let first = reads.begin();
        let start = Instant::now();
        reads.give_way(Duration::from_millis(30));
        assert!(start.elapsed() >= Duration::from_millis(30), "it waits as long as it may");
        let second = reads.begin();
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let start = Instant::now();
                reads.give_way(Duration::from_secs(60));
                start.elapsed()
            });
            drop(first);
            thread::sleep(Duration::from_millis(20));
            drop(second);
            assert!(waits.join().expect("no panic") < Duration::from_secs(30), "the last read ends it");
        });
        assert_eq!(reads.yields(), 2);
    }

    #[test]
    fn no_more_pass_than_may_also_while_the_bound_moves() {
        let (gate, running, longest) = (Gate::new(4), AtomicUsize::new(0), AtomicUsize::new(0));
        gate.set(100);
        assert_eq!(gate.limit(), 4);
        for limit in [4, 1, 3] {
            gate.set(limit);
            longest.store(0, Ordering::SeqCst);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let _passed = gate.pass();
                        longest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(15));
                        running.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
            assert_eq!(longest.load(Ordering::SeqCst), limit, "as many as may, and no more");
        }
    }
}
