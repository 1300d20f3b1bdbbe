//! Reading, creating and trimming heads; the lease.

use std::collections::hash_map::Entry;

use axiomfs_api::{Body, ObjectMeta, StoreErrorKind};

use crate::error::RepositoryError;
use crate::head::{Head, PutHead};
use crate::ids::{CommitId, SequenceNo, VolumeId};
use crate::lease::Lease;
use crate::repository::{Repository, lock};
use crate::{limits, names};

/// How the newest head stands to one that was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descent {
    /// It is that head.
    Same,
    /// It came after it.
    Later,
    /// It has a higher number, and the heads between are trimmed, so that nothing more can be told.
    Unknown,
    /// It has a higher number, and the head of this one between them is missing though no writer has trimmed it yet.
    Broken(SequenceNo),
    /// It has a lower number: newer heads are gone.
    Older,
    /// It has another history.
    Unrelated,
}

/// Heads of a volume that are never trimmed: the last ones.
pub const HEADS_KEPT: u64 = 64;
/// Objects in one listing.
const PAGE: usize = 1000;
/// New heads that are asked for one by one.
const FEW: u32 = 4;
/// How often an unanswered put is tried again before the caller is told.
const TRIES: usize = 3;

impl Repository {
    /// The head with the highest number, or `None` in a volume without one. Where one is known the next numbers are asked for: a
    /// listing costs more, and on some servers lags behind. Without one what was listed is gone on from in the same way, and where nothing
    /// is, the head that the lease names.
    ///
    /// # Errors
    /// Damage of that head (an older one is not taken in its place), or what the store met.
    pub fn latest_head(&self, v: VolumeId) -> Result<Option<Head>, RepositoryError> {
        let known = lock(&self.known_heads).get(&v).copied();
        if let Some(head) = known.map(|known| self.newest_from(v, known)).transpose()?.flatten() {
            return Ok(Some(head));
        }
        self.latest_listed_head(v)
    }

    /// The same from a listing, whatever is known: for one who found that the head that he knew is trimmed.
    ///
    /// # Errors
    /// As for [`latest_head`](Self::latest_head).
    pub fn latest_listed_head(&self, v: VolumeId) -> Result<Option<Head>, RepositoryError> {
        let begin = match self.heads_after(v, None)?.pop() {
            Some((listed, _)) => listed,
            // Some servers list late. The first head may be trimmed by then, but whoever wrote said how far he was.
            None => match self.newest_from(v, SequenceNo(0))? {
                Some(head) => return Ok(Some(head)),
                None => self.head_of_lease(v)?,
            },
        };
        if begin.0 == 0 {
            return Ok(None);
        }
        match self.newest_from(v, begin)? {
            Some(head) => Ok(Some(head)),
            None => Err(RepositoryError::MissingObject { object: names::head(v, begin) }),
        }
    }

    /// The newest head that the last writer knew when it wrote its lease; 0 where it can't be told.
    fn head_of_lease(&self, v: VolumeId) -> Result<SequenceNo, RepositoryError> {
        match self.read_lease(v) {
            Ok(lease) => Ok(SequenceNo(lease.map_or(0, |lease| lease.head))),
            Err(error) if error.is_transient() => Err(error),
            // A hint that can't be read keeps nobody from writing.
            Err(_) => Ok(SequenceNo(0)),
        }
    }

    /// A head that was seen earlier, for [`latest_head`](Self::latest_head) to begin with.
    pub fn expect_head(&self, v: VolumeId, seq: SequenceNo) {
        self.know(v, seq);
    }

