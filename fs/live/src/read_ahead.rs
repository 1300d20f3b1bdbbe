//! Fetching what a sequential reader will want next.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::extent_map::RunSource;
use crate::types::{Access, NodeId};
use crate::volume::{Shared, lock};

/// Requests that wait; more are forgotten, since read-ahead is only a hint.
const QUEUE_MAX: usize = 64;
/// How often a worker looks whether the volume has stopped.
const LOOK: Duration = Duration::from_millis(500);

/// How far ahead of a sequential reader chunks are decoded, in bytes.
const READ_AHEAD: u64 = 16 << 20;

impl Shared {
    /// How far ahead of a sequential reader chunks are decoded, in bytes.
    pub fn ahead_window(&self) -> u64 {
        READ_AHEAD.min(self.options.memory / 16)
    }
}

/// Ranges that are to be fetched.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    queue: Mutex<VecDeque<(NodeId, u64, u64)>>,
    wake: Condvar,
}

impl ReadAhead {
    /// Asks for `from..to` of a file.
    pub fn ask(&self, node: NodeId, from: u64, to: u64) {
        let mut queue = lock(&self.queue);
        if queue.len() < QUEUE_MAX {
            queue.push_back((node, from, to));
            self.wake.notify_all();
        }
    }

    /// A worker's life: fetches until the volume stops.
    pub fn serve(shared: &Shared) {
        while !shared.stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let next = {
                let queue = lock(&shared.ahead.queue);
                let (mut queue, _) = shared
                    .ahead
                    .wake
                    .wait_timeout_while(queue, LOOK, |queue| queue.is_empty())
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                queue.pop_front()
            };
            if let Some((node, from, to)) = next {
                shared.ahead.fetch(shared, node, from, to);
            }
        }
    }

    /// Fetches the first chunk of the range that isn't in memory and gives the rest back to the queue, so that all
    /// workers share one reader's range.
    fn fetch(&self, shared: &Shared, node: NodeId, from: u64, to: u64) {
        // Decoded up to `to`, and what is far away on its way as much further: that covers its delay while this is decoded.
        let reach = if shared.repository.reads_ahead() { shared.ahead_window() } else { 0 };
        let Ok(runs) = shared.look(Access::Wait, node, |view| {
            let size = view.inode(node.ino)?.map_or(0, |inode| inode.size);
            Ok(view.runs(node.ino, from, to.saturating_add(reach).min(size))?)
        }) else {
            return;
        };
        shared.repository.announce(runs.iter().filter_map(|run| match &run.source {
            RunSource::Chunk { id, .. } => Some(id),
            _ => None,
        }));
        let next = runs.iter().take_while(|run| run.offset < to).find_map(|run| match run.source {
            RunSource::Chunk { id, .. } if shared.repository.chunk_cached(&id).is_none() => Some((id, run.end())),
            _ => None,
        });
        let Some((id, end)) = next else { return };
        if end < to {
            let mut queue = lock(&self.queue);
            queue.push_front((node, end, to));
            self.wake.notify_one();
        }
        if let Err(e) = shared.repository.prefetch_chunk(&id) {
            tracing::debug!("Chunk {id} could not be fetched ahead: {e}");
        }
    }
}
