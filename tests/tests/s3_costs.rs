//! What a bucket costs: requests by kind, counted by the mount and by a proxy that has nothing to do with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axiomfs_tests::proxy::Proxy;
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::copy_real_files;

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

    // The first one leaves in the cache directory what a mount begins with.
    let warm = ["first", "second"].map(|time| {
        let all = proxy.requests();
        repo.mount();
        let made = proxy.requests() - all;
        fs::metadata(repo.live().join("tree")).expect("the tree");
        repo.umount();
        eprintln!("mounting again for the {time} time: {made} requests");
        made
    });
    assert!(warm[1] < 10, "mounting with a warm cache made {} requests", warm[1]);

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
