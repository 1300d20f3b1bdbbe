//! Extended attributes.

use std::sync::Arc;

use axiomfs_repository::record::{XATTR_MAX, Xattr};

use super::live_only;
use crate::change::Need;
use crate::edit::Edit;
use crate::types::{Access, Caller, FsError, FsResult, NodeId, XattrMode};
use crate::volume::Volume;

/// Longest name of an extended attribute (Linux: `XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;

impl Volume {
    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Stale`, or the tree can't be read.
    pub fn getxattr(&self, access: Access, node: NodeId, name: &[u8]) -> FsResult<Vec<u8>> {
        let xattr = self
            .shared
            .look(access, node.ordinal, |view| Ok(view.xattr(node.ino, name)?.ok_or(FsError::NoAttribute)?))?;
        match xattr {
            Xattr::Inline(value) => Ok(value.to_vec()),
            Xattr::Chunk { id, .. } => Ok(self.chunk(access, &id)?.to_vec()),
        }
    }

    /// Names of all extended attributes.
    ///
    /// # Errors
    /// `Stale`, or the tree can't be read.
    pub fn listxattr(&self, access: Access, node: NodeId) -> FsResult<Vec<Vec<u8>>> {
        self.shared.look(access, node.ordinal, |view| Ok(view.xattr_names(node.ino)?))
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute`, `NameTooLong`, `AttributeTooLarge`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn setxattr(
        &self,
        access: Access,
        _caller: Caller,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        let ino = live_only(node)?;
        if name.is_empty() || name.len() > XATTR_NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if value.len() > XATTR_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        let (name, value): (Arc<[u8]>, Arc<[u8]>) = (Arc::from(name), Arc::from(value));
        // A value over the bound of a log record's edits is refused by the record's own bound of 64 KiB.
        self.shared.change(access, Need::Room, None, |change, _| {
            if mode != XattrMode::Any {
                match (mode, change.view.xattr(ino, &name)?) {
                    (XattrMode::Create, Some(_)) => return Err(FsError::Exists.into()),
                    (XattrMode::Replace, None) => return Err(FsError::NoAttribute.into()),
                    _ => {}
                }
            }
            change.edit(Edit::Xattr { ino, name: name.clone(), value: Some(value.clone()) });
            let now = change.now;
            change.inode_mut(ino)?.ctime = now;
            Ok(())
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn removexattr(&self, access: Access, _caller: Caller, node: NodeId, name: &[u8]) -> FsResult<()> {
        let ino = live_only(node)?;
        let name: Arc<[u8]> = Arc::from(name);
        self.shared.change(access, Need::Reserve, None, |change, _| {
            change.view.xattr(ino, &name)?.ok_or(FsError::NoAttribute)?;
            change.edit(Edit::Xattr { ino, name: name.clone(), value: None });
            let now = change.now;
            change.inode_mut(ino)?.ctime = now;
            Ok(())
        })
    }
}
