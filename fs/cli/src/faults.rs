//! Named points of failure, for tests of crashes: `AXIOMFS_FAULT_POINT=name[:n]` makes the process abort when it comes to the
//! point for the n-th time. With `AXIOMFS_FAULT_ACTION=touch` it makes the file `.fault-name` in the state directory and
//! goes on, so that a test can do the harm itself; with `panic` only the thread that came there panics.
//!
//! `AXIOMFS_FAULT_STORE_DELAY=FILE` makes each pack take longer on its way to the store, by the milliseconds in FILE, which
//! is read each time.
//!
//! `AXIOMFS_FAULT_PLUGIN=FILE` adds the plugin `troubled`, which misbehaves as FILE says, read at each frame: `slow MS` makes it
//! wait so many milliseconds, `wrong` makes frames that don't decode to what went in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axiomfs_api::{
    Applied, BoundedBuf, Descriptor, Hint, Kind, PluginError, Store, Transform, TransformFactory, Worker,
};
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
        let delay = || std::fs::read_to_string(&file).ok()?.trim().parse().ok().map(Duration::from_millis);
        match (call.operation, call.object.starts_with("packs/")) {
            (Operation::PutNew, true) => delay().map_or(Fault::None, Fault::Delay),
            _ => Fault::None,
        }
    });
    Arc::new(slow)
}

/// The plugin that misbehaves, if the environment asks for it.
pub fn plugin() -> Option<Troubled> {
    std::env::var_os("AXIOMFS_FAULT_PLUGIN").map(|file| Troubled(file.into()))
}

/// XORs every byte with 0x55, and misbehaves as its file says.
#[derive(Debug, Clone)]
pub struct Troubled(PathBuf);

const TROUBLED: Descriptor = Descriptor {
    id: "troubled",
    kind: Kind::Transform,
    version: "0",
    summary: "Misbehaves on command, for tests",
    writes: 1,
    reads: &[1],
    provides: &[],
    requires: &[],
    before: &[],
    after: &[],
    memory: 4096,
    skippable: true,
};

impl TransformFactory for Troubled {
    fn descriptor(&self) -> &'static Descriptor {
        &TROUBLED
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        match params.first() {
            None => Ok(Arc::new(self.clone())),
            Some((key, _)) => {
                Err(PluginError::UnknownParameter { plugin: TROUBLED.id, key: key.clone(), known: "none" })
            }
        }
    }

    fn decoder(&self, _: u16, _: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        Ok(Arc::new(self.clone()))
    }
}

impl Transform for Troubled {
    fn descriptor(&self) -> &'static Descriptor {
        &TROUBLED
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(self.clone()))
    }
}

impl Worker for Troubled {
    fn encode(&mut self, _: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        let wish = std::fs::read_to_string(&self.0).unwrap_or_default();
        let pause = wish.trim().strip_prefix("slow ").and_then(|millis| millis.parse().ok());
        std::thread::sleep(pause.map_or(Duration::ZERO, Duration::from_millis));
        let wrong = u8::from(wish.trim() == "wrong");
        let bytes: Vec<u8> = src.iter().map(|byte| byte ^ 0x55 ^ wrong).collect();
        out.extend(&bytes)?;
        Ok(Applied::Yes)
    }

    fn decode(&mut self, _: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        if src.len() != raw_len {
            let (plugin, actual) = (TROUBLED.id, src.len());
            return Err(PluginError::Failed { plugin, reason: format!("{actual} bytes can't be {raw_len}") });
        }
        let bytes: Vec<u8> = src.iter().map(|byte| byte ^ 0x55).collect();
        out.extend(&bytes)
    }
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
