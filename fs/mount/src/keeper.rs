//! Keeps a CPU awake.
//!
//! Waking a CPU of a virtual machine from its sleep costs more than most requests do: the hypervisor has to. Of two CPUs one can be kept
//! from sleeping by a thread that gives way to all others. Since it is never idle, nobody is woken on it, and reader and client wake each
//! other on the other CPU, which costs next to nothing. What else this process does it does on the one kept awake.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// With so many CPUs this is of use. With more there is always another that sleeps, and that others are woken on.
pub(crate) const CPUS: usize = 2;
/// How little of a processor the thread gets beside any other.
const NICENESS: i32 = 19;
/// Turns of the thread between two looks at whether it shall go on.
const TURNS: u32 = 64;

/// What the keeper shares with those who tell it what to do.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Whether a CPU is kept awake.
    pub(crate) on: AtomicBool,
    /// Whether some thread may run on one CPU only.
    is_bound: AtomicBool,
    /// The thread that reads requests, once it is known.
    pub(crate) reader: OnceLock<Pid>,
    /// The thread that keeps the CPU awake.
    keeper: OnceLock<Pid>,
    /// Threads that decode what clients wait for.
    decoders: Mutex<Vec<Pid>>,
    ends: AtomicBool,
}

impl Kept {
    /// The calling thread decodes what a client waits for, which takes long: it may run wherever there is room.
    pub(crate) fn is_decoder(&self) {
        self.decoders().push(gettid());
    }

    fn decoders(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that keeps a CPU awake; it ends when this is dropped.
pub(crate) struct Keeper {
    kept: Arc<Kept>,
    thread: Option<JoinHandle<()>>,
    /// The CPU that the reader is bound to meanwhile, the one that is kept awake, and both.
    bound: CpuSet,
    awake: CpuSet,
    free: CpuSet,
}

impl Keeper {
    /// Starts the thread, asleep. None where there are other CPUs, or none may be chosen.
    pub(crate) fn start(kept: Arc<Kept>) -> Option<Self> {
        let keeper = Self::try_start(kept);
        keeper.inspect_err(|error| tracing::debug!(%error, "No CPU is kept awake")).ok().flatten()
    }

    fn try_start(kept: Arc<Kept>) -> io::Result<Option<Self>> {
        let free = sched_getaffinity(None)?;
        // Those of others sleep, and others are woken on them.
        if free.count() as usize != CPUS || online()? != CPUS {
            return Ok(None);
        }
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| free.is_set(*cpu));
        let (mut bound, mut awake) = (CpuSet::new(), CpuSet::new());
        for (set, cpu) in [&mut bound, &mut awake].into_iter().zip(&mut cpus) {
            set.set(cpu);
        }
        let own = kept.clone();
        let thread = std::thread::Builder::new().name("axiomfs-keeper".into()).spawn(move || {
            own.keeper.get_or_init(gettid);
            // Where that is refused it would take the CPU from those it is to serve.
            if let Err(error) = rustix::process::nice(NICENESS).and_then(|_| sched_setaffinity(None, &awake)) {
                tracing::debug!(%error, "No CPU is kept awake");
                return;
            }
            while !own.ends.load(Ordering::Acquire) {
                while own.on.load(Ordering::Relaxed) {
                    (0..TURNS).for_each(|_| std::hint::spin_loop());
                }
                std::thread::park();
            }
        })?;
        Ok(Some(Self { kept, thread: Some(thread), bound, awake, free }))
    }

    /// Begins to keep a CPU awake.
    pub(crate) fn keep(&self) {
        let Some(thread) = self.thread.as_ref().filter(|thread| !thread.is_finished()) else { return };
        if self.kept.on.swap(true, Ordering::Relaxed) {
            return;
        }
        // The reader stays on the other CPU; its client then does, too. Those that pack or read ahead would only be in their way there, and
        // nothing else keeps them off: no CPU idles. Those that decode what a client waits
        // for may run on either.
        self.bind(&self.bound, &self.awake);
        thread.thread().unpark();
    }

    /// Ends it, and has the reader on that CPU: it and its client would stay together for a while, and serve more than they will later.
    pub(crate) fn part(&self) {
        if self.kept.on.swap(false, Ordering::Relaxed) {
            self.bind(&self.awake, &self.free);
        }
    }

    /// Ends it, and lets all threads run anywhere.
    pub(crate) fn free(&self) {
        self.kept.on.store(false, Ordering::Relaxed);
        if self.kept.is_bound.load(Ordering::Relaxed) && self.bind(&self.free, &self.free) {
            self.kept.is_bound.store(false, Ordering::Relaxed);
        }
    }

    /// Has the reader run on `cpus`, and all other threads of this process but decoders and the keeper on `others`. Whether that was done.
    fn bind(&self, cpus: &CpuSet, others: &CpuSet) -> bool {
        self.kept.is_bound.store(true, Ordering::Relaxed);
        let bound = self.try_bind(cpus, others);
        bound.inspect_err(|error| tracing::debug!(%error, "Could not choose the threads' CPUs")).is_ok()
    }

    fn try_bind(&self, cpus: &CpuSet, others: &CpuSet) -> io::Result<()> {
        let [reader, keeper] = [&self.kept.reader, &self.kept.keeper].map(|thread| thread.get().copied());
        let mut met: Vec<_> = self.kept.decoders().iter().copied().map(Some).collect();
        // Threads are born with the CPUs of the one that starts them: those that began meanwhile are met in a second turn.
        for _ in 0..2 {
            for task in std::fs::read_dir("/proc/self/task")? {
                let name = task?.file_name();
                let thread = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
                if thread.is_none() || thread == keeper || met.contains(&thread) {
                    continue;
                }
                met.push(thread);
                // It may have ended meanwhile, the reader, too.
                if let Err(error) = sched_setaffinity(thread, if thread == reader { cpus } else { others }) {
                    tracing::debug!(%error, ?thread, "Could not choose a thread's CPUs");
                }
            }
        }
        Ok(())
    }
}

/// How many CPUs the machine has that are in use, from a list like `0-1` or `0,2-3`.
fn online() -> io::Result<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let number = |text: &str| text.trim().parse::<usize>().map_err(io::Error::other);
    list.split(',').try_fold(0, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Ok(sum + 1 + number(last)?.saturating_sub(number(first)?))
    })
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.free();
        self.kept.ends.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("The thread that keeps a CPU awake ended with a panic");
        }
    }
}
