//! Chains from outside: what goes in comes back, whatever the plugins do.

mod plugins;

use std::sync::Arc;

use axiomfs_api::Hint;
use axiomfs_api::conformance::Noise;
use axiomfs_host::{ChainRecord, ChainSpec, Host, HostError, Limits, OnError, RouteTable, StepSpec};
use plugins::{Plugin, Trouble, host, registry, seal, spec, zstd};
use proptest::prelude::*;

fn round_trip(host: &Host, chain: &str, raw: &[u8]) -> u32 {
    let chain = host.chain(chain).expect("a chain");
    let encoded = chain.encode(Hint::Data, raw).expect("encodes");
    let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
    let decoded = decoder.decode(encoded.applied, &encoded.bytes, raw.len()).expect("decodes");
    assert!(decoded == raw, "{} bytes come back", raw.len());
    let decoded = decoder.decode_vec(encoded.applied, encoded.bytes, raw.len()).expect("decodes");
    assert!(decoded == raw, "{} bytes come back", raw.len());
    encoded.applied
}

#[test]
fn frames_come_back_through_one_and_many_steps() {
    let host = host(vec![
        spec("default", vec![zstd(3), seal()]),
        spec("plain", vec![seal()]),
        spec("three", vec![StepSpec::new("xor"), zstd(1), StepSpec::new("pad"), seal()]),
    ]);
    let mut noise = Noise::new(1);
    for len in [0, 1, 1000, 70_000, 1 << 20, 4 << 20] {
        let (text, random) = (noise.text(len), noise.bytes(len));
        assert_eq!(round_trip(&host, "default", &text), u32::from(len >= 1000), "text of {len} bytes is compressed");
        assert_eq!(round_trip(&host, "default", &random), 0, "noise of {len} bytes is not");
        assert_eq!(round_trip(&host, "plain", &text), 0);
        assert_eq!(round_trip(&host, "three", &random), 0b101, "the compressor passes on what xor made");
        assert_eq!(round_trip(&host, "three", &vec![7; len]) & 0b101, 0b101);
    }
    assert_eq!(round_trip(&host, "three", &vec![7; 70_000]), 0b111);
}

/// The contract holds for more than one codec.
#[test]
fn the_test_plugin_is_a_proper_transform() {
    axiomfs_api::conformance::transform(&Plugin::new("xor"));
}

/// The bytes stored in packs: changing them needs a new version number.
#[test]
fn descriptors_are_golden() {
    let host = host(vec![spec("default", vec![zstd(3), seal()]), spec("fast", vec![zstd(-7), seal()])]);
    let chain = host.chain("default").expect("a chain");
    assert_eq!(chain.descriptor_bytes(), b"\x01\x01\x04zstd\x01\x00\x00\x00\x0baes-256-gcm\x01\x00");
    assert_eq!(chain.id().to_string(), blake3::hash(chain.descriptor_bytes()).to_hex().to_string());
    assert_eq!(chain.id(), host.chain("fast").expect("a chain").id(), "a level is not part of it");
    assert_eq!(host.decoder(chain.descriptor_bytes()).expect("a decoder").seal_id(), Some("aes-256-gcm"));
}

#[test]
fn a_missing_plugin_is_named() {
    let descriptor = {
        let host = host(vec![spec("default", vec![StepSpec::new("xor"), seal()])]);
        host.chain("default").expect("a chain").descriptor_bytes().to_vec()
    };
    let chains = vec![ChainSpec::new("default", vec![zstd(3), seal()])];
    let registry = axiomfs_host::Registry::new()
        .transform(axiomfs_compression_zstd::Factory)
        .seal(axiomfs_encryption_aes_gcm::Aes256Gcm);
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let error = host.decoder(&descriptor).expect_err("xor is not here");
    assert!(matches!(&error, HostError::MissingPlugin { plugin, format: 1 } if plugin == "xor"), "{error}");
    let error = host.decoder_for(&descriptor, 1).expect_err("it was applied");
    assert!(matches!(&error, HostError::MissingPlugin { plugin, format: 1 } if plugin == "xor"), "{error}");
    assert!(matches!(host.decoder_for(&descriptor, 2), Err(HostError::BadSteps { applied: 2, steps: 1 })));
    let mut newer = descriptor.clone();
    let at = newer.windows(3).position(|w| w == b"xor").expect("its id") + 3;
    newer[at] = 9;
    let full = plugins::host(vec![spec("default", vec![zstd(3), seal()])]);
    let error = full.decoder(&newer).expect_err("format 9 is not here");
    assert!(matches!(&error, HostError::MissingPlugin { plugin, format: 9 } if plugin == "xor"), "{error}");
}

