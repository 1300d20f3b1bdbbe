//! What a round trip of 50 ms costs: little, since what comes next is under way before it is asked for.
//!
//! The goals on a quiet machine are 200 MiB/s of a cold `cat`, 2,000 files/s of a cold `tar` and a `cp -a` as fast as into a directory within a
//! tenth. Here program, proxy and server share what processors there are with whatever else runs, so the bounds are an eighth and a
//! half of the goals, and what latency itself costs is held against the same without it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::must;
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{copy_real_files, write_mixed};

const LONG: Duration = Duration::from_secs(600);
const DELAY: Duration = Duration::from_millis(50);

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Mounts with nothing local, does the work, and says how long that took; and the daemon's peak of memory.
fn cold(repo: &mut TestRepo, work: impl FnOnce(&Path)) -> (f64, u64) {
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    let took = seconds(|| work(&repo.live()));
    let peak = repo.peak_rss();
    repo.umount();
    (took, peak)
}

fn cat(live: &Path) {
    must("dd", &[&format!("if={}", text(&live.join("large.bin"))), "of=/dev/null", "bs=1M"], LONG);
}

fn tar(live: &Path) {
    must("sh", &["-c", &format!("tar cf - -C {} tree | cat > /dev/null", text(live))], LONG);
}

#[test]
fn latency_is_hidden_by_reading_ahead() {
    let _slot = alone();
    let (files, mib) = if soak() { (12_000, 512) } else { (6_000, 192) };
    let source = scratch("s3-latency-source");
    let tree = source.path().join("tree");
    copy_real_files(&tree, files);
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-latency", &url_at(proxy.port, "latency"));
    let mut local = TestRepo::new("s3-latency-local");
    let copy =
        |repo: &TestRepo| seconds(|| drop(must("cp", &["-a", text(&tree), text(&repo.live().join("tree"))], LONG)));
    local.mount();
    let here = copy(&local);
    local.umount();
    proxy.plan(|_| Trick::Late(DELAY));
    repo.mount();
    let there = copy(&repo);
    write_mixed(&repo.live().join("large.bin"), &tree, 9, mib << 20);
    repo.umount();
    let mut took = Vec::new();
    for delay in [Duration::ZERO, DELAY] {
        proxy.plan(move |_| if delay.is_zero() { Trick::Pass } else { Trick::Late(delay) });
        let before = proxy.requests();
        let (cat, cat_peak) = cold(&mut repo, cat);
        let (tar, tar_peak) = cold(&mut repo, tar);
        let (rate, pace) = (mib as f64 / cat, files as f64 / tar);
        let requests = proxy.requests() - before;
        eprintln!("{delay:?} a request: cold cat {rate:.0} MiB/s, cold tar {pace:.0} files/s, {requests} requests");
        assert!(cat_peak.max(tar_peak) < 356 << 20, "the daemon took {cat_peak} and {tar_peak} bytes");
        took.push((rate, pace));
    }
    eprintln!("cp -a of {files} files: {here:.2} s into a directory, {there:.2} s into the bucket");
    let [without, with] = took[..] else { panic!("two rounds were made") };
    assert!(with.0 > 25.0, "cold cat ran at {:.0} MiB/s", with.0);
    assert!(with.1 > 1000.0, "cold tar ran at {:.0} files/s", with.1);
    assert!(with.0 > without.0 * 0.4 && with.1 > without.1 * 0.4, "{with:?} with latency, {without:?} without");
    assert!(there < here * 1.5 + 0.5, "cp -a took {there:.2} s, into a directory {here:.2} s");
}
