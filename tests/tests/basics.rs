//! The mount itself: what its root shows, how it begins and ends, who may use it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use axiomfs_tests::observe::{Bytes, observe};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::run;

#[test]
fn statfs_gives_plausible_numbers() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("statfs");
    repo.mount();
    for dir in [repo.mnt.clone(), repo.live(), repo.mnt.join("snapshots")] {
        let s = rustix::fs::statvfs(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert_eq!(s.f_namemax, 255, "{}", dir.display());
        assert!(s.f_bsize >= 512 && s.f_frsize >= 512, "{}: block sizes {} {}", dir.display(), s.f_bsize, s.f_frsize);
        assert!(
            s.f_blocks >= s.f_bfree && s.f_bfree >= s.f_bavail && s.f_bavail > 0,
            "{}: {} {} {}",
            dir.display(),
            s.f_blocks,
            s.f_bfree,
            s.f_bavail
        );
    }
    let before = rustix::fs::statvfs(repo.live()).expect("statvfs").f_files;
    for i in 0..100 {
        fs::write(repo.live().join(format!("f{i}")), b"x").expect("written");
    }
    let after = rustix::fs::statvfs(repo.live()).expect("statvfs").f_files;
    assert!(after >= before, "files went from {before} to {after}");
}

#[test]
fn locks_exclude_each_other() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("locks");
    repo.mount();
    let path = repo.live().join("lock");
    fs::write(&path, b"x").expect("written");
    let (one, two) = (File::open(&path).expect("open"), File::open(&path).expect("open"));
    one.try_lock().expect("the first gets the lock");
    assert!(matches!(two.try_lock(), Err(fs::TryLockError::WouldBlock)), "the second got the lock as well");
    one.unlock().expect("unlocked");
    two.try_lock().expect("now the second gets it");
}

#[test]
fn permissions_are_checked_for_other_users() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("permissions");
    fs::set_permissions(&repo.dir, fs::Permissions::from_mode(0o755)).expect("the test's directory opened");
    fs::set_permissions(&repo.mnt, fs::Permissions::from_mode(0o755)).expect("the mount point opened");
    repo.try_mount(&["-o", "allow_other"]).unwrap_or_else(|e| panic!("{e}"));
    let live = repo.live();
    fs::set_permissions(&live, fs::Permissions::from_mode(0o755)).expect("chmod");
    for (name, mode) in [("secret", 0o600), ("open", 0o666), ("setuid", 0o6777)] {
        fs::write(live.join(name), b"x").expect("written");
        fs::set_permissions(live.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let as_other = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).uid(12_345).gid(12_345).current_dir(&live);
        run(&mut command, LIMIT).status.success()
    };
    assert!(as_other("cat open && echo more >> open"), "what is open to all must be open");
    assert!(!as_other("cat secret"), "another user could read a file of mode 0600");
    assert!(!as_other("touch new"), "another user could create in a directory of mode 0755");
    assert!(!as_other("chmod 777 open"), "another user could change a mode");
    assert!(!as_other("cat ../.axiomfs/status"), "another user could read the control files");
    assert!(as_other("echo y >> setuid"), "a file of mode 6777 can be written");
    let mode = fs::metadata(live.join("setuid")).expect("metadata").mode();
    assert_eq!(mode & 0o6000, 0, "set-uid and set-gid survive a write of another user: {mode:o}");
}

