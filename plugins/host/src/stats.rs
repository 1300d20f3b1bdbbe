use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency buckets in microseconds; one more bucket takes the rest.
pub const BUCKETS_US: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000, 5_000_000];

/// How long calls took.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    fn metrics(&self, name: [&'static str; 3], help: &'static str, plugin: &str, out: &mut Vec<HostMetric>) {
        let label = || ("plugin", plugin.to_owned());
        let mut below = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Relaxed);
            let bound = BUCKETS_US.get(i).map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            let labels = vec![label(), ("le", bound)];
            out.push(HostMetric { name: name[0], help, kind: MetricKind::Histogram, labels, value: below as f64 });
        }
        let sum = self.sum_us.load(Relaxed) as f64 / 1e6;
        out.push(HostMetric { name: name[1], help, kind: MetricKind::Histogram, labels: vec![label()], value: sum });
        let count = below as f64;
        out.push(HostMetric { name: name[2], help, kind: MetricKind::Histogram, labels: vec![label()], value: count });
    }
}

/// Counters of one plugin, kept over swaps.
#[derive(Debug, Default)]
pub struct PluginStats {
    pub encode_in: AtomicU64,
    pub encode_out: AtomicU64,
    pub not_applied: AtomicU64,
    pub encode_errors: AtomicU64,
    pub skipped: AtomicU64,
    pub fallbacks: AtomicU64,
    pub slow: AtomicU64,
    pub decode_in: AtomicU64,
    pub decode_out: AtomicU64,
    pub decode_errors: AtomicU64,
    /// Calls running now.
    pub running: AtomicU64,
    pub encode_time: Histogram,
    pub decode_time: Histogram,
}

impl PluginStats {
    pub fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }

    /// All of it as metrics.
    pub fn metrics(&self, plugin: &str, out: &mut Vec<HostMetric>) {
        let counters: [(&'static str, &'static str, &AtomicU64); 10] = [
            ("axiomfs_plugin_encode_input_bytes_total", "Bytes given to the plugin to encode", &self.encode_in),
            ("axiomfs_plugin_encode_output_bytes_total", "Bytes the plugin encoded them to", &self.encode_out),
            ("axiomfs_plugin_not_applied_total", "Frames the plugin passed on unchanged", &self.not_applied),
            ("axiomfs_plugin_encode_errors_total", "Frames the plugin failed to encode", &self.encode_errors),
            ("axiomfs_plugin_skipped_total", "Failed steps that frames went on without", &self.skipped),
            ("axiomfs_plugin_fallbacks_total", "Frames sent to the fallback chain", &self.fallbacks),
            ("axiomfs_plugin_slow_total", "Calls that took longer than frame_timeout", &self.slow),
            ("axiomfs_plugin_decode_input_bytes_total", "Bytes given to the plugin to decode", &self.decode_in),
            ("axiomfs_plugin_decode_output_bytes_total", "Bytes the plugin decoded them to", &self.decode_out),
            ("axiomfs_plugin_decode_errors_total", "Frames the plugin failed to decode", &self.decode_errors),
        ];
        for (name, help, counter) in counters {
            let labels = vec![("plugin", plugin.to_owned())];
            let value = counter.load(Relaxed) as f64;
            out.push(HostMetric { name, help, kind: MetricKind::Counter, labels, value });
        }
        let names = [
            "axiomfs_plugin_encode_seconds_bucket",
            "axiomfs_plugin_encode_seconds_sum",
            "axiomfs_plugin_encode_seconds_count",
        ];
        self.encode_time.metrics(names, "Time to encode a frame", plugin, out);
        let names = [
            "axiomfs_plugin_decode_seconds_bucket",
            "axiomfs_plugin_decode_seconds_sum",
            "axiomfs_plugin_decode_seconds_count",
        ];
        self.decode_time.metrics(names, "Time to decode a frame", plugin, out);
    }
}

/// What a metric's value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// A state.
    Gauge,
    /// A part of a histogram: a cumulative bucket, the sum or the count.
    Histogram,
}

/// One value for `metrics`.
#[derive(Debug, Clone, PartialEq)]
pub struct HostMetric {
    /// The series' name.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// What the value means.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}
