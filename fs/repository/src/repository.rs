//! The repository: what the live tree works with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_api::{Seal, Sealer, Store};
use axiomfs_host::{ChainName, Host};

use crate::bytes::Bytes;
use crate::codec::Put;
use crate::commit::{Progress, open_pack};
use crate::crypto::{Envelope, derive, random, random_secret};
use crate::error::RepositoryError;
use crate::frame::FrameKind;
use crate::ids::{ChunkId, PackId, RepositoryId, SequenceNo, VolumeId};
use crate::index::{Index, Io, SegmentRef};
use crate::keys::{KdfParams, Keyring, create_slot, unlock};
use crate::pack::{read_table, staged_path};
use crate::packer::{Added, AdoptedPack, Found, FrameClass, Packer, PackerSetup, sync_dir};
use crate::reader::{ChunkPlace, Reader};
use crate::staged::StagedPack;
use crate::stats::{Counters, RepositoryStats, count};
use crate::tree::{Node, NodeSink, NodeSource};
use crate::{config, limits, names};

/// After the store failed a dedup look-up, how long look-ups do without it: an unreachable store must not stall writers.
const DEDUP_PAUSE: Duration = Duration::from_secs(10);

/// How a repository is made.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Cost of the first key slot.
    pub kdf: KdfParams,
    /// Name of the first volume.
    pub volume: String,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { kdf: KdfParams::default(), volume: "main".to_owned() }
    }
}

/// How a repository is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The volume whose index is used.
    pub volume: String,
    /// Bytes for decoded frames, tree nodes and index blocks together.
    pub cache_bytes: u64,
    /// Where packs are staged; without it the repository is opened for reading.
    pub staging: Option<PathBuf>,
    /// Threads that encode.
    pub workers: usize,
    /// Uploads at a time.
    pub uploads: usize,
    /// Size at which a pack is closed, in bytes.
    pub pack_bytes: u64,
    /// Raw bytes that may wait for the encoders.
    pub queue_bytes: usize,
    /// The chain for tree nodes.
    pub metadata_chain: ChainName,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            volume: "main".to_owned(),
            cache_bytes: 64 << 20,
            staging: None,
            workers: 2,
            uploads: 4,
            pack_bytes: 32 << 20,
            queue_bytes: 16 << 20,
            metadata_chain: "default".into(),
        }
    }
}

