//! The chain is changed through the control file while data goes through it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::rng::prose;
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::S3Server;
use axiomfs_tests::source::copy_real_files;

const STEPS: &[&str] = &[
    "set zstd level=9",
    "chain remove default zstd",
    "chain add default zstd(level=3) before aes-256-gcm",
    "chain set default zstd(level=9)|aes-256-gcm",
    "chain set default aes-256-gcm",
    "chain set default zstd(level=3)|aes-256-gcm",
];

#[test]
fn swapping_the_chain_every_100_ms_during_a_copy_harms_nothing() {
    let _slot = alone();
    swap_during_copies(TestRepo::new("swap"), 3_000, 24);
}

#[test]
fn swapping_the_chain_every_100_ms_during_a_copy_to_a_bucket_harms_nothing() {
    let _slot = alone();
    swap_during_copies(TestRepo::in_bucket("swap-bucket", &S3Server::shared().url("swap")), 500, 4);
}

/// Copies so many real and so many large files twice while the chain changes all the time.
fn swap_during_copies(mut repo: TestRepo, files: usize, large: u64) {
    let source = scratch("swap-source");
    let tree = source.path().join("tree");
    copy_real_files(&tree, files);
    for i in 0..large {
        fs::write(tree.join(format!("prose {i}")), prose(i, 8 << 20)).expect("written");
    }
    repo.settings("checkpoint: {interval: 300ms, bytes: 8MiB}\ncommit: {interval: 1s}\n").mount();
    let done = AtomicBool::new(false);
    let mut took = Vec::new();
    thread::scope(|s| {
        s.spawn(|| {
            for name in ["one", "two"] {
                let target = repo.live().join(name);
                must("cp", &["-a", text(&tree), text(&target)], Duration::from_secs(300));
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) || took.len() < 30 {
            let command = STEPS[took.len() % STEPS.len()];
            let start = Instant::now();
            repo.control_ok(command);
            took.push(start.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
    });
    took.sort_unstable();
    eprintln!("{} swaps, median {:?}, longest {:?}", took.len(), took[took.len() / 2], took[took.len() - 1]);
    let compare = |repo: &TestRepo, when: &str| {
        for name in ["one", "two"] {
            let args = ["-r", "--no-dereference", text(&tree), &format!("{}/{name}", text(&repo.live()))];
            let done = run(std::process::Command::new("diff").args(args), LIMIT);
            assert!(done.status.success(), "{when}: {}{}", done.stdout, done.stderr);
        }
    };
    compare(&repo, "after the copy");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    compare(&repo, "from the store alone");
}

#[test]
fn a_swap_really_changes_what_is_stored() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("swap-effect");
    repo.mount();
    let mut grew = Vec::new();
    for (i, command) in
        ["chain set default zstd(level=3)|aes-256-gcm", "chain set default aes-256-gcm"].iter().enumerate()
    {
        repo.control_ok(command);
        let before = axiomfs_tests::source::tree_bytes(&repo.store);
        fs::write(repo.live().join(format!("f{i}")), prose(i as u64, 16 << 20)).expect("written");
        repo.settle();
        grew.push(axiomfs_tests::source::tree_bytes(&repo.store) - before);
    }
    assert!(grew[0] * 3 < 2 * (16 << 20), "with zstd, 16 MiB of text took {} bytes", grew[0]);
    assert!(grew[1] > 16 << 20, "without zstd, 16 MiB of text took {} bytes", grew[1]);
    for i in 0..2u64 {
        assert!(fs::read(repo.live().join(format!("f{i}"))).expect("read") == prose(i, 16 << 20));
    }
}

#[test]
fn what_would_weaken_or_break_the_chain_is_refused_and_changes_nothing() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("swap-refused");
    repo.mount();
    let before = repo.control_ok("chain show");
    for (command, errno) in [
        ("chain remove default aes-256-gcm", "EPERM EINVAL"),
        ("chain set default zstd(level=3)", "EPERM EINVAL"),
        ("chain set default aes-256-gcm|zstd(level=3)", "EINVAL"),
        ("chain set default nonsense|aes-256-gcm", "ENOENT"),
        ("chain set default zstd(level=99)|aes-256-gcm", "EINVAL"),
        ("chain set default zstd(flavour=sweet)|aes-256-gcm", "EINVAL"),
        ("chain remove nochain zstd", "ENOENT"),
        ("chain set default", "EINVAL"),
        ("set zstd level=many", "EINVAL"),
        ("dance", "EINVAL"),
        ("\n", "EINVAL"),
    ] {
        let reply = repo.control(command);
        assert_eq!(reply["ok"], false, "{command:?} was accepted: {reply}");
        let got = reply["errno"].as_str().unwrap_or_default();
        assert!(errno.split(' ').any(|e| e == got), "{command:?}: {reply}, expected {errno}");
        assert!(reply["msg"].as_str().is_some_and(|m| !m.is_empty()), "{command:?} says nothing: {reply}");
        // A shell gets the error number from its write.
        let e = fs::write(repo.mnt.join(".axiomfs/control"), command).expect_err("echo must fail");
        assert!([1, 2, 22].contains(&e.raw_os_error().unwrap_or(0)), "{command:?}: {e}");
    }
    let after = repo.control_ok("chain show");
    assert_eq!(before["generation"], after["generation"], "a refused command changed something");
    fs::write(repo.live().join("f"), b"still works").expect("written");
    repo.sync();
    let done = repo.axiomfs(&["ctl", text(&repo.mnt), "chain", "remove", "default", "aes-256-gcm"]);
    assert_eq!(done.code(), 1, "{}{}", done.stdout, done.stderr);
}

#[test]
fn a_plugin_that_stored_frames_need_stays_also_if_nothing_has_read_them() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("swap-unload");
    repo.mount();
    let refused = |repo: &TestRepo, when: &str| {
        let reply = repo.control("plugin unload lz4");
        assert_eq!(reply["errno"], "EBUSY", "{when}: {reply}");
    };
    // Nothing needs it yet.
    repo.control_ok("plugin unload lz4");
    repo.control_ok("plugin load lz4");
    repo.control_ok("chain set default lz4 | aes-256-gcm");
    fs::write(repo.live().join("text"), prose(1, 4 << 20)).expect("written");
    repo.settle();
    repo.control_ok("chain set default aes-256-gcm");
    refused(&repo, "after it was written");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    repo.control_ok("chain set default aes-256-gcm");
    refused(&repo, "on a fresh mount");
    assert!(fs::read(repo.live().join("text")).expect("read") == prose(1, 4 << 20));
    assert_eq!(repo.status()["missing_plugins"].as_array().map(Vec::len), Some(0), "{}", repo.status());
    repo.umount();
}

#[test]
fn another_user_commands_nothing() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let _slot = beside_others();
    let mut repo = TestRepo::new("swap-uid");
    repo.try_mount(&["-o", "allow_other"]).unwrap_or_else(|e| panic!("{e}"));
    // The directory above is the test's own; others must come as far as the mount for its own rule to count.
    must("chmod", &["755", text(&repo.dir)], LIMIT);
    let before = repo.control_ok("chain show")["generation"].clone();
    for script in [
        "echo 'set zstd level=9' > MNT/.axiomfs/control",
        "echo 'version: 1' > MNT/.axiomfs/chain.yaml",
        "cat MNT/.axiomfs/status",
        "ls MNT/.axiomfs",
    ] {
        let script = format!("ls MNT/live && {script}").replace("MNT", text(&repo.mnt));
        let done = run(std::process::Command::new("sh").args(["-c", &script]).uid(NOBODY).gid(NOBODY), LIMIT);
        assert!(
            !done.status.success() && done.stderr.contains("Permission denied"),
            "{script}: {}{}",
            done.stdout,
            done.stderr
        );
        assert!(!done.stderr.contains("/live"), "it did not come as far as the mount: {}", done.stderr);
    }
    assert_eq!(repo.control_ok("chain show")["generation"], before);
}

