//! The metadata tree: a sorted map from bytes to bytes as a copy-on-write B+tree of immutable nodes.
//!
//! Pure and synchronous: nodes come from a [`NodeSource`], new ones go to a [`NodeSink`]; what is stored where, encrypted or cached, is
//! theirs. The format stands in `fs/doc/format-tree.md`. Few edits over a large tree stand beside it, in an overlay. Trees share all nodes that a change didn't touch, so a snapshot costs nothing and
//! [`diff`] reads only what differs.

mod apply;
mod buffer;
mod diff;
mod error;
mod node;
mod overlay;
mod read;
mod root;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

pub use diff::{Change, Diff, diff};
pub use error::{Damage, TreeError};
pub use node::{KeyRef, Node, NodeSlice, ValueRef};
pub use overlay::{Range, apply, first_after, get, last_at_or_before, range};
pub use read::{BorrowedEntry, Entry};
pub use root::Root;
pub use walk::{Visit, walk_new};

use crate::ids::ChunkId;

/// Longest key, in bytes.
pub const KEY_MAX: usize = 300;
/// Longest value, in bytes.
pub const VALUE_MAX: usize = 16 * 1024;
/// Largest node that is read, in bytes.
pub const NODE_MAX: usize = 64 * 1024;
/// Largest node that is written, in bytes, unless a single entry is larger. A small change rewrites a node on each level, and a
/// cache of nodes holds what is asked for and not its neighbours: so, rather small.
pub const NODE_TARGET: usize = 8 * 1024;
/// Nodes that would be smaller, in bytes, are put together with a neighbour.
pub const NODE_MIN: usize = 2 * 1024;
/// Most levels a tree may have.
pub const HEIGHT_MAX: u8 = 16;

/// Where nodes are read from.
pub trait NodeSource {
    /// What can go wrong, damage in the tree included.
    type Error: From<TreeError>;

    /// The node whose id is `id`. The source is answerable for its bytes hashing to `id`.
    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, Self::Error>;
}

/// Where new nodes go.
pub trait NodeSink {
    /// What can go wrong.
    type Error;

    /// Takes a new node's bytes and answers their id. Equal bytes must get equal ids.
    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, Self::Error>;
}

/// Reads a node and checks that it stands on the level where its parent says it does, which bounds every descent.
fn load<S: NodeSource>(src: &S, id: &ChunkId, level: u8) -> Result<Arc<Node>, S::Error> {
    let node = src.node(id)?;
    if node.level() != level {
        return Err(TreeError::Level { node: *id, expected: level, found: node.level() }.into());
    }
    Ok(node)
}
