//! Settings that follow: the level moves with the queue, and an edited settings file is taken over.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::repo::{TestRepo, alone, beside_others, text};
use axiomfs_tests::rng::{noise, prose};
use axiomfs_tests::run::{must, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// Bytes of each file that the copy writes.
const FILE: usize = 2 << 20;

fn level(repo: &TestRepo) -> f64 {
    Metrics::of(repo).value("axiomfs_plugin_effort")
}

#[test]
fn the_level_rises_while_the_store_is_slow_and_falls_when_it_is_fast_again() {
    let _slot = alone();
    let mut repo = TestRepo::new("adapt");
    repo.settings(
        "checkpoint: {interval: 300ms, bytes: 8MiB}\ncommit: {interval: 500ms, bytes: 1MiB}\n\
         chains: {default: [{plugin: zstd, level: 3, adapt: [1, 9]}, {plugin: aes-256-gcm}]}\n",
    );
    // Milliseconds that each pack takes on its way: with packs of some MiB, about 5 MiB/s.
    let delay = repo.dir.join("delay");
    fs::write(&delay, "1000").expect("written");
    repo.environment("AXIOMFS_FAULT_STORE_DELAY", text(&delay)).mount();
    assert_eq!(level(&repo), 3.0);
    let (slow, done) = (AtomicBool::new(true), AtomicBool::new(false));
    let (mut rose, mut fell) = (Duration::MAX, Duration::MAX);
    // What each file took to write, while the store was slow and after it.
    let took = Mutex::new([Vec::new(), Vec::new()]);
    thread::scope(|s| {
        s.spawn(|| {
            for i in 0.. {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                let bytes = prose(i, FILE);
                let begun = Instant::now();
                fs::write(repo.live().join(format!("f{}", i % 50)), bytes).expect("the log has room");
                took.lock().expect("its")[usize::from(!slow.load(Ordering::SeqCst))].push(begun.elapsed());
                thread::sleep(Duration::from_millis(100));
            }
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) && rose == Duration::MAX {
            if level(&repo) >= 6.0 {
                rose = start.elapsed();
            }
            thread::sleep(Duration::from_millis(100));
        }
        fs::write(&delay, "0").expect("written");
        slow.store(false, Ordering::SeqCst);
        let start = Instant::now();
        while rose < Duration::MAX && start.elapsed() < Duration::from_secs(20) && fell == Duration::MAX {
            if level(&repo) <= 3.0 {
                fell = start.elapsed();
            }
            thread::sleep(Duration::from_millis(100));
        }
        done.store(true, Ordering::SeqCst);
    });
    let events = repo.events();
    let [mut slow, mut fast] = took.into_inner().expect("its");
    slow.sort_unstable();
    fast.sort_unstable();
    let (median, usual, most) = (slow[slow.len() / 2], fast[fast.len() / 2], slow[slow.len() - 1]);
    eprintln!(
        "from 3 to 6 in {rose:?}, back in {fell:?}; 2 MiB written in {median:?} (at most {most:?}) with the slow store, {usual:?} then"
    );
    assert!(rose < Duration::from_secs(10), "the level rose in {rose:?}: {events}");
    assert!(fell < Duration::from_secs(10), "the level fell in {fell:?}: {events}");
    // The log has room: the copy does not feel the store.
    assert!(
        median < usual * 2 + Duration::from_millis(20),
        "{median:?} with the slow store, {usual:?} with the fast one"
    );
    assert!(most < Duration::from_secs(1), "a file took {most:?} with the slow store");
    assert!(events.contains("goes from 3 to 4: the store takes less"), "{events}");
    repo.umount();
}

/// What is written, and the most of it that may wait to be committed.
type Load = (fn(u64, usize) -> Vec<u8>, u64);
/// For the encoders: little, since what waits at a hard level keeps what follows waiting long.
const TEXT: Load = (prose, 32 << 20);
/// For the store.
const NOISE: Load = (noise, 256 << 20);

/// Writes files of 4 MiB until `done`.
fn write_until(repo: &TestRepo, (make, most): Load, done: &AtomicBool) {
    for i in 0.. {
        if done.load(Ordering::SeqCst) {
            return;
        }
        if repo.status_number("pending_bytes") < most {
            fs::write(repo.live().join(format!("w{}", i % 20)), make(i, 2 * FILE)).expect("the log has room");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Writes until `events` has a line that `wanted` takes.
#[track_caller]
fn written_until(repo: &TestRepo, load: Load, what: &str, wanted: impl Fn(&str) -> bool) {
    let done = AtomicBool::new(false);
    let seen = thread::scope(|s| {
        s.spawn(|| write_until(repo, load, &done));
        let start = Instant::now();
        let mut seen = false;
        while !seen && start.elapsed() < Duration::from_secs(30) {
            seen = repo.events().lines().any(&wanted);
            thread::sleep(Duration::from_millis(50));
        }
        done.store(true, Ordering::SeqCst);
        seen
    });
    assert!(seen, "{what}: {}", repo.events());
}

/// From and to which number uploads went, if a line says that they did because of `why`.
fn uploads(line: &str, why: &str) -> Option<(u64, u64)> {
    let (numbers, said) = line.split_once("uploads in flight go from ")?.1.split_once(": ")?;
    let (from, to) = numbers.split_once(" to ")?;
    said.starts_with(why).then(|| (from.parse().expect("a number"), to.parse().expect("a number")))
}

#[test]
fn events_say_when_and_why_levels_uploads_and_background_work_give_way() {
    let _slot = alone();
    let mut repo = TestRepo::new("adapt-events");
    repo.settings(
        "memory: 64MiB\ncheckpoint: {interval: 300ms, bytes: 8MiB}\ncommit: {interval: 300ms, bytes: 1MiB}\n\
         chains: {default: [{plugin: zstd, level: 15, adapt: [1, 15]}, {plugin: aes-256-gcm}]}\n\
         store: {uploads: {adapt: [1, 4]}}\n",
    );
    let delay = repo.dir.join("delay");
    let now = || must("date", &["-u", "+%F %T"], Duration::from_secs(10)).trim().to_owned();
    let begun = now();
    fs::write(&delay, "0").expect("written");
    repo.environment("AXIOMFS_FAULT_STORE_DELAY", text(&delay)).mount();
    // More than there is memory for.
    fs::write(repo.live().join("old"), noise(7, 64 << 20)).expect("written");
    repo.settle();
    repo.umount();
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();

    // A hard level on a fast store: frames wait for the encoders, so it gets lighter. Who reads meanwhile goes first.
    let reading = AtomicBool::new(true);
    thread::scope(|s| {
        s.spawn(|| {
            while reading.load(Ordering::SeqCst) {
                let from = format!("if={}", text(&repo.live().join("old")));
                must("dd", &[&from, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"], Duration::from_secs(60));
            }
        });
        let lighter =
            |line: &str| line.contains("zstd of chain default goes from 15 to 14: frames wait for the encoders");
        let yields = |line: &str| line.contains("encoders and uploads gave way to reads ");
        written_until(&repo, TEXT, "the level gets lighter", lighter);
        written_until(&repo, TEXT, "background work gives way", yields);
        reading.store(false, Ordering::SeqCst);
    });
    assert!(level(&repo) < 15.0);
    assert!(Metrics::of(&repo).value("axiomfs_background_yields_total") > 0.0);

    // A store that takes its time: one upload more for each second in which all are busy, up to the bound.
    fs::write(&delay, "1500").expect("written");
    written_until(&repo, NOISE, "uploads rise", |line| uploads(line, "all of them are busy") == Some((3, 4)));
    for step in [(1, 2), (2, 3)] {
        assert!(repo.events().lines().any(|line| uploads(line, "all of them are busy") == Some(step)), "{step:?}");
    }
    assert_eq!(Metrics::of(&repo).value("axiomfs_uploads_limit"), 4.0);
    // A store that refuses some: half as many.
    fs::write(&delay, "fail").expect("written");
    written_until(&repo, NOISE, "uploads fall", |line| uploads(line, "one failed") == Some((4, 2)));
    fs::write(&delay, "0").expect("written");
    repo.settle();
    // When: in order, each at its time.
    let events = repo.events();
    let times: Vec<&str> = events.lines().map(|line| &line[..begun.len()]).collect();
    assert!(times.is_sorted() && times.iter().all(|at| **at >= *begun && **at <= *now()), "since {begun}: {events}");
    assert!(fs::read(repo.live().join("old")).expect("read") == noise(7, 64 << 20));
    repo.umount();
}

fn chains(level: u32) -> String {
    format!("chains: {{default: [{{plugin: zstd, level: {level}}}, {{plugin: aes-256-gcm}}]}}\n")
}

/// The default chain.
fn shown(repo: &TestRepo) -> String {
    repo.control_ok("chain show")["chains"][0]["chain"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn settings_behind_a_link_are_those_that_it_leads_to_now() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("reload-link");
    let (dir, link) = (repo.dir.clone(), repo.dir.join("link.yaml"));
    // As tools do that put whole versions in place: the link is replaced, no file is changed.
    let lead_to = |level: u32| {
        let (file, new) = (dir.join(format!("{level}.yaml")), dir.join("new.yaml"));
        fs::write(&file, format!("version: 1\n{}", chains(level))).expect("written");
        symlink(&file, &new).expect("linked");
        fs::rename(&new, &link).expect("replaced");
    };
    lead_to(3);
    repo.try_mount(&["--config", text(&link)]).unwrap_or_else(|e| panic!("{e}"));
    assert!(shown(&repo).contains("level=3"));
    lead_to(7);
    wait_for("the new target counts", Duration::from_secs(20), || shown(&repo).contains("level=7"));
    lead_to(8);
    repo.control_ok("reload");
    assert!(shown(&repo).contains("level=8"), "{}", shown(&repo));
    repo.umount();
}

#[test]
fn an_edited_settings_file_is_taken_over_whole_or_not_at_all() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("reload");
    repo.settings(&chains(3)).mount();
    assert!(shown(&repo).contains("level=3"));
    // By itself, some seconds after it was written.
    repo.settings(&chains(7));
    wait_for("the edited file counts", Duration::from_secs(20), || shown(&repo).contains("level=7"));
    assert!(repo.events().contains("reload"), "{}", repo.events());
    // At once, by SIGHUP.
    repo.settings(&chains(8));
    let daemon = Pid::from_raw(repo.pid() as i32).expect("It is a process");
    kill_process(daemon, Signal::HUP).expect("It runs");
    wait_for("the signal was heeded", Duration::from_secs(20), || shown(&repo).contains("level=8"));
    // By command; what can't change while mounted is named, and then nothing changes.
    repo.settings(&format!("memory: 300MiB\nlog: {{max: 1GiB}}\n{}", chains(9)));
    let reply = repo.control("reload");
    assert_eq!((reply["ok"].as_bool(), reply["errno"].as_str()), (Some(false), Some("EINVAL")), "{reply}");
    let msg = reply["msg"].as_str().unwrap_or_default();
    assert!(msg.contains("memory") && msg.contains("log.max") && !msg.contains("timeout"), "{msg}");
    assert!(shown(&repo).contains("level=8"), "half of it was applied");
    // A file with a mistake changes nothing and is reported; the next right one counts again.
    for (file, word) in [("chains: [".to_owned(), "settings.yaml"), (chains(99), "-7 to 22")] {
        repo.settings(&file);
        wait_for("the mistake is reported", Duration::from_secs(20), || repo.events().contains(word));
        assert!(shown(&repo).contains("level=8"), "{file}");
    }
    repo.settings(&chains(5));
    wait_for("the next right file counts", Duration::from_secs(20), || shown(&repo).contains("level=5"));
    assert!(repo.is_running(), "SIGHUP and wrong files end nothing");
    repo.umount();
}
