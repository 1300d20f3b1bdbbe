//! The audit log: records go through the write-ahead log as edits do, stand in the live tree, and each head carries the
//! hash of the last. So they survive what the changes around them survive, and a snapshot stands in one record with its own.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axiomfs_repository::ids::{RepositoryId, SequenceNo, VolumeId};
use axiomfs_repository::record;
use axiomfs_repository::tree::{self, Root};
use axiomfs_repository::{AUDIT_KEPT, AuditCheck, AuditHash, AuditRecord, AuditReport, Head, Repository, audit_hash};

use crate::change::Need;
use crate::edit::Edit;
use crate::events::Events;
use crate::layer::Layer;
use crate::types::{Access, FsError, FsResult, Time};
use crate::view::{LookError, Nodes};
use crate::volume::{HeadSeen, Shared, Volume, lock, now};

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Who {
    /// The user.
    pub uid: u32,
    /// The process; 0 where none is known.
    pub pid: u32,
}

/// Something that was done, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// By whom.
    pub who: Who,
    /// What kind of thing.
    pub action: &'static str,
    /// What about. Never a secret.
    pub subject: String,
    /// How it ended.
    pub result: String,
    /// When, where that was before it is recorded.
    pub time: Option<Time>,
}

impl Deed {
    /// One that succeeds now.
    pub fn done(who: Who, action: &'static str, subject: impl Into<String>) -> Self {
        Self::ended(who, action, subject, "ok")
    }

    /// One that ends now, as `result` says.
    pub fn ended(who: Who, action: &'static str, subject: impl Into<String>, result: impl Into<String>) -> Self {
        Self { who, action, subject: subject.into(), result: result.into(), time: None }
    }
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// Its number; they count up from 1.
    pub number: u64,
    /// Its hash, which the next one names.
    pub hash: AuditHash,
    /// What it says.
    pub record: AuditRecord,
}

/// A record's number and value.
type NumberedRecord = (u64, Arc<[u8]>);

/// Where the audit log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AuditTail {
    place: (RepositoryId, VolumeId),
    last: u64,
    pub hash: AuditHash,
}

impl Default for AuditTail {
    /// Of no volume yet: [`AuditTail::load`] makes the one that counts.
    fn default() -> Self {
        Self { place: (RepositoryId([0; 16]), VolumeId([0; 16])), last: 0, hash: [0; 32] }
    }
}

impl AuditTail {
    /// Where it ends in the tree `root`.
    pub fn load(repository: &Repository, volume: VolumeId, root: Option<Root>) -> Result<Self, LookError> {
        let mut tail = Self { place: (repository.id(), volume), ..Self::default() };
        let nodes = Nodes { repository, fetch: true, pinned: &[] };
        // Only the last is looked at: thousands may be kept, and a mount waits for this.
        if let Some((key, value)) = tree::last_at_or_before(&nodes, root, &record::audit_key(u64::MAX))?
            && key[..] >= record::audit_key(0)[..]
            && let Some(number) = record::trailing_number(&key)
        {
            tail.follow(number, &value);
        }
        Ok(tail)
    }

    /// The edit that records `deed` next.
    pub fn edit(&self, deed: &Deed) -> Edit {
        let record = AuditRecord {
            previous: self.hash,
            time: deed.time.unwrap_or_else(now),
            uid: deed.who.uid,
            pid: deed.who.pid,
            action: deed.action.to_owned(),
            subject: deed.subject.clone(),
            result: deed.result.clone(),
        };
        Edit::Audit { number: self.last + 1, value: record.encode().into() }
    }

    /// Goes on to the record `number`.
    pub fn follow(&mut self, number: u64, value: &[u8]) {
        self.last = number;
        self.hash = audit_hash(self.place.0, self.place.1, number, value);
    }

    /// Takes up the chain where `head` says that it ends, if the tree is that of `head`. Where that is not the tree's last record, some
    /// were lost: the next record names the hash of the head, so that the gap stays to be seen, and an event says so.
    pub fn settle(&mut self, head: Option<&Head>, root: Option<Root>, events: &Events) {
        // A head without a chain was made by a version without one.
        let Some(head) = head.filter(|head| head.live_root == root && head.audit != [0; 32]) else { return };
        if head.audit != self.hash {
            self.hash = head.audit;
            events
                .add("error", "The audit log does not end as the newest head says; `audit verify` tells what is wrong");
        }
    }
}

/// Hash of the last record in `layers`, if any.
pub(crate) fn last_hash(shared: &Shared, layers: &[Arc<Layer>]) -> Option<AuditHash> {
    let (number, value) = layers.iter().rev().find_map(|layer| layer.audits().last())?;
    Some(audit_hash(shared.repository.id(), shared.options.volume, *number, value))
}

