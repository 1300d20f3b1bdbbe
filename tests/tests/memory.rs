//! The daemon's memory stays within its setting, whatever is copied.

use std::fs;
use std::thread;
use std::time::Instant;

use axiomfs_tests::repo::{TestRepo, alone};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::source::{check_noise, write_noise};

const FILES: u64 = 50_000;
const BIG: u64 = 4 << 30;
const BOUND: u64 = 356 << 20;

#[test]
fn the_daemon_stays_under_356_mib_with_50000_files_and_4_gib() {
    let _slot = alone();
    let mut repo = TestRepo::new("memory");
    repo.settings("memory: 256MiB\n").mount();
    let check = |repo: &TestRepo, when: &str| {
        let peak = repo.peak_rss();
        eprintln!("{when}: peak resident memory {} MiB", peak >> 20);
        assert!(peak < BOUND, "{when}: the daemon used {peak} bytes, {BOUND} are allowed");
    };
    let start = Instant::now();
    for dir in 0..FILES / 500 {
        fs::create_dir(repo.live().join(format!("d{dir}"))).expect("made");
    }
    in_two_threads(&|i| {
        fs::write(repo.live().join(name(i)), content(i)).unwrap_or_else(|e| panic!("{}: {e}", name(i)))
    });
    eprintln!("{FILES} files written in {:?}", start.elapsed());
    check(&repo, "after writing the files");
    let start = Instant::now();
    write_noise(&repo.live().join("big"), 11, BIG);
    eprintln!("4 GiB written in {:?}", start.elapsed());
    check(&repo, "after writing 4 GiB");
    repo.settle();
    check(&repo, "after sync");
    let start = Instant::now();
    in_two_threads(&|i| {
        let have = fs::read(repo.live().join(name(i))).unwrap_or_else(|e| panic!("{}: {e}", name(i)));
        assert!(have == content(i), "{} isn't what was written", name(i));
    });
    check_noise(&repo.live().join("big"), 11, BIG);
    eprintln!("read back in {:?}", start.elapsed());
    check(&repo, "after reading all back");
    repo.umount();
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    in_two_threads(&|i| {
        let have = fs::read(repo.live().join(name(i))).unwrap_or_else(|e| panic!("{}: {e}", name(i)));
        assert!(have == content(i), "{} isn't what was written, after a remount", name(i));
    });
    check_noise(&repo.live().join("big"), 11, BIG);
    check(&repo, "after reading all back in a fresh mount");
}

fn in_two_threads(work: &(dyn Fn(u64) + Sync)) {
    thread::scope(|s| {
        for part in 0..2 {
            s.spawn(move || (part..FILES).step_by(2).for_each(work));
        }
    });
}

fn name(i: u64) -> String {
    format!("d{}/file {i}", i / 500)
}

fn content(i: u64) -> Vec<u8> {
    let len = (i * 7919 % 9001) as usize;
    if i.is_multiple_of(3) { noise(i, len) } else { prose(i, len) }
}
