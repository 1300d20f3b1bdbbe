//! What was written is what is read, and what isn't is never taken for it.

use proptest::prelude::*;

use super::super::format::{FIRST_RECORD, RECORD_HEADER};
use super::*;

#[test]
fn replay_gives_back_what_was_appended_in_both_modes_and_over_many_segments() {
    for encrypt in [true, false] {
        let bench = Bench::new(32 << 10, 64, encrypt);
        let log = bench.create(0);
        let mut expected = Vec::new();
        for n in 0..200u64 {
            let (meta, data) = (noise(n, (n * 7 % 300) as usize), noise(n + 1000, (n * 131 % 5000) as usize));
            let at = append(&log, &meta, &data);
            assert_eq!(at.data.is_some(), !data.is_empty());
            expected.push((meta, data));
        }
        assert!(log.usage().segments > 5, "the test is to cross segments");
        drop(log); // A killed process: nothing is synced.

        let (replayed, seen) = bench.replay(0).unwrap();
        assert_eq!(metas(&seen), expected.iter().map(|(meta, _)| meta.clone()).collect::<Vec<_>>());
        assert_eq!(replayed.cut_tail, None);
        assert_eq!(replayed.epoch, Some(3));

        let log = bench.create(replayed.next_segment);
        for (seen, (_, data)) in seen.iter().zip(&expected) {
            assert_eq!(seen.data_len as usize, data.len());
            assert_eq!(seen.data.map(|r| read_all(&log, r)).unwrap_or_default(), *data);
        }
    }
}

#[test]
fn sealed_segments_show_nothing_of_what_was_written() {
    let bench = Bench::new(64 << 10, 4, true);
    let log = bench.create(0);
    append(&log, b"a name nobody is to see", &[b'x'; 9000]);
    let bytes = fs::read(bench.segment_path(0)).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"nobody" || window == b"xxxxxx"));
}

#[test]
fn parts_of_a_record_are_read_through_the_cache() {
    let bench = Bench::new(8 << 20, 4, true);
    let log = bench.create(0);
    let data = noise(1, 3 << 20);
    let whole = append(&log, b"m", &data).data.unwrap();
    for (start, len) in [(0, 1), (100, 4096), ((3 << 20) - 1, 1), (0, 3 << 20), (777, 1 << 20)] {
        let part = read_all(&log, DataRef { start, len, ..whole });
        assert_eq!(part, data[start as usize..(start + len) as usize]);
    }
    let second = append(&log, b"m", &noise(2, 3 << 20)).data.unwrap();
    assert_eq!(read_all(&log, DataRef { start: 5, len: 9, ..second }), noise(2, 14)[5..]);
    assert!(log.cache.bytes() <= 4 << 20, "the cache is bounded");

    for (start, len) in [(0, (3 << 20) + 1), (3 << 20, 1), (u32::MAX, u32::MAX)] {
        let error = log.read(DataRef { start, len, ..whole }, &mut vec![0; len as usize]).unwrap_err();
        assert!(matches!(error, LogError::Reference { .. }), "{error}");
    }
    let error = log.read(DataRef { offset: whole.offset + 8, ..whole }, &mut vec![0; whole.len as usize]).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
}

#[test]
fn records_too_long_are_refused_and_leave_nothing() {
    let bench = Bench::new(64 << 10, 4, true);
    let log = bench.create(0);
    for (meta, data) in [(MAX_META + 1, 0), (0, 64 << 10), (1, (60 << 10) - RECORD_HEADER)] {
        let error = log.append(&vec![0; meta], Some(&vec![0; data]), Urgency::Reserve).unwrap_err();
        assert!(matches!(error, LogError::TooLarge { .. }), "{error}");
    }
    append(&log, &[], &vec![7; (60 << 10) - RECORD_HEADER]);
    assert_eq!(bench.replay(0).unwrap().1.len(), 1);
}

