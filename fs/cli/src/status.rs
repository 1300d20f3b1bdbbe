//! What `.axiomfs/status`, `metrics` and `events` show. Only values that are in memory: they must answer when the store
//! does not.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_host::{Counted, Host};
use axiomfs_live::{FsError, Status, Volume};
use serde_json::{Value, json};

use crate::output::utc;

/// What does not change while a mount lives.
pub struct Facts {
    /// Name of the volume.
    pub volume: String,
    /// Id of the repository.
    pub repository: String,
    /// Where the store is.
    pub store: String,
    /// The store's calls.
    pub seen: Arc<Counted>,
    /// Where it is mounted.
    pub mountpoint: String,
    /// State directory.
    pub state_dir: String,
    /// Cache directory.
    pub cache_dir: String,
    /// The setting `memory`, in bytes.
    pub memory: u64,
    /// The setting `staging.max`, in bytes.
    pub staging_max: u64,
}

/// The status as JSON.
pub fn to_json(facts: &Facts, volume: &Volume, host: &Host) -> Value {
    let status = volume.status();
    let log = status.log.as_ref();
    let problem = status.refused.as_ref().filter(|_| !status.read_only).map(ToString::to_string);
    json!({
        "state": state(&status),
        "problem": problem,
        "volume": facts.volume,
        "repository": facts.repository,
        "store": facts.store,
        "store_problem": facts.seen.trouble().map(|trouble| json!({
            "since": utc(seconds(trouble.since)),
            "error": trouble.error.replace('\n', " "),
        })),
        "mountpoint": facts.mountpoint,
        "state_dir": facts.state_dir,
        "cache_dir": facts.cache_dir,
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "mounted_since": utc(seconds(status.mounted_since)),
        "live": { "files": status.inodes, "handles": status.handles, "layers": status.frozen_layers + 1, "layer_bytes": status.layer_bytes },
        "snapshots": status.snapshots,
        "snapshots_not_committed": not_committed(volume),
        "log": {
            "bytes": log.map(|log| log.bytes),
            "max": log.map(|log| log.max),
            "segments": log.map(|log| log.segments),
        },
        "staging": { "bytes": status.staged_bytes, "packs": status.repository.staged_packs, "max": facts.staging_max },
        "head": {
            "sequence": status.head_sequence,
            "commit": status.head_commit.map(hex),
            "age_s": status.head_time.map(|at| SystemTime::now().duration_since(at).unwrap_or(Duration::ZERO).as_secs()),
            "epoch": status.epoch,
        },
        "set_aside": paths(&status.set_aside),
        "missing_packs": status.missing_packs,
        "missing_plugins": status.missing_plugins,
        "foreign_objects": status.foreign_objects,
        "written_bytes": status.written_bytes,
        "pending_bytes": status.pending_bytes,
        "memory": { "rss": resident(), "limit": facts.memory },
        "generation": host.generation(),
        "confirm": host.confirm_token(),
    })
}

/// Names of snapshots that no committed head in the store has yet: the first few.
fn not_committed(volume: &Volume) -> Vec<String> {
    const SHOWN: usize = 32;
    volume.snapshots().into_iter().filter(|snapshot| !snapshot.committed).map(|s| s.name).take(SHOWN).collect()
}

/// Paths as people see them.
pub fn paths(paths: &[std::path::PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

pub fn state(status: &Status) -> &'static str {
    match &status.refused {
        None if status.read_only => "read-only",
        None => "ok",
        Some(FsError::ReadOnly) => "read-only",
        Some(FsError::Fenced) => "fenced",
        Some(_) => "failed",
    }
}

/// Resident memory of this process in bytes, if the kernel says so.
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The latest events of volume and host, one a line, the oldest first.
pub fn events(volume: &Volume, host: &Host) -> String {
    let mut lines: Vec<(SystemTime, String)> = volume
        .events()
        .into_iter()
        .map(|event| (event.at, format!("{} {}", event.kind, event.text)))
        .chain(host.events_after(0).into_iter().map(|event| (event.at, format!("{} {}", event.kind, event.text))))
        .collect();
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().map(|(at, text)| format!("{} {}\n", utc(seconds(at)), text.replace('\n', " "))).collect()
}

/// Seconds since 1970, negative before.
pub fn seconds(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

/// A commit id as people see it.
pub fn hex(commit: [u8; 16]) -> String {
    axiomfs_repository::ids::hex::encode(&commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }
}
