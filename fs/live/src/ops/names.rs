//! Operations on names: look up, make, remove, rename, link, list.

use std::sync::Arc;

use axiomfs_repository::record::{Entry, Inode, TARGET_MAX};

use super::xattrs::{acl_edit, read_acl};
use super::{attr_of, check_name, directory, live_only};
use crate::acl;
use crate::change::{Change, Need, OpResult};
use crate::edit::{Edit, links_of};
use crate::state::FIRST_SEQ;
use crate::types::{
    Access, Attr, Caller, DirEntry, FileKind, FsError, FsResult, Handle, Make, NodeId, RenameMode, Time,
};
use crate::view::Found;
use crate::volume::Volume;

/// Most names of a file, as on ext4. Directories have no bound: each subdirectory is a link to its parent.
const LINK_MAX: u32 = 65_000;
/// Deepest directory that is walked upwards when a directory is moved.
const DEPTH_MAX: usize = 65_536;
/// Set-group-id bit.
const SGID: u16 = 0o2000;

impl Volume {
    /// The node that `name` stands for in directory `parent`.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`, or the tree can't be read.
    pub fn lookup(&self, access: Access, parent: NodeId, name: &[u8]) -> FsResult<Attr> {
        if name.len() > crate::types::NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        self.shared.look(access, parent, |view| {
            let found = match view.entry(parent.ino, name)? {
                Some(found) => found,
                None => {
                    directory(&view.inode(parent.ino)?.ok_or(FsError::Stale)?)?;
                    return Err(FsError::NotFound.into());
                }
            };
            let ino = found.entry.ino;
            let inode = view.inode(ino)?.ok_or_else(|| dangling(ino))?;
            Ok(view.attr(ino, &inode))
        })
    }

    /// Directory that `node`, a directory, is in; a root's is itself.
    ///
    /// # Errors
    /// `Stale`, or the tree can't be read.
    pub fn parent(&self, access: Access, node: NodeId) -> FsResult<NodeId> {
        self.shared.look(access, node, |view| {
            let inode = view.inode(node.ino)?.ok_or(FsError::Stale)?;
            Ok(NodeId { ordinal: node.ordinal, ino: inode.parent })
        })
    }

