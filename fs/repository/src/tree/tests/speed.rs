//! Prints how fast the tree is. Run with `--release -- --nocapture speed` for numbers that mean something.

use std::time::Instant;

use super::*;

const COUNT: u64 = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };

fn per_second(what: &str, count: u64, start: Instant) {
    let took = start.elapsed();
    println!("{what}: {count} in {took:.1?}, {:.2} M/s", count as f64 / took.as_secs_f64() / 1e6);
}

/// Directories of 100 entries: each has a record, and for each entry an 8-byte sequence number, a name's hash, and an extended attribute.
fn key(n: u64) -> Vec<u8> {
    let (inode, n) = (0x0100_0000 + n / 300, n % 300);
    match n / 100 {
        0 => live_key(inode, 1, &(16 + n % 100).to_be_bytes()),
        1 => live_key(
            inode,
            2,
            &[&((n as u32 % 100) << 25 | inode as u32 & 0xffff).to_be_bytes()[..], &n.to_be_bytes()].concat(),
        ),
        _ => live_key(inode, 3, format!("user.attribute.of.some.length.{n}").as_bytes()),
    }
}

/// Counts nodes without hashing them: the speed of the tree alone.
#[derive(Default)]
struct Count(u64);

impl NodeSink for Count {
    type Error = Failure;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, Failure> {
        self.0 += 1;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.0.to_be_bytes());
        id[8] = bytes[2];
        Ok(ChunkId(id))
    }
}

#[test]
fn speed() {
    let mut numbers = Numbers(5);
    let edits: Vec<Edit> = (0..COUNT).map(|n| (key(n), Some(vec![n as u8; numbers.next() as usize % 151]))).collect();

    let start = Instant::now();
    apply::<_, _, Failure>(&Nodes::default(), &mut Count::default(), None, edits.iter().cloned()).unwrap();
    per_second("bulk inserts, tree alone (edits cloned)", COUNT, start);

    let mut sink = Sink::default();
    let owned = edits.clone();
    let start = Instant::now();
    let root = apply::<_, _, Failure>(&Nodes::default(), &mut sink, None, owned.into_iter()).unwrap();
    per_second("bulk inserts with BLAKE3", COUNT, start);

    let mut nodes = Nodes::default();
    let bytes: usize = sink.new.iter().map(|(_, bytes)| bytes.len()).sum();
    let start = Instant::now();
    for (id, bytes) in &sink.new {
        nodes.map.insert(*id, Arc::new(Node::parse(bytes.as_slice().into()).unwrap()));
    }
    println!(
        "parse: {} nodes, {:.2} GB/s, height {}",
        sink.new.len(),
        bytes as f64 / start.elapsed().as_secs_f64() / 1e9,
        root.unwrap().height
    );
    let heap: usize = nodes.map.values().map(|node| node.heap_bytes()).sum();
    println!("memory: {:.1} MB for {:.1} MB of nodes", heap as f64 / 1e6, bytes as f64 / 1e6);

    let keys: Vec<Vec<u8>> = (0..COUNT).map(|_| key(numbers.next() % COUNT)).collect();
    let start = Instant::now();
    let found = keys.iter().filter(|key| get(&nodes, root, key).unwrap().is_some()).count();
    per_second("random lookups", COUNT, start);
    assert_eq!(found as u64, COUNT);
    let hot = &keys[..1000];
    let start = Instant::now();
    for key in (0..COUNT as usize).map(|n| &hot[n % 1000]) {
        std::hint::black_box(get(&nodes, root, key).unwrap());
    }
    per_second("lookups among 1,000 keys", COUNT, start);

    let start = Instant::now();
    assert_eq!(range(&nodes, root, Bound::Unbounded, Bound::Unbounded).filter(Result::is_ok).count() as u64, COUNT);
    per_second("scan", COUNT, start);
    let start = Instant::now();
    let mut scan = range(&nodes, root, Bound::Unbounded, Bound::Unbounded);
    let mut sum = 0;
    while let Some((key, value)) = scan.next_borrowed().unwrap() {
        sum += key.len() + value.len();
    }
    per_second("borrowed scan", COUNT, start);
    assert_eq!(sum, edits.iter().map(|(key, value)| key.len() + value.as_ref().unwrap().len()).sum::<usize>());

    let start = Instant::now();
    for n in 0..COUNT / 10 {
        let from = key(n * 10);
        assert!(first_after(&nodes, root, &from).unwrap().is_some() || n * 10 == COUNT - 1);
    }
    per_second("first_after", COUNT / 10, start);

    let mut changes: Vec<Edit> =
        keys.iter().take(COUNT as usize / 50).map(|key| (key.clone(), Some(b"changed".to_vec()))).collect();
    changes.sort();
    changes.dedup();
    let count = changes.len() as u64;
    let start = Instant::now();
    let (new, written) = nodes.apply(root, changes, REAL);
    per_second(&format!("scattered changes ({written} nodes)"), count, start);
    let start = Instant::now();
    assert_eq!(diff(&nodes, root, new).filter(Result::is_ok).count() as u64, count);
    per_second("their diff", count, start);
}
