//! Advice comes from what the mount has seen, tells why, and goes away once its commands were run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, binary, scratch, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::{must, run, wait_for};
use serde_json::{Value, json};

/// The advice of that kind, if there is any.
fn advice(repo: &TestRepo, kind: &str) -> Option<Value> {
    let done = repo.axiomfs(&["advise", text(&repo.mnt), "--json"]);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    let reply: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let list = reply["advice"].as_array().expect("a list");
    list.iter().find(|one| one["kind"] == kind).cloned()
}

/// Runs the advised commands as they stand, but for the program's path.
fn follow(repo: &TestRepo, advice: &Value) {
    for command in advice["commands"].as_array().expect("a list") {
        let command = command.as_str().expect("text");
        let ours = command.strip_prefix("axiomfs ").map(|rest| format!("{} {rest}", text(&binary())));
        let line = ours.unwrap_or_else(|| command.to_owned());
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).envs(repo.command(&[]).get_envs().filter_map(|(key, value)| Some((key, value?))));
        let done = run(&mut shell, LIMIT);
        assert!(done.status.success(), "{line}: {}{}", done.stdout, done.stderr);
    }
}

fn steps(repo: &TestRepo, path: &Path) -> String {
    let done = repo.axiomfs(&["stat", text(path), "--json"]);
    let stat: Value = serde_json::from_str(&done.stdout).expect("JSON");
    stat["frames"][0]["steps"].to_string()
}

fn shown(repo: &TestRepo) -> String {
    fs::read_to_string(repo.mnt.join(".axiomfs/advice")).expect("readable")
}

#[test]
fn each_advice_is_gone_once_its_commands_were_run() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("advice");
    repo.settings("checkpoint: {interval: 200ms}\n").mount();
    assert_eq!(shown(&repo), "No advice\n", "a new mount has seen nothing");
    // In turn, and no larger than a frame or two: what is counted doesn't depend on what lies beside it.
    for number in 0..28 {
        fs::write(repo.live().join(format!("{number}.mp4")), noise(number, 768 << 10)).expect("written");
        fs::write(repo.live().join(format!("{number}.log")), prose(number, 768 << 10)).expect("written");
        fs::write(repo.live().join(format!("{number}.txt")), prose(100 + number, 768 << 10)).expect("written");
    }
    repo.settle();

    // Data that doesn't compress.
    let route = advice(&repo, "route").expect("18 MiB that did not compress");
    assert!(route["evidence"].as_str().is_some_and(|words| words.contains("MiB of *.mp4 in ")), "{route}");
    assert!(shown(&repo).contains("Don't compress *.mp4"), "{}", shown(&repo));
    follow(&repo, &route);
    assert!(advice(&repo, "route").is_none(), "{}", shown(&repo));
    assert!(!shown(&repo).contains("mp4"));
    let new = repo.live().join("new.mp4");
    fs::write(&new, noise(50, 1 << 20)).expect("written");
    repo.settle();
    assert_eq!(steps(&repo, &new), "[]");

    // Text is worth a harder chain only where it is cold.
    assert!(advice(&repo, "archive").is_none(), "files of a minute ago: {}", shown(&repo));
    let touch = format!("touch -a -m -d '3 days ago' {}/*.log", text(&repo.live()));
    must("sh", &["-c", &touch], Duration::from_secs(20));
    let archive = advice(&repo, "archive").expect("cold text");
    let evidence = archive["evidence"].as_str().expect("text");
    assert!(evidence.contains("*.log") && evidence.contains("12 of 12 files"), "{evidence}");
    follow(&repo, &archive);
    assert!(advice(&repo, "archive").is_none(), "{}", shown(&repo));
    assert!(repo.control_ok("route explain /some/day.log")["chain"] == "archive");
    assert!(repo.control_ok("route explain /some/day.txt")["chain"] == "default");
    repo.umount();
}

