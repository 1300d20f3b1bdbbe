//! Lets the thread that reads requests poll for the next one while that pays.
//!
//! A blocked reader has to be woken for each request, and on an idle virtual machine waking a CPU costs more than most
//! requests do. fuser's loop retries a read that would block: while the descriptor is `O_NONBLOCK` it polls. The
//! pacer sets and clears that flag:
//!
//! - it is set when requests come densely (the mean pause between two is under [`DENSE`]), and
//! - cleared when none came for a whole tick, when they have become sparse, or when the polling thread did not get its
//!   CPU to itself: then somebody else has work for it, and where CPUs are busy waking is cheap anyway. After the
//!   latter it stays clear for a while that doubles each time.
//!
//! A mount nobody uses costs nothing: after at most two ticks both threads sleep.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::time::{ClockId, clock_gettime};

/// Mean pause between requests under which polling pays: some ten times what a wake-up costs at worst.
const DENSE: Duration = Duration::from_micros(700);
/// Pauses are counted up to this length, so that the mean is back under [`DENSE`] a few requests after a long one.
const LONGEST_PAUSE: Duration = Duration::from_millis(4);
/// Weight of the newest pause in the mean, as a shift: 1/8.
const WEIGHT_SHIFT: u32 = 3;
/// Part of a tick, in per cent, that the polling thread must have been on a CPU for.
const UNDISTURBED_PERCENT: u128 = 80;
/// How long polling stays off after it was disturbed, at first and at most.
const RETREAT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

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
    polling: AtomicBool,
    /// Until when polling is off because it was disturbed, ns since `epoch`.
    retreat_until: AtomicU64,
    /// Thread number of the reader.
    reader: AtomicI32,
    switch: Mutex<Option<Switch>>,
    closed: AtomicBool,
}

/// What it takes to switch; there from the start of the session to its end.
struct Switch {
    device: OwnedFd,
    pacer: Thread,
}

impl Pacer {
    /// A pacer that polls at most `tick` longer than requests come; never with zero.
    pub(crate) fn new(tick: Duration) -> Self {
        let shared = Arc::new(Shared {
            tick,
            epoch: Instant::now(),
            requests: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            mean_pause: AtomicU64::new(nanos(LONGEST_PAUSE)),
            polling: AtomicBool::new(false),
            retreat_until: AtomicU64::new(0),
            reader: AtomicI32::new(0),
            switch: Mutex::new(None),
            closed: AtomicBool::new(false),
        });
        Self { shared, thread: Mutex::default() }
    }

