//! Results in the form of fuser's replies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use axiomfs_live::{Attr, DirEntry, FsError, FsResult, NodeId};
use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyXattr,
};

use crate::calls::Listing;
use crate::convert::{file_attr, file_type};
use crate::errno::report;
use crate::nodes::Place;
use crate::service::Service;

/// Inode numbers are never given twice.
pub(crate) const GENERATION: Generation = Generation(0);

/// Answers with nothing, or why not.
pub(crate) fn send_done<T>(reply: ReplyEmpty, operation: &'static str, result: FsResult<T>) {
    match result {
        Ok(_) => reply.ok(),
        Err(error) => reply.error(report(operation, &error)),
    }
}

/// Answers a lookup in `parent` of a tree, or a node just made there. That there is no such name is an answer the
/// kernel may keep as long as a name.
pub(crate) fn send_entry(
    service: &Service,
    reply: ReplyEntry,
    operation: &'static str,
    parent: NodeId,
    result: FsResult<Attr>,
) {
    let keep = service.keep(Place::Tree(parent));
    match result {
        Ok(attr) => {
            reply.entry(&keep, &file_attr(attr.node(), &attr), GENERATION);
        }
        Err(FsError::NotFound) if operation == "lookup" => {
            reply.entry_with_ttls(&Duration::ZERO, &keep, &nothing(), GENERATION);
        }
        Err(error) => reply.error(report(operation, &error)),
    }
}

/// A node id of 0 is how the kernel is told that a name does not exist.
fn nothing() -> FileAttr {
    let time = std::time::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Answers with the value, its length, or that there is too little room for it.
pub(crate) fn send_xattr(reply: ReplyXattr, operation: &'static str, room: u32, result: FsResult<Vec<u8>>) {
    match result.map(|value| (u32::try_from(value.len()), value)) {
        Ok((Ok(length), _)) if room == 0 => reply.size(length),
        Ok((Ok(length), value)) if length <= room => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(report(operation, &error)),
    }
}

/// A listing without attributes.
pub(crate) struct Names(pub(crate) ReplyDirectory);

/// A listing with attributes, which the kernel keeps as long as after a lookup.
pub(crate) struct NamesAndAttributes {
    pub(crate) reply: ReplyDirectoryPlus,
    pub(crate) parent: Place,
    pub(crate) service: Arc<Service>,
    /// Thread that asked.
    pub(crate) by: u32,
}

/// What both kinds of listing end with.
pub(crate) trait ListingReply: Listing + Send + 'static {
    /// Adds `.` or `..`; true if it did not fit.
    fn add_dots(&mut self, node: NodeId, name: &str, cookie: u64) -> bool;
    /// Sends what was added, or why there is nothing.
    fn finish(self, result: FsResult<()>);
}

impl Listing for Names {
    const WITH_ATTRIBUTES: bool = false;

    fn add(&mut self, entry: &DirEntry) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        self.0.add(INodeNo(entry.node.pack()), entry.cookie, file_type(entry.kind), name)
    }
}

impl ListingReply for Names {
    fn add_dots(&mut self, node: NodeId, name: &str, cookie: u64) -> bool {
        self.0.add(INodeNo(node.pack()), cookie, FileType::Directory, name)
    }

    fn finish(self, result: FsResult<()>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(error) => self.0.error(report("readdir", &error)),
        }
    }
}

impl Listing for NamesAndAttributes {
    const WITH_ATTRIBUTES: bool = true;

    fn add(&mut self, entry: &DirEntry) -> bool {
        let ino = INodeNo(entry.node.pack());
        let (keep, attr) = match &entry.attr {
            Some(attr) => {
                let keep = self.service.keep(self.parent).min(self.service.keep(Place::of(entry.node.pack())));
                (keep, file_attr(entry.node, attr))
            }
            // Damaged. It is there all the same; the kernel keeps none of this and asks, which gives the error.
            None => (Duration::ZERO, FileAttr { ino, kind: file_type(entry.kind), nlink: 1, ..nothing() }),
        };
        self.reply.add(ino, entry.cookie, OsStr::from_bytes(&entry.name), &keep, &attr, GENERATION)
    }

    fn wait(&self, node: NodeId) -> Option<Duration> {
        self.service.settling.wait(node, self.by)
    }
}

impl ListingReply for NamesAndAttributes {
    /// The kernel takes number and type of these, nothing else.
    fn add_dots(&mut self, node: NodeId, name: &str, cookie: u64) -> bool {
        let ino = INodeNo(node.pack());
        let attr = FileAttr { ino, kind: FileType::Directory, ..nothing() };
        self.reply.add(ino, cookie, name, &Duration::ZERO, &attr, GENERATION)
    }

    fn finish(self, result: FsResult<()>) {
        match result {
            Ok(()) => self.reply.ok(),
            Err(error) => self.reply.error(report("readdirplus", &error)),
        }
    }
}
