//! The compressor against the suite, the reference implementation's own decoder, and random bytes.

use std::io::Read;

use axiomfs_api::conformance::{self, Noise};
use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, Transform, TransformFactory, Worker};
use axiomfs_compression_zstd::{FORMAT, Factory};
use proptest::prelude::*;
use std::sync::Arc;

fn zstd(level: &str) -> Arc<dyn Transform> {
    Factory.build(&[("level".into(), level.into())]).expect("a level")
}

fn encode(worker: &mut dyn Worker, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = BoundedBuf::new(frame.len() + 1024);
    match worker.encode(Hint::Data, frame, &mut out).expect("encodes") {
        Applied::Yes => Some(out.into_vec()),
        Applied::No => None,
    }
}

#[test]
fn keeps_the_contract() {
    for level in ["-7", "3", "9"] {
        conformance::transform(&*zstd(level));
    }
}

#[test]
fn frames_are_standard_zstd() {
    let frame = Noise::new(1).text(200_000);
    for level in ["-7", "3", "19", "22"] {
        let encoded = encode(&mut *zstd(level).worker().expect("a worker"), &frame).expect("text shrinks");
        let mut decoded = Vec::new();
        ::zstd::stream::read::Decoder::new(&encoded[..]).expect("a frame").read_to_end(&mut decoded).expect("decodes");
        assert!(decoded == frame, "the streaming decoder reads level {level}");
        assert!(encoded.len() * 2 < frame.len(), "text shrinks to under half, not {}", encoded.len());
    }
}

#[test]
fn what_does_not_shrink_goes_through() {
    let mut noise = Noise::new(2);
    let mut worker = zstd("3").worker().expect("a worker");
    for len in [0, 1, 10, 1000, 60_000, 65_536, 1 << 20] {
        assert_eq!(encode(&mut *worker, &noise.bytes(len)), None, "{len} bytes of noise");
    }
    // About 1 % to be had: less than what decoding is worth.
    let mut frame = noise.bytes(60_000);
    frame.extend(vec![0; 600]);
    assert_eq!(encode(&mut *worker, &frame), None);
    frame.extend(vec![0; 3000]);
    assert!(encode(&mut *worker, &frame).is_some(), "5 % is worth it");
    assert!(encode(&mut *worker, &noise.text(100)).is_some(), "and the worker goes on after giving up");
}

#[test]
fn a_level_is_no_decode_parameter() {
    assert_eq!(zstd("1").decode_params(), zstd("19").decode_params());
    assert_eq!(zstd("-7").params(), [("level", "-7".to_string())]);
    assert_eq!(Factory.build(&[]).expect("the default").params(), [("level", "3".to_string())]);
    let frame = Noise::new(3).text(5000);
    let encoded = encode(&mut *zstd("19").worker().expect("a worker"), &frame).expect("shrinks");
    let decoder = Factory.decoder(FORMAT, &[]).expect("a decoder");
    let mut out = BoundedBuf::new(5000);
    decoder.worker().expect("a worker").decode(FORMAT, &encoded, 5000, &mut out).expect("decodes");
    assert!(out.as_slice() == frame);
}

/// The level moves under a worker that is in use; what it makes stays one format.
#[test]
fn the_level_moves_within_its_bounds() {
    let params = |adapt: &str| [("level".into(), "3".into()), ("adapt".into(), adapt.into())];
    let zstd = Factory.build(&params("1..19")).expect("bounds");
    assert_eq!(zstd.params(), [("level", "3".to_string()), ("adapt", "1..19".to_string())]);
    let effort = zstd.effort().expect("a dial");
    assert_eq!((effort.get(), effort.usual()), (3, 3));
    let frame = Noise::new(6).text(200_000);
    let mut worker = zstd.worker().expect("a worker");
    let mut lens = Vec::new();
    for level in [1, 19, 3, 1] {
        assert_eq!(effort.set(level), level);
        let encoded = encode(&mut *worker, &frame).expect("shrinks");
        lens.push(encoded.len());
        let fixed = encode(&mut *self::zstd(&level.to_string()).worker().expect("a worker"), &frame);
        assert!(fixed.expect("shrinks") == encoded, "level {level} makes what it always makes");
        let mut out = BoundedBuf::new(frame.len());
        worker.decode(FORMAT, &encoded, frame.len(), &mut out).expect("decodes");
        assert!(out.as_slice() == frame);
    }
    assert!(lens[1] < lens[0] && lens[0] == lens[3], "{lens:?}");
    assert!(Factory.build(&params("off")).expect("off").effort().is_none());
    let alone = Factory.build(&[("adapt".into(), "5..9".into())]).expect("no level given");
    assert_eq!(alone.params()[0].1, "5", "the default level, moved into the bounds");
    for bad in ["4..9", "9..1", "1..23", "-8..3", "1", "1..", "..", "a..b", "1..2..3"] {
        let error = Factory.build(&params(bad)).err().expect(bad);
        assert!(matches!(&error, PluginError::BadParameter { key, .. } if key == "adapt"), "{bad}: {error}");
    }
}

