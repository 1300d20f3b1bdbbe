//! What became of a chunk, for people who ask.

use axiomfs_host::ChainRecord;

use crate::error::RepositoryError;
use crate::ids::{ChunkId, hex};
use crate::place::{ChunkPlace, FrameKey};
use crate::repository::Repository;

/// The frame that holds a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameInfo {
    /// Name of its pack: the object's, or the file's while it is not in the store.
    pub pack: String,
    /// Its number in the pack.
    pub number: u32,
    /// The sealing epoch of the pack.
    pub epoch: u32,
    /// Whether it is still on this machine only.
    pub is_staged: bool,
    /// The transforms that were applied, in encoding order, as `id/format`.
    pub applied: Vec<String>,
    /// The seal; empty for a clear frame.
    pub seal: String,
    /// The id of the chain that made it, in hex.
    pub chain: String,
    /// Bytes of all its chunks.
    pub raw: u32,
    /// Bytes that the transforms made of them.
    pub encoded: u32,
    /// Bytes it takes in its pack.
    pub stored: u32,
    /// Tells frames from each other, wherever their pack is.
    pub key: FrameKey,
}

impl Repository {
    /// The frame that would be read for chunk `id`; `None` while the chunk waits to be encoded. May ask the store for a block
    /// of the index, never for the frame.
    ///
    /// # Errors
    /// [`RepositoryError::Missing`] if nobody knows the chunk, or what the index met.
    pub fn frame_of(&self, id: &ChunkId) -> Result<Option<FrameInfo>, RepositoryError> {
        let mut pending = None;
        let facts = |place: &ChunkPlace| {
            let (record, chain, pack, epoch, is_staged) = place.facts();
            let descriptor = ChainRecord::parse(&chain.descriptor).map_err(|e| RepositoryError::host(&pack, e))?;
            let steps = descriptor.steps.iter().enumerate().filter(|(slot, _)| record.applied >> slot & 1 == 1);
            Ok(FrameInfo {
                pack,
                number: record.number,
                epoch,
                is_staged,
                applied: steps.map(|(_, step)| format!("{}/{}", step.plugin, step.format)).collect(),
                seal: descriptor.seal.map(|(id, format)| format!("{id}/{format}")).unwrap_or_default(),
                chain: hex::encode(&chain.id),
                raw: record.raw,
                encoded: record.encoded,
                stored: record.stored,
                key: place.key(),
            })
        };
        let found = self.try_places(id, &mut pending, facts);
        match (found, pending) {
            (Ok(info), _) => Ok(Some(info)),
            (Err(_), Some(_)) => Ok(None),
            // As who reads it finds it.
            (Err(error), None) if error.is_damage() => match self.borrow_to_read(id) {
                Ok(Some(place)) => facts(&ChunkPlace::stored(place)).map(Some),
                _ => Err(error),
            },
            (Err(error), None) => Err(error),
        }
    }
}
