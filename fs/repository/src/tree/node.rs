//! One node: its bytes as stored, checked once, searched in place.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use super::{Damage, HEIGHT_MAX, KEY_MAX, NODE_MAX, TreeError, VALUE_MAX};
use crate::ids::ChunkId;

pub(super) const MAGIC: u8 = b'T';
pub(super) const VERSION: u8 = 1;
pub(super) const HEADER: usize = 8;
pub(super) const SLOT: usize = 4;

/// A valid node: its bytes, and for each key the 4 bytes that follow the prefix common to all of them, so that a search stays within a few
/// cache lines until its last step.
pub struct Node {
    bytes: Arc<[u8]>,
    heads: Box<[u32]>,
    /// Length of the prefix common to the keys from `first_searched` on.
    common: u16,
    count: u16,
    level: u8,
}

impl Node {
    /// Checks `bytes` and makes them searchable. Allocates in proportion to their length only.
    ///
    /// # Errors
    /// [`TreeError::Damaged`] and [`TreeError::Version`]: the bytes are no node, or one of a later version.
    pub fn parse(bytes: Arc<[u8]>) -> Result<Self, TreeError> {
        let damaged = |damage| TreeError::Damaged { len: bytes.len(), damage };
        if bytes.len() < HEADER || bytes.len() > NODE_MAX {
            return Err(damaged(Damage::Length));
        }
        if bytes[0] != MAGIC {
            return Err(damaged(Damage::Header));
        }
        if bytes[1] != VERSION {
            return Err(TreeError::Version { version: bytes[1] });
        }
        if bytes[3] != 0 || bytes[6] != 0 || bytes[7] != 0 {
            return Err(damaged(Damage::Header));
        }
        let level = bytes[2];
        if level >= HEIGHT_MAX {
            return Err(damaged(Damage::Level));
        }
        let count = u16::from_le_bytes([bytes[4], bytes[5]]);
        if count == 0 {
            return Err(damaged(Damage::Empty));
        }
        if bytes.len() < HEADER + SLOT * usize::from(count) {
            return Err(damaged(Damage::Length));
        }
        let mut node = Self { bytes: Arc::clone(&bytes), heads: Box::default(), common: 0, count, level };
        node.check().map_err(damaged)?;
        node.index();
        Ok(node)
    }

    /// Checks all that the header didn't tell.
    fn check(&self) -> Result<(), Damage> {
        let heap = self.bytes.len() - self.heap();
        let mut start = 0;
        let mut previous: Option<&[u8]> = None;
        for i in 0..self.len() {
            let (end, key_len) = self.slot(i);
            if end < start + key_len || end > heap {
                return Err(Damage::Slots);
            }
            let value_len = end - start - key_len;
            if key_len > KEY_MAX || value_len > VALUE_MAX || (self.level > 0 && value_len != ChunkId::LEN) {
                return Err(Damage::Entry);
            }
            let key = &self.bytes[self.heap() + start..][..key_len];
            if previous.is_some_and(|previous| previous >= key) {
                return Err(Damage::Order);
            }
            previous = Some(key);
            start = end;
        }
        if start == heap { Ok(()) } else { Err(Damage::Slots) }
    }

    fn index(&mut self) {
        let from = self.first_searched();
        if from < self.len() {
            let (first, last) = (self.key(from), self.key(self.len() - 1));
            let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
            self.common = u16::try_from(common).expect("keys were checked to be at most 300 bytes");
        }
        let common = usize::from(self.common);
        self.heads = (0..self.len()).map(|i| if i < from { 0 } else { head(&self.key(i)[common..]) }).collect();
    }

    /// A branch's first separator says nothing: what is below the second belongs to the first child.
    fn first_searched(&self) -> usize {
        usize::from(self.level > 0)
    }

    /// The bytes as stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Distance from the leaves; 0 for a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of entries, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "no node is empty")]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// The ids of all children in key order; none for a leaf.
    pub fn child_ids(&self) -> impl Iterator<Item = ChunkId> {
        let children = if self.level > 0 { self.len() } else { 0 };
        (0..children).map(|i| self.child(i))
    }

    /// The heap that the node takes in memory, in bytes, its `Arc` included.
    pub fn heap_bytes(&self) -> usize {
        // Two counters before what an Arc holds, for the node's and the bytes' Arc.
        self.bytes.len() + self.heads.len() * size_of::<u32>() + size_of::<Self>() + 4 * size_of::<usize>()
    }

