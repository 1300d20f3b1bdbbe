//! What overlays cost and hold, and damaged ones.

use super::*;

const COUNT: u64 = 40_000;

fn key(n: u64) -> Vec<u8> {
    live_key(n, 1, b"0123456789")
}

fn large() -> (Nodes, Root) {
    let mut nodes = Nodes::default();
    let edits = (0..COUNT).map(|n| (key(n), Some(vec![n as u8; 60]))).collect();
    let (root, _) = nodes.apply(None, edits, REAL);
    (nodes, root.expect("not empty"))
}

fn put(n: u64, value: &[u8]) -> Edit {
    (key(n), Some(value.to_vec()))
}

/// With the limits that everybody gets.
fn applied(nodes: &mut Nodes, root: Root, edits: Vec<Edit>) -> (Root, usize) {
    let mut sink = Sink::default();
    let new = apply::<_, _, Failure>(nodes, &mut sink, Some(root), edits.into_iter()).expect("valid edits");
    let bytes = sink.new.iter().map(|(_, bytes)| bytes.len()).sum();
    for (_, bytes) in sink.new {
        nodes.insert(&bytes);
    }
    (new.expect("not empty"), bytes)
}

#[test]
fn the_format_is_as_written_down() {
    let (mut nodes, base) = large();
    let (root, _) = applied(&mut nodes, base, vec![(key(1), None), put(2, b"two"), put(COUNT, b"more")]);
    assert_eq!((root.height, root.entries), (0x80 | base.height, COUNT));
    let node = nodes.map[&root.node].clone();
    assert_eq!((node.level(), node.len()), (0, 3));
    let names: Vec<&[u8]> = (0..3).map(|i| node.key(i)).collect();
    assert_eq!(names, [b"base".as_slice(), b"deleted", b"put"]);
    let part = |i: usize| Root::decode_option(node.value(i).try_into().unwrap()).unwrap();
    assert_eq!(part(0), Some(base));
    assert_eq!(nodes.contents(part(1)), Map::from([(key(1), vec![])]));
    assert_eq!(nodes.contents(part(2)), Map::from([(key(2), b"two".to_vec()), (key(COUNT), b"more".to_vec())]));
    assert_eq!(Root::decode(&root.encode()), Ok(root));
    assert_eq!(get(&nodes, Some(root), &key(1)), Ok(None));
    assert_eq!(get(&nodes, Some(root), &key(2)).unwrap().as_deref(), Some(b"two".as_slice()));
    assert_eq!(get(&nodes, Some(root), &key(3)).unwrap().as_deref(), Some([3; 60].as_slice()));
}

#[test]
fn scattered_changes_of_a_large_tree_write_little_and_read_nothing_of_it() {
    let (mut nodes, base) = large();
    let edits: Vec<Edit> = (0..500).map(|n| put(n * 80, &[7; 60])).collect();
    let known: usize = edits.iter().map(|(key, value)| key.len() + value.as_ref().unwrap().len()).sum();
    nodes.reads.set(0);
    let (root, bytes) = applied(&mut nodes, base, edits.clone());
    assert_eq!(nodes.reads.get(), 0);
    assert!(bytes < 2 * known, "{bytes} bytes of nodes for {known} of edits");
    let mut sink = Sink::default();
    apply_plain::<_, _, Failure>(&nodes, &mut sink, Some(base), edits.into_iter(), REAL).unwrap();
    let plain: usize = sink.new.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(plain > 20 * bytes, "{plain} bytes without the overlay, {bytes} with it");
    assert_eq!(tree_diff(&nodes, Some(base), Some(root)).len(), 500);
}

#[test]
fn what_is_too_much_for_an_overlay_goes_into_the_base() {
    let (mut nodes, base) = large();
    let most = COUNT / 64;
    let (mut root, _) = applied(&mut nodes, base, (0..most).map(|n| put(n * 3, b"first")).collect());
    assert_eq!(root.height, 0x80 | base.height);
    (root, _) = applied(&mut nodes, root, vec![(key(0), None), put(1, b"second")]);
    assert!(root.height < 0x80, "one entry too many");
    assert_eq!(root.entries, COUNT - 1);
    assert_eq!(get(&nodes, Some(root), &key(3)).unwrap().as_deref(), Some(b"first".as_slice()));
    assert_eq!(get(&nodes, Some(root), &key(1)).unwrap().as_deref(), Some(b"second".as_slice()));
    assert_eq!(get(&nodes, Some(root), &key(0)), Ok(None));
    nodes.check(Some(root), REAL);
    // And so does what is large.
    let (root, _) = applied(&mut nodes, base, vec![put(1, b"small")]);
    let (root, _) = applied(&mut nodes, root, vec![put(2, &[1; 1025])]);
    assert!(root.height < 0x80);
    assert_eq!(get(&nodes, Some(root), &key(1)).unwrap().as_deref(), Some(b"small".as_slice()));
}

