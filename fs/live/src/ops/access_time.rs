//! Times of last access, kept as Linux keeps them by default (mount(8), `relatime`): moved by a read only where the time
//! is older than the last change or than a day. So reading the same file again and again costs one log record a day.

use axiomfs_repository::record::Inode;

use crate::change::Need;
use crate::types::{Access, FsError, Handle, NodeId, Time};
use crate::volume::{Volume, now};

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
        let moved = self.shared.change(Access::Cached, Need::Room, None, |change, _| {
            let now = change.now;
            let stale = is_stale(change.inode(node.ino)?, now);
            if stale {
                change.inode_mut(node.ino)?.atime = now;
            }
            Ok(stale)
        });
        match moved {
            Ok(moved) => moved,
            Err(error) => {
                tracing::debug!(%error, ino = node.ino, "A time of last access stays as it is");
                false
            }
        }
    }

    /// [`accessed`](Self::accessed) for a read through an open file; counts once for each opening.
    pub fn accessed_by(&self, node: NodeId, handle: Handle) -> bool {
        self.shared.handles.first_read(handle) && self.accessed(node)
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
