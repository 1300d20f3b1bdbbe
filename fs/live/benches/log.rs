//! Appends to the write-ahead log, and syncs that many writers share: `cargo bench -p axiomfs-live`.
//!
//! `AXIOMFS_BENCH_DIR` names a directory on the disk that counts (default: `/var/tmp`).
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axiomfs_api::Seal;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_live::log::{Log, LogIdentity, LogOptions, Urgency};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const META: [u8; 200] = [7; 200];
/// Data appended between two releases, in bytes: the log is never full, and its segments are used again.
const ROUND: u64 = 256 << 20;

fn log(dir: &Path, encrypt: bool) -> Log {
    let identity = LogIdentity { repository: [1; 16], volume: [2; 16], epoch: 3 };
    let options = LogOptions { encrypt, ..LogOptions::new(dir.join("log")) };
    Log::create(options, identity, Arc::new(|salt| Aes256Gcm.sealer(salt)), 0).expect("a log")
}

fn disk() -> tempfile::TempDir {
    let dir = std::env::var_os("AXIOMFS_BENCH_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(dir).expect("a directory")
}

/// Frees all before now.
fn release(log: &Log) {
    let next = log.rotate().expect("a segment");
    log.release_before(next).expect("segments are freed");
}

fn appends(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    for (seal, encrypt) in [("sealed", true), ("unsealed", false)] {
        let dir = disk();
        let log = log(dir.path(), encrypt);
        for len in [0usize, 4 << 10, 128 << 10, 1 << 20] {
            let data = vec![5; len];
            let data = (len > 0).then_some(data.as_slice());
            group.sample_size(10).measurement_time(Duration::from_secs(2));
            group.throughput(Throughput::Bytes((META.len() + len) as u64));
            group.bench_function(format!("append {seal} {} KiB", len >> 10), |b| {
                b.iter_custom(|count| {
                    let (mut took, mut left) = (Duration::ZERO, count);
                    while left > 0 {
                        let round = left.min((ROUND / (META.len() + len) as u64).max(1));
                        let start = Instant::now();
                        for _ in 0..round {
                            log.append(&META, data, Urgency::Normal).expect("room");
                        }
                        took += start.elapsed();
                        release(&log);
                        left -= round;
                    }
                    took
                });
            });
        }
    }
    group.finish();
}

/// A commit = a record of 4 KiB that is durable. Threads that wait for the same `fdatasync` share it.
fn commits(c: &mut Criterion) {
    let dir = disk();
    let log = log(dir.path(), true);
    let data = vec![5; 4 << 10];
    let commit = || {
        log.append(&META, Some(&data), Urgency::Normal).expect("room");
        log.sync().expect("a sync");
    };
    let mut group = c.benchmark_group("log");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for threads in [1, 8] {
        group.bench_function(format!("group commit, {threads} threads"), |b| {
            b.iter_custom(|count| {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for thread in 0..threads {
                        scope.spawn(move || (thread..count).step_by(threads as usize).for_each(|_| commit()));
                    }
                });
                let took = start.elapsed();
                release(&log);
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, appends, commits);
criterion_main!(benches);
