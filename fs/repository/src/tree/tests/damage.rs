//! Bytes that are no nodes, and trees that don't hang together.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn leaf() -> Vec<u8> {
    let mut nodes = Nodes::default();
    let edits = (0..40u64).map(|n| (live_key(n, 1, b"name"), Some(vec![n as u8; n as usize]))).collect();
    let (root, _) = nodes.apply(None, edits, REAL);
    nodes.map[&root.expect("not empty").node].bytes().to_vec()
}

fn branch() -> Vec<u8> {
    let mut nodes = Nodes::default();
    let edits = (0..40u64).map(|n| (live_key(n, 1, b"name"), Some(vec![n as u8; 30]))).collect();
    let (root, _) = nodes.apply(None, edits, SMALL);
    nodes.map[&root.expect("not empty").node].bytes().to_vec()
}

/// Everything that a node can be asked.
fn use_up(node: &Arc<Node>, key: &[u8]) {
    let mut previous: Option<Vec<u8>> = None;
    for i in 0..node.len() {
        assert!(previous.as_deref().is_none_or(|previous| previous < node.key(i)));
        previous = Some(node.key(i).to_vec());
        assert!(node.value(i).len() <= VALUE_MAX);
        match node.level() {
            0 => assert_eq!(node.find(node.key(i)), Ok(i)),
            _ => assert_eq!(node.child_index(node.key(i)), i),
        }
    }
    assert!(node.child_index_or_find(key) <= node.len());
    assert_eq!(node.child_ids().count(), if node.level() > 0 { node.len() } else { 0 });
    assert!(node.heap_bytes() < 3 * NODE_MAX);
}

