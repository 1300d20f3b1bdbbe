//! Frames as they were written once, by every plugin and by chains of several: every later build reads them.
//!
//! `tests/fixtures/frames-v1/FRAMES` has a line each: name, applied steps, length and BLAKE3 of the raw bytes, then the
//! chain's descriptor and the encoded bytes in hex. It only ever grows. With `AXIOMFS_ADD_FRAMES=1` the test appends the
//! frames that are not in it yet.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use axiomfs_api::Hint;
use axiomfs_api::conformance::Noise;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};

const CHAINS: [(&str, &[&str]); 7] = [
    ("seal-only", &[]),
    ("zstd", &["zstd"]),
    ("lz4", &["lz4"]),
    ("padme", &["padme"]),
    ("zstd-padme", &["zstd", "padme"]),
    ("lz4-padme", &["lz4", "padme"]),
    ("lz4-zstd-padme", &["lz4", "zstd", "padme"]),
];

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/frames-v1/FRAMES")
}

fn host() -> Host {
    with_chains(
        Registry::new()
            .transform(axiomfs_compression_zstd::Factory)
            .transform(axiomfs_compression_lz4::Factory)
            .transform(axiomfs_padding_padme::Factory),
    )
}

fn with_chains(registry: Registry) -> Host {
    let registry = registry.seal(axiomfs_encryption_aes_gcm::Aes256Gcm);
    let spec = |name: &str, steps: &[&str]| {
        ChainSpec::new(name, steps.iter().chain(&["aes-256-gcm"]).map(|id| StepSpec::new(*id)).collect())
    };
    let mut chains = vec![spec("default", &[])];
    chains.extend(CHAINS.iter().map(|(name, steps)| spec(name, steps)));
    Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a text takes what is written");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}

fn line(host: &Host, name: &str) -> String {
    let raw = [Noise::new(9).text(1500), vec![0; 300]].concat();
    let chain = host.chain(name).expect("a chain");
    let encoded = chain.encode(Hint::Data, &raw).expect("encodes");
    let (hash, descriptor) = (blake3::hash(&raw), hex(chain.descriptor_bytes()));
    format!("{name} {} {} {hash} {descriptor} {}\n", encoded.applied, raw.len(), hex(&encoded.bytes))
}

#[test]
fn every_frame_ever_written_is_readable() {
    let host = host();
    let mut known = std::fs::read_to_string(file()).expect("the fixture");
    for (name, _) in CHAINS {
        if !known.lines().any(|line| line.split(' ').next() == Some(name)) {
            assert!(std::env::var_os("AXIOMFS_ADD_FRAMES").is_some(), "{name} has no frame in {}", file().display());
            known.push_str(&line(&host, name));
            std::fs::write(file(), &known).expect("the fixture can be written");
        }
    }
    for line in known.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, applied, len, hash, descriptor, encoded] = fields[..] else { panic!("{line}") };
        let decoder = host.decoder(&bytes(descriptor)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (applied, len) = (applied.parse().expect("a number"), len.parse().expect("a number"));
        let raw = decoder.decode(applied, &bytes(encoded), len).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(blake3::hash(&raw).to_string(), hash, "{name}");
    }
    assert!(known.lines().count() >= CHAINS.len());
}

#[test]
fn the_start_of_a_frame_is_decoded_through_every_chain() {
    let isolated = Registry::new()
        .unproven_transform(axiomfs_compression_zstd::Factory)
        .unproven_transform(axiomfs_compression_lz4::Factory)
        .unproven_transform(axiomfs_padding_padme::Factory);
    let raw = [Noise::new(9).text(400_000), vec![0; 300]].concat();
    for host in [host(), with_chains(isolated)] {
        for (name, _) in CHAINS {
            let chain = host.chain(name).expect("a chain");
            let encoded = chain.encode(Hint::Data, &raw).expect("encodes");
            let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
            for len in [0, 1, 128 << 10, 200_000, raw.len() - 1, raw.len(), raw.len() + 1] {
                let start = decoder.decode_start(encoded.applied, &encoded.bytes, raw.len(), len).expect("decodes");
                assert!(start.len() >= len.min(raw.len()) && raw.starts_with(&start), "{len} bytes through {name}");
            }
        }
    }
}

/// What a mount would do that has only the packs: nothing of the chains is configured any more.
#[test]
fn a_host_without_those_chains_reads_them_too() {
    let known = std::fs::read_to_string(file()).expect("the fixture");
    let registry = Registry::new()
        .transform(axiomfs_compression_zstd::Factory)
        .transform(axiomfs_padding_padme::Factory)
        .seal(axiomfs_encryption_aes_gcm::Aes256Gcm);
    let chains = vec![ChainSpec::new("default", vec![StepSpec::new("aes-256-gcm")])];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    for line in known.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let decoder = host.decoder(&bytes(fields[4]));
        match fields[0].contains("lz4") {
            false => drop(decoder.expect("its plugins are there")),
            true => {
                let error = decoder.expect_err("lz4 is not in this host").to_string();
                assert!(error.contains("lz4") && error.contains("format 1"), "{error}");
            }
        }
    }
}
