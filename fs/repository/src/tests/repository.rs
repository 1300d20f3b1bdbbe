//! Chunks through their whole life, against byte arrays.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::support::*;
use crate::ids::ChunkId;
use crate::*;

fn check(repository: &Repository, model: &BTreeMap<ChunkId, Vec<u8>>, when: &str) {
    for (id, data) in model {
        let read = repository.read_chunk(id).unwrap_or_else(|e| panic!("{when}: {id}: {e}"));
        assert!(*read == **data, "{when}: {id} has other bytes");
    }
}

fn sizes(random: &mut Random) -> usize {
    match random.below(10) {
        0..5 => 1 + random.below(20_000),
        5..8 => 100_000 + random.below(60_000),
        8 => (128 << 10) - random.below(2),
        _ => 256 << 10 << random.below(4),
    }
}

#[test]
fn chunks_are_the_same_pending_staged_committed_and_cold() {
    for takes_files in [false, true] {
        let bed = Bed::new();
        bed.store.takes_files.store(takes_files, Ordering::SeqCst);
        let repository = bed.open();
        let (mut random, mut model) = (Random(7), BTreeMap::new());
        for round in 0..5 {
            for _ in 0..50 {
                let len = sizes(&mut random);
                let data = random.data(len);
                let id = repository.data_id(&data);
                let route = if random.below(2) == 0 { "default" } else { "media" };
                repository.add_chunk(class(random.below(3) as u32, route), id, &data).unwrap();
                model.insert(id, data);
            }
            check(&repository, &model, "pending");
            let staged = repository.flush().unwrap();
            assert!(staged.iter().all(|p| p.path.exists() && p.len == p.path.metadata().unwrap().len()));
            check(&repository, &model, "staged");
            if round % 2 == 1 {
                commit(&repository, None);
                assert_eq!(bed.staged_files(), 0);
                check(&repository, &model, "committed");
                check(&bed.open_cold(), &model, "cold");
            }
        }
        assert_eq!(repository.stats().pending_bytes, 0);
    }
}

#[test]
fn a_packs_name_is_the_hash_of_its_bytes_and_nothing_is_in_clear() {
    let bed = Bed::new();
    let repository = bed.open();
    let secret = b"the quick brown fox jumps over the lazy dog; ".repeat(2000);
    add(&repository, &secret);
    add(&repository, &secret[..40_000]);
    commit(&repository, None);
    for (name, bytes) in bed.store.objects() {
        if let Some(id) = name.strip_prefix("packs/") {
            assert_eq!(
                id,
                format!("{}/{0}", "").replace('/', &format!("{}/", &id[..2])) + &blake3::hash(&bytes).to_hex()
            );
        }
        for window in secret[..60].windows(16) {
            assert!(!bytes.windows(16).any(|w| w == window), "{name} holds clear text");
        }
        assert!(!bytes.windows(4).any(|w| w == b"main"), "{name} holds a volume's name");
    }
}

#[test]
fn what_is_known_is_not_stored_again() {
    let bed = Bed::new();
    let repository = bed.open();
    let (small, large) = (Random(1).data(3000), Random(2).data(700_000));
    for data in [&small, &large] {
        assert_eq!(add(&repository, data).1, Added::New);
        assert_eq!(add(&repository, data).1, Added::Known, "pending");
    }
    repository.flush().unwrap();
    assert_eq!(add(&repository, &small).1, Added::Known, "staged");
    commit(&repository, None);
    assert_eq!(add(&repository, &small).1, Added::Known, "committed");
    let before = bed.store.objects().len();
    commit(&repository, None);
    assert_eq!(bed.store.objects().len(), before + 1, "only a head is new");
    let stats = repository.stats();
    assert_eq!((stats.chunks_new, stats.chunks_known), (2, 4));
    assert_eq!((stats.bytes_new, stats.indexed_chunks), (703_000, 2));

    // On another mount too.
    drop(repository);
    let repository = bed.open();
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    assert_eq!(add(&repository, &large).1, Added::Known);
}