/// A frame that passed a step over, or was made by a fallback, does not need that step's plugin.
#[test]
fn frames_are_read_without_the_plugins_that_were_not_applied_to_them() {
    let raw = b"some text, some text, some text, some text".repeat(20);
    let full = plugins::host(vec![
        spec("default", vec![zstd(3), StepSpec::new("xor"), seal()]),
        spec("plain", vec![zstd(3), seal()]),
    ]);
    let descriptor = full.chain("default").expect("a chain").descriptor_bytes().to_vec();
    let (both, compressed) = (full.chain("default").expect("a chain"), full.chain("plain").expect("a chain"));
    let compressed = compressed.encode(Hint::Data, &raw).expect("encodes");
    assert_eq!(compressed.applied, 0b01);
    let registry = axiomfs_host::Registry::new()
        .transform(axiomfs_compression_zstd::Factory)
        .seal(axiomfs_encryption_aes_gcm::Aes256Gcm);
    let chains = vec![ChainSpec::new("default", vec![zstd(3), seal()])];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    for (applied, encoded, len) in [(0b01, &compressed.bytes, raw.len()), (0, &raw, raw.len())] {
        let (decoder, applied) = host.decoder_for(&descriptor, applied).expect("xor was not applied");
        assert_eq!(decoder.seal_id(), Some("aes-256-gcm"));
        assert!(decoder.decode(applied, encoded, len).expect("decodes") == raw);
    }
    let encoded = both.encode(Hint::Data, &raw).expect("encodes");
    let error = host.decoder_for(&descriptor, encoded.applied).expect_err("xor was applied");
    assert!(matches!(&error, HostError::MissingPlugin { plugin, .. } if plugin == "xor"), "{error}");
}

#[test]
fn error_strategies_do_what_they_say() {
    let trouble = Trouble::default();
    let registry = registry().transform(Plugin::new("flaky").troubled(&trouble));
    let flaky = |on_error| StepSpec::new("flaky").on_error(on_error);
    let chains = vec![
        spec("default", vec![zstd(3), seal()]),
        spec("fail", vec![flaky(OnError::Fail), seal()]),
        spec("skip", vec![flaky(OnError::Skip), zstd(3), seal()]),
        spec("fallback", vec![zstd(19), flaky(OnError::Fallback("default".into())), seal()]),
        spec("other", vec![flaky(OnError::Fallback("xored".into())), seal()]),
        spec("xored", vec![StepSpec::new("xor"), seal()]),
    ];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let text = Noise::new(2).text(50_000);
    for chain in ["fail", "skip", "fallback", "other"] {
        assert_ne!(round_trip(&host, chain, &text), 0, "all is well with {chain}");
    }
    for panics in [false, true] {
        trouble.fail_encoding(true, panics);
        let error = host.chain("fail").expect("a chain").encode(Hint::Data, &text).expect_err("fails");
        assert!(
            matches!(&error, HostError::Encode { chain, plugin, .. } if chain == "fail" && plugin == "flaky"),
            "{error}"
        );
        assert_eq!(round_trip(&host, "skip", &text), 0b10, "only the compressor was applied");
        assert_eq!(round_trip(&host, "fallback", &text), 0b01, "the fallback's compressor shares the bit");
        assert_eq!(round_trip(&host, "other", &text), 0b10, "the fallback's step has a bit of its own");
        trouble.fail_encoding(false, false);
        assert_eq!(round_trip(&host, "fail", &text), 1, "and goes on afterwards");
    }
    let metrics = host.metrics();
    let metric = |name: &str| {
        let found = metrics.iter().find(|m| m.name == name && m.labels.iter().any(|(_, v)| v == "flaky"));
        found.map_or(0.0, |m| m.value)
    };
    assert_eq!(metric("axiomfs_plugin_skipped_total"), 2.0);
    assert_eq!(metric("axiomfs_plugin_fallbacks_total"), 4.0);
    assert_eq!(metric("axiomfs_plugin_encode_errors_total"), 8.0);
}

