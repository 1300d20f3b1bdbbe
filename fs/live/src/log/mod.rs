//! The write-ahead log: one sequential stream of operations and data, in preallocated segment files.
//!
//! `fs/doc/format-log.md` describes the bytes. [`replay`](Log::replay) reads what earlier mounts left,
//! [`create`](Log::create) begins a new segment behind it, and [`append`](Log::append) and [`sync`](Log::sync) are what
//! `write(2)` and `fsync(2)` wait for.
//!
//! Lock order: `active`, then `stocking`, then `table`, then the state of syncing. None is held while a segment is read; `active` is held across the
//! fdatasync that ends a segment, because nothing may be appended before it is done.

mod append;
mod cache;
mod disk;
mod error;
mod format;
mod replay;
mod segment;
mod space;
mod sync;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use axiomfs_api::Sealer;

pub(crate) use disk::drop_cached;
pub(crate) use error::is_no_space;
pub use error::{Damage, LogError};
pub use format::{MAX_DATA, MAX_META};
pub use replay::Apply;

/// Makes the sealer of a segment from the segment's salt.
pub type SealerFactory = Arc<dyn Fn(&[u8; 32]) -> Box<dyn Sealer> + Send + Sync>;

/// Called at the named points `log.rotate` (between finishing a segment and using the next) and `log.released`.
pub type FaultHook = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Where the log lies and how much it may take.
#[derive(Clone)]
pub struct LogOptions {
    /// The directory of the segment files. It is made if it isn't there.
    pub dir: PathBuf,
    /// Bytes of one segment file. No record can be longer than a segment less 4 KiB.
    pub segment_bytes: u64,
    /// Bound of all segments together, in bytes on disk; rounded down to whole segments.
    pub max_bytes: u64,
    /// The part of `max_bytes` that only [`Urgency::Reserve`] may use. At least a segment, or a full log can't be drained.
    pub reserve_bytes: u64,
    /// Seal records with AES-256-GCM; otherwise a CRC guards them against accidents.
    pub encrypt: bool,
    /// For tests that stop the process at a named point.
    pub faults: Option<FaultHook>,
}

impl LogOptions {
    /// 32 MiB segments, at most 1 GiB, 96 MiB of it reserved, sealed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 32 << 20,
            max_bytes: 1 << 30,
            reserve_bytes: 96 << 20,
            encrypt: true,
            faults: None,
        }
    }

    fn capacity(&self) -> u64 {
        self.max_bytes - self.max_bytes % self.segment_bytes
    }

    fn fault(&self, point: &'static str) {
        if let Some(hook) = &self.faults {
            hook(point);
        }
    }
}

impl fmt::Debug for LogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogOptions")
            .field("dir", &self.dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("max_bytes", &self.max_bytes)
            .field("reserve_bytes", &self.reserve_bytes)
            .field("encrypt", &self.encrypt)
            .finish_non_exhaustive()
    }
}

/// Whose log it is. A segment of another repository or volume is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Repository id.
    pub repository: [u8; 16],
    /// Volume id.
    pub volume: [u8; 16],
    /// Epoch of this writer. Segments of any epoch are replayed; [`Replayed::epoch`] tells the highest.
    pub epoch: u64,
}

/// Where (part of) a record's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataRef {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of the record in the segment.
    pub offset: u64,
    /// First byte within the record's data.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of the record in the segment.
    pub offset: u64,
    /// All of the record's data; `None` if it has none.
    pub data: Option<DataRef>,
}

/// May a record use the reserve?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// No.
    Normal,
    /// Yes: it frees space (unlink) or belongs to draining.
    Reserve,
}

/// A record as [`Log::replay`] hands it out.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Number of the segment it is in.
    pub segment: u64,
    /// The operation.
    pub meta: &'a [u8],
    /// Bytes of data.
    pub data_len: u32,
    /// Where the data lies; `None` if there is none.
    pub data: Option<DataRef>,
    /// Whether its segment is sealed.
    pub is_sealed: bool,
}

impl Record<'_> {
    /// Refuses an operation that somebody without the key could have written, where the log is to be sealed.
    ///
    /// # Errors
    /// [`LogError::Unsealed`].
    pub fn check_seal(&self, options: &LogOptions) -> Result<(), LogError> {
        if options.encrypt && !self.is_sealed { Err(LogError::Unsealed { segment: self.segment }) } else { Ok(()) }
    }
}

/// What [`Log::replay`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// What to give to [`Log::create`].
    pub next_segment: u64,
    /// Records applied.
    pub records: u64,
    /// Segments read. 0 where a manifest names a first segment means that the log was lost.
    pub segments: u64,
    /// The end of the log that a crash tore.
    pub cut_tail: Option<TailCut>,
    /// The highest epoch in a segment's header.
    pub epoch: Option<u64>,
}

/// A torn end: nothing in it was ever reported as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailCut {
    /// Number of the segment.
    pub segment: u64,
    /// First byte that was cut.
    pub offset: u64,
    /// Bytes in which traces of records were seen.
    pub bytes: u64,
}

/// State of the log, for `status` and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogUsage {
    /// Bytes of disk that segments take, full or not.
    pub bytes: u64,
    /// Bound of `bytes`.
    pub max: u64,
    /// Number of segments.
    pub segments: u64,
    /// Preallocated files that wait to become segments.
    pub spares: u64,
    /// Since when there is nothing newer that is known durable.
    pub last_sync_age: Duration,
    /// Bytes appended and not yet known durable.
    pub unsynced: u64,
    /// fdatasyncs so far.
    pub syncs: u64,
    /// An fdatasync or a write failed: nothing can be written any more.
    pub failed: bool,
}

/// The log of one mount. Thread-safe.
pub struct Log {
    options: LogOptions,
    identity: LogIdentity,
    sealer: SealerFactory,
    disk: disk::Disk,
    active: Mutex<append::Active>,
    table: RwLock<space::Table>,
    /// Held by who allocates spares. The segment beside which that failed: on a full disk it is tried again with the next one only, since
    /// each try takes what room there is for a moment.
    stocking: Mutex<Option<u64>>,
    syncing: sync::Syncing,
    cache: cache::ReadCache,
    /// Bytes left in the active segment; 0 while the next one is begun. Read without the lock, so only a good guess.
    left: AtomicU64,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("options", &self.options).field("identity", &self.identity).finish_non_exhaustive()
    }
}