/// What a layer's records change in the tree, in the order of keys: the oldest go as new ones come.
pub(crate) fn tree_edits(layer: &Layer) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let audits = layer.audits();
    let old = audits.iter().filter_map(|(number, _)| number.checked_sub(AUDIT_KEPT).filter(|old| *old > 0));
    let gone = old.map(|old| (record::audit_key(old), None));
    // Of more than are kept in one layer only the last come into the tree.
    let kept = &audits[audits.len().saturating_sub(AUDIT_KEPT as usize)..];
    let new = kept.iter().map(|(number, value)| (record::audit_key(*number), Some(value.to_vec())));
    let mut edits: Vec<_> = gone.chain(new).collect();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    edits.dedup_by(|a, b| a.0 == b.0);
    edits
}

impl Volume {
    /// Records what was done. It survives what a `write` that returned now would survive, and comes into the store with the next
    /// commit of something else.
    ///
    /// # Errors
    /// `ReadOnly` on a read-only mount, `Fenced`, `NoSpace`, or the log can't be written.
    pub fn audit(&self, deed: &Deed) -> FsResult<()> {
        let record = |state: &crate::state::State| Ok(Some(vec![state.audit.edit(deed)]));
        self.shared.change_if(Access::Wait, Need::Reserve, record).map(drop)
    }

    /// Records what was done, where it can be; an event says where it can't.
    pub fn audit_noted(&self, deed: &Deed) {
        match self.audit(deed) {
            Ok(()) | Err(FsError::ReadOnly) => {}
            Err(error) => self.note("warning", format!("Not in the audit log ({}): {error}", deed.action)),
        }
    }

    /// The whole audit log, the oldest record first. May read from the store.
    ///
    /// # Errors
    /// What reading met, or a record that can't be read.
    pub fn audit_log(&self) -> FsResult<Vec<AuditLine>> {
        let shared = &self.shared;
        let line = |(number, value): (u64, Arc<[u8]>)| {
            let record = AuditRecord::decode(&value).map_err(|error| FsError::Io(error.to_string()))?;
            let hash = audit_hash(shared.repository.id(), shared.options.volume, number, &value);
            Ok(AuditLine { number, hash, record })
        };
        self.audit_records()?.0.into_iter().map(line).collect()
    }

    /// Checks the whole audit log: each record against the one before, and the newest head's hash against the log. Reads the
    /// head from the store.
    ///
    /// # Errors
    /// What reading met. What is wrong with the log stands in the report.
    pub fn audit_verify(&self) -> FsResult<AuditReport> {
        let shared = &self.shared;
        let volume = shared.options.volume;
        let (records, end, seen) = self.audit_records()?;
        let head = match seen.commit {
            Some(_) => Some(shared.repository.head(volume, SequenceNo(seen.sequence)).map_err(|e| shared.report(&e))?),
            None => None,
        };
        let said = head.as_ref().map_or([0; 32], |head| head.audit);
        let mut check = AuditCheck::new(shared.repository.id(), volume, said);
        for (number, value) in &records {
            check.record(*number, value);
        }
        // So many may have come since that the last one of the head is kept no more; its own tree still has it.
        let own = AuditTail::load(&shared.repository, volume, head.and_then(|head| head.live_root))?;
        if own.hash == said {
            check.passed(own.last);
        }
        let mut report = check.finish(shared.log.is_none());
        if end.is_some_and(|end| end != report.hash) {
            report.faults.push("The log does not end with what was recorded last".to_owned());
        }
        Ok(report)
    }

    /// All records, the hash of the last as it was noted when it was made, and the head that was the newest then: a mount that follows
    /// another writer goes on to later ones.
    fn audit_records(&self) -> FsResult<(Vec<NumberedRecord>, Option<AuditHash>, HeadSeen)> {
        let shared = &self.shared;
        let mut tries = 0;
        loop {
            if shared.stopped.load(Ordering::Relaxed) {
                return Err(FsError::Stale);
            }
            let (base, layers, end, seen) = {
                let state = shared.state();
                let layers = state.frozen.iter().map(Arc::as_ref).chain([&state.active]);
                let layers: Vec<_> = layers.flat_map(|layer| layer.audits().iter().cloned()).collect();
                (state.base, layers, shared.log.as_ref().map(|_| state.audit.hash), *lock(&shared.head))
            };
            let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
            let (from, to) = (record::audit_key(0), record::audit_key(u64::MAX));
            let stored: Result<Vec<_>, LookError> =
                tree::range(&nodes, base, Bound::Included(&from), Bound::Included(&to))
                    .map(|item| {
                        let (key, value) = item?;
                        Ok((record::trailing_number(&key).unwrap_or(0), Arc::from(&*value)))
                    })
                    .collect();
            match stored {
                Ok(mut records) => {
                    records.extend(layers);
                    let old = records.len().saturating_sub(AUDIT_KEPT as usize);
                    records.drain(..old);
                    return Ok((records, end, seen));
                }
                // A commit drops local nodes of trees that were replaced meanwhile: look again at the one in its place.
                Err(_) if tries == 0 => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
