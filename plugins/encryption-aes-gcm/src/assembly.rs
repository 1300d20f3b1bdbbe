//! AES-256-GCM by `ring`, whose keys are wiped here since it doesn't.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use axiomfs_api::{NONCE_LEN, OpenError, SealKey, TAG_LEN};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroize;

use crate::Gcm;

// It is wiped instead of dropped.
const _: () = assert!(!std::mem::needs_drop::<LessSafeKey>());

/// An expanded key, in one place on the heap until it is wiped there.
pub(crate) struct Assembly(Box<MaybeUninit<LessSafeKey>>);

impl Assembly {
    pub(crate) fn new(key: &SealKey) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("a key of the 32 bytes that the algorithm wants");
        Self(Box::new(MaybeUninit::new(LessSafeKey::new(key))))
    }

    fn key(&self) -> &LessSafeKey {
        // SAFETY: `new` initialised it, and only `drop` overwrites it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Gcm for Assembly {
    fn encrypt(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .key()
            .seal_in_place_separate_tag(nonce, Aad::from(aad), data)
            .expect("a message below GCM's bound of 64 GiB");
        *tag.as_ref().first_chunk().expect("a tag of 16 bytes")
    }

    fn decrypt(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key().open_in_place_separate_tag(nonce, Aad::from(aad), Tag::from(*tag), data, 0..);
        opened.map(drop).map_err(|_| OpenError)
    }
}
