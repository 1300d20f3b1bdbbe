//! Lets the thread that reads requests poll for the next one, or keeps a CPU awake, while that pays.
//!
//! A blocked reader has to be woken for each request, and its client for each answer; on an idle virtual machine waking
//! a CPU costs more than most requests do. There are three [ways](Way). On a busy machine waking costs next to nothing,
//! and a thread that polls takes the CPU from others. None of this can be known beforehand, so it is measured: while
//! requests come densely (the mean pause between two is under [`DENSE`]) the pacer counts how many are served per
//! second, tries another way for a moment now and then, and keeps to the better one, for longer each time it is
//! confirmed. Where more threads want to run than there are
//! CPUs nobody polls, and where many more do no CPU is kept awake.
//!
//! fuser's loop retries a read that would block: while the descriptor is `O_NONBLOCK` it polls. A mount nobody uses
//! costs nothing: two ticks after the last request the reader is blocked, and pacer and keeper are asleep.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::thread::gettid;

use crate::keeper::{self, Keeper, Kept};

mod choice;

use choice::{Choice, Count, Way};

/// Mean pause between requests under which polling is considered: some ten times what a wake-up costs at worst.
const DENSE: Duration = Duration::from_micros(700);
/// Pauses are counted up to this length, so that the mean is back under [`DENSE`] a few requests after a long one.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
/// Weight of the newest pause in the mean, as a shift: 1/8.
const WEIGHT_SHIFT: u32 = 3;
/// How long requests are counted at a time, at least and at most.
const WINDOW: (Duration, Duration) = (Duration::from_millis(12), Duration::from_millis(48));
/// In between until there were so many: of fewer, chance alone makes a better way or a worse one.
const ENOUGH: u64 = 200;
/// After so long without requests others may come, for which another way is the best.
const ANOTHER: Duration = Duration::from_secs(1);
/// So many looks at the number of threads, each so long after the one before, tell whether there are too many for a way.
const LOOKS: (u32, Duration) = (8, Duration::from_micros(200));
/// A way that was left so short a time ago, and not because of them, needs no such looks.
const RECENT: Duration = Duration::from_millis(250);
/// So many more than there should be, as a mean, come of short tasks of the system, and of reader and client, which both run for a moment
/// where one wakes the other.
const PASSING: f64 = 0.75;
/// How long it takes until reader and client are on one CPU, or on two, where the reader was or will be bound to one.
const SETTLE: Duration = Duration::from_millis(40);
/// The same where it was and is not: a reader that begins to poll may do so on the client's CPU at first.
const SETTLE_FREE: Duration = Duration::from_millis(12);

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
    /// Whether a CPU is kept awake, and the thread that reads requests.
    kept: Arc<Kept>,
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
            kept: Arc::default(),
        });
        Self { shared, thread: Mutex::default() }
    }

    /// Starts to switch `device`, a copy of the descriptor requests are read from.
    pub(crate) fn start(&self, device: OwnedFd) -> io::Result<()> {
        self.start_with(device, std::thread::available_parallelism()?.get(), runnable_threads)
    }

    fn start_with(&self, device: OwnedFd, cpus: usize, runnable: fn() -> Option<usize>) -> io::Result<()> {
        if self.shared.tick.is_zero() {
            return Ok(());
        }
        let keeper = (cpus == keeper::CPUS).then(|| Keeper::start(self.shared.kept.clone())).flatten();
        let shared = self.shared.clone();
        let mut watch = Watch { shared, device, keeper, now: Way::Block, left: None, crowded: None, cpus, runnable };
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

    /// What threads that decode what a client waits for are to call when they begin.
    pub(crate) fn decoder(&self) -> impl Fn() + Clone + Send + 'static {
        let kept = self.shared.kept.clone();
        move || kept.is_decoder()
    }

    /// A request was read. To be called by the reader, before it is served.
    pub(crate) fn begin(&self) {
        let shared = &*self.shared;
        if shared.tick.is_zero() {
            return;
        }
        shared.requests.fetch_add(1, Ordering::Relaxed);
        shared.kept.reader.get_or_init(gettid);
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
    keeper: Option<Keeper>,
    /// The way of this moment.
    now: Way,
    /// The one before, and when it was left.
    left: Option<(Way, Instant)>,
    /// The way for which too many threads were found last.
    crowded: Option<Way>,
    cpus: usize,
    runnable: fn() -> Option<usize>,
}

impl Watch {
    fn run(&mut self) {
        let mut choice = Choice::new(self.ways());
        while !self.closed() {
            let ended = Instant::now();
            std::thread::park();
            if ended.elapsed() >= ANOTHER {
                choice.doubt();
            }
            while self.shared.watching.load(Ordering::Acquire) {
                if choice.follow(|way, least| self.count(way, least)).is_none() {
                    self.rest();
                    self.shared.watching.store(false, Ordering::Release);
                }
            }
        }
        self.rest();
    }

