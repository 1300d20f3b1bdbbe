//! Tests with `BTreeMap` as the oracle, and a store of nodes that counts what is read.

mod damage;
mod model;
mod overlay;
mod shape;
mod speed;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use super::apply::{Sizes, apply_plain};
use super::overlay::{Limits, Parts, apply_limited};
use super::*;
use crate::ids::ChunkId;

pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;
pub(super) type OwnedChange = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);
pub(super) type Edit = (Vec<u8>, Option<Vec<u8>>);

/// Nodes of a few entries, so that small inputs make high trees.
pub(super) const SMALL: Sizes = Sizes { target: 320, min: 96 };
pub(super) const REAL: Sizes = Sizes { target: NODE_TARGET, min: NODE_MIN };

/// No overlays.
pub(super) const PLAIN: Limits = Limits { share: 1, most: 0 };

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Tree(TreeError),
    Missing(ChunkId),
    NotCached,
}

impl From<TreeError> for Failure {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

#[derive(Default)]
pub(super) struct Nodes {
    map: HashMap<ChunkId, Arc<Node>, BuildHasherDefault<IdHasher>>,
    pub reads: Cell<u64>,
    /// Every so many reads one fails.
    pub fail_every: u64,
    /// The first read of each node fails, as where it has to be fetched.
    pub cold: bool,
    fetched: RefCell<HashSet<ChunkId>>,
}

/// Ids are hashes already.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, id: &[u8]) {
        self.0 ^= id.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl NodeSource for Nodes {
    type Error = Failure;

    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, Failure> {
        self.reads.set(self.reads.get() + 1);
        if self.fail_every > 0 && self.reads.get().is_multiple_of(self.fail_every) {
            return Err(Failure::NotCached);
        }
        if self.cold && self.fetched.borrow_mut().insert(*id) {
            return Err(Failure::NotCached);
        }
        self.map.get(id).cloned().ok_or(Failure::Missing(*id))
    }
}

/// Takes nodes apart from the store, so that reading back what has just been written fails.
#[derive(Default)]
pub(super) struct Sink {
    pub new: Vec<(ChunkId, Vec<u8>)>,
}

impl NodeSink for Sink {
    type Error = Failure;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, Failure> {
        let id = ChunkId(*blake3::hash(&bytes).as_bytes());
        self.new.push((id, bytes));
        Ok(id)
    }
}

impl Nodes {
    /// Everything has to be fetched again.
    pub fn forget(&self) {
        self.fetched.borrow_mut().clear();
    }

    pub fn insert(&mut self, bytes: &[u8]) -> ChunkId {
        let id = ChunkId(*blake3::hash(bytes).as_bytes());
        self.map.insert(id, Arc::new(Node::parse(bytes.into()).expect("a node as written")));
        id
    }

    pub fn apply(&mut self, root: Option<Root>, edits: Vec<Edit>, sizes: Sizes) -> (Option<Root>, usize) {
        self.apply_limited(root, edits, sizes, PLAIN)
    }

    pub fn apply_limited(
        &mut self,
        root: Option<Root>,
        edits: Vec<Edit>,
        sizes: Sizes,
        limits: Limits,
    ) -> (Option<Root>, usize) {
        let mut sink = Sink::default();
        let root = apply_limited::<_, _, Failure>(self, &mut sink, root, edits.into_iter(), sizes, limits);
        let root = root.expect("valid edits");
        let written = sink.new.len();
        for (id, bytes) in sink.new {
            assert_eq!(self.insert(&bytes), id);
        }
        (root, written)
    }

    pub fn contents(&self, root: Option<Root>) -> Map {
        scan(self, root, Bound::Unbounded, Bound::Unbounded).into_iter().collect()
    }

    /// Checks what the format promises of every node of a tree, without the code that reads trees.
    pub fn check(&self, root: Option<Root>, sizes: Sizes) {
        let parts = Parts::of(self, root).expect("whole trees");
        for part in [parts.base, parts.deleted, parts.put].into_iter().flatten() {
            self.check_plain(part, sizes);
        }
        let (deleted, put) = (self.contents(parts.deleted), self.contents(parts.put));
        assert!(deleted.iter().all(|(key, value)| value.is_empty() && !put.contains_key(key)));
    }

    fn check_plain(&self, root: Root, sizes: Sizes) {
        let mut entries = 0;
        self.check_node(&root.node, root.height - 1, b"", None, None, &mut entries, sizes);
        assert_eq!(entries, root.entries);
        let node = &self.map[&root.node];
        assert!(node.level() == 0 || node.len() > 1, "a root with one child");
    }

    #[expect(clippy::too_many_arguments)]
    fn check_node(
        &self,
        id: &ChunkId,
        level: u8,
        lower: &[u8],
        upper: Option<&[u8]>,
        parent: Option<&Node>,
        entries: &mut u64,
        sizes: Sizes,
    ) {
        let node = &self.map[id];
        assert_eq!(node.level(), level);
        // A split may miss the middle by half an entry.
        let largest = if sizes.target == NODE_TARGET { KEY_MAX + VALUE_MAX + 4 } else { 64 };
        // Entries that are larger than the smallest node may make one that is larger than the usual.
        let more = if largest > sizes.min { largest } else { 0 };
        assert!(node.bytes().len() <= sizes.target + more, "{} bytes", node.bytes().len());
        let least = sizes.min.min(sizes.target.saturating_sub(largest) / 2);
        // The separator that a branch leaves out counted when it was made; along the left edge it is known no more.
        let left_out = if level > 0 { sizes.min / 4 } else { 0 };
        assert!(parent.is_none() || node.bytes().len() + left_out >= least, "{} bytes", node.bytes().len());
        assert!(level > 0 || node.key(0) >= lower);
        assert!(upper.is_none_or(|upper| node.key(node.len() - 1) < upper));
        if level == 0 {
            *entries += node.len() as u64;
            return;
        }
        for i in 0..node.len() {
            let lower = if i == 0 { lower } else { node.key(i) };
            let upper = if i + 1 < node.len() { Some(node.key(i + 1)) } else { upper };
            self.check_node(&node.child(i), level - 1, lower, upper, Some(node), entries, sizes);
        }
    }
}

pub(super) fn scan(nodes: &Nodes, root: Option<Root>, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    range(nodes, root, from, to)
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect::<Result<_, _>>()
        .expect("a whole tree")
}

/// The changes between two maps, by hand.
pub(super) fn map_diff(old: &Map, new: &Map) -> Vec<OwnedChange> {
    let mut keys: Vec<_> = old.keys().chain(new.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| (key.clone(), old.get(&key).cloned(), new.get(&key).cloned()))
        .filter(|(_, old, new)| old != new)
        .collect()
}

pub(super) fn tree_diff(nodes: &Nodes, old: Option<Root>, new: Option<Root>) -> Vec<OwnedChange> {
    diff(nodes, old, new)
        .map(|change| {
            let (key, old, new) = change.expect("whole trees");
            (key.to_vec(), old.map(|v| v.to_vec()), new.map(|v| v.to_vec()))
        })
        .collect()
}

/// A key as the live tree makes them: inode, kind, sub-key.
pub(super) fn live_key(inode: u64, kind: u8, sub: &[u8]) -> Vec<u8> {
    [&inode.to_be_bytes()[..], &[kind], sub].concat()
}

/// A small generator of reproducible numbers.
pub(super) struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
