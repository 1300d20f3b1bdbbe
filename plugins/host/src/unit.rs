use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform, Worker};

use crate::stats::PluginStats;

/// A transform ready to run, with what is counted of it.
pub struct Unit {
    pub plugin: &'static str,
    pub transform: Arc<dyn Transform>,
    pub stats: Arc<PluginStats>,
    pub proven: bool,
}

impl Unit {
    /// Encodes with the worker of `seat`. A worker that failed is not used again.
    pub fn encode(
        &self,
        seat: &mut Option<Box<dyn Worker>>,
        hint: Hint,
        src: &[u8],
        out: &mut BoundedBuf,
        slow: Duration,
    ) -> Result<Applied, PluginError> {
        let start = Instant::now();
        let result = self.run(seat, |worker| worker.encode(hint, src, out));
        let took = start.elapsed();
        self.stats.encode_time.record(took);
        if took > slow {
            PluginStats::add(&self.stats.slow, 1);
            tracing::warn!(plugin = self.plugin, ?took, len = src.len(), "A frame took longer than frame_timeout");
        }
        PluginStats::add(&self.stats.encode_in, src.len());
        match &result {
            Ok(Applied::Yes) => PluginStats::add(&self.stats.encode_out, out.as_slice().len()),
            Ok(Applied::No) => PluginStats::add(&self.stats.not_applied, 1),
            Err(_) => PluginStats::add(&self.stats.encode_errors, 1),
        }
        result
    }

    /// Decodes with the worker of `seat` into exactly `raw_len` bytes.
    pub fn decode(
        &self,
        seat: &mut Option<Box<dyn Worker>>,
        format: u16,
        src: &[u8],
        raw_len: usize,
        out: &mut BoundedBuf,
    ) -> Result<(), PluginError> {
        let start = Instant::now();
        let result = self.run(seat, |worker| worker.decode(format, src, raw_len, out)).and_then(|()| {
            let actual = out.as_slice().len();
            if actual == raw_len { Ok(()) } else { Err(PluginError::LengthMismatch { expected: raw_len, actual }) }
        });
        self.stats.decode_time.record(start.elapsed());
        PluginStats::add(&self.stats.decode_in, src.len());
        match &result {
            Ok(()) => PluginStats::add(&self.stats.decode_out, raw_len),
            Err(_) => PluginStats::add(&self.stats.decode_errors, 1),
        }
        result
    }

    fn run<T>(
        &self,
        seat: &mut Option<Box<dyn Worker>>,
        call: impl FnOnce(&mut dyn Worker) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        self.stats.running.fetch_add(1, Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut worker = match seat.take() {
                Some(worker) => worker,
                None => self.transform.worker()?,
            };
            let result = call(&mut *worker)?;
            *seat = Some(worker);
            Ok(result)
        }));
        self.stats.running.fetch_sub(1, Relaxed);
        result.unwrap_or_else(|_| Err(PluginError::Failed { plugin: self.plugin, reason: "it panicked".into() }))
    }
}
