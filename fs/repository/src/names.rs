//! Names of objects in the store.

use axiomfs_api::ObjectKey;

use crate::error::RepositoryError;
use crate::ids::{PackId, SegmentId, SequenceNo, VolumeId, hex};

pub(crate) const CONFIG: &str = "config";

pub(crate) fn slot(id: &[u8; 16]) -> String {
    format!("keys/{}", hex::encode(id))
}

pub(crate) fn keyring(generation: u32) -> String {
    format!("keyring/{generation:010}")
}

pub(crate) fn pack(id: &PackId) -> String {
    format!("packs/{}/{id}", hex::encode(&id.0[..1]))
}

pub(crate) fn segment(volume: VolumeId, id: SegmentId) -> String {
    format!("index/{volume}/{id}")
}

pub(crate) fn heads(volume: VolumeId) -> String {
    format!("heads/{volume}/")
}

pub(crate) fn head(volume: VolumeId, sequence: SequenceNo) -> String {
    format!("heads/{volume}/{:016x}", sequence.0)
}

pub(crate) fn lease(volume: VolumeId) -> String {
    format!("lease/{volume}")
}

/// The checked form of a name made above.
pub(crate) fn key(name: &str) -> Result<ObjectKey, RepositoryError> {
    Ok(ObjectKey::new(name)?)
}
