//! Writing and reading records.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::cache::Clear;
use super::format::{
    FIRST_RECORD, Kind, MAX_DATA, MAX_META, PAGE, Position, RECORD_HEADER, RecordHeader, SegmentHeader,
};
use super::segment::Segment;
use super::{Appended, DataRef, Log, LogError, Urgency};

/// Zeros written ahead in a segment whose blocks are allocated but were never written: turning those into written blocks costs a journal
/// transaction in the next fdatasync, so it is done for many records at once. Records longer than this don't gain by it.
const AHEAD: u64 = 256 << 10;
/// A scratch buffer that one long record made bigger than this is not kept.
const SCRATCH: usize = 2 << 20;

/// The segment that is written to. Whoever holds its lock is the only writer.
pub(super) struct Active {
    pub segment: Arc<Segment>,
    /// Offset of the next record.
    pub end: u64,
    /// The next record's number. Never given twice, even if a write fails: it is the nonce.
    number: u64,
    /// Up to here the file holds records, then zeros. Behind it lie stale bytes if the file was used before.
    clean: u64,
    /// The file's blocks were written before.
    recycled: bool,
    /// The last record is a note of durability.
    noted: bool,
    /// Where records are put together, encrypted, and written from.
    scratch: Vec<u8>,
}

impl Active {
    /// Of a segment whose first two pages are written.
    pub fn new(segment: Arc<Segment>, recycled: bool) -> Self {
        let clean = (FIRST_RECORD + PAGE).min(segment.len);
        Self { segment, end: FIRST_RECORD, number: 1, clean, recycled, noted: false, scratch: Vec::new() }
    }

    /// Bytes of the first two pages of a new segment.
    pub fn first_pages(header: &SegmentHeader, len: u64) -> Vec<u8> {
        let mut pages = vec![0; (FIRST_RECORD + PAGE).min(len) as usize];
        let header = header.encode();
        pages[..header.len()].copy_from_slice(&header);
        pages
    }

    /// Up to where zeros must follow a record that ends at `end`.
    fn clean_after(&self, end: u64) -> u64 {
        let needed = end + RECORD_HEADER as u64;
        if needed <= self.clean {
            return end;
        }
        let step = if self.recycled || end - self.end > AHEAD { PAGE } else { AHEAD };
        needed.next_multiple_of(step).min(self.segment.len)
    }

    fn put_together(&mut self, kind: Kind, meta: &[u8], data: &[u8]) -> u64 {
        let header = RecordHeader {
            number: self.number,
            durable: self.segment.durable(),
            meta_len: meta.len() as u32,
            data_len: data.len() as u32,
            kind,
        };
        self.number += 1;
        if self.scratch.capacity() > SCRATCH {
            self.scratch = Vec::new();
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(&[0; RECORD_HEADER]);
        self.scratch.extend_from_slice(meta);
        self.scratch.extend_from_slice(data);
        self.segment.header.seal_record(self.end, &header, &mut self.scratch);
        let end = self.end + header.stride();
        let clean = self.clean_after(end);
        self.scratch.resize((clean - self.end) as usize, 0);
        end
    }
}

impl Log {
    /// Appends one record. When it returns, the record and all before it are written to the file, but not yet synced: they survive
    /// the process, not the machine.
    ///
    /// # Errors
    /// [`LogError::Full`] and [`LogError::NoSpace`] leave the log as it was. [`LogError::Failed`] is for ever.
    /// [`LogError::TooLarge`] if meta is longer than [`MAX_META`], data than [`MAX_DATA`], or both than a segment.
    pub fn append(&self, meta: &[u8], data: Option<&[u8]>, urgency: Urgency) -> Result<Appended, LogError> {
        let data = data.unwrap_or_default();
        let stride = ((RECORD_HEADER + meta.len() + data.len()) as u64).next_multiple_of(super::format::ALIGN);
        if meta.len() > MAX_META || data.len() > MAX_DATA || FIRST_RECORD + stride > self.options.segment_bytes {
            return Err(LogError::TooLarge { meta: meta.len(), data: data.len() });
        }
        let mut active = self.lock_active();
        self.syncing.check()?;
        self.make_room(&mut active, stride, urgency)?;
        let offset = self.write(&mut active, Kind::Operation, meta, data)?;
        let segment = active.segment.number();
        let len = data.len() as u32;
        Ok(Appended { segment, offset, data: (len > 0).then_some(DataRef { segment, offset, start: 0, len }) })
    }

    /// Whether a record of `meta` and `data` bytes would wait for the next segment to begin, which takes fdatasyncs.
    /// Only a guess when others append too; never waits.
    pub fn would_wait(&self, meta: usize, data: usize) -> bool {
        let stride = (RECORD_HEADER + meta + data) as u64 + super::format::ALIGN;
        self.left.load(Ordering::Relaxed) < stride
    }

