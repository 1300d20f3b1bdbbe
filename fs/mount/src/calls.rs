//! Requests that take more than one call to the volume.

use std::time::Duration;

use axiomfs_live::acl::is_acl;
use axiomfs_live::{
    Access, Attr, Caller, DirEntry, FileKind, FsError, FsResult, Handle, NodeId, SetAttr, Volume, XattrMode,
};

use crate::privileges::{has_set_id_bits, keeps_set_gid, keeps_set_id_bits};

/// Entries asked for at a time while a reply is filled. The reply does not tell how many fit.
const ENTRIES_AT_A_TIME: usize = 64;

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) write: bool,
    pub(crate) truncate: bool,
    pub(crate) exclusive: bool,
    /// It is for reading alone and counts as an access.
    pub(crate) access: bool,
}

impl Opening {
    /// From the flags of `open`.
    pub(crate) fn of(flags: i32) -> Self {
        Self {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            access: flags & libc::O_ACCMODE == libc::O_RDONLY && counts_as_access(flags),
        }
    }

    /// Whether it can change the file.
    pub(crate) fn changes(self) -> bool {
        self.write || self.truncate
    }
}

/// Whether reading through a descriptor with `flags` moves the time of last access.
pub(crate) fn counts_as_access(flags: i32) -> bool {
    flags & libc::O_NOATIME == 0
}

/// Opens a file. Cutting it off clears set-id bits first, where its caller loses them.
pub(crate) fn open(
    volume: &Volume,
    access: Access,
    caller: Caller,
    node: NodeId,
    opening: Opening,
) -> FsResult<Handle> {
    if opening.truncate {
        drop_set_id_bits(volume, access, caller, node)?;
    }
    volume.open(access, node, opening.write, opening.truncate)
}

/// Creates a file and opens it; opens it if it is there and need not be new.
pub(crate) fn create(
    volume: &Volume,
    access: Access,
    caller: Caller,
    parent: NodeId,
    name: &[u8],
    perm: (u16, u16),
    opening: Opening,
) -> FsResult<(Attr, Handle)> {
    match volume.create(access, caller, parent, name, perm) {
        Err(FsError::Exists) if !opening.exclusive => {
            let found = volume.lookup(access, parent, name)?;
            match found.kind {
                FileKind::File => {}
                FileKind::Directory => return Err(FsError::IsDirectory),
                _ => return Err(FsError::Exists),
            }
            let node = found.node();
            let handle = open(volume, access, caller, node, opening)?;
            Ok((volume.getattr(access, node)?, handle))
        }
        result => result,
    }
}

/// Changes attributes. What the kernel leaves to us under `HANDLE_KILLPRIV_V2` and fuser does not tell: a change of
/// owner always clears set-id bits of a file, cutting it off does unless its caller may keep them.
pub(crate) fn set_attributes(
    volume: &Volume,
    access: Access,
    caller: Caller,
    node: NodeId,
    change: &SetAttr,
) -> FsResult<Attr> {
    let mut change = *change;
    let of_owner = change.uid.is_some() || change.gid.is_some();
    if change.mode.is_none() && (of_owner || change.size.is_some()) {
        let before = volume.getattr(access, node)?;
        change.kill_suid_sgid = before.kind != FileKind::Directory
            && has_set_id_bits(before.perm)
            && (of_owner || !keeps_set_id_bits(caller.uid, caller.pid));
    }
    volume.setattr(access, caller, node, &change)
}

/// Clears the set-id bits of a file that is about to be changed by somebody who may not keep them.
pub(crate) fn drop_set_id_bits(volume: &Volume, access: Access, caller: Caller, node: NodeId) -> FsResult<()> {
    let before = volume.getattr(access, node)?;
    if has_set_id_bits(before.perm) && !keeps_set_id_bits(caller.uid, caller.pid) {
        let change = SetAttr { kill_suid_sgid: true, ..SetAttr::default() };
        volume.setattr(access, caller, node, &change)?;
    }
    Ok(())
}

/// Sets an extended attribute. An ACL also sets the mode, and clears set-group-id where `chmod` by its caller would:
/// the kernel says so in a form of the request that fuser 0.18 does not read.
pub(crate) fn set_xattr(
    volume: &Volume,
    access: Access,
    caller: Caller,
    node: NodeId,
    (name, value): (&[u8], &[u8]),
    mode: XattrMode,
) -> FsResult<()> {
    if !is_acl(name) {
        return volume.setxattr(access, caller, node, name, value, mode);
    }
    let before = volume.getattr(access, node)?;
    let keep_setgid = !has_set_id_bits(before.perm) || keeps_set_gid(caller, before.gid);
    volume.set_acl(access, node, name, value, keep_setgid)
}

/// A reply that takes directory entries until it is full.
pub(crate) trait Listing {
    /// Whether entries need attributes.
    const WITH_ATTRIBUTES: bool;
    /// Adds an entry; true if it did not fit.
    fn add(&mut self, entry: &DirEntry) -> bool;
    /// How long attributes of `node` have to wait before they may be added.
    fn wait(&self, _node: NodeId) -> Option<Duration> {
        None
    }
}

/// The next entries where attributes of some are damaged: the others have nothing to do with them. Those have none, and who asks for
/// one of them alone gets the error.
fn one_by_one(volume: &Volume, access: Access, directory: NodeId, cookie: u64, end: u64) -> FsResult<Vec<DirEntry>> {
    let mut entries = volume.readdir(access, directory, cookie, end, ENTRIES_AT_A_TIME, false)?;
    for entry in &mut entries {
        entry.attr = match volume.getattr(access, entry.node) {
            Ok(attr) => Some(attr),
            Err(FsError::Io(_) | FsError::Stale | FsError::NotFound) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(entries)
}

/// Fills `reply` with the entries of `directory` after `cookie` and before `end`; those of trees have cookies above any
/// other. An error after the first entry ends the reply instead: the next request meets it again.
pub(crate) fn list<L: Listing>(
    volume: &Volume,
    access: Access,
    directory: NodeId,
    (mut cookie, end): (u64, u64),
    reply: &mut L,
) -> FsResult<()> {
    let mut added = false;
    loop {
        let entries = match volume.readdir(access, directory, cookie, end, ENTRIES_AT_A_TIME, L::WITH_ATTRIBUTES) {
            Err(FsError::Io(_)) if L::WITH_ATTRIBUTES => one_by_one(volume, access, directory, cookie, end),
            entries => entries,
        };
        let entries = match entries {
            Ok(entries) => entries,
            Err(_) if added => return Ok(()),
            Err(error) => return Err(error),
        };
        let last = entries.len() < ENTRIES_AT_A_TIME;
        for mut entry in entries {
            cookie = entry.cookie;
            if let Some(wait) = reply.wait(entry.node) {
                match access {
                    _ if added => return Ok(()),
                    Access::Cached => return Err(FsError::WouldBlock),
                    Access::Here | Access::Wait | Access::Since(_) => std::thread::sleep(wait),
                }
                entry.attr = Some(volume.getattr(access, entry.node)?);
            }
            if reply.add(&entry) {
                return Ok(());
            }
            added = true;
        }
        if last {
            return Ok(());
        }
    }
}
