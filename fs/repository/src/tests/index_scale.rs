//! An index of many made-up chunks: what a lookup costs, what it reads, what it holds. Small here; twenty million with
//! `scripts/bench --index`, which makes it in one process and asks in another, whose memory says something.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError};
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_storage_local::LocalStore;

use super::support::{PASSPHRASE, Random, host, next_head};
use crate::frame::FrameRecord;
use crate::ids::{ChunkId, PackId};
use crate::index::{Io, NewPack, PackEntry, TestFrames, write_segment};
use crate::*;

const CHUNKS_IN_FRAME: u64 = 8;
const FRAMES_IN_PACK: u64 = 64;
const CHUNKS_IN_PACK: u64 = CHUNKS_IN_FRAME * FRAMES_IN_PACK;
/// Heads as a volume that was filled in as many commits.
const COMMITS: u64 = 20;

/// What the index may hold of blocks, so that a process that looks up stays under 128 MiB.
const BLOCKS: u64 = 64 << 20;
/// The share of all caches that the index has, in per cent.
const SHARE: u64 = 15;

/// Counts what is read of another store.
struct Counting {
    inner: LocalStore,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    fn open(dir: &Path) -> Arc<Self> {
        Arc::new(Self { inner: LocalStore::open(dir).unwrap(), requests: AtomicU64::new(0), bytes: AtomicU64::new(0) })
    }

    fn read(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Store for Counting {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        let bytes = self.inner.get(key, max)?;
        self.read(bytes.len() as u64);
        Ok(bytes)
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        self.read(len);
        self.inner.get_range(key, offset, len)
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.inner.stat(key)
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.inner.put_new(key, body)
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.inner.put(key, body)
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.inner.list(prefix, after, limit)
    }
}

/// The id of the chunk with that number; chunks from 2^63 on are never stored.
fn id(number: u64) -> [u8; 32] {
    let mut random = Random(number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut id = [0; 32];
    for part in id.chunks_exact_mut(8) {
        part.copy_from_slice(&random.next().to_le_bytes());
    }
    id
}

fn pack_id(number: u64) -> PackId {
    PackId(id(number ^ 1 << 62))
}

/// Pack `number` with its chunks, and what locates them.
fn made_up(number: u64) -> (PackEntry, TestFrames) {
    let entry =
        PackEntry { id: pack_id(number), len: 1 << 30, epoch: 1, salt: pack_id(number).0, kind: FrameKind::Data };
    let stored = crate::codec::padme(4000) as u32 + 16;
    let frame = |frame: u64| {
        let first = number * CHUNKS_IN_PACK + frame * CHUNKS_IN_FRAME;
        let members = (first..first + CHUNKS_IN_FRAME).map(|chunk| (ChunkId(id(chunk)), 1000)).collect();
        let number = frame as u32;
        let (kind, offset) = (FrameKind::Data, 48 + number * stored);
        let record = FrameRecord { number, kind, chain: 0, applied: 1, offset, stored, encoded: 4000, raw: 8000 };
        (record, members)
    };
    (entry, (0..FRAMES_IN_PACK).map(frame).collect())
}

fn open(store: Arc<Counting>) -> Arc<Repository> {
    let opts = OpenOptions { cache_bytes: BLOCKS * 100 / SHARE, ..OpenOptions::default() };
    Repository::open(store, host(), Arc::new(Aes256Gcm), PASSPHRASE, opts).unwrap()
}

/// Makes a store in `dir` whose index locates at least `chunks` chunks; returns how many.
fn generate(dir: &Path, chunks: u64) -> u64 {
    let store = LocalStore::create(dir.join("store")).unwrap();
    let init = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
    Repository::init(&store, &Aes256Gcm, PASSPHRASE, &init).unwrap();
    let repository = open(Counting::open(&dir.join("store")));
    let each = chunks.div_ceil(CHUNKS_IN_PACK * COMMITS);
    for commit in 0..COMMITS {
        let chains = [crate::pack::Chain::new(b"chain")];
        let made: Vec<_> = (commit * each..(commit + 1) * each).map(made_up).collect();
        let packs: Vec<_> =
            made.iter().map(|(entry, frames)| NewPack { entry: *entry, chains: &chains, frames }).collect();
        let (path, reference, refs) = write_segment(&repository.index, dir, &packs, &[]).unwrap();
        let key = crate::names::key(&crate::names::segment(repository.index.volume(), reference.id)).unwrap();
        store.put_new(&key, Body::File(&path)).unwrap();
        std::fs::remove_file(path).unwrap();
        repository.load_segments(&refs).unwrap();
    }
    let volume = repository.volume("main").unwrap();
    repository.put_head(volume, &next_head(None, None, repository.segments())).unwrap();
    COMMITS * each * CHUNKS_IN_PACK
}

/// Opens what [`generate`] made as a mount does. Returns the bytes that took.
fn open_cold(dir: &Path) -> (Arc<Repository>, Arc<Counting>, u64) {
    let store = Counting::open(&dir.join("store"));
    let repository = open(store.clone());
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    let read = store.bytes();
    (repository, store, read)
}

/// Fails unless the index says of the chunk what the generator did.
fn check(repository: &Repository, number: u64, chunks: u64) {
    let found = repository.index.locate(&ChunkId(id(number)), Io::Allowed).unwrap().unwrap();
    if number >= chunks {
        assert!(found.is_empty(), "a chunk that was never stored is located");
        return;
    }
    assert_eq!((found.len(), found[0].len), (1, 1000));
    assert_eq!(found[0].pack.id, pack_id(number / CHUNKS_IN_PACK));
    assert_eq!(u64::from(found[0].frame.number), number / CHUNKS_IN_FRAME % FRAMES_IN_PACK);
    assert_eq!(u64::from(found[0].offset), number % CHUNKS_IN_FRAME * 1000);
}

/// Lookups per second, by `threads`, of chunks drawn at random: from those stored, or from those never stored.
fn rate(repository: &Repository, chunks: u64, stored: bool, threads: u64, lookups: u64) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = Random(thread + lookups + u64::from(stored));
                for _ in 0..lookups / threads {
                    let number = if stored { random.next() % chunks } else { random.next() | 1 << 63 };
                    check(repository, number, chunks);
                }
            });
        }
    });
    lookups as f64 / start.elapsed().as_secs_f64()
}