/// An open repository. All calls are thread-safe; none holds a lock while it waits for the store.
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) host: Arc<Host>,
    pub(crate) seal: Arc<dyn Seal>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) index: Index,
    pub(crate) metadata_chain: ChainName,
    pub(crate) pack_bytes: u64,
    pub(crate) uploads: usize,
    pub(crate) committing: AtomicBool,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) known_heads: Mutex<HashMap<VolumeId, SequenceNo>>,
    reader: Reader,
    packer: Option<Packer>,
    opened: Instant,
    /// Milliseconds since `opened` before which dedup look-ups don't ask the store.
    dedup_pause_until: AtomicU64,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .field("store", &self.store.location())
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Makes a repository in an empty store. `config` is written last, so one that is half-made is none.
    ///
    /// # Errors
    /// [`RepositoryError::AlreadyARepository`], [`RepositoryError::NotEmpty`], or what the store met.
    pub fn init(
        store: &dyn Store,
        seal: &dyn Seal,
        passphrase: &[u8],
        opts: &InitOptions,
    ) -> Result<RepositoryId, RepositoryError> {
        if let Some(first) = store.list("", None, 1)?.first() {
            let location = store.location();
            return Err(match store.stat(&names::key(names::CONFIG)?) {
                Ok(_) => RepositoryError::AlreadyARepository { location },
                Err(_) => RepositoryError::NotEmpty { location, object: first.key.to_string() },
            });
        }
        let (id, master, now) = (RepositoryId(random()?), random_secret()?, now_ns());
        let keyring = Keyring::generate(id, &opts.volume, now)?;
        create_slot(store, seal, id, &master, passphrase, opts.kdf, now)?;
        keyring.create(store, seal, &master)?;
        config::create(store, id, &master, now)?;
        Ok(id)
    }

    /// Unlocks a repository and starts the packer's threads if it has a staging directory.
    ///
    /// # Errors
    /// [`RepositoryError::NotARepository`], [`RepositoryError::WrongPassphrase`], [`RepositoryError::UnsupportedVersion`],
    /// [`RepositoryError::UnknownVolume`], damage, or what the store met.
    pub fn open(
        store: Arc<dyn Store>,
        host: Arc<Host>,
        seal: Arc<dyn Seal>,
        passphrase: &[u8],
        opts: OpenOptions,
    ) -> Result<Arc<Self>, RepositoryError> {
        let config = config::load(store.as_ref())?;
        let master = unlock(store.as_ref(), seal.as_ref(), config.repository, passphrase)?;
        config.authenticate(&master)?;
        let keyring = Arc::new(Keyring::load(store.as_ref(), seal.as_ref(), config.repository, &master)?);
        let volume =
            keyring.volume(&opts.volume).ok_or_else(|| RepositoryError::UnknownVolume { name: opts.volume.clone() })?;
        let counters = Arc::new(Counters::default());
        let packer = opts.staging.map(|dir| {
            let setup = PackerSetup {
                dir,
                keyring: keyring.clone(),
                seal: seal.clone(),
                host: host.clone(),
                counters: counters.clone(),
                pack_bytes: opts.pack_bytes,
                queue_bytes: opts.queue_bytes,
            };
            Packer::start(setup, opts.workers)
        });
        let share = |percent: u64| usize::try_from(opts.cache_bytes / 100 * percent).unwrap_or(usize::MAX);
        let index = Index::new(store.clone(), seal.clone(), keyring.clone(), volume, share(15));
        let reader = Reader::new(
            store.clone(),
            host.clone(),
            seal.clone(),
            keyring.clone(),
            counters.clone(),
            share(55),
            share(30),
        );
        Ok(Arc::new(Self {
            store,
            host,
            seal,
            keyring,
            counters,
            index,
            metadata_chain: opts.metadata_chain,
            pack_bytes: opts.pack_bytes,
            uploads: opts.uploads.max(1),
            committing: AtomicBool::new(false),
            progress: Mutex::default(),
            known_heads: Mutex::default(),
            reader,
            packer: packer.transpose()?,
            opened: Instant::now(),
            dedup_pause_until: AtomicU64::new(0),
        }))
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.keyring.repository
    }

    /// The id of the volume `name`.
    ///
    /// # Errors
    /// [`RepositoryError::UnknownVolume`].
    pub fn volume(&self, name: &str) -> Result<VolumeId, RepositoryError> {
        self.keyring.volume(name).ok_or_else(|| RepositoryError::UnknownVolume { name: name.to_owned() })
    }

    /// All volumes.
    pub fn volumes(&self) -> Vec<(VolumeId, String)> {
        self.keyring.volumes().map(|(id, name)| (id, name.to_owned())).collect()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Seed of this repository's chunker.
    pub fn chunker_seed(&self) -> u64 {
        self.keyring.chunker_seed()
    }

    /// Generation of the keyring in use, for heads.
    pub fn keyring_generation(&self) -> u32 {
        self.keyring.generation
    }

    /// The id of a chunk of file data.
    pub fn data_id(&self, data: &[u8]) -> ChunkId {
        self.keyring.data_id(data)
    }

    /// The id of a tree node.
    pub fn node_id(&self, data: &[u8]) -> ChunkId {
        self.keyring.node_id(data)
    }

    /// A chunk, wherever it is: pending, decoded in memory, staged or in the store. Its id is checked.
    ///
    /// # Errors
    /// [`RepositoryError::Missing`], [`RepositoryError::Corrupt`] and [`RepositoryError::MissingObject`] name what is wrong with what was
    /// stored; others say why it could not be reached.
    pub fn read_chunk(&self, id: &ChunkId) -> Result<Bytes, RepositoryError> {
        let mut pending = None;
        self.from_places(id, &mut pending, |place| self.reader.chunk(id, place))
            .or_else(|error| pending.take().ok_or(error))
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
        let located = self.index.locate(id, Io::Never).ok()??;
        located.into_iter().find_map(|l| self.reader.chunk_cached(id, &ChunkPlace::stored(l)))
    }

    /// Decodes the chunk's frame into memory, so that [`chunk_cached`](Self::chunk_cached) finds it. Blocks meanwhile.
    ///
    /// # Errors
    /// As [`read_chunk`](Self::read_chunk).
    pub fn prefetch_chunk(&self, id: &ChunkId) -> Result<(), RepositoryError> {
        self.read_chunk(id).map(drop)
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
        match self.from_places(id, &mut pending, |place| self.reader.node(id, place)) {
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
        self.add(&class, id, data)
    }

    /// Stages a tree node unless it is known, and keeps it in memory.
    ///
    /// # Errors
    /// As [`add_chunk`](Self::add_chunk), or that the bytes are no node.
    pub fn add_node(&self, bytes: Vec<u8>) -> Result<ChunkId, RepositoryError> {
        let id = self.keyring.node_id(&bytes);
        let class = FrameClass { owner: 0, route: self.metadata_chain.clone(), kind: FrameKind::Metadata };
        self.add(&class, id, &bytes)?;
        if !self.reader.has_node(&id) {
            self.reader.put_node(id, Arc::new(Node::parse(bytes.into())?));
        }
        Ok(id)
    }

    fn add(&self, class: &FrameClass, id: ChunkId, data: &[u8]) -> Result<Added, RepositoryError> {
        let packer = self.packer()?;
        if data.is_empty() || data.len() > limits::CHUNK {
            return Err(RepositoryError::TooLarge {
                what: "Chunk",
                len: data.len() as u64,
                limit: limits::CHUNK as u64,
            });
        }
        let added =
            if packer.touch(&id) || self.is_indexed(&id) { Added::Known } else { packer.add(class, id, data)? };
        let (chunks, bytes) = match added {
            Added::Known => (&self.counters.chunks_known, &self.counters.bytes_known),
            Added::New => (&self.counters.chunks_new, &self.counters.bytes_new),
        };
        count(chunks, 1);
        count(bytes, data.len() as u64);
        Ok(added)
    }

    /// Whether the index locates the chunk in a frame that is not known to be bad. If that can't be told it counts as absent:
    /// storing a chunk twice is harmless.
    fn is_indexed(&self, id: &ChunkId) -> bool {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        let paused = now < self.dedup_pause_until.load(Ordering::Relaxed);
        let io = if paused { Io::Never } else { Io::Allowed };
        match self.index.locate(id, io) {
            Ok(Some(places)) => {
                places.into_iter().any(|place| !self.reader.is_quarantined(&ChunkPlace::stored(place).key()))
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "could not look a chunk up, so it is stored again");
                if !error.is_damage() {
                    let pause = u64::try_from(DEDUP_PAUSE.as_millis()).unwrap_or(u64::MAX);
                    self.dedup_pause_until.store(now.saturating_add(pause), Ordering::Relaxed);
                }
                false
            }
        }
    }

    /// Tries the places of a chunk, those known to be bad last. A pending chunk is put into `pending` and answered by an error.
    fn from_places<T>(
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
                let located = self.index.locate(id, Io::Allowed)?.unwrap_or_default();
                places.extend(located.into_iter().map(ChunkPlace::stored));
            }
            places.sort_by_key(|place| self.reader.is_quarantined(&place.key()));
            for place in &places {
                match read(place) {
                    Ok(found) => return Ok(found),
                    Err(error) => failed = error,
                }
            }
            if !failed.is_damage() {
                break;
            }
        }
        Err(failed)
    }

    /// Finishes all open frames and packs and makes them durable. What was added before the call survives a power cut when it returns
    /// and the packs it names are remembered.
    ///
    /// # Errors
    /// Why staging failed; the chunks stay readable and the next call tries again.
    pub fn flush(&self) -> Result<Vec<StagedPack>, RepositoryError> {
        self.packer()?.flush()
    }

    /// Takes the packs that an earlier mount staged and did not commit, and removes whatever else it left in the staging directory.
    /// To be called before anything is added. A pack that is no longer there but was moved into the store is taken from there.
    ///
    /// # Errors
    /// Damage of a pack, or what the staging directory or the store met.
    pub fn adopt_staged(&self, packs: &[PackId]) -> Result<Adopted, RepositoryError> {
        let packer = self.packer()?;
        let (mut adopted, mut missing) = (Vec::new(), Vec::new());
        for id in packs {
            match self.adopt(packer, id)? {
                Some(pack) => adopted.push(pack),
                None => missing.push(*id),
            }
        }
        let keep: Vec<String> = packs.iter().map(|id| format!("{id}.pack")).collect();
        remove_others(packer.dir(), &keep)?;
        packer.adopt(adopted);
        Ok(Adopted { missing })
    }

    fn adopt(
        &self,
        packer: &Packer,
        id: &PackId,
    ) -> Result<Option<(AdoptedPack, crate::pack::Table)>, RepositoryError> {
        let path = staged_path(packer.dir(), id);
        let (len, uploaded) = match std::fs::metadata(&path) {
            Ok(found) => (found.len(), false),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                match self.store.stat(&names::key(&names::pack(id))?) {
                    Ok(meta) => (meta.len, true),
                    Err(error) if error.kind == axiomfs_api::StoreErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(e) => return Err(RepositoryError::staging("look at", &path, e)),
        };
        let (source, name) = open_pack(self.store.as_ref(), id, &path, len, uploaded)?;
        let (seal, table) = read_table(source.as_ref(), &self.keyring, self.seal.as_ref(), &name)?;
        let info = StagedPack { id: *id, kind: seal.kind, len, path };
        Ok(Some((AdoptedPack { seal: Arc::new(seal), info, uploaded }, table)))
    }

    /// Makes the segments that a head names the index. Nothing is read before it is needed.
    ///
    /// # Errors
    /// If a reference is not possible or its epoch unknown.
    pub fn load_segments(&self, refs: &[SegmentRef]) -> Result<(), RepositoryError> {
        self.index.set_segments(refs)
    }

    /// The live index segments, newest first.
    pub fn segments(&self) -> Vec<SegmentRef> {
        self.index.refs()
    }

    /// Seals a segment of the log; a salt is used for one segment only.
    pub fn log_sealer(&self, salt: &[u8; 32]) -> Box<dyn Sealer> {
        self.seal.sealer(&derive(&self.keyring.log, "axiomfs log", salt))
    }

    /// Seals a record of the local state, bound to `purpose` and `aad`.
    ///
    /// # Errors
    /// [`RepositoryError::Entropy`], or [`RepositoryError::TooLarge`] for a purpose or `aad` over 65,535 bytes.
    pub fn seal_record(&self, purpose: &str, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let names = record_names(purpose, aad)?;
        self.record_envelope(&names).seal(self.seal.as_ref(), 0, &self.keyring.records, plain)
    }

    /// Opens what [`seal_record`](Self::seal_record) sealed for the same purpose and `aad`.
    ///
    /// # Errors
    /// [`RepositoryError::Corrupt`] naming the purpose.
    pub fn open_record(&self, purpose: &str, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let names = record_names(purpose, aad)?;
        let object = format!("Local record {purpose:?}");
        let envelope = self.record_envelope(&names);
        envelope.open(self.seal.as_ref(), &self.keyring.records, sealed.to_vec(), &object).map(|plain| plain.to_vec())
    }

    fn record_envelope<'a>(&self, names: &'a [u8]) -> Envelope<'a> {
        Envelope { magic: b"AXRC", label: "axiomfs record", repository: self.id(), names }
    }

    /// Counters and sizes.
    pub fn stats(&self) -> RepositoryStats {
        let mut stats = self.counters.snapshot();
        stats.indexed_chunks = self.index.rows();
        stats.index_cache_bytes = self.index.cached_bytes() as u64;
        stats.frame_cache_bytes = self.reader.frame_bytes() as u64;
        stats.node_cache_bytes = self.reader.node_bytes() as u64;
        stats.frames_quarantined = self.reader.quarantined();
        if let Some(packer) = &self.packer {
            let usage = packer.usage();
            stats.staged_chunks = usage.chunks;
            stats.staged_packs = usage.packs;
            stats.staged_bytes = usage.bytes;
            stats.pending_bytes = usage.pending_bytes;
        }
        stats
    }

    pub(crate) fn packer(&self) -> Result<&Packer, RepositoryError> {
        self.packer.as_ref().ok_or(RepositoryError::ReadOnly)
    }
}

