//! Looks for clear text where only sealed bytes should be.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::observe::xattrs;
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
    search(store, &|visit| for_each_clear_text(clear, visit))
}

/// Finds as [`clear_text`] does, and also targets of symlinks and names and values of extended attributes; each text
/// also in hexadecimal, base64 and UTF-16, and with its bytes in reverse order.
pub fn clear_text_in_any_form(store: &Path, clear: &[PathBuf]) -> Vec<Leak> {
    search(store, &|visit| {
        for_each_text_of_a_tree(clear, &mut |text| {
            for form in forms(text) {
                visit(&form);
            }
        });
    })
}

/// Is called with each clear text.
type Visit<'a> = dyn FnMut(&[u8]) + 'a;

fn search(store: &Path, for_each: &dyn Fn(&mut Visit<'_>)) -> Vec<Leak> {
    let mut filter = vec![0u64; (BITS / 64) as usize];
    for_each(&mut |text| {
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
    for_each(&mut |text| {
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

fn for_each_clear_text(clear: &[PathBuf], visit: &mut Visit<'_>) {
    for tree in clear {
        for path in walk(tree) {
            visit(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
            visit(path.strip_prefix(tree).expect("below its tree").as_os_str().as_encoded_bytes());
        }
    }
}

/// Contents, names, targets and attributes of all entries.
fn for_each_text_of_a_tree(clear: &[PathBuf], visit: &mut Visit<'_>) {
    for tree in clear {
        visit_entry(tree, visit).unwrap_or_else(|error| panic!("{}: {error}", tree.display()));
    }
}

fn visit_entry(path: &Path, visit: &mut Visit<'_>) -> io::Result<()> {
    visit(path.file_name().map_or(&[], OsStr::as_bytes));
    for (name, value) in xattrs(path)? {
        visit(&name);
        visit(&value);
    }
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            visit_entry(&entry?.path(), visit)?;
        }
    } else if kind.is_symlink() {
        visit(fs::read_link(path)?.as_os_str().as_bytes());
    } else {
        visit(&fs::read(path)?);
    }
    Ok(())
}

/// A text as it may have been written down. Base64 at each of its three alignments.
fn forms(text: &[u8]) -> Vec<Vec<u8>> {
    let hex = |digits: &[u8; 16]| {
        text.iter().flat_map(|b| [digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]).collect()
    };
    let wide = |of: fn(u16) -> [u8; 2]| text.iter().flat_map(|b| of(u16::from(*b))).collect();
    let mut forms = vec![text.to_vec(), text.iter().rev().copied().collect()];
    forms.extend([hex(b"0123456789abcdef"), hex(b"0123456789ABCDEF")]);
    forms.extend([wide(u16::to_le_bytes), wide(u16::to_be_bytes)]);
    forms.extend((0..3).filter_map(|skipped| Some(base64(text.get(skipped..)?))));
    forms
}

/// The whole groups of three bytes.
fn base64(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0usize, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| DIGITS[bits >> shift & 63])
    };
    text.chunks_exact(3).flat_map(group).collect()
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

    #[test]
    fn each_form_of_each_part_of_a_tree_is_found() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, clear) = (dir.path().join("store"), dir.path().join("clear"));
        fs::create_dir_all(&store).expect("store");
        fs::create_dir_all(clear.join("a directory with a name")).expect("clear");
        let file = clear.join("file");
        fs::write(&file, b"what stands in this file").expect("a file");
        std::os::unix::fs::symlink("where the symlink points to", clear.join("link")).expect("a symlink");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(&file, "user.with a long name", b"what its attribute holds", flags)
            .expect("an attribute");
        let mut sealed = crate::rng::noise(1, 10_000);
        fs::write(store.join("object"), &sealed).expect("an object");
        assert!(clear_text_in_any_form(&store, std::slice::from_ref(&clear)).is_empty());
        for leak in [
            &b"stands in this file"[..],
            b"directory with a name",
            b"the symlink points to",
            b"with a long name",
            b"what its attribute",
            b"elif siht ni sdnats",
            b"7374616e647320696e",
            b"7374616E647320696E",
            b"s\0t\0a\0n\0d\0s\0 \0i\0",
            b"\0s\0t\0a\0n\0d\0s\0 \0i",
            // Of "what stands in this", then of the same without its first byte, and without two.
            b"d2hhdCBzdGFuZHMgaW4g",
            b"aGF0IHN0YW5kcyBpbiB0",
            b"YXQgc3RhbmRzIGluIHRo",
        ] {
            sealed[500..500 + leak.len()].copy_from_slice(leak);
            fs::write(store.join("object"), &sealed).expect("an object");
            let found = clear_text_in_any_form(&store, std::slice::from_ref(&clear));
            assert!(!found.is_empty(), "{}", leak.escape_ascii());
            sealed = crate::rng::noise(1, 10_000);
        }
    }
}
