//! Bringing everything into the store, and ending.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::orders::Waiting;
use crate::types::{Committed, FsError, FsResult, Progress};
use crate::volume::{Volume, lock};

/// How often somebody who waits for a commit reports progress.
const REPORT: Duration = Duration::from_millis(100);

impl Volume {
    /// Everything that was written before is in the store under a committed head when this returns.
    ///
    /// # Errors
    /// `TimedOut` after `deadline`, or what kept the commit from being done.
    pub fn sync(&self, deadline: Duration, progress: &dyn Fn(Progress)) -> FsResult<Committed> {
        self.sync_by(deadline, progress, true)
    }

    /// The same for who waits for something of his own: what was lost stays to be told, also to who calls [`sync`](Self::sync).
    ///
    /// # Errors
    /// As for that.
    pub fn sync_untold(&self, deadline: Duration) -> FsResult<Committed> {
        self.sync_by(deadline, &|_| {}, false)
    }

    fn sync_by(&self, deadline: Duration, progress: &dyn Fn(Progress), settles: bool) -> FsResult<Committed> {
        let shared = &self.shared;
        let started = Instant::now();
        let total = shared.accepted();
        let from = shared.committed_bytes.load(Ordering::Relaxed);
        let number = self.sync_begin()?;
        loop {
            if let Some(committed) = self.wait_by(number, REPORT, settles)? {
                return Ok(committed);
            }
            if started.elapsed() > deadline {
                return Err(FsError::TimedOut(
                    "The store did not take everything in time; it goes on in the background".into(),
                ));
            }
            let done = shared.ingested.load(Ordering::Relaxed);
            progress(Progress {
                bytes_total: total.saturating_sub(from),
                bytes_done: done.saturating_sub(from).min(total),
            });
        }
    }

    /// Begins to bring everything that was written before into the store. Gives a number for [`sync_wait`](Self::sync_wait).
    ///
    /// # Errors
    /// `Stale` once the volume is shut down.
    pub fn sync_begin(&self) -> FsResult<u64> {
        let shared = &self.shared;
        match &shared.log {
            _ if shared.stopped.load(Ordering::Relaxed) => Err(FsError::Stale),
            None => Ok(0),
            Some(_) => Ok(shared.work.ask_commit()),
        }
    }

    /// The head that has all which was written before `number` was given, once there is one; waits for it, `time` at most.
    ///
    /// # Errors
    /// `Invalid` for a number that was not given, or what kept the commit from being done.
    pub fn sync_wait(&self, number: u64, time: Duration) -> FsResult<Option<Committed>> {
        self.wait_by(number, time, true)
    }

    fn wait_by(&self, number: u64, time: Duration, settles: bool) -> FsResult<Option<Committed>> {
        let shared = &self.shared;
        if shared.log.is_none() {
            let head = *lock(&shared.head);
            let commit = head.commit.map_or([0; 16], |c| c.0);
            return Ok(Some(Committed { sequence: head.sequence, commit }));
        }
        if !shared.work.was_asked(number) {
            return Err(FsError::Invalid);
        }
        match shared.work.wait_for(number, time, settles) {
            Waiting::Done(newest) => return Ok(Some(newest)),
            Waiting::Failed(error) => return Err(error),
            Waiting::NotYet => {}
        }
        if shared.stopped.load(Ordering::Relaxed) {
            return Err(FsError::Stale);
        }
        if shared.worker_dead.load(Ordering::Relaxed) {
            return Err(FsError::Io("A thread panicked; what was acknowledged is in the state directory".into()));
        }
        Ok(None)
    }

    /// A local checkpoint of everything up to now.
    ///
    /// # Errors
    /// `TimedOut`, or the volume is shut down.
    pub fn checkpoint_now(&self) -> FsResult<()> {
        let shared = &self.shared;
        let started = Instant::now();
        shared.log_access_times();
        {
            let mut state = shared.state_mut();
            if !state.active.is_empty() {
                state.freeze();
            }
        }
        while !shared.state().frozen.is_empty() {
            if shared.stopped.load(Ordering::Relaxed) {
                return Err(FsError::Stale);
            }
            if started.elapsed() > shared.options.timeout {
                return Err(FsError::TimedOut("The checkpoint is not done yet; it goes on in the background".into()));
            }
            shared.work.checkpoint_soon();
            shared.work.wait_for_change(REPORT);
        }
        Ok(())
    }

    /// Drains everything into the store and stops. All calls after it give `Stale`.
    ///
    /// # Errors
    /// What kept the drain from being done; the volume is stopped all the same, and its state directory has everything.
    pub fn shutdown(&self, progress: &dyn Fn(Progress)) -> FsResult<Committed> {
        let drained = self.sync(Duration::from_secs(24 * 3600), progress);
        self.stop();
        drained
    }

    /// Stops the threads without draining. What isn't in the store stays in the state directory, for the next mount.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.work.stop();
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("A thread of the volume panicked");
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.stop();
    }
}
