//! Finds chunks: the live index segments of a volume, and a cache of their blocks.

mod block;
mod cache;
mod merge;
mod packs;
mod root;
mod segment;
mod writer;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axiomfs_api::Seal;

pub(crate) use block::Row;
use block::{ChunkBlock, Filter};
use cache::Block;
pub(crate) use cache::IndexCache;
#[cfg(test)]
pub(crate) use merge::write_segment_within;
pub(crate) use merge::{NewPack, write_segment};
pub(crate) use packs::PackEntry;
use packs::{PackBlock, ROW_WITHOUT_FRAME};
use root::{Place, Root};
pub use segment::SegmentRef;
use segment::{BlockKind, Segment, WHOLE_SEGMENT, block_number};

use crate::error::{InObject, RepositoryError};
use crate::frame::FrameRecord;
use crate::ids::{ChunkId, VolumeId};
use crate::keyring::Keyring;
use crate::near::Source;
use crate::pack::Chain;

/// A segment of up to this is read by one request where requests are dear.
const WHOLE: u64 = 2 << 20;

/// One place of a chunk, with all that reading it takes.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub(crate) pack: PackEntry,
    pub(crate) frame: FrameRecord,
    pub(crate) chain: Chain,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// The live segments, newest first.
pub(crate) struct Index {
    source: Source,
    seal: Arc<dyn Seal>,
    keyring: Arc<Keyring>,
    volume: VolumeId,
    segments: RwLock<Arc<[Arc<Segment>]>>,
    /// The segment written last, which will soon be live.
    prepared: Mutex<Option<Arc<Segment>>>,
    cache: Arc<IndexCache>,
    /// Segments of up to this many bytes are read whole.
    whole: u64,
}

/// Whether a lookup may ask the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Io {
    Allowed,
    Never,
}

impl Index {
    pub(crate) fn new(
        source: Source,
        seal: Arc<dyn Seal>,
        keyring: Arc<Keyring>,
        volume: VolumeId,
        cache: Arc<IndexCache>,
    ) -> Self {
        let segments = RwLock::new(Vec::new().into());
        Self { source, seal, keyring, volume, segments, prepared: Mutex::default(), cache, whole: 0 }
    }

    /// For a store where each request costs a round trip: a small segment is read whole rather than block by block.
    pub(crate) fn far(mut self) -> Self {
        self.whole = WHOLE.min(self.cache.limit() as u64 / 4);
        self
    }

    /// Makes `refs` (newest first) the live segments; those known already keep what they have loaded.
    pub(crate) fn set_segments(&self, refs: &[SegmentRef]) -> Result<(), RepositoryError> {
        let old = self.segments();
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let new: Vec<Arc<Segment>> = refs
            .iter()
            .map(|reference| match old.iter().chain(&prepared).find(|s| s.reference == *reference) {
                Some(known) => Ok(known.clone()),
                None => Segment::new(&self.keyring, self.seal.as_ref(), self.volume, *reference).map(Arc::new),
            })
            .collect::<Result<_, _>>()?;
        *self.segments.write().unwrap_or_else(PoisonError::into_inner) = new.into();
        Ok(())
    }

