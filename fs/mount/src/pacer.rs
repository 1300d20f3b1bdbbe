//! Lets the thread that reads requests poll for the next one while that pays.
//!
//! A blocked reader has to be woken for each request, and on an idle virtual machine waking a CPU costs more than most
//! requests do. On a busy machine it costs next to nothing, and a reader that polls takes the CPU from those it
//! serves. Neither can be known beforehand, so it is measured: while requests come densely (the mean pause between two
//! is under [`DENSE`]) the pacer counts how many are served per second, tries the other way for a moment now and then,
//! and keeps to the better one, for longer each time it is confirmed. Where more threads want to run than there are
//! CPUs, polling is not even tried.
//!
//! fuser's loop retries a read that would block: while the descriptor is `O_NONBLOCK` it polls. A mount nobody uses
//! costs nothing: two ticks after the last request the reader is blocked and the pacer asleep.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Mean pause between requests under which polling is considered: some ten times what a wake-up costs at worst.
const DENSE: Duration = Duration::from_micros(700);
/// Pauses are counted up to this length, so that the mean is back under [`DENSE`] a few requests after a long one.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
/// Weight of the newest pause in the mean, as a shift: 1/8.
const WEIGHT_SHIFT: u32 = 3;
/// How long requests are counted at a time.
const WINDOW: Duration = Duration::from_millis(8);
/// How long one way is kept to before the other is tried, at first and at most.
const KEEP: (Duration, Duration) = (Duration::from_millis(60), Duration::from_millis(2000));
/// So many ticks in a row with more threads than CPUs end polling at once.
const CROWDED_TICKS: u32 = 2;
/// Polling costs a CPU: it has to serve so many times as many requests to be chosen.
const WORTH: f64 = 1.15;

/// Watches the flow of requests and switches polling on and off.
pub(crate) struct Pacer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    tick: Duration,
    epoch: Instant,
    /// Requests begun.
    requests: AtomicU64,
    /// When the last request was done, ns since `epoch`.
    idle_since: AtomicU64,
    /// Mean pause before a request, ns.
    mean_pause: AtomicU64,
    /// Whether the pacer is awake.
    watching: AtomicBool,
    closed: AtomicBool,
    pacer: Mutex<Option<Thread>>,
}

impl Pacer {
    /// A pacer that polls at most two `tick`s longer than requests come; never with zero.
    pub(crate) fn new(tick: Duration) -> Self {
        let shared = Arc::new(Shared {
            tick,
            epoch: Instant::now(),
            requests: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            mean_pause: AtomicU64::new(nanos(LONGEST_PAUSE)),
            watching: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            pacer: Mutex::default(),
        });
        Self { shared, thread: Mutex::default() }
    }

    /// Starts to switch `device`, a copy of the descriptor requests are read from.
    pub(crate) fn start(&self, device: OwnedFd) -> io::Result<()> {
        self.start_with(device, runnable_threads)
    }

    fn start_with(&self, device: OwnedFd, runnable: fn() -> Option<usize>) -> io::Result<()> {
        if self.shared.tick.is_zero() {
            return Ok(());
        }
        let cpus = std::thread::available_parallelism()?.get();
        let shared = self.shared.clone();
        let mut watch = Watch { shared, device, polling: false, polls: true, keep: KEEP.0, cpus, runnable };
        let thread = std::thread::Builder::new().name("axiomfs-pacer".into()).spawn(move || watch.run())?;
        *lock(&self.shared.pacer) = Some(thread.thread().clone());
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the thread, which leaves a descriptor that blocks and closes its copy.
    pub(crate) fn stop(&self) {
        self.shared.closed.store(true, Ordering::Release);
        if let Some(pacer) = lock(&self.shared.pacer).take() {
            pacer.unpark();
        }
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("The pacer ended with a panic");
        }
    }

