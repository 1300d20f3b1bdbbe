//! Looks at a directory tree the way a program sees it, and says exactly where two trees, or a tree and a model, differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path as FsPath;
use std::process::Command;
use std::time::Duration;

use crate::model::{self, Id, Kind, Model, Path, join, show};
use crate::run::run;

/// Longest run of `diff`.
const DIFF_LIMIT: Duration = Duration::from_secs(600);

/// One node as the system calls describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Entry {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub size: u64,
    pub rdev: u64,
    pub mtime: (i64, u32),
    pub ino: u64,
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What [`observe`] keeps of each file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bytes {
    /// All of them: for small trees that are compared with a model.
    Keep,
    /// None: the comparison reads them itself.
    Skip,
}

/// A whole tree, by path.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every node, the root under the empty path.
    pub entries: BTreeMap<Path, Entry>,
    /// Contents of regular files, when they were to be kept.
    pub contents: BTreeMap<Path, Vec<u8>>,
}

/// Reads a whole tree. An error names the path that couldn't be read.
pub fn observe(root: &FsPath, bytes: Bytes) -> io::Result<Observed> {
    let mut out = Observed::default();
    let mut todo: Vec<Path> = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(&path)) };
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", full.display()));
        let entry = entry(&full).map_err(named)?;
        if entry.kind == "directory" {
            for child in fs::read_dir(&full).and_then(each_once).map_err(named)? {
                todo.push(join(&path, &child));
            }
        }
        if entry.kind == "file" && bytes == Bytes::Keep {
            out.contents.insert(path.clone(), fs::read(&full).map_err(named)?);
        }
        out.entries.insert(path, entry);
    }
    Ok(out)
}

/// The names of a listing, which must not give one of them twice.
pub fn each_once(listing: fs::ReadDir) -> io::Result<BTreeSet<Vec<u8>>> {
    names_once(listing.map(|e| e.map(|e| e.file_name().into_vec())))
}

fn names_once(names: impl Iterator<Item = io::Result<Vec<u8>>>) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut seen = BTreeSet::new();
    for name in names {
        let name = name?;
        let text = String::from_utf8_lossy(&name).into_owned();
        if !seen.insert(name) {
            return Err(io::Error::other(format!("{text:?} is listed twice")));
        }
    }
    Ok(seen)
}

/// What `lstat`, `readlink` and the attribute calls say about one path.
pub fn entry(full: &FsPath) -> io::Result<Entry> {
    let m = fs::symlink_metadata(full)?;
    let t = m.file_type();
    let kind = match () {
        () if t.is_file() => "file",
        () if t.is_dir() => "directory",
        () if t.is_symlink() => "symlink",
        () if t.is_fifo() => "fifo",
        () if t.is_socket() => "socket",
        () if t.is_char_device() => "character device",
        () => "block device",
    };
    Ok(Entry {
        kind,
        mode: m.mode() & 0o7777,
        uid: m.uid(),
        gid: m.gid(),
        nlink: m.nlink(),
        size: m.size(),
        rdev: m.rdev(),
        mtime: (m.mtime(), m.mtime_nsec() as u32),
        ino: m.ino(),
        target: if t.is_symlink() { Some(fs::read_link(full)?.into_os_string().into_vec()) } else { None },
        xattrs: xattrs(full)?,
    })
}

/// All extended attributes of a node.
pub fn xattrs(full: &FsPath) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0u8; 65_536];
    let n = rustix::fs::llistxattr(full, &mut names[..])?;
    let mut out = BTreeMap::new();
    for name in names[..n].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 65_536];
        let len = rustix::fs::lgetxattr(full, name, &mut value[..])?;
        value.truncate(len);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}

