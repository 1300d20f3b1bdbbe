//! A program that works in one directory while the daemon may be killed, and the record of all states it went through.
//!
//! Every operation is recorded with when it began and when it was acknowledged. After a crash the tree must be the state
//! after the last acknowledged operation, or the one after the operation that was in flight; the store alone must hold
//! one of the states, and two workers' states must fit together.

use std::collections::BTreeMap;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::generate::{Generator, Limits};
use crate::model::{Kind, Model, Op, Path};
use crate::observe::{Bytes, Observed, differences, observe};
use crate::perform::Performer;

/// One state and the operation that led to it.
#[derive(Debug)]
struct Step {
    op: Option<Op>,
    /// Pruned when it is too old to be asked for.
    model: Option<Model>,
    started: Instant,
    acknowledged: Instant,
}

/// Works in one directory and remembers.
#[derive(Debug)]
pub struct Worker {
    /// The directory's name below `live/`.
    pub name: String,
    steps: Vec<Step>,
    generator: Generator,
    /// Set while an operation runs whose end isn't known.
    in_flight: Option<(Op, Model, Instant)>,
    /// How many operations have been started and acknowledged, for other threads to read.
    progress: Arc<Progress>,
}

/// Counts that other threads may read while the worker works.
#[derive(Debug, Default)]
pub struct Progress {
    started: AtomicUsize,
    acknowledged: AtomicUsize,
}

impl Progress {
    /// The newest acknowledged state; for a snapshot taken by another thread, read before it.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// The newest state that may have been reached; for a snapshot taken by another thread, read after it.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

/// States, by number, that a snapshot or a store may hold.
pub type States = std::ops::RangeInclusive<usize>;

impl Worker {
    /// Begins in an empty directory `name` of `live`, which must exist with mode 0755.
    pub fn new(name: &str, seed: u64) -> Worker {
        let now = Instant::now();
        let first = Step { op: None, model: Some(Model::new()), started: now, acknowledged: now };
        Worker {
            name: name.into(),
            steps: vec![first],
            generator: Generator::new(seed, Limits::crash()),
            in_flight: None,
            progress: Arc::default(),
        }
    }

    /// The number of the present state.
    pub fn state(&self) -> usize {
        self.steps.len() - 1
    }

    fn model(&self) -> &Model {
        self.steps.last().and_then(|s| s.model.as_ref()).expect("the newest state is never pruned")
    }

    /// The tree of this worker's present state has been seen to hold `n` nodes.
    pub fn nodes(&self) -> usize {
        self.model().paths().len()
    }

    /// Works until an operation fails because the daemon is gone, or `stop` is set.
    ///
    /// # Panics
    /// When a result differs from the model's while the daemon has not been killed.
    pub fn work(&mut self, live: &FsPath, killed: &AtomicBool, stop: &AtomicBool) {
        let mut performer = Performer::new(&live.join(&self.name));
        while !stop.load(Ordering::SeqCst) {
            let mut after = self.model().clone();
            let op = self.generator.next(&after);
            let want = after.apply(&op);
            let started = Instant::now();
            self.progress.started.store(self.steps.len(), Ordering::SeqCst);
            let have = performer.perform(&op).map_err(|e| e.raw_os_error().unwrap_or(-1));
            let acknowledged = Instant::now();
            if have != want {
                assert!(
                    killed.load(Ordering::SeqCst),
                    "{}: {} gave {have:?}, should be {want:?}",
                    self.name,
                    op.describe()
                );
                self.in_flight = Some((op, after, started));
                return;
            }
            if want.is_ok()
                && let Err(e) = performer.adopt_times(&mut after)
            {
                assert!(killed.load(Ordering::SeqCst), "{}: after {op:?}: {e}", self.name);
            }
            self.steps.push(Step { op: Some(op), model: Some(after), started, acknowledged });
            self.progress.acknowledged.store(self.state(), Ordering::SeqCst);
        }
    }

