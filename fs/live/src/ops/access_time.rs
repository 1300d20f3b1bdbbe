//! Times of last access, kept as Linux keeps them by default (mount(8), `relatime`): moved by a read only where the time
//! is older than the last change or than a day. They are in the log after the next tick, where it has room; else with the
//! next checkpoint. A crash before that forgets them.

use std::sync::atomic::Ordering;

use axiomfs_repository::record::Inode;

use crate::change::{Need, USUAL_META};
use crate::types::{Access, FsError, Handle, NodeId, Time};
use crate::view::Nodes;
use crate::volume::{Shared, Volume, now};

/// Age from which a time of last access is moved whatever else happened, in seconds.
const DAY: i64 = 86_400;

impl Volume {
    /// Notes that `node` was read; says whether its time of last access has moved.
    ///
    /// Nobody's read waits or fails for it: where the change can't be made at once, the time stays as it is.
    pub fn accessed(&self, node: NodeId) -> bool {
        if node.ordinal != 0 || self.shared.log.is_none() {
            return false;
        }
        let stale = self
            .shared
            .look(Access::Cached, node, |view| Ok(is_stale(&view.inode(node.ino)?.ok_or(FsError::Stale)?, now())));
        if stale != Ok(true) {
            return false;
        }
        self.shared.move_access_time(node.ino)
    }

    /// [`accessed`](Self::accessed) for an opening that counts as reading.
    pub fn opened_to_read(&self, node: NodeId, handle: Handle) {
        let moved = self.accessed(node);
        self.shared.handles.opened_to_read(handle, moved);
    }

    /// [`accessed`](Self::accessed) for a read through an open file; counts once for each opening.
    pub fn read_through(&self, node: NodeId, handle: Handle) {
        if self.shared.handles.read_through(handle) {
            self.accessed(node);
        }
    }
}

impl Shared {
    /// Moves it in the active layer. The log hears of it with others, from the ticker: a record for each would cost a reader as much as
    /// all the rest of its opening.
    fn move_access_time(&self, ino: u64) -> bool {
        let mut guard = self.state_mut();
        let state = &mut *guard;
        if self.stopped.load(Ordering::Relaxed) || state.refused.is_some() || !self.has_room(state, Need::Room) {
            return false;
        }
        let nodes = Nodes { repository: &self.repository, fetch: false, pinned: &[] };
        let (Ok(Some(mut inode)), now) = (state.live(nodes).inode(ino), now()) else { return false };
        if !is_stale(&inode, now) {
            return false;
        }
        inode.atime = now;
        state.move_access_time(ino, inode);
        self.after_change(state);
        true
    }

    /// Logs the times of last access that moved since it was last called.
    pub fn log_access_times(&self) {
        let Some(log) = &self.log else { return };
        while !self.state().accessed.is_empty() {
            if let Err(error) = self.prepare_log(Access::Wait, log, Need::Room, 0) {
                tracing::debug!(%error, "Times of last access go with the next checkpoint");
                self.state_mut().accessed.clear();
                return;
            }
            let mut guard = self.state_mut();
            let state = &mut *guard;
            let edits = state.take_accessed(USUAL_META - 1024);
            let logged = edits.is_empty()
                || state.refused.is_none() && self.log_and_apply(log, state, Need::Room, &edits, None).is_ok();
            if !logged {
                state.accessed.clear();
            }
        }
    }
}

fn is_stale(inode: &Inode, now: Time) -> bool {
    inode.atime <= inode.mtime || inode.atime <= inode.ctime || now.secs.saturating_sub(inode.atime.secs) >= DAY
}

#[cfg(test)]
mod tests {
    use axiomfs_repository::record::FileKind;

    use super::*;

    fn inode(atime: i64, mtime: i64, ctime: i64) -> Inode {
        let time = |secs| Time { secs, nanos: 0 };
        Inode {
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time(atime),
            mtime: time(mtime),
            ctime: time(ctime),
            btime: time(0),
            parent: 2,
            parent_seq: 16,
            next_seq: 0,
            target: None,
        }
    }

    #[test]
    fn a_time_moves_after_a_change_and_once_a_day() {
        let now = Time { secs: 1_000_000, nanos: 0 };
        assert!(is_stale(&inode(100, 100, 50), now), "as old as its data");
        assert!(is_stale(&inode(999_990, 50, 999_990), now), "as old as its attributes");
        assert!(!is_stale(&inode(999_990, 999_980, 999_980), now), "read since it was changed");
        assert!(is_stale(&inode(1_000_000 - DAY, 50, 50), now), "a day old");
        assert!(!is_stale(&inode(1_000_001 - DAY, 50, 50), now), "not yet a day old");
        assert!(!is_stale(&inode(2_000_000, 50, 50), now), "in the future, as somebody set it");
    }
}
