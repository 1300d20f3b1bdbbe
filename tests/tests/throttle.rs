//! Bounds of the local disk: a small log and a small staging area throttle, a full disk says so and recovers.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::{must, run, wait_for};
use axiomfs_tests::source::{check_noise, tree_bytes, write_noise};

const MIB: u64 = 1 << 20;

#[test]
fn a_4_gib_copy_through_128_mib_of_log_and_staging_throttles_and_completes() {
    let _slot = alone();
    let mut repo = TestRepo::new("throttle");
    repo.settings("log: {max: 128MiB, segment: 16MiB}\nstaging: {max: 128MiB}\n").mount();
    let done = AtomicBool::new(false);
    let mut peak = 0;
    let path = repo.live().join("big");
    thread::scope(|s| {
        s.spawn(|| {
            let start = Instant::now();
            write_noise(&path, 5, 4 << 30);
            eprintln!("4 GiB through 128 MiB took {:?}", start.elapsed());
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            peak = peak.max(tree_bytes(&repo.state));
            thread::sleep(Duration::from_millis(200));
        }
    });
    eprintln!("the state directory held {} MiB at most", peak / MIB);
    // Log and staging, the reserve kept for draining, spare segments, and a pack on its way.
    assert!(peak < (128 + 128 + 192) * MIB, "the state directory grew to {} MiB", peak / MIB);
    check_noise(&repo.live().join("big"), 5, 4 << 30);
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    repo.mount();
    check_noise(&repo.live().join("big"), 5, 4 << 30);
}

#[test]
fn a_lower_bound_of_the_log_than_earlier_segments_take_holds_at_once() {
    let _slot = alone();
    let mut repo = TestRepo::new("lower-log");
    let (high, low) = ("log: {max: 3GiB, segment: 256MiB}\n", "log: {max: 64MiB}\n");
    // A clean end, one with all in the store, and one with all in the log only.
    for end in 0..3 {
        for (settings, seed) in [(high, 2 * end), (low, 2 * end + 1)] {
            repo.settings(settings).mount();
            write_noise(&repo.live().join(format!("{seed}")), seed, 100 << 20);
            if seed % 2 == 1 || end == 0 {
                repo.umount();
                continue;
            }
            if end == 1 {
                repo.sync();
            }
            repo.kill9();
        }
    }
    repo.settings(low).mount();
    for seed in 0..6 {
        check_noise(&repo.live().join(format!("{seed}")), seed, 100 << 20);
    }
    // The segments of the last mount, and room for as much again in spares.
    let bytes = tree_bytes(&repo.state.join("log"));
    assert!(bytes <= 96 * MIB, "the log takes {} MiB", bytes / MIB);
}

/// Tells a thread to end, whatever becomes of this one.
struct AtLast<'a>(&'a AtomicBool);

impl Drop for AtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn writers_that_never_pause_hold_up_neither_commits_nor_sync() {
    let _slot = alone();
    let mut repo = TestRepo::new("no-pause");
    // Each checkpoint takes longer than the least that is worth one takes to be written: the next layer is always there.
    repo.settings(
        "log: {max: 1GiB, segment: 4MiB}\ncheckpoint: {bytes: 1MiB}\ncommit: {interval: 2s, bytes: 1TiB}\n\
         chains: {default: [{plugin: zstd, level: 13}, {plugin: aes-256-gcm}]}\n",
    );
    repo.mount();
    let done = AtomicBool::new(false);
    let (commits, took) = thread::scope(|s| {
        let _at_last = AtLast(&done);
        s.spawn(|| {
            for number in 0.. {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                // Not so far ahead that checkpoints take ever more at once.
                if repo.status_number("log/bytes") > 24 * MIB {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                }
                let path = repo.live().join(format!("w{}", number % 10));
                fs::write(path, prose(number, MIB as usize)).unwrap_or_else(|e| panic!("file {number}: {e}"));
            }
        });
        let first = repo.status_number("head/sequence");
        thread::sleep(Duration::from_secs(15));
        let commits = repo.status_number("head/sequence") - first;
        let start = Instant::now();
        let synced = repo.axiomfs(&["sync", text(&repo.mnt)]);
        let took = start.elapsed();
        assert_eq!(synced.code(), 0, "{}", synced.stderr);
        (commits, took)
    });
    eprintln!("{commits} commits in 15 s of writing, sync took {took:?}");
    assert!(commits >= 2, "{commits} commits in 15 s, one was due each 2 s: {}", repo.events());
    repo.umount();
}

