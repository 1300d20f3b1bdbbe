//! The switch that cuts the power of a mounted disk.

use super::adapter::PowercutFs;
use super::disk::{Disk, Ino};
use fuser::{BackgroundSession, Config, MountOption};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Controls the power of a mounted disk. Clones control the same disk.
#[derive(Clone)]
pub struct Switch(pub(super) Arc<Shared>);

pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) off: Condvar,
}

/// The disk and what the mount needs to know about it.
pub(super) struct State {
    pub(super) disk: Disk,
    /// What each open directory held when its listing began.
    pub(super) listings: HashMap<u64, Vec<(Vec<u8>, Ino)>>,
    pub(super) next_handle: u64,
    pub(super) operations: u64,
    pub(super) cut_at: Option<u64>,
    /// Why the power is off; `None` while it is on.
    pub(super) cut: Option<String>,
    /// A sync that is going to fail.
    pub(super) failing: Option<Failing>,
    /// The disk as it was after it.
    pub(super) at_failure: Option<Disk>,
    pub(super) trace: VecDeque<String>,
}

/// A sync that is going to fail.
#[derive(Clone, Debug)]
pub struct Failing {
    /// A part of the path of the file, or of the directory.
    pub part: String,
    /// Syncs of such files that succeed before.
    pub after: u64,
    /// Bytes of such a file that would become durable, at least. `None`: it is a directory.
    pub bytes: Option<u64>,
    /// How it fails.
    pub how: Failure,
}

/// How a sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// As [`Disk::fail_sync_of`] says.
    Error,
    /// It is answered as failed, and nothing is durable yet: the next one makes it so.
    Refused,
    /// The power is cut before it.
    Cut,
}

impl Switch {
    /// A switch for a disk whose power is on.
    pub fn new(disk: Disk) -> Self {
        let state = State {
            disk,
            listings: HashMap::new(),
            next_handle: 0,
            operations: 0,
            cut_at: None,
            cut: None,
            failing: None,
            at_failure: None,
            trace: VecDeque::new(),
        };
        Switch(Arc::new(Shared { state: Mutex::new(state), off: Condvar::new() }))
    }

    /// Mounts the disk. It is unmounted when the session is dropped.
    pub fn mount(&self, mountpoint: &Path) -> io::Result<BackgroundSession> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut".to_owned())];
        fuser::spawn_mount(PowercutFs(self.clone()), mountpoint, &config)
    }

    /// Cuts the power when as many changing operations were asked for in all (counted from the first after the start):
    /// that one still reaches the disk's cache, but is never answered.
    pub fn cut_at(&self, operation: u64) {
        self.state().cut_at = Some(operation);
    }

    /// Cuts the power now, unless it is off already.
    pub fn cut(&self, cause: &str) {
        let mut state = self.state();
        state.cut.get_or_insert_with(|| cause.to_owned());
        self.0.off.notify_all();
    }

    /// Why the power is off, or `None` while it is on.
    pub fn cause(&self) -> Option<String> {
        self.state().cut.clone()
    }

    /// Waits until the power is off. `None` if it is still on after the time.
    pub fn wait(&self, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        let mut state = self.state();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if state.cut.is_some() || left.is_zero() {
                return state.cut.clone();
            }
            state = self.0.off.wait_timeout(state, left).expect("No holder of the lock panics").0;
        }
    }

    /// Lets a sync fail, once.
    pub fn fail(&self, failing: Failing) {
        self.state().failing = Some(failing);
    }

    /// Whether that sync was asked for and failed.
    pub fn has_failed(&self) -> bool {
        self.state().at_failure.is_some()
    }

    /// The disk as it was then, before anybody could try again.
    pub fn disk_at_failure(&self) -> Option<Disk> {
        self.state().at_failure.clone()
    }

    /// Waits until that sync was asked for and failed. False if it wasn't after the time.
    pub fn wait_for_failure(&self, patience: Duration) -> bool {
        let waited = self.0.off.wait_timeout_while(self.state(), patience, |state| state.at_failure.is_none());
        waited.expect("No holder of the lock panics").0.at_failure.is_some()
    }

    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The disk as it is: after a cut, what [`Disk::after_cut`] starts from.
    pub fn disk(&self) -> Disk {
        self.state().disk.clone()
    }

    /// The latest operations, the oldest first.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.iter().cloned().collect()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("No holder of the lock panics")
    }
}
