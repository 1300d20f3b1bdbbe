//! Heads as compare-and-swap.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};

use super::support::*;
use crate::ids::{CommitId, SequenceNo, VolumeId};
use crate::names;
use crate::*;

#[test]
fn of_two_writers_one_creates_the_head_and_the_other_sees_it() {
    let bed = Bed::new();
    let (a, b) = (bed.open_cold(), bed.open_cold());
    let v = a.volume("main").unwrap();
    assert_eq!(a.latest_head(v).unwrap(), None);
    let (ours, theirs) = (next_head(None, None, Vec::new()), next_head(None, None, Vec::new()));
    assert_eq!(a.put_head(v, &ours).unwrap(), PutHead::Created);
    assert_eq!(a.put_head(v, &ours).unwrap(), PutHead::Created, "our own commit is there already");
    assert_eq!(b.put_head(v, &theirs).unwrap(), PutHead::Exists(Box::new(ours.clone())));
    assert_eq!(b.latest_head(v).unwrap(), Some(ours.clone()));
    let second = next_head(Some(&ours), None, Vec::new());
    assert_eq!(b.put_head(v, &second).unwrap(), PutHead::Created);
    assert_eq!(a.latest_head(v).unwrap(), Some(second));
    assert_eq!(a.head(v, SequenceNo(1)).unwrap(), ours);
    assert!(matches!(a.head(v, SequenceNo(9)), Err(RepositoryError::MissingObject { .. })));
}

#[test]
fn an_unanswered_put_that_was_carried_out_is_a_success() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    bed.store.lose_reply.store(true, Ordering::SeqCst);
    let head = next_head(None, None, Vec::new());
    assert_eq!(repository.put_head(v, &head).unwrap(), PutHead::Created);
    bed.store.down.store(true, Ordering::SeqCst);
    let error = repository.put_head(v, &next_head(Some(&head), None, Vec::new())).unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[test]
fn the_latest_of_many_is_found_and_old_ones_are_trimmed() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    let mut last = None;
    for _ in 0..1100 {
        let head = next_head(last.as_ref(), None, Vec::new());
        repository.put_head(v, &head).unwrap();
        last = Some(head);
    }
    let cold = bed.open_cold();
    assert_eq!(cold.latest_head(v).unwrap(), last);
    let newest = last.as_ref().unwrap().sequence;
    // Names beyond the newest that was read: anyone who may create objects can make them.
    for number in 0..64u64 {
        let key = names::key(&names::head(v, SequenceNo(u64::MAX - number))).unwrap();
        axiomfs_api::Store::put_new(&bed.store.inner, &key, axiomfs_api::Body::Bytes(b"junk")).unwrap();
    }
    cold.trim_heads(v, newest, 64).unwrap();
    for number in 0..64u64 {
        let key = names::key(&names::head(v, SequenceNo(u64::MAX - number))).unwrap();
        axiomfs_api::Store::delete(&bed.store.inner, &key).unwrap();
    }
    let heads = bed.store.objects().into_keys().filter(|n| n.starts_with("heads/")).count();
    assert_eq!(heads, 64);
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last);
    cold.trim_heads(v, newest, 0).unwrap();
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last, "the last is never deleted");
}

#[test]
fn where_nothing_is_listed_the_lease_says_from_where_to_look() {
    let bed = Bed::new();
    let writer = bed.open_cold();
    let v = writer.volume("main").unwrap();
    let lease = Lease { host: "box".to_owned(), pid: 1, since_ns: 1, state: None, head: 0 };
    let mut last = None;
    for number in 1..=200u64 {
        let head = next_head(last.as_ref(), None, Vec::new());
        writer.put_head(v, &head).unwrap();
        last = Some(head);
        if number == 150 {
            writer.put_lease(v, &lease).unwrap();
        }
    }
    assert_eq!(bed.open_cold().read_lease(v).unwrap().unwrap().head, 150);
    let newest = last.as_ref().unwrap().sequence;
    writer.trim_heads(v, newest, 64).unwrap();
    bed.store.lists_no_heads.store(true, Ordering::SeqCst);
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last, "from 150 on by number");
    bed.store.lists_no_heads.store(false, Ordering::SeqCst);
    writer.trim_heads(v, newest, 10).unwrap();
    bed.store.lists_no_heads.store(true, Ordering::SeqCst);
    let error = bed.try_open(OpenOptions::default()).unwrap().latest_head(v).unwrap_err();
    assert!(matches!(error, RepositoryError::MissingObject { .. }), "a volume with heads never looks empty: {error}");
}

