//! Metadata trees in the repository, against a `BTreeMap`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::support::*;
use crate::tree::{Root, apply, range};
use crate::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn edit(
    repository: &Repository,
    root: Option<Root>,
    model: &mut Model,
    random: &mut Random,
    count: usize,
) -> Option<Root> {
    let mut edits = BTreeMap::new();
    for _ in 0..count {
        let key = format!("key {:08}", random.below(200_000)).into_bytes();
        let value = (random.below(5) > 0).then(|| random.next().to_le_bytes().repeat(1 + random.below(6)));
        edits.insert(key, value);
    }
    for (key, value) in &edits {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
    let mut sink = repository;
    apply::<_, _, RepositoryError>(repository, &mut sink, root, edits.into_iter()).unwrap()
}

fn check(repository: &Repository, root: Option<Root>, model: &Model) {
    let found: Model = range(repository, root, Bound::Unbounded, Bound::Unbounded)
        .map(|entry| entry.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap())
        .collect();
    assert!(found == *model, "{} entries, expected {}", found.len(), model.len());
}

#[test]
fn trees_survive_checkpoints_commits_and_a_cold_mount() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut model, mut root) = (Random(41), Model::new(), None);
    for round in 0..12 {
        root = edit(&repository, root, &mut model, &mut random, 3000);
        check(&repository, root, &model);
        repository.flush().unwrap();
        if round % 3 == 2 {
            commit(&repository, root);
            check(&repository, root, &model);
            check(&bed.open_cold(), root, &model);
        }
    }
}

#[test]
fn superseded_nodes_are_not_uploaded() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut model, mut root) = (Random(43), Model::new(), None);
    for _ in 0..10 {
        root = edit(&repository, root, &mut model, &mut random, 2000);
        repository.flush().unwrap();
    }
    let staged = repository.stats().staged_chunks;
    commit(&repository, root);
    let indexed = repository.stats().indexed_chunks;
    assert!(indexed * 4 < staged, "{indexed} of {staged} nodes");
    assert_eq!(repository.stats().staged_chunks, 0, "nothing is kept");
    assert_eq!(bed.staged_files(), 0);
    check(&bed.open_cold(), root, &model);
}

#[test]
fn children_of_uploaded_nodes_are_uploaded_after_a_failure_between_them() {
    for sent in 1..4 {
        let bed = Bed::new();
        let repository = bed.try_open(OpenOptions { pack_bytes: 64 << 10, uploads: 1, ..bed.options() }).unwrap();
        let (mut random, mut model) = (Random(45), Model::new());
        let root = edit(&repository, None, &mut model, &mut random, 20_000);
        repository.flush().unwrap();
        *bed.store.puts_left.lock().unwrap() = Some(sent);
        let failed = repository.commit_packs(&[root]).unwrap_err();
        assert!(failed.is_transient(), "{failed}");
        *bed.store.puts_left.lock().unwrap() = None;
        commit(&repository, root);
        check(&bed.open_cold(), root, &model);
    }
}

#[test]
fn nodes_of_the_next_checkpoint_survive_the_commit_of_the_last() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut model) = (Random(47), Model::new());
    let first = edit(&repository, None, &mut model, &mut random, 5000);
    let mut second_model = model.clone();
    repository.flush().unwrap();
    let committed = edit(&repository, first, &mut model, &mut random, 5000);
    repository.flush().unwrap();
    // While the commit runs the next checkpoint arrives at a tree that shares nodes with the superseded one.
    let mut again = Random(47);
    let shared = edit(&repository, None, &mut Model::new(), &mut again, 5000);
    assert_eq!(shared, first, "equal edits give equal trees");
    let set = repository.commit_packs(&[committed]).unwrap();
    let second = edit(&repository, shared, &mut second_model, &mut random, 50);
    let volume = repository.volume("main").unwrap();
    let head = next_head(None, committed, set.segments.clone());
    repository.put_head(volume, &head).unwrap();
    repository.finish_commit(set).unwrap();
    check(&bed.open_cold(), committed, &model);

    let staged: Vec<_> = repository.flush().unwrap().iter().map(|p| p.id).collect();
    drop(repository);
    let repository = bed.open();
    repository.load_segments(&head.segments).unwrap();
    repository.adopt_staged(&staged).unwrap();
    check(&repository, second, &second_model);
    commit(&repository, second);
    check(&bed.open_cold(), second, &second_model);
}

#[test]
fn reading_one_node_brings_its_neighbours() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut model) = (Random(53), Model::new());
    let root = edit(&repository, None, &mut model, &mut random, 20_000);
    commit(&repository, root);
    let cold = bed.open_cold();
    check(&cold, root, &model);
    let stats = cold.stats();
    assert!(
        stats.frames_read * 3 < stats.indexed_chunks,
        "{} frames for {} nodes",
        stats.frames_read,
        stats.indexed_chunks
    );
    let root = root.unwrap();
    assert!(Arc::ptr_eq(&cold.node_cached(&root.node).unwrap(), &cold.node(&root.node).unwrap()));
}

#[test]
fn a_commit_of_what_was_staged_before_keeps_all_that_came_after() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions { pack_bytes: 64 << 10, ..bed.options() }).unwrap();
    let (mut random, mut model, mut data) = (Random(53), Model::new(), BTreeMap::new());
    let mut write = |repository: &Repository| {
        let bytes: Vec<u8> = (0..200_000).map(|_| random.next() as u8).collect();
        data.insert(add(repository, &bytes).0, bytes);
    };
    let mut edits = Random(54);
    let first = edit(&repository, None, &mut model, &mut edits, 20_000);
    let mut committed_model = model.clone();
    repository.flush().unwrap();
    let committed = edit(&repository, first, &mut committed_model, &mut edits, 20_000);
    write(&repository);
    repository.flush().unwrap();
    let upto = repository.mark().unwrap();
    // Three checkpoints are made before the commit begins, on a tree that shares nodes with the superseded one, and one is under way: its
    // packs are full and not flushed.
    let mut root = edit(&repository, None, &mut Model::new(), &mut Random(54), 20_000);
    assert_eq!(root, first, "equal edits give equal trees");
    for _ in 0..3 {
        root = edit(&repository, root, &mut model, &mut edits, 2);
        write(&repository);
        repository.flush().unwrap();
    }
    let newest = repository.mark().unwrap();
    let staged = repository.staged(newest).unwrap();
    let before = repository.stats().staged_packs;
    (0..10).for_each(|_| write(&repository));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while repository.stats().staged_packs < before + 2 {
        assert!(std::time::Instant::now() < until, "no pack of the one under way");
        std::thread::yield_now();
    }
    assert_eq!(repository.staged(newest).unwrap(), staged, "their names are not durable yet");

    let set = repository.commit_packs_then(&[committed], upto, &|| {}).unwrap();
    let head = next_head(None, committed, set.segments.clone());
    repository.put_head(repository.volume("main").unwrap(), &head).unwrap();
    repository.supersede(&set).unwrap().remove().unwrap();
    check(&bed.open_cold(), committed, &committed_model);
    check(&repository, root, &model);
    assert!(data.iter().all(|(id, bytes)| repository.read_chunk(id).unwrap()[..] == bytes[..]));
    let staged = repository.staged(newest).unwrap();
    drop(repository);

    // After a crash at this moment.
    let repository = bed.open();
    repository.load_segments(&head.segments).unwrap();
    assert!(repository.adopt_staged(&staged).unwrap().missing.is_empty());
    check(&repository, root, &model);
    commit(&repository, root);
    check(&bed.open_cold(), root, &model);
}