    /// Makes a file, directory, symbolic link or special file.
    ///
    /// # Errors
    /// `Exists`, `NotDirectory`, `NameTooLong`, `Invalid`, `TooManyLinks`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn make(&self, access: Access, caller: Caller, parent: NodeId, name: &[u8], make: &Make<'_>) -> FsResult<Attr> {
        let dir = live_only(parent)?;
        check_name(name)?;
        check_target(make)?;
        let name: Arc<[u8]> = Arc::from(name);
        self.shared.change(access, Need::Room, None, |change, next_ino| {
            if change.view.entry(dir, &name)?.is_some() {
                return Err(FsError::Exists.into());
            }
            let ino = next_ino(dir);
            let (seq, gid, setgid) = enter(change, dir, &name, ino, make.kind, None)?;
            let mut perm = inherit(change, dir, ino, make)?;
            if setgid && make.kind == FileKind::Directory {
                perm |= SGID;
            }
            let inode = new_inode(change.now, make, perm, caller, setgid.then_some(gid), (dir, seq));
            let attr = attr_of(ino, &inode);
            change.create(ino, inode);
            Ok(attr)
        })
    }

    /// Makes a regular file with `perm`, less `umask` where no default ACL counts instead, and opens it.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn create(
        &self,
        access: Access,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        (perm, umask): (u16, u16),
    ) -> FsResult<(Attr, Handle)> {
        let make = Make { kind: FileKind::File, perm, umask, rdev: 0, target: None };
        let attr = self.make(access, caller, parent, name, &make)?;
        let node = NodeId::live(attr.ino);
        *self.shared.state_mut().opens.entry(attr.ino).or_insert(0) += 1;
        Ok((attr, self.shared.handles.open(node)))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` if it is none; `Stale`; or the tree can't be read.
    pub fn readlink(&self, access: Access, node: NodeId) -> FsResult<Vec<u8>> {
        self.shared.look(access, node, |view| {
            let inode = view.inode(node.ino)?.ok_or(FsError::Stale)?;
            Ok(inode.target.ok_or(FsError::Invalid)?.to_vec())
        })
    }

    /// Removes a name of something that is no directory.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn unlink(&self, access: Access, _caller: Caller, parent: NodeId, name: &[u8]) -> FsResult<()> {
        let dir = live_only(parent)?;
        check_name(name)?;
        self.shared.change(access, Need::Reserve, None, |change, _| {
            let found = change.view.entry(dir, name)?.ok_or(FsError::NotFound)?;
            if found.entry.kind == FileKind::Directory {
                return Err(FsError::IsDirectory.into());
            }
            leave(change, dir, &found)?;
            drop_link(change, &found.entry)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn rmdir(&self, access: Access, _caller: Caller, parent: NodeId, name: &[u8]) -> FsResult<()> {
        let dir = live_only(parent)?;
        check_name(name)?;
        self.shared.change(access, Need::Reserve, None, |change, _| {
            let found = change.view.entry(dir, name)?.ok_or(FsError::NotFound)?;
            if found.entry.kind != FileKind::Directory {
                return Err(FsError::NotDirectory.into());
            }
            if change.inode(found.entry.ino)?.size > 0 {
                return Err(FsError::NotEmpty.into());
            }
            leave(change, dir, &found)?;
            change.remove(found.entry.ino);
            Ok(())
        })
    }

    /// Gives something another name, atomically for any observer.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `NotEmpty`, `IsDirectory`, `NotDirectory`, `Invalid` (into itself), `TooManyLinks`,
    /// `CrossDevice`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &self,
        access: Access,
        _caller: Caller,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> FsResult<()> {
        let from = live_only(parent)?;
        let to = live_only(new_parent)?;
        check_name(name)?;
        check_name(new_name)?;
        let new_name: Arc<[u8]> = Arc::from(new_name);
        self.shared.change(access, Need::Room, None, |change, _| {
            let source = change.view.entry(from, name)?.ok_or(FsError::NotFound)?;
            let target = change.view.entry(to, &new_name)?;
            directory(change.inode(to)?)?;
            if source.entry.kind == FileKind::Directory && from != to {
                refuse_cycle(change, source.entry.ino, to)?;
            }
            match (mode, target) {
                (RenameMode::NoReplace, Some(_)) => Err(FsError::Exists.into()),
                (RenameMode::Exchange, None) => Err(FsError::NotFound.into()),
                (RenameMode::Exchange, Some(target)) => exchange(change, from, &source, to, &target),
                (_, Some(target)) if target.entry.ino == source.entry.ino => Ok(()),
                (_, target) => {
                    if let Some(target) = &target {
                        replace(change, &source, to, target)?;
                    }
                    relink(change, from, &source, to, &new_name, target.map(|target| target.seq))
                }
            }
        })
    }

    /// Gives a file a further name.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted` for directories, `TooManyLinks`, `CrossDevice`, `ReadOnly`, `NoSpace`, or the tree can't be read.
    pub fn link(
        &self,
        access: Access,
        _caller: Caller,
        node: NodeId,
        new_parent: NodeId,
        new_name: &[u8],
    ) -> FsResult<Attr> {
        if node.ordinal != new_parent.ordinal {
            return Err(FsError::CrossDevice);
        }
        let ino = live_only(node)?;
        let dir = live_only(new_parent)?;
        check_name(new_name)?;
        let name: Arc<[u8]> = Arc::from(new_name);
        self.shared.change(access, Need::Room, None, |change, _| {
            if change.view.entry(dir, &name)?.is_some() {
                return Err(FsError::Exists.into());
            }
            let inode = change.inode(ino)?;
            let kind = inode.kind;
            match inode {
                Inode { kind: FileKind::Directory, .. } => return Err(FsError::NotPermitted.into()),
                Inode { nlink: 0, .. } => return Err(FsError::NotFound.into()),
                Inode { nlink, .. } if *nlink >= LINK_MAX => return Err(FsError::TooManyLinks.into()),
                _ => {}
            }
            let (seq, ..) = enter(change, dir, &name, ino, kind, None)?;
            let now = change.now;
            let inode = change.inode_mut(ino)?;
            inode.nlink += 1;
            inode.ctime = now;
            (inode.parent, inode.parent_seq) = (dir, seq);
            Ok(attr_of(ino, inode))
        })
    }

    /// Where a directory ends now: entries made later have cookies from this one on.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`, or the tree can't be read.
    pub fn directory_end(&self, access: Access, node: NodeId) -> FsResult<u64> {
        self.shared.look(access, node, |view| {
            let inode = view.inode(node.ino)?.ok_or(FsError::Stale)?;
            directory(&inode)?;
            Ok(inode.next_seq.max(FIRST_SEQ))
        })
    }

    /// Up to `limit` entries after `cookie` (0 for the first) and before `end`, without `.` and `..`.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`, or the tree can't be read.
    pub fn readdir(
        &self,
        access: Access,
        node: NodeId,
        cookie: u64,
        end: u64,
        limit: usize,
        with_attr: bool,
    ) -> FsResult<Vec<DirEntry>> {
        self.shared.look(access, node, |view| {
            directory(&view.inode(node.ino)?.ok_or(FsError::Stale)?)?;
            let found = view.entries(node.ino, cookie.max(FIRST_SEQ - 1), end, limit)?;
            let mut entries = Vec::with_capacity(found.len());
            for Found { seq, entry } in found {
                let attr = if with_attr {
                    Some(view.attr(entry.ino, &view.inode(entry.ino)?.ok_or_else(|| dangling(entry.ino))?))
                } else {
                    None
                };
                entries.push(DirEntry {
                    node: view.node_id(entry.ino, entry.kind),
                    kind: entry.kind,
                    name: entry.name.to_vec(),
                    cookie: seq,
                    attr,
                });
            }
            Ok(entries)
        })
    }
}

