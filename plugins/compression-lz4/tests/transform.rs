//! The compressor against the suite, a decoder written from the format's description alone, and random bytes.

use std::sync::Arc;

use axiomfs_api::conformance::{self, Noise};
use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform, TransformFactory, Worker};
use axiomfs_compression_lz4::{FORMAT, Factory};
use proptest::prelude::*;

fn lz4() -> Arc<dyn Transform> {
    Factory.build(&[]).expect("no parameters")
}

fn encode(worker: &mut dyn Worker, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = BoundedBuf::new(frame.len() + frame.len() / 8 + 1024);
    match worker.encode(Hint::Data, frame, &mut out).expect("encodes") {
        Applied::Yes => Some(out.into_vec()),
        Applied::No => None,
    }
}

/// The block format as its description says: a token, literals, an offset of two bytes, a match; the last has no match.
fn by_the_book(block: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::new();
    let mut at = 0;
    let byte = |at: &mut usize| {
        *at += 1;
        usize::from(block[*at - 1])
    };
    let length = |nibble: usize, at: &mut usize| {
        let mut len = nibble;
        let mut more = if nibble == 15 { 255 } else { 0 };
        while more == 255 {
            more = byte(at);
            len += more;
        }
        len
    };
    loop {
        let token = byte(&mut at);
        let literals = length(token >> 4, &mut at);
        out.extend(&block[at..at + literals]);
        at += literals;
        if at == block.len() {
            return out;
        }
        let offset = byte(&mut at) + 256 * byte(&mut at);
        for _ in 0..length(token & 15, &mut at) + 4 {
            out.push(out[out.len() - offset]);
        }
    }
}

#[test]
fn keeps_the_contract() {
    conformance::transform(&*lz4());
}

#[test]
fn blocks_are_standard_lz4() {
    let mut noise = Noise::new(1);
    let mut worker = lz4().worker().expect("a worker");
    for frame in [noise.text(200_000), noise.text(500), vec![7; 65_535], vec![0; 1 << 20], noise.text(65_536)] {
        let encoded = encode(&mut *worker, &frame).expect("it shrinks");
        assert!(by_the_book(&encoded) == frame, "{} bytes", frame.len());
        assert!(encoded.len() * 10 < frame.len() * 8, "{} became {}", frame.len(), encoded.len());
    }
}

/// What is stored once must be read for ever: bytes written down by hand from the description.
#[test]
fn a_block_made_by_hand_is_read() {
    let block = [0x14, b'a', 1, 0, 0x50, b'b', b'c', b'd', b'e', b'f'];
    assert_eq!(by_the_book(&block), b"aaaaaaaaabcdef");
    let mut out = BoundedBuf::new(14);
    Factory
        .decoder(FORMAT, &[])
        .expect("a decoder")
        .worker()
        .expect("a worker")
        .decode(FORMAT, &block, 14, &mut out)
        .expect("decodes");
    assert_eq!(out.as_slice(), b"aaaaaaaaabcdef");
}

#[test]
fn what_does_not_shrink_goes_through() {
    let mut noise = Noise::new(2);
    let mut worker = lz4().worker().expect("a worker");
    for len in [0, 1, 10, 1000, 65_536, 1 << 20] {
        assert_eq!(encode(&mut *worker, &noise.bytes(len)), None, "{len} bytes of noise");
    }
    assert!(encode(&mut *worker, &noise.text(300)).is_some(), "and the worker goes on");
}

#[test]
fn there_is_nothing_to_set() {
    let error = Factory.build(&[("level".into(), "1".into())]).err().expect("refused");
    assert!(matches!(&error, PluginError::UnknownParameter { key, .. } if key == "level"), "{error}");
    assert!(matches!(Factory.decoder(2, &[]).err(), Some(PluginError::UnknownFormat { format: 2, .. })));
    assert!(Factory.decoder(FORMAT, &[1]).is_err());
    assert!(lz4().decode_params().is_empty() && lz4().params().is_empty());
}

proptest! {
    #[test]
    fn any_frame_comes_back(data in prop::collection::vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], 0..20_000)) {
        let mut worker = lz4().worker().expect("a worker");
        if let Some(encoded) = encode(&mut *worker, &data) {
            prop_assert!(encoded.len() < data.len());
            prop_assert!(by_the_book(&encoded) == data);
            let mut out = BoundedBuf::new(data.len());
            worker.decode(FORMAT, &encoded, data.len(), &mut out).expect("decodes");
            prop_assert!(out.as_slice() == data);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..2000), raw_len in 0usize..100_000) {
        let mut out = BoundedBuf::new(raw_len);
        if lz4().worker().expect("a worker").decode(FORMAT, &data, raw_len, &mut out).is_ok() {
            prop_assert_eq!(out.as_slice().len(), raw_len);
        }
    }
}
