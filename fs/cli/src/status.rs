//! What `.axiomfs/status`, `metrics` and `events` show. Only values that are in memory: they must answer when the store
//! does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_host::{Host, MetricKind};
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

fn state(status: &Status) -> &'static str {
    match &status.refused {
        None if status.read_only => "read-only",
        None => "ok",
        Some(FsError::ReadOnly) => "read-only",
        Some(FsError::Fenced) => "fenced",
        Some(_) => "failed",
    }
}

/// Resident memory of this process in bytes, if the kernel says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The counters in the text form of Prometheus.
pub fn metrics(facts: &Facts, volume: &Volume, host: &Host) -> String {
    let status = volume.status();
    let counts = &status.repository;
    let mut text = String::new();
    let log = status.log.as_ref();
    for (name, kind, help, value) in [
        ("writable", "gauge", "1 if the live tree takes changes", f64::from(u8::from(state(&status) == "ok"))),
        ("open_handles", "gauge", "Open files", status.handles as f64),
        ("snapshots", "gauge", "Snapshots", status.snapshots as f64),
        ("frozen_layers", "gauge", "Layers that wait for a checkpoint", status.frozen_layers as f64),
        ("layer_bytes", "gauge", "Heap of the layers", status.layer_bytes as f64),
        ("log_bytes", "gauge", "Bytes in the write-ahead log", log.map_or(0.0, |log| log.bytes as f64)),
        ("log_max_bytes", "gauge", "Most bytes in the write-ahead log", log.map_or(0.0, |log| log.max as f64)),
        ("staged_bytes", "gauge", "Bytes of packs that wait for a commit", status.staged_bytes as f64),
        ("pending_bytes", "gauge", "File data not yet under a committed head", status.pending_bytes as f64),
        ("written_bytes_total", "counter", "File data written since the mount", status.written_bytes as f64),
        ("head_sequence", "gauge", "Number of the newest head", status.head_sequence as f64),
        ("memory_rss_bytes", "gauge", "Resident memory", resident().unwrap_or(0) as f64),
        ("memory_limit_bytes", "gauge", "The setting memory", facts.memory as f64),
        ("chunks_indexed", "gauge", "Chunks that the index locates", counts.indexed_chunks as f64),
        ("chunks_new_total", "counter", "Chunks that were new", counts.chunks_new as f64),
        ("chunks_known_total", "counter", "Chunks that were known", counts.chunks_known as f64),
        ("chunk_bytes_new_total", "counter", "Raw bytes of new chunks", counts.bytes_new as f64),
        ("chunk_bytes_known_total", "counter", "Raw bytes of known chunks", counts.bytes_known as f64),
        ("frames_written_total", "counter", "Frames written", counts.frames_written as f64),
        ("frame_bytes_raw_total", "counter", "Raw bytes of frames written", counts.frame_bytes_raw as f64),
        ("frame_bytes_stored_total", "counter", "Sealed bytes of frames written", counts.frame_bytes_stored as f64),
        ("frames_read_total", "counter", "Frames fetched and decoded", counts.frames_read as f64),
        ("frame_bytes_read_total", "counter", "Sealed bytes fetched", counts.frame_bytes_read as f64),
        ("cache_hits_total", "counter", "Reads answered from memory", counts.cache_hits as f64),
        ("objects_uploaded_total", "counter", "Packs and index segments uploaded", counts.objects_uploaded as f64),
        ("bytes_uploaded_total", "counter", "Bytes uploaded", counts.bytes_uploaded as f64),
        ("frames_quarantined", "gauge", "Frames found damaged or missing", counts.frames_quarantined as f64),
    ] {
        let name = format!("axiomfs_{name}");
        heading(&mut text, &name, kind, help);
        sample(&mut text, &name, "", value);
    }
    host_metrics(host, &mut text);
    text
}

/// The host's counters. Those of one family stand together under one heading, as the form demands; the series of a
/// histogram (`_bucket`, `_sum`, `_count`) are one family.
fn host_metrics(host: &Host, text: &mut String) {
    let metrics = host.metrics();
    let mut done: Vec<&str> = Vec::new();
    for metric in &metrics {
        let name = metric.name;
        if done.contains(&name) {
            continue;
        }
        done.push(name);
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        heading(text, name, kind, metric.help);
        for metric in metrics.iter().filter(|other| other.name == name) {
            let labels = labels(metric.labels.iter().map(|(key, value)| (*key, value.as_str())));
            sample(text, &format!("{name}{}", metric.series), &labels, metric.value);
        }
    }
}

fn heading(text: &mut String, name: &str, kind: &str, help: &str) {
    text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    text.push_str(&format!("{name}{labels} {value}\n"));
}

fn labels<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let list: Vec<String> = pairs.map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
    if list.is_empty() { String::new() } else { format!("{{{}}}", list.join(",")) }
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
    fn metrics_are_in_the_form_of_prometheus() {
        let mut text = String::new();
        heading(&mut text, "axiomfs_x_total", "counter", "Some thing");
        sample(&mut text, "axiomfs_x_total", &labels([("plugin", "a\"b\\c\nd")].into_iter()), 1.5);
        sample(&mut text, "axiomfs_x_total", &labels(std::iter::empty()), 18_446_744_073_709_551_615.0);
        assert_eq!(
            text,
            "# HELP axiomfs_x_total Some thing\n# TYPE axiomfs_x_total counter\n\
             axiomfs_x_total{plugin=\"a\\\"b\\\\c\\nd\"} 1.5\naxiomfs_x_total 18446744073709552000\n"
        );
    }

    #[test]
    fn each_family_of_the_host_has_one_heading_and_its_series_follow() {
        let host = crate::wiring::host(&axiomfs_config::Pipeline::default()).unwrap();
        let mut text = String::new();
        host_metrics(&host, &mut text);
        let mut families: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("# TYPE ") {
                let family = heading.split(' ').next().unwrap();
                assert!(!families.contains(&family), "{family} has two headings");
                families.push(family);
            } else if !line.starts_with('#') {
                assert!(line.starts_with(families.last().unwrap()), "{line} is not under its heading");
            }
        }
        assert!(families.iter().any(|family| family.ends_with("_seconds")), "{families:?}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident().is_some_and(|bytes| bytes > 1 << 20));
    }
}
