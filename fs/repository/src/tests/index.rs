//! The index at scale.

use std::time::Instant;

use super::support::*;
use crate::ids::ChunkId;
use crate::index::{NewPack, PackEntry};
use crate::*;

/// A pack's table with `chunks` made-up chunks, and their ids.
fn made_up(
    random: &mut Random,
    chunks: usize,
) -> (PackEntry, Vec<crate::pack::Chain>, crate::index::TestFrames, Vec<ChunkId>) {
    let id = |random: &mut Random| {
        let mut id = [0; 32];
        for part in id.chunks_exact_mut(8) {
            part.copy_from_slice(&random.next().to_le_bytes());
        }
        id
    };
    let entry = PackEntry { id: id(random).into(), len: 1 << 30, epoch: 1, salt: id(random), kind: FrameKind::Data };
    let (mut frames, mut ids) = (Vec::new(), Vec::new());
    for number in 0..chunks.div_ceil(8) as u32 {
        let members: Vec<_> = (0..8).map(|_| (ChunkId(id(random)), 1000)).collect();
        ids.extend(members.iter().map(|m| m.0));
        let encoded = 4000;
        let stored = crate::codec::padme(4000) as u32 + 16;
        let record = crate::frame::FrameRecord {
            number,
            kind: FrameKind::Data,
            chain: 0,
            applied: 1,
            offset: 48 + number * stored,
            stored,
            encoded,
            raw: 8000,
        };
        frames.push((record, members));
    }
    (entry, vec![crate::pack::Chain::new(b"chain")], frames, ids)
}

fn write(repository: &Repository, dir: &std::path::Path, packs: &[NewPack<'_>]) {
    put(repository, crate::index::write_segment(&repository.index, dir, packs, &[]).unwrap());
}

fn put(repository: &Repository, (path, reference, refs): (std::path::PathBuf, SegmentRef, Vec<SegmentRef>)) {
    let key = axiomfs_api::ObjectKey::new(crate::names::segment(repository.index.volume(), reference.id)).unwrap();
    repository.store().put_new(&key, axiomfs_api::Body::File(&path)).unwrap();
    std::fs::remove_file(path).unwrap();
    repository.load_segments(&refs).unwrap();
}

#[test]
fn a_million_chunks_are_found_fast_and_others_are_not() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions { cache_bytes: 512 << 20, ..OpenOptions::default() }).unwrap();
    let (mut random, mut all) = (Random(71), Vec::new());
    let start = Instant::now();
    // Twenty commits; without optimisation fewer chunks in each, or it takes minutes.
    let each = if cfg!(debug_assertions) { 10_000 } else { 50_000 };
    for _ in 0..20 {
        let (entry, chains, frames, ids) = made_up(&mut random, each);
        write(&repository, bed.dir.path(), &[NewPack { entry, chains: &chains, frames: &frames }]);
        all.extend(ids);
    }
    let written = start.elapsed();
    assert!(repository.segments().len() <= 8);
    let count = u32::try_from(all.len()).unwrap();
    assert_eq!(repository.stats().indexed_chunks, u64::from(count));

    let io = crate::index::Io::Allowed;
    for id in &all {
        let found = repository.index.locate(id, io).unwrap().unwrap();
        assert_eq!((found.len(), found[0].len), (1, 1000));
    }
    let start = Instant::now();
    for id in &all {
        assert_eq!(repository.index.locate(id, io).unwrap().unwrap().len(), 1);
    }
    let hits = start.elapsed() / count;
    let absent: Vec<ChunkId> =
        (0..u64::from(count)).map(|i| ChunkId(*blake3::hash(&i.to_le_bytes()).as_bytes())).collect();
    let start = Instant::now();
    for id in &absent {
        assert!(repository.index.locate(id, io).unwrap().unwrap().is_empty());
    }
    let misses = start.elapsed() / count;
    println!(
        "{count} chunks in 20 commits with merges {written:?}, hit {hits:?}, miss {misses:?}, {} segments",
        repository.segments().len()
    );
}

