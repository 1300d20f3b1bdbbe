//! Attributes of nodes and of the whole volume.

use axiomfs_repository::record::Inode;

use super::cut::{Cut, allocated};
use super::xattrs::{chmod_acl, drop_capabilities};
use super::{attr_of, live_only};
use crate::change::{Change, Need, OpResult};
use crate::edit::Edit;
use crate::extent_map::{Run, RunSource};
use crate::types::{Access, Attr, Caller, FileKind, FsError, FsResult, NodeId, SetAttr, SetTime, StatFs, Time};
use crate::volume::Volume;

/// Largest file: offsets are signed 64-bit numbers to the kernel.
pub(crate) const FILE_MAX: u64 = i64::MAX as u64;
/// Set-user-id and set-group-id bits.
const SETID: u16 = 0o6000;
/// Bytes per block that `statfs` counts in.
const BLOCK: u64 = 4096;
/// Size shown where the store has no bound: 1 PiB.
const UNBOUNDED: u64 = 1 << 50;

impl Volume {
    /// Attributes of a node.
    ///
    /// # Errors
    /// `Stale` if it is gone, or the tree can't be read.
    pub fn getattr(&self, access: Access, node: NodeId) -> FsResult<Attr> {
        self.shared.look(access, node, |view| Ok(view.attr(node.ino, &view.inode(node.ino)?.ok_or(FsError::Stale)?)))
    }

    /// Changes attributes; a changed length cuts off, or grows the file by a hole.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid`, `FileTooLarge`, `ReadOnly`, `NoSpace`, `Stale`, or the tree can't be read.
    pub fn setattr(&self, access: Access, caller: Caller, node: NodeId, set: &SetAttr) -> FsResult<Attr> {
        let ino = live_only(node)?;
        let cut = set.size.map(|size| self.count_cut(access, node, size..u64::MAX)).transpose()?.flatten();
        self.shared.change(access, Need::Room, None, |change, _| {
            let now = change.now;
            if let Some(size) = set.size {
                resize(change, ino, size, cut.as_ref())?;
            }
            if let Some(mode) = set.mode {
                chmod_acl(change, ino, mode as u16)?;
            }
            if set.uid.is_some() || set.gid.is_some() {
                drop_capabilities(change, ino)?;
            }
            let inode = change.inode_mut(ino)?;
            apply(inode, caller, set, now);
            Ok(attr_of(ino, inode))
        })
    }

    /// Size and room of the volume.
    ///
    /// # Errors
    /// The store can't be asked.
    pub fn statfs(&self, access: Access) -> FsResult<StatFs> {
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let repository = self.shared.repository.clone();
        let ask = move || repository.store().space().map_err(|e| FsError::Io(e.to_string()));
        let space = self.shared.space.ask(self.shared.options.timeout, ask)?;
        let (free, total) = space.unwrap_or((UNBOUNDED, UNBOUNDED));
        let files = self.shared.state().inos.next;
        Ok(StatFs {
            block_size: BLOCK as u32,
            blocks: total / BLOCK,
            free: free / BLOCK,
            files,
            max_name: crate::types::NAME_MAX as u32,
        })
    }
}

fn apply(inode: &mut Inode, caller: Caller, set: &SetAttr, now: Time) {
    let time = |t: SetTime| match t {
        SetTime::Now => now,
        SetTime::At(t) => t,
    };
    if set.kill_suid_sgid && set.mode.is_none() {
        let of_owner = set.uid.is_some() || set.gid.is_some();
        kill_set_ids(inode, caller.gid == inode.gid || (of_owner && caller.uid == 0));
    }
    if let Some(mode) = set.mode {
        inode.perm = (mode & 0o7777) as u16;
    }
    if let Some(uid) = set.uid {
        inode.uid = uid;
    }
    if let Some(gid) = set.gid {
        inode.gid = gid;
    }
    if let Some(t) = set.atime {
        inode.atime = time(t);
    }
    if let Some(t) = set.mtime {
        inode.mtime = time(t);
    }
    inode.ctime = set.ctime.unwrap_or(now);
}

/// Clears what a change by somebody else must not leave set: set-user-id, and set-group-id unless it is the old mark of
/// mandatory locking (a file that its group can't execute) and the caller one of the file's group.
pub(crate) fn kill_set_ids(inode: &mut Inode, in_group: bool) {
    let keep_group = in_group && inode.perm & 0o010 == 0;
    inode.perm &= if keep_group { !0o4000 } else { !SETID };
}

/// Sets a file's length; `counted` is what was counted from there on.
pub(crate) fn resize(change: &mut Change<'_>, ino: u64, size: u64, counted: Option<&Cut>) -> OpResult<()> {
    if size > FILE_MAX {
        return Err(FsError::FileTooLarge.into());
    }
    let now = change.now;
    let inode = change.inode(ino)?;
    match inode.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(FsError::IsDirectory.into()),
        _ => return Err(FsError::Invalid.into()),
    }
    let old = inode.size;
    // Looks at each extent also where all go: one that can't be read is an error here, not one of each checkpoint from now on.
    let cut = if size < old { allocated(change, ino, size..old, counted)? } else { 0 };
    drop_capabilities(change, ino)?;
    if size < old {
        let run = Run { offset: size, len: u64::MAX - size, source: RunSource::Hole };
        change.edit(Edit::Map { ino, run });
    }
    let inode = change.inode_mut(ino)?;
    inode.size = size;
    inode.allocated = inode.allocated.saturating_sub(cut);
    inode.mtime = now;
    Ok(())
}