#[test]
fn parameters_are_checked() {
    for bad in ["23", "-8", "", "three", "3.5", "99999999999"] {
        let error = Factory.build(&[("level".into(), bad.into())]).err().expect("refused");
        assert!(matches!(&error, PluginError::BadParameter { value, .. } if value == bad), "{error}");
    }
    let error = Factory.build(&[("speed".into(), "1".into())]).err().expect("refused");
    assert!(error.to_string().contains("\"speed\"") && error.to_string().contains("level"), "{error}");
    assert!(matches!(Factory.decoder(2, &[]).err(), Some(PluginError::UnknownFormat { format: 2, .. })));
    assert!(Factory.decoder(FORMAT, &[1]).is_err());
}

/// zstd itself would decode further frames and skip what says it may be skipped: two stored forms of one frame.
#[test]
fn a_frame_has_one_form() {
    let frame = Noise::new(4).text(5000);
    let mut worker = zstd("3").worker().expect("a worker");
    let encoded = encode(&mut *worker, &frame).expect("shrinks");
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0xaa];
    let empty = ::zstd::bulk::compress(&[], 1).expect("an empty frame");
    for extra in [&skippable[..], &empty] {
        for input in [[&encoded, extra].concat(), [extra, &encoded].concat()] {
            let mut out = BoundedBuf::new(5000);
            assert!(worker.decode(FORMAT, &input, 5000, &mut out).is_err(), "{extra:?}");
        }
    }
}

/// A large buffer that is used again gives zstd more room than a worthwhile result may take.
#[test]
fn a_roomy_buffer_changes_nothing() {
    let mut frame = Noise::new(5).bytes(60_000);
    frame.extend(vec![0; 600]);
    let mut worker = zstd("3").worker().expect("a worker");
    let mut out = BoundedBuf::reuse(Vec::with_capacity(1 << 20), 1 << 20);
    assert_eq!(worker.encode(Hint::Data, &frame, &mut out).expect("encodes"), Applied::No);
    frame.extend(vec![0; 3000]);
    assert_eq!(worker.encode(Hint::Data, &frame, &mut out).expect("encodes"), Applied::Yes);
}

/// A frame header that claims 1 TiB must cost nothing.
#[test]
fn a_claimed_size_allocates_nothing() {
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    bomb.extend((1u64 << 40).to_le_bytes());
    bomb.extend([3, 0, 0, 0x41]);
    let mut out = BoundedBuf::new(1 << 20);
    let mut worker = zstd("3").worker().expect("a worker");
    assert!(worker.decode(FORMAT, &bomb, 1 << 20, &mut out).is_err());
    assert!(worker.decode(FORMAT, &bomb, 1 << 40, &mut out).is_err(), "the buffer's bound comes first");
}

proptest! {
    #[test]
    fn any_frame_comes_back(
        data in prop::collection::vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], 0..50_000),
        level in -7i32..10,
    ) {
        let mut worker = zstd(&level.to_string()).worker().expect("a worker");
        if let Some(encoded) = encode(&mut *worker, &data) {
            prop_assert!(encoded.len() < data.len());
            let mut out = BoundedBuf::new(data.len());
            worker.decode(FORMAT, &encoded, data.len(), &mut out).expect("decodes");
            prop_assert!(out.as_slice() == data);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..2000), magic: bool, raw_len in 0usize..100_000) {
        let mut input = if magic { vec![0x28, 0xb5, 0x2f, 0xfd] } else { Vec::new() };
        input.extend(data);
        let mut out = BoundedBuf::new(raw_len);
        let mut worker = zstd("3").worker().expect("a worker");
        if worker.decode(FORMAT, &input, raw_len, &mut out).is_ok() {
            prop_assert_eq!(out.as_slice().len(), raw_len);
        }
    }
}
