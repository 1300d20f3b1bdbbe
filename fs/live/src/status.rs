//! What a volume tells of itself.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axiomfs_repository::RepositoryStats;
use axiomfs_repository::ids::StateId;

use crate::events::Event;
use crate::log::LogUsage;
use crate::types::FsError;
use crate::volume::{Volume, lock};

/// How a volume is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Since when it is mounted.
    pub mounted_since: SystemTime,
    /// Why nothing may be written, where that is so.
    pub refused: Option<FsError>,
    /// Opened for reading only.
    pub read_only: bool,
    /// Upper bound of the inodes ever made.
    pub inodes: u64,
    /// Open handles.
    pub handles: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Layers that wait for a checkpoint.
    pub frozen_layers: usize,
    /// About how much heap the layers take.
    pub layer_bytes: u64,
    /// The log.
    pub log: Option<LogUsage>,
    /// Bytes of packs that wait for a commit.
    pub staged_bytes: u64,
    /// File data written since the mount.
    pub written_bytes: u64,
    /// Of these and of what earlier mounts left, not yet under a committed head.
    pub pending_bytes: u64,
    /// Number of the newest head.
    pub head_sequence: u64,
    /// Its commit id.
    pub head_commit: Option<[u8; 16]>,
    /// Epoch of this writer.
    pub epoch: u64,
    /// When it was created.
    pub head_time: Option<SystemTime>,
    /// Id of the state directory, on a mount that writes.
    pub state_id: Option<StateId>,
    /// State that was set aside and is not recovered yet.
    pub set_aside: Vec<PathBuf>,
    /// Packs that were asked for and are not in the store.
    pub missing_packs: Vec<String>,
    /// Plugins that stored frames need and that this build or mount lacks.
    pub missing_plugins: Vec<String>,
    /// Objects in the store that are none of ours: the first few.
    pub foreign_objects: Vec<String>,
    /// Counters of the repository.
    pub repository: RepositoryStats,
}

impl Volume {
    /// How the volume is, from memory: never waits for the store.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let head = *lock(&shared.head);
        let local = shared.local.get().cloned().unwrap_or_default();
        let log = shared.log.as_ref().map(crate::log::Log::usage);
        let written = shared.written.load(Ordering::Relaxed);
        let committed = shared.committed_bytes.load(Ordering::Relaxed);
        let repository = shared.repository.stats();
        let state = shared.state();
        let layers = state.frozen.iter().map(|layer| layer.heap()).sum::<usize>() + state.active.heap();
        Status {
            mounted_since: shared.started,
            refused: state.refused.clone(),
            read_only: shared.options.read_only,
            inodes: state.inos.next,
            handles: shared.handles.count(),
            snapshots: state.snapshots.len(),
            frozen_layers: state.frozen.len(),
            layer_bytes: layers as u64,
            log,
            staged_bytes: repository.staged_bytes,
            written_bytes: written,
            pending_bytes: shared.accepted().saturating_sub(committed),
            head_sequence: head.sequence,
            head_commit: head.commit.map(|c| c.0),
            epoch: head.epoch,
            head_time: head.at,
            state_id: local.id,
            set_aside: local.set_aside,
            missing_packs: shared.repository.missing_packs(),
            missing_plugins: shared.repository.missing_plugins(),
            foreign_objects: shared.repository.foreign_objects(),
            repository,
        }
    }

    /// Whether another machine has taken over.
    pub fn is_fenced(&self) -> bool {
        self.shared.state().refused == Some(FsError::Fenced)
    }

    /// What happened lately, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.all()
    }

    /// Adds an event, for the parts above.
    pub fn note(&self, kind: &'static str, text: impl Into<String>) {
        self.shared.events.add(kind, text);
    }
}