/// How a tree differs from the model, one line each, at most 20 lines; empty when it doesn't.
pub fn differences(model: &Model, seen: &Observed) -> Vec<String> {
    let mut out = Vec::new();
    let paths = model.paths();
    for path in seen.entries.keys().filter(|p| !paths.contains_key(*p)) {
        out.push(format!("{}: is there and shouldn't be", show(path)));
    }
    let mut links: BTreeMap<Id, u64> = BTreeMap::new();
    for id in paths.values() {
        *links.entry(*id).or_default() += 1;
    }
    let mut inodes: BTreeMap<Id, u64> = BTreeMap::new();
    for (path, id) in &paths {
        if out.len() >= 20 {
            break;
        }
        let Some(entry) = seen.entries.get(path) else {
            out.push(format!("{}: is missing", show(path)));
            continue;
        };
        compare_node(path, model.node(*id), links[id], entry, &mut out);
        if let Kind::File(contents) = &model.node(*id).kind {
            compare_bytes(path, contents, seen, &mut out);
        }
        if *inodes.entry(*id).or_insert(entry.ino) != entry.ino {
            out.push(format!("{}: is no longer a hard link of its other names", show(path)));
        }
    }
    let distinct: BTreeSet<u64> = inodes.values().copied().collect();
    if out.is_empty() && distinct.len() != inodes.len() {
        out.push(format!("{} different nodes have only {} inode numbers", inodes.len(), distinct.len()));
    }
    out
}

fn compare_node(path: &[u8], node: &model::Node, links: u64, entry: &Entry, out: &mut Vec<String>) {
    let mut differ = |what: &str, want: String, have: String| {
        if want != have {
            out.push(format!("{}: {what} is {have}, should be {want}", show(path)));
        }
    };
    let (kind, target) = match &node.kind {
        Kind::File(_) => ("file", None),
        Kind::Dir(_) => ("directory", None),
        Kind::Symlink(target) => ("symlink", Some(target)),
        Kind::Fifo => ("fifo", None),
    };
    differ("kind", kind.into(), entry.kind.into());
    differ("link target", format!("{target:?}"), format!("{:?}", entry.target.as_ref()));
    differ("mode", format!("{:o}", node.mode), format!("{:o}", entry.mode));
    if path.is_empty() {
        return; // the directory the operations are done in belongs to the harness
    }
    differ("owner", format!("{}:{}", node.uid, node.gid), format!("{}:{}", entry.uid, entry.gid));
    if let Some(mtime) = node.mtime {
        differ("mtime", format!("{mtime:?}"), format!("{:?}", entry.mtime));
    }
    if kind != "directory" {
        differ("link count", links.to_string(), entry.nlink.to_string());
    }
    if kind != "symlink" {
        let want: BTreeMap<Vec<u8>, Vec<u8>> =
            node.xattrs.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone())).collect();
        differ("xattr names", format!("{:?}", want.keys()), format!("{:?}", entry.xattrs.keys()));
        if want != entry.xattrs {
            differ("xattr values", "as set".into(), "different".into());
        }
    }
}

fn compare_bytes(path: &[u8], want: &model::Contents, seen: &Observed, out: &mut Vec<String>) {
    let entry_size = seen.entries[path].size;
    if entry_size != want.size() {
        out.push(format!("{}: size is {entry_size}, should be {}", show(path), want.size()));
        return;
    }
    let Some(have) = seen.contents.get(path) else { return };
    if have.len() as u64 != want.size() {
        out.push(format!("{}: {} bytes can be read, should be {}", show(path), have.len(), want.size()));
        return;
    }
    let mut at = 0usize;
    while at < have.len() {
        let n = (have.len() - at).min(64 << 10);
        let expected = want.read(at as u64, n as u64);
        if expected[..] != have[at..at + n] {
            let first = (0..n).find(|i| expected[*i] != have[at + i]).unwrap_or(0);
            let zeros = have[at + first..].iter().take_while(|b| **b == 0).count();
            out.push(format!(
                "{}: byte {} is {:#04x}, should be {:#04x} (then {zeros} zero bytes; size {})",
                show(path),
                at + first,
                have[at + first],
                expected[first],
                have.len()
            ));
            return;
        }
        at += n;
    }
}

/// What [`compare_dirs`] leaves out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ignore {
    /// Modification times of directories (a copy in progress changes them).
    pub dir_times: bool,
}

