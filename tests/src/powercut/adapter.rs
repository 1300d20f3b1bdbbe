//! The disk as a mounted filesystem.

use super::disk::{Attributes, Change, Disk, Ino, Inode, Kind, ROOT};
use super::switch::{Failing, Failure, State, Switch};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Nothing is cached by the kernel, so that after a cut everything fails.
const TTL: Duration = Duration::ZERO;
/// A file of this name cuts the power when it is created; the rest of its name is the cause.
const FAULT_PREFIX: &[u8] = b".fault-";
/// Operations remembered for the report of a failure.
const TRACE: usize = 400;

/// The filesystem that serves a disk until its [`Switch`] is off. From then on everything fails with EIO.
pub struct PowercutFs(pub(super) Switch);

impl PowercutFs {
    /// Does something that changes nothing.
    fn look<T>(&self, what: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.0.state();
        if state.cut.is_some() {
            return Err(Errno::EIO);
        }
        what(&mut state)
    }

    /// Does something that changes the disk. When its turn is the turn of the cut, it reaches the cache unanswered.
    fn change<T>(
        &self,
        trace: impl FnOnce() -> String,
        what: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.0.state();
        let last = self.count(&mut state, trace)?;
        let done = what(&mut state);
        if last { Err(self.switch_off(&mut state)) } else { done }
    }

    /// Makes something durable, unless its turn is the turn of the cut.
    fn sync(
        &self,
        trace: impl FnOnce() -> String,
        what: impl FnOnce(&mut State) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut state = self.0.state();
        if self.count(&mut state, trace)? {
            return Err(self.switch_off(&mut state));
        }
        what(&mut state)
    }

    /// Makes a file or a directory durable, unless that is to fail.
    fn sync_inode(&self, state: &mut State, ino: Ino) -> Result<(), Errno> {
        let is_meant = |failing: &mut Failing| {
            let is_such = state.disk.path(ino).is_some_and(|path| path.contains(&failing.part))
                && match (state.disk.unsynced_bytes(ino), failing.bytes) {
                    (Some(bytes), Some(least)) => bytes >= least,
                    (None, None) => true,
                    _ => false,
                };
            let is_next = failing.after == 0;
            failing.after -= u64::from(is_such && !is_next);
            is_such && is_next
        };
        let Some(failing) = state.failing.take_if(is_meant) else { return state.disk.sync(ino) };
        state.trace.push_back(format!("  which is meant by {failing:?}"));
        let failed = match failing.how {
            Failure::Error => state.disk.fail_sync_of(ino),
            Failure::Refused => Err(Errno::EIO),
            Failure::Cut => Err(self.switch_off(state)),
        };
        state.at_failure = Some(state.disk.clone());
        self.0.0.off.notify_all();
        failed
    }

    /// Counts an operation; true if it is the one at which the power fails.
    fn count(&self, state: &mut State, trace: impl FnOnce() -> String) -> Result<bool, Errno> {
        if state.cut.is_some() {
            return Err(Errno::EIO);
        }
        state.operations += 1;
        if state.trace.len() == TRACE {
            state.trace.pop_front();
        }
        state.trace.push_back(format!("{} {}", state.operations, trace()));
        Ok(state.cut_at == Some(state.operations))
    }

    fn switch_off(&self, state: &mut State) -> Errno {
        state.cut = Some(format!("operation {}", state.operations));
        self.0.0.off.notify_all();
        Errno::EIO
    }

    fn make(&self, req: &Request, at: (INodeNo, &OsStr), kind: Kind, mode: u32, open: bool) -> Result<FileAttr, Errno> {
        let (parent, name) = (at.0.0, at.1.as_bytes());
        if let Some(fault) = name.strip_prefix(FAULT_PREFIX) {
            self.0.cut(&String::from_utf8_lossy(fault));
            return Err(Errno::EIO);
        }
        let attributes = Attributes { perm: (mode & 0o7777) as u16, uid: req.uid(), gid: req.gid() };
        self.change(
            || format!("make {parent}/{} {kind:?}", at.1.display()),
            |state| {
                let ino = state.disk.make(parent, name, kind.clone(), attributes)?;
                state.disk.inode_mut(ino)?.opens += u32::from(open);
                attr(&state.disk, ino)
            },
        )
    }

    fn set_attributes(&self, ino: Ino, set: &SetAttributes) -> Result<FileAttr, Errno> {
        let durable = set.size.is_some() || set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        let apply = |state: &mut State| {
            if let Some(size) = set.size {
                state.disk.change(ino, Change::Truncate { size })?;
            }
            let inode = state.disk.inode_mut(ino)?;
            inode.attributes = Attributes {
                perm: set.mode.map_or(inode.attributes.perm, |mode| (mode & 0o7777) as u16),
                uid: set.uid.unwrap_or(inode.attributes.uid),
                gid: set.gid.unwrap_or(inode.attributes.gid),
            };
            inode.atime = set.atime.map_or(inode.atime, time);
            inode.mtime = set.mtime.map_or(inode.mtime, time);
            inode.ctime = SystemTime::now();
            attr(&state.disk, ino)
        };
        if durable {
            self.change(|| format!("setattr {ino} size {:?} mode {:?}", set.size, set.mode), apply)
        } else {
            self.look(apply)
        }
    }
}

