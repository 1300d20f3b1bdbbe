use std::time::Duration;

use crate::document::{Bounds, Cursor, Document, Map};
use crate::error::ConfigError;
use crate::pipeline::{self, Pipeline};
use crate::s3::S3Settings;
use crate::units::format_bytes;

/// The settings version this build reads and writes.
pub const VERSION: u64 = 1;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const MEMORY: Bounds<u64> = Bounds { min: 64 * MIB, max: TIB };
const TIMEOUT: Bounds<Duration> = seconds(1, 3600);
const REFRESH: Bounds<Duration> = seconds(1, 3600);
const LOG_MAX: Bounds<u64> = Bounds { min: 64 * MIB, max: TIB };
const LOG_SEGMENT: Bounds<u64> = Bounds { min: 4 * MIB, max: GIB };
const STAGING_MAX: Bounds<u64> = Bounds { min: 64 * MIB, max: 64 * TIB };
const CHECKPOINT_INTERVAL: Bounds<Duration> =
    Bounds { min: Duration::from_millis(100), max: Duration::from_secs(3600) };
const CHECKPOINT_BYTES: Bounds<u64> = Bounds { min: MIB, max: 16 * GIB };
const COMMIT_INTERVAL: Bounds<Duration> = Bounds { min: Duration::from_millis(100), max: Duration::from_secs(86_400) };
const COMMIT_BYTES: Bounds<u64> = Bounds { min: 64 * KIB, max: TIB };
/// A log holds at least this many segments, so that one can be freed while others are written.
const MIN_SEGMENTS: u64 = 4;

const fn seconds(min: u64, max: u64) -> Bounds<Duration> {
    Bounds { min: Duration::from_secs(min), max: Duration::from_secs(max) }
}

/// All that a mount can be told by its settings file. Every value is within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bound of all buffers, caches, layers and queues together, in bytes.
    pub memory: u64,
    /// After this long an operation that cannot reach the store fails with EIO.
    pub timeout: Duration,
    /// How often a read-only mount asks for what the writer has committed.
    pub refresh: Duration,
    /// What `fsync` waits for.
    pub durability: Durability,
    /// The write-ahead log.
    pub log: LogSettings,
    /// Packs that wait for the store.
    pub staging: StagingSettings,
    /// When changes go from the log into packs on this machine.
    pub checkpoint: CheckpointSettings,
    /// When packs go to the store and a head is made.
    pub commit: CommitSettings,
    /// Local files.
    pub cache: CacheSettings,
    /// A store in an S3 bucket.
    pub s3: S3Settings,
    /// Chains, routes and what belongs to them; the part that can be changed on a live mount.
    pub pipeline: Pipeline,
}

/// What a returned `fsync` promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The data survives a power cut of this machine.
    Local,
    /// The data is in the store under a committed head.
    Remote,
}

/// Bounds of the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Most bytes of all its segments.
    pub max: u64,
    /// Bytes of one segment.
    pub segment: u64,
}

/// Bounds of the staged packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingSettings {
    /// Most bytes of packs that are not in the store yet.
    pub max: u64,
}

/// When a local checkpoint is made: at whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointSettings {
    /// Longest time after a change.
    pub interval: Duration,
    /// Most bytes in the log since the last one; up to three times as many where they are of small files.
    pub bytes: u64,
}

/// When a commit to the store is made: at whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitSettings {
    /// Longest time after a change.
    pub interval: Duration,
    /// Most bytes of staged packs.
    pub bytes: u64,
}

/// Local files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// Whether log records and staged data are sealed; otherwise they carry a checksum only.
    pub encrypt: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: 256 * MIB,
            timeout: Duration::from_secs(30),
            refresh: Duration::from_secs(10),
            durability: Durability::Local,
            log: LogSettings { max: 4 * GIB, segment: 256 * MIB },
            staging: StagingSettings { max: 8 * GIB },
            checkpoint: CheckpointSettings { interval: Duration::from_secs(5), bytes: 96 * MIB },
            commit: CommitSettings { interval: Duration::from_secs(30), bytes: 64 * MIB },
            cache: CacheSettings { encrypt: true },
            s3: S3Settings::default(),
            pipeline: Pipeline::default(),
        }
    }
}

