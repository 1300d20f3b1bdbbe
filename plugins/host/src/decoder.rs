use std::sync::Arc;

use axiomfs_api::{BoundedBuf, PluginError};

use crate::HostError;
use crate::pool::{Bench, Permits, Pool};
use crate::unit::Unit;

/// Undoes the transforms that a chain applied. The seal is opened before, by the keys' owner.
pub struct Decoder {
    pub(crate) units: Vec<(Unit, u16)>,
    pub(crate) seal: Option<(String, u16)>,
    pub(crate) pool: Pool,
    pub(crate) permits: Arc<Permits>,
    pub(crate) max_frame: usize,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let steps: Vec<_> = self.units.iter().map(|(unit, format)| (unit.plugin, format)).collect();
        f.debug_struct("Decoder").field("steps", &steps).field("seal", &self.seal).finish_non_exhaustive()
    }
}

impl Decoder {
    /// The id of the seal that closes this chain's frames.
    pub fn seal_id(&self) -> Option<&str> {
        self.seal.as_ref().map(|(id, _)| id.as_str())
    }

    /// The seal's format number.
    pub fn seal_format(&self) -> Option<u16> {
        self.seal.as_ref().map(|(_, format)| *format)
    }

    /// The frame of `raw_len` bytes that was encoded to `encoded` by the steps of `applied`.
    ///
    /// # Errors
    /// [`HostError::Decode`] on anything but the bytes that were written; [`HostError::BadSteps`],
    /// [`HostError::FrameTooLarge`] on numbers that no encoder gave.
    pub fn decode(&self, applied: u32, encoded: &[u8], raw_len: usize) -> Result<Vec<u8>, HostError> {
        self.decode_start(applied, encoded, raw_len, raw_len)
    }

    /// At least the first `len` bytes of the frame: all of them where a step can't decode from the front. Damage behind them may go unseen.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_start(&self, applied: u32, encoded: &[u8], raw_len: usize, len: usize) -> Result<Vec<u8>, HostError> {
        self.check(applied, encoded.len(), raw_len)?;
        let len = len.min(raw_len);
        if applied == 0 {
            return Ok(encoded[..len].to_vec());
        }
        let _permit = self.permits.acquire();
        self.pool.with(|bench| self.run(bench, applied, encoded, raw_len, len))
    }

    /// The same for bytes that are no longer needed; without a copy where no step was applied.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_vec(&self, applied: u32, encoded: Vec<u8>, raw_len: usize) -> Result<Vec<u8>, HostError> {
        self.check(applied, encoded.len(), raw_len)?;
        if applied == 0 { Ok(encoded) } else { self.decode(applied, &encoded, raw_len) }
    }

    /// The same under a permit that the caller holds already.
    pub(crate) fn decode_permitted(&self, applied: u32, encoded: &[u8], raw_len: usize) -> Result<Vec<u8>, HostError> {
        self.check(applied, encoded.len(), raw_len)?;
        if applied == 0 {
            return Ok(encoded.to_vec());
        }
        self.pool.with(|bench| self.run(bench, applied, encoded, raw_len, raw_len))
    }

    /// Whether the step of `slot` makes `raw` of `encoded` again.
    pub(crate) fn undoes(&self, slot: usize, encoded: &[u8], raw: &[u8]) -> bool {
        let (unit, format) = &self.units[slot];
        let mut out = BoundedBuf::new(raw.len());
        self.pool
            .with(|bench| unit.decode(&mut bench.workers[slot], *format, encoded, raw.len(), raw.len(), &mut out))
            .is_ok_and(|()| out.as_slice() == raw)
    }

    fn check(&self, applied: u32, encoded_len: usize, raw_len: usize) -> Result<(), HostError> {
        let steps = self.units.len();
        if u64::from(applied) >> steps != 0 {
            return Err(HostError::BadSteps { applied, steps });
        }
        if raw_len > self.max_frame {
            return Err(HostError::FrameTooLarge { len: raw_len, max: self.max_frame });
        }
        if applied == 0 && encoded_len != raw_len {
            let source = Box::new(PluginError::LengthMismatch { expected: raw_len, actual: encoded_len });
            return Err(HostError::Decode { plugin: "none".into(), source });
        }
        Ok(())
    }

    /// At least the first `wanted` of `raw_len` bytes.
    fn run(
        &self,
        bench: &mut Bench,
        applied: u32,
        encoded: &[u8],
        raw_len: usize,
        wanted: usize,
    ) -> Result<Vec<u8>, HostError> {
        let slots: Vec<usize> = (0..self.units.len()).filter(|slot| applied >> slot & 1 == 1).collect();
        let (mut lens, body) = split_lengths(encoded, slots.len())?;
        lens.insert(0, raw_len);
        let mut current: Option<Vec<u8>> = None;
        let last = slots.first().copied();
        for (slot, len) in slots.into_iter().zip(lens).rev() {
            let (unit, format) = &self.units[slot];
            let bound = self.max_frame + self.max_frame / 4;
            if len > bound {
                return Err(HostError::FrameTooLarge { len, max: bound });
            }
            // The output of the step undone last is the result: it gets a buffer of exactly its size, and may end early.
            let is_last = last == Some(slot);
            let (buffer, part) = if is_last { (Vec::new(), wanted) } else { (bench.buffer(), len) };
            let mut out = BoundedBuf::reuse(buffer, len);
            let src = current.as_deref().unwrap_or(body);
            unit.decode(&mut bench.workers[slot], *format, src, len, part, &mut out)
                .map_err(|source| HostError::Decode { plugin: unit.plugin.into(), source: source.into() })?;
            if let Some(previous) = current.replace(out.into_vec()) {
                bench.keep(previous);
            }
        }
        Ok(current.unwrap_or_default())
    }
}

/// The lengths that follow an encoded frame of `steps` applied steps, and the frame.
fn split_lengths(encoded: &[u8], steps: usize) -> Result<(Vec<usize>, &[u8]), HostError> {
    let len = steps.saturating_sub(1) * 4;
    let Some(at) = encoded.len().checked_sub(len) else {
        let source = Box::new(PluginError::LengthMismatch { expected: len, actual: encoded.len() });
        return Err(HostError::Decode { plugin: "none".into(), source });
    };
    let (body, trailer) = encoded.split_at(at);
    let number = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
    Ok((trailer.chunks_exact(4).map(number).collect(), body))
}
