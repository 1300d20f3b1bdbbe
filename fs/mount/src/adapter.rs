//! The FUSE side: decodes a request, calls, replies. No decision about data lives here.
//!
//! Requests for the mount's own nodes are in `adapter/own.rs`, for contents and attributes of files in
//! `adapter/files.rs`, for names and listings in `adapter/names.rs`; here is which way a request goes.

mod files;
mod names;
mod own;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use axiomfs_live::acl::is_acl;
use axiomfs_live::{Caller, FileKind, Handle, NodeId, RenameMode, SetAttr};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use self::names::NewNode;
use crate::calls::{self, Opening};
use crate::convert::{file_attr, kind_of_mode, set_time, time_from_fuser};
use crate::errno::report;
use crate::nodes::Place;
use crate::replies::{GENERATION, Names, NamesAndAttributes, send_entry, send_xattr};
use crate::service::{Lane, Service};
use crate::transport;

/// Permission bits, set-id and sticky bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// Serves the requests of one mount.
pub(crate) struct Adapter {
    service: Arc<Service>,
}

impl Adapter {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// The node if it is one of the live tree, else why it can't be changed.
fn changeable(ino: INodeNo) -> Result<NodeId, Errno> {
    match Place::of(ino.0) {
        Place::Tree(node) if node.ordinal == 0 => Ok(node),
        Place::Tree(_) | Place::Snapshots => Err(Errno::EROFS),
        Place::Root | Place::Control(_) => Err(Errno::EPERM),
    }
}

fn permissions(mode: u32) -> u16 {
    (mode & PERMISSIONS) as u16
}

fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    match flags.bits() {
        0 => Some(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        transport::agree(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.service.serve("lookup", || match Place::of(parent.0) {
            Place::Tree(parent) => {
                let (by, settling) = (request.pid(), self.service.settling.clone());
                self.service.ask(
                    Lane::Metadata,
                    name.as_bytes(),
                    move |volume, access, name| settling.attributes(access, by, || volume.lookup(access, parent, name)),
                    move |service, result| send_entry(service, reply, "lookup", parent, result),
                );
            }
            place => self.lookup_own(place, name.as_bytes(), reply),
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _lookups: u64) {
        self.service.serve("forget", || self.service.removed.forget(&self.service.volume, NodeId::unpack(ino.0)));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.service.serve("getattr", || self.attributes(request.pid(), Place::of(ino.0), reply));
    }

    #[allow(clippy::too_many_arguments)]
    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(|mode| mode & PERMISSIONS),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(time_from_fuser),
            handle: handle.is_some(),
            kill_suid_sgid: false,
        };
        self.service.serve("setattr", || match Place::of(ino.0) {
            Place::Control(_) => self.change_own(ino, &change, handle, reply),
            _ => self.change(request, ino, change, reply),
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.service.serve("readlink", || match Place::of(ino.0) {
            Place::Tree(node) => self.service.ask(
                Lane::Metadata,
                &(),
                move |volume, access, ()| volume.readlink(access, node),
                move |service, result| match result {
                    Ok(target) => {
                        // The kernel asks for the time again after each target it got from here.
                        service.volume.accessed(node);
                        reply.data(&target);
                    }
                    Err(error) => reply.error(report("readlink", &error)),
                },
            ),
            _ => reply.error(Errno::EINVAL),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.service.serve("mknod", || match kind_of_mode(mode) {
            Some(kind) => {
                let (perm, umask) = (permissions(mode), permissions(umask));
                let what = NewNode { kind, perm, umask, rdev, target: None };
                self.make(request, parent, name, what, reply);
            }
            None => reply.error(Errno::EINVAL),
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.service.serve("mkdir", || match Place::of(parent.0) {
            Place::Snapshots => self.take_snapshot(own::who(request), name.as_bytes(), reply),
            _ => {
                let (kind, perm, umask) = (FileKind::Directory, permissions(mode), permissions(umask));
                let what = NewNode { kind, perm, umask, rdev: 0, target: None };
                self.make(request, parent, name, what, reply);
            }
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes().to_vec();
        let what = NewNode { kind: FileKind::Symlink, perm: 0o777, umask: 0, rdev: 0, target: Some(target) };
        self.service.serve("symlink", || self.make(request, parent, name, what, reply));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service.serve("unlink", || self.remove(request, parent, name, FileKind::File, reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service.serve("rmdir", || match Place::of(parent.0) {
            Place::Snapshots => self.forget_snapshot(own::who(request), name.as_bytes(), reply),
            _ => self.remove(request, parent, name, FileKind::Directory, reply),
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = rename_mode(flags) else { return reply.error(Errno::EINVAL) };
        self.service.serve("rename", || match (Place::of(parent.0), Place::of(newparent.0)) {
            (Place::Tree(from), Place::Tree(to)) if from.ordinal == 0 && to.ordinal == 0 => {
                self.move_name(request, (from, name), (to, newname), mode, reply);
            }
            (Place::Tree(from), Place::Tree(to)) if from.ordinal == to.ordinal => reply.error(Errno::EROFS),
            (Place::Tree(_) | Place::Snapshots, Place::Tree(_)) | (Place::Tree(_), Place::Snapshots) => {
                reply.error(Errno::EXDEV);
            }
            (Place::Snapshots, Place::Snapshots) => {
                self.rename_snapshot(own::who(request), name.as_bytes(), newname.as_bytes(), mode, reply);
            }
            _ => reply.error(Errno::EPERM),
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let caller = caller(request);
        self.service.serve("link", || match (Place::of(ino.0), Place::of(newparent.0)) {
            (Place::Tree(node), Place::Tree(parent)) if node.ordinal != parent.ordinal => reply.error(Errno::EXDEV),
            (Place::Tree(_), Place::Snapshots) => reply.error(Errno::EXDEV),
            (Place::Tree(node), _) => match changeable(newparent) {
                Ok(parent) => self.service.ask(
                    Lane::Change,
                    newname.as_bytes(),
                    move |volume, access, name| volume.link(access, caller, node, parent, name),
                    move |service, result| send_entry(service, reply, "link", parent, result),
                ),
                Err(errno) => reply.error(errno),
            },
            _ => reply.error(Errno::EPERM),
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opening = Opening::of(flags.0);
        self.service.serve("open", || match Place::of(ino.0) {
            Place::Tree(node) => self.open_file(request, node, opening, reply),
            Place::Control(node) => self.open_own(request, node, opening, reply),
            Place::Root | Place::Snapshots => reply.error(Errno::EISDIR),
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.service.serve("create", || match changeable(parent) {
            Ok(parent) => {
                let (caller, opening) = (caller(request), Opening::of(flags));
                let perm = (permissions(mode), permissions(umask));
                self.service.ask(
                    Lane::Change,
                    name.as_bytes(),
                    move |volume, access, name| calls::create(volume, access, caller, parent, name, perm, opening),
                    move |service, result| match result {
                        Ok((attr, Handle(handle))) => {
                            let attr = file_attr(NodeId::live(attr.ino), &attr);
                            let keep = service.keep(Place::Tree(parent));
                            reply.created(&keep, &attr, GENERATION, FileHandle(handle), files::OPEN_FLAGS);
                        }
                        Err(error) => reply.error(report("create", &error)),
                    },
                );
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.service.serve("read", || match Place::of(ino.0) {
            Place::Tree(node) => {
                if calls::counts_as_access(flags.0) {
                    // The kernel asks for the time again after each read that came here.
                    self.service.volume.read_through(node, Handle(handle.0));
                }
                self.read_file(node, handle, offset, size, reply);
            }
            Place::Control(_) => self.read_own(handle, offset, size, reply),
            Place::Root | Place::Snapshots => reply.error(Errno::EISDIR),
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.service.serve("write", || match Place::of(ino.0) {
            Place::Control(_) => {
                // The kernel takes these files for empty.
                let offset = (flags.0 & libc::O_APPEND == 0).then_some(offset);
                self.write_own(request, handle, offset, data, reply);
            }
            _ => self.write_file(request, ino, handle, offset, data, write_flags, flags, reply),
        });
    }

    fn flush(&self, request: &Request, ino: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.service.serve("flush", || match Place::of(ino.0) {
            Place::Control(_) => self.flush_own(request, handle, reply),
            _ => reply.ok(),
        });
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.service.serve("release", || {
            match Place::of(ino.0) {
                Place::Tree(node) => {
                    if self.service.volume.release(node, Handle(handle.0)) {
                        self.service.invalidator.order_attributes(node.pack());
                    }
                }
                Place::Control(_) => self.service.files.release(handle.0),
                Place::Root | Place::Snapshots => {}
            }
            reply.ok();
        });
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.service.serve("fsync", || self.sync_node(ino, reply));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.service.serve("opendir", || {
            // What is listed of a snapshot never changes. Of the live tree the kernel keeps nothing: with several programs
            // at work it may take a listing from before a change for one from after it.
            match Place::of(ino.0) {
                Place::Tree(node) if node.ordinal != 0 => {
                    reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
                }
                Place::Tree(_) => reply.opened(FileHandle(self.service.listings.open()), FopenFlags::empty()),
                _ => reply.opened(FileHandle(0), FopenFlags::empty()),
            }
        });
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.service.serve("releasedir", || {
            self.service.listings.close(handle.0);
            reply.ok();
        });
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.service.serve("readdir", || self.list(ino, handle, offset, Names(reply)));
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (parent, by) = (Place::of(ino.0), request.pid());
        let reply = NamesAndAttributes { reply, parent, service: self.service.clone(), by };
        self.service.serve("readdirplus", || self.list(ino, handle, offset, reply));
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.service.serve("fsyncdir", || self.sync_node(ino, reply));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.service.serve("statfs", || self.space(reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.service.serve("setxattr", || self.set_xattr(request, ino, name.as_bytes(), value, flags, reply));
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.service.serve("getxattr", || match Place::of(ino.0) {
            // For each node whose group may do something the kernel asks whether there is an ACL: an error that is not
            // just "none" would refuse access.
            Place::Root | Place::Snapshots | Place::Control(_) if is_acl(name.as_bytes()) => {
                reply.error(Errno::NO_XATTR);
            }
            Place::Tree(node) if !files::is_refused_xattr(name.as_bytes()) => self.service.ask(
                Lane::Metadata,
                name.as_bytes(),
                move |volume, access, name| volume.getxattr(access, node, name),
                move |_, result| send_xattr(reply, "getxattr", size, result),
            ),
            _ => reply.error(Errno::EOPNOTSUPP),
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.service.serve("listxattr", || self.list_xattrs(request, ino, size, reply));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.service.serve("removexattr", || self.remove_xattr(request, ino, name.as_bytes(), reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.service.serve("fallocate", || self.allocate(request, ino, offset, length, mode, reply));
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.service.serve("lseek", || self.seek(ino, offset, whence, reply));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _handle_in: FileHandle,
        offset_in: u64,
        to: INodeNo,
        _handle_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.service.serve("copy_file_range", || {
            self.copy_range(request, (from, offset_in), (to, offset_out), length, reply);
        });
    }
}