#[test]
fn a_large_index_is_not_read_whole_and_stays_within_its_memory() {
    let dir = tempfile::TempDir::new().unwrap();
    let chunks = generate(dir.path(), 200_000);
    let (repository, store, opening) = open_cold(dir.path());
    assert_eq!(repository.stats().indexed_chunks, chunks);
    let whole: u64 = repository.segments().iter().map(|segment| segment.len).sum();
    assert!(whole > 9_000_000, "{whole} bytes");
    assert!(opening < 32 << 10, "opening read {opening} bytes");
    check(&repository, 77, chunks);
    let first = store.bytes() - opening;
    assert!(first < whole / 10, "the first lookup read {first} of {whole} bytes");
    for number in (0..chunks).step_by(97) {
        check(&repository, number, chunks);
        check(&repository, number | 1 << 63, chunks);
    }
    assert!(repository.stats().index_cache_bytes <= BLOCKS);
}

/// Where the two measurements below meet.
fn bench_dir() -> std::path::PathBuf {
    std::env::var_os("AXIOMFS_BENCH_DIR").expect("AXIOMFS_BENCH_DIR names the directory of the index").into()
}

#[test]
#[ignore = "a measurement: scripts/bench --index"]
fn bench_generates() {
    let chunks = std::env::var("AXIOMFS_BENCH_CHUNKS").unwrap().parse().unwrap();
    let start = Instant::now();
    let made = generate(&bench_dir(), chunks);
    println!("figure: generate {made} {}", start.elapsed().as_secs_f64());
}

#[test]
#[ignore = "a measurement: scripts/bench --index"]
fn bench_looks_up() {
    let start = Instant::now();
    let (repository, store, opening) = open_cold(&bench_dir());
    let opened = start.elapsed();
    let chunks = repository.stats().indexed_chunks;
    let start = Instant::now();
    check(&repository, 7, chunks);
    let (first, read) = (start.elapsed(), store.bytes() - opening);
    let whole: u64 = repository.segments().iter().map(|segment| segment.len).sum();
    let micros = |took: Duration| took.as_secs_f64() * 1e6;
    println!("figure: index_bytes {whole}\nfigure: segments {}", repository.segments().len());
    println!("figure: open_bytes {opening}\nfigure: open_us {}", micros(opened));
    println!("figure: first_bytes {read}\nfigure: first_us {}", micros(first));
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    for (stored, name) in [(false, "absent"), (true, "present")] {
        for threads in [1, cpus] {
            // Once to fill the cache, as a mount in use has it.
            rate(&repository, chunks, stored, threads, 100_000);
            let (requests, bytes) = (store.requests.load(Ordering::Relaxed), store.bytes());
            let rate = rate(&repository, chunks, stored, threads, 300_000);
            let requests = (store.requests.load(Ordering::Relaxed) - requests) as f64 / 300_000.0;
            let bytes = (store.bytes() - bytes) as f64 / 300_000.0;
            println!("figure: {name}_{threads} {rate} {requests} {bytes}");
        }
    }
    println!("figure: cached_bytes {}", repository.stats().index_cache_bytes);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("figure: peak_kib {}", peak.trim().trim_end_matches(" kB"));
}
