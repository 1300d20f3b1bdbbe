//! The read path: frames fetched once, opened, decoded, and kept; chunk ids checked before a byte is given out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axiomfs_api::{PluginError, Seal, Store};
use axiomfs_host::{Decoder, Host, HostError};

use crate::bytes::Bytes;
use crate::decoded::{DataFrame, Decoded, Flight};
use crate::error::{InObject, RepositoryError, again_if_damaged};
use crate::frame::{FrameKind, FrameRecord, directory};
use crate::ids::{ChunkId, PackId};
use crate::index::Located;
use crate::keyring::Keyring;
use crate::lru_bytes::ByteLru;
use crate::names;
use crate::near::Source;
use crate::pack::PackSeal;
use crate::place::{ChunkPlace, FrameKey, FramePlace, PackPlace};
use crate::seen::{Reread, Seen};
use crate::spans::{Spans, Whole};
use crate::staged::Found;
use crate::stats::{Counters, count};
use crate::tree::Node;

/// Ranges asked of the store begin and end at multiples of this, so that they don't tell where frames begin.
const ALIGN: u64 = 64 << 10;
/// Quarantined frames remembered; beyond that the store is broken as a whole.
const MOST_QUARANTINED: usize = 100_000;
/// Where not all of a frame is needed, a multiple of this is decoded: as much as zstd has in a block.
const START: u32 = 128 << 10;
/// Missing packs remembered.
const MOST_MISSING: usize = 1000;

/// Bytes that decoded frames and nodes have for themselves; what one kind leaves free the other may use.
#[derive(Clone, Copy)]
struct Shares {
    frames: usize,
    nodes: usize,
}

/// Fetches, decodes and caches.
pub(crate) struct Reader {
    store: Arc<dyn Store>,
    /// For stores where requests are dear.
    spans: Option<Arc<Spans>>,
    host: Arc<Host>,
    seal: Arc<dyn Seal>,
    keyring: Arc<Keyring>,
    counters: Arc<Counters>,
    frames: ByteLru<FrameKey, Arc<DataFrame>>,
    nodes: ByteLru<ChunkId, Arc<Node>>,
    shares: Shares,
    flights: Mutex<HashMap<FrameKey, Arc<Flight>>>,
    quarantine: Mutex<HashSet<FrameKey>>,
    any_quarantined: AtomicBool,
    seen: Seen,
    missing: Mutex<BTreeSet<PackId>>,
}

