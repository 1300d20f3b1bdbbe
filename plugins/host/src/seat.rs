//! Where a plugin's worker sits: in the thread that has the frame, or, for code that is not proven, in a thread of its own
//! that can be left behind when it does not come back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform, Worker};
use axiomfs_meter::measure;

use crate::stats::PluginStats;

/// What is asked of a worker.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    Encode(Hint),
    /// At least the first `len` bytes of the `raw_len` that there are.
    Decode {
        format: u16,
        raw_len: usize,
        len: usize,
    },
}

/// What a worker may use.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Bytes it may hold beside its output.
    pub memory: usize,
    /// Time for one frame, where that can be held.
    pub time: Duration,
}

/// A worker's place on a bench; its worker is made at the first frame and dropped after a failure.
#[derive(Default)]
pub struct Seat {
    inline: Option<Seated>,
    isolated: Option<Isolated>,
}

struct Seated {
    worker: Box<dyn Worker>,
    /// Bytes that it kept from earlier frames.
    held: isize,
}

impl Seat {
    /// Runs `task` on `src` in this thread.
    pub fn run(
        &mut self,
        transform: &Arc<dyn Transform>,
        allowance: Allowance,
        stats: &Arc<PluginStats>,
        task: Task,
        src: &[u8],
        out: &mut BoundedBuf,
    ) -> Result<Applied, PluginError> {
        run(&mut self.inline, transform, allowance.memory, stats, task, src, out)
    }

    /// Runs `task` in a thread of its own and waits for it as long as it may take; after that the thread is left to itself.
    pub fn run_isolated(
        &mut self,
        transform: &Arc<dyn Transform>,
        allowance: Allowance,
        stats: &Arc<PluginStats>,
        task: Task,
        src: &[u8],
        out: &mut BoundedBuf,
    ) -> Result<Applied, PluginError> {
        let plugin = transform.descriptor().id;
        let isolated = match self.isolated.take() {
            Some(isolated) => isolated,
            None => Isolated::start(transform, allowance.memory, stats)?,
        };
        let order = Order { task, src: src.to_vec(), limit: out.limit() };
        let stopped = || PluginError::Failed { plugin, reason: "its thread has ended".into() };
        isolated.orders.send(order).map_err(|_| stopped())?;
        match isolated.answers.recv_timeout(allowance.time) {
            Ok(Ok((applied, bytes))) => {
                self.isolated = Some(isolated);
                out.clear();
                out.extend(&bytes)?;
                Ok(applied)
            }
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(PluginError::TimedOut { plugin, bound: allowance.time }),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }
}

/// One frame for a thread that owns its worker.
struct Order {
    task: Task,
    src: Vec<u8>,
    limit: usize,
}

/// A worker's own thread; it ends when this is dropped and its frame is done.
struct Isolated {
    orders: Sender<Order>,
    answers: Receiver<Result<(Applied, Vec<u8>), PluginError>>,
}

impl Isolated {
    fn start(transform: &Arc<dyn Transform>, memory: usize, stats: &Arc<PluginStats>) -> Result<Self, PluginError> {
        let (orders, inbox) = channel::<Order>();
        let (outbox, answers) = channel();
        let plugin = transform.descriptor().id;
        let (transform, stats) = (transform.clone(), stats.clone());
        let work = move || {
            let mut seated = None;
            for order in inbox {
                let mut out = BoundedBuf::new(order.limit);
                let result = run(&mut seated, &transform, memory, &stats, order.task, &order.src, &mut out);
                // Nobody listens any more to one that took too long.
                if outbox.send(result.map(|applied| (applied, out.into_vec()))).is_err() {
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name(format!("plugin-{plugin}")).spawn(work);
        spawned.map_err(|error| PluginError::Failed { plugin, reason: error.to_string() })?;
        Ok(Self { orders, answers })
    }
}

/// One call, with its panics caught and its memory measured. A worker that failed is not used again.
fn run(
    seated: &mut Option<Seated>,
    transform: &Arc<dyn Transform>,
    memory: usize,
    stats: &PluginStats,
    task: Task,
    src: &[u8],
    out: &mut BoundedBuf,
) -> Result<Applied, PluginError> {
    let plugin = transform.descriptor().id;
    let held = seated.as_ref().map_or(0, |seated| seated.held);
    let (limit, capacity) = (out.limit(), out.capacity());
    let call = || {
        let mut worker = match seated.take() {
            Some(seated) => seated.worker,
            None => transform.worker()?,
        };
        let applied = match task {
            Task::Encode(hint) => worker.encode(hint, src, out)?,
            Task::Decode { format, raw_len, len } => {
                match len == raw_len {
                    true => worker.decode(format, src, raw_len, out)?,
                    false => worker.decode_start(format, src, raw_len, len, out)?,
                }
                Applied::Yes
            }
        };
        Ok((applied, worker))
    };
    let (result, usage) = measure(|| catch_unwind(AssertUnwindSafe(call)));
    let (applied, worker) =
        result.unwrap_or_else(|_| Err(PluginError::Failed { plugin, reason: "it panicked".into() }))?;
    // The output grows in the same measurement, by doubling, and is bounded by itself.
    let used = (held.max(0).unsigned_abs() + usage.peak).saturating_sub(2 * limit);
    stats.memory_max.fetch_max(used as u64, Relaxed);
    if used > memory {
        return Err(PluginError::MemoryExceeded { plugin, used, bound: memory });
    }
    // What the output grew by is not the worker's.
    let grown = out.capacity().cast_signed() - capacity.cast_signed();
    *seated = Some(Seated { worker, held: held + usage.kept - grown });
    Ok(applied)
}
