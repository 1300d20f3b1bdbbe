//! rsync as a source and as a target: what it copies is the same to the bit by its own check and by ours.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axiomfs_tests::observe::{Ignore, compare_dirs};
use axiomfs_tests::odd_tree::{plant, plant_many, touch};
use axiomfs_tests::repo::{TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::rng::{noise, soak};
use axiomfs_tests::run::{Finished, must, run, tail, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// As one makes a backup of a whole system. Without the last rsync leaves times that differ by less than a second, on any filesystem.
const ALL: &[&str] = &["-aHAXS", "--numeric-ids", "--delete", "--modify-window=-1"];
const LONG: Duration = Duration::from_secs(300);

/// The directory's contents, as rsync names them.
fn within(dir: &Path) -> String {
    format!("{}/", text(dir))
}

/// rsync with these options, its output with names as bytes escaped.
fn rsync(options: &[&str], from: &str, to: &str) -> Finished {
    let mut command = Command::new("rsync");
    command.args(options).args([from, to]).env("LC_ALL", "C");
    run(&mut command, LONG)
}

/// rsync that must succeed; what it printed.
fn copied(options: &[&str], from: &Path, to: &Path) -> String {
    let done = rsync(options, &within(from), &within(to));
    assert!(
        done.status.success() && done.stderr.is_empty(),
        "rsync {options:?} to {} ended with {}: {}{}",
        to.display(),
        done.status,
        tail(&done.stdout),
        tail(&done.stderr)
    );
    done.stdout
}

/// A further run with these options finds nothing to do.
fn nothing_to_do(options: &[&str], from: &Path, to: &Path, when: &str) {
    let out = copied(&[ALL, options, &["-i"]].concat(), from, to);
    assert!(out.is_empty(), "{when}: rsync {options:?} from {} would change:\n{}", from.display(), tail(&out));
}

/// rsync by checksum and our own walk agree that nothing differs.
fn same(from: &Path, to: &Path, when: &str) {
    nothing_to_do(&["-c"], from, to, when);
    let found = compare_dirs(from, to, Ignore::default());
    assert!(found.is_empty(), "{when}: {} differs from its source:\n{}", to.display(), found.join("\n"));
}

#[test]
fn a_tree_with_one_of_everything_arrives_and_a_second_run_transfers_nothing() {
    let _slot = beside_others();
    let local = scratch("rsync-source");
    let (source, out) = (local.path().join("source"), local.path().join("out"));
    plant(&source);
    let mut repo = TestRepo::new("rsync");
    repo.mount();
    let copy = repo.live().join("copy");
    // What must go, or change its kind.
    fs::create_dir_all(copy.join("gone/deep")).expect("made");
    fs::create_dir_all(copy.join("contents/1 bytes/within")).expect("made");
    fs::write(copy.join("names"), b"a file where a directory comes").expect("written");
    copied(ALL, &source, &copy);
    same(&source, &copy, "at once");
    // A second backup of what has changed meanwhile.
    fs::rename(source.join("contents"), source.join("renamed")).expect("renamed");
    fs::remove_dir_all(source.join("directories")).expect("removed");
    fs::write(source.join("renamed/4096 bytes"), noise(77, 5000)).expect("written");
    fs::remove_file(source.join("m")).expect("one name of four");
    touch(&source.join("holes/islands"), (-5, 5));
    must("setfacl", &["-bk", text(&source.join("acls"))], LONG);
    copied(ALL, &source, &copy);
    same(&source, &copy, "after a second backup");
    repo.kill9();
    repo.mount();
    same(&source, &copy, "after a crash");
    fs::create_dir(repo.snapshot("s")).expect("taken");
    fs::remove_dir_all(&copy).expect("removed");
    let snapshot = repo.snapshot("s").join("copy");
    copied(ALL, &snapshot, &out);
    nothing_to_do(&["-n"], &snapshot, &out, "out of the snapshot");
    same(&source, &out, "out of the snapshot");
    repo.remount_from_the_store_alone();
    nothing_to_do(&["-nc"], &out, &snapshot, "the snapshot from the store alone");
    copied(ALL, &out, &copy);
    repo.remount_from_the_store_alone();
    same(&source, &copy, "from the store alone");
}

#[test]
fn a_directory_of_100000_entries_goes_in_and_out() {
    let _slot = alone();
    let local = scratch("rsync-many");
    let (source, out) = (local.path().join("source"), local.path().join("out"));
    plant_many(&source, 100_000, if soak() { 1 } else { 50 });
    let mut repo = TestRepo::new("rsync-many");
    repo.mount();
    let copy = repo.live().join("copy");
    copied(ALL, &source, &copy);
    nothing_to_do(&["-c"], &source, &copy, "at once");
    repo.remount_from_the_store_alone();
    fs::create_dir(repo.snapshot("s")).expect("taken");
    let snapshot = repo.snapshot("s").join("copy");
    copied(ALL, &snapshot, &out);
    nothing_to_do(&["-n"], &source, &out, "out of the snapshot");
}

#[test]
fn files_are_updated_in_place_appended_to_and_sent_whole() {
    let _slot = beside_others();
    let local = scratch("rsync-update");
    let source = local.path().join("source");
    fs::create_dir(&source).expect("made");
    let mut repo = TestRepo::new("rsync-update");
    repo.mount();
    let ways: [&[&str]; 6] = [
        &["--inplace", "--no-W"],
        &["--inplace", "-W"],
        // With `-S` rsync 3.2.7 sends the file again, on any filesystem.
        &["--append-verify", "--no-S"],
        &["--no-W"],
        &["-W"],
        &["--partial", "--no-W", "-z"],
    ];
    let mut bytes = noise(1, 6 << 20);
    fs::write(source.join("file"), &bytes).expect("written");
    for way in ways {
        copied(&[ALL, way].concat(), &source, &repo.live().join(way.concat()));
    }
    // Changed in the middle, and grown: only what grows suits all of them.
    for (round, change) in [(0, false), (1, true)] {
        if change {
            bytes[3_000_000..3_100_000].copy_from_slice(&noise(2, 100_000));
        }
        bytes.extend(noise(10 + round, 1_234_567));
        fs::write(source.join("file"), &bytes).expect("written");
        for way in ways {
            let (copy, shown) = (repo.live().join(way.concat()), format!("{way:?}, round {round}"));
            let said = copied(&[ALL, way, &["--stats"]].concat(), &source, &copy);
            same(&source, &copy, &shown);
            if way.contains(&"--no-W") || (way.contains(&"--append-verify") && !change) {
                assert!(literal(&said) < 2 << 20, "{shown}: sent what was there: {said}");
            }
        }
        repo.kill9();
        repo.mount();
    }
    repo.remount_from_the_store_alone();
    for way in ways {
        same(&source, &repo.live().join(way.concat()), "from the store alone");
    }
}

/// Bytes of files that rsync sent, by its `--stats`.
fn literal(stats: &str) -> u64 {
    let line = stats.lines().find_map(|l| l.strip_prefix("Literal data: ")).expect("statistics");
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

#[test]
fn link_dest_shares_what_has_not_changed_with_an_earlier_run() {
    let _slot = beside_others();
    let local = scratch("rsync-link-dest");
    let source = local.path().join("source");
    plant(&source);
    let mut repo = TestRepo::new("rsync-link-dest");
    repo.mount();
    let (monday, tuesday) = (repo.live().join("monday"), repo.live().join("tuesday"));
    copied(ALL, &source, &monday);
    fs::write(source.join("contents/513 bytes"), b"changed").expect("written");
    let linked = format!("--link-dest={}", text(&monday));
    copied(&[ALL, &[linked.as_str()]].concat(), &source, &tuesday);
    repo.remount_from_the_store_alone();
    let inode = |at: &Path| fs::symlink_metadata(at).expect("metadata").ino();
    let shared = |name: &str| inode(&monday.join(name)) == inode(&tuesday.join(name));
    for name in ["contents/512 bytes", "m", "holes/islands", "acls/masked", "attributes/program", "times/1/file"] {
        assert!(shared(name), "{name} isn't the file of the earlier run");
    }
    assert!(!shared("contents/513 bytes"), "what has changed is shared");
    assert_eq!(fs::metadata(monday.join("contents/513 bytes")).expect("metadata").len(), 513);
    nothing_to_do(&["-c", &linked], &source, &tuesday, "from the store alone");
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_was_after_the_daemon_was_killed() {
    let _slot = beside_others();
    let local = scratch("rsync-partial");
    let source = local.path().join("source");
    fs::create_dir(&source).expect("made");
    fs::write(source.join("large"), noise(1, 24 << 20)).expect("written");
    for i in 0..200 {
        fs::write(source.join(format!("small {i}")), noise(i, 3000)).expect("written");
    }
    let mut repo = TestRepo::new("rsync-partial");
    repo.mount();
    let copy = repo.live().join("copy");
    fs::create_dir(&copy).expect("made");
    let begin = || {
        let mut command = Command::new("rsync");
        command.args(ALL).args(["--partial", "--bwlimit=4m", &within(&source), &within(&copy)]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rsync starts")
    };
    let half = || {
        let sizes = fs::read_dir(&copy).expect("listed").flatten().filter_map(|e| e.metadata().ok());
        sizes.map(|m| m.len()).max().unwrap_or(0) > 6 << 20
    };
    // The daemon dies under rsync.
    let mut first = begin();
    wait_for("a quarter is there", LONG, half);
    repo.kill9();
    wait_for("rsync gives up", LONG, || first.try_wait().expect("waited").is_some());
    assert!(!first.wait().expect("waited").success(), "rsync didn't notice that the mount died");
    repo.mount();
    // rsync is interrupted and leaves what it has; then the daemon dies.
    copied(&[ALL, &["--exclude=large", "--delete-excluded"]].concat(), &source, &copy);
    let mut second = begin();
    wait_for("a quarter is there", LONG, half);
    let pid = Pid::from_raw(second.id() as i32).expect("a process");
    kill_process(pid, Signal::TERM).expect("rsync is interrupted");
    second.wait().expect("waited");
    // Its other process keeps what it has after the first has ended.
    wait_for("what was sent is kept", LONG, || copy.join("large").exists());
    let part = fs::metadata(copy.join("large")).expect("what was sent is kept").len();
    assert!(part > 6 << 20, "only {part} bytes are kept");
    repo.kill9();
    repo.mount();
    assert_eq!(fs::metadata(copy.join("large")).expect("kept").len(), part, "after the crash");
    let said = copied(&[ALL, &["--partial", "--no-W", "--stats"]].concat(), &source, &copy);
    assert!(literal(&said) < (19 << 20), "what was kept was sent again: {said}");
    same(&source, &copy, "in the end");
}

/// An rsync daemon on this machine, ended with its test.
struct Remote {
    child: Child,
    url: String,
}

impl Remote {
    /// Serves `root` for reading and writing.
    fn serve(root: &Path, scratch: &Path) -> Remote {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let settings = scratch.join("rsyncd.conf");
        let written = format!(
            "address = 127.0.0.1\nport = {port}\nuid = root\ngid = root\nuse chroot = yes\nmunge symlinks = no\nnumeric ids = yes\n\
             log file = /dev/null\npid file = {}\n[all]\npath = {}\nread only = no\n",
            text(&scratch.join("rsyncd.pid")),
            text(root)
        );
        fs::write(&settings, written).expect("settings");
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", "--config", text(&settings)]);
        let child = command.stdin(Stdio::null()).spawn().expect("rsync starts");
        wait_for("the rsync daemon answers", LONG, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Remote { child, url: format!("rsync://127.0.0.1:{port}/all/") }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Err(e) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("the rsync daemon can't be ended: {e}");
        }
    }
}

#[test]
fn a_remote_end_sends_and_receives_over_the_network() {
    let _slot = beside_others();
    let local = scratch("rsync-remote");
    let (source, settings) = (local.path().join("source"), local.path());
    plant(&source);
    let mut repo = TestRepo::new("rsync-remote");
    repo.mount();
    let (pulled, pushed) = (repo.live().join("pulled"), repo.live().join("pushed"));
    fs::create_dir(&pushed).expect("made");
    let over = |options: &[&str], from: &str, to: &str| {
        let done = rsync(&[ALL, options].concat(), from, to);
        assert!(done.status.success() && done.stderr.is_empty(), "{} {}", tail(&done.stdout), tail(&done.stderr));
        done.stdout
    };
    let remote = Remote::serve(&source, settings);
    for way in [&["-W"][..], &["--no-W", "-z", "-c"]] {
        over(way, &remote.url, &within(&pulled));
        same(&source, &pulled, "pulled");
    }
    assert_eq!(over(&["-c", "-i"], &remote.url, &within(&pulled)), "", "pulled again");
    drop(remote);
    let remote = Remote::serve(&pushed, settings);
    over(&[], &within(&source), &remote.url);
    same(&source, &pushed, "pushed");
    assert_eq!(over(&["-c", "-i"], &within(&source), &remote.url), "", "pushed again");
}
