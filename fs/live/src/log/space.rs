//! Which segments there are, what they may take, and how one follows another.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::append::Active;
use super::disk::{Disk, DiskFile};
use super::error::LogError;
use super::format::{FIRST_RECORD, Position, SegmentHeader};
use super::segment::Segment;
use super::{Log, LogIdentity, LogOptions, LogUsage, SealerFactory, Urgency, cache, replay, sync};

/// Spares that are kept at most. One of them is the reserve: on a full disk, only urgent records get it.
const SPARES: u64 = 2;

pub(super) struct Table {
    /// All segments not released, the active one too.
    segments: BTreeMap<u64, Arc<Segment>>,
    spares: VecDeque<Spare>,
    /// Number of the next spare.
    next_spare: u64,
    /// A spare is being allocated, without the table's lock.
    making: bool,
}

/// A file of a segment's length, to become one.
struct Spare {
    number: u64,
    /// Its blocks were written before.
    recycled: bool,
}

impl Table {
    fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_spare;
        self.next_spare = number.saturating_add(1);
        number
    }
}

impl Log {
    /// Begins a log with a new segment. Earlier segments stay readable until they are released.
    ///
    /// `next_segment` is [`Replayed::next_segment`](super::Replayed::next_segment).
    ///
    /// # Errors
    /// [`LogError::Exists`] if `next_segment` isn't behind all segments there are; what reading an earlier segment's header may give;
    /// [`LogError::NoSpace`].
    pub fn create(
        options: LogOptions,
        identity: LogIdentity,
        sealer: SealerFactory,
        next_segment: u64,
    ) -> Result<Self, LogError> {
        let disk = Disk::open_or_create(&options.dir)?;
        Self::create_on(disk, options, identity, sealer, next_segment)
    }

    pub(super) fn create_on(
        disk: Disk,
        options: LogOptions,
        identity: LogIdentity,
        sealer: SealerFactory,
        next_segment: u64,
    ) -> Result<Self, LogError> {
        check(&options)?;
        let listing = disk.list()?;
        let last = listing.segments.last_key_value().map(|(number, _)| *number);
        if next_segment == u64::MAX || last.is_some_and(|last| last >= next_segment) {
            return Err(LogError::Exists { segment: next_segment, last: last.unwrap_or(u64::MAX) });
        }
        let mut segments = BTreeMap::new();
        for number in listing.segments.into_keys() {
            let segment = Segment::open(&disk, number, &identity, &sealer)?;
            segments.insert(number, Arc::new(segment));
        }
        let previous = match segments.last_key_value() {
            Some((number, segment)) => {
                Some(Position { segment: *number, offset: replay::end_of_last(&disk, segment)? })
            }
            None => None,
        };
        let mut table = Table {
            segments,
            spares: VecDeque::new(),
            next_spare: listing.spares.last_key_value().map_or(0, |(number, _)| number.saturating_add(1)),
            making: false,
        };
        adopt_spares(&disk, &options, listing.spares, &mut table);
        let table = RwLock::new(table);
        let spare = take_spare(&disk, &options, &table, next_segment, Urgency::Reserve)?;
        let (segment, recycled) = prepare(&disk, &options, identity, &sealer, next_segment, previous, &spare)
            .map_err(|error| error.into_write_error(&disk, next_segment))?;
        let begun = |source| LogError::from_write("begin", next_segment, &disk, source);
        disk.promote(spare.number, next_segment).map_err(begun)?;
        disk.sync_dir().map_err(begun)?;
        let segment = Arc::new(segment);
        lock_mut(&table).segments.insert(next_segment, Arc::clone(&segment));
        keep_reserve(&disk, &options, &table);
        let left = segment.len - FIRST_RECORD;
        Ok(Self {
            active: Active::new(segment, recycled).into(),
            table,
            stocking: Mutex::default(),
            syncing: sync::Syncing::new(Position { segment: next_segment, offset: FIRST_RECORD }),
            cache: cache::ReadCache::new(),
            left: AtomicU64::new(left),
            options,
            identity,
            sealer,
            disk,
        })
    }

