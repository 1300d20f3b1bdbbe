//! Bytes, sizes, and how much is read and written.

use super::*;

fn filled(count: u64) -> (Nodes, Option<Root>) {
    let mut nodes = Nodes::default();
    let edits = (0..count).map(|n| (live_key(n, 1, b"0123456789abcdef"), Some(vec![n as u8; 60]))).collect();
    let (root, _) = nodes.apply(None, edits, REAL);
    (nodes, root)
}

#[test]
fn the_format_is_as_written_down() {
    let mut nodes = Nodes::default();
    let (root, _) = nodes.apply(
        None,
        vec![
            (b"".to_vec(), Some(b"empty".to_vec())),
            (b"ab".to_vec(), Some(vec![])),
            (b"b".to_vec(), Some(b"xyz".to_vec())),
        ],
        REAL,
    );
    let root = root.unwrap();
    let leaf = b"T\x01\x00\x00\x00\x00\x03\x00\x05\x00\x00\x00\x07\x00\x02\x00\x0b\x00\x01\x00emptyabbxyz";
    assert_eq!(nodes.map[&root.node].bytes(), leaf);
    assert_eq!((root.height, root.entries), (1, 3));
    assert_eq!(root.node.as_bytes(), blake3::hash(leaf).as_bytes());

    // Two leaves and the branch over them; "b" is the shortest string between "aaa…" and "bbb…".
    let edits = vec![(vec![b'a'; 100], Some(vec![1; 100])), (vec![b'b'; 100], Some(vec![2; 100]))];
    let (root, _) = nodes.apply(None, edits, SMALL);
    let root = root.unwrap();
    let node = &nodes.map[&root.node];
    let ids: Vec<_> = node.child_ids().collect();
    let mut branch = b"T\x01\x01\x00\x00\x00\x02\x00\x20\x00\x00\x00\x41\x00\x01\x00".to_vec();
    branch.extend_from_slice(ids[0].as_bytes());
    branch.push(b'b');
    branch.extend_from_slice(ids[1].as_bytes());
    assert_eq!(node.bytes(), branch);
    assert_eq!((root.height, root.entries), (2, 2));
}

