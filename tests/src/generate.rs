//! Random operations that mostly make sense for the tree as it is, and sometimes don't.

use crate::model::{Data, Id, Kind, Model, Op, Path, join};
use crate::rng::Rng;

/// How big a workload may grow.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Nodes in the tree, beyond which it mostly removes.
    pub nodes: usize,
    /// Bytes in files, likewise.
    pub bytes: u64,
    /// Longest single write.
    pub write: u64,
    /// Farthest offset in a file.
    pub file: u64,
    /// Whether operations that need several requests (and so can stop halfway at a crash) are made.
    pub compound: bool,
}

impl Limits {
    /// A small tree with everything in it.
    pub fn small() -> Limits {
        Limits { nodes: 120, bytes: 24 << 20, write: 200_000, file: 3 << 20, compound: true }
    }

    /// For crashes: every operation changes the tree by one request.
    pub fn crash() -> Limits {
        Limits { nodes: 90, bytes: 12 << 20, write: 120_000, file: 2 << 20, compound: false }
    }
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"notes.txt",
    b"Makefile",
    b".hidden",
    b"with space",
    b"new\nline",
    b"\xff\xfe-latin",
    "größe.dat".as_bytes(),
    b"-dash",
    b".notes.txt.Ab12Cd",
    b"lib.rs",
    b"lib.rs~",
    b"x.tar.gz",
];
const XATTRS: &[&str] = &["user.a", "user.mime_type", "user.a-longer-name-of-an-attribute", "trusted.overlay"];

/// Makes operations from a seed.
#[derive(Debug)]
pub struct Generator {
    rng: Rng,
    limits: Limits,
}

impl Generator {
    /// Repeats itself for the same seed and the same models.
    pub fn new(seed: u64, limits: Limits) -> Generator {
        Generator { rng: Rng::new(seed), limits }
    }

    /// The next operation for a tree that looks like `model`.
    pub fn next(&mut self, model: &Model) -> Op {
        let tree = Tree::of(model);
        if tree.all.len() > self.limits.nodes || model.bytes() > self.limits.bytes {
            return self.removal(&tree);
        }
        if self.limits.compound
            && self.rng.one_in(8)
            && let Some(op) = self.held(model, &tree)
        {
            return op;
        }
        match self.rng.below(100) {
            0..=15 => Op::Create { path: self.new_path(&tree), mode: self.mode() },
            16..=21 => Op::Mkdir { path: self.new_path(&tree), mode: self.mode() | 0o700 },
            22..=25 => Op::Symlink { target: self.target(), path: self.new_path(&tree) },
            26 => Op::Fifo { path: self.new_path(&tree), mode: self.mode() },
            27..=31 => Op::Link { from: self.any(&tree), to: self.new_path(&tree) },
            32..=39 => self.rename(&tree),
            40..=46 => self.removal(&tree),
            47..=50 => Op::Chmod { path: self.chmodable(&tree), mode: self.mode() | 0o400 },
            51..=53 => {
                Op::Chown { path: self.any(&tree), uid: self.rng.below(3) as u32, gid: self.rng.below(3) as u32 }
            }
            54..=57 => Op::Utimes { path: self.any(&tree), mtime: self.time() },
            58..=60 => Op::SetXattr { path: self.chmodable(&tree), name: self.xattr(), value: self.value() },
            61 => Op::RemoveXattr { path: self.chmodable(&tree), name: self.xattr() },
            62..=63 => Op::List { path: self.dir(&tree) },
            _ => self.contents(&tree),
        }
    }

    fn contents(&mut self, tree: &Tree) -> Op {
        let Some(path) = self.file(tree) else {
            return Op::Create { path: self.new_path(tree), mode: 0o644 };
        };
        match self.rng.below(20) {
            0..=7 => Op::Write { path, offset: self.offset(), data: self.data() },
            8..=11 => Op::Append { path, data: self.data() },
            12..=13 => Op::Truncate { path, size: self.offset() },
            14 => Op::Punch { path, offset: self.offset(), len: 1 + self.offset() / 2 },
            15 => Op::Allocate { path, offset: self.offset(), len: 1 + self.rng.below(300_000) },
            16 => Op::Fsync { path },
            17 if self.limits.compound => {
                let to = self.file(tree).unwrap_or_else(|| path.clone());
                if tree.id(&to) == tree.id(&path) {
                    return Op::Fsync { path };
                }
                let (from_offset, to_offset, len) = (self.offset(), self.offset(), 1 + self.offset());
                Op::CopyRange { from: path, from_offset, to, to_offset, len }
            }
            _ => Op::Read { path, offset: self.offset() / 2, len: self.rng.below(300_000) as u32 },
        }
    }

