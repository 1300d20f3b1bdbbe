use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform};

use crate::seat::{Allowance, Seat, Task};
use crate::stats::PluginStats;
use crate::trust::Trust;

/// A transform ready to run, with what is counted of it.
pub struct Unit {
    pub plugin: &'static str,
    pub transform: Arc<dyn Transform>,
    pub stats: Arc<PluginStats>,
    pub trust: Arc<Trust>,
    pub proven: bool,
    pub allowance: Allowance,
}

impl Unit {
    /// Encodes with the worker of `seat`.
    pub fn encode(
        &self,
        seat: &mut Seat,
        hint: Hint,
        src: &[u8],
        out: &mut BoundedBuf,
    ) -> Result<Applied, PluginError> {
        if let Some(reason) = self.trust.reason() {
            return Err(PluginError::Distrusted { plugin: self.plugin, reason });
        }
        let start = Instant::now();
        let result = self.run(seat, Task::Encode(hint), src, out);
        let took = start.elapsed();
        self.stats.encode_time.record(took);
        if took > self.allowance.time {
            PluginStats::add(&self.stats.slow, 1);
            tracing::warn!(plugin = self.plugin, ?took, len = src.len(), "A frame took longer than frame_timeout");
        }
        PluginStats::add(&self.stats.encode_in, src.len());
        match &result {
            Ok(Applied::Yes) => PluginStats::add(&self.stats.encode_out, out.as_slice().len()),
            Ok(Applied::No) => PluginStats::add(&self.stats.not_applied, 1),
            Err(error) => {
                PluginStats::add(&self.stats.encode_errors, 1);
                if matches!(error, PluginError::MemoryExceeded { .. } | PluginError::TimedOut { .. }) {
                    self.trust.lose(error.to_string());
                }
            }
        }
        result
    }

    /// Decodes with the worker of `seat` at least the first `len` of the `raw_len` bytes that there are.
    pub fn decode(
        &self,
        seat: &mut Seat,
        format: u16,
        src: &[u8],
        raw_len: usize,
        len: usize,
        out: &mut BoundedBuf,
    ) -> Result<(), PluginError> {
        let start = Instant::now();
        let result = self.run(seat, Task::Decode { format, raw_len, len }, src, out).and_then(|_| {
            let actual = out.as_slice().len();
            if (len..=raw_len).contains(&actual) {
                Ok(())
            } else {
                Err(PluginError::LengthMismatch { expected: len, actual })
            }
        });
        self.stats.decode_time.record(start.elapsed());
        PluginStats::add(&self.stats.decode_in, src.len());
        match &result {
            Ok(()) => PluginStats::add(&self.stats.decode_out, out.as_slice().len()),
            Err(_) => PluginStats::add(&self.stats.decode_errors, 1),
        }
        result
    }

    fn run(&self, seat: &mut Seat, task: Task, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        self.stats.running.fetch_add(1, Relaxed);
        let result = match self.proven {
            true => seat.run(&self.transform, self.allowance, &self.stats, task, src, out),
            false => seat.run_isolated(&self.transform, self.allowance, &self.stats, task, src, out),
        };
        self.stats.running.fetch_sub(1, Relaxed);
        result
    }
}
