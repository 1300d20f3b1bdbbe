//! What a mount may show after a power cut: the oracle of the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::history::halfway;
use crate::model::{Model, Op};
use crate::observe::{Bytes, Observed, differences, observe};

/// What `live/` and `snapshots/` must look like after some operation.
#[derive(Clone, Default)]
pub struct State {
    /// The live tree.
    pub live: Model,
    /// Each snapshot, as the live tree was when it was taken.
    pub snapshots: BTreeMap<String, Model>,
}

impl State {
    /// How a mount differs from this state; empty when it doesn't.
    pub fn differences(&self, seen: &Seen) -> Vec<String> {
        let mut out = differences(&self.live, &seen.live);
        for (name, model) in &self.snapshots {
            match seen.snapshots.get(name) {
                Some(seen) => {
                    out.extend(differences(model, seen).into_iter().map(|line| format!("snapshot {name}: {line}")))
                }
                None => out.push(format!("snapshot {name} is missing")),
            }
        }
        let strange = seen.snapshots.keys().filter(|name| !self.snapshots.contains_key(*name));
        out.extend(strange.map(|name| format!("snapshot {name} is there and shouldn't be")));
        out
    }

    /// The state after a step, and the error number that the step must give.
    pub fn after(&self, step: &Step) -> (State, Result<(), i32>) {
        let mut after = self.clone();
        let done = match step {
            Step::File(op) => after.live.apply(op).map(drop),
            Step::Take(name) => {
                let mut taken = self.live.clone();
                taken.release_all();
                after.snapshots.insert(name.clone(), taken);
                Ok(())
            }
            Step::Forget(name) => after.snapshots.remove(name).map(drop).ok_or(libc::ENOENT),
            Step::Rename(from, to) => match after.snapshots.remove(from) {
                Some(snapshot) => {
                    after.snapshots.insert(to.clone(), snapshot);
                    Ok(())
                }
                None => Err(libc::ENOENT),
            },
            Step::Sync => Ok(()),
        };
        (after, done)
    }
}

/// What a mount shows.
pub struct Seen {
    /// The live tree.
    pub live: Observed,
    /// Each snapshot.
    pub snapshots: BTreeMap<String, Observed>,
}

impl Seen {
    /// Reads all of a mount.
    pub fn of(mnt: &Path) -> Result<Seen, String> {
        let read = |path: &Path| observe(path, Bytes::Keep).map_err(|error| error.to_string());
        let mut snapshots = BTreeMap::new();
        for entry in fs::read_dir(mnt.join("snapshots")).map_err(|error| format!("snapshots: {error}"))? {
            let path = entry.map_err(|error| format!("snapshots: {error}"))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            snapshots.insert(name, read(&path)?);
        }
        Ok(Seen { live: read(&mnt.join("live"))?, snapshots })
    }
}

/// One step of a workload.
#[derive(Clone, Debug)]
pub enum Step {
    /// An operation in the live tree.
    File(Op),
    /// A snapshot is taken.
    Take(String),
    /// A snapshot is forgotten.
    Forget(String),
    /// A snapshot is renamed.
    Rename(String, String),
    /// `axiomfs sync`.
    Sync,
}

/// Most names of one file in a workload.
const MOST_NAMES: usize = 8;

/// The states that a mount may show.
pub struct History {
    /// The states in the order of the steps that made them.
    pub states: Vec<State>,
    /// The step that made each state; the first state has none.
    pub steps: Vec<Option<Step>>,
    /// The first state that a mount of state and store may show: what came before it was promised to be durable.
    pub durable: usize,
    /// The first state that the store alone may show.
    pub committed: usize,
}

impl History {
    /// A history that begins with an empty tree.
    pub fn begin() -> History {
        History { states: vec![State::default()], steps: vec![None], durable: 0, committed: 0 }
    }

    /// Adds what a step leads to.
    pub fn push(&mut self, state: State, step: Step) {
        self.states.push(state);
        self.steps.push(Some(step));
    }

    /// The number of the latest state.
    pub fn last(&self) -> usize {
        self.states.len() - 1
    }

    /// The states from `first` on that equal what is seen. A write that was caught halfway becomes a state of its own.
    pub fn matching(&mut self, first: usize, seen: &Seen) -> Result<Vec<usize>, String> {
        let like = |at: &usize| self.states[*at].differences(seen).is_empty();
        let found: Vec<usize> = (first..self.states.len()).filter(like).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        if let Some((at, state)) =
            (first + 1..self.states.len()).find_map(|at| Some((at, self.caught_halfway(at, seen)?)))
        {
            self.states.insert(at, state);
            self.steps.insert(at, self.steps[at].clone());
            self.durable += usize::from(self.durable >= at);
            self.committed += usize::from(self.committed >= at);
            return Ok(vec![at]);
        }
        let by_distance = |at: &usize| self.states[*at].differences(seen).len();
        let nearest = (0..self.states.len()).min_by_key(by_distance).expect("There is a state");
        Err(format!(
            "no state from {first} to {} matches; nearest is state {nearest}:\n    {}",
            self.last(),
            self.states[nearest].differences(seen).join("\n    ")
        ))
    }

