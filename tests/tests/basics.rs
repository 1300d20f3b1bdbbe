//! What programs do with files and directories. Each test does the same on the mount and on the local filesystem and
//! compares what was seen, then looks again after a crash and after a remount from the store alone.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use axiomfs_tests::observe::{Bytes, observe, xattrs};
use axiomfs_tests::perform::set_mtime;
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::run;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

/// What was seen, one line each; the same lines must come from the local filesystem.
type Facts = Vec<String>;

/// Adds `what: result` to the facts, errors as their number.
fn note<T: std::fmt::Debug, E: Into<io::Error>>(facts: &mut Facts, what: &str, result: Result<T, E>) {
    let line = match result {
        Ok(value) => format!("{what}: {value:?}"),
        Err(e) => format!("{what}: error {:?}", e.into().raw_os_error()),
    };
    facts.push(line);
}

/// Runs `act` on the mount and on a local directory; facts and the resulting trees must agree, at once, after a crash
/// and when mounted from the store alone.
fn same_as_local(name: &str, act: fn(&Path) -> Facts) {
    let _slot = beside_others();
    rustix::process::umask(Mode::empty());
    let local = scratch(name);
    let mut repo = TestRepo::new(name);
    repo.mount();
    let want = act(local.path());
    let have = act(&repo.live());
    for (want, have) in want.iter().zip(&have) {
        assert_eq!(have, want, "{name}: differs from the local filesystem (left: the mount)");
    }
    assert_eq!(have.len(), want.len(), "{name}: another number of facts");
    let want = snapshot_of(local.path());
    assert_same(&snapshot_of(&repo.live()), &want, name, "at once");
    repo.kill9();
    repo.mount();
    assert_same(&snapshot_of(&repo.live()), &want, name, "after a crash");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    assert_same(&snapshot_of(&repo.live()), &want, name, "from the store alone");
}

/// Everything about a tree that must be the same on both sides: not inode numbers, not times that nobody set.
fn snapshot_of(root: &Path) -> Vec<String> {
    let seen = observe(root, Bytes::Keep).unwrap_or_else(|e| panic!("the tree can't be read: {e}"));
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as i64;
    let line = |(path, e): (&Vec<u8>, &axiomfs_tests::observe::Entry)| {
        // Times that a test sets are years away from now; those that nobody set are not.
        let set = (now.abs_diff(e.mtime.0) > 24 * 3600).then_some(e.mtime);
        let size = if e.kind == "directory" { 0 } else { e.size };
        let root = path.is_empty();
        let mode = if root { 0 } else { e.mode };
        let content = seen.contents.get(path).map(|c| checksum(c));
        format!(
            "{}: {} {mode:o} {}:{} links {} size {size} rdev {} {set:?} {:?} {:?} {content:?}",
            path.escape_ascii(),
            e.kind,
            e.uid,
            e.gid,
            e.nlink,
            e.rdev,
            e.target,
            e.xattrs
        )
    };
    seen.entries.iter().map(line).collect()
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn assert_same(have: &[String], want: &[String], name: &str, when: &str) {
    for (have, want) in have.iter().zip(want) {
        assert_eq!(have, want, "{name}, {when}: (left: the mount)");
    }
    assert_eq!(have.len(), want.len(), "{name}, {when}: another number of nodes");
}

#[test]
fn files_are_created_read_and_written_at_any_offset() {
    same_as_local("files", |root| {
        let mut facts = Facts::new();
        let path = root.join("a");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path).expect("created");
        note(&mut facts, "write at 0", file.write_at(b"hello", 0));
        note(&mut facts, "write far behind the end", file.write_at(b"world", 70_000));
        note(&mut facts, "write in the middle", file.write_at(&noise(3, 10_000), 60_000));
        note(&mut facts, "size", file.metadata().map(|m| m.len()));
        let mut buffer = vec![1u8; 100];
        note(&mut facts, "read across the end", file.read_at(&mut buffer, 69_990));
        note(&mut facts, "bytes read", Ok::<_, io::Error>(buffer));
        note(&mut facts, "read behind the end", file.read_at(&mut [0; 10], 1_000_000));
        note(&mut facts, "create again", OpenOptions::new().write(true).create_new(true).open(&path).map(drop));
        note(&mut facts, "open what isn't there", File::open(root.join("b")).map(drop));
        note(&mut facts, "open below a file", File::open(path.join("c")).map(drop));
        note(&mut facts, "write to a descriptor for reading", File::open(&path).and_then(|f| f.write_at(b"x", 0)));
        note(&mut facts, "open a directory for writing", OpenOptions::new().write(true).open(root).map(drop));
        note(&mut facts, "create and cut", File::create(&path).map(drop));
        note(&mut facts, "size after it", fs::metadata(&path).map(|m| m.len()));
        for (i, len) in [0, 1, 511, 512, 513, 4095, 4096, 4097, 131_072, 1_048_576, 5_000_001].into_iter().enumerate() {
            note(&mut facts, "a file", fs::write(root.join(format!("len-{len}")), noise(i as u64, len)));
        }
        facts
    });
}

