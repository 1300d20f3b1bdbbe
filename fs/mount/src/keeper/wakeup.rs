//! What it takes to wake a thread on another CPU.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// How often it is measured; the median counts.
const TRIES: usize = 15;
/// Pause before each, as long as most requests take: the other CPU has begun to idle by then.
const PAUSE: Duration = Duration::from_micros(30);
/// Longest that one is waited for.
const LONGEST: Duration = Duration::from_millis(4);

/// How long a thread on `to` takes until it runs, once one on `from` has woken it. Measuring takes a millisecond, on busy CPUs some more.
///
/// # Errors
/// A thread can't be started, or not be put on its CPU.
pub(super) fn time(from: &CpuSet, to: &CpuSet) -> io::Result<Duration> {
    let (epoch, to) = (Instant::now(), *to);
    let woken = Arc::new(AtomicU64::new(0));
    let seen = woken.clone();
    let sleeper = std::thread::Builder::new().name("axiomfs-wakeup".into()).spawn(move || {
        let bound = sched_setaffinity(None, &to);
        for _ in 0..TRIES {
            std::thread::park_timeout(LONGEST);
            seen.store(since(epoch), Ordering::Release);
        }
        bound
    })?;
    // Another thread, so that the caller's CPUs are not changed, wherever this ends.
    let from = *from;
    let waker = std::thread::Builder::new().name("axiomfs-wakeup".into()).spawn(move || -> io::Result<Duration> {
        sched_setaffinity(None, &from)?;
        let mut times = Vec::with_capacity(TRIES);
        for _ in 0..TRIES {
            spin_until(|| false, PAUSE);
            let (before, begun) = (woken.load(Ordering::Acquire), since(epoch));
            sleeper.thread().unpark();
            spin_until(|| woken.load(Ordering::Acquire) != before, LONGEST);
            let seen = woken.load(Ordering::Acquire);
            let end = if seen == before { since(epoch) } else { seen };
            times.push(Duration::from_nanos(end.saturating_sub(begun)));
        }
        sleeper.join().map_err(|_| io::Error::other("it panicked"))??;
        times.sort_unstable();
        Ok(times[TRIES / 2])
    })?;
    waker.join().map_err(|_| io::Error::other("it panicked"))?
}

fn spin_until(done: impl Fn() -> bool, longest: Duration) {
    let begun = Instant::now();
    while !done() && begun.elapsed() < longest {
        std::hint::spin_loop();
    }
}

fn since(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn waking_takes_more_than_nothing_and_no_second() {
        let cpus = sched_getaffinity(None).unwrap();
        let (mut first, mut last) = (CpuSet::new(), CpuSet::new());
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu));
        let one = usable.next().unwrap();
        first.set(one);
        last.set(usable.next_back().unwrap_or(one));
        let taken = time(&first, &last).unwrap();
        assert!(!taken.is_zero() && taken < Duration::from_secs(1), "{taken:?}");
    }
}
