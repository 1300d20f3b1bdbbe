//! Directories that are exempted from encryption: what lies in them is stored in clear, and nothing else, ever.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use axiomfs_tests::proxy::Proxy;
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, scratch, text};
use axiomfs_tests::rng::prose;
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::search::{clear_text, clear_text_in_any_form};
use rustix::fs::{XattrFlags, lsetxattr};
use serde_json::Value;

const CHAINS: &str = "chains:\n  default: [{plugin: zstd, level: 1}, {plugin: aes-256-gcm}]\n  open: [{plugin: lz4}]\n";
const EXEMPT: &str = "routes: [{under: /pub, chain: open, allow_unencrypted: true}]\n";
/// So that only the test says when something is stored.
const SELDOM: &str = "checkpoint: {interval: 1h}\ncommit: {interval: 1h}\n";
const QUICK: &str = "checkpoint: {interval: 200ms}\ncommit: {interval: 1h}\n";

fn stat(repo: &TestRepo, path: &Path) -> Value {
    let done = repo.axiomfs(&["stat", text(path), "--json"]);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).expect("JSON")
}

/// The seals of a file's frames, without repetition; an empty one is none.
fn seals(repo: &TestRepo, path: &Path) -> Vec<String> {
    let stat = stat(repo, path);
    let frames = stat["frames"].as_array().expect("a list");
    let mut seals: Vec<String> = frames.iter().map(|f| f["seal"].as_str().expect("text").to_owned()).collect();
    seals.sort();
    seals.dedup();
    assert!(!seals.is_empty(), "{stat}");
    seals
}

const SEALED: &str = "aes-256-gcm/1";

/// A file whose bytes compress with nothing that finds only repetitions, so that they stand in the store as they are.
fn secret(number: u64, len: usize) -> Vec<u8> {
    let mut rng = axiomfs_tests::rng::Rng::new(number);
    (0..len)
        .map(|_| b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"[rng.below(64) as usize])
        .collect()
}

/// The files of `dir` that stand in the store in clear.
fn found(store: &Path, dir: &Path) -> usize {
    clear_text(store, &[dir.to_owned()]).len()
}

#[test]
fn only_what_lies_in_an_exempted_directory_is_ever_stored_in_clear() {
    let _slot = beside_others();
    let outside = scratch("clear-originals");
    let original = |name: &str, number: u64, len: usize| -> PathBuf {
        let dir = outside.path().join(name);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("data"), secret(number, len)).expect("written");
        dir
    };
    let (open, sealed) = (original("open", 1, 700_000), original("sealed", 2, 700_000));
    let (left, linked) = (original("left", 3, 600_000), original("linked", 4, 600_000));
    let small = original("small", 5, 20_000);
    let copied = original("copied", 6, 600_000);

    let mut repo = TestRepo::new("clear");
    // Both switches, or the settings are refused.
    for (route, word) in [
        ("routes: [{under: /pub, chain: open}]\n", "encryption"),
        ("routes: [{match: \"*.pub\", chain: open, allow_unencrypted: true}]\n", "under"),
        ("", "encryption"),
    ] {
        let refused = repo.settings(&format!("{CHAINS}{route}")).try_mount(&[]).expect_err("refused");
        assert!(refused.contains(word), "{route}: {refused}");
    }
    repo.settings(&format!("{CHAINS}{EXEMPT}{SELDOM}")).mount();
    let live = repo.live();
    for dir in ["pub", "pub/deep", "own", "own/deep"] {
        fs::create_dir(live.join(dir)).expect("a directory");
    }
    let put =
        |from: &Path, to: &str| fs::write(live.join(to), fs::read(from.join("data")).expect("read")).expect("put");
    put(&open, "pub/open");
    put(&small, "pub/deep/small");
    put(&sealed, "own/sealed");
    // What comes into such a directory for an instant only, before it is stored, never is in clear.
    put(&left, "pub/left");
    fs::rename(live.join("pub/left"), live.join("own/left")).expect("moved out");
    put(&linked, "pub/linked");
    fs::hard_link(live.join("pub/linked"), live.join("own/linked")).expect("linked from outside");
    put(&copied, "own/copied");
    repo.settle();
    assert_eq!(seals(&repo, &live.join("pub/open")), [""]);
    assert_eq!(seals(&repo, &live.join("pub/deep/small")), [""]);
    for name in ["own/sealed", "own/left", "own/linked", "pub/linked", "own/copied"] {
        assert_eq!(seals(&repo, &live.join(name)), [SEALED], "{name}");
    }
    let explained = repo.control_ok("route explain /pub/open");
    assert_eq!(
        (explained["chain"].as_str(), explained["rule"]["allow_unencrypted"].as_bool()),
        (Some("open"), Some(true))
    );
    let shown = repo.axiomfs(&["stat", text(&live.join("pub/open"))]).stdout;
    assert!(shown.contains("in clear"), "{shown}");
    for dir in [&open, &small] {
        assert!(found(&repo.store, dir) > 100, "{} can be read in the store", dir.display());
    }
    for dir in [&sealed, &left, &linked, &copied] {
        assert_eq!(found(&repo.store, dir), 0, "{} stands in the store in clear", dir.display());
    }
    // Names are sealed everywhere.
    let names = outside.path().join("names");
    fs::create_dir(&names).expect("a directory");
    let name = "a name that only the tree should know";
    fs::write(live.join("pub").join(name), secret(7, 5_000)).expect("written");
    fs::write(names.join(name), b"").expect("written");
    repo.settle();
    assert_eq!(found(&repo.store, &names), 0, "a name of an exempted directory stands in the store");

    // A copy inside the mount shares chunks; not with what is sealed.
    let in_clear = live.join("pub/copy");
    fs::copy(live.join("own/copied"), &in_clear).expect("copied in");
    fs::copy(live.join("pub/open"), live.join("own/copy")).expect("copied out");
    repo.settle();
    assert_eq!(
        (seals(&repo, &in_clear), seals(&repo, &live.join("own/copy"))),
        (vec![String::new()], vec![SEALED.into()])
    );

    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.settings(QUICK).mount();
    for (dir, name) in [(&open, "pub/open"), (&small, "pub/deep/small"), (&open, "own/copy"), (&copied, "pub/copy")] {
        assert!(fs::read(repo.live().join(name)).expect("read") == fs::read(dir.join("data")).expect("read"), "{name}");
    }
    repo.umount();
}