    /// A request was read. To be called by the reader, before it is served.
    pub(crate) fn begin(&self) {
        let shared = &*self.shared;
        if shared.tick.is_zero() {
            return;
        }
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let pause = shared.now().saturating_sub(shared.idle_since.load(Ordering::Relaxed)).min(nanos(LONGEST_PAUSE));
        let mean = shared.mean_pause.load(Ordering::Relaxed);
        let mean = mean - (mean >> WEIGHT_SHIFT) + (pause >> WEIGHT_SHIFT);
        shared.mean_pause.store(mean, Ordering::Relaxed);
        if mean < nanos(DENSE)
            && !shared.watching.load(Ordering::Relaxed)
            && !shared.watching.swap(true, Ordering::AcqRel)
            && let Some(pacer) = &*lock(&shared.pacer)
        {
            pacer.unpark();
        }
    }

    /// It was served, or handed to a worker.
    pub(crate) fn end(&self) {
        if !self.shared.tick.is_zero() {
            self.shared.idle_since.store(self.shared.now(), Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }
}

/// The pacer's thread.
struct Watch {
    shared: Arc<Shared>,
    device: OwnedFd,
    /// Whether the reader polls now.
    polling: bool,
    /// Which way has been the better one.
    polls: bool,
    /// How long to keep to it before the other is tried.
    keep: Duration,
    cpus: usize,
    runnable: fn() -> Option<usize>,
}

impl Watch {
    fn run(&mut self) {
        while !self.closed() {
            std::thread::park();
            while self.shared.watching.load(Ordering::Acquire) {
                if self.follow().is_none() {
                    self.switch(false);
                    self.shared.watching.store(false, Ordering::Release);
                }
            }
        }
        self.switch(false);
    }

    /// Keeps to the better way for a while, then tries the other. Nothing once requests have ceased to come densely.
    fn follow(&mut self) -> Option<()> {
        let begun = Instant::now();
        let mut before = self.count(self.polls)?;
        while begun.elapsed() < self.keep && before > 0.0 {
            before = self.count(self.polls)?;
        }
        let other = self.count(!self.polls)?;
        let after = self.count(self.polls)?;
        if is_better(other, (before + after) / 2.0, !self.polls) {
            self.polls = !self.polls;
            self.keep = KEEP.0;
            tracing::trace!(polls = self.polls, before, other, after, "Reads requests the other way");
        } else {
            self.keep = (self.keep * 2).min(KEEP.1);
        }
        Some(())
    }

    /// Requests per second over a window; 0 where there is no CPU to poll with.
    fn count(&mut self, poll: bool) -> Option<f64> {
        if poll && self.is_crowded() {
            return Some(0.0);
        }
        let mut crowded = 0;
        self.switch(poll);
        let requests = || self.shared.requests.load(Ordering::Relaxed);
        let (begun, first) = (Instant::now(), requests());
        loop {
            let last = requests();
            // Without polling nothing is lost by looking less often.
            std::thread::sleep(if poll { self.shared.tick } else { WINDOW });
            let sparse = self.shared.mean_pause.load(Ordering::Relaxed) > 2 * nanos(DENSE);
            if requests() == last || sparse || self.closed() {
                return None;
            }
            crowded = if poll && self.is_crowded() { crowded + 1 } else { 0 };
            if crowded >= CROWDED_TICKS {
                return Some(0.0);
            }
            let elapsed = begun.elapsed();
            if elapsed >= WINDOW {
                return Some((requests() - first) as f64 / elapsed.as_secs_f64());
            }
        }
    }

    /// Whether more threads want to run than there are CPUs. One is this one; reader and client take turns, unless the
    /// reader polls.
    fn is_crowded(&self) -> bool {
        (self.runnable)().is_some_and(|threads| threads > self.cpus + usize::from(self.polling))
    }

    fn closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn switch(&mut self, poll: bool) {
        if self.polling == poll {
            return;
        }
        self.polling = poll;
        let set = fcntl(&self.device, FcntlArg::F_GETFL).and_then(|flags| {
            let mut flags = OFlag::from_bits_retain(flags);
            flags.set(OFlag::O_NONBLOCK, poll);
            fcntl(&self.device, FcntlArg::F_SETFL(flags))
        });
        if let Err(error) = set {
            tracing::warn!(%error, "Could not switch polling of the FUSE descriptor");
        }
    }
}

/// Whether the way that was tried serves enough more requests.
fn is_better(tried: f64, kept: f64, tried_polls: bool) -> bool {
    if tried_polls { tried > kept * WORTH } else { tried * WORTH > kept }
}

/// How many threads of the machine run or want to, this one among them: proc_loadavg(5), fourth field.
fn runnable_threads() -> Option<usize> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn is_nonblocking(device: &impl AsFd) -> bool {
        OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
    }

    /// Makes requests for `time`; each takes as long as `cost` says, given whether the reader polls. Tells how many
    /// were made while it did, and while it did not.
    fn requests(pacer: &Pacer, device: &impl AsFd, time: Duration, cost: impl Fn(bool) -> Duration) -> [usize; 2] {
        let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let begun = Instant::now();
        while begun.elapsed() < time {
            let polls = is_nonblocking(device);
            pacer.begin();
            let request = Instant::now();
            while request.elapsed() < cost(polls) {
                std::hint::spin_loop();
            }
            pacer.end();
            counts[usize::from(polls)].fetch_add(1, Ordering::Relaxed);
        }
        counts.map(AtomicUsize::into_inner)
    }

    fn blocks_soon(device: &impl AsFd) -> bool {
        let begun = Instant::now();
        while is_nonblocking(device) {
            if begun.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    // A copy of a descriptor shares its flags: any descriptor stands for the one of FUSE.

    #[test]
    fn polls_while_requests_are_dense_and_stops_when_they_end() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), || None).unwrap();
        assert!(!is_nonblocking(&read), "nothing polls before the first request");
        let [_, polled] = requests(&pacer, &read, Duration::from_millis(300), |_| Duration::from_micros(20));
        assert!(polled > 0);
        assert!(blocks_soon(&read), "still polling without requests");
        pacer.stop();
    }

