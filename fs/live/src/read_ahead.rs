//! Fetching what a sequential reader will want next: of one file from front to back, or of many small ones in the order in which they
//! were made.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::record;
use axiomfs_repository::tree;

use crate::extent_map::RunSource;
use crate::types::{Access, NodeId};
use crate::view::{LookError, Nodes, extent_run};
use crate::volume::{Shared, lock};

/// Requests that wait; more are forgotten, since read-ahead is only a hint.
const QUEUE_MAX: usize = 64;
/// How often a worker looks whether the volume has stopped.
const LOOK: Duration = Duration::from_millis(500);

/// How far ahead of a sequential reader chunks are decoded, in bytes.
const READ_AHEAD: u64 = 16 << 20;

/// Files that are begun in a row, each this near to the one before by their numbers, before those after them are fetched.
const WALKS_AFTER: u32 = 3;
const NEAR: u64 = 1024;
/// Bytes of files that are fetched ahead of such a reader in one go; of each file no more than its first mebibyte.
const WALK: u64 = 2 << 20;
const WALK_FILE: u64 = 1 << 20;
/// Records of the tree that are looked at for that.
const WALK_RECORDS: usize = 4096;

impl Shared {
    /// How far ahead of a sequential reader chunks are decoded, in bytes.
    pub fn ahead_window(&self) -> u64 {
        READ_AHEAD.min(self.options.memory / 16)
    }
}

/// What is to be fetched.
#[derive(Debug)]
enum Wanted {
    /// A range of a file.
    Range(NodeId, u64, u64),
    /// The files of the node's tree whose numbers are above this.
    After(NodeId, u64),
}

/// Ranges and files that are to be fetched.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    queue: Mutex<VecDeque<Wanted>>,
    wake: Condvar,
    walk: Mutex<Walk>,
}

/// A reader of one file after the other, by their numbers.
#[derive(Debug, Default)]
struct Walk {
    last: u64,
    streak: u32,
    /// For a file in `begin..next` nothing more is to be fetched. From `next` to `until` all has been asked for.
    begin: u64,
    next: u64,
    until: u64,
}

impl Walk {
    /// Notes that a file was begun; says after which number files are to be fetched.
    fn begun(&mut self, ino: u64) -> Option<u64> {
        if ino == self.last {
            return None;
        }
        let near = self.last.abs_diff(ino) <= NEAR;
        self.streak = if near { self.streak.saturating_add(1) } else { 0 };
        self.last = ino;
        if self.streak < WALKS_AFTER || (self.begin..self.next).contains(&ino) {
            return None;
        }
        let after = if (self.next..=self.until).contains(&ino) { self.until } else { ino };
        // Until it is known how far that reaches.
        (self.begin, self.next) = (ino, u64::MAX);
        Some(after)
    }

    /// What was asked for last gave nothing: it is asked again after as many files as at first.
    fn ends(&mut self) {
        if self.next == u64::MAX {
            (self.streak, self.next, self.until) = (0, self.begin, self.begin);
        }
    }

    /// The files that were asked for last end at `until`, half of them at `half`.
    fn reaches(&mut self, half: u64, until: u64) {
        if self.next == u64::MAX {
            (self.next, self.until) = (half, until);
        }
    }
}

impl ReadAhead {
    /// Asks for `from..to` of a file.
    pub fn ask(&self, node: NodeId, from: u64, to: u64) {
        // If there is no room the reader fetches itself.
        self.enter(Wanted::Range(node, from, to));
    }

    /// Notes that a file was read from its beginning.
    pub fn begun(&self, node: NodeId) {
        let after = lock(&self.walk).begun(node.ino);
        if let Some(after) = after
            && !self.enter(Wanted::After(node, after))
        {
            lock(&self.walk).ends();
        }
    }