#[test]
fn a_head_under_another_number_or_volume_is_refused() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    let first = next_head(None, None, Vec::new());
    repository.put_head(v, &first).unwrap();
    repository.put_head(v, &next_head(Some(&first), None, Vec::new())).unwrap();
    let objects = bed.store.objects();
    let names: Vec<_> = objects.keys().filter(|n| n.starts_with("heads/")).cloned().collect();
    bed.store.tamper(&names[1], |b| b.clone_from(&objects[&names[0]]));
    let error = repository.latest_head(v).unwrap_err();
    assert!(matches!(&error, RepositoryError::Corrupt { object, .. } if *object == names[1]), "{error}");
}

#[test]
fn init_refuses_what_is_not_empty_and_leaves_it_alone() {
    let bed = Bed::new();
    let opts = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
    let init = |store: &TestStore| Repository::init(store, &axiomfs_encryption_aes_gcm::Aes256Gcm, b"x", &opts);
    let before = bed.store.objects();
    assert!(matches!(init(&bed.store), Err(RepositoryError::AlreadyARepository { .. })));
    assert_eq!(bed.store.objects(), before);
    let foreign = TestStore::default();
    let key = axiomfs_api::ObjectKey::new("photo.jpg").unwrap();
    axiomfs_api::Store::put_new(&foreign, &key, axiomfs_api::Body::Bytes(b"x")).unwrap();
    assert!(matches!(init(&foreign), Err(RepositoryError::NotEmpty { object, .. }) if object == "photo.jpg"));
    assert_eq!(foreign.objects().len(), 1);
    let bad = InitOptions { volume: "a/b".to_owned(), ..opts.clone() };
    let empty = TestStore::default();
    let result = Repository::init(&empty, &axiomfs_encryption_aes_gcm::Aes256Gcm, b"x", &bad);
    assert!(matches!(result, Err(RepositoryError::BadName { .. })));
    assert!(empty.objects().is_empty());
}

#[test]
fn opening_says_what_is_not_there() {
    let bed = Bed::new();
    let other = OpenOptions { volume: "other".to_owned(), ..OpenOptions::default() };
    assert!(matches!(bed.try_open(other), Err(RepositoryError::UnknownVolume { name }) if name == "other"));
    let repository = bed.open_cold();
    assert!(matches!(repository.add_node(vec![1]), Err(RepositoryError::ReadOnly)));
    let key = axiomfs_api::ObjectKey::new("config").unwrap();
    axiomfs_api::Store::delete(&bed.store.inner, &key).unwrap();
    assert!(matches!(bed.try_open(OpenOptions::default()), Err(RepositoryError::NotARepository { .. })));
}

#[test]
fn key_derivation_has_a_floor_and_a_cap() {
    assert!(KdfParams::new(64 << 10, 1, 1).is_ok());
    for (memory, passes, lanes) in
        [((64 << 10) - 1, 3, 4), ((2 << 20) + 1, 3, 4), (64 << 10, 0, 4), (64 << 10, 65, 4), (64 << 10, 3, 17)]
    {
        let result = KdfParams::new(memory, passes, lanes);
        assert!(matches!(result, Err(RepositoryError::KdfParameters { .. })), "{memory} {passes} {lanes}");
    }
}

#[test]
fn the_lease_names_the_holder() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    assert_eq!(repository.read_lease(v).unwrap(), None);
    for pid in [1, 2] {
        let state = LeaseState { id: crate::ids::StateId([7; 16]), directory: "/var/state".to_owned() };
        let lease = Lease { host: "box".to_owned(), pid, since_ns: -5, state: (pid == 2).then_some(state), head: 0 };
        repository.put_lease(v, &lease).unwrap();
        assert_eq!(bed.open_cold().read_lease(v).unwrap(), Some(lease));
    }
    assert_ne!(CommitId([0; 16]), next_head(None, None, Vec::new()).commit);
}

