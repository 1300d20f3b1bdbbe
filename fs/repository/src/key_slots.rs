//! Passphrases of a repository and its sealing epochs, managed beside whoever has it mounted (format.md §4).

use axiomfs_api::{Body, Seal, Store, StoreErrorKind};

use crate::crypto::{Secret, random};
use crate::error::RepositoryError;
use crate::foreign::Foreign;
use crate::ids::{RepositoryId, hex};
use crate::key_changes::NewKeyChange;
use crate::keyring::Keyring;
use crate::keys::{self, KdfParams};
use crate::repository::now_ns;
use crate::{config, limits, names};

/// How often a new generation of the keyring is tried while others make some too.
const RACES: u32 = 8;

/// What a key slot says without a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Its id in hex: the end of its object's name.
    pub id: String,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// What one guess costs.
    pub kdf: KdfParams,
}

/// A sealing epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyEpoch {
    /// Its number; the highest seals what is written.
    pub number: u32,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// Whether somebody else may know its key: what it sealed is stored anew where it comes again.
    pub compromised: bool,
}

/// The slots of a repository, which anybody may list who may list the store.
///
/// # Errors
/// [`RepositoryError::NotARepository`], damage, or what the store met.
pub fn key_slots(store: &dyn Store) -> Result<Vec<KeySlot>, RepositoryError> {
    config::load(store)?;
    let mut slots = Vec::new();
    for object in keys::slots(store, &Foreign::default())? {
        let name = object.key.as_str();
        let bytes = store.get(&object.key, limits::SLOT)?;
        let (kdf, created_ns) = keys::slot_facts(&bytes, name)?;
        slots.push(KeySlot { id: keys::slot_id(name).to_owned(), created_ns, kdf });
    }
    slots.sort_by(|a, b| (a.created_ns, &a.id).cmp(&(b.created_ns, &b.id)));
    Ok(slots)
}

/// The keys of a repository, unlocked by one of its passphrases.
pub struct Keys<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) seal: &'a dyn Seal,
    pub(crate) repository: RepositoryId,
    pub(crate) master: Secret,
    /// The slot that the passphrase opened.
    pub(crate) opened: String,
}

impl<'a> Keys<'a> {
    /// Unlocks.
    ///
    /// # Errors
    /// As [`Repository::open`](crate::Repository::open).
    pub fn unlock(store: &'a dyn Store, seal: &'a dyn Seal, passphrase: &[u8]) -> Result<Self, RepositoryError> {
        let config = config::load(store)?;
        let slots = keys::slots(store, &Foreign::default())?;
        let keys::Unlocked { master, opened, .. } = keys::unlock(store, seal, config.repository, passphrase, &slots)?;
        config.authenticate(&master)?;
        Ok(Self { store, seal, repository: config.repository, master, opened })
    }

    /// The id of the slot that was opened.
    pub fn opened(&self) -> &str {
        &self.opened
    }

    /// Makes a slot for another passphrase, and reads it back before it counts; its id.
    ///
    /// # Errors
    /// [`RepositoryError::KeySlot`] if there are as many as a reader tries; or what the store met.
    pub fn add(&self, passphrase: &[u8], kdf: KdfParams) -> Result<String, RepositoryError> {
        if keys::slots(self.store, &Foreign::default())?.len() >= limits::SLOTS {
            return Err(refused(
                "of a new passphrase",
                "would be one more than the 32 that a reader tries; remove one",
            ));
        }
        let (id, now) = (random()?, now_ns());
        let (store, seal, repository) = (self.store, self.seal, self.repository);
        let made = keys::create_slot(store, seal, repository, id, &self.master, passphrase, kdf, now);
        let (name, text) = (names::slot(&id), hex::encode(&id));
        // Where its making failed it may be there all the same, and opens the repository.
        match (made, keys::opens(store, seal, repository, &name, passphrase)) {
            (_, Ok(true)) => Ok(text),
            (Err(error), Err(RepositoryError::MissingObject { .. })) => Err(error),
            (_, Ok(false)) => {
                Err(RepositoryError::corrupt(name, "it does not open with the passphrase that it was made for"))
            }
            (made, Err(error)) => {
                let error = made.err().unwrap_or(error);
                tracing::warn!(%error, slot = text, "it is not known whether the slot is there");
                Err(refused(
                    &text,
                    "may have been made, and the store does not say; see the list of keys, and remove it there if it is not wanted",
                ))
            }
        }
    }

    /// Removes the slot `id`. The passphrase that was given must open another: so one is known to stay.
    ///
    /// What is stored stays sealed with the same keys: who knew them before still knows them.
    ///
    /// # Errors
    /// [`RepositoryError::KeySlot`] if it is the one that was opened or there is none of that id; or what the store met.
    pub fn remove(&self, id: &str) -> Result<(), RepositoryError> {
        self.remove_beside(id, &self.opened)
    }

    /// Removes the slot that was opened; `id`, which [`add`](Self::add) has just made and read back, stays. Both may have the same
    /// passphrase.
    ///
    /// # Errors
    /// As for [`remove`](Self::remove).
    pub fn hand_over(&self, id: &str) -> Result<(), RepositoryError> {
        self.remove_beside(&self.opened, id)
    }