#[test]
fn strategies_that_make_no_sense_are_refused() {
    let step = |on_error| StepSpec::new("xor").on_error(on_error);
    let refused = |chains: Vec<ChainSpec>, word: &str| {
        let error =
            Host::new(registry(), chains, RouteTable::default(), Limits::default(), vec![]).expect_err("refused");
        assert_eq!(error.errno_name(), "EINVAL", "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(vec![spec("default", vec![step(OnError::Skip), seal()])], "not right without it");
    refused(vec![spec("default", vec![seal().on_error(OnError::Skip)])], "seal");
    refused(vec![spec("default", vec![step(OnError::Fallback("none".into())), seal()])], "no chain none");
    let a = spec("default", vec![step(OnError::Fallback("b".into())), seal()]);
    let b = spec("b", vec![step(OnError::Fallback("default".into())), seal()]);
    refused(vec![a.clone(), b], "circle");
    refused(vec![a.clone(), spec("b", vec![StepSpec::new("xor")])], "another seal");
    let itself = spec("default", vec![step(OnError::Fallback("default".into())), seal()]);
    refused(vec![itself], "circle");
}

#[test]
fn wrong_bytes_are_caught_before_they_count() {
    let text = Noise::new(3).text(10_000);
    let build = |proven: bool, on_error: OnError, trouble: &Trouble| {
        let plugin = Plugin::new("flaky").troubled(trouble);
        let registry = if proven { registry().transform(plugin) } else { registry().unproven_transform(plugin) };
        let chains = vec![spec("default", vec![StepSpec::new("flaky").on_error(on_error), seal()])];
        Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host")
    };
    let trouble = Trouble::default();
    let host = build(false, OnError::Fail, &trouble);
    trouble.corrupt_encoding(true);
    let chain = host.chain("default").expect("a chain");
    for _ in 0..5 {
        let error = chain.encode(Hint::Data, &text).expect_err("is caught");
        assert!(matches!(error, HostError::Verify { .. } | HostError::Encode { .. }), "{error}");
    }
    assert_eq!(round_trip(&host, "default", &text), 0, "it is out of the chain by then");
    assert_eq!(host.chain_specs()[0].to_string(), "aes-256-gcm");
    trouble.corrupt_encoding(false);
    let host = build(false, OnError::Skip, &trouble);
    trouble.corrupt_encoding(true);
    assert_eq!(round_trip(&host, "default", &text), 0, "a step that may be skipped is");
    trouble.corrupt_encoding(false);
    let host = build(true, OnError::Fail, &trouble);
    trouble.corrupt_encoding(true);
    let chain = host.chain("default").expect("a chain");
    let unnoticed = (0..32).take_while(|_| chain.encode(Hint::Data, &text).is_ok()).count();
    assert!(unnoticed < 16, "of a proven step one frame of 16 is verified, not the {unnoticed}th");
    assert_eq!(round_trip(&host, "default", &text), 0);
}

#[test]
fn decoders_refuse_what_no_encoder_wrote() {
    let host = host(vec![spec("default", vec![StepSpec::new("xor"), zstd(3), seal()])]);
    let chain = host.chain("default").expect("a chain");
    let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
    let text = Noise::new(4).text(5000);
    let encoded = chain.encode(Hint::Data, &text).expect("encodes");
    assert_eq!(encoded.applied, 0b11);
    assert!(matches!(decoder.decode(0b100, &encoded.bytes, 5000), Err(HostError::BadSteps { applied: 4, steps: 2 })));
    assert!(matches!(decoder.decode(0b11, &encoded.bytes, usize::MAX), Err(HostError::FrameTooLarge { .. })));
    assert!(matches!(decoder.decode(0b11, &encoded.bytes[..2], 5000), Err(HostError::Decode { .. })));
    assert!(matches!(decoder.decode(0, &encoded.bytes, 5000), Err(HostError::Decode { .. })));
    assert!(matches!(decoder.decode_vec(0, vec![1], 2), Err(HostError::Decode { .. })));
    let mut long = encoded.bytes.clone();
    let at = long.len() - 4;
    long[at..].fill(0xff);
    assert!(decoder.decode(0b11, &long, 5000).is_err(), "a length of 4 GiB in between");
    let too_long = vec![0; Limits::default().max_frame + 1];
    assert!(matches!(chain.encode(Hint::Data, &too_long), Err(HostError::FrameTooLarge { .. })));
}

#[test]
fn as_many_frames_are_in_flight_as_may_be_and_never_more() {
    for most in [1, 2, 32] {
        let trouble = Trouble::default();
        let limits = Limits { max_in_flight: most, verify_sample: 0, ..Limits::default() };
        let chains = vec![spec("default", vec![StepSpec::new("flaky"), seal()])];
        let registry = registry().transform(Plugin::new("flaky").troubled(&trouble));
        let host = Arc::new(Host::new(registry, chains, RouteTable::default(), limits, vec![]).expect("a host"));
        trouble.slow(std::time::Duration::from_millis(5));
        std::thread::scope(|scope| {
            for _ in 0..most + 8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        round_trip(&host, "default", b"some bytes");
                    }
                });
            }
        });
        assert_eq!(trouble.most_at_once(), most);
    }
}