#[test]
fn files_are_truncated_both_ways() {
    same_as_local("truncate", |root| {
        let mut facts = Facts::new();
        for (from, to) in
            [(100_000, 5), (5, 100_000), (3 << 20, 1_234_567), (300, 400), (600, 300), (8192, 4096), (2 << 20, 0)]
        {
            let path = root.join(format!("{from}-{to}"));
            fs::write(&path, noise(from, from as usize)).expect("written");
            let file = OpenOptions::new().write(true).open(&path).expect("opened");
            note(&mut facts, "cut", file.set_len(to));
            note(&mut facts, "size", file.metadata().map(|m| m.len()));
            note(&mut facts, "extend again", file.set_len(to + 7000));
            note(&mut facts, "write at the end", file.write_at(b"end", to + 7000));
        }
        let file = File::create(root.join("too large")).expect("created");
        note(&mut facts, "a negative length", rustix::fs::ftruncate(&file, u64::MAX));
        facts
    });
}

#[test]
fn appends_of_several_writers_never_overlap() {
    same_as_local("append", |root| {
        let path = root.join("log");
        let write = |id: u8| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("opened");
            for n in 0..200u32 {
                file.write_all(format!("{id} {n:05}\n").as_bytes()).expect("appended");
            }
        };
        thread::scope(|s| (0..4).for_each(|id| drop(s.spawn(move || write(id)))));
        let read = fs::read_to_string(&path).expect("read");
        let mut lines: Vec<&str> = read.lines().collect();
        lines.sort_unstable();
        let unique: BTreeSet<&&str> = lines.iter().collect();
        let facts = vec![format!("{} lines, {} different, {} bytes", lines.len(), unique.len(), read.len())];
        fs::write(&path, lines.join("\n")).expect("order is up to the scheduler, so the file is sorted for comparison");
        facts
    });
}

