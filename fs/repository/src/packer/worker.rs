//! The packer's threads: encoding frames and finishing packs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_api::{Hint, Seal};
use axiomfs_host::{ChainName, ChainRecord, Host};

use super::state::Finish;
use super::{Job, OpenPack, Shared, StagedChunk, State};
use crate::codec::pad;
use crate::error::RepositoryError;
use crate::frame::{FrameKind, FrameRecord};
use crate::limits;
use crate::pack::{Chain, FinishedPack, NewFrame, PackSeal, PackWriter};
use crate::staged::{Staged, StagedPack};
use crate::yielding::BEFORE_FRAME;

/// Encoding yields to whoever waits for an answer.
const NICENESS: i32 = 5;
/// How long one that only helps waits for a frame before it ends.
const EXTRA_IDLE: Duration = Duration::from_secs(1);
/// Shorter waits are no reason for more encoders.
const LEAST_WAIT: Duration = Duration::from_millis(20);

/// Encodes until the packer stops: there are as many of these as processors.
pub(super) fn encode_loop(shared: &Arc<Shared>) {
    be_nice();
    let clock = ThreadClock::open();
    while let Some(job) = shared.next(&shared.work, |state| state.queue.pop_front()) {
        encode_job(shared, &clock, &job);
    }
}

/// Helps while frames wait for something else than a processor, and ends when there are none or they do no more.
fn extra_loop(shared: &Arc<Shared>) {
    be_nice();
    let clock = ThreadClock::open();
    while let Some(job) = shared.next_extra() {
        if !encode_job(shared, &clock, &job) {
            break;
        }
    }
    shared.lock().extra -= 1;
}

/// Encodes one frame; whether its plugins waited for something else than a processor most of the time.
fn encode_job(shared: &Arc<Shared>, clock: &ThreadClock, job: &Arc<Job>) -> bool {
    // Not where writers wait for the queue: who reads then shares with them.
    if shared.lock().queued_bytes < shared.setup.queue_bytes / 2 {
        shared.setup.reads.give_way(BEFORE_FRAME);
    }
    let mut waited = false;
    // A plugin that panics must not leave everybody waiting for its frame.
    let result = catch_unwind(AssertUnwindSafe(|| encode(shared, clock, job, &mut waited)));
    let mut state = shared.lock();
    match result {
        Err(_) => state.fatal = Some(RepositoryError::Stopped { reason: "encoding a frame panicked" }),
        Ok(Ok((pack, record))) => {
            state.encoded(job, pack.slot, &record);
            shared.setup.counters.frame(record.raw, record.stored);
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "could not stage a frame");
            state.error = Some((error, Instant::now()));
            state.failed.push(job.clone());
        }
    }
    let more = waited && !state.stop && shared.may_add_extra(&mut state);
    drop(state);
    shared.progress.notify_all();
    if more {
        shared.start_extra();
    }
    waited
}

pub(super) fn finish_loop(shared: &Shared) {
    be_nice();
    loop {
        let pack = match shared.next(&shared.to_finish, State::next_finish) {
            Some(Finish::All(pack)) => pack,
            Some(Finish::SyncEarly(pack)) => {
                // The same thread finishes it: of two fsyncs of one file at once only one would be told of a failure.
                if let Err(error) = pack.writer.sync_early() {
                    tracing::error!(%error, "could not make a part of a pack durable");
                    shared.lock().fatal = Some(error);
                    shared.progress.notify_all();
                }
                continue;
            }
            None => return,
        };
        let finished = pack.writer.finish();
        // A failed fsync leaves it open what is on the disk, so there is no second try after it.
        let synced = finished.as_ref().map_or(Ok(()), |_| pack.writer.sync());
        let mut state = shared.lock();
        match (finished, synced) {
            (Ok(finished), Ok(())) => state.finished(&pack.staged, finished),
            (Ok(_), Err(error)) => {
                tracing::error!(%error, "could not make a staged pack durable");
                state.fatal = Some(error);
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not finish a staged pack");
                state.error = Some((error, Instant::now()));
                state.failed_finish.push(pack);
            }
        }
        drop(state);
        shared.progress.notify_all();
    }
}

/// Tells time that a thread slept from time that it ran or stood in line for a processor.
struct ThreadClock(Option<File>);

