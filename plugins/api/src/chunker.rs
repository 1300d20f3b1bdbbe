/// Smallest, wanted and largest chunk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// No chunk but the last of a stream is shorter.
    pub min: usize,
    /// The size aimed at.
    pub avg: usize,
    /// No chunk is longer.
    pub max: usize,
}

/// Splits a stream into content-defined chunks.
///
/// Contract: a cut depends only on the bytes since the previous cut, so a stream can be resumed at any cut; the same
/// bytes give the same cuts in every version that carries the same format number.
pub trait Chunker: Send + Sync {
    /// The bounds this chunker keeps.
    fn sizes(&self) -> ChunkSizes;

    /// Length of the chunk that starts at the beginning of `data`.
    ///
    /// `data` holds at least `sizes().max` bytes, or all that is left of the stream. Returns a value in
    /// `1..=min(data.len(), sizes().max)`, and `data.len()` where no cut was found in a shorter rest. `data` is not empty.
    fn cut(&self, data: &[u8]) -> usize;
}
