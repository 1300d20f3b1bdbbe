//! Measures both directions per level on text and noise: `cargo run --release --example speed`.

use std::time::Instant;

use axiomfs_api::conformance::Noise;
use axiomfs_api::{Applied, BoundedBuf, Hint, TransformFactory, Worker};
use axiomfs_compression_zstd::{FORMAT, Factory};

const FRAME: usize = 512 << 10;

fn main() {
    // Any file can stand in for the made-up text: `speed FILE`.
    let text = match std::env::args_os().nth(1) {
        Some(path) => std::fs::read(path).expect("a readable file"),
        None => Noise::new(1).text(32 << 20),
    };
    for level in [-3, 1, 3, 9, 19] {
        let step = Factory.build(&[("level".into(), level.to_string())]).expect("a level");
        measure(&format!("level {level}"), &mut *step.worker().expect("a worker"), &text);
    }
    let step = Factory.build(&[]).expect("the default");
    measure("noise", &mut *step.worker().expect("a worker"), &Noise::new(2).bytes(256 << 20));
}

fn measure(what: &str, worker: &mut dyn Worker, data: &[u8]) {
    let mib = data.len() as f64 / f64::from(1 << 20);
    let start = Instant::now();
    let mut frames = Vec::new();
    for raw in data.chunks(FRAME) {
        let mut out = BoundedBuf::new(FRAME);
        if worker.encode(Hint::Data, raw, &mut out).expect("encodes") == Applied::Yes {
            frames.push((raw.len(), out.into_vec()));
        }
    }
    let encoded = mib / start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut raw = 0;
    let mut reused = Vec::new();
    for (len, bytes) in &frames {
        let mut out = BoundedBuf::reuse(std::mem::take(&mut reused), *len);
        worker.decode(FORMAT, bytes, *len, &mut out).expect("decodes");
        raw += len;
        reused = out.into_vec();
    }
    let decoded = raw as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64();
    let small: usize = frames.iter().map(|(_, bytes)| bytes.len()).sum();
    let ratio = raw as f64 / small.max(1) as f64;
    println!("{what:>9}  encode {encoded:>6.0} MiB/s  ratio {ratio:>5.2}  decode {decoded:>6.0} MiB/s");
}
