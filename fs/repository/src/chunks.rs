//! Reading and adding chunks and nodes: pending, in memory, staged or in the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::error::RepositoryError;
use crate::frame::FrameKind;
use crate::ids::ChunkId;
use crate::index::{Io, Located};
use crate::labels::{Label, LabelCount};
use crate::limits;
use crate::pack::PackSeal;
use crate::packer::{Added, Found, FrameClass};
use crate::place::ChunkPlace;
use crate::repository::Repository;
use crate::seen::Reread;
use crate::stats::count;
use crate::tree::{Node, NodeSink, NodeSource};

/// After the store failed a dedup look-up, how long look-ups do without it at least: an unreachable store must not stall writers. Tests make
/// a store that is slower than that.
const DEDUP_PAUSE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };
/// They do without it so many times as long as the look-up took to fail: a store may be given up only after half a minute, and writers
/// wait for one look-up in each pause.
const DEDUP_PAUSE_RATIO: u32 = 5;

impl Repository {
    /// A chunk, wherever it is: pending, decoded in memory, staged or in the store. Its id is checked.
    ///
    /// # Errors
    /// [`RepositoryError::Missing`], [`RepositoryError::Corrupt`] and [`RepositoryError::MissingObject`] name what is wrong with what was
    /// stored; others say why it could not be reached.
    pub fn read_chunk(&self, id: &ChunkId) -> Result<Bytes, RepositoryError> {
        self.read_by(id, |place| self.reader.chunk(id, place))
    }

    fn read_by(
        &self,
        id: &ChunkId,
        read: impl Fn(&ChunkPlace) -> Result<Bytes, RepositoryError>,
    ) -> Result<Bytes, RepositoryError> {
        let mut pending = None;
        let found = self.try_places(id, &mut pending, &read).or_else(|error| pending.take().ok_or(error));
        match found {
            // It was borrowed before a crash, and after that the other volume could not be asked; or that has it whole.
            Err(error) if error.is_damage() => {
                let elsewhere = self.borrow_to_read(id).ok().flatten();
                elsewhere.and_then(|place| read(&ChunkPlace::stored(place)).ok()).ok_or(error)
            }
            found => found,
        }
    }

    /// A chunk, if that takes no I/O and no decoding.
    pub fn chunk_cached(&self, id: &ChunkId) -> Option<Bytes> {
        match self.packer.as_ref().and_then(|packer| packer.find(id)) {
            Some(Found::Pending(bytes)) => return Some(bytes),
            Some(Found::Staged(pack, chunk)) => {
                let place = ChunkPlace::staged(pack, &chunk)?;
                return self.reader.chunk_cached(id, &place);
            }
            None => {}
        }
        let located = self.index.locate(id, Io::Never).ok()?.unwrap_or_default();
        let borrowed = if located.is_empty() { self.others.borrowed(id) } else { None };
        located.into_iter().chain(borrowed).find_map(|l| self.reader.chunk_cached(id, &ChunkPlace::stored(l)))
    }

    /// Decodes the chunk's frame into memory, so that [`chunk_cached`](Self::chunk_cached) finds it. Blocks meanwhile.
    ///
    /// # Errors
    /// As [`read_chunk`](Self::read_chunk).
    pub fn prefetch_chunk(&self, id: &ChunkId) -> Result<(), RepositoryError> {
        self.read_by(id, |place| self.reader.chunk_and_neighbours(id, place)).map(drop)
    }

    /// Whether [`announce`](Self::announce) does anything.
    pub fn reads_ahead(&self) -> bool {
        self.reader.reads_ahead()
    }

