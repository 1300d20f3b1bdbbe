//! Pack blocks of an index segment (format.md §6).
//!
//! Ids come in no order, so a lookup may need any of them: those that are in memory are packed, that the cache holds them all.

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::SALT;
use crate::frame::{FrameKind, FrameRecord, RECORD};
use crate::ids::PackId;
use crate::limits;

/// A pack as a segment knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackEntry {
    pub(crate) id: PackId,
    pub(crate) len: u64,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; SALT],
    pub(crate) kind: FrameKind,
}

const PACK_ENTRY: usize = 32 + 8 + 4 + SALT + 1 + 4;

/// A row past the end of its segment's frames.
pub(crate) const ROW_WITHOUT_FRAME: Malformed = Malformed("a row names a frame that no pack has");
const MISFIT: Malformed = Malformed("a frame does not fit its pack");

pub(crate) fn encode_pack(entry: &PackEntry, frames: &[FrameRecord], out: &mut Vec<u8>) {
    out.put(&entry.id.0);
    out.put_u64(entry.len);
    out.put_u32(entry.epoch);
    out.put(&entry.salt);
    out.put_u8(entry.kind.to_byte());
    out.put_len32(frames.len());
    for frame in frames {
        frame.encode(out);
    }
}

/// Packs with their frames.
pub(crate) struct PackBlock(Vec<PackInBlock>);

struct PackInBlock {
    entry: PackEntry,
    /// The number, through the segment, of its first frame.
    first: u32,
    frames: Frames,
}

impl PackBlock {
    pub(crate) fn parse(bytes: &[u8], first_frame: u32) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let count = r.count16(PACK_ENTRY, usize::MAX)?;
        let (mut packs, mut first) = (Vec::with_capacity(count), first_frame);
        for _ in 0..count {
            let (id, len, epoch) = (r.array()?.into(), r.u64()?, r.u32()?);
            let entry = PackEntry { id, len, epoch, salt: r.array()?, kind: FrameKind::from_byte(r.u8()?)? };
            if len > limits::PACK {
                return Err(Malformed("a pack's length is not possible"));
            }
            let frames = Frames::parse(&mut r, &entry)?;
            let next = u32::try_from(frames.len()).ok().and_then(|n| first.checked_add(n));
            packs.push(PackInBlock { entry, first, frames });
            first = next.ok_or(Malformed("it counts too many frames"))?;
        }
        r.end()?;
        Ok(Self(packs))
    }

    /// The frame with that number through the segment, and its pack. `chains` is how many the segment has.
    pub(crate) fn frame(&self, number: u32, chains: usize) -> Result<(PackEntry, FrameRecord), Malformed> {
        let place = self.0.partition_point(|pack| pack.first <= number).checked_sub(1).ok_or(ROW_WITHOUT_FRAME)?;
        let pack = &self.0[place];
        let frame = pack.frames.get((number - pack.first) as usize, pack.entry.kind).ok_or(ROW_WITHOUT_FRAME)?;
        if usize::from(frame.chain) < chains { Ok((pack.entry, frame)) } else { Err(MISFIT) }
    }

    /// All packs, each with its frames.
    pub(crate) fn packs(&self, chains: usize) -> Result<Vec<(PackEntry, Vec<FrameRecord>)>, Malformed> {
        let all = |pack: &PackInBlock| -> Result<_, Malformed> {
            let frames: Vec<_> = pack.frames.all(pack.entry.kind).collect();
            let fits = frames.iter().all(|frame| usize::from(frame.chain) < chains);
            if fits { Ok((pack.entry, frames)) } else { Err(MISFIT) }
        };
        self.0.iter().map(all).collect()
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.0.iter().map(|pack| size_of::<PackInBlock>() + pack.frames.heap_bytes()).sum()
    }
}

/// The frames of a pack, in their order.
#[derive(Debug)]
enum Frames {
    /// One after the other, without gaps, in numbers and in the pack: nearly always.
    Dense { number: u32, offset: u32, words: Box<[u64]> },
    /// Anything else.
    Listed(Box<[FrameRecord]>),
}

/// Frames that [`Frames::Dense`] takes: their lengths are added up for each lookup.
const DENSE: usize = 512;
/// Bits of a length in a word.
const LENGTH: u32 = 25;
/// Bits of a chain's number in a word.
const CHAIN: u32 = 6;
const _: () = assert!(limits::FRAME_RAW < 1 << LENGTH && limits::FRAME_ENCODED < 1 << LENGTH);

/// What of a frame does not follow from the frames before it, in one number: the applied steps, its chain, its lengths.
fn word(frame: &FrameRecord) -> Option<u64> {
    let applied = u8::try_from(frame.applied).ok()?;
    if frame.chain >= 1 << CHAIN {
        return None;
    }
    let high = (u64::from(applied) << CHAIN) | u64::from(frame.chain);
    Some((high << (2 * LENGTH)) | (u64::from(frame.encoded) << LENGTH) | u64::from(frame.raw))
}

