//! The root of an index segment: where its blocks lie (format.md §6).

use std::ops::Range;

use super::block::sealed_rows;
use crate::codec::{Malformed, Put, Reader};
use crate::ids::ChunkId;
use crate::limits;
use crate::pack::{Chain, decode_chains};

/// What a root of another version than 1 begins with, where that has its number of chains.
const VERSIONED: u16 = 0xffff;
/// Version of what is written; the header of the segment says it too.
pub(crate) const VERSION: u16 = 2;
/// Rows in a chunk block that is written.
pub(crate) const ROWS: u16 = 64;
/// Chunk blocks under one filter that is written.
pub(crate) const FILTERED: u16 = 512;
/// The same in version 1.
const FILTERED_1: u16 = 64;

/// Place of a sealed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// A segment's root.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) chains: Vec<Chain>,
    pub(crate) rows: u64,
    pub(crate) frames: u32,
    pub(crate) packs: u32,
    /// The first bytes of each chunk block's first id.
    fences: Vec<u64>,
    /// Those of the first block under each filter.
    filter_fences: Vec<u64>,
    blocks: Blocks,
    /// Chunk blocks under a filter.
    filtered: u16,
    pub(crate) filters: Vec<Place>,
    pub(crate) pack_blocks: Vec<(u32, Place)>,
}

/// Where chunk blocks lie.
#[derive(Debug)]
enum Blocks {
    /// Each by itself, with its rows, as version 1 has them.
    Listed(Vec<(u16, Place)>),
    /// All of so many rows, but the last; those under a filter one after the other, from there on.
    Regular { rows: u16, first: Vec<u64> },
}

impl Root {
    /// An empty one, of a segment that is being written.
    pub(crate) fn new() -> Self {
        Self {
            chains: Vec::new(),
            rows: 0,
            frames: 0,
            packs: 0,
            fences: Vec::new(),
            filter_fences: Vec::new(),
            blocks: Blocks::Regular { rows: ROWS, first: Vec::new() },
            filtered: FILTERED,
            filters: Vec::new(),
            pack_blocks: Vec::new(),
        }
    }

    /// Notes the next chunk block, of [`ROWS`] rows unless it is the last, at `offset`: behind the block before it, or where those under
    /// the next filter begin. Its rows are counted already.
    pub(crate) fn push_block(&mut self, first_id: &ChunkId, offset: u64) {
        if let Blocks::Regular { first, .. } = &mut self.blocks
            && self.fences.len().is_multiple_of(usize::from(self.filtered))
        {
            first.push(offset);
            self.filter_fences.push(fence(first_id));
        }
        self.fences.push(fence(first_id));
        debug_assert!(self.block(self.blocks() - 1).is_some_and(|(_, place)| place.offset == offset), "blocks follow");
    }

