//! Two machines and one volume: who writes, who is fenced off, and that nothing acknowledged is lost. Two mounts with state
//! directories of their own stand for two machines.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use axiomfs_tests::observe::same;
use axiomfs_tests::place::Place;
use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::{Finished, must, run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use serde_json::Value;

/// Commits only when asked to.
const ASKED: &str = "checkpoint: {interval: 200ms, bytes: 1MiB}\ncommit: {interval: 1h, bytes: 1GiB}\ntimeout: 6s\n";
/// Not even checkpoints.
const STILL: &str = "checkpoint: {interval: 1h, bytes: 1GiB}\ncommit: {interval: 1h, bytes: 1GiB}\n";

axiomfs_tests::on_directory_and_bucket! {
    a_takeover_fences_the_first_writer_and_recover_makes_a_snapshot_of_what_it_had,
    a_machine_that_comes_back_after_ten_commits_replays_nothing_over_them,
    a_change_before_the_first_checkpoint_is_not_replayed_over_another_writers_commits,
    a_writer_whose_place_was_trimmed_is_fenced_all_the_same,
    an_old_state_directory_put_back_is_not_replayed_over_newer_commits,
    a_state_directory_deleted_while_dirty_needs_a_flag_and_is_told_what_may_be_lost,
    an_idle_writer_that_was_taken_over_ends_without_a_word,
    recovering_can_be_killed_and_done_again,
    what_a_mount_that_broke_off_found_committed_can_be_recovered,
}

fn soak() -> bool {
    std::env::var_os("AXIOMFS_SOAK").is_some()
}

fn write(repo: &TestRepo, name: &str, data: &[u8]) {
    fs::write(repo.live().join(name), data).unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn read(repo: &TestRepo, name: &str) -> io::Result<Vec<u8>> {
    fs::read(repo.live().join(name))
}

/// What `live/` shows now, kept outside.
fn keep(repo: &TestRepo, name: &str) -> PathBuf {
    let kept = repo.dir.join(name);
    must("cp", &["-a", text(&repo.live()), text(&kept)], LIMIT);
    kept
}

/// A tree of every kind of change on top of what was committed before.
fn change_much(repo: &TestRepo) {
    let live = repo.live();
    write(repo, "big", &noise(5, 3 << 20));
    fs::create_dir_all(live.join("dir/below")).expect("made");
    for i in 0..40 {
        write(repo, &format!("dir/below/f{i}"), &noise(i, 3000));
    }
    wait_for("a checkpoint has it", LIMIT, || repo.status_number("live/layers") == 1);
    write(repo, "kept", b"changed");
    fs::remove_file(live.join("removed")).expect("removed");
    fs::hard_link(live.join("big"), live.join("dir/link")).expect("linked");
    symlink("big", live.join("symlink")).expect("linked");
    fs::rename(live.join("dir/below/f1"), live.join("moved")).expect("moved");
    fs::set_permissions(live.join("moved"), fs::Permissions::from_mode(0o640)).expect("changed");
    write(repo, "in the log", &noise(6, 200_000));
}

fn is_read_only(repo: &TestRepo) -> bool {
    fs::write(repo.live().join("refused"), b"x").is_err_and(|e| e.raw_os_error() == Some(30))
}

/// `axiomfs recover` with this machine's directories.
fn try_recover(repo: &TestRepo, more: &[&str]) -> Finished {
    let args = ["recover", text(&repo.store), "--state", text(&repo.state), "--cache", text(&repo.cache), "--json"];
    repo.axiomfs(&[&args[..], more].concat())
}

/// The same, which must make one snapshot: its name and those of others.
fn recover(repo: &TestRepo) -> (String, Vec<String>) {
    let done = try_recover(repo, &[]);
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);
    let reply: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let items = reply["recovered"].as_array().expect("a list");
    assert_eq!(items.len(), 1, "{reply}");
    let name = items[0]["snapshot"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("recovered-20"), "{name}");
    let others = items[0]["others"].as_array().expect("a list").iter();
    (name, others.filter_map(|n| n.as_str().map(str::to_owned)).collect())
}

fn set_aside(repo: &TestRepo) -> usize {
    fs::read_dir(repo.state.join("set-aside")).map_or(0, |entries| entries.count())
}

/// Ends a fenced mount, which can't drain.
fn end_fenced(repo: &mut TestRepo) {
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert_eq!(done.code(), 1, "{}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains("recover"), "{}", done.stderr);
    assert!(!repo.wait_daemon().success());
}

fn a_takeover_fences_the_first_writer_and_recover_makes_a_snapshot_of_what_it_had(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("takeover");
    a.settings(ASKED).mount();
    write(&a, "kept", b"first");
    write(&a, "removed", b"first");
    a.sync();
    let mut b = a.elsewhere(&a.store, "takeover-b");
    let refused = b.try_mount(&[]).expect_err("a second writer");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("read").trim().to_owned();
    for said in [a.pid().to_string(), host, "since 20".to_owned()] {
        assert!(refused.contains(&said), "{said}: {refused}");
    }
    change_much(&a);
    fs::create_dir(a.snapshot("monday")).expect("taken");
    let monday = keep(&a, "monday");
    write(&a, "after monday", b"x");
    let had = keep(&a, "had");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&b, "kept").expect("read"), b"first", "what was committed");
    assert_eq!(b.status_number("head/epoch"), 2);
    assert!(b.events().contains("epoch 2"), "{}", b.events());
    write(&b, "of the other", b"b");
    b.sync();

    assert_eq!(a.status()["state"], "ok", "nobody told it yet");
    let sync = a.axiomfs(&["sync", text(&a.mnt)]);
    assert_eq!(sync.code(), 1, "{}", sync.stdout);
    assert_eq!(a.status()["state"], "fenced");
    assert!(a.events().contains("Another writer has committed head"), "{}", a.events());
    let status = a.axiomfs(&["status", text(&a.mnt)]);
    assert!(status.stdout.contains("fenced") && status.stdout.contains("taken over"), "{}", status.stdout);
    assert!(is_read_only(&a), "a fenced mount took a change");
    assert_eq!(read(&a, "after monday").expect("what it has stays readable"), b"x");
    same(&had, &a.live(), "the fenced mount's view");
    end_fenced(&mut a);

    let beside = try_recover(&a, &[]);
    assert_eq!(beside.code(), 1, "{}", beside.stdout);
    assert!(beside.stderr.contains(&b.pid().to_string()), "{}", beside.stderr);
    write(&b, "later", b"still writes");
    let at_b = keep(&b, "at b");
    b.umount();
    let (name, others) = recover(&a);
    assert_eq!(others, ["monday"]);
    assert_eq!(set_aside(&a), 0, "what is in the store is not needed here");

    let mut c = a.elsewhere(&a.store, "takeover-c");
    c.mount();
    same(&had, &c.snapshot(&name), "the recovered snapshot");
    same(&monday, &c.snapshot("monday"), "the snapshot taken while fenced off");
    same(&at_b, &c.live(), "live is the other's");
    c.umount();
    a.mount();
    same(&at_b, &a.live(), "the first machine goes on");
    write(&a, "again", b"a");
    a.umount();
    let again = try_recover(&a, &[]);
    assert!(again.code() == 0 && again.stdout.contains("\"recovered\":[]"), "{}{}", again.stdout, again.stderr);
}

