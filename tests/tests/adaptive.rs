//! Settings that follow: the level moves with the queue, and an edited settings file is taken over.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::repo::{TestRepo, alone, beside_others, text};
use axiomfs_tests::rng::prose;
use axiomfs_tests::run::{must, wait_for};

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

#[test]
fn an_edited_settings_file_is_taken_over_whole_or_not_at_all() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("reload");
    let chains =
        |level: u32| format!("chains: {{default: [{{plugin: zstd, level: {level}}}, {{plugin: aes-256-gcm}}]}}\n");
    repo.settings(&chains(3)).mount();
    let shown =
        |repo: &TestRepo| repo.control_ok("chain show")["chains"][0]["chain"].as_str().unwrap_or_default().to_owned();
    assert!(shown(&repo).contains("level=3"));
    // By itself, some seconds after it was written.
    repo.settings(&chains(7));
    wait_for("the edited file counts", Duration::from_secs(20), || shown(&repo).contains("level=7"));
    assert!(repo.events().contains("reload"), "{}", repo.events());
    // At once, by SIGHUP.
    repo.settings(&chains(8));
    must("kill", &["-HUP", &repo.pid().to_string()], Duration::from_secs(10));
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