proptest! {
    #[test]
    fn any_frame_comes_back(data in prop::collection::vec(prop_oneof![3 => 0u8..3, 1 => any::<u8>()], 0..20_000)) {
        thread_local!(static HOST: Host = host(vec![
            spec("default", vec![zstd(3), seal()]),
            spec("three", vec![StepSpec::new("xor"), zstd(1), StepSpec::new("pad"), seal()]),
        ]));
        HOST.with(|host| {
            round_trip(host, "default", &data);
            round_trip(host, "three", &data);
        });
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        applied: u32,
        raw_len in prop_oneof![0usize..2000, any::<usize>()],
    ) {
        thread_local!(static HOST: Host = host(vec![
            spec("default", vec![StepSpec::new("xor"), zstd(1), StepSpec::new("pad"), seal()]),
        ]));
        HOST.with(|host| {
            let chain = host.chain("default").expect("a chain");
            let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
            for applied in [applied, applied & 7] {
                if let Ok(raw) = decoder.decode(applied, &bytes, raw_len) {
                    assert_eq!(raw.len(), raw_len);
                }
            }
        });
    }

    #[test]
    fn arbitrary_descriptors_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), header: bool) {
        let bytes = if header { [&[1, 2][..], &bytes].concat() } else { bytes };
        if let Ok(record) = ChainRecord::parse(&bytes) {
            prop_assert_eq!(record.encode(), bytes, "a chain has one form only");
        }
    }

    #[test]
    fn descriptors_come_back(
        steps in prop::collection::vec(("[a-z0-9_-]{1,64}", any::<u16>(), prop::collection::vec(any::<u8>(), 0..50)), 0..32),
        seal in prop::option::of(("[a-z0-9_-]{1,64}", any::<u16>())),
    ) {
        let steps = steps.into_iter().map(|(plugin, format, params)| axiomfs_host::StepRecord { plugin, format, params });
        let record = ChainRecord { steps: steps.collect(), seal };
        prop_assert_eq!(ChainRecord::parse(&record.encode()).expect("parses"), record);
    }
}
