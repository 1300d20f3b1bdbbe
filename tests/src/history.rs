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
                assert!(killed.load(Ordering::SeqCst), "{}: {op:?} gave {have:?}, should be {want:?}", self.name);
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
            if with.is_empty() {
                self.steps.push(Step { op: Some(op), model: Some(after), started, acknowledged: Instant::now() });
                return self.adopt(&root);
            }
            message = format!("and with the operation in flight, {op:?}:\n{}\n", with.join("\n"));
        }
        if without.is_empty() {
            return self.adopt(&root);
        }
        let last: Vec<String> = self.steps.iter().rev().take(6).map(|s| format!("  {:?}", s.op)).collect();
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

    /// Which of the states in `range` the tree at `root` is; empty when it is none of them.
    pub fn states_like(&self, seen: &Observed, range: States) -> Vec<usize> {
        let shape = shape_seen(seen);
        range
            .filter(|k| {
                let model = self.steps.get(*k).and_then(|s| s.model.as_ref());
                model.is_some_and(|m| shape_model(m) == shape && differences(m, seen).is_empty())
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