    /// The newest head, found from the number of one; `None` if that one is not there. Heads are trimmed from the first on, so what follows a
    /// trimmed one may have been created where others were trimmed, and is no commit then.
    fn newest_from(&self, v: VolumeId, known: SequenceNo) -> Result<Option<Head>, RepositoryError> {
        let (mut at, mut newest) = (known, None);
        for step in 1u32.. {
            // Far behind, one listing is less than all these requests.
            if step == FEW
                && let Some((listed, _)) = self.heads_after(v, Some(at))?.pop()
            {
                at = SequenceNo(listed.0.saturating_sub(1));
            }
            match self.head(v, SequenceNo(at.0.saturating_add(1))) {
                Ok(_) if step == 1 && known.0 > 0 && !self.has_head(v, known)? => return Ok(None),
                Ok(head) => (at, newest) = (head.sequence, Some(head)),
                Err(RepositoryError::MissingObject { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        match newest {
            None if known.0 > 0 => match self.head(v, known) {
                Err(RepositoryError::MissingObject { .. }) => Ok(None),
                found => found.map(Some),
            },
            newest => Ok(newest),
        }
    }

    /// The heads with a higher number than `after`, ascending. What has no name of a head is passed over and noted.
    pub(crate) fn heads_after(
        &self,
        v: VolumeId,
        after: Option<SequenceNo>,
    ) -> Result<Vec<(SequenceNo, ObjectMeta)>, RepositoryError> {
        let prefix = names::heads(v);
        let mut after = after.map(|sequence| names::head(v, sequence));
        let mut found = Vec::new();
        loop {
            let page = self.store.list(&prefix, after.as_deref(), PAGE)?;
            after = page.last().map(|last| last.key.as_str().to_owned());
            let more = page.len() == PAGE;
            for object in page {
                match sequence(&prefix, object.key.as_str()) {
                    Some(sequence) => found.push((sequence, object)),
                    None => drop(self.foreign.note(object.key.as_str())),
                }
            }
            if !more {
                return Ok(found);
            }
        }
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

    /// Whether the head of that number is there.
    ///
    /// # Errors
    /// What the store met.
    pub fn has_head(&self, v: VolumeId, seq: SequenceNo) -> Result<bool, RepositoryError> {
        match self.store.stat(&names::key(&names::head(v, seq))?) {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
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
                Ok(found) if found.commit == head.commit => {
                    self.make_head_durable(v, head.sequence)?;
                    return Ok(PutHead::Created);
                }
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

    /// Makes sure that a head which was read, and those before it, stay there. Whoever created it may have died before the store had made it
    /// durable.
    ///
    /// # Errors
    /// What the store met.
    pub fn make_head_durable(&self, v: VolumeId, seq: SequenceNo) -> Result<(), RepositoryError> {
        Ok(self.store.make_durable(&names::key(&names::head(v, seq))?)?)
    }

    /// Deletes all but the last `keep` heads up to `newest` (which stays). Names beyond it prove nothing: whoever may create objects could
    /// have made them.
    ///
    /// # Errors
    /// What the store met; some may be deleted then.
    pub fn trim_heads(&self, v: VolumeId, newest: SequenceNo, keep: u64) -> Result<(), RepositoryError> {
        let last = newest.0.saturating_sub(keep.max(1));
        for (_, head) in self.heads_after(v, None)?.iter().take_while(|(sequence, _)| sequence.0 <= last) {
            self.store.delete(&head.key)?;
        }
        Ok(())
    }

    /// A newer head than `head`, which was just created. Old heads are trimmed: a writer that comes back after many commits of
    /// another finds the number that it expects free again, and what it creates there is no commit.
    ///
    /// Asks for the parent, which is trimmed first, and lists only where that is gone.
    ///
    /// # Errors
    /// What the store met; then it is not known whether `head` counts.
    pub fn newer_than(&self, v: VolumeId, head: &Head) -> Result<Option<Head>, RepositoryError> {
        if let Some(parent) = head.sequence.0.checked_sub(1).filter(|parent| *parent > 0) {
            match self.store.stat(&names::key(&names::head(v, SequenceNo(parent)))?) {
                Ok(_) => return Ok(None),
                Err(error) if error.kind == StoreErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        let newest = self.heads_after(v, Some(head.sequence))?.last().map(|(sequence, _)| *sequence);
        newest.map(|sequence| self.head(v, sequence)).transpose()
    }

    /// How `newest` stands to a head that was seen before, by the chain of parents.
    ///
    /// # Errors
    /// Damage of a head between them, or what the store met.
    pub fn descent(
        &self,
        v: VolumeId,
        newest: &Head,
        known: (SequenceNo, CommitId),
    ) -> Result<Descent, RepositoryError> {
        let (number, commit) = known;
        if newest.sequence <= number {
            let same = newest.sequence == number && newest.commit == commit;
            return Ok(match newest.sequence == number {
                true if same => Descent::Same,
                true => Descent::Unrelated,
                false => Descent::Older,
            });
        }
        let (mut sequence, mut parent) = (newest.sequence.0, newest.parent);
        while sequence > number.0 + 1 {
            sequence -= 1;
            let head = match self.head(v, SequenceNo(sequence)) {
                Err(RepositoryError::MissingObject { .. }) => {
                    // A writer may go on and trim meanwhile.
                    let last = self.latest_head(v)?.map_or(newest.sequence.0, |head| head.sequence.0);
                    let is_kept = last.saturating_sub(sequence) < HEADS_KEPT;
                    return Ok(if is_kept { Descent::Broken(SequenceNo(sequence)) } else { Descent::Unknown });
                }
                head => head?,
            };
            if Some(head.commit) != parent {
                return Ok(Descent::Unrelated);
            }
            parent = head.parent;
        }
        Ok(if parent == Some(commit) { Descent::Later } else { Descent::Unrelated })
    }

    /// Says who writes the volume, with the newest head that is known here.
    ///
    /// # Errors
    /// What the store met.
    pub fn put_lease(&self, v: VolumeId, lease: &Lease) -> Result<(), RepositoryError> {
        let head = lock(&self.known_heads).get(&v).map_or(0, |known| known.0);
        let lease = Lease { head, ..lease.clone() };
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

/// The number in a head's name, written in the one way that heads are named.
fn sequence(prefix: &str, name: &str) -> Option<SequenceNo> {
    let digits = name.strip_prefix(prefix)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (number > 0 && format!("{number:016x}") == digits).then_some(SequenceNo(number))
}
