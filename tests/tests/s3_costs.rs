//! What a bucket costs: requests by kind, counted by the mount and by a proxy that has nothing to do with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{copy_real_files, write_noise};

const LONG: Duration = Duration::from_secs(600);
const ALL: [&str; 7] = ["get", "get_range", "stat", "put_new", "put", "delete", "list"];

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn source(name: &str, count: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, count);
    (dir, tree)
}

fn forget_local_state(repo: &TestRepo) {
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
}

fn list_all(dir: &Path) -> usize {
    let done = run(Command::new("find").args([text(dir), "-printf", "%p %s %m\n"]), LONG);
    assert!(done.status.success(), "{}", done.stderr);
    done.stdout.lines().count()
}

#[test]
fn a_tree_costs_few_requests_and_idling_almost_none() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let files = 12_000;
    let (_source, tree) = source("s3-cost", files);
    let mut repo = TestRepo::in_bucket("s3-cost", &url_at(proxy.port, "cost"));
    repo.mount();
    let puts = |proxy: &Proxy| proxy.count("PUT");
    let before = puts(&proxy);
    must("cp", &["-a", text(&tree), text(&repo.live().join("tree"))], LONG);
    fs::create_dir(repo.snapshot("one")).expect("a snapshot");
    repo.sync();
    let put = puts(&proxy) - before;
    let own = repo.requests(&["put_new", "put"]);
    eprintln!("copying {files} files: {put} PUTs ({own} by its own count)");
    assert!(put < 60, "copying {files} files made {put} PUTs");

    // What happens once a minute may fall into it.
    let idle = Duration::from_secs(if soak() { 120 } else { 15 });
    let (all, lists) = (proxy.requests(), proxy.count("LIST"));
    std::thread::sleep(idle);
    let (made, listed) = (proxy.requests() - all, proxy.count("LIST") - lists);
    eprintln!("idle for {idle:?}: {made} requests, {listed} listings");
    assert!(made <= 1 + idle.as_secs() / 60 && listed == 0, "an idle writer made {made} requests, {listed} listings");
    repo.umount();

    let all = proxy.requests();
    repo.mount();
    fs::metadata(repo.live().join("tree")).expect("the tree");
    let warm = proxy.requests() - all;
    eprintln!("mounting again: {warm} requests");
    assert!(warm <= 20, "mounting with what is here made {warm} requests");
    repo.umount();

    forget_local_state(&repo);
    repo.mount();
    let gets = proxy.count("GET");
    let listed = list_all(&repo.snapshot("one"));
    let made = proxy.count("GET") - gets;
    eprintln!("listing {listed} entries of a snapshot from cold: {made} GETs");
    assert!(made < 60, "listing the snapshot from cold made {made} GETs");
    let counted = repo.requests(&ALL);
    assert!(counted > 0);
    repo.umount();
}

/// With 50 ms added to each request. Figures are printed; the bounds are those that a busy machine holds.
#[test]
fn latency_is_hidden_by_reading_ahead() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let (_source, tree) = source("s3-latency", 3_000);
    write_noise(&tree.join("mixed.bin"), 9, 256 << 20);
    let mut repo = TestRepo::in_bucket("s3-latency", &url_at(proxy.port, "latency"));
    proxy.plan(|_| Trick::Late(Duration::from_millis(50)));
    repo.mount();
    let begun = Instant::now();
    must("cp", &["-a", text(&tree), text(&repo.live().join("tree"))], LONG);
    let copied = begun.elapsed();
    repo.umount();
    forget_local_state(&repo);
    repo.mount();
    let begun = Instant::now();
    must("dd", &[&format!("if={}", text(&repo.live().join("tree/mixed.bin"))), "of=/dev/null", "bs=1M"], LONG);
    let rate = 256.0 / begun.elapsed().as_secs_f64();
    fs::remove_file(repo.live().join("tree/mixed.bin")).expect("removes");
    let begun = Instant::now();
    must("sh", &["-c", &format!("tar cf - -C {} . | cat > /dev/null", text(&repo.live().join("tree")))], LONG);
    let files = 3_000.0 / begun.elapsed().as_secs_f64();
    eprintln!("with 50 ms a request: cp -a {copied:?}, cold cat {rate:.0} MiB/s, cold tar {files:.0} files/s");
    assert!(rate > 20.0, "cold cat ran at {rate:.1} MiB/s");
    assert!(files > 200.0, "cold tar ran at {files:.0} files/s");
    repo.umount();
}
