//! The keyring: all keys of a repository but those of its slots (format.md §4).

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use axiomfs_api::{Body, ObjectMeta, Seal, Store, StoreErrorKind};
use zeroize::Zeroizing;

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{Envelope, Secret, random, random_secret};
use crate::error::{InObject, RepositoryError};
use crate::foreign::Foreign;
use crate::ids::{ChunkId, RepositoryId, VolumeId};
use crate::key_changes::{KEY_CHANGES_KEPT, KeyChange, NewKeyChange};
use crate::keys::MOST_LISTED;
use crate::locked::keep_out_of_swap;
use crate::repository::lock;
use crate::{limits, names};

/// Most volumes of a repository: their names stand in one object.
const VOLUMES_MAX: usize = 1024;
/// How long nothing is asked after an epoch that no keyring in the store has: a damaged number must not make requests without bound.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The number in a keyring's name, written in the one way that keyrings are named.
fn generation_in(name: &str) -> Option<u32> {
    let generation = name.strip_prefix("keyring/")?.parse().ok()?;
    (names::keyring(generation) == name).then_some(generation)
}

/// A key that seals packs, index segments and heads.
pub(crate) struct EpochKey {
    pub(crate) number: u32,
    pub(crate) key: Secret,
    created_ns: i64,
    compromised: bool,
}

/// What a rotation changes.
struct Epochs {
    generation: u32,
    keys: Vec<Arc<EpochKey>>,
    /// What was done to passphrases and keys, the oldest first.
    changes: Vec<KeyChange>,
}

impl Epochs {
    fn note(&mut self, change: NewKeyChange<'_>, now_ns: i64) {
        let number = self.changes.last().map_or(0, |last| last.number) + 1;
        self.changes.push(change.numbered(number, now_ns));
        let old = self.changes.len().saturating_sub(KEY_CHANGES_KEPT);
        self.changes.drain(..old);
    }

    fn keep_out_of_swap(&self) {
        self.keys.iter().for_each(|key| keep_out_of_swap(key.as_ref()));
    }
}

/// Reads the newest keyring in the store.
type Source = Box<dyn Fn() -> Result<Keyring, RepositoryError> + Send + Sync>;

/// All keys of a repository. One that is in use takes up the epochs of later generations, where it meets them or is told of them.
pub(crate) struct Keyring {
    pub(crate) repository: RepositoryId,
    data_id: Secret,
    node_id: Secret,
    clear_id: Secret,
    chunker: Secret,
    pub(crate) records: Secret,
    pub(crate) log: Secret,
    epochs: RwLock<Epochs>,
    volumes: Vec<(VolumeId, String)>,
    source: OnceLock<Source>,
    /// When the store was last asked for an epoch in vain.
    missed: Mutex<Option<Instant>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Fresh keys and one volume.
    pub(crate) fn generate(repository: RepositoryId, volume: &str, now_ns: i64) -> Result<Self, RepositoryError> {
        check_volume_name(volume)?;
        Ok(Self {
            repository,
            data_id: random_secret()?,
            node_id: random_secret()?,
            clear_id: random_secret()?,
            chunker: random_secret()?,
            records: random_secret()?,
            log: random_secret()?,
            epochs: RwLock::new(Epochs {
                generation: 1,
                keys: vec![Arc::new(EpochKey {
                    number: 1,
                    key: random_secret()?,
                    created_ns: now_ns,
                    compromised: false,
                })],
                changes: Vec::new(),
            }),
            volumes: vec![(VolumeId(random()?), volume.to_owned())],
            source: OnceLock::new(),
            missed: Mutex::default(),
        })
    }

    /// Its number; each change makes the next.
    pub(crate) fn generation(&self) -> u32 {
        self.read().generation
    }

    fn read(&self) -> RwLockReadGuard<'_, Epochs> {
        self.epochs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on an epoch that is not known is looked for in the keyring that `source` reads.
    pub(crate) fn follow(&self, source: Source) {
        // Set once, by whoever opens the repository.
        if self.source.set(source).is_err() {
            tracing::error!("a keyring follows the store already");
        }
    }