/// Copies the log, so that one log can be damaged in many ways.
fn copy(bench: &Bench, name: &str) -> LogOptions {
    let dir = bench.dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    for entry in fs::read_dir(&bench.options.dir).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    LogOptions { dir, ..bench.options.clone() }
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_reported() {
    for encrypt in [true, false] {
        let bench = Bench::new(16 << 10, 4, encrypt);
        let log = bench.create(0);
        append(&log, b"first", &noise(1, 300));
        append(&log, b"second", &noise(2, 100));
        let last = append(&log, b"third, torn", &noise(3, 150));
        let end = last.offset + (RECORD_HEADER + 11 + 150) as u64;
        let original = fs::read(bench.segment_path(0)).unwrap();
        let original = &original[last.offset as usize..end as usize];
        for cut in last.offset..end {
            for shorten in [true, false] {
                let options = copy(&bench, &format!("{cut}-{shorten}"));
                let path = options.dir.join("segment-0000000000000000.log");
                let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(cut).unwrap();
                if !shorten {
                    file.set_len(16 << 10).unwrap();
                }
                let (replayed, seen) = replay_dir(&options, &bench.sealer, 0).unwrap();
                let whole = !shorten && original[(cut - last.offset) as usize..].iter().all(|byte| *byte == 0);
                assert_eq!(seen.len(), if whole { 3 } else { 2 }, "cut at {cut}");
                let left = &original[..(cut - last.offset) as usize];
                if !whole && left.iter().any(|byte| *byte != 0) {
                    let tail = replayed.cut_tail.expect("the cut is reported");
                    assert_eq!((tail.segment, tail.offset), (0, last.offset));
                    assert!(tail.bytes > 0 && tail.bytes <= (end - last.offset).next_multiple_of(8));
                } else {
                    assert_eq!(replayed.cut_tail, None);
                }

                // The next mount goes on behind the cut, and what it writes is found with what was there before.
                let log =
                    Log::create(options.clone(), IDENTITY, Arc::clone(&bench.sealer), replayed.next_segment).unwrap();
                append(&log, b"after", b"");
                drop(log);
                let (again, seen_again) = replay_dir(&options, &bench.sealer, 0).unwrap();
                assert_eq!(again.cut_tail, None, "it was cut for good");
                assert_eq!(seen_again[..seen.len()], seen);
                assert_eq!(metas(&seen_again[seen.len()..]), [b"after"]);
                fs::remove_dir_all(&options.dir).unwrap();
            }
        }
    }
}

#[test]
fn any_bit_flipped_before_the_durable_position_is_damage_and_after_it_a_tail() {
    for encrypt in [true, false] {
        let bench = Bench::new(16 << 10, 4, encrypt);
        let log = bench.create(7);
        let first = append(&log, b"one", &noise(1, 50));
        let second = append(&log, b"two", &noise(2, 20));
        log.sync().unwrap();
        let third = append(&log, b"three", &noise(3, 20)); // Says that the first two are durable.
        let fourth = append(&log, b"four", &noise(4, 20));
        drop(log);
        let padding = |record: Appended, len: u64| record.offset..record.offset + RECORD_HEADER as u64 + len;

        for offset in padding(first, 53).chain(padding(second, 23)) {
            bench.flip(7, offset);
            let start = if offset < second.offset { first.offset } else { second.offset };
            let error = bench.replay(7).unwrap_err();
            assert!(
                matches!(error, LogError::Damaged { segment: 7, offset, damage: Damage::Record } if offset == start),
                "{offset}: {error}"
            );
            bench.flip(7, offset);
        }
        for offset in padding(third, 25).chain(padding(fourth, 24)) {
            bench.flip(7, offset);
            let (start, records) = if offset < fourth.offset { (third.offset, 2) } else { (fourth.offset, 3) };
            let (replayed, seen) = bench.replay(7).unwrap();
            assert_eq!(seen.len(), records);
            assert_eq!(replayed.cut_tail.map(|tail| (tail.segment, tail.offset)), Some((7, start)));
            bench.flip(7, offset);
        }
        assert_eq!(bench.replay(7).unwrap().1.len(), 4, "all flips were undone");
    }
}

#[test]
fn an_idle_log_notes_what_is_durable_once() {
    let bench = Bench::new(16 << 10, 4, true);
    let log = bench.create(0);
    let only = append(&log, b"only", &[]);
    log.sync().unwrap();
    for _ in 0..5 {
        log.tick();
    }
    let usage = log.usage();
    assert_eq!((usage.unsynced, usage.syncs), (0, 2));
    drop(log);
    assert_eq!(metas(&bench.replay(0).unwrap().1), [b"only"]);
    bench.flip(0, only.offset + 57);
    let error = bench.replay(0).unwrap_err();
    assert!(matches!(error, LogError::Damaged { segment: 0, .. }), "{error}");
}

#[test]
fn earlier_segments_are_durable_so_anything_bad_or_missing_in_them_is_damage() {
    let bench = Bench::new(16 << 10, 16, true);
    let log = bench.create(0);
    let mut last = [0; 3];
    for segment in 0..3u64 {
        append(&log, b"x", &noise(segment, 100));
        last[segment as usize] = append(&log, b"y", &noise(segment, 100)).offset;
        log.rotate().unwrap();
    }
    append(&log, b"z", &[]);
    drop(log);
    let damaged = |expected: u64, at: u64| {
        let error = bench.replay(0).unwrap_err();
        assert!(
            matches!(error, LogError::Damaged { segment, offset, .. } if (segment, offset) == (expected, at)),
            "{error}"
        );
    };
    for segment in 0..3 {
        // The last record of a closed segment has no later one that vouches for it; the next segment does.
        bench.flip(segment, last[segment as usize] + 70);
        damaged(segment, last[segment as usize]);
        bench.flip(segment, last[segment as usize] + 70);
        for offset in 0..128 {
            bench.flip(segment, offset);
            let error = bench.replay(0).unwrap_err();
            let ok = matches!(
                error,
                LogError::Damaged { .. }
                    | LogError::Version { .. }
                    | LogError::Foreign { .. }
                    | LogError::Unsealed { .. }
            );
            assert!(ok, "{offset}: {error}");
            bench.flip(segment, offset);
        }
    }
    assert_eq!(bench.replay(0).unwrap().1.len(), 7);
    let hidden = bench.options.dir.join("hidden");
    for segment in 0..3 {
        fs::rename(bench.segment_path(segment), &hidden).unwrap();
        let error = bench.replay(0).unwrap_err();
        assert!(
            matches!(error, LogError::Damaged { segment: s, damage: Damage::Missing, .. } if s == segment),
            "{error}"
        );
        fs::rename(&hidden, bench.segment_path(segment)).unwrap();
    }
    assert_eq!(metas(&bench.replay(2).unwrap().1), [b"x", b"y", b"z"], "a later start needs no earlier segment");
}

#[test]
fn a_log_of_another_volume_or_without_its_seal_is_refused() {
    let bench = Bench::new(16 << 10, 4, false);
    append(&bench.create(0), b"x", &[]);
    let other = LogIdentity { volume: [9; 16], ..IDENTITY };
    let error = Log::replay(&bench.options, &other, &bench.sealer, 0, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, LogError::Foreign { segment: 0 }), "{error}");

    let sealed = LogOptions { encrypt: true, ..bench.options.clone() };
    let check = |record: Record<'_>| Ok(record.check_seal(&sealed)?);
    let error = Log::replay(&sealed, &IDENTITY, &bench.sealer, 0, &mut { check }).unwrap_err();
    assert!(matches!(error, LogError::Unsealed { segment: 0 }), "{error}");
    // What is in the store already is nobody's word any more.
    Log::replay(&sealed, &IDENTITY, &bench.sealer, 0, &mut |_| Ok(())).unwrap();
}

