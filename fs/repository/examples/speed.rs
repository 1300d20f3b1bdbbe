//! Prints how fast chunks go in and out: `cargo run --release -p axiomfs-repository --example speed [DIRECTORY]`.
//!
//! The store is in memory, the staging directory in DIRECTORY (default: the system's temporary one).

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axiomfs_compression_zstd::Factory;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};
use axiomfs_repository::ids::{ChunkId, CommitId, Epoch, SequenceNo};
use axiomfs_repository::{FrameClass, FrameKind, Head, InitOptions, KdfParams, OpenOptions, Repository};
use axiomfs_storage_memory::MemoryStore;

const MIB: f64 = 1_048_576.0;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::TempDir::new_in(parent)?;
    let store = Arc::new(MemoryStore::new());
    let init = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
    Repository::init(store.as_ref(), &Aes256Gcm, b"x", &init)?;
    let steps = vec![StepSpec::new("zstd"), StepSpec::new("aes-256-gcm")];
    let chains = vec![ChainSpec { name: "default".into(), steps }];
    let registry = Registry::new().transform(Factory).seal(Aes256Gcm);
    let host = Arc::new(Host::new(registry, chains, RouteTable::default(), Limits::default(), Vec::new())?);
    let open = |staging| {
        let opts = OpenOptions { staging, cache_bytes: 128 << 20, ..OpenOptions::default() };
        Repository::open(store.clone(), host.clone(), Arc::new(Aes256Gcm), b"x", opts)
    };
    let repository = open(Some(dir.path().join("staging")))?;
    let (random, text) = (data(256 << 20, false), data(256 << 20, true));
    let mut ids = Vec::new();
    for (name, data, size) in
        [("random 1 MiB", &random, 1 << 20), ("text 1 MiB", &text, 1 << 20), ("text 4 KiB", &text, 4 << 10)]
    {
        let len = if size < 1 << 20 { 64 << 20 } else { data.len() };
        let data = &data[data.len() - len..];
        ids.push((name, add(&repository, name, data, size)?, size));
    }
    let start = Instant::now();
    let set = repository.commit_packs(&[])?;
    println!("commit of {} packs, {:.0} MiB: {:?}", set.packs, set.bytes as f64 / MIB, start.elapsed());
    let volume = repository.volume("main")?;
    let head = head(set.segments.clone());
    repository.put_head(volume, &head)?;
    repository.finish_commit(set)?;

    for (name, ids, size) in &ids {
        let cold = open(None)?;
        cold.load_segments(&head.segments)?;
        read(&cold, &format!("{name}, cold, 1 thread"), ids, *size, 1)?;
        read(&cold, &format!("{name}, last 16 again"), &ids[ids.len() - 16..], *size, 1)?;
        let cold = open(None)?;
        cold.load_segments(&head.segments)?;
        read(&cold, &format!("{name}, cold, 4 threads"), ids, *size, 4)?;
    }
    println!("{:#?}", repository.stats());
    Ok(())
}

/// Bytes that do not compress, or lines that do.
fn data(len: usize, text: bool) -> Vec<u8> {
    let mut data = Vec::with_capacity(len + 64);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if text {
            data.extend_from_slice(format!("let value_{} = call({});\n", state % 4096, state >> 50).as_bytes());
        } else {
            data.extend_from_slice(&state.to_le_bytes());
        }
    }
    data.truncate(len);
    data
}

fn add(repository: &Repository, name: &str, data: &[u8], size: usize) -> Result<Vec<ChunkId>, Box<dyn Error>> {
    let class = FrameClass { owner: 0, route: "default".into(), kind: FrameKind::Data };
    let mut ids = Vec::new();
    let start = Instant::now();
    let mut hashing = Duration::ZERO;
    for chunk in data.chunks(size) {
        let before = Instant::now();
        let id = repository.data_id(chunk);
        hashing += before.elapsed();
        repository.add_chunk(class.clone(), id, chunk)?;
        ids.push(id);
    }
    let added = start.elapsed();
    repository.flush()?;
    let (flushed, mib) = (start.elapsed(), data.len() as f64 / MIB);
    println!(
        "{name}: added {:.0} MiB/s (ids {:.0}), with flush {:.0} MiB/s",
        mib / added.as_secs_f64(),
        mib / hashing.as_secs_f64(),
        mib / flushed.as_secs_f64()
    );
    let start = Instant::now();
    for (chunk, id) in data.chunks(size).zip(&ids) {
        repository.add_chunk(class.clone(), *id, chunk)?;
    }
    println!("{name}: known chunk {:?}", start.elapsed() / u32::try_from(ids.len())?);
    Ok(ids)
}

fn read(
    repository: &Repository,
    name: &str,
    ids: &[ChunkId],
    size: usize,
    threads: usize,
) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let failed = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                scope.spawn(move || {
                    ids.iter().skip(t).step_by(threads).filter(|id| repository.read_chunk(id).is_err()).count()
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or(1)).sum::<usize>()
    });
    let elapsed = start.elapsed();
    let mib = (ids.len() * size) as f64 / MIB;
    println!(
        "read {name}: {:.0} MiB/s, {:?} a chunk, {failed} failed",
        mib / elapsed.as_secs_f64(),
        elapsed / u32::try_from(ids.len())?
    );
    Ok(())
}

fn head(segments: Vec<axiomfs_repository::SegmentRef>) -> Head {
    Head {
        sequence: SequenceNo(1),
        epoch: Epoch(1),
        commit: CommitId([1; 16]),
        parent: None,
        live_root: None,
        snapshots_root: None,
        next_ino: 1024,
        next_ordinal: 1,
        segments,
        keyring_generation: 1,
        index_generation: 0,
        time_ns: 0,
        audit: [0; 32],
    }
}
