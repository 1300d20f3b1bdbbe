//! The same promises with the store in a bucket: a real S3 server, real requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axiomfs_tests::observe::{self, same_for_diff};
use axiomfs_tests::proxy::{Proxy, Seen, Trick};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::{S3Server, SECRET_KEY, url_at};
use axiomfs_tests::source::{copy_real_files, write_noise};

const LONG: Duration = Duration::from_secs(600);
const QUICK: &str = "log: {max: 64MiB, segment: 4MiB}\n\
                     checkpoint: {interval: 200ms, bytes: 4MiB}\n\
                     commit: {interval: 500ms, bytes: 2MiB}\n\
                     timeout: 9s\n";

/// A few thousand files in `scripts/test`, the whole in `scripts/soak`.
fn files() -> usize {
    if soak() { 10_000 } else { 2_000 }
}

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn same(want: &Path, have: &Path, when: &str) {
    same_for_diff(want, have, when);
    observe::same(want, have, when);
}

fn source(name: &str, count: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch(name);
    let tree = dir.path().join("tree");
    copy_real_files(&tree, count);
    (dir, tree)
}

fn bytes_in(server: &S3Server, prefix: &str) -> u64 {
    server.objects(prefix).iter().map(|(_, len)| len).sum()
}

#[test]
fn a_tree_and_a_large_file_come_back_from_a_bucket_and_a_second_copy_is_almost_free() {
    let _slot = alone();
    let server = S3Server::shared();
    let (_source, tree) = source("s3-source", files());
    write_noise(&tree.join("big.bin"), 42, if soak() { 512 << 20 } else { 64 << 20 });
    let mut repo = TestRepo::in_bucket("s3-tree", &server.url("tree"));
    repo.mount();
    must("cp", &["-a", text(&tree), text(&repo.live().join("one"))], LONG);
    fs::create_dir(repo.snapshot("first")).expect("a snapshot");
    same(&tree, &repo.live().join("one"), "after cp -a");
    repo.umount();
    let stored = bytes_in(server, "tree");
    repo.forget_local_state();
    repo.mount();
    same(&tree, &repo.snapshot("first").join("one"), "from empty caches");
    must("cp", &["-a", text(&tree), text(&repo.live().join("two"))], LONG);
    repo.umount();
    let added = bytes_in(server, "tree") - stored;
    assert!(added * 100 < stored, "a second copy added {added} bytes to {stored}");
    repo.forget_local_state();
    repo.mount();
    same(&tree, &repo.live().join("two"), "the second copy, from empty caches");
    repo.umount();
    nothing_clear(server, &tree);
}

/// No 16 bytes of a file's contents, and no secret, stand in the bucket.
fn nothing_clear(server: &S3Server, tree: &Path) {
    let needle = fs::read(tree.join("big.bin")).expect("the source");
    let needles: Vec<&[u8]> = needle.chunks(4 << 20).map(|chunk| &chunk[..16]).collect();
    for (name, _) in server.objects("tree") {
        let bytes = server.read(&name);
        for needle in needles.iter().chain([&SECRET_KEY.as_bytes()]) {
            assert!(!bytes.windows(needle.len()).any(|window| window == *needle), "{name} holds clear text");
        }
    }
}

#[test]
fn what_was_written_to_a_bucket_survives_kills_and_swaps_under_load() {
    let _slot = alone();
    let server = S3Server::shared();
    let (_source, tree) = source("s3-kills", 300);
    let mut repo = TestRepo::in_bucket("s3-kills", &server.url("kills"));
    repo.settings(QUICK).mount();
    let kills = if soak() { 50 } else { 10 };
    for kill in 0..kills {
        let to = repo.live().join(format!("copy-{kill}"));
        must("cp", &["-a", text(&tree), text(&to)], LONG);
        if kill % 2 == 0 {
            repo.control_ok(&format!("set zstd level={}", 1 + kill % 9));
        } else {
            fs::create_dir(repo.snapshot(&format!("s{kill}"))).expect("a snapshot");
        }
        repo.kill9();
        repo.mount();
        same(&tree, &repo.live().join(format!("copy-{kill}")), &format!("after kill {kill}"));
    }
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    for kill in 0..kills {
        same(&tree, &repo.live().join(format!("copy-{kill}")), "from the bucket alone");
        if kill % 2 == 1 {
            same(&tree, &repo.snapshot(&format!("s{kill}")).join(format!("copy-{kill}")), "a snapshot");
        }
    }
    repo.umount();
}

