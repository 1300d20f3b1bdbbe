//! Bounds that a reader enforces before it allocates (format.md §10).

pub(crate) const CONFIG: u64 = 4 << 10;
pub(crate) const SLOT: u64 = 4 << 10;
pub(crate) const SLOTS: usize = 32;
pub(crate) const LEASE: u64 = 8 << 10;
pub(crate) const KEYRING: u64 = 1 << 20;
pub(crate) const HEAD: u64 = 4 << 20;
pub(crate) const SEGMENTS: usize = 16_384;
pub(crate) const PACK: u64 = 2 << 30;
pub(crate) const TABLE: u64 = 64 << 20;
pub(crate) const FRAME_RAW: usize = 16 << 20;
pub(crate) const FRAME_ENCODED: usize = 17 << 20;
pub(crate) const FRAME_STORED: usize = 20 << 20;
pub(crate) const CHUNK: usize = 16 << 20;
pub(crate) const DESCRIPTOR: usize = 4 << 10;
pub(crate) const CHAINS: usize = 4096;
pub(crate) const FRAMES: usize = 65_536;
pub(crate) const INDEX_ROOT: u64 = 64 << 20;
pub(crate) const INDEX_BLOCK: u64 = 4 << 20;
