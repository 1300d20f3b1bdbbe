//! Passphrases and sealing keys from the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::{must, wait_for};
use serde_json::Value;

#[test]
fn passphrases_come_and_go_and_a_new_epoch_seals_what_follows() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("keys");
    repo.mount();
    fs::write(repo.live().join("before"), prose(1, 300_000)).expect("written");
    repo.umount();
    let secret = |name: &str, words: &str| {
        let path = repo.dir.join(name);
        fs::write(&path, words).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("for the owner only");
        path
    };
    let (second, third) = (secret("second", "battery staple\n"), secret("third", "tr0ub4dor\n"));
    let store = text(&repo.store).to_owned();
    let run = |args: &[&str]| {
        let done = repo.axiomfs(&[&["key"], args, &["--json"]].concat());
        assert!(done.status.success(), "{args:?}: {}{}", done.stdout, done.stderr);
        serde_json::from_str::<Value>(&done.stdout).expect("JSON")
    };
    let refused = |args: &[&str]| {
        let done = repo.axiomfs(&[&["key"], args].concat());
        assert_eq!(done.code(), 1, "{args:?}: {}{}", done.stdout, done.stderr);
        done.stderr
    };
    let started = now();
    let listed = || run(&["list", &store])["keys"].as_array().expect("a list").len();
    let first = run(&["list", &store])["keys"][0]["id"].as_str().expect("an id").to_owned();
    let added = run(&["add", &store, "--new-passphrase-file", text(&second)])["id"].clone();
    assert_eq!(listed(), 2);
    assert!(refused(&["remove", &store, &first]).contains("this passphrase opens"));
    assert!(refused(&["rotate", &store, "--passphrase-file", text(&third)]).contains("wrong passphrase"));
    let changed = run(&["passwd", &store, "--passphrase-file", text(&second), "--new-passphrase-file", text(&third)]);
    assert_eq!(listed(), 2);
    assert!(refused(&["rotate", &store, "--passphrase-file", text(&second)]).contains("wrong passphrase"));
    assert_eq!(run(&["rotate", &store, "--passphrase-file", text(&third)])["epoch"], 2);
    run(&["remove", &store, &first, "--passphrase-file", text(&third)]);
    assert_eq!(listed(), 1);
    // The old passphrase, which is in the environment, no longer mounts; the new one does, and reads all.
    let error = repo.try_mount(&[]).expect_err("its passphrase was taken away");
    assert!(error.contains("wrong passphrase"), "{error}");
    repo.try_mount(&["--passphrase-file", text(&third)]).unwrap_or_else(|e| panic!("{e}"));
    assert!(fs::read(repo.live().join("before")).expect("read") == prose(1, 300_000));
    fs::write(repo.live().join("after"), prose(2, 300_000)).expect("written");
    repo.settle();
    let epoch = |name: &str| {
        let done = repo.axiomfs(&["stat", text(&repo.live().join(name)), "--json"]);
        serde_json::from_str::<Value>(&done.stdout).expect("JSON")["frames"][0]["epoch"].clone()
    };
    assert_eq!((epoch("before"), epoch("after")), (Value::from(1), Value::from(2)));
    let added = added.as_str().expect("an id");
    let expected = [
        ("passphrase added".to_owned(), "begun"),
        (format!("passphrase added, key {added}"), "ok"),
        (format!("passphrase of key {first} removed"), "begun"),
        (format!("passphrase of key {first} removed"), "Could not remove the key: "),
        (format!("passphrase of key {added} changed"), "begun"),
        (
            format!("passphrase of key {added} changed, key {} took its place", changed["id"].as_str().expect("an id")),
            "ok",
        ),
        ("sealing epoch 2 made".to_owned(), "ok"),
        (format!("passphrase of key {first} removed"), "begun"),
        (format!("passphrase of key {first} removed"), "ok"),
    ];
    check_changes(&repo, &started, &expected);
    repo.control_ok("audit verify");
    repo.umount();
    // The next mount knows that they are in the log, and so does one of another machine.
    fs::remove_dir_all(&repo.state).expect("removed");
    repo.try_mount(&["--passphrase-file", text(&third)]).unwrap_or_else(|e| panic!("{e}"));
    std::thread::sleep(Duration::from_secs(3));
    check_changes(&repo, &started, &expected);
    repo.umount();
}

