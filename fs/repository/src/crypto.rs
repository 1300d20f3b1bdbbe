//! Key derivation and the envelope of small sealed objects (format.md §1).

use axiomfs_api::{NONCE_LEN, Seal, TAG_LEN};
use zeroize::Zeroizing;

use crate::codec::{Put, Reader};
use crate::error::{InObject, RepositoryError};
use crate::ids::RepositoryId;

/// Version of every binary object.
pub(crate) const VERSION: u16 = 1;
/// Length of a salt in bytes.
pub(crate) const SALT: usize = 32;

/// A secret of 256 bits, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// `KDF(key, label, salt)` of the format.
pub(crate) fn derive(key: &[u8; 32], label: &str, salt: &[u8]) -> Secret {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(label.as_bytes()).update(&[0]).update(salt);
    let secret = Zeroizing::new(*hasher.finalize().as_bytes());
    zeroize::Zeroize::zeroize(&mut hasher);
    secret
}

/// `N` bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], RepositoryError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| RepositoryError::Entropy)?;
    Ok(bytes)
}

/// A fresh secret.
pub(crate) fn random_secret() -> Result<Secret, RepositoryError> {
    random().map(Zeroizing::new)
}

/// A nonce of `type ‖ 000 ‖ number`.
pub(crate) fn nonce(kind: u8, number: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[0] = kind;
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

/// What kind of envelope, and for whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Envelope<'a> {
    pub(crate) magic: &'static [u8; 4],
    pub(crate) label: &'static str,
    pub(crate) repository: RepositoryId,
    /// The names that bind it to its place.
    pub(crate) names: &'a [u8],
}

const HEADER: usize = 44;

impl Envelope<'_> {
    /// Seals `plain` under a key made from `base` and a fresh salt.
    pub(crate) fn seal(
        &self,
        seal: &dyn Seal,
        number: u32,
        base: &[u8; 32],
        plain: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let salt = random::<SALT>()?;
        let mut out = Vec::with_capacity(HEADER + plain.len() + TAG_LEN);
        out.put(self.magic);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_u32(number);
        out.put(&salt);
        let mut aad = out.clone();
        aad.put(&self.repository.0);
        aad.put(self.names);
        out.put(plain);
        let key = derive(base, self.label, &salt);
        let tag = seal.sealer(&key).seal_detached(&[0; NONCE_LEN], &aad, &mut out[HEADER..]);
        out.put(&tag);
        Ok(out)
    }

    /// The key number that `bytes`, which are said to be `object`, ask for.
    pub(crate) fn key_number(&self, bytes: &[u8], object: &str) -> Result<u32, RepositoryError> {
        let mut r = Reader::new(bytes);
        check_magic(&mut r, self.magic, object)?;
        r.zeros(2).in_object(object)?;
        r.u32().in_object(object)
    }

    /// Opens what [`seal`](Self::seal) made.
    pub(crate) fn open(
        &self,
        seal: &dyn Seal,
        base: &[u8; 32],
        mut bytes: Vec<u8>,
        object: &str,
    ) -> Result<Zeroizing<Vec<u8>>, RepositoryError> {
        self.key_number(&bytes, object)?;
        if bytes.len() < HEADER + TAG_LEN {
            return Err(RepositoryError::corrupt(object, "it ends too early"));
        }
        let mut aad = bytes[..HEADER].to_vec();
        aad.put(&self.repository.0);
        aad.put(self.names);
        let key = derive(base, self.label, &bytes[HEADER - SALT..HEADER]);
        bytes.drain(..HEADER);
        let mut bytes = Zeroizing::new(bytes);
        seal.sealer(&key)
            .open(&[0; NONCE_LEN], &aad, &mut bytes)
            .map_err(|_| RepositoryError::corrupt(object, "its seal does not fit"))?;
        Ok(bytes)
    }
}

/// Takes magic and version.
pub(crate) fn check_magic(r: &mut Reader<'_>, magic: &[u8; 4], object: &str) -> Result<(), RepositoryError> {
    if &r.array::<4>().in_object(object)? != magic {
        return Err(RepositoryError::corrupt(object, "it is no such object: the first bytes are wrong"));
    }
    let found = r.u16().in_object(object)?;
    if found != VERSION {
        return Err(RepositoryError::UnsupportedVersion {
            object: object.to_owned(),
            found: found.into(),
            supported: VERSION.into(),
        });
    }
    Ok(())
}