#[test]
fn a_later_mount_adopts_what_was_staged() {
    let bed = Bed::new();
    let (mut random, mut model) = (Random(11), BTreeMap::new());
    let repository = bed.open();
    for _ in 0..50 {
        let data = random.data(1 + random.0 as usize % 300_000);
        model.insert(add(&repository, &data).0, data);
    }
    let ids: Vec<_> = repository.flush().unwrap().iter().map(|p| p.id).collect();
    let lost = add(&repository, b"never flushed").0;
    drop(repository);
    std::fs::write(bed.dir.path().join("staging/00.open"), b"rubbish").unwrap();
    std::fs::write(bed.dir.path().join("staging/mine.txt"), b"not ours").unwrap();

    let repository = bed.open();
    assert_eq!(repository.adopt_staged(&ids).unwrap().missing, []);
    assert_eq!(bed.staged_files(), ids.len() + 1, "rubbish is gone, other people's files are not");
    check(&repository, &model, "adopted");
    assert!(matches!(repository.read_chunk(&lost), Err(RepositoryError::Missing { chunk }) if chunk == lost));
    let data = model.values().next().unwrap();
    assert_eq!(add(&repository, data).1, Added::Known);
    commit(&repository, None);
    check(&bed.open_cold(), &model, "cold");
}

#[test]
fn what_is_on_this_machine_is_told_from_what_only_the_store_has() {
    let bed = Bed::new();
    let (stored, staged) = (Random(31).data(5000), Random(32).data(5000));
    let (ids, packs) = {
        let repository = bed.open();
        let stored = add(&repository, &stored).0;
        commit(&repository, None);
        ((stored, add(&repository, &staged).0), repository.flush().unwrap())
    };
    let repository = bed.open();
    repository.adopt_staged(&packs.iter().map(|pack| pack.id).collect::<Vec<_>>()).unwrap();
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    repository.load_segments(&head.segments).unwrap();
    assert!(repository.chunk_cached(&ids.1).is_none(), "it is not decoded yet");
    assert_eq!(repository.read_chunk_here(&ids.1).unwrap().as_deref(), Some(&*staged));
    assert!(repository.read_chunk_here(&ids.0).unwrap().is_none());
    assert_eq!(*repository.read_chunk(&ids.0).unwrap(), *stored);
    assert!(repository.read_chunk_here(&ids.0).unwrap().is_some(), "it is in memory now");
}

#[test]
fn a_pack_that_was_moved_into_the_store_before_a_crash_is_adopted_from_there() {
    let bed = Bed::new();
    bed.store.takes_files.store(true, Ordering::SeqCst);
    let repository = bed.open();
    let data = Random(5).data(900_001);
    let (id, _) = add(&repository, &data);
    let ids: Vec<_> = repository.flush().unwrap().iter().map(|p| p.id).collect();
    repository.commit_packs(&[]).unwrap();
    assert_eq!(*repository.read_chunk(&id).unwrap(), *data, "uploaded, not yet committed");
    drop(repository);

    let repository = bed.open();
    let unknown = crate::ids::PackId([7; 32]);
    let adopted = repository.adopt_staged(&[ids[0], unknown]).unwrap();
    assert_eq!(adopted.missing, [unknown]);
    assert_eq!(*repository.read_chunk(&id).unwrap(), *data);
    commit(&repository, None);
    assert_eq!(*bed.open_cold().read_chunk(&id).unwrap(), *data);
}

#[test]
fn small_packs_are_merged_and_full_ones_are_not_touched() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions { pack_bytes: 1 << 20, ..bed.options() }).unwrap();
    let (mut random, mut model) = (Random(13), BTreeMap::new());
    for _ in 0..10 {
        for _ in 0..3 {
            let data: Vec<u8> = (0..20_000).map(|_| random.next() as u8).collect();
            model.insert(add(&repository, &data).0, data);
        }
        repository.flush().unwrap();
    }
    let big: Vec<u8> = (0..900_000).map(|_| random.next() as u8).collect();
    model.insert(add(&repository, &big).0, big);
    let staged = repository.flush().unwrap();
    assert_eq!(staged.len(), 11);
    commit(&repository, None);
    let packs: Vec<String> = bed.store.objects().into_keys().filter(|n| n.starts_with("packs/")).collect();
    assert_eq!(packs.len(), 2, "{packs:?}");
    let full = staged.iter().find(|p| p.len > 900_000).unwrap();
    assert!(packs.iter().any(|name| name.ends_with(&full.id.to_hex())));
    check(&repository, &model, "committed");
    check(&bed.open_cold(), &model, "cold");
}

