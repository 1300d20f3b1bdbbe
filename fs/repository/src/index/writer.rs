//! Writing an index segment (format.md §6).

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use axiomfs_api::Seal;

use super::block::{Filter, ROW, Row};
use super::packs::{PackEntry, encode_pack};
use super::root::{FILTERED, Place, ROWS, Root, VERSION};
use super::segment::{BlockKind, END, HEADER, MAGIC, SegmentRef, SegmentSeal, block_number};
use crate::codec::Put;
use crate::crypto::{SALT, random};
use crate::error::RepositoryError;
use crate::frame::FrameRecord;
use crate::ids::{ChunkId, SegmentId, VolumeId};
use crate::keyring::Keyring;
use crate::pack::{Chain, intern};
use crate::temporary::Temporary;

const PACK_BLOCK: usize = 1 << 10;
/// What errors call a root.
pub(crate) const ROOT: &str = "Root of an index segment";

/// Writes a segment into a local file: first all packs, then all rows in ascending order. Memory stays small whatever its size.
pub(crate) struct SegmentWriter {
    seal: SegmentSeal,
    epoch: u32,
    salt: [u8; SALT],
    out: BufWriter<File>,
    temporary: Temporary,
    offset: u64,
    root: Root,
    packs: Vec<u8>,
    packs_in_block: u16,
    block_first_frame: u32,
    rows: Vec<u8>,
    first: ChunkId,
    last: ChunkId,
    filtered: Vec<ChunkId>,
    filters: Vec<Filter>,
}

/// A complete segment in a local file, and what its first reader would have to fetch.
pub(crate) struct Written {
    pub(crate) reference: SegmentRef,
    pub(crate) path: PathBuf,
    pub(crate) root: Root,
    pub(crate) filters: Vec<Filter>,
}

