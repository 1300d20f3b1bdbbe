//! The cache of index blocks, in parts with a lock each: one lock for all is what lookups of several threads would wait for.

use std::sync::Arc;

use super::block::{ChunkBlock, Filter};
use super::packs::PackBlock;
use super::segment::BlockKind;
use crate::ids::SegmentId;
use crate::lru_bytes::ByteLru;

/// What a cached block takes beside its bytes.
const OVERHEAD: usize = 128;
/// The fewest bytes that a part is worth; more than a block takes, but for that of a pack of very many frames.
const PART: usize = 1 << 20;
/// Parts of a large cache.
const PARTS: usize = 16;
/// Of a cache in which all is used, the part that blocks of chunks have: one in so many. Ids come in no order, so in an index that is
/// larger than its cache hardly one of these blocks is asked for again but for what was just read; filters and packs are, all the time.
const FOR_CHUNKS: usize = 8;

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
    parts: Vec<Part>,
    limit: usize,
}

struct Part {
    chunks: ByteLru<BlockKey, Block>,
    others: ByteLru<BlockKey, Block>,
    limit: usize,
}

impl Part {
    fn new(limit: usize) -> Self {
        Self { chunks: ByteLru::new(limit), others: ByteLru::new(limit - limit / FOR_CHUNKS), limit }
    }

    fn of(&self, kind: BlockKind) -> &ByteLru<BlockKey, Block> {
        if kind == BlockKind::Chunks { &self.chunks } else { &self.others }
    }
}

impl IndexCache {
    /// A cache of `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        let parts = (bytes / PART).clamp(1, PARTS);
        Self { parts: (0..parts).map(|_| Part::new(bytes / parts)).collect(), limit: bytes }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.chunks.bytes() + part.others.bytes()).sum()
    }

    pub(crate) fn get(&self, key: &BlockKey) -> Option<Block> {
        self.part(key).of(key.1).get(key)
    }

    /// Keeps a block that takes `bytes`.
    pub(crate) fn put(&self, key: BlockKey, block: Block, bytes: usize) {
        let part = self.part(&key);
        part.of(key.1).put(key, block, bytes + OVERHEAD);
        if key.1 != BlockKind::Chunks {
            part.chunks.set_limit(part.limit - part.others.bytes());
        }
    }

    fn part(&self, (segment, _, number): &BlockKey) -> &Part {
        // Ids of segments are random; numbers run through.
        &self.parts[(usize::from(segment.0[0]) + *number as usize) % self.parts.len()]
    }
}
