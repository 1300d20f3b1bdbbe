//! The sealing epoch of an open repository: which one seals, and the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axiomfs_api::{Seal, Store};

use crate::error::RepositoryError;
use crate::foreign::Foreign;
use crate::key_changes::KeyChange;
use crate::key_slots::{KeyEpoch, Keys};
use crate::keyring::Keyring;
use crate::keys::Unlocked;
use crate::repository::{Repository, lock};

/// How often a writer looks whether somebody else has made a new epoch, while it commits.
const ASK: Duration = Duration::from_secs(60);

/// Lets `keyring` look for what it does not know in the store.
pub(crate) fn follow_store(keyring: &Keyring, store: &Arc<dyn Store>, seal: &Arc<dyn Seal>, unlocked: &Arc<Unlocked>) {
    let (store, seal, unlocked) = (Arc::clone(store), Arc::clone(seal), Arc::clone(unlocked));
    let repository = keyring.repository;
    keyring.follow(Box::new(move || {
        Keyring::load(store.as_ref(), seal.as_ref(), repository, &unlocked.master, &Foreign::default())
    }));
}

impl Repository {
    /// Generation of the keyring in use, for heads.
    pub fn keyring_generation(&self) -> u32 {
        self.keyring.generation()
    }

    /// The epoch that seals what is written now.
    pub fn sealing_epoch(&self) -> KeyEpoch {
        self.keyring.epochs().last().copied().expect("a keyring without an epoch is refused when it is read")
    }

    /// All epochs, the oldest first.
    pub fn epochs(&self) -> Vec<KeyEpoch> {
        self.keyring.epochs()
    }

    /// What was done to passphrases and keys beside mounts, the oldest first, as far as the keyring in use tells.
    pub fn key_changes(&self) -> Vec<KeyChange> {
        self.keyring.changes()
    }

    /// Ids of the key slots there were when the repository was opened, the one that opened it first.
    pub fn key_ids(&self) -> Vec<String> {
        let Unlocked { opened, slots, .. } = &*self.unlocked;
        let others = slots.iter().filter(|id| *id != opened);
        std::iter::once(opened).chain(others).cloned().collect()
    }

    /// Adds a sealing epoch and seals with it from the next pack on; its number. See [`Keys::rotate`].
    ///
    /// # Errors
    /// As [`Keys::rotate`].
    pub fn rotate(&self, compromised: bool) -> Result<u32, RepositoryError> {
        let Unlocked { master, opened, .. } = &*self.unlocked;
        let keys = Keys {
            store: self.store.as_ref(),
            seal: self.seal.as_ref(),
            repository: self.id(),
            master: master.clone(),
            opened: opened.clone(),
        };
        let rotated = keys.rotate(compromised);
        // Also where somebody else was first: then the next pack is sealed with theirs.
        self.keyring.refresh()?;
        rotated
    }

    /// Takes up an epoch that somebody else made, where that was not looked at for a minute. One small request then.
    pub(crate) fn follow_keys(&self) {
        let due = {
            let mut asked = lock(&self.keys_asked);
            let due = asked.elapsed() >= ASK;
            if due {
                *asked = Instant::now();
            }
            due
        };
        if !due {
            return;
        }
        let looked =
            self.keyring.is_outdated(self.store.as_ref()).and_then(|later| Ok(later && self.keyring.refresh()?));
        match looked {
            Ok(true) => tracing::info!(epoch = self.sealing_epoch().number, "another sealing key is in use now"),
            Ok(false) => {}
            // What is written is sealed with the key that is known, as before.
            Err(error) => tracing::warn!(%error, "could not look for a later keyring"),
        }
    }
}