#[test]
fn rename_replaces_exchanges_and_refuses_as_it_should() {
    same_as_local("rename", |root| {
        let mut facts = Facts::new();
        let at = |name: &str| root.join(name);
        for name in ["a", "b", "c"] {
            fs::write(at(name), name.repeat(1000)).expect("written");
        }
        for name in ["empty", "full", "full/inner"] {
            fs::create_dir(at(name)).expect("made");
        }
        let open = File::open(at("b")).expect("opened");
        note(&mut facts, "over a file", fs::rename(at("a"), at("b")));
        let mut old = String::new();
        note(&mut facts, "the replaced file is still read", (&open).read_to_string(&mut old));
        facts.push(old);
        note(&mut facts, "file over a directory", fs::rename(at("b"), at("empty")));
        note(&mut facts, "directory over a file", fs::rename(at("empty"), at("b")));
        note(&mut facts, "directory over a full one", fs::rename(at("empty"), at("full")));
        note(&mut facts, "directory over an empty one", fs::rename(at("full"), at("empty")));
        note(&mut facts, "directory into itself", fs::rename(at("empty"), at("empty/inner/x")));
        note(&mut facts, "what isn't there", fs::rename(at("nothing"), at("b")));
        note(&mut facts, "to itself", fs::rename(at("b"), at("b")));
        fs::hard_link(at("b"), at("b2")).expect("linked");
        note(&mut facts, "over another link of it", fs::rename(at("b"), at("b2")));
        let with = |a: &str, b: &str, flags| rustix::fs::renameat_with(CWD, at(a), CWD, at(b), flags);
        note(&mut facts, "no-replace onto a name", with("c", "b", RenameFlags::NOREPLACE));
        note(&mut facts, "no-replace onto nothing", with("c", "d", RenameFlags::NOREPLACE));
        note(&mut facts, "exchange file and directory", with("d", "empty", RenameFlags::EXCHANGE));
        note(&mut facts, "exchange with nothing", with("d", "nothing", RenameFlags::EXCHANGE));
        note(&mut facts, "remove a full directory", fs::remove_dir(at("d")));
        note(&mut facts, "remove a directory as a file", rustix::fs::unlink(at("d")));
        note(&mut facts, "remove a file as a directory", fs::remove_dir(at("b")));
        note(&mut facts, "link count of the parent", fs::metadata(at("d")).map(|m| m.nlink()));
        facts
    });
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    same_as_local("unlinked", |root| {
        let mut facts = Facts::new();
        let path = root.join("x");
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).expect("created");
        file.write_all(&noise(9, 300_000)).expect("written");
        note(&mut facts, "unlink", fs::remove_file(&path));
        note(&mut facts, "links", file.metadata().map(|m| m.nlink()));
        note(&mut facts, "write on", file.write(b"more"));
        note(&mut facts, "cut", file.set_len(200_000));
        note(&mut facts, "back", file.seek(SeekFrom::Start(0)));
        let mut all = Vec::new();
        note(&mut facts, "read", file.read_to_end(&mut all));
        facts.push(format!("right bytes: {}", all == noise(9, 300_000)[..200_000]));
        note(&mut facts, "the name is free", fs::write(&path, b"another"));
        note(&mut facts, "fsync", file.sync_all());
        drop(file);
        note(&mut facts, "the new one stays", fs::read(&path));
        facts
    });
}

#[test]
fn hard_links_share_one_inode() {
    same_as_local("links", |root| {
        let mut facts = Facts::new();
        fs::create_dir(root.join("d")).expect("made");
        fs::write(root.join("a"), b"one").expect("written");
        note(&mut facts, "link", fs::hard_link(root.join("a"), root.join("d/b")));
        note(&mut facts, "link over a name", fs::hard_link(root.join("a"), root.join("d/b")));
        note(&mut facts, "link of a directory", fs::hard_link(root.join("d"), root.join("e")));
        let (a, b) = (fs::metadata(root.join("a")).expect("a"), fs::metadata(root.join("d/b")).expect("b"));
        facts.push(format!("same inode {}, links {} {}", a.ino() == b.ino(), a.nlink(), b.nlink()));
        fs::write(root.join("d/b"), b"two two").expect("written");
        note(&mut facts, "seen by the other name", fs::read_to_string(root.join("a")));
        symlink("a", root.join("s")).expect("symlink");
        note(&mut facts, "link of a symlink", fs::hard_link(root.join("s"), root.join("d/s2")));
        for i in 0..50 {
            fs::hard_link(root.join("a"), root.join(format!("d/n{i}"))).expect("linked");
        }
        note(&mut facts, "remove one", fs::remove_file(root.join("a")));
        note(&mut facts, "links", fs::metadata(root.join("d/b")).map(|m| m.nlink()));
        facts
    });
}

#[test]
fn symlinks_keep_their_target_to_the_byte() {
    same_as_local("symlinks", |root| {
        let mut facts = Facts::new();
        fs::create_dir(root.join("d")).expect("made");
        fs::write(root.join("d/file"), b"x").expect("written");
        for (name, target) in [
            ("plain", "d/file"),
            ("dangling", "no/such"),
            ("absolute", "/etc/hostname"),
            ("dir", "d"),
            ("loop", "loop"),
        ] {
            note(&mut facts, name, symlink(target, root.join(name)));
        }
        let long = "x/".repeat(2047);
        note(&mut facts, "4094 bytes", symlink(&long, root.join("long")));
        note(&mut facts, "odd bytes", symlink(OsStr::from_bytes(b"\xff\x01\n \\"), root.join("odd")));
        note(&mut facts, "through a link", fs::read(root.join("dir/file")));
        note(&mut facts, "a loop", fs::read(root.join("loop")));
        note(&mut facts, "a dangling one", fs::read(root.join("dangling")));
        note(&mut facts, "its size", fs::symlink_metadata(root.join("long")).map(|m| m.len()));
        note(&mut facts, "over a name", symlink("a", root.join("plain")));
        note(&mut facts, "own time", set_mtime(&root.join("dangling"), (1_000_000_000, 123_456_777)));
        facts
    });
}

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

