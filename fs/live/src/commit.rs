//! Commits: what the last checkpoint made durable here goes to the store, under a new head.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use axiomfs_repository::ids::{CommitId, Epoch, SequenceNo};
use axiomfs_repository::tree::Root;
use axiomfs_repository::{CommitSet, HEADS_KEPT, Head, PutHead, RepositoryError};

use crate::checkpoint::CheckpointError;
use crate::ledger::{Made, SharedLedger};
use crate::memory::Memory;
use crate::open::{seen, warn_of_foreign};
use crate::types::{Committed, FsError};
use crate::volume::{HeadSeen, Shared, lock};

/// What commits carry on from one to the next. One thread owns it.
pub(crate) struct Committer {
    /// How far checkpoints and commits are.
    pub ledger: SharedLedger,
    /// Numbers of the snapshots in the newest head.
    pub committed: HashSet<u32>,
}

impl Committer {
    /// Uploads what the newest checkpoint has and the newest head has not, and creates the next head, while other checkpoints are made.
    /// Does nothing where there is nothing new.
    ///
    /// # Errors
    /// [`CheckpointError`]. Whatever failed, the store shows the head before or the new one, each complete.
    pub fn commit(&mut self, shared: &Shared) -> Result<(), CheckpointError> {
        let made = {
            let ledger = lock(&self.ledger);
            if !ledger.changed() {
                return Ok(());
            }
            ledger.newest.clone()
        };
        if let Some(FsError::Fenced) = &shared.state().refused {
            return Err(CheckpointError::Fenced { sequence: lock(&shared.head).sequence + 1 });
        }
        let volume = shared.options.volume;
        self.find_earlier_attempt(shared)?;
        let uploaded = || shared.fault("commit.packs-uploaded");
        let set = shared.repository.commit_packs_then(&self.roots(&made), made.upto, &uploaded)?;
        shared.fault("commit.index-written");
        let head = loop {
            let seen = *lock(&shared.head);
            let mut commit = [0; 16];
            getrandom::fill(&mut commit).map_err(|_| CheckpointError::Entropy)?;
            let head = self.next_head(shared, commit, &seen, &made, set.segments.clone());
            {
                let mut ledger = lock(&self.ledger);
                ledger.manifest.attempt(head.commit);
                ledger.write(shared)?;
            }
            match shared.repository.put_head(volume, &head)? {
                PutHead::Created => break head,
                // An attempt that went unanswered was carried out after all; what came since goes on top.
                PutHead::Exists(other) if self.is_attempt(other.commit) => self.go_on_from(shared, &other)?,
                PutHead::Exists(other) => return Err(fence(shared, &other)),
            }
        };
        if let Some(newer) = shared.repository.newer_than(volume, &head)? {
            return Err(fence(shared, &newer));
        }
        shared.fault("commit.head-created");
        self.finished(shared, &head, &made, &set)?;
        shared.fault("commit.finished");
        if head.sequence.0.is_multiple_of(16)
            && let Err(error) = shared.repository.trim_heads(volume, head.sequence, HEADS_KEPT)
        {
            // The commit stands; who may not delete keeps more heads.
            tracing::debug!("could not trim old heads: {error}");
        }
        Ok(())
    }

    /// Looks for a head of ours that was created without an answer.
    fn find_earlier_attempt(&self, shared: &Shared) -> Result<(), CheckpointError> {
        if lock(&self.ledger).manifest.pending.is_empty() {
            return Ok(());
        }
        let next = SequenceNo(lock(&shared.head).sequence + 1);
        match shared.repository.head(shared.options.volume, next) {
            Ok(head) if self.is_attempt(head.commit) => self.go_on_from(shared, &head),
            Ok(other) => Err(fence(shared, &other)),
            Err(RepositoryError::MissingObject { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_attempt(&self, commit: CommitId) -> bool {
        lock(&self.ledger).manifest.pending.contains(&commit)
    }

    /// Takes a head of ours for the newest. The newest checkpoint may have more than it, so that stays to be committed.
    fn go_on_from(&self, shared: &Shared, head: &Head) -> Result<(), CheckpointError> {
        shared.repository.make_head_durable(shared.options.volume, head.sequence)?;
        if let Some(newer) = shared.repository.newer_than(shared.options.volume, head)? {
            return Err(fence(shared, &newer));
        }
        *lock(&shared.head) = seen(head);
        let mut ledger = lock(&self.ledger);
        ledger.manifest.head = Some((head.sequence.0, head.commit));
        ledger.manifest.pending.clear();
        Ok(ledger.write(shared)?)
    }

    /// Every root that the store does not have yet may name new nodes.
    fn roots(&self, made: &Made) -> Vec<Option<Root>> {
        let new = made.table.values().filter(|record| !self.committed.contains(&record.ordinal.0));
        [made.root, made.snapshots_root].into_iter().chain(new.map(|record| record.root)).collect()
    }

    fn next_head(
        &self,
        shared: &Shared,
        commit: [u8; 16],
        seen: &HeadSeen,
        made: &Made,
        segments: Vec<axiomfs_repository::SegmentRef>,
    ) -> Head {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Head {
            sequence: SequenceNo(seen.sequence + 1),
            epoch: Epoch(lock(&self.ledger).manifest.epoch),
            commit: CommitId(commit),
            parent: seen.commit,
            live_root: made.root,
            snapshots_root: made.snapshots_root,
            next_ino: made.next_ino,
            next_ordinal: made.next_ordinal,
            segments,
            keyring_generation: shared.repository.keyring_generation(),
            index_generation: seen.index_generation + 1,
            time_ns: time.as_nanos() as i64,
            audit: made.audit,
        }
    }

    fn finished(&mut self, shared: &Shared, head: &Head, made: &Made, set: &CommitSet) -> Result<(), CheckpointError> {
        let noted = lock(&self.ledger).committed(shared, head, made, || shared.repository.supersede(set));
        self.committed = made.table.values().map(|record| record.ordinal.0).collect();
        let mut state = shared.state_mut();
        for (name, snapshot) in &mut state.snapshots {
            snapshot.committed = made.table.get(&**name).is_some_and(|record| record.ordinal.0 == snapshot.ordinal);
        }
        drop(state);
        shared.committed_bytes.store(made.data_bytes, Ordering::Relaxed);
        noted
    }

    /// The newest committed head.
    pub fn newest(&self) -> Option<Committed> {
        lock(&self.ledger).manifest.head.map(|(sequence, commit)| Committed { sequence, commit: commit.0 })
    }
}

/// Warns of objects of others, once. That they could not be looked for is no reason for anything to fail.
pub(crate) fn tell_of_foreign(shared: &Shared) {
    match shared.repository.look_for_foreign() {
        Ok(names) => names.iter().for_each(|name| warn_of_foreign(&shared.events, name)),
        Err(error) => tracing::debug!("could not look for foreign objects: {error}"),
    }
}

/// Another writer has committed: nothing more is accepted, and what is here stays.
fn fence(shared: &Shared, other: &Head) -> CheckpointError {
    let fenced = CheckpointError::Fenced { sequence: other.sequence.0 };
    let options = &shared.options;
    let memory = Memory { dir: &options.state_dir, repository: &shared.repository, volume: options.volume };
    memory.remember(Some(other), false);
    shared.state_mut().refused = Some(FsError::Fenced);
    shared.events.add("error", fenced.to_string());
    fenced
}
