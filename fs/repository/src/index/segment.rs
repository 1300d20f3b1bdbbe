//! One index segment: its root in memory, its blocks read by range (format.md §6).

use std::sync::{Arc, OnceLock};

use axiomfs_api::{ObjectKey, Sealer};

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{SALT, derive, nonce};
use crate::error::{InObject, RepositoryError};
use crate::ids::{ChunkId, RepositoryId, SegmentId, VolumeId};
use crate::keyring::Keyring;
use crate::near::Source;
use crate::pack::{Chain, decode_chains};
use crate::{limits, names};

pub(crate) const MAGIC: &[u8; 4] = b"AXIX";
pub(crate) const END: &[u8; 4] = b"AXIE";
pub(crate) const HEADER: usize = 48;

/// What a head says of an index segment; enough to read its root with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRef {
    /// Names the object.
    pub id: SegmentId,
    /// The object's length in bytes.
    pub len: u64,
    /// Where its root begins.
    pub root_offset: u64,
    /// The sealed root's length in bytes.
    pub root_len: u32,
    /// Sealing epoch.
    pub epoch: u32,
    /// Salt of its key.
    pub salt: [u8; SALT],
    /// Chunks it locates.
    pub rows: u64,
}

impl SegmentRef {
    pub(crate) const LEN: usize = 16 + 8 + 8 + 4 + 4 + SALT + 8;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.id.0);
        out.put_u64(self.len);
        out.put_u64(self.root_offset);
        out.put_u32(self.root_len);
        out.put_u32(self.epoch);
        out.put(&self.salt);
        out.put_u64(self.rows);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: r.array()?.into(),
            len: r.u64()?,
            root_offset: r.u64()?,
            root_len: r.u32()?,
            epoch: r.u32()?,
            salt: r.array()?,
            rows: r.u64()?,
        })
    }
}

/// Kinds of blocks, as in nonce and associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlockKind {
    Chunks = 3,
    Packs = 4,
    Filter = 5,
    Root = 6,
}

/// Seals and opens the blocks of one segment.
pub(crate) struct SegmentSeal {
    repository: RepositoryId,
    volume: VolumeId,
    pub(crate) id: SegmentId,
    sealer: Box<dyn Sealer>,
}

impl SegmentSeal {
    pub(crate) fn new(
        keyring: &Keyring,
        seal: &dyn axiomfs_api::Seal,
        volume: VolumeId,
        id: SegmentId,
        epoch: u32,
        salt: &[u8; SALT],
    ) -> Result<Self, RepositoryError> {
        let key = keyring
            .epoch(epoch)
            .ok_or_else(|| RepositoryError::UnknownEpoch { object: names::segment(volume, id), epoch })?;
        let sealer = seal.sealer(&derive(&key.key, "axiomfs index", salt));
        Ok(Self { repository: keyring.repository, volume, id, sealer })
    }

    pub(crate) fn seal(&self, kind: BlockKind, number: u32, block: &mut Vec<u8>) {
        self.sealer.seal(&nonce(kind as u8, number.into()), &self.aad(kind, number), block);
    }

    fn open(&self, kind: BlockKind, number: u32, block: &mut Vec<u8>) -> Result<(), Malformed> {
        self.sealer
            .open(&nonce(kind as u8, number.into()), &self.aad(kind, number), block)
            .map_err(|_| Malformed("its seal does not fit"))
    }

    fn aad(&self, kind: BlockKind, number: u32) -> Vec<u8> {
        let mut aad = b"axiomfs index".to_vec();
        aad.put(&self.repository.0);
        aad.put(&self.volume.0);
        aad.put(&self.id.0);
        aad.put_u8(kind as u8);
        aad.put_u32(number);
        aad
    }
}

/// Place of a sealed block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// A segment's root.
#[derive(Debug, Default)]
pub(crate) struct Root {
    pub(crate) chains: Vec<Chain>,
    pub(crate) rows: u64,
    pub(crate) frames: u32,
    pub(crate) packs: u32,
    pub(crate) chunks: Vec<(ChunkId, u16, Place)>,
    /// The first bytes of each chunk block's first id: a lookup searches these, which lie close together.
    fences: Vec<u64>,
    pub(crate) filters: Vec<Place>,
    pub(crate) pack_blocks: Vec<(u32, Place)>,
}

