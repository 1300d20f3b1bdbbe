//! The faulty plugin keeps the contract where it is not told to break it, and breaks it as it is told.

use std::time::Duration;

use axiomfs_api::conformance;
use axiomfs_api::{Applied, BoundedBuf, Hint, PluginError, TransformFactory};
use axiomfs_transform_faulty::{FORMAT, Factory, is_chosen};

fn encode(params: &[(&str, &str)], frame: &[u8]) -> Result<Vec<u8>, PluginError> {
    let params: Vec<_> = params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut out = BoundedBuf::new(frame.len() + 1);
    let mut worker = Factory::new().build(&params)?.worker()?;
    assert_eq!(worker.encode(Hint::Data, frame, &mut out)?, Applied::Yes);
    Ok(out.into_vec())
}

fn decode(encoded: &[u8]) -> Vec<u8> {
    let mut out = BoundedBuf::new(encoded.len());
    let decoder = Factory::new().decoder(FORMAT, &[]).expect("a decoder");
    decoder.worker().expect("a worker").decode(FORMAT, encoded, encoded.len() - 1, &mut out).expect("decodes");
    out.into_vec()
}

/// A frame that is chosen once in 100, and one that is not.
fn frames() -> (Vec<u8>, Vec<u8>) {
    let frame = |i: u32| [i.to_le_bytes().repeat(16), b"more of it".to_vec()].concat();
    let chosen = (0..10_000).map(frame).filter(|frame| is_chosen(frame, 100)).collect::<Vec<_>>();
    assert!((50..200).contains(&chosen.len()), "{} of 10,000", chosen.len());
    let other = (0..).map(frame).find(|frame| !is_chosen(frame, 100)).expect("most are not");
    (chosen[0].clone(), other)
}

#[test]
fn keeps_the_contract_unless_it_is_told_otherwise() {
    conformance::transform(&*Factory::new().build(&[]).expect("no parameters"));
}

#[test]
fn misbehaves_for_chosen_frames_only() {
    let (chosen, other) = frames();
    for fault in ["wrong", "fail", "greedy", "slow"] {
        let start = std::time::Instant::now();
        assert!(decode(&encode(&[(fault, "100")], &other).expect("encodes")) == other, "{fault}");
        assert!(start.elapsed() < Duration::from_secs(2), "{fault}");
    }
    let wrong = decode(&encode(&[("wrong", "100")], &chosen).expect("encodes"));
    assert!(wrong != chosen && wrong.len() == chosen.len(), "it decodes to other bytes");
    assert!(matches!(encode(&[("fail", "100")], &chosen), Err(PluginError::Failed { plugin: "faulty", .. })));
    assert!(matches!(encode(&[("odd", "1")], &other), Err(PluginError::UnknownParameter { .. })));
    assert!(matches!(encode(&[("fail", "often")], &other), Err(PluginError::BadParameter { .. })));
}
