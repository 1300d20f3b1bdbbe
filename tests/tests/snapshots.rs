//! Snapshots: taken by mkdir, renamed by mv, forgotten by rmdir, and unchanged by anything else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::observe::{Bytes, Ignore, compare_dirs, observe};
use axiomfs_tests::perform::set_mtime;
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::source::{append_noise, copy_real_files, write_noise};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

/// A tree with everything in it that a backup must keep.
fn rich_tree(root: &Path) {
    copy_real_files(&root.join("real"), 300);
    fs::create_dir_all(root.join("kinds/empty directory")).expect("made");
    let at = |name: &str| root.join("kinds").join(name);
    fs::write(at("a"), noise(1, 700_000)).expect("written");
    fs::hard_link(at("a"), at("a's other name")).expect("linked");
    fs::hard_link(at("a"), root.join("real/third name of a")).expect("linked");
    symlink("nowhere/at all", at("dangling")).expect("symlink");
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("fifo");
    let sparse = File::create(at("sparse")).expect("created");
    sparse.write_all_at(&noise(2, 10_000), 40 << 20).expect("written");
    sparse.set_len(90 << 20).expect("extended");
    rustix::fs::lsetxattr(at("a"), "user.origin", b"somewhere", XattrFlags::empty()).expect("xattr");
    rustix::fs::lsetxattr(at("empty directory"), "user.of-a-directory", b"\0\xff", XattrFlags::empty()).expect("xattr");
    for (name, mode) in [("suid", 0o4755), ("sticky", 0o1777), ("nothing", 0)] {
        fs::write(at(name), prose(3, 5000)).expect("written");
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("mode");
    }
    fs::write(at("of another"), b"x").expect("written");
    std::os::unix::fs::lchown(at("of another"), Some(1234), Some(4321)).expect("owner");
    set_mtime(&at("nothing"), (-5, 123_456_789)).expect("time");
    set_mtime(&at("empty directory"), (4_102_444_800, 1)).expect("time");
}

fn must_equal(want: &Path, have: &Path, when: &str) {
    let found = compare_dirs(want, have, Ignore::default());
    assert!(found.is_empty(), "{when}:\n{}", found.join("\n"));
    let done =
        run(Command::new("diff").args(["-r", "--no-dereference", text(want), text(have)]).env("LC_ALL", "C"), LIMIT);
    let unlike: Vec<&str> = done.stdout.lines().filter(|l| !l.contains(" is a fifo")).collect();
    assert!(
        unlike.is_empty() && done.stderr.is_empty(),
        "{when}: diff -r says:\n{}\n{}",
        unlike.join("\n"),
        done.stderr
    );
}