#[test]
fn the_chain_file_is_read_and_applied_on_close() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("chain-yaml");
    repo.mount();
    let path = repo.mnt.join(".axiomfs/chain.yaml");
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains("aes-256-gcm") && text.contains("chains"), "{text}");
    let generation = repo.status_number("generation");
    let new =
        "version: 1\nrequire: [encryption]\nchains:\n  default: [{plugin: zstd, level: 7}, {plugin: aes-256-gcm}]\n";
    fs::write(&path, new).expect("a right chain file is taken");
    let text = fs::read_to_string(&path).expect("read");
    assert!(text.contains('7'), "the level isn't in the file read back: {text}");
    assert!(repo.status_number("generation") > generation, "the generation didn't grow");
    let wrong = "version: 1\nchains:\n  default: [{plugin: zstd, level: seven}, {plugin: aes-256-gcm}]\n";
    let done =
        run(std::process::Command::new("cp").args([&wrong_file(&repo, wrong), &format!("{}", path.display())]), LIMIT);
    assert!(!done.status.success(), "a wrong chain file was taken");
    assert!(fs::read_to_string(&path).expect("read").contains('7'), "a wrong chain file changed the chain");
}

fn wrong_file(repo: &TestRepo, text: &str) -> String {
    let path = repo.dir.join("wrong.yaml");
    fs::write(&path, text).expect("written");
    format!("{}", path.display())
}
