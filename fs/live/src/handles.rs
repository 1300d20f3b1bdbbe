//! Open files, and what their readers do.

use std::collections::HashMap;
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
    /// Its opening moved the time of last access, and nothing was read through it since.
    unread: bool,
}

/// Open files by handle.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

impl Handles {
    pub fn open(&self, node: NodeId) -> Handle {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.open).insert(id, Open { node, next: 0, streak: 0, ahead: 0, counted: false, unread: false });
        Handle(id)
    }

    /// Closes it. Tells its node, and whether its opening moved the time of last access and nothing was read through it since.
    pub fn close(&self, handle: Handle) -> Option<(NodeId, bool)> {
        lock(&self.open).remove(&handle.0).map(|open| (open.node, open.unread))
    }

    /// Notes a read through `handle`; tells whether it is the first that counts as an access.
    pub fn read_through(&self, handle: Handle) -> bool {
        lock(&self.open).get_mut(&handle.0).is_some_and(|open| {
            open.unread = false;
            !std::mem::replace(&mut open.counted, true)
        })
    }

    /// Notes that its opening counts as an access, and whether that `moved` the time.
    pub fn opened_to_read(&self, handle: Handle, moved: bool) {
        if let Some(open) = lock(&self.open).get_mut(&handle.0) {
            (open.counted, open.unread) = (true, moved);
        }
    }

    /// Notes a read; says which range is worth fetching ahead, `window` bytes at most.
    pub fn note_read(&self, handle: Handle, offset: u64, len: u64, window: u64) -> Option<(u64, u64)> {
        let mut open = lock(&self.open);
        let open = open.get_mut(&handle.0)?;
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
        lock(&self.open).len()
    }
}