    /// False if there is no room for it.
    fn enter(&self, wanted: Wanted) -> bool {
        let mut queue = lock(&self.queue);
        let room = queue.len() < QUEUE_MAX;
        if room {
            queue.push_back(wanted);
            self.wake.notify_all();
        }
        room
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
            match next {
                Some(Wanted::Range(node, from, to)) => shared.ahead.fetch(shared, node, from, to),
                Some(Wanted::After(node, ino)) => shared.ahead.fetch_files(shared, node, ino),
                None => {}
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
            queue.push_front(Wanted::Range(node, end, to));
            self.wake.notify_one();
        }
        if let Err(e) = shared.repository.prefetch_chunk(&id) {
            tracing::debug!("Chunk {id} could not be fetched ahead: {e}");
        }
    }

    /// Fetches the files after a number, as far as they are small and in the tree.
    fn fetch_files(&self, shared: &Shared, node: NodeId, after: u64) {
        let found = chunks_after(shared, node, after).unwrap_or_else(|e| {
            tracing::debug!("The files after {after} can't be fetched ahead: {e}");
            Vec::new()
        });
        let (Some((half, _)), Some((until, _))) = (found.get(found.len() / 2), found.last()) else {
            return lock(&self.walk).ends();
        };
        lock(&self.walk).reaches(*half, *until);
        shared.repository.announce(found.iter().map(|(_, id)| id));
        for (_, id) in &found {
            if shared.stopped.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
            if let Err(e) = shared.repository.prefetch_chunk(id) {
                return tracing::debug!("Chunk {id} could not be fetched ahead: {e}");
            }
        }
    }
}

/// The first chunks of files with numbers above `after`, each with its file's number, in the order of these.
fn chunks_after(shared: &Shared, node: NodeId, after: u64) -> Result<Vec<(u64, ChunkId)>, LookError> {
    let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
    let Ok(base) = shared.state().tree(node, nodes).map(|view| view.base) else { return Ok(Vec::new()) };
    let from = record::inode_key(after.saturating_add(1));
    let (mut found, mut bytes) = (Vec::new(), 0);
    for item in tree::range(&nodes, base, Bound::Included(&from), Bound::Unbounded).take(WALK_RECORDS) {
        let (key, value) = item?;
        let Some((ino, record::KIND_EXTENT)) = record::parse_key(&key) else { continue };
        let run = extent_run(&key, &value)?;
        if let RunSource::Chunk { id, .. } = run.source
            && run.end() <= WALK_FILE
        {
            found.push((ino, id));
            bytes += run.len;
        }
        if bytes >= WALK {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_in_their_order_are_fetched_ahead_batch_by_batch() {
        let mut walk = Walk::default();
        assert_eq!([5000, 5001, 5002].map(|ino| walk.begun(ino)), [None; 3], "that may be chance");
        assert_eq!(walk.begun(5003), Some(5003));
        assert_eq!(walk.begun(5004), None, "it has just been asked for");
        walk.reaches(5050, 5100);
        assert_eq!(walk.begun(5049), None);
        assert_eq!(walk.begun(5050), Some(5100), "half of them are read");
        walk.reaches(5150, 5200);
        assert_eq!(walk.begun(5120), None);
        // Back in the directory above, whose numbers are smaller.
        assert_eq!(walk.begun(4990), Some(4990));
        walk.reaches(5000, 5010);
        assert_eq!(walk.begun(5400), Some(5400), "further than was fetched");
        walk.ends();
        assert_eq!([5401, 5402].map(|ino| walk.begun(ino)), [None; 2], "nothing came after it");
        assert_eq!(walk.begun(5403), Some(5403), "files may have been made since");
        walk.reaches(5500, 5600);
        assert_eq!(
            [5600; 5].map(|ino| walk.begun(ino)),
            [Some(5600), None, None, None, None],
            "one file again and again"
        );
        assert_eq!([9000, 100, 20_000].map(|ino| walk.begun(ino)), [None; 3], "here and there");
    }
}
