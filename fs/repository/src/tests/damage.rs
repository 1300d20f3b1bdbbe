//! Flipped bits, cut and exchanged objects: a typed error that names the object, never other bytes.

use std::collections::BTreeMap;

use super::support::*;
use crate::ids::ChunkId;
use crate::tree::{Root, apply, get};
use crate::*;

struct Sample {
    bed: Bed,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    root: Option<Root>,
}

fn sample() -> Sample {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut chunks) = (Random(61), BTreeMap::new());
    for len in [700, 3000, 40_000, 150_000, 260_000] {
        let data = random.data(len);
        chunks.insert(add(&repository, &data).0, data);
    }
    let edits = (0..300).map(|i| (format!("{i:05}").into_bytes(), Some(vec![7; 100])));
    let root = apply::<_, _, RepositoryError>(&*repository, &mut &*repository, None, edits).unwrap();
    commit(&repository, root);
    repository
        .put_lease(
            repository.volume("main").unwrap(),
            &Lease { host: "here".into(), pid: 1, since_ns: 2, state: None, head: 0 },
        )
        .unwrap();
    Sample { bed, chunks, root }
}

/// Everything that can be read; the first error.
fn read_all(sample: &Sample) -> Result<(), RepositoryError> {
    let repository = sample.bed.try_open(OpenOptions::default())?;
    let volume = repository.volume("main")?;
    let head = repository.latest_head(volume)?.ok_or(RepositoryError::MissingObject { object: "heads/".to_owned() })?;
    assert_eq!(head.live_root, sample.root, "another root");
    assert_eq!(repository.read_lease(volume)?.unwrap().host, "here");
    repository.load_segments(&head.segments)?;
    for (id, data) in &sample.chunks {
        assert!(*repository.read_chunk(id)? == **data, "wrong bytes of {id}");
    }
    for i in 0..300 {
        let value = get(&*repository, sample.root, format!("{i:05}").as_bytes())?;
        assert_eq!(value.as_deref(), Some(&[7; 100][..]), "wrong value of {i}");
    }
    Ok(())
}

fn names_it(error: &RepositoryError, name: &str) -> bool {
    match error {
        RepositoryError::Corrupt { object, .. }
        | RepositoryError::MissingObject { object }
        | RepositoryError::UnsupportedVersion { object, .. }
        | RepositoryError::UnknownEpoch { object, .. } => object.contains(name),
        RepositoryError::NotARepository { .. } => name == "config",
        // The parameters of a slot are checked before its checksum is known to fit.
        RepositoryError::KdfParameters { .. } => name.starts_with("keys/"),
        _ => false,
    }
}

#[test]
fn every_flipped_bit_is_noticed_and_the_object_named() {
    let sample = sample();
    read_all(&sample).unwrap();
    let mut random = Random(67);
    let (mut flips, mut harmless) = (0, 0);
    for (name, bytes) in sample.bed.store.objects() {
        // All of the small objects; of packs the ends and samples between.
        let places: Vec<usize> = if bytes.len() < 400 {
            (0..bytes.len()).collect()
        } else {
            let ends = (0..64).chain(bytes.len() - 64..bytes.len());
            ends.chain((0..60).map(|_| random.below(bytes.len()))).collect()
        };
        for place in places {
            let bit = 1 << random.below(8);
            sample.bed.store.tamper(&name, |b| b[place] ^= bit);
            flips += 1;
            match read_all(&sample) {
                Err(error) => assert!(names_it(&error, &name), "byte {place} of {name}: {error:?}"),
                // Tables, trailers and headers of packs and segments are only read when an index is rebuilt.
                Ok(()) => {
                    assert!(name.starts_with("packs/") || name.starts_with("index/"), "byte {place} of {name}");
                    harmless += 1;
                }
            }
            sample.bed.store.tamper(&name, |b| b[place] ^= bit);
        }
    }
    assert!(flips > 1000 && harmless < flips / 3, "{harmless} of {flips} were not noticed");
    read_all(&sample).unwrap();
}

