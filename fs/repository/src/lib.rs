//! What is stored: chunks, frames, packs, index, metadata tree, heads, keys. The format stands in `fs/doc/format.md`.
//!
//! [`Repository`] is what the live tree works with. Below it, downwards: the packer forms frames of new chunks and writes packs into a
//! staging directory; a commit brings them into the store with an index segment, and a head makes that count; the reader
//! fetches frames and gives out chunks whose ids it has checked.
#![forbid(unsafe_code)]

mod audit;
mod bytes;
mod chunks;
mod codec;
mod commit;
mod config;
mod crypto;
mod decoded;
mod error;
mod foreign;
mod frame;
mod frame_info;
mod head;
mod heads;
pub mod ids;
mod index;
mod key_changes;
mod key_slots;
mod keyring;
mod keys;
mod labels;
mod lease;
mod limits;
mod locked;
mod lru_bytes;
mod names;
mod near;
mod node_packs;
mod others;
mod pack;
mod packer;
mod place;
mod reader;
pub mod record;
mod recovery;
mod repository;
mod rotation;
mod seen;
mod small_packs;
mod snapshot;
mod spans;
mod staged;
mod stats;
mod temporary;
#[cfg(test)]
mod tests;
mod trails;
pub mod tree;
mod yielding;

pub use audit::{AUDIT_KEPT, AuditCheck, AuditHash, AuditRecord, AuditReport, audit_hash};
pub use bytes::Bytes;
pub use commit::{CommitSet, DamageNote, Superseded};
pub use error::RepositoryError;
pub use frame::FrameKind;
pub use frame_info::FrameInfo;
pub use head::{Head, PutHead};
pub use heads::{Descent, HEADS_KEPT};
pub use index::SegmentRef;
pub use key_changes::{KeyChange, NewKeyChange};
pub use key_slots::{KeyEpoch, KeySlot, Keys, key_slots};
pub use keys::KdfParams;
pub use labels::{Label, LabelCount};
pub use lease::{Lease, LeaseState};
pub use packer::{Added, FrameClass, Mark};
pub use recovery::Adopted;
pub use repository::{InitOptions, OpenOptions, Repository};
pub use seen::Reread;
pub use snapshot::{SnapshotRecord, check_snapshot_name};
pub use staged::StagedPack;
pub use stats::{RepositoryStats, Sent};
pub use yielding::Waiting;