impl SegmentWriter {
    pub(crate) fn create(
        dir: &Path,
        keyring: &Keyring,
        seal: &dyn Seal,
        volume: VolumeId,
    ) -> Result<Self, RepositoryError> {
        let (id, salt, epoch) = (SegmentId(random()?), random()?, keyring.current_epoch().number);
        let path = dir.join(format!("{id}.index"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| RepositoryError::staging("create", &path, e))?;
        let mut header = Vec::with_capacity(HEADER);
        header.put(MAGIC);
        header.put_u16(VERSION);
        header.put_u16(0);
        header.put_u32(epoch);
        header.put_u32(0);
        header.put(&salt);
        let mut writer = Self {
            seal: SegmentSeal::new(keyring, seal, volume, id, epoch, &salt)?,
            epoch,
            salt,
            out: BufWriter::with_capacity(256 << 10, file),
            temporary: Temporary::new(path),
            offset: 0,
            root: Root::new(),
            packs: Vec::new(),
            packs_in_block: 0,
            block_first_frame: 0,
            rows: Vec::new(),
            first: ChunkId([0; 32]),
            last: ChunkId([0; 32]),
            filtered: Vec::new(),
            filters: Vec::new(),
        };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Adds a pack and returns the number, through the segment, of its first frame.
    pub(crate) fn pack(
        &mut self,
        entry: &PackEntry,
        chains: &[Chain],
        frames: &[FrameRecord],
    ) -> Result<u32, RepositoryError> {
        let first = self.root.frames;
        let count = u32::try_from(frames.len()).ok().and_then(|n| first.checked_add(n));
        let Some(next) = count.filter(|_| self.root.chains.len() + chains.len() < crate::limits::CHAINS) else {
            return Err(RepositoryError::TooLarge {
                what: "Index segment",
                len: u64::from(first),
                limit: u32::MAX.into(),
            });
        };
        let places: Vec<u16> = chains.iter().map(|chain| intern(&mut self.root.chains, chain)).collect();
        let frames: Vec<FrameRecord> =
            frames.iter().map(|f| FrameRecord { chain: places[usize::from(f.chain)], ..*f }).collect();
        encode_pack(entry, &frames, &mut self.packs);
        self.packs_in_block += 1;
        self.root.frames = next;
        self.root.packs += 1;
        if self.packs.len() > PACK_BLOCK {
            self.end_pack_block()?;
        }
        Ok(first)
    }

    /// Adds a row; ids must not descend: nobody would read such a segment.
    pub(crate) fn row(&mut self, row: &Row) -> Result<(), RepositoryError> {
        if self.last > row.id {
            let reason = "rows of the segments that are put together do not ascend";
            return Err(RepositoryError::corrupt(self.temporary.path().display(), reason));
        }
        self.last = row.id;
        if self.root.rows == 0 {
            // Chunk blocks lie one after the other: no pack block between them.
            self.end_pack_block()?;
        }
        if self.rows.is_empty() {
            self.first = row.id;
        }
        row.encode(&mut self.rows);
        self.filtered.push(row.id);
        self.root.rows += 1;
        if self.rows.len() == usize::from(ROWS) * ROW {
            self.end_chunk_block()?;
        }
        Ok(())
    }

    /// Completes and fsyncs the file.
    ///
    /// # Errors
    /// `TooLarge`, of a [`ROOT`], if its root is longer than `most_root`; the disk's.
    pub(crate) fn finish(mut self, most_root: u64) -> Result<Written, RepositoryError> {
        self.end_pack_block()?;
        self.end_chunk_block()?;
        self.end_filter()?;
        let mut bytes = self.root.encode();
        self.seal.seal(BlockKind::Root, 0, &mut bytes);
        if bytes.len() as u64 > most_root {
            return Err(RepositoryError::TooLarge { what: ROOT, len: bytes.len() as u64, limit: most_root });
        }
        let (root_offset, root_len) = (self.offset, bytes.len());
        bytes.put_u64(root_offset);
        bytes.put_len32(root_len);
        bytes.put(END);
        self.write(&bytes)?;
        let failed = |e| RepositoryError::staging("write", self.temporary.path(), e);
        self.out.flush().map_err(failed)?;
        self.out.get_ref().sync_all().map_err(failed)?;
        let reference = SegmentRef {
            id: self.seal.id,
            len: self.offset,
            root_offset,
            root_len: u32::try_from(root_len).expect("bounded by the limit of rows"),
            epoch: self.epoch,
            salt: self.salt,
            rows: self.root.rows,
        };
        self.temporary.keep();
        let path = self.temporary.path().to_owned();
        Ok(Written { reference, path, root: self.root, filters: self.filters })
    }

    fn end_pack_block(&mut self) -> Result<(), RepositoryError> {
        if self.packs_in_block == 0 {
            return Ok(());
        }
        let mut block = self.packs_in_block.to_le_bytes().to_vec();
        block.append(&mut self.packs);
        let number = self.root.pack_blocks.len();
        let place = self.block(BlockKind::Packs, number, block)?;
        self.root.pack_blocks.push((self.block_first_frame, place));
        (self.packs_in_block, self.block_first_frame) = (0, self.root.frames);
        Ok(())
    }

    fn end_chunk_block(&mut self) -> Result<(), RepositoryError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let place = self.block(BlockKind::Chunks, self.root.blocks(), rows)?;
        self.root.push_block(&self.first, place.offset);
        if self.root.blocks().is_multiple_of(FILTERED.into()) {
            self.end_filter()?;
        }
        Ok(())
    }

    fn end_filter(&mut self) -> Result<(), RepositoryError> {
        if self.filtered.is_empty() {
            return Ok(());
        }
        let mut filter = Filter::for_rows(self.filtered.len());
        for id in self.filtered.drain(..) {
            filter.insert(&id);
        }
        let number = self.root.filters.len();
        let place = self.block(BlockKind::Filter, number, filter.as_bytes().to_vec())?;
        self.root.filters.push(place);
        self.filters.push(filter);
        Ok(())
    }

    fn block(&mut self, kind: BlockKind, number: usize, mut block: Vec<u8>) -> Result<Place, RepositoryError> {
        self.seal.seal(kind, block_number(number), &mut block);
        let len = u32::try_from(block.len()).expect("blocks are bounded");
        let place = Place { offset: self.offset, len };
        self.write(&block)?;
        Ok(place)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.out.write_all(bytes).map_err(|e| RepositoryError::staging("write", self.temporary.path(), e))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