fn a_machine_that_comes_back_after_ten_commits_replays_nothing_over_them(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("comes-back");
    a.settings(ASKED).mount();
    write(&a, "kept", b"first");
    write(&a, "removed", b"first");
    a.sync();
    change_much(&a);
    let had = keep(&a, "had");
    a.kill9();
    let mut b = a.elsewhere(&a.store, "comes-back-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    for i in 0..10 {
        write(&b, "kept", format!("commit {i}").as_bytes());
        write(&b, &format!("b{i}"), &noise(i, 10_000));
        b.sync();
    }
    let at_b = keep(&b, "at b");
    b.umount();
    a.mount();
    same(&at_b, &a.live(), "live is what was committed last");
    assert!(a.daemon_log().contains("Set aside in"), "{}", a.daemon_log());
    assert!(a.events().contains("set aside"), "{}", a.events());
    assert_eq!(a.status()["set_aside"].as_array().map(Vec::len), Some(1));
    let status = a.axiomfs(&["status", text(&a.mnt)]);
    assert!(status.stdout.contains("axiomfs recover"), "{}", status.stdout);
    let mounted = try_recover(&a, &[]);
    assert!(mounted.code() == 1 && mounted.stderr.contains("in use"), "{}", mounted.stderr);
    write(&a, "new", b"goes on");
    a.umount();
    let (name, _) = recover(&a);
    // The other machine has nothing that is not committed: it just goes on.
    b.mount();
    assert_eq!(read(&b, "new").expect("read"), b"goes on");
    assert_eq!(set_aside(&b), 0);
    same(&had, &b.snapshot(&name), "the recovered snapshot");
    write(&b, "newer", b"x");
    b.umount();
}

