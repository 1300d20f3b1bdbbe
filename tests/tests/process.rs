//! What other programs can see of a process that holds keys.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use axiomfs_tests::place::Place;
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, binary, text};
use axiomfs_tests::run::{must, run, wait_for};
use serde_json::Value;

axiomfs_tests::on_directory_and_bucket! {
    a_passphrase_from_standard_input_leaves_the_daemon_its_descriptors,
    a_mount_in_the_background_holds_no_lock_or_pipe_of_who_started_it,
}

const USER: u32 = 65_534;
const NEEDLE: &str = "needle 7c1f in a haystack";

fn proc_file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Whether another process of `USER` can open the file.
fn user_reads(path: &PathBuf) -> bool {
    let mut head = Command::new("head");
    let done = head.args(["-c", "0"]).arg(path).uid(USER).gid(USER).stderr(Stdio::null()).status().expect("head runs");
    done.success()
}

/// Soft and hard limit of the process for `what`.
fn limits(pid: u32, what: &str) -> String {
    let limits = fs::read_to_string(proc_file(pid, "limits")).expect("read");
    let line = limits.lines().find(|line| line.starts_with(what)).expect("a line");
    line[what.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn core_limit(pid: u32) -> String {
    limits(pid, "Max core file size")
}

fn end(mut child: Child) {
    child.kill().expect("killed");
    child.wait().expect("waited for");
}

/// Runs `program` until its standard input is closed, as an unprivileged user.
fn unprivileged(program: &PathBuf, args: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(args).uid(USER).gid(USER).current_dir("/").env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("started")
}

#[test]
fn other_programs_of_the_user_cannot_look_into_the_process() {
    let _slot = beside_others();
    let repo = TestRepo::new("process-memory");
    // Where another user comes to, whatever the place it was built in.
    let program = repo.dir.join("axiomfs");
    fs::copy(binary(), &program).expect("copied");
    must("chmod", &["-R", "a+rX", text(&repo.dir)], LIMIT);
    // Waits for its passphrase. The other program shows that a process without care can be looked into.
    let ours = unprivileged(&program, &["key", "rotate", text(&repo.store), "--passphrase-fd", "0"]);
    let other = unprivileged(&PathBuf::from("/bin/cat"), &[]);
    wait_for("no core file", LIMIT, || core_limit(ours.id()) == "0 0");
    for name in ["environ", "mem", "maps"] {
        assert!(user_reads(&proc_file(other.id(), name)), "{name} of any program can be read by its user");
        assert!(!user_reads(&proc_file(ours.id(), name)), "{name} of axiomfs can be read by its user");
    }
    end(ours);
    end(other);
}

#[test]
fn the_daemon_leaves_no_core_file_and_shows_no_passphrase() {
    let _slot = beside_others();
    let repo = TestRepo::without_init("process-passphrase");
    let axiomfs = |args: &[&str]| {
        let done = run(repo.command(args).env("AXIOMFS_PASSPHRASE", NEEDLE), LIMIT);
        assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
        done
    };
    axiomfs(&["init", text(&repo.store)]);
    let args = [vec!["mount".to_owned()], repo.mount_args(), vec!["--json".to_owned()]].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // In the background, as people use it.
    let done = axiomfs(&args);
    let pid = serde_json::from_str::<Value>(&done.stdout).expect("JSON")["pid"].as_u64().expect("a number") as u32;
    assert_eq!(core_limit(pid), "0 0");
    let status = fs::read_to_string(proc_file(pid, "status")).expect("a status");
    let locked =
        status.lines().find_map(|line| line.strip_prefix("VmLck:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    assert!(
        (4..=256).contains(&locked.expect("a number")),
        "keys are locked into memory, and little else: {locked:?} KiB"
    );
    for name in ["environ", "cmdline"] {
        let mut shown = Vec::new();
        let read = fs::File::open(proc_file(pid, name)).and_then(|mut file| file.read_to_end(&mut shown));
        match read {
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
            Ok(_) => assert!(!String::from_utf8_lossy(&shown).contains(NEEDLE), "the passphrase stands in {name}"),
        }
    }
    axiomfs(&["umount", text(&repo.mnt)]);
}

/// The number is free once the passphrase is read: nothing that the daemon needs may get it.
fn a_passphrase_from_standard_input_leaves_the_daemon_its_descriptors(place: Place) {
    let _slot = beside_others();
    let repo = place.repo("process-input");
    let args = [vec!["mount".to_owned()], repo.mount_args(), vec!["--passphrase-fd".into(), "0".into()]].concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mount = |args: &[&str]| {
        let mut command = repo.command(args);
        command.env_remove("AXIOMFS_PASSPHRASE").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        // A mount that is refused may be over before it reads.
        drop(child.stdin.take().expect("a pipe").write_all(repo.passphrase().as_bytes()));
        child.wait_with_output().expect("waited for")
    };
    let done = mount(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::write(repo.live().join("file"), b"in the store").expect("written");
    repo.sync();
    assert_eq!(fs::read(repo.live().join("file")).expect("read"), b"in the store");
    // The lock is still held.
    let second = mount(&args);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success(), "mounted twice");
    let other = repo.dir.join("other");
    fs::create_dir(&other).expect("made");
    let elsewhere: Vec<&str> =
        args.iter().map(|arg| if *arg == text(&repo.mnt) { text(&other) } else { arg }).collect();
    let third = mount(&elsewhere);
    let said = format!("{said}{}", String::from_utf8_lossy(&third.stderr));
    assert!(!third.status.success() && said.contains("in use"), "{said}");
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert!(done.status.success(), "{}", done.stderr);
}

/// A job that cron starts holds a lock while it runs; its output is read to the end.
fn a_mount_in_the_background_holds_no_lock_or_pipe_of_who_started_it(place: Place) {
    let _slot = beside_others();
    let repo = place.repo("process-inherited");
    let lock = repo.dir.join("job.lock");
    let script = "exec 8>&1 9>\"$0\"; flock -n 9 || exit 3; ulimit -Sn 256; \"$@\"";
    let mut job = Command::new("sh");
    job.args(["-c", script, text(&lock), text(&binary()), "mount"]).args(repo.mount_args()).arg("--json");
    job.envs(repo.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir(&repo.dir);
    let done = run(&mut job, LIMIT);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    assert!(!done.stdout.contains("still held open"), "{}", done.stdout);
    let pid = serde_json::from_str::<Value>(&done.stdout).expect("JSON")["pid"].as_u64().expect("a number") as u32;
    must("flock", &["-n", text(&lock), "true"], LIMIT);
    for open in fs::read_dir(proc_file(pid, "fd")).expect("listed") {
        let file = fs::read_link(open.expect("an entry").path()).unwrap_or_default();
        assert_ne!(file, lock);
    }
    // What it needs itself is there, and it may have as many files open as it is let.
    fs::write(repo.live().join("file"), b"in the store").expect("written");
    repo.sync();
    let limits = limits(pid, "Max open files");
    let (soft, hard) = limits.split_once(' ').expect("two");
    assert_eq!(soft, hard);
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert!(done.status.success(), "{}", done.stderr);
}