#[test]
fn holes_stay_holes() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("holes");
    repo.mount();
    let path = repo.live().join("sparse");
    let size = 3u64 << 30;
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("created");
    file.write_all_at(&noise(1, 100_000), 1 << 30).expect("written");
    file.set_len(size).expect("extended");
    let full = repo.live().join("punched");
    fs::write(&full, noise(2, 8 << 20)).expect("written");
    let punched = OpenOptions::new().write(true).open(&full).expect("opened");
    rustix::fs::fallocate(&punched, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1 << 20, 4 << 20)
        .expect("punched");
    let check = |repo: &TestRepo, when: &str| {
        let file = File::open(repo.live().join("sparse")).expect("opened");
        let m = file.metadata().expect("metadata");
        assert_eq!(m.len(), size, "{when}");
        assert!(m.blocks() * 512 < 4 << 20, "{when}: {} bytes are allocated for a sparse file", m.blocks() * 512);
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).expect("there is data");
        assert!(data > (1 << 30) - (4 << 20) && data <= 1 << 30, "{when}: data begins at {data}");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(1 << 30)).expect("there is a hole");
        assert!(((1 << 30) + 100_000..(1 << 30) + (4 << 20)).contains(&hole), "{when}: the hole begins at {hole}");
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(2 << 30));
        assert_eq!(end.err().map(|e| e.raw_os_error()), Some(6), "{when}: no data behind the last must be ENXIO");
        let mut have = vec![0; 100_000];
        file.read_exact_at(&mut have, 1 << 30).expect("read");
        assert!(have == noise(1, 100_000), "{when}: wrong bytes");
        let mut want = noise(2, 8 << 20);
        want[1 << 20..5 << 20].fill(0);
        assert!(fs::read(repo.live().join("punched")).expect("read") == want, "{when}: the punched file is wrong");
        let blocks = fs::metadata(repo.live().join("punched")).expect("metadata").blocks() * 512;
        assert!(blocks <= 5 << 20, "{when}: a punched file still occupies {blocks}");
    };
    drop((file, punched));
    check(&repo, "at once");
    repo.sync();
    check(&repo, "after sync");
    repo.umount().mount();
    check(&repo, "after a remount");
}

#[test]
fn space_is_allocated_punched_zeroed_and_copied() {
    same_as_local("fallocate", |root| {
        let mut facts = Facts::new();
        let path = root.join("f");
        fs::write(&path, noise(7, 100_000)).expect("written");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        for (name, flags, offset, len) in [
            ("allocate", FallocateFlags::empty(), 90_000, 60_000),
            ("keep size", FallocateFlags::KEEP_SIZE, 140_000, 100_000),
            ("punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 10_001, 30_000),
            ("zero", FallocateFlags::ZERO_RANGE, 60_001, 10_000),
            ("zero past the end", FallocateFlags::ZERO_RANGE, 140_000, 50_000),
            ("zero and keep", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 180_000, 50_000),
            ("no length", FallocateFlags::empty(), 0, 0),
        ] {
            note(&mut facts, name, rustix::fs::fallocate(&file, flags, offset, len));
            note(&mut facts, "size", file.metadata().map(|m| m.len()));
        }
        let copy = File::create(root.join("copy")).expect("created");
        let (mut from, mut to) = (5_000, 1_000);
        while to < 51_000 {
            let left = (51_000 - to) as usize;
            let n = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), left).expect("copied");
            assert!(n > 0, "copy_file_range stopped at {to}");
        }
        note(&mut facts, "size of the copy", copy.metadata().map(|m| m.len()));
        facts
    });
}

#[test]
fn special_files_are_kept() {
    same_as_local("special", |root| {
        let mut facts = Facts::new();
        let node =
            |name: &str, kind, dev| rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), dev);
        note(&mut facts, "fifo", node("fifo", FileType::Fifo, 0));
        note(&mut facts, "socket", node("socket", FileType::Socket, 0));
        note(&mut facts, "character device", node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)));
        note(&mut facts, "block device", node("loop", FileType::BlockDevice, rustix::fs::makedev(7, 200)));
        note(&mut facts, "plain", node("plain", FileType::RegularFile, 0));
        note(&mut facts, "is a fifo", fs::symlink_metadata(root.join("fifo")).map(|m| m.file_type().is_fifo()));
        facts
    });
}

