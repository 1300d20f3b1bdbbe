//! The metadata tree over nodes in memory: `cargo bench -p axiomfs-repository --bench tree`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::collections::HashMap;
use std::sync::Arc;

use axiomfs_api::conformance::Noise;
use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::tree::{Node, NodeSink, NodeSource, Root, TreeError, apply, get};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const ENTRIES: u64 = 200_000;
const CHANGES: u64 = 2_000;

type Change = (Vec<u8>, Option<Vec<u8>>);

/// All nodes of all trees, parsed.
#[derive(Default)]
struct Nodes(HashMap<ChunkId, Arc<Node>>);

impl NodeSource for Nodes {
    type Error = TreeError;

    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, TreeError> {
        Ok(self.0[id].clone())
    }
}

/// New nodes, named as a repository names them.
#[derive(Default)]
struct New(Vec<(ChunkId, Vec<u8>)>);

impl NodeSink for New {
    type Error = TreeError;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, TreeError> {
        let id = ChunkId(*blake3::keyed_hash(&[5; 32], &bytes).as_bytes());
        self.0.push((id, bytes));
        Ok(id)
    }
}

/// Directories of 100 entries, as a repository keys them: inode, kind, sub-key.
fn key(number: u64) -> Vec<u8> {
    [&(0x0100_0000 + number / 100).to_be_bytes()[..], &[1], &(16 + number % 100).to_be_bytes()].concat()
}

fn value(number: u64) -> Option<Vec<u8>> {
    Some(vec![number as u8; (number % 151) as usize])
}

fn built() -> (Nodes, Option<Root>) {
    let (mut nodes, mut new) = (Nodes::default(), New::default());
    let changes: Vec<Change> = (0..ENTRIES).map(|n| (key(n), value(n))).collect();
    let root = apply::<_, _, TreeError>(&nodes, &mut new, None, changes.into_iter()).expect("a tree");
    let parsed = new.0.into_iter().map(|(id, bytes)| (id, Arc::new(Node::parse(bytes.into()).expect("a node"))));
    nodes.0.extend(parsed);
    (nodes, root)
}

fn tree(c: &mut Criterion) {
    let (nodes, root) = built();
    let mut group = c.benchmark_group("tree");
    let mut noise = Noise::new(9);
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup", |b| {
        b.iter(|| get(&nodes, root, &key(noise.next_u64() % ENTRIES)).expect("a node").expect("an entry"));
    });
    group.bench_function("insert one", |b| {
        let mut new = New::default();
        b.iter(|| {
            new.0.clear();
            let change = [(key(noise.next_u64() % (2 * ENTRIES)), value(noise.next_u64()))];
            apply::<_, _, TreeError>(&nodes, &mut new, root, change.into_iter()).expect("a tree")
        });
    });
    group.sample_size(20);
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("bulk apply to nothing", |b| {
        let changes: Vec<Change> = (0..ENTRIES).map(|n| (key(n), value(n))).collect();
        b.iter_batched(
            || changes.clone(),
            |changes| apply::<_, _, TreeError>(&nodes, &mut New::default(), None, changes.into_iter()).expect("a tree"),
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(CHANGES));
    group.bench_function("bulk apply scattered", |b| {
        let changes: Vec<Change> =
            (0..CHANGES).map(|n| (key(n * ENTRIES / CHANGES), Some(b"changed".to_vec()))).collect();
        b.iter_batched(
            || changes.clone(),
            |changes| apply::<_, _, TreeError>(&nodes, &mut New::default(), root, changes.into_iter()).expect("a tree"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, tree);
criterion_main!(benches);
