//! Volumes: made by several at once, and chunks that they share.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axiomfs_api::{ObjectKey, Store};
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use tempfile::TempDir;

use super::support::*;
use crate::ids::{ChunkId, PackId};
use crate::tree::{Root, apply};
use crate::*;

const OTHER: &str = "other";

fn keys(bed: &Bed) -> Keys<'_> {
    Keys::unlock(bed.store.as_ref(), &Aes256Gcm, PASSPHRASE).unwrap()
}

/// A writer of the volume, with the index of its latest head.
fn open(bed: &Bed, volume: &str, staging: Option<&TempDir>) -> Arc<Repository> {
    let staging = staging.map(|dir| dir.path().join("staging"));
    let opts = OpenOptions { volume: volume.to_owned(), staging, ..OpenOptions::default() };
    let repository = bed.try_open(opts).unwrap();
    if let Some(head) = repository.latest_head(repository.volume(volume).unwrap()).unwrap() {
        repository.load_segments(&head.segments).unwrap();
    }
    repository
}

fn commit_in(repository: &Repository, volume: &str, root: Option<Root>) {
    repository.flush().unwrap();
    let set = repository.commit_packs(&[root]).unwrap();
    let volume = repository.volume(volume).unwrap();
    let last = repository.latest_head(volume).unwrap();
    let head = next_head(last.as_ref(), root, set.segments.clone());
    assert_eq!(repository.put_head(volume, &head).unwrap(), PutHead::Created);
    repository.finish_commit(set).unwrap();
}

/// Two volumes, and chunks that the first has committed: large ones and many small ones to a frame.
fn bed() -> (Bed, Vec<(ChunkId, Vec<u8>)>) {
    let bed = Bed::new();
    keys(&bed).add_volume(OTHER).unwrap();
    let mut random = Random(21);
    let repository = open(&bed, "main", Some(&bed.dir));
    let mut chunks = Vec::new();
    for at in 0..60 {
        let data = random.data(if at % 10 == 0 { 200_000 } else { 900 + at });
        chunks.push((add(&repository, &data).0, data));
        if at % 20 == 19 {
            commit_in(&repository, "main", None);
        }
    }
    (bed, chunks)
}

/// Nothing of the first volume but its packs.
fn forget_main(bed: &Bed) {
    let repository = open(bed, "main", None);
    let id = repository.volume("main").unwrap();
    for name in bed.store.objects().into_keys() {
        if name.starts_with(&format!("index/{id}/")) || name.starts_with(&format!("heads/{id}/")) {
            bed.store.delete(&ObjectKey::new(&name).unwrap()).unwrap();
        }
    }
}

fn packs(bed: &Bed) -> usize {
    bed.store.objects().keys().filter(|name| name.starts_with("packs/")).count()
}

fn readable(repository: &Repository, chunks: &[(ChunkId, Vec<u8>)], when: &str) {
    for (id, data) in chunks {
        let read = repository.read_chunk(id).unwrap_or_else(|e| panic!("{when}: {id}: {e}"));
        assert!(*read == **data, "{when}: {id} has other bytes");
    }
}

/// A tree of one file for each chunk, as the live tree would build it.
fn tree(repository: &Repository, chunks: &[(ChunkId, Vec<u8>)]) -> Option<Root> {
    let extents = (1024u64..).zip(chunks).map(|(ino, (id, data))| {
        let len = data.len() as u64;
        let extent = record::Extent { len, source: record::Source::Chunk { id: *id, skip: 0, clear: false } };
        let mut value = Vec::new();
        extent.encode(&mut value);
        (record::extent_key(ino, len), Some(value))
    });
    let mut sink = repository;
    apply::<_, _, RepositoryError>(repository, &mut sink, None, extents).unwrap()
}

/// What a writer of the second volume borrowed, in a tree that it staged and did not commit: its root and packs.
fn staged_and_crashed(bed: &Bed, dir: &TempDir, chunks: &[(ChunkId, Vec<u8>)]) -> (Option<Root>, Vec<PackId>) {
    let other = open(bed, OTHER, Some(dir));
    for (_, data) in chunks {
        add(&other, data);
    }
    let root = tree(&other, chunks);
    (root, other.flush().unwrap().iter().map(|pack| pack.id).collect())
}

