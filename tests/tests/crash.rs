//! The daemon is killed at random moments of random work; the oracle is the record of what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axiomfs_tests::history::{Progress, States, Worker, fit_together, seen_in};
use axiomfs_tests::repo::{TestRepo, beside_others, freeze_store};
use axiomfs_tests::rng::{Rng, noise, prose, run_seed};
use axiomfs_tests::s3::S3Server;
use rustix::process::{Pid, Signal, kill_process};

const KILLS: usize = 100;
const QUICK: &str = "log: {max: 64MiB, segment: 4MiB}\n\
                     checkpoint: {interval: 200ms, bytes: 4MiB}\n\
                     commit: {interval: 500ms, bytes: 2MiB}\n";

/// Which states of the two workers a snapshot may hold.
type Pair = [States; 2];

struct Bench {
    repo: TestRepo,
    workers: [Worker; 2],
    snapshots: BTreeMap<String, Pair>,
    rng: Rng,
    counter: usize,
    /// The newest states the store alone has been seen to hold.
    stored: [usize; 2],
}

/// What happens to a snapshot while the workers work.
#[derive(Clone, Debug)]
enum Change {
    Nothing,
    Take(String),
    Forget(String),
    Rename(String, String),
}

#[test]
fn what_was_acknowledged_survives_100_kills_at_random_moments() {
    let _slot = beside_others();
    let seed = run_seed("what_was_acknowledged_survives_100_kills_at_random_moments");
    survive(TestRepo::new("crash"), seed, KILLS);
}

#[test]
fn what_was_acknowledged_survives_kills_at_random_moments_with_the_store_in_a_bucket() {
    let _slot = beside_others();
    let seed = run_seed("what_was_acknowledged_survives_kills_at_random_moments_with_the_store_in_a_bucket");
    let repo = TestRepo::in_bucket("crash-bucket", &S3Server::shared().url("crash"));
    survive(repo, seed, if std::env::var_os("AXIOMFS_SOAK").is_some() { KILLS } else { KILLS / 10 });
}

/// Lets workers work, kills the daemon, and compares what is there with what was acknowledged, so many times.
fn survive(mut repo: TestRepo, seed: u64, kills: usize) {
    repo.settings(QUICK).mount();
    for name in ["w0", "w1"] {
        fs::DirBuilder::new().mode(0o755).create(repo.live().join(name)).expect("a directory for a worker");
    }
    repo.sync();
    let workers = [Worker::new("w0", seed), Worker::new("w1", seed ^ 0x5555)];
    let mut bench =
        Bench { repo, workers, snapshots: BTreeMap::new(), rng: Rng::new(!seed), counter: 0, stored: [0, 0] };
    let in_bucket = bench.repo.store.starts_with("s3:");
    for kill in 0..kills {
        let when = format!("after kill {kill} (seed {seed})");
        let uncertain = bench.work_and_kill();
        let frozen = (kill % 5 == 4 && !in_bucket).then(|| bench.repo.dir.join(format!("store-{kill}")));
        if let Some(copy) = &frozen {
            freeze_store(&bench.repo.store, copy);
        }
        bench.repo.try_mount(&[]).unwrap_or_else(|e| panic!("{when}: {e}"));
        let live = bench.repo.live();
        for worker in &mut bench.workers {
            worker.recovered(&live).unwrap_or_else(|e| panic!("{when}: {e}"));
        }
        bench.check_snapshots(uncertain, kill % 10 == 9, &when);
        if let Some(copy) = frozen {
            bench.check_store_alone(&copy, kill % 10 == 4, &when);
            fs::remove_dir_all(copy).expect("the copy can be removed");
        } else if kill % 5 == 4 {
            // A bucket is not copied: it is read beside the writer.
            bench.check_store_alone(&bench.repo.store.clone(), true, &when);
        }
        bench.prune();
    }
    bench.finish(kills);
}

