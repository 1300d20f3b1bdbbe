//! Several volumes in one repository: each its own tree and writer, and chunks that they share.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axiomfs_tests::observe::same_for_diff;
use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::run::{must, run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{copy_real_files, write_noise};

const LONG: Duration = Duration::from_secs(600);
/// Heads of other volumes are asked for so often while data comes in.
const REFRESH: Duration = Duration::from_secs(10);
const LARGE: u64 = 12 << 20;
/// Commits only when asked to.
const ASKED: &str = "checkpoint: {interval: 200ms, bytes: 1MiB}\ncommit: {interval: 1h, bytes: 1GiB}\n";

fn source(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, 200);
    write_noise(&tree.join("large.bin"), 11, LARGE);
    (dir, tree)
}

/// A mount of another volume: its own local directories.
fn second(first: &TestRepo, name: &str) -> TestRepo {
    let made = first.axiomfs(&["volume", "create", text(&first.store), "b"]);
    assert!(made.status.success(), "{}", made.stderr);
    first.elsewhere(&first.store, name)
}

fn mount(repo: &mut TestRepo, volume: &str, more: &[&str]) {
    repo.try_mount(&[&["--volume", volume], more].concat()).unwrap_or_else(|e| panic!("{e}"));
}

/// What is copied in is in a checkpoint, and in no head.
fn copy_uncommitted(tree: &Path, repo: &TestRepo) {
    let head = repo.status_number("head/sequence");
    must("cp", &["-a", text(tree), text(&repo.live().join("tree"))], LONG);
    wait_for("a checkpoint has it", LONG, || repo.status_number("live/layers") == 1);
    assert_eq!(
        repo.status_number("head/sequence"),
        head,
        "else what is taken from another volume is committed already"
    );
}

/// Both write at once; then each writes what the other has stored, and that adds next to nothing. Whoever reads one of them
/// needs nothing but the store.
fn share(mut a: TestRepo, name: &str, stored: impl Fn() -> u64) {
    let (_source, tree) = source(name);
    let (_own, own) = source(&format!("{name}-own"));
    write_noise(&own.join("large.bin"), 12, LARGE);
    let mut b = second(&a, &format!("{name}-b"));
    b.settings(ASKED);
    mount(&mut a, "main", &[]);
    mount(&mut b, "b", &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| must("cp", &["-a", text(&tree), text(&a.live().join("tree"))], LONG));
        must("cp", &["-a", text(&own), text(&b.live().join("own"))], LONG);
    });
    a.sync();
    b.sync();
    assert!(!b.live().join("tree").exists() && !a.live().join("own").exists(), "each has a tree of its own");
    let before = stored();
    std::thread::sleep(REFRESH);
    copy_uncommitted(&tree, &b);
    b.kill9();
    mount(&mut b, "b", &[]);
    same_for_diff(&tree, &b.live().join("tree"), "a volume");
    must("cp", &["-a", text(&own.join("large.bin")), text(&a.live().join("large.bin"))], LONG);
    a.umount();
    b.umount();
    let added = stored() - before;
    eprintln!("{added} bytes were added to {before}");
    assert!(added < LARGE / 4, "what the other volume has was stored again: {added} bytes");
    for repo in [&a, &b] {
        fs::remove_dir_all(&repo.state).expect("the state can be deleted");
        fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    }
    mount(&mut b, "b", &["--read-only"]);
    same_for_diff(&tree, &b.live().join("tree"), "a volume");
    same_for_diff(&own, &b.live().join("own"), "a volume");
    b.umount();
    mount(&mut a, "main", &[]);
    same_for_diff(&tree, &a.live().join("tree"), "a volume");
    same_for_diff(&own.join("large.bin"), &a.live().join("large.bin"), "a volume");
    a.umount();
}

fn bytes_of_packs(store: &Path) -> u64 {
    let sum = run(Command::new("du").args(["-sb", text(&store.join("packs"))]), LONG).stdout;
    sum.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}

#[test]
fn two_volumes_are_written_at_once_and_share_chunks() {
    let _slot = beside_others();
    let a = TestRepo::new("volumes");
    let store = a.store.clone();
    share(a, "volumes", || bytes_of_packs(&store));
}

#[test]
fn two_volumes_of_a_bucket_are_written_at_once_and_share_chunks() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let a = TestRepo::in_bucket("volumes-s3", &server.url("volumes"));
    share(a, "volumes-s3", || server.objects("volumes/packs").iter().map(|(_, len)| len).sum());
}

