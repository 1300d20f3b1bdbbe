//! One open segment: its file, its key, and how far it is durable.

use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, DiskFile};
use super::error::{Damage, LogError};
use super::format::{FIRST_RECORD, HeaderError, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader};
use super::{LogIdentity, SealerFactory};

pub(super) struct Segment {
    pub header: SegmentHeader,
    pub file: DiskFile,
    /// Length of the file.
    pub len: u64,
    /// Everything before this offset is known durable.
    durable: AtomicU64,
}

impl Segment {
    pub fn new(header: SegmentHeader, file: DiskFile, len: u64) -> Self {
        Self { header, file, len, durable: AtomicU64::new(FIRST_RECORD) }
    }

    /// Opens a segment of an earlier mount and verifies its header.
    pub fn open(disk: &Disk, number: u64, identity: &LogIdentity, sealer: &SealerFactory) -> Result<Self, LogError> {
        let read = |source| LogError::from_read(number, disk, source);
        let file = disk.open_segment(number).map_err(read)?;
        let len = file.len().map_err(read)?;
        let mut bytes = [0; SEGMENT_HEADER];
        file.read(&mut bytes, 0).map_err(read)?;
        let header = SegmentHeader::decode(&bytes, number, identity, sealer).map_err(|error| match error {
            HeaderError::Invalid => LogError::Damaged { segment: number, offset: 0, damage: Damage::Header },
            HeaderError::Version { version, seal } => LogError::Version { segment: number, version, seal },
            HeaderError::Foreign => LogError::Foreign { segment: number },
        })?;
        Ok(Self::new(header, file, len))
    }

    pub fn number(&self) -> u64 {
        self.header.segment
    }

    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub fn set_durable(&self, offset: u64) {
        self.durable.fetch_max(offset, Ordering::AcqRel);
    }

    /// Reads and verifies the record at `offset`. `record` then holds its header, clear meta and clear data.
    pub fn read_record(&self, disk: &Disk, offset: u64, record: &mut Vec<u8>) -> Result<RecordHeader, LogError> {
        let damaged = LogError::Damaged { segment: self.number(), offset, damage: Damage::Record };
        let read = |source| LogError::from_read(self.number(), disk, source);
        let mut head = [0; RECORD_HEADER];
        if offset < FIRST_RECORD || self.file.read(&mut head, offset).map_err(read)? < RECORD_HEADER {
            return Err(damaged);
        }
        let Some(header) = self.header.parse_record(offset, &head) else { return Err(damaged) };
        record.resize(header.len(), 0);
        record[..RECORD_HEADER].copy_from_slice(&head);
        let body = self.file.read(&mut record[RECORD_HEADER..], offset + RECORD_HEADER as u64).map_err(read)?;
        if RECORD_HEADER + body < header.len() || !self.header.open_record(offset, &header, record) {
            return Err(damaged);
        }
        Ok(header)
    }
}
