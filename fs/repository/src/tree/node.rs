//! One node: its bytes as stored, checked once, searched in place.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Bound, Deref, Range};
use std::sync::Arc;

use super::{Damage, HEIGHT_MAX, KEY_MAX, NODE_MAX, TreeError, VALUE_MAX};
use crate::ids::ChunkId;

pub(super) const MAGIC: u8 = b'T';
pub(super) const VERSION: u8 = 1;
pub(super) const HEADER: usize = 8;
pub(super) const SLOT: usize = 4;

/// How many bytes of each key stand in its head.
const HEAD: usize = 4;
/// How many heads a search looks at together.
const GROUP: usize = 16;

/// A valid node: its bytes, and for each key a *head*, so that a search stays within a few cache lines until its last step.
///
/// The heads hold the bytes at the first positions where one of the keys parts from its neighbour. Of two keys in the node the smaller one
/// never has the greater head. A key that isn't in the node may part from those that are elsewhere; a search checks for that.
pub struct Node {
    bytes: Arc<[u8]>,
    /// The first head of each group, then all heads.
    heads: Box<[u32]>,
    positions: [u16; HEAD],
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
        if bytes[3] != 0 || bytes[4] != 0 || bytes[5] != 0 {
            return Err(damaged(Damage::Header));
        }
        let level = bytes[2];
        if level >= HEIGHT_MAX {
            return Err(damaged(Damage::Level));
        }
        let count = u16::from_le_bytes([bytes[6], bytes[7]]);
        if count == 0 {
            return Err(damaged(Damage::Empty));
        }
        if bytes.len() < HEADER + SLOT * usize::from(count) {
            return Err(damaged(Damage::Length));
        }
        let positions = [u16::MAX; HEAD];
        let mut node = Self { bytes: Arc::clone(&bytes), heads: Box::default(), positions, count, level };
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
            if self.level > 0 && i == 0 && key_len > 0 {
                return Err(Damage::Separator);
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

    /// Chooses the positions and makes the heads.
    fn index(&mut self) {
        let from = self.first_searched();
        let mut parting = [0u64; KEY_MAX / 64 + 1];
        for i in from + 1..self.len() {
            let at = common_prefix(self.key(i - 1), self.key(i));
            parting[at / 64] |= 1 << (at % 64);
        }
        let all = (0..KEY_MAX as u16).filter(|at| parting[usize::from(at / 64)] >> (at % 64) & 1 > 0);
        for (position, at) in self.positions.iter_mut().zip(all) {
            *position = at;
        }
        let head = |i| if i < from { 0 } else { self.head(self.key(i)) };
        self.heads = (0..self.len()).step_by(GROUP).chain(0..self.len()).map(head).collect();
    }

    /// The bytes of `key` at the positions, as a number that sorts like them; zeros where it has none.
    fn head(&self, key: &[u8]) -> u32 {
        u32::from_be_bytes(self.positions.map(|at| key.get(usize::from(at)).copied().unwrap_or(0)))
    }

    /// A branch's first separator is left out: what is below the second belongs to the first child.
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

    /// Where `key` is (`Ok`), or would be inserted (`Err`). In a branch the first separator is left out.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (from, count) = (self.first_searched(), self.len());
        let head = self.head(key);
        let (samples, heads) = self.heads.split_at(count.div_ceil(GROUP));
        let low = count_smaller(samples, heads, head).max(from);
        let high = low + heads[low..].iter().take_while(|&&h| h == head).count();
        // If it is in the node, it is among those with its head.
        let at = match self.find_among(key, low..high) {
            Ok(found) => return Ok(found),
            Err(at) => at,
        };
        if at == low && at > from && self.key(at - 1) > key {
            return self.find_among(key, from..at - 1);
        }
        if at == high && at < count && self.key(at) < key {
            return self.find_among(key, at + 1..count);
        }
        Err(at)
    }

    fn find_among(&self, key: &[u8], range: Range<usize>) -> Result<usize, usize> {
        let Range { start: mut low, end: mut high } = range;
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
    pub(super) fn run(&self, range: Range<usize>) -> (&[u8], impl ExactSizeIterator<Item = (usize, usize)> + '_) {
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
        // Before the first slot stand two zeros and the count, as if it were one of an entry that ends at 0.
        let at = HEADER + SLOT * i - SLOT;
        let slots: &[u8; 2 * SLOT] =
            self.bytes[at..].first_chunk().expect("the table was checked to lie within the node");
        let number = |at: usize| usize::from(u16::from_le_bytes([slots[at], slots[at + 1]]));
        let start = self.heap() + number(0);
        (start, start + number(SLOT + 2), self.heap() + number(SLOT))
    }
}

/// The number of `heads` smaller than `head`. Counts instead of searching: that reads two or three cache lines, and not one after the other.
fn count_smaller(samples: &[u32], heads: &[u32], head: u32) -> usize {
    let count = |heads: &[u32]| heads.iter().map(|&h| usize::from(h < head)).sum::<usize>();
    let Some(group) = count(samples).checked_sub(1) else { return 0 };
    let start = group * GROUP;
    start + count(&heads[start..heads.len().min(start + GROUP)])
}

/// Length of the longest prefix that both have.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
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
