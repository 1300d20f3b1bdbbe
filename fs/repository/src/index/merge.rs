//! Which segments are put together, and how (format.md §6).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::ChunkBlock;
use super::packs::PackBlock;
use super::root::{ROWS, Root};
use super::segment::{BlockKind, Segment, block_number};
use super::writer::{ROOT, SegmentWriter, Written};
use super::{Index, Located, PackEntry, Row, SegmentRef};
use crate::error::{InObject, RepositoryError};
use crate::frame::{FrameRecord, Member};
use crate::ids::ChunkId;
use crate::limits;
use crate::pack::{Chain, intern};

/// More live segments than this are merged, where that is cheap.
const USUAL_SEGMENTS: usize = 8;
/// More than this are merged at any price.
const MOST_SEGMENTS: usize = 16;
/// Rows that merging copies are cheap up to so many for each new one,
const CHEAP_RATIO: u64 = 16;
/// and so many whatever is new (0.7 MB).
const CHEAP_ROWS: u64 = 16_384;
/// Segments are not merged where their roots together are longer: a reader takes none over `limits::INDEX_ROOT`.
const MOST_ROOT: u64 = limits::INDEX_ROOT / 4 * 3;

/// An uploaded pack that the new segment is to locate.
pub(crate) struct NewPack<'a> {
    pub(crate) entry: PackEntry,
    pub(crate) chains: &'a [Chain],
    pub(crate) frames: &'a [(FrameRecord, Vec<Member>)],
}

/// A new segment's file, its reference, and the list of live segments with it, newest first.
type New = (PathBuf, SegmentRef, Vec<SegmentRef>);

/// Why a segment was not written.
enum Failed {
    /// The live segment at this place can't be copied.
    Source(usize, RepositoryError),
    Other(RepositoryError),
}

impl From<RepositoryError> for Failed {
    fn from(error: RepositoryError) -> Self {
        Self::Other(error)
    }
}

impl From<Failed> for RepositoryError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Source(_, error) | Failed::Other(error) => error,
        }
    }
}

impl Failed {
    /// What went wrong while the live segment at `place` was read. A store that can't be reached says nothing of the segment.
    fn of(place: usize, error: RepositoryError) -> Self {
        if error.is_damage() { Self::Source(place, error) } else { Self::Other(error) }
    }
}