#[test]
fn a_walk_sees_all_parts() {
    let (mut nodes, base) = large();
    let (root, _) = applied(&mut nodes, base, vec![(key(1), None), put(2, b"two")]);
    let mut seen = Vec::new();
    let mut all = |id: &ChunkId| *id != base.node;
    walk_new(&nodes, Some(root), &mut all, &mut |id, _| {
        seen.push(id);
        Ok(())
    })
    .unwrap();
    let parts = Parts::of(&nodes, Some(root)).unwrap();
    assert_eq!(seen, [root.node, parts.deleted.unwrap().node, parts.put.unwrap().node]);
}

#[test]
fn a_damaged_overlay_is_refused() {
    let (mut nodes, base) = large();
    let (root, _) = applied(&mut nodes, base, vec![(key(1), None), put(2, b"two")]);
    let parts = Parts::of(&nodes, Some(root)).unwrap();
    let node_of = |entries: &[(&[u8], Vec<u8>)]| {
        let mut buffer = crate::tree::buffer::NodeBuffer::default();
        entries.iter().for_each(|(key, value)| buffer.push(key, value));
        buffer.encode(0)
    };
    let bytes = |part| Root::encode_option(part).to_vec();
    let (some, put) = (bytes(parts.base), bytes(parts.put));
    let bad: [&[(&[u8], Vec<u8>)]; 6] = [
        &[(b"base", some.clone()), (b"put", put.clone())],
        &[(b"base", some.clone()), (b"deleted", bytes(None)), (b"puts", put.clone())],
        &[(b"base", some.clone()), (b"deleted", vec![0; 40]), (b"put", put.clone())],
        // Nothing pending, no base, an overlay as a part.
        &[(b"base", some.clone()), (b"deleted", bytes(None)), (b"put", bytes(None))],
        &[(b"base", bytes(None)), (b"deleted", bytes(None)), (b"put", put.clone())],
        &[(b"base", some.clone()), (b"deleted", bytes(Some(root))), (b"put", put.clone())],
    ];
    for entries in bad {
        let node = nodes.insert(&node_of(entries));
        let wrong = Some(Root { node, ..root });
        let expected = Failure::Tree(TreeError::Overlay { node });
        assert_eq!(get(&nodes, wrong, b"x").unwrap_err(), expected);
        assert_eq!(range(&nodes, wrong, Bound::Unbounded, Bound::Unbounded).next().unwrap().unwrap_err(), expected);
        assert_eq!(diff(&nodes, None, wrong).next().unwrap().unwrap_err(), expected);
        assert_eq!(walk_new(&nodes, wrong, &mut |_| true, &mut |_, _| Ok(())).unwrap_err(), expected);
        let edits = [(vec![], None)].into_iter();
        assert_eq!(apply::<_, _, Failure>(&nodes, &mut Sink::default(), wrong, edits).unwrap_err(), expected);
    }
    // Counts that no tree has don't pass any bound: all goes into the base, and there they are found out.
    let endless = parts.put.map(|put| Root { entries: u64::MAX, ..put });
    let node = nodes.insert(&node_of(&[
        (b"base", some.clone()),
        (b"deleted", bytes(parts.deleted)),
        (b"put", bytes(endless)),
    ]));
    let wrong = Root { node, ..root };
    assert_eq!(get(&nodes, Some(wrong), &key(2)).unwrap().as_deref(), Some(b"two".as_slice()));
    assert!(applied(&mut nodes, wrong, vec![(key(5), None)]).0.height < 0x80);
    // Its height and count are those of its base.
    for wrong in [Root { height: root.height + 1, ..root }, Root { entries: root.entries + 1, ..root }] {
        assert_eq!(get(&nodes, Some(wrong), b"x").unwrap_err(), Failure::Tree(TreeError::Overlay { node: root.node }));
    }
    let wrong = Some(Root { height: 0x80, ..root });
    assert_eq!(
        get(&nodes, wrong, b"x").unwrap_err(),
        Failure::Tree(TreeError::Root { height: 0x80, entries: root.entries })
    );
}
