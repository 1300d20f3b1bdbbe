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

fn source(name: &str, count: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, count);
    (dir, tree)
}

fn list_all(dir: &Path) -> usize {
    let done = run(Command::new("find").args([text(dir), "-printf", "%p %s %m\n"]), LONG);
    assert!(done.status.success(), "{}", done.stderr);
    done.stdout.lines().count()
}

/// Each kind of request as the proxy sees it, and as the mount's metrics name it.
const KINDS: [(&str, &[&str]); 5] = [
    ("GET", &["get", "get_range"]),
    ("HEAD", &["stat"]),
    ("PUT", &["put_new", "put"]),
    ("DELETE", &["delete"]),
    ("LIST", &["list"]),
];

/// How many requests of each kind came so far.
fn counts(proxy: &Proxy) -> [u64; 5] {
    KINDS.map(|(kind, _)| proxy.count(kind))
}

/// What the mount counted since it began is what the proxy saw since then, kind by kind.
fn agrees(repo: &TestRepo, proxy: &Proxy, before: [u64; 5]) {
    let own = KINDS.map(|(_, names)| repo.requests(names));
    let now = counts(proxy);
    let seen: Vec<u64> = now.iter().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!(own.to_vec(), seen, "by its own count and by the proxy's, of {:?}", KINDS.map(|(kind, _)| kind));
    assert_eq!(now.iter().sum::<u64>(), proxy.requests(), "there are no other kinds");
}

#[test]
fn a_tree_costs_few_requests_and_the_mounts_own_count_is_right() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let files = 12_000;
    let (_source, tree) = source("s3-cost", files);
    let mut repo = TestRepo::in_bucket("s3-cost", &url_at(proxy.port, "cost"));
    let mut before = counts(&proxy);
    repo.mount();
    let puts = proxy.count("PUT");
    must("cp", &["-a", text(&tree), text(&repo.live().join("tree"))], LONG);
    fs::create_dir(repo.snapshot("one")).expect("a snapshot");
    repo.settle();
    let put = proxy.count("PUT") - puts;
    eprintln!("copying {files} files: {put} PUTs");
    assert!(put < 60, "copying {files} files made {put} PUTs");
    agrees(&repo, &proxy, before);
    repo.umount();

    // The first time from what its writing left in the cache directory, then from what mounting did.
    for time in ["first", "second"] {
        before = counts(&proxy);
        let all = proxy.requests();
        repo.mount();
        fs::metadata(repo.live().join("tree")).expect("the tree");
        let made = proxy.requests() - all;
        eprintln!("mounting again for the {time} time: {made} requests");
        assert!(made < 10, "mounting with a warm cache for the {time} time made {made} requests");
        agrees(&repo, &proxy, before);
        repo.umount();
    }

    repo.forget_local_state();
    before = counts(&proxy);
    repo.mount();
    let gets = proxy.count("GET");
    let listed = list_all(&repo.snapshot("one"));
    let made = proxy.count("GET") - gets;
    eprintln!("listing {listed} entries of a snapshot from cold: {made} GETs");
    assert!(made < 60, "listing the snapshot from cold made {made} GETs");
    assert!(listed >= files, "{listed} entries were listed");
    agrees(&repo, &proxy, before);
    repo.umount();
}
