//! Contents of files: what programs read, write, cut and allocate. Most tests do the same on the local filesystem.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use axiomfs_tests::compare::{Facts, note, same_as_local};
use axiomfs_tests::repo::{TestRepo, beside_others};
use axiomfs_tests::rng::noise;
use rustix::fs::FallocateFlags;

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
fn a_file_of_many_short_pieces_is_copied_by_ranges() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("pieces");
    repo.mount();
    let live = repo.live();
    let piece = |i: u64| noise(i, 512);
    for i in 0..600 {
        fs::write(live.join(format!("p{i}")), piece(i)).expect("written");
    }
    repo.sync();
    let copy = |from: &Path, to: &fs::File, at: u64| {
        let from = fs::File::open(from).expect("opened");
        let (mut begin, mut into, mut left) = (0, at, from.metadata().expect("there").len() as usize);
        while left > 0 {
            let done = rustix::fs::copy_file_range(&from, Some(&mut begin), to, Some(&mut into), left).expect("copied");
            assert!(done > 0, "it stopped at {into}");
            left -= done;
        }
    };
    let all = fs::File::create(live.join("all")).expect("made");
    (0..600).for_each(|i| copy(&live.join(format!("p{i}")), &all, i * 512));
    repo.sync();
    drop(all);
    copy(&live.join("all"), &fs::File::create(live.join("copy")).expect("made"), 0);
    repo.remount_from_the_store_alone();
    let want: Vec<u8> = (0..600).flat_map(piece).collect();
    assert!(fs::read(repo.live().join("copy")).expect("read") == want, "the copy has other bytes");
}
