//! The repository: what the live tree works with.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axiomfs_api::{Seal, Sealer, Store};
use axiomfs_host::{ChainName, Host};

use crate::codec::Put;
use crate::commit::{DamageNote, Progress};
use crate::crypto::{Envelope, derive, random, random_secret};
use crate::error::RepositoryError;
use crate::foreign::Foreign;
use crate::ids::{ChunkId, RepositoryId, SequenceNo, VolumeId};
use crate::index::{Index, IndexCache, Io, SegmentRef};
use crate::keyring::Keyring;
use crate::keys::{KdfParams, Unlocked, create_slot, slots_and_keyrings, unlock};
use crate::labels::Labels;
use crate::locked::keep_out_of_swap;
use crate::near::{Near, Source};
use crate::others::Others;
use crate::packer::{Packer, PackerSetup};
use crate::reader::Reader;
use crate::rotation::follow_store;
use crate::staged::StagedPack;
use crate::stats::{Counters, RepositoryStats, Sent};
use crate::yielding::{Gate, Reads, Waiting};
use crate::{config, names};

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
    /// Bytes that may be read ahead of readers, where a request to the store costs a round trip; 0 where it doesn't.
    pub ahead_bytes: u64,
    /// The bytes of `config`, where they have been read already.
    pub config: Option<Vec<u8>>,
    /// Where what was read of index segments and tree nodes is kept for the next mount.
    pub near: Option<PathBuf>,
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
            ahead_bytes: 0,
            config: None,
            near: None,
        }
    }
}

/// An open repository. All calls are thread-safe; none holds a lock while it waits for the store.
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) host: Arc<Host>,
    pub(crate) seal: Arc<dyn Seal>,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) unlocked: Arc<Unlocked>,
    /// When the store was last asked whether there is a later keyring.
    pub(crate) keys_asked: Mutex<Instant>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) labels: Arc<Labels>,
    pub(crate) index: Index,
    pub(crate) others: Others,
    pub(crate) metadata_chain: ChainName,
    pub(crate) pack_bytes: u64,
    pub(crate) uploads: Gate,
    pub(crate) near: Option<Arc<Near>>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) committing: AtomicBool,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) damage_notes: Mutex<Vec<DamageNote>>,
    pub(crate) known_heads: Mutex<HashMap<VolumeId, SequenceNo>>,
    pub(crate) foreign: Foreign,
    pub(crate) reader: Reader,
    pub(crate) packer: Option<Packer>,
    pub(crate) opened: Instant,
    /// Milliseconds since `opened` before which dedup look-ups don't ask the store.
    pub(crate) dedup_pause_until: AtomicU64,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .field("store", &self.store.location())
            .finish_non_exhaustive()
    }
}

