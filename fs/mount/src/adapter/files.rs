//! Requests for contents, attributes and extended attributes of nodes of the trees.

use std::cell::RefCell;
use std::time::Instant;

use axiomfs_live::acl::is_acl;
use axiomfs_live::{Access, FallocMode, FsError, Handle, INO_BITS, NodeId, Seek, SetAttr, XattrMode};
use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, WriteFlags,
};

use super::{Adapter, caller, changeable};
use crate::calls::{self, Opening};
use crate::convert::file_attr;
use crate::errno::report;
use crate::nodes::Place;
use crate::replies::{send_done, send_xattr};
use crate::service::{Lane, Service};

/// Longest range of one copy: its length has to fit into the 32 bits of the reply.
const MAX_COPY: u64 = 1 << 30;
/// How many inodes there can be: their numbers have 40 bits.
const INODES: u64 = 1 << INO_BITS;
/// The namespaces of extended attributes that are kept. Of `system.` only ACLs are: they are enforced.
const KEPT_XATTRS: [&[u8]; 3] = [b"user.", b"security.", TRUSTED_XATTRS];
/// Extended attributes only root gets to see.
const TRUSTED_XATTRS: &[u8] = b"trusted.";

thread_local! {
    /// What a read fetches before it is sent; one for each thread that reads.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How files are opened. The page cache stays right: all changes go through the kernel, and where another writer is
/// followed, a file whose contents changed has another node id.
pub(super) const OPEN_FLAGS: FopenFlags = FopenFlags::FOPEN_NOFLUSH.union(FopenFlags::FOPEN_KEEP_CACHE);

/// Whether an extended attribute is refused whatever is in it.
pub(super) fn is_refused_xattr(name: &[u8]) -> bool {
    !is_acl(name) && !KEPT_XATTRS.iter().any(|namespace| name.starts_with(namespace))
}

impl Adapter {
    pub(super) fn change(&self, request: &Request, ino: INodeNo, change: SetAttr, reply: ReplyAttr) {
        let node = match changeable(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let caller = caller(request);
        self.service.ask(
            Lane::Change,
            &(),
            move |volume, access, ()| calls::set_attributes(volume, access, caller, node, &change),
            move |service, result| match result {
                Ok(attr) => reply.attr(&service.keep(Place::Tree(node)), &file_attr(node, &attr)),
                Err(error) => reply.error(report("setattr", &error)),
            },
        );
    }

    pub(super) fn open_file(&self, request: &Request, node: NodeId, opening: Opening, reply: ReplyOpen) {
        if opening.changes() && node.ordinal != 0 {
            return reply.error(Errno::EROFS);
        }
        let caller = caller(request);
        // Cutting off may wait for room, which removing makes: not in its way.
        let lane = if opening.truncate { Lane::Change } else { Lane::Metadata };
        self.service.ask(
            lane,
            &(),
            move |volume, access, ()| calls::open(volume, access, caller, node, opening),
            move |service, result| match result {
                Ok(handle) => {
                    // Most reads are answered by the page cache and never heard of: the opening counts for them.
                    if opening.access {
                        service.volume.opened_to_read(node, handle);
                    }
                    reply.opened(FileHandle(handle.0), OPEN_FLAGS);
                }
                Err(error) => reply.error(report("open", &error)),
            },
        );
    }

    pub(super) fn read_file(&self, node: NodeId, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let handle = Handle(handle.0);
        BUFFER.with_borrow_mut(|buffer| {
            match read_into(buffer, &self.service, Access::Cached, node, handle, offset, size) {
                Err(FsError::WouldBlock) => {
                    let came = Instant::now();
                    self.service.later(Lane::Data, 0, move |service| {
                        BUFFER.with_borrow_mut(|buffer| {
                            let read = |access| read_into(buffer, service, access, node, handle, offset, size);
                            match service.patiently(Lane::Data, came, read) {
                                Ok(()) => reply.data(buffer),
                                Err(error) => reply.error(report("read", &error)),
                            }
                        });
                    });
                }
                Ok(()) => reply.data(buffer),
                Err(error) => reply.error(report("read", &error)),
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn write_file(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        let node = match changeable(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let (caller, handle) = (caller(request), Handle(handle.0));
        let kill_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // Pages written back from a mapping go where they belong, whatever descriptor the kernel has found for them.
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |service: &Service, access, offset, data: &[u8]| {
            service.volume.write(access, caller, node, handle, offset, data, append, kill_suid)
        };
        let done = match write(&self.service, Access::Cached, offset, data) {
            Err(FsError::WouldBlock) => 0,
            Ok(written) if (written as usize) < data.len() => written,
            Ok(written) => return reply.written(written),
            Err(error) => return reply.error(report("write", &error)),
        };
        // The kernel takes a short answer for the end of a write, and for pages of a mapping it does not look at it.
        let (rest, came) = (&data[done as usize..], Access::Since(Instant::now()));
        match self.service.refuses(Lane::Change, rest.len()) {
            Some(_) if done > 0 => return reply.written(done),
            Some(error) => return reply.error(report("write", &error)),
            None => {}
        }
        let rest = rest.to_vec();
        self.service.later(Lane::Change, rest.len(), move |service| {
            match write(service, came, offset + u64::from(done), &rest) {
                Ok(written) => reply.written(done + written),
                Err(error) if done == 0 => reply.error(report("write", &error)),
                Err(error) => {
                    report("write", &error);
                    reply.written(done);
                }
            }
        });
    }

    pub(super) fn sync_node(&self, ino: INodeNo, reply: ReplyEmpty) {
        match Place::of(ino.0) {
            Place::Tree(node) if node.ordinal == 0 => self.service.ask(
                Lane::Sync,
                &(),
                move |volume, access, ()| volume.fsync(access, node),
                move |_, result| send_done(reply, "fsync", result),
            ),
            _ => reply.ok(),
        }
    }

    pub(super) fn space(&self, reply: ReplyStatfs) {
        self.service.ask(
            Lane::Space,
            &(),
            |volume, access, ()| volume.statfs(access),
            move |_, result| match result {
                Ok(space) => reply.statfs(
                    space.blocks,
                    space.free,
                    space.free,
                    INODES,
                    INODES.saturating_sub(space.files),
                    space.block_size,
                    space.max_name,
                    space.block_size,
                ),
                Err(error) => reply.error(report("statfs", &error)),
            },
        );
    }

    pub(super) fn set_xattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &[u8],
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let node = match self.xattr_node(ino, name) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let caller = caller(request);
        self.service.ask(
            Lane::Change,
            &(name.to_vec(), value.to_vec()),
            move |volume, access, (name, value)| calls::set_xattr(volume, access, caller, node, (name, value), mode),
            move |_, result| send_done(reply, "setxattr", result),
        );
    }

    pub(super) fn remove_xattr(&self, request: &Request, ino: INodeNo, name: &[u8], reply: ReplyEmpty) {
        let node = match self.xattr_node(ino, name) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let caller = caller(request);
        self.service.ask(
            Lane::Change,
            name,
            move |volume, access, name| match name {
                name if is_acl(name) => volume.remove_acl(access, caller, node, name),
                name => volume.removexattr(access, caller, node, name),
            },
            move |_, result| send_done(reply, "removexattr", result),
        );
    }

    fn xattr_node(&self, ino: INodeNo, name: &[u8]) -> Result<NodeId, Errno> {
        if is_refused_xattr(name) || matches!(Place::of(ino.0), Place::Control(_) | Place::Root) {
            return Err(Errno::EOPNOTSUPP);
        }
        changeable(ino)
    }

    pub(super) fn list_xattrs(&self, request: &Request, ino: INodeNo, room: u32, reply: ReplyXattr) {
        let Place::Tree(node) = Place::of(ino.0) else { return send_xattr(reply, "listxattr", room, Ok(Vec::new())) };
        let trusted = request.uid() == 0;
        self.service.ask(
            Lane::Metadata,
            &(),
            move |volume, access, ()| volume.listxattr(access, node),
            move |_, result| {
                let list = result.map(|names| {
                    let shown = names.into_iter().filter(|name| trusted || !name.starts_with(TRUSTED_XATTRS));
                    shown.flat_map(|name| name.into_iter().chain([0])).collect()
                });
                send_xattr(reply, "listxattr", room, list);
            },
        );
    }

    pub(super) fn allocate(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let node = match changeable(ino) {
            Ok(node) => node,
            Err(errno) => return reply.error(errno),
        };
        let caller = caller(request);
        self.service.ask(
            Lane::Change,
            &(),
            move |volume, access, ()| {
                calls::drop_set_id_bits(volume, access, caller, node)?;
                volume.fallocate(access, caller, node, mode, offset, length)
            },
            move |_, result| send_done(reply, "fallocate", result),
        );
    }

    pub(super) fn seek(&self, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Place::Tree(node) = Place::of(ino.0) else { return reply.error(Errno::EINVAL) };
        self.service.ask(
            Lane::Data,
            &(),
            move |volume, access, ()| volume.seek(access, node, offset, what),
            move |_, result| match result.map(i64::try_from) {
                Ok(Ok(found)) => reply.offset(found),
                Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
                Err(error) => reply.error(report("lseek", &error)),
            },
        );
    }

    pub(super) fn copy_range(
        &self,
        request: &Request,
        (from, offset_in): (INodeNo, u64),
        (to, offset_out): (INodeNo, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
        // The kernel copies by reading and writing where it hears EXDEV.
        let Place::Tree(source) = Place::of(from.0) else { return reply.error(Errno::EXDEV) };
        let target = match changeable(to) {
            Ok(target) => target,
            Err(errno) => return reply.error(errno),
        };
        let (caller, length) = (caller(request), length.min(MAX_COPY));
        self.service.ask(
            Lane::Change,
            &(),
            move |volume, access, ()| {
                calls::drop_set_id_bits(volume, access, caller, target)?;
                volume.copy_range(access, caller, source, offset_in, target, offset_out, length)
            },
            move |_, result| match result.map(u32::try_from) {
                Ok(Ok(copied)) => reply.written(copied),
                Ok(Err(_)) => reply.error(Errno::EIO),
                Err(error) => reply.error(report("copy_file_range", &error)),
            },
        );
    }
}

fn read_into(
    buffer: &mut Vec<u8>,
    service: &Service,
    access: Access,
    node: NodeId,
    handle: Handle,
    offset: u64,
    size: u32,
) -> Result<(), FsError> {
    buffer.clear();
    service.volume.read(access, node, handle, offset, buffer, size as usize)
}

fn allocation(mode: i32) -> Option<FallocMode> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    Some(match mode {
        0 => FallocMode::Allocate,
        libc::FALLOC_FL_KEEP_SIZE => FallocMode::KeepSize,
        PUNCH => FallocMode::PunchHole,
        libc::FALLOC_FL_ZERO_RANGE => FallocMode::ZeroRange,
        ZERO_KEEP => FallocMode::ZeroRangeKeepSize,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate_that_are_not_supported_are_refused() {
        assert_eq!(allocation(0), Some(FallocMode::Allocate));
        assert_eq!(allocation(1), Some(FallocMode::KeepSize));
        assert_eq!(allocation(3), Some(FallocMode::PunchHole));
        assert_eq!(allocation(0x11), Some(FallocMode::ZeroRangeKeepSize));
        // Punching without keeping the size, collapse, insert, unshare.
        for mode in [2, 8, 0x20, 0x40] {
            assert_eq!(allocation(mode), None);
        }
    }

    #[test]
    fn acls_are_kept_and_unknown_namespaces_refused() {
        assert!(!is_refused_xattr(b"system.posix_acl_access") && !is_refused_xattr(b"system.posix_acl_default"));
        assert!(is_refused_xattr(b"system.nfs4_acl") && is_refused_xattr(b"system.posix_acl_accessory"));
        assert!(is_refused_xattr(b"unknown.x") && is_refused_xattr(b"user"));
        assert!(!is_refused_xattr(b"user.system.x") && !is_refused_xattr(b"trusted.overlay"));
        assert!(!is_refused_xattr(b"security.capability"));
    }
}
