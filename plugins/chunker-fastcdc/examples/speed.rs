//! Measures cutting: `cargo run --release --example speed`.

use std::time::Instant;

use axiomfs_api::Chunker;
use axiomfs_api::conformance::Noise;
use axiomfs_chunker_fastcdc::{DEFAULT_SIZES, FastCdc};

fn main() {
    let data = Noise::new(1).bytes(256 << 20);
    let chunker = FastCdc::new(0x1234, DEFAULT_SIZES);
    let start = Instant::now();
    let (mut at, mut count) = (0, 0);
    while at < data.len() {
        at += chunker.cut(&data[at..]);
        count += 1;
    }
    let rate = 256.0 / start.elapsed().as_secs_f64();
    println!("{count} chunks, {} KiB on average, {rate:.0} MiB/s", (data.len() / count) >> 10);
}