impl Reader {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        host: Arc<Host>,
        seal: Arc<dyn Seal>,
        keyring: Arc<Keyring>,
        counters: Arc<Counters>,
        frame_bytes: usize,
        node_bytes: usize,
    ) -> Self {
        Self {
            store,
            host,
            seal,
            keyring,
            counters,
            frames: ByteLru::new(frame_bytes + node_bytes),
            nodes: ByteLru::new(frame_bytes + node_bytes),
            shares: Shares { frames: frame_bytes, nodes: node_bytes },
            flights: Mutex::default(),
            quarantine: Mutex::default(),
            any_quarantined: AtomicBool::new(false),
            seen: Seen::default(),
            missing: Mutex::default(),
            spans: None,
        }
    }

    /// Reads packs that are read in order in larger pieces and ahead, of which up to `bytes` are held.
    pub(crate) fn with_spans(mut self, source: Source, bytes: u64) -> Self {
        self.spans = Some(Spans::new(source, bytes));
        self
    }

    /// The chunk `id` at `place`, checked. What follows it in its frame need not be decoded.
    pub(crate) fn chunk(&self, id: &ChunkId, place: &ChunkPlace) -> Result<Bytes, RepositoryError> {
        self.chunk_in(id, place, place.end())
    }

    /// The same, and has all of its frame in memory then.
    pub(crate) fn chunk_and_neighbours(&self, id: &ChunkId, place: &ChunkPlace) -> Result<Bytes, RepositoryError> {
        self.chunk_in(id, place, u32::MAX)
    }

    fn chunk_in(&self, id: &ChunkId, place: &ChunkPlace, end: u32) -> Result<Bytes, RepositoryError> {
        let decoded = match self.cached(place, end) {
            Some(frame) => Decoded::Data(frame),
            None => self.fetch(&place.frame, end)?,
        };
        match decoded {
            Decoded::Data(frame) => match self.verified(&frame, id, place) {
                // The frame may be sound, and the decoding of its start not.
                Err(_) if frame.encoded.is_some() => self.chunk_and_neighbours(id, place),
                checked => checked,
            },
            Decoded::Nodes(nodes) => match nodes.get(id) {
                Some(node) => Ok(node.bytes().to_vec().into()),
                None => Err(self.damaged(place, "it does not hold the node that the index promises")),
            },
        }
    }

    /// The chunk if its frame is decoded in memory as far as that.
    pub(crate) fn chunk_cached(&self, id: &ChunkId, place: &ChunkPlace) -> Option<Bytes> {
        let frame = self.cached(place, place.end())?;
        self.verified(&frame, id, place).ok()
    }

    /// The node `id` at `place`; its neighbours in the frame come into the cache with it.
    pub(crate) fn node(&self, id: &ChunkId, place: &ChunkPlace) -> Result<Arc<Node>, RepositoryError> {
        match self.fetch(&place.frame, u32::MAX)? {
            Decoded::Nodes(nodes) => match nodes.get(id) {
                Some(node) => Ok(node.clone()),
                None => Err(self.damaged(place, "it does not hold the node that the index promises")),
            },
            Decoded::Data(_) => {
                Err(RepositoryError::corrupt(place.frame.name(), "a tree names a data chunk as its node"))
            }
        }
    }

    pub(crate) fn node_cached(&self, id: &ChunkId) -> Option<Arc<Node>> {
        let node = self.nodes.get(id);
        count(&self.counters.cache_hits, node.is_some().into());
        node
    }

    pub(crate) fn has_node(&self, id: &ChunkId) -> bool {
        self.nodes.contains(id)
    }

    pub(crate) fn put_node(&self, id: ChunkId, node: Arc<Node>) {
        let bytes = node.heap_bytes() + 128;
        self.nodes.put(id, node, bytes);
        let Shares { frames, nodes } = self.shares;
        self.frames.set_limit(frames.max((frames + nodes).saturating_sub(self.nodes.bytes())));
    }

    fn put_frame(&self, key: FrameKey, frame: Arc<DataFrame>) {
        let bytes = frame.raw.capacity() + frame.encoded.as_ref().map_or(0, Vec::capacity) + 512;
        self.frames.put(key, frame, bytes);
        let Shares { frames, nodes } = self.shares;
        self.nodes.set_limit(nodes.max((frames + nodes).saturating_sub(self.frames.bytes())));
    }

    /// Whether the frame was found damaged or missing.
    pub(crate) fn is_quarantined(&self, key: &FrameKey) -> bool {
        self.any_quarantined.load(Ordering::Relaxed)
            && self.quarantine.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    pub(crate) fn reread(&self) -> Reread {
        self.seen.sums()
    }

    pub(crate) fn frame_limit(&self) -> usize {
        self.shares.frames
    }

    pub(crate) fn frame_bytes(&self) -> usize {
        self.frames.bytes()
    }

    pub(crate) fn node_bytes(&self) -> usize {
        self.nodes.bytes()
    }

    fn cached(&self, place: &ChunkPlace, end: u32) -> Option<Arc<DataFrame>> {
        let frame = self.frames.get(&place.key()).filter(|frame| frame.reaches(end));
        count(&self.counters.cache_hits, frame.is_some().into());
        frame
    }

    /// The chunk, if it is the one. Where a whole frame does not hold it, it is not used any more.
    fn verified(&self, frame: &DataFrame, id: &ChunkId, place: &ChunkPlace) -> Result<Bytes, RepositoryError> {
        let wrong = |reason| {
            self.frames.remove(&place.key());
            match frame.encoded {
                Some(_) => Err(RepositoryError::corrupt(place.frame.name(), reason)),
                None => Err(self.damaged(place, reason)),
            }
        };
        let Some(bytes) = Bytes::slice_of(&frame.raw, place.offset, place.len) else {
            return wrong("a chunk passes its end");
        };
        let known = (place.len, *id);
        let lock = || frame.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().get(&place.offset) == Some(&known) {
            return Ok(bytes);
        }
        let own = match place.frame.record.kind {
            FrameKind::Clear => self.keyring.clear_id(&bytes),
            FrameKind::Data | FrameKind::Metadata => self.keyring.data_id(&bytes),
        };
        if own != *id {
            return wrong("a chunk in it has another id");
        }
        lock().insert(place.offset, known);
        Ok(bytes)
    }

    fn damaged(&self, place: &ChunkPlace, reason: &'static str) -> RepositoryError {
        self.put_into_quarantine(place.key());
        RepositoryError::corrupt(place.frame.name(), reason)
    }

    /// Packs that were asked for and were not there.
    pub(crate) fn missing_packs(&self) -> Vec<PackId> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn note_presence(&self, pack: &PackId, read: &Result<Decoded, RepositoryError>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Err(RepositoryError::MissingObject { .. }) if missing.len() < MOST_MISSING => drop(missing.insert(*pack)),
            Ok(_) if !missing.is_empty() => drop(missing.remove(pack)),
            _ => {}
        }
    }

    /// What is in this frame counts as absent from now on: it is stored anew where it comes again.
    pub(crate) fn put_into_quarantine(&self, key: FrameKey) {
        let mut quarantine = self.quarantine.lock().unwrap_or_else(PoisonError::into_inner);
        if quarantine.len() < MOST_QUARANTINED {
            quarantine.insert(key);
            self.any_quarantined.store(true, Ordering::Relaxed);
        }
    }

    /// The frame, decoded up to `end` at least; of several threads that want it one does the work.
    fn fetch(&self, place: &FramePlace, end: u32) -> Result<Decoded, RepositoryError> {
        let key = place.key();
        let (flight, partial) = loop {
            let under_way = {
                let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
                match flights.get(&key) {
                    Some(flight) => flight.clone(),
                    None => {
                        // Whoever led the last flight put the frame into the cache before taking it off the list.
                        let partial = self.frames.get(&key);
                        if let Some(frame) = partial.as_ref().filter(|frame| frame.reaches(end)) {
                            return Ok(Decoded::Data(frame.clone()));
                        }
                        let flight = Arc::new(Flight::default());
                        flights.insert(key, flight.clone());
                        break (flight, partial);
                    }
                }
            };
            let landed = under_way.wait();
            // Its leader may have needed less of it.
            if landed.as_ref().map_or(true, |decoded| decoded.reaches(end)) {
                return landed;
            }
        };
        let mut landing = Landing { reader: self, key, flight, result: None };
        if let Some(decoded) = partial.and_then(|frame| self.complete(place, &frame)) {
            landing.result = Some(Ok(decoded.clone()));
            return Ok(decoded);
        }
        let result = again_if_damaged(|| {
            let loaded = self.load(place, end);
            if let (Err(RepositoryError::Corrupt { .. }), Some(spans), Some(id)) =
                (&loaded, &self.spans, place.stored_pack())
            {
                spans.forget(id);
            }
            loaded
        });
        if result.as_ref().is_err_and(is_the_frames) {
            self.put_into_quarantine(key);
        }
        if let PackPlace::Stored(located) = &place.pack {
            self.note_presence(&located.pack.id, &result);
        }
        landing.result = Some(result.clone());
        result
    }

    fn load(&self, place: &FramePlace, end: u32) -> Result<Decoded, RepositoryError> {
        let (mut bytes, start) = self.read_sealed(place)?;
        count(&self.counters.frames_read, 1);
        count(&self.counters.frame_bytes_read, bytes.len() as u64);
        let FrameRecord { applied, stored, encoded, raw, kind, .. } = place.record;
        let sealed = bytes.get_mut(start..start + stored as usize);
        let sealed = sealed.ok_or_else(|| RepositoryError::corrupt(place.name(), "it ends too early"))?;
        self.open_frame(place, sealed)?;
        let range = start..start + encoded as usize;
        if kind == FrameKind::Metadata {
            return self.parse_nodes(&self.decode(place, &bytes[range])?).in_object(place.name());
        }
        let key = place.key();
        self.seen.note(&key, raw);
        if applied == 0 {
            let (decoder, _) = self.decoder(place)?;
            let raw = decoder.decode_vec(applied, cut(bytes, range), raw as usize);
            return Ok(self.keep(key, raw.map_err(|e| RepositoryError::host(place.name(), e))?, None));
        }
        let end = end.checked_next_multiple_of(START).unwrap_or(u32::MAX);
        // Only where that saves time, and takes no more memory than all of it.
        if end < raw - raw / 8 && u64::from(end) + u64::from(encoded) <= raw.into() {
            let (decoder, applied) = self.decoder(place)?;
            if let Ok(first) = decoder.decode_start(applied, &bytes[range.clone()], raw as usize, end as usize) {
                let rest = (first.len() < raw as usize).then(|| bytes[range].to_vec());
                return Ok(self.keep(key, first, rest));
            }
        }
        Ok(self.keep(key, self.decode(place, &bytes[range])?, None))
    }

    /// All of a frame of which the first part is in memory.
    fn complete(&self, place: &FramePlace, frame: &DataFrame) -> Option<Decoded> {
        let raw = self.decode(place, frame.encoded.as_ref()?);
        let raw = raw
            .inspect_err(|error| tracing::warn!(%error, "a frame in memory does not decode, so it is fetched again"));
        Some(self.keep(place.key(), raw.ok()?, None))
    }

    fn keep(&self, key: FrameKey, raw: Vec<u8>, encoded: Option<Vec<u8>>) -> Decoded {
        let all = 0..raw.len();
        let raw = Arc::new(cut(raw, all));
        let frame = Arc::new(DataFrame { raw, encoded, verified: Mutex::default() });
        self.put_frame(key, frame.clone());
        Decoded::Data(frame)
    }

    fn decoder(&self, place: &FramePlace) -> Result<(Arc<Decoder>, u32), RepositoryError> {
        let found = self.host.decoder_for(&place.chain.descriptor, place.record.applied);
        let (decoder, applied) = found.map_err(|e| RepositoryError::host(place.name(), e))?;
        if decoder.seal_id() != place.record.kind.is_sealed().then_some(self.seal.descriptor().id) {
            return Err(RepositoryError::corrupt(place.name(), "its chain names another seal than it has"));
        }
        Ok((decoder, applied))
    }

    /// Undoes the steps of a frame.
    fn decode(&self, place: &FramePlace, encoded: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let (decoder, applied) = self.decoder(place)?;
        let raw = decoder.decode(applied, encoded, place.record.raw as usize);
        raw.map_err(|e| RepositoryError::host(place.name(), e))
    }

    /// Parses all nodes of a frame into the cache. One that does not parse is left out: whoever asks for it gets the error.
    fn parse_nodes(&self, raw: &[u8]) -> Result<Decoded, crate::codec::Malformed> {
        let mut nodes = HashMap::new();
        for range in directory(raw)? {
            let bytes: Arc<[u8]> = raw[range].into();
            let id = self.keyring.node_id(&bytes);
            if let Ok(node) = Node::parse(bytes) {
                let node = Arc::new(node);
                self.put_node(id, node.clone());
                nodes.insert(id, node);
            }
        }
        Ok(Decoded::Nodes(Arc::new(nodes)))
    }

    fn open_frame(&self, place: &FramePlace, sealed: &mut [u8]) -> Result<(), RepositoryError> {
        let opened = match &place.pack {
            PackPlace::Staged(pack) => pack.seal.frame().open(&place.record, &place.chain.id, sealed),
            PackPlace::Stored(located) => {
                let pack = &located.pack;
                let object = names::pack(&pack.id);
                PackSeal::of(&self.keyring, self.seal.as_ref(), pack.kind, pack.epoch, pack.salt, &object)?
                    .frame()
                    .open(&place.record, &place.chain.id, sealed)
            }
        };
        opened.in_object(place.name())
    }

    /// Bytes in which the sealed frame stands, and where it begins in them.
    fn read_sealed(&self, place: &FramePlace) -> Result<(Vec<u8>, usize), RepositoryError> {
        let (pack, start, end) = match &place.pack {
            PackPlace::Staged(staged) => match staged.read(&place.record)? {
                Found::Here(bytes) => return Ok((bytes, 0)),
                Found::Stored(pack) => range_in(pack, &place.record),
            },
            PackPlace::Stored(located) => stored_range(located),
        };
        let bytes = match &self.spans {
            Some(spans) => spans.read(pack, start, end)?,
            None => self.store.get_range(&names::key(&names::pack(&pack.id))?, start, end - start)?,
        };
        let at = u64::from(place.record.offset) - start;
        Ok((bytes, usize::try_from(at).expect("less than the alignment")))
    }

    /// Whether it helps to say early what will be read.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.spans.is_some()
    }

    /// Begins to fetch what isn't decoded in memory of stored chunks that will be read soon.
    pub(crate) fn announce(&self, places: impl Iterator<Item = Located>) {
        let Some(spans) = &self.spans else { return };
        let places = places.filter(|located| !self.frames.contains(&(located.pack.salt, located.frame.number)));
        spans.announce(places.map(|located| stored_range(&located)).collect());
    }
}