impl Root {
    /// Adds the next chunk block.
    pub(crate) fn push_chunks(&mut self, chunk: (ChunkId, u16, Place)) {
        self.fences.push(fence(&chunk.0));
        self.chunks.push(chunk);
    }

    /// How many chunk blocks begin with a lower id.
    pub(crate) fn blocks_below(&self, id: &ChunkId) -> usize {
        let fence = fence(id);
        let below = self.fences.partition_point(|first| *first < fence);
        let equal = self.fences[below..].partition_point(|first| *first == fence);
        below + self.chunks[below..below + equal].partition_point(|(first, _, _)| first < id)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.chunks.len() * 46);
        out.put_u16(u16::try_from(self.chains.len()).expect("bounded by the limit of chains"));
        for chain in &self.chains {
            out.put_bytes16(&chain.descriptor);
        }
        out.put_u64(self.rows);
        out.put_u32(self.frames);
        out.put_u32(self.packs);
        out.put_len32(self.chunks.len());
        for (first, rows, place) in &self.chunks {
            out.put(&first.0);
            out.put_u16(*rows);
            place.encode(&mut out);
        }
        out.put_len32(self.filters.len());
        for place in &self.filters {
            place.encode(&mut out);
        }
        out.put_len32(self.pack_blocks.len());
        for (first, place) in &self.pack_blocks {
            out.put_u32(*first);
            place.encode(&mut out);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8], end: u64) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let mut root = Self {
            chains: decode_chains(&mut r)?,
            rows: r.u64()?,
            frames: r.u32()?,
            packs: r.u32()?,
            ..Self::default()
        };
        for _ in 0..r.count(46, usize::MAX)? {
            let chunk = (r.array()?.into(), r.u16()?, Place::decode(&mut r, end)?);
            if root.chunks.last().is_some_and(|(id, _, _)| *id > chunk.0) {
                return Err(Malformed("its chunk blocks do not ascend"));
            }
            root.push_chunks(chunk);
        }
        for _ in 0..r.count(12, usize::MAX)? {
            root.filters.push(Place::decode(&mut r, end)?);
        }
        for _ in 0..r.count(16, usize::MAX)? {
            let block = (r.u32()?, Place::decode(&mut r, end)?);
            if root.pack_blocks.last().is_some_and(|(first, _)| *first >= block.0) {
                return Err(Malformed("its pack blocks do not ascend"));
            }
            root.pack_blocks.push(block);
        }
        r.end()?;
        if root.filters.len() != root.chunks.len().div_ceil(super::block::FILTERED) {
            return Err(Malformed("it has another number of filters than its chunk blocks need"));
        }
        Ok(root)
    }
}

fn fence(id: &ChunkId) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&id.0[..8]);
    u64::from_be_bytes(first)
}

impl Place {
    fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(self.offset);
        out.put_u32(self.len);
    }

    fn decode(r: &mut Reader<'_>, end: u64) -> Result<Self, Malformed> {
        let place = Self { offset: r.u64()?, len: r.u32()? };
        let fits = place.offset.checked_add(place.len.into()).is_some_and(|e| e <= end);
        if fits && u64::from(place.len) <= limits::INDEX_BLOCK {
            Ok(place)
        } else {
            Err(Malformed("a block lies outside of the segment"))
        }
    }
}

/// A segment that a head names.
pub(crate) struct Segment {
    pub(crate) reference: SegmentRef,
    pub(crate) name: String,
    key: ObjectKey,
    seal: SegmentSeal,
    root: OnceLock<Arc<Root>>,
}

