//! The packer: takes new chunks, forms frames, has them encoded by worker threads and written into staged packs.
//!
//! One lock guards the state; it is held for look-ups and copies of small chunks, never while encoding, writing or asking the store.

mod worker;

pub(crate) use worker::encode_frame;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axiomfs_api::Seal;
use axiomfs_host::{ChainName, Host};

use crate::bytes::Bytes;
use crate::error::RepositoryError;
use crate::frame::{FrameKind, Member};
use crate::ids::ChunkId;
use crate::keys::Keyring;
use crate::pack::PackWriter;
use crate::staged::{Staged, StagedPack};
use crate::stats::Counters;

/// A chunk of at least this many bytes has a frame of its own.
pub(crate) const OWN_FRAME: usize = 128 << 10;
/// A shared frame is closed when it would pass this many raw bytes.
pub(crate) const SHARED_FRAME: usize = 512 << 10;
/// Most bytes in frames that are still open, over all classes.
const OPEN_BYTES: usize = 4 << 20;
/// How long a failure keeps answering for new chunks before the work is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What may share a frame: never two owners, routes or kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FrameClass {
    /// The user id that owns the file.
    pub owner: u32,
    /// The chain the file is routed to.
    pub route: ChainName,
    /// Data or metadata.
    pub kind: FrameKind,
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
    /// Work for the threads.
    work: Condvar,
    /// Progress for those who wait.
    progress: Condvar,
    /// The pack that takes frames, by kind. Locked while a pack's file is created; before `state` in lock order.
    current: [Mutex<Option<Arc<OpenPack>>>; 2],
}

/// A pack that takes frames, while anybody uses it.
struct OpenPack {
    staged: Arc<Staged>,
    writer: Arc<PackWriter>,
    /// Writers, and one for being the current pack; who makes it 0 sends it to be finished.
    users: AtomicUsize,
}

#[derive(Default)]
struct State {
    open: HashMap<FrameClass, OpenFrame>,
    open_bytes: usize,
    next_frame: u64,
    /// Frames that are open, queued, being encoded or failed, by number.
    jobs: BTreeMap<u64, Arc<Job>>,
    queue: VecDeque<Arc<Job>>,
    failed: Vec<Arc<Job>>,
    /// Raw bytes in `jobs`.
    queued_bytes: usize,
    finish: VecDeque<Arc<OpenPack>>,
    failed_finish: Vec<Arc<OpenPack>>,
    /// Slots of packs that are not finished.
    unfinished: BTreeMap<u32, Arc<Staged>>,
    pending: HashMap<ChunkId, Pending>,
    staged: HashMap<ChunkId, StagedChunk>,
    packs: BTreeMap<u32, Arc<Staged>>,
    next_slot: u32,
    /// Completed flushes.
    generation: u32,
    error: Option<(RepositoryError, Instant)>,
    /// A failed fsync is never retried into success.
    fatal: Option<RepositoryError>,
    stop: bool,
}

struct OpenFrame {
    number: u64,
    raw: Vec<u8>,
    members: Vec<Member>,
}

/// A frame to encode.
struct Job {
    number: u64,
    class: FrameClass,
    raw: Arc<Vec<u8>>,
    members: Vec<Member>,
}

#[derive(Clone)]
struct Pending {
    frame: u64,
    class: Option<FrameClass>,
    offset: u32,
    len: u32,
    touched: u32,
}

/// Where a staged chunk is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedChunk {
    pub(crate) slot: u32,
    pub(crate) frame: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    /// The flush generation in which it was last added.
    pub(crate) touched: u32,
}

/// What the packer knows of a chunk.
pub(crate) enum Found {
    Pending(Bytes),
    Staged(Arc<Staged>, StagedChunk),
}

