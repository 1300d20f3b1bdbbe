//! A store that takes requests and never answers: what is here answers, what waits can be killed, and the mount goes away.

use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::proxy::{Proxy, Trick};
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::{run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::{check_noise, write_noise};

const TIMEOUT: Duration = Duration::from_secs(10);
const SETTINGS: &str = "timeout: 10s\ncommit: {interval: 500ms}\ncheckpoint: {interval: 200ms}\n";
/// What never waits for the store.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A mount of a bucket with two large files and a directory of small ones. Their names and attributes are here, no
/// contents are, and the bucket has stopped to answer.
fn stalled(name: &str) -> (TestRepo, Arc<Proxy>) {
    let proxy = Arc::new(Proxy::start(S3Server::shared().port));
    let mut repo = TestRepo::in_bucket(name, &url_at(proxy.port, name));
    repo.settings(SETTINGS).mount();
    fs::create_dir(repo.live().join("near")).expect("made");
    for i in 0..3_000 {
        fs::write(repo.live().join(format!("near/{i}")), format!("near {i}")).expect("written");
    }
    for file in ["large", "other"] {
        write_noise(&repo.live().join(file), file.len() as u64, 24 << 20);
    }
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    list(&repo.live().join("near")).expect("listed while the store answers");
    for file in ["large", "other"] {
        fs::metadata(repo.live().join(file)).expect("there");
    }
    proxy.plan(|_| Trick::Silence(Duration::from_secs(120)));
    (repo, proxy)
}

fn list(dir: &Path) -> Result<Duration, String> {
    let done = run(Command::new("ls").args(["-l", text(dir)]), LIMIT);
    let lines = done.stdout.lines().count();
    if done.status.success() && lines == 3_001 { Ok(done.took) } else { Err(format!("{lines} lines: {}", done.stderr)) }
}

/// Lets the kernel drop what it has of the files below `dir`.
fn forget_pages(dir: &Path) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            forget_pages(&path);
        } else {
            let file = fs::File::open(&path).expect("opened");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
        }
    }
}

/// A process that stands still until this is dropped.
struct Stopped(rustix::process::Pid);

impl Stopped {
    fn stop(pid: u32) -> Self {
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = rustix::process::kill_process(self.0, rustix::process::Signal::CONT) {
            eprintln!("{:?} can't go on: {error}", self.0);
        }
    }
}

/// A program that waits for the store.
struct Stuck {
    child: Child,
    what: &'static str,
}

impl Stuck {
    fn start(what: &'static str, script: &str, proxy: &Proxy) -> Stuck {
        let before = proxy.requests();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {script}")]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("sh");
        wait_for(&format!("{what} asks the store"), AT_ONCE, || proxy.requests() > before);
        thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().expect("waited").is_none(), "{what} did not wait for the store");
        Stuck { child, what }
    }

    /// How long it lives after SIGKILL, and how it ended.
    fn kill(mut self) -> (Duration, ExitStatus) {
        let begun = Instant::now();
        self.child.kill().expect("killed");
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                break status;
            }
            assert!(begun.elapsed() < LIMIT, "{} can't be killed", self.what);
            thread::sleep(Duration::from_millis(5));
        };
        println!("{}: killed after {:?}", self.what, begun.elapsed());
        (begun.elapsed(), status)
    }
}

#[test]
fn with_a_store_that_stalls_what_is_cached_answers_and_programs_can_be_killed() {
    let _slot = alone();
    let (mut repo, proxy) = stalled("stalled");
    let live = repo.live();
    let read = Stuck::start("cat", &format!("cat {}", text(&live.join("large"))), &proxy);
    // The kernel's own caches: then the daemon is asked, and has it.
    for caches in ["none", "the kernel's"] {
        if caches != "none" {
            fs::write("/proc/sys/vm/drop_caches", "2").expect("names and attributes are dropped");
        }
        let took = list(&live.join("near")).unwrap_or_else(|e| panic!("with {caches} dropped: {e}"));
        assert!(took < AT_ONCE, "with {caches} dropped ls took {took:?}");
    }
    let begun = Instant::now();
    fs::write(live.join("new"), b"written while it stalls").expect("writes go on");
    assert_eq!(fs::read(live.join("new")).expect("read"), b"written while it stalls");
    assert_eq!(repo.status()["state"], "ok");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let (took, status) = read.kill();
    assert_eq!(status.signal(), Some(9), "it was over before it was killed: {status}");
    assert!(took < AT_ONCE, "a killed reader lived for {took:?}");

    let direct = format!("dd if={} of=/dev/null bs=1M iflag=direct", text(&live.join("other")));
    let (took, status) = Stuck::start("dd iflag=direct", &direct, &proxy).kill();
    assert_eq!(status.signal(), Some(9), "it was over before it was killed: {status}");
    assert!(took < TIMEOUT + AT_ONCE, "a killed direct reader lived for {took:?}");

    proxy.plan(|_| Trick::Pass);
    wait_for("the store is back", LIMIT, || fs::read(live.join("other")).is_ok());
    check_noise(&live.join("large"), 5, 24 << 20);
    repo.umount();
}

