//! Passphrases and epochs: added, taken away, and what stays readable.

use axiomfs_encryption_aes_gcm::Aes256Gcm;

use super::support::*;
use crate::*;

const SECOND: &[u8] = b"battery staple";

fn cheap() -> KdfParams {
    KdfParams::insecure_for_tests()
}

fn unlock<'a>(bed: &'a Bed, passphrase: &[u8]) -> Result<Keys<'a>, RepositoryError> {
    Keys::unlock(bed.store.as_ref(), &Aes256Gcm, passphrase)
}

fn opens(bed: &Bed, passphrase: &[u8]) -> bool {
    let opened =
        Repository::open(bed.store.clone(), host(), std::sync::Arc::new(Aes256Gcm), passphrase, OpenOptions::default());
    match opened {
        Ok(_) => true,
        Err(RepositoryError::WrongPassphrase { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_second_passphrase_opens_and_can_be_taken_away() {
    let bed = Bed::new();
    assert!(!opens(&bed, SECOND));
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    let second = keys.add(SECOND, cheap()).unwrap();
    assert!(opens(&bed, SECOND) && opens(&bed, PASSPHRASE));
    let slots = key_slots(bed.store.as_ref()).unwrap();
    assert_eq!(
        slots.iter().map(|slot| slot.id.clone()).collect::<Vec<_>>(),
        [keys.opened().to_owned(), second.clone()]
    );
    for (id, word) in [(keys.opened(), "this passphrase opens"), ("00", "32 hex"), (&"0".repeat(32), "is not there")] {
        let error = keys.remove(id).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(key_slots(bed.store.as_ref()).unwrap(), slots, "what is refused removes nothing");
    // The first one goes, by the word of the second.
    unlock(&bed, SECOND).unwrap().remove(&slots[0].id).unwrap();
    assert!(opens(&bed, SECOND) && !opens(&bed, PASSPHRASE));
    assert!(matches!(unlock(&bed, PASSPHRASE), Err(RepositoryError::WrongPassphrase { slots: 1 })));
}

/// The same of what is staged and not in the store yet, and of the pack that is being written.
#[test]
fn what_is_staged_under_a_compromised_epoch_is_stored_anew_and_nothing_more_is_sealed_with_it() {
    let bed = Bed::new();
    let [staged, later] = [7, 8].map(|seed| Random(seed).data(200_000));
    let repository = bed.open();
    let (id, added) = add(&repository, &staged);
    assert_eq!(added, Added::New);
    // A full frame lies in the open pack now, and that is not closed.
    add(&repository, &Random(9).data(1_000_000));
    wait_for_frames(&repository);
    repository.rotate(true).unwrap();
    let (other, _) = add(&repository, &later);
    assert_eq!(add(&repository, &staged).1, Added::New, "its key is known to others");
    commit(&repository, None);
    drop(repository);
    let repository = bed.open_cold();
    for (id, data) in [(id, &staged), (other, &later)] {
        assert!(*repository.read_chunk(&id).unwrap() == **data);
        assert_eq!(repository.frame_of(&id).unwrap().unwrap().epoch, 2);
    }
}

fn wait_for_frames(repository: &Repository) {
    let begun = std::time::Instant::now();
    while repository.stats().frames_written == 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "no frame is written");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_slot_that_is_no_slot_keeps_nobody_out() {
    let bed = Bed::new();
    let key = axiomfs_api::ObjectKey::new(format!("keys/{}", "0".repeat(32))).unwrap();
    let put = |bytes: &[u8]| axiomfs_api::Store::put(&bed.store.inner, &key, axiomfs_api::Body::Bytes(bytes)).unwrap();
    for bytes in [&[7; 5000][..], &[7; 50], &[]] {
        put(bytes);
        assert!(opens(&bed, PASSPHRASE), "{} bytes", bytes.len());
    }
}

#[test]
fn two_who_remove_each_other_at_once_leave_one() {
    let bed = Bed::new();
    let first = unlock(&bed, PASSPHRASE).unwrap();
    let second = first.add(SECOND, cheap()).unwrap();
    let other = unlock(&bed, SECOND).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(first.remove(&second)));
        scope.spawn(|| drop(other.remove(first.opened())));
    });
    assert!(opens(&bed, PASSPHRASE) || opens(&bed, SECOND), "nobody can come in any more");
}

#[test]
fn a_slot_is_made_or_its_passphrase_opens_nothing_whatever_the_store_answers() {
    let bed = Bed::new();
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    bed.store.lose_reply.store(true, std::sync::atomic::Ordering::SeqCst);
    let id = keys.add(SECOND, cheap()).expect("it is there, though nobody said so");
    assert_eq!(unlock(&bed, SECOND).unwrap().opened(), id);
}

#[test]
fn the_slot_that_was_opened_goes_also_where_the_new_one_has_the_same_passphrase() {
    for _ in 0..8 {
        let bed = Bed::new();
        let keys = unlock(&bed, PASSPHRASE).unwrap();
        let id = keys.add(PASSPHRASE, cheap()).unwrap();
        keys.hand_over(&id).unwrap();
        let left: Vec<String> = key_slots(&*bed.store).unwrap().into_iter().map(|slot| slot.id).collect();
        assert_eq!(left, [id]);
        assert!(keys.hand_over(&left[0]).is_err(), "it is gone already");
        bed.open();
    }
}

#[test]
fn no_more_slots_are_made_than_a_reader_tries() {
    let bed = Bed::new();
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    for i in 1..32 {
        keys.add(format!("passphrase {i}").as_bytes(), cheap()).unwrap();
    }
    let error = keys.add(SECOND, cheap()).unwrap_err().to_string();
    assert!(error.contains("32"), "{error}");
    assert!(opens(&bed, b"passphrase 31") && !opens(&bed, SECOND));
}

/// What each epoch sealed stays readable, and the format stays the one of version 1.
#[test]
fn a_new_epoch_seals_what_is_written_next() {
    let bed = Bed::new();
    let mut random = Random(5);
    let (old, new) = (random.data(200_000), random.data(200_000));
    let repository = bed.open();
    let (old_id, _) = add(&repository, &old);
    commit(&repository, None);
    assert_eq!(repository.frame_of(&old_id).unwrap().unwrap().epoch, 1);
    drop(repository);
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    assert_eq!((keys.rotate(false).unwrap(), keys.epochs().unwrap().len()), (2, 2));
    let repository = bed.open();
    let volume = repository.volume("main").unwrap();
    let head = repository.latest_head(volume).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    assert_eq!(repository.keyring_generation(), 2);
    let (new_id, _) = add(&repository, &new);
    commit(&repository, None);
    drop(repository);
    let repository = bed.open_cold();
    for (id, data, epoch) in [(old_id, &old, 1), (new_id, &new, 2)] {
        assert!(*repository.read_chunk(&id).unwrap() == **data);
        assert_eq!(repository.frame_of(&id).unwrap().unwrap().epoch, epoch);
    }
    assert_eq!(repository.data_id(&old), old_id, "dedup goes on: the keys of ids stay");
}

/// A repository that is open takes a new epoch up: by its own rotation at once, by another's where it meets it.
#[test]
fn an_open_repository_takes_up_later_epochs() {
    let bed = Bed::new();
    let mut random = Random(6);
    let [first, second, third] = [(); 3].map(|()| random.data(200_000));
    let repository = bed.open();
    let reader = bed.open_cold();
    let (first, _) = add(&repository, &first);
    commit(&repository, None);
    assert_eq!(repository.rotate(false).unwrap(), 2);
    let (second, _) = add(&repository, &second);
    commit(&repository, None);
    assert_eq!((repository.sealing_epoch().number, repository.keyring_generation()), (2, 2));
    // A reader of the first epoch reads the second's head, index and pack.
    let volume = reader.volume("main").unwrap();
    let head = reader.latest_head(volume).unwrap().unwrap();
    reader.load_segments(&head.segments).unwrap();
    for (id, epoch) in [(first, 1), (second, 2)] {
        reader.read_chunk(&id).unwrap();
        assert_eq!(reader.frame_of(&id).unwrap().unwrap().epoch, epoch);
    }
    assert_eq!(reader.sealing_epoch().number, 2);
    // Somebody else rotates: our own next try makes the epoch after theirs, and both are known here.
    assert_eq!(unlock(&bed, PASSPHRASE).unwrap().rotate(false).unwrap(), 3);
    assert_eq!(repository.rotate(false).unwrap(), 4);
    assert_eq!(repository.epochs().iter().map(|epoch| epoch.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let (third, _) = add(&repository, &third);
    commit(&repository, None);
    assert_eq!(repository.frame_of(&third).unwrap().unwrap().epoch, 4);
}

/// After `rotate --compromised` what comes again is stored anew, once.
#[test]
fn what_a_compromised_epoch_sealed_is_stored_anew_where_it_comes_again() {
    let bed = Bed::new();
    let data = Random(7).data(200_000);
    let repository = bed.open();
    let (id, added) = add(&repository, &data);
    assert_eq!(added, Added::New);
    commit(&repository, None);
    repository.rotate(false).unwrap();
    assert_eq!(add(&repository, &data).1, Added::Known, "after a plain rotation");
    repository.rotate(true).unwrap();
    let marks: Vec<bool> = repository.epochs().iter().map(|epoch| epoch.compromised).collect();
    assert_eq!(marks, [true, true, false]);
    assert_eq!(add(&repository, &data).1, Added::New, "the key of the first is known to others");
    commit(&repository, None);
    assert_eq!(add(&repository, &data).1, Added::Known);
    drop(repository);
    let repository = bed.open_cold();
    assert!(*repository.read_chunk(&id).unwrap() == *data);
    assert_eq!(repository.frame_of(&id).unwrap().unwrap().epoch, 3, "the newest place counts");
    assert_eq!(repository.epochs().iter().filter(|epoch| epoch.compromised).count(), 2, "kept in the store");
}

/// An object that names an epoch which nobody made asks the store once, not for each read.
#[test]
fn an_epoch_that_is_nowhere_is_not_asked_for_again_and_again() {
    let bed = Bed::new();
    let repository = bed.open();
    for _ in 0..3 {
        assert!(repository.keyring.epoch(77).is_none());
    }
    // Made meanwhile, and not asked for: ten seconds have not passed.
    unlock(&bed, PASSPHRASE).unwrap().rotate(false).unwrap();
    assert!(repository.keyring.epoch(2).is_none());
    assert!(repository.keyring.refresh().unwrap() && repository.keyring.epoch(2).is_some());
}

#[test]
fn exported_keys_open_a_store_that_has_lost_them() {
    let bed = Bed::new();
    let before = bed.store.objects();
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    keys.add(SECOND, cheap()).unwrap();
    keys.rotate(false).unwrap();
    let exported = keys.export().unwrap();
    let names: Vec<&str> = exported.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["config", &format!("keys/{}", keys.opened()), "keyring/0000000002"]);
    for (name, bytes) in &exported {
        assert_eq!(bed.store.objects().get(name), Some(bytes), "{name}");
    }
    assert!(before.contains_key("keyring/0000000001"));
}

/// What was done to passphrases is told to whoever opens the repository next, and to who has it open once he looks; not without
/// the master key, and never all at once lost.
#[test]
fn changes_of_keys_are_told_in_the_keyring_and_kept_in_order() {
    let bed = Bed::new();
    let repository = bed.open();
    assert_eq!(repository.key_changes(), []);
    let keys = unlock(&bed, PASSPHRASE).unwrap();
    keys.note(NewKeyChange { uid: 1000, pid: 7, what: "passphrase added", result: "begun" }).unwrap();
    assert_eq!(keys.rotate_noted(true, 0, 8).unwrap(), 2);
    assert!(repository.keyring.refresh().unwrap());
    let told = repository.key_changes();
    let short: Vec<_> = told.iter().map(|c| (c.number, c.uid, c.pid, c.what.as_str(), c.result.as_str())).collect();
    assert_eq!(
        short,
        [
            (1, 1000, 7, "passphrase added", "begun"),
            (2, 0, 8, "sealing epoch 2 made, the keys before are compromised", "ok")
        ]
    );
    assert!(told[0].time_ns > 0 && told[0].time_ns <= told[1].time_ns);
    assert_eq!(bed.open_cold().key_changes(), told, "also later");
    // The keys are as they were, and what was told goes on into each later generation.
    keys.add_volume("more").unwrap();
    keys.rotate(false).unwrap();
    let later = bed.open_cold();
    assert_eq!((later.key_changes(), later.sealing_epoch().number), (told, 3));
    // Two at once: one is made on top of the other.
    std::thread::scope(|scope| {
        for pid in 0..3 {
            let keys = &keys;
            scope.spawn(move || keys.note(NewKeyChange { uid: 0, pid, what: "at once", result: "ok" }).unwrap());
        }
    });
    let numbers = |repository: &Repository| repository.key_changes().iter().map(|c| c.number).collect::<Vec<_>>();
    assert_eq!(numbers(&bed.open_cold()), [1, 2, 3, 4, 5]);
    for _ in 0..510 {
        keys.note(NewKeyChange { uid: 0, pid: 1, what: "many", result: "ok" }).unwrap();
    }
    assert_eq!(numbers(&bed.open_cold()), (4..=515).collect::<Vec<_>>(), "the newest 512");
}
