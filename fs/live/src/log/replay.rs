//! Reading what earlier mounts left.

use std::error::Error;

use super::disk::Disk;
use super::error::{Damage, LogError, is_no_space};
use super::format::{ALIGN, FIRST_RECORD, Kind, PAGE, RECORD_HEADER, RecordHeader};
use super::segment::Segment;
use super::{DataRef, Log, LogIdentity, LogOptions, Record, Replayed, SealerFactory, TailCut};

/// Bytes read at once.
const WINDOW: usize = 1 << 20;

/// What receives replayed records.
pub type Apply<'a> = dyn FnMut(Record<'_>) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl Log {
    /// Hands every record from `from_segment` on to `apply`, in order, and makes them durable before it returns. Changes nothing in the
    /// directory; bytes that nothing says are durable are written again as they are.
    ///
    /// # Errors
    /// [`LogError::Damaged`] with segment and offset if something that was durable can't be verified or is missing (records before it were
    /// applied); [`LogError::Foreign`], [`LogError::Version`]; what `apply` answered, a [`LogError`] as it is, or in [`LogError::Apply`].
    pub fn replay(
        options: &LogOptions,
        identity: &LogIdentity,
        sealer: &SealerFactory,
        from_segment: u64,
        apply: &mut Apply<'_>,
    ) -> Result<Replayed, LogError> {
        match Disk::open(&options.dir)? {
            Some(disk) => Self::replay_on(&disk, identity, sealer, from_segment, apply),
            None => Ok(Replayed::nothing(from_segment)),
        }
    }

    pub(super) fn replay_on(
        disk: &Disk,
        identity: &LogIdentity,
        sealer: &SealerFactory,
        from_segment: u64,
        apply: &mut Apply<'_>,
    ) -> Result<Replayed, LogError> {
        let mut replayed = Replayed::nothing(from_segment);
        let numbers: Vec<u64> = disk.list()?.segments.into_keys().collect();
        if let Some(last) = numbers.last() {
            replayed.next_segment = from_segment.max(last + 1);
        }
        let mut numbers = numbers.into_iter().filter(|number| *number >= from_segment).peekable();
        let mut segments: Vec<Segment> = Vec::new();
        let open = |number| Segment::open(disk, number, identity, sealer);
        let mut next = numbers.next().map(open).transpose()?;
        while let Some(segment) = next {
            if segments.is_empty() {
                check_first(&segment, from_segment)?;
            }
            next = numbers.next().map(open).transpose()?;
            let stated = next.as_ref().map(|next| stated_end(&segment, next)).transpose()?;
            if stated.is_none() {
                make_durable(disk, &segment)?;
            }
            let mut reader = Reader::new(disk, &segment);
            let end = reader.records(stated, &mut |offset, header, body| {
                replayed.records += 1;
                hand_out(&segment, offset, header, body, apply)
            })?;
            replayed.cut_tail = end.cut.map(|bytes| TailCut { segment: segment.number(), offset: end.offset, bytes });
            replayed.epoch = replayed.epoch.max(Some(segment.header.identity.epoch));
            replayed.segments += 1;
            segments.push(segment);
        }
        for segment in &segments {
            let synced = segment.file.sync();
            synced.map_err(|source| LogError::from_write("fdatasync", segment.number(), disk, source))?;
        }
        let synced = disk.sync_dir();
        synced.map_err(|source| LogError::Io { operation: "fsync", path: disk.dir().to_owned(), source })?;
        Ok(replayed)
    }
}

impl Replayed {
    fn nothing(from_segment: u64) -> Self {
        Self { next_segment: from_segment, records: 0, segments: 0, cut_tail: None, epoch: None }
    }
}

/// The end of the last segment of an earlier mount, as [`Log::replay`] found it.
pub(super) fn end_of_last(disk: &Disk, segment: &Segment) -> Result<u64, LogError> {
    Ok(Reader::new(disk, segment).records(None, &mut |_, _, _| Ok(()))?.offset)
}

