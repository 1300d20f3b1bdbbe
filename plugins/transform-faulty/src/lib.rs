//! A transform for tests: it XORs, and for one in so many frames it does what a plugin must not do.
//!
//! Which frames these are is decided by their first [`MARK_LEN`] bytes alone, so that a test can choose them; shorter
//! frames are never chosen. A step with `pause=FILE` makes each frame wait besides, by the milliseconds in FILE, which is read each
//! time. Nothing but tests registers it: see `AXIOMFS_FAULT_PLUGINS` in `fs/cli/src/faults.rs`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axiomfs_api::{Applied, BoundedBuf, Descriptor, Hint, Kind, PluginError, Transform, TransformFactory, Worker};

/// Format number: a byte 0 or 1, then the frame with each byte XORed with 0x55.
pub const FORMAT: u16 = 1;
/// Bytes at a frame's beginning that decide whether it is chosen.
pub const MARK_LEN: usize = 64;

const MASK: u8 = 0x55;
/// What a greedy frame takes.
const GREED: usize = 64 << 20;
/// What a slow frame takes.
const SLOW: Duration = Duration::from_secs(3);

const FAULTY: Descriptor = Descriptor {
    id: "faulty",
    kind: Kind::Transform,
    version: env!("CARGO_PKG_VERSION"),
    summary: "For tests: wrong, failing, greedy or slow for one in so many frames",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &[],
    requires: &[],
    before: &["encryption"],
    after: &[],
    memory: 4 << 10,
    skippable: true,
};

static SMALL: Descriptor = FAULTY;
static LARGE: Descriptor = Descriptor {
    id: "faulty-large",
    summary: "For tests: asks for 2 GiB of memory, more than any setting allows",
    memory: 2 << 30,
    ..FAULTY
};

/// Makes faulty steps.
#[derive(Debug, Clone, Copy)]
pub struct Factory(&'static Descriptor);

impl Factory {
    /// The plugin `faulty`.
    pub fn new() -> Self {
        Self(&SMALL)
    }

    /// The plugin `faulty-large`, which no chain can have.
    pub fn large() -> Self {
        Self(&LARGE)
    }
}

impl Default for Factory {
    fn default() -> Self {
        Self::new()
    }
}

/// One in how many frames meets which fault; 0 for none.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    /// It decodes to other bytes than went in.
    wrong: u64,
    /// It fails to encode.
    fail: u64,
    /// It takes [`GREED`] bytes to encode.
    greedy: u64,
    /// It takes [`SLOW`] to encode.
    slow: u64,
}

impl TransformFactory for Factory {
    fn descriptor(&self) -> &'static Descriptor {
        self.0
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        let plugin = self.0.id;
        let (mut rates, mut pause) = (Rates::default(), None);
        for (key, value) in params {
            let rate = match key.as_str() {
                "wrong" => &mut rates.wrong,
                "fail" => &mut rates.fail,
                "greedy" => &mut rates.greedy,
                "slow" => &mut rates.slow,
                "pause" => {
                    pause = Some(Arc::from(Path::new(value)));
                    continue;
                }
                _ => {
                    let known = "wrong, fail, greedy, slow, pause";
                    return Err(PluginError::UnknownParameter { plugin, key: key.clone(), known });
                }
            };
            let bad = || {
                let (key, value) = (key.clone(), value.clone());
                PluginError::BadParameter { plugin, key, value, expected: "a number: one in so many, 0 for none" }
            };
            *rate = value.parse().map_err(|_| bad())?;
        }
        Ok(Arc::new(Faulty { descriptor: self.0, rates, pause }))
    }

    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        let plugin = self.0.id;
        match (format, decode_params) {
            (FORMAT, []) => Ok(Arc::new(Faulty { descriptor: self.0, rates: Rates::default(), pause: None })),
            (FORMAT, _) => Err(PluginError::Corrupt { plugin, reason: "it has no decode parameters".into() }),
            _ => Err(PluginError::UnknownFormat { plugin, format }),
        }
    }
}

#[derive(Debug, Clone)]
struct Faulty {
    descriptor: &'static Descriptor,
    rates: Rates,
    pause: Option<Arc<Path>>,
}

impl Transform for Faulty {
    fn descriptor(&self) -> &'static Descriptor {
        self.descriptor
    }

    fn decode_params(&self) -> Vec<u8> {
        Vec::new()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        let Rates { wrong, fail, greedy, slow } = self.rates;
        let all = [("wrong", wrong), ("fail", fail), ("greedy", greedy), ("slow", slow)];
        let pause = self.pause.as_ref().map(|file| ("pause", file.display().to_string()));
        all.into_iter().filter(|(_, rate)| *rate > 0).map(|(key, rate)| (key, rate.to_string())).chain(pause).collect()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(self.clone()))
    }
}

impl Worker for Faulty {
    fn encode(&mut self, _hint: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        let plugin = self.descriptor.id;
        let millis = self.pause.as_ref().and_then(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
        std::thread::sleep(Duration::from_millis(millis.unwrap_or(0)));
        if is_chosen(src, self.rates.fail) {
            return Err(PluginError::Failed { plugin, reason: "it was told to fail now and then".into() });
        }
        if is_chosen(src, self.rates.slow) {
            std::thread::sleep(SLOW);
        }
        if is_chosen(src, self.rates.greedy) {
            std::hint::black_box(vec![1u8; GREED]);
        }
        out.extend(&[u8::from(is_chosen(src, self.rates.wrong))])?;
        for (to, from) in out.grow(src.len())?.iter_mut().zip(src) {
            *to = from ^ MASK;
        }
        Ok(Applied::Yes)
    }

    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        let plugin = self.descriptor.id;
        if format != FORMAT {
            return Err(PluginError::UnknownFormat { plugin, format });
        }
        let (rare, frame) = match src {
            [rare @ (0 | 1), frame @ ..] => (*rare, frame),
            _ => return Err(PluginError::Corrupt { plugin, reason: "it does not begin with 0 or 1".into() }),
        };
        if frame.len() != raw_len {
            return Err(PluginError::LengthMismatch { expected: raw_len, actual: frame.len() });
        }
        let decoded = out.grow(raw_len)?;
        for (to, from) in decoded.iter_mut().zip(frame) {
            *to = from ^ MASK;
        }
        // The fault: frames of the rare kind are decoded a little wrongly.
        if let Some(last) = decoded.last_mut() {
            *last ^= rare;
        }
        Ok(())
    }
}

/// Whether a frame is the one in `n` that something happens to: the upper half of the 64-bit FNV-1a of its first
/// [`MARK_LEN`] bytes is a multiple of `n`.
pub fn is_chosen(frame: &[u8], n: u64) -> bool {
    let Some(mark) = frame.get(..MARK_LEN) else { return false };
    let hash = mark
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    n > 0 && (hash >> 32).is_multiple_of(n)
}