    /// The state halfway through the write that led to state `at`, if that is what is seen.
    fn caught_halfway(&self, at: usize, seen: &Seen) -> Option<State> {
        let before = &self.states[at - 1];
        let Some(Step::File(op)) = &self.steps[at] else { return None };
        // Only one file can differ, so that most states need no closer look.
        if before.differences(seen).len() > MOST_NAMES {
            return None;
        }
        let halves = halfway(&before.live, op).into_iter();
        halves
            .map(|live| State { live, snapshots: before.snapshots.clone() })
            .find(|state| state.differences(seen).is_empty())
    }

    /// Goes on from the state that a mount showed; what was to come after it has not happened.
    pub fn settle(&mut self, at: usize) {
        self.states.truncate(at + 1);
        self.steps.truncate(at + 1);
        let gone = self.committed;
        self.states.drain(..gone);
        self.steps.drain(..gone);
        (self.durable, self.committed) = (at - gone, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Data;
    use crate::perform::Performer;

    /// A plain directory that looks like a mount after `done` of the steps, and the history of all of them.
    fn mount_after(done: usize) -> (tempfile::TempDir, History) {
        let data = |seed| Data { seed, len: 3_000, text: false };
        let path = b"f".to_vec();
        let steps = [
            Step::File(Op::Create { path: path.clone(), mode: 0o644 }),
            Step::File(Op::Write { path: path.clone(), offset: 0, data: data(1) }),
            Step::Take("s".into()),
            Step::File(Op::Append { path: path.clone(), data: data(2) }),
            Step::Forget("s".into()),
            Step::File(Op::Unlink { path }),
        ];
        let place = tempfile::tempdir().unwrap();
        let (live, snapshots) = (place.path().join("live"), place.path().join("snapshots"));
        fs::create_dir_all(&live).unwrap();
        fs::create_dir_all(&snapshots).unwrap();
        let mut performer = Performer::new(&live);
        performer.perform(&Op::Chmod { path: Vec::new(), mode: 0o755 }).unwrap();
        let mut history = History::begin();
        for (number, step) in steps.iter().enumerate() {
            let (after, want) = history.states[number].after(step);
            assert_eq!(want, Ok(()));
            history.push(after, step.clone());
            match step {
                _ if number >= done => {}
                Step::File(op) => drop(performer.perform(op).unwrap()),
                Step::Take(name) => crate::run::must(
                    "cp",
                    &["-a", live.to_str().unwrap(), snapshots.join(name).to_str().unwrap()],
                    std::time::Duration::from_secs(10),
                )
                .clear(),
                Step::Forget(name) => fs::remove_dir_all(snapshots.join(name)).unwrap(),
                Step::Rename(..) | Step::Sync => unreachable!("Not a step of this test"),
            }
        }
        (place, history)
    }

    #[test]
    fn every_prefix_is_recognised_and_nothing_else() {
        for done in 0..=6 {
            let (place, mut history) = mount_after(done);
            let seen = Seen::of(place.path()).unwrap();
            // Nothing is left after the last step, as before the first.
            let same: &[usize] = if done % 6 == 0 { &[0, 6] } else { &[done] };
            assert_eq!(history.matching(0, &seen).as_deref(), Ok(same));
            if done < 6 {
                let lost = history.matching(6.min(done + 1), &seen);
                assert_eq!(lost.is_err(), done > 0, "{lost:?}");
            }
            history.committed = done.min(1);
            history.settle(done);
            assert_eq!(history.matching(history.durable, &seen), Ok(vec![history.last()]));
        }
    }

    #[test]
    fn a_write_may_be_caught_between_the_parts_in_which_the_kernel_sends_it() {
        let (place, mut history) = mount_after(4);
        let file = fs::OpenOptions::new().write(true).open(place.path().join("live/f")).unwrap();
        for (len, halfway) in [(6_000, None), (4_096, Some(vec![4])), (4_095, None), (3_000, Some(vec![3]))] {
            file.set_len(len).unwrap();
            let seen = Seen::of(place.path()).unwrap();
            history.durable = 4;
            let found = history.matching(0, &seen);
            if len == 6_000 {
                assert_eq!(found, Ok(vec![4]));
                continue;
            }
            assert_eq!(found.ok(), halfway, "{len}");
            if len == 4_096 {
                assert_eq!((history.states.len(), history.durable), (8, 5));
            }
        }
    }

    #[test]
    fn a_changed_byte_is_no_state() {
        let (place, mut history) = mount_after(3);
        for file in ["live/f", "snapshots/s/f"] {
            let path = place.path().join(file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[1_234] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let seen = Seen::of(place.path()).unwrap();
            assert!(history.matching(0, &seen).is_err());
            assert!(history.states[3].differences(&seen).concat().contains("byte 1234"), "{file}");
            bytes[1_234] ^= 1;
            fs::write(&path, &bytes).unwrap();
        }
    }
}