#[test]
fn a_commit_that_fails_goes_on_where_it_stopped() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut model) = (Random(17), BTreeMap::new());
    let mut write = |repository: &Repository| {
        for _ in 0..5 {
            let data = random.data(400_000);
            model.insert(add(repository, &data).0, data);
        }
        repository.flush().unwrap();
    };
    write(&repository);
    repository.commit_packs(&[]).unwrap();
    let uploaded = bed.store.objects();
    write(&repository);
    bed.store.down.store(true, Ordering::SeqCst);
    let failed = repository.commit_packs(&[]).unwrap_err();
    assert!(failed.is_transient(), "{failed}");
    assert_eq!(
        bed.staged_files(),
        1,
        "what the store has takes no room here, the other is staged, nothing is half-made"
    );
    bed.store.down.store(false, Ordering::SeqCst);
    commit(&repository, None);
    assert!(uploaded.keys().all(|name| bed.store.objects().contains_key(name)));
    let packs = bed.store.objects().into_keys().filter(|n| n.starts_with("packs/")).count();
    assert_eq!(packs, 2, "what was uploaded is not uploaded again");
    check(&repository, &model, "committed");
    check(&bed.open_cold(), &model, "cold");
    assert_eq!(bed.staged_files(), 0);
}

#[test]
fn a_pack_whose_upload_got_no_answer_is_sent_again_under_its_name() {
    for takes_files in [false, true] {
        let bed = Bed::new();
        let repository = bed.open();
        let (mut random, mut model) = (Random(18), BTreeMap::new());
        let mut write = |repository: &Repository, len: usize| {
            let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            model.insert(add(repository, &data).0, data);
            repository.flush().unwrap();
        };
        for _ in 0..3 {
            write(&repository, 100_000);
        }
        bed.store.takes_files.store(takes_files, Ordering::SeqCst);
        bed.store.lose_reply.store(true, Ordering::SeqCst);
        let failed = repository.commit_packs(&[]).unwrap_err();
        assert!(failed.is_transient(), "{failed}");
        let packs = || -> BTreeMap<String, usize> {
            let objects = bed.store.objects().into_iter().filter(|(name, _)| name.starts_with("packs/"));
            objects.map(|(name, bytes)| (name, bytes.len())).collect()
        };
        let carried_out = packs();
        assert_eq!(carried_out.len(), 1, "three small packs as one, whatever was heard of it");
        write(&repository, 70_000);
        commit(&repository, None);
        let stored: usize = packs().values().sum();
        assert!((370_000..450_000).contains(&stored), "{:?} after {carried_out:?}: stored twice", packs());
        check(&repository, &model, "committed");
        check(&bed.open_cold(), &model, "cold");
        assert_eq!(bed.staged_files(), 0);
    }
}

#[test]
fn an_unreachable_store_does_not_stop_writers() {
    let bed = Bed::new();
    let data = Random(19).data(50_000);
    let repository = bed.open();
    add(&repository, &data);
    let head = commit(&repository, None);
    drop(repository);
    let repository = bed.open();
    repository.load_segments(&head.segments).unwrap();
    bed.store.down.store(true, Ordering::SeqCst);
    let (id, added) = add(&repository, &data);
    assert_eq!(added, Added::New, "that it is known can't be told");
    assert_eq!(*repository.read_chunk(&id).unwrap(), *data);
    repository.flush().unwrap();
    assert_eq!(*repository.read_chunk(&id).unwrap(), *data);
}

#[test]
fn writers_wait_once_for_a_store_that_is_slow_to_fail() {
    let bed = Bed::new();
    let data: Vec<Vec<u8>> = (0..3).map(|seed| Random(seed).data(50_000)).collect();
    let repository = bed.open();
    for data in &data {
        add(&repository, data);
    }
    let head = commit(&repository, None);
    drop(repository);
    let repository = bed.open();
    repository.load_segments(&head.segments).unwrap();
    bed.store.down.store(true, Ordering::SeqCst);
    // Longer than the least pause.
    bed.store.slow.store(300, Ordering::SeqCst);
    for data in &data {
        assert_eq!(add(&repository, data).1, Added::New, "that it is known can't be told");
    }
    assert_eq!(bed.store.failed.load(Ordering::SeqCst), 1);
}