#[test]
fn what_leaves_an_exempted_directory_is_stored_anew_and_sealed() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("clear-left");
    repo.settings(&format!("{CHAINS}{EXEMPT}{QUICK}")).mount();
    let live = repo.live();
    fs::create_dir_all(live.join("pub/a/b")).expect("directories");
    fs::create_dir_all(live.join("pub/c")).expect("directories");
    fs::create_dir(live.join("own")).expect("a directory");
    let content = |number: u64| prose(number, 300_000 + 1000 * number as usize);
    let files = ["pub/moved", "pub/a/one", "pub/a/b/two", "pub/linked", "pub/c/stays", "pub/c/grows"];
    for (number, name) in files.iter().enumerate() {
        fs::write(live.join(name), content(number as u64)).expect("written");
    }
    repo.settle();
    for name in files {
        assert_eq!(seals(&repo, &live.join(name)), [""], "{name}");
    }
    fs::create_dir(repo.snapshot("before")).expect("a snapshot");
    fs::rename(live.join("pub/moved"), live.join("own/moved")).expect("a file moves out");
    fs::rename(live.join("pub/a"), live.join("own/a")).expect("a directory moves out");
    fs::hard_link(live.join("pub/linked"), live.join("own/linked")).expect("a link from outside");
    let mut grown = content(5);
    grown.extend_from_slice(&prose(99, 200_000));
    fs::write(live.join("pub/c/grows"), &grown).expect("written");
    repo.settle();
    for name in ["own/moved", "own/a/one", "own/a/b/two", "own/linked", "pub/linked"] {
        assert_eq!(seals(&repo, &live.join(name)), [SEALED], "{name}");
    }
    assert_eq!(seals(&repo, &live.join("pub/c/stays")), [""]);
    assert!(repo.events().contains("left an exempted directory"), "{}", repo.events());
    // One link less: what was sealed stays so.
    fs::remove_file(live.join("own/linked")).expect("removed");
    repo.settle();
    assert_eq!(seals(&repo, &live.join("pub/linked")), [SEALED]);

    // The exemption is taken back: all that is left in the directory is sealed by the next checkpoint, also if nothing is written.
    let token = repo.status()["confirm"].as_str().expect("a token").to_owned();
    let sealed_chains = "version: 1\nchains: {default: [{plugin: zstd, level: 1}, {plugin: aes-256-gcm}]}\n";
    fs::write(repo.mnt.join(".axiomfs/chain.yaml"), sealed_chains).expect("taking back needs no confirmation");
    repo.settle();
    for name in ["pub/c/stays", "pub/c/grows"] {
        assert_eq!(seals(&repo, &live.join(name)), [SEALED], "{name}");
    }
    // To exempt it again on a live mount does.
    let again = format!("version: 1\n{CHAINS}{EXEMPT}");
    let file = repo.dir.join("again.yaml");
    fs::write(&file, &again).expect("written");
    let target = repo.mnt.join(".axiomfs/chain.yaml");
    let done = run(Command::new("cp").args([text(&file), text(&target)]), LIMIT);
    assert!(done.stderr.contains("Operation not permitted"), "not confirmed: {}", done.stderr);
    assert!(!fs::read_to_string(&target).expect("read").contains("allow_unencrypted: true"), "and nothing has changed");
    fs::write(&target, format!("{again}# confirm={token}\n")).expect("confirmed");
    assert!(fs::read_to_string(&target).expect("read").contains("allow_unencrypted: true"), "confirmed");

    let check = |repo: &TestRepo, when: &str| {
        let now = ["own/moved", "own/a/one", "own/a/b/two", "pub/linked", "pub/c/stays"];
        for (number, name) in now.iter().enumerate() {
            let number = [0, 1, 2, 3, 4][number];
            assert!(fs::read(repo.live().join(name)).expect("read") == content(number), "{when}: {name}");
        }
        assert!(fs::read(repo.live().join("pub/c/grows")).expect("read") == grown, "{when}: grows");
        for (number, name) in files.iter().enumerate() {
            let then = fs::read(repo.snapshot("before").join(name)).expect("read");
            assert!(then == content(number as u64), "{when}: {name} in the snapshot");
        }
    };
    check(&repo, "while mounted");
    repo.kill9();
    repo.clear_dead_mount();
    repo.mount();
    check(&repo, "after a kill");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    check(&repo, "from the store alone");
}

