//! The seal: AES-256 in Galois/counter mode (NIST SP 800-38D), 96-bit nonces, 128-bit tags.
//!
//! The `aes-gcm` crate takes AES-NI and PCLMULQDQ (or their wider forms) when the processor has them, found at run time.
//! The expanded key is wiped when its [`Sealer`] is dropped.
#![forbid(unsafe_code)]

use aes_gcm::aead::{AeadInOut, KeyInit};
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
        Box::new(Expanded(aes_gcm::Aes256Gcm::new(key.into())))
    }
}

/// One expanded key.
struct Expanded(aes_gcm::Aes256Gcm);

impl Sealer for Expanded {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) {
        let tag = self.seal_detached(nonce, aad, buf);
        buf.extend_from_slice(&tag);
    }

    fn seal_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        // GCM refuses only messages over 64 GiB, which no caller can hold in one buffer.
        self.0
            .encrypt_inout_detached(nonce.into(), aad, data.into())
            .expect("a message below GCM's bound of 64 GiB")
            .into()
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
        self.0.decrypt_inout_detached(nonce.into(), aad, data.into(), tag.into()).map_err(|_| {
            // The tag is checked before decryption; wiping what came in keeps that promise whatever the crate does.
            data.zeroize();
            OpenError
        })
    }
}
