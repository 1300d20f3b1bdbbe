//! Objects in the store that nobody of us put there: passed over, and named for people.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::repository::lock;

/// Names that are remembered.
const MOST: usize = 32;

/// Names of objects that are none of the format's.
#[derive(Debug, Default)]
pub(crate) struct Foreign(Mutex<BTreeSet<String>>);

impl Foreign {
    /// Notes one, and warns of it once.
    pub(crate) fn note(&self, name: &str) {
        let mut names = lock(&self.0);
        if names.len() < MOST && names.insert(name.to_owned()) {
            tracing::warn!(name, "an object that is not one of ours is passed over");
        }
    }

    /// The first few of them.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.0).iter().cloned().collect()
    }
}