    /// Says which chunks will be read soon: where each request to the store costs a round trip, those whose place is known are
    /// asked for at once. Doesn't wait.
    pub fn announce<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) {
        if self.reader.reads_ahead() {
            let places = ids.filter_map(|id| self.index.locate(id, Io::Never).ok()??.into_iter().next());
            self.reader.announce(places);
        }
    }

    /// A tree node, parsed.
    ///
    /// # Errors
    /// As [`read_chunk`](Self::read_chunk), or damage in the node itself.
    pub fn node(&self, id: &ChunkId) -> Result<Arc<Node>, RepositoryError> {
        if let Some(node) = self.reader.node_cached(id) {
            return Ok(node);
        }
        let mut pending = None;
        match self.try_places(id, &mut pending, |place| self.reader.node(id, place)) {
            Ok(node) => Ok(node),
            Err(error) => self.parse_pending(id, &pending.ok_or(error)?),
        }
    }

    /// A tree node, if it is in memory.
    pub fn node_cached(&self, id: &ChunkId) -> Option<Arc<Node>> {
        if let Some(node) = self.reader.node_cached(id) {
            return Some(node);
        }
        match self.packer.as_ref()?.find(id)? {
            Found::Pending(bytes) => self.parse_pending(id, &bytes).ok(),
            Found::Staged(..) => None,
        }
    }

    /// A chunk, if it is on this machine: pending, in memory or in a pack that is staged.
    ///
    /// # Errors
    /// What reading the pack met.
    pub fn read_chunk_here(&self, id: &ChunkId) -> Result<Option<Bytes>, RepositoryError> {
        match self.staged_here(id) {
            Some(place) => self.reader.chunk(id, &place).map(Some),
            None => Ok(self.chunk_cached(id)),
        }
    }

    /// The same of a tree node.
    ///
    /// # Errors
    /// As for that.
    pub fn node_here(&self, id: &ChunkId) -> Result<Option<Arc<Node>>, RepositoryError> {
        match (self.node_cached(id), self.staged_here(id)) {
            (Some(node), _) => Ok(Some(node)),
            (None, Some(place)) => self.reader.node(id, &place).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn staged_here(&self, id: &ChunkId) -> Option<ChunkPlace> {
        match self.packer.as_ref()?.find(id)? {
            Found::Staged(pack, chunk) if pack.is_here() => ChunkPlace::staged(pack, &chunk),
            _ => None,
        }
    }

    fn parse_pending(&self, id: &ChunkId, bytes: &Bytes) -> Result<Arc<Node>, RepositoryError> {
        let node = Arc::new(Node::parse(Arc::from(&**bytes))?);
        self.reader.put_node(*id, node.clone());
        Ok(node)
    }

    /// Stages a chunk unless it is known. Blocks while the encoders' queue is full.
    ///
    /// # Errors
    /// [`RepositoryError::ReadOnly`], or why staging does not work at present.
    pub fn add_chunk(&self, class: FrameClass, id: ChunkId, data: &[u8]) -> Result<Added, RepositoryError> {
        self.add(&class, Label::NONE, id, data)
    }

    /// The same, and counts what becomes of the chunk under `label`.
    ///
    /// # Errors
    /// As [`add_chunk`](Self::add_chunk).
    pub fn add_labelled(
        &self,
        class: &FrameClass,
        label: Label,
        id: ChunkId,
        data: &[u8],
    ) -> Result<Added, RepositoryError> {
        self.add(class, label, id, data)
    }

    /// The label of that name; none if it is empty, too long, or there are too many.
    pub fn label(&self, name: &str) -> Label {
        self.labels.of(name)
    }

    /// What became of the chunks of each label since the repository was opened, the most bytes first.
    pub fn label_counts(&self) -> Vec<LabelCount> {
        self.labels.counts()
    }

    /// What was read more than once since the repository was opened.
    pub fn reread(&self) -> Reread {
        self.reader.reread()
    }

    /// Stages a tree node unless it is known, and keeps it in memory.
    ///
    /// # Errors
    /// As [`add_chunk`](Self::add_chunk), or that the bytes are no node.
    pub fn add_node(&self, bytes: Vec<u8>) -> Result<ChunkId, RepositoryError> {
        let id = self.keyring.node_id(&bytes);
        let class =
            FrameClass { owner: 0, route: self.metadata_chain.clone(), kind: FrameKind::Metadata, sort: Label::NONE };
        self.add(&class, Label::NONE, id, &bytes)?;
        if !self.reader.has_node(&id) {
            self.reader.put_node(id, Arc::new(Node::parse(bytes.into())?));
        }
        Ok(id)
    }

    fn add(&self, class: &FrameClass, label: Label, id: ChunkId, data: &[u8]) -> Result<Added, RepositoryError> {
        let packer = self.packer()?;
        if data.is_empty() || data.len() > limits::CHUNK {
            return Err(RepositoryError::TooLarge {
                what: "Chunk",
                len: data.len() as u64,
                limit: limits::CHUNK as u64,
            });
        }
        // What is staged under a key that others may know counts as absent, too.
        let bad = |seal: &PackSeal, frame| {
            self.reader.is_quarantined(&(seal.salt, frame)) || self.keyring.is_compromised(seal.epoch)
        };
        let added = if packer.touch(&id, bad) || self.is_indexed(&id, class.kind) {
            Added::Known
        } else {
            packer.add(class, label, id, data, bad)?
        };
        let (chunks, bytes) = match added {
            Added::Known => (&self.counters.chunks_known, &self.counters.bytes_known),
            Added::New => (&self.counters.chunks_new, &self.counters.bytes_new),
        };
        count(chunks, 1);
        count(bytes, data.len() as u64);
        Ok(added)
    }

    /// Whether the plugins are here that the frame went through.
    pub(crate) fn can_decode(&self, place: &Located) -> bool {
        self.host.decoder_for(&place.chain.descriptor, place.frame.applied).is_ok()
    }

    /// Whether the index locates the chunk in a frame that can be decoded, is not known to be bad, nor sealed with a key that others may know. If that can't be told it counts as absent:
    /// storing a chunk twice is harmless.
    fn is_indexed(&self, id: &ChunkId, kind: FrameKind) -> bool {
        let begun = self.opened.elapsed();
        let paused = millis(begun) < self.dedup_pause_until.load(Ordering::Relaxed);
        let io = if paused { Io::Never } else { Io::Allowed };
        let own = self.index.locate(id, io).map(|places| {
            let mut places = places.into_iter().flatten();
            places.any(|place| {
                !self.keyring.is_compromised(place.pack.epoch)
                    && self.can_decode(&place)
                    && !self.reader.is_quarantined(&ChunkPlace::stored(place).key())
            })
        });
        let found = match own {
            // Trees of other volumes have little in common with this one's.
            Ok(false) if kind == FrameKind::Data => self.borrow_chunk(id, io).map(|found| {
                let sealed = self.others.borrowed(id).map(|place| place.pack.epoch);
                found && !sealed.is_some_and(|epoch| self.keyring.is_compromised(epoch))
            }),
            own => own,
        };
        match found {
            Ok(found) => found,
            Err(error) => {
                if error.is_damage() {
                    // Told where it was found; this is for each chunk.
                    tracing::debug!(%error, "could not look a chunk up, so it is stored again");
                } else {
                    tracing::warn!(%error, "could not look a chunk up, so it is stored again");
                    // From now on, not from when it began.
                    let failed = self.opened.elapsed();
                    let pause = DEDUP_PAUSE.max(failed.saturating_sub(begun).saturating_mul(DEDUP_PAUSE_RATIO));
                    self.dedup_pause_until.fetch_max(millis(failed.saturating_add(pause)), Ordering::Relaxed);
                }
                false
            }
        }
    }

    /// Takes the index of the latest head; whether that is another.
    fn reload_index(&self) -> bool {
        let Ok(Some(head)) = self.latest_head(self.index.volume()) else { return false };
        head.segments != self.index.refs() && self.index.set_segments(&head.segments).is_ok()
    }

    /// Tries the places of a chunk, those known to be bad last. A pending chunk is put into `pending` and answered by an error.
    pub(crate) fn try_places<T>(
        &self,
        id: &ChunkId,
        pending: &mut Option<Bytes>,
        read: impl Fn(&ChunkPlace) -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        let mut failed = RepositoryError::Missing { chunk: *id };
        // A commit may take a staged pack away between look-up and read: then a second look finds the chunk in the index.
        for _ in 0..2 {
            let mut places = Vec::new();
            match self.packer.as_ref().and_then(|packer| packer.find(id)) {
                Some(Found::Pending(bytes)) => {
                    *pending = Some(bytes);
                    return Err(failed);
                }
                Some(Found::Staged(pack, chunk)) => places.extend(ChunkPlace::staged(pack, &chunk)),
                None => {}
            }
            if places.is_empty() || self.reader.is_quarantined(&places[0].key()) {
                let located = match self.index.locate(id, Io::Allowed) {
                    // What is damaged there may be in another segment, or borrowed.
                    Err(error) if error.is_damage() => {
                        failed = error;
                        None
                    }
                    located => located?,
                };
                let located = located.into_iter().flatten().chain(self.others.borrowed(id));
                places.extend(located.map(ChunkPlace::stored));
            }
            places.sort_by_key(|place| self.reader.is_quarantined(&place.key()));
            for place in &places {
                match read(place) {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = error,
                }
            }
            // A reader's index may be older than what has become of the packs since.
            let stale = matches!(failed, RepositoryError::MissingObject { .. }) && self.packer.is_none();
            if !failed.is_damage() || (stale && !self.reload_index()) {
                break;
            }
        }
        Err(failed)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl NodeSource for Repository {
    type Error = RepositoryError;

    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, RepositoryError> {
        Repository::node(self, id)
    }
}

impl NodeSink for &Repository {
    type Error = RepositoryError;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, RepositoryError> {
        self.add_node(bytes)
    }
}