/// Both trees are the same, as [`compare_dirs`] sees them.
///
/// # Panics
/// With the differences, if there are any.
pub fn same(want: &FsPath, have: &FsPath, when: &str) {
    let found = compare_dirs(want, have, Ignore::default());
    assert!(found.is_empty(), "{when}:\n{}", found.join("\n"));
}

/// `diff -r` finds nothing.
///
/// # Panics
/// With what it finds.
pub fn same_for_diff(want: &FsPath, have: &FsPath, when: &str) {
    let done = run(Command::new("diff").args(["-r", "--no-dereference"]).args([want, have]), DIFF_LIMIT);
    assert!(done.stdout.is_empty() && done.status.success(), "{when}: diff says:\n{}{}", done.stdout, done.stderr);
}

/// How directory `b` differs from directory `a` in names, kinds, attributes, times, xattrs, hard links and every byte;
/// one line each, at most 20; empty when they are the same. Inode numbers themselves may differ.
pub fn compare_dirs(a: &FsPath, b: &FsPath, ignore: Ignore) -> Vec<String> {
    let both = (observe(a, Bytes::Skip), observe(b, Bytes::Skip));
    let (left, right) = match both {
        (Ok(left), Ok(right)) => (left, right),
        (Err(e), _) | (_, Err(e)) => return vec![format!("a tree can't be read: {e}")],
    };
    let mut out = Vec::new();
    for path in right.entries.keys().filter(|p| !left.entries.contains_key(*p)) {
        out.push(format!("{}: is only in {}", show(path), b.display()));
    }
    let mut pairs: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, want) in &left.entries {
        if out.len() >= 20 {
            break;
        }
        let Some(have) = right.entries.get(path) else {
            out.push(format!("{}: is only in {}", show(path), a.display()));
            continue;
        };
        let mut want = want.clone();
        want.ino = have.ino;
        if want.kind == "directory" {
            // Sizes of directories mean nothing, and the two roots belong to whoever made them.
            want.size = have.size;
            if ignore.dir_times || path.is_empty() {
                want.mtime = have.mtime;
            }
            if path.is_empty() {
                (want.mode, want.uid, want.gid, want.nlink) = (have.mode, have.uid, have.gid, have.nlink);
            }
        }
        if want != *have {
            out.push(format!("{}: is\n    {have:?}, should be\n    {want:?}", show(path)));
            continue;
        }
        if *pairs.entry(left.entries[path].ino).or_insert(have.ino) != have.ino {
            out.push(format!("{}: is no longer a hard link of its other names", show(path)));
        }
        if want.kind == "file" {
            let (x, y) = (a.join(OsStr::from_bytes(path)), b.join(OsStr::from_bytes(path)));
            if let Err(e) = same_bytes(&x, &y) {
                out.push(format!("{}: {e}", show(path)));
            }
        }
    }
    out
}

fn same_bytes(a: &FsPath, b: &FsPath) -> Result<(), String> {
    let open = |p: &FsPath| File::open(p).map_err(|e| format!("{}: {e}", p.display()));
    let (mut x, mut y) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0u8; 256 << 10], vec![0u8; 256 << 10]);
    let mut at = 0u64;
    loop {
        let n = fill(&mut x, &mut left).map_err(|e| format!("reading {}: {e}", a.display()))?;
        let m = fill(&mut y, &mut right).map_err(|e| format!("reading {}: {e}", b.display()))?;
        if left[..n] != right[..m] {
            let i = (0..n.min(m)).find(|i| left[*i] != right[*i]).unwrap_or(n.min(m));
            return Err(format!("contents differ from byte {}", at + i as u64));
        }
        if n == 0 {
            return Ok(());
        }
        at += n as u64;
    }
}

fn fill(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match from.read(&mut into[have..])? {
            0 => break,
            n => have += n,
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_listed_twice_is_an_error() {
        let names = |names: &[&str]| names_once(names.iter().map(|name| Ok(name.as_bytes().to_vec())));
        assert_eq!(names(&["b", "a"]).expect("each once").len(), 2);
        assert!(names(&["a", "b", "a"]).is_err());
    }
}
