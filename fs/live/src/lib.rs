//! The live tree: a read-write filesystem over a repository.
//!
//! Every change is an operation in the write-ahead log ([`log`]) and, at the same time, edits of a layer in memory;
//! reads look through the layers onto an immutable tree in the repository. Checkpoints turn layers into trees, commits
//! put trees into the store. `fs/doc/architecture.md` shows how the parts work together, `fs/doc/semantics.md` what they
//! promise.
//!
//! Lock order: `state`, then the log's own locks, then `handles`, `orders`, `head`, `reap` and `events` (each alone).
//! None is held across store I/O; `state` is held while a record goes to the log's file.
#![forbid(unsafe_code)]

pub mod acl;
mod audit;
mod background;
mod base;
mod change;
mod checkpoint;
mod commit;
mod drain;
mod edit;
mod events;
mod extent_edits;
mod extent_map;
mod follow;
mod growing;
mod handles;
mod ingest;
mod layer;
mod ledger;
pub mod log;
mod manifest;
mod memory;
mod open;
mod open_error;
mod ops;
mod orders;
mod patience;
mod read_ahead;
mod recover;
mod samples;
mod sealing;
mod set_aside;
mod space;
mod state;
mod status;
pub mod types;
mod versions;
mod view;
mod volume;

pub use audit::{AuditLine, Deed, Who};
pub use checkpoint::CheckpointError;
pub use edit::Edit;
pub use events::Event;
pub use manifest::{Manifest, ManifestError};
pub use open_error::OpenError;
pub use ops::layout::Layout;
pub use recover::{Recovered, recover, set_apart};
pub use samples::Sample;
pub use set_aside::remove_recovered;
pub use status::Status;
pub use types::*;
pub use volume::{FaultHook, Volume, VolumeOptions};

use axiomfs_repository::RepositoryError;

/// A repository's error as the tree's.
pub(crate) fn repository_error(e: &RepositoryError) -> FsError {
    let text = background::describe(e);
    if e.is_quota() {
        FsError::QuotaExceeded
    } else if e.is_no_space() {
        FsError::NoSpace
    } else if e.is_transient() {
        FsError::TimedOut(text)
    } else {
        FsError::Io(text)
    }
}
