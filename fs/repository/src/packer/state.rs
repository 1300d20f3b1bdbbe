//! What the packer's lock guards.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Found, FrameClass, OpenPack, len32};
use crate::bytes::Bytes;
use crate::error::RepositoryError;
use crate::frame::{FrameKind, Member};
use crate::ids::ChunkId;
use crate::labels::Label;
use crate::pack::PackSeal;
use crate::staged::Staged;

/// Most bytes in frames that are still open, over all classes.
const OPEN_BYTES: usize = 4 << 20;
/// How long a failure keeps answering for new chunks before the work is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct State {
    pub(super) open: HashMap<FrameClass, OpenFrame>,
    pub(super) open_bytes: usize,
    /// Classes whose last frame did not shrink; since the last flush.
    pub(super) flat: HashSet<FrameClass>,
    pub(super) next_frame: u64,
    /// Frames that are open, queued, being encoded or failed, by number.
    pub(super) jobs: BTreeMap<u64, Arc<Job>>,
    pub(super) queue: VecDeque<Arc<Job>>,
    pub(super) failed: Vec<Arc<Job>>,
    /// Raw bytes in `jobs`.
    pub(super) queued_bytes: usize,
    pub(super) finish: VecDeque<Arc<OpenPack>>,
    pub(super) failed_finish: Vec<Arc<OpenPack>>,
    /// Packs of which much was written since the disk was last told to.
    pub(super) sync_early: VecDeque<Arc<OpenPack>>,
    /// Slots of packs that are not finished.
    pub(super) unfinished: BTreeMap<u32, Arc<Staged>>,
    pub(super) pending: HashMap<ChunkId, Pending>,
    pub(super) staged: HashMap<ChunkId, StagedChunk>,
    pub(super) packs: BTreeMap<u32, Arc<Staged>>,
    pub(super) next_slot: u32,
    /// Completed flushes.
    pub(super) generation: u32,
    pub(super) error: Option<(RepositoryError, Instant)>,
    /// A failed fsync is never retried into success.
    pub(super) fatal: Option<RepositoryError>,
    pub(super) stop: bool,
    /// Encoders that only help.
    pub(super) extra: usize,
}

pub(super) struct OpenFrame {
    pub(super) number: u64,
    /// Of all its chunks, if they have the same.
    pub(super) label: Label,
    pub(super) raw: Vec<u8>,
    pub(super) members: Vec<Member>,
}

/// A frame to encode.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) class: FrameClass,
    /// Of all its chunks, if they have the same.
    pub(super) label: Label,
    pub(super) raw: Arc<Vec<u8>>,
    pub(super) members: Vec<Member>,
}

#[derive(Clone)]
pub(super) struct Pending {
    pub(super) frame: u64,
    pub(super) class: FrameClass,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) touched: u32,
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

/// What the finisher has to do with a pack.
pub(super) enum Finish {
    All(Arc<OpenPack>),
    SyncEarly(Arc<OpenPack>),
}

impl State {
    /// The next work of the finisher: what somebody may wait for first.
    pub(super) fn next_finish(&mut self) -> Option<Finish> {
        let all = self.finish.pop_front().map(Finish::All);
        all.or_else(|| self.sync_early.pop_front().map(Finish::SyncEarly))
    }

    /// Fails if no new work may come. A failure that is some time past is tried again; true says that there is work for it.
    pub(super) fn check(&mut self) -> Result<bool, RepositoryError> {
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
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Queues what failed once more.
    pub(super) fn retry(&mut self) {
        self.error = None;
        self.queue.extend(self.failed.drain(..));
        self.finish.extend(self.failed_finish.drain(..));
    }

    pub(super) fn frame_number(&mut self) -> u64 {
        self.next_frame += 1;
        self.next_frame - 1
    }

    pub(super) fn touch(&mut self, id: &ChunkId, bad: &impl Fn(&PackSeal, u32) -> bool) -> bool {
        if let Some(pending) = self.pending.get_mut(id) {
            pending.touched = self.generation;
            return true;
        }
        let Some(chunk) = self.staged.get_mut(id) else { return false };
        chunk.touched = self.generation;
        self.packs.get(&chunk.slot).is_some_and(|pack| !bad(&pack.seal, chunk.frame))
    }

    pub(super) fn find(&self, id: &ChunkId) -> Option<Found> {
        if let Some(pending) = self.pending.get(id) {
            if let Some(frame) = self.open.get(&pending.class).filter(|frame| frame.number == pending.frame) {
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
    pub(super) fn put(&mut self, class: &FrameClass, label: Label, id: ChunkId, data: &[u8]) -> bool {
        let most = class.frame_bytes(self.flat.contains(class));
        let full = self.open.get(class).is_some_and(|frame| frame.raw.len() + data.len() > most);
        if full {
            self.close(class);
        }
        if !self.open.contains_key(class) {
            let frame = OpenFrame { number: self.frame_number(), label, raw: Vec::new(), members: Vec::new() };
            self.open.insert(class.clone(), frame);
        }
        let generation = self.generation;
        let frame = self.open.get_mut(class).expect("inserted above");
        let (offset, len) = (len32(frame.raw.len()), len32(data.len()));
        let pending = Pending { frame: frame.number, class: class.clone(), offset, len, touched: generation };
        if frame.label != label {
            frame.label = Label::NONE;
        }
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
    pub(super) fn close(&mut self, class: &FrameClass) {
        let Some(OpenFrame { number, label, mut raw, members }) = self.open.remove(class) else { return };
        self.open_bytes -= raw.len();
        if class.kind == FrameKind::Metadata {
            crate::frame::put_directory(&mut raw, &members);
        }
        self.submit(number, class.clone(), label, raw, members);
    }

    pub(super) fn submit(&mut self, number: u64, class: FrameClass, label: Label, raw: Vec<u8>, members: Vec<Member>) {
        self.queued_bytes += raw.len();
        let job = Arc::new(Job { number, class, label, raw: Arc::new(raw), members });
        self.jobs.insert(number, job.clone());
        self.queue.push_back(job);
    }
}
