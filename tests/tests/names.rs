//! Names: renaming, linking, odd and many names. Most tests do the same on the local filesystem.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::compare::{Facts, note, same_as_local};
use axiomfs_tests::perform::set_mtime;
use axiomfs_tests::repo::{TestRepo, alone, beside_others};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, StatxFlags, statx};

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
fn a_listing_ends_and_gives_a_replaced_name_exactly_once() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("listing-ends");
    repo.mount();
    let dir = repo.live().join("d");
    fs::create_dir(&dir).expect("made");
    let name = |i: usize| format!("name-of-the-file-{i:05}");
    let all: BTreeSet<String> = (0..4000).map(name).collect();
    for name in &all {
        fs::write(dir.join(name), name).expect("written");
    }
    // What is replaced below lies in the tree and not in the layer on top of it.
    repo.sync();
    let text = |e: std::io::Result<fs::DirEntry>| e.expect("an entry").file_name().into_string().expect("text");
    let listed = |what: &str, change: &dyn Fn(usize, &str)| {
        let mut seen: Vec<String> = Vec::new();
        for (n, entry) in fs::read_dir(&dir).expect("opened").enumerate() {
            assert!(n < 20_000, "{what}: the listing has no end");
            let name = text(entry);
            change(n, &name);
            seen.push(name);
        }
        let unique: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(seen.len(), unique.len(), "{what}: a name came twice");
        unique
    };
    let replaced = listed("replaced", &|n, seen| {
        // The one just seen, and one far behind it or before.
        for other in [seen, &name((n + 2500) % 4000)] {
            fs::write(dir.join("new"), other).expect("written");
            fs::rename(dir.join("new"), dir.join(other)).expect("replaced");
        }
    });
    assert_eq!(replaced, all, "replaced");
    let exchanged = listed("exchanged", &|n, seen| {
        let (one, other) = (dir.join(seen), dir.join(name((n + 2000) % 4000)));
        if one != other {
            rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).expect("exchanged");
        }
    });
    assert_eq!(exchanged, all, "exchanged");
    // What was replaced and then removed before any of it came to the tree is gone from the listing, too.
    for i in 0..10 {
        fs::remove_file(dir.join(name(i))).expect("removed");
    }
    let rest: BTreeSet<String> = (10..4000).map(name).collect();
    assert_eq!(listed("removed", &|_, _| {}), rest);
    repo.sync();
    assert_eq!(listed("removed and synced", &|_, _| {}), rest);
    let renamed = listed("renamed", &|_, seen| {
        fs::rename(dir.join(seen), dir.join(format!("{seen}.old"))).expect("renamed");
    });
    assert!(renamed.is_subset(&rest), "what is renamed meanwhile is not listed by its new name");
    repo.umount().mount();
    assert_eq!(listed("in the end", &|_, _| {}), rest.iter().map(|n| format!("{n}.old")).collect());
    let made = listed("made", &|n, _| drop(File::create(dir.join(format!("made {n}"))).expect("made")));
    assert_eq!(made.len(), rest.len());
    // Rewound, it gives what is there now.
    let mut open = rustix::fs::Dir::read_from(File::open(&dir).expect("opened")).expect("a listing");
    let count = |open: &mut rustix::fs::Dir| open.by_ref().collect::<Result<Vec<_>, _>>().expect("entries").len();
    assert_eq!(count(&mut open), 2 * rest.len() + 2);
    File::create(dir.join("one more")).expect("made");
    open.rewind();
    assert_eq!(count(&mut open), 2 * rest.len() + 3);
    assert_eq!(count(&mut open), 0, "at the end it stays at the end");
    File::create(dir.join("yet one")).expect("made");
    assert_eq!(count(&mut open), 0, "and what comes later is not in it");
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
fn a_file_can_be_linked_while_others_ask_for_it_and_another_name_goes() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("links-race");
    repo.mount();
    let file = repo.live().join("file");
    fs::write(&file, "twice").expect("written");
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let mut links = 0u64;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let asked = statx(CWD, &file, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
                    let count = asked.expect("attributes").stx_nlink;
                    assert!(count == 1 || count == 2, "{count} names");
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::read_dir(repo.live()).expect("listed").for_each(|entry| drop(entry.expect("an entry")));
            }
        });
        let other = repo.live().join("other");
        let mut result = Ok(());
        while result.is_ok() && start.elapsed() < Duration::from_secs(5) {
            result = fs::hard_link(&file, &other).and_then(|()| fs::remove_file(&other));
            links += 1;
        }
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|e| panic!("at link {links}: {e}"));
    });
    assert!(links > 100, "{links} links in 5 s");
}
