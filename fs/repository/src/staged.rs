//! Packs in the staging directory: open, finished, or on their way into the store.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_api::Store;

use crate::error::RepositoryError;
use crate::frame::{FrameKind, FrameRecord};
use crate::ids::PackId;
use crate::names;
use crate::pack::{Chain, PackFile, PackSeal, PackSource, PackWriter, Table};
use crate::spans::Whole;

/// A pack that is complete, fsynced and named in no head yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedPack {
    /// Its id, under which the manifest names it.
    pub id: PackId,
    /// What it holds.
    pub kind: FrameKind,
    /// Its length in bytes.
    pub len: u64,
    /// Its file; it may have been moved into the store already.
    pub path: PathBuf,
}

/// A staged pack as the repository knows it.
pub(crate) struct Staged {
    /// Counts up while the repository is open.
    pub(crate) slot: u32,
    pub(crate) seal: Arc<PackSeal>,
    /// Since when it is here; `None` for what an earlier mount left.
    since: Option<Instant>,
    state: Mutex<State>,
}

struct State {
    place: Place,
    /// By frame number; a number whose frame failed has none.
    frames: Vec<Option<FrameRecord>>,
    chains: Vec<Chain>,
}

#[derive(Clone)]
enum Place {
    Open(Arc<PackWriter>),
    Finished { info: StagedPack, uploaded: bool },
}

impl Staged {
    /// A pack that is being written.
    pub(crate) fn open(slot: u32, writer: Arc<PackWriter>) -> Self {
        let seal = writer.seal.clone();
        let state = State { place: Place::Open(writer), frames: Vec::new(), chains: Vec::new() };
        Self { slot, seal, since: Some(Instant::now()), state: Mutex::new(state) }
    }

    /// A finished pack that was found again.
    pub(crate) fn adopted(slot: u32, seal: Arc<PackSeal>, info: StagedPack, uploaded: bool, table: &Table) -> Self {
        let mut state =
            State { place: Place::Finished { info, uploaded }, frames: Vec::new(), chains: table.chains.clone() };
        for (record, _) in &table.frames {
            state.put(*record);
        }
        Self { slot, seal, since: None, state: Mutex::new(state) }
    }

    /// Whether it is from an earlier mount, or as old as this.
    pub(crate) fn has_lain_for(&self, time: Duration) -> bool {
        self.since.is_none_or(|since| since.elapsed() >= time)
    }

    /// Notes a written frame.
    pub(crate) fn add(&self, record: FrameRecord, chain: &Chain) {
        let mut state = self.lock();
        let place = usize::from(record.chain);
        if place >= state.chains.len() {
            // Frames may be noted in another order than their chains were numbered; gaps are filled by their owners.
            state.chains.resize(place + 1, chain.clone());
        }
        state.chains[place] = chain.clone();
        state.put(record);
    }

    pub(crate) fn frame(&self, number: u32) -> Option<(FrameRecord, Chain)> {
        let state = self.lock();
        let record = (*state.frames.get(number as usize)?)?;
        Some((record, state.chains.get(usize::from(record.chain))?.clone()))
    }

    /// Its frames, in their order.
    pub(crate) fn frames(&self) -> Vec<FrameRecord> {
        self.lock().frames.iter().flatten().copied().collect()
    }

    /// How many frames it has.
    pub(crate) fn frame_count(&self) -> usize {
        self.lock().frames.iter().flatten().count()
    }

    /// The chains that its frames went through.
    pub(crate) fn chains(&self) -> Vec<Chain> {
        self.lock().chains.clone()
    }

    pub(crate) fn finished(&self, info: StagedPack) {
        self.lock().place = Place::Finished { info, uploaded: false };
    }

    pub(crate) fn uploaded(&self) {
        if let Place::Finished { uploaded, .. } = &mut self.lock().place {
            *uploaded = true;
        }
    }

    /// If the pack is finished: what it is, and whether the store has it.
    pub(crate) fn info(&self) -> Option<(StagedPack, bool)> {
        match &self.lock().place {
            Place::Open(_) => None,
            Place::Finished { info, uploaded } => Some((info.clone(), *uploaded)),
        }
    }

    /// Whether its file is on this machine.
    pub(crate) fn is_here(&self) -> bool {
        !matches!(self.lock().place, Place::Finished { uploaded: true, .. })
    }

    /// Bytes it takes in the staging directory; 0 once the store has it.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.lock();
        match &state.place {
            Place::Open(_) => {
                state.frames.iter().flatten().map(|f| u64::from(f.offset) + u64::from(f.stored)).max().unwrap_or(0)
            }
            Place::Finished { uploaded: true, .. } => 0,
            Place::Finished { info, .. } => info.len,
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self.info() {
            Some((info, true)) => names::pack(&info.id),
            Some((info, false)) => info.path.display().to_string(),
            None => "The pack being written".to_owned(),
        }
    }

    /// The sealed bytes of a frame, if the pack is on this machine; else the object in the store.
    pub(crate) fn read(&self, record: &FrameRecord) -> Result<Found, RepositoryError> {
        let (offset, len) = (u64::from(record.offset), u64::from(record.stored));
        let stored = |info: StagedPack| Found::Stored(Whole { id: info.id, len: info.len, kind: self.seal.kind });
        let place = self.lock().place.clone();
        match place {
            Place::Open(writer) => writer.read(offset, len).map(Found::Here),
            Place::Finished { info, uploaded: true } => Ok(stored(info)),
            Place::Finished { info, uploaded: false } => match PackFile::open(&info.path) {
                Ok(file) => file.read(offset, len).map(Found::Here),
                // A store may have moved the file into place just now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(stored(info)),
                Err(e) => Err(RepositoryError::staging("open", &info.path, e)),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, record: FrameRecord) {
        let place = record.number as usize;
        if place >= self.frames.len() {
            self.frames.resize(place + 1, None);
        }
        self.frames[place] = Some(record);
    }
}

/// Where a frame of a staged pack was found.
pub(crate) enum Found {
    /// Its sealed bytes.
    Here(Vec<u8>),
    /// The store has the pack.
    Stored(Whole),
}

/// A pack in the store.
pub(crate) struct StoredPack<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) id: PackId,
    pub(crate) len: u64,
}

impl PackSource for StoredPack<'_> {
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, RepositoryError> {
        Ok(self.store.get_range(&names::key(&names::pack(&self.id))?, offset, len)?)
    }

    fn len(&self) -> u64 {
        self.len
    }
}