#[test]
fn mistakes_with_a_bucket_are_answered_by_one_line() {
    let server = S3Server::shared();
    let repo = TestRepo::in_bucket("s3-mistakes", &server.url("mistakes"));
    let before = server.objects("mistakes");
    let again = repo.axiomfs(&["init", text(&repo.store)]);
    assert!(again.code() == 1 && again.stderr.contains("holds a repository already"), "{}", again.stderr);
    let nowhere = url_at(server.port, "elsewhere").replace("vault", "no-such-bucket");
    let missing = repo.axiomfs(&["snapshot", "list", &nowhere]);
    assert!(missing.code() == 1 && missing.stderr.contains("no-such-bucket"), "{}", missing.stderr);
    let nothing = repo.axiomfs(&["snapshot", "list", &server.url("empty")]);
    assert!(nothing.code() == 1 && nothing.stderr.contains("is not an axiomfs repository"), "{}", nothing.stderr);
    let wrong = repo.axiomfs(&["init", "s3://vault/x?regoin=y"]);
    assert!(wrong.code() == 2 && wrong.stderr.contains("regoin"), "{}", wrong.stderr);
    let mut denied = repo.command(&["snapshot", "list", text(&repo.store)]);
    let denied = run(denied.env("AWS_SECRET_ACCESS_KEY", "wrong"), LONG);
    assert!(denied.code() == 1 && denied.stderr.contains("credentials"), "{}", denied.stderr);
    assert_eq!(server.objects("mistakes"), before, "nothing was changed");
}

#[test]
fn a_server_that_overwrites_is_refused_unless_the_user_insists() {
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    proxy.plan(|_| Trick::PretendSuccess);
    let url = url_at(proxy.port, "overwrites");
    let mut repo = TestRepo::without_init("s3-probe");
    repo.store = PathBuf::from(&url);
    let refused = repo.axiomfs(&["init", &url, "--kdf-memory", "64MiB"]);
    assert!(refused.code() == 1 && refused.stderr.contains("--unsafe-single-writer"), "{}", refused.stderr);
    assert_eq!(server.objects("overwrites"), [], "nothing is left behind");
    let made = repo.axiomfs(&["init", &url, "--kdf-memory", "64MiB", "--unsafe-single-writer"]);
    assert!(made.status.success(), "{}", made.stderr);
    let config = server.read("overwrites/config");
    let error = repo.try_mount(&[]).expect_err("a mount to write is refused");
    assert!(error.contains("--unsafe-single-writer"), "{error}");
    assert_eq!(server.read("overwrites/config"), config, "the probe harms nothing");
    repo.try_mount(&["--unsafe-single-writer"]).expect("insisting helps");
    fs::write(repo.live().join("file"), b"text").expect("writes");
    repo.umount();
    repo.try_mount(&["--read-only"]).expect("reading needs no probe");
    assert_eq!(fs::read(repo.live().join("file")).expect("reads"), b"text");
    repo.umount();
}

#[test]
fn classes_and_encryption_by_the_server_are_asked_for_by_kind_of_object() {
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut repo = TestRepo::in_bucket("s3-class", &url_at(proxy.port, "class"));
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let noted = seen.clone();
    proxy.plan(move |request| {
        if request.method == "PUT" {
            noted.lock().expect("no panic").push(request.clone());
        }
        Trick::Pass
    });
    repo.settings("s3: {storage_class: {data: STANDARD_IA, metadata: STANDARD}}\n").mount();
    write_noise(&repo.live().join("file"), 3, 8 << 20);
    repo.umount();
    let mut data = 0;
    for request in seen.lock().expect("no panic").iter() {
        let len: u64 = request.header("content-length").and_then(|len| len.parse().ok()).expect("a length");
        // All of the file's bytes are in packs of data, which are large here; those of the tree are small.
        let is_data = request.target.contains("/packs/") && len > 1 << 20;
        let expected = if is_data { "STANDARD_IA" } else { "STANDARD" };
        data += usize::from(is_data);
        let class = request.header("x-amz-storage-class");
        assert_eq!(class.as_deref(), Some(expected), "{} of {len} bytes", request.target);
    }
    assert!(data > 0, "packs of data were put");
    for (setting, algorithm, key) in [("s3", "AES256", None), ("{kms: my-key}", "aws:kms", Some("my-key"))] {
        // The server here has no keys to encrypt with: that it was asked is what can be seen.
        let asked: Arc<Mutex<Option<Seen>>> = Arc::default();
        let noted = asked.clone();
        proxy.plan(move |request| match request.method.as_str() {
            "PUT" => {
                *noted.lock().expect("no panic") = Some(request.clone());
                Trick::Refuse(400, "InvalidRequest")
            }
            _ => Trick::Pass,
        });
        let config = repo.dir.join("sse.yaml");
        fs::write(&config, format!("version: 1\ns3: {{encryption: {setting}}}\n")).expect("settings");
        let url = url_at(proxy.port, "encrypted");
        let refused = repo.axiomfs(&["init", &url, "--config", text(&config), "--kdf-memory", "64MiB"]);
        assert_eq!(refused.code(), 1, "{}", refused.stderr);
        let request = asked.lock().expect("no panic").clone().expect("a PUT");
        assert_eq!(request.header("x-amz-server-side-encryption").as_deref(), Some(algorithm));
        assert_eq!(request.header("x-amz-server-side-encryption-aws-kms-key-id").as_deref(), key);
    }
}
