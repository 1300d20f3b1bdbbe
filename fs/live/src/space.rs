//! How much room the store has. It is asked in a thread of its own: a directory on another machine may let one wait for ever.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

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
    error: Option<FsError>,
    last: Option<Space>,
}

impl SpaceSeen {
    /// What `store` says of its room, or what it said last where it lets one wait.
    ///
    /// # Errors
    /// The store can't say, or said nothing within `timeout` and nothing before.
    pub fn ask(&self, timeout: Duration, store: impl FnOnce() -> FsResult<Space> + Send + 'static) -> FsResult<Space> {
        let mut asked = lock(&self.inner.asked);
        let is_first = !asked.running;
        if is_first {
            let inner = self.inner.clone();
            let thread = std::thread::Builder::new().name("space".into());
            thread.spawn(move || inner.answer(store)).map_err(|e| FsError::Io(e.to_string()))?;
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
                    || FsError::TimedOut(format!("The store has not said within {patience:?} how much room it has"));
                return asked.last.ok_or_else(nothing);
            };
            asked = self.inner.answered.wait_timeout(asked, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        match (&asked.error, asked.last) {
            (None, Some(space)) => Ok(space),
            (Some(error), _) => Err(error.clone()),
            (None, None) => unreachable!("an answer is a size or an error"),
        }
    }
}

impl Inner {
    fn answer(&self, store: impl FnOnce() -> FsResult<Space>) {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(store));
        let mut asked = lock(&self.asked);
        asked.error = match answer {
            Ok(Ok(space)) => {
                asked.last = Some(space);
                None
            }
            Ok(Err(error)) => Some(error),
            Err(_) => Some(FsError::Io("The store panicked when it was asked for its room".into())),
        };
        asked.running = false;
        asked.answers += 1;
        self.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);

    #[test]
    fn a_store_that_says_nothing_is_an_error_until_it_has_said_something() {
        let seen = SpaceSeen::default();
        let (say, said) = mpsc::channel::<FsResult<Space>>();
        let silent = |said: mpsc::Receiver<_>| move || said.recv().expect("said in the end");
        let begun = Instant::now();
        assert!(matches!(seen.ask(TIMEOUT, silent(said)), Err(FsError::TimedOut(_))));
        assert!(begun.elapsed() >= TIMEOUT && begun.elapsed() < 10 * TIMEOUT, "{:?}", begun.elapsed());
        say.send(Ok(Some((1, 2)))).expect("it still waits");
        // Asked by whoever comes then, or by the one that waited.
        assert_eq!(seen.ask(Duration::from_secs(10), || Ok(Some((1, 2)))).expect("said"), Some((1, 2)));
        assert_eq!(seen.ask(TIMEOUT, || Ok(Some((3, 4)))).expect("said"), Some((3, 4)));
        // Silent again: what was said last, for the one who asks and for who comes meanwhile.
        let (_say, said) = mpsc::channel();
        assert_eq!(seen.ask(TIMEOUT, silent(said)).expect("said before"), Some((3, 4)));
        let begun = Instant::now();
        assert_eq!(seen.ask(TIMEOUT, || unreachable!("one is asked already")).expect("said before"), Some((3, 4)));
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
    }

    #[test]
    fn an_error_and_a_panic_are_answers() {
        let seen = SpaceSeen::default();
        assert!(matches!(seen.ask(TIMEOUT, || Err(FsError::NoSpace)), Err(FsError::NoSpace)));
        assert!(matches!(seen.ask(TIMEOUT, || panic!("expected by the test")), Err(FsError::Io(_))));
        assert_eq!(seen.ask(TIMEOUT, || Ok(None)).expect("said"), None);
    }
}
