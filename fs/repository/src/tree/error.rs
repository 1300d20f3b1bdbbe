//! What can be wrong with a tree or with what is asked of it.

use thiserror::Error;

use super::{HEIGHT_MAX, KEY_MAX, VALUE_MAX};
use crate::ids::ChunkId;

/// An error of the tree itself; those of storage are the source's and the sink's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TreeError {
    /// The bytes are no node.
    #[error("Damaged tree node of {len} bytes: {damage}")]
    Damaged {
        /// Length of what was read.
        len: usize,
        /// What is wrong.
        damage: Damage,
    },
    /// The node was written by a later version.
    #[error("Tree node of unknown version {version}")]
    Version {
        /// The version it names.
        version: u8,
    },
    /// A node doesn't stand where its parent says.
    #[error("Tree node {node} has level {found} where level {expected} was expected")]
    Level {
        /// The node.
        node: ChunkId,
        /// From its parent or the root.
        expected: u8,
        /// What the node says.
        found: u8,
    },
    /// A node has keys outside the range that its parent gives it.
    #[error("Tree node {node} has keys outside its range")]
    OutOfRange {
        /// The node.
        node: ChunkId,
    },
    /// The 41 bytes of a root make no sense.
    #[error("Tree root with height {height} and {entries} entries")]
    Root {
        /// As read.
        height: u8,
        /// As read.
        entries: u64,
    },
    /// The root node of an overlay is none.
    #[error("Tree node {node} is not the root of an overlay, as its height says")]
    Overlay {
        /// The node.
        node: ChunkId,
    },
    /// A root counts fewer entries than were found.
    #[error("Tree with root {node} has another number of entries than its root says ({entries})")]
    Entries {
        /// The root node.
        node: ChunkId,
        /// As the root says.
        entries: u64,
    },
    /// An edit's key is over the limit.
    #[error("Tree key of {len} bytes is longer than {KEY_MAX}")]
    KeyTooLong {
        /// Length in bytes.
        len: usize,
    },
    /// An edit's value is over the limit.
    #[error("Tree value of {len} bytes is longer than {VALUE_MAX}")]
    ValueTooLong {
        /// Length in bytes.
        len: usize,
    },
    /// Edits must come in strictly ascending order of their keys.
    #[error("Tree edits are out of order at edit {index}")]
    EditOrder {
        /// The first edit that isn't greater than the one before, counted from 0.
        index: u64,
    },
    /// The tree would become too high.
    #[error("Tree would have more than {HEIGHT_MAX} levels")]
    TooHigh,
}

/// What is wrong with a node's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Damage {
    /// Shorter than its header and table, or longer than any node.
    #[error("its length is impossible")]
    Length,
    /// The first byte or a reserved byte is wrong.
    #[error("its header is not a node's")]
    Header,
    /// More levels than a tree may have.
    #[error("its level is impossible")]
    Level,
    /// No entries.
    #[error("it is empty")]
    Empty,
    /// The slots don't fill the heap, one after the other.
    #[error("its entries don't fill it")]
    Slots,
    /// A key or a value is over the limit, or a child's id isn't 32 bytes long.
    #[error("an entry's length is impossible")]
    Entry,
    /// The first separator of a branch isn't empty.
    #[error("its first separator is not empty")]
    Separator,
    /// Keys don't ascend.
    #[error("its keys don't ascend")]
    Order,
}
