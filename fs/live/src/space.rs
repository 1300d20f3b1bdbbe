//! How much room the store has. It is asked in a thread of its own: a directory on another machine may let one wait for ever.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use axiomfs_repository::Repository;

use crate::types::{FsError, FsResult};
use crate::volume::lock;

/// Free and total bytes of a store, if it has a bound.
pub(crate) type Space = Option<(u64, u64)>;

/// Who can be told what the store said before waits no longer than this for what it says now.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the store says of its room.
#[derive(Debug, Default)]
pub(crate) struct SpaceSeen {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: Mutex<Asked>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    /// A thread asks.
    running: bool,
    /// How many answers there were.
    answers: u64,
    /// Why the newest of them was none.
    error: Option<String>,
    last: Option<Space>,
}

impl SpaceSeen {
    /// The store's room, or what it said last where it lets one wait.
    ///
    /// # Errors
    /// The store can't say, or said nothing within `timeout` and nothing before.
    pub fn ask(&self, repository: &Arc<Repository>, timeout: Duration) -> FsResult<Space> {
        let mut asked = lock(&self.inner.asked);
        let is_first = !asked.running;
        if is_first {
            let (inner, repository) = (self.inner.clone(), repository.clone());
            let thread = std::thread::Builder::new().name("space".into());
            thread.spawn(move || inner.answer(repository)).map_err(|e| FsError::Io(e.to_string()))?;
            asked.running = true;
        } else if let Some(space) = asked.last {
            return Ok(space);
        }
        let (begun, before) = (Instant::now(), asked.answers);
        while asked.answers == before {
            // One that waits for its whole time is enough.
            let patience = if is_first && asked.last.is_none() { timeout } else { PATIENCE.min(timeout) };
            let Some(left) = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                let nothing =
                    || FsError::Io(format!("The store has not said within {patience:?} how much room it has"));
                return asked.last.ok_or_else(nothing);
            };
            asked = self.inner.answered.wait_timeout(asked, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        match (&asked.error, asked.last) {
            (None, Some(space)) => Ok(space),
            (error, _) => Err(FsError::Io(error.clone().unwrap_or_default())),
        }
    }
}

impl Inner {
    fn answer(&self, repository: Arc<Repository>) {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| repository.store().space()));
        drop(repository);
        let mut asked = lock(&self.asked);
        asked.error = match answer {
            Ok(Ok(space)) => {
                asked.last = Some(space);
                None
            }
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("The store panicked when it was asked for its room".into()),
        };
        asked.running = false;
        asked.answers += 1;
        self.answered.notify_all();
    }
}
