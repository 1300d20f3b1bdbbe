//! Key slots and the keyring (format.md §4).

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use axiomfs_api::{Body, NONCE_LEN, ObjectMeta, Seal, Store, TAG_LEN};
use zeroize::Zeroizing;

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{Envelope, SALT, Secret, VERSION, check_magic, derive, random, random_secret};
use crate::error::{InObject, RepositoryError};
use crate::foreign::Foreign;
use crate::ids::{ChunkId, RepositoryId, VolumeId, hex};
use crate::{limits, names};

/// Slots or keyrings that are looked at, foreign objects among them.
const MOST_LISTED: usize = 10_000;

const SLOT_MAGIC: &[u8; 4] = b"AXKS";
const KDF_ARGON2ID: u8 = 1;
const SLOT_HEADER: usize = 60;
const CHECK: usize = 16;
/// Most volumes of a repository: their names stand in one object.
const VOLUMES_MAX: usize = 1024;

/// Cost of trying one passphrase: parameters of Argon2id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfParams {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl KdfParams {
    /// Least memory that a new slot may ask for, in KiB (64 MiB).
    pub const FLOOR_KIB: u32 = 64 << 10;
    /// Most memory that a slot may ask for, in KiB (2 GiB).
    pub const CAP_KIB: u32 = 2 << 20;
    const MAX_PASSES: u32 = 64;
    const MAX_LANES: u32 = 16;

    /// Parameters for a new slot.
    ///
    /// # Errors
    /// [`RepositoryError::KdfParameters`] if memory (KiB) is under the floor or over the cap, passes not 1–64, lanes not 1–16.
    pub fn new(memory_kib: u32, passes: u32, lanes: u32) -> Result<Self, RepositoryError> {
        if memory_kib < Self::FLOOR_KIB {
            return Err(RepositoryError::KdfParameters { expected: "at least 65536 KiB", found: memory_kib.into() });
        }
        Self { memory_kib, passes, lanes }.bounded()
    }

    /// The least Argon2 knows: guessing costs next to nothing. For tests only.
    pub fn insecure_for_tests() -> Self {
        Self { memory_kib: 8, passes: 1, lanes: 1 }
    }

    /// What a reader accepts.
    fn bounded(self) -> Result<Self, RepositoryError> {
        let bad = |expected, found: u32| Err(RepositoryError::KdfParameters { expected, found: found.into() });
        if !(1..=Self::MAX_LANES).contains(&self.lanes) {
            return bad("1 to 16 lanes", self.lanes);
        }
        if !(1..=Self::MAX_PASSES).contains(&self.passes) {
            return bad("1 to 64 passes", self.passes);
        }
        if self.memory_kib > Self::CAP_KIB {
            return bad("at most 2097152 KiB", self.memory_kib);
        }
        if self.memory_kib < 8 * self.lanes {
            return bad("8 KiB for each lane", self.memory_kib);
        }
        Ok(self)
    }

    fn derive(self, passphrase: &[u8], salt: &[u8; SALT]) -> Result<Secret, RepositoryError> {
        let refused = RepositoryError::KdfParameters { expected: "other parameters", found: self.memory_kib.into() };
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(|_| refused.clone())?;
        let mut hash = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, salt, hash.as_mut())
            .map_err(|_| refused)?;
        Ok(derive(&hash, "axiomfs slot", salt))
    }
}

impl Default for KdfParams {
    /// 256 MiB, 3 passes, 4 lanes: about half a second.
    fn default() -> Self {
        Self { memory_kib: 256 << 10, passes: 3, lanes: 4 }
    }
}

