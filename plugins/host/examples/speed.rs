//! Measures frames through a chain and back, with the seal, on as many threads as asked for:
//! `cargo run --release --example speed [THREADS]`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axiomfs_api::conformance::Noise;
use axiomfs_api::{Hint, Seal};
use axiomfs_compression_zstd::Factory;
use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::{ChainSpec, Host, Limits, Registry, RouteTable, StepSpec};

const FRAME: usize = 1 << 20;
const FRAMES: usize = 256;

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1);
    let registry = Registry::new().transform(Factory).seal(Aes256Gcm);
    let seal = || StepSpec::new("aes-256-gcm");
    let chains = vec![
        ChainSpec::new("default", vec![StepSpec::new("zstd").with("level", 3), seal()]),
        ChainSpec::new("plain", vec![seal()]),
    ];
    let host = Host::new(registry, chains, RouteTable::default(), Limits::default(), vec![]).expect("a host");
    let mut noise = Noise::new(1);
    let (text, random) = (noise.text(16 * FRAME), noise.bytes(16 * FRAME));
    for (what, chain, data) in
        [("text, zstd 3", "default", &text), ("noise, zstd 3", "default", &random), ("seal only", "plain", &text)]
    {
        measure(&host, what, chain, data, threads);
    }
}

fn measure(host: &Host, what: &str, chain: &str, data: &[u8], threads: usize) {
    let sealer = Aes256Gcm.sealer(&[7; 32]);
    let (encode_ns, decode_ns) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for (i, raw) in data.chunks(FRAME).cycle().take(FRAMES / threads).enumerate() {
                    let mut nonce = [0; 12];
                    nonce[..8].copy_from_slice(&(i as u64).to_le_bytes());
                    let start = Instant::now();
                    let chain = host.chain(chain).expect("a chain");
                    let mut encoded = chain.encode(Hint::Data, raw).expect("encodes");
                    sealer.seal(&nonce, b"", &mut encoded.bytes);
                    encode_ns.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
                    let start = Instant::now();
                    sealer.open(&nonce, b"", &mut encoded.bytes).expect("opens");
                    let decoder = host.decoder(chain.descriptor_bytes()).expect("a decoder");
                    let decoded = decoder.decode_vec(encoded.applied, encoded.bytes, raw.len()).expect("decodes");
                    decode_ns.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
                    assert!(decoded == raw);
                }
            });
        }
    });
    let took = start.elapsed();
    let rate = |ns: &AtomicU64| ((FRAMES * FRAME) >> 20) as f64 * threads as f64 / (ns.load(Relaxed) as f64 / 1e9);
    println!(
        "{what:>13}, {threads} threads: encode {:>6.0} MiB/s, decode {:>6.0} MiB/s ({took:.2?})",
        rate(&encode_ns),
        rate(&decode_ns)
    );
}
