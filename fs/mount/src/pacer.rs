//! Lets the thread that reads requests poll for the next one, or keeps a CPU awake, while that pays.
//!
//! A blocked reader has to be woken for each request, and its client for each answer; on an idle virtual machine waking
//! a CPU costs more than most requests do. There are three [ways](Way). On a busy machine waking costs next to nothing,
//! and a thread that polls takes the CPU from others. None of this can be known beforehand, so it is measured: while
//! requests come densely (the mean pause between two is under [`DENSE`]) the pacer counts how many are served per
//! second, tries another way for a moment now and then, and keeps to the better one, for longer each time it is
//! confirmed. Where more threads want to run than there are CPUs nobody polls, and where many more do no CPU is kept awake.
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
/// How long requests are counted at a time.
const WINDOW: Duration = Duration::from_millis(8);
/// After so long without requests others may come, for which another way is the best.
const ANOTHER: Duration = Duration::from_secs(1);
/// So many ticks in a row with too many threads for a way end it at once.
const CROWDED_TICKS: u32 = 2;
/// How long it takes until reader and client are on one CPU, or on two.
const SETTLE: Duration = Duration::from_millis(40);

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
        let ways = if keeper.is_some() { vec![Way::Keep, Way::Block, Way::Poll] } else { vec![Way::Poll, Way::Block] };
        let shared = self.shared.clone();
        let mut choice = Choice::new(ways);
        let mut watch = Watch { shared, device, keeper, now: Way::Block, cpus, runnable };
        let thread = std::thread::Builder::new().name("axiomfs-pacer".into()).spawn(move || watch.run(&mut choice))?;
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
    cpus: usize,
    runnable: fn() -> Option<usize>,
}

impl Watch {
    fn run(&mut self, choice: &mut Choice) {
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
        let rate = if way != self.now && self.is_crowded(way) { Some(0.0) } else { self.rate(way, least) };
        self.unbind();
        rate.map(|rate| Count { rate, took: called.elapsed() })
    }

    /// Requests per second; 0 where there turned out to be no CPU to spare.
    fn rate(&mut self, way: Way, least: f64) -> Option<f64> {
        let mut crowded = 0;
        let settles = way != self.now && (way == Way::Keep || self.now == Way::Keep);
        self.switch(way);
        let requests = || self.shared.requests.load(Ordering::Relaxed);
        let (mut begun, mut first) = (Instant::now(), requests());
        let settled = if settles { begun + SETTLE } else { begun };
        loop {
            let last = requests();
            // Without polling nothing is lost by looking less often.
            std::thread::sleep(if way == Way::Block { WINDOW } else { self.shared.tick });
            let sparse = self.shared.mean_pause.load(Ordering::Relaxed) > 2 * nanos(DENSE);
            if requests() == last || sparse || self.closed() {
                return None;
            }
            crowded = if self.is_crowded(way) { crowded + 1 } else { 0 };
            if crowded >= CROWDED_TICKS {
                return Some(0.0);
            }
            let elapsed = begun.elapsed();
            if elapsed < WINDOW {
                continue;
            }
            let rate = (requests() - first) as f64 / elapsed.as_secs_f64();
            if begun >= settled || rate < least {
                return Some(rate);
            }
            (begun, first) = (Instant::now(), requests());
        }
    }

    /// Whether too many threads want to run for this way. One is this one; reader and client take turns, unless the
    /// reader polls; one may be the keeper, which gives way to others: to those that pack what was written, too, but where there
    /// are many more no CPU sleeps anyway.
    fn is_crowded(&self, way: Way) -> bool {
        let most = match way {
            Way::Block => return false,
            Way::Poll => self.cpus,
            Way::Keep => 4 * self.cpus,
        };
        (self.runnable)().is_some_and(|threads| threads > most + usize::from(self.now != Way::Block))
    }

    fn closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn switch(&mut self, way: Way) {
        let before = std::mem::replace(&mut self.now, way);
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

    /// They measure how fast they are, so one at a time.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        lock(&ALONE)
    }

    // A copy of a descriptor shares its flags: any descriptor stands for the one of FUSE.

    #[test]
    fn polls_while_requests_are_dense_and_stops_when_they_end() {
        let _alone = alone();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
        assert!(!is_nonblocking(&read), "nothing polls before the first request");
        let (begun, mut polled) = (Instant::now(), 0);
        while polled == 0 && begun.elapsed() < Duration::from_secs(20) {
            [_, polled] = requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
        }
        assert!(polled > 0);
        assert!(blocks_soon(&read), "still polling without requests");
        pacer.stop();
    }

    #[test]
    fn a_cpu_is_kept_awake_only_where_there_are_two_and_while_requests_come() {
        let _alone = alone();
        // On a machine with more of them none is kept, whatever is said here.
        let two = Keeper::start(Arc::default()).is_some();
        let cpus_of_reader = || rustix::thread::sched_getaffinity(None).unwrap();
        let free = cpus_of_reader();
        for (cpus, is_kept) in [(2, two), (4, false)] {
            let (read, _write) = nix::unistd::pipe().unwrap();
            // Long enough that some requests are made in each on a busy machine, too.
            let pacer = Pacer::new(Duration::from_millis(100));
            pacer.start_with(read.try_clone().unwrap(), cpus, || None).unwrap();
            let keeps = || pacer.shared.kept.on.load(Ordering::Relaxed);
            let (begun, mut kept) = (Instant::now(), false);
            while !kept && begun.elapsed() < if is_kept { Duration::from_secs(20) } else { Duration::from_secs(1) } {
                requests(&pacer, &read, Duration::from_millis(10), |_| Duration::from_micros(20));
                kept = keeps();
            }
            assert_eq!(kept, is_kept, "{cpus} CPUs");
            assert!(blocks_soon(&read));
            let begun = Instant::now();
            while keeps() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!keeps(), "a CPU is kept awake for nobody");
            pacer.stop();
            assert_eq!(cpus_of_reader(), free, "the reader is left bound to a CPU");
        }
    }

    #[test]
    fn a_session_that_ends_leaves_a_descriptor_that_blocks() {
        let _alone = alone();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    requests(&pacer, &read, Duration::from_millis(1), |_| Duration::from_micros(20));
                }
            });
            let begun = Instant::now();
            while !is_nonblocking(&read) && begun.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            let polled = is_nonblocking(&read);
            pacer.stop();
            let blocks = !is_nonblocking(&read);
            stopped.store(true, Ordering::Relaxed);
            assert!(polled, "it never polls");
            assert!(blocks);
        });
    }

    #[test]
    fn sparse_requests_are_not_polled_for() {
        let _alone = alone();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
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
        let _alone = alone();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start_with(read.try_clone().unwrap(), 4, || Some(usize::MAX)).unwrap();
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
        let _alone = alone();
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::ZERO);
        pacer.start_with(read.try_clone().unwrap(), 4, || None).unwrap();
        let [_, polled] = requests(&pacer, &read, Duration::from_millis(50), |_| Duration::from_micros(20));
        assert_eq!(polled, 0);
        pacer.stop();
    }
}