    /// Begins a new segment and returns its number: everything before it can be released once a checkpoint is durable.
    /// The number of the active segment is returned if nothing is in it yet.
    ///
    /// # Errors
    /// [`LogError::Full`] and [`LogError::NoSpace`] leave the log as it was. [`LogError::Failed`] is for ever.
    pub fn rotate(&self) -> Result<u64, LogError> {
        let mut active = self.lock_active();
        self.syncing.check()?;
        if active.end > FIRST_RECORD {
            self.begin_next(&mut active, 0, Urgency::Reserve)?;
        }
        Ok(active.segment.number())
    }

    /// Gives up the segments before `segment` (never the active one) and returns the bytes of their files. Reads that are under way end well.
    ///
    /// # Errors
    /// [`LogError::Io`] if a file can't be removed; it can be tried again.
    pub fn release_before(&self, segment: u64) -> Result<u64, LogError> {
        let active = self.lock_active().segment.number();
        let gone: Vec<Arc<Segment>> = {
            let mut table = self.table_mut();
            let kept = table.segments.split_off(&segment.min(active));
            std::mem::replace(&mut table.segments, kept).into_values().collect()
        };
        let mut bytes = 0;
        let mut failed = None;
        let (mut spares, mut closing) = (Vec::new(), Vec::new());
        for old in gone {
            let number = old.number();
            match self.discard(&old, spares.len() as u64) {
                Ok(spare) => {
                    bytes += old.len;
                    if spare.is_none() {
                        closing.push(old);
                    } else {
                        spares.extend(spare);
                    }
                }
                Err(source) => {
                    self.table_mut().segments.insert(number, old);
                    failed = Some(LogError::from_write("release", number, &self.disk, source));
                }
            }
        }
        if !spares.is_empty() {
            // Before a spare gets a new header: or a crash could leave that header under the old segment's name.
            let path = self.disk.dir().to_owned();
            self.disk.sync_dir().map_err(|source| LogError::Io { operation: "fsync", path, source })?;
            self.table_mut().spares.extend(spares);
        }
        self.cache.forget_before(segment.min(active));
        close_aside(closing);
        self.options.fault("log.released");
        failed.map_or(Ok(bytes), Err)
    }

    /// Whether the file of the next segment is to be allocated: the active one is three quarters full. Never waits.
    pub fn is_stock_due(&self) -> bool {
        if self.left.load(Ordering::Relaxed) > self.options.segment_bytes / 4 {
            return false;
        }
        let Ok(failed) = self.stocking.try_lock() else { return false };
        self.stock_wanted(*failed).1
    }

