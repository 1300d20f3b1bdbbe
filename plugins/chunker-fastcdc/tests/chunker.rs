//! The chunker against the suite, golden cuts and an implementation written from the paper.

use axiomfs_api::conformance::{self, Noise};
use axiomfs_api::{ChunkSizes, Chunker};
use axiomfs_chunker_fastcdc::{DEFAULT_SIZES, FastCdc};
use proptest::prelude::*;

const SEED: u64 = 0x0123_4567_89ab_cdef;
/// The default of older repositories.
const LARGE: ChunkSizes = ChunkSizes { min: 64 << 10, avg: 256 << 10, max: 1 << 20 };
const SMALL: ChunkSizes = ChunkSizes { min: 2 << 10, avg: 8 << 10, max: 32 << 10 };

fn cuts(chunker: &FastCdc, data: &[u8]) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let len = chunker.cut(rest);
        lens.push(len);
        rest = &rest[len..];
    }
    lens
}

#[test]
fn keeps_the_contract() {
    conformance::chunker(&FastCdc::new(SEED, SMALL));
    conformance::chunker(&FastCdc::new(0, SMALL));
    conformance::chunker(&FastCdc::new(SEED, DEFAULT_SIZES));
}

/// These cuts are in repositories: a change here is a new format number.
#[test]
fn golden_cuts() {
    let data = Noise::new(42).bytes(16 << 20);
    assert_eq!(cuts(&FastCdc::new(SEED, LARGE), &data), GOLDEN_LARGE);
    assert_eq!(cuts(&FastCdc::new(SEED, DEFAULT_SIZES), &data[..4 << 20]), GOLDEN_DEFAULT);
    assert_eq!(cuts(&FastCdc::new(SEED, SMALL), &data[..200_000]), GOLDEN_SMALL);
}

const GOLDEN_DEFAULT: &[usize] = &[
    96915, 123403, 139264, 147269, 105851, 86702, 73875, 79817, 78873, 83477, 92168, 72428, 174751, 104595, 141850,
    72066, 96842, 106033, 35245, 82564, 70224, 34110, 100392, 48303, 112293, 23638, 82462, 45706, 90935, 86046, 105129,
    73140, 79323, 20366, 142252, 62244, 49157, 37210, 80951, 106137, 36990, 29450, 83679, 54597, 106791, 121290, 68772,
    37120, 133157, 78452,
];
const GOLDEN_LARGE: &[usize] = &[
    612702, 468769, 273322, 104595, 313599, 294562, 315399, 219103, 364004, 290863, 146941, 77137, 274517, 325512,
    617629, 341587, 233916, 323488, 364927, 267622, 103575, 314346, 251997, 369747, 261435, 197323, 453919, 412080,
    432925, 273734, 154206, 153542, 414404, 142865, 298539, 98991, 310520, 205362, 465998, 279696, 259607, 122930,
    270780, 378019, 125224, 379081, 191490, 246681, 301969, 293175, 264186, 344118, 786889, 582830, 404839,
];
const GOLDEN_SMALL: &[usize] = &[
    9532, 9446, 11282, 9320, 8800, 8963, 20185, 8852, 5261, 3525, 11340, 2791, 10324, 13189, 13358, 10174, 13992, 4985,
    9297, 12106, 3278,
];

/// The paper's algorithm, one byte at a time instead of two.
fn naive_cut(gear: &[u64], masks: (u64, u64), sizes: ChunkSizes, data: &[u8]) -> usize {
    let n = data.len().min(sizes.max);
    if n <= sizes.min {
        return n;
    }
    let mut hash = 0u64;
    // Cuts are tested in pairs; the first of a pair compares the hash shifted left once more.
    for i in sizes.min..n & !1 {
        let mask = if i < sizes.avg.min(n) & !1 { masks.0 } else { masks.1 };
        hash = (hash << 1).wrapping_add(gear[data[i] as usize]);
        let hit = if i % 2 == 0 { (hash << 1) & (mask << 1) == 0 } else { hash & mask == 0 };
        if hit {
            return i;
        }
    }
    n
}

#[test]
fn cuts_as_the_paper_says() {
    let (gear, _) = fastcdc::v2020::get_gear_with_seed(SEED);
    let masks = fastcdc::v2020::select_masks(SMALL.avg, fastcdc::v2020::Normalization::Level1);
    let chunker = FastCdc::new(SEED, SMALL);
    let mut noise = Noise::new(8);
    for _ in 0..50 {
        let len = 1 + noise.below(100_000);
        let data = if len.is_multiple_of(2) { noise.bytes(len) } else { noise.text(len) };
        assert_eq!(chunker.cut(&data), naive_cut(&gear, masks, SMALL, &data), "length {len}");
    }
}

#[test]
fn seeds_cut_differently() {
    let data = Noise::new(9).bytes(2 << 20);
    let (one, two) = (cuts(&FastCdc::new(1, SMALL), &data), cuts(&FastCdc::new(2, SMALL), &data));
    assert_ne!(one, two);
    let mean = data.len() / one.len();
    assert!((SMALL.avg / 2..SMALL.avg * 2).contains(&mean), "chunks are about as long as wanted, not {mean}");
}

#[test]
fn refuses_sizes_it_cannot_keep() {
    for (min, avg, max) in
        [(0, 8192, 32768), (2048, 2048, 32768), (2049, 8192, 32768), (2048, 65536, 32768), (64, 256, 1 << 30)]
    {
        let error = FastCdc::try_new(1, ChunkSizes { min, avg, max }).expect_err("bad sizes");
        assert!(error.to_string().contains(&format!("{min}/{avg}/{max}")), "{error}");
    }
}

proptest! {
    #[test]
    fn cuts_cover_any_stream(seed: u64, data in prop::collection::vec(any::<u8>(), 1..200_000)) {
        let lens = cuts(&FastCdc::new(seed, SMALL), &data);
        prop_assert_eq!(lens.iter().sum::<usize>(), data.len());
        prop_assert!(lens[..lens.len() - 1].iter().all(|len| (SMALL.min..=SMALL.max).contains(len)));
    }
}