#[test]
fn the_root_shows_live_and_snapshots_and_nothing_else() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("root");
    repo.mount();
    let names: BTreeSet<String> = fs::read_dir(&repo.mnt)
        .expect("listed")
        .map(|e| e.expect("entry").file_name().into_string().expect("text"))
        .collect();
    assert_eq!(names, BTreeSet::from(["live".to_string(), "snapshots".to_string()]));
    let control = repo.mnt.join(".axiomfs");
    assert_eq!(fs::metadata(&control).expect("there, though not listed").mode() & 0o7777, 0o700);
    for name in ["status", "control", "chain.yaml", "metrics", "events"] {
        let m = fs::metadata(control.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(m.is_file() && m.mode() & 0o077 == 0, "{name} has mode {:o}", m.mode());
    }
    for name in ["status", "chain.yaml", "metrics", "events"] {
        let text = fs::read_to_string(control.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(name == "events" || !text.is_empty(), "{name} is empty");
    }
    let error = fs::write(repo.mnt.join("file"), b"x").expect_err("nothing can be made in the root");
    assert!([1, 13, 30].contains(&error.raw_os_error().unwrap_or(0)), "{error}");
    assert!(fs::remove_dir(repo.live()).is_err(), "live could be removed");
    assert!(fs::rename(repo.live(), repo.mnt.join("other")).is_err(), "live could be renamed");
    let inodes: BTreeSet<u64> = [repo.mnt.clone(), repo.live(), repo.mnt.join("snapshots"), control]
        .iter()
        .map(|p| fs::metadata(p).expect("metadata").ino())
        .collect();
    assert_eq!(inodes.len(), 4, "the mount's own directories share inode numbers");
}

#[test]
fn a_mount_goes_to_the_background_once_it_answers() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("background");
    let args = repo.mount_args();
    let done = run(repo.command(&["mount", "--json"]).args(&args), LIMIT);
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);
    fs::write(repo.live().join("at once"), b"written").expect("the mount answers as soon as the command returns");
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}", done.stdout));
    let pid = said["pid"].as_u64().expect("the daemon's process id");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "process {pid} doesn't run");
    let status = repo.status();
    assert_eq!(status["state"], "ok", "{status}");
    assert_eq!(status["volume"], "main", "{status}");
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);
    axiomfs_tests::run::wait_for("the daemon ends after umount", LIMIT, || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
    repo.mount();
    assert_eq!(fs::read(repo.live().join("at once")).expect("read"), b"written");
}

#[test]
fn plain_umount_drains_to_the_store() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("plain-umount");
    repo.mount();
    fs::write(repo.live().join("data"), noise(5, 30 << 20)).expect("written");
    axiomfs_tests::run::must("umount", &[text(&repo.mnt)], LIMIT);
    let status = repo.wait_daemon();
    assert!(status.success(), "the daemon ended with {status}: {}", repo.daemon_log());
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    assert!(fs::read(repo.live().join("data")).expect("read") == noise(5, 30 << 20), "the data isn't in the store");
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("read-only");
    repo.mount();
    fs::write(repo.live().join("f"), b"kept").expect("written");
    fs::create_dir(repo.snapshot("s")).expect("snapshot");
    repo.umount();
    let before = observe(&repo.store, Bytes::Keep).expect("the store");
    repo.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read(repo.live().join("f")).expect("read"), b"kept");
    assert_eq!(fs::read(repo.snapshot("s").join("f")).expect("read"), b"kept");
    for (what, result) in [
        ("write", fs::write(repo.live().join("g"), b"x")),
        ("unlink", fs::remove_file(repo.live().join("f"))),
        ("snapshot", fs::create_dir(repo.snapshot("t"))),
        ("forget", fs::remove_dir(repo.snapshot("s"))),
    ] {
        assert_eq!(result.expect_err(what).raw_os_error(), Some(30), "{what} on a read-only mount");
    }
    repo.umount();
    let after = observe(&repo.store, Bytes::Keep).expect("the store");
    let changed: Vec<_> = before
        .contents
        .keys()
        .chain(after.contents.keys())
        .filter(|k| before.contents.get(*k) != after.contents.get(*k))
        .collect();
    assert!(
        changed.is_empty(),
        "a read-only mount changed the store: {:?}",
        changed.iter().map(|k| k.escape_ascii().to_string()).collect::<Vec<_>>()
    );
}

#[test]
fn a_log_that_was_not_sealed_is_sealed_from_the_next_mount_on() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("sealed-later");
    repo.settings("cache: {encrypt: false}\n").mount();
    fs::write(repo.live().join("file"), b"contents").expect("written");
    repo.kill9();
    // What only an unsealed log says could be anybody's.
    let said = repo.settings("cache: {encrypt: true}\n").try_mount(&[]).expect_err("an unsealed log was believed");
    assert!(said.contains("not sealed") && said.contains("cache.encrypt: false"), "{said}");
    repo.settings("cache: {encrypt: false}\n").mount();
    assert_eq!(fs::read(repo.live().join("file")).expect("read"), b"contents");
    repo.umount();
    repo.settings("cache: {encrypt: true}\n").mount();
    assert_eq!(fs::read(repo.live().join("file")).expect("read"), b"contents");
    fs::write(repo.live().join("later"), b"sealed").expect("written");
    repo.kill9();
    repo.mount();
    assert_eq!(fs::read(repo.live().join("later")).expect("read"), b"sealed");
}
