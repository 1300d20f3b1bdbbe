//! Objects in the store that nobody of us put there: passed over, and named for people.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use axiomfs_api::Store;

use crate::error::RepositoryError;
use crate::ids::hex;
use crate::repository::{Repository, lock};

/// Names that are remembered.
const MOST: usize = 32;
/// Names of each kind that are looked at.
const MOST_LISTED: usize = 10_000;

/// Names of objects that are none of the format's.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    names: Mutex<BTreeSet<String>>,
    looked: AtomicBool,
}

impl Foreign {
    /// Notes one, and warns of it once; whether it is new.
    pub(crate) fn note(&self, name: &str) -> bool {
        let mut names = lock(&self.names);
        let is_new = names.len() < MOST && names.insert(name.to_owned());
        if is_new {
            tracing::warn!(name, "an object that is not one of ours is passed over");
        }
        is_new
    }

    /// Notes what the store's listings left out so far; those that are new.
    pub(crate) fn note_left_out(&self, store: &dyn Store) -> Vec<String> {
        store.left_out().into_iter().filter(|name| self.note(name)).collect()
    }

    /// The first few of them.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.names).iter().cloned().collect()
    }
}

impl Repository {
    /// Looks once for objects that are none of ours among the first packs, index segments and heads, which are seldom or never listed
    /// otherwise, and names those that were not known.
    ///
    /// # Errors
    /// What the store met; then the next call looks again.
    pub fn look_for_foreign(&self) -> Result<Vec<String>, RepositoryError> {
        if self.foreign.looked.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let kinds = [("packs/", is_pack as fn(&str) -> bool), ("index/", is_segment), ("heads/", is_head)];
        for (prefix, is_ours) in kinds {
            for object in self.store.list(prefix, None, MOST_LISTED)? {
                let name = object.key.as_str();
                if !is_ours(name) && self.foreign.note(name) {
                    found.push(name.to_owned());
                }
            }
        }
        found.extend(self.foreign.note_left_out(self.store.as_ref()));
        self.foreign.looked.store(true, Ordering::Relaxed);
        Ok(found)
    }
}

fn is_pack(name: &str) -> bool {
    let parts = name.strip_prefix("packs/").and_then(|name| name.split_once('/'));
    parts.is_some_and(|(first, id)| hex::decode::<32>(id).is_some() && id.starts_with(first) && first.len() == 2)
}

fn is_segment(name: &str) -> bool {
    let parts = name.strip_prefix("index/").and_then(|name| name.split_once('/'));
    parts.is_some_and(|(volume, id)| hex::decode::<16>(volume).is_some() && hex::decode::<16>(id).is_some())
}

fn is_head(name: &str) -> bool {
    let parts = name.strip_prefix("heads/").and_then(|name| name.split_once('/'));
    parts.is_some_and(|(volume, number)| hex::decode::<16>(volume).is_some() && hex::decode::<8>(number).is_some())
}
