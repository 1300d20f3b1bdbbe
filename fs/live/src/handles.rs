//! Open files, and what their readers do.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::{Handle, NodeId};
use crate::volume::lock;

/// Reads in a row before the next chunks are fetched ahead.
const SEQUENTIAL_AFTER: u32 = 2;

#[derive(Debug, Clone, Copy)]
struct Open {
    node: NodeId,
    next: u64,
    streak: u32,
    /// Up to where read-ahead was asked for.
    ahead: u64,
    /// It counted as an access already.
    counted: bool,
}

/// Open files by handle.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Open>,
    /// Open files of which an opening moved the time of last access, and that were not read since.
    unread: HashSet<NodeId>,
}

impl Handles {
    pub fn open(&self, node: NodeId) -> Handle {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.table).open.insert(id, Open { node, next: 0, streak: 0, ahead: 0, counted: false });
        Handle(id)
    }

    /// Closes it. Tells its node, and whether an opening moved the file's time of last access, nothing was read of the file since, and
    /// this is the first to be closed after that.
    pub fn close(&self, handle: Handle) -> Option<(NodeId, bool)> {
        let mut table = lock(&self.table);
        let open = table.open.remove(&handle.0)?;
        let unread = open.counted && table.unread.remove(&open.node);
        Some((open.node, unread))
    }

    /// Notes a read through `handle`; tells whether it is the first that counts as an access.
    pub fn read_through(&self, handle: Handle) -> bool {
        let mut table = lock(&self.table);
        let Some(open) = table.open.get_mut(&handle.0) else { return false };
        let (node, counted) = (open.node, std::mem::replace(&mut open.counted, true));
        if !table.unread.is_empty() {
            table.unread.remove(&node);
        }
        !counted
    }

    /// Notes that its opening counts as an access, and whether that `moved` the time.
    pub fn opened_to_read(&self, handle: Handle, moved: bool) {
        let mut table = lock(&self.table);
        let Some(open) = table.open.get_mut(&handle.0) else { return };
        open.counted = true;
        let node = open.node;
        if moved {
            table.unread.insert(node);
        }
    }

    /// Notes a read; says which range is worth fetching ahead, `window` bytes at most.
    pub fn note_read(&self, handle: Handle, offset: u64, len: u64, window: u64) -> Option<(u64, u64)> {
        let mut table = lock(&self.table);
        let open = table.open.get_mut(&handle.0)?;
        // The kernel's own read-ahead lets requests overtake each other a little.
        let near = offset <= open.next + (1 << 20) && offset + (1 << 20) >= open.next;
        open.streak = if near { open.streak.saturating_add(1) } else { 0 };
        if !near {
            open.ahead = 0;
        }
        open.next = (offset + len).max(if near { open.next } else { 0 });
        if open.streak < SEQUENTIAL_AFTER {
            return None;
        }
        let from = open.ahead.max(open.next);
        let to = open.next + window;
        if to < from + window / 4 {
            return None;
        }
        open.ahead = to;
        Some((from, to))
    }

    pub fn count(&self) -> usize {
        lock(&self.table).open.len()
    }
}