/// Writes the segment for `packs` into `dir`, merged with small live ones if there are too many. One that is damaged stays as it is: it
/// must not keep back what comes after it, and what is sound in it is found as before.
pub(crate) fn write_segment(
    index: &Index,
    dir: &Path,
    packs: &[NewPack<'_>],
    borrowed: &[(ChunkId, Located)],
) -> Result<New, RepositoryError> {
    write_segment_within(limits::INDEX_ROOT, index, dir, packs, borrowed)
}

/// The same; no segment's root is longer than `most_root`.
pub(crate) fn write_segment_within(
    most_root: u64,
    index: &Index,
    dir: &Path,
    packs: &[NewPack<'_>],
    borrowed: &[(ChunkId, Located)],
) -> Result<New, RepositoryError> {
    let live = index.segments();
    let members: u64 = packs.iter().flat_map(|p| p.frames).map(|(_, members)| members.len() as u64).sum();
    let new_rows = members + borrowed.len() as u64;
    loop {
        // Those left alone don't count: they would have the others merged again with every commit.
        let sound: Vec<usize> = (0..live.len()).filter(|place| !live[*place].is_left_alone()).collect();
        let refs: Vec<SegmentRef> = sound.iter().map(|place| live[*place].reference).collect();
        let merged: Vec<usize> = choose(&refs, new_rows).into_iter().map(|place| sound[place]).collect();
        match write_merged(most_root, index, &live, dir, packs, borrowed, &merged) {
            Err(Failed::Source(place, error)) => {
                tracing::warn!(%error, "an index segment is damaged, so it is not merged with others");
                live[place].leave_alone();
            }
            // What merging makes of a root was estimated. Rather one segment more than none.
            Err(Failed::Other(RepositoryError::TooLarge { what: ROOT, .. })) if !merged.is_empty() => {
                return Ok(write_merged(most_root, index, &live, dir, packs, borrowed, &[])?);
            }
            written => return Ok(written?),
        }
    }
}

/// The same, merged with those of the `live` segments at these places.
fn write_merged(
    most_root: u64,
    index: &Index,
    live: &[Arc<Segment>],
    dir: &Path,
    packs: &[NewPack<'_>],
    borrowed: &[(ChunkId, Located)],
    merged: &[usize],
) -> Result<New, Failed> {
    let mut writer = SegmentWriter::create(dir, &index.keyring, index.seal.as_ref(), index.volume)?;
    let mut rows = Vec::new();
    for pack in packs {
        let records: Vec<FrameRecord> = pack.frames.iter().map(|(record, _)| *record).collect();
        let first = writer.pack(&pack.entry, pack.chains, &records)?;
        for (frame, (_, members)) in (first..).zip(pack.frames) {
            let mut offset = 0;
            for (id, len) in members {
                rows.push(Row { id: *id, frame, offset, len: *len });
                offset += len;
            }
        }
    }
    add_borrowed(borrowed, &mut writer, &mut rows)?;
    rows.sort_unstable_by_key(|row| (row.id, row.frame));
    let mut streams = vec![Stream::new(rows)];
    for place in merged {
        let copied = copy_packs(index, &live[*place], &mut writer);
        streams.push(copied.map_err(|error| Failed::of(*place, error))?);
    }
    merge_rows(index, streams, &mut writer).map_err(|(stream, error)| match stream.checked_sub(1) {
        Some(source) => Failed::of(merged[source], error),
        None => Failed::Other(error),
    })?;
    let Written { reference, path, root, filters } = writer.finish(most_root)?;
    index.prepare(reference, root, filters)?;
    let kept = live.iter().enumerate().filter(|(place, _)| !merged.contains(place)).map(|(_, s)| s.reference);
    let refs = std::iter::once(reference).chain(kept).collect();
    Ok((path, reference, refs))
}

/// Adds the frames of chunks that are in packs of other volumes: each pack once, with those of its frames that are needed.
fn add_borrowed(
    borrowed: &[(ChunkId, Located)],
    writer: &mut SegmentWriter,
    rows: &mut Vec<Row>,
) -> Result<(), RepositoryError> {
    let mut places: Vec<&(ChunkId, Located)> = borrowed.iter().collect();
    places.sort_unstable_by_key(|(_, place)| (place.pack.id.0, place.frame.number));
    for of_pack in places.chunk_by(|(_, a), (_, b)| a.pack.id == b.pack.id) {
        let frames = || of_pack.chunk_by(|(_, a), (_, b)| a.frame.number == b.frame.number);
        let (mut chains, mut records) = (Vec::new(), Vec::new());
        for (_, place) in frames().map(|of_frame| of_frame[0]) {
            records.push(FrameRecord { chain: intern(&mut chains, &place.chain), ..place.frame });
        }
        let first = writer.pack(&of_pack[0].1.pack, &chains, &records)?;
        for (frame, of_frame) in (first..).zip(frames()) {
            let row = |(id, place): &&(ChunkId, Located)| Row { id: *id, frame, offset: place.offset, len: place.len };
            rows.extend(of_frame.iter().map(row));
        }
    }
    Ok(())
}

/// Places of the segments to merge with `new_rows` new ones: none while there are few; else the smallest, while the next is not much
/// larger than what is merged already. So a row is copied O(log n) times. A commit of few rows leaves large segments for one of many, so
/// that a small change seldom uploads half an index; where there are too many segments it takes what must be. None gets a root beyond
/// [`MOST_ROOT`] that way.
fn choose(live: &[SegmentRef], new_rows: u64) -> Vec<usize> {
    let count = live.len() + 1;
    if count <= USUAL_SEGMENTS {
        return Vec::new();
    }
    let least = if count > MOST_SEGMENTS { count - USUAL_SEGMENTS } else { 0 };
    let cheap = new_rows.saturating_mul(CHEAP_RATIO).max(CHEAP_ROWS);
    let mut by_size: Vec<usize> = (0..live.len()).collect();
    by_size.sort_by_key(|place| live[*place].rows);
    let (mut taken, mut copied, mut roots) = (0, 0_u64, 0);
    for place in &by_size {
        let rows = live[*place].rows;
        roots += root_len(&live[*place]);
        let much_larger = rows > copied.saturating_add(new_rows).saturating_mul(2);
        copied = copied.saturating_add(rows);
        if roots > MOST_ROOT || (taken >= least && (much_larger || copied > cheap)) {
            break;
        }
        taken += 1;
    }
    by_size.truncate(taken);
    by_size.sort_unstable();
    by_size
}

/// What a segment's root takes once it is written anew: an early one had larger blocks.
fn root_len(segment: &SegmentRef) -> u64 {
    u64::from(segment.root_len).max(segment.rows / u64::from(ROWS) * 8)
}

/// Rows of one source, block after block.
struct Stream {
    rows: std::vec::IntoIter<Row>,
    rest: Option<Rest>,
}

struct Rest {
    segment: Arc<Segment>,
    root: Arc<Root>,
    next_block: usize,
    first_frame: u32,
}

impl Stream {
    fn new(rows: Vec<Row>) -> Self {
        Self { rows: rows.into_iter(), rest: None }
    }

    fn next(&mut self, index: &Index) -> Result<Option<Row>, RepositoryError> {
        loop {
            if let Some(row) = self.rows.next() {
                return Ok(Some(row));
            }
            let Some(rest) = &mut self.rest else { return Ok(None) };
            let blocks = rest.segment.read_run(&index.source, &rest.root, rest.next_block)?;
            if blocks.is_empty() {
                return Ok(None);
            }
            let object = rest.segment.block_name(BlockKind::Chunks, block_number(rest.next_block));
            rest.next_block += blocks.len();
            let mut rows: Vec<Row> = blocks.iter().flat_map(ChunkBlock::rows).collect();
            for row in &mut rows {
                if row.frame >= rest.root.frames {
                    return Err(RepositoryError::corrupt(&object, super::ROW_WITHOUT_FRAME.0));
                }
                row.frame += rest.first_frame;
            }
            self.rows = rows.into_iter();
        }
    }
}

/// Copies a segment's packs and returns its rows, renumbered.
fn copy_packs(index: &Index, segment: &Arc<Segment>, writer: &mut SegmentWriter) -> Result<Stream, RepositoryError> {
    let root = segment.root(&index.source)?.clone();
    let mut first_frame = None;
    let mut copied = 0u64;
    for (number, (first, place)) in (0u32..).zip(&root.pack_blocks) {
        let bytes = segment.read(&index.source, BlockKind::Packs, number, *place)?;
        let packs = PackBlock::parse(&bytes, *first).and_then(|block| block.packs(root.chains.len()));
        for (entry, frames) in packs.in_object(segment.block_name(BlockKind::Packs, number))? {
            let first = writer.pack(&entry, &root.chains, &frames)?;
            first_frame.get_or_insert(first);
            copied += frames.len() as u64;
        }
    }
    if copied != u64::from(root.frames) {
        return Err(RepositoryError::corrupt(&segment.name, "it has another number of frames than its root says"));
    }
    let rest = Rest { segment: segment.clone(), root, next_block: 0, first_frame: first_frame.unwrap_or(0) };
    Ok(Stream { rows: Vec::new().into_iter(), rest: Some(rest) })
}

/// Ascending by id; of equal ids the one of the newer source first. An error comes with the place of the stream that it is about: where rows
/// don't ascend that is the one they come from, since the heap gives out the least of all.
fn merge_rows(
    index: &Index,
    mut streams: Vec<Stream>,
    writer: &mut SegmentWriter,
) -> Result<(), (usize, RepositoryError)> {
    let mut heads: Vec<Option<Row>> = Vec::with_capacity(streams.len());
    let mut heap = BinaryHeap::new();
    for (place, stream) in streams.iter_mut().enumerate() {
        let row = stream.next(index).map_err(|error| (place, error))?;
        heap.extend(row.map(|row| Reverse((row.id, place))));
        heads.push(row);
    }
    while let Some(Reverse((_, place))) = heap.pop() {
        let row = heads[place].take().expect("a source in the heap has a row");
        writer.row(&row).map_err(|error| (place, error))?;
        heads[place] = streams[place].next(index).map_err(|error| (place, error))?;
        heap.extend(heads[place].map(|row| Reverse((row.id, place))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SegmentId;

    fn segment(rows: u64) -> SegmentRef {
        SegmentRef { id: SegmentId([0; 16]), len: 0, root_offset: 0, root_len: 0, epoch: 1, salt: [0; 32], rows }
    }

    /// Commits of so many rows each: the live segments, rows that were copied for each new one, and the most that one commit copied for
    /// each of its own.
    fn commits(sizes: impl Iterator<Item = u64>) -> (Vec<SegmentRef>, u64, u64) {
        let (mut live, mut new, mut all, mut worst): (Vec<SegmentRef>, u64, u64, u64) = (Vec::new(), 0, 0, 0);
        for size in sizes {
            let merged = choose(&live, size);
            let copied: u64 = merged.iter().map(|place| live[*place].rows).sum();
            (new, all, worst) = (new + size, all + copied, worst.max(copied / size));
            let mut place = 0;
            live.retain(|_| {
                place += 1;
                !merged.contains(&(place - 1))
            });
            live.insert(0, segment(size + copied));
            assert!(live.len() <= MOST_SEGMENTS);
        }
        (live, all / new, worst)
    }

    #[test]
    fn many_commits_leave_few_segments_and_copy_each_row_seldom() {
        for size in [100, 1000, 100_000] {
            let (_, copies, _) = commits(std::iter::repeat_n(size, 10_000));
            assert!(copies < 14, "each of {size} was copied {copies} times");
        }
        let (_, copies, _) = commits((0..600).map(|number| 1 << (20 - number % 20)));
        assert!(copies < 14, "each was copied {copies} times");
    }

    #[test]
    fn a_small_commit_after_large_ones_copies_little() {
        let large = [125_000; 8];
        for small in [100, 1_500] {
            let (live, _, worst) = commits(large.into_iter().chain([small; 70]));
            assert!(worst * small <= CHEAP_ROWS.max(CHEAP_RATIO * small), "{worst} rows for each of {small}");
            assert!(live.len() <= MOST_SEGMENTS, "{}", live.len());
            // At last the small ones must be merged, and most of the large ones are left alone.
            let (live, _, worst) = commits(large.into_iter().chain([small; 300]));
            assert!(worst * small < 400_000, "{worst} rows for each of {small}");
            assert!(live.iter().filter(|one| one.rows == large[0]).count() >= 5, "{live:?}");
        }
        // A large one merges what small ones left.
        let (live, ..) = commits(large.into_iter().chain([1_500; 100]).chain([1_000_000]));
        assert!(live.len() <= 2, "{}", live.len());
    }

    #[test]
    fn no_segment_grows_beyond_what_a_reader_takes() {
        let with_root = |root_len: u64| SegmentRef { root_len: root_len as u32, ..segment(1000) };
        let part = MOST_ROOT / 4;
        let live: Vec<SegmentRef> =
            [1; 4].map(|_| with_root(3 * part)).into_iter().chain([1; 12].map(|_| with_root(part))).collect();
        let merged = choose(&live, 100);
        assert!(merged.iter().map(|place| root_len(&live[*place])).sum::<u64>() <= MOST_ROOT, "{merged:?}");
        assert_eq!(
            choose(&vec![with_root(MOST_ROOT); MOST_SEGMENTS], 100),
            [0],
            "more segments rather than one that can't be read"
        );
        // Of an early form, whose root was shorter for as many rows.
        let early = segment(MOST_ROOT / 8 * u64::from(ROWS));
        assert_eq!(choose(&vec![early; MOST_SEGMENTS], 100), [0]);
    }
}
