//! The compressor: zstd frames (RFC 8878), one per frame of ours, without checksum (the seal authenticates), with the
//! content size, so that `zstd -d` reads them.
#![forbid(unsafe_code)]

mod probe;
mod worker;

use std::sync::Arc;

use axiomfs_api::{Descriptor, Kind, PluginError, Transform, TransformFactory, Worker};

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
        let mut level = DEFAULT_LEVEL;
        for (key, value) in params {
            match key.as_str() {
                "level" => level = parse_level(value)?,
                _ => return Err(PluginError::UnknownParameter { plugin: ID, key: key.clone(), known: "level" }),
            }
        }
        Ok(Arc::new(Zstd { level }))
    }

    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin: ID, format });
        }
        if !decode_params.is_empty() {
            return Err(PluginError::Corrupt { plugin: ID, reason: "it has no decode parameters".into() });
        }
        Ok(Arc::new(Zstd { level: DEFAULT_LEVEL }))
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

/// zstd at one level.
#[derive(Debug, Clone, Copy)]
pub struct Zstd {
    level: i32,
}

impl Transform for Zstd {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        vec![("level", self.level.to_string())]
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(worker::ZstdWorker::new(self.level)))
    }
}
