use super::Noise;
use crate::{Applied, BoundedBuf, Hint, Kind, Transform, Worker};

/// Largest frame the suite makes.
const FRAME: usize = 1 << 20;

/// What every [`Transform`] must hold: exact and bounded decoding, stable parameters, no panic on any input.
///
/// # Panics
/// If `transform` breaks its contract.
pub fn transform(transform: &dyn Transform) {
    let descriptor = transform.descriptor();
    assert_eq!(descriptor.kind, Kind::Transform, "a transform says that it is one");
    assert!(descriptor.reads.contains(&descriptor.writes), "it reads what it writes");
    assert_eq!(transform.decode_params(), transform.decode_params(), "decode parameters are canonical");
    let mut worker = transform.worker().expect("a worker");
    let mut noise = Noise::new(4);
    let mut frames = vec![vec![], vec![0], vec![7; 100_000], vec![0; FRAME]];
    for len in [1, 2, 63, 1000, 65_537, 300_000, FRAME] {
        frames.push(noise.bytes(len));
        frames.push(noise.text(len));
    }
    for frame in &frames {
        for hint in [Hint::Data, Hint::Metadata] {
            round_trip(transform, &mut *worker, hint, frame);
        }
    }
    survives_damage(transform, &mut *worker, &mut noise);
}

/// Encodes; `None` where the step says it would not help.
fn encode(worker: &mut dyn Worker, hint: Hint, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = BoundedBuf::new(frame.len() + frame.len() / 8 + 1024);
    match worker.encode(hint, frame, &mut out).expect("encodes within an eighth more") {
        Applied::Yes => Some(out.into_vec()),
        Applied::No => None,
    }
}

fn round_trip(transform: &dyn Transform, worker: &mut dyn Worker, hint: Hint, frame: &[u8]) {
    let format = transform.descriptor().writes;
    let Some(encoded) = encode(worker, hint, frame) else { return };
    let mut out = BoundedBuf::new(frame.len());
    worker.decode(format, &encoded, frame.len(), &mut out).expect("decodes what it encoded, within the raw length");
    assert!(out.as_slice() == frame, "decoding gives the frame of {} bytes", frame.len());
    let mut fresh = transform.worker().expect("a worker");
    let mut out = BoundedBuf::new(frame.len());
    fresh.decode(format, &encoded, frame.len(), &mut out).expect("another worker decodes it too");
    assert!(out.as_slice() == frame, "another worker gives the same bytes");
    for len in [0, 1, frame.len() / 3, frame.len() - frame.len().min(1), frame.len()] {
        let mut out = BoundedBuf::new(frame.len());
        let len = len.min(frame.len());
        worker.decode_start(format, &encoded, frame.len(), len, &mut out).expect("decodes the start of it");
        let decoded = out.as_slice();
        assert!(decoded.len() >= len && frame.starts_with(decoded), "{len} bytes of a frame of {}", frame.len());
    }
    let mut out = BoundedBuf::new(frame.len() + 1);
    let beyond = worker.decode_start(format, &encoded, frame.len(), frame.len() + 1, &mut out);
    assert!(beyond.is_err(), "there is no more than all of it");
    for wrong in [frame.len() + 1, frame.len().wrapping_sub(1)] {
        if wrong != usize::MAX {
            let mut out = BoundedBuf::new(frame.len() + 16);
            assert!(worker.decode(format, &encoded, wrong, &mut out).is_err(), "a wrong raw length is refused");
        }
    }
    let mut out = BoundedBuf::new(frame.len());
    assert!(worker.decode(u16::MAX, &encoded, frame.len(), &mut out).is_err(), "an unknown format is refused");
    let mut out = BoundedBuf::new(frame.len());
    assert!(worker.decode_start(u16::MAX, &encoded, frame.len(), 0, &mut out).is_err(), "also for its start");
    if !frame.is_empty() {
        let mut out = BoundedBuf::new(frame.len() - 1);
        assert!(worker.decode(format, &encoded, frame.len(), &mut out).is_err(), "the output bound is kept");
        let mut longer = encoded.clone();
        longer.extend_from_slice(&encoded);
        let mut out = BoundedBuf::new(frame.len());
        assert!(worker.decode(format, &longer, frame.len(), &mut out).is_err(), "bytes after the end are refused");
        let mut out = BoundedBuf::new(frame.len());
        let cut = &encoded[..encoded.len() - 1];
        assert!(worker.decode(format, cut, frame.len(), &mut out).is_err(), "a cut input is refused");
    }
}

/// Damaged and arbitrary input gives an error or other bytes of the right length, never a panic; and the worker goes on.
fn survives_damage(transform: &dyn Transform, worker: &mut dyn Worker, noise: &mut Noise) {
    let format = transform.descriptor().writes;
    let frame = noise.text(5000);
    let encoded = encode(worker, Hint::Data, &frame);
    for round in 0..2000 {
        let input = match &encoded {
            Some(encoded) if round % 2 == 0 => {
                let mut damaged = encoded.clone();
                let at = noise.below(damaged.len());
                damaged[at] ^= 1 << noise.below(8);
                damaged
            }
            _ => {
                let len = noise.below(300);
                noise.bytes(len)
            }
        };
        let mut out = BoundedBuf::new(frame.len());
        if worker.decode(format, &input, frame.len(), &mut out).is_ok() {
            assert_eq!(out.as_slice().len(), frame.len(), "a success has exactly the raw length");
        }
        let len = noise.below(frame.len());
        let mut out = BoundedBuf::new(frame.len());
        if worker.decode_start(format, &input, frame.len(), len, &mut out).is_ok() {
            assert!(out.as_slice().len() >= len, "a success has the length asked for");
        }
    }
    if let Some(encoded) = encoded {
        let mut out = BoundedBuf::new(frame.len());
        worker.decode(format, &encoded, frame.len(), &mut out).expect("works on after failures");
        assert!(out.as_slice() == frame, "decodes rightly after failures");
    }
}
