//! The cache of index blocks, in parts with a lock each: one lock for all is what lookups of several threads would wait for.

use std::sync::Arc;

use super::block::{ChunkBlock, Filter, PackBlock};
use super::segment::BlockKind;
use crate::ids::SegmentId;
use crate::lru_bytes::ByteLru;

/// What a cached block takes beside its bytes.
const OVERHEAD: usize = 128;
/// The fewest bytes that a part is worth; more than a block takes, but for that of a pack of very many frames.
const PART: usize = 1 << 20;
/// Parts of a large cache.
const PARTS: usize = 16;

/// A block of a segment, parsed.
#[derive(Clone)]
pub(crate) enum Block {
    Chunks(Arc<ChunkBlock>),
    Packs(Arc<PackBlock>),
    Filter(Arc<Filter>),
}

/// Which block: of which segment, of which kind, its number there.
pub(crate) type BlockKey = (SegmentId, BlockKind, u32);

/// Blocks of the segments of all volumes.
pub(crate) struct IndexCache {
    parts: Vec<ByteLru<BlockKey, Block>>,
    limit: usize,
}

impl IndexCache {
    /// A cache of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let parts = (bytes / PART).clamp(1, PARTS);
        Self { parts: (0..parts).map(|_| ByteLru::new(bytes / parts)).collect(), limit: bytes }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(ByteLru::bytes).sum()
    }

    pub(crate) fn get(&self, key: &BlockKey) -> Option<Block> {
        self.part(key).get(key)
    }

    /// Keeps a block that takes `bytes`.
    pub(crate) fn put(&self, key: BlockKey, block: Block, bytes: usize) {
        self.part(&key).put(key, block, bytes + OVERHEAD);
    }

    fn part(&self, (segment, _, number): &BlockKey) -> &ByteLru<BlockKey, Block> {
        // Ids of segments are random; numbers run through.
        &self.parts[(usize::from(segment.0[0]) + *number as usize) % self.parts.len()]
    }
}
