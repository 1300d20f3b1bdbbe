//! Requests for the mount's own nodes: `snapshots/` and `.axiomfs/`.

use std::time::Duration;

use axiomfs_live::{Access, FsError, NodeId, ROOT_INO, RenameMode, SetAttr, Who};
use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request,
};

use super::Adapter;
use crate::calls::Opening;
use crate::convert::file_attr;
use crate::errno::report;
use crate::invalidate::VOLATILE;
use crate::nodes::{ControlFile, ControlNode, Place};
use crate::replies::{GENERATION, send_done};
use crate::service::{Lane, Service};

impl Adapter {
    /// Answers a lookup in one of the mount's own directories.
    pub(super) fn lookup_own(&self, parent: Place, name: &[u8], reply: ReplyEntry) {
        let child = match self.service.own_child(parent, name) {
            Ok(child) => child,
            Err(errno) => return reply.error(errno),
        };
        let keep_name = self.service.keep(parent);
        if let Some(attr) = self.service.own_attr(child) {
            let attr = file_attr(child.node(), &attr);
            return reply.entry_with_ttls(&self.service.keep(child), &keep_name, &attr, GENERATION);
        }
        let node = child.node();
        self.service.ask(
            Lane::Metadata,
            &(),
            move |volume, access, ()| volume.getattr(access, node),
            move |service, result| match result {
                Ok(attr) => {
                    let keep = service.keep(Place::Tree(node));
                    reply.entry_with_ttls(&keep, &keep_name, &file_attr(node, &attr), GENERATION);
                }
                Err(error) => reply.error(report("lookup", &error)),
            },
        );
    }

    /// Answers thread `by` with the attributes of any node.
    pub(super) fn attributes(&self, by: u32, place: Place, reply: ReplyAttr) {
        let node = place.node();
        if let Some(attr) = self.service.own_attr(place) {
            return reply.attr(&self.service.keep(place), &file_attr(node, &attr));
        }
        let settling = self.service.settling.clone();
        self.service.ask(
            Lane::Metadata,
            &(),
            move |volume, access, ()| settling.attributes(access, by, || volume.getattr(access, node)),
            move |service, result| match result.or_else(|error| service.removed.directory(node).ok_or(error)) {
                Ok(attr) => reply.attr(&service.keep(place), &file_attr(node, &attr)),
                Err(error) => reply.error(report("getattr", &error)),
            },
        );
    }

    /// `mkdir snapshots/NAME`.
    pub(super) fn take_snapshot(&self, who: Who, name: &[u8], reply: ReplyEntry) {
        let Some(name) = snapshot_name(name) else { return reply.error(Errno::EINVAL) };
        self.service.later(Lane::Snapshot, 0, move |service| {
            let made = service.volume.snapshot_create(Access::Wait, who, &name).and_then(|snapshot| {
                let node = NodeId { ordinal: snapshot.ordinal, ino: ROOT_INO };
                Ok((node, service.volume.getattr(Access::Wait, node)?))
            });
            match made {
                Ok((node, attr)) => {
                    service.note_snapshots_changed();
                    let (keep, keep_name) = (service.keep(Place::Tree(node)), service.keep(Place::Snapshots));
                    reply.entry_with_ttls(&keep, &keep_name, &file_attr(node, &attr), GENERATION);
                }
                Err(error) => reply.error(report("mkdir", &error)),
            }
        });
    }

    /// `rmdir snapshots/NAME`.
    pub(super) fn forget_snapshot(&self, who: Who, name: &[u8], reply: ReplyEmpty) {
        let Some(name) = snapshot_name(name) else { return reply.error(Errno::ENOENT) };
        self.service.later(Lane::Snapshot, 0, move |service| {
            let result = service.volume.snapshot_delete(Access::Wait, who, &name);
            finish_snapshot_change(service, "rmdir", result, reply);
        });
    }

    /// `mv snapshots/A snapshots/B`. Never over an existing one: that would forget it.
    pub(super) fn rename_snapshot(&self, who: Who, from: &[u8], to: &[u8], mode: RenameMode, reply: ReplyEmpty) {
        if mode == RenameMode::Exchange {
            return reply.error(Errno::EINVAL);
        }
        let Some(from) = snapshot_name(from) else { return reply.error(Errno::ENOENT) };
        let Some(to) = snapshot_name(to) else { return reply.error(Errno::EINVAL) };
        self.service.later(Lane::Snapshot, 0, move |service| {
            let result = service.volume.snapshot_rename(Access::Wait, who, &from, &to, RenameMode::NoReplace);
            finish_snapshot_change(service, "rename", result, reply);
        });
    }

