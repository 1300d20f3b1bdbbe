//! The padding against the suite, the definition, and random bytes.

use std::sync::Arc;

use axiomfs_api::conformance;
use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform, TransformFactory};
use axiomfs_padding_padme::{FORMAT, Factory, padme};
use proptest::prelude::*;

fn transform() -> Arc<dyn Transform> {
    Factory.build(&[]).expect("no parameters")
}

fn encode(frame: &[u8]) -> Vec<u8> {
    let mut out = BoundedBuf::new(frame.len() + frame.len() / 8 + 1024);
    let applied = transform().worker().expect("a worker").encode(Hint::Data, frame, &mut out).expect("encodes");
    assert_eq!(applied, Applied::Yes);
    out.into_vec()
}

fn decode(encoded: &[u8], raw_len: usize) -> Result<Vec<u8>, PluginError> {
    let mut out = BoundedBuf::new(raw_len);
    transform().worker().expect("a worker").decode(FORMAT, encoded, raw_len, &mut out)?;
    Ok(out.into_vec())
}

#[test]
fn keeps_the_contract() {
    conformance::transform(&*transform());
}

#[test]
fn lengths_are_those_of_the_definition() {
    for (n, padded) in [(0, 0), (1, 1), (2, 2), (3, 3), (8, 8), (9, 10), (33, 36), (1000, 1024), (1_048_577, 1_081_344)]
    {
        assert_eq!(padme(n), padded, "{n}");
    }
    for n in 2..300_000usize {
        let p = padme(n);
        assert!(p >= n && (p - n) * 100 <= n * 12, "{n} becomes {p}");
        assert_eq!(padme(p), p, "{n}");
    }
    // Of a million lengths a few hundred can still be told apart.
    let mut lengths: Vec<usize> = (1..=1 << 20).map(padme).collect();
    lengths.dedup();
    assert!(lengths.len() < 400, "{} lengths are left", lengths.len());
}

#[test]
fn padding_is_zeros_and_nothing_else_is_taken() {
    let encoded = encode(&[7; 1000]);
    assert_eq!((encoded.len(), &encoded[..1000], encoded[1000]), (1024, &[7; 1000][..], 0x80));
    assert_eq!(&encoded[1001..], &[0; 23]);
    assert_eq!(decode(&encoded, 1000).expect("decodes"), [7; 1000]);
    assert_eq!(encode(&[]), [0x80]);
    assert_eq!(encode(&[1; 1023]).len(), 1024, "the mark takes a byte");
    assert_eq!(encode(&[1; 1024]).len(), 1088);
    let mut dirty = encoded.clone();
    dirty[1023] = 1;
    assert!(decode(&dirty, 1000).expect_err("not zero").to_string().contains("not zero"));
    assert!(decode(&encoded[..1023], 1000).expect_err("short").to_string().contains("not a padded"));
    for wrong in [0, 999, 1001, 1024, 5000] {
        assert!(decode(&encoded, wrong).expect_err("wrong").to_string().contains("does not end"), "{wrong}");
    }
    let zeros = encode(&[0; 1000]);
    assert!(decode(&zeros, 1001).is_err() && decode(&zeros, 999).is_err(), "zeros of the frame are no padding");
}

#[test]
fn there_is_nothing_to_set() {
    assert!(matches!(Factory.build(&[("to".into(), "1".into())]).err(), Some(PluginError::UnknownParameter { .. })));
    assert!(matches!(Factory.decoder(2, &[]).err(), Some(PluginError::UnknownFormat { format: 2, .. })));
    assert!(Factory.decoder(FORMAT, &[1]).is_err());
}

proptest! {
    #[test]
    fn any_frame_comes_back(data in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let encoded = encode(&data);
        prop_assert_eq!(encoded.len(), padme(data.len() + 1));
        prop_assert!(decode(&encoded, data.len()).expect("decodes") == data);
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..2000), raw_len in 0usize..4000) {
        if let Ok(frame) = decode(&data, raw_len) {
            prop_assert_eq!(frame.len(), raw_len);
        }
    }
}
