//! Reading, creating and trimming heads; the lease.

use std::collections::hash_map::Entry;

use axiomfs_api::{Body, ObjectMeta, StoreErrorKind};

use crate::error::RepositoryError;
use crate::head::{Head, PutHead};
use crate::ids::{SequenceNo, VolumeId};
use crate::lease::Lease;
use crate::repository::{Repository, lock};
use crate::{limits, names};

const PAGE: usize = 1000;
/// How often an unanswered put is tried again before the caller is told.
const TRIES: usize = 3;

impl Repository {
    /// The head with the highest number, or `None` in a volume without one. Lists only what is newer than was known.
    ///
    /// # Errors
    /// Damage of that head (an older one is not taken in its place), or what the store met.
    pub fn latest_head(&self, v: VolumeId) -> Result<Option<Head>, RepositoryError> {
        let prefix = names::heads(v);
        let mut last = lock(&self.known_heads).get(&v).copied();
        loop {
            let after = last.map(|sequence| names::head(v, sequence));
            let page = self.store.list(&prefix, after.as_deref(), PAGE)?;
            if let Some(newest) = page.last() {
                last = Some(sequence(&prefix, newest)?);
            }
            if page.len() < PAGE {
                break;
            }
        }
        last.map(|sequence| self.head(v, sequence)).transpose()
    }

    /// The head of that number.
    ///
    /// # Errors
    /// [`RepositoryError::MissingObject`] if there is none, damage, or what the store met.
    pub fn head(&self, v: VolumeId, seq: SequenceNo) -> Result<Head, RepositoryError> {
        let bytes = self.store.get(&names::key(&names::head(v, seq))?, limits::HEAD)?;
        let head = Head::open(&self.keyring, self.seal.as_ref(), v, seq, bytes)?;
        self.know(v, seq);
        Ok(head)
    }

    /// Creates a head: the commit. After a refused or unanswered put it is read again, and our own commit id there means it was created.
    ///
    /// # Errors
    /// What the store met; then it is not known whether the head exists, and the same call may be made again.
    pub fn put_head(&self, v: VolumeId, head: &Head) -> Result<PutHead, RepositoryError> {
        let key = names::key(&names::head(v, head.sequence))?;
        let mut tries = 0;
        loop {
            let sealed = head.seal(&self.keyring, self.seal.as_ref(), v)?;
            let error = match self.store.put_new(&key, Body::Bytes(&sealed)) {
                Ok(()) => {
                    self.know(v, head.sequence);
                    return Ok(PutHead::Created);
                }
                Err(error) => error,
            };
            if error.kind != StoreErrorKind::AlreadyExists && !error.kind.is_transient() {
                return Err(error.into());
            }
            match self.head(v, head.sequence) {
                Ok(found) if found.commit == head.commit => return Ok(PutHead::Created),
                Ok(found) => return Ok(PutHead::Exists(Box::new(found))),
                Err(RepositoryError::MissingObject { .. }) => {}
                Err(damage @ RepositoryError::Corrupt { .. }) => return Err(damage),
                Err(_) => return Err(error.into()),
            }
            tries += 1;
            if tries == TRIES {
                return Err(error.into());
            }
        }
    }

    /// Deletes all but the last `keep` heads (at least one stays).
    ///
    /// # Errors
    /// What the store met; some may be deleted then.
    pub fn trim_heads(&self, v: VolumeId, keep: u64) -> Result<(), RepositoryError> {
        let prefix = names::heads(v);
        let mut heads: Vec<ObjectMeta> = Vec::new();
        loop {
            let after = heads.last().map(|head| head.key.as_str().to_owned());
            let page = self.store.list(&prefix, after.as_deref(), PAGE)?;
            let more = page.len() == PAGE;
            heads.extend(page);
            if !more {
                break;
            }
        }
        let keep = usize::try_from(keep).unwrap_or(usize::MAX).max(1);
        for head in &heads[..heads.len().saturating_sub(keep)] {
            self.store.delete(&head.key)?;
        }
        Ok(())
    }

    /// Says who writes the volume.
    ///
    /// # Errors
    /// What the store met.
    pub fn put_lease(&self, v: VolumeId, lease: &Lease) -> Result<(), RepositoryError> {
        lease.store(self.store.as_ref(), &self.keyring, self.seal.as_ref(), v)
    }

    /// Who said last that he writes the volume.
    ///
    /// # Errors
    /// Damage, or what the store met.
    pub fn read_lease(&self, v: VolumeId) -> Result<Option<Lease>, RepositoryError> {
        Lease::load(self.store.as_ref(), &self.keyring, self.seal.as_ref(), v)
    }

    fn know(&self, v: VolumeId, seq: SequenceNo) {
        match lock(&self.known_heads).entry(v) {
            Entry::Occupied(mut known) => *known.get_mut() = seq.max(*known.get()),
            Entry::Vacant(none) => {
                none.insert(seq);
            }
        }
    }
}

fn sequence(prefix: &str, object: &ObjectMeta) -> Result<SequenceNo, RepositoryError> {
    let name = object.key.as_str();
    let number = name.strip_prefix(prefix).filter(|n| n.len() == 16).and_then(|n| u64::from_str_radix(n, 16).ok());
    number.map(SequenceNo).ok_or_else(|| RepositoryError::corrupt(name, "its name is no sequence number"))
}
