//! Requests that make, remove and list names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use axiomfs_live::{Access, FileKind, FsError, FsResult, Make, NodeId, RenameMode, Volume};
use fuser::{FileHandle, INodeNo, ReplyEmpty, ReplyEntry, Request};

use super::{Adapter, caller, changeable, own};
use crate::calls;
use crate::nodes::Place;
use crate::removed::Victim;
use crate::replies::{ListingReply, send_done, send_entry};
use crate::service::{Lane, Service};

/// Cookies of the first two entries of each directory.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

impl Adapter {
    /// Makes a node in the live tree and answers with it.
    pub(super) fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, what: NewNode, reply: ReplyEntry) {
        let parent = match changeable(parent) {
            Ok(parent) => parent,
            Err(errno) => return reply.error(errno),
        };
        let caller = caller(request);
        self.service.ask(
            Lane::Change,
            name.as_bytes(),
            move |volume, access, name| {
                let NewNode { kind, perm, umask, rdev, target } = &what;
                let make = Make { kind: *kind, perm: *perm, umask: *umask, rdev: *rdev, target: target.as_deref() };
                volume.make(access, caller, parent, name, &make)
            },
            move |service, result| send_entry(service, reply, "make", parent, result),
        );
    }

    /// Removes a name from the live tree.
    pub(super) fn remove(&self, request: &Request, parent: INodeNo, name: &OsStr, what: FileKind, reply: ReplyEmpty) {
        let parent = match changeable(parent) {
            Ok(parent) => parent,
            Err(errno) => return reply.error(errno),
        };
        let (caller, settling) = (caller(request), self.service.settling.clone());
        self.service.ask(
            Lane::Removal,
            name.as_bytes(),
            move |volume, access, name| {
                let victim = Victim::hold(volume, access, parent, name)?;
                victim.settles(&settling, caller.pid);
                let removed = match what {
                    FileKind::Directory => volume.rmdir(access, caller, parent, name),
                    _ => volume.unlink(access, caller, parent, name),
                };
                finish_removal(volume, Some(victim), removed)
            },
            move |service, result| send_removed(service, reply, "remove", caller.pid, result),
        );
    }

    /// Renames within the live tree.
    pub(super) fn move_name(
        &self,
        request: &Request,
        (from, name): (NodeId, &OsStr),
        (to, newname): (NodeId, &OsStr),
        mode: RenameMode,
        reply: ReplyEmpty,
    ) {
        let (caller, settling) = (caller(request), self.service.settling.clone());
        self.service.ask(
            Lane::Change,
            &(name.as_bytes().to_vec(), newname.as_bytes().to_vec()),
            move |volume, access, (name, newname)| {
                let victim = match mode {
                    RenameMode::Replace => Victim::hold_if_any(volume, access, to, newname)?,
                    RenameMode::NoReplace | RenameMode::Exchange => None,
                };
                if let Some(victim) = &victim {
                    victim.settles(&settling, caller.pid);
                }
                let renamed = volume.rename(access, caller, from, name, to, newname, mode);
                finish_removal(volume, victim, renamed)
            },
            move |service, result| send_removed(service, reply, "rename", caller.pid, result),
        );
    }

    /// Answers with the entries of a directory.
    pub(super) fn list<R: ListingReply>(&self, directory: INodeNo, handle: FileHandle, cookie: u64, mut reply: R) {
        let (place, mut cookie) = (Place::of(directory.0), cookie);
        if let (Place::Tree(node), 0) = (place, cookie) {
            // The kernel asks for the time again after each listing it got from here.
            self.service.volume.accessed(node);
        }
        match fill(&self.service, Access::Cached, (place, handle), &mut cookie, &mut reply) {
            Err(FsError::WouldBlock) => {
                let came = Instant::now();
                self.service.later(Lane::Metadata, 0, move |service| {
                    let fill = |access| fill(service, access, (place, handle), &mut cookie, &mut reply);
                    let result = service.patiently(Lane::Metadata, came, fill);
                    reply.finish(result);
                });
            }
            result => reply.finish(result),
        }
    }
}

/// What lost its name, or the error, and then nothing did.
fn finish_removal(volume: &Volume, victim: Option<Victim>, result: FsResult<()>) -> FsResult<Option<Victim>> {
    if result.is_err()
        && let Some(victim) = victim
    {
        victim.let_go(volume);
    }
    result.map(|()| victim)
}

fn send_removed(
    service: &Service,
    reply: ReplyEmpty,
    operation: &'static str,
    by: u32,
    result: FsResult<Option<Victim>>,
) {
    if let Ok(Some(victim)) = &result {
        victim.settles(&service.settling, by);
        service.removed.add(&service.volume, *victim);
    }
    send_done(reply, operation, result);
}

/// Adds what fits to `reply`. Where it would block, `cookie` stands behind what was added. A directory that was removed
/// has nothing in it, not even itself.
fn fill<R: ListingReply>(
    service: &Service,
    access: Access,
    (directory, handle): (Place, FileHandle),
    cookie: &mut u64,
    reply: &mut R,
) -> FsResult<()> {
    match fill_from_tree(service, access, (directory, handle), cookie, reply) {
        Err(FsError::Stale) if service.removed.directory(directory.node()).is_some() => Ok(()),
        result => result,
    }
}

fn fill_from_tree<R: ListingReply>(
    service: &Service,
    access: Access,
    (directory, handle): (Place, FileHandle),
    cookie: &mut u64,
    reply: &mut R,
) -> FsResult<()> {
    let end = listing_end(service, access, directory, handle, *cookie)?;
    // Entries have cookies above those of `.` and `..`.
    if *cookie < DOT_DOT {
        let parent = service.parent(access, directory)?;
        if *cookie < DOT && reply.add_dots(directory.node(), ".", DOT) || reply.add_dots(parent, "..", DOT_DOT) {
            return Ok(());
        }
        *cookie = DOT_DOT;
    }
    match directory {
        Place::Tree(node) => calls::list(&service.volume, access, node, (*cookie, end), reply),
        place => {
            own::forget_listing_soon(service, place);
            service.list_own(access, place, *cookie, reply)
        }
    }
}

/// Where a listing ends: at its start, or in the middle by a handle that is new, where the directory ends now.
fn listing_end(service: &Service, access: Access, directory: Place, handle: FileHandle, cookie: u64) -> FsResult<u64> {
    match directory {
        Place::Tree(node) if node.ordinal == 0 => {
            if cookie > 0
                && let Some(end) = service.listings.end(handle.0)
            {
                return Ok(end);
            }
            let end = service.volume.directory_end(access, node)?;
            service.listings.begin(handle.0, end);
            Ok(end)
        }
        _ => Ok(u64::MAX),
    }
}

/// What is to be made.
pub(super) struct NewNode {
    pub(super) kind: FileKind,
    pub(super) perm: u16,
    pub(super) umask: u16,
    pub(super) rdev: u32,
    pub(super) target: Option<Vec<u8>>,
}