#[test]
fn a_root_is_41_bytes() {
    let root = Root { node: ChunkId([7; 32]), height: 3, entries: 0x0102 };
    let bytes = root.encode();
    assert_eq!(bytes[..33], [[7; 32].as_slice(), &[3]].concat());
    assert_eq!(bytes[33..], [2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Root::decode(&bytes), Ok(root));
    assert_eq!(Root::decode_option(&Root::encode_option(Some(root))), Ok(Some(root)));
    assert_eq!(Root::decode_option(&Root::encode_option(None)), Ok(None));
    for (height, entries) in [(0, 1), (17, 1), (1, 0)] {
        let bad = Root { node: ChunkId([7; 32]), height, entries }.encode();
        assert_eq!(Root::decode(&bad), Err(TreeError::Root { height, entries }));
        assert_eq!(Root::decode_option(&bad), Err(TreeError::Root { height, entries }));
    }
}

#[test]
fn bulk_inserts_make_full_nodes() {
    let (nodes, root) = filled(100_000);
    nodes.check(root, REAL);
    let bytes: usize = nodes.map.values().map(|node| node.bytes().len()).sum();
    assert!(bytes / nodes.map.len() > NODE_TARGET * 9 / 10, "{bytes} bytes in {} nodes", nodes.map.len());
}

#[test]
fn one_change_reads_and_writes_one_path() {
    let (mut nodes, root) = filled(200_000);
    let height = u64::from(root.unwrap().height);
    for n in [0, 1, 77_777, 199_999, 300_000] {
        nodes.reads.set(0);
        let edit = (live_key(n, 1, b"0123456789abcdef"), Some(b"changed".to_vec()));
        let (new, written) = nodes.apply(root, vec![edit], REAL);
        assert_eq!(nodes.reads.get(), height, "entry {n}");
        // A full leaf that grows becomes two.
        assert!(written as u64 <= height + 1, "entry {n} wrote {written}");
        nodes.reads.set(0);
        assert_eq!(tree_diff(&nodes, root, new).len(), 1);
        assert!(nodes.reads.get() <= 2 * height + 1, "entry {n} read {}", nodes.reads.get());
    }
}

#[test]
fn a_diff_reads_in_proportion_to_the_changes() {
    let (mut nodes, old) = filled(200_000);
    let leaves = nodes.map.len() as u64;
    let mut numbers = Numbers(1);
    let mut new = old;
    // Scattered inserts, removals and changes, in five steps, so that nodes split and merge.
    for _ in 0..5 {
        let mut edits = Map::new();
        for _ in 0..10 {
            edits.insert(live_key(numbers.next() % 200_000, 1, b"0123456789abcdef"), b"new".to_vec());
        }
        let edits = edits.into_iter().map(|(k, v)| if k[7] % 2 == 0 { (k, None) } else { (k, Some(v)) }).collect();
        (new, _) = nodes.apply(new, edits, REAL);
    }
    nodes.reads.set(0);
    let changes = tree_diff(&nodes, old, new).len() as u64;
    assert!((40..=50).contains(&changes), "{changes}");
    assert!(nodes.reads.get() <= 2 * (changes * 2 + 6), "{} reads for {changes} changes", nodes.reads.get());
    assert!(nodes.reads.get() < leaves / 3);
    nodes.reads.set(0);
    assert_eq!(tree_diff(&nodes, new, new), []);
    assert_eq!(nodes.reads.get(), 0);
}

#[test]
fn removed_leaves_are_found_without_reading_their_neighbours() {
    let (mut nodes, old) = filled(200_000);
    // Every second of the first twenty leaves.
    let mut ranges = Vec::new();
    walk_new(&nodes, old, &mut |_| true, &mut |_, node| {
        if node.level() == 0 {
            ranges.push((node.key(0).to_vec(), node.key(node.len() - 1).to_vec()));
        }
        Ok(())
    })
    .unwrap();
    let removed: Vec<_> = ranges
        .iter()
        .take(20)
        .step_by(2)
        .flat_map(|(first, last)| scan(&nodes, old, Bound::Included(first), Bound::Included(last)))
        .collect();
    let (new, written) = nodes.apply(old, removed.iter().map(|(key, _)| (key.clone(), None)).collect(), REAL);
    nodes.check(new, REAL);
    let branches = u64::from(old.unwrap().height) - 1;
    assert_eq!(written as u64, branches);
    nodes.reads.set(0);
    assert_eq!(tree_diff(&nodes, old, new).len(), removed.len());
    // The leaves removed, the branches above them, and one leaf more on either side: the first one goes without separator.
    assert_eq!(nodes.reads.get(), 10 + 2 * branches + 2);
}

#[test]
fn a_short_range_reads_one_path() {
    let (nodes, root) = filled(200_000);
    nodes.reads.set(0);
    for n in 1000..2000 {
        let (from, to) = (live_key(n, 0, b""), live_key(n, 9, b""));
        assert_eq!(scan(&nodes, root, Bound::Included(&from), Bound::Excluded(&to)).len(), 1);
    }
    // Some begin at the end of the leaf before.
    let paths = 1000 * u64::from(root.unwrap().height);
    assert!((paths..paths + 10).contains(&nodes.reads.get()), "{}", nodes.reads.get());
}

#[test]
fn the_largest_entries_fit() {
    let mut nodes = Nodes::default();
    let edits: Vec<Edit> =
        (0..50u8).map(|n| ([vec![n], vec![b'k'; KEY_MAX - 1]].concat(), Some(vec![n; VALUE_MAX]))).collect();
    let (root, _) = nodes.apply(None, edits.clone(), REAL);
    nodes.check(root, REAL);
    assert_eq!(nodes.contents(root), edits.into_iter().map(|(k, v)| (k, v.unwrap())).collect());
}

#[test]
fn the_leftmost_entries_may_go_and_smaller_ones_come() {
    let mut nodes = Nodes::default();
    let key = |n: u64| live_key(n, 1, b"");
    let put = |range: std::ops::Range<u64>| range.map(|n| (key(n), Some(vec![1; 30]))).collect::<Vec<Edit>>();
    let (mut root, _) = nodes.apply(None, put(1000..2000), SMALL);
    (root, _) = nodes.apply(root, (1000..1500).map(|n| (key(n), None)).collect(), SMALL);
    nodes.check(root, SMALL);
    (root, _) = nodes.apply(root, put(0..700), SMALL);
    nodes.check(root, SMALL);
    let keys: Vec<_> = nodes.contents(root).into_keys().collect();
    assert_eq!(keys, (0..700).chain(1500..2000).map(key).collect::<Vec<_>>());
}