#[test]
fn a_snapshot_keeps_everything_whatever_happens_to_live() {
    let _slot = beside_others();
    let original = scratch("original");
    let want = original.path().join("tree");
    fs::create_dir(&want).expect("made");
    rich_tree(&want);
    let mut repo = TestRepo::new("snapshot");
    repo.mount();
    must("cp", &["-a", text(&want), text(&repo.live())], LIMIT);
    must_equal(&want, &repo.live().join("tree"), "live, before");
    fs::create_dir(repo.snapshot("before")).expect("a snapshot is taken by mkdir");
    must_equal(&want, &repo.snapshot("before").join("tree"), "the snapshot at once");

    let live = repo.live().join("tree");
    for (i, path) in axiomfs_tests::source::walk(&live.join("real")).into_iter().enumerate() {
        match i % 5 {
            0 => fs::remove_file(path).expect("removed"),
            1 => fs::write(path, b"overwritten").expect("overwritten"),
            2 => fs::rename(&path, path.with_extension("renamed")).expect("renamed"),
            3 => OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(b"tail")).expect("appended"),
            _ => {}
        }
    }
    fs::remove_dir_all(live.join("kinds/empty directory")).expect("removed");
    fs::set_permissions(live.join("kinds/suid"), fs::Permissions::from_mode(0o600)).expect("mode");
    fs::write(live.join("kinds/a"), b"short").expect("overwritten through one of three names");
    OpenOptions::new()
        .write(true)
        .open(live.join("kinds/sparse"))
        .and_then(|f| f.write_all_at(b"x", 0))
        .expect("hole filled");
    rustix::fs::lremovexattr(live.join("kinds/a"), "user.origin").expect("xattr removed");
    fs::rename(live.join("kinds"), live.join("other")).expect("renamed");
    must_equal(&want, &repo.snapshot("before").join("tree"), "after changes in live");
    fs::remove_dir_all(&live).expect("all of live removed");
    must_equal(&want, &repo.snapshot("before").join("tree"), "after all of live was removed");
    repo.sync();
    must_equal(&want, &repo.snapshot("before").join("tree"), "after sync");
    let blocks = fs::metadata(repo.snapshot("before").join("tree/kinds/sparse")).expect("metadata").blocks() * 512;
    assert!(blocks < 8 << 20, "the sparse file occupies {blocks} bytes in the snapshot");
    repo.umount().mount();
    must_equal(&want, &repo.snapshot("before").join("tree"), "after a remount");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    must_equal(&want, &repo.snapshot("before").join("tree"), "from the store alone");
    assert_eq!(fs::read_dir(repo.live()).expect("listed").count(), 0);
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("read-only-snapshot");
    repo.mount();
    fs::create_dir(repo.live().join("d")).expect("made");
    fs::write(repo.live().join("d/f"), b"kept").expect("written");
    fs::create_dir(repo.snapshot("s")).expect("snapshot");
    for round in ["at once", "after a remount"] {
        let s = repo.snapshot("s");
        let f = s.join("d/f");
        let attempts: Vec<(&str, io::Result<()>)> = vec![
            ("create", File::create(s.join("new")).map(drop)),
            ("write", OpenOptions::new().write(true).open(&f).map(drop)),
            (
                "truncate",
                rustix::fs::open(&f, rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC, Mode::empty())
                    .map(drop)
                    .map_err(Into::into),
            ),
            ("mkdir", fs::create_dir(s.join("d/e"))),
            ("unlink", fs::remove_file(&f)),
            ("rmdir", fs::remove_dir(s.join("d"))),
            ("rename", fs::rename(&f, s.join("d/g"))),
            ("link", fs::hard_link(&f, s.join("d/g"))),
            ("symlink", symlink("x", s.join("d/g"))),
            ("chmod", fs::set_permissions(&f, fs::Permissions::from_mode(0o777))),
            ("chown", std::os::unix::fs::lchown(&f, Some(1), Some(1))),
            ("utimes", set_mtime(&f, (1, 1))),
            ("setxattr", rustix::fs::lsetxattr(&f, "user.a", b"x", XattrFlags::empty()).map_err(Into::into)),
            ("chmod of the snapshot", fs::set_permissions(&s, fs::Permissions::from_mode(0o777))),
        ];
        for (what, result) in attempts {
            let e = result.expect_err(&format!("{what} in a snapshot worked, {round}"));
            assert_eq!(e.raw_os_error(), Some(30), "{what} in a snapshot, {round}: {e}");
        }
        let across = [
            ("rename out", fs::rename(&f, repo.live().join("stolen"))),
            ("rename in", fs::rename(repo.live().join("d"), s.join("in"))),
            ("link out", fs::hard_link(&f, repo.live().join("stolen"))),
            ("link in", fs::hard_link(repo.live().join("d/f"), s.join("in"))),
        ];
        for (what, result) in across {
            let e = result.expect_err(&format!("{what} worked, {round}"));
            assert_eq!(e.raw_os_error(), Some(libc::EXDEV), "{what}, {round}: {e}");
        }
        assert_eq!(fs::read(&f).expect("read"), b"kept");
        repo.umount().mount();
    }
}

#[test]
fn snapshots_are_named_renamed_and_forgotten() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("names");
    repo.mount();
    let dir = repo.mnt.join("snapshots");
    let list = || -> BTreeSet<String> {
        fs::read_dir(&dir)
            .expect("listed")
            .map(|e| e.expect("entry").file_name().into_string().expect("text"))
            .collect()
    };
    let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<BTreeSet<_>>();
    let code = |r: io::Result<()>| r.err().and_then(|e| e.raw_os_error());
    fs::write(repo.live().join("f"), b"1").expect("written");
    fs::create_dir(dir.join("one")).expect("taken");
    fs::write(repo.live().join("f"), b"2").expect("written");
    fs::create_dir(dir.join("two ü")).expect("taken");
    assert_eq!(list(), set(&["one", "two ü"]));
    assert_eq!(code(fs::create_dir(dir.join("one"))), Some(17), "a name is taken once");
    assert_eq!(code(fs::remove_dir(dir.join("none"))), Some(2));
    assert_eq!(code(fs::rename(dir.join("none"), dir.join("x"))), Some(2));
    assert!(code(fs::write(dir.join("file"), b"x")).is_some(), "a plain file could be made among the snapshots");
    assert!(code(fs::create_dir(dir.join("x".repeat(256)))).is_some());
    fs::create_dir(dir.join("y".repeat(255))).expect("a name of 255 bytes");
    fs::remove_dir(dir.join("y".repeat(255))).expect("forgotten");
    fs::rename(dir.join("one"), dir.join("first")).expect("renamed");
    assert_eq!(list(), set(&["first", "two ü"]));
    assert!(code(fs::rename(dir.join("first"), dir.join("two ü"))).is_some(), "a rename replaced another snapshot");
    assert_eq!(fs::read(dir.join("first/f")).expect("read"), b"1");
    assert_eq!(fs::read(dir.join("two ü/f")).expect("read"), b"2");
    repo.kill9();
    repo.mount();
    assert_eq!(list(), set(&["first", "two ü"]), "after a crash");
    fs::remove_dir(dir.join("first")).expect("a snapshot is forgotten by rmdir, full as it is");
    assert_eq!(code(fs::metadata(dir.join("first/f")).map(drop)), Some(2));
    repo.umount().mount();
    assert_eq!(list(), set(&["two ü"]), "after a remount");
    assert_eq!(fs::read(dir.join("two ü/f")).expect("read"), b"2");
    fs::create_dir(dir.join("first")).expect("a name can be used again");
    assert_eq!(fs::read(dir.join("first/f")).expect("read"), b"2");
}

