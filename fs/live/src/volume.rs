//! A mounted volume: what the parts share, and how an operation runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axiomfs_api::Chunker;
use axiomfs_host::Host;
use axiomfs_repository::ids::{ChunkId, CommitId, VolumeId};
use axiomfs_repository::record::Inode;
use axiomfs_repository::tree::Node;
use axiomfs_repository::{Repository, RepositoryError};

use crate::background::Work;
use crate::edit::{self, Edit};
use crate::events::Events;
use crate::handles::Handles;
use crate::log::{Log, LogError, Urgency};
use crate::read_ahead::ReadAhead;
use crate::state::State;
use crate::types::{Access, FsError, FsResult, Time};
use crate::view::{LookError, Nodes, View};

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
    /// A layer is frozen once so many bytes of data came.
    pub checkpoint_bytes: u64,
    /// A commit at the latest so long after a change.
    pub commit_interval: Duration,
    /// A commit once so many bytes are staged.
    pub commit_bytes: u64,
    /// Bound of every wait of a request.
    pub timeout: Duration,
    /// The setting `memory`; layers take a share of it.
    pub memory: u64,
    /// Nothing is written.
    pub read_only: bool,
    /// `fsync` and snapshots wait for the store.
    pub durability_remote: bool,
    /// Test hook.
    pub faults: FaultHook,
    /// Take the volume over from a writer that can't be asked.
    pub takeover: bool,
    /// Accept a head that is older than the newest seen.
    pub accept_rollback: bool,
}

/// Most layers that wait for a checkpoint before changes wait.
pub(crate) const FROZEN_MAX: usize = 4;
/// The same for snapshots, which must not wait.
const FROZEN_SNAPSHOT_MAX: usize = 64;
/// Bytes of edits that nearly every record stays under; longer ones may wait for the log with the state locked.
const USUAL_META: usize = 4096;
/// Bytes of data after which the log is synced in the background, so that ending a segment has little left to do.
const EARLY_SYNC: u64 = 8 << 20;
/// Longest a request waits in one go before it looks again whether it may go on.
const WAIT_SLICE: Duration = Duration::from_millis(200);

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
    room: (Mutex<()>, Condvar),
    /// Bytes of file data accepted since the mount.
    pub written: AtomicU64,
    /// Bytes of packs that wait for a commit, as of the last checkpoint or commit.
    pub staged_bytes: AtomicU64,
    /// File data that ingest has read from the log.
    pub ingested: AtomicU64,
    /// Of what was written, under a committed head.
    pub committed_bytes: AtomicU64,
    pub stopped: AtomicBool,
    /// The checkpoint thread panicked.
    pub worker_dead: AtomicBool,
    pub head: Mutex<HeadSeen>,
    pub started: SystemTime,
    /// Data since the log was last synced early.
    unsynced: AtomicU64,
    /// The thread that syncs the log.
    pub ticker: OnceLock<std::thread::Thread>,
    /// Unlinked files that could not be reclaimed at their last close.
    pub reap: Mutex<Vec<u64>>,
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

/// Why one try of an operation ended.
pub(crate) enum OpError {
    Fs(FsError),
    Miss(ChunkId),
}

impl From<FsError> for OpError {
    fn from(e: FsError) -> Self {
        Self::Fs(e)
    }
}

impl From<LookError> for OpError {
    fn from(e: LookError) -> Self {
        match e {
            LookError::Miss(id) => Self::Miss(id),
            other => Self::Fs(other.into()),
        }
    }
}

pub(crate) type OpResult<T> = Result<T, OpError>;

/// How much a change needs room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It waits for room.
    Room,
    /// It makes room, so it may use the reserve.
    Reserve,
    /// It is a snapshot: it never waits for a checkpoint.
    Snapshot,
}

/// One change while it is worked out: reads through the view, collects edits.
pub(crate) struct Change<'a> {
    pub view: View<'a>,
    pub now: Time,
    inodes: Vec<(u64, Inode, bool, bool)>,
    edits: Vec<Edit>,
    pub opens: &'a std::collections::HashMap<u64, u32>,
}

