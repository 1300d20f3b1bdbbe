//! Looks for clear text where only sealed bytes should be.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::walk;

const RUN: usize = 16;
const BITS: u64 = 1 << 31;

/// One run of clear text found in the store.
#[derive(Debug)]
pub struct Leak {
    /// Where it was found.
    pub object: PathBuf,
    /// At which byte.
    pub offset: usize,
    /// What the bytes are.
    pub bytes: String,
}

/// Finds runs of 16 bytes in a store (contents and object names) that also stand in some file, or file name, of the
/// clear trees. Runs of at most two different byte values don't count: padding looks like that.
///
/// A filter over all clear runs is made first, the store is searched against it, and what hits is looked up in the clear
/// files again, byte by byte: no hit is reported that isn't there, and none is missed.
pub fn clear_text(store: &Path, clear: &[PathBuf]) -> Vec<Leak> {
    let mut filter = vec![0u64; (BITS / 64) as usize];
    for_each_clear_text(clear, &mut |text| {
        for run in text.windows(RUN) {
            for h in hashes(run) {
                filter[(h / 64) as usize] |= 1 << (h % 64);
            }
        }
    });
    let mut suspects: HashMap<[u8; RUN], (PathBuf, usize)> = HashMap::new();
    let mut search = |object: &Path, bytes: &[u8]| {
        for (offset, run) in bytes.windows(RUN).enumerate() {
            if !dull(run) && hashes(run).iter().all(|h| filter[(h / 64) as usize] & (1 << (h % 64)) != 0) {
                suspects
                    .entry(run.try_into().expect("a run is 16 bytes"))
                    .or_insert_with(|| (object.to_owned(), offset));
            }
        }
    };
    for object in walk(store) {
        let bytes = fs::read(&object).unwrap_or_else(|e| panic!("{}: {e}", object.display()));
        search(&object, &bytes);
        let name = object.strip_prefix(store).expect("below the store");
        search(&object, name.as_os_str().as_encoded_bytes());
    }
    // A small filter over the suspects fits into the processor's cache: almost all clear runs pass it by.
    let mut small = vec![0u64; 1 << 18];
    let place = |run: &[u8]| (hashes(run)[0] as usize) & ((1 << 24) - 1);
    for run in suspects.keys() {
        small[place(run) / 64] |= 1 << (place(run) % 64);
    }
    let mut leaks = HashMap::new();
    for_each_clear_text(clear, &mut |text| {
        for run in text.windows(RUN) {
            if small[place(run) / 64] & (1 << (place(run) % 64)) == 0 {
                continue;
            }
            if let Some((object, offset)) = suspects.get(run) {
                let bytes = run.escape_ascii().to_string();
                leaks.entry(run.to_vec()).or_insert(Leak { object: object.clone(), offset: *offset, bytes });
            }
        }
    });
    leaks.into_values().collect()
}

fn for_each_clear_text(clear: &[PathBuf], visit: &mut dyn FnMut(&[u8])) {
    for tree in clear {
        for path in walk(tree) {
            visit(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
            visit(path.strip_prefix(tree).expect("below its tree").as_os_str().as_encoded_bytes());
        }
    }
}

fn dull(run: &[u8]) -> bool {
    let (a, b) = (run[0], run.iter().copied().find(|b| *b != run[0]).unwrap_or(run[0]));
    run.iter().all(|x| *x == a || *x == b)
}

fn hashes(run: &[u8]) -> [u64; 2] {
    let low = u64::from_le_bytes(run[..8].try_into().expect("eight bytes"));
    let high = u64::from_le_bytes(run[8..].try_into().expect("eight bytes"));
    let mix = |x: u64| {
        let z = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
    };
    [
        mix(low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high),
        mix(high.wrapping_mul(0xff51_afd7_ed55_8ccd).wrapping_add(low)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_wherever_it_stands_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, clear) = (dir.path().join("store"), dir.path().join("clear"));
        fs::create_dir_all(&store).expect("store");
        fs::create_dir_all(&clear).expect("clear");
        fs::write(clear.join("a-name-of-over-16-bytes"), b"...the quick brown fox jumps...").expect("clear file");
        fs::write(store.join("one"), crate::rng::noise(1, 100_000)).expect("noise");
        fs::write(store.join("short"), b"xthe quick brownXy").expect("15 equal bytes only");
        let found = clear_text(&store, std::slice::from_ref(&clear));
        assert!(found.is_empty(), "{found:?}");
        let mut sealed = crate::rng::noise(2, 5000);
        sealed[1234..1250].copy_from_slice(b"quick brown fox ");
        fs::write(store.join("two"), &sealed).expect("a leak");
        let found = clear_text(&store, std::slice::from_ref(&clear));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].offset, 1234);
    }
}