impl ThreadClock {
    /// For the calling thread. Where the kernel doesn't tell, nothing ever waits.
    fn open() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// Time for which the thread has run or was ready to.
    fn ready(&self) -> Option<Duration> {
        let mut text = [0; 96];
        let len = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        let mut numbers = std::str::from_utf8(&text[..len]).ok()?.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<u64>().ok();
        Some(Duration::from_nanos(next()?.saturating_add(next()?)))
    }

    /// Whether it slept for most of `took`, which began when [`ready`](Self::ready) was `before`.
    fn waited(&self, before: Option<Duration>, took: Duration) -> bool {
        if took < LEAST_WAIT {
            return false;
        }
        let (Some(before), Some(now)) = (before, self.ready()) else { return false };
        let slept = took.saturating_sub(now.saturating_sub(before));
        slept >= LEAST_WAIT && slept > took / 2
    }
}

fn be_nice() {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "could not lower a thread's priority");
    }
}

/// Transforms, pads, seals and writes one frame.
fn encode(
    shared: &Shared,
    clock: &ThreadClock,
    job: &Job,
    waited: &mut bool,
) -> Result<(Arc<Staged>, FrameRecord), RepositoryError> {
    let setup = &shared.setup;
    let (begun, ready) = (Instant::now(), clock.ready());
    let frame = encode_frame(&setup.host, setup.seal.as_ref(), &job.class.route, job.class.kind, &job.raw);
    *waited = clock.waited(ready, begun.elapsed());
    let frame = frame?;
    if frame.is_compressed {
        setup.labels.add(job.label, frame.lengths.raw, frame.lengths.encoded, begun.elapsed());
    }
    let pack = shared.acquire(job.class.kind, frame.padded.len() + axiomfs_api::TAG_LEN)?;
    let written = pack.writer.write(&frame.chain, frame.lengths, frame.padded, job.members.clone());
    if let Ok(record) = &written {
        pack.staged.add(*record, &frame.chain);
        if pack.writer.is_sync_due() {
            shared.lock().sync_early.push_back(pack.clone());
            shared.to_finish.notify_one();
        }
    }
    shared.release(&pack);
    Ok((pack.staged.clone(), written?))
}

/// A frame that went through its chain and is padded, but not sealed.
pub(crate) struct EncodedFrame {
    pub(crate) chain: Chain,
    pub(crate) lengths: NewFrame,
    pub(crate) padded: Vec<u8>,
    /// Whether its chain compresses.
    pub(crate) is_compressed: bool,
}

/// Runs `raw` through the transforms of a chain. What the chain says of a seal does not count here: a frame is sealed unless its
/// files are in an exempted directory, which was decided when they were read.
pub(crate) fn encode_frame(
    host: &Host,
    seal: &dyn Seal,
    route: &ChainName,
    kind: FrameKind,
    raw: &[u8],
) -> Result<EncodedFrame, RepositoryError> {
    let named = |e| RepositoryError::host(format_args!("chain {route}"), e);
    let hint = match kind {
        FrameKind::Data | FrameKind::Clear => Hint::Data,
        FrameKind::Metadata => Hint::Metadata,
    };
    let chain = host.chain(route).map_err(named)?;
    let encoded = chain.encode(hint, raw).map_err(named)?;
    let bounds =
        [("Frame", raw.len(), limits::FRAME_RAW), ("Encoded frame", encoded.bytes.len(), limits::FRAME_ENCODED)];
    for (what, len, limit) in bounds {
        if len > limit {
            return Err(RepositoryError::TooLarge { what, len: len as u64, limit: limit as u64 });
        }
    }
    let lengths =
        NewFrame { applied: encoded.applied, encoded: super::len32(encoded.bytes.len()), raw: super::len32(raw.len()) };
    let mut padded = encoded.bytes;
    if kind.is_sealed() {
        padded.reserve_exact(crate::codec::padme(padded.len()) - padded.len() + axiomfs_api::TAG_LEN);
        pad(&mut padded);
    }
    let is_compressed = chain.provides("compression");
    let chain = match (kind.is_sealed(), chain.seal_id()) {
        (true, Some(_)) | (false, None) => Chain::new(chain.descriptor_bytes()),
        (sealed, _) => {
            let mut record = ChainRecord::parse(chain.descriptor_bytes()).map_err(named)?;
            record.seal = sealed.then(|| (seal.descriptor().id.to_owned(), seal.descriptor().writes));
            Chain::new(&record.encode())
        }
    };
    Ok(EncodedFrame { chain, lengths, padded, is_compressed })
}