    #[test]
    fn keeps_to_the_way_that_serves_more() {
        for (slow_polled, slow_blocked) in [(10, 1), (1, 10)] {
            let (read, _write) = nix::unistd::pipe().unwrap();
            let pacer = Pacer::new(Duration::from_millis(1));
            pacer.start_with(read.try_clone().unwrap(), || None).unwrap();
            let cost = |polls| Duration::from_micros(20 * if polls { slow_polled } else { slow_blocked });
            requests(&pacer, &read, Duration::from_millis(500), cost);
            let [blocked, polled] = requests(&pacer, &read, Duration::from_millis(1500), cost);
            if slow_polled > slow_blocked {
                assert!(blocked > polled, "{blocked} blocked, {polled} polled");
            } else {
                assert!(polled > blocked, "{blocked} blocked, {polled} polled");
            }
            pacer.stop();
            assert!(!is_nonblocking(&read), "a session that ends leaves a descriptor that blocks");
        }
    }

    #[test]
    fn sparse_requests_are_not_polled_for() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), || None).unwrap();
        for _ in 0..20 {
            pacer.begin();
            pacer.end();
            std::thread::sleep(Duration::from_millis(2));
            assert!(!is_nonblocking(&read));
        }
        pacer.stop();
    }

    #[test]
    fn nothing_polls_where_threads_wait_for_cpus() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), || Some(usize::MAX)).unwrap();
        let [_, polled] = requests(&pacer, &read, Duration::from_millis(300), |_| Duration::from_micros(20));
        assert_eq!(polled, 0);
        pacer.stop();
    }

    #[test]
    fn this_thread_is_seen_to_run() {
        assert!(runnable_threads().is_some_and(|threads| threads >= 1));
    }

    #[test]
    fn zero_switches_it_off() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::ZERO);
        pacer.start_with(read.try_clone().unwrap(), || None).unwrap();
        let [_, polled] = requests(&pacer, &read, Duration::from_millis(50), |_| Duration::from_micros(20));
        assert_eq!(polled, 0);
        pacer.stop();
    }

    #[test]
    fn polling_has_to_be_worth_its_cpu() {
        assert!(is_better(120.0, 100.0, true) && !is_better(110.0, 100.0, true));
        assert!(is_better(95.0, 100.0, false) && !is_better(80.0, 100.0, false));
    }
}
