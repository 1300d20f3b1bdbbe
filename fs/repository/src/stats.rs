//! What the repository counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the repository was opened, and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RepositoryStats {
    /// Chunks that the index locates.
    pub indexed_chunks: u64,
    /// Chunks staged or pending.
    pub staged_chunks: u64,
    /// Those of them whose packs have reached the store, in no head yet.
    pub sent_chunks: u64,
    /// Packs staged, open ones included.
    pub staged_packs: u64,
    /// Bytes in staged packs.
    pub staged_bytes: u64,
    /// Raw bytes that wait to be encoded.
    pub pending_bytes: u64,
    /// Chunks and nodes added that were new.
    pub chunks_new: u64,
    /// Chunks and nodes added that were known.
    pub chunks_known: u64,
    /// Raw bytes of the new ones.
    pub bytes_new: u64,
    /// Raw bytes of the known ones.
    pub bytes_known: u64,
    /// Frames written.
    pub frames_written: u64,
    /// Raw bytes of the frames written.
    pub frame_bytes_raw: u64,
    /// Sealed bytes of the frames written.
    pub frame_bytes_stored: u64,
    /// Frames fetched and decoded.
    pub frames_read: u64,
    /// Sealed bytes fetched for them.
    pub frame_bytes_read: u64,
    /// Reads answered from decoded frames and nodes in memory.
    pub cache_hits: u64,
    /// Packs and index segments uploaded.
    pub objects_uploaded: u64,
    /// Their bytes.
    pub bytes_uploaded: u64,
    /// Frames found damaged or missing.
    pub frames_quarantined: u64,
    /// Uploads that may run at the same time now.
    pub uploads_limit: u64,
    /// How often encoders and uploads gave way to reads.
    pub yields: u64,
    /// Bytes of frames in memory, decoded or, of those decoded in part, encoded too.
    pub frame_cache_bytes: u64,
    /// Bytes of tree nodes in memory.
    pub node_cache_bytes: u64,
    /// Bytes of index blocks in memory.
    pub index_cache_bytes: u64,
}

/// What has gone to the store since the repository was opened: that makes room on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Packs that are there.
    pub packs: u64,
    /// Bytes, of whatever has reached it or is on its way, where the store tells.
    pub bytes: Option<u64>,
    /// Most bytes of packs that may be on their way at once.
    pub under_way: u64,
    /// Uploads that failed for good; a later commit tries again.
    pub failed: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) chunks_new: AtomicU64,
    pub(crate) chunks_known: AtomicU64,
    pub(crate) bytes_new: AtomicU64,
    pub(crate) bytes_known: AtomicU64,
    pub(crate) frames_written: AtomicU64,
    pub(crate) frame_bytes_raw: AtomicU64,
    pub(crate) frame_bytes_stored: AtomicU64,
    pub(crate) frames_read: AtomicU64,
    pub(crate) frame_bytes_read: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) objects_uploaded: AtomicU64,
    pub(crate) bytes_uploaded: AtomicU64,
    pub(crate) packs_uploaded: AtomicU64,
    pub(crate) uploads_failed: AtomicU64,
}

/// Adds to a counter; nothing is ordered by it.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn frame(&self, raw: u32, stored: u32) {
        count(&self.frames_written, 1);
        count(&self.frame_bytes_raw, raw.into());
        count(&self.frame_bytes_stored, stored.into());
    }

    pub(crate) fn snapshot(&self) -> RepositoryStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RepositoryStats {
            chunks_new: load(&self.chunks_new),
            chunks_known: load(&self.chunks_known),
            bytes_new: load(&self.bytes_new),
            bytes_known: load(&self.bytes_known),
            frames_written: load(&self.frames_written),
            frame_bytes_raw: load(&self.frame_bytes_raw),
            frame_bytes_stored: load(&self.frame_bytes_stored),
            frames_read: load(&self.frames_read),
            frame_bytes_read: load(&self.frame_bytes_read),
            cache_hits: load(&self.cache_hits),
            objects_uploaded: load(&self.objects_uploaded),
            bytes_uploaded: load(&self.bytes_uploaded),
            ..RepositoryStats::default()
        }
    }
}