    /// The ways there are, the one that is probably the best first.
    fn ways(&self) -> Vec<Way> {
        let ways = [Way::Keep, Way::Poll, Way::Block];
        ways[usize::from(self.keeper.is_none())..].to_vec()
    }

    /// Nobody is waited for in any other way.
    fn rest(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.free();
        }
        self.switch(Way::Block);
    }

    /// Lets the reader run anywhere, unless a CPU is kept awake.
    fn unbind(&self) {
        if let Some(keeper) = &self.keeper
            && self.now != Way::Keep
        {
            keeper.free();
        }
    }

    /// Counts requests over a window, once reader and client have settled; fewer per second than `least` before that are enough to
    /// know. None where they have ceased to come densely.
    fn count(&mut self, way: Way, least: f64) -> Option<Count> {
        let called = Instant::now();
        let is_known = way == self.now || self.left.is_some_and(|(left, at)| left == way && at.elapsed() < RECENT);
        let rate = if !is_known && self.would_be_crowded(way) { Some(0.0) } else { self.rate(way, least) };
        self.crowded = (rate == Some(0.0)).then_some(way);
        self.unbind();
        rate.map(|rate| Count { rate, took: called.elapsed() })
    }

    /// Requests per second; 0 where there turned out to be no CPU to spare.
    fn rate(&mut self, way: Way, least: f64) -> Option<f64> {
        let settle = match (self.now, way) {
            (now, way) if now == way => Duration::ZERO,
            (Way::Keep, _) | (_, Way::Keep) => SETTLE,
            _ => SETTLE_FREE,
        };
        self.switch(way);
        let requests = || self.shared.requests.load(Ordering::Relaxed);
        let (mut begun, mut first) = (Instant::now(), requests());
        let settled = begun + settle;
        let mut threads = Threads::default();
        loop {
            let (last, looked) = (requests(), Instant::now());
            // Without polling nothing is lost by looking less often.
            std::thread::sleep(if way == Way::Block { WINDOW.0 } else { self.shared.tick });
            let sparse = self.shared.mean_pause.load(Ordering::Relaxed) > 2 * nanos(DENSE);
            if requests() == last || sparse || self.closed() {
                let counted = looked - begun;
                let is_enough = begun >= settled && counted >= WINDOW.0 && !self.closed();
                return is_enough.then(|| (last - first) as f64 / counted.as_secs_f64());
            }
            threads.add((self.runnable)());
            let (elapsed, served) = (begun.elapsed(), requests() - first);
            if elapsed < WINDOW.0 {
                continue;
            }
            if self.is_crowded(way, &threads) {
                return Some(0.0);
            }
            let rate = served as f64 / elapsed.as_secs_f64();
            let is_sure = served >= ENOUGH || elapsed >= WINDOW.1;
            if rate < least || is_sure && begun >= settled {
                return Some(rate);
            }
            if begun >= settled {
                continue;
            }
            (begun, first, threads) = (Instant::now(), requests(), Threads::default());
        }
    }

    /// Whether too many threads want to run for a way that was not left just now.
    fn would_be_crowded(&self, way: Way) -> bool {
        let mut threads = Threads::default();
        for look in 0..LOOKS.0 {
            if look > 0 {
                std::thread::sleep(LOOKS.1);
            }
            threads.add((self.runnable)());
        }
        self.is_crowded(way, &threads)
    }

    /// Whether `threads` are too many for this way. One is this one; reader and client take turns, unless the reader polls; one may be
    /// the keeper, which gives way to others: to those that pack what was written, too, but where there are many more no CPU sleeps anyway,
    /// and they need both.
    fn is_crowded(&self, way: Way, threads: &Threads) -> bool {
        let most = match way {
            Way::Block => return false,
            Way::Poll => self.cpus,
            Way::Keep => 2 * self.cpus,
        };
        threads.mean() > (most + usize::from(self.now != Way::Block)) as f64 + PASSING
    }

    fn closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn switch(&mut self, way: Way) {
        let before = std::mem::replace(&mut self.now, way);
        if before != way {
            self.left = (self.crowded != Some(before)).then(|| (before, Instant::now()));
        }
        if let Some(keeper) = &self.keeper {
            if way == Way::Keep { keeper.keep() } else { keeper.part() }
        }
        let poll = way == Way::Poll;
        if (before == Way::Poll) == poll {
            return;
        }
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

/// How many threads run or want to, at several moments.
#[derive(Debug, Default)]
struct Threads {
    sum: f64,
    looks: u32,
}

impl Threads {
    fn add(&mut self, threads: Option<usize>) {
        if let Some(threads) = threads {
            self.sum += threads as f64;
            self.looks += 1;
        }
    }

    /// Zero where it was never known.
    fn mean(&self) -> f64 {
        self.sum / f64::from(self.looks.max(1))
    }
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
mod tests;
