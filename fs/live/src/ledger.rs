//! How far checkpoints and commits are: what the one made durable here, and what of it the other brought into the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axiomfs_repository::tree::Root;
use axiomfs_repository::{AuditHash, Head, Mark, RepositoryError, SnapshotRecord, Superseded};

use crate::background::describe;
use crate::checkpoint::CheckpointError;
use crate::layer::AUDITS_ALONE;
use crate::manifest::{Manifest, ManifestError};
use crate::open::seen;
use crate::volume::{Shared, lock};

/// What a checkpoint made: the trees that a commit gives to a head, while later checkpoints make others.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    /// Checkpoints of this mount are counted.
    pub number: u64,
    /// Tree of the live files.
    pub root: Option<Root>,
    /// Tree of the snapshot table.
    pub snapshots_root: Option<Root>,
    /// What is in that table.
    pub table: Arc<BTreeMap<String, SnapshotRecord>>,
    /// Next inode number.
    pub next_ino: u64,
    /// Next snapshot number.
    pub next_ordinal: u32,
    /// Hash of the last audit record in the live tree.
    pub audit: AuditHash,
    /// Audit records in checkpoints of this mount.
    pub audits: usize,
    /// File data in checkpoints of this mount, and what was staged before it.
    pub data_bytes: u64,
    /// Up to where its chunks and nodes are staged.
    pub upto: Mark,
}

/// Shared by the threads that make checkpoints and commits. Held while the manifest is written, never while the store is asked.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The manifest as it stands on disk.
    pub manifest: Manifest,
    /// The newest checkpoint.
    pub newest: Arc<Made>,
    /// Number of the newest one that is reason enough for a head.
    changed: u64,
    /// Audit records that the newest head has, of this mount.
    audits_committed: usize,
    /// Files that the manifest on disk may still name.
    superseded: Superseded,
}

/// Where both threads find it.
pub(crate) type SharedLedger = Arc<Mutex<Ledger>>;

impl Ledger {
    /// That of a mount which begins with `manifest`.
    ///
    /// # Errors
    /// The repository can't stage anything.
    pub fn begin(
        shared: &Shared,
        manifest: Manifest,
        table: BTreeMap<String, SnapshotRecord>,
        audit: AuditHash,
    ) -> Result<SharedLedger, RepositoryError> {
        let newest = Made {
            number: 0,
            root: manifest.root,
            snapshots_root: manifest.snapshots_root,
            table: Arc::new(table),
            next_ino: manifest.next_ino,
            next_ordinal: manifest.next_ordinal,
            audit,
            audits: 0,
            data_bytes: shared.left_staged,
            upto: shared.repository.mark()?,
        };
        let newest = Arc::new(newest);
        let superseded = Superseded::default();
        Ok(Arc::new(Mutex::new(Self { manifest, newest, changed: 0, audits_committed: 0, superseded })))
    }

    /// Whether the newest checkpoint has something that the newest head has not.
    pub fn changed(&self) -> bool {
        self.manifest.head.is_none() || self.manifest.dirty
    }

    /// Notes a checkpoint, whose packs are durable: from now on the log is needed from `first_segment` on.
    ///
    /// # Errors
    /// The manifest can't be written; then nothing is noted.
    pub fn checkpointed(
        &mut self,
        shared: &Shared,
        made: Made,
        changed: bool,
        last_op: u64,
        first_segment: u64,
    ) -> Result<(), CheckpointError> {
        // Audit records alone are no reason for a head, until there are many.
        let changed = changed || made.audits - self.audits_committed >= AUDITS_ALONE;
        let mut manifest = self.manifest.clone();
        manifest.root = made.root;
        manifest.snapshots_root = made.snapshots_root;
        manifest.last_op = last_op;
        manifest.next_ino = made.next_ino;
        manifest.next_ordinal = made.next_ordinal;
        manifest.dirty |= changed;
        // Here, where no commit can take any of them away before the manifest names the trees that need them.
        manifest.staged = shared.repository.staged(made.upto)?;
        manifest.first_segment = first_segment;
        manifest.write(&shared.options.state_dir, &shared.repository)?;
        self.manifest = manifest;
        if changed {
            self.changed = made.number;
        }
        self.newest = Arc::new(made);
        self.remove_superseded();
        Ok(())
    }

    /// Notes the head that was created for `made`, and removes the files that `supersede` gives.
    ///
    /// # Errors
    /// As for `supersede`, or the manifest can't be written: the head stands, and the next manifest will say so; only then files go.
    pub fn committed(
        &mut self,
        shared: &Shared,
        head: &Head,
        made: &Made,
        supersede: impl FnOnce() -> Result<Superseded, RepositoryError>,
    ) -> Result<(), CheckpointError> {
        *lock(&shared.head) = seen(head);
        self.manifest.head = Some((head.sequence.0, head.commit));
        self.manifest.pending.clear();
        self.manifest.dirty = self.changed > made.number;
        self.audits_committed = made.audits;
        self.superseded.extend(supersede()?);
        self.manifest.staged = shared.repository.staged(self.newest.upto)?;
        self.write(shared)?;
        self.remove_superseded();
        Ok(())
    }

    /// To be called when the manifest on disk names none of them.
    fn remove_superseded(&mut self) {
        if let Err(error) = self.superseded.remove() {
            tracing::warn!("{}; the next mount removes it", describe(&error));
        }
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn write(&mut self, shared: &Shared) -> Result<(), ManifestError> {
        self.manifest.write(&shared.options.state_dir, &shared.repository)
    }
}
