//! Chunk blocks and filters of an index segment, decoded in place (format.md §6).

use axiomfs_api::TAG_LEN;

use crate::codec::{Malformed, Put};
use crate::ids::ChunkId;

/// Length of a chunk's row in bytes.
pub(crate) const ROW: usize = 44;

/// Length of a sealed chunk block of so many rows.
pub(crate) fn sealed_rows(rows: usize) -> u64 {
    (rows * ROW + TAG_LEN) as u64
}

const BITS_PER_ROW: usize = 12;
const PROBES: u64 = 8;

/// Where a chunk is, within a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: ChunkId,
    /// Counted through the whole segment.
    pub(crate) frame: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl Row {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.id.0);
        out.put_u32(self.frame);
        out.put_u32(self.offset);
        out.put_u32(self.len);
    }

    fn decode(bytes: &[u8; ROW]) -> Self {
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[..32]);
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { id: ChunkId(id), frame: field(32), offset: field(36), len: field(40) }
    }
}

/// A row's id as numbers, which compare as its bytes do and much faster: every block that is read is checked for its order.
fn ordinal(row: &[u8; ROW]) -> (u128, u128) {
    let (halves, _) = row.as_chunks::<16>();
    (u128::from_be_bytes(halves[0]), u128::from_be_bytes(halves[1]))
}

/// Rows, ascending by id.
pub(crate) struct ChunkBlock(Vec<u8>);

impl ChunkBlock {
    pub(crate) fn parse(bytes: Vec<u8>, rows: usize) -> Result<Self, Malformed> {
        let (list, rest) = bytes.as_chunks::<ROW>();
        if !rest.is_empty() || list.len() != rows || rows == 0 {
            return Err(Malformed("it has another number of rows than the root says"));
        }
        if list.windows(2).any(|w| ordinal(&w[0]) > ordinal(&w[1])) {
            return Err(Malformed("its rows do not ascend"));
        }
        Ok(Self(bytes))
    }

    /// All rows of `id`.
    pub(crate) fn find(&self, id: &ChunkId) -> impl Iterator<Item = Row> {
        let list = self.list();
        let start = list.partition_point(|row| row[..32] < id.0[..]);
        list[start..].iter().take_while(|row| row[..32] == id.0[..]).map(Row::decode)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> {
        self.list().iter().map(Row::decode)
    }

    fn list(&self) -> &[[u8; ROW]] {
        self.0.as_chunks().0
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }
}

/// A Bloom filter.
pub(crate) struct Filter(Vec<u8>);

impl Filter {
    /// An empty one, for `rows` ids.
    pub(crate) fn for_rows(rows: usize) -> Self {
        let bits = (rows * BITS_PER_ROW).next_multiple_of(64).max(64);
        Self(vec![0; bits / 8])
    }

    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Malformed> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(8) {
            return Err(Malformed("a filter's length is not possible"));
        }
        Ok(Self(bytes))
    }

    pub(crate) fn insert(&mut self, id: &ChunkId) {
        for bit in probes(id, self.0.len()) {
            self.0[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Whether `id` may be there; no means no.
    pub(crate) fn may_contain(&self, id: &ChunkId) -> bool {
        probes(id, self.0.len()).all(|bit| self.0[bit / 8] & (1 << (bit % 8)) != 0)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn probes(id: &ChunkId, bytes: usize) -> impl Iterator<Item = usize> {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&id.0[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (h1, h2, bits) = (word(8), word(16) | 1, bytes as u128 * 8);
    (0..PROBES).map(move |j| {
        let h = h1.wrapping_add(j.wrapping_mul(h2));
        // Less than `bits`, so it fits.
        ((u128::from(h) * bits) >> 64) as usize
    })
}
