//! Measures sealing and opening: `cargo run --release --example speed`.

use std::time::Instant;

use axiomfs_api::Seal;
use axiomfs_encryption_aes_gcm::Aes256Gcm;

fn main() {
    let sealer = Aes256Gcm.sealer(&[7; 32]);
    for size in [4 << 10, 64 << 10, 512 << 10, 4 << 20] {
        let mut data = vec![1u8; size];
        let rounds = (512 << 20) / size;
        let mut tags = Vec::with_capacity(rounds);
        let start = Instant::now();
        for i in 0..rounds as u64 {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&i.to_le_bytes());
            tags.push((nonce, sealer.seal_detached(&nonce, b"speed", &mut data)));
        }
        let sealed = start.elapsed();
        let start = Instant::now();
        for (nonce, tag) in tags.iter().rev() {
            sealer.open_detached(nonce, b"speed", &mut data, tag).expect("opens what was sealed");
        }
        let opened = start.elapsed();
        println!(
            "{:>5} KiB  seal {:>6.0} MiB/s  open {:>6.0} MiB/s",
            size >> 10,
            512.0 / sealed.as_secs_f64(),
            512.0 / opened.as_secs_f64()
        );
    }
}
