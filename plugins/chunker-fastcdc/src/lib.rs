//! The chunker: FastCDC as published in 2020 (Xia et al., IEEE TPDS 31-9), normalisation level 1, with a seeded gear
//! table.
//!
//! The seed is one 64-bit word, XORed into every entry of a published table. It keeps chunk lengths from being
//! comparable between repositories at a glance; it does not withstand an attacker who sees exact chunk lengths
//! (eprint 2025/532), which is why lengths are padded and chunks packed above this crate.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use axiomfs_api::{ChunkSizes, Chunker, Descriptor, Kind};
use fastcdc::v2020::{self, Normalization};
use thiserror::Error;

/// Format number: the same seed, sizes and bytes give the same cuts for as long as it stays.
pub const FORMAT: u16 = 1;

/// How files are cut: 16 KiB, 64 KiB, 256 KiB. Smaller chunks find more that is stored already and a read of a page verifies less; each costs
/// some hundred bytes of index and tree, here 0.1 %. How well they compress depends on the frames that they share, not on them.
pub const DEFAULT_SIZES: ChunkSizes = ChunkSizes { min: 16 << 10, avg: 64 << 10, max: 256 << 10 };

/// What the host must know of this plugin.
pub static DESCRIPTOR: Descriptor = Descriptor {
    id: "fastcdc",
    kind: Kind::Chunker,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Content-defined chunking, FastCDC 2020 with a seeded gear table",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &["chunking"],
    requires: &[],
    before: &[],
    after: &[],
    memory: 4 << 10,
    skippable: false,
};

/// Sizes that the algorithm cannot keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "Chunk sizes {min}/{avg}/{max} must be even, strictly growing, and within 64..=1048576, 256..=4194304, 1024..=16777216"
)]
pub struct BadSizes {
    min: usize,
    avg: usize,
    max: usize,
}

/// A chunker with its tables computed once.
#[derive(Debug, Clone)]
pub struct FastCdc {
    sizes: ChunkSizes,
    mask_s: u64,
    mask_l: u64,
    gear: Cow<'static, [u64]>,
    gear_ls: Cow<'static, [u64]>,
}

impl FastCdc {
    /// A chunker for `sizes`, cutting as `seed` says.
    ///
    /// # Panics
    /// If `sizes` are none that [`try_new`](Self::try_new) takes; use that for sizes that come from outside.
    pub fn new(seed: u64, sizes: ChunkSizes) -> Self {
        Self::try_new(seed, sizes).expect("chunk sizes within the algorithm's bounds")
    }

    /// The same for sizes from a repository or a setting.
    ///
    /// # Errors
    /// [`BadSizes`] if they are odd, out of order or out of the published masks' range.
    pub fn try_new(seed: u64, sizes: ChunkSizes) -> Result<Self, BadSizes> {
        let ChunkSizes { min, avg, max } = sizes;
        let even = [min, avg, max].iter().all(|size| size.is_multiple_of(2));
        let bounded = (v2020::MINIMUM_MIN..=v2020::MINIMUM_MAX).contains(&min)
            && (v2020::AVERAGE_MIN..=v2020::AVERAGE_MAX).contains(&avg)
            && (v2020::MAXIMUM_MIN..=v2020::MAXIMUM_MAX).contains(&max);
        if !(even && bounded && min < avg && avg < max) {
            return Err(BadSizes { min, avg, max });
        }
        let (mask_s, mask_l) = v2020::select_masks(avg, Normalization::Level1);
        let (gear, gear_ls) = v2020::get_gear_with_seed(seed);
        Ok(Self { sizes, mask_s, mask_l, gear, gear_ls })
    }
}

impl Chunker for FastCdc {
    fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    fn cut(&self, data: &[u8]) -> usize {
        let ChunkSizes { min, avg, max } = self.sizes;
        let (mask_s, mask_l) = (self.mask_s, self.mask_l);
        let (_, len) =
            v2020::cut_gear(data, min, avg, max, mask_s, mask_l, mask_s << 1, mask_l << 1, &self.gear, &self.gear_ls);
        len
    }
}