/// The frame of such a number.
fn of_word(word: u64, number: u32, offset: u32, kind: FrameKind) -> FrameRecord {
    let length = |at: u32| (word >> at) as u32 & ((1 << LENGTH) - 1);
    let (encoded, high) = (length(LENGTH), (word >> (2 * LENGTH)) as u32);
    let (chain, applied) = (high as u16 & ((1 << CHAIN) - 1), high >> CHAIN);
    let stored = kind.stored(encoded as usize) as u32;
    FrameRecord { number, kind, chain, applied, offset, stored, encoded, raw: length(0) }
}

impl Frames {
    fn parse(r: &mut Reader<'_>, pack: &PackEntry) -> Result<Self, Malformed> {
        let count = r.count(RECORD, limits::FRAMES)?;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let frame = FrameRecord::decode(r)?;
            if frame.kind != pack.kind || u64::from(frame.offset) + u64::from(frame.stored) > pack.len {
                return Err(MISFIT);
            }
            frames.push(frame);
        }
        let dense = Self::dense(&frames);
        Ok(dense.unwrap_or_else(|| Self::Listed(frames.into())))
    }

    fn dense(frames: &[FrameRecord]) -> Option<Self> {
        let FrameRecord { number, offset, .. } = *frames.first()?;
        let follows = |two: &[FrameRecord]| {
            Some(two[1].number) == two[0].number.checked_add(1) && two[1].offset == two[0].offset + two[0].stored
        };
        if frames.len() > DENSE || !frames.windows(2).all(follows) {
            return None;
        }
        Some(Self::Dense { number, offset, words: frames.iter().map(word).collect::<Option<_>>()? })
    }

    fn len(&self) -> usize {
        match self {
            Self::Dense { words, .. } => words.len(),
            Self::Listed(frames) => frames.len(),
        }
    }

    fn get(&self, place: usize, kind: FrameKind) -> Option<FrameRecord> {
        self.all(kind).nth(place)
    }

    fn all(&self, kind: FrameKind) -> impl Iterator<Item = FrameRecord> {
        let (listed, words, mut number, mut offset): (&[_], &[_], _, _) = match self {
            Self::Dense { number, offset, words } => (&[], words, *number, *offset),
            Self::Listed(frames) => (frames, &[], 0, 0),
        };
        let dense = words.iter().map(move |word| {
            let frame = of_word(*word, number, offset, kind);
            (number, offset) = (number.wrapping_add(1), offset.wrapping_add(frame.stored));
            frame
        });
        listed.iter().copied().chain(dense)
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Dense { words, .. } => size_of_val(&**words),
            Self::Listed(frames) => size_of_val(&**frames),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(frames: &[FrameRecord]) -> Vec<u8> {
        let entry = PackEntry { id: PackId([7; 32]), len: 1 << 30, epoch: 3, salt: [9; SALT], kind: FrameKind::Data };
        let mut bytes = vec![1, 0];
        encode_pack(&entry, frames, &mut bytes);
        bytes
    }

    /// Frames one after the other, of all kinds of lengths.
    fn in_a_row(count: u32) -> Vec<FrameRecord> {
        let mut offset = 48;
        let frame = |number| {
            let (encoded, raw) = (number * 977 % limits::FRAME_ENCODED as u32 + 1, limits::FRAME_RAW as u32 - number);
            let stored = FrameKind::Data.stored(encoded as usize) as u32;
            let (chain, applied) = ((number % 64) as u16, number % 256);
            let number = number + 5;
            let frame = FrameRecord { number, kind: FrameKind::Data, chain, applied, offset, stored, encoded, raw };
            offset += stored;
            frame
        };
        (0..count).map(frame).collect()
    }

    #[test]
    fn frames_are_what_was_encoded_whether_they_are_packed_or_not() {
        let mut shapes = Vec::new();
        for count in [0, 1, 2, 511, 512] {
            shapes.push((in_a_row(count), count > 0));
        }
        shapes.push((in_a_row(513), false));
        let change = |change: fn(&mut FrameRecord)| {
            let mut frames = in_a_row(3);
            change(&mut frames[1]);
            (frames, false)
        };
        shapes.extend([
            change(|frame| frame.number += 1),
            change(|frame| frame.offset += 1),
            change(|frame| frame.chain = 64),
            change(|frame| frame.applied = 256),
        ]);
        for (frames, dense) in shapes {
            let block = PackBlock::parse(&pack(&frames), 100).expect("it parses");
            assert_eq!(matches!(block.0[0].frames, Frames::Dense { .. }), dense, "{} frames", frames.len());
            for (number, frame) in (100..).zip(&frames) {
                assert_eq!(block.frame(number, 65).map(|(_, frame)| frame), Ok(*frame));
            }
            assert!(block.frame(99, 65).is_err() && block.frame(100 + frames.len() as u32, 65).is_err());
            assert_eq!(block.packs(65).map(|mut packs| packs.remove(0).1), Ok(frames));
        }
    }

    #[test]
    fn a_chain_that_is_not_there_and_a_frame_outside_its_pack_are_refused() {
        let block = PackBlock::parse(&pack(&in_a_row(3)), 0).expect("it parses");
        assert!(block.frame(1, 2).is_ok());
        assert_eq!(block.frame(2, 2), Err(MISFIT));
        assert_eq!(block.packs(2), Err(MISFIT));
        let mut outside = in_a_row(3);
        outside[2].offset = 1 << 30;
        assert!(PackBlock::parse(&pack(&outside), 0).is_err_and(|error| error == MISFIT));
    }
}