impl Bench {
    /// Lets both workers run, changes a snapshot meanwhile, and kills the daemon after a random while. Returns names of
    /// snapshots that may exist now or not, because the daemon died during the change.
    fn work_and_kill(&mut self) -> BTreeMap<String, Pair> {
        let (killed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let live = self.repo.live();
        let dir = self.repo.mnt.join("snapshots");
        let delay = Duration::from_millis(self.rng.between(20, 900));
        let pid = Pid::from_raw(self.repo.pid() as i32).expect("a process id");
        let change = self.next_change();
        let before = delay.mul_f64(self.rng.below(1000) as f64 / 1000.0);
        let progress = [self.workers[0].progress(), self.workers[1].progress()];
        let [one, two] = &mut self.workers;
        let outcome = thread::scope(|scope| {
            let threads =
                [scope.spawn(|| one.work(&live, &killed, &stop)), scope.spawn(|| two.work(&live, &killed, &stop))];
            let taker = scope.spawn(|| {
                thread::sleep(before);
                let low = progress.each_ref().map(|p| p.acknowledged());
                let result = change.carry_out(&dir);
                (result, pair(low, &progress))
            });
            thread::sleep(delay);
            killed.store(true, Ordering::SeqCst);
            kill_process(pid, Signal::KILL).expect("the daemon can be killed");
            for thread in threads {
                thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
            }
            taker.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        });
        self.repo.kill9();
        let (result, states) = outcome;
        if let Err(e) = &result {
            let gone = [103, 107, 5, 19].contains(&e.raw_os_error().unwrap_or(0));
            assert!(gone, "{change:?} failed, and not because the daemon was killed: {e}");
        }
        self.record(change, result.is_ok(), states)
    }

    fn next_change(&mut self) -> Change {
        let name = format!("snap {}", self.counter);
        self.counter += 1;
        let names: Vec<String> = self.snapshots.keys().cloned().collect();
        match (self.rng.below(6), names.len()) {
            (0, _) => Change::Nothing,
            (_, 0..=1) => Change::Take(name),
            (1, _) => Change::Rename(self.rng.pick(&names).clone(), name),
            (2, _) | (_, 4..) => Change::Forget(self.rng.pick(&names).clone()),
            _ => Change::Take(name),
        }
    }

    fn record(&mut self, change: Change, done: bool, states: Pair) -> BTreeMap<String, Pair> {
        let mut uncertain = BTreeMap::new();
        match change {
            Change::Nothing => {}
            Change::Take(name) if done => drop(self.snapshots.insert(name, states)),
            Change::Take(name) => drop(uncertain.insert(name, states)),
            Change::Forget(name) => {
                let states = self.snapshots.remove(&name).expect("only known snapshots are forgotten");
                if !done {
                    uncertain.insert(name, states);
                }
            }
            Change::Rename(from, to) => {
                let states = self.snapshots.remove(&from).expect("only known snapshots are renamed");
                if done {
                    self.snapshots.insert(to, states);
                } else {
                    uncertain.insert(from, states.clone());
                    uncertain.insert(to, states);
                }
            }
        }
        uncertain
    }

    /// Every snapshot that was acknowledged is there, no other is, and each (or the newest) holds a state it may hold.
    fn check_snapshots(&mut self, uncertain: BTreeMap<String, Pair>, all: bool, when: &str) {
        let there = names(&self.repo.mnt.join("snapshots"));
        for name in self.snapshots.keys() {
            assert!(there.contains(name), "{when}: snapshot {name:?} is gone; there are {there:?}");
        }
        for name in &there {
            assert!(
                self.snapshots.contains_key(name) || uncertain.contains_key(name),
                "{when}: snapshot {name:?} came from nowhere"
            );
        }
        let found = uncertain.keys().filter(|n| there.contains(*n)).count();
        assert!(uncertain.len() < 2 || found == 1, "{when}: a rename was half done: {there:?}, {uncertain:?}");
        self.snapshots.extend(uncertain.into_iter().filter(|(name, _)| there.contains(name)));
        let newest = self.snapshots.keys().max_by_key(|n| (n.len(), (*n).clone())).cloned();
        for (name, states) in &mut self.snapshots {
            if !all && Some(name) != newest.as_ref() {
                continue;
            }
            for (worker, range) in self.workers.iter().zip(states) {
                let seen = seen_in(&self.repo.snapshot(name), worker).unwrap_or_else(|e| panic!("{when}: {e}"));
                let like = worker.states_like(&seen, range.clone());
                let Some((first, last)) = like.first().zip(like.last()) else {
                    let shown = worker.differences_from(*range.start(), &seen).join("\n");
                    panic!(
                        "{when}: snapshot {name:?} holds none of the states {range:?} of {}; to the first:\n{shown}",
                        worker.name
                    );
                };
                // Halfway through a write counts as the state before it, so the one after it stays possible.
                *range = *first..=(*last + 1).min(*range.end());
            }
        }
    }

    /// The store without any local state mounts to one earlier state, the same moment for both workers.
    fn check_store_alone(&mut self, copy: &Path, read_only: bool, when: &str) {
        let mut other = self.repo.elsewhere(copy, "crash-store");
        // The copy says that the original's state directory may have more than it.
        let more: &[&str] = if read_only { &["--read-only"] } else { &["--takeover"] };
        other.try_mount(more).unwrap_or_else(|e| panic!("{when}: the store alone: {e}"));
        let mut like = Vec::new();
        for (worker, oldest) in self.workers.iter().zip(self.stored) {
            let seen = seen_in(&other.live(), worker).unwrap_or_else(|e| panic!("{when}: the store alone: {e}"));
            let states = worker.states_like(&seen, oldest..=worker.state());
            if states.is_empty() {
                let (old, new) =
                    (worker.differences_from(oldest, &seen), worker.differences_from(worker.state(), &seen));
                panic!(
                    "{when}: {} in the store alone is no state from {oldest} to {}; to the first:\n{}\nto the last:\n{}",
                    worker.name,
                    worker.state(),
                    old.join("\n"),
                    new.join("\n")
                );
            }
            like.push(states);
        }
        let [one, two] = &self.workers;
        let fit = like[0].iter().flat_map(|a| like[1].iter().map(move |b| (*a, *b)));
        let fit = fit.filter(|(a, b)| fit_together(one, *a, two, *b)).max();
        assert!(fit.is_some(), "{when}: the store alone shows two moments at once: {like:?}");
        self.stored = [like[0][0], like[1][0]];
        for name in names(&other.mnt.join("snapshots")) {
            for worker in &self.workers {
                seen_in(&other.snapshot(&name), worker).unwrap_or_else(|e| panic!("{when}: the store alone: {e}"));
            }
        }
    }

    fn prune(&mut self) {
        for (i, worker) in self.workers.iter_mut().enumerate() {
            let keep: Vec<States> = self.snapshots.values().map(|pair| pair[i].clone()).collect();
            worker.prune(self.stored[i], &keep);
        }
    }

    fn finish(mut self, kills: usize) {
        let total: usize = self.workers.iter().map(Worker::state).sum();
        eprintln!(
            "{total} operations; the trees have {} and {} nodes",
            self.workers[0].nodes(),
            self.workers[1].nodes()
        );
        assert!(total > 20 * kills, "only {total} operations were done between {kills} kills: the test showed little");
        assert!(self.stored.iter().all(|k| *k > 0), "no commit was seen in the store in the whole run");
        self.repo.umount().mount();
        let live = self.repo.live();
        for worker in &mut self.workers {
            worker.recovered(&live).unwrap_or_else(|e| panic!("after the last unmount: {e}"));
        }
        self.check_snapshots(BTreeMap::new(), true, "after the last unmount");
    }
}

fn pair(low: [usize; 2], progress: &[std::sync::Arc<Progress>; 2]) -> Pair {
    [low[0]..=progress[0].started(), low[1]..=progress[1].started()]
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("snapshots can be listed");
    entries.map(|e| e.expect("an entry").file_name().into_string().expect("names of the test are text")).collect()
}

impl Change {
    fn carry_out(&self, dir: &Path) -> io::Result<()> {
        match self {
            Change::Nothing => Ok(()),
            Change::Take(name) => fs::create_dir(dir.join(name)),
            Change::Forget(name) => fs::remove_dir(dir.join(name)),
            Change::Rename(from, to) => fs::rename(dir.join(from), dir.join(to)),
        }
    }
}

/// A copy of many files, some of them synced, killed in the middle: what `write` and `fsync` returned for is whole.
#[test]
fn a_copy_killed_in_the_middle_keeps_every_file_that_was_written() {
    let _slot = beside_others();
    let seed = run_seed("a_copy_killed_in_the_middle_keeps_every_file_that_was_written");
    let mut repo = TestRepo::new("crash-copy");
    repo.settings(QUICK).mount();
    let mut rng = Rng::new(seed);
    let mut whole: Vec<(String, u64, usize)> = Vec::new();
    for round in 0..6 {
        let live = repo.live();
        let pid = Pid::from_raw(repo.pid() as i32).expect("a process id");
        let delay = Duration::from_millis(rng.between(100, 1200));
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            kill_process(pid, Signal::KILL)
        });
        for i in 0.. {
            let limit = if rng.one_in(30) { 8 << 20 } else { 60_000 };
            let (file_seed, len) = (rng.next(), rng.below(limit) as usize);
            let name = format!("r{round}-{i}");
            match write_file(&live.join(&name), &content(file_seed, len), rng.one_in(5)) {
                Ok(()) => whole.push((name, file_seed, len)),
                Err(_) => break,
            }
        }
        killer.join().expect("the killer ends").expect("the daemon can be killed");
        repo.kill9();
        repo.mount();
        for (name, file_seed, len) in &whole {
            let have = fs::read(repo.live().join(name)).unwrap_or_else(|e| panic!("round {round}: {name}: {e}"));
            assert!(
                have == content(*file_seed, *len),
                "round {round}: {name} isn't what was written ({} of {len} bytes)",
                have.len()
            );
        }
    }
    assert!(whole.len() > 50, "only {} files were written", whole.len());
}

