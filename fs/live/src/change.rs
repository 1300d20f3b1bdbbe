//! How a change runs: it is worked out under the state's lock, goes to the log, and is folded into the active layer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::record::Inode;
use axiomfs_repository::tree::Node;

use crate::background::describe;
use crate::edit::{self, Edit};
use crate::log::{Log, LogError, Urgency};
use crate::patience::Patience;
use crate::state::State;
use crate::types::{Access, FsError, FsResult, Time};
use crate::view::{LookError, Nodes, View};
use crate::volume::{Shared, now};

/// Most layers that wait for a checkpoint before changes wait.
pub(crate) const FROZEN_MAX: usize = 4;
/// The same for snapshots, which must not wait.
pub(crate) const FROZEN_SNAPSHOT_MAX: usize = 64;
/// Of the memory, one chunk may be staged for so many bytes.
const MEMORY_PER_STAGED: u64 = 440;
/// Bytes of edits that nearly every record stays under; longer ones may wait for the log with the state locked.
pub(crate) const USUAL_META: usize = 4096;
/// Bytes of data after which the log is synced in the background, so that ending a segment has little left to do.
const EARLY_SYNC: u64 = 8 << 20;

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
    /// It is a snapshot: it waits for a checkpoint only where a great many of them are not done, or layers take more than writers may fill.
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

impl Shared {
    fn writable(&self) -> FsResult<&Log> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(FsError::Stale);
        }
        self.log.as_ref().ok_or(FsError::ReadOnly)
    }

    pub(crate) fn has_room(&self, state: &State, need: Need) -> bool {
        // Removals make room, and so may go on where others wait; but not without a bound.
        let more = if need == Need::Room { 1 } else { 2 };
        let heap: usize = state.frozen.iter().map(|layer| layer.heap()).sum::<usize>() + state.active.heap();
        let layers = heap < (FROZEN_MAX + more) * self.layer_max();
        let frozen = need != Need::Snapshot || state.frozen.len() < FROZEN_SNAPSHOT_MAX;
        layers && frozen && (need != Need::Room || !self.is_staging_full())
    }

    /// Whether so much is staged that only the store can make room: bytes on the disk, or chunks whose places stand in memory.
    pub(crate) fn is_staging_full(&self) -> bool {
        self.staged_bytes.load(Ordering::Relaxed) >= self.options.staging_max
            || self.staged_chunks.load(Ordering::Relaxed) >= self.staged_chunks_max()
    }

    /// The most chunks that may wait for the store; half as many again may be there already, until a head names them. Each takes about 60
    /// bytes, and those of a commit as many again while it is made.
    pub(crate) fn staged_chunks_max(&self) -> u64 {
        self.options.memory / MEMORY_PER_STAGED
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
        let mut patience: Option<Patience<'_>> = None;
        let mut pinned: Vec<(ChunkId, Arc<Node>)> = Vec::new();
        let mut failed = None;
        let len = data.map_or(0, <[u8]>::len);
        loop {
            self.prepare_log(access, log, need, len)?;
            match self.try_change(log, need, data, &pinned, &mut f) {
                Ok(value) => {
                    if let Some(patience) = patience {
                        patience.found();
                    }
                    return Ok(value);
                }
                Err(TryError::Op(OpError::Fs(e))) => return Err(e),
                Err(TryError::Op(OpError::Miss(id))) => self.fetch(access, id, &mut pinned, &mut failed)?,
                Err(TryError::NoRoom) => self.wait_or_give_up(access, need, &mut patience)?,
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
                view: View::of(state.base, &state.frozen, Some(&state.active), nodes),
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

    /// Logs the edits that `f` wants, if any, in one record; tells whether it did.
    pub fn change_if(
        &self,
        access: Access,
        need: Need,
        mut f: impl FnMut(&State) -> FsResult<Option<Vec<Edit>>>,
    ) -> FsResult<bool> {
        let log = self.writable()?;
        let mut patience: Option<Patience<'_>> = None;
        loop {
            self.prepare_log(access, log, need, 0)?;
            let tried = {
                let mut guard = self.state_mut();
                let state = &mut *guard;
                if let Some(e) = &state.refused {
                    return Err(e.clone());
                }
                let Some(edits) = f(state)? else { return Ok(false) };
                if self.has_room(state, need) {
                    let done = self.log_and_apply(log, state, need, &edits, None);
                    self.after_change(state);
                    done
                } else {
                    Err(TryError::NoRoom)
                }
            };
            match tried {
                Ok(()) => {
                    if let Some(patience) = patience {
                        patience.found();
                    }
                    return Ok(true);
                }
                Err(TryError::Op(OpError::Fs(e))) => return Err(e),
                Err(TryError::Op(OpError::Miss(_))) => return Err(FsError::WouldBlock),
                Err(TryError::NoRoom) => self.wait_or_give_up(access, need, &mut patience)?,
            }
        }
    }

    /// Lets the log begin its next segment before the state is locked, so that nobody who only looks waits for a disk.
    pub(crate) fn prepare_log(&self, access: Access, log: &Log, need: Need, len: usize) -> FsResult<()> {
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

    pub(crate) fn log_and_apply(
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
            e @ LogError::NoDescriptor { .. } => {
                if !self.told_of_descriptors.swap(true, Ordering::Relaxed) {
                    self.events.add("warning", describe(&e));
                }
                TryError::NoRoom
            }
            LogError::TooLarge { .. } => OpError::Fs(FsError::AttributeTooLarge).into(),
            e if e.is_quota() => OpError::Fs(FsError::QuotaExceeded).into(),
            LogError::NoSpace { .. } => OpError::Fs(FsError::NoSpace).into(),
            other => {
                let error = FsError::Io(other.to_string());
                self.events.add("error", format!("The log can't be written any more: {other}"));
                state.refused = Some(error.clone());
                OpError::Fs(error).into()
            }
        }
    }

    pub(crate) fn after_change(&self, state: &mut State) {
        let full = state.active.is_full(self.options.checkpoint_bytes, self.options.small_bytes(), self.layer_max());
        if full && state.frozen.len() < FROZEN_MAX {
            state.freeze();
        }
        if !state.frozen.is_empty() {
            self.work.wake();
        }
    }
}

fn urgency(need: Need) -> Urgency {
    if need == Need::Reserve { Urgency::Reserve } else { Urgency::Normal }
}

pub(crate) enum TryError {
    Op(OpError),
    NoRoom,
}

impl From<OpError> for TryError {
    fn from(e: OpError) -> Self {
        Self::Op(e)
    }
}