impl Segment {
    /// Reads nothing yet.
    pub(crate) fn new(
        keyring: &Keyring,
        seal: &dyn axiomfs_api::Seal,
        volume: VolumeId,
        reference: SegmentRef,
    ) -> Result<Self, RepositoryError> {
        let name = names::segment(volume, reference.id);
        let root_end = reference.root_offset.checked_add(reference.root_len.into());
        if u64::from(reference.root_len) > limits::INDEX_ROOT || root_end.is_none_or(|end| end > reference.len) {
            return Err(RepositoryError::corrupt(&name, "the head gives it an impossible root"));
        }
        let seal = SegmentSeal::new(keyring, seal, volume, reference.id, reference.epoch, &reference.salt)?;
        Ok(Self { reference, key: names::key(&name)?, name, seal, root: OnceLock::new() })
    }

    pub(crate) fn root_cached(&self) -> Option<&Arc<Root>> {
        self.root.get()
    }

    /// For one that was just written.
    pub(crate) fn set_root(&self, root: Root) {
        self.root.get_or_init(|| Arc::new(root));
    }

    /// The root; two threads may both read it, the first wins.
    pub(crate) fn root(&self, source: &Source) -> Result<&Arc<Root>, RepositoryError> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let read = || {
            let mut bytes = source.range(&self.key, self.reference.root_offset, self.reference.root_len.into())?;
            self.seal
                .open(BlockKind::Root, 0, &mut bytes)
                .and_then(|()| Root::decode(&bytes, self.reference.root_offset))
                .in_object(format_args!("Root of {}", self.name))
        };
        let root = source.again_if_damaged(&self.key, read)?;
        Ok(self.root.get_or_init(|| Arc::new(root)))
    }

    /// The root, and all bytes of the segment.
    pub(crate) fn read_whole(&self, source: &Source) -> Result<(&Arc<Root>, Vec<u8>), RepositoryError> {
        let SegmentRef { len, root_offset, root_len, .. } = self.reference;
        let read = || {
            let bytes = source.range(&self.key, 0, len)?;
            let place = Place { offset: root_offset, len: root_len };
            let opened = self.open_in(&bytes, BlockKind::Root, 0, place);
            let root =
                opened.ok_or(Malformed("its seal does not fit")).and_then(|root| Root::decode(&root, root_offset));
            Ok((root.in_object(format_args!("Root of {}", self.name))?, bytes))
        };
        let (root, bytes) = source.again_if_damaged(&self.key, read)?;
        Ok((self.root.get_or_init(|| Arc::new(root)), bytes))
    }

    /// One block out of the whole segment, unless it is damaged.
    pub(crate) fn open_in(&self, whole: &[u8], kind: BlockKind, number: u32, place: Place) -> Option<Vec<u8>> {
        let start = usize::try_from(place.offset).ok()?;
        let mut block = whole.get(start..start.checked_add(place.len as usize)?)?.to_vec();
        self.seal.open(kind, number, &mut block).ok()?;
        Some(block)
    }

    /// Reads and opens one block.
    pub(crate) fn read(
        &self,
        source: &Source,
        kind: BlockKind,
        number: u32,
        place: Place,
    ) -> Result<Vec<u8>, RepositoryError> {
        source.again_if_damaged(&self.key, || {
            let mut bytes = source.range(&self.key, place.offset, place.len.into())?;
            self.seal.open(kind, number, &mut bytes).in_object(self.block_name(kind, number))?;
            Ok(bytes)
        })
    }

    pub(crate) fn block_name(&self, kind: BlockKind, number: u32) -> String {
        format!("{kind:?} block {number} of {}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_find_what_whole_ids_do() {
        // Ids that differ early, late, and not at all.
        let id = |first: u8, last: u8| {
            ChunkId(std::array::from_fn(|i| if i == 0 { first } else { last * u8::from(i == 31) }))
        };
        let mut root = Root::default();
        for (first, last) in [(1, 1), (1, 3), (1, 3), (2, 0), (2, 5), (7, 5), (7, 5), (7, 9)] {
            root.push_chunks((id(first, last), 1, Place { offset: 0, len: 0 }));
        }
        for (first, last) in (0..9).flat_map(|first| (0..11).map(move |last| (first, last))) {
            let wanted = id(first, last);
            let expected = root.chunks.iter().filter(|(begin, _, _)| *begin < wanted).count();
            assert_eq!(root.blocks_below(&wanted), expected, "{first}, {last}");
        }
    }
}