/// Records for the audit log alone are left out where they are not sealed: their numbers are not believed either, or a planted one would
/// have each later operation taken for an old one.
#[test]
fn an_unsealed_record_that_is_left_out_moves_no_numbers() {
    let bench = Bench::new(16 << 10, 4, false);
    let mut planted = Vec::new();
    crate::edit::encode(u64::MAX - 1, &[], &mut planted);
    append(&bench.create(0), &planted, &[]);
    let sealed = LogOptions { encrypt: true, ..bench.options.clone() };
    let (mut state, manifest) = (crate::state::State::default(), crate::base::first_manifest(None));
    let replayed = crate::open::replay(
        &mut state,
        &manifest,
        &sealed,
        &IDENTITY,
        &bench.sealer,
        &crate::events::Events::default(),
    );
    assert_eq!(replayed.unwrap(), 1);
    assert_eq!(state.next_op, 1);
}

#[test]
fn another_key_opens_nothing() {
    let bench = Bench::new(16 << 10, 4, true);
    append(&bench.create(0), b"x", &[]);
    let other: SealerFactory = Arc::new(|_| Box::new(TestSealer { key: [1; 32], used: Arc::default() }));
    let error = Log::replay(&bench.options, &IDENTITY, &other, 0, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, LogError::Damaged { segment: 0, offset: 0, damage: Damage::Header }), "{error}");
}