#[test]
fn a_store_slower_than_timeout_throttles_writers_and_refuses_nobody() {
    let _slot = alone();
    let mut repo = TestRepo::new("slow-store");
    repo.settings(
        "log: {max: 64MiB, segment: 4MiB}\nstaging: {max: 192MiB}\ncommit: {bytes: 190MiB}\ntimeout: 4s\nstore: {uploads: {adapt: [1, 1]}}\n",
    );
    let delay = repo.dir.join("delay");
    // For each pack of 32 MiB: over five seconds for all that may be staged.
    fs::write(&delay, "900").expect("written");
    repo.environment("AXIOMFS_FAULT_STORE_DELAY", text(&delay)).mount();
    let path = repo.live().join("big");
    let mut file = fs::File::create(&path).expect("a file");
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    let bytes = noise(11, 500 << 20);
    for piece in bytes.chunks(1 << 20) {
        let begun = Instant::now();
        file.write_all(piece).expect("a slow store refuses nobody");
        longest = longest.max(begun.elapsed());
    }
    drop(file);
    let took = start.elapsed();
    eprintln!("500 MiB took {took:?}, one MiB at most {longest:?}");
    assert!(took > Duration::from_secs(5), "it took {took:?}: the store was not slow");
    assert!(longest < Duration::from_secs(4), "a writer waited for {longest:?}, for more than the next packs");
    fs::write(&delay, "0").expect("written");
    assert!(fs::read(&path).expect("read") == bytes);
    repo.umount();
}

#[test]
fn a_commit_to_a_slow_store_holds_up_no_checkpoint() {
    let _slot = alone();
    let mut repo = TestRepo::new("slow-commit");
    repo.settings(
        "log: {max: 64MiB, segment: 4MiB}\nstaging: {max: 1GiB}\ncheckpoint: {interval: 1s}\ncommit: {bytes: 32MiB}\ntimeout: 30s\n\
         store: {uploads: {adapt: [1, 1]}}\n",
    );
    let delay = repo.dir.join("delay");
    fs::write(&delay, "0").expect("written");
    repo.environment("AXIOMFS_FAULT_STORE_DELAY", text(&delay)).mount();
    let first = repo.live().join("first");
    write_noise(&first, 1, 40 << 20);
    repo.sync();
    let before = repo.status_number("head/sequence");
    // A commit takes at least three times as long: a pack, the index, the head. Twice the log's bound comes in meanwhile.
    fs::write(&delay, "3000").expect("written");
    write_noise(&repo.live().join("second"), 2, 40 << 20);
    wait_for("a pack is staged", LIMIT, || repo.status_number("staging/bytes") >= 32 * MIB);
    thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    write_noise(&repo.live().join("third"), 3, 128 << 20);
    let took = start.elapsed();
    eprintln!("128 MiB through 64 MiB of log took {took:?} beside a commit");
    assert_eq!(repo.status_number("head/sequence"), before, "the commit was over before: {}", repo.events());
    assert!(took < Duration::from_secs(3), "writers waited for the commit: {took:?}");
    // What the two know of each other survives a crash in the middle of it.
    repo.kill9();
    fs::write(&delay, "0").expect("written");
    repo.mount();
    for (name, seed, len) in [("first", 1, 40 << 20), ("second", 2, 40 << 20), ("third", 3, 128 << 20)] {
        check_noise(&repo.live().join(name), seed, len);
    }
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    repo.mount();
    check_noise(&repo.live().join("third"), 3, 128 << 20);
    repo.umount();
}

/// A small ext4 in a file, mounted over a directory; gone when dropped.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn new(image: &Path, at: &Path, size: u64) -> SmallDisk {
        fs::File::create(image).and_then(|f| f.set_len(size)).expect("an image");
        must("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=0", text(image)], LIMIT);
        fs::create_dir_all(at).expect("a directory for the disk");
        must("mount", &["-o", "loop", text(image), text(at)], LIMIT);
        SmallDisk { at: at.to_owned() }
    }

    /// Takes all room that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.at.join("filler");
        let mut file = OpenOptions::new().append(true).create(true).open(&filler).expect("a filler");
        for size in [1 << 20, 4096, 512] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        // Written, not only delayed: the room must be gone for others.
        if let Err(e) = file.sync_all() {
            eprintln!("the filler could not be synced, the disk is full: {e}");
        }
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let done = run(Command::new("umount").args(["-l", text(&self.at)]), LIMIT);
        if !done.status.success() {
            eprintln!("{}: {}", self.at.display(), done.stderr);
        }
    }
}

/// A btrfs in a file, mounted over a directory, which may take `quota` bytes. btrfs asks root for its quotas, too.
fn disk_with_quota(image: &Path, at: &Path, quota: u64) -> SmallDisk {
    fs::File::create(image).and_then(|f| f.set_len(1 << 30)).expect("an image");
    must("mkfs.btrfs", &["-q", text(image)], LIMIT);
    fs::create_dir_all(at).expect("a directory for the disk");
    must("mount", &["-o", "loop", text(image), text(at)], LIMIT);
    let disk = SmallDisk { at: at.to_owned() };
    must("btrfs", &["quota", "enable", text(at)], LIMIT);
    must("btrfs", &["qgroup", "limit", &quota.to_string(), text(at)], LIMIT);
    disk
}

