//! Power cuts: state, cache and store lie on a test filesystem that loses, reorders and tears what was not synced.
//!
//! In a third of the lives a sync fails, too, and then the power may stay on: the next mount finds what only the page cache has.
//!
//! The oracle is the list of operations and a naive model of what they mean. After each cut the repository must mount
//! without a manual step, show the tree as it was after some operation not before the last one that was promised to be
//! durable, and the store alone must show the tree as it was after some operation not before the last `sync`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::generate::{Generator, Limits};
use axiomfs_tests::model::{Data, Kind, Op};
use axiomfs_tests::perform::Performer;
use axiomfs_tests::powercut::oracle::{History, Seen, State, Step};
use axiomfs_tests::powercut::{Disk, Failing, Failure, Loss, Switch, Template, repository_on, unmount};
use axiomfs_tests::repo::{TestRepo, beside_others, scratch, text};
use axiomfs_tests::rng::{Rng, run_seed};
use axiomfs_tests::run::run;
use rustix::process::{Pid, Signal, kill_process};

/// Every step of the log's rotation, of a checkpoint, of a commit, and of the release of the log.
const POINTS: [&str; 11] = [
    "log.rotate",
    "log.released",
    "checkpoint.frozen",
    "checkpoint.ingested",
    "checkpoint.packs-synced",
    "checkpoint.manifest-written",
    "commit.packs-uploaded",
    "commit.index-written",
    "commit.head-created",
    "commit.finished",
    "snapshot.logged",
];
/// Cuts that one repository goes through before a fresh one takes its place.
const CUTS_PER_CHAIN: u64 = 10;
/// Steps of a workload that no cut ended.
const STEPS: u64 = 70;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn two_hundred_power_cuts() {
    let _slot = beside_others();
    let seed = run_seed("two_hundred_power_cuts");
    let wanted: u64 = from_environment("AXIOMFS_POWERCUTS").unwrap_or(200);
    let workers = from_environment("AXIOMFS_POWERCUT_WORKERS").unwrap_or(2);
    let start = Instant::now();
    let template = Template::new();
    let first = from_environment("AXIOMFS_POWERCUT_CHAIN").unwrap_or(0);
    let (next, tally, failed) = (AtomicU64::new(first), Mutex::new(Tally::default()), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if failed.load(Ordering::SeqCst)
                        || tally.lock().expect("A tally is whole").is_enough(wanted, number)
                    {
                        return;
                    }
                    let mut chain = Chain::new(&template, seed, number);
                    for plan in chain.plans(&tally) {
                        let (fired, operations) = chain.life(&plan).unwrap_or_else(|why| {
                            failed.store(true, Ordering::SeqCst);
                            panic!("{}", chain.report(&plan, &why))
                        });
                        if !plan.killed {
                            tally.lock().expect("A tally is whole").note(&fired, operations);
                        }
                    }
                }
            });
        }
    });
    let tally = tally.into_inner().expect("A tally is whole");
    eprintln!("{} power cuts in {:?}: {:?}", tally.cuts, start.elapsed(), tally.points);
    assert!(tally.cuts >= wanted);
    for point in POINTS {
        assert!(tally.points.contains_key(point), "No cut fell at {point}: {:?}", tally.points);
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// When the power of one life fails.
#[derive(Clone, Debug)]
struct Plan {
    cut: Cut,
    loss: Loss,
    /// Whether the daemon goes on for a while on a dead disk: what it answers then must not be believed.
    linger: bool,
    /// A sync that fails before.
    failing: Option<Failing>,
    /// Whether only the daemon dies, and the page cache stays for the next mount.
    killed: bool,
    seed: u64,
}

impl Plan {
    /// Whether the mount may refuse what it is asked, because of a sync that failed. Those in the store are tried again.
    fn excuses(&self, switch: &Switch) -> bool {
        switch.has_failed() && self.failing.as_ref().is_some_and(|failing| failing.part.starts_with("state/"))
    }
}

#[derive(Clone, Debug)]
enum Cut {
    /// At a changing operation on the disk.
    Operation(u64),
    /// At the n-th time the daemon comes to a named point.
    Point(&'static str, u64),
}

/// What all chains have reached together.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    points: BTreeMap<String, u64>,
    /// Most operations on the disk in one life: where random cuts can fall.
    operations: u64,
}

impl Tally {
    fn note(&mut self, fired: &str, operations: u64) {
        self.cuts += 1;
        if POINTS.contains(&fired) {
            *self.points.entry(fired.to_owned()).or_default() += 1;
        }
        self.operations = self.operations.max(operations);
    }

    /// Whether there are enough cuts, or no hope for more points.
    fn is_enough(&self, wanted: u64, chains: u64) -> bool {
        let all_points = POINTS.iter().all(|point| self.points.contains_key(*point));
        self.cuts >= wanted && (all_points || chains > 3 * wanted.div_ceil(CUTS_PER_CHAIN))
    }
}

/// One repository through several cuts.
struct Chain {
    number: u64,
    rng: Rng,
    place: tempfile::TempDir,
    settings: String,
    disk: Disk,
    history: History,
    /// The least state that the store alone showed after the latest cut.
    stored: Option<usize>,
    trace: Vec<String>,
    said: String,
}

impl Chain {
    fn new(template: &Template, seed: u64, number: u64) -> Chain {
        let mut rng = Rng::new(seed ^ number.wrapping_mul(0x9e37_79b9));
        let place = scratch("powercut");
        fs::create_dir(place.path().join("disk")).expect("It is new");
        let settings = format!(
            "timeout: 2s\nlog: {{max: 64MiB, segment: 4MiB}}\ncache: {{encrypt: {}}}\n\
             checkpoint: {{interval: {}ms, bytes: 1MiB}}\ncommit: {{interval: {}ms, bytes: 1MiB}}\n",
            !rng.one_in(4),
            rng.pick(&[100, 300, 2_000]),
            rng.pick(&[200, 1_000, 5_000]),
        );
        let disk = template.disk.clone();
        Chain {
            number,
            rng,
            place,
            settings,
            disk,
            history: History::begin(),
            stored: None,
            trace: Vec::new(),
            said: String::new(),
        }
    }

    /// The cuts of this chain: points that were not hit yet, then random ones.
    fn plans(&mut self, tally: &Mutex<Tally>) -> Vec<Plan> {
        let (missing, operations) = {
            let tally = tally.lock().expect("A tally is whole");
            let missing = POINTS.into_iter().filter(|point| !tally.points.contains_key(*point)).collect::<Vec<_>>();
            (missing, tally.operations.max(300))
        };
        let mut plans: Vec<Plan> = Vec::new();
        for number in 0..CUTS_PER_CHAIN {
            let left_in_cache = plans.last().is_some_and(|before| before.failing.is_some() && before.killed);
            let cut = match number % 3 {
                // Soon, before all is written anew.
                _ if left_in_cache => Cut::Operation(1 + self.rng.below(60)),
                0 if !missing.is_empty() => Cut::Point(self.rng.pick::<&'static str>(&missing), 1),
                0 => Cut::Point(self.rng.pick::<&'static str>(&POINTS), 1 + self.rng.below(4)),
                _ => Cut::Operation(1 + self.rng.below(operations)),
            };
            let loss = *self.rng.pick(&Loss::ALL);
            let failing = if self.rng.one_in(3) { Some(self.failing()) } else { None };
            let killed = if failing.is_some() { self.rng.one_in(2) } else { self.rng.one_in(8) };
            plans.push(Plan { cut, loss, linger: self.rng.one_in(3), failing, killed, seed: self.rng.next() });
        }
        plans
    }

    /// Some sync of a file that fails.
    fn failing(&mut self) -> Failing {
        let part = self.rng.pick(&["state/log/", "state/manifest.", "state/staging/", "state/", "store/"]).to_string();
        let bytes = Some(if self.rng.one_in(2) { 1 } else { 0 });
        Failing { part, after: self.rng.below(12), bytes, how: Failure::Error }
    }

    fn repo(&self, plan: &Plan) -> TestRepo {
        let mut repo = repository_on(&self.place.path().join("disk"), &self.settings);
        if let Cut::Point(name, count) = &plan.cut {
            repo.environment("AXIOMFS_FAULT_POINT", &format!("{name}:{count}"))
                .environment("AXIOMFS_FAULT_ACTION", "touch");
        }
        repo
    }

    /// From one mount to the next cut, and a look at the store alone after it. Returns why the power failed, and after how
    /// many operations on the disk.
    fn life(&mut self, plan: &Plan) -> Result<(String, u64), String> {
        let switch = Switch::new(self.disk.clone());
        if let Cut::Operation(operation) = plan.cut {
            switch.cut_at(operation);
        }
        if let Some(failing) = &plan.failing {
            switch.fail(failing.clone());
        }
        let mountpoint = self.place.path().join("disk");
        let session = switch.mount(&mountpoint).map_err(|error| format!("the test disk can't be mounted: {error}"))?;
        let mut repo = self.repo(plan);
        let lived = match repo.try_mount(&[]) {
            // A mount that the power cut ended, or a failed sync, has shown nothing; one that fails by itself is what this test looks for.
            Err(_) if plan.excuses(&switch) => Ok(()),
            Err(why) if switch.cause().is_none() || why.contains("didn't answer") => Err(why),
            Err(_) => Ok(()),
            Ok(()) => self.mounted(&repo, &switch, plan),
        };
        switch.cut("the end of the work");
        self.said = repo.daemon_log();
        repo.kill9();
        unmount(&mountpoint);
        drop(session);
        self.trace = switch.trace();
        lived?;
        self.disk = if plan.killed { switch.disk() } else { switch.disk().after_cut(plan.seed, plan.loss) };
        self.check_store()?;
        Ok((switch.cause().unwrap_or_default(), switch.operations()))
    }

    /// Checks what the mount shows, and works on it until the power fails.
    fn mounted(&mut self, repo: &TestRepo, switch: &Switch, plan: &Plan) -> Result<(), String> {
        let (done, stop) = mpsc::channel::<()>();
        let (pid, linger) = (repo.pid(), plan.linger);
        let watched = switch.clone();
        let killer = thread::spawn(move || {
            while stop.try_recv() == Err(mpsc::TryRecvError::Empty) {
                if watched.wait(Duration::from_millis(20)).is_some() {
                    if linger {
                        // Not a wait for something: it is the time in which the daemon may say something wrong.
                        thread::sleep(Duration::from_millis(50));
                    }
                    kill(pid);
                    return;
                }
            }
        });
        let worked =
            self.verify(repo, switch).and_then(|whole| if whole { self.work(repo, switch, plan) } else { Ok(()) });
        switch.cut("the end of the work");
        drop(done);
        killer.join().map_err(|_| "the thread that kills the daemon panicked".to_owned())?;
        worked
    }

    /// Finds the state that the mount shows. False if the power failed before it was read.
    fn verify(&mut self, repo: &TestRepo, switch: &Switch) -> Result<bool, String> {
        let seen = match Seen::of(&repo.mnt) {
            Ok(seen) => seen,
            Err(_) if switch.cause().is_some() => return Ok(false),
            Err(why) => return Err(format!("after the cut the tree can't be read: {why}")),
        };
        let found = self.history.matching(self.history.durable, &seen).map_err(|why| format!("after the cut {why}"))?;
        let at = *found.last().expect("One matches");
        if self.stored.is_some_and(|stored| stored > at) {
            return Err(format!("the mount shows state {at}, but the store alone was at {:?} already", self.stored));
        }
        // What a mount serves after a crash is durable: recovery syncs what it replayed.
        self.history.settle(at);
        Ok(true)
    }

    fn work(&mut self, repo: &TestRepo, switch: &Switch, plan: &Plan) -> Result<(), String> {
        let mut performer = Performer::new(&repo.live());
        let limits = Limits { nodes: 50, bytes: 6 << 20, write: 120_000, file: 1 << 20, compound: false };
        let mut generator = Generator::new(plan.seed, limits);
        let mut rng = Rng::new(!plan.seed);
        // A segment of the log has to be filled before it is followed by another.
        let fill = matches!(plan.cut, Cut::Point("log.rotate", _));
        for number in 0..if fill { 3 * STEPS } else { STEPS } {
            let state = self.history.states[self.history.last()].clone();
            let step = match number {
                0 => Step::Sync,
                _ if fill && rng.one_in(2) => overwrite(&mut rng, &state),
                _ => choose(&mut rng, &mut generator, &state),
            };
            let (after, want) = state.after(&step);
            self.history.push(after, step.clone());
            let at = self.history.last();
            let have = perform(&step, repo, &mut performer);
            if have != want {
                // Errors of a dead disk or a dead daemon: whether the operation happened is open.
                let died = plan.excuses(switch) || switch.wait(Duration::from_millis(200)).is_some();
                let why = format!("step {at}, {step:?}: error number {have:?}, should be {want:?}");
                return if died { Ok(()) } else { Err(why) };
            }
            if have == Ok(()) {
                self.promised(&step, at);
            }
            if switch.cause().is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What a successful step makes durable.
    fn promised(&mut self, step: &Step, at: usize) {
        match step {
            Step::File(Op::Fsync { .. }) | Step::Take(_) => self.history.durable = at,
            Step::Sync => (self.history.durable, self.history.committed) = (at, at),
            Step::File(_) | Step::Forget(_) | Step::Rename(..) => {}
        }
    }

    /// The store alone, as another machine finds it after the cut.
    fn check_store(&mut self) -> Result<(), String> {
        let copy = self.place.path().join("store-alone");
        let store = self.disk.find("store").map_err(|_| "the store is gone".to_owned())?;
        self.disk.export(store, &copy).map_err(|error| format!("the store can't be copied: {error}"))?;
        let mut other = TestRepo::without_init("powercut-alone");
        other.store = copy.clone();
        let seen = other.try_mount(&["--read-only"]).and_then(|()| Seen::of(&other.mnt));
        let found = seen.and_then(|seen| self.history.matching(self.history.committed, &seen));
        let found = found.map_err(|why| format!("the store alone: {why}\n{}", other.daemon_log()))?;
        self.stored = found.first().copied();
        drop(other);
        fs::remove_dir_all(&copy).map_err(|error| format!("the copy of the store can't be removed: {error}"))
    }

    fn report(&self, plan: &Plan, why: &str) -> String {
        let kept = self.keep();
        let steps =
            self.history.steps.iter().enumerate().map(|(at, step)| format!("  {at}: {}\n", describe(step.as_ref())));
        let steps: Vec<String> = steps.skip(self.history.steps.len().saturating_sub(90)).collect();
        let trace = &self.trace[self.trace.len().saturating_sub(60)..];
        format!(
            "chain {}, {plan:?}, settings:\n{}\n{why}\n\ndurable from state {}, in the store from {}; the steps:\n{}\n\
             the disk's last operations:\n  {}\nthe daemon said:\n{}\nthe disk before this life: {kept:?}",
            self.number,
            self.settings,
            self.history.durable,
            self.history.committed,
            steps.concat(),
            trace.join("\n  "),
            self.said,
        )
    }

    /// Keeps the disk that the failed life began with, if asked to.
    fn keep(&self) -> Option<PathBuf> {
        std::env::var_os("AXIOMFS_KEEP")?;
        let to = std::env::temp_dir().join(format!("axiomfs-powercut-failed-{}-{}", std::process::id(), self.number));
        match self.disk.export(axiomfs_tests::powercut::ROOT, &to) {
            Ok(()) => Some(to),
            Err(error) => {
                eprintln!("the disk can't be kept: {error}");
                None
            }
        }
    }
}

fn describe(step: Option<&Step>) -> String {
    match step {
        Some(Step::File(op)) => op.describe(),
        other => format!("{other:?}"),
    }
}

fn choose(rng: &mut Rng, generator: &mut Generator, state: &State) -> Step {
    let free = (0..4).map(|number| format!("s{number}")).find(|name| !state.snapshots.contains_key(name));
    let taken: Vec<&String> = state.snapshots.keys().collect();
    match (rng.below(100), free) {
        (0..=3, Some(name)) => Step::Take(name),
        (4..=5, _) if taken.len() > 1 => Step::Forget((*rng.pick(&taken)).clone()),
        (6, Some(name)) if !taken.is_empty() => Step::Rename((*rng.pick(&taken)).clone(), name),
        (7..=8, _) => Step::Sync,
        (9..=18, _) => {
            let can_be_synced = |id| matches!(state.live.node(id).kind, Kind::File(_) | Kind::Dir(_));
            let paths: Vec<_> = state.live.paths().into_iter().filter(|(_, id)| can_be_synced(*id)).collect();
            Step::File(Op::Fsync { path: rng.pick(&paths).0.clone() })
        }
        _ => Step::File(generator.next(&state.live)),
    }
}

/// Many bytes for the log and few for the tree.
fn overwrite(rng: &mut Rng, state: &State) -> Step {
    let path = b"overwritten".to_vec();
    match state.live.paths().get(&path).map(|id| &state.live.node(*id).kind) {
        Some(Kind::File(_)) => {}
        // The generator may have renamed something else over it.
        Some(Kind::Dir(_)) => {
            let to = format!("moved-{}", rng.next()).into_bytes();
            return Step::File(Op::Rename { from: path, to });
        }
        Some(_) => return Step::File(Op::Unlink { path }),
        None => return Step::File(Op::Create { path, mode: 0o600 }),
    }
    let data = Data { seed: rng.next(), len: rng.between(100_000, 250_000) as u32, text: false };
    Step::File(Op::Write { path, offset: rng.below(200_000), data })
}

fn perform(step: &Step, repo: &TestRepo, performer: &mut Performer) -> Result<(), i32> {
    let done = match step {
        Step::File(op) => performer.perform(op).map(drop),
        Step::Take(name) => fs::create_dir(repo.snapshot(name)),
        Step::Forget(name) => fs::remove_dir(repo.snapshot(name)),
        Step::Rename(from, to) => fs::rename(repo.snapshot(from), repo.snapshot(to)),
        Step::Sync => {
            let done = run(&mut repo.command(&["sync", text(&repo.mnt)]), LIMIT);
            return if done.status.success() { Ok(()) } else { Err(-1) };
        }
    };
    done.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn kill(pid: u32) {
    let killed = Pid::from_raw(pid as i32).map(|pid| kill_process(pid, Signal::KILL));
    if let Some(Err(error)) = killed {
        eprintln!("the daemon can't be killed: {error}");
    }
}
