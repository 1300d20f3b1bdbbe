//! The verbs at their edges: paths through links, signals at the wrong moment, streams nobody reads.

use std::fs;
use std::io::{Read, pipe};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, text};
use axiomfs_tests::run::{Finished, must, run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::write_noise;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What takes no time worth mentioning.
const SOON: Duration = Duration::from_secs(5);

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).expect("a process id"), signal).expect("sent");
}

/// What a mount says before it knows whether the passphrase is right, which it isn't: so none is left behind, whatever it thinks of the
/// rest.
fn never_mounts(repo: &TestRepo, args: &[&str]) -> Finished {
    run(repo.command(args).env("AXIOMFS_PASSPHRASE", "wrong"), LIMIT)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn a_directory_that_others_use_is_no_cache_and_stays_as_it_was() {
    let _slot = beside_others();
    let repo = TestRepo::new("shared-cache");
    let shared = repo.dir.join("shared");
    let precious = repo.dir.join("precious");
    fs::write(&precious, b"not a lock").expect("written");
    fs::create_dir(&shared).expect("made");
    symlink(&precious, shared.join("lock")).expect("planted");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("for all");
    let mount =
        |cache: &Path| never_mounts(&repo, &["mount", text(&repo.store), text(&repo.mnt), "--cache", text(cache)]);
    for planted in [true, false] {
        if !planted {
            fs::remove_file(shared.join("lock")).expect("removed");
            fs::write(shared.join("file"), b"of somebody").expect("written");
        }
        let done = mount(&shared);
        assert!(done.code() == 1 && done.stderr.contains("shared/axiomfs"), "{}", done.stderr);
        assert_eq!(fs::metadata(&shared).expect("there").permissions().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read(&precious).expect("there"), b"not a lock");
    }
    // A link in a directory of our own is not followed either.
    let own = repo.dir.join("own");
    fs::create_dir(&own).expect("made");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).expect("for us");
    symlink(&precious, own.join("lock")).expect("planted");
    assert_eq!(mount(&own).code(), 1);
    assert_eq!(fs::read(&precious).expect("there"), b"not a lock");
}

#[test]
fn what_was_mounted_through_a_link_is_unmounted_through_it() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("mount-link");
    let link = repo.dir.join("link");
    symlink(&repo.mnt, &link).expect("linked");
    for stale in [false, true] {
        repo.mount();
        if stale {
            signal(repo.pid(), Signal::KILL);
            repo.wait_daemon();
        }
        let done = repo.axiomfs(&["umount", text(&link)]);
        assert!(done.status.success(), "stale {stale}: {}", done.stderr);
        assert!(fs::read_dir(&repo.mnt).expect("the mount point").next().is_none(), "it is still mounted");
        if !stale {
            assert!(repo.wait_daemon().success());
        }
    }
}

/// A second place of a mount; gone when dropped.
struct Bound<'a>(&'a Path);

impl<'a> Bound<'a> {
    fn new(mount: &Path, at: &'a Path) -> Self {
        must("mount", &["--bind", text(mount), text(at)], LIMIT);
        Self(at)
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let done = run(std::process::Command::new("umount").args(["-l", text(self.0)]), LIMIT);
        if !done.status.success() {
            eprintln!("{}: {}", self.0.display(), done.stderr);
        }
    }
}

#[test]
fn a_mount_that_is_mounted_elsewhere_too_is_not_called_drained() {
    let _slot = alone();
    for in_a_namespace in [false, true] {
        let mut repo = TestRepo::new("mounted-twice");
        repo.mount();
        fs::write(repo.live().join("file"), b"kept").expect("written");
        let other = repo.dir.join("other");
        fs::create_dir(&other).expect("made");
        let mut holder = in_a_namespace.then(|| {
            let mut unshare = std::process::Command::new("unshare");
            // Without the mounts of other tests, which would live on with it; it ends with its input.
            let others = r#"while read -r _ at _; do case $at in "$0") ;; */axiomfs-*) umount -l "$at" ;; esac; done < /proc/self/mounts"#;
            let hold = format!("{others}; echo; cat");
            unshare.args(["-m", "sh", "-c", &hold, text(&repo.mnt)]);
            let child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut child = child.expect("started");
            child.stdout.take().expect("a pipe").read_exact(&mut [0]).expect("it is there");
            child
        });
        let bound = (!in_a_namespace).then(|| Bound::new(&repo.mnt, &other));
        let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
        assert!(done.code() == 1 && done.took < Duration::from_secs(60), "{:?}: {}", done.took, done.stdout);
        let (place, word) = if in_a_namespace { (&repo.mnt, "as process ") } else { (&other, "unmount it there") };
        let said = format!("still mounted on {}", place.display());
        assert!(done.stderr.contains(&said) && done.stderr.contains(word), "{}", done.stderr);
        assert!(repo.is_running());
        drop(bound);
        if let Some(holder) = &mut holder {
            drop(holder.stdin.take());
            holder.wait().expect("waited for");
        }
        assert!(repo.wait_daemon().success());
        repo.mount();
        assert_eq!(fs::read(repo.live().join("file")).expect("read"), b"kept");
        repo.umount();
    }
}

/// A repository in a bucket that stops to answer once a mount knows what it is: the mount goes on opening it.
fn opening(name: &str) -> (TestRepo, Arc<Proxy>) {
    let proxy = Arc::new(Proxy::start(S3Server::shared().port));
    let repo = TestRepo::in_bucket(name, &url_at(proxy.port, name));
    proxy.plan(|request| match request.target.contains("/config") {
        true => Trick::Pass,
        false => Trick::Silence(Duration::from_secs(120)),
    });
    (repo, proxy)
}