    /// Allocates that file, so that whose record begins it doesn't wait for that too. It may take seconds where the disk has to be
    /// written for it.
    pub fn stock(&self) {
        if !self.is_stock_due() {
            return;
        }
        let mut failed = self.stocking.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, wanted) = self.stock_wanted(*failed);
        if wanted && let Err(error) = add_spare(&self.disk, &self.options, &self.table) {
            *failed = last;
            tracing::debug!(%error, "could not allocate the next segment of the log ahead");
        }
    }

    /// The newest segment, and whether another file is wanted; not where that failed for this one.
    fn stock_wanted(&self, failed: Option<u64>) -> (Option<u64>, bool) {
        let table = self.table();
        let (spares, last) = (table.spares.len(), table.segments.last_key_value().map(|(number, _)| *number));
        let few = spares <= kept(&self.options, &table) && (spares as u64) < spare_quota(&self.options, &table);
        (last, few && failed != last)
    }

    /// How much the log takes and how far it is synced. Never waits for a disk: while a segment is begun, the one before counts as full.
    pub fn usage(&self) -> LogUsage {
        let (active, end) = self.end_seen();
        let (durable, age, syncs, failed) = self.syncing.usage();
        let unsynced = if durable.segment == active { end - durable.offset.min(end) } else { end - FIRST_RECORD };
        let table = self.table();
        LogUsage {
            bytes: table.bytes(),
            max: self.options.capacity(),
            segments: table.segments.len() as u64,
            spares: table.spares.len() as u64,
            last_sync_age: if unsynced == 0 { std::time::Duration::ZERO } else { age },
            unsynced,
            syncs,
            failed,
        }
    }

    /// Number of the active segment and the end of its records; close to it where somebody holds the lock.
    fn end_seen(&self) -> (u64, u64) {
        if let Ok(active) = self.active.try_lock() {
            return (active.segment.number(), active.end);
        }
        let left = self.left.load(Ordering::Relaxed);
        let table = self.table();
        let last = table.segments.last_key_value();
        last.map_or((0, FIRST_RECORD), |(number, segment)| {
            (*number, segment.len.saturating_sub(left).max(FIRST_RECORD))
        })
    }

    /// Bytes that [`Urgency::Normal`] records can still take, their headers included, if they fill segments to the end.
    pub fn room(&self) -> u64 {
        self.limit(Urgency::Normal).saturating_sub(self.used(&self.lock_active()))
    }

    pub(super) fn segment(&self, number: u64) -> Result<Arc<Segment>, LogError> {
        self.table().segments.get(&number).cloned().ok_or(LogError::Released { segment: number })
    }

    /// Sees to it that the active segment can take a record of `stride` bytes.
    pub(super) fn make_room(&self, active: &mut Active, stride: u64, urgency: Urgency) -> Result<(), LogError> {
        if active.end + stride > active.segment.len {
            return self.begin_next(active, stride, urgency);
        }
        self.check_room(self.used(active), stride, urgency)
    }

    /// Whether a record of `stride` bytes goes to the next segment, for which there is room.
    pub(super) fn begins_next(&self, active: &Active, stride: u64, urgency: Urgency) -> bool {
        let full = active.end + stride > active.segment.len;
        full && self.check_next(stride, urgency).is_ok()
    }

    /// Whether the next segment, with a record of `stride` bytes, is within the bound.
    fn check_next(&self, stride: u64, urgency: Urgency) -> Result<(), LogError> {
        let used = self.table().bytes();
        self.check_room(used, FIRST_RECORD + stride, urgency)
    }

    fn begin_next(&self, active: &mut Active, stride: u64, urgency: Urgency) -> Result<(), LogError> {
        self.check_next(stride, urgency)?;
        self.left.store(0, Ordering::Relaxed);
        let begun = self.replace_active(active, urgency);
        self.left.store(active.segment.len - active.end, Ordering::Relaxed);
        begun
    }

    fn replace_active(&self, active: &mut Active, urgency: Urgency) -> Result<(), LogError> {
        let old = Arc::clone(&active.segment);
        let number = old.number() + 1;
        let previous = Position { segment: old.number(), offset: active.end };
        let spare = {
            let _stocking = self.stocking.lock().unwrap_or_else(PoisonError::into_inner);
            take_spare(&self.disk, &self.options, &self.table, number, urgency)?
        };
        let sealer = &self.sealer;
        let (segment, recycled) =
            match prepare(&self.disk, &self.options, self.identity, sealer, number, Some(previous), &spare) {
                Ok(prepared) => prepared,
                Err(PrepareError::Sync(error)) => return Err(self.syncing.fail("fdatasync", number, &error)),
                Err(error) => {
                    self.table_mut().spares.push_back(spare);
                    return Err(error.into_write_error(&self.disk, number));
                }
            };
        self.syncing.run(&old, active.end, previous)?;
        self.options.fault("log.rotate");
        if let Err(error) = self.disk.promote(spare.number, number) {
            self.table_mut().spares.push_back(spare);
            return Err(LogError::from_write("begin", number, &self.disk, error));
        }
        if let Err(error) = self.disk.sync_dir() {
            return Err(self.syncing.fail("fsync the directory for", number, &error));
        }
        let segment = Arc::new(segment);
        self.table_mut().segments.insert(number, Arc::clone(&segment));
        *active = Active::new(segment, recycled);
        Ok(())
    }

    /// Removes the file of a segment that is in the table no more, or makes it a spare if nobody reads it.
    fn discard(&self, old: &Arc<Segment>, new_spares: u64) -> std::io::Result<Option<Spare>> {
        let number = {
            let mut table = self.table_mut();
            let wanted = table.spares.len() as u64 + new_spares < spare_quota(&self.options, &table);
            let unread = Arc::strong_count(old) == 1;
            // The contents of files must not stay in it in clear.
            let sealed = old.header.is_sealed() || !self.options.encrypt;
            (wanted && unread && sealed && old.len == self.options.segment_bytes).then(|| table.take_number())
        };
        let Some(number) = number else {
            self.disk.remove_segment(old.number())?;
            return Ok(None);
        };
        self.disk.recycle(old.number(), number)?;
        Ok(Some(Spare { number, recycled: true }))
    }

    /// Bytes that count against the limit: closed segments whole, the active one up to its end.
    fn used(&self, active: &Active) -> u64 {
        self.table().bytes() - active.segment.len + active.end
    }

    fn limit(&self, urgency: Urgency) -> u64 {
        match urgency {
            Urgency::Normal => self.options.capacity().saturating_sub(self.options.reserve_bytes),
            Urgency::Reserve => self.options.capacity(),
        }
    }

    fn check_room(&self, used: u64, needed: u64, urgency: Urgency) -> Result<(), LogError> {
        let room = self.limit(urgency).saturating_sub(used);
        if needed > room { Err(LogError::Full { needed, room }) } else { Ok(()) }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        lock_mut(&self.table)
    }
}

