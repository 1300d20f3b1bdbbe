//! What Linux adds to POSIX: mappings in the store, `statx`, what is allocated, flags of `renameat2`, `df -i`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, freeze_store, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::must;
use rustix::fs::{AtFlags, CWD, RenameFlags, StatxFlags};

/// Writes two pages of a shared mapping, syncs the second only, and keeps the mapping until its input ends.
const MAPPER: &str = "
import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0)
m[8192:12288] = b'm' * 4096
m.flush(8192, 4096)
print('synced', flush=True)
sys.stdin.read()
";

#[test]
fn what_msync_wrote_is_read_from_the_store_alone() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("msync");
    repo.mount();
    let path = repo.live().join("f");
    fs::write(&path, noise(1, 100_000)).expect("written");
    repo.sync();
    let mut command = Command::new("python3");
    command.args(["-c", MAPPER, text(&path)]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut mapper = command.spawn().expect("python3");
    let mut said = String::new();
    BufReader::new(mapper.stdout.take().expect("piped")).read_line(&mut said).expect("an answer");
    assert_eq!(said, "synced\n");
    // The mapping is still there, and so is the mount.
    repo.sync();
    let frozen = repo.dir.join("frozen");
    freeze_store(&repo.store, &frozen);
    drop(mapper.stdin.take());
    assert!(mapper.wait().expect("waited").success());
    let mut other = repo.elsewhere(&frozen, "msync-store");
    // The copy says who writes the original, and that one lives.
    other.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    let mut want = noise(1, 100_000);
    want[8192..12_288].fill(b'm');
    assert!(fs::read(other.live().join("f")).expect("read") == want, "the mapping is not in the store");
}

/// Bytes that `du` counts.
fn du(path: &Path) -> u64 {
    let said = must("du", &["-s", "--block-size=1", text(path)], LIMIT);
    said.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("du: {said}"))
}

#[test]
fn du_counts_what_is_allocated_before_compression() {
    const SIZE: u64 = 8 << 20;
    let _slot = beside_others();
    let mut repo = TestRepo::new("du");
    repo.mount();
    let live = repo.live();
    fs::write(live.join("text"), prose(1, SIZE as usize)).expect("written");
    fs::write(live.join("noise"), noise(1, SIZE as usize)).expect("written");
    fs::write(live.join("small"), b"a few bytes").expect("written");
    File::create(live.join("empty")).expect("made");
    let sparse = File::create(live.join("sparse")).expect("made");
    sparse.set_len(1 << 40).expect("extended");
    sparse.write_all_at(&noise(2, 1 << 20), 1 << 39).expect("written");
    drop(sparse);
    let check = |when: &str| {
        for (name, size, allocated) in [
            ("text", SIZE, SIZE..=SIZE),
            ("noise", SIZE, SIZE..=SIZE),
            ("small", 11, 512..=4096),
            ("empty", 0, 0..=0),
            ("sparse", 1 << 40, 1 << 20..=(1 << 20) + 8192),
        ] {
            let path = live.join(name);
            let blocks = fs::metadata(&path).expect("metadata").blocks() * 512;
            assert_eq!(fs::metadata(&path).expect("metadata").size(), size, "{name}, {when}");
            assert_eq!(du(&path), blocks, "{name}, {when}");
            assert!(allocated.contains(&blocks), "{name}, {when}: {blocks} bytes, should be {allocated:?}");
        }
    };
    check("at once");
    repo.settle();
    check("in the store");
    repo.umount().mount();
    check("after a remount");
}

#[test]
fn statx_tells_all_that_stat_tells_but_no_time_of_birth() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("statx");
    repo.mount();
    let path = repo.live().join("f");
    fs::write(&path, noise(1, 100_000)).expect("written");
    fs::hard_link(&path, repo.live().join("g")).expect("linked");
    let m = fs::metadata(&path).expect("metadata");
    let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    for flags in [AtFlags::empty(), AtFlags::STATX_FORCE_SYNC, AtFlags::STATX_DONT_SYNC] {
        let x = rustix::fs::statx(CWD, &path, flags, all).expect("statx");
        let mask = StatxFlags::from_bits_retain(x.stx_mask);
        assert!(mask.contains(StatxFlags::BASIC_STATS | StatxFlags::MNT_ID), "{flags:?}: {mask:?}");
        assert!(
            !mask.contains(StatxFlags::BTIME),
            "a time of birth: say so in semantics.md, and test that it is right"
        );
        assert_eq!((x.stx_ino, x.stx_size, x.stx_blocks), (m.ino(), m.size(), m.blocks()), "{flags:?}");
        assert_eq!((u32::from(x.stx_mode), x.stx_nlink, x.stx_uid), (m.mode(), 2, m.uid()), "{flags:?}");
        assert_eq!((x.stx_mtime.tv_sec, i64::from(x.stx_mtime.tv_nsec)), (m.mtime(), m.mtime_nsec()), "{flags:?}");
        assert_eq!((x.stx_ctime.tv_sec, i64::from(x.stx_ctime.tv_nsec)), (m.ctime(), m.ctime_nsec()), "{flags:?}");
        assert_eq!(u64::from(x.stx_blksize), m.blksize(), "{flags:?}");
    }
}

#[test]
fn a_rename_that_leaves_a_whiteout_is_refused_and_changes_nothing() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("whiteout");
    repo.mount();
    let (from, to) = (repo.live().join("from"), repo.live().join("to"));
    fs::write(&from, b"kept").expect("written");
    for flags in [RenameFlags::WHITEOUT, RenameFlags::NOREPLACE | RenameFlags::EXCHANGE] {
        let refused = rustix::fs::renameat_with(CWD, &from, CWD, &to, flags).map_err(|e| e.raw_os_error());
        assert_eq!(refused, Err(22), "{flags:?}");
    }
    assert_eq!(fs::read(&from).expect("read"), b"kept");
    assert!(!to.exists());
}

#[test]
fn inode_numbers_are_counted_when_given_away_and_never_used_again() {
    const FILES: u64 = 5_000;
    let _slot = beside_others();
    let mut repo = TestRepo::new("df");
    repo.mount();
    let used = |repo: &TestRepo| {
        let s = rustix::fs::statvfs(repo.live()).expect("statvfs");
        s.f_files - s.f_ffree
    };
    let made = |repo: &TestRepo, count: u64| -> Vec<u64> {
        let paths = || (0..count).map(|i| repo.live().join(format!("f{i}")));
        paths().for_each(|path| drop(File::create(path).expect("made")));
        let numbers = paths().map(|path| fs::metadata(path).expect("metadata").ino()).collect();
        paths().for_each(|path| fs::remove_file(path).expect("removed"));
        numbers
    };
    let before = used(&repo);
    let mut newest = 0;
    for round in 0..4 {
        let numbers = made(&repo, if round == 0 { FILES } else { 10 });
        assert!(numbers.iter().all(|ino| *ino > newest), "round {round}: of {numbers:?} not all are above {newest}");
        newest = numbers.into_iter().max().unwrap_or(0);
        assert!(used(&repo) >= before + FILES, "round {round}: {} of {before} and {FILES}", used(&repo));
        match round {
            0 => {
                repo.umount().mount();
            }
            1 => {
                repo.kill9();
                repo.mount();
            }
            _ => {
                // What is known of numbers that no file has is in the store.
                repo.umount();
                fs::remove_dir_all(&repo.state).expect("the state can be deleted");
                fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
                repo.mount();
            }
        }
    }
}
