//! The operations of the filesystem, by what they touch.

mod access_time;
mod attributes;
pub(crate) mod cut;
mod data;
pub(crate) mod layout;
mod names;
pub(crate) mod read;
mod snapshots;
mod xattrs;

use axiomfs_repository::record::Inode;

use crate::change::OpResult;
use crate::types::{Attr, FsError, FsResult, NodeId};
use crate::volume::Volume;

/// What `stat` shows of an inode of the live tree.
pub(crate) fn attr_of(ino: u64, inode: &Inode) -> Attr {
    let (size, allocated) = match inode.kind {
        // A directory's length is its number of entries; people expect something like a block per few dozen.
        crate::types::FileKind::Directory => (4096 + inode.size * 32 / 4096 * 4096, 4096),
        crate::types::FileKind::Symlink => (inode.target.as_ref().map_or(0, |t| t.len() as u64), 0),
        _ => (inode.size, inode.allocated),
    };
    Attr {
        ino,
        ordinal: 0,
        kind: inode.kind,
        perm: inode.perm,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size,
        allocated,
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
    }
}

/// Changes are for the live tree only.
pub(crate) fn live_only(node: NodeId) -> FsResult<u64> {
    if node.ordinal == 0 { Ok(node.ino) } else { Err(FsError::ReadOnly) }
}

/// A name that a directory may take.
pub(crate) fn check_name(name: &[u8]) -> FsResult<()> {
    if name.len() > crate::types::NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    if axiomfs_repository::record::valid_name(name) { Ok(()) } else { Err(FsError::Invalid) }
}

/// The inode, which must be a directory.
pub(crate) fn directory(inode: &Inode) -> OpResult<()> {
    match inode.kind {
        crate::types::FileKind::Directory => Ok(()),
        _ => Err(FsError::NotDirectory.into()),
    }
}

impl Volume {
    /// The test hook and the rest of what this volume was opened with.
    pub fn options(&self) -> &crate::VolumeOptions {
        &self.shared.options
    }
}