/// Wraps `master` with `passphrase` and creates the slot; its id.
pub(crate) fn create_slot(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    master: &[u8; 32],
    passphrase: &[u8],
    kdf: KdfParams,
    now_ns: i64,
) -> Result<[u8; 16], RepositoryError> {
    let id = random::<16>()?;
    let salt = random::<SALT>()?;
    let mut slot = Vec::with_capacity(SLOT_HEADER + 32 + TAG_LEN);
    slot.put(SLOT_MAGIC);
    slot.put_u16(VERSION);
    slot.put_u8(KDF_ARGON2ID);
    slot.put_u8(0);
    slot.put_u32(kdf.memory_kib);
    slot.put_u32(kdf.passes);
    slot.put_u32(kdf.lanes);
    slot.put_i64(now_ns);
    slot.put(&salt);
    let aad = slot_aad(&slot, repository, &id);
    let mut wrapped = Zeroizing::new(*master);
    let key = kdf.derive(passphrase, &salt)?;
    let tag = seal.sealer(&key).seal_detached(&[0; NONCE_LEN], &aad, wrapped.as_mut());
    slot.put(wrapped.as_ref());
    slot.put(&tag);
    let check = checksum(&slot);
    slot.put(&check);
    store.put_new(&names::key(&names::slot(&id))?, Body::Bytes(&slot))?;
    Ok(id)
}

/// The number in a keyring's name, written in the one way that keyrings are named.
fn generation_in(name: &str) -> Option<u32> {
    let generation = name.strip_prefix("keyring/")?.parse().ok()?;
    (names::keyring(generation) == name).then_some(generation)
}

/// Tries every slot, then reads the newest keyring. One listing finds both.
pub(crate) fn unlock(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    passphrase: &[u8],
    foreign: &Foreign,
    authenticate: impl FnOnce(&Secret) -> Result<(), RepositoryError>,
) -> Result<Keyring, RepositoryError> {
    let listed = store.list("key", None, 2 * MOST_LISTED)?;
    let (rings, slots): (Vec<_>, Vec<_>) = listed.into_iter().partition(|o| o.key.as_str().starts_with("keyring/"));
    let slots = slots.into_iter().filter(|object| object.key.as_str().starts_with("keys/")).collect();
    let (master, _) = try_slots(store, seal, repository, passphrase, slots_of(slots, foreign))?;
    authenticate(&master)?;
    Keyring::newest(store, seal, repository, &master, rings, foreign)
}

/// The slots that are tried. What has no name of a slot is passed over and noted.
pub(crate) fn slots(store: &dyn Store, foreign: &Foreign) -> Result<Vec<ObjectMeta>, RepositoryError> {
    Ok(slots_of(store.list("keys/", None, MOST_LISTED)?, foreign))
}

fn slots_of(mut slots: Vec<ObjectMeta>, foreign: &Foreign) -> Vec<ObjectMeta> {
    slots.retain(|slot| {
        let name = slot.key.as_str();
        let is_slot = slot_of(name).is_some_and(|id| names::slot(&id) == name);
        if !is_slot {
            foreign.note(name);
        }
        is_slot
    });
    slots.truncate(limits::SLOTS);
    slots
}

fn slot_of(name: &str) -> Option<[u8; 16]> {
    name.strip_prefix("keys/").and_then(hex::decode::<16>)
}

/// What a slot says without a passphrase: memory in KiB, and when it was made.
pub(crate) fn slot_facts(bytes: &[u8], name: &str) -> Result<(u32, i64), RepositoryError> {
    let mut r = Reader::new(bytes);
    check_magic(&mut r, SLOT_MAGIC, name)?;
    let (kdf, created_ns, ..) = parse_slot(&mut r).in_object(name)?;
    Ok((kdf.memory_kib, created_ns))
}

/// Whether the slot of that name opens with `passphrase`, as the store has it now.
pub(crate) fn opens(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    name: &str,
    passphrase: &[u8],
) -> Result<bool, RepositoryError> {
    let bytes = store.get(&names::key(name)?, limits::SLOT)?;
    Ok(open_slot(&bytes, name, seal, repository, passphrase)?.is_some())
}

/// Tries every slot; the master key and the name of the slot that had it.
pub(crate) fn unlock_slot(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    passphrase: &[u8],
    foreign: &Foreign,
) -> Result<(Secret, String), RepositoryError> {
    try_slots(store, seal, repository, passphrase, slots(store, foreign)?)
}

