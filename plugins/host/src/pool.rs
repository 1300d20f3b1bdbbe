use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::seat::Seat;

/// Buffers larger than this are not kept between frames.
const MAX_SPARE: usize = 1 << 20;

/// What one thread needs for one frame: a worker per unit, made at first use, and a buffer to reuse.
#[derive(Default)]
pub struct Bench {
    pub workers: Vec<Seat>,
    spare: Vec<u8>,
}

impl Bench {
    /// A buffer with unspecified contents.
    pub fn buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Keeps a buffer for the next use.
    pub fn keep(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= MAX_SPARE && buffer.capacity() > self.spare.capacity() {
            self.spare = buffer;
        }
    }
}

/// Idle benches of one chain or decoder; as many exist as frames were ever in flight at once.
pub struct Pool {
    units: usize,
    idle: Mutex<Vec<Bench>>,
    busy: AtomicUsize,
}

impl Pool {
    pub fn new(units: usize) -> Self {
        Self { units, idle: Mutex::default(), busy: AtomicUsize::new(0) }
    }

    /// Runs `work` with a bench of its own.
    pub fn with<T>(&self, work: impl FnOnce(&mut Bench) -> T) -> T {
        let busy = Busy::new(&self.busy);
        let mut bench = lock(&self.idle).pop().unwrap_or_default();
        bench.workers.resize_with(self.units, Seat::default);
        let result = work(&mut bench);
        lock(&self.idle).push(bench);
        drop(busy);
        result
    }

    /// Frames being worked on.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }
}

struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Bounds how many frames are encoded or decoded at once. A holder never waits for another permit.
pub struct Permits {
    state: Mutex<Held>,
    freed: Condvar,
}

struct Held {
    limit: usize,
    now: usize,
    /// Most since the limit was set to another.
    most: usize,
}

impl Permits {
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::new(Held { limit, now: 0, most: 0 }), freed: Condvar::new() }
    }

    /// Changes the bound; those above it finish first.
    pub fn set_limit(&self, limit: usize) {
        let mut state = lock(&self.state);
        if state.limit != limit {
            (state.limit, state.most) = (limit, state.now);
        }
        drop(state);
        self.freed.notify_all();
    }

    /// Waits for a permit.
    pub fn acquire(&self) -> Permit<'_> {
        let mut state = lock(&self.state);
        while state.now >= state.limit {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.now += 1;
        state.most = state.most.max(state.now);
        Permit(self)
    }

    /// Permits held now.
    pub fn held(&self) -> usize {
        lock(&self.state).now
    }

    /// Most that were held at once since the bound was set.
    pub fn most(&self) -> usize {
        lock(&self.state).most
    }
}

/// Leave to work on one frame.
pub struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).now -= 1;
        self.0.freed.notify_one();
    }
}

/// Locks; a poisoned lock is taken over, because nothing here is left half-changed by a panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