    /// Opens a file of `.axiomfs/`. Its text is made on a worker: it may take a moment.
    pub(super) fn open_own(&self, request: &Request, node: ControlNode, opening: Opening, reply: ReplyOpen) {
        if let Err(errno) = self.service.may_control(request) {
            return reply.error(errno);
        }
        if opening.changes() && !matches!(node, ControlNode::File(file) if file.writable()) {
            return reply.error(Errno::EACCES);
        }
        // Only what is applied on close needs to hear of it.
        let flags = match node {
            ControlNode::File(ControlFile::ChainYaml) => FopenFlags::FOPEN_DIRECT_IO,
            _ => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        };
        // It may have to be read from the store.
        let lane = if node == ControlNode::File(ControlFile::AuditLog) { Lane::Command } else { Lane::Text };
        self.service.later(lane, 0, move |service| match service.files.open(node, opening.truncate) {
            Ok(handle) => reply.opened(FileHandle(handle), flags),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn read_own(&self, handle: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        self.service.later(Lane::Text, 0, move |service| match service.files.read(handle.0, offset, size as usize) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        });
    }

    /// Writes to a file of `.axiomfs/`, at its end where there is no `offset`.
    pub(super) fn write_own(
        &self,
        request: &Request,
        handle: FileHandle,
        offset: Option<u64>,
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let (who, data) = (who(request), data.to_vec());
        self.service.later(Lane::Command, data.len(), move |service| {
            match service.files.write(handle.0, offset, &data, who) {
                Ok(written) => reply.written(written),
                Err(errno) => reply.error(errno),
            }
            forget_listings(service);
        });
    }

    pub(super) fn flush_own(&self, request: &Request, handle: FileHandle, reply: ReplyEmpty) {
        let who = who(request);
        self.service.later(Lane::Command, 0, move |service| {
            match service.files.flush(handle.0, who) {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(errno),
            }
            forget_listings(service);
        });
    }

    /// `echo > FILE` cuts it off before it writes; nothing else of these files can be changed.
    pub(super) fn change_own(&self, ino: INodeNo, change: &SetAttr, handle: Option<FileHandle>, reply: ReplyAttr) {
        if change.mode.is_some() || change.uid.is_some() || change.gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        if let (Some(size), Some(handle)) = (change.size, handle)
            && let Err(errno) = self.service.files.truncate(handle.0, size)
        {
            return reply.error(errno);
        }
        self.attributes(0, Place::of(ino.0), reply);
    }
}

/// The kernel keeps listings until it changes a directory itself; these change without it.
pub(super) fn forget_listing_soon(service: &Service, directory: Place) {
    if matches!(directory, Place::Snapshots | Place::Control(_)) {
        service.invalidator.order(directory.node().pack(), VOLATILE);
    }
}

/// Snapshots have names in UTF-8.
fn snapshot_name(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).ok().map(str::to_owned)
}

fn finish_snapshot_change<T>(
    service: &Service,
    operation: &'static str,
    result: Result<T, FsError>,
    reply: ReplyEmpty,
) {
    if result.is_ok() {
        service.note_snapshots_changed();
    }
    send_done(reply, operation, result);
}

/// A command may have changed what is in these directories.
fn forget_listings(service: &Service) {
    for place in [Place::Snapshots, Place::Control(ControlNode::Plugins)] {
        service.invalidator.order(place.node().pack(), Duration::ZERO);
    }
}

/// The user and process behind a request. The kernel names the thread; one that is gone already is named as it is.
pub(super) fn who(request: &Request) -> Who {
    let thread = request.pid();
    Who { uid: request.uid(), pid: process_of(thread).unwrap_or(thread) }
}

fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_by_its_process() {
        // Tests run in threads of their own.
        let own = std::fs::read_link("/proc/thread-self").expect("procfs");
        let tid: u32 = own.file_name().expect("a number").to_str().expect("digits").parse().expect("a number");
        assert_ne!(tid, std::process::id());
        assert_eq!(process_of(tid), Some(std::process::id()));
        assert_eq!(process_of(u32::MAX), None);
    }
}