    /// What other threads may read.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// After a crash: the tree must be exactly what was acknowledged, with the operation in flight done or not done.
    pub fn recovered(&mut self, live: &FsPath) -> Result<(), String> {
        let root = live.join(&self.name);
        let seen = observe(&root, Bytes::Keep).map_err(|e| format!("{}: can't be read: {e}", self.name))?;
        let without = differences(self.model(), &seen);
        let mut message = String::new();
        if let Some((op, after, started)) = self.in_flight.take() {
            let with = differences(&after, &seen);
            let partly = halfway(self.model(), &op).into_iter().find(|m| differences(m, &seen).is_empty());
            if let Some(model) = if with.is_empty() { Some(after) } else { partly } {
                self.steps.push(Step { op: Some(op), model: Some(model), started, acknowledged: Instant::now() });
                return self.adopt(&root);
            }
            message = format!("and with the operation in flight, {}:\n{}\n", op.describe(), with.join("\n"));
        }
        if without.is_empty() {
            return self.adopt(&root);
        }
        let last: Vec<String> = self
            .steps
            .iter()
            .rev()
            .take(6)
            .filter_map(|s| s.op.as_ref())
            .map(|op| format!("  {}", op.describe()))
            .collect();
        Err(format!(
            "{}: differs from the acknowledged state {}:\n{}\n{message}the last operations, newest first:\n{}",
            self.name,
            self.state(),
            without.join("\n"),
            last.join("\n")
        ))
    }

    fn adopt(&mut self, root: &FsPath) -> Result<(), String> {
        let last = self.steps.last_mut().and_then(|s| s.model.as_mut()).expect("the newest state is never pruned");
        last.release_all();
        let read = Performer::new(root).adopt_times(last).map_err(|e| format!("{}: {e}", self.name));
        self.progress.acknowledged.store(self.state(), Ordering::SeqCst);
        self.progress.started.store(self.state(), Ordering::SeqCst);
        read
    }

    /// Which of the states in `range` the tree is; empty when it is none of them. A write that the kernel handed over in
    /// parts may have been seen halfway; then it is the state before it that counts.
    pub fn states_like(&self, seen: &Observed, range: States) -> Vec<usize> {
        let shape = shape_seen(seen);
        let like = |m: &Model| shape_model(m) == shape && differences(m, seen).is_empty();
        // Halfway through a write only the names of one file can look different.
        let near = |m: &Model| {
            let other = shape_model(m);
            other.len() == shape.len() && other.iter().zip(&shape).filter(|(a, b)| a != b).count() < 10
        };
        let last = *range.end();
        range
            .filter(|k| {
                let Some(model) = self.steps.get(*k).and_then(|s| s.model.as_ref()) else { return false };
                let next = self.steps.get(k + 1).filter(|_| *k < last).and_then(|s| s.op.as_ref());
                like(model) || next.is_some_and(|op| near(model) && halfway(model, op).iter().any(like))
            })
            .collect()
    }

    /// How the tree differs from state `k`.
    pub fn differences_from(&self, k: usize, seen: &Observed) -> Vec<String> {
        let model = self.steps[k].model.as_ref().expect("a state that wasn't pruned");
        differences(model, seen)
    }