fn dangling(ino: u64) -> FsError {
    FsError::Io(format!("Inode {ino} is named by a directory and not in the tree"))
}

fn check_target(make: &Make<'_>) -> FsResult<()> {
    match (make.kind, make.target) {
        (FileKind::Symlink, Some(t)) if t.len() > TARGET_MAX => Err(FsError::NameTooLong),
        (FileKind::Symlink, Some(t)) if t.is_empty() || t.contains(&0) => Err(FsError::Invalid),
        (FileKind::Symlink, None) => Err(FsError::Invalid),
        _ => Ok(()),
    }
}

fn new_inode(
    now: Time,
    make: &Make<'_>,
    perm: u16,
    caller: Caller,
    gid: Option<u32>,
    (parent, parent_seq): (u64, u64),
) -> Inode {
    Inode {
        kind: make.kind,
        perm,
        nlink: 1 + links_of(make.kind),
        uid: caller.uid,
        gid: gid.unwrap_or(caller.gid),
        rdev: make.rdev,
        size: 0,
        allocated: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        parent,
        parent_seq,
        next_seq: if make.kind == FileKind::Directory { FIRST_SEQ } else { 0 },
        target: make.target.map(Arc::from),
    }
}

/// The permissions of what is made in `dir`: those asked for without the umask, or what the default ACL leaves of them,
/// which then also gives the new node its lists.
fn inherit(change: &mut Change<'_>, dir: u64, ino: u64, make: &Make<'_>) -> OpResult<u16> {
    let perm = make.perm & 0o7777;
    if make.kind == FileKind::Symlink {
        return Ok(perm);
    }
    let Some(default) = read_acl(change, dir, acl::DEFAULT)? else { return Ok(perm & !make.umask) };
    let mut own = default.clone();
    own.restrict(perm);
    let perm = perm & !0o777 | own.permissions();
    if !own.is_minimal() {
        change.edit(acl_edit(ino, acl::ACCESS, Some(&own)));
    }
    if make.kind == FileKind::Directory {
        change.edit(acl_edit(ino, acl::DEFAULT, Some(&default)));
    }
    Ok(perm)
}

/// Puts a name into a directory, in the `place` that it had just now or at the end. Returns its sequence, the directory's group and
/// whether new files inherit that.
fn enter(
    change: &mut Change<'_>,
    dir: u64,
    name: &Arc<[u8]>,
    ino: u64,
    kind: FileKind,
    place: Option<u64>,
) -> OpResult<(u64, u32, bool)> {
    let now = change.now;
    let parent = change.inode_mut(dir)?;
    directory(parent)?;
    if parent.nlink == 0 {
        return Err(FsError::NotFound.into());
    }
    if links_of(kind) > 0 && parent.nlink == u32::MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let end = parent.next_seq.max(FIRST_SEQ);
    let seq = place.unwrap_or(end);
    parent.next_seq = end.max(seq + 1);
    parent.size += 1;
    parent.nlink += links_of(kind);
    parent.mtime = now;
    parent.ctime = now;
    let (gid, setgid) = (parent.gid, parent.perm & SGID != 0);
    change.edit(Edit::Link { dir, seq, entry: Entry { ino, kind, name: name.clone() } });
    Ok((seq, gid, setgid))
}