#[test]
fn inode_numbers_of_a_snapshot_are_its_own_and_never_change() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("inodes");
    repo.mount();
    copy_real_files(&repo.live().join("t"), 200);
    for name in ["a", "b"] {
        fs::create_dir(repo.snapshot(name)).expect("taken");
    }
    let inodes = |path: &Path| -> BTreeMap<Vec<u8>, u64> {
        observe(path, Bytes::Skip).expect("read").entries.into_iter().map(|(p, e)| (p, e.ino)).collect()
    };
    let before = [inodes(&repo.live()), inodes(&repo.snapshot("a")), inodes(&repo.snapshot("b"))];
    let all: BTreeSet<u64> = before.iter().flat_map(|m| m.values().copied()).collect();
    assert_eq!(all.len(), before.iter().map(BTreeMap::len).sum::<usize>(), "two nodes share an inode number");
    fs::write(repo.live().join("more"), b"x").expect("written");
    for path in axiomfs_tests::source::walk(&repo.live().join("t")).iter().step_by(3) {
        fs::remove_file(path).expect("removed");
    }
    repo.sync();
    fs::rename(repo.snapshot("a"), repo.snapshot("z")).expect("renamed");
    let check = |repo: &TestRepo, when: &str| {
        assert_eq!(inodes(&repo.snapshot("z")), before[1], "{when}: inode numbers changed");
        assert_eq!(inodes(&repo.snapshot("b")), before[2], "{when}: inode numbers changed");
    };
    check(&repo, "after changes, sync and a rename");
    repo.kill9();
    repo.mount();
    check(&repo, "after a crash");
    repo.umount().mount();
    check(&repo, "after a remount");
    fs::remove_dir(repo.snapshot("b")).expect("forgotten");
    fs::create_dir(repo.snapshot("c")).expect("taken");
    let new: BTreeSet<u64> = inodes(&repo.snapshot("c")).into_values().collect();
    let old: BTreeSet<u64> = before.iter().skip(1).flat_map(|m| m.values().copied()).collect();
    assert_eq!(new.intersection(&old).count(), 0, "a new snapshot uses inode numbers of an older one");
}

#[test]
fn a_snapshot_takes_under_50_ms_with_1_gib_not_yet_uploaded() {
    let _slot = alone();
    let mut repo = TestRepo::new("latency");
    repo.settings("checkpoint: {interval: 1h, bytes: 8GiB}\ncommit: {interval: 1h, bytes: 8GiB}\n").mount();
    write_noise(&repo.live().join("in flight"), 1, 1 << 30);
    let pending = repo.status_number("pending_bytes");
    assert!(pending >= 1 << 30, "only {pending} bytes are in flight, so the test would show nothing");
    let mut took = Vec::new();
    for i in 0..5 {
        let start = Instant::now();
        fs::create_dir(repo.snapshot(&format!("s{i}"))).expect("taken");
        took.push(start.elapsed());
        fs::write(repo.live().join(format!("after {i}")), b"x").expect("written");
    }
    eprintln!("snapshots with 1 GiB in flight took {took:?}");
    assert!(took[0] < Duration::from_millis(50), "the first snapshot took {:?}", took[0]);
    assert!(took.iter().all(|t| *t < Duration::from_millis(50)), "a snapshot took longer: {took:?}");
    let path = repo.snapshot("s0").join("in flight");
    assert_eq!(fs::metadata(&path).expect("metadata").len(), 1 << 30);
    let mut first = vec![0; 1 << 20];
    File::open(&path).and_then(|f| f.read_exact_at(&mut first, 0)).expect("readable at once");
    assert!(first == noise(1, 1 << 20), "wrong bytes in the snapshot");
    assert!(repo.snapshot("s1").join("after 0").exists() && !repo.snapshot("s0").join("after 0").exists());
}