/// The store must not learn where frames begin, and bytes that were damaged on their way are asked for again.
#[test]
fn what_is_uploaded_before_its_head_is_read_as_what_has_one() {
    let bed = Bed::new();
    let repository = bed.open();
    let data: Vec<Vec<u8>> = (0..3).map(|seed| Random(seed).data(200_000)).collect();
    let ids: Vec<ChunkId> = data.iter().map(|data| add(&repository, data).0).collect();
    repository.flush().unwrap();
    repository.commit_packs(&[]).unwrap();
    for (id, data) in ids.iter().zip(&data) {
        assert_eq!(*repository.read_chunk(id).unwrap(), **data);
    }
    assert!(bed.store.gets.load(Ordering::SeqCst) > 0);
    assert_eq!(bed.store.odd_gets.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failing_staging_directory_loses_nothing() {
    let bed = Bed::new();
    let repository = bed.open();
    let staging = bed.dir.path().join("staging");
    std::fs::rename(&staging, bed.dir.path().join("away")).unwrap();
    let data = Random(23).data(300_000);
    let (id, _) = add(&repository, &data);
    let failed = repository.flush().unwrap_err();
    assert!(matches!(&failed, RepositoryError::Staging { .. }), "{failed}");
    assert_eq!(*repository.read_chunk(&id).unwrap(), *data, "still pending");
    let error = repository.add_chunk(class(0, "default"), repository.data_id(b"x"), b"x").unwrap_err();
    assert!(matches!(error, RepositoryError::Staging { .. }), "{error}");
    std::fs::rename(bed.dir.path().join("away"), &staging).unwrap();
    assert_eq!(repository.flush().unwrap().len(), 1);
    commit(&repository, None);
    assert_eq!(*bed.open_cold().read_chunk(&id).unwrap(), *data);
}

#[test]
fn readers_of_one_frame_share_one_fetch() {
    let bed = Bed::new();
    let repository = bed.open();
    let data = Random(29).data(4 << 20);
    let (id, _) = add(&repository, &data);
    commit(&repository, None);
    drop(repository);
    let repository = bed.open_cold();
    let barrier = Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                barrier.wait();
                assert_eq!(*repository.read_chunk(&id).unwrap(), *data);
            });
        }
    });
    assert_eq!(repository.stats().frames_read, 1);
    assert_eq!(*repository.chunk_cached(&id).unwrap(), *data);
    assert!(repository.chunk_cached(&ChunkId([1; 32])).is_none());
}

#[test]
fn a_cold_chunk_is_not_cached_until_it_is_prefetched() {
    let bed = Bed::new();
    let repository = bed.open();
    let data = Random(31).data(200_000);
    let (id, _) = add(&repository, &data);
    commit(&repository, None);
    let cold = bed.open_cold();
    let gets = bed.store.gets.load(Ordering::SeqCst);
    assert!(cold.chunk_cached(&id).is_none());
    assert_eq!(bed.store.gets.load(Ordering::SeqCst), gets, "it asked the store");
    cold.prefetch_chunk(&id).unwrap();
    assert_eq!(*cold.chunk_cached(&id).unwrap(), *data);
}

#[test]
fn caches_keep_their_bound() {
    let bed = Bed::new();
    let repository = bed.open();
    let (mut random, mut ids) = (Random(37), Vec::new());
    for _ in 0..40 {
        ids.push(add(&repository, &random.data(500_000)).0);
    }
    commit(&repository, None);
    let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
    let small = bed.try_open(OpenOptions { cache_bytes: 4 << 20, ..OpenOptions::default() }).unwrap();
    small.load_segments(&head.segments).unwrap();
    for id in &ids {
        small.read_chunk(id).unwrap();
        let stats = small.stats();
        assert!(stats.frame_cache_bytes + stats.node_cache_bytes + stats.index_cache_bytes <= 4 << 20);
    }
    assert!(small.stats().frame_cache_bytes > 1 << 20);
}