#[test]
fn a_cold_lookup_reads_little_of_a_large_index() {
    use std::sync::atomic::Ordering;
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions::default()).unwrap();
    let (entry, chains, frames, ids) = made_up(&mut Random(73), 200_000);
    write(&repository, bed.dir.path(), &[NewPack { entry, chains: &chains, frames: &frames }]);
    let refs = repository.segments();
    let cold = bed.try_open(OpenOptions::default()).unwrap();
    let before = bed.store.gets.load(Ordering::SeqCst);
    cold.load_segments(&refs).unwrap();
    assert_eq!(bed.store.gets.load(Ordering::SeqCst), before, "nothing is read before it is needed");
    let bytes = bed.store.bytes_got.load(Ordering::SeqCst);
    assert_eq!(cold.index.locate(&ids[77], crate::index::Io::Never).unwrap().map(|l| l.len()), None);
    assert_eq!(cold.index.locate(&ids[77], crate::index::Io::Allowed).unwrap().unwrap().len(), 1);
    assert_eq!(bed.store.gets.load(Ordering::SeqCst) - before, 4, "root, filter, chunk block, pack block");
    assert!(bed.store.bytes_got.load(Ordering::SeqCst) - bytes < refs[0].len / 5);
}

#[test]
fn a_lookup_waits_only_once_for_a_store_that_is_away() {
    use std::sync::atomic::Ordering;
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions::default()).unwrap();
    let mut random = Random(77);
    for _ in 0..6 {
        let (entry, chains, frames, _) = made_up(&mut random, 800);
        write(&repository, bed.dir.path(), &[NewPack { entry, chains: &chains, frames: &frames }]);
    }
    let refs = repository.segments();
    assert_eq!(refs.len(), 6);
    let cold = bed.try_open(OpenOptions::default()).unwrap();
    cold.load_segments(&refs).unwrap();
    bed.store.down.store(true, Ordering::SeqCst);
    let before = bed.store.failed.load(Ordering::SeqCst);
    let error = cold.index.locate(&ChunkId([7; 32]), crate::index::Io::Allowed).unwrap_err();
    assert!(!error.is_damage(), "{error}");
    assert_eq!(bed.store.failed.load(Ordering::SeqCst) - before, 1, "each segment was asked for");
    bed.store.down.store(false, Ordering::SeqCst);
    assert!(cold.index.locate(&ChunkId([7; 32]), crate::index::Io::Allowed).unwrap().unwrap().is_empty());
}

#[test]
fn merging_keeps_every_place_of_a_chunk_newest_first() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions::default()).unwrap();
    let mut random = Random(79);
    let (entry, chains, frames, ids) = made_up(&mut random, 2000);
    let mut packs = Vec::new();
    for round in 0..30u8 {
        // The same chunks over and over, in another pack each time.
        let entry = PackEntry { id: crate::ids::PackId([round; 32]), ..entry };
        packs.push(entry.id);
        write(&repository, bed.dir.path(), &[NewPack { entry, chains: &chains, frames: &frames }]);
    }
    packs.reverse();
    let refs = repository.segments();
    assert!(refs.len() <= 8);
    let cold = bed.try_open(OpenOptions::default()).unwrap();
    cold.load_segments(&refs).unwrap();
    for id in ids.iter().step_by(37) {
        let found = cold.index.locate(id, crate::index::Io::Allowed).unwrap().unwrap();
        let mut sorted: Vec<_> = found.iter().map(|l| l.pack.id).collect();
        assert_eq!(sorted[0], packs[0], "the newest is preferred");
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(sorted, packs);
    }
}