#[test]
fn an_exhausted_quota_of_the_state_disk_is_called_so_and_loses_nothing() {
    let _slot = alone();
    let mut repo = TestRepo::new("quota");
    let disk_dir = repo.dir.join("disk");
    let _disk = disk_with_quota(&repo.dir.join("image"), &disk_dir, 96 << 20);
    repo.state = disk_dir.join("state");
    repo.settings("log: {max: 64MiB, segment: 4MiB}\nstaging: {max: 1GiB}\ncheckpoint: {interval: 1s}\ncommit: {interval: 1h, bytes: 1GiB}\ntimeout: 2s\n");
    repo.mount();
    let mut kept = 0;
    let refused = loop {
        let bytes = noise(kept, 1 << 20);
        let path = repo.live().join(format!("{kept}"));
        match fs::write(&path, &bytes).and_then(|()| fs::File::open(&path)?.sync_all()) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 512, "96 MiB took 512");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT), "after {kept} MiB: {refused}");
    for seed in 0..kept {
        assert!(fs::read(repo.live().join(format!("{seed}"))).expect("kept") == noise(seed, 1 << 20), "file {seed}");
    }
    must("btrfs", &["qgroup", "limit", "none", text(&disk_dir)], LIMIT);
    let again = repo.live().join("again");
    wait_for("writes to go on", LIMIT, || fs::write(&again, noise(7, 1 << 20)).is_ok());
    repo.umount();
    repo.mount();
    for seed in 0..kept {
        assert!(fs::read(repo.live().join(format!("{seed}"))).expect("kept") == noise(seed, 1 << 20), "file {seed}");
    }
    repo.umount();
}

#[test]
fn a_full_state_disk_refuses_writes_loses_nothing_and_goes_on() {
    let _slot = alone();
    let mut repo = TestRepo::new("full-disk");
    let disk_dir = repo.dir.join("disk");
    let disk = SmallDisk::new(&repo.dir.join("disk.img"), &disk_dir, 320 * MIB);
    repo.state = disk_dir.join("state");
    repo.settings(
        "log: {max: 64MiB, segment: 4MiB}\nstaging: {max: 64MiB}\ncheckpoint: {interval: 1s}\ncommit: {interval: 2s}\ntimeout: 5s\n",
    );
    repo.mount();
    let name = |i: u64| format!("f{i}");
    let mut whole: Vec<u64> = Vec::new();
    for i in 0..20 {
        fs::write(repo.live().join(name(i)), noise(i, MIB as usize)).expect("there is room");
        whole.push(i);
    }
    let filler = disk.fill();
    let mut refused = None;
    for i in 20..400 {
        match fs::write(repo.live().join(name(i)), noise(i, MIB as usize)) {
            Ok(()) => whole.push(i),
            Err(e) => {
                refused = Some(e);
                break;
            }
        }
    }
    let error = refused.expect("380 MiB were written to a mount whose state disk is full");
    assert_eq!(error.raw_os_error(), Some(28), "writers must get ENOSPC, not {error}");
    let check = |repo: &TestRepo, whole: &[u64], when: &str| {
        for i in whole {
            let have = fs::read(repo.live().join(name(*i))).unwrap_or_else(|e| panic!("{when}: {}: {e}", name(*i)));
            assert!(have == noise(*i, MIB as usize), "{when}: {} isn't what was acknowledged", name(*i));
        }
    };
    check(&repo, &whole, "while the disk is full");
    for _ in 0..5 {
        let i = whole.remove(0);
        fs::remove_file(repo.live().join(name(i))).unwrap_or_else(|e| panic!("rm on a full disk: {e}"));
    }
    // A crash while the disk is full loses nothing either.
    repo.kill9();
    repo.try_mount(&[]).unwrap_or_else(|e| panic!("a mount with a full state disk: {e}"));
    check(&repo, &whole, "after a crash with a full disk");
    for i in 0..5 {
        assert!(!repo.live().join(name(i)).exists(), "a removed file came back");
    }
    fs::remove_file(&filler).expect("room again");
    wait_for("writing goes on when there is room", Duration::from_secs(60), || {
        fs::write(repo.live().join("after"), noise(999, MIB as usize)).is_ok()
    });
    for i in 1000..1100 {
        fs::write(repo.live().join(name(i)), noise(i, MIB as usize)).unwrap_or_else(|e| panic!("with room again: {e}"));
        whole.push(i);
    }
    repo.umount().mount();
    check(&repo, &whole, "after a remount");
    assert!(fs::read(repo.live().join("after")).expect("read") == noise(999, MIB as usize));
    repo.umount();
    drop(disk);
}