// Nothing in the table's critical sections leaves it half-changed, so a panic elsewhere doesn't make it unusable.
fn lock_mut(table: &RwLock<Table>) -> RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

fn check(options: &LogOptions) -> Result<(), LogError> {
    let least = FIRST_RECORD * 2;
    if options.segment_bytes < least || !options.segment_bytes.is_multiple_of(FIRST_RECORD) {
        return Err(LogError::Options("segment_bytes must be a multiple of 4096, and at least 8192"));
    }
    if options.capacity() < 2 * options.segment_bytes {
        return Err(LogError::Options("max_bytes must be at least two segments"));
    }
    if options.reserve_bytes >= options.capacity() {
        return Err(LogError::Options("reserve_bytes must be less than max_bytes"));
    }
    Ok(())
}

/// How many spares there may be so that they and all segments stay within the bound.
fn spare_quota(options: &LogOptions, table: &Table) -> u64 {
    let quota = (options.capacity().saturating_sub(table.bytes()) / options.segment_bytes).min(SPARES);
    quota.saturating_sub(u64::from(table.making))
}

/// Takes over spares of an earlier mount. Those that don't fit are removed.
fn adopt_spares(disk: &Disk, options: &LogOptions, spares: BTreeMap<u64, u64>, table: &mut Table) {
    // Those of a log that was not sealed are full of contents in clear.
    let clear = options.encrypt && table.segments.values().any(|segment| !segment.header.is_sealed());
    for (number, len) in spares {
        if !clear && len == options.segment_bytes && (table.spares.len() as u64) < SPARES {
            // Whether its blocks were written is not known, so it is treated as if they weren't.
            table.spares.push_back(Spare { number, recycled: false });
        } else if let Err(error) = disk.remove_spare(number) {
            tracing::warn!(number, %error, "could not remove a spare log file");
        }
    }
}

