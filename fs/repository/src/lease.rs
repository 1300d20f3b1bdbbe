//! The lease: a hint that names who writes a volume (format.md §8).

use axiomfs_api::{Body, Seal, Store, StoreErrorKind};

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::Envelope;
use crate::error::{InObject, RepositoryError};
use crate::ids::{StateId, VolumeId};
use crate::keyring::Keyring;
use crate::{limits, names};

/// Who writes a volume, for people; nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// Since when, in nanoseconds since 1970.
    pub since_ns: i64,
    /// What may hold changes that the store does not have; earlier versions did not say.
    pub state: Option<LeaseState>,
    /// Number of the newest head that the writer knew, 0 if none: where to look for heads when the store lists none.
    pub head: u64,
}

/// A writer's state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// Tells it from others.
    pub id: StateId,
    /// Where it is on that machine.
    pub directory: String,
}

/// Longest host and directory that are kept, in bytes.
const MOST_HOST: usize = 255;
const MOST_DIRECTORY: usize = 4096;

impl Lease {
    pub(crate) fn store(
        &self,
        store: &dyn Store,
        keyring: &Keyring,
        seal: &dyn Seal,
        volume: VolumeId,
    ) -> Result<(), RepositoryError> {
        let mut plain = Vec::new();
        let cut = |text: &str, most: usize| text.as_bytes()[..text.len().min(most)].to_vec();
        plain.put_bytes16(&cut(&self.host, MOST_HOST));
        plain.put_u32(self.pid);
        plain.put_i64(self.since_ns);
        // Without a state directory an empty one, so that the number can follow.
        let none = LeaseState { id: StateId([0; 16]), directory: String::new() };
        let state = self.state.as_ref().unwrap_or(&none);
        plain.put(&state.id.0);
        plain.put_bytes16(&cut(&state.directory, MOST_DIRECTORY));
        plain.put_u64(self.head);
        let epoch = keyring.current_epoch();
        let sealed = envelope(keyring, &volume.0).seal(seal, epoch.number, &epoch.key, &plain)?;
        Ok(store.put(&names::key(&names::lease(volume))?, Body::Bytes(&sealed))?)
    }

    pub(crate) fn load(
        store: &dyn Store,
        keyring: &Keyring,
        seal: &dyn Seal,
        volume: VolumeId,
    ) -> Result<Option<Self>, RepositoryError> {
        let object = names::lease(volume);
        let bytes = match store.get(&names::key(&object)?, limits::LEASE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let envelope = envelope(keyring, &volume.0);
        let epoch = envelope.key_number(&bytes, &object)?;
        let Some(key) = keyring.epoch(epoch) else { return Err(RepositoryError::UnknownEpoch { object, epoch }) };
        let plain = envelope.open(seal, &key.key, bytes, &object)?;
        Self::decode(&plain).in_object(object).map(Some)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let host = String::from_utf8_lossy(r.bytes16()?).into_owned();
        let (pid, since_ns) = (r.u32()?, r.i64()?);
        // The first versions ended here, later ones after the state directory.
        let state = match r.is_empty() {
            true => None,
            false => {
                let id = StateId(r.array()?);
                Some(LeaseState { id, directory: String::from_utf8_lossy(r.bytes16()?).into_owned() })
            }
        };
        let head = if r.is_empty() { 0 } else { r.u64()? };
        r.end()?;
        Ok(Self { host, pid, since_ns, state: state.filter(|state| !state.directory.is_empty()), head })
    }
}

fn envelope<'a>(keyring: &Keyring, names: &'a [u8]) -> Envelope<'a> {
    Envelope { magic: b"AXLE", label: "axiomfs lease", repository: keyring.repository, names }
}