#[test]
fn every_name_that_linux_allows_is_a_name() {
    same_as_local("names", |root| {
        let mut facts = Facts::new();
        for byte in (1..=255u8).filter(|b| *b != b'/' && *b != b'.') {
            note(&mut facts, "one byte", fs::write(root.join(OsStr::from_bytes(&[byte])), [byte]));
        }
        note(&mut facts, "255 bytes", fs::write(root.join("n".repeat(255)), b"x"));
        note(&mut facts, "256 bytes", fs::write(root.join("n".repeat(256)), b"x"));
        note(&mut facts, "255 bytes of directory", fs::create_dir(root.join("d".repeat(255))));
        note(&mut facts, "lookup of 256", fs::metadata(root.join("n".repeat(256))).map(drop));
        for name in ["...", ". ", "..x", "live", "snapshots", ".axiomfs", "Ä", "A\u{308}", "a\\b", "%2f"] {
            note(&mut facts, name, fs::write(root.join(name), name));
        }
        let deep = (0..60).fold(root.to_owned(), |p, i| p.join(format!("level-{i}")));
        note(&mut facts, "60 levels", fs::create_dir_all(&deep).and_then(|()| fs::write(deep.join("bottom"), b"x")));
        note(
            &mut facts,
            "all",
            fs::read_dir(root).map(|d| d.flatten().map(|e| e.file_name().into_vec()).collect::<BTreeSet<_>>()),
        );
        facts
    });
}

#[test]
fn a_directory_of_100000_entries_lists_each_exactly_once() {
    let _slot = alone();
    let mut repo = TestRepo::new("hundred-thousand");
    repo.mount();
    let dir = repo.live().join("big");
    fs::create_dir(&dir).expect("made");
    let name = |i: usize| format!("entry {i:06}");
    thread::scope(|s| {
        for part in 0..4 {
            let dir = &dir;
            s.spawn(move || {
                for i in (part..100_000).step_by(4) {
                    rustix::fs::mknodat(CWD, dir.join(name(i)), FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
                        .unwrap_or_else(|e| panic!("{}: {e}", name(i)));
                }
            });
        }
    });
    let list = |dir: &Path| {
        let entries: Vec<String> = fs::read_dir(dir)
            .expect("listed")
            .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        let unique: BTreeSet<String> = entries.iter().cloned().collect();
        assert_eq!(entries.len(), unique.len(), "some entries came twice");
        unique
    };
    assert_eq!(list(&dir), (0..100_000).map(name).collect(), "the listing isn't what was made");
    assert_eq!(fs::metadata(dir.join(name(99_999))).map(|m| m.len()).ok(), Some(0));
    assert!(fs::metadata(dir.join("entry 100000")).is_err());
    // Entries that vanish and appear while the directory is read don't disturb the others.
    let mut reader = fs::read_dir(&dir).expect("opened");
    let mut seen: Vec<String> =
        (&mut reader).take(1000).map(|e| e.expect("entry").file_name().into_string().expect("text")).collect();
    for i in (0..100_000).step_by(10) {
        fs::remove_file(dir.join(name(i))).expect("removed");
    }
    for i in 0..500 {
        fs::write(dir.join(format!("new {i}")), b"").expect("made");
    }
    seen.extend(reader.map(|e| e.expect("entry").file_name().into_string().expect("text")));
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(seen.len(), unique.len(), "an entry came twice while the directory changed");
    let untouched = (0..100_000).filter(|i| i % 10 != 0).map(name).filter(|n| !unique.contains(n)).count();
    assert_eq!(untouched, 0, "untouched entries were missed while the directory changed");
    let want: BTreeSet<String> =
        (0..100_000).filter(|i| i % 10 != 0).map(name).chain((0..500).map(|i| format!("new {i}"))).collect();
    assert_eq!(list(&dir), want, "after the changes");
    repo.umount().mount();
    assert_eq!(list(&dir), want, "after a remount");
}

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
