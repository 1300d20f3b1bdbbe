//! A naive filesystem in memory: the oracle. It knows nothing of logs, layers or trees, only what each operation means.
//!
//! The same operations run against a real directory ([`crate::perform`]); results, error numbers and the whole tree must
//! agree. The model is checked against the local filesystem by this crate's own tests, so that it can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::rng;

/// A path below the root: names joined by `/`, empty for the root itself.
pub type Path = Vec<u8>;

/// Error numbers as Linux has them.
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const ENOTEMPTY: i32 = 39;
    pub const ENODATA: i32 = 61;
}
use errno::*;

/// Bytes to write, described by a seed so that an operation prints short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// What the bytes are derived from.
    pub seed: u64,
    /// How many.
    pub len: u32,
    /// Whether they look like text and compress.
    pub text: bool,
}

impl Data {
    /// The bytes themselves.
    pub fn bytes(&self) -> Vec<u8> {
        if self.text { rng::prose(self.seed, self.len as usize) } else { rng::noise(self.seed, self.len as usize) }
    }
}

/// One operation of a program, on paths below one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Create { path: Path, mode: u32 },
    Write { path: Path, offset: u64, data: Data },
    Append { path: Path, data: Data },
    Truncate { path: Path, size: u64 },
    Punch { path: Path, offset: u64, len: u64 },
    Allocate { path: Path, offset: u64, len: u64 },
    CopyRange { from: Path, from_offset: u64, to: Path, to_offset: u64, len: u64 },
    Mkdir { path: Path, mode: u32 },
    Rmdir { path: Path },
    Unlink { path: Path },
    Rename { from: Path, to: Path },
    RenameNoReplace { from: Path, to: Path },
    Exchange { a: Path, b: Path },
    Link { from: Path, to: Path },
    Symlink { target: Vec<u8>, path: Path },
    Fifo { path: Path, mode: u32 },
    Chmod { path: Path, mode: u32 },
    Chown { path: Path, uid: u32, gid: u32 },
    Utimes { path: Path, mtime: (i64, u32) },
    SetXattr { path: Path, name: String, value: Data },
    RemoveXattr { path: Path, name: String },
    Fsync { path: Path },
    Hold { slot: u32, path: Path },
    HeldWrite { slot: u32, offset: u64, data: Data },
    HeldTruncate { slot: u32, size: u64 },
    HeldRead { slot: u32, offset: u64, len: u32 },
    Release { slot: u32 },
    Read { path: Path, offset: u64, len: u32 },
    List { path: Path },
}

impl Op {
    /// The operation with its paths readable, for messages.
    pub fn describe(&self) -> String {
        let debug = format!("{self:?}");
        let mut out = String::new();
        let mut rest = debug.as_str();
        while let Some((before, list)) = rest.split_once('[') {
            let (list, after) = list.split_once(']').unwrap_or((list, ""));
            let bytes: Vec<u8> = list.split(", ").filter_map(|n| n.parse().ok()).collect();
            out.push_str(&format!("{before}\"{}\"", show(&bytes)));
            rest = after;
        }
        out + rest
    }
}

/// What a successful operation gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing but success.
    Done,
    /// Bytes read.
    Bytes(Vec<u8>),
    /// The names in a directory.
    Names(BTreeSet<Vec<u8>>),
}

/// A node's number in the model; never reused.
pub type Id = u64;

/// A file's contents, in pages so that a copy of the model costs little and holes cost nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    size: u64,
    pages: BTreeMap<u64, Arc<Vec<u8>>>,
}

const PAGE: u64 = 4096;

impl Contents {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `offset`, at most `len`, less at the end of the file.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len));
        let mut out = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, at % PAGE);
            let n = (PAGE - within).min(end - at) as usize;
            match self.pages.get(&page) {
                Some(p) => out.extend_from_slice(&p[within as usize..within as usize + n]),
                None => out.resize(out.len() + n, 0),
            }
            at += n as u64;
        }
        out
    }

    /// Puts `data` at `offset`; what lies between the old end and `offset` is zero.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let n = (PAGE as usize - within).min(rest.len());
            let p = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new(vec![0; PAGE as usize])));
            p[within..within + n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            at += n as u64;
        }
        if !data.is_empty() {
            self.size = self.size.max(at);
        }
    }

    /// Shortens, or lengthens by zeros.
    pub fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size - size);
        }
        self.size = size;
    }

    /// Makes a range zero within the present size.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = self.size.min(offset.saturating_add(len));
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, at % PAGE);
            let n = (PAGE - within).min(end - at);
            if n == PAGE {
                self.pages.remove(&page);
            } else if let Some(p) = self.pages.get_mut(&page) {
                Arc::make_mut(p)[within as usize..(within + n) as usize].fill(0);
            }
            at += n;
        }
    }
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    File(Contents),
    Dir(BTreeMap<Vec<u8>, Id>),
    Symlink(Vec<u8>),
    Fifo,
}

