//! Many threads at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use super::super::disk::Disk;
use super::probe::{Op, Probe, Verdict};
use super::*;

#[test]
fn many_threads_share_few_fdatasyncs() {
    const THREADS: u64 = 16;
    const ROUNDS: u64 = 50;
    let bench = Bench::new(1 << 20, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let probe = Probe::new(|_, op| {
        if matches!(op, Op::Sync) {
            thread::sleep(Duration::from_millis(1)); // A disk's time, which memory doesn't take.
        }
        Verdict::Pass
    });
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    let barrier = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (log, barrier) = (&log, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let at = append(log, &[thread as u8, round as u8], &[]);
                    log.sync().unwrap();
                    let segment = log.segment(at.segment).unwrap();
                    assert!(segment.durable() > at.offset, "what was synced is known durable");
                }
            });
        }
    });
    let syncs = log.usage().syncs;
    assert!(syncs >= ROUNDS, "nobody can be early: {syncs}");
    assert!(syncs <= THREADS * ROUNDS / 4, "{syncs} fdatasyncs for {} calls", THREADS * ROUNDS);
    assert_eq!(bench.replay(0).unwrap().1.len() as u64, THREADS * ROUNDS);
}

#[test]
fn a_failed_fdatasync_fails_all_who_wait_for_it_and_nobody_is_told_it_succeeded() {
    let bench = Bench::new(1 << 20, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let (calls, broken) = (AtomicU64::new(0), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&broken);
    let probe = Probe::new(move |_, op| {
        if matches!(op, Op::Sync) && calls.fetch_add(1, Ordering::SeqCst) == 20 {
            seen.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            return Verdict::Fail(5);
        }
        Verdict::Pass
    });
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    thread::scope(|scope| {
        for thread in 0..8u8 {
            let (log, broken) = (&log, &broken);
            scope.spawn(move || {
                loop {
                    let late = broken.load(Ordering::SeqCst);
                    if log.append(&[thread], None, Urgency::Normal).is_err() {
                        break;
                    }
                    let result = log.sync();
                    assert!(!(late && result.is_ok()), "appended after the failure began, and told that it is durable");
                    if result.is_err() {
                        break;
                    }
                }
            });
        }
    });
    assert!(log.usage().failed);
}

#[test]
fn short_records_do_not_wait_while_a_long_one_waits_for_the_next_segment() {
    let bench = Bench::new(64 << 10, 8, true);
    Disk::open_or_create(&bench.options.dir).unwrap();
    let (begun, waiting) = mpsc::channel();
    let (go_on, held) = mpsc::channel::<()>();
    let (armed, held) = (Arc::new(AtomicBool::new(false)), Mutex::new(held));
    let slow = Arc::clone(&armed);
    let probe = Probe::new(move |_, op| {
        if matches!(op, Op::Sync) && slow.swap(false, Ordering::SeqCst) {
            begun.send(()).unwrap();
            held.lock().unwrap().recv_timeout(Duration::from_secs(20)).expect("a short record waited for the disk");
        }
        Verdict::Pass
    });
    let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
    let log = Log::create_on(disk, bench.options.clone(), IDENTITY, Arc::clone(&bench.sealer), 0).unwrap();
    thread::scope(|scope| {
        let first = append(&log, b"long", &noise(1, 40 << 10)).segment;
        armed.store(true, Ordering::SeqCst);
        let long = scope.spawn(|| log.prepare(9, 40 << 10, Urgency::Normal).unwrap());
        waiting.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(append(&log, b"short", b"record").segment, first);
        go_on.send(()).unwrap();
        long.join().unwrap();
        assert_eq!(append(&log, b"long", &noise(2, 40 << 10)).segment, first + 1);
    });
    let metas: Vec<_> = bench.replay(0).unwrap().1.into_iter().map(|record| record.meta).collect();
    assert_eq!(metas, [&b"long"[..], b"short", b"long"]);
}

#[test]
fn reads_go_on_beside_appends_rotation_and_release() {
    let bench = Bench::new(64 << 10, 12, true);
    let log = bench.create(0);
    let live: RwLock<Vec<(u64, DataRef)>> = RwLock::default();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let length = |seed: u64| 1 + (seed * 379 % 9000) as usize;
    thread::scope(|scope| {
        for reader in 0..3u64 {
            let (log, live, stop, reads) = (&log, &live, &stop, &reads);
            scope.spawn(move || {
                let mut n = reader;
                while !stop.load(Ordering::SeqCst) {
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let Some((seed, whole)) = ({
                        let live = live.read().unwrap();
                        (!live.is_empty()).then(|| live[(n >> 33) as usize % live.len()])
                    }) else {
                        continue;
                    };
                    let start = (n >> 20) as u32 % whole.len;
                    let part = DataRef { start, len: whole.len - start, ..whole };
                    let mut out = vec![0; part.len as usize];
                    match log.read(part, &mut out) {
                        Ok(()) => assert_eq!(out, noise(seed, length(seed))[start as usize..]),
                        // Released between the choice and the read: allowed, wrong bytes never are.
                        Err(LogError::Released { .. }) => {}
                        Err(other) => panic!("{other}"),
                    }
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for seed in 0..3000u64 {
            let data = noise(seed, length(seed));
            let at = append(&log, b"m", &data).data.unwrap();
            live.write().unwrap().push((seed, at));
            if seed % 40 == 39 {
                let next = if seed % 80 == 79 { log.rotate().unwrap() } else { log.lock_active().segment.number() };
                if seed % 120 != 119 {
                    live.write().unwrap().retain(|(_, r)| r.segment >= next);
                    log.release_before(next).unwrap();
                } else {
                    log.release_before(next).unwrap();
                    live.write().unwrap().retain(|(_, r)| r.segment >= next);
                }
            }
        }
        while reads.load(Ordering::SeqCst) < 500 {
            thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_segment_that_is_being_read_is_never_recycled_under_the_reader() {
    let bench = Bench::new(16 << 10, 8, true);
    let log = bench.create(0);
    let data = noise(1, 5000);
    let at = append(&log, b"m", &data).data.unwrap();
    let reader = log.segment(0).unwrap(); // A read under way.
    for n in 1..20 {
        let next = log.rotate().unwrap();
        log.release_before(next).unwrap();
        append(&log, b"m", &noise(n + 1, 5000));
    }
    let mut record = Vec::new();
    reader.read_record(&log.disk, at.offset, &mut record).unwrap();
    assert_eq!(record[record.len() - 5000..], data);
    let error = log.read(at, &mut vec![0; 5000]).unwrap_err();
    assert!(matches!(error, LogError::Released { segment: 0 }), "{error}");
}