#[test]
fn a_read_set_that_does_not_fit_asks_for_memory() {
    let _slot = beside_others();
    let outside = scratch("advice-read");
    let copy = outside.path().join("copy");
    let mut repo = TestRepo::new("advice-memory");
    repo.settings("memory: 64MiB\ncheckpoint: {interval: 200ms}\n").mount();
    fs::write(repo.live().join("set"), noise(9, 40 << 20)).expect("written");
    repo.settle();
    let read = |repo: &TestRepo| {
        for _ in 0..3 {
            // Past the kernel's page cache, or only the first of them would come here.
            let from = format!("if={}", text(&repo.live().join("set")));
            must("dd", &[&from, &format!("of={}", text(&copy)), "bs=1M", "iflag=direct"], LIMIT);
        }
        assert!(fs::read(&copy).expect("read") == noise(9, 40 << 20));
    };
    assert!(advice(&repo, "memory").is_none());
    read(&repo);
    let memory = advice(&repo, "memory").unwrap_or_else(|| panic!("{}", shown(&repo)));
    let commands = memory["commands"].as_array().expect("a list");
    assert!(commands.last().is_some_and(|c| c.as_str().is_some_and(|c| c.contains("axiomfs mount"))), "{memory}");
    assert_eq!(commands.len(), 3, "change the settings, unmount, mount: {memory}");
    follow(&repo, &memory);
    assert!(repo.wait_daemon().success(), "the first daemon was unmounted");
    assert!(repo.status()["memory"]["limit"].as_u64() > Some(64 << 20), "{}", repo.status());
    read(&repo);
    assert!(advice(&repo, "memory").is_none(), "{}", shown(&repo));
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
}

#[test]
fn a_reader_is_advised_to_read_with_more_memory() {
    let _slot = beside_others();
    let mut writer = TestRepo::new("advice-writer");
    writer.settings("memory: 64MiB\n").mount();
    fs::write(writer.live().join("set"), noise(9, 40 << 20)).expect("written");
    writer.umount();
    let mut repo = writer.elsewhere(&writer.store, "advice-reader");
    repo.settings("memory: 64MiB\n");
    repo.try_mount(&["--read-only", "-o", "allow_other"]).unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..3 {
        let from = format!("if={}", text(&repo.live().join("set")));
        must("dd", &[&from, "of=/dev/null", "bs=1M", "iflag=direct"], LIMIT);
    }
    // A reader takes no commands: its advice is read.
    let advised = shown(&repo);
    let commands: Vec<&str> = advised.lines().filter_map(|line| line.trim().strip_prefix("$ ")).collect();
    assert_eq!(commands.len(), 3, "{advised}");
    assert!(commands[2].contains(" --read-only -o allow_other ") && commands[2].contains("--config"), "{advised}");
    follow(&repo, &json!({ "commands": commands }));
    assert!(repo.wait_daemon().success(), "the first daemon was unmounted");
    let status = repo.status();
    assert!(status["state"] == "read-only" && status["memory"]["limit"].as_u64() > Some(64 << 20), "{status}");
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
}

#[test]
fn a_rotation_that_is_due_is_advised_until_it_is_done() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("advice-rotate");
    // The first mount seals a root directory, the next nothing: so it does not rotate by itself. The age is the least there is.
    repo.settings("policies: {rotate: {age: 1m}}\n").mount().umount().mount();
    assert!(advice(&repo, "rotate").is_none(), "{}", shown(&repo));
    // A mount that has sealed something needs no advice: it rotates by itself.
    let mut busy = TestRepo::new("rotate-age");
    busy.settings("policies: {rotate: {age: 1m}}\n").mount();
    fs::write(busy.live().join("file"), noise(1, 1 << 20)).expect("written");
    busy.settle();
    let epoch = |repo: &TestRepo| repo.control_ok("key status")["epoch"].clone();
    assert_eq!(epoch(&busy), 1, "a key of some seconds");
    wait_for("the key is a minute old", LIMIT, || advice(&repo, "rotate").is_some());
    let rotate = advice(&repo, "rotate").expect("still");
    let evidence = rotate["evidence"].as_str().expect("text");
    assert!(evidence.contains("Epoch 1") && evidence.contains("policies.rotate.age"), "{evidence}");
    follow(&repo, &rotate);
    assert!(advice(&repo, "rotate").is_none(), "{}", shown(&repo));
    assert_eq!(epoch(&repo), 2);
    repo.umount();

    wait_for("the busy mount's key is replaced", LIMIT, || epoch(&busy) == 2);
    let recorded = || fs::read_to_string(busy.mnt.join(".axiomfs/audit.log")).expect("readable");
    wait_for("it is recorded", LIMIT, || recorded().contains("epoch 2 is in use, by policies.rotate (age)"));
    fs::write(busy.live().join("later"), noise(2, 1 << 20)).expect("written");
    busy.settle();
    assert!(advice(&busy, "rotate").is_none(), "{}", shown(&busy));
    for (name, sealed_by) in [("file", 1), ("later", 2)] {
        let done = busy.axiomfs(&["stat", text(&busy.live().join(name)), "--json"]);
        let stat: Value = serde_json::from_str(&done.stdout).expect("JSON");
        assert_eq!(stat["frames"][0]["epoch"], sealed_by, "{name}: {stat}");
    }
    busy.umount();
}
