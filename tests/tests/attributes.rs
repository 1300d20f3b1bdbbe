//! Attributes, extended ones and times. Most tests do the same on the local filesystem.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use axiomfs_tests::compare::{Facts, note, same_as_local};
use axiomfs_tests::observe::xattrs;
use axiomfs_tests::perform::set_mtime;
use axiomfs_tests::repo::{TestRepo, beside_others};
use axiomfs_tests::rng::noise;
use rustix::fs::XattrFlags;

#[test]
fn extended_attributes_are_kept() {
    same_as_local("xattrs", |root| {
        let mut facts = Facts::new();
        let file = root.join("f");
        fs::write(&file, b"x").expect("written");
        fs::create_dir(root.join("d")).expect("made");
        let set = |path: &Path, name: &str, value: &[u8], flags| rustix::fs::lsetxattr(path, name, value, flags);
        note(&mut facts, "set", set(&file, "user.a", b"1", XattrFlags::empty()));
        note(&mut facts, "create again", set(&file, "user.a", b"2", XattrFlags::CREATE));
        note(&mut facts, "replace", set(&file, "user.a", b"33", XattrFlags::REPLACE));
        note(&mut facts, "replace nothing", set(&file, "user.b", b"3", XattrFlags::REPLACE));
        note(&mut facts, "empty value", set(&file, "user.empty", b"", XattrFlags::empty()));
        note(&mut facts, "all bytes", set(&file, "user.bytes", &(0..=255).collect::<Vec<u8>>(), XattrFlags::empty()));
        note(&mut facts, "3000 bytes", set(&file, "user.big", &noise(4, 3000), XattrFlags::empty()));
        note(&mut facts, "trusted", set(&file, "trusted.t", b"root only", XattrFlags::empty()));
        note(
            &mut facts,
            "security",
            set(
                &file,
                "security.capability",
                &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                XattrFlags::empty(),
            ),
        );
        note(&mut facts, "on a directory", set(&root.join("d"), "user.dir", b"d", XattrFlags::empty()));
        note(&mut facts, "unknown namespace", set(&file, "nonsense.x", b"d", XattrFlags::empty()));
        note(&mut facts, "get nothing", rustix::fs::lgetxattr(&file, "user.none", &mut [0u8; 10][..]));
        note(&mut facts, "a small buffer", rustix::fs::lgetxattr(&file, "user.big", &mut [0u8; 10][..]));
        note(&mut facts, "its size", rustix::fs::lgetxattr(&file, "user.big", &mut [0u8; 0][..]));
        note(&mut facts, "remove", rustix::fs::lremovexattr(&file, "user.empty"));
        note(&mut facts, "remove again", rustix::fs::lremovexattr(&file, "user.empty"));
        note(&mut facts, "a long name", set(&file, &format!("user.{}", "n".repeat(250)), b"v", XattrFlags::empty()));
        note(
            &mut facts,
            "a name too long",
            set(&file, &format!("user.{}", "n".repeat(251)), b"v", XattrFlags::empty()),
        );
        symlink("f", root.join("s")).expect("symlink");
        note(&mut facts, "user on a symlink", set(&root.join("s"), "user.s", b"v", XattrFlags::empty()));
        note(&mut facts, "all", xattrs(&file));
        facts
    });
}

#[test]
fn modes_owners_and_nanosecond_times_are_kept() {
    same_as_local("attributes", |root| {
        let mut facts = Facts::new();
        for mode in [0o0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o123] {
            let path = root.join(format!("m{mode:o}"));
            fs::write(&path, b"x").expect("written");
            note(&mut facts, "mode", fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        }
        for (i, time) in times().into_iter().enumerate() {
            let path = root.join(format!("t{i}"));
            if i % 2 == 0 {
                fs::write(&path, b"x").expect("written")
            } else {
                fs::create_dir(&path).expect("made")
            }
            note(&mut facts, "time", set_mtime(&path, time));
            note(
                &mut facts,
                "as set",
                fs::metadata(&path).map(|m| (m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec())),
            );
        }
        for (i, (uid, gid)) in
            [(0, 0), (1000, 1000), (65_534, 7), (4_000_000_000, 4_000_000_001)].into_iter().enumerate()
        {
            let path = root.join(format!("o{i}"));
            fs::write(&path, b"x").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("mode");
            note(&mut facts, "owner", std::os::unix::fs::lchown(&path, Some(uid), Some(gid)));
            note(&mut facts, "set-uid after chown", fs::metadata(&path).map(|m| format!("{:o}", m.mode())));
        }
        let group = root.join("group");
        fs::create_dir(&group).expect("made");
        std::os::unix::fs::lchown(&group, Some(5), Some(55)).expect("chown");
        fs::set_permissions(&group, fs::Permissions::from_mode(0o2775)).expect("mode");
        fs::write(group.join("inherits"), b"x").expect("written");
        fs::create_dir(group.join("inherits-too")).expect("made");
        note(&mut facts, "group", fs::metadata(group.join("inherits")).map(|m| m.gid()));
        note(&mut facts, "mode", fs::metadata(group.join("inherits-too")).map(|m| format!("{:o}", m.mode())));
        facts
    });
}

/// Times within what ext4 keeps as well; their last digits mark them as set by the test.
fn times() -> Vec<(i64, u32)> {
    vec![
        (0, 777),
        (-1, 500_000_777),
        (-1_000_000, 777),
        (-2_000_000_000, 999_999_777),
        (1, 1_777),
        (1_700_000_000, 123_456_777),
        (5_000_000_000, 777),
        (15_000_000_000, 999_999_777),
    ]
}

#[test]
fn changes_move_the_times_they_should() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("times");
    repo.mount();
    let dir = repo.live();
    let times =
        |p: &Path| fs::metadata(p).map(|m| ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()))).expect("times");
    let step = || thread::sleep(Duration::from_millis(20));
    let file = dir.join("f");
    fs::write(&file, b"x").expect("written");
    let first = times(&file);
    step();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let second = times(&file);
    assert!(second.0 == first.0 && second.1 > first.1, "chmod changes ctime only: {first:?} {second:?}");
    step();
    let parent = times(&dir);
    OpenOptions::new().append(true).open(&file).and_then(|mut f| f.write_all(b"y")).expect("appended");
    let third = times(&file);
    assert!(third.0 > second.0 && third.1 > second.1, "a write changes mtime and ctime: {second:?} {third:?}");
    assert_eq!(times(&dir).0, parent.0, "a write to a file doesn't change its directory");
    step();
    fs::rename(&file, dir.join("g")).expect("renamed");
    assert!(times(&dir).0 > parent.0, "a rename changes the directory's mtime");
    assert_eq!(times(&dir.join("g")).0, third.0, "a rename leaves the file's mtime");
}
