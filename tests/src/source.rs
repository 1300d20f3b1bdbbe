//! Real source trees to copy: what cargo has unpacked on this machine, and the system's own files where that isn't enough.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::rng::Rng;

/// Copies the first `count` real files, in the order of their paths, to `dest`. Returns how many files and bytes.
///
/// Files come from the cargo registry's sources, then from the Rust toolchain and the system, so that the number is
/// reached on any machine that can build this project. Nothing larger than 2 MiB is taken.
///
/// # Panics
/// When there aren't enough files on this machine.
pub fn copy_real_files(dest: &Path, count: usize) -> (usize, u64) {
    let mut files = 0;
    let mut bytes = 0;
    for root in roots() {
        let name = root.file_name().expect("a root has a name").to_owned();
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            let Ok(listing) = fs::read_dir(&dir) else { continue };
            let mut entries: Vec<PathBuf> = listing.flatten().map(|e| e.path()).collect();
            entries.sort();
            let target = dest.join(&name).join(dir.strip_prefix(&root).expect("below its root"));
            fs::create_dir_all(&target).expect("a directory for the copy");
            for path in entries {
                let Ok(m) = fs::symlink_metadata(&path) else { continue };
                let to = target.join(path.file_name().expect("entries have names"));
                if m.is_dir() {
                    todo.push(path);
                } else if m.is_symlink() {
                    let link = fs::read_link(&path).expect("a link can be read");
                    std::os::unix::fs::symlink(link, to).expect("a link can be made");
                } else if m.is_file() && m.len() <= 2 << 20 {
                    fs::copy(&path, &to).expect("a file can be copied");
                    files += 1;
                    bytes += m.len();
                }
                if files == count {
                    return (files, bytes);
                }
            }
        }
    }
    panic!("only {files} of {count} real files were found on this machine");
}

fn roots() -> Vec<PathBuf> {
    let home = std::env::var("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|_| std::env::var("HOME").map(|h| Path::new(&h).join(".cargo")))
        .expect("HOME or CARGO_HOME is set");
    let mut roots = Vec::new();
    if let Ok(indexes) = fs::read_dir(home.join("registry/src")) {
        roots.extend(indexes.flatten().map(|e| e.path()));
    }
    roots.sort();
    roots.extend(["/usr/include", "/usr/share", "/usr/lib"].map(PathBuf::from).into_iter().filter(|p| p.is_dir()));
    roots
}

/// Writes `len` bytes that don't compress, the same for the same seed, without holding them.
pub fn write_noise(path: &Path, seed: u64, len: u64) {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path).expect("a file for noise"));
    append_noise(&mut file, seed, len);
    file.flush().expect("noise is written");
}

/// Writes `len` bytes: half of them text of the files in `tree`, in another order, a quarter of the compiler's libraries, a quarter noise.
///
/// # Panics
/// When the compiler's libraries aren't found or too small.
pub fn write_mixed(path: &Path, tree: &Path, seed: u64, len: u64) {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path).expect("a file for mixed data"));
    let (mut texts, mut rng) = (walk(tree), Rng::new(seed));
    let mut left = len / 2;
    while left > 0 {
        // In another order each time, so that no long stretch comes twice.
        for i in (1..texts.len()).rev() {
            texts.swap(i, rng.below(i as u64 + 1) as usize);
        }
        left = texts.iter().fold(left, |left, text| left - append_file(&mut file, text, left));
    }
    let libraries = compiler_libraries();
    let left = libraries.iter().fold(len / 4, |left, library| left - append_file(&mut file, library, left));
    assert_eq!(left, 0, "the compiler's libraries are too small: {libraries:?}");
    append_noise(&mut file, seed, len - len / 2 - len / 4);
    file.flush().expect("mixed data is written");
}

/// Appends at most `most` bytes of the file `from`. Returns how many.
fn append_file(to: &mut impl Write, from: &Path, most: u64) -> u64 {
    let from = fs::File::open(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    std::io::copy(&mut std::io::Read::take(from, most), to).expect("a file is appended")
}

fn compiler_libraries() -> Vec<PathBuf> {
    let printed = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
    let sysroot = PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim());
    let mut found: Vec<PathBuf> = walk(&sysroot.join("lib"));
    found.retain(|path| path.extension().is_some_and(|e| e == "so") || path.to_string_lossy().contains(".so."));
    found
}

/// Appends noise, as [`write_noise`] makes it, to an open file.
pub fn append_noise(file: &mut impl Write, seed: u64, len: u64) {
    let mut rng = Rng::new(seed);
    let mut left = len;
    let mut buffer = vec![0u8; 1 << 20];
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        for word in buffer[..n].chunks_mut(8) {
            let bytes = rng.next().to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        file.write_all(&buffer[..n]).unwrap_or_else(|e| panic!("writing noise with {left} bytes to go: {e}"));
        left -= n as u64;
    }
}

/// Reads the file and checks every byte against what [`write_noise`] wrote.
///
/// # Panics
/// With the offset of the first difference.
pub fn check_noise(path: &Path, seed: u64, len: u64) {
    use std::io::Read;
    let mut file = fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut rng = Rng::new(seed);
    let mut want = vec![0u8; 1 << 20];
    let mut have = vec![0u8; 1 << 20];
    let mut at = 0u64;
    while at < len {
        let n = (len - at).min(want.len() as u64) as usize;
        for word in want[..n].chunks_mut(8) {
            let bytes = rng.next().to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
        file.read_exact(&mut have[..n]).unwrap_or_else(|e| panic!("{}: reading at {at}: {e}", path.display()));
        if want[..n] != have[..n] {
            let i = (0..n).find(|i| want[*i] != have[*i]).unwrap_or(0);
            panic!("{}: byte {} is wrong", path.display(), at + i as u64);
        }
        at += n as u64;
    }
    let more = file.read(&mut have).unwrap_or_else(|e| panic!("{}: reading at its end: {e}", path.display()));
    assert_eq!(more, 0, "{}: is longer than {len}", path.display());
}

/// Bytes in all regular files below `dir`, by their lengths.
pub fn tree_bytes(dir: &Path) -> u64 {
    walk(dir).iter().map(|p| fs::symlink_metadata(p).map_or(0, |m| m.len())).sum()
}

/// All regular files below `dir`, sorted.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(t) if t.is_dir() => todo.push(entry.path()),
                Ok(t) if t.is_file() => out.push(entry.path()),
                _ => {}
            }
        }
    }
    out.sort();
    out
}
