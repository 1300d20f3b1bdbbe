//! The seal: AES-256 in Galois/counter mode (NIST SP 800-38D), 96-bit nonces, 128-bit tags.
//!
//! Two implementations of the one algorithm: the assembly of `ring` (BoringSSL's), which is three times as fast, and the
//! `aes-gcm` crate in Rust. The first is used where, asked once per process, both make the same bytes of the same messages;
//! elsewhere the second is. Expanded keys are wiped when their [`Sealer`] is dropped.
#![deny(unsafe_code)]

mod assembly;

use std::sync::OnceLock;

use aes_gcm::aead::{AeadInOut, KeyInit};
use assembly::Assembly;
use axiomfs_api::{Descriptor, Kind, NONCE_LEN, OpenError, Seal, SealKey, Sealer, TAG_LEN};
use zeroize::Zeroize;

/// Format number of sealed frames.
pub const FORMAT: u16 = 1;

static DESCRIPTOR: Descriptor = Descriptor {
    id: "aes-256-gcm",
    kind: Kind::Seal,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Authenticated encryption, AES-256 in Galois/counter mode",
    writes: FORMAT,
    reads: &[FORMAT],
    provides: &["encryption", "authentication"],
    requires: &[],
    before: &[],
    after: &["compression"],
    memory: 4 << 10,
    skippable: false,
};

/// The cipher; it holds no key of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aes256Gcm;

impl Seal for Aes256Gcm {
    fn descriptor(&self) -> &'static Descriptor {
        &DESCRIPTOR
    }

    fn sealer(&self, key: &SealKey) -> Box<dyn Sealer> {
        static AGREE: OnceLock<bool> = OnceLock::new();
        if *AGREE.get_or_init(implementations_agree) {
            Box::new(Detached(Assembly::new(key)))
        } else {
            Box::new(Detached(Portable::new(key)))
        }
    }
}

/// What an implementation of the algorithm does, in place and with the tag apart.
trait Gcm: Send + Sync {
    fn encrypt(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN];

    /// Decrypts `data` if `tag` is right. What is left in it otherwise isn't defined.
    fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError>;
}

/// The `aes-gcm` crate; it wipes its key itself.
struct Portable(aes_gcm::Aes256Gcm);

impl Portable {
    fn new(key: &SealKey) -> Self {
        Self(aes_gcm::Aes256Gcm::new(key.into()))
    }
}

impl Gcm for Portable {
    fn encrypt(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        // GCM refuses only messages over 64 GiB, which no caller can hold in one buffer.
        self.0
            .encrypt_inout_detached(nonce.into(), aad, data.into())
            .expect("a message below GCM's bound of 64 GiB")
            .into()
    }

    fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        self.0.decrypt_inout_detached(nonce.into(), aad, data.into(), tag.into()).map_err(|_| OpenError)
    }
}

/// Lengths that reach every path of vectorised code: nothing, parts of a block, whole strides and what is left after them.
const TRIED: [usize; 9] = [0, 1, 15, 16, 33, 127, 256, 1_000, 4_099];

/// Whether the two implementations make the same of the same, and open what the other sealed.
fn implementations_agree() -> bool {
    let key: SealKey = std::array::from_fn(|i| i as u8);
    let (assembly, portable) = (Assembly::new(&key), Portable::new(&key));
    TRIED.into_iter().all(|len| {
        let nonce = [len as u8; NONCE_LEN];
        let aad = &key[..len % 32];
        let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let (mut a, mut b) = (plain.clone(), plain.clone());
        let tags = (assembly.encrypt(&nonce, aad, &mut a), portable.encrypt(&nonce, aad, &mut b));
        let sealed_alike = a == b && tags.0 == tags.1;
        let opened = assembly.decrypt(&nonce, aad, &mut a, &tags.1).and(portable.decrypt(&nonce, aad, &mut b, &tags.0));
        sealed_alike && opened.is_ok() && a == plain && b == plain
    })
}

/// A sealer of an implementation.
struct Detached<G>(G);

impl<G: Gcm> Sealer for Detached<G> {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) {
        let tag = self.seal_detached(nonce, aad, buf);
        buf.extend_from_slice(&tag);
    }

    fn seal_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        self.0.encrypt(nonce, aad, data)
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) -> Result<(), OpenError> {
        let opened = match buf.split_last_chunk_mut::<TAG_LEN>() {
            Some((data, tag)) => {
                let (len, tag) = (data.len(), *tag);
                self.open_detached(nonce, aad, data, &tag).map(|()| len)
            }
            None => Err(OpenError),
        };
        match opened {
            Ok(len) => {
                buf.truncate(len);
                Ok(())
            }
            Err(error) => {
                buf.clear();
                Err(error)
            }
        }
    }

    fn open_detached(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        // Wiped whatever an implementation leaves there.
        self.0.decrypt(nonce, aad, data, tag).inspect_err(|_| data.zeroize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_implementations_agree_on_this_machine() {
        assert!(implementations_agree());
    }

    proptest! {
        #[test]
        fn either_opens_what_the_other_sealed(
            key: SealKey,
            nonce: [u8; NONCE_LEN],
            aad in prop::collection::vec(any::<u8>(), 0..64),
            plain in prop::collection::vec(any::<u8>(), 0..9_000),
        ) {
            let (fast, portable): (Box<dyn Gcm>, Box<dyn Gcm>) = (Box::new(Assembly::new(&key)), Box::new(Portable::new(&key)));
            for (seals, opens) in [(&fast, &portable), (&portable, &fast)] {
                let mut data = plain.clone();
                let tag = seals.encrypt(&nonce, &aad, &mut data);
                opens.decrypt(&nonce, &aad, &mut data, &tag).expect("opens");
                prop_assert_eq!(&data, &plain);
            }
        }
    }
}