    /// Begins the next segment if such a record doesn't fit into the active one, so that appending it won't wait.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn prepare(&self, meta: usize, data: usize, urgency: Urgency) -> Result<(), LogError> {
        let stride = ((RECORD_HEADER + meta + data) as u64).next_multiple_of(super::format::ALIGN);
        if self.begins_next(&self.lock_active(), stride, urgency) {
            // Meanwhile the segment can take short records; little is left to sync then under its lock.
            self.sync()?;
        }
        let mut active = self.lock_active();
        self.syncing.check()?;
        self.make_room(&mut active, stride, urgency)
    }

    /// Reads `r.len` bytes of data into `out`, which has just that length. Needs no lock against appends.
    ///
    /// # Errors
    /// [`LogError::Damaged`] if the record isn't what was written, [`LogError::Released`], [`LogError::Reference`] if it has no such bytes.
    pub fn read(&self, r: DataRef, out: &mut [u8]) -> Result<(), LogError> {
        if out.len() != r.len as usize {
            return Err(wrong(r, out.len()));
        }
        self.read_with(r, |bytes| out.copy_from_slice(bytes))
    }

    /// Appends `r.len` bytes of data to `out`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_onto(&self, r: DataRef, out: &mut Vec<u8>) -> Result<(), LogError> {
        self.read_with(r, |bytes| out.extend_from_slice(bytes))
    }

    fn read_with(&self, r: DataRef, take: impl FnOnce(&[u8])) -> Result<(), LogError> {
        let range = r.start as usize..r.start as usize + r.len as usize;
        let at = Position { segment: r.segment, offset: r.offset };
        if let Some(record) = self.cache.get(at) {
            take(record.data().get(range).ok_or_else(|| wrong(r, record.data().len()))?);
            return Ok(());
        }
        let segment = self.segment(r.segment)?;
        let mut buffer = self.cache.take_buffer();
        let header = segment.read_record(&self.disk, r.offset, &mut buffer)?;
        let record = Clear::new(buffer, RECORD_HEADER + header.meta_len as usize..header.len());
        let found = record.data().get(range).map(take);
        let found = found.ok_or_else(|| wrong(r, record.data().len()));
        if found.is_ok() && r.len < header.data_len {
            let data = RECORD_HEADER + header.meta_len as usize..header.len();
            let kept = record.into_buffer();
            let exact = kept[..header.len()].to_vec();
            self.cache.put_buffer(kept);
            self.cache.put(at, Arc::new(Clear::new(exact, data)));
        } else {
            self.cache.put_buffer(record.into_buffer());
        }
        found
    }

    /// Appends a note that all is durable, if the last record isn't one. The next call of [`tick`](Self::tick) syncs it.
    pub(super) fn note_durable(&self) -> Result<(), LogError> {
        let mut active = self.lock_active();
        let idle = active.segment.durable() == active.end && active.end > FIRST_RECORD;
        let fits = active.end + RECORD_HEADER as u64 <= active.segment.len;
        if idle && fits && !active.noted {
            self.write(&mut active, Kind::Note, &[], &[])?;
        }
        Ok(())
    }

    pub(super) fn lock_active(&self) -> MutexGuard<'_, Active> {
        // Fields are changed only after the write they stand for: a panic in between leaves them true.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one record, for which there is room, with one pwrite.
    fn write(&self, active: &mut Active, kind: Kind, meta: &[u8], data: &[u8]) -> Result<u64, LogError> {
        let offset = active.end;
        let end = active.put_together(kind, meta, data);
        if let Err((written, error)) = active.segment.file.write_counted(&active.scratch, offset) {
            return Err(self.undo(active, offset + written as u64 >= end, error));
        }
        active.clean = active.clean.max(offset + active.scratch.len() as u64);
        active.end = end;
        self.left.store(active.segment.len - end, Ordering::Relaxed);
        active.noted = kind == Kind::Note;
        Ok(offset)
    }

    /// Makes sure that nothing of a record whose write failed is ever taken for one.
    ///
    /// Where a full disk takes no zeros either, as one that copies on write, a record that is not `whole` stays: it can't be
    /// verified, so it is no record, and the next one is written over it.
    fn undo(&self, active: &mut Active, whole: bool, error: std::io::Error) -> LogError {
        let number = active.segment.number();
        let until = active.clean.max(active.end + RECORD_HEADER as u64).min(active.segment.len);
        let zeros = vec![0; (until - active.end) as usize];
        let undone = active.segment.file.write(&zeros, active.end).is_ok();
        if !undone {
            (active.clean, active.recycled) = (active.end, true);
        }
        if (undone || !whole) && super::error::is_no_space(&error) {
            return LogError::NoSpace { operation: "append to", segment: number, source: error };
        }
        self.syncing.fail("write to", number, &error)
    }
}

/// The record that `r` names has `data` bytes of data, or the caller wants so many, and `r` doesn't fit that.
fn wrong(r: DataRef, data: usize) -> LogError {
    let start = u64::from(r.start);
    LogError::Reference {
        segment: r.segment,
        offset: r.offset,
        start,
        end: start + u64::from(r.len),
        data: data as u64,
    }
}