    /// Starts to switch `device`, a copy of the descriptor requests are read from.
    pub(crate) fn start(&self, device: OwnedFd) -> io::Result<()> {
        if self.shared.tick.is_zero() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("axiomfs-pacer".into()).spawn(move || shared.watch())?;
        *lock(&self.shared.switch) = Some(Switch { device, pacer: thread.thread().clone() });
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Ends the thread and closes the copy of the descriptor.
    pub(crate) fn stop(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.set_polling(false);
        let switch = lock(&self.shared.switch).take();
        if let Some(switch) = switch {
            switch.pacer.unpark();
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
        let now = shared.now();
        let pause = now.saturating_sub(shared.idle_since.load(Ordering::Relaxed)).min(nanos(LONGEST_PAUSE));
        let mean = shared.mean_pause.load(Ordering::Relaxed);
        let mean = mean - (mean >> WEIGHT_SHIFT) + (pause >> WEIGHT_SHIFT);
        shared.mean_pause.store(mean, Ordering::Relaxed);
        if mean < nanos(DENSE)
            && !shared.polling.load(Ordering::Relaxed)
            && now >= shared.retreat_until.load(Ordering::Relaxed)
        {
            shared.reader.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
            shared.set_polling(true);
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

    /// The pacer's thread: asleep unless the reader polls.
    fn watch(&self) {
        let mut retreat = RETREAT.0;
        while !self.closed.load(Ordering::Acquire) {
            std::thread::park();
            while self.polling.load(Ordering::Acquire) {
                match self.observe() {
                    Observed::Pays => retreat = RETREAT.0,
                    Observed::Quiet => self.set_polling(false),
                    Observed::Disturbed => {
                        self.retreat_until.store(self.now() + nanos(retreat), Ordering::Relaxed);
                        retreat = (retreat * 2).min(RETREAT.1);
                        self.set_polling(false);
                    }
                }
            }
        }
    }

    /// Looks at one tick of polling.
    fn observe(&self) -> Observed {
        let requests = self.requests.load(Ordering::Relaxed);
        let (begun, used) = (Instant::now(), self.reader_time());
        std::thread::sleep(self.tick);
        if requests == self.requests.load(Ordering::Relaxed)
            || self.mean_pause.load(Ordering::Relaxed) > 2 * nanos(DENSE)
        {
            return Observed::Quiet;
        }
        let (elapsed, used) = (begun.elapsed(), self.reader_time().zip(used));
        let undisturbed = used.is_none_or(|(after, before)| {
            after.saturating_sub(before).as_nanos() * 100 >= elapsed.as_nanos() * UNDISTURBED_PERCENT
        });
        if undisturbed { Observed::Pays } else { Observed::Disturbed }
    }

    /// CPU time the reader has used, where the kernel tells.
    fn reader_time(&self) -> Option<Duration> {
        let time = clock_gettime(thread_cpu_clock(self.reader.load(Ordering::Relaxed))).ok()?;
        Some(time.into())
    }

    /// Sets flag and descriptor together; the lock keeps reader and pacer from crossing.
    fn set_polling(&self, on: bool) {
        let switch = lock(&self.switch);
        let Some(switch) = &*switch else { return };
        if self.polling.swap(on, Ordering::AcqRel) == on {
            return;
        }
        let set = fcntl(&switch.device, FcntlArg::F_GETFL).and_then(|flags| {
            let mut flags = OFlag::from_bits_retain(flags);
            flags.set(OFlag::O_NONBLOCK, on);
            fcntl(&switch.device, FcntlArg::F_SETFL(flags))
        });
        if let Err(error) = set {
            tracing::warn!(%error, "Could not switch polling of the FUSE descriptor");
        }
        if on {
            switch.pacer.unpark();
        }
    }
}

/// What a tick of polling has shown.
enum Observed {
    Pays,
    Quiet,
    Disturbed,
}

/// The clock of the CPU time of a thread of this process: the kernel's encoding (`CPUCLOCK_SCHED`,
/// `CPUCLOCK_PERTHREAD_MASK`, see clock_getres(2) and `posix-timers_types.h`). Unlike `pthread_getcpuclockid` it may
/// name a thread that has ended; asking then is an error and no more.
fn thread_cpu_clock(thread: i32) -> ClockId {
    ClockId::from_raw((!thread << 3) | 2 | 4)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_nonblocking(device: &impl std::os::fd::AsFd) -> bool {
        OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
    }

    fn wait_until(condition: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !condition() {
            if begun.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn one_request(pacer: &Pacer) {
        pacer.begin();
        pacer.end();
    }

    #[test]
    fn polls_while_requests_are_dense_and_stops_when_they_end() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start(read.try_clone().unwrap()).unwrap();
        assert!(!is_nonblocking(&read), "nothing polls before the first request");
        for _ in 0..100 {
            one_request(&pacer);
        }
        // A copy of a descriptor shares its flags.
        assert!(wait_until(|| !is_nonblocking(&read)), "still polling without requests");
        pacer.stop();
        assert!(!is_nonblocking(&read));
    }

    #[test]
    fn dense_requests_switch_it_on() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        // Ticks longer than the test: nobody switches it off.
        let pacer = Pacer::new(Duration::from_secs(1));
        pacer.start(read.try_clone().unwrap()).unwrap();
        for _ in 0..100 {
            one_request(&pacer);
        }
        assert!(is_nonblocking(&read));
        pacer.stop();
        assert!(!is_nonblocking(&read), "a session that ends leaves a descriptor that blocks");
    }

    #[test]
    fn sparse_requests_are_not_polled_for() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::from_millis(1));
        pacer.start(read.try_clone().unwrap()).unwrap();
        for _ in 0..20 {
            one_request(&pacer);
            std::thread::sleep(Duration::from_millis(2));
            assert!(!is_nonblocking(&read));
        }
        pacer.stop();
    }

    #[test]
    fn zero_switches_it_off() {
        let (read, _write) = nix::unistd::pipe().unwrap();
        let pacer = Pacer::new(Duration::ZERO);
        pacer.start(read.try_clone().unwrap()).unwrap();
        for _ in 0..100 {
            one_request(&pacer);
        }
        assert!(!is_nonblocking(&read));
        pacer.stop();
    }

    #[test]
    fn the_cpu_clock_of_a_thread_counts() {
        let clock = thread_cpu_clock(nix::unistd::gettid().as_raw());
        let before: Duration = clock_gettime(clock).unwrap().into();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let after: Duration = clock_gettime(clock).unwrap().into();
        assert!(after > before);
    }
}
