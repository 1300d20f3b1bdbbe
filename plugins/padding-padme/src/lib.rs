//! Padding: rounds a frame's length up as Padmé does (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
//! Communication with PURBs", 2019), by under 12 %, so that a length tells O(log log n) bits.
//!
//! The seal pads what it seals in the same way by itself. This step is for chains in which something later would see the
//! length: another transform behind it, or a store that takes frames unsealed.
#![forbid(unsafe_code)]

use std::sync::Arc;

use axiomfs_api::{Applied, BoundedBuf, Descriptor, Hint, Kind, PluginError, Transform, TransformFactory, Worker};

/// Format number: the frame, a byte 0x80, then zeros up to [`padme`] of the length of both.
pub const FORMAT: u16 = 1;

const ID: &str = "padme";
/// Ends the frame, so that zeros at its own end are not taken for padding.
const MARK: u8 = 0x80;

static DESCRIPTOR: Descriptor = Descriptor {
    id: ID,
    kind: Kind::Transform,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Padding of lengths (Padmé), at most 12 % more; the seal does the same by itself",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &["padding"],
    requires: &[],
    before: &["encryption"],
    // A compressor would squeeze the padding out again.
    after: &["compression"],
    memory: 4 << 10,
    skippable: true,
};

/// `len` rounded up so that it leaks few bits: with E = floor(log2 len) and S = floor(log2 E) + 1, to a multiple of 2^(E-S).
pub fn padme(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let significant = exponent.checked_ilog2().map_or(0, |log| log + 1);
    let mask = (1usize << exponent.saturating_sub(significant)) - 1;
    (len + mask) & !mask
}

/// Makes padders.
#[derive(Debug, Clone, Copy, Default)]
pub struct Factory;

impl TransformFactory for Factory {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        match params.first() {
            None => Ok(Arc::new(Padme)),
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
        Ok(Arc::new(Padme))
    }
}

/// The padding; there is nothing to set, and nothing to remember between frames.
#[derive(Debug, Clone, Copy)]
pub struct Padme;

impl Transform for Padme {
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
        Ok(Box::new(*self))
    }
}

impl Worker for Padme {
    fn encode(&mut self, _hint: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        let padded = padme(src.len() + 1);
        out.extend(src)?;
        out.extend(&[MARK])?;
        out.grow(padded - src.len() - 1)?;
        Ok(Applied::Yes)
    }

    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin: ID, format });
        }
        let corrupt = |reason: &str| PluginError::Corrupt { plugin: ID, reason: reason.into() };
        let Some((frame, [MARK, padding @ ..])) = src.split_at_checked(raw_len) else {
            return Err(corrupt("its frame does not end where it should"));
        };
        if src.len() != padme(raw_len + 1) {
            return Err(corrupt("its length is not a padded one"));
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err(corrupt("its padding is not zero"));
        }
        out.extend(frame)
    }
}
