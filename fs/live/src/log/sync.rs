//! Group commit: one fdatasync for all who wait, and none after one has failed.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::format::Position;
use super::segment::Segment;
use super::{Log, LogError};

pub(super) struct Syncing {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Everything before it is known durable.
    durable: Position,
    /// Somebody is in fdatasync for all.
    running: bool,
    failed: Option<Failure>,
    /// When `durable` was last known to be the end.
    last: Instant,
    count: u64,
}

/// A failure that ends the log's life; kept so that every later call can tell it.
#[derive(Clone, Copy)]
struct Failure {
    operation: &'static str,
    segment: u64,
    kind: io::ErrorKind,
    code: Option<i32>,
}

impl From<Failure> for LogError {
    fn from(failure: Failure) -> Self {
        let source = failure.code.map_or_else(|| failure.kind.into(), io::Error::from_raw_os_error);
        Self::Failed { operation: failure.operation, segment: failure.segment, source }
    }
}

impl Syncing {
    pub fn new(durable: Position) -> Self {
        let state = State { durable, running: false, failed: None, last: Instant::now(), count: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The error that ended the log's life, if any.
    pub fn check(&self) -> Result<(), LogError> {
        self.lock().failed.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Ends the log's life. Returns the error to answer with.
    pub fn fail(&self, operation: &'static str, segment: u64, error: &io::Error) -> LogError {
        self.fail_locked(&mut self.lock(), operation, segment, error)
    }

    fn fail_locked(&self, state: &mut State, operation: &'static str, segment: u64, error: &io::Error) -> LogError {
        let failure = Failure { operation, segment, kind: error.kind(), code: error.raw_os_error() };
        if state.failed.is_none() {
            tracing::error!(operation, segment, %error, "the log failed; nothing will be written any more");
        }
        let first = *state.failed.get_or_insert(failure);
        self.changed.notify_all();
        first.into()
    }

    /// fdatasyncs `segment`, of which the records before `end` are written, unless `target` becomes durable by somebody else's doing.
    ///
    /// One at a time: of two fdatasyncs of one file that run together, only one is told that writing back failed.
    pub fn run(&self, segment: &Segment, end: u64, target: Position) -> Result<(), LogError> {
        if self.wait(target, true)? {
            return Ok(());
        }
        let begun = Instant::now();
        let result = segment.file.sync();
        let mut state = self.lock();
        state.running = false;
        state.count += 1;
        self.changed.notify_all();
        match result {
            Ok(()) => {
                segment.set_durable(end);
                state.durable = state.durable.max(Position { segment: segment.number(), offset: end });
                state.last = state.last.max(begun);
                Ok(())
            }
            // Under the same lock: nobody may run another, which would succeed.
            Err(error) => Err(self.fail_locked(&mut state, "fdatasync", segment.number(), &error)),
        }
    }

    /// Waits until `target` is durable or no fdatasync runs, and tells whether it is durable. If it isn't, `claim` makes the caller the one
    /// who runs the next.
    fn wait(&self, target: Position, claim: bool) -> Result<bool, LogError> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = state.failed {
                return Err(failure.into());
            }
            if state.durable >= target {
                return Ok(true);
            }
            if !state.running {
                state.running = claim;
                return Ok(false);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The durable position, the age of the last sync, fdatasyncs so far, failed?
    pub fn usage(&self) -> (Position, Duration, u64, bool) {
        let state = self.lock();
        (state.durable, state.last.elapsed(), state.count, state.failed.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Returns when everything appended before the call is durable.
    ///
    /// Callers that come while an fdatasync runs wait for it and share the next one.
    ///
    /// # Errors
    /// [`LogError::Failed`], now and for ever, if an fdatasync or a write failed.
    pub fn sync(&self) -> Result<(), LogError> {
        let (_, target) = self.written();
        if self.syncing.wait(target, false)? {
            return Ok(());
        }
        // What was appended while the others' fdatasync ran is synced with ours.
        let (segment, end) = self.written();
        self.syncing.run(&segment, end.offset, target)
    }

    /// To be called once a second: makes durable what isn't, and, when there is nothing, notes in the log that it is.
    pub fn tick(&self) {
        let (_, target) = self.written();
        let (durable, _, _, failed) = self.syncing.usage();
        if failed {
            return;
        }
        let result = if durable < target { self.sync() } else { self.note_durable() };
        if let Err(error) = result {
            tracing::warn!(%error, "the log could not be synced in the background");
        }
    }

    /// The active segment, and the end of what is written to it.
    fn written(&self) -> (Arc<Segment>, Position) {
        let active = self.lock_active();
        let end = Position { segment: active.segment.number(), offset: active.end };
        (Arc::clone(&active.segment), end)
    }
}