    fn held(&mut self, model: &Model, tree: &Tree) -> Option<Op> {
        let slots = model.held_slots();
        if slots.len() < 2 {
            let slot = (0..4).find(|s| !slots.contains(s))?;
            return self.file(tree).map(|path| Op::Hold { slot, path });
        }
        let slot = *self.rng.pick(&slots);
        Some(match self.rng.below(6) {
            0..=1 => Op::HeldWrite { slot, offset: self.offset(), data: self.data() },
            2 => Op::HeldTruncate { slot, size: self.offset() },
            3..=4 => Op::HeldRead { slot, offset: self.offset() / 2, len: self.rng.below(100_000) as u32 },
            _ => Op::Release { slot },
        })
    }

    fn rename(&mut self, tree: &Tree) -> Op {
        let from = self.any(tree);
        let to = if self.rng.one_in(3) { self.any(tree) } else { self.new_path(tree) };
        if from.is_empty() || to.is_empty() {
            return Op::List { path: Vec::new() };
        }
        match self.rng.below(8) {
            0 => Op::Exchange { a: from, b: to },
            1 => Op::RenameNoReplace { from, to },
            _ => Op::Rename { from, to },
        }
    }

    fn removal(&mut self, tree: &Tree) -> Op {
        let path = self.any(tree);
        if path.is_empty() {
            return Op::List { path };
        }
        let is_dir = tree.dirs.contains(&path);
        if is_dir != self.rng.one_in(12) { Op::Rmdir { path } } else { Op::Unlink { path } }
    }

    fn any(&mut self, tree: &Tree) -> Path {
        if self.rng.one_in(40) { self.new_path(tree) } else { self.rng.pick(&tree.all).0.clone() }
    }

    /// Something whose mode and attributes can be set: a link would be followed.
    fn chmodable(&mut self, tree: &Tree) -> Path {
        match self.file(tree) {
            Some(path) if !self.rng.one_in(4) => path,
            _ => self.dir(tree),
        }
    }

    fn dir(&mut self, tree: &Tree) -> Path {
        self.rng.pick(&tree.dirs).clone()
    }

    fn file(&mut self, tree: &Tree) -> Option<Path> {
        if tree.files.is_empty() { None } else { Some(self.rng.pick(&tree.files).clone()) }
    }

    /// A name that is probably new, in a directory that probably exists.
    fn new_path(&mut self, tree: &Tree) -> Path {
        let parent = if self.rng.one_in(50) && !tree.files.is_empty() {
            self.rng.pick(&tree.files).clone()
        } else {
            self.dir(tree)
        };
        let parent = if parent.iter().filter(|b| **b == b'/').count() > 4 { Vec::new() } else { parent };
        let mut name = self.rng.pick(NAMES).to_vec();
        if self.rng.one_in(2) {
            name.extend_from_slice(self.rng.below(40).to_string().as_bytes());
        }
        if self.rng.one_in(40) {
            name.resize(255, b'L');
        }
        join(&parent, &name)
    }

    fn mode(&mut self) -> u32 {
        *self.rng.pick(&[0o644, 0o600, 0o755, 0o777, 0o640, 0o444])
    }

    fn target(&mut self) -> Vec<u8> {
        let long = vec![b't'; 1 + self.rng.below(900) as usize];
        self.rng.pick(&[b"a".to_vec(), b"../b/c".to_vec(), b"/absolute/and dangling".to_vec(), long]).clone()
    }

    fn time(&mut self) -> (i64, u32) {
        let secs = *self.rng.pick(&[0, 1, 951_782_400, 1_700_000_000, 2_147_483_648, 4_000_000_000, -1, -86_400 * 365]);
        (secs, self.rng.below(1_000_000_000) as u32)
    }

    fn xattr(&mut self) -> String {
        (*self.rng.pick(XATTRS)).to_string()
    }

    fn value(&mut self) -> Data {
        Data { seed: self.rng.next(), len: self.rng.below(700) as u32, text: true }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(600),
            2 => self.rng.below(self.limits.file / 4096) * 4096,
            3 => self.rng.below(self.limits.file),
            _ => self.rng.below(100_000),
        }
    }

    fn data(&mut self) -> Data {
        let len = match self.rng.below(5) {
            0 => 1 + self.rng.below(400),
            1..=2 => 1 + self.rng.below(9_000),
            _ => 1 + self.rng.below(self.limits.write),
        };
        Data { seed: self.rng.next(), len: len as u32, text: self.rng.one_in(2) }
    }
}

/// The model's paths by kind.
struct Tree {
    all: Vec<(Path, Id)>,
    dirs: Vec<Path>,
    files: Vec<Path>,
}

impl Tree {
    fn of(model: &Model) -> Tree {
        let mut tree = Tree { all: Vec::new(), dirs: Vec::new(), files: Vec::new() };
        for (path, id) in model.paths() {
            match model.node(id).kind {
                Kind::Dir(_) => tree.dirs.push(path.clone()),
                Kind::File(_) => tree.files.push(path.clone()),
                _ => {}
            }
            tree.all.push((path, id));
        }
        tree
    }

    fn id(&self, path: &[u8]) -> Option<Id> {
        self.all.iter().find(|(p, _)| p == path).map(|(_, id)| *id)
    }
}
