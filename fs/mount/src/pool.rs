//! Worker threads for requests that have to wait.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::panics;

type Job = Box<dyn FnOnce() + Send>;

/// Names, numbers and the like.
const FEW: usize = 8 << 10;

/// What those got who waited for something that may never answer.
#[derive(Debug, Default)]
pub(crate) struct Waits(Mutex<Ended>);

#[derive(Debug, Default)]
struct Ended {
    /// When somebody was answered last.
    answered: Option<Instant>,
    /// When the wait began that was the last to end in vain, and how long it took.
    in_vain: Option<(Instant, Duration)>,
}

impl Waits {
    /// One that began at `begun` has ended, with an answer or without.
    pub(crate) fn ended(&self, begun: Instant, is_answered: bool) {
        let mut ended = lock(&self.0);
        if is_answered {
            ended.answered = Some(Instant::now());
        } else {
            ended.in_vain = Some((begun, begun.elapsed()));
        }
    }

    /// Whether who came then has waited about as long as somebody else did in vain, and nobody was answered meanwhile.
    pub(crate) fn are_in_vain(&self, came: Instant) -> bool {
        let ended = lock(&self.0);
        ended.in_vain.is_some_and(|(begun, took)| {
            came <= begun + took / 4 && ended.answered.is_none_or(|answered| answered < begun)
        })
    }
}

/// A fixed number of threads and a queue of jobs. What the queued jobs carry in bytes is bounded; who would go past
/// the bound waits until jobs have ended.
pub(crate) struct Pool {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) waits: Waits,
}

struct Inner {
    operation: &'static str,
    max_bytes: usize,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(usize, Job)>,
    /// Carried by queued and running jobs.
    bytes: usize,
    closed: bool,
}

impl Pool {
    /// Starts `threads` threads called `name`, which call `begin` first. `max_bytes` bounds what jobs that aren't done yet carry.
    pub(crate) fn new(
        name: &'static str,
        threads: usize,
        max_bytes: usize,
        begin: impl Fn() + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            operation: name,
            max_bytes,
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            room: Condvar::new(),
        });
        let pool = Self { inner, threads: Mutex::default(), waits: Waits::default() };
        for _ in 0..threads.max(1) {
            let (inner, begin) = (pool.inner.clone(), begin.clone());
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
                begin();
                inner.serve();
            })?;
            lock(&pool.threads).push(thread);
        }
        Ok(pool)
    }

    /// Queues `job`, which carries `bytes`. Waits while too many bytes are under way; a job larger than the bound runs
    /// alone, and one with few never waits: there are no more than programs that wait for an answer. After
    /// [`close`](Self::close) jobs are dropped, which answers their requests with EIO.
    pub(crate) fn submit(&self, bytes: usize, job: impl FnOnce() + Send + 'static) {
        let mut state = lock(&self.inner.state);
        while self.inner.waits(&state, bytes) && !state.closed {
            state = self.inner.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        state.bytes += bytes;
        state.queue.push_back((bytes, Box::new(job)));
        drop(state);
        self.inner.work.notify_one();
    }

    /// Whether a job that carries `bytes` would have to wait before it is queued.
    pub(crate) fn is_full(&self, bytes: usize) -> bool {
        self.inner.waits(&lock(&self.inner.state), bytes)
    }

    /// Runs what is queued, then ends the threads.
    pub(crate) fn close(&self) {
        lock(&self.inner.state).closed = true;
        self.inner.work.notify_all();
        self.inner.room.notify_all();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.join().is_err() {
                tracing::error!(pool = self.inner.operation, "A worker thread ended with a panic");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn waits(&self, state: &State, bytes: usize) -> bool {
        bytes > FEW && state.bytes > 0 && state.bytes + bytes > self.max_bytes
    }

    fn serve(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some((bytes, job)) = state.queue.pop_front() {
                drop(state);
                panics::guard(self.operation, job);
                state = lock(&self.state);
                state.bytes -= bytes;
                self.room.notify_all();
            } else if state.closed {
                return;
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Jobs run outside the lock, so a panic can't have left the state half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panic_in_a_job_leaves_the_thread_serving() {
        let pool = Pool::new("test", 1, 1 << 20, || ()).unwrap();
        let (sender, receiver) = mpsc::channel();
        pool.submit(0, || panic!("expected by the test"));
        pool.submit(0, move || sender.send(7).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(7));
    }

    #[test]
    fn closing_runs_what_is_queued() {
        let pool = Pool::new("test", 2, 1 << 20, || ()).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let done = done.clone();
            pool.submit(10, move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.close();
        assert_eq!(done.load(Ordering::Relaxed), 100);
        let late = done.clone();
        pool.submit(0, move || {
            late.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn bytes_under_way_are_bounded() {
        let pool = Arc::new(Pool::new("test", 1, 10 * FEW, || ()).unwrap());
        let (release, wait) = mpsc::channel::<()>();
        pool.submit(8 * FEW, move || wait.recv().unwrap());
        let (sender, accepted) = mpsc::channel();
        let other = pool.clone();
        let submitter = std::thread::spawn(move || {
            other.submit(3 * FEW, || ());
            sender.send(()).unwrap();
        });
        assert!(accepted.recv_timeout(Duration::from_millis(100)).is_err(), "11 of 10 were accepted");
        release.send(()).unwrap();
        assert_eq!(accepted.recv_timeout(Duration::from_secs(10)), Ok(()));
        submitter.join().unwrap();
    }

    #[test]
    fn who_came_before_anybody_was_answered_waits_in_vain_and_nobody_else() {
        let waits = Waits::default();
        let (begun, pause) = (Instant::now(), Duration::from_millis(20));
        assert!(!waits.are_in_vain(begun), "nobody knows yet");
        std::thread::sleep(pause);
        waits.ended(begun, false);
        assert!(waits.are_in_vain(begun) && waits.are_in_vain(begun + pause / 8));
        assert!(!waits.are_in_vain(Instant::now()), "it has not waited at all");
        waits.ended(begun, true);
        assert!(!waits.are_in_vain(begun), "who waits on may be answered, too");
        let later = Instant::now();
        std::thread::sleep(pause);
        waits.ended(later, false);
        assert!(waits.are_in_vain(later));
    }

    #[test]
    fn a_job_larger_than_the_bound_runs_alone() {
        let pool = Pool::new("test", 1, FEW, || ()).unwrap();
        let (sender, receiver) = mpsc::channel();
        pool.submit(3 * FEW, move || sender.send(()).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
