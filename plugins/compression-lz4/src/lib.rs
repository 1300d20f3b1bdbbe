//! The fast compressor: one LZ4 block per frame, as in the LZ4 block format description, without a header of its own.
//! The length of the frame stands in its record, so the block needs none.
#![forbid(unsafe_code)]

use std::sync::Arc;

use axiomfs_api::{Applied, BoundedBuf, Descriptor, Hint, Kind, PluginError, Transform, TransformFactory, Worker};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Format number: a single LZ4 block without a dictionary.
pub const FORMAT: u16 = 1;

const ID: &str = "lz4";
/// From this length on a table of wider entries is needed.
const LARGE: usize = u16::MAX as usize;

static DESCRIPTOR: Descriptor = Descriptor {
    id: ID,
    kind: Kind::Transform,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Compression with LZ4: several times faster than zstd, and larger; frames that don't shrink go through unchanged",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &["compression"],
    requires: &[],
    before: &["encryption"],
    after: &[],
    // Two tables; the largest has 4,096 entries of 4 bytes.
    memory: 64 << 10,
    skippable: true,
};

/// Makes compressors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Factory;

impl TransformFactory for Factory {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        match params.first() {
            None => Ok(Arc::new(Lz4)),
            Some((key, _)) => Err(PluginError::UnknownParameter { plugin: ID, key: key.clone(), known: "none" }),
        }
    }

    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin: ID, format });
        }
        if !decode_params.is_empty() {
            return Err(PluginError::Corrupt { plugin: ID, reason: "it has no decode parameters".into() });
        }
        Ok(Arc::new(Lz4))
    }
}

/// LZ4; there is nothing to set.
#[derive(Debug, Clone, Copy)]
pub struct Lz4;

impl Transform for Lz4 {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(Lz4Worker::default()))
    }
}

/// The tables of one thread, each made at its first use.
#[derive(Default)]
struct Lz4Worker {
    small: Option<CompressTable>,
    large: Option<CompressTable>,
}

/// What the output must stay under to be worth decoding later: the input less 1/64 (1.6 %).
fn worthwhile(len: usize) -> usize {
    len - len.div_ceil(64).min(len)
}

impl Worker for Lz4Worker {
    fn encode(&mut self, _hint: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        let bound = worthwhile(src.len());
        if bound == 0 {
            return Ok(Applied::No);
        }
        let table = match src.len() < LARGE {
            true => self.small.get_or_insert_with(CompressTable::small),
            false => self.large.get_or_insert_with(CompressTable::large),
        };
        let room = out.grow(get_maximum_output_size(src.len()))?;
        let len = compress_into_with_table(src, room, table)
            .map_err(|error| PluginError::Failed { plugin: ID, reason: error.to_string() })?;
        out.truncate(len);
        Ok(if len <= bound { Applied::Yes } else { Applied::No })
    }

    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin: ID, format });
        }
        let room = out.grow(raw_len)?;
        match decompress_into(src, room) {
            Ok(actual) if actual == raw_len => Ok(()),
            Ok(actual) => Err(PluginError::LengthMismatch { expected: raw_len, actual }),
            Err(error) => Err(PluginError::Corrupt { plugin: ID, reason: error.to_string() }),
        }
    }
}
