//! Every operation against a `BTreeMap`.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        // Dense: many collisions, short keys, prefixes of each other.
        4 => vec(0u8..4, 0..5),
        4 => (0u64..400).prop_map(|n| n.to_be_bytes().to_vec()),
        2 => (0u64..20, 0u8..3, vec(any::<u8>(), 0..12)).prop_map(|(inode, kind, sub)| live_key(inode, kind, &sub)),
        1 => vec(any::<u8>(), 0..24),
    ]
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let value = prop_oneof![3 => vec(any::<u8>(), 0..30).prop_map(Some), 2 => Just(None)];
    let random = btree_map(key(), value, 0..120);
    // Whole ranges inserted or removed at once: nodes that empty, and long runs.
    let run = (0u64..400, 0u64..400, any::<bool>()).prop_map(|(start, len, insert)| {
        (start..start + len).map(|n| (n.to_be_bytes().to_vec(), insert.then(|| vec![7; (n % 20) as usize]))).collect()
    });
    let all = any::<u8>().prop_map(|_| (0..3000u64).map(|n| (n.to_be_bytes().to_vec(), None)).collect());
    prop_oneof![8 => random, 4 => run, 1 => all].prop_map(|edits| edits.into_iter().collect())
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![key().prop_map(Bound::Included), key().prop_map(Bound::Excluded), Just(Bound::Unbounded)]
}