#[test]
fn segments_whose_root_would_be_too_long_are_not_merged() {
    let bed = Bed::new();
    let repository = bed.try_open(OpenOptions::default()).unwrap();
    let (mut random, mut all) = (Random(83), Vec::new());
    // Of 800 rows: a root of some 150 bytes; of nine times as many, one of over 1,000.
    for _ in 0..12 {
        let (entry, chains, frames, ids) = made_up(&mut random, 800);
        let pack = [NewPack { entry, chains: &chains, frames: &frames }];
        let written = crate::index::write_segment_within(700, &repository.index, bed.dir.path(), &pack, &[]).unwrap();
        put(&repository, written);
        all.extend(ids);
    }
    assert_eq!(repository.segments().len(), 12);
    for id in all.iter().step_by(41) {
        assert_eq!(repository.index.locate(id, crate::index::Io::Allowed).unwrap().unwrap().len(), 1);
    }
}

/// `writes` segments of 480 chunks each, and their ids.
fn written(repository: &Repository, dir: &std::path::Path, random: &mut Random, writes: usize) -> Vec<ChunkId> {
    let mut all = Vec::new();
    for _ in 0..writes {
        let (entry, chains, frames, ids) = made_up(random, 480);
        write(repository, dir, &[NewPack { entry, chains: &chains, frames: &frames }]);
        all.extend(ids);
    }
    all
}

#[test]
fn a_damaged_segment_is_left_alone_and_commits_go_on() {
    for missing in [false, true] {
        let bed = Bed::new();
        let writer = bed.try_open(OpenOptions::default()).unwrap();
        let mut random = Random(89);
        let before = written(&writer, bed.dir.path(), &mut random, 8);
        let damaged = writer.segments()[3];
        let name = crate::names::segment(writer.index.volume(), damaged.id);
        if missing {
            axiomfs_api::Store::delete(&bed.store.inner, &crate::names::key(&name).unwrap()).unwrap();
        } else {
            // A block of rows: the packs are copied before it is met.
            bed.store.tamper(&name, |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
        }
        // As after a mount, where nothing of the segments is in memory.
        let repository = bed.try_open(OpenOptions::default()).unwrap();
        repository.load_segments(&writer.segments()).unwrap();
        let after = written(&repository, bed.dir.path(), &mut random, 1);
        assert!(repository.segments().contains(&damaged), "it stays listed");
        let after = [after, written(&repository, bed.dir.path(), &mut random, 40)].concat();
        assert!(repository.segments().contains(&damaged));
        assert!(repository.segments().len() <= 9, "one more than of sound ones");
        let cold = bed.try_open(OpenOptions::default()).unwrap();
        cold.load_segments(&repository.segments()).unwrap();
        let lost: Vec<&ChunkId> = before[4 * 480..5 * 480].iter().collect();
        for id in before.iter().chain(&after).step_by(7).filter(|id| !lost.contains(id)) {
            assert_eq!(cold.index.locate(id, crate::index::Io::Allowed).unwrap().unwrap().len(), 1);
        }
    }
}

#[test]
fn a_segment_is_not_taken_for_damaged_where_the_store_is_away() {
    use std::sync::atomic::Ordering;
    let bed = Bed::new();
    let writer = bed.try_open(OpenOptions::default()).unwrap();
    let mut random = Random(97);
    written(&writer, bed.dir.path(), &mut random, 8);
    let repository = bed.try_open(OpenOptions::default()).unwrap();
    repository.load_segments(&writer.segments()).unwrap();
    let (entry, chains, frames, _) = made_up(&mut random, 480);
    let pack = [NewPack { entry, chains: &chains, frames: &frames }];
    bed.store.down.store(true, Ordering::SeqCst);
    let error = crate::index::write_segment(&repository.index, bed.dir.path(), &pack, &[]).unwrap_err();
    assert!(error.is_transient(), "{error}");
    bed.store.down.store(false, Ordering::SeqCst);
    write(&repository, bed.dir.path(), &pack);
    assert_eq!(repository.segments().len(), 1, "all are merged");
}
