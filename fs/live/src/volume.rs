//! A mounted volume: what the parts share, and how an operation runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_api::Chunker;
use axiomfs_host::Host;
use axiomfs_repository::ids::{ChunkId, CommitId, StateId, VolumeId};
use axiomfs_repository::tree::Node;
use axiomfs_repository::{Repository, RepositoryError};

use crate::change::{OpError, OpResult};
use crate::events::Events;
use crate::follow::Follow;
use crate::handles::Handles;
use crate::layer::Layer;
use crate::log::Log;
use crate::orders::Work;
use crate::patience::Room;
use crate::read_ahead::ReadAhead;
use crate::samples::Samples;
use crate::space::SpaceSeen;
use crate::state::State;
use crate::types::{Access, FsError, FsResult, NodeId, Time};
use crate::view::{Nodes, View};

/// Called at named points, for tests that cut the power there.
pub type FaultHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// How a volume is to be run.
#[derive(Clone)]
pub struct VolumeOptions {
    /// Directory for the log, staged packs and the manifest; locked by the caller.
    pub state_dir: PathBuf,
    /// Which volume.
    pub volume: VolumeId,
    /// Most bytes of log.
    pub log_max: u64,
    /// Bytes per log segment.
    pub log_segment: u64,
    /// Most bytes of staged packs before changes wait.
    pub staging_max: u64,
    /// Whether log records are sealed.
    pub encrypt_log: bool,
    /// A local checkpoint at the latest so long after a change.
    pub checkpoint_interval: Duration,
    /// A layer is frozen once so many bytes of data came, or [more](Self::small_bytes) of small files.
    pub checkpoint_bytes: u64,
    /// A commit at the latest so long after a change.
    pub commit_interval: Duration,
    /// A commit once so many bytes are staged.
    pub commit_bytes: u64,
    /// Bound of every wait of a request.
    pub timeout: Duration,
    /// The setting `memory`; layers take a share of it.
    pub memory: u64,
    /// Nothing is written, and each state that another writer commits is shown.
    pub read_only: bool,
    /// How often a mount that only reads asks for the next head.
    pub refresh: Duration,
    /// `fsync` and snapshots wait for the store.
    pub durability_remote: bool,
    /// Test hook.
    pub faults: FaultHook,
    /// Take the volume over from a writer that can't be asked.
    pub takeover: bool,
    /// A state directory of another mount on this machine. A mount that only reads and has seen no head yet goes by what that one has.
    pub beside: Option<PathBuf>,
    /// Accept a head that is older than the newest seen.
    pub accept_rollback: bool,
    /// The head that the newest one must be, or must have come after.
    pub expect_head: Option<(u64, CommitId)>,
    /// The time, as the name of what is set aside has it.
    pub stamp: String,
}

impl VolumeOptions {
    /// So much of the data of small files is gathered in a layer: a copy of them is bound by the way to and fro of each request, and gains
    /// more where nothing is packed beside it than packing early does. The log must hold several such layers.
    pub(crate) fn small_bytes(&self) -> u64 {
        self.checkpoint_bytes.saturating_mul(3).min(self.log_max / 8).max(self.checkpoint_bytes)
    }
}

/// What all parts of a mounted volume share.
pub(crate) struct Shared {
    pub repository: Arc<Repository>,
    pub host: Arc<Host>,
    pub chunker: Arc<dyn Chunker>,
    pub options: VolumeOptions,
    /// `None` on a read-only mount.
    pub log: Option<Log>,
    state: RwLock<State>,
    pub handles: Handles,
    pub events: Events,
    pub work: Work,
    pub ahead: ReadAhead,
    pub follow: Follow,
    pub room: Room,
    pub space: SpaceSeen,
    /// Those that wait for room longer than `timeout`.
    pub patient: AtomicUsize,
    /// Bytes of file data accepted since the mount.
    pub written: AtomicU64,
    /// Bytes that earlier mounts left for the store: in staged packs, and those with the file data in the log.
    pub left_staged: u64,
    pub left: u64,
    /// Bytes of packs that wait for a commit, as of the last checkpoint or commit.
    pub staged_bytes: AtomicU64,
    /// Chunks in them, and nodes of trees.
    pub staged_chunks: AtomicU64,
    /// Whether `events` has it that there were too many open files.
    pub told_of_descriptors: AtomicBool,
    /// File data that ingest has read from the log, and what was staged before.
    pub ingested: AtomicU64,
    /// Of what was left and written, under a committed head.
    pub committed_bytes: AtomicU64,
    pub stopped: AtomicBool,
    /// The thread of checkpoints or that of commits panicked.
    pub worker_dead: AtomicBool,
    /// The newest checkpoint failed by a quota of the state directory's disk: why there is no room.
    pub checkpoint_over_quota: AtomicBool,
    /// The newest commit failed by one, of that disk or of the store's.
    pub commit_over_quota: AtomicBool,
    pub head: Mutex<HeadSeen>,
    pub started: SystemTime,
    /// Data since the log was last synced early.
    pub unsynced: AtomicU64,
    /// The thread that syncs the log.
    pub ticker: OnceLock<std::thread::Thread>,
    /// Files of each ending, some of them.
    pub samples: Samples,
    /// What was found in the state directory; empty on a read-only mount.
    pub local: OnceLock<LocalFacts>,
    /// Unlinked files that could not be reclaimed at their last close.
    pub reap: Mutex<Vec<u64>>,
}

