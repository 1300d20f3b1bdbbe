//! A tree's root as others store it.

use super::{HEIGHT_MAX, TreeError, overlay};
use crate::ids::ChunkId;

/// A tree that isn't empty; `None` of an `Option<Root>` is the empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// The root node.
    pub node: ChunkId,
    /// Number of levels, 1 when the root is a leaf. With the highest bit set: those of an overlay's base.
    pub height: u8,
    /// Number of entries in the tree, or in an overlay's base.
    pub entries: u64,
}

impl Root {
    /// Length of an encoded root in bytes.
    pub const LEN: usize = 41;

    /// The fixed bytes of `fs/doc/format-tree.md`.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..32].copy_from_slice(self.node.as_bytes());
        out[32] = self.height;
        out[33..].copy_from_slice(&self.entries.to_le_bytes());
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`TreeError::Root`] if the height or the number of entries is impossible.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, TreeError> {
        let (node, rest) = bytes.split_first_chunk::<32>().expect("41 bytes are at least 32");
        let (height, entries) = rest.split_first_chunk::<1>().expect("9 bytes are at least 1");
        let root = Self {
            node: ChunkId(*node),
            height: height[0],
            entries: u64::from_le_bytes(entries.try_into().expect("41 - 33 bytes")),
        };
        root.is_overlay()?;
        if root.entries == 0 {
            return Err(root.impossible());
        }
        Ok(root)
    }

    /// As [`encode`](Self::encode), with zeros for the empty tree.
    pub fn encode_option(root: Option<Self>) -> [u8; Self::LEN] {
        root.map_or([0; Self::LEN], |root| root.encode())
    }

    /// Reads what [`encode_option`](Self::encode_option) wrote.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_option(bytes: &[u8; Self::LEN]) -> Result<Option<Self>, TreeError> {
        if bytes == &[0; Self::LEN] { Ok(None) } else { Self::decode(bytes).map(Some) }
    }

    /// Whether the tree is an overlay over another.
    pub(super) fn is_overlay(&self) -> Result<bool, TreeError> {
        let is_overlay = self.height & overlay::FLAG > 0;
        Self { height: self.height & !overlay::FLAG, ..*self }
            .level()
            .map_err(|_| self.impossible())
            .map(|_| is_overlay)
    }

    fn impossible(&self) -> TreeError {
        TreeError::Root { height: self.height, entries: self.entries }
    }

    /// The root node's level in a plain tree.
    pub(super) fn level(&self) -> Result<u8, TreeError> {
        match self.height {
            1..=HEIGHT_MAX => Ok(self.height - 1),
            _ => Err(self.impossible()),
        }
    }
}