/// A file, directory or other node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Known when it was set, or observed since the last change ([`Model::adopt`]).
    pub mtime: Option<(i64, u32)>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// The whole tree. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: BTreeMap<Id, Arc<Node>>,
    held: BTreeMap<u32, Id>,
    next: Id,
}

const ROOT: Id = 1;
type Res<T> = Result<T, i32>;

impl Default for Model {
    fn default() -> Self {
        Model::new()
    }
}

impl Model {
    /// An empty directory.
    pub fn new() -> Model {
        let mut m = Model { nodes: BTreeMap::new(), held: BTreeMap::new(), next: ROOT };
        m.add(Kind::Dir(BTreeMap::new()), 0o755);
        m
    }

    fn add(&mut self, kind: Kind, mode: u32) -> Id {
        let id = self.next;
        self.next += 1;
        let node = Node { kind, mode, uid: 0, gid: 0, mtime: None, xattrs: BTreeMap::new() };
        self.nodes.insert(id, Arc::new(node));
        id
    }

    /// The node with this number.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&id).expect("ids in the model name nodes"))
    }

    /// The slots that hold a file open.
    pub fn held_slots(&self) -> Vec<u32> {
        self.held.keys().copied().collect()
    }

    /// Every node that can be reached by a path, with all its paths.
    pub fn paths(&self) -> BTreeMap<Path, Id> {
        let mut out = BTreeMap::new();
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            if let Kind::Dir(entries) = &self.node(id).kind {
                for (name, child) in entries {
                    todo.push((join(&path, name), *child));
                }
            }
            out.insert(path, id);
        }
        out
    }

    /// All bytes in files, to keep a workload bounded.
    pub fn bytes(&self) -> u64 {
        self.nodes.values().map(|n| if let Kind::File(c) = &n.kind { c.pages.len() as u64 * PAGE } else { 0 }).sum()
    }

    fn dir(&self, id: Id) -> Res<&BTreeMap<Vec<u8>, Id>> {
        match &self.node(id).kind {
            Kind::Dir(entries) => Ok(entries),
            _ => Err(ENOTDIR),
        }
    }

    fn dir_mut(&mut self, id: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        let node = self.node_mut(id);
        node.mtime = None;
        match &mut node.kind {
            Kind::Dir(entries) => entries,
            other => panic!("the model took {other:?} for a directory"),
        }
    }

    fn resolve(&self, path: &[u8]) -> Res<Id> {
        let mut at = ROOT;
        for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            at = *self.dir(at)?.get(name).ok_or(ENOENT)?;
        }
        Ok(at)
    }

    fn parent<'a>(&self, path: &'a [u8]) -> Res<(Id, &'a [u8])> {
        let cut = path.iter().rposition(|b| *b == b'/');
        let (dir, name) = cut.map_or((&path[..0], path), |i| (&path[..i], &path[i + 1..]));
        let dir = self.resolve(dir)?;
        self.dir(dir)?;
        Ok((dir, name))
    }

    fn file(&self, path: &[u8]) -> Res<Id> {
        let id = self.resolve(path)?;
        match &self.node(id).kind {
            Kind::File(_) => Ok(id),
            Kind::Dir(_) => Err(EISDIR),
            other => panic!("a workload opened {other:?}"),
        }
    }

    /// The length of the file with this path.
    pub fn size_of(&self, path: &[u8]) -> Option<u64> {
        self.file(path).ok().map(|id| self.contents(id).size())
    }

    fn contents(&self, id: Id) -> &Contents {
        match &self.node(id).kind {
            Kind::File(c) => c,
            other => panic!("the model took {other:?} for a file"),
        }
    }

    fn change(&mut self, id: Id, edit: impl FnOnce(&mut Contents)) {
        let node = self.node_mut(id);
        node.mtime = None;
        match &mut node.kind {
            Kind::File(c) => edit(c),
            other => panic!("the model took {other:?} for a file"),
        }
    }

    fn insert(&mut self, path: &[u8], kind: Kind, mode: u32) -> Res<Id> {
        let (dir, name) = self.parent(path)?;
        if self.dir(dir)?.contains_key(name) || name.is_empty() {
            return Err(EEXIST);
        }
        let id = self.add(kind, mode);
        self.dir_mut(dir).insert(name.to_vec(), id);
        Ok(id)
    }

    fn remove(&mut self, path: &[u8], want_dir: bool) -> Res<()> {
        let (dir, name) = self.parent(path)?;
        let id = *self.dir(dir)?.get(name).ok_or(ENOENT)?;
        match (&self.node(id).kind, want_dir) {
            (Kind::Dir(entries), true) if !entries.is_empty() => return Err(ENOTEMPTY),
            (Kind::Dir(_), false) => return Err(EISDIR),
            (Kind::Dir(_), true) => {}
            (_, true) => return Err(ENOTDIR),
            (_, false) => {}
        }
        self.dir_mut(dir).remove(name);
        self.collect();
        Ok(())
    }

    /// Forgets nodes that nothing names and nobody holds.
    fn collect(&mut self) {
        let mut alive: BTreeSet<Id> = self.paths().into_values().collect();
        alive.extend(self.held.values());
        self.nodes.retain(|id, _| alive.contains(id));
    }

    fn rename(&mut self, from: &[u8], to: &[u8], exchange: bool, replace: bool) -> Res<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let source = *self.dir(from_dir)?.get(from_name).ok_or(ENOENT)?;
        let target = self.dir(to_dir)?.get(to_name).copied();
        if target.is_some() && !replace {
            return Err(EEXIST);
        }
        if exchange && target.is_none() {
            return Err(ENOENT);
        }
        if is_below(to, from) {
            return Err(EINVAL);
        }
        if is_below(from, to) {
            return Err(if exchange { EINVAL } else { ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        if exchange {
            let target = target.expect("checked above");
            self.dir_mut(from_dir).insert(from_name.to_vec(), target);
            self.dir_mut(to_dir).insert(to_name.to_vec(), source);
            return Ok(());
        }
        if let Some(target) = target {
            match (&self.node(source).kind, &self.node(target).kind) {
                (Kind::Dir(_), Kind::Dir(entries)) if !entries.is_empty() => return Err(ENOTEMPTY),
                (Kind::Dir(_), Kind::Dir(_)) => {}
                (Kind::Dir(_), _) => return Err(ENOTDIR),
                (_, Kind::Dir(_)) => return Err(EISDIR),
                _ => {}
            }
        }
        self.dir_mut(from_dir).remove(from_name);
        self.dir_mut(to_dir).insert(to_name.to_vec(), source);
        self.collect();
        Ok(())
    }

    /// Does the operation, or says with which error number it must fail and changes nothing.
    pub fn apply(&mut self, op: &Op) -> Result<Outcome, i32> {
        match op {
            Op::Create { path, mode } => drop(self.insert(path, Kind::File(Contents::default()), *mode)?),
            Op::Mkdir { path, mode } => drop(self.insert(path, Kind::Dir(BTreeMap::new()), *mode)?),
            Op::Symlink { target, path } => drop(self.insert(path, Kind::Symlink(target.clone()), 0o777)?),
            Op::Fifo { path, mode } => drop(self.insert(path, Kind::Fifo, *mode)?),
            Op::Rmdir { path } => self.remove(path, true)?,
            Op::Unlink { path } => self.remove(path, false)?,
            Op::Rename { from, to } => self.rename(from, to, false, true)?,
            Op::RenameNoReplace { from, to } => self.rename(from, to, false, false)?,
            Op::Exchange { a, b } => self.rename(a, b, true, true)?,
            Op::Link { from, to } => self.link(from, to)?,
            Op::Chmod { path, mode } => {
                let id = self.resolve(path)?;
                self.node_mut(id).mode = *mode;
            }
            Op::Chown { path, uid, gid } => {
                let id = self.resolve(path)?;
                let node = self.node_mut(id);
                (node.uid, node.gid) = (*uid, *gid);
            }
            Op::Utimes { path, mtime } => {
                let id = self.resolve(path)?;
                self.node_mut(id).mtime = Some(*mtime);
            }
            Op::SetXattr { path, name, value } => {
                let id = self.resolve(path)?;
                self.node_mut(id).xattrs.insert(name.clone(), value.bytes());
            }
            Op::RemoveXattr { path, name } => {
                let id = self.resolve(path)?;
                self.node_mut(id).xattrs.remove(name).ok_or(ENODATA)?;
            }
            Op::Fsync { path } => drop(self.resolve(path)?),
            Op::List { path } => {
                let id = self.resolve(path)?;
                return Ok(Outcome::Names(self.dir(id)?.keys().cloned().collect()));
            }
            _ => return self.apply_to_contents(op),
        }
        Ok(Outcome::Done)
    }

    fn apply_to_contents(&mut self, op: &Op) -> Result<Outcome, i32> {
        match op {
            Op::Write { path, offset, data } => {
                let id = self.file(path)?;
                self.change(id, |c| c.write(*offset, &data.bytes()));
            }
            Op::Append { path, data } => {
                let id = self.file(path)?;
                self.change(id, |c| c.write(c.size, &data.bytes()));
            }
            Op::Truncate { path, size } => {
                let id = self.file(path)?;
                self.change(id, |c| c.truncate(*size));
            }
            Op::Punch { path, offset, len } => {
                let id = self.file(path)?;
                self.change(id, |c| c.zero(*offset, *len));
            }
            Op::Allocate { path, offset, len } => {
                let id = self.file(path)?;
                self.change(id, |c| c.size = c.size.max(offset + len));
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                let (from, to) = (self.file(from)?, self.file(to)?);
                let data = self.contents(from).read(*from_offset, *len);
                self.change(to, |c| c.write(*to_offset, &data));
            }
            Op::Hold { slot, path } => {
                let id = self.file(path)?;
                self.held.insert(*slot, id);
                self.collect();
            }
            Op::HeldWrite { slot, offset, data } => {
                let id = self.held[slot];
                self.change(id, |c| c.write(*offset, &data.bytes()));
            }
            Op::HeldTruncate { slot, size } => {
                let id = self.held[slot];
                self.change(id, |c| c.truncate(*size));
            }
            Op::HeldRead { slot, offset, len } => {
                return Ok(Outcome::Bytes(self.contents(self.held[slot]).read(*offset, u64::from(*len))));
            }
            Op::Release { slot } => {
                self.held.remove(slot);
                self.collect();
            }
            Op::Read { path, offset, len } => {
                return Ok(Outcome::Bytes(self.contents(self.file(path)?).read(*offset, u64::from(*len))));
            }
            other => panic!("{other:?} isn't an operation on contents"),
        }
        Ok(Outcome::Done)
    }

    fn link(&mut self, from: &[u8], to: &[u8]) -> Res<()> {
        let id = self.resolve(from)?;
        let (dir, name) = self.parent(to)?;
        if self.dir(dir)?.contains_key(name) {
            return Err(EEXIST);
        }
        if matches!(self.node(id).kind, Kind::Dir(_)) {
            return Err(EPERM);
        }
        self.dir_mut(dir).insert(name.to_vec(), id);
        Ok(())
    }

    /// Lets every open file go, as a crash or an unmount does.
    pub fn release_all(&mut self) {
        self.held.clear();
        self.collect();
    }

    /// Paths of the nodes whose modification time isn't known; the harness looks it up once, and from then on it must stay.
    pub fn untimed(&self) -> Vec<(Path, Id)> {
        let missing: BTreeSet<Id> = self.nodes.iter().filter(|(_, n)| n.mtime.is_none()).map(|(id, _)| *id).collect();
        if missing.is_empty() {
            return Vec::new();
        }
        self.paths().into_iter().filter(|(_, id)| missing.contains(id)).collect()
    }

    /// Takes a time that was observed as what it must be from now on.
    pub fn adopt(&mut self, id: Id, mtime: (i64, u32)) {
        self.node_mut(id).mtime = Some(mtime);
    }

    /// Forgets the times of whatever `op` could have touched: after a crash nobody knows whether they changed.
    pub fn forget_times(&mut self) {
        for node in self.nodes.values_mut() {
            if node.mtime.is_some() {
                Arc::make_mut(node).mtime = None;
            }
        }
    }
}

/// `dir/name`, without a leading slash.
pub fn join(dir: &[u8], name: &[u8]) -> Path {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

/// A path made readable for a message.
pub fn show(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}
