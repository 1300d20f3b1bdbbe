//! Passphrases and sealing keys from the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use axiomfs_tests::repo::{TestRepo, beside_others, text};
use axiomfs_tests::rng::prose;
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
    let listed = || run(&["list", &store])["keys"].as_array().expect("a list").len();
    let first = run(&["list", &store])["keys"][0]["id"].as_str().expect("an id").to_owned();
    run(&["add", &store, "--new-passphrase-file", text(&second)]);
    assert_eq!(listed(), 2);
    assert!(refused(&["remove", &store, &first]).contains("this passphrase opens"));
    assert!(refused(&["rotate", &store, "--passphrase-file", text(&third)]).contains("wrong passphrase"));
    run(&["passwd", &store, "--passphrase-file", text(&second), "--new-passphrase-file", text(&third)]);
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
    repo.umount();
}
