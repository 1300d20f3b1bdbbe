//! The counters in the text form of Prometheus.

use axiomfs_host::{HostMetric, MetricKind};
use axiomfs_live::Volume;

use crate::status::{self, Facts};

/// The counters in the text form of Prometheus.
pub fn render(facts: &Facts, volume: &Volume, counted: &[HostMetric]) -> String {
    let status = volume.status();
    let counts = &status.repository;
    let mut text = String::new();
    let log = status.log.as_ref();
    for (name, kind, help, value) in [
        ("writable", "gauge", "1 if the live tree takes changes", f64::from(u8::from(status::state(&status) == "ok"))),
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
        ("memory_rss_bytes", "gauge", "Resident memory", status::resident().unwrap_or(0) as f64),
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
        ("encode_queue_bytes", "gauge", "Raw bytes that wait to be encoded", counts.pending_bytes as f64),
        ("uploads_limit", "gauge", "Uploads that may run at the same time now", counts.uploads_limit as f64),
        ("background_yields_total", "counter", "Times that background work gave way to reads", counts.yields as f64),
        ("staged_packs", "gauge", "Packs that wait for a commit", counts.staged_packs as f64),
        ("staging_max_bytes", "gauge", "The setting staging.max", facts.staging_max as f64),
        ("frame_cache_bytes", "gauge", "Decoded frames in memory", counts.frame_cache_bytes as f64),
        ("node_cache_bytes", "gauge", "Tree nodes in memory", counts.node_cache_bytes as f64),
        ("index_cache_bytes", "gauge", "Index blocks in memory", counts.index_cache_bytes as f64),
        (
            "dedup_ratio",
            "gauge",
            "Raw bytes of chunks added, for each byte of them that was new",
            ratio(counts.bytes_new + counts.bytes_known, counts.bytes_new),
        ),
        (
            "compression_ratio",
            "gauge",
            "Raw bytes of frames written, for each byte stored of them",
            ratio(counts.frame_bytes_raw, counts.frame_bytes_stored),
        ),
    ] {
        let name = format!("axiomfs_{name}");
        heading(&mut text, &name, kind, help);
        sample(&mut text, &name, "", value);
    }
    families(counted, &mut text);
    text
}

/// Counters of host and store. Those of one family stand together under one heading, as the form demands; the series of a
/// histogram (`_bucket`, `_sum`, `_count`) are one family.
fn families(metrics: &[HostMetric], text: &mut String) {
    let mut done: Vec<&str> = Vec::new();
    for metric in metrics {
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

/// 1 where there is nothing yet.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 1.0 } else { a as f64 / b as f64 }
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
        families(&host.metrics(), &mut text);
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
}