#[test]
fn a_command_on_the_store_says_what_it_set_aside() {
    let _slot = beside_others();
    for (verb, json) in [("create", true), ("create", false), ("delete", false)] {
        let mut a = TestRepo::new("command-aside");
        a.settings(ASKED).mount();
        write(&a, "kept", b"first");
        a.sync();
        write(&a, "not committed", b"x");
        a.kill9();
        a.clear_dead_mount();
        let mut b = a.elsewhere(&a.store, "command-aside-b");
        b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
        write(&b, "kept", b"second");
        b.umount();
        let mut args =
            vec!["snapshot", verb, text(&a.store), "monday", "--state", text(&a.state), "--cache", text(&a.cache)];
        args.extend(json.then_some("--json"));
        let done = a.axiomfs(&args);
        // There is no such snapshot to delete; what is set aside is told all the same.
        assert_eq!(done.code(), i32::from(verb == "delete"), "{}{}", done.stdout, done.stderr);
        assert_eq!(set_aside(&a), 1);
        if json {
            let answer: Value = serde_json::from_str(&done.stdout).expect("JSON");
            let places = answer["set_aside"].as_array().expect("a list");
            assert!(places.len() == 1 && places[0].as_str().is_some_and(|p| p.starts_with(text(&a.state))), "{answer}");
        } else {
            let said = format!("{}{}", done.stdout, done.stderr);
            assert!(said.contains("Set aside in ") && said.contains("axiomfs recover"), "{said}");
        }
    }
}

fn a_change_before_the_first_checkpoint_is_not_replayed_over_another_writers_commits(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("no-checkpoint");
    a.mount();
    write(&a, "file", b"committed");
    a.umount();
    let mut b = a.elsewhere(&a.store, "no-checkpoint-b");
    b.settings(STILL).mount();
    write(&b, "file", b"only in the log");
    b.kill9();
    a.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    write(&a, "file", b"newer");
    a.umount();
    b.mount();
    assert_eq!(read(&b, "file").expect("read"), b"newer");
    b.umount();
    let (name, _) = recover(&b);
    b.mount();
    assert_eq!(fs::read(b.snapshot(&name).join("file")).expect("read"), b"only in the log");
}

/// Old heads are trimmed, so that the number that the first writer expects is free again.
fn a_writer_whose_place_was_trimmed_is_fenced_all_the_same(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("trimmed");
    a.settings(ASKED).mount();
    write(&a, "file", b"a");
    a.sync();
    let mut b = a.elsewhere(&a.store, "trimmed-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    // Both give it the same number.
    fs::create_dir(b.snapshot("theirs")).expect("taken");
    for i in 0..100u8 {
        write(&b, "file", &[i]);
        b.sync();
    }
    write(&a, "late", b"a week later");
    fs::create_dir(a.snapshot("mine")).expect("taken");
    let sync = a.axiomfs(&["sync", text(&a.mnt)]);
    assert_eq!(sync.code(), 1, "a commit nobody will ever see was called safe: {}", sync.stdout);
    assert_eq!(a.status()["state"], "fenced");
    end_fenced(&mut a);
    b.umount();
    a.mount();
    assert_eq!(read(&a, "file").expect("read"), [99]);
    a.umount();
    let (name, others) = recover(&a);
    assert_eq!(others, ["mine"]);
    b.mount();
    for name in [name.as_str(), "mine"] {
        assert_eq!(fs::read(b.snapshot(name).join("late")).expect("read"), b"a week later");
    }
    assert!(!b.snapshot("theirs").join("late").exists());
}

fn an_old_state_directory_put_back_is_not_replayed_over_newer_commits(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("old-state");
    a.settings(ASKED).mount();
    write(&a, "kept", b"first");
    write(&a, "removed", b"first");
    a.sync();
    change_much(&a);
    let had = keep(&a, "had");
    a.kill9();
    let backup = a.dir.join("backup");
    must("cp", &["-a", text(&a.state), text(&backup)], LIMIT);
    a.mount();
    same(&had, &a.live(), "recovery");
    a.sync();
    write(&a, "kept", b"newer");
    fs::remove_file(a.live().join("moved")).expect("removed");
    let newest = keep(&a, "newest");
    a.umount();
    fs::remove_dir_all(&a.state).expect("removed");
    fs::rename(&backup, &a.state).expect("put back");
    a.mount();
    same(&newest, &a.live(), "an old state over newer commits");
    assert_eq!(set_aside(&a), 1);
    a.umount();
    let (name, _) = recover(&a);
    a.mount();
    same(&had, &a.snapshot(&name), "the old state");
}

fn a_state_directory_deleted_while_dirty_needs_a_flag_and_is_told_what_may_be_lost(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("deleted-state");
    a.settings(ASKED).mount();
    write(&a, "committed", b"1");
    a.sync();
    write(&a, "acknowledged", b"2");
    a.kill9();
    fs::remove_dir_all(&a.state).expect("deleted");
    let refused = a.try_mount(&[]).expect_err("what is lost must be said");
    for word in [text(&a.state), "--takeover", "lost", "--state"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    a.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("reading needs no flag: {e}"));
    a.umount();
    a.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&a, "committed").expect("read"), b"1");
    assert!(read(&a, "acknowledged").is_err());
    write(&a, "goes on", b"3");
    a.umount();
    // Once all is in the store the state directory is not needed.
    fs::remove_dir_all(&a.state).expect("deleted");
    a.mount();
    assert_eq!(read(&a, "goes on").expect("read"), b"3");
}