impl Shared {
    /// The next piece of work; `None` when the packer stops.
    fn next<T>(&self, waiting: &Condvar, take: impl Fn(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(work) = take(&mut state) {
                return Some(work);
            }
            state = waiting.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next frame for one that only helps.
    fn next_extra(&self) -> Option<Arc<Job>> {
        let (mut state, end) = (self.lock(), Instant::now() + EXTRA_IDLE);
        loop {
            if state.stop {
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            let left = end.checked_duration_since(Instant::now())?;
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether one more may encode: frames are waiting, and the host allows more in flight than there are encoders. Counts it.
    fn may_add_extra(&self, state: &mut State) -> bool {
        let limit = self.setup.host.limits().max_in_flight;
        let more = !state.queue.is_empty() && self.encoders + state.extra < limit;
        state.extra += usize::from(more);
        more
    }

    fn start_extra(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("encode-extra".to_owned()).spawn(move || extra_loop(&shared));
        match started {
            Ok(thread) => {
                let mut extras = self.extras.lock().unwrap_or_else(PoisonError::into_inner);
                extras.retain(|thread| !thread.is_finished());
                extras.push(thread);
            }
            Err(error) => {
                tracing::debug!(%error, "could not start one more encoder");
                self.lock().extra -= 1;
            }
        }
    }

    /// The pack for a frame of `stored` bytes; give it back with [`release`](Self::release).
    fn acquire(&self, kind: FrameKind, stored: usize) -> Result<Arc<OpenPack>, RepositoryError> {
        let setup = &self.setup;
        let mut current = self.current[place(kind)].lock().unwrap_or_else(PoisonError::into_inner);
        // One whose key is not the current one takes no more, either: a rotation counts from the next frame on.
        let epoch = setup.keyring.current_epoch().number;
        let ended = |pack: &mut Arc<OpenPack>| {
            pack.writer.seal.epoch != epoch || pack.writer.is_full_for(stored, setup.pack_bytes)
        };
        if let Some(ended) = current.take_if(ended) {
            self.release(&ended);
        }
        let pack = match &*current {
            Some(pack) => pack.clone(),
            None => {
                let seal = PackSeal::fresh(&setup.keyring, setup.seal.as_ref(), kind)?;
                let writer = Arc::new(PackWriter::create(&setup.dir, Arc::new(seal))?);
                let mut state = self.lock();
                let staged = Arc::new(Staged::open(state.next_slot, writer.clone()));
                state.next_slot += 1;
                state.unfinished.insert(staged.slot, staged.clone());
                state.packs.insert(staged.slot, staged.clone());
                drop(state);
                current.insert(Arc::new(OpenPack { staged, writer, users: AtomicUsize::new(1) })).clone()
            }
        };
        pack.users.fetch_add(1, Ordering::Relaxed);
        Ok(pack)
    }

    fn release(&self, pack: &Arc<OpenPack>) {
        // The last user sees all that the others wrote.
        if pack.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.lock().finish.push_back(pack.clone());
            self.to_finish.notify_one();
        }
    }

    /// Lets no more frames into the current packs.
    pub(super) fn close_packs(&self) {
        for current in &self.current {
            let pack = current.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(pack) = pack {
                self.release(&pack);
            }
        }
    }
}

impl State {
    fn encoded(&mut self, job: &Job, slot: u32, record: &FrameRecord) {
        let mut offset = 0;
        for (id, len) in &job.members {
            let touched = self.pending.remove(id).map_or(self.generation, |pending| pending.touched);
            let chunk = StagedChunk { slot, frame: record.number, offset, len: *len, touched };
            self.staged.insert(*id, chunk);
            offset += len;
        }
        if record.encoded < record.raw {
            self.flat.remove(&job.class);
        } else {
            self.flat.insert(job.class.clone());
        }
        self.jobs.remove(&job.number);
        self.queued_bytes -= job.raw.len();
    }

    fn finished(&mut self, staged: &Arc<Staged>, pack: FinishedPack) {
        let info = StagedPack { id: pack.id, kind: staged.seal.kind, len: pack.len, path: pack.path };
        staged.finished(info);
        self.unfinished.remove(&staged.slot);
    }
}

fn place(kind: FrameKind) -> usize {
    match kind {
        FrameKind::Data => 0,
        FrameKind::Metadata => 1,
        FrameKind::Clear => 2,
    }
}