impl Packer {
    pub(crate) fn start(setup: PackerSetup, workers: usize) -> Result<Self, RepositoryError> {
        std::fs::create_dir_all(&setup.dir).map_err(|e| RepositoryError::staging("create", &setup.dir, e))?;
        let shared = Arc::new(Shared {
            setup,
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            current: [Mutex::new(None), Mutex::new(None)],
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

    /// Whether the chunk is pending or staged; if so it counts as added now.
    pub(crate) fn touch(&self, id: &ChunkId) -> bool {
        self.shared.lock().touch(id)
    }

    /// Takes a chunk that nobody has. Blocks while the queue is full.
    pub(crate) fn add(&self, class: &FrameClass, id: ChunkId, data: &[u8]) -> Result<Added, RepositoryError> {
        let shared = &self.shared;
        let mut state = shared.room_for(data.len())?;
        if state.touch(&id) {
            return Ok(Added::Known);
        }
        if data.len() >= OWN_FRAME && class.kind == FrameKind::Data {
            // Copied without the lock; the check is repeated after it.
            drop(state);
            let mut raw = Vec::with_capacity(data.len() + 8);
            raw.extend_from_slice(data);
            state = shared.lock();
            if state.touch(&id) {
                return Ok(Added::Known);
            }
            let number = state.frame_number();
            state.note_pending(id, Pending::closed(number, 0, len32(data.len()), 0));
            state.submit(number, class.clone(), raw, vec![(id, len32(data.len()))]);
            drop(state);
            shared.work.notify_one();
            return Ok(Added::New);
        }
        let submitted = state.add_small(class, id, data);
        drop(state);
        if submitted {
            shared.work.notify_one();
        }
        Ok(Added::New)
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<Found> {
        self.shared.lock().find(id)
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
        shared.work.notify_all();
        shared.wait(|state| state.jobs.first_key_value().is_none_or(|(number, _)| *number >= last_frame))?;
        shared.close_packs();
        let last_slot = shared.lock().next_slot;
        shared.wait(|state| state.unfinished.first_key_value().is_none_or(|(slot, _)| *slot >= last_slot))?;
        sync_dir(&shared.setup.dir)?;
        let mut state = shared.lock();
        state.generation += 1;
        Ok(state.packs.values().filter_map(|pack| pack.info()).map(|(info, _)| info).collect())
    }

    /// Takes finished packs that an earlier mount left.
    pub(crate) fn adopt(&self, packs: Vec<(AdoptedPack, crate::pack::Table)>) {
        let mut state = self.shared.lock();
        for (pack, table) in packs {
            let slot = state.next_slot;
            state.next_slot += 1;
            let touched = state.generation;
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

    /// All finished packs, oldest first, and the number of completed flushes.
    pub(crate) fn finished(&self) -> (Vec<Arc<Staged>>, u32) {
        let state = self.shared.lock();
        let packs = state.packs.values().filter(|pack| pack.info().is_some()).cloned().collect();
        (packs, state.generation)
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
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a packer thread panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `len` more bytes may be taken.
    fn room_for(&self, len: usize) -> Result<MutexGuard<'_, State>, RepositoryError> {
        let mut state = self.lock();
        loop {
            state.check()?;
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

impl State {
    /// Whether new work may come; a failure that is some time past is tried again.
    fn check(&mut self) -> Result<(), RepositoryError> {
        if let Some(fatal) = &self.fatal {
            return Err(fatal.clone());
        }
        if self.stop {
            return Err(RepositoryError::Stopped { reason: "the repository is being closed" });
        }
        match &self.error {
            Some((error, since)) if since.elapsed() < RETRY_AFTER => Err(error.clone()),
            Some(_) => {
                self.retry();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Queues what failed once more.
    fn retry(&mut self) {
        self.error = None;
        self.queue.extend(self.failed.drain(..));
        self.finish.extend(self.failed_finish.drain(..));
    }

    fn frame_number(&mut self) -> u64 {
        self.next_frame += 1;
        self.next_frame - 1
    }

    fn note_pending(&mut self, id: ChunkId, mut pending: Pending) {
        pending.touched = self.generation;
        self.pending.insert(id, pending);
    }

    fn touch(&mut self, id: &ChunkId) -> bool {
        if let Some(pending) = self.pending.get_mut(id) {
            pending.touched = self.generation;
            true
        } else if let Some(chunk) = self.staged.get_mut(id) {
            chunk.touched = self.generation;
            true
        } else {
            false
        }
    }

    fn find(&self, id: &ChunkId) -> Option<Found> {
        if let Some(pending) = self.pending.get(id) {
            let open = pending.class.as_ref().and_then(|class| self.open.get(class));
            if let Some(frame) = open.filter(|frame| frame.number == pending.frame) {
                let start = pending.offset as usize;
                return Some(Found::Pending(frame.raw[start..start + pending.len as usize].to_vec().into()));
            }
            let job = self.jobs.get(&pending.frame)?;
            return Bytes::slice_of(&job.raw, pending.offset, pending.len).map(Found::Pending);
        }
        let chunk = self.staged.get(id)?;
        Some(Found::Staged(self.packs.get(&chunk.slot)?.clone(), *chunk))
    }

    /// Puts a chunk into the open frame of its class. True if that gave the workers something to do.
    fn add_small(&mut self, class: &FrameClass, id: ChunkId, data: &[u8]) -> bool {
        let full = self.open.get(class).is_some_and(|frame| frame.raw.len() + data.len() > SHARED_FRAME);
        if full {
            self.close(class);
        }
        if !self.open.contains_key(class) {
            let frame = OpenFrame { number: self.frame_number(), raw: Vec::new(), members: Vec::new() };
            self.open.insert(class.clone(), frame);
        }
        let generation = self.generation;
        let frame = self.open.get_mut(class).expect("inserted above");
        let (offset, len) = (len32(frame.raw.len()), len32(data.len()));
        let pending = Pending { frame: frame.number, class: Some(class.clone()), offset, len, touched: generation };
        frame.raw.extend_from_slice(data);
        frame.members.push((id, len));
        self.pending.insert(id, pending);
        self.open_bytes += data.len();
        let crowded = self.open_bytes > OPEN_BYTES;
        if crowded {
            let largest = self.open.iter().max_by_key(|(_, frame)| frame.raw.len()).map(|(class, _)| class.clone());
            if let Some(class) = largest {
                self.close(&class);
            }
        }
        full || crowded
    }

    /// Sends an open frame to the workers.
    fn close(&mut self, class: &FrameClass) {
        let Some(OpenFrame { number, mut raw, members }) = self.open.remove(class) else { return };
        self.open_bytes -= raw.len();
        if class.kind == FrameKind::Metadata {
            crate::frame::put_directory(&mut raw, &members);
        }
        self.submit(number, class.clone(), raw, members);
    }

    fn submit(&mut self, number: u64, class: FrameClass, raw: Vec<u8>, members: Vec<Member>) {
        self.queued_bytes += raw.len();
        let job = Arc::new(Job { number, class, raw: Arc::new(raw), members });
        self.jobs.insert(number, job.clone());
        self.queue.push_back(job);
    }
}

impl Pending {
    fn closed(frame: u64, offset: u32, len: u32, touched: u32) -> Self {
        Self { frame, class: None, offset, len, touched }
    }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("chunks and frames are bounded")
}

/// Makes names in `dir` durable.
pub(crate) fn sync_dir(dir: &std::path::Path) -> Result<(), RepositoryError> {
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| RepositoryError::staging("sync", dir, e))
}
