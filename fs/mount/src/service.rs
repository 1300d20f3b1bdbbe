//! What all requests share: the volume, the control files, the worker threads, and the way a request takes: at once
//! from memory, or on a worker.

use std::borrow::Borrow;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_live::{Access, FsError, FsResult, SnapshotInfo, Time, Volume};
use fuser::{Errno, Request};

use crate::control::Control;
use crate::control_files::ControlFiles;
use crate::convert;
use crate::invalidate::Invalidator;
use crate::listings::Listings;
use crate::nodes::Place;
use crate::pacer::Pacer;
use crate::panics;
use crate::pool::Pool;
use crate::removed::Removed;
use crate::settling::Settling;

/// How long the kernel may keep names and attributes of trees nobody else changes.
const FOR_LONG: Duration = Duration::from_secs(86_400);
/// How long it may keep those that change without it.
const FOR_SHORT: Duration = Duration::from_secs(1);
/// Threads for lookups and listings that aren't in memory: of their own, so that reads waiting for data never stand
/// before them.
const METADATA_THREADS: usize = 4;
/// Threads for commands; several, because one may be a `sync` that takes minutes.
const COMMAND_THREADS: usize = 8;
/// Threads that take, rename and forget snapshots, whatever commands and writers wait for.
const SNAPSHOT_THREADS: usize = 2;
/// Threads that remove names where that has to wait: it makes room, so it waits for nobody who looks for something.
const REMOVAL_THREADS: usize = 2;
/// Threads that ask how much room there is: one may wait for a store that has never said so.
const SPACE_THREADS: usize = 2;
/// Threads that make the text of control files.
const TEXT_THREADS: usize = 2;
/// What writes waiting for a worker may carry, in bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Which workers a request that has to wait goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Contents of files.
    Data,
    /// Changes, which may wait for room.
    Change,
    /// What was written, to be made durable: it needs no room.
    Sync,
    /// Names and attributes.
    Metadata,
    /// Removing names, which makes room.
    Removal,
    /// How much room there is.
    Space,
    /// Snapshots.
    Snapshot,
    /// Commands.
    Command,
    /// Text of control files.
    Text,
}

/// Shared by all requests of a mount.
pub(crate) struct Service {
    pub(crate) volume: Arc<Volume>,
    pub(crate) files: ControlFiles,
    pub(crate) pacer: Pacer,
    pub(crate) invalidator: Invalidator,
    pub(crate) owner: Owner,
    pub(crate) removed: Removed,
    pub(crate) settling: Arc<Settling>,
    pub(crate) listings: Listings,
    mounted_at: Time,
    /// When `snapshots/` was last changed through this mount.
    snapshots_changed: Mutex<Time>,
    data: Pool,
    changes: Pool,
    syncs: Pool,
    metadata: Pool,
    removals: Pool,
    spaces: Pool,
    snapshots: Pool,
    commands: Pool,
    texts: Pool,
}

