use super::Noise;
use crate::{Kind, Seal, TAG_LEN};

/// What every [`Seal`] must hold: exact round trips, a tag over everything, no clear text after a failure.
///
/// # Panics
/// If `seal` breaks its contract.
pub fn seal(seal: &dyn Seal) {
    let descriptor = seal.descriptor();
    assert_eq!(descriptor.kind, Kind::Seal, "a seal says that it is one");
    assert!(!descriptor.skippable, "a seal is never skippable");
    assert!(descriptor.provides.contains(&"encryption"), "a seal provides encryption");
    let mut noise = Noise::new(1);
    let key: [u8; 32] = noise.bytes(32).try_into().expect("32 bytes");
    let sealer = seal.sealer(&key);
    let nonce = [7; 12];
    for len in [0, 1, 15, 16, 17, 255, 4096, 100_003] {
        let plain = noise.bytes(len);
        let mut sealed = plain.clone();
        sealer.seal(&nonce, b"aad", &mut sealed);
        assert_eq!(sealed.len(), len + TAG_LEN, "sealing adds exactly a tag");
        if len >= 16 {
            assert!(!sealed.windows(16).any(|w| plain.windows(16).next() == Some(w)), "clear text is gone");
        }
        let mut detached = plain.clone();
        let tag = sealer.seal_detached(&nonce, b"aad", &mut detached);
        assert_eq!([&detached[..], &tag[..]].concat(), sealed, "both forms seal alike");
        let mut opened = sealed.clone();
        sealer.open(&nonce, b"aad", &mut opened).expect("opens what it sealed");
        assert_eq!(opened, plain, "opening gives the clear text");
        sealer.open_detached(&nonce, b"aad", &mut detached, &tag).expect("opens what it sealed");
        assert_eq!(detached, plain, "opening in place gives the clear text");
    }
    refuses_every_change(seal, &key);
}

/// One changed bit anywhere, or a wrong nonce, associated data, key or length, is refused.
fn refuses_every_change(seal: &dyn Seal, key: &[u8; 32]) {
    let sealer = seal.sealer(key);
    let plain = Noise::new(2).text(64);
    let nonce = [3; 12];
    let mut sealed = plain.clone();
    sealer.seal(&nonce, b"head", &mut sealed);
    let refuses = |sealer: &dyn crate::Sealer, nonce: &[u8; 12], aad: &[u8], bytes: &[u8], what: &str| {
        let mut buf = bytes.to_vec();
        assert!(sealer.open(nonce, aad, &mut buf).is_err(), "{what} is refused");
        assert!(!buf.windows(8).any(|w| plain.windows(8).any(|p| p == w)), "no clear text after {what}");
    };
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        refuses(&*sealer, &nonce, b"head", &damaged, "a flipped bit");
    }
    for len in 0..sealed.len() {
        refuses(&*sealer, &nonce, b"head", &sealed[..len], "a cut message");
    }
    refuses(&*sealer, &[4; 12], b"head", &sealed, "another nonce");
    refuses(&*sealer, &nonce, b"heae", &sealed, "other associated data");
    refuses(&*sealer, &nonce, b"", &sealed, "missing associated data");
    let mut other = *key;
    other[31] ^= 1;
    refuses(&*seal.sealer(&other), &nonce, b"head", &sealed, "another key");
}