/// Makes the last segment durable before anything in it is believed: the mount that wrote it may have ended because an fdatasync failed,
/// and then another one alone would succeed without doing anything.
fn make_durable(disk: &Disk, segment: &Segment) -> Result<(), LogError> {
    let (end, _, durable) = Reader::new(disk, segment).walk(u64::MAX, &mut |_, _, _| Ok(()))?;
    let written = segment.file.write_again(durable.max(FIRST_RECORD), end).and_then(|()| segment.file.sync());
    match written {
        // Only a filesystem that never writes in place needs room for it, and a full disk keeps nobody from mounting.
        Err(error) if is_no_space(&error) => segment.file.drop_cached(),
        done => done,
    }
    .map_err(|source| LogError::from_write("fdatasync", segment.number(), disk, source))
}

fn hand_out(
    of: &Segment,
    offset: u64,
    header: &RecordHeader,
    body: &[u8],
    apply: &mut Apply<'_>,
) -> Result<(), LogError> {
    let (segment, len) = (of.number(), header.data_len);
    let data = (len > 0).then_some(DataRef { segment, offset, start: 0, len });
    let record = Record {
        segment,
        meta: &body[..header.meta_len as usize],
        data_len: len,
        data,
        is_sealed: of.header.is_sealed(),
    };
    apply(record).map_err(|source| match source.downcast::<LogError>() {
        Ok(refused) => *refused,
        Err(source) => LogError::Apply { segment, offset, source },
    })
}

/// The first segment that is read must be the first there is to read.
fn check_first(first: &Segment, from_segment: u64) -> Result<(), LogError> {
    match first.header.previous {
        Some(named) if named.segment >= from_segment => {
            Err(LogError::Damaged { segment: named.segment, offset: 0, damage: Damage::Missing })
        }
        _ => Ok(()),
    }
}

/// The end of `segment` that the header of the next one states.
fn stated_end(segment: &Segment, next: &Segment) -> Result<u64, LogError> {
    match next.header.previous {
        Some(named) if named.segment == segment.number() => Ok(named.offset),
        Some(named) if named.segment > segment.number() => {
            Err(LogError::Damaged { segment: named.segment, offset: 0, damage: Damage::Missing })
        }
        // It was begun by somebody who didn't know this one.
        _ => Err(LogError::Damaged { segment: next.number(), offset: 0, damage: Damage::Header }),
    }
}

/// Where the records of a segment end.
struct End {
    offset: u64,
    /// Bytes of a torn tail behind it.
    cut: Option<u64>,
}

type Visit<'a> = dyn FnMut(u64, &RecordHeader, &[u8]) -> Result<(), LogError> + 'a;

/// Reads a segment's records in order.
struct Reader<'a> {
    disk: &'a Disk,
    segment: &'a Segment,
    /// Bytes of the file from `start` on. Records that were read are decrypted in it.
    window: Vec<u8>,
    start: u64,
}

impl<'a> Reader<'a> {
    fn new(disk: &'a Disk, segment: &'a Segment) -> Self {
        Self { disk, segment, window: Vec::new(), start: 0 }
    }

    /// Visits all records up to the `stated` end, or, in the last segment, up to the first position without one.
    fn records(&mut self, stated: Option<u64>, visit: &mut Visit<'_>) -> Result<End, LogError> {
        let damaged = |offset| LogError::Damaged { segment: self.segment.number(), offset, damage: Damage::Record };
        let (offset, number, _) = self.walk(stated.unwrap_or(u64::MAX), visit)?;
        match stated {
            Some(end) if end == offset => Ok(End { offset, cut: None }),
            Some(_) => Err(damaged(offset)),
            None => Ok(End { offset, cut: self.tail(offset, number)? }),
        }
    }

    /// Visits records up to `limit`, or to the first position without one: where that is, the number of the last record, and before
    /// which offset everything is durable, as that record says.
    fn walk(&mut self, limit: u64, visit: &mut Visit<'_>) -> Result<(u64, u64, u64), LogError> {
        let mut offset = FIRST_RECORD;
        let (mut number, mut durable) = (0, 0);
        while offset < limit {
            let Some(header) = self.record(offset, number)? else { break };
            if header.kind == Kind::Operation {
                let at = (offset - self.start) as usize;
                visit(offset, &header, &self.window[at + RECORD_HEADER..at + header.len()])?;
            }
            (number, durable) = (header.number, header.durable);
            offset += header.stride();
        }
        Ok((offset, number, durable))
    }