#[test]
fn what_another_volume_has_is_not_stored_again_and_the_own_index_has_it() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let other = open(&bed, OTHER, Some(&dir));
    let before = packs(&bed);
    for (_, data) in &chunks {
        assert_eq!(add(&other, data).1, Added::Known);
    }
    readable(&other, &chunks, "before the commit");
    let own = Random(5).data(50_000);
    assert_eq!(add(&other, &own).1, Added::New);
    commit_in(&other, OTHER, None);
    readable(&other, &chunks, "after it");
    assert_eq!(packs(&bed), before + 1, "a pack for what nobody had");
    forget_main(&bed);
    readable(&open(&bed, OTHER, None), &chunks, "without the other volume's index");
    // Merges of segments carry the rows on.
    for seed in 100..120 {
        add(&other, &Random(seed).data(1000));
        commit_in(&other, OTHER, None);
    }
    readable(&open(&bed, OTHER, None), &chunks, "after merges");
    assert!(other.segments().len() <= 8);
}

#[test]
fn what_was_borrowed_and_not_committed_is_found_again_after_a_crash() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let (root, staged) = staged_and_crashed(&bed, &dir, &chunks);
    let other = open(&bed, OTHER, Some(&dir));
    assert_eq!(other.adopt_staged(&staged).unwrap().missing, []);
    assert_eq!(other.borrow_again(&[root]).unwrap(), 0);
    // Nothing is read before: that would borrow, too.
    commit_in(&other, OTHER, root);
    forget_main(&bed);
    readable(&open(&bed, OTHER, None), &chunks, "committed");
}

#[test]
fn what_was_borrowed_from_a_volume_that_could_not_be_asked_after_a_crash_is_read_once_it_can() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let (root, staged) = staged_and_crashed(&bed, &dir, &chunks);
    let heads = format!("heads/{}/", open(&bed, "main", None).volume("main").unwrap());
    let taken: Vec<_> = bed.store.objects().into_keys().filter(|name| name.starts_with(&heads)).collect();
    let taken: Vec<_> = taken.iter().map(|name| ObjectKey::new(name).unwrap()).collect();
    let taken: Vec<_> = taken.into_iter().map(|key| (bed.store.get(&key, u64::MAX).unwrap(), key)).collect();
    taken.iter().for_each(|(_, key)| bed.store.delete(key).unwrap());
    let other = open(&bed, OTHER, Some(&dir));
    other.adopt_staged(&staged).unwrap();
    assert_eq!(other.borrow_again(&[root]).unwrap(), chunks.len() as u64);
    commit_in(&other, OTHER, root);
    let reader = open(&bed, OTHER, None);
    assert!(matches!(reader.read_chunk(&chunks[0].0), Err(RepositoryError::Missing { .. })));
    for (bytes, key) in &taken {
        bed.store.put_new(key, axiomfs_api::Body::Bytes(bytes)).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(600));
    readable(&reader, &chunks, "a reader");
    readable(&other, &chunks, "the writer");
    commit_in(&other, OTHER, root);
    forget_main(&bed);
    readable(&open(&bed, OTHER, None), &chunks, "the next commit has them");
}

#[test]
fn what_an_earlier_mount_staged_and_no_tree_needs_any_more_is_forgotten_by_the_first_commit() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let other = open(&bed, OTHER, Some(&dir));
    let old = tree(&other, &chunks[..30]);
    other.flush().unwrap();
    let new = tree(&other, &chunks[30..]);
    assert_ne!(old, new);
    let staged: Vec<_> = other.flush().unwrap().iter().map(|pack| pack.id).collect();
    drop(other);
    let other = open(&bed, OTHER, Some(&dir));
    other.adopt_staged(&staged).unwrap();
    assert!(other.stats().staged_chunks > 1);
    commit_in(&other, OTHER, new);
    assert_eq!(other.stats().staged_chunks, 0);
}

