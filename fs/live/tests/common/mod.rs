//! A repository in memory and volumes opened on it, each on the state directory that the one before left.

use std::sync::Arc;
use std::time::Duration;

use axiomfs_api::{ChunkSizes, Store};
use axiomfs_chunker_fastcdc::FastCdc;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};
use axiomfs_live::{Volume, VolumeOptions};
use axiomfs_repository::{InitOptions, KdfParams, OpenOptions, Repository};
use axiomfs_storage_memory::MemoryStore;
use tempfile::TempDir;

const PASSPHRASE: &[u8] = b"correct horse";

/// How many cases a property runs: as many as `PROPTEST_CASES` says.
#[allow(dead_code, reason = "each test file uses some of these")]
pub fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What is left when a mount ends.
pub struct Bench {
    store: Arc<dyn Store>,
    state: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let init = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
        Repository::init(store.as_ref(), &Aes256Gcm, PASSPHRASE, &init).expect("init");
        Self { store, state: tempfile::tempdir().expect("a directory") }
    }

    /// Opens the volume on what is there.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn open(&self) -> Arc<Volume> {
        self.start(false, |_| {})
    }

    /// Opens what the store has, for reading.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn open_read_only(&self) -> Arc<Volume> {
        self.start(true, |_| {})
    }

    /// The repository alone, to look at what was stored and to forge it.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn repository(&self) -> Arc<Repository> {
        self.unlock(host(), &self.state.path().join("forged"))
    }

    /// How many segments the log has.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn log_segments(&self) -> usize {
        let entries = std::fs::read_dir(self.state.path().join("log")).expect("the log");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        names.filter(|name| name.starts_with("segment-")).count()
    }

    fn unlock(&self, host: Arc<Host>, staging: &std::path::Path) -> Arc<Repository> {
        let options = OpenOptions {
            staging: Some(staging.to_path_buf()),
            pack_bytes: 1 << 20,
            cache_bytes: 8 << 20,
            ..OpenOptions::default()
        };
        Repository::open(self.store.clone(), host, Arc::new(Aes256Gcm), PASSPHRASE, options).expect("open")
    }

    /// Opens the volume with other options.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn open_with(&self, change: impl FnOnce(&mut VolumeOptions)) -> Arc<Volume> {
        self.start(false, change)
    }

    fn start(&self, read_only: bool, change: impl FnOnce(&mut VolumeOptions)) -> Arc<Volume> {
        let host = host();
        let repository = self.unlock(host.clone(), &self.state.path().join("staging"));
        // Small chunks, so that small files have several.
        let sizes = ChunkSizes { min: 16 << 10, avg: 64 << 10, max: 256 << 10 };
        let chunker = Arc::new(FastCdc::new(repository.chunker_seed(), sizes));
        let mut volume = VolumeOptions {
            state_dir: self.state.path().to_path_buf(),
            volume: repository.volume("main").expect("volume"),
            log_max: 64 << 20,
            log_segment: 4 << 20,
            staging_max: 1 << 30,
            encrypt_log: true,
            checkpoint_interval: Duration::from_secs(3600),
            checkpoint_bytes: 4 << 20,
            commit_interval: Duration::from_secs(3600),
            commit_bytes: 64 << 20,
            timeout: Duration::from_secs(20),
            memory: 64 << 20,
            read_only,
            refresh: Duration::from_secs(2),
            durability_remote: false,
            faults: Arc::new(|_| {}),
            takeover: false,
            beside: None,
            accept_rollback: false,
            expect_head: None,
            stamp: "2026-11-25T15-04-05Z".into(),
        };
        change(&mut volume);
        Volume::start(repository, host, chunker, volume).expect("volume opens")
    }

    /// Removes all local state, so that only the store is left.
    #[allow(dead_code, reason = "each test file uses some of these")]
    pub fn lose_state(&mut self) {
        self.state = tempfile::tempdir().expect("a directory");
    }
}

fn host() -> Arc<Host> {
    let registry = Registry::new().transform(axiomfs_compression_zstd::Factory).seal(Aes256Gcm);
    let steps = vec![StepSpec::new("zstd").with("level", 1), StepSpec::new("aes-256-gcm")];
    let chains = vec![ChainSpec { name: "default".into(), steps }];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec!["encryption".into()]);
    Arc::new(host.expect("host"))
}
