//! Where listings of the live tree end.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The end that the directory of each open handle had when it was opened or rewound. What is made or renamed later comes after that and
/// is not listed: a program that renames what it lists would never see the end, or would see things twice.
#[derive(Default)]
pub(crate) struct Listings {
    last: AtomicU64,
    ends: Mutex<HashMap<u64, u64>>,
}

impl Listings {
    /// A handle of a directory. It is not 0, which is the handle of whatever has no end to be kept.
    pub(crate) fn open(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A listing begins at `end`.
    pub(crate) fn begin(&self, handle: u64, end: u64) {
        self.ends().insert(handle, end);
    }

    /// Where the listing through `handle` ends, if it has begun.
    pub(crate) fn end(&self, handle: u64) -> Option<u64> {
        self.ends().get(&handle).copied()
    }

    /// The handle is closed.
    pub(crate) fn close(&self, handle: u64) {
        self.ends().remove(&handle);
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