#[test]
fn an_error_of_the_receiver_stops_replay_and_names_the_record() {
    let bench = Bench::new(16 << 10, 4, true);
    let log = bench.create(0);
    append(&log, b"good", &[]);
    let bad = append(&log, b"bad", &[]);
    drop(log);
    let result = Log::replay(&bench.options, &IDENTITY, &bench.sealer, 0, &mut |record| {
        if record.meta == b"bad" { Err("not to my taste".into()) } else { Ok(()) }
    });
    let error = result.unwrap_err();
    assert!(matches!(&error, LogError::Apply { segment: 0, offset, source }
        if *offset == bad.offset && source.to_string() == "not to my taste"));
}

#[test]
fn stale_records_of_a_recycled_segment_are_never_taken_for_records() {
    for encrypt in [true, false] {
        let bench = Bench::new(16 << 10, 4, encrypt);
        let log = bench.create(0);
        for round in 0..20u64 {
            // Equal lengths: a stale record stands exactly where the next one would.
            let fill = 3 + round % 5;
            let mut expected = Vec::new();
            for n in 0..fill {
                expected.push(noise(round * 100 + n, 600 - RECORD_HEADER));
                append(&log, expected.last().unwrap(), &[]);
            }
            let active = log.lock_active().segment.number();
            let (replayed, seen) = bench.replay(active).unwrap();
            assert_eq!(metas(&seen), expected);
            assert_eq!(replayed.cut_tail, None, "round {round}: stale bytes are no tail either");
            for n in fill..20 {
                append(&log, &noise(round * 100 + n, 600 - RECORD_HEADER), &[]);
            }
            let next = log.rotate().unwrap();
            log.release_before(next).unwrap();
        }
        assert!(bench.options.dir.read_dir().unwrap().count() <= 4, "files were recycled");
    }
}

#[test]
fn a_crash_after_every_mount_keeps_all_segments_until_they_are_released() {
    let bench = Bench::new(16 << 10, 16, true);
    for mount in 0..8u64 {
        let (replayed, seen) = bench.replay(0).unwrap();
        assert_eq!(replayed.next_segment, mount);
        assert_eq!(metas(&seen), (0..mount).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
        append(&bench.create(mount), &mount.to_le_bytes(), &[]);
    }
    let error = Log::create(bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 7).unwrap_err();
    assert!(matches!(error, LogError::Exists { segment: 7, last: 7 }), "{error}");
    let log = bench.create(8);
    log.release_before(8).unwrap();
    assert_eq!(log.usage().segments, 1);
}

#[test]
fn replay_of_nothing_is_empty() {
    let bench = Bench::new(16 << 10, 4, true);
    let (replayed, _) = bench.replay(5).unwrap();
    assert_eq!((replayed.next_segment, replayed.segments, replayed.epoch), (5, 0, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_as_a_segment_never_panic(
        junk in proptest::collection::vec(any::<u8>(), 0..12_000),
        keep in 0usize..6000,
        encrypt: bool,
    ) {
        let bench = Bench::new(16 << 10, 4, encrypt);
        append(&bench.create(0), b"x", &noise(1, 400));
        let path = bench.segment_path(0);
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(keep);
        bytes.extend_from_slice(&junk);
        fs::write(&path, &bytes).unwrap();
        match bench.replay(0) {
            Ok((replayed, seen)) => {
                prop_assert!(seen.len() <= 1);
                drop(bench.create(replayed.next_segment));
            }
            Err(LogError::Damaged { segment: 0, .. } | LogError::Version { .. }) => prop_assert!(keep < 128),
            Err(other) => prop_assert!(keep < 128, "{}", other),
        }
    }

    #[test]
    fn headers_with_wild_lengths_never_panic(offset in 0u64..56, value: u8, encrypt: bool) {
        let bench = Bench::new(16 << 10, 4, encrypt);
        append(&bench.create(0), b"x", &noise(1, 400));
        let file = fs::OpenOptions::new().write(true).open(bench.segment_path(0)).unwrap();
        file.write_all_at(&[value], FIRST_RECORD + offset).unwrap();
        prop_assert!(bench.replay(0).unwrap().1.len() <= 1);
    }
}
