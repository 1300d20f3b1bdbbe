//! Reading plain trees: single entries, and scans.

use std::ops::Bound;
use std::sync::Arc;

use super::{KeyRef, Node, NodeSource, Root, TreeError, ValueRef, load};
use crate::ids::ChunkId;

/// A key and its value, in a node that they keep alive.
pub type Entry = (KeyRef, ValueRef);
/// A key and its value, borrowed from a scan.
pub type BorrowedEntry<'a> = (&'a [u8], &'a [u8]);

/// The value of `key`.
pub(super) fn get<S: NodeSource>(src: &S, root: Option<Root>, key: &[u8]) -> Result<Option<ValueRef>, S::Error> {
    let Some(root) = root else { return Ok(None) };
    let mut level = root.level()?;
    let mut node = load(src, &root.node, level)?;
    while level > 0 {
        level -= 1;
        node = load(src, &node.child(node.child_index(key)), level)?;
    }
    Ok(node.find(key).ok().map(|i| ValueRef::value(&node, i)))
}

/// The entry with the greatest key that `to` admits.
pub(super) fn last<S: NodeSource>(src: &S, root: Option<Root>, to: Bound<&[u8]>) -> Result<Option<Entry>, S::Error> {
    let Some(root) = root else { return Ok(None) };
    // The subtree that ends just before the path: where the answer is, if the path's leaf begins after the bound.
    let mut before: Option<(ChunkId, u8)> = None;
    let mut level = root.level()?;
    let mut node = load(src, &root.node, level)?;
    while level > 0 {
        level -= 1;
        let i = match to {
            Bound::Included(key) | Bound::Excluded(key) => node.child_index(key),
            Bound::Unbounded => node.len() - 1,
        };
        if i > 0 {
            before = Some((node.child(i - 1), level));
        }
        node = load(src, &node.child(i), level)?;
    }
    let mut count = node.before_to(to);
    if count == 0 {
        let Some((id, mut level)) = before else { return Ok(None) };
        node = load(src, &id, level)?;
        while level > 0 {
            level -= 1;
            node = load(src, &node.child(node.len() - 1), level)?;
        }
        count = node.len();
    }
    Ok(Some((KeyRef::key(&node, count - 1), ValueRef::value(&node, count - 1))))
}

/// A scan of a plain tree; see [`range`](super::range).
pub(super) struct Scan<'s, S> {
    src: &'s S,
    /// Until it has been read.
    root: Option<Root>,
    /// Unbounded once the first leaf has been reached.
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    /// Branches from the root down, each with its next child.
    stack: Vec<(Arc<Node>, usize)>,
    leaf: Option<Arc<Node>>,
    next: usize,
    end: usize,
}

impl<'s, S: NodeSource> Scan<'s, S> {
    /// All entries between two bounds.
    pub fn new(src: &'s S, root: Option<Root>, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Self {
        Self {
            src,
            root,
            from: from.map(<[u8]>::to_vec),
            to: to.map(<[u8]>::to_vec),
            stack: Vec::new(),
            leaf: None,
            next: 0,
            end: 0,
        }
    }

    /// The next entry, borrowed.
    pub fn next_borrowed(&mut self) -> Result<Option<BorrowedEntry<'_>>, S::Error> {
        if !self.advance()? {
            return Ok(None);
        }
        let i = self.next - 1;
        Ok(self.leaf.as_ref().map(|leaf| (leaf.key(i), leaf.value(i))))
    }

    /// Goes to the next entry, which is `next - 1` of `leaf` then.
    fn advance(&mut self) -> Result<bool, S::Error> {
        while self.next >= self.end {
            if !self.next_leaf()? {
                return Ok(false);
            }
        }
        self.next += 1;
        Ok(true)
    }

    fn next_leaf(&mut self) -> Result<bool, S::Error> {
        if let Some(root) = self.root {
            let node = load(self.src, &root.node, root.level()?)?;
            self.root = None;
            if self.enter(node, &root.node)? {
                return Ok(true);
            }
        }
        while let Some((branch, next)) = self.stack.last() {
            if *next == branch.len() {
                self.stack.pop();
                continue;
            }
            if *next > 0 && self.is_past(branch.key(*next)) {
                self.stack.clear();
                break;
            }
            let id = branch.child(*next);
            let node = load(self.src, &id, branch.level() - 1)?;
            let top = self.stack.len() - 1;
            self.stack[top].1 += 1;
            if self.enter(node, &id)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes into a node; answers whether it is a leaf.
    fn enter(&mut self, node: Arc<Node>, id: &ChunkId) -> Result<bool, S::Error> {
        if node.level() > 0 {
            let first = match &self.from {
                Bound::Unbounded => 0,
                Bound::Included(key) | Bound::Excluded(key) => node.child_index(key),
            };
            self.stack.push((node, first));
            return Ok(false);
        }
        if self.leaf.as_ref().is_some_and(|leaf| leaf.last_key() >= node.key(0)) {
            self.stack.clear();
            return Err(TreeError::OutOfRange { node: *id }.into());
        }
        self.next = node.before_from(as_slice(&self.from));
        self.end = node.before_to(as_slice(&self.to));
        self.from = Bound::Unbounded;
        self.leaf = Some(node);
        Ok(true)
    }

    /// Whether everything from `key` on is beyond the upper bound.
    fn is_past(&self, key: &[u8]) -> bool {
        match &self.to {
            Bound::Unbounded => false,
            Bound::Included(to) => key > to.as_slice(),
            Bound::Excluded(to) => key >= to.as_slice(),
        }
    }
}

pub(super) fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

impl<S: NodeSource> Iterator for Scan<'_, S> {
    type Item = Result<Entry, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(true) => {
                let i = self.next - 1;
                self.leaf.as_ref().map(|leaf| Ok((KeyRef::key(leaf, i), ValueRef::value(leaf, i))))
            }
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