    /// Forgets states before `oldest`, except those in `keep`.
    pub fn prune(&mut self, oldest: usize, keep: &[States]) {
        for (k, step) in self.steps.iter_mut().enumerate().take(oldest) {
            if !keep.iter().any(|r| r.contains(&k)) {
                step.model = None;
            }
        }
    }
}

/// Whether state `a` of one worker and state `b` of another can be one moment: nothing that began after the other's next
/// operation was acknowledged may be in it.
pub fn fit_together(one: &Worker, a: usize, other: &Worker, b: usize) -> bool {
    let late = |w: &Worker, k: usize, v: &Worker, l: usize| {
        v.steps.get(l + 1).is_some_and(|next| k > 0 && w.steps[k].started > next.acknowledged)
    };
    !late(one, a, other, b) && !late(other, b, one, a)
}

/// The states a single `write` can be caught in: the kernel sends it in several requests where it begins or ends within
/// a page that isn't cached, so it may be there up to a page's end.
pub fn halfway(before: &Model, op: &Op) -> Vec<Model> {
    const PAGE: u64 = 4096;
    let (offset, data) = match op {
        Op::Write { offset, data, .. } => (*offset, data),
        Op::Append { path, data } => match before.size_of(path) {
            Some(size) => (size, data),
            None => return Vec::new(),
        },
        _ => return Vec::new(),
    };
    let ends = (offset / PAGE + 1..).map(|page| page * PAGE - offset).take_while(|cut| *cut < u64::from(data.len));
    let cut = |len: u64| {
        let mut op = op.clone();
        if let Op::Write { data, .. } | Op::Append { data, .. } = &mut op {
            data.len = len as u32;
        }
        let mut model = before.clone();
        model.apply(&op).ok().map(|_| model)
    };
    ends.filter_map(cut).collect()
}

type Shape = BTreeMap<Path, (bool, u32, u64)>;

fn shape_seen(seen: &Observed) -> Shape {
    let shape = |e: &crate::observe::Entry| (e.kind == "directory", e.mode, if e.kind == "file" { e.size } else { 0 });
    seen.entries.iter().map(|(p, e)| (p.clone(), shape(e))).collect()
}

fn shape_model(model: &Model) -> Shape {
    let shape = |id| {
        let node = model.node(id);
        match &node.kind {
            Kind::File(c) => (false, node.mode, c.size()),
            Kind::Dir(_) => (true, node.mode, 0),
            _ => (false, node.mode, 0),
        }
    };
    model.paths().into_iter().map(|(p, id)| (p, shape(id))).collect()
}

/// Reads a worker's tree below `top`.
pub fn seen_in(top: &FsPath, worker: &Worker) -> Result<Observed, String> {
    let root: PathBuf = top.join(&worker.name);
    observe(&root, Bytes::Keep).map_err(|e| format!("{}: can't be read: {e}", root.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::time::Duration;

    use super::*;

    fn worked(live: &FsPath) -> Worker {
        let mut worker = Worker::new("w", 4711);
        fs::create_dir(live.join("w")).expect("a directory to work in");
        fs::set_permissions(live.join("w"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
        let (killed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            s.spawn(|| worker.work(live, &killed, &stop));
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::SeqCst);
        });
        assert!(worker.state() > 50, "only {} operations were done", worker.state());
        worker
    }

    #[test]
    fn the_acknowledged_state_is_recognised_and_any_change_to_it_is_not() {
        let live = tempfile::tempdir().expect("a temporary directory");
        let mut worker = worked(live.path());
        worker.recovered(live.path()).expect("nothing was lost");
        let seen = seen_in(live.path(), &worker).expect("read");
        assert!(worker.states_like(&seen, 0..=worker.state()).contains(&worker.state()));
        let file = seen.contents.iter().find(|(_, bytes)| bytes.len() > 10).expect("a file with something in it").0;
        let path = live.path().join("w").join(std::ffi::OsStr::from_bytes(file));
        let mut bytes = fs::read(&path).expect("read");
        bytes[5] ^= 1;
        fs::write(&path, &bytes).expect("one bit changed");
        let error = worker.recovered(live.path()).expect_err("a changed bit must be noticed");
        assert!(error.contains("byte 5 is"), "{error}");
        bytes[5] ^= 1;
        fs::write(&path, &bytes).expect("changed back");
        let error = worker.recovered(live.path()).expect_err("the time isn't what it was");
        assert!(error.contains("mtime"), "{error}");
        fs::remove_file(&path).expect("removed");
        let error = worker.recovered(live.path()).expect_err("a lost file must be noticed");
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn an_operation_in_flight_may_be_done_or_not() {
        for done in [false, true] {
            let live = tempfile::tempdir().expect("a temporary directory");
            let mut worker = worked(live.path());
            let op = Op::Mkdir { path: b"in flight".to_vec(), mode: 0o755 };
            let mut after = worker.model().clone();
            after.apply(&op).expect("it can be made");
            worker.in_flight = Some((op, after, Instant::now()));
            if done {
                let path = live.path().join("w/in flight");
                fs::create_dir(&path).expect("made");
                fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
            }
            let before = worker.state();
            worker.recovered(live.path()).expect("both are right");
            assert_eq!(worker.state(), before + usize::from(done));
        }
    }

    #[test]
    fn states_of_two_moments_do_not_fit_together() {
        let steps = |at: &[(u64, u64)]| {
            let zero = Instant::now();
            let mut worker = Worker::new("w", 1);
            for (started, acknowledged) in at {
                let time = |ms: &u64| zero + Duration::from_millis(*ms);
                let model = Some(Model::new());
                worker.steps.push(Step { op: None, model, started: time(started), acknowledged: time(acknowledged) });
            }
            worker
        };
        let one = steps(&[(10, 20), (30, 40), (1000, 1010)]);
        let two = steps(&[(500, 510), (520, 530)]);
        assert!(fit_together(&one, 2, &two, 2), "nothing lies between them");
        assert!(
            !fit_together(&one, 1, &two, 1),
            "the first one's second operation was over before the other's first began"
        );
        assert!(!fit_together(&one, 3, &two, 0), "the other's first was over before the first one's third began");
    }
}