fn change(map: &mut Map, edits: &[Edit]) {
    for (key, value) in edits {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// No overlays, small ones, and such that few edits fold.
fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![2 => Just(PLAIN), 1 => Just(Limits { share: 1, most: 60 }), 1 => Just(Limits { share: 2, most: 1000 })]
}

/// The trees and maps after each of a sequence of edits.
fn history(all: &[Vec<Edit>], limits: Limits) -> (Nodes, Vec<(Option<Root>, Map)>) {
    let mut nodes = Nodes::default();
    let mut states = vec![(None, Map::new())];
    for edits in all {
        let (root, mut map) = states.last().expect("never empty").clone();
        change(&mut map, edits);
        let (root, _) = nodes.apply_limited(root, edits.clone(), SMALL, limits);
        states.push((root, map));
    }
    (nodes, states)
}

/// A range of a map, as `BTreeMap` itself refuses crossed bounds.
fn map_range(map: &Map, from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let after = |key: &Vec<u8>| match from {
        Bound::Included(from) => key >= from,
        Bound::Excluded(from) => key > from,
        Bound::Unbounded => true,
    };
    let before = |key: &Vec<u8>| match to {
        Bound::Included(to) => key <= to,
        Bound::Excluded(to) => key < to,
        Bound::Unbounded => true,
    };
    map.iter().filter(|(key, _)| after(key) && before(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sequence_of_edits_gives_what_a_map_gives(limits in limits(), all in vec(edits(), 1..10)) {
        let (nodes, states) = history(&all, limits);
        for (root, map) in &states {
            nodes.check(*root, SMALL);
            prop_assert_eq!(&nodes.contents(*root), map);
            if limits.most == 0 {
                prop_assert_eq!(root.map_or(0, |root| root.entries), map.len() as u64);
            }
        }
        // And back to nothing, from every state.
        for (root, map) in &states {
            let mut nodes = Nodes { map: nodes.map.clone(), ..Nodes::default() };
            let none = map.keys().map(|key| (key.clone(), None)).collect();
            let (left, written) = nodes.apply(*root, none, SMALL);
            // Folding an overlay in may write nodes on the way; emptying a plain tree writes none.
            prop_assert_eq!((left, if limits.most == 0 { written } else { 0 }), (None, 0));
        }
    }

    #[test]
    fn lookups_give_what_a_map_gives(limits in limits(), all in vec(edits(), 1..5), keys in vec(key(), 1..100)) {
        let (nodes, states) = history(&all, limits);
        let (root, map) = states.last().expect("never empty");
        for key in keys.iter().chain(map.keys()) {
            let expected = map.get(key).cloned();
            prop_assert_eq!(&get(&nodes, *root, key).unwrap().map(|value| value.to_vec()), &expected);
            let owned = |entry: Option<(KeyRef, ValueRef)>| entry.map(|(key, value)| (key.to_vec(), value.to_vec()));
            let entry = |entry: Option<(&Vec<u8>, &Vec<u8>)>| entry.map(|(key, value)| (key.clone(), value.clone()));
            let after = map.range::<Vec<u8>, _>((Bound::Excluded(key), Bound::Unbounded)).next();
            prop_assert_eq!(owned(first_after(&nodes, *root, key).unwrap()), entry(after));
            let before = map.range::<Vec<u8>, _>(..=key).next_back();
            prop_assert_eq!(owned(last_at_or_before(&nodes, *root, key).unwrap()), entry(before));
        }
    }

    #[test]
    fn ranges_give_what_a_map_gives(limits in limits(), all in vec(edits(), 1..5), bounds in vec((bound(), bound()), 1..20)) {
        let (nodes, states) = history(&all, limits);
        let (root, map) = states.last().expect("never empty");
        for (from, to) in &bounds {
            let expected = map_range(map, from, to);
            prop_assert_eq!(&scan(&nodes, *root, slice(from), slice(to)), &expected);
            let mut range = range(&nodes, *root, slice(from), slice(to));
            for (key, value) in &expected {
                prop_assert_eq!(range.next_borrowed().unwrap(), Some((key.as_slice(), value.as_slice())));
            }
            prop_assert_eq!(range.next_borrowed().unwrap(), None);
            prop_assert_eq!(range.next_borrowed().unwrap(), None);
        }
    }

    #[test]
    fn a_diff_gives_what_differs(limits in limits(), all in vec(edits(), 1..6)) {
        let (nodes, states) = history(&all, limits);
        for (old, old_map) in &states {
            for (new, new_map) in &states {
                prop_assert_eq!(tree_diff(&nodes, *old, *new), map_diff(old_map, new_map));
            }
        }
    }

    #[test]
    fn reading_goes_on_where_an_error_stopped_it(limits in limits(), all in vec(edits(), 2..5), every in 2u64..6, keys in vec(key(), 20)) {
        let (mut nodes, states) = history(&all, limits);
        let (root, map) = states.last().expect("never empty");
        let (base, base_map) = &states[states.len() - 2];
        // An overlay looks keys up again from the root: it goes on only where what was fetched stays.
        if limits.most == 0 {
            nodes.fail_every = every;
        } else {
            nodes.cold = true;
        }
        let mut entries = Map::new();
        for entry in range(&nodes, *root, Bound::Unbounded, Bound::Unbounded) {
            match entry {
                Ok((key, value)) => prop_assert!(entries.insert(key.to_vec(), value.to_vec()).is_none()),
                Err(error) => prop_assert_eq!(error, Failure::NotCached),
            }
        }
        prop_assert_eq!(&entries, map);
        nodes.forget();
        let mut changes = Vec::new();
        for change in diff(&nodes, *base, *root) {
            match change {
                Ok((key, old, new)) => changes.push((key.to_vec(), old.map(|v| v.to_vec()), new.map(|v| v.to_vec()))),
                Err(error) => prop_assert_eq!(error, Failure::NotCached),
            }
        }
        prop_assert_eq!(changes, map_diff(base_map, map));
        (nodes.fail_every, nodes.cold) = (0, true);
        nodes.forget();
        for key in &keys {
            let value = loop {
                match get(&nodes, *root, key) {
                    Ok(value) => break value,
                    Err(error) => prop_assert_eq!(error, Failure::NotCached),
                }
            };
            prop_assert_eq!(value.as_deref(), map.get(key).map(Vec::as_slice));
        }
    }

    #[test]
    fn a_failed_apply_is_an_error_and_leaves_the_tree(limits in limits(), all in vec(edits(), 2..5), every in 1u64..20) {
        let (mut nodes, states) = history(&all, limits);
        let (base, base_map) = &states[states.len() - 2];
        let (root, _) = states.last().expect("never empty");
        nodes.fail_every = every;
        nodes.reads.set(0);
        let edits = all.last().expect("never empty").clone();
        let answer = apply_limited::<_, _, Failure>(&nodes, &mut Sink::default(), *base, edits.into_iter(), SMALL, limits);
        if nodes.reads.get() >= every {
            prop_assert_eq!(answer, Err(Failure::NotCached));
        } else {
            prop_assert_eq!(answer, Ok(*root));
        }
        nodes.fail_every = 0;
        prop_assert_eq!(&nodes.contents(*base), base_map);
    }

    #[test]
    fn the_same_edits_make_the_same_bytes(limits in limits(), all in vec(edits(), 1..5)) {
        let (mut nodes, states) = history(&all, limits);
        let (again, other) = history(&all, limits);
        prop_assert_eq!(&states, &other);
        prop_assert_eq!(nodes.map.len(), again.map.len());
        // Edits that change nothing write no leaf, and no branch that wasn't there.
        // Through an overlay they would be noted all the same.
        let (root, map) = states.last().expect("never empty");
        if limits.most > 0 {
            return Ok(());
        }
        let mut same: Vec<Edit> = map.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        same.extend((0..50u8).map(|n| (vec![250, n], None)).filter(|(key, _)| !map.contains_key(key)));
        same.sort();
        let known = nodes.map.len();
        let (unchanged, written) = nodes.apply(*root, same, SMALL);
        prop_assert_eq!((unchanged, nodes.map.len()), (*root, known));
        let mut branches = 0;
        walk_new(&nodes, *root, &mut |_| true, &mut |_, node| { branches += usize::from(node.level() > 0); Ok(()) }).unwrap();
        prop_assert!(written <= branches);
    }

    #[test]
    fn a_walk_visits_each_new_node_once_in_key_order(limits in limits(), all in vec(edits(), 1..5)) {
        let (nodes, states) = history(&all, limits);
        let mut known = HashSet::new();
        for (root, map) in &states {
            let mut visited = Vec::new();
            let mut leaves = Map::new();
            let mut last = None;
            walk_new(&nodes, *root, &mut |id| !known.contains(id), &mut |id, node| {
                visited.push(id);
                if node.level() == 0 && limits.most == 0 {
                    assert!(last.as_deref() < Some(node.key(0)));
                    last = Some(node.key(node.len() - 1).to_vec());
                    leaves.extend((0..node.len()).map(|i| (node.key(i).to_vec(), node.value(i).to_vec())));
                }
                Ok(())
            })
            .unwrap();
            if limits.most == 0 {
                prop_assert!(leaves.iter().all(|(key, value)| map.get(key) == Some(value)));
                prop_assert!(!known.is_empty() || leaves == *map);
            }
            let distinct: HashSet<_> = visited.iter().copied().collect();
            prop_assert_eq!(distinct.len(), visited.len());
            prop_assert!(known.is_disjoint(&distinct));
            known.extend(distinct);
            let reached = nodes.map.iter().filter(|(id, _)| known.contains(*id)).map(|(id, node)| (*id, node.clone()));
            prop_assert_eq!(&Nodes { map: reached.collect(), ..Nodes::default() }.contents(*root), map);
            // Nothing is left that is both of this tree and unknown.
            let mut all = 0;
            walk_new(&nodes, *root, &mut |_| true, &mut |id, _| { all += 1; assert!(known.contains(&id)); Ok(()) }).unwrap();
            prop_assert!(all >= visited.len());
        }
    }

    #[test]
    fn real_sizes_too(seed in any::<u64>(), count in 1usize..4000, large in 0usize..40) {
        let mut numbers = Numbers(seed);
        let mut nodes = Nodes::default();
        let mut map = Map::new();
        let mut root = None;
        for _ in 0..3 {
            let mut edits = std::collections::BTreeMap::new();
            for i in 0..count {
                let n = numbers.next();
                let len = if i < large { n % 16_385 } else { n >> 32 & 127 };
                let sub = vec![b'n'; (n >> 50) as usize % 256];
                let value = (!n.is_multiple_of(4)).then(|| vec![n as u8; len as usize]);
                edits.insert(live_key(n % 2000, (n % 5) as u8, &sub), value);
            }
            let edits: Vec<Edit> = edits.into_iter().collect();
            change(&mut map, &edits);
            (root, _) = nodes.apply(root, edits, REAL);
            nodes.check(root, REAL);
            prop_assert_eq!(&nodes.contents(root), &map);
        }
    }
}
