//! Frames: what goes through the chain as one piece (format.md §5).

use axiomfs_api::{Sealer, TAG_LEN};

use crate::codec::{Malformed, Put, Reader, padme};
use crate::crypto::{SALT, nonce};
use crate::ids::{ChunkId, RepositoryId};
use crate::limits;

const NONCE_FRAME: u8 = 1;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// Chunks of files.
    Data,
    /// Nodes of the metadata tree.
    Metadata,
    /// Chunks of files in a directory that is exempted from encryption.
    Clear,
}

impl FrameKind {
    /// Kinds that packs come in.
    pub(crate) const COUNT: usize = 3;

    /// Whether frames of this kind are sealed.
    pub(crate) fn is_sealed(self) -> bool {
        self != Self::Clear
    }

    /// Bytes that `encoded` take in a pack.
    pub(crate) fn stored(self, encoded: usize) -> usize {
        TAG_LEN + if self.is_sealed() { padme(encoded) } else { encoded }
    }

    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Metadata => 2,
            Self::Clear => 3,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(Self::Data),
            2 => Ok(Self::Metadata),
            3 => Ok(Self::Clear),
            _ => Err(Malformed("a frame is of unknown kind")),
        }
    }
}

/// Where a frame lies in its pack and how to decode it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameRecord {
    pub(crate) number: u32,
    pub(crate) kind: FrameKind,
    /// Place of its chain in the list beside it.
    pub(crate) chain: u16,
    pub(crate) applied: u32,
    pub(crate) offset: u32,
    pub(crate) stored: u32,
    pub(crate) encoded: u32,
    pub(crate) raw: u32,
}

/// A record's length in bytes.
pub(crate) const RECORD: usize = 28;
const FLAG_SEALED: u8 = 1;

impl FrameRecord {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.number);
        out.put_u8(self.kind.to_byte());
        out.put_u8(if self.kind.is_sealed() { FLAG_SEALED } else { 0 });
        out.put_u16(self.chain);
        out.put_u32(self.applied);
        for field in [self.offset, self.stored, self.encoded, self.raw] {
            out.put_u32(field);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let number = r.u32()?;
        let kind = FrameKind::from_byte(r.u8()?)?;
        if r.u8()? != if kind.is_sealed() { FLAG_SEALED } else { 0 } {
            return Err(Malformed("a frame has flags that its kind can't have"));
        }
        let (chain, applied) = (r.u16()?, r.u32()?);
        let record =
            Self { number, kind, chain, applied, offset: r.u32()?, stored: r.u32()?, encoded: r.u32()?, raw: r.u32()? };
        let stored = kind.stored(record.encoded as usize);
        if record.stored as usize != stored
            || stored > limits::FRAME_STORED
            || record.encoded as usize > limits::FRAME_ENCODED
            || record.raw as usize > limits::FRAME_RAW
        {
            return Err(Malformed("a frame's lengths are not possible"));
        }
        Ok(record)
    }

    fn aad(&self, repository: RepositoryId, salt: &[u8; SALT], chain: &[u8; 32]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(13 + 16 + SALT + 17 + 32);
        aad.put(b"axiomfs frame");
        aad.put(&repository.0);
        aad.put(salt);
        aad.put_u32(self.number);
        aad.put_u8(self.kind.to_byte());
        aad.put_u32(self.applied);
        aad.put_u32(self.encoded);
        aad.put_u32(self.raw);
        aad.put(chain);
        aad
    }
}

/// The pack that a frame's seal is bound to.
#[derive(Clone, Copy)]
pub(crate) struct FrameSeal<'a> {
    pub(crate) repository: RepositoryId,
    pub(crate) salt: &'a [u8; SALT],
    pub(crate) sealer: &'a dyn Sealer,
    /// Key of the tags of clear frames.
    pub(crate) clear: &'a [u8; 32],
}

impl FrameSeal<'_> {
    /// Seals padded bytes in place, or puts its tag behind a clear frame.
    pub(crate) fn seal(&self, record: &FrameRecord, chain: &[u8; 32], padded: &mut Vec<u8>) {
        let aad = record.aad(self.repository, self.salt, chain);
        if !record.kind.is_sealed() {
            let tag = self.tag(&aad, padded);
            padded.extend_from_slice(&tag);
            return;
        }
        self.sealer.seal(&nonce(NONCE_FRAME, record.number.into()), &aad, padded);
        debug_assert_eq!(padded.len(), record.stored as usize);
    }

    /// Opens in place; of what is left the encoded frame is the beginning, the rest padding and tag.
    pub(crate) fn open(&self, record: &FrameRecord, chain: &[u8; 32], stored: &mut [u8]) -> Result<(), Malformed> {
        let aad = record.aad(self.repository, self.salt, chain);
        let (padded, tag) = stored.split_last_chunk_mut::<TAG_LEN>().ok_or(Malformed("it ends too early"))?;
        if !record.kind.is_sealed() {
            // Nothing is decided by the time a comparison takes: who forges tags learns nothing of the key from it either way.
            return if self.tag(&aad, padded) == *tag { Ok(()) } else { Err(Malformed("its tag does not fit")) };
        }
        self.sealer
            .open_detached(&nonce(NONCE_FRAME, record.number.into()), &aad, padded, tag)
            .map_err(|_| Malformed("its seal does not fit"))?;
        let (_, padding) = padded.split_at_checked(record.encoded as usize).ok_or(Malformed("it ends too early"))?;
        Reader::new(padding).padding()
    }

    fn tag(&self, aad: &[u8], bytes: &[u8]) -> [u8; TAG_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(self.clear);
        hasher.update(aad).update(bytes);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
        tag
    }
}

/// A chunk's id and length; its offset is the sum of the lengths before it.
pub(crate) type Member = (ChunkId, u32);

/// Appends the directory that ends a metadata frame.
pub(crate) fn put_directory(raw: &mut Vec<u8>, members: &[Member]) {
    for (_, len) in members {
        raw.put_u32(*len);
    }
    raw.put_len32(members.len());
}

/// The places of a metadata frame's nodes.
pub(crate) fn directory(raw: &[u8]) -> Result<Vec<std::ops::Range<usize>>, Malformed> {
    let bad = Malformed("its directory of nodes is not possible");
    let (rest, count) = raw.split_last_chunk::<4>().ok_or(bad)?;
    let count = u32::from_le_bytes(*count) as usize;
    let table = count.checked_mul(4).and_then(|len| rest.len().checked_sub(len)).ok_or(bad)?;
    let (nodes, lengths) = rest.split_at(table);
    let mut ranges = Vec::with_capacity(count);
    let mut start = 0usize;
    for len in lengths.chunks_exact(4) {
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let end = start.checked_add(len).filter(|end| *end <= nodes.len()).ok_or(bad)?;
        ranges.push(start..end);
        start = end;
    }
    if start == nodes.len() { Ok(ranges) } else { Err(bad) }
}