struct SetAttributes {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn time(wanted: TimeOrNow) -> SystemTime {
    match wanted {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

fn attr(disk: &Disk, ino: Ino) -> Result<FileAttr, Errno> {
    let inode = disk.inode(ino)?;
    let size = match &inode.kind {
        Kind::File => inode.content.size(),
        Kind::Symlink(target) => target.len() as u64,
        Kind::Directory | Kind::Socket => 0,
    };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: inode.content.allocated() / 512,
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        crtime: inode.ctime,
        kind: file_type(inode),
        perm: inode.attributes.perm,
        nlink: if inode.kind == Kind::Directory { 2 } else { disk.links(ino) },
        uid: inode.attributes.uid,
        gid: inode.attributes.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

fn file_type(inode: &Inode) -> FileType {
    match inode.kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    }
}

/// What `fallocate` with this mode does, in order.
fn allocation(mode: i32, offset: u64, len: u64) -> Result<Vec<Change>, Errno> {
    let size = offset + len;
    match mode {
        0 => Ok(vec![Change::Allocate { size }]),
        libc::FALLOC_FL_KEEP_SIZE => Ok(Vec::new()),
        libc::FALLOC_FL_ZERO_RANGE => Ok(vec![Change::Zero { offset, len }, Change::Allocate { size }]),
        _ if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
            || mode == libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE =>
        {
            Ok(vec![Change::Zero { offset, len }])
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(reply: ReplyEntry, done: Result<FileAttr, Errno>) {
    match done {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for PowercutFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.look(|state| attr(&state.disk, state.disk.lookup(parent.0, name.as_bytes())?)));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.look(|state| attr(&state.disk, ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.set_attributes(ino.0, &SetAttributes { mode, uid, gid, size, atime, mtime }) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.look(|state| match &state.disk.inode(ino.0)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            Kind::File | Kind::Directory | Kind::Socket => Err(Errno::EINVAL),
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG | 0 => Kind::File,
            libc::S_IFSOCK => Kind::Socket,
            _ => return reply.error(Errno::EPERM),
        };
        entry(reply, self.make(req, (parent, name), kind, mode & !umask, false));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.make(req, (parent, name), Kind::Directory, mode & !umask, false));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = Kind::Symlink(target.as_os_str().as_bytes().to_vec());
        entry(reply, self.make(req, (parent, name), kind, 0o777, false));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let trace = || format!("unlink {parent}/{}", name.display());
        empty(reply, self.change(trace, |state| state.disk.remove(parent.0, name.as_bytes(), false)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let trace = || format!("rmdir {parent}/{}", name.display());
        empty(reply, self.change(trace, |state| state.disk.remove(parent.0, name.as_bytes(), true)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let trace = || format!("rename {parent}/{} {newparent}/{}", name.display(), newname.display());
        let (from, to) = ((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()));
        let done = self.change(trace, |state| match flags {
            RenameFlags::RENAME_EXCHANGE => state.disk.exchange(from, to),
            RenameFlags::RENAME_NOREPLACE => state.disk.rename(from, to, true),
            _ if flags.is_empty() => state.disk.rename(from, to, false),
            _ => Err(Errno::EINVAL),
        });
        empty(reply, done);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let trace = || format!("link {ino} {newparent}/{}", newname.display());
        let done = self.change(trace, |state| {
            state.disk.link(ino.0, newparent.0, newname.as_bytes())?;
            attr(&state.disk, ino.0)
        });
        entry(reply, done);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.look(|state| {
            state.disk.inode_mut(ino.0)?.opens += 1;
            Ok(())
        });
        match opened {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(req, (parent, name), Kind::File, mode & !umask, true) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.look(|state| state.disk.read(ino.0, offset, size.into())) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let change = Change::Write { offset, data: data.to_vec() };
        let trace = || format!("write {ino} {offset}+{}", data.len());
        match self.change(trace, |state| state.disk.change(ino.0, change)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let trace = || format!("fallocate {ino} {mode} {offset}+{length}");
        let done = self.change(trace, |state| {
            allocation(mode, offset, length)?.into_iter().try_for_each(|change| state.disk.change(ino.0, change))
        });
        empty(reply, done);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let done = self.look(|state| {
            let inode = state.disk.inode_mut(ino.0)?;
            inode.opens = inode.opens.saturating_sub(1);
            if inode.opens == 0 && state.disk.parent(ino.0).is_none() {
                state.disk.collect();
            }
            Ok(())
        });
        empty(reply, done);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(|| format!("fsync {ino}"), |state| self.sync_inode(state, ino.0)));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.sync(|| format!("fsyncdir {ino}"), |state| self.sync_inode(state, ino.0)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.look(|state| {
            state.disk.inode(ino.0)?;
            state.next_handle += 1;
            Ok(state.next_handle)
        });
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let filled = self.look(|state| {
            if offset == 0 {
                let parent = state.disk.parent(ino.0).unwrap_or(ROOT);
                let mut listing = vec![(b".".to_vec(), ino.0), (b"..".to_vec(), parent)];
                listing.extend(state.disk.list(ino.0));
                state.listings.insert(fh.0, listing);
            }
            let listing = state.listings.get(&fh.0).ok_or(Errno::EBADF)?;
            for (place, (name, ino)) in listing.iter().enumerate().skip(offset as usize) {
                let Ok(inode) = state.disk.inode(*ino) else { continue };
                if reply.add(INodeNo(*ino), place as u64 + 1, file_type(inode), OsStr::from_bytes(name)) {
                    break;
                }
            }
            Ok(())
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.0.state().listings.remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // 64 GiB, all of it free: a full disk is another test's matter.
        let blocks = 16 << 20;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