/// Who mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Service {
    pub(crate) fn new(
        volume: Arc<Volume>,
        control: Arc<dyn Control>,
        workers: usize,
        poll: Duration,
    ) -> io::Result<Self> {
        let mounted_at = convert::now();
        let pacer = Pacer::new(poll);
        let pool = |name, threads| Pool::new(name, threads, MAX_WAITING_BYTES, || ());
        Ok(Self {
            volume,
            files: ControlFiles::new(control),
            invalidator: Invalidator::default(),
            owner: Owner { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() },
            removed: Removed::default(),
            settling: Arc::default(),
            listings: Listings::default(),
            mounted_at,
            snapshots_changed: Mutex::new(mounted_at),
            data: Pool::new("axiomfs-data", workers, MAX_WAITING_BYTES, pacer.decoder())?,
            changes: pool("axiomfs-change", workers)?,
            syncs: pool("axiomfs-sync", workers)?,
            metadata: pool("axiomfs-meta", METADATA_THREADS)?,
            removals: pool("axiomfs-remove", REMOVAL_THREADS)?,
            spaces: pool("axiomfs-space", SPACE_THREADS)?,
            snapshots: pool("axiomfs-snap", SNAPSHOT_THREADS)?,
            commands: pool("axiomfs-command", COMMAND_THREADS)?,
            texts: pool("axiomfs-text", TEXT_THREADS)?,
            pacer,
        })
    }

    /// Serves one request in the thread that read it.
    pub(crate) fn serve(&self, operation: &'static str, request: impl FnOnce()) {
        self.pacer.begin();
        panics::guard(operation, request);
        self.pacer.end();
    }

    /// Asks the volume for what it has in memory, with the arguments where they are; if it has to wait, copies them
    /// and asks again on a worker. `call` may be made twice and must not do half of its work before it says that it
    /// would block, unless doing it again changes nothing. `send` gets the result, and owns the reply.
    pub(crate) fn ask<B, T>(
        self: &Arc<Self>,
        lane: Lane,
        arguments: &B,
        call: impl Fn(&Volume, Access, &B) -> FsResult<T> + Send + 'static,
        send: impl FnOnce(&Arc<Self>, FsResult<T>) + Send + 'static,
    ) where
        B: ToOwned + ?Sized,
        B::Owned: Send + 'static,
    {
        match call(&self.volume, Access::Cached, arguments) {
            Err(FsError::WouldBlock) => {
                let bytes = size_of_val(arguments);
                if let Some(error) = self.refuses(lane, bytes) {
                    return send(self, Err(error));
                }
                let (arguments_copy, came) = (arguments.to_owned(), Instant::now());
                self.later(lane, bytes, move |service| {
                    let result =
                        service.patiently(lane, came, |access| call(&service.volume, access, arguments_copy.borrow()));
                    send(service, result);
                });
            }
            result => send(self, result),
        }
    }

    /// Makes a call that may wait for the store, of a request that came at `came` and was queued since. Where others have waited as long
    /// in vain it ends with them, unless what it needs is on this machine: else each worker would wait once more for each that is queued.
    pub(crate) fn patiently<T>(
        &self,
        lane: Lane,
        came: Instant,
        mut call: impl FnMut(Access) -> FsResult<T>,
    ) -> FsResult<T> {
        let waits = matches!(lane, Lane::Data | Lane::Metadata).then(|| &self.pool(lane).waits);
        if waits.is_some_and(|waits| waits.are_in_vain(came)) {
            let in_vain = || FsError::TimedOut("The store has answered nobody who waited for it".into());
            return call(Access::Here).map_err(|e| if e == FsError::WouldBlock { in_vain() } else { e });
        }
        let begun = Instant::now();
        let result = call(Access::Since(came));
        if let Some(waits) = waits {
            waits.ended(begun, !matches!(result, Err(FsError::TimedOut(_))));
        }
        result
    }

    /// Why a request with so many bytes is not taken: those that wait carry all they may, and wait for room. Whoever reads requests
    /// must not wait with them: the next one may make room.
    pub(crate) fn refuses(&self, lane: Lane, bytes: usize) -> Option<FsError> {
        if lane == Lane::Change && self.pool(lane).is_full(bytes) { self.volume.waits_for_room() } else { None }
    }

    /// Runs `job`, which carries `bytes`, on a worker.
    pub(crate) fn later(self: &Arc<Self>, lane: Lane, bytes: usize, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let service = self.clone();
        self.pool(lane).submit(bytes, move || job(&service));
    }

    /// How long the kernel may keep attributes and names below `parent`.
    pub(crate) fn keep(&self, place: Place) -> Duration {
        match place {
            Place::Tree(node) if node.is_in_snapshot() => FOR_LONG,
            Place::Tree(_) => self.volume.fresh_for().unwrap_or(FOR_LONG),
            Place::Root => FOR_LONG,
            Place::Snapshots | Place::Control(_) => FOR_SHORT,
        }
    }

    /// When the mount was made: the times of its own nodes.
    pub(crate) fn mounted_at(&self) -> Time {
        self.mounted_at
    }

    /// When `snapshots/` last changed, given the snapshots there are.
    pub(crate) fn snapshots_changed(&self, snapshots: &[SnapshotInfo]) -> Time {
        let newest = snapshots.iter().map(|snapshot| snapshot.created).max().unwrap_or_default();
        newest.max(*lock(&self.snapshots_changed))
    }

    /// Notes that a snapshot was made, renamed or forgotten through this mount.
    pub(crate) fn note_snapshots_changed(&self) {
        *lock(&self.snapshots_changed) = convert::now();
    }

    /// `.axiomfs/` is for root and for who mounted.
    pub(crate) fn may_control(&self, request: &Request) -> Result<(), Errno> {
        if request.uid() == 0 || request.uid() == self.owner.uid { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Ends all threads, in the order in which they give each other work.
    pub(crate) fn stop(&self) {
        self.pacer.stop();
        let lanes = [Lane::Data, Lane::Change, Lane::Sync, Lane::Metadata, Lane::Removal, Lane::Space];
        for lane in lanes.into_iter().chain([Lane::Snapshot, Lane::Command, Lane::Text]) {
            self.pool(lane).close();
        }
        self.removed.forget_all(&self.volume);
        self.invalidator.stop();
    }

    fn pool(&self, lane: Lane) -> &Pool {
        match lane {
            Lane::Data => &self.data,
            Lane::Change => &self.changes,
            Lane::Sync => &self.syncs,
            Lane::Metadata => &self.metadata,
            Lane::Removal => &self.removals,
            Lane::Space => &self.spaces,
            Lane::Snapshot => &self.snapshots,
            Lane::Command => &self.commands,
            Lane::Text => &self.texts,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