/// Takes a name out of a directory.
fn leave(change: &mut Change<'_>, dir: u64, found: &Found) -> OpResult<()> {
    let now = change.now;
    let parent = change.inode_mut(dir)?;
    parent.size = parent.size.saturating_sub(1);
    parent.nlink = parent.nlink.saturating_sub(links_of(found.entry.kind));
    parent.mtime = now;
    parent.ctime = now;
    change.edit(Edit::Unlink { dir, seq: found.seq, name: found.entry.name.clone() });
    Ok(())
}

/// One name less for a file; the last one takes the file with it, unless it is open.
fn drop_link(change: &mut Change<'_>, entry: &Entry) -> OpResult<()> {
    let now = change.now;
    let ino = entry.ino;
    let open = change.opens.contains_key(&ino);
    let inode = change.inode_mut(ino)?;
    inode.nlink = inode.nlink.saturating_sub(1);
    inode.ctime = now;
    if inode.nlink == 0 {
        if open { change.edit(Edit::Orphan(ino)) } else { change.remove(ino) }
    }
    Ok(())
}

/// Removes what `rename` replaces.
fn replace(change: &mut Change<'_>, source: &Found, to: u64, target: &Found) -> OpResult<()> {
    let source_is_dir = source.entry.kind == FileKind::Directory;
    match (source_is_dir, target.entry.kind == FileKind::Directory) {
        (true, false) => return Err(FsError::NotDirectory.into()),
        (false, true) => return Err(FsError::IsDirectory.into()),
        (true, true) => {
            if change.inode(target.entry.ino)?.size > 0 {
                return Err(FsError::NotEmpty.into());
            }
            leave(change, to, target)?;
            change.remove(target.entry.ino);
        }
        (false, false) => {
            leave(change, to, target)?;
            drop_link(change, &target.entry)?;
        }
    }
    Ok(())
}

/// Moves an entry to another name, in the `place` of the one of that name that was replaced.
fn relink(
    change: &mut Change<'_>,
    from: u64,
    source: &Found,
    to: u64,
    name: &Arc<[u8]>,
    place: Option<u64>,
) -> OpResult<()> {
    leave(change, from, source)?;
    let entry = &source.entry;
    let (seq, ..) = enter(change, to, name, entry.ino, entry.kind, place)?;
    let now = change.now;
    let inode = change.inode_mut(entry.ino)?;
    inode.ctime = now;
    (inode.parent, inode.parent_seq) = (to, seq);
    Ok(())
}

/// Lets two entries swap what they name.
fn exchange(change: &mut Change<'_>, from: u64, source: &Found, to: u64, target: &Found) -> OpResult<()> {
    if source.entry.ino == target.entry.ino {
        return Ok(());
    }
    if target.entry.kind == FileKind::Directory && from != to {
        refuse_cycle(change, target.entry.ino, from)?;
    }
    leave(change, from, source)?;
    leave(change, to, target)?;
    for (dir, place, moved) in [(from, source, target), (to, target, source)] {
        let (seq, ..) = enter(change, dir, &place.entry.name, moved.entry.ino, moved.entry.kind, Some(place.seq))?;
        let now = change.now;
        let inode = change.inode_mut(moved.entry.ino)?;
        inode.ctime = now;
        (inode.parent, inode.parent_seq) = (dir, seq);
    }
    Ok(())
}

/// A directory can't be moved below itself.
fn refuse_cycle(change: &Change<'_>, moved: u64, to: u64) -> OpResult<()> {
    let mut at = to;
    for _ in 0..DEPTH_MAX {
        if at == moved {
            return Err(FsError::Invalid.into());
        }
        let parent = change.view.inode(at)?.ok_or(FsError::Stale)?.parent;
        if parent == at {
            return Ok(());
        }
        at = parent;
    }
    Err(FsError::Invalid.into())
}