#[test]
fn a_signal_ends_a_mount_that_is_being_opened() {
    let _slot = alone();
    for (name, by) in [("opening-term", Signal::TERM), ("opening-int", Signal::INT)] {
        let (mut repo, proxy) = opening(name);
        let before = proxy.requests();
        let mut command = repo.command(&["mount"]);
        let mut child =
            command.args(repo.mount_args()).arg("-f").stderr(Stdio::null()).spawn().expect("it can be started");
        wait_for("it asks for more than the first object", LIMIT, || proxy.requests() > before + 1);
        thread::sleep(Duration::from_millis(300));
        signal(child.id(), by);
        let begun = Instant::now();
        let status = child.wait().expect("waited for");
        assert!(begun.elapsed() < SOON, "it went on for {:?}", begun.elapsed());
        assert_eq!(status.code(), Some(1), "{status}");
        proxy.plan(|_| Trick::Pass);
        repo.mount().umount();
    }
}

#[test]
fn who_ends_mount_while_it_waits_for_the_daemon_ends_the_daemon() {
    let _slot = alone();
    let (mut repo, proxy) = opening("opening-behind");
    let before = proxy.requests();
    let mut command = repo.command(&["mount"]);
    let mut parent = command.args(repo.mount_args()).stderr(Stdio::null()).spawn().expect("it can be started");
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let children = || fs::read_to_string(&children).unwrap_or_default();
    wait_for("the daemon asks the store", LIMIT, || proxy.requests() > before + 1 && !children().is_empty());
    let daemon = children().trim().to_owned();
    thread::sleep(Duration::from_millis(300));
    signal(parent.id(), Signal::KILL);
    parent.wait().expect("waited for");
    let gone = || !fs::read_to_string(format!("/proc/{daemon}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    wait_for("the daemon ends", SOON, gone);
    proxy.plan(|_| Trick::Pass);
    repo.mount().umount();
}

#[test]
fn who_mounts_while_the_last_mount_drains_is_told_to_wait() {
    let _slot = alone();
    let mut repo = TestRepo::new("draining");
    let delay = repo.dir.join("delay");
    fs::write(&delay, "3000").expect("written");
    repo.environment("AXIOMFS_FAULT_STORE_DELAY", text(&delay)).mount();
    write_noise(&repo.live().join("file"), 1, 8 << 20);
    let done = run(std::process::Command::new("umount").arg(&repo.mnt), LIMIT);
    assert!(done.status.success(), "{}", done.stderr);
    let mut said = String::new();
    wait_for("it says that it drains", SOON, || {
        let args = repo.mount_args();
        let args: Vec<&str> = std::iter::once("mount").chain(args.iter().map(String::as_str)).collect();
        said = never_mounts(&repo, &args).stderr;
        said.contains("unmounted, still sending to")
    });
    assert!(said.contains("wait") && !said.contains("axiomfs umount"), "{said}");
    assert!(repo.wait_daemon().success());
    repo.mount().umount();
}

#[test]
fn a_standard_error_that_nobody_reads_changes_no_exit_code() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("closed-stderr");
    repo.mount();
    let export = repo.dir.join("exported");
    let cases: [(&[&str], i32); 3] = [
        (&["status", "/nowhere", "--json"], 1),
        (&["frobnicate", "--json"], 2),
        (&["key", "export", text(&repo.store), text(&export), "--json"], 0),
    ];
    for (args, code) in cases {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let done = repo.command(args).stderr(writer).output().expect("it can be started");
        let said = String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(code), "{args:?}: {said}");
        assert_eq!(json(&said)["ok"], code == 0, "{args:?}: {said}");
    }
    assert!(export.exists());
}

#[test]
fn wrong_use_says_in_json_what_is_wrong() {
    let _slot = beside_others();
    let repo = TestRepo::new("json-use");
    for (args, word) in [
        (&["mount", "--json", "/srv/vault"][..], "MOUNTPOINT"),
        (&["mount", "--json", "/srv/vault", "/mnt", "-o", "nosuid"][..], "allow_other"),
    ] {
        let done = repo.axiomfs(args);
        assert_eq!(done.code(), 2);
        let said = json(&done.stdout);
        assert!(said["msg"].as_str().is_some_and(|msg| msg.contains(word)), "{args:?}: {said}");
    }
}

#[test]
fn stat_takes_paths_as_other_programs_do() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("stat-paths");
    repo.mount();
    fs::create_dir(repo.live().join("dir")).expect("made");
    fs::write(repo.live().join("file"), b"something").expect("written");
    let link = repo.dir.join("link");
    symlink(repo.live(), &link).expect("linked");
    for path in [link.join("file"), repo.live().join("dir/../file"), link.join("dir/../file")] {
        let done = repo.axiomfs(&["stat", text(&path), "--json"]);
        assert!(done.status.success(), "{}: {}", path.display(), done.stderr);
        assert_eq!(json(&done.stdout)["size"], 9, "{}", done.stdout);
    }
    let mut command = repo.command(&["stat", "../file", "--json"]);
    let done = run(command.current_dir(repo.live().join("dir")), LIMIT);
    assert!(done.status.success(), "{}", done.stderr);
    let missing = repo.axiomfs(&["stat", text(&repo.live().join("missing"))]);
    assert!(missing.code() == 1 && missing.stderr.contains("live/missing"), "{}", missing.stderr);
    assert!(!missing.stderr.contains("as in"), "its form was right: {}", missing.stderr);
}