fn content(seed: u64, len: usize) -> Vec<u8> {
    if seed & 1 == 0 { noise(seed, len) } else { prose(seed, len) }
}

fn write_file(path: &Path, data: &[u8], sync: bool) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.write_all_at(data, 0)?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// A file that was unlinked while open is gone after a crash, and its space with it.
#[test]
fn an_unlinked_open_file_is_reclaimed_after_a_crash() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("crash-orphan");
    repo.settings(QUICK).mount();
    let path = repo.live().join("orphan");
    let file = fs::File::create(&path).expect("a file");
    file.write_all_at(&noise(1, 4 << 20), 0).expect("written");
    repo.sync();
    fs::remove_file(&path).expect("unlinked");
    file.write_all_at(b"still open", 0).expect("an unlinked file can be written");
    repo.sync();
    repo.kill9();
    drop(file);
    repo.mount();
    assert!(!path.exists(), "the unlinked file came back");
    assert_eq!(fs::read_dir(repo.live()).expect("listing").count(), 0);
    // What has no name is in no listing: the recovery says what it gave back, and there is nothing left for the next.
    assert!(repo.events().contains("Reclaimed 1 files without a name"), "{}", repo.events());
    repo.sync();
    repo.kill9();
    repo.mount();
    assert!(!repo.events().contains("without a name"), "reclaimed again: {}", repo.events());
    let frozen = repo.dir.join("frozen");
    freeze_store(&repo.store, &frozen);
    let mut other = repo.elsewhere(&frozen, "crash-orphan-store");
    // The copy says who writes the original, and that one lives.
    other.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read_dir(other.live()).expect("listing").count(), 0, "the unlinked file is in the store's tree");
}

/// The daemon killed while it recovers, again and again, still recovers.
#[test]
fn recovery_itself_can_be_killed() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("crash-recovery");
    repo.settings("checkpoint: {interval: 1h, bytes: 1GiB}\n").mount();
    for i in 0..200u64 {
        write_file(&repo.live().join(format!("f{i}")), &content(i, 100_000), false).expect("written");
    }
    repo.kill9();
    for i in 0..8 {
        let mut command = repo.command(&["mount"]);
        let mut child = command.args(repo.mount_args()).arg("-f").spawn().expect("the daemon starts");
        thread::sleep(Duration::from_millis(40 * i));
        child.kill().expect("killed");
        child.wait().expect("ended");
        repo.clear_dead_mount();
    }
    repo.mount();
    for i in 0..200u64 {
        let have = fs::read(repo.live().join(format!("f{i}"))).unwrap_or_else(|e| panic!("f{i}: {e}"));
        assert!(have == content(i, 100_000), "f{i} isn't what was written");
    }
}
