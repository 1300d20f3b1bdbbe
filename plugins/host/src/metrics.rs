use std::sync::atomic::Ordering;

use axiomfs_api::Kind;

use crate::Host;
use crate::stats::{HostMetric, MetricKind};

impl Host {
    /// What is counted.
    pub fn metrics(&self) -> Vec<HostMetric> {
        let gauge = |name, help, value: f64| HostMetric {
            name,
            series: "",
            help,
            kind: MetricKind::Gauge,
            labels: Vec::new(),
            value,
        };
        let counter = |name, help, value: u64| HostMetric {
            name,
            series: "",
            help,
            kind: MetricKind::Counter,
            labels: Vec::new(),
            value: value as f64,
        };
        let verified = self.verified.load(Ordering::Relaxed);
        let mut out = vec![
            gauge("axiomfs_chain_generation", "Generation of the chains", self.generation() as f64),
            gauge("axiomfs_frames_in_flight", "Frames being encoded or decoded", self.permits.held() as f64),
            gauge(
                "axiomfs_frames_in_flight_max",
                "Most frames being encoded or decoded at once since limits.max_in_flight was set",
                self.permits.most() as f64,
            ),
            counter("axiomfs_chain_swaps_total", "Chains replaced", self.swaps.load(Ordering::Relaxed)),
            counter("axiomfs_frames_verified_total", "Frames decoded and compared after encoding", verified),
            gauge(
                "axiomfs_swap_wait_max_seconds",
                "Longest time that a request waited for a chain, a route or a decoder while a change was made",
                self.swap_wait.max().as_secs_f64(),
            ),
            gauge("axiomfs_swap_max_seconds", "Longest time a change took", self.swap_time.max().as_secs_f64()),
        ];
        let help = "Time that requests waited for a chain, a route or a decoder while a change was made, or for a decoder to be loaded";
        self.swap_wait.metrics("axiomfs_swap_wait_seconds", help, None, &mut out);
        self.swap_time.metrics("axiomfs_swap_seconds", "Time a change took, its self-tests included", None, &mut out);
        out.extend(self.efforts());
        for step in self.registry.steps() {
            step.stats().metrics(step.descriptor().id, &mut out);
        }
        // Stores count their requests by themselves.
        for entry in self.registry.others().iter().filter(|entry| entry.descriptor.kind == Kind::Chunker) {
            entry.stats.metrics(entry.descriptor.id, &mut out);
        }
        out
    }
}