/// A writer that was taken over and does not know it must not say that nobody writes.
fn an_idle_writer_that_was_taken_over_ends_without_a_word(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("idle-writer");
    a.mount();
    write(&a, "file", b"a");
    a.sync();
    let mut b = a.elsewhere(&a.store, "idle-writer-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    a.umount();
    let mut c = a.elsewhere(&a.store, "idle-writer-c");
    let refused = c.try_mount(&[]).expect_err("the second one still writes");
    assert!(refused.contains(&b.pid().to_string()), "{refused}");
    write(&b, "file", b"b");
    b.umount();
}

fn recovering_can_be_killed_and_done_again(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("recover-killed");
    a.settings(ASKED).mount();
    write(&a, "kept", b"first");
    write(&a, "removed", b"first");
    a.sync();
    change_much(&a);
    let had = keep(&a, "had");
    a.kill9();
    let mut b = a.elsewhere(&a.store, "recover-killed-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    write(&b, "kept", b"b");
    b.umount();
    let command = || a.command(&["recover", text(&a.store), "--state", text(&a.state), "--cache", text(&a.cache)]);
    // After the commit nothing that the manifest names may be missing, for all is looked at again.
    for _ in 0..2 {
        let done = run(command().env("AXIOMFS_FAULT_POINT", "recover.committed"), LIMIT);
        assert_eq!(done.status.code(), None, "it did not come to its commit: {}", done.stderr);
    }
    for i in 0..if soak() { 40 } else { 6 } {
        let mut child = command().spawn().expect("started");
        thread::sleep(Duration::from_millis(i * 90 % 1500));
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    run(command().env("AXIOMFS_FAULT_POINT", "recover.moved"), LIMIT);
    let done = try_recover(&a, &[]);
    assert_eq!(done.code(), 0, "{}{}", done.stdout, done.stderr);
    a.mount();
    let names: Vec<PathBuf> =
        fs::read_dir(a.mnt.join("snapshots")).expect("listed").map(|e| e.expect("an entry").path()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    same(&had, &names[0], "the recovered snapshot");
    assert_eq!(read(&a, "kept").expect("read"), b"b");
    assert_eq!(fs::read_dir(a.state.join("set-aside")).expect("listed").count(), 0, "nothing of it is left");
    assert!(!a.state.join(".recovered").exists(), "nor there");
}

#[test]
fn what_cannot_be_recovered_keeps_nothing_else_from_it() {
    let _slot = beside_others();
    let mut a = TestRepo::new("recover-others");
    a.settings(STILL).mount();
    write(&a, "acknowledged", b"a");
    a.kill9();
    let mut b = a.elsewhere(&a.store, "recover-others-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    write(&b, "kept", b"b");
    b.umount();
    for name in ["0000-no-manifest", "0001-no-manifest"] {
        fs::create_dir_all(a.state.join("set-aside").join(name)).expect("made");
    }
    let done = try_recover(&a, &[]);
    assert_eq!(done.code(), 1, "{}{}", done.stdout, done.stderr);
    for name in ["0000-no-manifest", "0001-no-manifest"] {
        assert!(done.stderr.contains(name) || done.stdout.contains(name), "{name}: {}{}", done.stdout, done.stderr);
    }
    let reply: Value = serde_json::from_str(done.stdout.lines().next().expect("a line")).expect("JSON");
    let name = reply["recovered"][0]["snapshot"].as_str().expect("a name").to_owned();
    a.mount();
    assert_eq!(fs::read(a.snapshot(&name).join("acknowledged")).expect("read"), b"a");
}

/// The first mount died between the head and the note of it, the second one before it wrote anything: what the manifest names must be
/// there still when others have gone past it.
fn what_a_mount_that_broke_off_found_committed_can_be_recovered(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("broken-off");
    a.settings(STILL).environment("AXIOMFS_FAULT_POINT", "commit.head-created").mount();
    write(&a, "big", &noise(5, 3 << 20));
    for i in 0..2_000 {
        write(&a, &format!("f{i}"), &noise(i, 100));
    }
    let args = ["sync".to_owned(), a.mnt.to_string_lossy().into_owned()];
    let mut sync = a.command(&args.each_ref().map(String::as_str)).spawn().expect("started");
    // Some of these come after the freeze: the log has them alone.
    let written = |i: u32| fs::write(a.live().join(format!("late{i}")), noise(u64::from(i), 5000)).is_ok();
    let late = (0..100_000).take_while(|i| written(*i)).count();
    sync.wait().expect("ended");
    assert!((1..100_000).contains(&late), "the daemon did not die: {late}");
    a.kill9();
    a.environment("AXIOMFS_FAULT_POINT", "open.adopted");
    a.try_mount(&[]).expect_err("it dies before it writes anything");
    a.clear_dead_mount();
    let mut b = a.elsewhere(&a.store, "broken-off-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    write(&b, "kept", b"b");
    b.umount();
    a.environment("AXIOMFS_FAULT_POINT", "nowhere");
    let (name, _) = recover(&a);
    a.mount();
    for i in 0..late - 1 {
        let have = fs::read(a.snapshot(&name).join(format!("late{i}"))).unwrap_or_else(|e| panic!("late{i}: {e}"));
        assert_eq!(have, noise(i as u64, 5000), "late{i}");
    }
    assert_eq!(fs::read(a.snapshot(&name).join("big")).expect("read"), noise(5, 3 << 20));
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_again() {
    let _slot = beside_others();
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut a = TestRepo::in_bucket("lost-answer", &url_at(proxy.port, "lost-answer"));
    a.settings(ASKED).mount();
    write(&a, "file", b"0");
    a.sync();
    // The head is created, its answer is lost, and the repeated request is refused.
    let lost = Arc::new(AtomicUsize::new(0));
    let count = lost.clone();
    proxy.plan(move |seen| {
        let head = seen.method == "PUT" && seen.target.contains("/heads/");
        if head && count.fetch_add(1, Ordering::SeqCst) == 0 { Trick::LoseReply } else { Trick::Pass }
    });
    write(&a, "file", b"1");
    a.sync();
    assert!(lost.load(Ordering::SeqCst) > 0, "no answer was lost");
    assert_eq!(a.status()["state"], "ok");

    // The same, and then nobody answers any more, while changes go on.
    for (round, killed) in [(2u8, false), (3, true)] {
        let gone = Arc::new(AtomicBool::new(false));
        let switch = gone.clone();
        proxy.plan(move |seen| {
            if switch.load(Ordering::SeqCst) {
                return Trick::Refuse(503, "SlowDown");
            }
            let head = seen.method == "PUT" && seen.target.contains("/heads/");
            if head {
                switch.store(true, Ordering::SeqCst);
                return Trick::LoseReply;
            }
            Trick::Pass
        });
        write(&a, "file", &[round, 1]);
        let before = a.status_number("head/sequence");
        let sync = a.axiomfs(&["sync", text(&a.mnt)]);
        assert_eq!(sync.code(), 1, "nobody answered: {}", sync.stdout);
        assert!(gone.load(Ordering::SeqCst));
        write(&a, "file", &[round, 2]);
        write(&a, &format!("more{round}"), &noise(round.into(), 2 << 20));
        wait_for("a checkpoint has it", LIMIT, || a.status_number("live/layers") == 1);
        if killed {
            a.kill9();
        }
        proxy.plan(|_| Trick::Pass);
        if killed {
            a.mount();
            assert_eq!(set_aside(&a), 0, "our own commit was taken for another's");
        }
        a.sync();
        assert_eq!(a.status()["state"], "ok");
        assert_eq!(a.status_number("head/sequence"), before + 2, "the lost one, and what came since");
        assert_eq!(read(&a, "file").expect("read"), [round, 2]);
    }
    a.umount();
    let mut other = a.elsewhere(&a.store, "lost-answer-other");
    other.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read(&other, "file").expect("read"), [3, 2]);
    for round in [2u8, 3] {
        assert!(read(&other, &format!("more{round}")).expect("read") == noise(round.into(), 2 << 20));
    }
    other.umount();
}