fn now() -> String {
    must("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"], LIMIT).trim().to_owned()
}

/// The log of the mount has these changes of keys: numbered from 1, by us, in the time since `started`.
fn check_changes(repo: &TestRepo, started: &str, expected: &[(String, &str)]) {
    let carried = || -> Vec<Value> {
        let lines = audit(repo).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
        lines.into_iter().filter(|line| line["action"] == "key change").collect()
    };
    wait_for("the log has them", LIMIT, || carried().len() >= expected.len());
    let carried = carried();
    assert_eq!(carried.len(), expected.len(), "{carried:?}");
    let mut since = started.replace('T', " ");
    for (i, (line, (what, result))) in carried.iter().zip(expected).enumerate() {
        assert_eq!(line["subject"], format!("{}: {what}", i + 1), "{carried:?}");
        assert!(line["result"].as_str().is_some_and(|text| text.starts_with(result)), "{line}");
        assert!(
            line["uid"] == 0 && line["pid"].as_u64().is_some_and(|pid| pid > 1 && pid != u64::from(repo.pid())),
            "{line}"
        );
        let time = line["time"].as_str().expect("a time").replace('T', " ");
        assert!(since <= time && time <= now().replace('T', " "), "{since} {line}");
        since = time;
    }
}

/// The epoch that sealed the file's first frame.
fn frame_epoch(repo: &TestRepo, name: &str) -> Value {
    let done = repo.axiomfs(&["stat", text(&repo.live().join(name)), "--json"]);
    serde_json::from_str::<Value>(&done.stdout).expect("JSON")["frames"][0]["epoch"].clone()
}

fn write_and_settle(repo: &TestRepo, name: &str, seed: u64) {
    fs::write(repo.live().join(name), prose(seed, 300_000)).expect("written");
    repo.settle();
}

fn audit(repo: &TestRepo) -> String {
    fs::read_to_string(repo.mnt.join(".axiomfs/audit.log")).expect("audit.log can be read")
}

#[test]
fn a_mount_takes_a_new_key_into_use_and_a_reader_follows() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("keys-mounted");
    repo.settings("refresh: 1s\n").mount();
    write_and_settle(&repo, "first", 1);
    repo.sync();
    let mut reader = repo.elsewhere(&repo.store, "keys-reader");
    reader.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    let reads =
        |name: &str, seed: u64| fs::read(reader.live().join(name)).is_ok_and(|data| data == prose(seed, 300_000));
    assert!(reads("first", 1));
    assert_eq!(repo.control_ok("key rotate")["epoch"], 2);
    write_and_settle(&repo, "second", 2);
    repo.sync();
    assert_eq!((frame_epoch(&repo, "first"), frame_epoch(&repo, "second")), (Value::from(1), Value::from(2)));
    // It was mounted when the key was not made yet.
    wait_for("the reader follows", LIMIT, || reads("second", 2));

    // Somebody gives a second passphrase and rotates beside the mount: it takes the key up with a commit, after a minute at most.
    let second = repo.dir.join("second");
    fs::write(&second, "battery staple\n").expect("written");
    fs::set_permissions(&second, fs::Permissions::from_mode(0o600)).expect("for the owner only");
    let started = now();
    let done = repo.axiomfs(&["key", "add", text(&repo.store), "--new-passphrase-file", text(&second), "--json"]);
    let added = serde_json::from_str::<Value>(&done.stdout).expect("JSON")["id"].as_str().expect("an id").to_owned();
    let done = repo.axiomfs(&["key", "rotate", text(&repo.store), "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&done.stdout).expect("JSON")["epoch"], 3, "{}", done.stderr);
    let mut n = 10;
    wait_for("the mount takes the key up", LIMIT, || {
        n += 1;
        write_and_settle(&repo, "again", n);
        repo.sync();
        repo.control_ok("key status")["epoch"] == 3
    });
    write_and_settle(&repo, "third", 3);
    assert_eq!(frame_epoch(&repo, "third"), 3);
    repo.sync();
    wait_for("the reader follows", LIMIT, || reads("third", 3));
    wait_for("it is recorded", LIMIT, || audit(&repo).contains("epoch 3 is in use"));
    assert!(audit(&repo).contains("\"key rotate\""));
    let expected = [
        ("passphrase added".to_owned(), "begun"),
        (format!("passphrase added, key {added}"), "ok"),
        ("sealing epoch 3 made".to_owned(), "ok"),
    ];
    check_changes(&repo, &started, &expected);
    reader.umount();
    repo.umount();
}

#[test]
fn keys_are_rotated_by_what_they_have_sealed() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("keys-policy");
    repo.settings("policies: {rotate: {bytes: 1MiB}}\n").mount();
    assert_eq!(repo.control_ok("key status")["epoch"], 1);
    fs::write(repo.live().join("much"), noise(1, 3 << 20)).expect("written");
    repo.settle();
    wait_for("the next key", LIMIT, || repo.control_ok("key status")["epoch"] == 2);
    wait_for("it is recorded", LIMIT, || audit(&repo).contains("epoch 2 is in use, by policies.rotate (bytes)"));
    write_and_settle(&repo, "later", 2);
    assert_eq!(frame_epoch(&repo, "later"), 2);
    repo.umount();
    repo.mount();
    assert!(fs::read(repo.live().join("much")).expect("read") == noise(1, 3 << 20));
    assert_eq!(repo.control_ok("key status")["epoch"], 2, "a mount that writes nothing rotates nothing");
    repo.umount();
}

