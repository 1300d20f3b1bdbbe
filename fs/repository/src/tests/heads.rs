//! Heads as compare-and-swap.

use std::sync::atomic::Ordering;

use super::support::*;
use crate::ids::{CommitId, SequenceNo};
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
    cold.trim_heads(v, 64).unwrap();
    let heads = bed.store.objects().into_keys().filter(|n| n.starts_with("heads/")).count();
    assert_eq!(heads, 64);
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last);
    cold.trim_heads(v, 0).unwrap();
    assert_eq!(bed.open_cold().latest_head(v).unwrap(), last, "the last is never deleted");
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
        let lease = Lease { host: "box".to_owned(), pid, since_ns: -5 };
        repository.put_lease(v, &lease).unwrap();
        assert_eq!(bed.open_cold().read_lease(v).unwrap(), Some(lease));
    }
    assert_ne!(CommitId([0; 16]), next_head(None, None, Vec::new()).commit);
}
