//! How fast chunks are cut: `cargo bench -p axiomfs-chunker-fastcdc`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use axiomfs_api::Chunker;
use axiomfs_api::conformance::Noise;
use axiomfs_chunker_fastcdc::{DEFAULT_SIZES, FastCdc};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const BYTES: usize = 32 << 20;

fn cutting(c: &mut Criterion) {
    let chunker = FastCdc::new(0x1234, DEFAULT_SIZES);
    let mut group = c.benchmark_group("chunker");
    group.sample_size(10).throughput(Throughput::Bytes(BYTES as u64));
    for (name, data) in [("noise", Noise::new(1).bytes(BYTES)), ("text", Noise::new(1).text(BYTES))] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let (mut at, mut count) = (0, 0);
                while at < data.len() {
                    at += chunker.cut(&data[at..]);
                    count += 1;
                }
                count
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cutting);
criterion_main!(benches);
