//! A repository over a store in memory, and a store that misbehaves on request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind, TransformFactory};
use axiomfs_compression_zstd::Factory;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};
use axiomfs_storage_memory::MemoryStore;
use tempfile::TempDir;

use crate::ids::ChunkId;
use crate::*;

pub const PASSPHRASE: &[u8] = b"correct horse";

/// A store in memory behind switches.
#[derive(Default)]
pub struct TestStore {
    pub inner: MemoryStore,
    /// Every call fails as if nobody answered.
    pub down: AtomicBool,
    /// Every call is refused.
    pub forbids: AtomicBool,
    /// A call that fails takes so many milliseconds.
    pub slow: AtomicU64,
    /// Calls that failed.
    pub failed: AtomicU64,
    /// Heads are not listed, as by a server that lags far behind.
    pub lists_no_heads: AtomicBool,
    /// The next create-only put is carried out, but nobody hears of it.
    pub lose_reply: AtomicBool,
    /// So many create-only puts are carried out before the rest fail as if nobody answered.
    pub puts_left: Mutex<Option<usize>>,
    /// A put takes the file away, as a store on the same filesystem does.
    pub takes_files: AtomicBool,
    pub gets: AtomicU64,
    pub bytes_got: AtomicU64,
    /// Ranges that did not begin at a multiple of 64 KiB.
    pub odd_gets: AtomicU64,
}

impl TestStore {
    fn answer(&self, operation: &'static str, object: &str) -> Result<(), StoreError> {
        let kind = if self.down.load(Ordering::SeqCst) {
            StoreErrorKind::Unavailable
        } else if self.forbids.load(Ordering::SeqCst) {
            StoreErrorKind::AccessDenied
        } else {
            return Ok(());
        };
        self.failed.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst)));
        Err(StoreError::new(kind, operation, object))
    }

    /// All objects, by name.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let listed = self.inner.list("", None, usize::MAX).unwrap();
        listed.into_iter().map(|m| (m.key.to_string(), self.inner.get(&m.key, u64::MAX).unwrap())).collect()
    }

    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        assert!(self.inner.tamper(&ObjectKey::new(name).unwrap(), change), "no {name}");
    }
}

impl Store for TestStore {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        self.answer("get", key.as_str())?;
        self.inner.get(key, max)
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        self.answer("get", key.as_str())?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.bytes_got.fetch_add(len, Ordering::SeqCst);
        self.odd_gets.fetch_add(u64::from(!offset.is_multiple_of(64 << 10)), Ordering::SeqCst);
        self.inner.get_range(key, offset, len)
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.answer("stat", key.as_str())?;
        self.inner.stat(key)
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.answer("put", key.as_str())?;
        if let Some(left) = &mut *self.puts_left.lock().unwrap() {
            let Some(fewer) = left.checked_sub(1) else {
                return Err(StoreError::new(StoreErrorKind::Unavailable, "put", key.as_str()));
            };
            *left = fewer;
        }
        self.inner.put_new(key, body)?;
        if let (Body::File(path), true) = (body, self.takes_files.load(Ordering::SeqCst)) {
            drop(std::fs::remove_file(path));
        }
        if self.lose_reply.swap(false, Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::Timeout, "put", key.as_str()));
        }
        Ok(())
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.answer("put", key.as_str())?;
        self.inner.put(key, body)
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.answer("delete", key.as_str())?;
        self.inner.delete(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.answer("list", prefix)?;
        if prefix.starts_with("heads/") && self.lists_no_heads.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        self.inner.list(prefix, after, limit)
    }
}

/// One host for all tests: making one tests its chains.
pub fn host() -> Arc<Host> {
    static HOST: OnceLock<Arc<Host>> = OnceLock::new();
    HOST.get_or_init(|| host_with(Factory)).clone()
}

