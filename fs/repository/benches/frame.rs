//! How fast chunks become frames in packs, and come back: `cargo bench -p axiomfs-repository --bench frame`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod bed;

use axiomfs_api::conformance::Noise;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use bed::{Bed, add, commit};

const BYTES: usize = 16 << 20;

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    group.sample_size(10).throughput(Throughput::Bytes(BYTES as u64));
    for (name, size, text) in [
        ("noise, 1 MiB chunks", 1 << 20, false),
        ("text, 1 MiB chunks", 1 << 20, true),
        ("text, 4 KiB chunks", 4 << 10, true),
    ] {
        let mut noise = Noise::new(size as u64);
        let mut make = || if text { noise.text(BYTES) } else { noise.bytes(BYTES) };
        group.bench_function(format!("add {name}"), |b| {
            // Each time other chunks, in a repository of their own: a known one is not added.
            let setup = || {
                let bed = Bed::new();
                let repository = bed.writer();
                (bed, repository, make())
            };
            b.iter_batched(
                setup,
                |(bed, repository, data)| (add(&repository, &data, size), repository, bed),
                BatchSize::PerIteration,
            );
        });
        let bed = Bed::new();
        let writer = bed.writer();
        let ids = add(&writer, &make(), size);
        let segments = commit(&writer);
        group.bench_function(format!("read {name}"), |b| {
            b.iter_batched(
                || bed.cold(&segments),
                |cold| ids.iter().map(|id| cold.read_chunk(id).expect("a chunk").len()).sum::<usize>(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