/// Spares that only urgent records may take while the disk has room for another.
fn kept(options: &LogOptions, table: &Table) -> usize {
    usize::from(spare_quota(options, table) > 1)
}

/// Takes a spare for segment `segment`, or makes one. The last one is kept for urgent records as long as the disk has room for another.
fn take_spare(
    disk: &Disk,
    options: &LogOptions,
    table: &RwLock<Table>,
    segment: u64,
    urgency: Urgency,
) -> Result<Spare, LogError> {
    let wanted = {
        let table = lock_mut(table);
        table.spares.len() <= kept(options, &table)
    };
    if wanted
        && let Err(source) = add_spare(disk, options, table)
        && (urgency == Urgency::Normal || lock_mut(table).spares.is_empty())
    {
        return Err(LogError::from_write("allocate", segment, disk, source));
    }
    let mut table = lock_mut(table);
    let written = table.spares.iter().position(|spare| spare.recycled).unwrap_or(0);
    table.spares.remove(written).ok_or(LogError::Options("no file for a segment"))
}

/// Makes the spare that urgent records get on a full disk. That there is none is no reason not to begin.
fn keep_reserve(disk: &Disk, options: &LogOptions, table: &RwLock<Table>) {
    let wanted = {
        let table = lock_mut(table);
        table.spares.is_empty() && spare_quota(options, &table) > 0
    };
    if wanted && let Err(error) = add_spare(disk, options, table) {
        tracing::warn!(%error, "no space for the log's reserve");
    }
}

/// Allocates a spare. The table isn't locked meanwhile: who reads a segment doesn't wait for that.
fn add_spare(disk: &Disk, options: &LogOptions, table: &RwLock<Table>) -> std::io::Result<()> {
    let number = {
        let mut table = lock_mut(table);
        table.making = true;
        table.take_number()
    };
    let allocated = disk.allocate_spare(number, options.segment_bytes);
    let mut table = lock_mut(table);
    table.making = false;
    allocated?;
    table.spares.push_back(Spare { number, recycled: false });
    Ok(())
}

/// Why a spare could not be made a segment.
enum PrepareError {
    Random(getrandom::Error),
    Write(std::io::Error),
    /// Not to be tried again.
    Sync(std::io::Error),
}

impl PrepareError {
    fn into_write_error(self, disk: &Disk, segment: u64) -> LogError {
        match self {
            Self::Random(error) => LogError::from_write("draw a salt for", segment, disk, std::io::Error::other(error)),
            Self::Write(error) | Self::Sync(error) => LogError::from_write("begin", segment, disk, error),
        }
    }
}

/// Writes the first pages of segment `number` into a spare, durably. Returns the segment and whether its blocks were written before.
fn prepare(
    disk: &Disk,
    options: &LogOptions,
    identity: LogIdentity,
    sealer: &SealerFactory,
    number: u64,
    previous: Option<Position>,
    spare: &Spare,
) -> Result<(Segment, bool), PrepareError> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).map_err(PrepareError::Random)?;
    let header = SegmentHeader::new(identity, number, previous, salt, options.encrypt.then_some(sealer));
    let file: DiskFile = disk.open_spare(spare.number).map_err(PrepareError::Write)?;
    file.write(&Active::first_pages(&header, options.segment_bytes), 0).map_err(PrepareError::Write)?;
    file.sync().map_err(PrepareError::Sync)?;
    Ok((Segment::new(header, file, options.segment_bytes), spare.recycled))
}

/// Closes removed files in a thread of its own: with the last descriptor the kernel frees their pages and blocks, which takes a tenth of
/// a second for 256 MiB, and a commit would wait for it.
fn close_aside(files: Vec<Arc<Segment>>) {
    if files.is_empty() {
        return;
    }
    let spawned = std::thread::Builder::new().name("log-close".to_owned()).spawn(move || drop(files));
    if let Err(error) = spawned {
        // They were closed with the closure.
        tracing::debug!(%error, "could not start a thread");
    }
}