#[test]
fn chunks_that_no_volume_has_any_more_are_counted_after_a_crash() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let (root, staged) = staged_and_crashed(&bed, &dir, &chunks);
    forget_main(&bed);
    let other = open(&bed, OTHER, Some(&dir));
    other.adopt_staged(&staged).unwrap();
    assert_eq!(other.borrow_again(&[root]).unwrap(), chunks.len() as u64);
}

#[test]
fn a_clear_chunk_is_never_borrowed() {
    let (bed, _) = bed();
    let data = Random(9).data(200_000);
    let add_clear = |repository: &Repository| {
        let class = FrameClass { kind: FrameKind::Clear, ..class(0, "plain") };
        repository.add_chunk(class, repository.clear_id(&data), &data).unwrap()
    };
    let main = open(&bed, "main", Some(&bed.dir));
    add_clear(&main);
    commit_in(&main, "main", None);
    let dir = TempDir::new().unwrap();
    let other = open(&bed, OTHER, Some(&dir));
    assert_eq!(add(&other, &data).1, Added::New, "a sealed chunk");
    assert_eq!(add_clear(&other), Added::New, "a clear one");
}

/// An epoch that this one has not heard of, and the other volume's writer seals with, is found in the store.
#[test]
fn a_volume_sealed_under_a_newer_epoch_is_shared_too() {
    let (bed, chunks) = bed();
    let dir = TempDir::new().unwrap();
    let other = open(&bed, OTHER, Some(&dir));
    let own = Random(6).data(150_000);
    add(&other, &own);
    commit_in(&other, OTHER, None);
    drop(other);
    let other = open(&bed, OTHER, Some(&dir));
    keys(&bed).rotate(false).unwrap();
    let main = open(&bed, "main", Some(&bed.dir));
    add(&main, &Random(7).data(150_000));
    commit_in(&main, "main", None);
    assert_eq!(add(&other, &chunks[0].1).1, Added::Known, "borrowed");
    assert_eq!(add(&other, &own).1, Added::Known, "its own chunks are found as ever");
    assert_eq!(other.sealing_epoch().number, 2);
    commit_in(&other, OTHER, None);
    readable(&open(&bed, OTHER, None), &chunks[..1], "borrowed");
}

#[test]
fn writers_wait_once_for_listings_that_are_slow_to_fail() {
    for (down, forbids) in [(true, false), (false, true)] {
        let (bed, _) = bed();
        let dir = TempDir::new().unwrap();
        let other = open(&bed, OTHER, Some(&dir));
        bed.store.down.store(down, Ordering::SeqCst);
        bed.store.forbids.store(forbids, Ordering::SeqCst);
        // Longer than the pause between listings.
        bed.store.slow.store(700, Ordering::SeqCst);
        for seed in 300..302 {
            assert_eq!(add(&other, &Random(seed).data(50_000)).1, Added::New);
        }
        assert_eq!(bed.store.failed.load(Ordering::SeqCst), 1, "unreachable: {down}");
    }
}

#[test]
fn volumes_made_at_once_are_all_there() {
    let bed = Bed::new();
    let names: Vec<String> = (0..4).map(|i| format!("volume {i}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| keys(&bed).add_volume(name).unwrap());
        }
    });
    let mut made = keys(&bed).volumes().unwrap();
    assert_eq!(made.remove(0), "main");
    made.sort();
    assert_eq!(made, names);
    let error = keys(&bed).add_volume(&names[0]).unwrap_err().to_string();
    assert!(error.contains("there is a volume of that name"), "{error}");
    for name in ["", "a/b", "a\nb"] {
        assert!(matches!(keys(&bed).add_volume(name), Err(RepositoryError::BadName { .. })), "{name:?}");
    }
    // One name for all: exactly one makes it.
    let made = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..4).map(|_| scope.spawn(|| keys(&bed).add_volume("same").is_ok())).collect();
        tries.into_iter().map(|one| one.join().unwrap()).filter(|made| *made).count()
    });
    assert_eq!(made, 1);
}