fn try_slots(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    passphrase: &[u8],
    slots: Vec<ObjectMeta>,
) -> Result<(Secret, String), RepositoryError> {
    let mut damaged = None;
    for slot in &slots {
        let name = slot.key.as_str();
        let bytes = store.get(&slot.key, limits::SLOT)?;
        match open_slot(&bytes, name, seal, repository, passphrase) {
            Ok(Some(master)) => return Ok((master, name.to_owned())),
            Ok(None) => {}
            Err(error) => damaged = Some(error),
        }
    }
    // A damaged slot may have been the right one; say that rather than doubt the passphrase.
    Err(damaged.unwrap_or(RepositoryError::WrongPassphrase { slots: slots.len() }))
}

fn open_slot(
    bytes: &[u8],
    name: &str,
    seal: &dyn Seal,
    repository: RepositoryId,
    passphrase: &[u8],
) -> Result<Option<Secret>, RepositoryError> {
    let id = slot_of(name).ok_or_else(|| RepositoryError::corrupt(name, "its name is no slot id"))?;
    let mut r = Reader::new(bytes);
    check_magic(&mut r, SLOT_MAGIC, name)?;
    let (kdf, _, salt, mut master, tag) = parse_slot(&mut r).in_object(name)?;
    let (written, check) = bytes.split_at(bytes.len() - CHECK);
    if checksum(written) != check {
        return Err(RepositoryError::corrupt(name, "its checksum does not fit"));
    }
    let key = kdf.bounded()?.derive(passphrase, &salt)?;
    let aad = slot_aad(&bytes[..SLOT_HEADER], repository, &id);
    Ok(seal.sealer(&key).open_detached(&[0; NONCE_LEN], &aad, master.as_mut(), &tag).is_ok().then_some(master))
}

type Slot = (KdfParams, i64, [u8; SALT], Secret, [u8; TAG_LEN]);

fn parse_slot(r: &mut Reader<'_>) -> Result<Slot, Malformed> {
    if r.u8()? != KDF_ARGON2ID {
        return Err(Malformed("its key derivation is unknown"));
    }
    r.zeros(1)?;
    let kdf = KdfParams { memory_kib: r.u32()?, passes: r.u32()?, lanes: r.u32()? };
    let created_ns = r.i64()?;
    let slot = (kdf, created_ns, r.array()?, Zeroizing::new(r.array()?), r.array()?);
    r.bytes(CHECK)?;
    r.end()?;
    Ok(slot)
}

/// Tells a damaged slot from a wrong passphrase; it protects nothing.
fn checksum(slot: &[u8]) -> [u8; CHECK] {
    let mut check = [0; CHECK];
    check.copy_from_slice(&blake3::hash(slot).as_bytes()[..CHECK]);
    check
}

fn slot_aad(header: &[u8], repository: RepositoryId, id: &[u8; 16]) -> Vec<u8> {
    [header, &repository.0, id].concat()
}

/// A key that seals packs, index segments and heads.
pub(crate) struct EpochKey {
    pub(crate) number: u32,
    pub(crate) key: Secret,
    created_ns: i64,
    compromised: bool,
}

