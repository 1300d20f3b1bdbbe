//! What finding a chunk costs when its blocks are in memory: `cargo bench -p axiomfs-repository --bench index`. An index
//! that is larger than memory: `scripts/bench --index`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod bed;

use axiomfs_api::conformance::Noise;
use axiomfs_repository::{Added, FrameClass, FrameKind, Label};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use bed::{Bed, add, commit};

const CHUNKS: usize = 40_000;
const SIZE: usize = 256;

fn lookups(c: &mut Criterion) {
    let (bed, data) = (Bed::new(), Noise::new(3).bytes(CHUNKS * SIZE));
    let writer = bed.writer();
    let ids = add(&writer, &data, SIZE);
    writer.load_segments(&commit(&writer)).expect("segments");
    let class = FrameClass { owner: 0, route: "default".into(), kind: FrameKind::Data, sort: Label::NONE };
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(1));
    let mut next = 0;
    group.bench_function("known chunk", |b| {
        b.iter(|| {
            next = (next + 7919) % CHUNKS;
            let chunk = &data[next * SIZE..][..SIZE];
            let added = writer.add_chunk(class.clone(), ids[next], chunk).expect("a look-up");
            assert_eq!(added, Added::Known);
        });
    });
    let absent: Vec<_> = (0..CHUNKS as u64).map(|n| writer.data_id(&n.to_le_bytes())).collect();
    group.bench_function("absent chunk", |b| {
        b.iter(|| {
            next = (next + 7919) % CHUNKS;
            writer.chunk_cached(&absent[next])
        });
    });
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