    /// How many chunk blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.fences.len()
    }

    /// Rows and place of a chunk block.
    pub(crate) fn block(&self, number: usize) -> Option<(usize, Place)> {
        match &self.blocks {
            Blocks::Listed(list) => list.get(number).map(|(rows, place)| (usize::from(*rows), *place)),
            Blocks::Regular { rows: full, first } => {
                let full = usize::from(*full);
                let rows = match self.fences.len().checked_sub(number + 1)? {
                    0 => self.rows as usize - number * full,
                    _ => full,
                };
                let before = (number % usize::from(self.filtered)) as u64 * sealed_rows(full);
                let offset = first[number / usize::from(self.filtered)].saturating_add(before);
                Some((rows, Place { offset, len: sealed_rows(rows) as u32 }))
            }
        }
    }

    /// Filters over the chunk blocks that may have rows of `id`: one, unless equal ids run over several.
    pub(crate) fn filters_of(&self, id: &ChunkId) -> Range<usize> {
        holders(&self.filter_fences, fence(id))
    }

    /// The chunk blocks under a filter that may have rows of `id`.
    pub(crate) fn blocks_of(&self, id: &ChunkId, filter: usize) -> Range<usize> {
        let first = filter * usize::from(self.filtered);
        let end = (first + usize::from(self.filtered)).min(self.fences.len());
        let within = holders(&self.fences[first..end], fence(id));
        first + within.start..first + within.end
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let Blocks::Regular { rows, first } = &self.blocks else {
            unreachable!("only segments of this version are written")
        };
        let mut out = Vec::with_capacity(64 + self.fences.len() * 8 + first.len() * 20 + self.pack_blocks.len() * 16);
        out.put_u16(VERSIONED);
        out.put_u16(VERSION);
        out.put_u16(u16::try_from(self.chains.len()).expect("bounded by the limit of chains"));
        for chain in &self.chains {
            out.put_bytes16(&chain.descriptor);
        }
        out.put_u64(self.rows);
        out.put_u32(self.frames);
        out.put_u32(self.packs);
        out.put_u16(*rows);
        out.put_u16(self.filtered);
        out.put_len32(self.filters.len());
        for (place, first) in self.filters.iter().zip(first) {
            out.put_u64(*first);
            place.encode(&mut out);
        }
        out.put_len32(self.fences.len());
        for fence in &self.fences {
            out.put(&fence.to_be_bytes());
        }
        out.put_len32(self.pack_blocks.len());
        for (first, place) in &self.pack_blocks {
            out.put_u32(*first);
            place.encode(&mut out);
        }
        out
    }

    /// The version of an encoded root.
    pub(crate) fn version(bytes: &[u8]) -> Result<u16, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u16()? == VERSIONED { r.u16() } else { Ok(1) }
    }

    /// Decodes a root of a segment whose blocks end at `end`.
    pub(crate) fn decode(bytes: &[u8], end: u64) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let root = match Self::version(bytes)? {
            1 => Self::decode_1(&mut r, end)?,
            VERSION => Self::decode_2(&mut r, end)?,
            _ => return Err(Malformed("its root is of an unknown version")),
        };
        r.end()?;
        if !root.fences.is_sorted() {
            return Err(DISORDER);
        }
        if root.pack_blocks.windows(2).any(|two| two[0].0 >= two[1].0) {
            return Err(Malformed("its pack blocks do not ascend"));
        }
        Ok(root)
    }

    fn decode_2(r: &mut Reader<'_>, end: u64) -> Result<Self, Malformed> {
        r.bytes(4)?;
        let chains = decode_chains(r)?;
        let (rows, frames, packs) = (r.u64()?, r.u32()?, r.u32()?);
        let (full, filtered) = (r.u16()?, r.u16()?);
        if full == 0 || filtered == 0 || sealed_rows(full.into()) > limits::INDEX_BLOCK {
            return Err(Malformed("its blocks have an impossible size"));
        }
        let (mut filters, mut first) = (Vec::new(), Vec::new());
        for _ in 0..r.count(20, usize::MAX)? {
            first.push(r.u64()?);
            filters.push(Place::decode(r, end)?);
        }
        let count = r.count(8, usize::MAX)?;
        if rows.div_ceil(full.into()) != count as u64 || filters.len() != count.div_ceil(usize::from(filtered)) {
            return Err(Malformed("it has another number of chunk blocks than its rows need"));
        }
        let fences = r.bytes(count * 8)?.as_chunks().0.iter().map(|first| u64::from_be_bytes(*first));
        let fences: Vec<u64> = fences.collect();
        let filter_fences = fences.iter().copied().step_by(filtered.into()).collect();
        let (blocks, pack_blocks) = (Blocks::Regular { rows: full, first }, decode_packs(r, end)?);
        let root = Self { chains, rows, frames, packs, fences, filter_fences, blocks, filtered, filters, pack_blocks };
        // Of the blocks under a filter the first and the last: the others lie between.
        let ends = (0..count).filter(|block| (block + 1) % usize::from(filtered) < 2).chain(count.checked_sub(1));
        if !ends.map(|block| root.block(block)).all(|block| block.is_some_and(|(_, place)| place.is_within(end))) {
            return Err(OUTSIDE);
        }
        Ok(root)
    }

    fn decode_1(r: &mut Reader<'_>, end: u64) -> Result<Self, Malformed> {
        let chains = decode_chains(r)?;
        let (rows, frames, packs) = (r.u64()?, r.u32()?, r.u32()?);
        let (mut fences, mut list, mut last) = (Vec::new(), Vec::new(), ChunkId([0; 32]));
        for _ in 0..r.count(46, usize::MAX)? {
            let first = r.array()?.into();
            if last > first {
                return Err(DISORDER);
            }
            last = first;
            fences.push(fence(&first));
            list.push((r.u16()?, Place::decode(r, end)?));
        }
        let filters: Vec<_> = (0..r.count(12, usize::MAX)?).map(|_| Place::decode(r, end)).collect::<Result<_, _>>()?;
        if filters.len() != list.len().div_ceil(FILTERED_1.into()) {
            return Err(Malformed("it has another number of filters than its chunk blocks need"));
        }
        let filter_fences = fences.iter().copied().step_by(FILTERED_1.into()).collect();
        let (blocks, filtered, pack_blocks) = (Blocks::Listed(list), FILTERED_1, decode_packs(r, end)?);
        Ok(Self { chains, rows, frames, packs, fences, filter_fences, blocks, filtered, filters, pack_blocks })
    }
}

