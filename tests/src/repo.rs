//! A temporary repository with a daemon that never outlives its test, however the test ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::run::{Finished, run, tail, wait_for};

/// The longest a mount, an unmount or a control command may take in a test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Time for other threads' children to let go of a mount.
const SETTLING: Duration = Duration::from_secs(10);

static MACHINE: RwLock<()> = RwLock::new(());

/// Held by a test that may run beside others.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Held by a test that measures time or memory, or fills disks: nothing else of its binary runs meanwhile.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The `axiomfs` binary under test: `AXIOMFS_BIN`, or the one built beside this test.
///
/// # Panics
/// When there is none: the tests can't run without it.
pub fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("AXIOMFS_BIN") {
        return PathBuf::from(path);
    }
    let me = std::env::current_exe().expect("a test knows its own path");
    let built = me.ancestors().nth(2).map(|profile| profile.join("axiomfs")).unwrap_or_default();
    assert!(
        built.is_file(),
        "{} is missing: build it first (cargo build -p axiomfs), or set AXIOMFS_BIN",
        built.display()
    );
    built
}

/// Where temporary repositories are made: `AXIOMFS_TEST_DIR` or the system's directory for temporary files.
pub fn scratch(name: &str) -> tempfile::TempDir {
    let base = std::env::var_os("AXIOMFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix(&format!("axiomfs-{name}-")).tempdir_in(base).expect("a temporary directory")
}

/// A repository in a temporary directory, and its mount while there is one.
#[derive(Debug)]
pub struct TestRepo {
    /// The repository.
    pub store: PathBuf,
    /// Log, staged packs, manifest.
    pub state: PathBuf,
    /// What can be deleted at any time.
    pub cache: PathBuf,
    /// The mount point.
    pub mnt: PathBuf,
    /// The directory all of these are in.
    pub dir: PathBuf,
    passphrase: String,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
    daemon: Option<Daemon>,
    _scratch: Option<tempfile::TempDir>,
}

#[derive(Debug)]
struct Daemon {
    child: Child,
    watchdog: Arc<Watchdog>,
    log: PathBuf,
}

#[derive(Debug, Default)]
struct Watchdog {
    pid: AtomicI32,
    done: AtomicBool,
    fired: AtomicBool,
}

impl TestRepo {
    /// An initialised repository, not mounted.
    pub fn new(name: &str) -> TestRepo {
        let repo = TestRepo::without_init(name);
        let done = repo.axiomfs(&["init", text(&repo.store), "--kdf-memory", "64MiB"]);
        assert!(done.status.success(), "init failed: {}{}", done.stdout, done.stderr);
        repo
    }

    /// An initialised repository in a bucket, not mounted.
    pub fn in_bucket(name: &str, url: &str) -> TestRepo {
        let mut repo = TestRepo::without_init(name);
        repo.store = PathBuf::from(url);
        let done = repo.axiomfs(&["init", url, "--kdf-memory", "64MiB"]);
        assert!(done.status.success(), "init failed: {}{}", done.stdout, done.stderr);
        repo
    }

    /// The directories of a repository that doesn't exist yet.
    pub fn without_init(name: &str) -> TestRepo {
        let scratch = scratch(name);
        let dir = scratch.path().to_owned();
        let repo = TestRepo {
            store: dir.join("store"),
            state: dir.join("state"),
            cache: dir.join("cache"),
            mnt: dir.join("mnt"),
            dir,
            passphrase: "correct horse battery staple".into(),
            config: None,
            environment: Vec::new(),
            daemon: None,
            _scratch: Some(scratch),
        };
        fs::create_dir(&repo.mnt).expect("a mount point");
        repo
    }

    /// A second place to mount a store from: own state, cache and mount point, all empty.
    pub fn elsewhere(&self, store: &Path, name: &str) -> TestRepo {
        let mut other = TestRepo::without_init(name);
        other.store = store.to_owned();
        other.passphrase = self.passphrase.clone();
        other.config = self.config.clone();
        other
    }

    /// Uses these settings from the next mount on.
    pub fn settings(&mut self, yaml: &str) -> &mut TestRepo {
        let path = self.dir.join("settings.yaml");
        fs::write(&path, format!("version: 1\n{yaml}")).expect("settings can be written");
        self.config = Some(path);
        self
    }

    /// Sets a variable for the daemon from the next mount on.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut TestRepo {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// `live/` of the mount.
    pub fn live(&self) -> PathBuf {
        self.mnt.join("live")
    }

    /// `snapshots/NAME` of the mount.
    pub fn snapshot(&self, name: &str) -> PathBuf {
        self.mnt.join("snapshots").join(name)
    }

    /// A command of the binary, with the passphrase in its environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).env("AXIOMFS_PASSPHRASE", &self.passphrase).current_dir(&self.dir);
        if self.store.starts_with("s3:") {
            command.envs(crate::s3::environment());
        }
        command.env("XDG_STATE_HOME", self.dir.join("xdg-state")).env("XDG_CACHE_HOME", self.dir.join("xdg-cache"));
        command
    }

    /// The passphrase.
    pub fn passphrase(&self) -> &str {
        &self.passphrase
    }

    /// Runs a command of the binary to its end.
    pub fn axiomfs(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args), LIMIT)
    }

    /// The arguments that mount this repository, after `mount`.
    pub fn mount_args(&self) -> Vec<String> {
        let mut args = vec![text(&self.store).to_owned(), text(&self.mnt).to_owned()];
        args.extend(["--state".into(), text(&self.state).into(), "--cache".into(), text(&self.cache).into()]);
        if let Some(config) = &self.config {
            args.extend(["--config".into(), text(config).into()]);
        }
        args
    }

    /// Tries to mount with further arguments; an error is what the daemon said before it ended.
    pub fn try_mount(&mut self, more: &[&str]) -> Result<(), String> {
        assert!(self.daemon.is_none(), "the test mounted twice");
        let log = self.dir.join("daemon.log");
        let out =
            fs::OpenOptions::new().create(true).append(true).open(&log).expect("a file for the daemon's messages");
        let before = fs::metadata(&log).map_or(0, |m| m.len());
        let mut command = self.command(&["mount"]);
        command.args(self.mount_args()).arg("-f").args(more).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.stdout(out.try_clone().expect("a descriptor")).stderr(out);
        let mut child = command.spawn().expect("the daemon can be started");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                let said = fs::read(&log).unwrap_or_default();
                let said = String::from_utf8_lossy(&said[before as usize..]).into_owned();
                return Err(format!("mount ended with {status}: {said}"));
            }
            // Read, because of a dead mount the kernel still knows names and attributes.
            if fs::read(self.mnt.join(".axiomfs/status")).is_ok() {
                break;
            }
            if start.elapsed() > LIMIT {
                let killed = child.kill().and_then(|()| child.wait());
                lazy_unmount(&self.mnt);
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("the mount didn't answer within {LIMIT:?} ({killed:?}): {said}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        let watchdog = watch(child.id() as i32, self.mnt.clone());
        self.daemon = Some(Daemon { child, watchdog, log });
        Ok(())
    }

    /// Mounts.
    ///
    /// # Panics
    /// With what the daemon said, when it fails.
    pub fn mount(&mut self) -> &mut TestRepo {
        self.try_mount(&[]).unwrap_or_else(|e| panic!("{e}"));
        self
    }

    /// Unmounts by `axiomfs umount` and waits for the daemon's end.
    ///
    /// # Panics
    /// When either fails.
    pub fn umount(&mut self) -> &mut TestRepo {
        // A child that another thread of this test starts holds our open files until it runs its program.
        let start = Instant::now();
        let mut done = self.axiomfs(&["umount", text(&self.mnt)]);
        while done.stderr.contains("is busy") && start.elapsed() < SETTLING {
            thread::sleep(Duration::from_millis(100));
            done = self.axiomfs(&["umount", text(&self.mnt)]);
        }
        assert!(
            done.status.success(),
            "umount failed with {}: {}{}\n{}",
            done.status,
            done.stdout,
            done.stderr,
            self.daemon_log()
        );
        let status = self.wait_daemon();
        assert!(status.success(), "the daemon ended with {status}: {}", self.daemon_log());
        self
    }

    /// Waits for the daemon's own end.
    pub fn wait_daemon(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("a daemon to wait for");
        let start = Instant::now();
        let status = loop {
            if let Some(status) = daemon.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if start.elapsed() > LIMIT {
                self.daemon = Some(daemon);
                let log = self.daemon_log();
                self.kill9();
                panic!("the daemon didn't end within {LIMIT:?} of being unmounted: {log}");
            }
            thread::sleep(Duration::from_millis(2));
        };
        daemon.watchdog.done.store(true, Ordering::SeqCst);
        status
    }

    /// Kills the daemon at once, as a crash would. The dead mount stays: mounting again must cope with it.
    pub fn kill9(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        daemon.watchdog.done.store(true, Ordering::SeqCst);
        if let Err(e) = daemon.child.kill() {
            eprintln!("the daemon was gone already: {e}");
        }
        daemon.child.wait().expect("the killed daemon can be waited for");
    }

    /// Clears away what a killed daemon left at the mount point.
    pub fn clear_dead_mount(&self) {
        lazy_unmount(&self.mnt);
    }

    /// Deletes the state and cache directories of an unmounted repository: what is left is the store.
    pub fn forget_local_state(&self) {
        for dir in [&self.state, &self.cache].into_iter().filter(|dir| dir.exists()) {
            fs::remove_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
    }

    /// Mounts again with nothing but the store.
    pub fn remount_from_the_store_alone(&mut self) {
        self.umount().forget_local_state();
        self.mount();
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a mounted repository").child.id()
    }

    /// Whether the daemon still runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|d| d.child.try_wait().is_ok_and(|s| s.is_none()))
    }

    /// What the daemon has written to its output so far, its end at least.
    pub fn daemon_log(&self) -> String {
        let path = self.daemon.as_ref().map_or_else(|| self.dir.join("daemon.log"), |d| d.log.clone());
        let bytes = fs::read(path).unwrap_or_default();
        tail(&String::from_utf8_lossy(&bytes)).to_owned()
    }

    /// The daemon's peak resident memory in bytes so far.
    pub fn peak_rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running daemon");
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("the kernel reports VmHWM");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB");
        kib << 10
    }

    /// `axiomfs sync --json`: everything is in the store when it returns.
    pub fn sync(&self) -> Value {
        let done = self.axiomfs(&["sync", text(&self.mnt), "--json"]);
        assert!(done.status.success(), "sync failed: {}{}\n{}", done.stdout, done.stderr, self.daemon_log());
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("sync printed no JSON ({e}): {}", done.stdout))
    }

    /// Requests to the store of these kinds since the mount, by its own count.
    pub fn requests(&self, kinds: &[&str]) -> u64 {
        let text = fs::read_to_string(self.mnt.join(".axiomfs/metrics")).expect("the metrics can be read");
        let one = |kind: &&str| {
            let name = format!("axiomfs_store_request_seconds_count{{request=\"{kind}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
            value.unwrap_or_else(|| panic!("no {name} in the metrics: {text}")) as u64
        };
        kinds.iter().map(one).sum()
    }

    /// The status file of the mount.
    pub fn status(&self) -> Value {
        let text = fs::read_to_string(self.mnt.join(".axiomfs/status")).expect("the status can be read");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status isn't JSON ({e}): {text}"))
    }

    /// A number in the status, by its path, as in `log/bytes`.
    pub fn status_number(&self, path: &str) -> u64 {
        let status = self.status();
        status.pointer(&format!("/{path}")).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {status}"))
    }

    /// One command through the control file, and its reply.
    pub fn control(&self, command: &str) -> Value {
        use std::io::{Read, Write};
        let path = self.mnt.join(".axiomfs/control");
        let mut file = fs::OpenOptions::new().read(true).write(true).open(path).expect("control can be opened");
        let written = file.write(command.as_bytes());
        let mut reply = String::new();
        file.read_to_string(&mut reply)
            .unwrap_or_else(|e| panic!("the reply to {command} can't be read: {e} ({written:?})"));
        serde_json::from_str(&reply)
            .unwrap_or_else(|e| panic!("the reply to {command} isn't JSON ({e}): {reply:?} ({written:?})"))
    }

    /// A control command that must succeed.
    pub fn control_ok(&self, command: &str) -> Value {
        let reply = self.control(command);
        assert_eq!(reply["ok"], Value::Bool(true), "{command}: {reply}");
        reply
    }

    /// The daemon's recent events, as text.
    pub fn events(&self) -> String {
        fs::read_to_string(self.mnt.join(".axiomfs/events")).expect("events can be read")
    }

    /// Waits until nothing is pending: everything written so far is ingested and committed.
    pub fn settle(&self) {
        self.sync();
        wait_for("nothing is pending after sync", LIMIT, || self.status_number("pending_bytes") == 0);
    }

    /// Whether the harness had to kill a daemon that hung.
    pub fn hung(&self) -> bool {
        self.daemon.as_ref().is_some_and(|d| d.watchdog.fired.load(Ordering::SeqCst))
    }
}

