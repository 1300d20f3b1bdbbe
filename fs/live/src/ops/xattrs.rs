//! Extended attributes, ACLs among them.

use std::sync::Arc;

use axiomfs_repository::record::{FileKind, XATTR_MAX, Xattr};

use super::live_only;
use crate::acl::{self, Acl};
use crate::change::{Change, Need, OpError, OpResult};
use crate::edit::Edit;
use crate::types::{Access, Caller, FsError, FsResult, NodeId, XattrMode};
use crate::volume::Volume;

/// Longest name of an extended attribute (Linux: `XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// A program's capabilities (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
/// Set-group-id bit.
const SGID: u16 = 0o2000;

impl Volume {
    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Stale`, or the tree can't be read.
    pub fn getxattr(&self, access: Access, node: NodeId, name: &[u8]) -> FsResult<Vec<u8>> {
        let xattr =
            self.shared.look(access, node, |view| Ok(view.xattr(node.ino, name)?.ok_or(FsError::NoAttribute)?))?;
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
        self.shared.look(access, node, |view| Ok(view.xattr_names(node.ino)?))
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
        // A value over the bound of a log record's edits is refused by the record's own.
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

    /// Sets an ACL, named [`acl::ACCESS`] or [`acl::DEFAULT`], and the mode to what it says; one that says no more than
    /// the mode can is not kept. `keep_setgid` is false for a caller who is neither of the file's group nor privileged.
    ///
    /// # Errors
    /// `Invalid` if it isn't an ACL, `Access` for the default ACL of what is no directory, `ReadOnly`, `NoSpace`, or the
    /// tree can't be read.
    pub fn set_acl(&self, access: Access, node: NodeId, name: &[u8], value: &[u8], keep_setgid: bool) -> FsResult<()> {
        let ino = live_only(node)?;
        let list = Acl::decode(value).ok_or(FsError::Invalid)?;
        self.shared.change(access, Need::Room, None, |change, _| {
            let now = change.now;
            let inode = change.inode_mut(ino)?;
            inode.ctime = now;
            if name == acl::DEFAULT {
                if inode.kind != FileKind::Directory {
                    return Err(FsError::Access.into());
                }
                change.edit(acl_edit(ino, acl::DEFAULT, Some(&list)));
                return Ok(());
            }
            inode.perm = inode.perm & !0o777 | list.permissions();
            if !keep_setgid {
                inode.perm &= !SGID;
            }
            if !list.is_minimal() {
                change.edit(acl_edit(ino, acl::ACCESS, Some(&list)));
            } else if change.view.xattr(ino, acl::ACCESS)?.is_some() {
                change.edit(acl_edit(ino, acl::ACCESS, None));
            }
            Ok(())
        })
    }

    /// Removes an ACL; there need not be one.
    ///
    /// # Errors
    /// As [`removexattr`](Self::removexattr), without `NoAttribute`.
    pub fn remove_acl(&self, access: Access, caller: Caller, node: NodeId, name: &[u8]) -> FsResult<()> {
        match self.removexattr(access, caller, node, name) {
            Err(FsError::NoAttribute) => Ok(()),
            result => result,
        }
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

/// An ACL of `ino`, if it has one.
pub(crate) fn read_acl(change: &Change<'_>, ino: u64, name: &[u8]) -> OpResult<Option<Acl>> {
    let malformed = || OpError::from(FsError::Io(format!("The ACL of inode {ino} is malformed")));
    match change.view.xattr(ino, name)? {
        None => Ok(None),
        Some(Xattr::Inline(bytes)) => Acl::decode(&bytes).map(Some).ok_or_else(malformed),
        // Longer than any that the kernel takes.
        Some(Xattr::Chunk { .. }) => Err(malformed()),
    }
}

/// The edit that sets or removes an ACL.
pub(crate) fn acl_edit(ino: u64, name: &[u8], list: Option<&Acl>) -> Edit {
    Edit::Xattr { ino, name: Arc::from(name), value: list.map(|list| Arc::from(list.encode())) }
}

/// Lets the ACL of `ino` say what its new mode says.
pub(crate) fn chmod_acl(change: &mut Change<'_>, ino: u64, perm: u16) -> OpResult<()> {
    if let Some(mut list) = read_acl(change, ino, acl::ACCESS)? {
        list.set_permissions(perm);
        change.edit(acl_edit(ino, acl::ACCESS, Some(&list)));
    }
    Ok(())
}

/// Takes its capabilities from a program that is changed, whoever changes it: they were given to what it was.
pub(crate) fn drop_capabilities(change: &mut Change<'_>, ino: u64) -> OpResult<()> {
    if change.view.xattr(ino, CAPABILITY)?.is_some() {
        change.edit(Edit::Xattr { ino, name: Arc::from(CAPABILITY), value: None });
    }
    Ok(())
}