/// What became of packs that an earlier mount had staged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Packs that are neither in the staging directory nor in the store. If the head that was last attempted is there they were merged
    /// into others by its commit and are not needed; else they are lost.
    pub missing: Vec<PackId>,
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

fn record_names(purpose: &str, aad: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let limit = u16::MAX.into();
    for len in [purpose.len() as u64, aad.len() as u64] {
        if len > limit {
            return Err(RepositoryError::TooLarge { what: "Associated data of a local record", len, limit });
        }
    }
    let mut names = Vec::with_capacity(4 + purpose.len() + aad.len());
    names.put_bytes16(purpose.as_bytes());
    names.put_bytes16(aad);
    Ok(names)
}

/// Removes what an earlier mount left beside the packs in `keep`; other people's files stay.
fn remove_others(dir: &std::path::Path, keep: &[String]) -> Result<(), RepositoryError> {
    let failed = |e| RepositoryError::staging("clean", dir, e);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = [".pack", ".open", ".index"].iter().any(|end| name.to_string_lossy().ends_with(end));
        if ours && !keep.iter().any(|kept| name == kept.as_str()) {
            std::fs::remove_file(entry.path()).map_err(|e| RepositoryError::staging("remove", &entry.path(), e))?;
        }
    }
    sync_dir(dir)
}

/// Nanoseconds since 1970; before that and beyond 2262 the nearest that can be told.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Only for lists that are also used by poisoned locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
