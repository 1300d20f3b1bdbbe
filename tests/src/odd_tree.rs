//! A tree that has one of everything a Linux filesystem can hold, for programs that copy trees. Made on a local
//! filesystem, by root.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat, utimensat,
};

use crate::repo::{LIMIT, text};
use crate::rng::noise;
use crate::run::must;

/// Times that filesystems and programs get wrong: before 1970 with and without a fraction, at its edge, after 2038 and
/// after 2106. All of them fit into ext4.
pub const TIMES: &[(i64, i64)] = &[
    (-2_000_000_000, 0),
    (-631_152_000, 123_456_789),
    (-2, 1),
    (-1, 999_999_999),
    (0, 0),
    (0, 1),
    (1, 999_999_999),
    (2_147_483_647, 999_999_999),
    (2_147_483_648, 1),
    (4_294_967_296, 500_000_000),
    (7_258_118_400, 987_654_321),
];

/// Modes with every special bit, and without any bit.
const MODES: &[u32] = &[0o0, 0o4, 0o111, 0o444, 0o600, 0o666, 0o755, 0o1644, 0o2755, 0o4755, 0o6751, 0o7777];

/// Owners and groups, up to the largest that exists.
const OWNERS: &[(u32, u32)] =
    &[(0, 65_534), (1, 0), (12_345, 54_321), (65_535, 65_536), (4_294_967_294, 4_000_000_000)];

/// Fills the new directory `root`.
///
/// # Panics
/// When it can't be made: not as root, or the local filesystem lacks something.
pub fn plant(root: &Path) {
    fs::create_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    plant_contents(&root.join("contents"));
    plant_holes(&root.join("holes"));
    plant_hard_links(root);
    plant_symlinks(&root.join("symlinks"));
    plant_special_files(&root.join("special"));
    plant_modes_and_owners(&root.join("modes"));
    plant_attributes(&root.join("attributes"));
    plant_acls(&root.join("acls"));
    plant_names(&root.join("names"));
    plant_directories(&root.join("directories"));
    plant_times(&root.join("times"));
}

/// Fills the new directory `dir` with `count` entries. Files take long to copy, so only one in `files` is a file of its
/// own; the others are hard links to a few of them, and symlinks.
///
/// # Panics
/// When it can't be made.
pub fn plant_many(dir: &Path, count: usize, files: usize) {
    fs::create_dir(dir).expect("made");
    let mut last = dir.to_owned();
    for i in 0..count {
        let path = dir.join(format!("entry {i:06}"));
        if i % files == 0 {
            put(&path, format!("file {i}").as_bytes());
            last = path;
        } else if i % 3 == 0 {
            symlink(format!("entry {:06}", i * 7 % count), &path).expect("linked");
        } else {
            fs::hard_link(&last, &path).expect("linked");
        }
    }
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
}

/// Sets the time of modification, of the link itself where it is one.
pub fn touch(path: &Path, (tv_sec, tv_nsec): (i64, i64)) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Lengths around those where storage changes its ways.
fn plant_contents(dir: &Path) {
    fs::create_dir(dir).expect("made");
    for len in [0, 1, 511, 512, 513, 4095, 4096, 131_071, 131_072, 1 << 20, (5 << 20) + 17] {
        put(&dir.join(format!("{len} bytes")), &noise(len as u64, len));
    }
    put(&dir.join("zeros"), &vec![0; 300_000]);
}

fn plant_holes(dir: &Path) {
    fs::create_dir(dir).expect("made");
    let file = |name: &str, len: u64, islands: &[(u64, usize)]| {
        let file = File::create(dir.join(name)).expect("created");
        file.set_len(len).expect("cut");
        for (at, len) in islands {
            file.write_all_at(&noise(*at + 1, *len), *at).expect("written");
        }
    };
    file("nothing but a hole", 16 << 20, &[]);
    file("a hole first", 8 << 20, &[(7 << 20, 1 << 20)]);
    file("a hole last", 8 << 20, &[(0, 100_000)]);
    file("islands", 64 << 20, &[(1 << 20, 4096), (20 << 20, 1), ((40 << 20) + 1234, 300_000)]);
}

