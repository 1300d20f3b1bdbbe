use std::error::Error;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What the log can answer instead of doing its work.
#[derive(Debug, Error)]
pub enum LogError {
    /// The bound of the log is reached. A checkpoint and [`release_before`](super::Log::release_before) make room.
    #[error("Log full: a record needs {needed} bytes, {room} are left for it")]
    Full {
        /// Bytes the record needs.
        needed: u64,
        /// Bytes left for its urgency.
        room: u64,
    },
    /// The disk is full. Nothing was changed.
    #[error("No space on disk to {operation} log segment {segment}")]
    NoSpace {
        /// What was tried.
        operation: &'static str,
        /// Number of the segment.
        segment: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// A write or fdatasync failed earlier, or just now. Nothing will be written by this mount any more.
    #[error("Log failed for good: could not {operation} segment {segment}")]
    Failed {
        /// What failed.
        operation: &'static str,
        /// Number of the segment.
        segment: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// Bytes that were safely on disk have changed or are gone.
    #[error("Log segment {segment} is damaged at offset {offset}: {damage}")]
    Damaged {
        /// Number of the segment.
        segment: u64,
        /// Offset of the record or header that is bad.
        offset: u64,
        /// In what way.
        damage: Damage,
    },
    /// The segment belongs to another repository or volume.
    #[error("Log segment {segment} belongs to another repository or volume")]
    Foreign {
        /// Number of the segment.
        segment: u64,
    },
    /// Written by a version that this one doesn't know.
    #[error(
        "Log segment {segment} has format version {version} with seal {seal}, known is version 1 with seals 0 and 1"
    )]
    Version {
        /// Number of the segment.
        segment: u64,
        /// Version in its header.
        version: u16,
        /// Seal in its header.
        seal: u8,
    },
    /// The segment isn't sealed though the log is to be: somebody without the key could have written it.
    #[error(
        "Log segment {segment} is not sealed, but the log is to be; mount once with cache.encrypt: false to drain it"
    )]
    Unsealed {
        /// Number of the segment.
        segment: u64,
    },
    /// The record is longer than the format or a segment allows.
    #[error("Record of {meta} + {data} bytes is too long for the log")]
    TooLarge {
        /// Bytes of meta.
        meta: usize,
        /// Bytes of data.
        data: usize,
    },
    /// The segment was released, or never was.
    #[error("Log segment {segment} is not there any more")]
    Released {
        /// Number of the segment.
        segment: u64,
    },
    /// A reference names bytes that the record doesn't have.
    #[error(
        "Reference to bytes {start}..{end} of the record at {offset} in log segment {segment} goes beyond its {data} bytes"
    )]
    Reference {
        /// Number of the segment.
        segment: u64,
        /// Offset of the record.
        offset: u64,
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
        /// Bytes the record has, or the caller has room for.
        data: u64,
    },
    /// A new log can't begin with a segment that exists, or isn't behind all that exist.
    #[error("Log segment {segment} can't be begun: segment {last} exists")]
    Exists {
        /// The segment to begin with.
        segment: u64,
        /// The last there is.
        last: u64,
    },
    /// The options contradict each other.
    #[error("Log options: {0}")]
    Options(&'static str),
    /// The receiver of a replayed record refused it.
    #[error("Record at offset {offset} of log segment {segment} could not be applied")]
    Apply {
        /// Number of the segment.
        segment: u64,
        /// Offset of the record.
        offset: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// This process, or the system, has as many files open as it may. Fewer segments, and so fewer files, are kept after a checkpoint.
    #[error("Log segment {segment} can't be opened: too many files are open")]
    NoDescriptor {
        /// The segment.
        segment: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// Another failure of the system.
    #[error("Could not {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// In what way a segment is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Damage {
    /// The segment's header is not what was written.
    #[error("its header is not what was written")]
    Header,
    /// A record that was durable can't be verified.
    #[error("a record that was safely on disk can't be verified")]
    Record,
    /// The segment's file is missing.
    #[error("its file is missing")]
    Missing,
}

impl LogError {
    /// Whether the cause is a quota on the log's disk.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::NoSpace { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded)
    }
}

/// Is it the disk, or a quota, that is full?
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