    /// Keeps what was just written of a segment, so that it need not be read back: its root, and its filters as far as they fit.
    fn prepare(&self, reference: SegmentRef, root: Root, filters: Vec<Filter>) -> Result<(), RepositoryError> {
        let segment = Segment::new(&self.keyring, self.seal.as_ref(), self.volume, reference)?;
        segment.set_root(root);
        for (number, filter) in (0..).zip(filters) {
            let size = filter.as_bytes().len();
            self.cache.put((reference.id, BlockKind::Filter, number), Block::Filter(Arc::new(filter)), size);
        }
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(segment));
        Ok(())
    }

    /// The chains that frames of the live segments went through. Reads the roots that are not loaded, or, with [`Io::Never`], passes them over.
    pub(crate) fn chains(&self, io: Io) -> Result<Vec<Chain>, RepositoryError> {
        let mut chains = Vec::new();
        for segment in self.segments().iter() {
            let root = match io {
                Io::Allowed => Some(segment.root(&self.source)?),
                Io::Never => segment.root_cached(),
            };
            chains.extend(root.into_iter().flat_map(|root| root.chains.iter().cloned()));
        }
        Ok(chains)
    }

    pub(crate) fn refs(&self) -> Vec<SegmentRef> {
        self.segments().iter().map(|s| s.reference).collect()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.segments().iter().map(|s| s.reference.rows).sum()
    }

    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// All places of `id`, the preferred first. With [`Io::Never`] `None` if that is not known without asking the store.
    /// A damaged segment hides only what nothing else locates.
    pub(crate) fn locate(&self, id: &ChunkId, io: Io) -> Result<Option<Vec<Located>>, RepositoryError> {
        let (mut io, mut found, mut failed, mut unknown) = (io, Vec::new(), None, false);
        for segment in self.segments().iter() {
            match self.locate_in(segment, id, io, &mut found) {
                Ok(true) => {}
                Ok(false) => unknown = true,
                Err(error) if error.is_damage() => drop(failed.get_or_insert(error)),
                Err(error) => {
                    // The store can't be reached: each further segment would be waited for as long. What is in memory still counts.
                    (io, failed) = (Io::Never, Some(error));
                }
            }
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ if found.is_empty() && unknown => Ok(None),
            _ => Ok(Some(found)),
        }
    }

    /// False if the answer would need the store and may not.
    fn locate_in(
        &self,
        segment: &Segment,
        id: &ChunkId,
        io: Io,
        found: &mut Vec<Located>,
    ) -> Result<bool, RepositoryError> {
        let root = match (segment.root_cached(), io) {
            (Some(root), _) => root,
            (None, Io::Allowed) => segment.unless_damaged(WHOLE_SEGMENT, || {
                let whole = segment.reference.len <= self.whole;
                if whole { self.load_whole(segment) } else { segment.root(&self.source) }
            })?,
            (None, Io::Never) => return Ok(false),
        };
        for number in root.filters_of(id) {
            let Some(filter) = self.filter(segment, root, number, io)? else { return Ok(false) };
            let blocks = if filter.may_contain(id) { root.blocks_of(id, number) } else { 0..0 };
            for number in blocks {
                let Some(block) = self.chunks(segment, root, number, io)? else { return Ok(false) };
                for row in block.find(id) {
                    match self.frame(segment, root, &row, io)? {
                        Some(located) => found.push(located),
                        None => return Ok(false),
                    }
                }
            }
        }
        Ok(true)
    }

    /// The root, and into the cache all blocks. One that is damaged is left out: whoever needs it reads it again and gets the error.
    fn load_whole<'a>(&self, segment: &'a Segment) -> Result<&'a Arc<Root>, RepositoryError> {
        let (root, bytes) = segment.read_whole(&self.source)?;
        let of = |kind, number: usize, place| {
            let number = u32::try_from(number).ok()?;
            Some((segment.open_in(&bytes, kind, number, place)?, (segment.reference.id, kind, number)))
        };
        for (number, place) in root.filters.iter().enumerate() {
            let Some((bytes, key)) = of(BlockKind::Filter, number, *place) else { continue };
            let size = bytes.len();
            if let Ok(filter) = Filter::parse(bytes) {
                self.cache.put(key, Block::Filter(Arc::new(filter)), size);
            }
        }
        for (number, (first, place)) in root.pack_blocks.iter().enumerate() {
            let Some((bytes, key)) = of(BlockKind::Packs, number, *place) else { continue };
            if let Ok(block) = PackBlock::parse(&bytes, *first) {
                let size = block.heap_bytes();
                self.cache.put(key, Block::Packs(Arc::new(block)), size);
            }
        }
        for (number, (rows, place)) in (0..root.blocks()).filter_map(|number| Some((number, root.block(number)?))) {
            let Some((bytes, key)) = of(BlockKind::Chunks, number, place) else { continue };
            if let Ok(block) = ChunkBlock::parse(bytes, rows) {
                let size = block.heap_bytes();
                self.cache.put(key, Block::Chunks(Arc::new(block)), size);
            }
        }
        Ok(root)
    }

    fn filter(
        &self,
        segment: &Segment,
        root: &Root,
        number: usize,
        io: Io,
    ) -> Result<Option<Arc<Filter>>, RepositoryError> {
        let parse = |bytes: Vec<u8>| {
            let size = bytes.len();
            Ok((Block::Filter(Arc::new(Filter::parse(bytes)?)), size))
        };
        Ok(match self.block(segment, BlockKind::Filter, number, root.filters[number], io, parse)? {
            Some(Block::Filter(filter)) => Some(filter),
            _ => None,
        })
    }

    fn chunks(
        &self,
        segment: &Segment,
        root: &Root,
        number: usize,
        io: Io,
    ) -> Result<Option<Arc<ChunkBlock>>, RepositoryError> {
        let (rows, place) = root.block(number).expect("the caller found it in the root");
        let parse = |bytes: Vec<u8>| {
            let block = ChunkBlock::parse(bytes, rows)?;
            let size = block.heap_bytes();
            Ok((Block::Chunks(Arc::new(block)), size))
        };
        Ok(match self.block(segment, BlockKind::Chunks, number, place, io, parse)? {
            Some(Block::Chunks(block)) => Some(block),
            _ => None,
        })
    }

    fn packs(
        &self,
        segment: &Segment,
        root: &Root,
        number: usize,
        io: Io,
    ) -> Result<Option<Arc<PackBlock>>, RepositoryError> {
        let (first, place) = root.pack_blocks[number];
        let parse = |bytes: Vec<u8>| {
            let block = PackBlock::parse(&bytes, first)?;
            let size = block.heap_bytes();
            Ok((Block::Packs(Arc::new(block)), size))
        };
        Ok(match self.block(segment, BlockKind::Packs, number, place, io, parse)? {
            Some(Block::Packs(block)) => Some(block),
            _ => None,
        })
    }

    fn frame(&self, segment: &Segment, root: &Root, row: &Row, io: Io) -> Result<Option<Located>, RepositoryError> {
        let place = root.pack_blocks.partition_point(|(first, _)| *first <= row.frame).checked_sub(1);
        let place = place.ok_or(ROW_WITHOUT_FRAME).in_object(&segment.name)?;
        let Some(block) = self.packs(segment, root, place, io)? else { return Ok(None) };
        let (pack, frame) = block.frame(row.frame, root.chains.len()).in_object(&segment.name)?;
        if row.offset.checked_add(row.len).is_none_or(|end| end > frame.raw) {
            return Err(RepositoryError::corrupt(&segment.name, "a row passes the end of its frame"));
        }
        let chain = root.chains[usize::from(frame.chain)].clone();
        Ok(Some(Located { pack, frame, chain, offset: row.offset, len: row.len }))
    }

    /// A block from the cache, or read, parsed and cached.
    fn block(
        &self,
        segment: &Segment,
        kind: BlockKind,
        number: usize,
        place: Place,
        io: Io,
        parse: impl FnOnce(Vec<u8>) -> Result<(Block, usize), crate::codec::Malformed>,
    ) -> Result<Option<Block>, RepositoryError> {
        let number = block_number(number);
        let key = (segment.reference.id, kind, number);
        if let Some(block) = self.cache.get(&key) {
            return Ok(Some(block));
        }
        if io == Io::Never {
            return Ok(None);
        }
        let (block, size) = segment.unless_damaged((kind, number), || {
            let bytes = segment.read(&self.source, kind, number, place)?;
            parse(bytes).in_object(segment.block_name(kind, number))
        })?;
        self.cache.put(key, block.clone(), size);
        Ok(Some(block))
    }

    pub(crate) fn volume(&self) -> VolumeId {
        self.volume
    }

    fn segments(&self) -> Arc<[Arc<Segment>]> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A pack's frames, as tests make them up.
#[cfg(test)]
pub(crate) type TestFrames = Vec<(FrameRecord, Vec<crate::frame::Member>)>;

#[cfg(test)]
pub(crate) fn decode_block_for_tests(bytes: &[u8]) {
    // A root of version 2 without chains, too.
    for bytes in [bytes, &[&[0xff, 0xff, 2, 0, 0, 0], bytes].concat()] {
        let Ok(root) = Root::decode(bytes, 1 << 20) else { continue };
        for number in 0..=root.blocks() {
            assert_eq!(root.block(number).is_some(), number < root.blocks());
        }
        let id = ChunkId([9; 32]);
        for filter in root.filters_of(&id) {
            assert!(filter < root.filters.len() && root.blocks_of(&id, filter).all(|block| block < root.blocks()));
        }
    }
    if let Ok(block) = PackBlock::parse(bytes, 7) {
        drop((block.packs(3), block.frame(9, 3)));
    }
    if let Ok(filter) = Filter::parse(bytes.to_vec()) {
        filter.may_contain(&ChunkId([9; 32]));
    }
    if let Ok(block) = ChunkBlock::parse(bytes.to_vec(), bytes.len() / 44) {
        assert_eq!(block.rows().count() * 44, bytes.len());
    }
}
