//! Taking, renaming and forgetting snapshots.

use std::sync::Arc;

use crate::audit::{Deed, Who};
use crate::change::Need;
use crate::edit::{Edit, SNAPSHOT_NAME_MAX};
use crate::state::State;
use crate::types::{Access, FIRST_VERSION, FsError, FsResult, RenameMode, SnapshotInfo};
use crate::volume::{Volume, now};

/// Snapshot numbers are 24 bits of a node id, less those that tell versions apart.
const ORDINAL_MAX: u32 = FIRST_VERSION - 1;
/// Most snapshots at a time: their table is kept in memory.
const SNAPSHOTS_MAX: usize = 100_000;

impl Volume {
    /// All snapshots by name.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.shared.state().snapshots.iter().map(|(name, s)| State::info(name, s)).collect()
    }

    /// One snapshot.
    pub fn snapshot(&self, name: &str) -> Option<SnapshotInfo> {
        self.shared.state().snapshots.get_key_value(name).map(|(name, s)| State::info(name, s))
    }

    /// Takes a snapshot of the live tree: everything before this call, nothing after it. It is durable on this machine
    /// when this returns; with `durability: remote`, in the store.
    ///
    /// # Errors
    /// `Exists`, `NameTooLong`, `Invalid`, `ReadOnly`, `NoSpace`, or the log can't be written.
    pub fn snapshot_create(&self, access: Access, who: Who, name: &str) -> FsResult<SnapshotInfo> {
        check(name)?;
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let wanted: Arc<str> = Arc::from(name);
        // The snapshot shows them after a crash too.
        self.shared.log_access_times();
        loop {
            let ordinal = self.free_ordinal(&wanted)?;
            let edit = Edit::Snapshot { ordinal, created: now(), name: wanted.clone() };
            if self.change_table(access, &edit, Deed::done(who, "snapshot taken", name))? {
                break;
            }
        }
        self.shared.fault("snapshot.logged");
        self.durable()?;
        self.snapshot(name).ok_or(FsError::NotFound)
    }

    fn free_ordinal(&self, name: &Arc<str>) -> FsResult<u32> {
        let state = self.shared.state();
        if state.snapshots.contains_key(name) {
            return Err(FsError::Exists);
        }
        if state.snapshots.len() >= SNAPSHOTS_MAX || state.next_ordinal > ORDINAL_MAX {
            return Err(FsError::NoSpace);
        }
        Ok(state.next_ordinal.max(1))
    }

    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (a snapshot is never replaced), `NameTooLong`, `Invalid`, `Unsupported` for an exchange,
    /// `ReadOnly`, or the log can't be written.
    pub fn snapshot_rename(&self, access: Access, who: Who, from: &str, to: &str, mode: RenameMode) -> FsResult<()> {
        check(to)?;
        if mode == RenameMode::Exchange {
            return Err(FsError::Unsupported);
        }
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let ordinal = self.snapshot(from).ok_or(FsError::NotFound)?.ordinal;
        if from == to {
            return Ok(());
        }
        let deed = Deed::done(who, "snapshot renamed", format!("{from} to {to}"));
        if !self.change_table(access, &Edit::SnapshotRename { ordinal, name: Arc::from(to) }, deed)? {
            return Err(FsError::Exists);
        }
        self.durable()
    }

    /// Forgets a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, or the log can't be written.
    pub fn snapshot_delete(&self, access: Access, who: Who, name: &str) -> FsResult<()> {
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let ordinal = self.snapshot(name).ok_or(FsError::NotFound)?.ordinal;
        self.change_table(access, &Edit::SnapshotDelete(ordinal), Deed::done(who, "snapshot forgotten", name))?;
        self.durable()
    }

    /// Logs a change of the table, unless another one came first: then it is false.
    fn change_table(&self, access: Access, edit: &Edit, deed: Deed) -> FsResult<bool> {
        let shared = &self.shared;
        shared.change_if(access, Need::Snapshot, |state| {
            let is_there = |ordinal: &u32| state.snapshots.values().any(|snapshot| snapshot.ordinal == *ordinal);
            // Somebody else may have forgotten it meanwhile.
            if let Edit::SnapshotRename { ordinal, .. } | Edit::SnapshotDelete(ordinal) = edit
                && !is_there(ordinal)
            {
                return Err(FsError::NotFound);
            }
            Ok(match edit {
                Edit::Snapshot { ordinal, name, .. } => {
                    *ordinal >= state.next_ordinal && !state.snapshots.contains_key(name)
                }
                Edit::SnapshotRename { name, .. } => !state.snapshots.contains_key(name),
                _ => true,
            }
            // The audit record stands first: a snapshot freezes the layer it is in.
            .then(|| vec![state.audit.edit(&deed), edit.clone()]))
        })
    }

    fn durable(&self) -> FsResult<()> {
        if let Some(log) = &self.shared.log {
            log.sync().map_err(|e| FsError::Io(e.to_string()))?;
        }
        if self.shared.options.durability_remote {
            self.sync_untold(self.shared.options.timeout)?;
        }
        Ok(())
    }
}

fn check(name: &str) -> FsResult<()> {
    if name.len() > SNAPSHOT_NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    super::check_name(name.as_bytes())
}