#[test]
fn cut_and_missing_objects_are_named() {
    let sample = sample();
    for (name, bytes) in sample.bed.store.objects() {
        for len in [0, 1, 5, 43, bytes.len() / 2, bytes.len() - 1] {
            sample.bed.store.tamper(&name, |b| b.truncate(len));
            if let Err(error) = read_all(&sample) {
                assert!(names_it(&error, &name), "{name} cut to {len}: {error:?}");
            } else {
                assert!(
                    len == bytes.len() - 1 && (name.starts_with("packs/") || name.starts_with("index/")),
                    "{name} {len}"
                );
            }
            sample.bed.store.tamper(&name, |b| b.clone_from(&bytes));
        }
    }
    read_all(&sample).unwrap();
    for name in sample.bed.store.objects().into_keys().filter(|n| !n.starts_with("lease/") && !n.starts_with("keys/")) {
        let key = axiomfs_api::ObjectKey::new(name.clone()).unwrap();
        let bytes = axiomfs_api::Store::get(&sample.bed.store.inner, &key, u64::MAX).unwrap();
        axiomfs_api::Store::delete(&sample.bed.store.inner, &key).unwrap();
        let error = read_all(&sample).unwrap_err();
        let prefix = name.split_once('/').map_or(name.as_str(), |(prefix, _)| prefix);
        assert!(names_it(&error, prefix), "{name}: {error:?}");
        axiomfs_api::Store::put_new(&sample.bed.store.inner, &key, axiomfs_api::Body::Bytes(&bytes)).unwrap();
    }
}

#[test]
fn objects_of_another_place_are_refused() {
    let (a, b) = (sample(), sample());
    let (ours, theirs) = (a.bed.store.objects(), b.bed.store.objects());
    for kind in ["keys/", "keyring/", "heads/", "lease/"] {
        let (name, bytes) = ours.iter().find(|(n, _)| n.starts_with(kind)).unwrap();
        let (_, foreign) = theirs.iter().find(|(n, _)| n.starts_with(kind)).unwrap();
        a.bed.store.tamper(name, |b| b.clone_from(foreign));
        let error = read_all(&a).unwrap_err();
        let expected = kind == "keys/" && matches!(error, RepositoryError::WrongPassphrase { slots: 1 });
        assert!(expected || names_it(&error, name), "{name}: {error:?}");
        a.bed.store.tamper(name, |b| b.clone_from(bytes));
    }
}

