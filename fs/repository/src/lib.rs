//! What is stored: chunks, frames, packs, index, metadata tree, heads, keys. The format stands in `fs/doc/format.md`.
#![forbid(unsafe_code)]

pub mod ids;
pub mod record;
pub mod tree;
