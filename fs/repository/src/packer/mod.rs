//! The packer: takes new chunks, forms frames, has them encoded by worker threads and written into staged packs.
//!
//! One lock guards the state; it is held for look-ups and copies of chunks, never while encoding, writing or asking the store.

mod state;
mod worker;

pub(crate) use state::StagedChunk;
use state::{Job, State};
pub(crate) use worker::encode_frame;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use axiomfs_api::Seal;
use axiomfs_host::{ChainName, Host};

use crate::bytes::Bytes;
use crate::error::RepositoryError;
use crate::frame::{FrameKind, FrameRecord};
use crate::ids::ChunkId;
use crate::keyring::Keyring;
use crate::labels::{Label, Labels};
use crate::pack::{Chain, PackSeal, PackWriter};
use crate::staged::{Staged, StagedPack};
use crate::stats::Counters;
use crate::yielding::Reads;

/// A frame of data is closed when it would pass this many raw bytes. Larger ones compress better, but whoever wants a page of it fetches
/// all of it, and decodes about 60 %.
const DATA_FRAME: usize = 512 << 10;
/// The same where the last frame of its class did not shrink: then there is nothing to gain.
const FLAT_FRAME: usize = 256 << 10;
/// Bytes of nodes that make a frame of metadata. Larger ones compress little better, and whoever wants one node decodes them all.
pub(crate) const METADATA_FRAME: usize = 32 << 10;

/// What may share a frame: never two owners, routes, kinds or sorts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FrameClass {
    /// The user id that owns the file.
    pub owner: u32,
    /// The chain the file is routed to.
    pub route: ChainName,
    /// Data, metadata or clear data.
    pub kind: FrameKind,
    /// What keeps its frames apart from others; [`Label::NONE`] for all that shares them.
    pub sort: Label,
}

impl FrameClass {
    /// Bytes that fill a frame; `flat` where the last one did not shrink.
    fn frame_bytes(&self, flat: bool) -> usize {
        match self.kind {
            FrameKind::Data | FrameKind::Clear if flat => FLAT_FRAME,
            FrameKind::Data | FrameKind::Clear => DATA_FRAME,
            FrameKind::Metadata => METADATA_FRAME,
        }
    }
}

/// Whether a chunk was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is stored, staged or on its way.
    Known,
    /// It will be stored.
    New,
}

/// What the packer and its threads work with.
pub(crate) struct PackerSetup {
    pub(crate) dir: PathBuf,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) seal: Arc<dyn Seal>,
    pub(crate) host: Arc<Host>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) labels: Arc<Labels>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) pack_bytes: u64,
    pub(crate) queue_bytes: usize,
}

/// The front of the packer; dropping it stops the threads.
pub(crate) struct Packer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

pub(crate) struct Shared {
    setup: PackerSetup,
    state: Mutex<State>,
    /// Frames for the encoders.
    work: Condvar,
    /// Packs for the finisher.
    to_finish: Condvar,
    /// Progress for those who wait.
    progress: Condvar,
    /// The pack that takes frames, by kind. Locked while a pack's file is created; before `state` in lock order.
    current: [Mutex<Option<Arc<OpenPack>>>; FrameKind::COUNT],
    /// Encoders that stay.
    encoders: usize,
    /// Threads of encoders that only help for a while. Locked alone.
    extras: Mutex<Vec<JoinHandle<()>>>,
}

/// A pack that takes frames, while anybody uses it.
struct OpenPack {
    staged: Arc<Staged>,
    writer: Arc<PackWriter>,
    /// Writers, and one for being the current pack; who makes it 0 sends it to be finished.
    users: AtomicUsize,
}

/// What the packer knows of a chunk.
pub(crate) enum Found {
    Pending(Bytes),
    Staged(Arc<Staged>, StagedChunk),
}

/// More than one flush after what an earlier mount staged, so that the first commit keeps nothing of that for later ones.
const FIRST_GENERATION: u32 = 2;

impl Packer {
    pub(crate) fn start(setup: PackerSetup, workers: usize) -> Result<Self, RepositoryError> {
        std::fs::create_dir_all(&setup.dir).map_err(|e| RepositoryError::staging("create", &setup.dir, e))?;
        let shared = Arc::new(Shared {
            setup,
            state: Mutex::new(State { generation: FIRST_GENERATION, ..State::default() }),
            work: Condvar::new(),
            to_finish: Condvar::new(),
            progress: Condvar::new(),
            current: Default::default(),
            encoders: workers.max(1),
            extras: Mutex::default(),
        });
        let mut packer = Self { shared, threads: Vec::new() };
        for number in 0..workers.max(1) {
            let shared = packer.shared.clone();
            packer.spawn(format!("encode-{number}"), move || worker::encode_loop(&shared))?;
        }
        let shared = packer.shared.clone();
        packer.spawn("finish-packs".to_owned(), move || worker::finish_loop(&shared))?;
        Ok(packer)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), RepositoryError> {
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(|e| RepositoryError::staging("start a thread for", &self.shared.setup.dir, e))?;
        self.threads.push(thread);
        Ok(())
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.shared.setup.dir
    }