#[test]
fn a_full_store_disk_loses_nothing_and_goes_on() {
    let _slot = alone();
    let mut repo = TestRepo::without_init("full-store");
    let disk_dir = repo.dir.join("disk");
    let disk = SmallDisk::new(&repo.dir.join("disk.img"), &disk_dir, 128 * MIB);
    repo.store = disk_dir.join("store");
    let done = repo.axiomfs(&["init", text(&repo.store), "--kdf-memory", "64MiB"]);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    repo.settings("checkpoint: {interval: 1s}\ncommit: {interval: 2s}\ntimeout: 5s\n").mount();
    for i in 0..20 {
        fs::write(repo.live().join(format!("f{i}")), noise(i, MIB as usize)).expect("written");
    }
    repo.sync();
    let filler = disk.fill();
    for i in 20..60 {
        fs::write(repo.live().join(format!("f{i}")), noise(i, MIB as usize))
            .expect("a full store stalls nobody before staging is full");
    }
    let done = repo.axiomfs(&["sync", text(&repo.mnt)]);
    assert_eq!(done.code(), 1, "sync can't have succeeded with a full store: {}{}", done.stdout, done.stderr);
    let check = |repo: &TestRepo, when: &str| {
        for i in 0..60 {
            let have = fs::read(repo.live().join(format!("f{i}"))).unwrap_or_else(|e| panic!("{when}: f{i}: {e}"));
            assert!(have == noise(i, MIB as usize), "{when}: f{i} isn't what was acknowledged");
        }
    };
    check(&repo, "with a full store");
    repo.kill9();
    repo.mount();
    check(&repo, "after a crash with a full store");
    fs::remove_file(&filler).expect("room again");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    repo.mount();
    check(&repo, "from the store alone");
    repo.umount();
    drop(disk);
}

/// Its room is given back by sending what lies there, which must need none: nobody is there to make some.
#[test]
fn a_state_disk_that_staged_data_filled_empties_itself_once_the_store_is_back() {
    let _slot = alone();
    let mut repo = TestRepo::new("staged-full");
    let disk_dir = repo.dir.join("disk");
    let disk = SmallDisk::new(&repo.dir.join("disk.img"), &disk_dir, 260 * MIB);
    repo.state = disk_dir.join("state");
    repo.settings(
        "log: {max: 64MiB, segment: 4MiB}\ncheckpoint: {interval: 1s}\ncommit: {interval: 1s}\ntimeout: 5s\n",
    );
    repo.mount();
    let away = repo.dir.join("away");
    fs::rename(&repo.store, &away).expect("the store's disk is unmounted");
    let name = |i: u64| repo.live().join(format!("f{i}"));
    let written = (0..400).take_while(|i| fs::write(name(*i), noise(*i, MIB as usize)).is_ok()).count() as u64;
    assert!((150..300).contains(&written), "{written} MiB were written");
    wait_for("nothing fits any more", LIMIT, || repo.events().contains("No space left"));
    fs::rename(&away, &repo.store).expect("it is back");
    fs::remove_file(name(written)).unwrap_or_default();
    wait_for("all is in the store", LIMIT, || repo.control("sync")["ok"] == true);
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    for i in 0..written {
        assert!(fs::read(repo.live().join(format!("f{i}"))).expect("read") == noise(i, MIB as usize), "f{i}");
    }
    repo.umount();
    drop(disk);
}

#[test]
fn checkpoints_that_fail_pile_up_no_layers() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("layers");
    repo.settings("checkpoint: {interval: 100ms}\n").mount();
    fs::write(repo.live().join("first"), b"first").expect("written");
    repo.sync();
    // Nothing can be staged.
    let (staging, away) = (repo.state.join("staging"), repo.state.join("away"));
    fs::rename(&staging, &away).expect("renamed");
    for i in 0..24 {
        fs::write(repo.live().join(format!("f{i}")), format!("file {i}")).expect("written");
        assert_eq!(repo.control("sync")["ok"], false, "nothing could be staged");
        std::thread::sleep(Duration::from_millis(120));
    }
    let layers = repo.status_number("live/layers");
    assert!(layers <= 6, "{layers} layers");
    fs::rename(&away, &staging).expect("renamed");
    wait_for("it goes on", LIMIT, || repo.control("sync")["ok"] == true);
    repo.remount_from_the_store_alone();
    for i in 0..24 {
        assert_eq!(fs::read_to_string(repo.live().join(format!("f{i}"))).expect("read"), format!("file {i}"));
    }
}
