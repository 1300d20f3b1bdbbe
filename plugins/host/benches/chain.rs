//! How fast frames go through a chain and its seal, and back: `cargo bench -p axiomfs-host`.
#![allow(missing_docs, reason = "criterion's macros make public items")]

use axiomfs_api::conformance::Noise;
use axiomfs_api::{Hint, NONCE_LEN, Seal};
use axiomfs_compression_zstd::Factory;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const FRAME: usize = 512 << 10;
const NONCE: [u8; NONCE_LEN] = [1; NONCE_LEN];

fn host() -> Host {
    let registry = Registry::new().transform(Factory).seal(Aes256Gcm);
    let seal = || StepSpec::new("aes-256-gcm");
    let chains = vec![
        ChainSpec::new("default", vec![StepSpec::new("zstd").with("level", 3), seal()]),
        ChainSpec::new("plain", vec![seal()]),
    ];
    Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host")
}

fn both_ways(c: &mut Criterion) {
    let (host, sealer) = (host(), Aes256Gcm.sealer(&[7; 32]));
    let (text, noise) = (Noise::new(1).text(FRAME), Noise::new(2).bytes(FRAME));
    let mut group = c.benchmark_group("chain");
    group.throughput(Throughput::Bytes(FRAME as u64));
    for (name, chain, raw) in
        [("zstd-3 text", "default", &text), ("zstd-3 noise", "default", &noise), ("seal only", "plain", &text)]
    {
        let chain = host.chain(chain).expect("a chain");
        let encode = || {
            let mut encoded = chain.encode(Hint::Data, raw).expect("encodes");
            sealer.seal(&NONCE, b"", &mut encoded.bytes);
            encoded
        };
        group.bench_function(format!("encode {name}"), |b| b.iter(encode));
        let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
        let sealed = encode();
        group.bench_function(format!("decode {name}"), |b| {
            let decode = |mut bytes: Vec<u8>| {
                sealer.open(&NONCE, b"", &mut bytes).expect("opens what was sealed");
                decoder.decode_vec(sealed.applied, bytes, raw.len()).expect("decodes")
            };
            b.iter_batched(|| sealed.bytes.clone(), decode, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, both_ways);
criterion_main!(benches);