    /// Whether the chunk is pending or staged, in a frame that is not `bad`; if so it counts as added now.
    pub(crate) fn touch(&self, id: &ChunkId, bad: impl Fn(&PackSeal, u32) -> bool) -> bool {
        self.shared.lock().touch(id, &bad)
    }

    /// Takes a chunk that is in no frame that is not `bad`. Blocks while the queue is full.
    pub(crate) fn add(
        &self,
        class: &FrameClass,
        label: Label,
        id: ChunkId,
        data: &[u8],
        bad: impl Fn(&PackSeal, u32) -> bool,
    ) -> Result<Added, RepositoryError> {
        let shared = &self.shared;
        let mut state = shared.room_for(data.len())?;
        if state.touch(&id, &bad) {
            return Ok(Added::Known);
        }
        let submitted = state.put(class, label, id, data);
        drop(state);
        if submitted {
            shared.work.notify_one();
        }
        Ok(Added::New)
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<Found> {
        self.shared.lock().find(id)
    }

    /// Whether the chunk is pending or staged.
    pub(crate) fn holds(&self, id: &ChunkId) -> bool {
        let state = self.shared.lock();
        state.staged.contains_key(id) || state.pending.contains_key(id)
    }

    /// Finishes all open frames and packs; what was added before the call is durable when it returns.
    pub(crate) fn flush(&self) -> Result<Vec<StagedPack>, RepositoryError> {
        let shared = &self.shared;
        let last_frame = {
            let mut state = shared.lock();
            state.retry();
            let classes: Vec<FrameClass> = state.open.keys().cloned().collect();
            for class in &classes {
                state.close(class);
            }
            state.next_frame
        };
        shared.wake_all();
        shared.wait(|state| state.jobs.first_key_value().is_none_or(|(number, _)| *number >= last_frame))?;
        // Before the packs are closed: one that is opened after that stays open, and nobody might ever close it.
        let last_slot = shared.lock().next_slot;
        shared.close_packs();
        shared.wait(|state| state.unfinished.first_key_value().is_none_or(|(slot, _)| *slot >= last_slot))?;
        let failed = |error| RepositoryError::staging("sync", &shared.setup.dir, error);
        let synced = std::fs::File::open(&shared.setup.dir).map_err(failed)?.sync_all();
        let mut state = shared.lock();
        if let Err(error) = synced {
            // Another one would succeed without doing anything.
            return Err(state.fatal.insert(failed(error)).clone());
        }
        state.generation += 1;
        state.flat.clear();
        Ok(state.packs.values().filter_map(|pack| pack.info()).map(|(info, _)| info).collect())
    }

    /// Takes finished packs that an earlier mount left.
    pub(crate) fn adopt(&self, packs: Vec<(AdoptedPack, crate::pack::Table)>) {
        let mut state = self.shared.lock();
        for (pack, table) in packs {
            let slot = state.next_slot;
            state.next_slot += 1;
            // Before all flushes: what trees need of it hangs on their roots, and the first commit may forget the others.
            let touched = 0;
            for (record, members) in &table.frames {
                let mut offset = 0;
                for (id, len) in members {
                    let chunk = StagedChunk { slot, frame: record.number, offset, len: *len, touched };
                    state.staged.insert(*id, chunk);
                    offset += len;
                }
            }
            let staged = Staged::adopted(slot, pack.seal, pack.info, pack.uploaded, &table);
            state.packs.insert(slot, Arc::new(staged));
        }
    }

    /// The table of a staged pack as it is known here, for one whose file has lost it. A frame of which not every chunk is known is not
    /// in it.
    pub(crate) fn table_of(&self, staged: &Staged) -> crate::pack::Table {
        let mut chunks: HashMap<u32, Vec<(u32, ChunkId, u32)>> = HashMap::new();
        for (id, chunk) in &self.shared.lock().staged {
            if chunk.slot == staged.slot {
                chunks.entry(chunk.frame).or_default().push((chunk.offset, *id, chunk.len));
            }
        }
        let whole = |record: FrameRecord| {
            let mut chunks = chunks.remove(&record.number)?;
            chunks.sort_unstable();
            let ends = chunks.iter().scan(0, |end, (offset, _, len)| (*end == *offset).then(|| (*end += len, *end).1));
            let is_whole = ends.clone().count() == chunks.len() && ends.last() == Some(record.raw);
            is_whole.then(|| (record, chunks.into_iter().map(|(_, id, len)| (id, len)).collect()))
        };
        let frames = staged.frames().into_iter().filter_map(whole).collect();
        crate::pack::Table { chains: staged.chains(), frames }
    }

    /// All finished packs, oldest first.
    pub(crate) fn finished(&self) -> Vec<Arc<Staged>> {
        self.shared.lock().packs.values().filter(|pack| pack.info().is_some()).cloned().collect()
    }

    /// How far packing is.
    pub(crate) fn mark(&self) -> Mark {
        let state = self.shared.lock();
        Mark { generation: state.generation, slots: state.next_slot }
    }

    /// Forgets the chunks for which `gone` says so and then the packs in `slots` that hold none any more; returns those.
    pub(crate) fn forget(
        &self,
        slots: &std::collections::HashSet<u32>,
        gone: impl Fn(&ChunkId, &StagedChunk) -> bool,
    ) -> Vec<Arc<Staged>> {
        let mut state = self.shared.lock();
        let mut kept = std::collections::HashSet::new();
        state.staged.retain(|id, chunk| {
            if !slots.contains(&chunk.slot) {
                return true;
            }
            let keep = !gone(id, chunk);
            if keep {
                kept.insert(chunk.slot);
            }
            keep
        });
        slots.iter().filter(|slot| !kept.contains(slot)).filter_map(|slot| state.packs.remove(slot)).collect()
    }

    /// The chains that frames of staged packs went through.
    pub(crate) fn chains(&self) -> Vec<Chain> {
        self.shared.lock().packs.values().flat_map(|pack| pack.chains()).collect()
    }

    /// Bytes in finished and open packs, their number, and chunks staged or pending.
    pub(crate) fn usage(&self) -> Usage {
        let state = self.shared.lock();
        let mut usage = Usage {
            chunks: (state.staged.len() + state.pending.len()) as u64,
            pending_bytes: (state.queued_bytes + state.open_bytes) as u64,
            ..Usage::default()
        };
        for pack in state.packs.values() {
            usage.packs += 1;
            usage.bytes += pack.bytes();
        }
        usage
    }
}

/// A point between two flushes: a commit takes what was staged before it, while more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Completed flushes.
    pub(crate) generation: u32,
    /// Packs begun later have this slot or a higher one.
    pub(crate) slots: u32,
}

