//! Named points of failure, for tests of crashes: `AXIOMFS_FAULT_POINT=name[:n]` makes the process abort when it comes to the
//! point for the n-th time. With `AXIOMFS_FAULT_ACTION=touch` it makes the file `.fault-name` in the state directory and
//! goes on, so that a test can do the harm itself; with `panic` only the thread that came there panics.
//!
//! `AXIOMFS_FAULT_STORE_DELAY=FILE` makes each pack take longer on its way to the store, by the milliseconds in FILE, which
//! is read each time; `fail` in it makes the store refuse them for now.
//!
//! `AXIOMFS_FAULT_PLUGINS=1` adds the plugins `faulty` and `faulty-large`, which misbehave as their parameters say.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axiomfs_api::{Store, StoreErrorKind};
use axiomfs_host::{Fault, Faulty, Operation};

use crate::failure::Failure;

/// What the layers below call at each named point.
pub type Hook = Arc<dyn Fn(&'static str) + Send + Sync>;

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Panic,
    Touch(PathBuf),
}

/// The hook that the environment asks for; without a wish it does nothing.
///
/// # Errors
/// [`Failure`] if the wish is not understood.
pub fn from_environment(state: &Path) -> Result<Hook, Failure> {
    let Ok(wish) = std::env::var("AXIOMFS_FAULT_POINT") else { return Ok(Arc::new(|_| {})) };
    let action = match std::env::var("AXIOMFS_FAULT_ACTION").as_deref() {
        Err(_) | Ok("abort") => Action::Abort,
        Ok("panic") => Action::Panic,
        Ok("touch") => Action::Touch(state.to_owned()),
        Ok(other) => {
            return Err(Failure::usage(format!("AXIOMFS_FAULT_ACTION is {other:?}")).hint("use abort, panic or touch"));
        }
    };
    let (name, at) = parse(&wish)?;
    Ok(hook(name, at, action))
}

/// The store, slower if the environment asks for it.
pub fn slowed(store: Arc<dyn Store>) -> Arc<dyn Store> {
    let Some(file) = std::env::var_os("AXIOMFS_FAULT_STORE_DELAY").map(PathBuf::from) else { return store };
    let slow = Faulty::new(store);
    slow.set_plan(move |call| {
        let fault = || match std::fs::read_to_string(&file).ok()?.trim() {
            "fail" => Some(Fault::Refuse(StoreErrorKind::Unavailable)),
            delay => delay.parse().ok().map(|ms| Fault::Delay(Duration::from_millis(ms))),
        };
        match (call.operation, call.object.starts_with("packs/")) {
            (Operation::PutNew, true) => fault().unwrap_or_default(),
            _ => Fault::None,
        }
    });
    Arc::new(slow)
}

/// Whether the environment asks for the plugins that misbehave.
pub fn wants_plugins() -> bool {
    std::env::var_os("AXIOMFS_FAULT_PLUGINS").is_some_and(|wish| wish == "1")
}

fn parse(wish: &str) -> Result<(String, u64), Failure> {
    let (name, at) = wish.split_once(':').unwrap_or((wish, "1"));
    match at.parse() {
        Ok(at @ 1..) if !name.is_empty() => Ok((name.to_owned(), at)),
        _ => Err(Failure::usage(format!("AXIOMFS_FAULT_POINT is {wish:?}")).hint("write name or name:n")),
    }
}

fn hook(name: String, at: u64, action: Action) -> Hook {
    let hits = AtomicU64::new(0);
    Arc::new(move |point| {
        if point != name || hits.fetch_add(1, Ordering::Relaxed) + 1 != at {
            return;
        }
        match &action {
            Action::Abort => std::process::abort(),
            Action::Panic => panic!("AXIOMFS_FAULT_POINT asks for a panic at {point}"),
            Action::Touch(directory) => {
                if let Err(error) = std::fs::write(directory.join(format!(".fault-{point}")), b"") {
                    tracing::error!(point, %error, "could not mark a point of failure");
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nth_hit_of_the_named_point_counts() {
        let directory = std::env::temp_dir().join(format!("axiomfs-cli-{}-faults", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mark = directory.join(".fault-log.rotate");
        let hook = hook("log.rotate".into(), 2, Action::Touch(directory.clone()));
        hook("log.rotate");
        hook("log.released");
        assert!(!mark.exists());
        hook("log.rotate");
        assert!(mark.exists());
        std::fs::remove_file(&mark).unwrap();
        hook("log.rotate");
        assert!(!mark.exists());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn wishes_are_parsed() {
        assert_eq!(parse("a.b"), Ok(("a.b".into(), 1)));
        assert_eq!(parse("a.b:7"), Ok(("a.b".into(), 7)));
        for wrong in ["", ":1", "a:0", "a:x"] {
            assert_eq!(parse(wrong).unwrap_err().code(), 2, "{wrong}");
        }
    }
}