impl Change<'_> {
    /// The inode's record, for reading.
    pub fn inode(&mut self, ino: u64) -> OpResult<&Inode> {
        let at = self.load(ino)?;
        Ok(&self.inodes[at].1)
    }

    /// The inode's record, to be written at the end.
    pub fn inode_mut(&mut self, ino: u64) -> OpResult<&mut Inode> {
        let at = self.load(ino)?;
        self.inodes[at].2 = true;
        Ok(&mut self.inodes[at].1)
    }

    fn load(&mut self, ino: u64) -> OpResult<usize> {
        if let Some(at) = self.inodes.iter().position(|(have, ..)| *have == ino) {
            return Ok(at);
        }
        let inode = self.view.inode(ino)?.ok_or(FsError::Stale)?;
        self.inodes.push((ino, inode, false, false));
        Ok(self.inodes.len() - 1)
    }

    /// A new inode, written at the end.
    pub fn create(&mut self, ino: u64, inode: Inode) {
        self.inodes.push((ino, inode, true, true));
    }

    /// Adds an edit.
    pub fn edit(&mut self, edit: Edit) {
        self.edits.push(edit);
    }

    /// Drops what would be written of `ino`, and removes it.
    pub fn remove(&mut self, ino: u64) {
        self.inodes.retain(|(have, ..)| *have != ino);
        self.edits.push(Edit::Remove(ino));
    }

    fn into_edits(self) -> Vec<Edit> {
        let mut edits = Vec::with_capacity(self.inodes.len() + self.edits.len());
        for (ino, inode, dirty, fresh) in self.inodes {
            if fresh {
                edits.push(Edit::Create(ino, Box::new(inode)));
            } else if dirty {
                edits.push(Edit::Update(ino, Box::new(inode)));
            }
        }
        edits.extend(self.edits);
        edits
    }
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
            room: (Mutex::new(()), Condvar::new()),
            written: AtomicU64::new(0),
            staged_bytes: AtomicU64::new(0),
            ingested: AtomicU64::new(0),
            committed_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            worker_dead: AtomicBool::new(false),
            head: Mutex::new(head),
            started: SystemTime::now(),
            unsynced: AtomicU64::new(0),
            ticker: OnceLock::new(),
            reap: Mutex::default(),
        }
    }

    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn fault(&self, point: &'static str) {
        (self.options.faults)(point);
    }

    /// Most bytes of heap one layer may take.
    fn layer_max(&self) -> usize {
        (self.options.memory / 8).max(4 << 20) as usize
    }

    /// Runs `f` on the tree that `ordinal` stands for, fetching what is missing where the caller may wait.
    pub fn look<T>(&self, access: Access, ordinal: u32, mut f: impl FnMut(&View<'_>) -> OpResult<T>) -> FsResult<T> {
        let mut pinned: Vec<(ChunkId, Arc<Node>)> = Vec::new();
        loop {
            let missing = {
                if self.stopped.load(Ordering::Relaxed) {
                    return Err(FsError::Stale);
                }
                let state = self.state();
                let nodes = Nodes { repository: &self.repository, fetch: false, pinned: &pinned };
                match f(&state.tree(ordinal, nodes)?) {
                    Ok(value) => return Ok(value),
                    Err(OpError::Fs(e)) => return Err(e),
                    Err(OpError::Miss(id)) => id,
                }
            };
            self.fetch(access, missing, &mut pinned)?;
        }
    }

    fn fetch(&self, access: Access, id: ChunkId, pinned: &mut Vec<(ChunkId, Arc<Node>)>) -> FsResult<()> {
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let node = self.repository.node(&id).map_err(|e| self.report(&e))?;
        pinned.push((id, node));
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

    fn writable(&self) -> FsResult<&Log> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(FsError::Stale);
        }
        self.log.as_ref().ok_or(FsError::ReadOnly)
    }

    fn has_room(&self, state: &State, need: Need) -> bool {
        // Removals make room, and so may go on where others wait; but not without a bound.
        let (frozen, heap) = match need {
            Need::Reserve => (FROZEN_MAX, 2 * self.layer_max()),
            Need::Snapshot => (FROZEN_SNAPSHOT_MAX, self.layer_max()),
            Need::Room => (FROZEN_MAX, self.layer_max()),
        };
        let layers = state.frozen.len() < frozen || state.active.heap() < heap;
        let staged = need != Need::Room || self.staged_bytes.load(Ordering::Relaxed) < self.options.staging_max;
        layers && staged
    }

    /// Works out a change under the lock, logs it, folds it in. `data` goes into the same record.
    pub fn change<T>(
        &self,
        access: Access,
        need: Need,
        data: Option<&[u8]>,
        mut f: impl FnMut(&mut Change<'_>, &mut dyn FnMut(u64) -> u64) -> OpResult<T>,
    ) -> FsResult<T> {
        let log = self.writable()?;
        let started = Instant::now();
        let mut pinned: Vec<(ChunkId, Arc<Node>)> = Vec::new();
        let len = data.map_or(0, <[u8]>::len);
        loop {
            self.prepare_log(access, log, need, len)?;
            match self.try_change(log, need, data, &pinned, &mut f) {
                Ok(value) => return Ok(value),
                Err(TryError::Op(OpError::Fs(e))) => return Err(e),
                Err(TryError::Op(OpError::Miss(id))) => self.fetch(access, id, &mut pinned)?,
                Err(TryError::NoRoom) => self.wait_or_give_up(access, started)?,
            }
        }
    }

    fn try_change<T>(
        &self,
        log: &Log,
        need: Need,
        data: Option<&[u8]>,
        pinned: &[(ChunkId, Arc<Node>)],
        f: &mut impl FnMut(&mut Change<'_>, &mut dyn FnMut(u64) -> u64) -> OpResult<T>,
    ) -> Result<T, TryError> {
        let mut guard = self.state_mut();
        let state = &mut *guard;
        if let Some(e) = &state.refused {
            return Err(OpError::Fs(e.clone()).into());
        }
        if !self.has_room(state, need) {
            return Err(TryError::NoRoom);
        }
        let mut taken = None;
        let nodes = Nodes { repository: &self.repository, fetch: false, pinned };
        let (value, edits) = {
            let inos = &mut state.inos;
            let mut change = Change {
                view: View { base: state.base, frozen: &state.frozen, active: Some(&state.active), nodes },
                now: now(),
                inodes: Vec::with_capacity(4),
                edits: Vec::with_capacity(4),
                opens: &state.opens,
            };
            let value = f(&mut change, &mut |dir| {
                taken = Some(dir);
                inos.peek(dir)
            });
            (value, change.into_edits())
        };
        let value = value?;
        if edits.is_empty() {
            return Ok(value);
        }
        self.log_and_apply(log, state, need, &edits, data)?;
        if let Some(dir) = taken {
            state.inos.taken(dir);
        }
        self.after_change(state);
        Ok(value)
    }

    /// Logs the one edit that `f` wants, if any; tells whether it did.
    pub fn change_if(
        &self,
        access: Access,
        need: Need,
        mut f: impl FnMut(&State) -> FsResult<Option<Edit>>,
    ) -> FsResult<bool> {
        let log = self.writable()?;
        let started = Instant::now();
        loop {
            self.prepare_log(access, log, need, 0)?;
            let tried = {
                let mut guard = self.state_mut();
                let state = &mut *guard;
                if let Some(e) = &state.refused {
                    return Err(e.clone());
                }
                let Some(edit) = f(state)? else { return Ok(false) };
                if self.has_room(state, need) {
                    let done = self.log_and_apply(log, state, need, &[edit], None);
                    self.after_change(state);
                    done
                } else {
                    Err(TryError::NoRoom)
                }
            };
            match tried {
                Ok(()) => return Ok(true),
                Err(TryError::Op(OpError::Fs(e))) => return Err(e),
                Err(TryError::Op(OpError::Miss(_))) => return Err(FsError::WouldBlock),
                Err(TryError::NoRoom) => self.wait_or_give_up(access, started)?,
            }
        }
    }

    /// Lets the log begin its next segment before the state is locked, so that nobody who only looks waits for a disk.
    fn prepare_log(&self, access: Access, log: &Log, need: Need, len: usize) -> FsResult<()> {
        if !log.would_wait(USUAL_META, len) {
            return Ok(());
        }
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        match log.prepare(USUAL_META, len, urgency(need)) {
            Ok(()) | Err(LogError::Full { .. }) => Ok(()),
            Err(e) => match self.log_failed(&mut self.state_mut(), e) {
                TryError::Op(OpError::Fs(e)) => Err(e),
                TryError::Op(OpError::Miss(_)) | TryError::NoRoom => Ok(()),
            },
        }
    }

    /// Logs edits that need no look at the tree, when the volume is opened.
    pub fn log_now(&self, edits: &[Edit]) -> Result<(), LogError> {
        let Some(log) = &self.log else { return Ok(()) };
        let mut state = self.state_mut();
        let op = state.next_op;
        let mut meta = Vec::new();
        edit::encode(op, edits, &mut meta);
        let appended = log.append(&meta, None, Urgency::Reserve)?;
        state.apply(op, edits, appended.segment, None);
        Ok(())
    }

    fn wait_or_give_up(&self, access: Access, started: Instant) -> FsResult<()> {
        self.work.checkpoint_soon();
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        if started.elapsed() > self.options.timeout {
            return Err(FsError::NoSpace);
        }
        let guard = lock(&self.room.0);
        drop(self.room.1.wait_timeout(guard, WAIT_SLICE));
        Ok(())
    }

    fn log_and_apply(
        &self,
        log: &Log,
        state: &mut State,
        need: Need,
        edits: &[Edit],
        data: Option<&[u8]>,
    ) -> Result<(), TryError> {
        let op = state.next_op;
        let mut meta = Vec::with_capacity(256);
        edit::encode(op, edits, &mut meta);
        let appended = log.append(&meta, data, urgency(need)).map_err(|e| self.log_failed(state, e))?;
        state.apply(op, edits, appended.segment, appended.data);
        let len = data.map_or(0, <[u8]>::len) as u64;
        self.written.fetch_add(len, Ordering::Relaxed);
        if self.unsynced.fetch_add(len, Ordering::Relaxed) + len >= EARLY_SYNC
            && let Some(ticker) = self.ticker.get()
        {
            self.unsynced.store(0, Ordering::Relaxed);
            ticker.unpark();
        }
        Ok(())
    }

    fn log_failed(&self, state: &mut State, e: LogError) -> TryError {
        match e {
            LogError::Full { .. } => TryError::NoRoom,
            LogError::TooLarge { .. } => OpError::Fs(FsError::AttributeTooLarge).into(),
            LogError::NoSpace { .. } => OpError::Fs(FsError::NoSpace).into(),
            other => {
                let error = FsError::Io(other.to_string());
                self.events.add("error", format!("The log can't be written any more: {other}"));
                state.refused = Some(error.clone());
                OpError::Fs(error).into()
            }
        }
    }

    fn after_change(&self, state: &mut State) {
        let full =
            state.active.data_bytes() >= self.options.checkpoint_bytes || state.active.heap() >= self.layer_max();
        if full && state.frozen.len() < FROZEN_MAX {
            state.freeze();
        }
        if !state.frozen.is_empty() {
            self.work.wake();
        }
    }

    /// Wakes those that wait for room.
    pub fn made_room(&self) {
        self.room.1.notify_all();
    }
}

fn urgency(need: Need) -> Urgency {
    if need == Need::Reserve { Urgency::Reserve } else { Urgency::Normal }
}

enum TryError {
    Op(OpError),
    NoRoom,
}

impl From<OpError> for TryError {
    fn from(e: OpError) -> Self {
        Self::Op(e)
    }
}