fn stored_range(located: &Located) -> (Whole, u64, u64) {
    let pack = Whole { id: located.pack.id, len: located.pack.len, kind: located.pack.kind };
    range_in(pack, &located.frame)
}

/// The range of its pack in which a frame lies, widened so that it doesn't tell where the frame begins.
fn range_in(pack: Whole, frame: &FrameRecord) -> (Whole, u64, u64) {
    let (offset, stored) = (u64::from(frame.offset), u64::from(frame.stored));
    let end = (offset + stored).next_multiple_of(ALIGN).min(pack.len);
    (pack, offset / ALIGN * ALIGN, end)
}

/// Whether an error says that the frame itself is bad or gone. One that a plugin can't decode at present (for want of time or memory, or
/// since it is not here) may be sound.
fn is_the_frames(error: &RepositoryError) -> bool {
    match error {
        RepositoryError::Corrupt { .. } | RepositoryError::MissingObject { .. } => true,
        RepositoryError::Host { source, .. } => match source.as_ref() {
            HostError::Decode { source, .. } => matches!(
                source.as_ref(),
                PluginError::Corrupt { .. } | PluginError::LengthMismatch { .. } | PluginError::OutputTooLarge { .. }
            ),
            _ => false,
        },
        _ => false,
    }
}

/// The part `range` of `bytes`, in little more memory than it takes: what is kept of a small frame must not be all that was read with it.
fn cut(mut bytes: Vec<u8>, range: Range<usize>) -> Vec<u8> {
    if bytes.capacity() > range.len() + range.len() / 8 {
        return bytes[range].to_vec();
    }
    bytes.truncate(range.end);
    bytes.drain(..range.start);
    bytes
}

/// Ends a flight, also when its leader panics.
struct Landing<'a> {
    reader: &'a Reader,
    key: FrameKey,
    flight: Arc<Flight>,
    result: Option<Result<Decoded, RepositoryError>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let result =
            self.result.take().unwrap_or(Err(RepositoryError::Stopped { reason: "decoding a frame panicked" }));
        // First, so that who wants more of the frame does not meet it again.
        self.reader.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.flight.land(result);
    }
}