impl Drop for TestRepo {
    fn drop(&mut self) {
        if thread::panicking() && self.daemon.is_some() {
            eprintln!("the daemon said:\n{}", self.daemon_log());
        }
        let hung = self.hung();
        self.kill9();
        lazy_unmount(&self.mnt);
        if std::env::var_os("AXIOMFS_KEEP").is_some()
            && let Some(scratch) = self._scratch.take()
        {
            eprintln!("kept {}", scratch.keep().display());
        }
        if hung {
            eprintln!("the daemon was killed because the test hung");
        }
    }
}

/// A path as text; test paths are.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

/// Copies a store by hard links: its objects are never changed in place, so the copy stays as it is.
pub fn freeze_store(store: &Path, to: &Path) {
    crate::run::must("cp", &["-al", text(store), text(to)], LIMIT);
}

fn lazy_unmount(mnt: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let Some(name) = mnt.to_str() else { return };
    for _ in mounts.lines().filter(|l| l.split(' ').nth(1) == Some(name)) {
        let done = run(Command::new("umount").args(["-l", name]), Duration::from_secs(20));
        if !done.status.success() {
            eprintln!("umount -l {name}: {}", done.stderr);
        }
    }
}

/// Kills a daemon that has been mounted for longer than any test takes: a system call that hangs in it hangs the test,
/// and only the daemon's death ends such a call.
fn watch(pid: i32, mnt: PathBuf) -> Arc<Watchdog> {
    let limit = std::env::var("AXIOMFS_TEST_LIMIT").ok().and_then(|s| s.parse().ok()).unwrap_or(900);
    let watchdog = Arc::new(Watchdog::default());
    watchdog.pid.store(pid, Ordering::SeqCst);
    let shared = watchdog.clone();
    thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(limit);
        while Instant::now() < end {
            if shared.done.load(Ordering::SeqCst) {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
        shared.fired.store(true, Ordering::SeqCst);
        eprintln!("the mount at {} has been up for {limit} s: its test hangs, the daemon is killed", mnt.display());
        if let Some(pid) = Pid::from_raw(shared.pid.load(Ordering::SeqCst))
            && let Err(e) = kill_process(pid, Signal::KILL)
        {
            eprintln!("it can't be killed: {e}");
        }
        lazy_unmount(&mnt);
    });
    watchdog
}
