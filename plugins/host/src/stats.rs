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
    max_us: AtomicU64,
}

impl Histogram {
    pub fn record(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        self.max_us.fetch_max(us, Relaxed);
    }

    /// The longest of all.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_us.load(Relaxed))
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }

    /// The series `_bucket`, `_sum` and `_count` of the family `name`.
    pub fn metrics(
        &self,
        name: &'static str,
        help: &'static str,
        label: Option<(&'static str, &str)>,
        out: &mut Vec<HostMetric>,
    ) {
        let labels = || label.iter().map(|(key, value)| (*key, (*value).to_owned())).collect::<Vec<_>>();
        let mut add = |series, labels, value| {
            out.push(HostMetric { name, series, help, kind: MetricKind::Histogram, labels, value });
        };
        let mut below = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Relaxed);
            let bound = BUCKETS_US.get(i).map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            add("_bucket", [labels(), vec![("le", bound)]].concat(), below as f64);
        }
        add("_sum", labels(), self.sum_us.load(Relaxed) as f64 / 1e6);
        add("_count", labels(), below as f64);
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
    pub wrong: AtomicU64,
    pub decode_in: AtomicU64,
    pub decode_out: AtomicU64,
    pub decode_errors: AtomicU64,
    /// Calls running now.
    pub running: AtomicU64,
    /// Most bytes that one worker held.
    pub memory_max: AtomicU64,
    pub encode_time: Histogram,
    pub decode_time: Histogram,
    pub init_time: Histogram,
    pub unload_time: Histogram,
}

impl PluginStats {
    pub fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }

    /// All of it as metrics.
    pub fn metrics(&self, plugin: &str, out: &mut Vec<HostMetric>) {
        let counters: [(&'static str, &'static str, &AtomicU64); 11] = [
            ("axiomfs_plugin_encode_input_bytes_total", "Bytes given to the plugin to encode", &self.encode_in),
            ("axiomfs_plugin_encode_output_bytes_total", "Bytes the plugin encoded them to", &self.encode_out),
            ("axiomfs_plugin_not_applied_total", "Frames the plugin passed on unchanged", &self.not_applied),
            ("axiomfs_plugin_encode_errors_total", "Frames the plugin failed to encode", &self.encode_errors),
            ("axiomfs_plugin_skipped_total", "Failed steps that frames went on without", &self.skipped),
            ("axiomfs_plugin_fallbacks_total", "Frames sent to the fallback chain", &self.fallbacks),
            ("axiomfs_plugin_slow_total", "Calls that took longer than frame_timeout", &self.slow),
            ("axiomfs_plugin_wrong_total", "Frames of the plugin that did not decode to what went in", &self.wrong),
            ("axiomfs_plugin_decode_input_bytes_total", "Bytes given to the plugin to decode", &self.decode_in),
            ("axiomfs_plugin_decode_output_bytes_total", "Bytes the plugin decoded them to", &self.decode_out),
            ("axiomfs_plugin_decode_errors_total", "Frames the plugin failed to decode", &self.decode_errors),
        ];
        for (name, help, counter) in counters {
            let labels = vec![("plugin", plugin.to_owned())];
            let value = counter.load(Relaxed) as f64;
            out.push(HostMetric { name, series: "", help, kind: MetricKind::Counter, labels, value });
        }
        for (name, help, gauge) in [
            ("axiomfs_plugin_running", "Calls of the plugin that run now", &self.running),
            ("axiomfs_plugin_memory_max_bytes", "Most memory that one worker of the plugin held", &self.memory_max),
        ] {
            let (labels, value) = (vec![("plugin", plugin.to_owned())], gauge.load(Relaxed) as f64);
            out.push(HostMetric { name, series: "", help, kind: MetricKind::Gauge, labels, value });
        }
        for (name, help, histogram) in [
            (
                "axiomfs_plugin_encode_seconds",
                "Time to encode a frame; of a seal, to seal one or a record; of a chunker, to find a cut",
                &self.encode_time,
            ),
            (
                "axiomfs_plugin_decode_seconds",
                "Time to decode a frame; of a seal, to open one or a record",
                &self.decode_time,
            ),
            ("axiomfs_plugin_init_seconds", "Time to set the plugin up; of a seal, to expand a key", &self.init_time),
            ("axiomfs_plugin_unload_seconds", "Time to unload the plugin", &self.unload_time),
        ] {
            histogram.metrics(name, help, Some(("plugin", plugin)), out);
        }
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
    /// The family's name.
    pub name: &'static str,
    /// What follows it in the name of this series: `_bucket`, `_sum` or `_count` of a histogram, else nothing.
    pub series: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// What the value means.
    pub kind: MetricKind,
    /// Its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: f64,
}
