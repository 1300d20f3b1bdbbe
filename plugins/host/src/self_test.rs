use std::time::{Duration, Instant};

use axiomfs_api::Hint;
use axiomfs_api::conformance::Noise;

use crate::{Chain, HostError};

/// What a self-test saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Frames sent through and back.
    pub frames: usize,
    /// Bytes given.
    pub raw: usize,
    /// Bytes they became.
    pub encoded: usize,
    /// Time to encode and decode them.
    pub took: Duration,
}

/// Sends frames of several kinds through every plan of `chain` and back through its descriptor's decoder.
///
/// # Errors
/// [`HostError::SelfTest`] if a step fails, whatever its error strategy, or something else comes back.
pub fn run(chain: &Chain) -> Result<Measured, HostError> {
    let start = Instant::now();
    let mut measured = Measured { frames: 0, raw: 0, encoded: 0, took: Duration::ZERO };
    let failed = |reason: String| HostError::SelfTest { chain: chain.name().to_string(), reason };
    for frame in frames() {
        for plan in 0..chain.plans.len() {
            let encoded = chain
                .pool
                .with(|bench| chain.run_plan(bench, plan, Hint::Data, &frame, false))
                .map_err(|error| failed(words(&error)))?;
            let decoded = chain
                .decoder
                .decode_permitted(encoded.applied, &encoded.bytes, frame.len())
                .map_err(|error| failed(words(&error)))?;
            if decoded != frame {
                return Err(failed(format!("{} bytes came back changed", frame.len())));
            }
            measured.frames += 1;
            measured.raw += frame.len();
            measured.encoded += encoded.bytes.len();
        }
    }
    measured.took = start.elapsed();
    Ok(measured)
}

fn words(error: &HostError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Empty, tiny, constant, random, text, and text with noise in it; small enough for a test of milliseconds.
fn frames() -> Vec<Vec<u8>> {
    let mut noise = Noise::new(0x5e1f);
    let mixed = [noise.text(9000), noise.bytes(5000), vec![0; 3000]].concat();
    vec![vec![], vec![0x5a], vec![0; 16 << 10], noise.bytes(8 << 10), noise.text(32 << 10), mixed]
}