/// What a state directory has beside the state that is mounted.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalFacts {
    pub id: Option<StateId>,
    /// State that was set aside and is not recovered yet.
    pub set_aside: Vec<PathBuf>,
}

/// The newest head this mount knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HeadSeen {
    pub sequence: u64,
    pub commit: Option<CommitId>,
    pub epoch: u64,
    pub index_generation: u64,
    pub at: Option<SystemTime>,
}

/// A mounted volume. Threads that serve it end with [`Volume::shutdown`] or when it is dropped.
pub struct Volume {
    pub(crate) shared: Arc<Shared>,
    pub(crate) threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// The time now.
pub(crate) fn now() -> Time {
    let t = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { secs: t.as_secs() as i64, nanos: t.subsec_nanos() }
}

/// A lock whose holder panicked still guards a consistent value: edits are applied whole or not at all.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        repository: Arc<Repository>,
        host: Arc<Host>,
        chunker: Arc<dyn Chunker>,
        options: VolumeOptions,
        log: Option<Log>,
        state: State,
        head: HeadSeen,
        events: Events,
    ) -> Self {
        let layers = state.frozen.iter().map(Arc::as_ref).chain([&state.active]);
        let left = layers.map(Layer::data_bytes).sum();
        Self {
            repository,
            host,
            chunker,
            options,
            log,
            state: RwLock::new(state),
            handles: Handles::default(),
            events,
            work: Work::default(),
            ahead: ReadAhead::default(),
            follow: Follow::default(),
            room: Room::default(),
            space: SpaceSeen::default(),
            patient: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            left_staged: 0,
            left,
            staged_bytes: AtomicU64::new(0),
            staged_chunks: AtomicU64::new(0),
            told_of_descriptors: AtomicBool::new(false),
            ingested: AtomicU64::new(0),
            committed_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            worker_dead: AtomicBool::new(false),
            checkpoint_over_quota: AtomicBool::new(false),
            commit_over_quota: AtomicBool::new(false),
            head: Mutex::new(head),
            started: SystemTime::now(),
            unsynced: AtomicU64::new(0),
            ticker: OnceLock::new(),
            samples: Samples::default(),
            local: OnceLock::new(),
            reap: Mutex::default(),
        }
    }

    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Packs that an earlier mount has staged are not in the store yet.
    pub fn count_staged(&mut self) {
        self.left_staged = self.repository.stats().staged_bytes;
        self.left += self.left_staged;
        *self.ingested.get_mut() = self.left_staged;
    }

    /// Bytes of file data that earlier mounts left for the store and that this one accepted.
    pub fn accepted(&self) -> u64 {
        self.left + self.written.load(Ordering::Relaxed)
    }

    pub fn fault(&self, point: &'static str) {
        (self.options.faults)(point);
    }

    /// Most bytes of heap one layer may take.
    pub fn layer_max(&self) -> usize {
        (self.options.memory / 8).max(4 << 20) as usize
    }

    /// Runs `f` on the tree that `node` is in, fetching what is missing where the caller may wait.
    pub fn look<T>(&self, access: Access, node: NodeId, mut f: impl FnMut(&View<'_>) -> OpResult<T>) -> FsResult<T> {
        let mut pinned: Vec<(ChunkId, Arc<Node>)> = Vec::new();
        let mut failed = None;
        loop {
            let missing = {
                if self.stopped.load(Ordering::Relaxed) {
                    return Err(FsError::Stale);
                }
                let state = self.state();
                let nodes = Nodes { repository: &self.repository, fetch: false, pinned: &pinned };
                match f(&state.tree(node, nodes)?) {
                    Ok(value) => return Ok(value),
                    Err(OpError::Fs(e)) => return Err(e),
                    Err(OpError::Miss(id)) => id,
                }
            };
            self.fetch(access, missing, &mut pinned, &mut failed)?;
        }
    }

    /// Fetches a node for the next try of an operation.
    ///
    /// A commit drops local nodes of trees that were replaced meanwhile: who looked at such a tree looks again, at the tree
    /// that took its place, and only a node that is missing twice is really missing.
    pub fn fetch(
        &self,
        access: Access,
        id: ChunkId,
        pinned: &mut Vec<(ChunkId, Arc<Node>)>,
        failed: &mut Option<ChunkId>,
    ) -> FsResult<()> {
        let fetched = match access {
            Access::Cached => return Err(FsError::WouldBlock),
            Access::Here => self.repository.node_here(&id).transpose().ok_or(FsError::WouldBlock)?,
            Access::Wait | Access::Since(_) => self.repository.node(&id),
        };
        match fetched {
            Ok(node) => pinned.push((id, node)),
            Err(e) if *failed == Some(id) || !e.is_damage() => return Err(self.report(&e)),
            Err(_) => *failed = Some(id),
        }
        Ok(())
    }

    /// Turns a repository's error into the tree's, and leaves a word in the events.
    pub fn report(&self, e: &RepositoryError) -> FsError {
        let error = crate::repository_error(e);
        if let FsError::Io(text) = &error {
            self.events.add("error", text.clone());
        }
        error
    }

    /// Wakes those that wait for room.
    pub fn made_room(&self) {
        self.room.made.notify_all();
    }
}