fn decode_packs(r: &mut Reader<'_>, end: u64) -> Result<Vec<(u32, Place)>, Malformed> {
    (0..r.count(16, usize::MAX)?).map(|_| Ok((r.u32()?, Place::decode(r, end)?))).collect()
}

/// What begins at one of the ascending `fences` and may hold `wanted`: it does not begin behind it, nor does the next one before it.
fn holders(fences: &[u64], wanted: u64) -> Range<usize> {
    let start = fences.partition_point(|first| *first < wanted);
    let equal = fences[start..].iter().take_while(|first| **first == wanted).count();
    start.saturating_sub(1)..start + equal
}

fn fence(id: &ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.0[..8]);
    u64::from_be_bytes(first)
}

const DISORDER: Malformed = Malformed("its chunk blocks do not ascend");
const OUTSIDE: Malformed = Malformed("a block lies outside of the segment");

impl Place {
    fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u32(self.len);
    }

    fn decode(r: &mut Reader<'_>, end: u64) -> Result<Self, Malformed> {
        let place = Self { offset: r.u64()?, len: r.u32()? };
        if place.is_within(end) && u64::from(place.len) <= limits::INDEX_BLOCK { Ok(place) } else { Err(OUTSIDE) }
    }

    fn is_within(self, end: u64) -> bool {
        self.offset.checked_add(self.len.into()).is_some_and(|e| e <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChunkId;

    fn id(first: u8, last: u8) -> ChunkId {
        ChunkId(std::array::from_fn(|i| if i == 0 { first } else { last * u8::from(i == 31) }))
    }

    /// A root of `blocks` full blocks and one of `rest` rows, as a writer makes it.
    fn written(blocks: u64, rest: u64) -> (Root, Vec<(usize, Place)>, u64) {
        let (mut root, mut places, mut offset) = (Root::new(), Vec::new(), 48);
        root.pack_blocks.push((0, Place { offset, len: 100 }));
        offset += 100;
        for number in 0..=blocks {
            let rows = if number < blocks { u64::from(ROWS) } else { rest };
            root.rows += rows;
            root.push_block(&id((number / 8) as u8, 0), offset);
            let place = Place { offset, len: (rows * 44 + 16) as u32 };
            places.push((rows as usize, place));
            offset += u64::from(place.len);
            if (number + 1).is_multiple_of(FILTERED.into()) || number == blocks {
                root.filters.push(Place { offset, len: 30 });
                offset += 30;
            }
        }
        (root, places, offset)
    }

    #[test]
    fn blocks_are_where_they_were_written() {
        for (blocks, rest) in [(0, 1), (3, 64), (1023, 64), (1024, 5), (1500, 63)] {
            let (root, places, end) = written(blocks, rest);
            let decoded = Root::decode(&root.encode(), end).expect("a root");
            for root in [&root, &decoded] {
                let found: Vec<_> = (0..root.blocks()).map(|number| root.block(number).expect("a block")).collect();
                assert_eq!(found, places);
                assert_eq!(root.block(places.len()), None);
            }
        }
    }

    #[test]
    fn a_root_that_does_not_fit_its_segment_is_refused() {
        let (root, _, end) = written(1500, 63);
        let bytes = root.encode();
        assert_eq!(Root::decode(&bytes, end - 31).err(), Some(OUTSIDE), "its last filter would pass the end");
        let changed = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] ^= byte;
            Root::decode(&bytes, end).err()
        };
        assert_eq!(changed(2, 1), Some(Malformed("its root is of an unknown version")));
        // No chains; then rows, rows in a block, blocks under a filter, number of filters, the first block's offset, number of fences.
        for (at, bits) in [(4, 1), (7, 1), (22, 1), (25, 1), (26, 1), (37, 0x80), (90, 1)] {
            assert!(changed(at, bits).is_some(), "byte {at} does not count");
        }
        assert!(Root::decode(&bytes[..bytes.len() - 1], end).is_err());
    }

    #[test]
    fn fences_find_what_whole_ids_do() {
        // Ids that differ early, late, and not at all, under filters of three blocks each.
        let mut root = Root { filtered: 3, ..Root::new() };
        let firsts: Vec<ChunkId> = [(1, 1), (1, 3), (1, 3), (2, 0), (2, 5), (7, 5), (7, 5), (7, 9)]
            .map(|(first, last)| id(first, last))
            .into();
        for (number, first) in (0..).zip(&firsts) {
            root.rows += u64::from(ROWS);
            root.push_block(first, number * sealed_rows(ROWS.into()));
        }
        for (first, last) in (0..9).flat_map(|first| (0..11).map(move |last| (first, last))) {
            let wanted = id(first, last);
            let filters = root.filters_of(&wanted);
            let searched: Vec<usize> = filters.flat_map(|filter| root.blocks_of(&wanted, filter)).collect();
            // A block can have it unless it begins behind it, or the next one before it.
            let can =
                |block: &usize| firsts[*block] <= wanted && firsts.get(block + 1).is_none_or(|next| *next >= wanted);
            let needed: Vec<usize> = (0..firsts.len()).filter(can).collect();
            assert!(needed.iter().all(|block| searched.contains(block)), "{first}, {last}: {needed:?} of {searched:?}");
        }
    }

    #[test]
    fn a_root_of_version_1_is_read() {
        let mut bytes = Vec::new();
        bytes.put_u16(0);
        bytes.put_u64(600);
        bytes.put_u32(5);
        bytes.put_u32(1);
        bytes.put_len32(2);
        let places = [Place { offset: 48, len: 22_544 }, Place { offset: 22_592, len: 3_888 }];
        for (first, rows, place) in [(1, 512, places[0]), (3, 88, places[1])] {
            bytes.put(&id(first, 0).0);
            bytes.put_u16(rows);
            place.encode(&mut bytes);
        }
        bytes.put_len32(1);
        Place { offset: 26_480, len: 916 }.encode(&mut bytes);
        bytes.put_len32(0);
        let root = Root::decode(&bytes, 27_396).expect("a root");
        assert_eq!(
            (root.block(0), root.block(1), root.block(2)),
            (Some((512, places[0])), Some((88, places[1])), None)
        );
        assert_eq!((root.filters_of(&id(4, 0)), root.blocks_of(&id(4, 0), 0), root.rows), (0..1, 1..2, 600));
        assert!(Root::decode(&bytes, 27_395).is_err(), "its filter would pass the end");
    }
}