/// All keys of a repository.
pub(crate) struct Keyring {
    pub(crate) repository: RepositoryId,
    pub(crate) generation: u32,
    data_id: Secret,
    node_id: Secret,
    clear_id: Secret,
    chunker: Secret,
    pub(crate) records: Secret,
    pub(crate) log: Secret,
    epochs: Vec<EpochKey>,
    volumes: Vec<(VolumeId, String)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Fresh keys and one volume.
    pub(crate) fn generate(repository: RepositoryId, volume: &str, now_ns: i64) -> Result<Self, RepositoryError> {
        check_volume_name(volume)?;
        Ok(Self {
            repository,
            generation: 1,
            data_id: random_secret()?,
            node_id: random_secret()?,
            clear_id: random_secret()?,
            chunker: random_secret()?,
            records: random_secret()?,
            log: random_secret()?,
            epochs: vec![EpochKey { number: 1, key: random_secret()?, created_ns: now_ns, compromised: false }],
            volumes: vec![(VolumeId(random()?), volume.to_owned())],
        })
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
    pub(crate) fn with_new_epoch(mut self, now_ns: i64) -> Result<Self, RepositoryError> {
        /// Far more than anybody rotates, and well within the bound of a keyring's object.
        const MAX: usize = 4096;
        if self.epochs.len() >= MAX {
            let (len, limit) = (self.epochs.len() as u64 + 1, MAX as u64);
            return Err(RepositoryError::TooLarge { what: "Number of epochs", len, limit });
        }
        let number = self.current_epoch().number + 1;
        self.generation += 1;
        self.epochs.push(EpochKey { number, key: random_secret()?, created_ns: now_ns, compromised: false });
        Ok(self)
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
        self.generation += 1;
        self.volumes.push((VolumeId(random()?), name.to_owned()));
        Ok(self)
    }

    /// Numbers and times of all epochs, oldest first.
    pub(crate) fn epochs(&self) -> Vec<crate::KeyEpoch> {
        let public = |epoch: &EpochKey| crate::KeyEpoch { number: epoch.number, created_ns: epoch.created_ns };
        self.epochs.iter().map(public).collect()
    }

    /// The epoch that seals now.
    pub(crate) fn current_epoch(&self) -> &EpochKey {
        self.epochs.last().expect("a keyring without an epoch is refused when it is read")
    }

    pub(crate) fn epoch(&self, number: u32) -> Option<&EpochKey> {
        self.epochs.iter().find(|e| e.number == number)
    }

    pub(crate) fn volume(&self, name: &str) -> Option<VolumeId> {
        self.volumes.iter().find(|(_, n)| n == name).map(|(id, _)| *id)
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = (VolumeId, &str)> {
        self.volumes.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// Seals and creates this generation.
    pub(crate) fn create(&self, store: &dyn Store, seal: &dyn Seal, master: &[u8; 32]) -> Result<(), RepositoryError> {
        let names = self.generation.to_le_bytes();
        let sealed = envelope(self.repository, &names).seal(seal, 0, master, &self.encode())?;
        Ok(store.put_new(&names::key(&names::keyring(self.generation))?, Body::Bytes(&sealed))?)
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

    fn newest(
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
        if ring.generation != generation {
            return Err(RepositoryError::corrupt(object, "it is another generation"));
        }
        Ok(ring)
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // One allocation, so that no freed copy keeps a secret.
        let size = 4 + 6 * 32 + 4 + self.epochs.len() * 45 + self.volumes.iter().map(|v| 18 + v.1.len()).sum::<usize>();
        let mut out = Zeroizing::new(Vec::with_capacity(size));
        out.put_u32(self.generation);
        for key in [&self.data_id, &self.node_id, &self.clear_id, &self.chunker, &self.records, &self.log] {
            out.put(key.as_ref());
        }
        out.put_u16(u16::try_from(self.epochs.len()).expect("a keyring has few epochs"));
        for epoch in &self.epochs {
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
        debug_assert_eq!(out.len(), size);
        out
    }

    fn decode(repository: RepositoryId, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let generation = r.u32()?;
        let mut key = || r.array().map(Zeroizing::new);
        let (data_id, node_id, clear_id, chunker, records, log) = (key()?, key()?, key()?, key()?, key()?, key()?);
        let mut epochs: Vec<EpochKey> = Vec::new();
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
            epochs.push(EpochKey { number, key, created_ns, compromised });
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
        r.end()?;
        Ok(Self { repository, generation, data_id, node_id, clear_id, chunker, records, log, epochs, volumes })
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
    assert!(parse_slot(&mut Reader::new(bytes)).is_err() || bytes.len() > 100);
}