#[test]
fn with_a_store_that_stalls_more_readers_than_workers_are_refused_together() {
    const READERS: u64 = 20;
    let _slot = alone();
    let (mut repo, proxy) = stalled("stalled-readers");
    let open = || {
        // The kernel asks several times for a page that it could not read ahead.
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
        options.open(repo.live().join("large")).expect("opened")
    };
    let files: Vec<fs::File> = (0..READERS).map(|_| open()).collect();
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    thread::scope(|s| {
        let read = |number: u64, file: fs::File| {
            let done = file.read_at(&mut [0; 4096], number << 20);
            assert_eq!(done.map_err(|e| e.raw_os_error()), Err(Some(5)), "reader {number}");
            begun.elapsed()
        };
        let readers: Vec<_> = (0..).zip(files).map(|(number, file)| s.spawn(move || read(number, file))).collect();
        for reader in readers {
            longest = longest.max(reader.join().expect("a reader"));
        }
    });
    // Who waits for what another has asked for asks once more when that has failed.
    assert!(longest < 2 * TIMEOUT, "{READERS} readers took {longest:?}");
    proxy.plan(|_| Trick::Pass);
    wait_for("the store is back", LIMIT, || fs::read(repo.live().join("other")).is_ok());
    check_noise(&repo.live().join("large"), 5, 24 << 20);
    repo.umount();
}

#[test]
fn with_a_store_that_stalls_a_lazy_unmount_returns_and_the_daemon_ends() {
    let _slot = alone();
    let (mut repo, proxy) = stalled("stalled-umount");
    let live = repo.live();
    let stuck = Stuck::start("cat", &format!("cat {}", text(&live.join("large"))), &proxy);
    fs::write(live.join("new"), b"written while it stalls").expect("writes go on");
    let done = run(Command::new("umount").args(["-l", text(&repo.mnt)]), LIMIT);
    assert!(done.status.success(), "{}", done.stderr);
    assert!(done.took < AT_ONCE, "umount -l took {:?}", done.took);
    assert!(fs::read_dir(&repo.mnt).expect("the mount point").next().is_none(), "it is still mounted");
    let (took, _) = stuck.kill();
    assert!(took < TIMEOUT + AT_ONCE, "a killed reader lived for {took:?}");
    let begun = Instant::now();
    let status = repo.wait_daemon();
    println!("the daemon ended after {:?} with {status}", begun.elapsed());
    assert_eq!(status.code(), Some(1), "not all is in the store, and it must say so: {status}");
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    proxy.plan(|_| Trick::Pass);
    repo.mount();
    assert_eq!(fs::read(repo.live().join("new")).expect("read"), b"written while it stalls");
    check_noise(&repo.live().join("large"), 5, 24 << 20);
    repo.umount();
}

#[test]
fn readers_of_a_reply_that_is_not_there_yet_hold_up_no_other_control_file() {
    let _slot = alone();
    let (mut repo, proxy) = stalled("stalled-control");
    fs::write(repo.live().join("new"), b"written while it stalls").expect("writes go on");
    let control = repo.mnt.join(".axiomfs/control");
    let file = fs::OpenOptions::new().read(true).write(true).open(control).expect("opened");
    let before = proxy.requests();
    thread::scope(|s| {
        s.spawn(|| file.write_at(b"sync", 0));
        wait_for("it asks the store", AT_ONCE, || proxy.requests() > before);
        for _ in 0..4 {
            s.spawn(|| file.read_at(&mut [0; 4096], 0));
        }
        thread::sleep(Duration::from_millis(200));
        let begun = Instant::now();
        assert_eq!(repo.status()["state"], "ok");
        let took = begun.elapsed();
        proxy.plan(|_| Trick::Pass);
        assert!(took < AT_ONCE, "status took {took:?}");
    });
    drop(file);
    repo.umount();
}

#[test]
fn with_a_store_that_stalls_a_sync_can_be_ended() {
    let _slot = alone();
    let (mut repo, proxy) = stalled("stalled-sync");
    fs::write(repo.live().join("new"), b"written while it stalls").expect("writes go on");
    let before = proxy.requests();
    let mut sync = repo.command(&["sync", text(&repo.mnt)]);
    let mut child = sync.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("started");
    wait_for("it asks the store", AT_ONCE, || proxy.requests() > before);
    assert!(child.try_wait().expect("waited").is_none(), "it did not wait for the store");
    let begun = Instant::now();
    // As Ctrl-C does, which a test that runs in the background has switched off.
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("sent");
    child.wait().expect("waited for");
    assert!(begun.elapsed() < AT_ONCE, "it went on for {:?} after it was told to end", begun.elapsed());
    proxy.plan(|_| Trick::Pass);
    repo.umount();
}