impl Settings {
    /// Names of the settings that a mount keeps from its beginning to its end, and that are others in `new`.
    pub fn fixed_differences(&self, new: &Settings) -> Vec<&'static str> {
        let all = [
            ("memory", self.memory != new.memory),
            ("timeout", self.timeout != new.timeout),
            ("refresh", self.refresh != new.refresh),
            ("durability", self.durability != new.durability),
            ("log.max", self.log.max != new.log.max),
            ("log.segment", self.log.segment != new.log.segment),
            ("staging.max", self.staging != new.staging),
            ("checkpoint.interval", self.checkpoint.interval != new.checkpoint.interval),
            ("checkpoint.bytes", self.checkpoint.bytes != new.checkpoint.bytes),
            ("commit.interval", self.commit.interval != new.commit.interval),
            ("commit.bytes", self.commit.bytes != new.commit.bytes),
            ("cache.encrypt", self.cache != new.cache),
            ("s3", self.s3 != new.s3),
            ("store.on_error", self.pipeline.store.on_error != new.pipeline.store.on_error),
        ];
        all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }

    /// Reads a whole settings file.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = Document::parse(text)?;
        let root = document.root();
        let own = [
            "version",
            "memory",
            "timeout",
            "refresh",
            "durability",
            "log",
            "staging",
            "checkpoint",
            "commit",
            "cache",
            "s3",
        ];
        let map = versioned(&root, &[&own[..], &pipeline::KEYS[..]].concat())?;

        let mut settings = Self::default();
        if let Some(value) = map.get("memory") {
            settings.memory = value.bytes(MEMORY)?;
        }
        if let Some(value) = map.get("timeout") {
            settings.timeout = value.duration(TIMEOUT)?;
        }
        if let Some(value) = map.get("refresh") {
            settings.refresh = value.duration(REFRESH)?;
        }
        if let Some(value) = map.get("durability") {
            settings.durability = durability(&value)?;
        }
        if let Some(group) = map.get("log") {
            settings.log = log(&group, settings.log)?;
        }
        if let Some(group) = map.get("staging")
            && let Some(value) = group.mapping(&["max"])?.get("max")
        {
            settings.staging.max = value.bytes(STAGING_MAX)?;
        }
        if let Some(group) = map.get("checkpoint") {
            let CheckpointSettings { interval, bytes } = settings.checkpoint;
            let (interval, bytes) = trigger(&group, (interval, bytes), CHECKPOINT_INTERVAL, CHECKPOINT_BYTES)?;
            settings.checkpoint = CheckpointSettings { interval, bytes };
        }
        if let Some(group) = map.get("commit") {
            let CommitSettings { interval, bytes } = settings.commit;
            let (interval, bytes) = trigger(&group, (interval, bytes), COMMIT_INTERVAL, COMMIT_BYTES)?;
            settings.commit = CommitSettings { interval, bytes };
        }
        if let Some(group) = map.get("cache")
            && let Some(value) = group.mapping(&["encrypt"])?.get("encrypt")
        {
            settings.cache.encrypt = value.boolean()?;
        }
        if let Some(group) = map.get("s3") {
            settings.s3 = S3Settings::read(&group)?;
        }
        settings.pipeline = Pipeline::read(&map)?;
        Ok(settings)
    }
}

/// The top mapping, once its version is one this build knows: keys of another version must not be judged.
pub(crate) fn versioned<'d>(root: &Cursor<'d>, known: &[&str]) -> Result<Map<'d>, ConfigError> {
    if !root.is_mapping() {
        return Err(ConfigError::NoVersion { supported: VERSION });
    }
    let Some(version) = root.any_mapping()?.get("version") else {
        return Err(ConfigError::NoVersion { supported: VERSION });
    };
    if version.integer(Bounds { min: VERSION, max: VERSION }).is_err() {
        let found = version.parameter().unwrap_or_else(|_| "of that form".to_owned());
        return Err(ConfigError::UnknownVersion { line: version.line(), found, supported: VERSION });
    }
    root.mapping(known)
}

fn durability(value: &Cursor<'_>) -> Result<Durability, ConfigError> {
    match value.text()? {
        "local" => Ok(Durability::Local),
        "remote" => Ok(Durability::Remote),
        other => Err(value.bad(format!("is {other:?}"), "write local or remote")),
    }
}

fn log(group: &Cursor<'_>, mut log: LogSettings) -> Result<LogSettings, ConfigError> {
    let map = group.mapping(&["max", "segment"])?;
    if let Some(value) = map.get("max") {
        log.max = value.bytes(LOG_MAX)?;
    }
    if let Some(value) = map.get("segment") {
        log.segment = value.bytes(LOG_SEGMENT)?;
    } else {
        // A small log with the default segment would be refused for a value nobody wrote.
        log.segment = log.segment.min(log.max / MIN_SEGMENTS);
    }
    if log.segment > log.max / MIN_SEGMENTS {
        let problem = format!("is {}, but log.max is {}", format_bytes(log.segment), format_bytes(log.max));
        let hint =
            format!("a segment must be a quarter of log.max at most, here {}", format_bytes(log.max / MIN_SEGMENTS));
        let at = map.get("segment").unwrap_or_else(|| group.clone());
        return Err(at.bad(problem, hint));
    }
    Ok(log)
}

fn trigger(
    group: &Cursor<'_>,
    (mut interval, mut bytes): (Duration, u64),
    interval_bounds: Bounds<Duration>,
    bytes_bounds: Bounds<u64>,
) -> Result<(Duration, u64), ConfigError> {
    let map = group.mapping(&["interval", "bytes"])?;
    if let Some(value) = map.get("interval") {
        interval = value.duration(interval_bounds)?;
    }
    if let Some(value) = map.get("bytes") {
        bytes = value.bytes(bytes_bounds)?;
    }
    Ok((interval, bytes))
}

#[cfg(test)]
mod tests;