/// Writes and commits; how long that took.
fn committed(repo: &TestRepo, seed: u64) -> Duration {
    write_noise(&repo.live().join(format!("noise-{seed}")), seed, 2 << 20);
    let begun = Instant::now();
    repo.sync();
    begun.elapsed()
}

#[test]
fn no_volume_waits_for_one_whose_writer_gets_no_answer() {
    let _slot = alone();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut a = TestRepo::in_bucket("volumes-hang", &url_at(proxy.port, "volumes-hang"));
    let mut b = second(&a, "volumes-hang-b");
    b.store = server.url("volumes-hang").into();
    a.settings("timeout: 30s\ncommit: {interval: 1h}\n");
    b.settings(ASKED);
    mount(&mut a, "main", &[]);
    mount(&mut b, "b", &[]);
    committed(&a, 1);
    let usual = (2..7).map(|seed| committed(&b, seed)).max().unwrap_or_default();
    proxy.plan(|_| Trick::Silence(Duration::from_secs(60)));
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| committed(&a, 100));
        wait_for("a request of the other one hangs", LONG, || proxy.tricks() > 0);
        let meanwhile = (7..12).map(|seed| committed(&b, seed)).max().unwrap_or_default();
        fs::create_dir(b.snapshot("meanwhile")).expect("a snapshot");
        assert!(!hanging.is_finished(), "the other one was to hang all the time");
        eprintln!("commits took at most {usual:?}, beside one that hangs {meanwhile:?}");
        assert!(meanwhile < 3 * usual + Duration::from_secs(1), "{meanwhile:?}, alone {usual:?}");
        proxy.plan(|_| Trick::Pass);
        hanging.join().expect("it goes on");
    });
    b.umount();
    a.umount();
}

/// A writer that was fenced off before it committed what it had taken from another volume.
#[test]
fn what_a_fenced_writer_shared_is_in_the_recovered_snapshot() {
    let _slot = beside_others();
    let (_source, tree) = source("volumes-fenced");
    let mut a = TestRepo::new("volumes-fenced");
    let mut b = second(&a, "volumes-fenced-b");
    mount(&mut a, "main", &[]);
    must("cp", &["-a", text(&tree), text(&a.live().join("tree"))], LONG);
    a.umount();
    b.settings(ASKED);
    mount(&mut b, "b", &[]);
    fs::write(b.live().join("first"), b"x").expect("written");
    b.sync();
    let before = bytes_of_packs(&a.store);
    copy_uncommitted(&tree, &b);
    b.kill9();
    let mut c = b.elsewhere(&b.store, "volumes-fenced-c");
    mount(&mut c, "b", &["--takeover"]);
    fs::write(c.live().join("second"), b"x").expect("written");
    c.umount();
    let places = ["--state", text(&b.state), "--cache", text(&b.cache)];
    let done = b.axiomfs(&[&["recover", text(&b.store), "--volume", "b"], &places[..]].concat());
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);
    let added = bytes_of_packs(&a.store) - before;
    assert!(added < LARGE / 4, "what the other volume has was stored again: {added} bytes");
    mount(&mut c, "b", &["--read-only"]);
    let listed = fs::read_dir(c.mnt.join("snapshots")).expect("listed");
    let snapshots: Vec<_> = listed.map(|entry| entry.expect("read").path()).collect();
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
    same_for_diff(&tree, &snapshots[0].join("tree"), "a volume");
    c.umount();
}

#[test]
fn volumes_are_made_and_listed_by_command() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("volumes-made");
    let store = text(&repo.store).to_owned();
    let refused = repo.try_mount(&["--volume", "photos"]).expect_err("there is none");
    assert!(refused.contains("photos") && refused.contains("volume create"), "{refused}");
    for name in ["photos", "music"] {
        let made = repo.axiomfs(&["volume", "create", &store, name]);
        assert!(made.status.success(), "{}", made.stderr);
    }
    let again = repo.axiomfs(&["volume", "create", &store, "music"]);
    assert!(again.code() == 1 && again.stderr.contains("there is a volume of that name"), "{}", again.stderr);
    let listed = repo.axiomfs(&["volume", "list", &store]);
    assert_eq!(listed.stdout.lines().collect::<Vec<_>>(), ["main", "photos", "music"]);
    mount(&mut repo, "photos", &[]);
    repo.umount();
}
