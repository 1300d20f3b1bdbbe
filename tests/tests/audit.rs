//! The audit log: what it holds, that it survives, and that `audit verify` answers for it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others};
use axiomfs_tests::run::wait_for;
use serde_json::Value;

fn log(repo: &TestRepo) -> Vec<Value> {
    let text = fs::read_to_string(repo.mnt.join(".axiomfs/audit.log")).expect("audit.log can be read");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Action, subject and result of each record from the `from`th on.
fn told(lines: &[Value], from: usize) -> Vec<(String, String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().expect("a text").to_owned();
    lines[from..].iter().map(|line| (text(line, "action"), text(line, "subject"), text(line, "result"))).collect()
}

#[test]
fn commands_snapshots_and_mounts_are_recorded_and_survive() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("audit");
    repo.mount();
    let snapshots = repo.mnt.join("snapshots");
    repo.control_ok("set zstd level=9");
    assert_eq!(repo.control("chain remove default aes-256-gcm")["ok"], false);
    repo.control_ok("chain show");
    fs::create_dir(snapshots.join("monday")).expect("taken");
    fs::rename(snapshots.join("monday"), snapshots.join("first")).expect("renamed");
    fs::remove_dir(snapshots.join("first")).expect("forgotten");
    let before = log(&repo);
    let told_before = told(&before, 0);
    let actions: Vec<&str> = told_before.iter().map(|(action, ..)| action.as_str()).collect();
    assert_eq!(
        actions,
        ["mount", "command", "command", "snapshot taken", "snapshot renamed", "snapshot forgotten"],
        "{before:?}"
    );
    assert_eq!(told_before[1].1, "set zstd level=9");
    assert!(told_before[1].2.starts_with("ok, generation "), "{told_before:?}");
    assert!(told_before[2].2.starts_with("EPERM "), "a refused command says so: {told_before:?}");
    assert_eq!(told_before[4].1, "monday to first");
    let own = u64::from(std::process::id());
    assert!(before[3..].iter().all(|line| line["pid"] == own), "who took the snapshots: {before:?}");
    assert!(before.iter().all(|line| line["uid"] == 0), "by root: {before:?}");
    // The mount and the commands of this process are told apart.
    assert_eq!((&before[0]["pid"], &before[1]["pid"]), (&Value::from(repo.pid()), &Value::from(own)), "{before:?}");
    let times: Vec<&str> = before.iter().map(|line| line["time"].as_str().expect("a time")).collect();
    assert!(times.is_sorted() && times[0].starts_with("20") && times[0].ends_with('Z'), "{times:?}");
    let verified = repo.control_ok("audit verify");
    assert_eq!((verified["records"].as_u64(), verified["last"].as_u64()), (Some(6), Some(6)));

    // Recorded is recorded, also when nobody had time to write it anywhere else.
    repo.kill9();
    repo.mount();
    let after = log(&repo);
    assert_eq!(after[..before.len()], before);
    assert_eq!(told(&after, before.len())[0].0, "mount");
    // Nor does it need anything of this machine once it was drained.
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("removed");
    repo.mount();
    let again = log(&repo);
    assert_eq!(again[..after.len()], after);
    assert_eq!(told(&again, after.len()).iter().map(|(action, ..)| action.as_str()).collect::<Vec<_>>(), ["mount"]);
    let verified = repo.control_ok("audit verify");
    assert_eq!((verified["committed"].as_u64(), verified["records"].as_u64()), (Some(7), Some(8)));
    repo.umount();
}

#[test]
fn settings_takeovers_and_their_results_are_recorded_and_no_secret_is() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("audit-settings");
    let levels = |n: u32| format!("chains:\n  default: [{{plugin: zstd, level: {n}}}, {{plugin: aes-256-gcm}}]\n");
    repo.settings(&levels(3));
    repo.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    let token = repo.status()["confirm"].as_str().expect("a token").to_owned();
    repo.control_ok(&format!("chain remove default zstd confirm={token}"));
    let chains = repo.mnt.join(".axiomfs/chain.yaml");
    let yaml = fs::read_to_string(&chains).expect("read");
    fs::write(&chains, format!("{yaml}# confirm={token}\n")).expect("applied");
    // Closing it answers EINVAL, which this call does not tell.
    fs::write(&chains, "chains: 7\n").expect("written");
    repo.settings(&levels(4));
    wait_for("the settings were read again", LIMIT, || log(&repo).iter().any(|line| line["subject"] == SETTINGS_READ));
    let told = told(&log(&repo), 0);
    let short: Vec<(&str, &str)> = told.iter().map(|(action, subject, _)| (&**action, &**subject)).collect();
    assert_eq!(short[0].0, "takeover", "{told:?}");
    assert_eq!(
        short[1..],
        [
            ("command", "chain remove default zstd confirm=…"),
            ("settings", "chain.yaml"),
            ("settings", "chain.yaml"),
            ("settings", SETTINGS_READ),
        ],
        "{told:?}"
    );
    assert!(told[2].2.starts_with("ok, generation "), "{told:?}");
    assert!(told[3].2.starts_with("EINVAL "), "{told:?}");
    let text = fs::read_to_string(repo.mnt.join(".axiomfs/audit.log")).expect("read");
    assert!(!text.contains(&token), "the token is in the log");
    repo.control_ok("audit verify");
    repo.umount();
}