    /// Takes up what the store's newest keyring has; whether that was more.
    pub(crate) fn refresh(&self) -> Result<bool, RepositoryError> {
        let Some(source) = self.source.get() else { return Ok(false) };
        let newer = source()?;
        let newer = newer.epochs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut epochs = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        let more = newer.generation > epochs.generation;
        if more {
            *epochs = newer;
            epochs.keep_out_of_swap();
        }
        Ok(more)
    }

    /// Locks the keys into memory, where they lie from now on.
    pub(crate) fn keep_out_of_swap(self: &Arc<Self>) {
        keep_out_of_swap(self.as_ref());
        self.read().keep_out_of_swap();
    }

    pub(crate) fn data_id(&self, data: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.data_id, data).as_bytes())
    }

    pub(crate) fn clear_id(&self, data: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.clear_id, data).as_bytes())
    }

    pub(crate) fn node_id(&self, data: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.node_id, data).as_bytes())
    }

    /// Seed of the chunker.
    pub(crate) fn chunker_seed(&self) -> u64 {
        let mut seed = [0; 8];
        seed.copy_from_slice(&self.chunker[..8]);
        u64::from_le_bytes(seed)
    }

    /// The next generation: the same keys, and one more epoch, which seals from then on.
    ///
    /// With `compromised` all epochs so far count as known to others: what they sealed is stored anew where it comes again.
    pub(crate) fn with_new_epoch(mut self, now_ns: i64, compromised: bool) -> Result<Self, RepositoryError> {
        /// Far more than anybody rotates, and well within the bound of a keyring's object.
        const MAX: usize = 4096;
        let number = self.current_epoch().number + 1;
        let epochs = self.epochs.get_mut().unwrap_or_else(PoisonError::into_inner);
        if epochs.keys.len() >= MAX {
            let (len, limit) = (epochs.keys.len() as u64 + 1, MAX as u64);
            return Err(RepositoryError::TooLarge { what: "Number of epochs", len, limit });
        }
        if compromised {
            let known = |epoch: &Arc<EpochKey>| {
                Arc::new(EpochKey {
                    number: epoch.number,
                    key: epoch.key.clone(),
                    created_ns: epoch.created_ns,
                    compromised: true,
                })
            };
            epochs.keys = epochs.keys.iter().map(known).collect();
        }
        epochs.generation += 1;
        epochs.keys.push(Arc::new(EpochKey { number, key: random_secret()?, created_ns: now_ns, compromised: false }));
        Ok(self)
    }

    /// The next generation: the same keys, and told in it what was done.
    pub(crate) fn with_change(mut self, change: NewKeyChange<'_>, now_ns: i64) -> Self {
        let epochs = self.epochs.get_mut().unwrap_or_else(PoisonError::into_inner);
        epochs.generation += 1;
        epochs.note(change, now_ns);
        self
    }

    /// Tells in a generation that is made for something else what was done.
    pub(crate) fn noting(mut self, change: NewKeyChange<'_>, now_ns: i64) -> Self {
        self.epochs.get_mut().unwrap_or_else(PoisonError::into_inner).note(change, now_ns);
        self
    }

    /// What was done to passphrases and keys, the oldest first.
    pub(crate) fn changes(&self) -> Vec<KeyChange> {
        self.read().changes.clone()
    }

    /// The next generation: the same keys, and one more volume.
    pub(crate) fn with_new_volume(mut self, name: &str) -> Result<Self, RepositoryError> {
        check_volume_name(name)?;
        if self.volume(name).is_some() {
            return Err(RepositoryError::BadName {
                what: "Volume name",
                name: name.to_owned(),
                reason: "there is a volume of that name",
            });
        }
        if self.volumes.len() >= VOLUMES_MAX {
            let (len, limit) = (self.volumes.len() as u64 + 1, VOLUMES_MAX as u64);
            return Err(RepositoryError::TooLarge { what: "Number of volumes", len, limit });
        }
        self.epochs.get_mut().unwrap_or_else(PoisonError::into_inner).generation += 1;
        self.volumes.push((VolumeId(random()?), name.to_owned()));
        Ok(self)
    }

    /// Numbers and times of all epochs, oldest first.
    pub(crate) fn epochs(&self) -> Vec<crate::KeyEpoch> {
        let public = |epoch: &Arc<EpochKey>| crate::KeyEpoch {
            number: epoch.number,
            created_ns: epoch.created_ns,
            compromised: epoch.compromised,
        };
        self.read().keys.iter().map(public).collect()
    }

    /// The epoch that seals now.
    pub(crate) fn current_epoch(&self) -> Arc<EpochKey> {
        self.read().keys.last().expect("a keyring without an epoch is refused when it is read").clone()
    }

    /// Whether what the epoch sealed is to be stored anew.
    pub(crate) fn is_compromised(&self, number: u32) -> bool {
        self.known(number).is_some_and(|epoch| epoch.compromised)
    }

    fn known(&self, number: u32) -> Option<Arc<EpochKey>> {
        let epochs = self.read();
        let at = epochs.keys.binary_search_by_key(&number, |epoch| epoch.number).ok()?;
        Some(epochs.keys[at].clone())
    }

    /// The epoch of that number. One that is not known may ask the store for a later keyring, without a lock.
    pub(crate) fn epoch(&self, number: u32) -> Option<Arc<EpochKey>> {
        if let Some(known) = self.known(number) {
            return Some(known);
        }
        let asked = |missed: &Option<Instant>| missed.is_some_and(|at| at.elapsed() < ASK_AGAIN);
        if number < self.current_epoch().number || asked(&lock(&self.missed)) {
            return None;
        }
        match self.refresh() {
            Ok(true) => tracing::info!(epoch = number, "read the keyring again for an epoch that was not known"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, epoch = number, "could not read the keyring again"),
        }
        let found = self.known(number);
        if found.is_none() {
            *lock(&self.missed) = Some(Instant::now());
        }
        found
    }

    pub(crate) fn volume(&self, name: &str) -> Option<VolumeId> {
        self.volumes.iter().find(|(_, n)| n == name).map(|(id, _)| *id)
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = (VolumeId, &str)> {
        self.volumes.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// Seals and creates this generation.
    pub(crate) fn create(&self, store: &dyn Store, seal: &dyn Seal, master: &[u8; 32]) -> Result<(), RepositoryError> {
        let generation = self.generation();
        let names = generation.to_le_bytes();
        let sealed = envelope(self.repository, &names).seal(seal, 0, master, &self.encode())?;
        Ok(store.put_new(&names::key(&names::keyring(generation))?, Body::Bytes(&sealed))?)
    }

    /// The highest generation.
    pub(crate) fn load(
        store: &dyn Store,
        seal: &dyn Seal,
        repository: RepositoryId,
        master: &[u8; 32],
        foreign: &Foreign,
    ) -> Result<Self, RepositoryError> {
        Self::newest(store, seal, repository, master, store.list("keyring/", None, MOST_LISTED)?, foreign)
    }

    /// The highest generation of those that were listed.
    pub(crate) fn newest(
        store: &dyn Store,
        seal: &dyn Seal,
        repository: RepositoryId,
        master: &[u8; 32],
        listed: Vec<ObjectMeta>,
        foreign: &Foreign,
    ) -> Result<Self, RepositoryError> {
        let mut newest = None;
        for listed in listed {
            match generation_in(listed.key.as_str()) {
                Some(generation) => newest = Some((generation, listed)),
                None => drop(foreign.note(listed.key.as_str())),
            }
        }
        let (generation, last) =
            newest.ok_or_else(|| RepositoryError::MissingObject { object: "keyring/".to_owned() })?;
        let object = last.key.as_str();
        let bytes = store.get(&last.key, limits::KEYRING)?;
        let names = generation.to_le_bytes();
        let plain = envelope(repository, &names).open(seal, master, bytes, object)?;
        let ring = Self::decode(repository, &plain).in_object(object)?;
        if ring.generation() != generation {
            return Err(RepositoryError::corrupt(object, "it is another generation"));
        }
        Ok(ring)
    }

    /// Whether the store has a later generation than this one. One small request.
    pub(crate) fn is_outdated(&self, store: &dyn Store) -> Result<bool, RepositoryError> {
        match store.stat(&names::key(&names::keyring(self.generation() + 1))?) {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // One allocation, so that no freed copy keeps a secret.
        let epochs = self.read();
        let size = 4 + 6 * 32 + 4 + epochs.keys.len() * 45 + self.volumes.iter().map(|v| 18 + v.1.len()).sum::<usize>();
        let size = size + KeyChange::encoded_len(&epochs.changes);
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.put_u32(epochs.generation);
        for key in [&self.data_id, &self.node_id, &self.clear_id, &self.chunker, &self.records, &self.log] {
            out.put(key.as_ref());
        }
        out.put_u16(u16::try_from(epochs.keys.len()).expect("a keyring has few epochs"));
        for epoch in &epochs.keys {
            out.put_u32(epoch.number);
            out.put(epoch.key.as_ref());
            out.put_i64(epoch.created_ns);
            out.put_u8(epoch.compromised.into());
        }
        out.put_u16(u16::try_from(self.volumes.len()).expect("a keyring has few volumes"));
        for (id, name) in &self.volumes {
            out.put(&id.0);
            out.put_bytes16(name.as_bytes());
        }
        KeyChange::encode_all(&epochs.changes, &mut out);
        debug_assert_eq!(out.len(), size);
        out
    }

    fn decode(repository: RepositoryId, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let generation = r.u32()?;
        let mut key = || r.array().map(Zeroizing::new);
        let (data_id, node_id, clear_id, chunker, records, log) = (key()?, key()?, key()?, key()?, key()?, key()?);
        let mut epochs: Vec<Arc<EpochKey>> = Vec::new();
        for _ in 0..r.count16(45, usize::MAX)? {
            let (number, key, created_ns) = (r.u32()?, Zeroizing::new(r.array()?), r.i64()?);
            let compromised = match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(Malformed("an epoch has unknown flags")),
            };
            if number == 0 || epochs.last().is_some_and(|e| e.number >= number) {
                return Err(Malformed("its epochs do not ascend"));
            }
            epochs.push(Arc::new(EpochKey { number, key, created_ns, compromised }));
        }
        if epochs.is_empty() {
            return Err(Malformed("it has no sealing epoch"));
        }
        let mut volumes = Vec::new();
        for _ in 0..r.count16(18, usize::MAX)? {
            let id = VolumeId(r.array()?);
            let name = std::str::from_utf8(r.bytes16()?).map_err(|_| Malformed("a volume's name is not UTF-8"))?;
            check_volume_name(name).map_err(|_| Malformed("a volume's name is not possible"))?;
            volumes.push((id, name.to_owned()));
        }
        let changes = KeyChange::decode_all(&mut r)?;
        r.end()?;
        let (epochs, source) = (RwLock::new(Epochs { generation, keys: epochs, changes }), OnceLock::new());
        let missed = Mutex::default();
        Ok(Self { repository, data_id, node_id, clear_id, chunker, records, log, epochs, volumes, source, missed })
    }
}

fn envelope(repository: RepositoryId, names: &[u8]) -> Envelope<'_> {
    Envelope { magic: b"AXKR", label: "axiomfs keyring", repository, names }
}

fn check_volume_name(name: &str) -> Result<(), RepositoryError> {
    let bad = |reason| Err(RepositoryError::BadName { what: "Volume name", name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 255 {
        return bad("it must have 1 to 255 bytes");
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return bad("it may have no slash and no control character");
    }
    Ok(())
}

#[cfg(test)]
pub(crate) fn decode_for_tests(bytes: &[u8]) {
    assert!(Keyring::decode(RepositoryId([0; 16]), bytes).is_err() || bytes.len() > 200);
}