/// `count` heads, one after the other.
fn history(repository: &Repository, v: VolumeId, last: Option<&Head>, count: usize) -> Vec<Head> {
    let mut heads: Vec<Head> = Vec::new();
    for _ in 0..count {
        let head = next_head(heads.last().or(last), None, Vec::new());
        assert_eq!(repository.put_head(v, &head).unwrap(), PutHead::Created);
        heads.push(head);
    }
    heads
}

fn delete(bed: &Bed, v: VolumeId, head: &Head) {
    let key = axiomfs_api::ObjectKey::new(format!("heads/{v}/{:016x}", head.sequence.0)).unwrap();
    axiomfs_api::Store::delete(&bed.store.inner, &key).unwrap();
}

#[test]
fn twenty_writers_race_for_each_head_and_one_wins() {
    const WRITERS: usize = 20;
    let rounds: u64 = std::env::var("AXIOMFS_SOAK").map_or(40, |_| 1000);
    let bed = Bed::new();
    let local = tempfile::tempdir().unwrap();
    let store = axiomfs_storage_local::LocalStore::create(local.path().join("store")).unwrap();
    let opts = InitOptions { kdf: KdfParams::insecure_for_tests(), ..InitOptions::default() };
    Repository::init(&store, &axiomfs_encryption_aes_gcm::Aes256Gcm, PASSPHRASE, &opts).unwrap();
    let store: Arc<dyn axiomfs_api::Store> = Arc::new(store);
    let seal = || Arc::new(axiomfs_encryption_aes_gcm::Aes256Gcm);
    let on_disk = || Repository::open(store.clone(), host(), seal(), PASSPHRASE, OpenOptions::default()).unwrap();
    for repositories in [(0..WRITERS).map(|_| bed.open_cold()).collect(), (0..WRITERS).map(|_| on_disk()).collect()] {
        let repositories: Vec<Arc<Repository>> = repositories;
        let v = repositories[0].volume("main").unwrap();
        let mut last: Option<Head> = None;
        for round in 0..rounds {
            let start = Barrier::new(WRITERS);
            let attempts: Vec<(Head, PutHead)> = std::thread::scope(|scope| {
                let race = |repository: &Arc<Repository>| {
                    let (repository, start, last) = (repository.clone(), &start, &last);
                    scope.spawn(move || {
                        let head = next_head(last.as_ref(), None, Vec::new());
                        start.wait();
                        let put = repository.put_head(v, &head).unwrap();
                        (head, put)
                    })
                };
                let threads: Vec<_> = repositories.iter().map(race).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let won: Vec<&Head> =
                attempts.iter().filter(|(_, put)| *put == PutHead::Created).map(|(head, _)| head).collect();
            assert_eq!(won.len(), 1, "round {round}");
            for (head, put) in &attempts {
                assert!(head == won[0] || *put == PutHead::Exists(Box::new(won[0].clone())), "round {round}: {put:?}");
            }
            last = Some(won[0].clone());
        }
        assert_eq!(repositories[1].latest_head(v).unwrap(), last);
    }
}

#[test]
fn descent_is_told_by_the_chain_of_parents() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    let heads = history(&repository, v, None, 12);
    let known = |head: &Head| (head.sequence, head.commit);
    let descent = |newest: &Head, seen| bed.open_cold().descent(v, newest, seen).unwrap();
    assert_eq!(descent(&heads[11], known(&heads[11])), Descent::Same);
    assert_eq!(descent(&heads[11], known(&heads[10])), Descent::Later);
    assert_eq!(descent(&heads[11], known(&heads[1])), Descent::Later);
    assert_eq!(descent(&heads[4], known(&heads[11])), Descent::Older);
    let other = CommitId([9; 16]);
    for number in [3, 11, 12] {
        assert_eq!(descent(&heads[11], (SequenceNo(number), other)), Descent::Unrelated, "{number}");
    }
    // Head 6 of another history, which was created on the same parent.
    delete(&bed, v, &heads[5]);
    let foreign = next_head(Some(&heads[4]), None, Vec::new());
    assert_eq!(repository.put_head(v, &foreign).unwrap(), PutHead::Created);
    assert_eq!(descent(&heads[11], known(&heads[1])), Descent::Unrelated);
    delete(&bed, v, &heads[5]);
    assert_eq!(descent(&heads[11], known(&heads[1])), Descent::Broken(heads[5].sequence), "nobody trims that");
    assert_eq!(descent(&heads[11], known(&heads[7])), Descent::Later);
    let later = history(&repository, v, Some(&heads[11]), 80);
    repository.trim_heads(v, later[79].sequence, HEADS_KEPT).unwrap();
    assert_eq!(descent(&later[79], known(&heads[7])), Descent::Unknown, "trimmed");
    assert_eq!(descent(&later[79], known(&later[16])), Descent::Later);
    delete(&bed, v, &later[16]);
    assert_eq!(descent(&later[79], known(&later[15])), Descent::Broken(later[16].sequence), "the oldest that is kept");
}

#[test]
fn a_head_created_where_others_were_trimmed_is_no_commit() {
    let bed = Bed::new();
    let (a, b) = (bed.open_cold(), bed.open_cold());
    let v = a.volume("main").unwrap();
    let first = history(&a, v, None, 3);
    assert_eq!(a.newer_than(v, &first[2]).unwrap(), None);
    let theirs = history(&b, v, Some(&first[2]), 80);
    b.trim_heads(v, theirs.last().unwrap().sequence, 64).unwrap();
    let late = next_head(Some(&first[2]), None, Vec::new());
    assert_eq!(a.put_head(v, &late).unwrap(), PutHead::Created, "the number is free again");
    assert_eq!(a.newer_than(v, &late).unwrap().as_ref(), theirs.last());
    assert_eq!(bed.open_cold().latest_head(v).unwrap().as_ref(), theirs.last());
    let away = bed.try_open(OpenOptions::default()).unwrap();
    away.expect_head(v, first[2].sequence);
    assert_eq!(away.latest_head(v).unwrap().as_ref(), theirs.last(), "for whoever saw the last head before them");
    let very_first = next_head(None, None, Vec::new());
    assert_eq!(a.put_head(v, &very_first).unwrap(), PutHead::Created);
    assert_eq!(a.newer_than(v, &very_first).unwrap().as_ref(), theirs.last());
}

#[test]
fn foreign_objects_are_passed_over_and_named() {
    let bed = Bed::new();
    let repository = bed.open_cold();
    let v = repository.volume("main").unwrap();
    let last = history(&repository, v, None, 3).pop();
    let junk = [
        format!("heads/{v}/ds_store"),
        format!("heads/{v}/00000000000000f"),
        format!("heads/{v}/zzz"),
        "keyring/9999999999x".to_owned(),
        "keyring/readme".to_owned(),
        "keys/0".to_owned(),
        "keys/backup-copy".to_owned(),
    ];
    for name in &junk {
        let key = axiomfs_api::ObjectKey::new(name).unwrap();
        axiomfs_api::Store::put_new(&bed.store.inner, &key, axiomfs_api::Body::Bytes(b"junk")).unwrap();
    }
    let cold = bed.open_cold();
    assert_eq!(cold.latest_head(v).unwrap(), last);
    let (mut named, mut want) = (cold.foreign_objects(), junk.to_vec());
    named.sort();
    want.sort();
    assert_eq!(named, want);
    cold.trim_heads(v, last.as_ref().unwrap().sequence, 1).unwrap();
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last);
    assert_eq!(key_slots(bed.store.as_ref()).unwrap().len(), 1);
    let objects = bed.store.objects();
    assert!(junk.iter().all(|name| objects.contains_key(name)), "nothing of others is deleted");
    let wrong = Repository::open(
        bed.store.clone(),
        host(),
        Arc::new(axiomfs_encryption_aes_gcm::Aes256Gcm),
        b"no",
        OpenOptions::default(),
    );
    assert!(matches!(wrong, Err(RepositoryError::WrongPassphrase { slots: 1 })));
}