/// Names of one inode in directories that are made first, in the middle and last.
fn plant_hard_links(root: &Path) {
    let (first, second) = (root.join("a first directory"), root.join("z/last/directory"));
    fs::create_dir(&first).expect("made");
    fs::create_dir_all(&second).expect("made");
    let link = |name: &str| fs::hard_link(first.join(name), second.join(format!("also {name}"))).expect("linked");
    put(&first.join("file"), b"one file with four names");
    link("file");
    fs::hard_link(first.join("file"), first.join("file again")).expect("linked");
    fs::hard_link(first.join("file"), root.join("m")).expect("linked");
    put(&first.join("large"), &noise(5, 2 << 20));
    link("large");
    symlink("nowhere", first.join("symlink")).expect("linked");
    link("symlink");
    node(&first.join("fifo"), FileType::Fifo, 0);
    link("fifo");
    node(&first.join("device"), FileType::CharacterDevice, makedev(1, 3));
    link("device");
}

fn plant_symlinks(dir: &Path) {
    fs::create_dir(dir).expect("made");
    symlink("/nonexistent/target", dir.join("dangling")).expect("linked");
    symlink("../contents/1 bytes", dir.join("relative")).expect("linked");
    symlink(".", dir.join("loop")).expect("linked");
    symlink("x".repeat(4095), dir.join("long")).expect("linked");
    symlink("y".repeat(60), dir.join("longer than an inode holds")).expect("linked");
    symlink(OsStr::from_bytes(b"\xff\xfe \n\\"), dir.join("bytes")).expect("linked");
    let owned = dir.join("owned");
    symlink("z", &owned).expect("linked");
    lchown(&owned, Some(12_345), Some(54_321)).expect("chown");
    attribute(&owned, "trusted.of-a-symlink", b"value");
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn plant_special_files(dir: &Path) {
    fs::create_dir(dir).expect("made");
    node(&dir.join("fifo"), FileType::Fifo, 0);
    node(&dir.join("socket"), FileType::Socket, 0);
    node(&dir.join("null"), FileType::CharacterDevice, makedev(1, 3));
    node(&dir.join("block"), FileType::BlockDevice, makedev(7, 200));
    node(&dir.join("large numbers"), FileType::CharacterDevice, makedev(4095, 1_048_575));
    chmod(&dir.join("fifo"), 0o4711);
    lchown(dir.join("socket"), Some(1), Some(2)).expect("chown");
}

fn plant_modes_and_owners(dir: &Path) {
    fs::create_dir(dir).expect("made");
    for mode in MODES {
        let (file, directory) = (dir.join(format!("f{mode:o}")), dir.join(format!("d{mode:o}")));
        put(&file, b"mode");
        fs::create_dir(&directory).expect("made");
        put(&directory.join("within"), b"mode");
        for (i, path) in [file, directory].iter().enumerate() {
            let (uid, gid) = OWNERS[(*mode as usize + i) % OWNERS.len()];
            lchown(path, Some(uid), Some(gid)).expect("chown");
            chmod(path, *mode);
        }
    }
    let sticky = dir.join("like tmp");
    fs::create_dir(&sticky).expect("made");
    chmod(&sticky, 0o1777);
}

/// `cap_net_raw+ep` as the kernel stores it, version 2.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn plant_attributes(dir: &Path) {
    fs::create_dir(dir).expect("made");
    let file = dir.join("file");
    put(&file, b"with attributes");
    for path in [dir, &file] {
        attribute(path, "user.empty", b"");
        attribute(path, "user.bytes", &(0..=255u8).collect::<Vec<u8>>());
        attribute(path, "user.long", &noise(9, 1500));
        attribute(path, &format!("user.{}", "n".repeat(250)), b"the longest name");
        attribute(path, "trusted.mine", b"root's");
        attribute(path, "security.ours", b"\0\x01\xff");
    }
    let program = dir.join("program");
    put(&program, b"#!/bin/sh\n");
    lchown(&program, Some(12_345), Some(12_345)).expect("chown");
    chmod(&program, 0o6755);
    attribute(&program, "security.capability", CAPABILITY);
    let fifo = dir.join("fifo");
    node(&fifo, FileType::Fifo, 0);
    attribute(&fifo, "trusted.of-a-fifo", b"value");
    // The same long value again: rsync sends it once.
    put(&dir.join("sibling"), b"");
    attribute(&dir.join("sibling"), "user.long", &noise(9, 1500));
}

