//! Full logs, full disks, failed syncs.

use super::super::disk::Disk;
use super::probe::{Op, Probe, Verdict};
use super::*;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn fill(log: &Log, urgency: Urgency) -> (u64, LogError) {
    let mut count = 0;
    loop {
        match log.append(&[3; 100], Some(&[4; 900]), urgency) {
            Ok(_) => count += 1,
            Err(error) => return (count, error),
        }
    }
}

fn disk_bytes(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn the_bound_holds_and_the_reserve_is_for_urgent_records() {
    let bench = Bench::new(16 << 10, 8, true);
    let log = bench.create(0);
    let (normal, error) = fill(&log, Urgency::Normal);
    assert!(matches!(error, LogError::Full { needed: 1056.., .. }), "{error}");
    assert!(log.room() < 16 << 10);
    assert!(normal >= 7 * 11 - 1, "{normal} records fitted into 7 segments");
    let (urgent, error) = fill(&log, Urgency::Reserve);
    assert!(matches!(error, LogError::Full { .. }), "{error}");
    assert!((11..=13).contains(&urgent), "{urgent}");
    assert_eq!(log.usage().bytes, log.usage().max);
    assert!(disk_bytes(&bench.options.dir) <= bench.options.max_bytes);

    assert!(matches!(log.rotate(), Err(LogError::Full { .. })), "no segment is left even for urgent ones");
    let active = log.lock_active().segment.number();
    assert_eq!(log.release_before(active).unwrap(), 7 * (16 << 10));
    assert!(disk_bytes(&bench.options.dir) <= bench.options.max_bytes);
    let (again, _) = fill(&log, Urgency::Normal);
    assert!(again >= 5 * 11, "{again} after the release");
    assert_eq!(bench.replay(active).unwrap().1.len() as u64, 11 + again, "nothing of the refused records is there");
}

#[test]
fn a_reserve_of_two_segments_lets_a_full_log_rotate() {
    let mut bench = Bench::new(16 << 10, 8, true);
    bench.options.reserve_bytes = 2 * (16 << 10);
    let log = bench.create(0);
    fill(&log, Urgency::Normal);
    let next = log.rotate().unwrap();
    assert_eq!(log.rotate().unwrap(), next, "an empty segment is not rotated");
    assert!(matches!(log.append(&[], None, Urgency::Normal), Err(LogError::Full { .. })));
    log.append(b"unlink", None, Urgency::Reserve).unwrap();
    log.release_before(next).unwrap();
    append(&log, b"room again", &[]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let bench = Bench::new(16 << 10, 8, true);
    for (segment, max, reserve) in
        [(5000, 1 << 20, 0), (4096, 1 << 20, 0), (1 << 20, 1 << 20, 0), (1 << 20, 4 << 20, 4 << 20)]
    {
        let options =
            LogOptions { segment_bytes: segment, max_bytes: max, reserve_bytes: reserve, ..bench.options.clone() };
        let error = Log::create(options, IDENTITY, sealer(), 0).unwrap_err();
        assert!(matches!(error, LogError::Options(_)), "{error}");
    }
}

/// The `n`th operation finds the disk full; wherever that is, the log goes on afterwards, and holds just what it acknowledged.
#[test]
fn no_space_at_any_operation_leaves_nothing_half_done() {
    let mut refused = 0;
    for n in 0..140 {
        let bench = Bench::new(16 << 10, 8, true);
        Disk::open_or_create(&bench.options.dir).unwrap();
        let probe = Probe::new(move |count, op| match op {
            Op::Write { .. } | Op::Allocate | Op::Rename if count == n => Verdict::Fail(ENOSPC),
            _ => Verdict::Pass,
        });
        let create = || {
            let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(Arc::clone(&probe));
            Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0)
        };
        let log = match create() {
            Ok(log) => log,
            Err(LogError::NoSpace { .. }) => {
                refused += 1;
                create().unwrap()
            }
            Err(other) => panic!("{n}: {other}"),
        };
        let mut expected = Vec::new();
        for record in 0..60u64 {
            let meta = noise(record, 700);
            match log.append(&meta, None, Urgency::Normal) {
                Ok(_) => expected.push(meta),
                Err(LogError::NoSpace { .. }) => refused += 1,
                Err(other) => panic!("{n}: {other}"),
            }
            if record % 7 == 6 {
                log.sync().unwrap();
            }
            // After every operation the log holds what was acknowledged, and no trace of what was refused.
            let (replayed, seen) = bench.replay(0).unwrap();
            assert_eq!(metas(&seen), expected, "operation {n}, record {record}");
            assert_eq!(replayed.cut_tail, None, "operation {n}, record {record}");
        }
        assert!(expected.len() >= 59);
    }
    assert!(refused > 60, "{refused}");
}

#[test]
fn urgent_records_get_the_last_spare_of_a_full_disk() {
    let bench = Bench::new(16 << 10, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now = Arc::clone(&full);
    let probe = Probe::new(move |_, op| match op {
        Op::Allocate if now.load(std::sync::atomic::Ordering::SeqCst) => Verdict::Fail(ENOSPC),
        _ => Verdict::Pass,
    });
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    assert_eq!(log.usage().spares, 1, "the reserve is on disk before it is needed");
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let (first, error) = fill(&log, Urgency::Normal);
    assert!(matches!(error, LogError::NoSpace { segment: 1, .. }), "{error}");
    assert_eq!(first, 11);
    let (urgent, error) = fill(&log, Urgency::Reserve);
    assert!(matches!(error, LogError::NoSpace { segment: 2, .. }), "{error}");
    assert_eq!(urgent, 11);
    log.release_before(1).unwrap();
    assert_eq!(fill(&log, Urgency::Reserve).0, 11, "the released segment is the new reserve");
}

#[test]
fn the_next_segment_is_allocated_before_it_is_needed() {
    let bench = Bench::new(16 << 10, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let allocated = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (count, now) = (Arc::clone(&allocated), Arc::clone(&full));
    let probe = Probe::new(move |_, op| match op {
        Op::Allocate => {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if now.load(std::sync::atomic::Ordering::SeqCst) { Verdict::Fail(ENOSPC) } else { Verdict::Pass }
        }
        _ => Verdict::Pass,
    });
    let allocated = || allocated.load(std::sync::atomic::Ordering::SeqCst);
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    let begun = allocated();
    log.stock();
    assert_eq!(allocated(), begun, "a segment with room needs no follower yet");
    while !log.would_wait(0, 4 << 10) {
        append(&log, b"record", &[1; 900]);
    }
    log.stock();
    assert_eq!((allocated(), log.usage().spares), (begun + 1, 2));
    log.stock();
    assert_eq!(allocated(), begun + 1, "once is enough");
    let active = log.lock_active().segment.number();
    while log.lock_active().segment.number() == active {
        append(&log, b"record", &[1; 900]);
    }
    assert_eq!((allocated(), log.usage().spares), (begun + 1, 1), "the segment was begun with what lay ready");

    full.store(true, std::sync::atomic::Ordering::SeqCst);
    while !log.would_wait(0, 4 << 10) {
        append(&log, b"record", &[1; 900]);
    }
    let before = allocated();
    log.stock();
    log.stock();
    assert_eq!((allocated(), log.usage().spares), (before + 1, 1), "a full disk is asked once for each segment");
    full.store(false, std::sync::atomic::Ordering::SeqCst);

    fill(&log, Urgency::Reserve);
    log.stock();
    assert!(disk_bytes(&bench.options.dir) <= bench.options.max_bytes, "the bound holds for files that lie ready, too");
}

#[test]
fn usage_waits_for_nobody() {
    let bench = Bench::new(16 << 10, 8, true);
    let log = bench.create(0);
    append(&log, b"record", &[1; 900]);
    let free = log.usage();
    // As somebody who begins a segment and waits for the disk.
    let held = log.lock_active();
    let meanwhile = log.usage();
    drop(held);
    assert_eq!((meanwhile.unsynced, meanwhile.segments, meanwhile.bytes), (free.unsynced, free.segments, free.bytes));
    assert!(free.unsynced >= 900);
}

#[test]
fn a_full_tmpfs_refuses_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        |arguments: &[&str]| std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(dir.path()).status();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs"]).is_ok_and(|status| status.success()) {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    }
    let options = LogOptions {
        segment_bytes: 64 << 10,
        max_bytes: 64 << 20,
        reserve_bytes: 64 << 10,
        ..LogOptions::new(dir.path().join("log"))
    };
    let sealer = sealer();
    let log = Log::create(options.clone(), IDENTITY, Arc::clone(&sealer), 0).unwrap();
    let (first, error) = fill(&log, Urgency::Normal);
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    let (urgent, error) = fill(&log, Urgency::Reserve);
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    assert!(urgent > 0, "the reserve was there");
    log.sync().unwrap();
    let (replayed, seen) = replay_dir(&options, &sealer, 0).unwrap();
    assert_eq!((seen.len() as u64, replayed.cut_tail), (first + urgent, None));
    drop(log);
    assert!(mount(&["umount"]).unwrap().success());
}

#[test]
fn a_failed_fdatasync_is_for_ever() {
    let bench = Bench::new(16 << 10, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let once = Arc::clone(&armed);
    let probe = Probe::new(move |_, op| match op {
        // Only one fdatasync fails, as when the kernel has dropped the pages: the next would succeed.
        Op::Sync if once.swap(false, std::sync::atomic::Ordering::SeqCst) => Verdict::Fail(EIO),
        _ => Verdict::Pass,
    });
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(Arc::clone(&probe));
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    let at = append(&log, b"x", b"data").data.unwrap();
    log.sync().unwrap();
    append(&log, b"y", &[]);
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    let failed = |result: Result<(), LogError>| match result {
        Err(LogError::Failed { operation: "fdatasync", segment: 0, source }) => {
            assert_eq!(source.raw_os_error(), Some(EIO));
        }
        other => panic!("{other:?}"),
    };
    failed(log.sync());
    let before = probe.count();
    failed(log.sync());
    failed(log.append(b"z", None, Urgency::Reserve).map(drop));
    failed(log.rotate().map(drop));
    log.tick();
    assert_eq!(probe.count(), before, "the disk is not touched again");
    assert!(log.usage().failed);
    assert_eq!(read_all(&log, at), b"data", "what is there can still be read");
}

#[test]
fn a_failed_fdatasync_or_directory_sync_in_a_rotation_is_for_ever() {
    for target in 0..3 {
        let bench = Bench::new(16 << 10, 8, true);
        Disk::open_or_create(&bench.options.dir).unwrap();
        let syncs = std::sync::atomic::AtomicU64::new(0);
        let probe = Probe::new(move |_, op| match op {
            // Two in `create`; then the new segment, the old one, the directory.
            Op::Sync | Op::SyncDir if syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 2 + target => {
                Verdict::Fail(EIO)
            }
            _ => Verdict::Pass,
        });
        let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
        let log = Log::create_on(disk, bench.options.clone(), IDENTITY, sealer(), 0).unwrap();
        append(&log, b"x", &[]);
        assert!(matches!(log.rotate(), Err(LogError::Failed { .. })), "{target}");
        assert!(matches!(log.append(b"y", None, Urgency::Reserve), Err(LogError::Failed { .. })), "{target}");
    }
}

#[test]
fn hooks_are_called_where_a_crash_is_most_telling() {
    let bench = Bench::new(16 << 10, 8, true);
    let points = Arc::new(Mutex::new(Vec::new()));
    let (seen, dir, sealer) = (Arc::clone(&points), bench.options.clone(), Arc::clone(&bench.sealer));
    let options = LogOptions {
        faults: Some(Arc::new(move |point| {
            let from = u64::from(point == "log.released");
            let records = replay_dir(&dir, &sealer, from).unwrap().1.len();
            seen.lock().unwrap().push((point, records));
        })),
        ..bench.options.clone()
    };
    let log = Log::create(options, IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    append(&log, b"x", &[]);
    let next = log.rotate().unwrap();
    append(&log, b"y", &[]);
    log.release_before(next).unwrap();
    assert_eq!(*points.lock().unwrap(), [("log.rotate", 1), ("log.released", 1)]);
}
