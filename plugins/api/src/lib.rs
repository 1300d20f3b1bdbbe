//! The contract between axiomfs and its plugins.
//!
//! A plugin is a **chunker** (splits a byte stream), a **transform** (changes the bytes of a frame reversibly), a
//! **seal** (authenticated encryption, always the last step, compiled in only) or a **store** (where objects lie).
//! Every plugin speaks only this crate; every trait comes with a suite in [`conformance`] that each implementation
//! and each wrapper runs.
#![forbid(unsafe_code)]

mod buffer;
mod chunker;
pub mod conformance;
mod descriptor;
mod effort;
mod error;
mod seal;
mod store;
mod transform;

pub use buffer::BoundedBuf;
pub use chunker::{ChunkSizes, Chunker};
pub use descriptor::{Descriptor, Kind};
pub use effort::Effort;
pub use error::{PluginError, StoreError, StoreErrorKind};
pub use seal::{NONCE_LEN, OpenError, Seal, SealKey, Sealer, TAG_LEN};
pub use store::{Body, LeftOut, ObjectKey, ObjectMeta, Store};
pub use transform::{Applied, Hint, Transform, TransformFactory, Worker};