    /// Verifies and decrypts the record at `offset`, which must have a number above `number`. `None`: there is none.
    fn record(&mut self, offset: u64, number: u64) -> Result<Option<RecordHeader>, LogError> {
        let segment = self.segment;
        let Some(header) = self.header(offset)? else { return Ok(None) };
        if header.number <= number || header.number == u64::MAX {
            return Ok(None);
        }
        let Some(record) = self.bytes(offset, header.len())? else { return Ok(None) };
        if segment.header.open_record(offset, &header, record) {
            return Ok(Some(header));
        }
        self.window.clear();
        Ok(None)
    }

    /// The header at `offset`, if it looks like one.
    fn header(&mut self, offset: u64) -> Result<Option<RecordHeader>, LogError> {
        let segment = self.segment;
        let Some(bytes) = self.bytes(offset, RECORD_HEADER)? else { return Ok(None) };
        let mut head = [0; RECORD_HEADER];
        head.copy_from_slice(bytes);
        Ok(segment.header.parse_record(offset, &head))
    }

    /// Searches what lies behind the last good record. A record that knows of something durable behind `end` makes this damage.
    /// Otherwise returns the bytes in which there are traces of records.
    fn tail(&mut self, end: u64, number: u64) -> Result<Option<u64>, LogError> {
        self.window.clear();
        let mut behind = end + self.not_zero_behind(end)?;
        let mut at = end;
        while let Some(found) = self.find_mark(at)? {
            at = found + ALIGN;
            behind = behind.max(at);
            if let Some(header) = self.record(found, number)? {
                if header.durable > end {
                    let segment = self.segment.number();
                    return Err(LogError::Damaged { segment, offset: end, damage: Damage::Record });
                }
                at = found + header.stride();
                behind = behind.max(at);
            } else if let Some(torn) = self.header(found)? {
                behind = behind.max(found + torn.stride());
            }
        }
        let bytes = behind.min(self.segment.len).saturating_sub(end);
        Ok((bytes > 0).then_some(bytes))
    }

    /// Bytes from `end` to the last one that isn't zero, where a writer leaves nothing but zeros.
    fn not_zero_behind(&mut self, end: u64) -> Result<u64, LogError> {
        let clean = (end + RECORD_HEADER as u64).next_multiple_of(PAGE).min(self.segment.len);
        let Some(bytes) = self.bytes(end, clean.saturating_sub(end) as usize)? else { return Ok(0) };
        Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1))
    }

    /// The next offset from `at` on where the mark of this segment's records stands.
    fn find_mark(&mut self, mut at: u64) -> Result<Option<u64>, LogError> {
        let mark = self.segment.header.mark();
        while self.bytes(at, mark.len())?.is_some() {
            let mut steps = self.window[(at - self.start) as usize..].chunks_exact(mark.len());
            let count = steps.len() as u64;
            if let Some(step) = steps.position(|bytes| bytes == mark) {
                return Ok(Some(at + step as u64 * ALIGN));
            }
            at += count * ALIGN;
        }
        Ok(None)
    }

    /// `len` bytes at `offset`; `None` if the file ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&mut [u8]>, LogError> {
        let end = offset.saturating_add(len as u64);
        if end > self.segment.len {
            return Ok(None);
        }
        if offset < self.start || end > self.start + self.window.len() as u64 {
            let wanted = (len.max(WINDOW) as u64).min(self.segment.len - offset);
            self.window.resize(wanted as usize, 0);
            self.start = offset;
            let read = self.segment.file.read(&mut self.window, offset);
            let read = read.map_err(|source| LogError::from_read(self.segment.number(), self.disk, source))?;
            self.window.truncate(read);
            if read < len {
                return Ok(None);
            }
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&mut self.window[at..at + len]))
    }
}
