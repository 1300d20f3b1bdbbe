//! The compressor: zstd frames (RFC 8878), one per frame of ours, without checksum (the seal authenticates), with the
//! content size, so that `zstd -d` reads them.
#![forbid(unsafe_code)]

mod probe;
mod worker;

use std::sync::Arc;

use axiomfs_api::{Descriptor, Effort, Kind, PluginError, Transform, TransformFactory, Worker};

/// Format number: a single standard zstd frame without a dictionary.
pub const FORMAT: u16 = 1;
/// The level used where none is given.
pub const DEFAULT_LEVEL: i32 = 3;
/// The levels offered; from 20 on zstd itself calls them "ultra" (they need much memory).
pub const LEVELS: std::ops::RangeInclusive<i32> = -7..=22;

const ID: &str = "zstd";

static DESCRIPTOR: Descriptor = Descriptor {
    id: ID,
    kind: Kind::Transform,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Compression with zstd; frames that don't shrink go through unchanged",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &["compression"],
    requires: &[],
    before: &["encryption"],
    after: &[],
    // Any level on a frame of 4 MiB: a test measures it.
    memory: 10 << 20,
    skippable: true,
};

/// Makes configured compressors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Factory;

impl TransformFactory for Factory {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        let (mut level, mut adapt) = (None, None);
        for (key, value) in params {
            match key.as_str() {
                "level" => level = Some(parse_level(value)?),
                "adapt" => adapt = parse_adapt(value)?,
                _ => return Err(PluginError::UnknownParameter { plugin: ID, key: key.clone(), known: "level, adapt" }),
            }
        }
        let Some((low, high)) = adapt else { return Ok(Arc::new(Zstd::fixed(level.unwrap_or(DEFAULT_LEVEL)))) };
        let bounds = low..=high;
        let usual = level.unwrap_or(DEFAULT_LEVEL.max(low).min(high));
        if !bounds.contains(&usual) {
            let (key, value) = ("adapt".into(), format!("{low}..{high}"));
            return Err(PluginError::BadParameter {
                plugin: ID,
                key,
                value,
                expected: "bounds that the level lies within",
            });
        }
        Ok(Arc::new(Zstd { level: usual, effort: Some(Arc::new(Effort::new(bounds, usual))) }))
    }

    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin: ID, format });
        }
        if !decode_params.is_empty() {
            return Err(PluginError::Corrupt { plugin: ID, reason: "it has no decode parameters".into() });
        }
        Ok(Arc::new(Zstd::fixed(DEFAULT_LEVEL)))
    }
}

fn parse_level(value: &str) -> Result<i32, PluginError> {
    value.parse().ok().filter(|level| LEVELS.contains(level)).ok_or_else(|| PluginError::BadParameter {
        plugin: ID,
        key: "level".into(),
        value: value.into(),
        expected: "a whole number from -7 to 22",
    })
}

/// `1..9`, or `off` for a level that stays.
fn parse_adapt(value: &str) -> Result<Option<(i32, i32)>, PluginError> {
    if value == "off" {
        return Ok(None);
    }
    let level = |text: &str| text.parse().ok().filter(|level| LEVELS.contains(level));
    let bounds = value.split_once("..").and_then(|(low, high)| Some((level(low)?, level(high)?)));
    bounds.filter(|(low, high)| low <= high).map(Some).ok_or_else(|| PluginError::BadParameter {
        plugin: ID,
        key: "adapt".into(),
        value: value.into(),
        expected: "two levels from -7 to 22, as 1..9 ([1, 9] in a file), or off",
    })
}

/// zstd at one level, or at one that the host moves within bounds.
#[derive(Debug, Clone)]
pub struct Zstd {
    level: i32,
    effort: Option<Arc<Effort>>,
}

impl Zstd {
    fn fixed(level: i32) -> Self {
        Self { level, effort: None }
    }
}

impl Transform for Zstd {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        let mut params = vec![("level", self.level.to_string())];
        if let Some(effort) = &self.effort {
            params.push(("adapt", format!("{}..{}", effort.bounds().start(), effort.bounds().end())));
        }
        params
    }

    fn effort(&self) -> Option<&Effort> {
        self.effort.as_deref()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(worker::ZstdWorker::new(self.level, self.effort.clone())))
    }
}
