//! A quick look whether a frame can shrink at all, so that media and archives don't cost a compression each.

/// Frames shorter than this are simply compressed.
const MIN_LEN: usize = 64 << 10;
/// Bytes looked at per window.
const WINDOW: usize = 4 << 10;
/// Windows spread evenly over the frame.
const WINDOWS: usize = 4;
/// Of a window of uniformly random bytes, the sum of squared counts is about `WINDOW + WINDOW² / 256`; anything that an
/// entropy coder could shorten by 1.5 % lies at least this much above it.
const FLAT: u64 = ((WINDOW + WINDOW * WINDOW / 256) as u64) * 103 / 100;
/// Of `WINDOW` positions in random bytes practically none repeats four bytes seen before in its window.
const MATCHES: usize = 8;

/// Whether every window looks like random bytes: flat histogram and no repeated four-byte strings.
///
/// A false yes costs space (a frame repeated at a distance over [`WINDOW`] within itself is missed), a false no costs
/// time; nothing else.
pub fn looks_random(frame: &[u8]) -> bool {
    if frame.len() < MIN_LEN {
        return false;
    }
    let stride = (frame.len() - WINDOW) / (WINDOWS - 1);
    (0..WINDOWS).all(|i| window_looks_random(&frame[i * stride..i * stride + WINDOW]))
}

fn window_looks_random(window: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    for &byte in window {
        counts[byte as usize] += 1;
    }
    let squares: u64 = counts.iter().map(|&n| u64::from(n) * u64::from(n)).sum();
    if squares > FLAT {
        return false;
    }
    let mut last = [u32::MAX; 1 << 12];
    let mut matches = 0;
    for bytes in window.windows(4) {
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let slot = &mut last[(word.wrapping_mul(0x9e37_79b1) >> 20) as usize];
        matches += usize::from(*slot == word);
        *slot = word;
    }
    matches < MATCHES
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiomfs_api::conformance::Noise;

    #[test]
    fn tells_noise_from_everything_else() {
        let mut noise = Noise::new(1);
        for _ in 0..200 {
            assert!(looks_random(&noise.bytes(MIN_LEN)), "random bytes are random");
        }
        assert!(!looks_random(&noise.bytes(MIN_LEN - 1)), "short frames are not probed");
        assert!(!looks_random(&noise.text(1 << 20)));
        assert!(!looks_random(&vec![0; 1 << 20]));
        let ramp: Vec<u8> = (0..1u32 << 18).map(|i| i as u8).collect();
        assert!(!looks_random(&ramp), "a flat histogram with repetitions");
        let hex: Vec<u8> = noise.bytes(1 << 17).iter().map(|b| b"0123456789abcdef"[(b & 15) as usize]).collect();
        assert!(!looks_random(&hex));
        let mut half = noise.bytes(1 << 19);
        half.extend(vec![0; 1 << 19]);
        assert!(!looks_random(&half), "one window that shrinks is enough");
    }

    /// Seven random bits of eight can be shortened by an eighth: the histogram must see it.
    #[test]
    fn sees_missing_bits() {
        let bytes: Vec<u8> = Noise::new(2).bytes(1 << 18).iter().map(|b| b & 0x7f).collect();
        assert!(!looks_random(&bytes));
    }
}