/// What the packer holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) packs: u64,
    pub(crate) bytes: u64,
    pub(crate) chunks: u64,
    pub(crate) pending_bytes: u64,
}

/// A pack found again in the staging directory or already in the store.
pub(crate) struct AdoptedPack {
    pub(crate) seal: Arc<crate::pack::PackSeal>,
    pub(crate) info: StagedPack,
    pub(crate) uploaded: bool,
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake_all();
        let join = |thread: JoinHandle<()>| {
            if thread.join().is_err() {
                tracing::error!("a packer thread panicked");
            }
        };
        self.threads.drain(..).for_each(join);
        // Once `stop` is set no more are counted, and who started one has ended by now or ends like these.
        std::mem::take(&mut *self.shared.extras.lock().unwrap_or_else(PoisonError::into_inner))
            .into_iter()
            .for_each(join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        for waiting in [&self.work, &self.to_finish, &self.progress] {
            waiting.notify_all();
        }
    }

    /// Waits until `len` more bytes may be taken.
    fn room_for(&self, len: usize) -> Result<MutexGuard<'_, State>, RepositoryError> {
        let mut state = self.lock();
        loop {
            if state.check()? {
                self.wake_all();
            }
            if state.queued_bytes == 0 || state.queued_bytes + len <= self.setup.queue_bytes {
                return Ok(state);
            }
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until `done`; a failure that happens meanwhile ends it.
    fn wait(&self, done: impl Fn(&State) -> bool) -> Result<(), RepositoryError> {
        let mut state = self.lock();
        loop {
            if let Some(fatal) = &state.fatal {
                return Err(fatal.clone());
            }
            if done(&state) {
                return Ok(());
            }
            if let Some((error, _)) = &state.error {
                return Err(error.clone());
            }
            if state.stop {
                return Err(RepositoryError::Stopped { reason: "the repository is being closed" });
            }
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("chunks and frames are bounded")
}

/// Makes names in `dir` durable.
pub(crate) fn sync_dir(dir: &std::path::Path) -> Result<(), RepositoryError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| RepositoryError::staging("sync", dir, e))
}