#[test]
fn after_a_compromise_what_comes_again_is_sealed_anew() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("keys-compromised");
    repo.mount();
    write_and_settle(&repo, "before", 1);
    repo.sync();
    let refused = repo.control("key rotate compromised");
    assert_eq!((&refused["ok"], &refused["errno"]), (&Value::from(false), &Value::from("EPERM")), "{refused}");
    assert_eq!(repo.control_ok("key rotate")["epoch"], 2);
    write_and_settle(&repo, "the same", 1);
    assert_eq!(frame_epoch(&repo, "the same"), 1, "after a plain rotation what is known is not stored again");
    let token = repo.status()["confirm"].as_str().expect("a token").to_owned();
    assert_eq!(repo.control_ok(&format!("key rotate compromised confirm={token}"))["epoch"], 3);
    write_and_settle(&repo, "once more", 1);
    assert_eq!(frame_epoch(&repo, "once more"), 3);
    let epochs = repo.control_ok("key status")["epochs"].clone();
    let marks: Vec<&Value> = epochs.as_array().expect("a list").iter().map(|epoch| &epoch["compromised"]).collect();
    assert_eq!(marks, [true, true, false]);
    repo.umount();
}

#[test]
fn sealed_keys_are_exported_and_put_back() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("keys-export");
    repo.mount();
    fs::write(repo.live().join("file"), "content").expect("written");
    repo.umount();
    let (store, file) = (text(&repo.store).to_owned(), repo.dir.join("keys.json"));
    let listed = repo.axiomfs(&["key", "list", &store, "--json"]);
    let key = serde_json::from_str::<Value>(&listed.stdout).expect("JSON")["keys"][0].clone();
    assert_eq!(key["kdf"], "argon2id");
    for number in ["memory_kib", "passes", "lanes"] {
        assert!(key[number].as_u64().is_some_and(|n| n > 0), "{number}: {key}");
    }
    let exported = repo.axiomfs(&["key", "export", &store, text(&file)]);
    assert!(exported.status.success() && exported.stderr.contains("keep it offline"), "{}", exported.stderr);
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&file).expect("read");
    let again = repo.axiomfs(&["key", "export", &store, text(&file)]);
    assert!(again.code() == 1 && again.stderr.contains("is there already"), "{}", again.stderr);
    assert!(fs::read(&file).expect("read") == before, "nothing is replaced");
    let wrong = repo.axiomfs(&["key", "import", &store, text(&repo.store.join("config"))]);
    assert!(wrong.code() == 1 && wrong.stderr.contains("is not a file that"), "{}", wrong.stderr);
    // The store loses all keys.
    for lost in ["keys", "keyring"] {
        fs::remove_dir_all(repo.store.join(lost)).expect("removed");
    }
    repo.try_mount(&[]).expect_err("no keys");
    let put = repo.axiomfs(&["key", "import", &store, text(&file), "--json"]);
    let put: Value = serde_json::from_str(&put.stdout).unwrap_or_else(|_| panic!("{}", put.stderr));
    assert_eq!(put["put"].as_array().map(Vec::len), Some(2), "{put}");
    repo.mount();
    assert_eq!(fs::read(repo.live().join("file")).expect("read"), b"content");
    repo.umount();
}