/// The store is a directory on another machine, say: here one in a mount whose daemon is stopped.
#[test]
fn beside_a_directory_that_stalls_df_answers_and_holds_up_nobody() {
    let _slot = alone();
    let mut outer = TestRepo::new("stalled-outer");
    outer.mount();
    let store = outer.live().join("store");
    let mut inner = outer.elsewhere(&store, "stalled-inner");
    let done = inner.axiomfs(&["init", text(&store), "--kdf-memory", "64MiB"]);
    assert!(done.status.success(), "init failed: {}{}", done.stdout, done.stderr);
    inner.settings(SETTINGS).mount();
    fs::create_dir(inner.live().join("cold")).expect("made");
    for i in 0..3_000 {
        fs::write(inner.live().join(format!("cold/{i}")), b"x").expect("written");
    }
    inner.umount().mount();
    let room = |repo: &TestRepo| rustix::fs::statvfs(repo.live()).map(|space| space.f_blocks);
    let before = room(&inner).expect("asked while the store answers");
    forget_pages(&store.join("packs"));
    let stopped = Stopped::stop(outer.pid());

    // Names that have to be read from the store, and keep all who look for names.
    let cold: Vec<_> = (0..3_000).step_by(500).map(|i| inner.live().join(format!("cold/{i}"))).collect();
    let lookups: Vec<_> =
        cold.into_iter().map(|path| thread::spawn(move || fs::metadata(path).map(|m| m.len()))).collect();
    thread::sleep(Duration::from_millis(500));
    assert!(lookups.iter().all(|lookup| !lookup.is_finished()), "the names were in memory");

    let begun = Instant::now();
    for _ in 0..40 {
        assert_eq!(room(&inner).expect("what the store said last"), before);
    }
    let took = begun.elapsed();
    fs::write(inner.live().join("new"), b"written while it stalls").expect("writes go on");
    fs::File::open(inner.live().join("new")).and_then(|file| file.sync_all()).expect("synced");
    assert_eq!(fs::read(inner.live().join("new")).expect("read"), b"written while it stalls");
    let all = begun.elapsed();
    drop(stopped);
    assert!(took < AT_ONCE, "df took {took:?}");
    assert!(all < 2 * AT_ONCE, "df and others took {all:?}");
    for lookup in lookups {
        assert_eq!(lookup.join().expect("a lookup").expect("found once it goes on"), 1);
    }
    inner.umount();
    outer.umount();
}

/// More than carry all that may wait for a worker, and more than there are workers.
#[test]
fn among_writers_that_wait_for_room_fsync_and_removals_wait_for_nobody() {
    const WRITERS: u64 = 80;
    let _slot = alone();
    let proxy = Arc::new(Proxy::start(S3Server::shared().port));
    let mut repo = TestRepo::in_bucket("stalled-full", &url_at(proxy.port, "stalled-full"));
    repo.settings(&format!("{SETTINGS}log: {{max: 64MiB, segment: 4MiB}}\nstaging: {{max: 64MiB}}\n")).mount();
    let live = repo.live();
    let synced = fs::File::create(live.join("synced")).expect("created");
    synced.write_all_at(b"something to sync", 0).expect("written");
    fs::write(live.join("removed"), b"to be removed").expect("written");
    // Before there is no room for them either.
    let create = |number| fs::File::create(live.join(format!("writer-{number}"))).expect("created");
    let files: Vec<fs::File> = (0..WRITERS).map(create).collect();
    proxy.plan(|_| Trick::Silence(Duration::from_secs(120)));
    let written = AtomicU64::new(0);
    let (took, refused) = thread::scope(|s| {
        let write = |number: u64, file: fs::File| {
            for at in 0.. {
                let (piece, begun) = (noise(number << 32 | at, 1 << 20), Instant::now());
                if let Err(e) = file.write_all_at(&piece, at << 20) {
                    assert_eq!(e.raw_os_error(), Some(28), "{e}");
                    return begun.elapsed();
                }
                written.fetch_add(1, Ordering::SeqCst);
            }
            unreachable!("it writes until it is refused")
        };
        let writers: Vec<_> =
            files.into_iter().zip(0..).map(|(file, number)| s.spawn(move || write(number, file))).collect();
        let (mut last, mut since) = (0, Instant::now());
        while last == 0 || since.elapsed() < Duration::from_secs(2) {
            let now = written.load(Ordering::SeqCst);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            thread::sleep(Duration::from_millis(20));
        }
        let begun = Instant::now();
        synced.sync_all().and_then(|()| fs::remove_file(live.join("removed"))).expect("synced and removed");
        let took = begun.elapsed();
        (took, writers.into_iter().map(|writer| writer.join().expect("a writer")).max().expect("several"))
    });
    proxy.plan(|_| Trick::Pass);
    assert!(took < AT_ONCE, "fsync and removal took {took:?} among writers that wait");
    assert!(refused < TIMEOUT + AT_ONCE, "a writer was refused after {refused:?} only");
    drop(synced);
    repo.umount();
}