/// While data streams in, a snapshot shares the disk with it, but waits for no chunking and no upload.
#[test]
fn a_snapshot_waits_for_the_disk_only_while_data_is_being_written() {
    let _slot = alone();
    let mut repo = TestRepo::new("latency-busy");
    repo.mount();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut took: Vec<Duration> = Vec::new();
    thread::scope(|s| {
        let path = repo.live().join("stream");
        let (stop, written) = (&stop, &written);
        s.spawn(move || {
            let mut file = File::create(path).expect("created");
            while !stop.load(Ordering::SeqCst) && written.load(Ordering::SeqCst) < 2 << 30 {
                append_noise(&mut file, written.load(Ordering::SeqCst), 4 << 20);
                written.fetch_add(4 << 20, Ordering::SeqCst);
            }
        });
        for i in 0..20 {
            thread::sleep(Duration::from_millis(200));
            let start = Instant::now();
            fs::create_dir(repo.snapshot(&format!("s{i}"))).expect("taken");
            took.push(start.elapsed());
        }
        stop.store(true, Ordering::SeqCst);
    });
    took.sort_unstable();
    eprintln!("{} MiB written; snapshots took {took:?}", written.load(Ordering::SeqCst) >> 20);
    assert!(
        took[took.len() / 2] < Duration::from_millis(200),
        "half of the snapshots took longer than 200 ms: {took:?}"
    );
    for i in [0, 7, 19] {
        let name = format!("s{i}");
        let path = repo.snapshot(&name).join("stream");
        let len = fs::metadata(&path).expect("metadata").len();
        let mut at = 0;
        while at < len {
            let n = (len - at).min(4 << 20);
            let mut have = vec![0; n as usize];
            File::open(&path).and_then(|f| f.read_exact_at(&mut have, at)).expect("read");
            assert!(
                have == noise_block(at, n as usize),
                "{name}: the file isn't a prefix of what was written, at {at}"
            );
            at += n;
        }
    }
}

fn noise_block(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    append_noise(&mut out, seed, 4 << 20);
    out.truncate(len);
    out
}

#[test]
fn the_command_line_takes_lists_renames_and_deletes_snapshots() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("cli");
    repo.mount();
    fs::write(repo.live().join("f"), b"x").expect("written");
    let mnt = text(&repo.mnt).to_owned();
    let store = text(&repo.store).to_owned();
    let ok = |repo: &TestRepo, args: &[&str]| {
        let done = repo.axiomfs(args);
        assert_eq!(done.code(), 0, "{args:?}: {}{}", done.stdout, done.stderr);
        done.stdout
    };
    ok(&repo, &["snapshot", "create", &mnt, "one"]);
    fs::create_dir(repo.snapshot("two")).expect("taken");
    ok(&repo, &["snapshot", "rename", &mnt, "one", "first"]);
    let listed = ok(&repo, &["snapshot", "list", &mnt, "--json"]);
    assert!(listed.contains("\"first\"") && listed.contains("\"two\"") && !listed.contains("\"one\""), "{listed}");
    ok(&repo, &["snapshot", "delete", &mnt, "two"]);
    assert_eq!(repo.axiomfs(&["snapshot", "delete", &mnt, "two"]).code(), 1, "what isn't there can't be deleted");
    assert_eq!(repo.axiomfs(&["snapshot", "create", &mnt, "first"]).code(), 1, "a name is taken once");
    repo.umount();
    let listed = ok(&repo, &["snapshot", "list", &store, "--json"]);
    assert!(listed.contains("\"first\"") && !listed.contains("\"two\""), "straight on the store: {listed}");
}

#[test]
fn two_hundred_snapshots_stay_right() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("many");
    repo.settings("checkpoint: {interval: 200ms, bytes: 4MiB}\ncommit: {interval: 500ms, bytes: 4MiB}\n").mount();
    let path = repo.live().join("counter");
    for i in 0..200 {
        fs::write(&path, format!("{i}")).expect("written");
        fs::create_dir(repo.snapshot(&format!("{i:03}"))).expect("taken");
    }
    let check = |repo: &TestRepo, when: &str| {
        for i in 0..200 {
            let have = fs::read_to_string(repo.snapshot(&format!("{i:03}")).join("counter"))
                .unwrap_or_else(|e| panic!("{when}: {i}: {e}"));
            assert_eq!(have, format!("{i}"), "{when}");
        }
    };
    check(&repo, "at once");
    repo.umount().mount();
    check(&repo, "after a remount");
}