const SETTINGS_READ: &str = "settings file, its file was edited";

#[test]
fn what_was_tampered_with_in_the_store_is_found() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("audit-tampered");
    repo.mount();
    repo.control_ok("set zstd level=9");
    fs::write(repo.live().join("file"), "content").expect("written");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("removed");
    let packs: Vec<PathBuf> =
        objects(&repo).into_iter().filter(|path| path.starts_with(repo.store.join("packs"))).collect();
    let mut refused = 0;
    for pack in &packs {
        let whole = fs::read(pack).expect("read");
        fs::set_permissions(pack, fs::Permissions::from_mode(0o600)).expect("writable");
        for at in (60..whole.len() - 16).step_by(211) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(pack, &bytes).expect("changed");
            // A tree that can't be read refuses the mount already; never is the log said to be whole and different.
            match repo.try_mount(&[]) {
                Err(_) => refused += 1,
                Ok(()) => {
                    let reply = repo.control("audit verify");
                    match reply["ok"].as_bool() {
                        Some(true) => {
                            assert_eq!((reply["committed"].as_u64(), reply["records"].as_u64()), (Some(2), Some(3)))
                        }
                        _ => refused += 1,
                    }
                    repo.umount();
                }
            }
            repo.clear_dead_mount();
            if repo.state.exists() {
                fs::remove_dir_all(&repo.state).expect("removed");
            }
        }
        fs::write(pack, &whole).expect("as it was");
    }
    assert!(refused > 0, "nothing that was changed had the log in it");
    repo.mount();
    assert_eq!(log(&repo).len(), 3);
    repo.control_ok("audit verify");
    repo.umount();
}

#[test]
fn the_log_is_bounded() {
    const KEPT: u64 = 16_384;
    let _slot = beside_others();
    let mut repo = TestRepo::new("audit-bounded");
    repo.mount();
    let mut control =
        fs::OpenOptions::new().read(true).write(true).open(repo.mnt.join(".axiomfs/control")).expect("control");
    let long = format!("plugin unload {}", "x".repeat(60));
    for _ in 0..KEPT + 200 {
        let refused = control.write(long.as_bytes()).expect_err("no such plugin");
        assert_eq!(refused.raw_os_error(), Some(2));
    }
    drop(control);
    let first = |repo: &TestRepo| log(repo)[0]["number"].as_u64();
    assert_eq!((log(&repo).len() as u64, first(&repo)), (KEPT, Some(202)));
    repo.control_ok("audit verify");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("removed");
    repo.mount();
    let verified = repo.control_ok("audit verify");
    assert_eq!((verified["records"].as_u64(), verified["last"].as_u64()), (Some(KEPT), Some(KEPT + 202)), "{verified}");
    repo.umount();
}

#[test]
fn a_mount_that_changes_nothing_makes_no_head() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("audit-idle");
    repo.mount();
    fs::write(repo.live().join("file"), "content").expect("written");
    repo.umount();
    let before = objects(&repo);
    assert!(before.len() >= 2, "{before:?}");
    // One `mount` and one `unmount` each, and what stands in between.
    for command in ["chain show", "set zstd level=9"] {
        repo.mount();
        repo.control_ok(command);
        repo.sync();
        repo.control_ok("audit verify");
        repo.umount();
    }
    assert_eq!(objects(&repo), before, "the store is as it was");
    repo.mount();
    let actions: Vec<String> = told(&log(&repo), 0).into_iter().map(|(action, ..)| action).collect();
    assert_eq!(actions, ["mount", "unmount", "mount", "unmount", "mount", "command", "unmount", "mount"]);
    fs::write(repo.live().join("more"), "content").expect("written");
    repo.sync();
    let verified = repo.control_ok("audit verify");
    assert_eq!(verified["committed"].as_u64(), Some(8), "they go with the next change");
    repo.umount();
}

/// Names of the heads and packs in the store.
fn objects(repo: &TestRepo) -> Vec<PathBuf> {
    let mut dirs = vec![repo.store.join("heads"), repo.store.join("packs")];
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
