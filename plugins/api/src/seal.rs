use thiserror::Error;

/// Length of a nonce in bytes (96 bits, as NIST SP 800-38D recommends for GCM).
pub const NONCE_LEN: usize = 12;
/// Length of an authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// A 256-bit key. The owner zeroizes it.
pub type SealKey = [u8; 32];

/// The sealed bytes, the nonce or the associated data are not what was sealed with this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Authentication failed")]
pub struct OpenError;

/// An authenticated cipher. Always the last step of a chain, and compiled in: no third party ever sees a key.
pub trait Seal: Send + Sync {
    /// What the host must know of it.
    fn descriptor(&self) -> &'static crate::Descriptor;
    /// Expands `key` once, for many calls.
    fn sealer(&self, key: &SealKey) -> Box<dyn Sealer>;
}

/// One expanded key. The caller never uses a nonce twice.
pub trait Sealer: Send + Sync {
    /// Encrypts `buf` in place and appends the tag of [`TAG_LEN`] bytes.
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>);

    /// Encrypts `data` in place and returns its tag, for callers that lay out header, data and tag themselves.
    fn seal_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN];

    /// Checks the tag at the end of `buf`, decrypts in place and cuts the tag off.
    ///
    /// # Errors
    /// [`OpenError`] if anything differs; `buf` then holds no clear text.
    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) -> Result<(), OpenError>;

    /// Checks `tag` and decrypts `data` in place.
    ///
    /// # Errors
    /// [`OpenError`] if anything differs; `data` then holds no clear text.
    fn open_detached(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError>;
}