/// A cache that can't be used is done without.
fn open_near(dir: PathBuf) -> Option<Arc<Near>> {
    let near = Near::open(dir);
    near.inspect_err(|error| tracing::warn!(%error, "the cache directory can't be used")).ok().map(Arc::new)
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
        create_slot(store, seal, id, random()?, &master, passphrase, opts.kdf, now)?;
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
        let config = match &opts.config {
            Some(bytes) => config::decode(bytes)?,
            None => config::load(store.as_ref())?,
        };
        let foreign = Foreign::default();
        let id = config.repository;
        let (slots, keyrings) = slots_and_keyrings(store.as_ref(), &foreign)?;
        let unlocked = unlock(store.as_ref(), seal.as_ref(), id, passphrase, &slots)?;
        config.authenticate(&unlocked.master)?;
        let keyring = Keyring::newest(store.as_ref(), seal.as_ref(), id, &unlocked.master, keyrings, &foreign)?;
        foreign.note_left_out(store.as_ref());
        let keyring = Arc::new(keyring);
        let unlocked = Arc::new(unlocked);
        keyring.keep_out_of_swap();
        keep_out_of_swap(unlocked.as_ref());
        follow_store(&keyring, &store, &seal, &unlocked);
        let volume =
            keyring.volume(&opts.volume).ok_or_else(|| RepositoryError::UnknownVolume { name: opts.volume.clone() })?;
        let (counters, labels) = (Arc::new(Counters::default()), Arc::new(Labels::default()));
        let reads = Arc::new(Reads::default());
        let packer = opts.staging.map(|dir| {
            let setup = PackerSetup {
                dir,
                keyring: keyring.clone(),
                seal: seal.clone(),
                host: host.clone(),
                counters: counters.clone(),
                labels: labels.clone(),
                reads: reads.clone(),
                pack_bytes: opts.pack_bytes,
                queue_bytes: opts.queue_bytes,
            };
            Packer::start(setup, opts.workers)
        });
        let share = |percent: u64| usize::try_from(opts.cache_bytes / 100 * percent).unwrap_or(usize::MAX);
        let blocks = Arc::new(IndexCache::new(share(15)));
        let source = Source { store: store.clone(), near: opts.near.and_then(open_near) };
        let index_of = |id| {
            let index = Index::new(source.clone(), seal.clone(), keyring.clone(), id, blocks.clone());
            if opts.ahead_bytes > 0 { index.far() } else { index }
        };
        let index = index_of(volume);
        let others = keyring.volumes().map(|(id, _)| id).filter(|id| *id != volume);
        let others = Others::new(others.map(|id| (id, index_of(id))));
        let reader = Reader::new(
            store.clone(),
            host.clone(),
            seal.clone(),
            keyring.clone(),
            counters.clone(),
            share(55),
            share(30),
        );
        let reader = if opts.ahead_bytes > 0 { reader.with_spans(source.clone(), opts.ahead_bytes) } else { reader };
        let repository = Arc::new(Self {
            store,
            host: host.clone(),
            seal,
            keyring,
            unlocked,
            keys_asked: Mutex::new(Instant::now()),
            counters,
            labels,
            index,
            others,
            metadata_chain: opts.metadata_chain,
            pack_bytes: opts.pack_bytes,
            uploads: Gate::new(opts.uploads),
            near: source.near,
            reads,
            committing: AtomicBool::new(false),
            progress: Mutex::default(),
            damage_notes: Mutex::default(),
            known_heads: Mutex::default(),
            foreign,
            reader,
            packer: packer.transpose()?,
            opened: Instant::now(),
            dedup_pause_until: AtomicU64::new(0),
        });
        let stored = Arc::downgrade(&repository);
        host.set_stored_chains(Arc::new(move || stored.upgrade().map_or(Ok(Vec::new()), |it| it.stored_chains())));
        Ok(repository)
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

    /// The id of a chunk of file data.
    pub fn data_id(&self, data: &[u8]) -> ChunkId {
        self.keyring.data_id(data)
    }

    /// The id of a chunk of a file in an exempted directory. No chunk has the id of a sealed one.
    pub fn clear_id(&self, data: &[u8]) -> ChunkId {
        self.keyring.clear_id(data)
    }

    /// The id of a tree node.
    pub fn node_id(&self, data: &[u8]) -> ChunkId {
        self.keyring.node_id(data)
    }

    /// Finishes all open frames and packs and makes them durable. What was added before the call survives a power cut when it returns
    /// and the packs it names are remembered.
    ///
    /// # Errors
    /// Why staging failed; the chunks stay readable and the next call tries again.
    pub fn flush(&self) -> Result<Vec<StagedPack>, RepositoryError> {
        self.packer()?.flush()
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

    /// Moves how many uploads may run at the same time, up to what the repository was opened with.
    pub fn set_uploads(&self, limit: usize) {
        self.uploads.set(limit);
    }

    /// How many uploads may run at the same time now.
    pub fn uploads(&self) -> usize {
        self.uploads.limit()
    }

    /// Says that somebody waits for a read: encoders and uploads give way to it, for a short time each.
    pub fn foreground(&self) -> Waiting<'_> {
        self.reads.begin()
    }

    /// Bytes of decoded frames that are kept in memory at most.
    pub fn frame_cache_limit(&self) -> u64 {
        self.reader.frame_limit() as u64
    }

    /// Objects that were met where ours lie and are none: the first few names. They are passed over.
    pub fn foreign_objects(&self) -> Vec<String> {
        self.foreign.names()
    }

    /// Packs that were asked for and are not in the store, as their objects are named. One that was read since is not among them.
    pub fn missing_packs(&self) -> Vec<String> {
        self.reader.missing_packs().iter().map(names::pack).collect()
    }

    /// Descriptors of all chains that frames of this volume went through, staged and stored; may ask the store.
    fn stored_chains(&self) -> Result<Vec<Arc<[u8]>>, String> {
        self.chains(Io::Allowed).map_err(|error| error.to_string())
    }

    fn chains(&self, io: Io) -> Result<Vec<Arc<[u8]>>, RepositoryError> {
        let mut chains = self.index.chains(io)?;
        chains.extend(self.others.chains());
        chains.extend(self.packer.iter().flat_map(Packer::chains));
        chains.sort_unstable_by_key(|chain| chain.id);
        chains.dedup_by_key(|chain| chain.id);
        Ok(chains.into_iter().map(|chain| chain.descriptor).collect())
    }

    /// Plugins that frames of this volume need and that are not here, as far as is known without asking the store. Reads of those frames
    /// fail, others don't.
    pub fn missing_plugins(&self) -> Vec<String> {
        let chains = self.chains(Io::Never).unwrap_or_default();
        let missing: BTreeSet<String> = chains.iter().filter_map(|chain| self.host.missing_for(chain)).collect();
        missing.into_iter().collect()
    }

    /// Counters and sizes.
    pub fn stats(&self) -> RepositoryStats {
        let mut stats = self.counters.snapshot();
        stats.indexed_chunks = self.index.rows();
        stats.index_cache_bytes = self.index.cached_bytes() as u64;
        stats.frame_cache_bytes = self.reader.frame_bytes() as u64;
        stats.node_cache_bytes = self.reader.node_bytes() as u64;
        stats.uploads_limit = self.uploads.limit() as u64;
        stats.yields = self.reads.yields();
        stats.frames_quarantined = self.reader.quarantined();
        if let Some(packer) = &self.packer {
            let usage = packer.usage();
            stats.staged_chunks = usage.chunks;
            stats.sent_chunks = self.members_sent().min(usage.chunks);
            stats.staged_packs = usage.packs;
            stats.staged_bytes = usage.bytes;
            stats.pending_bytes = usage.pending_bytes;
        }
        stats
    }

    /// How far uploads are.
    pub fn sent(&self) -> Sent {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        Sent {
            packs: load(&self.counters.packs_uploaded),
            bytes: self.store.bytes_sent(),
            under_way: self.uploads() as u64 * self.pack_bytes,
            failed: load(&self.counters.uploads_failed),
        }
    }

    pub(crate) fn packer(&self) -> Result<&Packer, RepositoryError> {
        self.packer.as_ref().ok_or(RepositoryError::ReadOnly)
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

/// Nanoseconds since 1970; before that and beyond 2262 the nearest that can be told.
pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Locks; what a panicking thread leaves behind these locks is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
