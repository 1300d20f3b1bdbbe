//! What became of one file: which frames hold it, which steps made them, and what that saved.

use std::collections::BTreeMap;

use axiomfs_host::{ControlError, Host};
use axiomfs_live::{Access, FsError, NodeId, ROOT_INO, Volume};
use axiomfs_repository::{FrameInfo, Repository};
use serde_json::{Value, json};

/// Frames told one by one; of more only the sums.
const SHOWN: usize = 1000;

/// Answers `stat PATH`; the path is from the mount's root: `live/…` or `snapshots/NAME/…`.
///
/// # Errors
/// [`ControlError`] if there is no such file, or it can't be looked up.
pub fn stat(volume: &Volume, repository: &Repository, host: &Host, path: &str) -> Result<Value, ControlError> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let (ordinal, names) = match words[..] {
        ["live", ref names @ ..] => (0, names),
        ["snapshots", snapshot, ref names @ ..] => {
            let known = volume.snapshot(snapshot);
            (known.ok_or_else(|| refused(path, "there is no such snapshot"))?.ordinal, names)
        }
        _ => {
            let why = "it does not begin with live/ or snapshots/NAME/";
            return Err(ControlError {
                hint: "As in: stat live/documents/thesis.tex".to_owned(),
                ..refused(path, why)
            });
        }
    };
    let failed = |error: FsError| refused(path, &error.to_string());
    let mut ino = ROOT_INO;
    for name in names {
        ino = volume.lookup(Access::Wait, NodeId { ordinal, ino }, name.as_bytes()).map_err(failed)?.ino;
    }
    let layout = volume.layout(Access::Wait, NodeId { ordinal, ino }).map_err(failed)?;
    let (mut frames, mut waiting): (BTreeMap<_, (FrameInfo, u64, u64)>, u64) = (BTreeMap::new(), 0);
    for (id, len) in &layout.chunks {
        let found = repository.frame_of(id).map_err(|error| refused(path, &crate::failure::chain(&error)))?;
        let Some(info) = found else {
            waiting += len;
            continue;
        };
        let (_, bytes, chunks) = frames.entry(info.key).or_insert((info, 0, 0));
        *bytes += len;
        *chunks += 1;
    }
    let sum = |of: fn(&FrameInfo) -> u32| frames.values().map(|(info, ..)| u64::from(of(info))).sum::<u64>();
    let (raw, stored) = (sum(|info| info.raw), sum(|info| info.stored));
    let route = host.route(names.join("/").as_bytes());
    Ok(json!({
        "ok": true,
        "path": path,
        "inode": ino,
        "size": layout.size,
        "route": &*route,
        "in_log": layout.in_log,
        "inline": layout.inline,
        "holes": layout.holes,
        "waiting": waiting,
        "frames_total": frames.len(),
        "raw": raw,
        "stored": stored,
        "ratio": if stored == 0 { 1.0 } else { raw as f64 / stored as f64 },
        "frames": frames.values().take(SHOWN).map(frame).collect::<Vec<_>>(),
    }))
}

fn frame((info, bytes, chunks): &(FrameInfo, u64, u64)) -> Value {
    json!({
        "pack": info.pack,
        "frame": info.number,
        "epoch": info.epoch,
        "staged": info.is_staged,
        "steps": info.applied,
        "seal": info.seal,
        "chain": info.chain,
        "raw": info.raw,
        "encoded": info.encoded,
        "stored": info.stored,
        "chunks": chunks,
        "bytes_of_file": bytes,
    })
}

fn refused(path: &str, why: &str) -> ControlError {
    ControlError {
        code: "PATH",
        errno_name: "ENOENT",
        msg: format!("Could not look at {path:?}: {why}"),
        hint: String::new(),
    }
}