    /// The `i`-th key.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn key(&self, i: usize) -> &[u8] {
        let (start, value, _) = self.bounds(i);
        &self.bytes[start..value]
    }

    /// The `i`-th value.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn value(&self, i: usize) -> &[u8] {
        let (_, value, end) = self.bounds(i);
        &self.bytes[value..end]
    }

    /// The `i`-th child of a branch.
    pub(super) fn child(&self, i: usize) -> ChunkId {
        ChunkId(self.value(i).try_into().expect("a branch's values were checked to be 32 bytes"))
    }

    /// The last key.
    pub(super) fn last_key(&self) -> &[u8] {
        self.key(self.len() - 1)
    }

    /// In a leaf: where `key` is (`Ok`), or would be inserted (`Err`).
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let from = self.first_searched();
        let common = usize::from(self.common);
        if common > 0 {
            let shared = common.min(key.len());
            match key[..shared].cmp(&self.key(from)[..shared]) {
                Ordering::Less => return Err(from),
                Ordering::Greater => return Err(self.len()),
                Ordering::Equal if shared < common => return Err(from),
                Ordering::Equal => {}
            }
        }
        let head = head(&key[common..]);
        let low = from + self.heads[from..].partition_point(|&h| h < head);
        if self.heads.get(low) != Some(&head) {
            return Err(low);
        }
        let (mut low, mut high) = (low, low + self.heads[low..].partition_point(|&h| h == head));
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// In a branch: the child below which `key` is, if it is anywhere.
    pub(super) fn child_index(&self, key: &[u8]) -> usize {
        match self.find(key) {
            Ok(i) => i,
            Err(i) => i - 1,
        }
    }

    /// In a leaf: the number of entries before `bound`, taken as a lower one.
    pub(super) fn before_from(&self, bound: Bound<&[u8]>) -> usize {
        match bound {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.find(key).unwrap_or_else(|i| i),
            Bound::Excluded(key) => self.find(key).map_or_else(|i| i, |i| i + 1),
        }
    }

    /// In a leaf: the number of entries that `bound`, taken as an upper one, admits.
    pub(super) fn before_to(&self, bound: Bound<&[u8]>) -> usize {
        match bound {
            Bound::Unbounded => self.len(),
            Bound::Included(key) => self.find(key).map_or_else(|i| i, |i| i + 1),
            Bound::Excluded(key) => self.find(key).unwrap_or_else(|i| i),
        }
    }

    /// The heap's piece with the entries of `range`, and each one's end (in that piece) and key length.
    pub(super) fn run(
        &self,
        range: std::ops::Range<usize>,
    ) -> (&[u8], impl ExactSizeIterator<Item = (usize, usize)> + '_) {
        let first = if range.start == 0 { 0 } else { self.slot(range.start - 1).0 };
        let last = if range.is_empty() { first } else { self.slot(range.end - 1).0 };
        let heap = &self.bytes[self.heap() + first..self.heap() + last];
        let slots = range.map(move |i| {
            let (end, key_len) = self.slot(i);
            (end - first, key_len)
        });
        (heap, slots)
    }

    fn heap(&self) -> usize {
        HEADER + SLOT * self.len()
    }

    /// The `i`-th entry's end in the heap, and its key's length.
    fn slot(&self, i: usize) -> (usize, usize) {
        let at = HEADER + SLOT * i;
        let slot: &[u8; SLOT] = self.bytes[at..].first_chunk().expect("the table was checked to lie within the node");
        (usize::from(u16::from_le_bytes([slot[0], slot[1]])), usize::from(u16::from_le_bytes([slot[2], slot[3]])))
    }

    /// Where the `i`-th key begins, where its value begins, and where that ends.
    fn bounds(&self, i: usize) -> (usize, usize, usize) {
        assert!(i < self.len(), "entry {i} of {}", self.len());
        let start = if i == 0 { 0 } else { self.slot(i - 1).0 };
        let (end, key_len) = self.slot(i);
        (self.heap() + start, self.heap() + start + key_len, self.heap() + end)
    }
}

/// The first 4 bytes as a number that sorts like them, padded with zeros.
fn head(suffix: &[u8]) -> u32 {
    match suffix.first_chunk::<4>() {
        Some(head) => u32::from_be_bytes(*head),
        None => {
            let mut head = [0; 4];
            head[..suffix.len()].copy_from_slice(suffix);
            u32::from_be_bytes(head)
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("level", &self.level)
            .field("entries", &self.count)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// A key or a value within its node, which it keeps alive. Cloning it counts a reference and copies nothing.
#[derive(Clone)]
pub struct NodeSlice {
    node: Arc<Node>,
    start: u32,
    end: u32,
}

/// A key in its node.
pub type KeyRef = NodeSlice;
/// A value in its node.
pub type ValueRef = NodeSlice;

impl NodeSlice {
    pub(super) fn key(node: &Arc<Node>, i: usize) -> Self {
        let (start, end, _) = node.bounds(i);
        Self::new(node, start, end)
    }

    pub(super) fn value(node: &Arc<Node>, i: usize) -> Self {
        let (_, start, end) = node.bounds(i);
        Self::new(node, start, end)
    }

    fn new(node: &Arc<Node>, start: usize, end: usize) -> Self {
        // No node is longer than NODE_MAX.
        Self { node: Arc::clone(node), start: start as u32, end: end as u32 }
    }
}

impl Deref for NodeSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.node.bytes[self.start as usize..self.end as usize]
    }
}

impl AsRef<[u8]> for NodeSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for NodeSlice {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for NodeSlice {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for NodeSlice {}

impl PartialOrd for NodeSlice {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeSlice {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for NodeSlice {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for NodeSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}
