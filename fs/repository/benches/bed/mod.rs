//! A repository to measure: its store in memory, its staging directory on the disk.

use std::sync::Arc;

use axiomfs_compression_zstd::Factory;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};
use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::{FrameClass, FrameKind, InitOptions, KdfParams, Label, OpenOptions, Repository, SegmentRef};
use axiomfs_storage_memory::MemoryStore;

/// A store with a repository, and what opening it takes.
pub struct Bed {
    store: Arc<MemoryStore>,
    host: Arc<Host>,
    staging: tempfile::TempDir,
}

impl Bed {
    /// An empty repository.
    pub fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let init = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
        Repository::init(store.as_ref(), &Aes256Gcm, b"x", &init).expect("a repository");
        let steps = vec![StepSpec::new("zstd"), StepSpec::new("aes-256-gcm")];
        let registry = Registry::new().transform(Factory).seal(Aes256Gcm);
        let chains = vec![ChainSpec { name: "default".into(), steps }];
        let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), Vec::new()).expect("a host");
        Self { store, host: Arc::new(host), staging: tempfile::TempDir::new().expect("a directory") }
    }

    /// Opened for writing.
    pub fn writer(&self) -> Arc<Repository> {
        self.open(OpenOptions { staging: Some(self.staging.path().join("staging")), ..OpenOptions::default() })
    }

    /// Opened for reading, with nothing in memory.
    #[allow(dead_code, reason = "not each benchmark that shares this reads")]
    pub fn cold(&self, segments: &[SegmentRef]) -> Arc<Repository> {
        let repository = self.open(OpenOptions::default());
        repository.load_segments(segments).expect("segments");
        repository
    }

    fn open(&self, opts: OpenOptions) -> Arc<Repository> {
        Repository::open(self.store.clone(), self.host.clone(), Arc::new(Aes256Gcm), b"x", opts).expect("opens")
    }
}

/// Adds `data` in chunks of `size` bytes and waits until all are in packs.
pub fn add(repository: &Repository, data: &[u8], size: usize) -> Vec<ChunkId> {
    let class = FrameClass { owner: 0, route: "default".into(), kind: FrameKind::Data, sort: Label::NONE };
    let add = |chunk: &[u8]| {
        let id = repository.data_id(chunk);
        repository.add_chunk(class.clone(), id, chunk).expect("a chunk is staged");
        id
    };
    let ids = data.chunks(size).map(add).collect();
    repository.flush().expect("packs are written");
    ids
}

/// Uploads what is staged; returns the segments that locate it.
pub fn commit(repository: &Repository) -> Vec<SegmentRef> {
    let set = repository.commit_packs(&[]).expect("packs are uploaded");
    let segments = set.segments.clone();
    repository.finish_commit(set).expect("a commit ends");
    segments
}
