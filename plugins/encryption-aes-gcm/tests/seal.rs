//! The seal against the suite, published vectors and random messages.

use axiomfs_api::{Seal, conformance};
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use proptest::prelude::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex digits")).collect()
}

#[test]
fn keeps_the_contract() {
    conformance::seal(&Aes256Gcm);
}

/// Test cases 13 to 16 of McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
#[test]
fn matches_the_published_vectors() {
    let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let nonce = "cafebabefacedbaddecaf888";
    let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
    let aad = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
    let sealed = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b";
    let zero = "00".repeat(32);
    let cases = [
        (zero.as_str(), "000000000000000000000000", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            zero.as_str(),
            "000000000000000000000000",
            "00000000000000000000000000000000",
            "",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (key, nonce, plain, aad, sealed),
    ];
    for (key, nonce, plain, aad, sealed) in cases {
        let key: [u8; 32] = bytes(key).try_into().expect("32 bytes");
        let nonce: [u8; 12] = bytes(nonce).try_into().expect("12 bytes");
        let mut buf = bytes(plain);
        Aes256Gcm.sealer(&key).seal(&nonce, &bytes(aad), &mut buf);
        assert_eq!(buf, bytes(sealed));
    }
}

proptest! {
    #[test]
    fn opens_what_it_sealed_and_nothing_else(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in prop::collection::vec(any::<u8>(), 0..64),
        plain in prop::collection::vec(any::<u8>(), 0..2000),
        flip in any::<prop::sample::Index>(),
    ) {
        let sealer = Aes256Gcm.sealer(&key);
        let mut buf = plain.clone();
        sealer.seal(&nonce, &aad, &mut buf);
        let mut damaged = buf.clone();
        let bit = flip.index(damaged.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(sealer.open(&nonce, &aad, &mut damaged).is_err());
        sealer.open(&nonce, &aad, &mut buf).expect("opens");
        prop_assert_eq!(buf, plain);
    }

    #[test]
    fn arbitrary_bytes_never_open(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        let mut buf = bytes;
        prop_assert!(Aes256Gcm.sealer(&[9; 32]).open(&[1; 12], b"", &mut buf).is_err());
    }
}