fn plant_acls(dir: &Path) {
    fs::create_dir(dir).expect("made");
    must("setfacl", &["-d", "-m", "u::rwx,u:12345:rwx,g:54321:rx,g::r,m::rwx,o::-", text(dir)], LIMIT);
    must("setfacl", &["-m", "u:1:x", text(dir)], LIMIT);
    fs::create_dir(dir.join("inherits")).expect("made");
    put(&dir.join("inherits/also"), b"x");
    let other = |name: &str, acl: &str| {
        put(&dir.join(name), b"x");
        must("setfacl", &["-b", "-m", acl, text(&dir.join(name))], LIMIT);
    };
    other("masked", "u:12345:rwx,g:54321:rwx,m::r");
    other("nobody", "u::-,g::-,o::-,u:4294967294:rw");
    put(&dir.join("none"), b"x");
    must("setfacl", &["-b", text(&dir.join("none"))], LIMIT);
    let only_default = dir.join("only a default");
    fs::create_dir(&only_default).expect("made");
    must("setfacl", &["-b", "-d", "-m", "u::rw,g::r,o::r", text(&only_default)], LIMIT);
    must("setfacl", &["-k", text(&dir.join("inherits"))], LIMIT);
}

fn plant_names(dir: &Path) {
    fs::create_dir(dir).expect("made");
    let name = |bytes: &[u8]| dir.join(OsStr::from_bytes(bytes));
    for byte in (1..=255u8).filter(|b| *b != b'/') {
        if byte != b'.' {
            put(&name(&[byte]), &[byte]);
        }
        put(&name(&[b'a', byte, b'z']), &[byte, byte]);
    }
    put(&name(&[b'n'; 255]), b"as long as it may be");
    let long: Vec<u8> = (1..=255u8).map(|b| if b == b'/' { b'|' } else { b }).collect();
    put(&name(&long), b"every byte at once");
    let euros: String = "€".repeat(85);
    fs::create_dir(name(euros.as_bytes())).expect("made");
    put(&name(euros.as_bytes()).join("d".repeat(255)), b"long in long");
    for odd in ["...", " ", "-rf", "--delete", "* ?[a]", "Ä", "A\u{308}", "a\\b", "%2f", "~", "#x#", ".x.Ab12Cd"] {
        put(&name(odd.as_bytes()), odd.as_bytes());
    }
}

fn plant_directories(dir: &Path) {
    let deep = (0..40).fold(dir.to_owned(), |path, i| path.join(format!("level {i}")));
    fs::create_dir_all(&deep).expect("made");
    put(&deep.join("bottom"), b"deep");
    for i in 0..20 {
        fs::create_dir_all(dir.join(format!("empty {i}/empty"))).expect("made");
    }
    touch(&dir.join("empty 3"), (-77, 777));
}

/// Every kind of node with every time, the directories last.
fn plant_times(dir: &Path) {
    fs::create_dir(dir).expect("made");
    for (i, time) in TIMES.iter().enumerate() {
        let within = dir.join(format!("{i}"));
        fs::create_dir(&within).expect("made");
        put(&within.join("file"), format!("{time:?}").as_bytes());
        symlink("nowhere", within.join("symlink")).expect("linked");
        node(&within.join("fifo"), FileType::Fifo, 0);
        node(&within.join("device"), FileType::BlockDevice, makedev(7, 1));
        for name in ["file", "symlink", "fifo", "device"] {
            touch(&within.join(name), *time);
        }
        touch(&within, *time);
    }
    touch(dir, (-1_000_000_000, 1));
}
