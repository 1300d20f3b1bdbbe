//! Key slots (format.md §4).

use argon2::{Algorithm, Argon2, Params, Version};
use axiomfs_api::{Body, NONCE_LEN, ObjectMeta, Seal, Store, StoreErrorKind, TAG_LEN};
use zeroize::Zeroizing;

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{SALT, Secret, VERSION, check_magic, derive, random};
use crate::error::{InObject, RepositoryError};
use crate::foreign::Foreign;
use crate::ids::{RepositoryId, hex};
use crate::{limits, names};

/// Slots or keyrings that are looked at, foreign objects among them.
pub(crate) const MOST_LISTED: usize = 10_000;

const SLOT_MAGIC: &[u8; 4] = b"AXKS";
const KDF_ARGON2ID: u8 = 1;
const SLOT_HEADER: usize = 60;
const CHECK: usize = 16;

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

    /// Memory in KiB.
    pub fn memory_kib(self) -> u32 {
        self.memory_kib
    }

    /// Passes over it.
    pub fn passes(self) -> u32 {
        self.passes
    }

    /// Lanes that may be computed at the same time.
    pub fn lanes(self) -> u32 {
        self.lanes
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

/// Wraps `master` with `passphrase` and creates the slot `id`, which was never used.
#[allow(clippy::too_many_arguments)]
pub(crate) fn create_slot(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    id: [u8; 16],
    master: &[u8; 32],
    passphrase: &[u8],
    kdf: KdfParams,
    now_ns: i64,
) -> Result<(), RepositoryError> {
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
    Ok(store.put_new(&names::key(&names::slot(&id))?, Body::Bytes(&slot))?)
}

/// All slots and all keyrings, by one listing.
pub(crate) fn slots_and_keyrings(
    store: &dyn Store,
    foreign: &Foreign,
) -> Result<(Vec<ObjectMeta>, Vec<ObjectMeta>), RepositoryError> {
    let listed = store.list("key", None, 2 * MOST_LISTED)?;
    let (rings, slots): (Vec<_>, Vec<_>) = listed.into_iter().partition(|o| o.key.as_str().starts_with("keyring/"));
    let slots = slots.into_iter().filter(|object| object.key.as_str().starts_with("keys/")).collect();
    Ok((slots_of(slots, foreign), rings))
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

/// The id in a slot's name.
pub(crate) fn slot_id(name: &str) -> &str {
    name.strip_prefix("keys/").unwrap_or(name)
}

fn slot_of(name: &str) -> Option<[u8; 16]> {
    name.strip_prefix("keys/").and_then(hex::decode::<16>)
}

/// What a slot says without a passphrase: the cost of a guess, and when it was made.
pub(crate) fn slot_facts(bytes: &[u8], name: &str) -> Result<(KdfParams, i64), RepositoryError> {
    let mut r = Reader::new(bytes);
    check_magic(&mut r, SLOT_MAGIC, name)?;
    let (kdf, created_ns, ..) = parse_slot(&mut r).in_object(name)?;
    Ok((kdf, created_ns))
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

/// A repository that was opened by a passphrase.
pub(crate) struct Unlocked {
    pub(crate) master: Secret,
    /// The slot that had it.
    pub(crate) opened: String,
    /// All slots there are.
    pub(crate) slots: Vec<String>,
}

/// Tries every slot.
pub(crate) fn unlock(
    store: &dyn Store,
    seal: &dyn Seal,
    repository: RepositoryId,
    passphrase: &[u8],
    slots: &[ObjectMeta],
) -> Result<Unlocked, RepositoryError> {
    let mut damaged = None;
    for slot in slots {
        let name = slot.key.as_str();
        let bytes = match store.get(&slot.key, limits::SLOT) {
            Ok(bytes) => bytes,
            // Removed since it was listed.
            Err(error) if error.kind == StoreErrorKind::NotFound => continue,
            Err(error) if error.kind == StoreErrorKind::Corrupt => {
                damaged = Some(error.into());
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match open_slot(&bytes, name, seal, repository, passphrase) {
            Ok(Some(master)) => {
                let all = slots.iter().map(|slot| slot_id(slot.key.as_str()).to_owned()).collect();
                return Ok(Unlocked { master, opened: slot_id(name).to_owned(), slots: all });
            }
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

#[cfg(test)]
pub(crate) fn decode_for_tests(bytes: &[u8]) {
    crate::keyring::decode_for_tests(bytes);
    assert!(parse_slot(&mut Reader::new(bytes)).is_err() || bytes.len() > 100);
}