impl Node {
    fn child_index_or_find(&self, key: &[u8]) -> usize {
        if self.level() > 0 { self.child_index(key) } else { self.find(key).unwrap_or_else(|i| i) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused_or_used(bytes in vec(any::<u8>(), 0..400), key in vec(any::<u8>(), 0..20)) {
        if let Ok(node) = Node::parse(bytes.into()) {
            use_up(&Arc::new(node), &key);
        }
    }

    #[test]
    fn a_plausible_header_is_refused_or_used(
        level in 0u8..20, count in 0u16..9, slots in vec((0u16..70, 0u16..40), 0..9), heap in vec(any::<u8>(), 0..70),
        key in vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = vec![b'T', 1, level, 0, 0, 0];
        bytes.extend(count.to_le_bytes());
        for (end, key_len) in slots {
            bytes.extend(end.to_le_bytes());
            bytes.extend(key_len.to_le_bytes());
        }
        bytes.extend(heap);
        if let Ok(node) = Node::parse(bytes.into()) {
            use_up(&Arc::new(node), &key);
        }
    }

    #[test]
    fn a_damaged_node_is_refused_or_used(
        of_branch in any::<bool>(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(), key in vec(any::<u8>(), 0..20),
    ) {
        let mut bytes = if of_branch { branch() } else { leaf() };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(node) = Node::parse(bytes.into()) {
            use_up(&Arc::new(node), &key);
        }
    }
}

#[test]
fn each_kind_of_damage_is_named() {
    let good = leaf();
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        match Node::parse(bytes.into()) {
            Err(TreeError::Damaged { damage, .. }) => Some(damage),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        }
    };
    assert_eq!(damage(&|_| ()), None);
    assert_eq!(damage(&Vec::clear), Some(Damage::Length));
    assert_eq!(damage(&|b| b.truncate(100)), Some(Damage::Length));
    assert_eq!(damage(&|b| b.resize(NODE_MAX + 1, 0)), Some(Damage::Length));
    assert_eq!(damage(&|b| b[0] = 0), Some(Damage::Header));
    assert_eq!(damage(&|b| b[3] = 1), Some(Damage::Header));
    assert_eq!(damage(&|b| b[5] = 1), Some(Damage::Header));
    assert_eq!(damage(&|b| b[2] = HEIGHT_MAX), Some(Damage::Level));
    assert_eq!(damage(&|b| b[2] = 1), Some(Damage::Entry));
    assert_eq!(damage(&|b| b[6] = 0), Some(Damage::Empty));
    assert_eq!(damage(&|b| (b[2], b[8], b[10]) = (1, 45, 13)), Some(Damage::Separator));
    assert_eq!(damage(&|b| b.push(0)), Some(Damage::Slots));
    assert_eq!(damage(&|b| b.truncate(b.len() - 1)), Some(Damage::Slots));
    assert_eq!(damage(&|b| b[8] = 0), Some(Damage::Slots));
    // The first key's inode number becomes the greatest.
    assert_eq!(damage(&|b| b[8 + 4 * 40] = 0xff), Some(Damage::Order));
    let mut later = good.clone();
    later[1] = 2;
    assert_eq!(Node::parse(later.into()).unwrap_err(), TreeError::Version { version: 2 });
}

#[test]
fn a_node_says_that_an_entry_is_too_long() {
    for (key, value) in [(KEY_MAX + 1, 0), (0, VALUE_MAX + 1)] {
        let mut bytes = vec![b'T', 1, 0, 0, 0, 0, 1, 0];
        bytes.extend((key as u16 + value as u16).to_le_bytes());
        bytes.extend((key as u16).to_le_bytes());
        bytes.resize(bytes.len() + key + value, 1);
        let len = bytes.len();
        assert_eq!(Node::parse(bytes.into()).unwrap_err(), TreeError::Damaged { len, damage: Damage::Entry });
    }
}

#[test]
fn a_child_on_the_wrong_level_is_refused() {
    let mut nodes = Nodes::default();
    let edits = (0..4000u64).map(|n| (live_key(n, 1, b""), Some(vec![1; 30]))).collect();
    let (root, _) = nodes.apply(None, edits, SMALL);
    let root = root.expect("not empty");
    assert!(root.height > 2);
    for height in [1, root.height - 1, root.height + 1, HEIGHT_MAX] {
        let wrong = Some(Root { height, ..root });
        let expected =
            Failure::Tree(TreeError::Level { node: root.node, expected: height - 1, found: root.height - 1 });
        assert_eq!(get(&nodes, wrong, b"x").unwrap_err(), expected);
        assert_eq!(range(&nodes, wrong, Bound::Unbounded, Bound::Unbounded).next().unwrap().unwrap_err(), expected);
        assert_eq!(diff(&nodes, None, wrong).next().unwrap().unwrap_err(), expected);
        assert_eq!(walk_new(&nodes, wrong, &mut |_| true, &mut |_, _| Ok(())).unwrap_err(), expected);
        let edits = [(vec![], None)].into_iter();
        let applied = apply_plain::<_, _, Failure>(&nodes, &mut Sink::default(), wrong, edits, SMALL);
        assert_eq!(applied.unwrap_err(), expected);
    }
    for height in [0, HEIGHT_MAX + 1, 255] {
        let wrong = Some(Root { height, ..root });
        let expected = Failure::Tree(TreeError::Root { height, entries: root.entries });
        assert_eq!(get(&nodes, wrong, b"x").unwrap_err(), expected);
        assert_eq!(range(&nodes, wrong, Bound::Unbounded, Bound::Unbounded).next().unwrap().unwrap_err(), expected);
    }
}

/// A branch over `children` with the separators given.
fn branch_over(children: &[(&[u8], ChunkId)]) -> Vec<u8> {
    let mut buffer = crate::tree::buffer::NodeBuffer::default();
    for (separator, child) in children {
        buffer.push(separator, child.as_bytes());
    }
    buffer.encode(1)
}

#[test]
fn keys_outside_their_range_are_found() {
    let mut nodes = Nodes::default();
    let child =
        |nodes: &mut Nodes, key: &[u8]| nodes.apply(None, vec![(key.into(), Some(vec![]))], REAL).0.unwrap().node;
    let (a, z) = (child(&mut nodes, b"a"), child(&mut nodes, b"z"));
    let node = nodes.insert(&branch_over(&[(b"", z), (b"m", a)]));
    let root = Some(Root { node, height: 2, entries: 2 });
    let found = range(&nodes, root, Bound::Unbounded, Bound::Unbounded).last().unwrap().unwrap_err();
    assert_eq!(found, Failure::Tree(TreeError::OutOfRange { node: a }));
    for (key, node) in [(b"b", z), (b"x", a)] {
        let edits = [(key.to_vec(), Some(vec![]))].into_iter();
        let found = apply::<_, _, Failure>(&nodes, &mut Sink::default(), root, edits).unwrap_err();
        assert_eq!(found, Failure::Tree(TreeError::OutOfRange { node }));
    }
}

#[test]
fn bad_edits_are_refused() {
    let nodes = Nodes::default();
    let refused =
        |edits: Vec<Edit>| apply::<_, _, Failure>(&nodes, &mut Sink::default(), None, edits.into_iter()).unwrap_err();
    let put = |key: &[u8], len: usize| (key.to_vec(), Some(vec![0; len]));
    assert_eq!(refused(vec![put(&[0; KEY_MAX + 1], 0)]), Failure::Tree(TreeError::KeyTooLong { len: KEY_MAX + 1 }));
    assert_eq!(
        refused(vec![put(b"", 0), put(b"a", VALUE_MAX + 1)]),
        Failure::Tree(TreeError::ValueTooLong { len: VALUE_MAX + 1 })
    );
    assert_eq!(
        refused(vec![put(b"a", 0), put(b"b", 0), put(b"b", 0)]),
        Failure::Tree(TreeError::EditOrder { index: 2 })
    );
    assert_eq!(refused(vec![put(b"b", 0), (b"a".to_vec(), None)]), Failure::Tree(TreeError::EditOrder { index: 1 }));
}

#[test]
fn a_root_that_miscounts_is_found() {
    let mut nodes = Nodes::default();
    let (root, _) = nodes.apply(None, (0..10u8).map(|n| (vec![n], Some(vec![]))).collect(), REAL);
    let wrong = root.map(|root| Root { entries: 3, ..root });
    let edits = (0..5u8).map(|n| (vec![n], None));
    let found = apply::<_, _, Failure>(&nodes, &mut Sink::default(), wrong, edits).unwrap_err();
    assert_eq!(found, Failure::Tree(TreeError::Entries { node: root.unwrap().node, entries: 3 }));
}