/// A host with another compressor in zstd's place.
pub fn host_with(compressor: impl TransformFactory + 'static) -> Arc<Host> {
    let registry = Registry::new().transform(compressor).seal(Aes256Gcm);
    let chain = |name: &str, steps| ChainSpec { name: name.to_owned(), steps };
    let chains = vec![
        chain("default", vec![StepSpec::new("zstd"), StepSpec::new("aes-256-gcm")]),
        chain("media", vec![StepSpec::new("aes-256-gcm")]),
        chain("plain", vec![StepSpec::new("zstd")]),
    ];
    Arc::new(Host::new(registry, chains, RouteTable::default(), Limits::default(), Vec::new()).unwrap())
}

/// A store with a fresh repository and a staging directory.
pub struct Bed {
    pub store: Arc<TestStore>,
    pub dir: TempDir,
}

impl Bed {
    pub fn new() -> Self {
        let store = Arc::new(TestStore::default());
        let opts = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
        Repository::init(store.as_ref(), &Aes256Gcm, PASSPHRASE, &opts).unwrap();
        Self { store, dir: TempDir::new().unwrap() }
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions { staging: Some(self.dir.path().join("staging")), ..OpenOptions::default() }
    }

    pub fn open(&self) -> Arc<Repository> {
        self.try_open(self.options()).unwrap()
    }

    pub fn try_open(&self, opts: OpenOptions) -> Result<Arc<Repository>, RepositoryError> {
        Repository::open(self.store.clone(), host(), Arc::new(Aes256Gcm), PASSPHRASE, opts)
    }

    /// Opens with the index of the latest head, without staging: what another machine sees.
    pub fn open_cold(&self) -> Arc<Repository> {
        self.open_cold_with(host())
    }

    /// The same with another host.
    pub fn open_cold_with(&self, host: Arc<Host>) -> Arc<Repository> {
        let opts = OpenOptions::default();
        let repository = Repository::open(self.store.clone(), host, Arc::new(Aes256Gcm), PASSPHRASE, opts).unwrap();
        let volume = repository.volume("main").unwrap();
        if let Some(head) = repository.latest_head(volume).unwrap() {
            repository.load_segments(&head.segments).unwrap();
        }
        repository
    }

    pub fn staged_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("staging")).unwrap().count()
    }
}

/// splitmix64: enough to make test data.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Random bytes, or words that compress.
    pub fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(len + 16);
        let text = self.next().is_multiple_of(2);
        while data.len() < len {
            let word = self.next();
            if text {
                data.extend_from_slice(format!("line {} of it\n", word % 1000).as_bytes());
            } else {
                data.extend_from_slice(&word.to_le_bytes());
            }
        }
        data.truncate(len);
        data
    }
}

pub fn class(owner: u32, route: &str) -> FrameClass {
    FrameClass { owner, route: route.into(), kind: FrameKind::Data, sort: Label::NONE }
}

pub fn add(repository: &Repository, data: &[u8]) -> (ChunkId, Added) {
    let id = repository.data_id(data);
    (id, repository.add_chunk(class(0, "default"), id, data).unwrap())
}

/// Flushes, commits and creates the next head.
pub fn commit(repository: &Repository, root: Option<crate::tree::Root>) -> Head {
    repository.flush().unwrap();
    let set = repository.commit_packs(&[root]).unwrap();
    let volume = repository.volume("main").unwrap();
    let last = repository.latest_head(volume).unwrap();
    let head = next_head(last.as_ref(), root, set.segments.clone());
    assert_eq!(repository.put_head(volume, &head).unwrap(), PutHead::Created);
    repository.finish_commit(set).unwrap();
    head
}

pub fn next_head(last: Option<&Head>, root: Option<crate::tree::Root>, segments: Vec<SegmentRef>) -> Head {
    use crate::ids::{CommitId, Epoch, SequenceNo};
    Head {
        sequence: SequenceNo(last.map_or(1, |h| h.sequence.0 + 1)),
        epoch: Epoch(1),
        commit: CommitId(crate::crypto::random().unwrap()),
        parent: last.map(|h| h.commit),
        live_root: root,
        snapshots_root: None,
        next_ino: 1024,
        next_ordinal: 1,
        segments,
        keyring_generation: 1,
        index_generation: 0,
        time_ns: 1,
        audit: [0; 32],
    }
}