#[test]
fn writers_readers_flushes_and_commits_run_together() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions { pack_bytes: 2 << 20, queue_bytes: 2 << 20, ..bed.options() }).unwrap();
    let done = AtomicBool::new(false);
    let model = std::sync::Mutex::new(Vec::<(ChunkId, Arc<Vec<u8>>)>::new());
    std::thread::scope(|scope| {
        let (repository, done, model) = (&repository, &done, &model);
        let writers: Vec<_> = (0..2)
            .map(|seed| {
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..400 {
                        let len = 1 + random.below(150_000);
                        let data = random.data(len);
                        let id = add(repository, &data).0;
                        model.lock().unwrap().push((id, Arc::new(data)));
                    }
                })
            })
            .collect();
        for seed in 10..14 {
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::SeqCst) {
                    let picked = {
                        let model = model.lock().unwrap();
                        if model.is_empty() { continue } else { model[random.below(model.len())].clone() }
                    };
                    assert_eq!(*repository.read_chunk(&picked.0).unwrap(), **picked.1);
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                commit(repository, None);
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    commit(&repository, None);
    let cold = bed.open_cold();
    for (id, data) in model.lock().unwrap().iter() {
        assert_eq!(*cold.read_chunk(id).unwrap(), ***data);
    }
    // A last commit of few chunks leaves larger segments alone.
    assert!(cold.segments().len() <= 16);
}

#[test]
fn a_flush_does_not_wait_for_a_pack_that_was_opened_after_it() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(103);
    for round in 0..200 {
        let (done, flushed) = std::sync::mpsc::channel();
        let flusher = repository.clone();
        std::thread::spawn(move || done.send(flusher.flush().map(drop)));
        // As many as are encoded meanwhile, and then no more that would have the pack closed.
        for _ in 0..round % 4 {
            let data: Vec<u8> = (0..600_000).map(|_| random.next() as u8).collect();
            add(&repository, &data);
        }
        let ended = flushed.recv_timeout(Duration::from_secs(30));
        ended.unwrap_or_else(|_| panic!("it waits, round {round}")).unwrap();
        if round % 20 == 19 {
            commit(&repository, None);
        }
    }
}

#[test]
fn sealed_records_are_bound_to_purpose_and_data() {
    let bed = Bed::new();
    let repository = bed.open();
    let sealed = repository.seal_record("manifest", b"slot 0", b"contents").unwrap();
    assert_eq!(repository.open_record("manifest", b"slot 0", &sealed).unwrap(), b"contents");
    for (purpose, aad) in [("manifest", b"slot 1"), ("other", b"slot 0")] {
        let error = repository.open_record(purpose, aad, &sealed).unwrap_err();
        assert!(matches!(error, RepositoryError::Corrupt { .. }), "{error}");
    }
    assert_ne!(repository.seal_record("manifest", b"slot 0", b"contents").unwrap(), sealed, "a salt is used once");
    let (a, b) = (repository.log_sealer(&[1; 32]), repository.log_sealer(&[2; 32]));
    let mut bytes = b"record".to_vec();
    a.seal(&[0; 12], b"", &mut bytes);
    assert!(b.open(&[0; 12], b"", &mut bytes.clone()).is_err());
    a.open(&[0; 12], b"", &mut bytes).unwrap();
    assert_eq!(bytes, b"record");
}

/// A filesystem of 8 MiB, taken away again when it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let command = ["-t", "tmpfs", "-o", "size=8m", "none"];
        let mounted = std::process::Command::new("mount").args(command).arg(dir.path()).status().unwrap();
        assert!(mounted.success(), "mount a small tmpfs: this test wants root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a failed test may have left files open there.
        std::process::Command::new("umount").arg("-l").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_stops_staging_and_a_freed_one_goes_on() {
    let disk = SmallDisk::mount();
    let small = disk.0.path();
    let (bed, filler) = (Bed::new(), small.join("filler"));
    std::fs::write(&filler, vec![1; 5 << 20]).unwrap();
    let opts = OpenOptions { staging: Some(small.join("staging")), pack_bytes: 1 << 20, ..bed.options() };
    let repository = bed.try_open(opts).unwrap();
    let (mut random, mut model, mut failed) = (Random(83), BTreeMap::new(), None);
    for _ in 0..60 {
        let data: Vec<u8> = (0..100_000).map(|_| random.next() as u8).collect();
        let id = repository.data_id(&data);
        match repository.add_chunk(class(0, "default"), id, &data) {
            Ok(_) => drop(model.insert(id, data)),
            Err(error) => failed = Some(error),
        }
    }
    let error = repository.flush().err().or(failed).unwrap();
    assert!(error.is_no_space(), "{error}");
    check(&repository, &model, "full");
    std::fs::remove_file(&filler).unwrap();
    repository.flush().unwrap();
    check(&repository, &model, "freed");
    commit(&repository, None);
    check(&bed.open_cold(), &model, "cold");
    let left: Vec<_> = std::fs::read_dir(small.join("staging")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