    /// Removes the slot `id`; `own`, which is known to open, stays.
    fn remove_beside(&self, id: &str, own: &str) -> Result<(), RepositoryError> {
        if id == own {
            return Err(refused(id, "is the one that this passphrase opens; give the passphrase of another slot"));
        }
        let known = hex::decode::<16>(id).map(|id| names::slot(&id));
        let known = known.ok_or_else(|| refused(id, "has no id of 32 hex digits; see the list of keys"))?;
        let key = names::key(&known)?;
        match self.store.stat(&key) {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Err(refused(id, "is not there; see the list of keys"));
            }
            found => drop(found?),
        }
        // Whoever else removes slots at this moment must not have taken ours: without any slot nobody could come in.
        let own = names::key(&format!("keys/{own}"))?;
        self.store.stat(&own)?;
        let bytes = self.store.get(&own, limits::SLOT)?;
        self.store.delete(&key)?;
        if keys::slots(self.store, &Foreign::default())?.is_empty() {
            match self.store.put_new(&own, Body::Bytes(&bytes)) {
                Err(error) if error.kind != StoreErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
        }
        // What lies beside it is durable then, and so is that it is gone: a passphrase must not come back after a power cut.
        Ok(self.store.make_durable(&own)?)
    }

    /// The sealing epochs, oldest first.
    ///
    /// # Errors
    /// What reading the keyring met.
    pub fn epochs(&self) -> Result<Vec<KeyEpoch>, RepositoryError> {
        Ok(self.keyring()?.epochs())
    }

    /// Adds a sealing epoch; its number. What was written before stays sealed with the older epochs, whose keys are kept to read it.
    /// With `compromised` these are no reason any more to store nothing of what comes again.
    ///
    /// # Errors
    /// [`RepositoryError::KeySlot`] if somebody else did so at this moment; or what the store met.
    pub fn rotate(&self, compromised: bool) -> Result<u32, RepositoryError> {
        self.create_epoch(self.keyring()?.with_new_epoch(now_ns(), compromised)?)
    }

    /// As [`rotate`](Self::rotate), and tells in the same object who did it, for the audit logs of mounts.
    ///
    /// # Errors
    /// As [`rotate`](Self::rotate).
    pub fn rotate_noted(&self, compromised: bool, uid: u32, pid: u32) -> Result<u32, RepositoryError> {
        let next = self.keyring()?.with_new_epoch(now_ns(), compromised)?;
        let why = if compromised { ", the keys before are compromised" } else { "" };
        let what = format!("sealing epoch {} made{why}", next.current_epoch().number);
        self.create_epoch(next.noting(NewKeyChange { uid, pid, what: &what, result: "ok" }, now_ns()))
    }

    /// Tells in the keyring what is done to passphrases, for the audit logs of mounts.
    ///
    /// # Errors
    /// What the store met.
    pub fn note(&self, change: NewKeyChange<'_>) -> Result<(), RepositoryError> {
        self.create_next(|keyring| Ok(keyring.with_change(change, now_ns())))
    }

    fn create_epoch(&self, next: Keyring) -> Result<u32, RepositoryError> {
        match next.create(self.store, self.seal, &self.master) {
            Ok(()) => Ok(next.current_epoch().number),
            Err(RepositoryError::Store { source, .. }) if source.kind == StoreErrorKind::AlreadyExists => {
                Err(refused("of a new epoch", "was made by somebody else at this moment; look at the list of keys"))
            }
            Err(error) => Err(error),
        }
    }

    /// The objects that the repository can't be opened without, as they are in the store: `config`, the slot of the passphrase that
    /// was given, the newest keyring. They are sealed: nobody reads them without that passphrase.
    ///
    /// # Errors
    /// What the store met.
    pub fn export(&self) -> Result<Vec<(String, Vec<u8>)>, RepositoryError> {
        let ring = names::keyring(self.keyring()?.generation());
        let wanted = [
            (names::CONFIG.to_owned(), limits::CONFIG),
            (format!("keys/{}", self.opened), limits::SLOT),
            (ring, limits::KEYRING),
        ];
        let get = |(name, limit): (String, u64)| {
            let bytes = self.store.get(&names::key(&name)?, limit)?;
            Ok((name, bytes))
        };
        wanted.into_iter().map(get).collect()
    }

    /// Names of the volumes, in the order in which they were made.
    ///
    /// # Errors
    /// What reading the keyring met.
    pub fn volumes(&self) -> Result<Vec<String>, RepositoryError> {
        Ok(self.keyring()?.volumes().map(|(_, name)| name.to_owned()).collect())
    }

    /// Makes a volume. Mounts that run now go on as they are.
    ///
    /// # Errors
    /// [`RepositoryError::BadName`] if there is one of that name or it can't be one; or what the store met.
    pub fn add_volume(&self, name: &str) -> Result<(), RepositoryError> {
        self.create_next(|keyring| keyring.with_new_volume(name))
    }

    /// Makes the next generation of the newest one, also where others make some at this moment.
    fn create_next(&self, next: impl Fn(Keyring) -> Result<Keyring, RepositoryError>) -> Result<(), RepositoryError> {
        let mut tries = 0;
        loop {
            match next(self.keyring()?)?.create(self.store, self.seal, &self.master) {
                // Somebody else made the next generation at this moment.
                Err(RepositoryError::Store { source, .. })
                    if source.kind == StoreErrorKind::AlreadyExists && tries < RACES =>
                {
                    tries += 1;
                }
                made => return made,
            }
        }
    }

    fn keyring(&self) -> Result<Keyring, RepositoryError> {
        Keyring::load(self.store, self.seal, self.repository, &self.master, &Foreign::default())
    }
}

fn refused(slot: &str, reason: &'static str) -> RepositoryError {
    RepositoryError::KeySlot { slot: slot.to_owned(), reason }
}