#[test]
fn a_wrong_passphrase_is_told_from_damage() {
    let bed = Bed::new();
    let open = |passphrase: &[u8]| {
        Repository::open(
            bed.store.clone(),
            host(),
            std::sync::Arc::new(axiomfs_encryption_aes_gcm::Aes256Gcm),
            passphrase,
            OpenOptions::default(),
        )
    };
    assert!(matches!(open(b"wrong"), Err(RepositoryError::WrongPassphrase { slots: 1 })));
    let name = bed.store.objects().into_keys().find(|n| n.starts_with("keys/")).unwrap();
    bed.store.tamper(&name, |b| b[70] ^= 1);
    assert!(matches!(open(PASSPHRASE), Err(RepositoryError::Corrupt { object, .. }) if object == name));
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let bed = Bed::new();
    bed.store.tamper("config", |b| {
        let text = String::from_utf8(b.clone()).unwrap().replace("format: 1", "format: 2");
        *b = (text + "and: more\n").into_bytes();
    });
    match bed.try_open(OpenOptions::default()) {
        Err(RepositoryError::UnsupportedVersion { object, found: 2, supported: 1 }) => assert_eq!(object, "config"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn new_data_heals_a_damaged_chunk() {
    let sample = sample();
    let (pack, bytes) = sample
        .bed
        .store
        .objects()
        .into_iter()
        .filter(|(n, _)| n.starts_with("packs/"))
        .max_by_key(|(_, b)| b.len())
        .unwrap();
    let repository = sample.bed.open();
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    sample.bed.store.tamper(&pack, |b| b[48..bytes.len() - 1000].fill(0));
    for data in sample.chunks.values() {
        assert_eq!(add(&repository, data).1, Added::Known, "nobody has noticed yet");
    }
    for id in sample.chunks.keys() {
        let error = repository.read_chunk(id).unwrap_err();
        assert!(names_it(&error, &pack), "{error:?}");
    }
    assert!(repository.stats().frames_quarantined > 0);
    for data in sample.chunks.values() {
        assert_eq!(add(&repository, data).1, Added::New);
    }
    commit(&repository, sample.root);
    for (id, data) in &sample.chunks {
        assert_eq!(*repository.read_chunk(id).unwrap(), **data);
    }
    // A mount that does not know of the quarantine finds the good copy too.
    read_all(&sample).unwrap();
}

#[test]
fn a_missing_pack_counts_as_absent_once_it_is_missed() {
    let sample = sample();
    let repository = sample.bed.open();
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    for name in sample.bed.store.objects().into_keys().filter(|n| n.starts_with("packs/")) {
        axiomfs_api::Store::delete(&sample.bed.store.inner, &axiomfs_api::ObjectKey::new(name).unwrap()).unwrap();
    }
    let (id, data) = sample.chunks.iter().next().unwrap();
    assert!(
        matches!(repository.read_chunk(id), Err(RepositoryError::MissingObject { object }) if object.starts_with("packs/"))
    );
    assert_eq!(add(&repository, data).1, Added::New);
    assert_eq!(*repository.read_chunk(id).unwrap(), **data);
}

#[test]
fn a_reader_whose_index_is_old_takes_the_new_one_before_it_gives_up() {
    let sample = sample();
    let reader = sample.bed.open_cold();
    let writer = sample.bed.open();
    let head = writer.latest_head(writer.volume("main").unwrap()).unwrap().unwrap();
    writer.load_segments(&head.segments).unwrap();
    let (id, data) = sample.chunks.iter().next().unwrap();
    for name in sample.bed.store.objects().into_keys().filter(|n| n.starts_with("packs/")) {
        axiomfs_api::Store::delete(&sample.bed.store.inner, &axiomfs_api::ObjectKey::new(name).unwrap()).unwrap();
    }
    writer.read_chunk(id).unwrap_err();
    assert_eq!(add(&writer, data).1, Added::New);
    commit(&writer, None);
    assert_eq!(*reader.read_chunk(id).unwrap(), **data);
}

#[test]
fn a_damaged_staged_pack_keeps_no_other_from_the_store() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(101);
    let mut staged = Vec::new();
    for _ in 0..3 {
        let data: Vec<u8> = (0..5000).map(|_| random.next() as u8).collect();
        staged.push((add(&repository, &data).0, data, repository.flush().unwrap()));
    }
    let (bad, _, packs) = &staged[1];
    let path = &packs.last().unwrap().path;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let head = commit(&repository, None);
    let cold = bed.open_cold();
    assert_eq!(head.segments, cold.segments());
    for (id, data, _) in &staged {
        match cold.read_chunk(id) {
            Ok(read) => assert!(*read == **data && id != bad),
            // Nothing damaged is stored, so that other mounts don't take it for a copy either.
            Err(error) => assert!(matches!(&error, RepositoryError::Missing { .. }) && id == bad, "{error}"),
        }
    }
    assert_eq!(bed.staged_files(), 0);
    assert_eq!(repository.take_damage_notes().len(), 1);
    commit(&repository, None);
}

/// Flips a bit of a file at `at`, counted from its end where that is negative.
fn flip(path: &std::path::Path, at: i64) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = if at < 0 { bytes.len() - at.unsigned_abs() as usize } else { at as usize };
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Three packs with a chunk each: ids, contents and files.
fn three_packs(repository: &Repository, seed: u64) -> Vec<(ChunkId, Vec<u8>, StagedPack)> {
    let mut random = Random(seed);
    let mut staged = |_| {
        let data: Vec<u8> = (0..5000).map(|_| random.next() as u8).collect();
        (add(repository, &data).0, data, repository.flush().unwrap().pop().unwrap())
    };
    (0..3).map(&mut staged).collect()
}

#[test]
fn a_staged_pack_that_lost_header_table_or_trailer_is_stored_from_what_is_known_of_it() {
    for at in [0, 4, 7, -100, -5, -1] {
        let bed = Bed::new();
        let repository = bed.open();
        let staged = three_packs(&repository, 102);
        flip(&staged[1].2.path, at);
        commit(&repository, None);
        let cold = bed.open_cold();
        for (id, data, _) in &staged {
            assert_eq!(*cold.read_chunk(id).unwrap(), **data, "byte {at}");
        }
        assert_eq!(bed.staged_files(), 0, "byte {at}");
        let notes = repository.take_damage_notes();
        assert!(
            notes.len() == 1 && notes[0].text.contains("1 of its 1 frames are sound") && !notes[0].lost,
            "{notes:?}"
        );
    }
}

#[test]
fn what_an_earlier_mount_left_is_compared_with_its_name_before_it_is_sent() {
    let bed = Bed::new();
    let staged = three_packs(&bed.open(), 103);
    flip(&staged[1].2.path, 1000);
    let repository = bed.open();
    let ids: Vec<_> = staged.iter().map(|(_, _, pack)| pack.id).collect();
    repository.adopt_staged(&ids).unwrap();
    commit(&repository, None);
    let cold = bed.open_cold();
    for (place, (id, data, _)) in staged.iter().enumerate() {
        match cold.read_chunk(id) {
            Ok(read) => assert!(*read == **data && place != 1),
            Err(error) => assert!(error.is_damage() && place == 1, "{error}"),
        }
    }
    let notes = repository.take_damage_notes();
    assert!(notes.len() == 1 && notes[0].text.contains("0 of its 1 frames") && notes[0].lost, "{notes:?}");
    assert_eq!(add(&repository, &staged[1].1).1, Added::New, "what comes again heals it");
}

#[test]
fn a_full_pack_that_rotted_here_is_sent_without_what_is_damaged() {
    let bed = Bed::new();
    let mut random = Random(104);
    let chunks: Vec<Vec<u8>> = (0..8).map(|_| random.data(200_000)).collect();
    let packs = {
        let repository = bed.open();
        for data in &chunks {
            add(&repository, data);
        }
        repository.flush().unwrap()
    };
    let ids: Vec<_> = packs.iter().map(|pack| pack.id).collect();
    let largest = packs.iter().max_by_key(|pack| pack.len).unwrap();
    flip(&largest.path, (largest.len / 2) as i64);
    let repository = bed.open();
    repository.adopt_staged(&ids).unwrap();
    commit(&repository, None);
    let notes = repository.take_damage_notes();
    assert!(notes.iter().any(|note| note.text.contains("frames are sound") && note.lost), "{notes:?}");
    let cold = bed.open_cold();
    let lost = chunks.iter().filter(|data| cold.read_chunk(&repository.data_id(data)).is_err()).count();
    assert!((1..4).contains(&lost), "{lost} chunks were lost by one bit");
    for name in bed.store.objects().into_keys().filter(|name| name.starts_with("packs/")) {
        let bytes = axiomfs_api::Store::get(&bed.store.inner, &axiomfs_api::ObjectKey::new(&name).unwrap(), u64::MAX);
        assert!(
            name.ends_with(&blake3::hash(&bytes.unwrap()).to_hex().to_string()),
            "{name} is not what it is named by"
        );
    }
}

#[test]
fn a_lost_index_segment_is_not_asked_for_by_every_lookup() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(105);
    let mut lost = None;
    for _ in 0..8 {
        let before = bed.store.objects();
        add(&repository, &random.data(3000));
        commit(&repository, None);
        lost = lost.or_else(|| {
            bed.store.objects().into_keys().find(|name| name.starts_with("index/") && !before.contains_key(name))
        });
    }
    drop(repository);
    let lost = axiomfs_api::ObjectKey::new(lost.unwrap()).unwrap();
    axiomfs_api::Store::delete(&bed.store.inner, &lost).unwrap();
    let repository = bed.open();
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    assert!(head.segments.len() > 1, "the segment was merged");
    repository.load_segments(&head.segments).unwrap();
    let mut asked_by = |chunks: u32| {
        let before = bed.store.gets.load(std::sync::atomic::Ordering::SeqCst);
        for _ in 0..chunks {
            assert_eq!(add(&repository, &random.data(3000)).1, Added::New);
        }
        bed.store.gets.load(std::sync::atomic::Ordering::SeqCst) - before
    };
    assert!(asked_by(20) > 0, "nothing was cold");
    let asked = asked_by(200);
    assert!(asked < 10, "200 new chunks asked the store {asked} times");
}

#[test]
fn a_segment_that_is_lost_or_damaged_once_its_root_is_known_is_not_asked_for_by_every_lookup_either() {
    for lost in [true, false] {
        let bed = Bed::new();
        let repository = bed.open();
        let mut random = Random(106);
        add(&repository, &random.data(3000));
        commit(&repository, None);
        drop(repository);
        let repository = bed.open();
        let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
        repository.load_segments(&head.segments).unwrap();
        repository.index.chains(crate::index::Io::Allowed).unwrap();
        let name = bed.store.objects().into_keys().find(|name| name.starts_with("index/")).unwrap();
        let key = axiomfs_api::ObjectKey::new(name).unwrap();
        let mut bytes = axiomfs_api::Store::get(&bed.store.inner, &key, u64::MAX).unwrap();
        axiomfs_api::Store::delete(&bed.store.inner, &key).unwrap();
        if !lost {
            // All blocks, not the root at the end.
            let root = head.segments[0].root_offset as usize;
            bytes[48..root].iter_mut().for_each(|byte| *byte ^= 1);
            axiomfs_api::Store::put_new(&bed.store.inner, &key, axiomfs_api::Body::Bytes(&bytes)).unwrap();
        }
        let before = bed.store.gets.load(std::sync::atomic::Ordering::SeqCst);
        for _ in 0..200 {
            assert_eq!(add(&repository, &random.data(3000)).1, Added::New);
        }
        let asked = bed.store.gets.load(std::sync::atomic::Ordering::SeqCst) - before;
        assert!((1..10).contains(&asked), "200 new chunks asked the store {asked} times, lost: {lost}");
    }
}