/// Text that stands nowhere else, fit for names.
fn name(number: u64) -> String {
    let text = String::from_utf8(secret(number, 40)).expect("text");
    text.replace(['/', '+'], "-")
}

/// A tree whose every word is a secret: names, contents inline and in chunks of their own, targets, attributes.
fn secret_tree(tree: &Path) {
    let deep = tree.join(name(100)).join(name(101));
    fs::create_dir_all(&deep).expect("directories");
    for (number, len) in [(110, 60), (111, 500), (112, 20_000), (113, 1_500_000)] {
        let path = deep.join(name(number));
        fs::write(&path, secret(number, len)).expect("written");
        let (key, value) = (format!("user.{}", name(number + 10)), secret(number + 20, 200));
        lsetxattr(&path, key, &value, XattrFlags::empty()).expect("an attribute");
    }
    symlink(name(140), deep.join(name(141))).expect("a symlink");
}

/// All objects, and all that went over the wire in either direction, as files below `dir`.
fn dump(server: &S3Server, prefix: &str, proxy: &Proxy, dir: &Path) {
    for (object, _) in server.objects(prefix) {
        let path = dir.join(&object);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, server.read(&object)).expect("written");
    }
    let mut methods = Vec::new();
    for exchange in proxy.recorded() {
        let request = &exchange.request;
        for unwanted in ["x-amz-meta-", "x-amz-tagging", "content-disposition", "user-agent: axiomfs/"] {
            assert!(!request.headers.to_lowercase().contains(unwanted), "{}", request.headers);
        }
        let bytes = [request.headers.as_bytes(), &exchange.sent, &exchange.answered].concat();
        fs::write(dir.join(format!("wire-{}", request.number)), bytes).expect("written");
        methods.push(request.kind().to_owned());
    }
    for method in ["PUT", "GET", "LIST"] {
        assert!(methods.iter().any(|known| known == method), "{method} was seen");
    }
}

#[test]
fn in_a_bucket_and_on_the_wire_nothing_is_clear_text_in_any_form() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    proxy.record();
    let (clear, found) = (scratch("clear-originals"), scratch("clear-found"));
    let tree = clear.path().join(name(1));
    secret_tree(&tree);
    let mut repo = TestRepo::without_init("clear-bucket");
    let url = url_at(proxy.port, "clear");
    repo.store = PathBuf::from(&url);
    let (volume, snapshot, renamed) = (name(2), name(3), name(4));
    let made = repo.axiomfs(&["init", &url, "--kdf-memory", "64MiB", "--volume", &volume]);
    assert!(made.status.success(), "{}{}", made.stdout, made.stderr);
    repo.try_mount(&["--volume", &volume]).expect("mounts");
    must("cp", &["-a", text(&tree), text(&repo.live())], LIMIT);
    fs::create_dir(repo.snapshot(&snapshot)).expect("a snapshot");
    repo.sync();
    fs::rename(repo.snapshot(&snapshot), repo.snapshot(&renamed)).expect("renamed");
    repo.control_ok("key rotate");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.try_mount(&["--volume", &volume]).expect("mounts");
    must("diff", &["-r", "--no-dereference", text(&tree), text(&repo.snapshot(&renamed).join(name(1)))], LIMIT);
    repo.umount();
    // What else nobody but us should read: where state is kept here, and what opens it all.
    for secret in [&volume, &snapshot, &renamed, text(&repo.state), "correct horse battery staple"] {
        fs::write(clear.path().join(format!("{:p}", secret.as_ptr())), secret).expect("written");
    }
    dump(server, "clear", &proxy, found.path());
    let leaks = clear_text_in_any_form(found.path(), &[clear.path().to_owned()]);
    assert!(leaks.is_empty(), "{} runs of clear text, such as {:?}", leaks.len(), &leaks[..leaks.len().min(5)]);
    // The search finds what is there: an object's own bytes count as clear text once they are called so.
    let (pack, _) = server.objects("clear").into_iter().find(|(name, _)| name.contains("/packs/")).expect("a pack");
    fs::write(clear.path().join("pack"), &server.read(&pack)[100..200]).expect("written");
    let leaks = clear_text_in_any_form(found.path(), &[clear.path().to_owned()]);
    assert!(leaks.iter().any(|leak| leak.object.ends_with(&pack)), "{leaks:?}");
}
