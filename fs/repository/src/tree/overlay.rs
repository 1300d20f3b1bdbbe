//! Few edits over a large tree: kept beside it in two small trees, so that a change does not rewrite a path down the large one for each
//! of the keys it touches. Everything that reads trees goes through here.

use std::cmp::Ordering;
use std::ops::Bound;

use super::apply::{Edit, Edits, Sizes, apply_plain};
use super::buffer::NodeBuffer;
use super::read::{self, BorrowedEntry, Entry, Scan};
use super::{NODE_MIN, NODE_TARGET, Node, NodeSink, NodeSource, Root, TreeError, ValueRef, load};

/// In a root's height: the root node is that of an overlay, and the other bits are the height of its base.
pub(super) const FLAG: u8 = 0x80;
/// The keys of an overlay's node, in their order.
const KEYS: [&[u8]; 3] = [b"base", b"deleted", b"put"];
/// Larger values go into the base at once, in bytes.
const VALUE_SMALL: usize = 1024;

/// How much an overlay may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// One entry of it for so many of its base.
    pub share: u64,
    /// But no more than these.
    pub most: u64,
}

const LIMITS: Limits = Limits { share: 64, most: 8192 };

/// The trees that make up a tree. A key of `put` has its value there, wherever else it may stand; one of `deleted` is absent; any other has
/// what `base` says. No key is in both `put` and `deleted`. All three are plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    pub base: Option<Root>,
    pub deleted: Option<Root>,
    pub put: Option<Root>,
}

impl Parts {
    /// Those of the tree `root`.
    pub fn of<S: NodeSource>(src: &S, root: Option<Root>) -> Result<Self, S::Error> {
        match root {
            Some(root) if root.is_overlay()? => Ok(Self::decode(&root, &*load(src, &root.node, 0)?)?),
            base => Ok(Self { base, deleted: None, put: None }),
        }
    }

    fn decode(root: &Root, node: &Node) -> Result<Self, TreeError> {
        let bad = || TreeError::Overlay { node: root.node };
        if node.len() != KEYS.len() || KEYS.iter().enumerate().any(|(i, key)| node.key(i) != *key) {
            return Err(bad());
        }
        let part = |i: usize| {
            let bytes = node.value(i).try_into().map_err(|_| bad())?;
            let part = Root::decode_option(bytes)?;
            if part.is_some_and(|part| part.is_overlay() != Ok(false)) { Err(bad()) } else { Ok(part) }
        };
        let parts = Self { base: part(0)?, deleted: part(1)?, put: part(2)? };
        let counted = parts.base.is_some_and(|base| (base.height | FLAG, base.entries) == (root.height, root.entries));
        if counted && !parts.is_plain() { Ok(parts) } else { Err(bad()) }
    }

    fn encode(&self) -> Vec<u8> {
        let mut buffer = NodeBuffer::default();
        for (key, part) in KEYS.into_iter().zip([self.base, self.deleted, self.put]) {
            buffer.push(key, &Root::encode_option(part));
        }
        buffer.encode(0)
    }

    /// Whether the base is all of it.
    pub fn is_plain(&self) -> bool {
        self.deleted.is_none() && self.put.is_none()
    }

    /// Edits that the base doesn't have.
    fn pending(&self) -> u64 {
        [self.deleted, self.put].into_iter().flatten().fold(0, |sum, part| part.entries.saturating_add(sum))
    }

    /// How many more there may be.
    fn room(&self, limits: Limits) -> usize {
        let most = self.base.map_or(0, |base| base.entries / limits.share).min(limits.most);
        usize::try_from(most.saturating_sub(self.pending())).unwrap_or(usize::MAX)
    }

    pub fn get<S: NodeSource>(&self, src: &S, key: &[u8]) -> Result<Option<ValueRef>, S::Error> {
        if let Some(value) = read::get(src, self.put, key)? {
            return Ok(Some(value));
        }
        match read::get(src, self.deleted, key)? {
            Some(_) => Ok(None),
            None => read::get(src, self.base, key),
        }
    }

    /// The edits that make a plain tree of the base, in key order.
    fn edits<S: NodeSource>(&self, src: &S) -> Result<Vec<Edit>, S::Error> {
        let scan = |part| Scan::new(src, part, Bound::Unbounded, Bound::Unbounded);
        let mut edits: Vec<Edit> = Vec::new();
        for entry in scan(self.put) {
            let (key, value) = entry?;
            edits.push((key.to_vec(), Some(value.to_vec())));
        }
        for entry in scan(self.deleted) {
            edits.push((entry?.0.to_vec(), None));
        }
        edits.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(edits)
    }
}

/// The value of `key`.
///
/// # Errors
/// Those of `src`. Asking again after an error costs no more than the nodes that `src` didn't have.
pub fn get<S: NodeSource>(src: &S, root: Option<Root>, key: &[u8]) -> Result<Option<ValueRef>, S::Error> {
    Parts::of(src, root)?.get(src, key)
}

/// The entry with the smallest key greater than `key`.
///
/// # Errors
/// Those of `src`.
pub fn first_after<S: NodeSource>(src: &S, root: Option<Root>, key: &[u8]) -> Result<Option<Entry>, S::Error> {
    range(src, root, Bound::Excluded(key), Bound::Unbounded).next().transpose()
}

/// The entry with the greatest key that isn't greater than `key`.
///
/// # Errors
/// Those of `src`.
pub fn last_at_or_before<S: NodeSource>(src: &S, root: Option<Root>, key: &[u8]) -> Result<Option<Entry>, S::Error> {
    let parts = Parts::of(src, root)?;
    let put = read::last(src, parts.put, Bound::Included(key))?;
    let mut below = read::last(src, parts.base, Bound::Included(key))?;
    while let Some((key, _)) = &below
        && read::get(src, parts.deleted, key)?.is_some()
    {
        below = read::last(src, parts.base, Bound::Excluded(key))?;
    }
    Ok(match (put, below) {
        (Some(put), Some(below)) => Some(if below.0 > put.0 { below } else { put }),
        (put, below) => put.or(below),
    })
}

/// All entries between two bounds in key order, read as they are asked for. Bounds that admit nothing, crossed ones too, give nothing.
pub fn range<'s, S: NodeSource>(src: &'s S, root: Option<Root>, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Range<'s, S> {
    Range { src, from: from.map(<[u8]>::to_vec), to: to.map(<[u8]>::to_vec), state: Ranging::Unopened(root) }
}

/// A scan; see [`range`].
///
/// After an error it stands where it stood, and asking again tries again: a scan over a source that answers "not cached" goes on once the
/// node is there. Whoever wants no second try stops at the first error.
pub struct Range<'s, S: NodeSource> {
    src: &'s S,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    state: Ranging<'s, S>,
}

enum Ranging<'s, S: NodeSource> {
    Unopened(Option<Root>),
    Plain(Scan<'s, S>),
    Merged(Box<Merged<'s, S>>),
}

/// What comes next in each part.
struct Merged<'s, S: NodeSource> {
    base: Ahead<Scan<'s, S>, Entry>,
    deleted: Ahead<Scan<'s, S>, Entry>,
    put: Ahead<Scan<'s, S>, Entry>,
    /// What was given out last.
    current: Option<Entry>,
}

impl<S: NodeSource> Range<'_, S> {
    /// The next entry, borrowed: for scans that look at many and keep few.
    ///
    /// # Errors
    /// Those of the source.
    pub fn next_borrowed(&mut self) -> Result<Option<BorrowedEntry<'_>>, S::Error> {
        self.open()?;
        match &mut self.state {
            Ranging::Plain(scan) => scan.next_borrowed(),
            Ranging::Merged(merged) => {
                merged.current = merged.advance()?;
                Ok(merged.current.as_ref().map(|(key, value)| (&**key, &**value)))
            }
            Ranging::Unopened(_) => Ok(None),
        }
    }

    fn open(&mut self) -> Result<(), S::Error> {
        let Ranging::Unopened(root) = self.state else { return Ok(()) };
        let parts = Parts::of(self.src, root)?;
        let scan = |part| Scan::new(self.src, part, read::as_slice(&self.from), read::as_slice(&self.to));
        self.state = if parts.is_plain() {
            Ranging::Plain(scan(parts.base))
        } else {
            let ahead = |part| Ahead { rest: scan(part), next: None };
            let (base, deleted, put) = (ahead(parts.base), ahead(parts.deleted), ahead(parts.put));
            Ranging::Merged(Box::new(Merged { base, deleted, put, current: None }))
        };
        Ok(())
    }
}

impl<S: NodeSource> Iterator for Range<'_, S> {
    type Item = Result<Entry, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.open() {
            return Some(Err(error));
        }
        match &mut self.state {
            Ranging::Plain(scan) => scan.next(),
            Ranging::Merged(merged) => merged.advance().transpose(),
            Ranging::Unopened(_) => None,
        }
    }
}

impl<S: NodeSource> Merged<'_, S> {
    fn advance(&mut self) -> Result<Option<Entry>, S::Error> {
        loop {
            let (base, put) = (self.base.peek()?, self.put.peek()?);
            let order = match (base, put) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(base), Some(put)) => base.0.cmp(&put.0),
            };
            if order != Ordering::Less {
                if order == Ordering::Equal {
                    self.base.next = None;
                }
                return Ok(self.put.next.take());
            }
            if !self.is_deleted()? {
                return Ok(self.base.next.take());
            }
            self.base.next = None;
        }
    }

    /// Whether what comes next of the base is deleted.
    fn is_deleted(&mut self) -> Result<bool, S::Error> {
        let Some((key, _)) = &self.base.next else { return Ok(false) };
        while let Some((deleted, _)) = self.deleted.peek()? {
            match deleted.cmp(key) {
                Ordering::Less => self.deleted.next = None,
                Ordering::Equal => return Ok(true),
                Ordering::Greater => break,
            }
        }
        Ok(false)
    }
}

/// An iterator and what was read ahead of it. An error leaves both as they were.
pub(super) struct Ahead<I, T> {
    pub rest: I,
    pub next: Option<T>,
}

impl<I: Iterator<Item = Result<T, E>>, T, E> Ahead<I, T> {
    pub fn peek(&mut self) -> Result<Option<&T>, E> {
        if self.next.is_none() {
            self.next = self.rest.next().transpose()?;
        }
        Ok(self.next.as_ref())
    }
}

/// Applies `edits` to the tree `root` and answers the root of the result; `None` is the empty tree on both sides. (An overlay may hide
/// all that its base has: then a root without entries is answered.)
///
/// The keys of `edits` ascend strictly. `Some(value)` inserts or overwrites, `None` deletes; deleting what is absent is no error. New nodes
/// go to `sink` as they are finished, children before parents, and are never read back. If this fails, what `sink` has got is garbage and
/// the tree `root` is what it was. Memory is bounded by the height of the tree times a few nodes, and what an overlay may hold.
///
/// # Errors
/// Those of `src` and `sink`, and [`TreeError`] for edits that are out of order or over the limits, or a damaged tree.
pub fn apply<S, K, E>(
    src: &S,
    sink: &mut K,
    root: Option<Root>,
    edits: impl Iterator<Item = Edit>,
) -> Result<Option<Root>, E>
where
    S: NodeSource,
    K: NodeSink,
    E: From<S::Error> + From<K::Error> + From<TreeError>,
{
    apply_limited(src, sink, root, edits, Sizes { target: NODE_TARGET, min: NODE_MIN }, LIMITS)
}

pub(super) fn apply_limited<S, K, E>(
    src: &S,
    sink: &mut K,
    root: Option<Root>,
    edits: impl Iterator<Item = Edit>,
    sizes: Sizes,
    limits: Limits,
) -> Result<Option<Root>, E>
where
    S: NodeSource,
    K: NodeSink,
    E: From<S::Error> + From<K::Error> + From<TreeError>,
{
    let parts = Parts::of(src, root)?;
    let room = parts.room(limits);
    if room == 0 && parts.is_plain() {
        return apply_plain(src, sink, root, edits, sizes);
    }
    let mut edits = Edits::new(edits)?;
    let first = edits.take(room)?;
    if first.is_empty() && edits.is_empty() {
        return Ok(root);
    }
    let is_small = |(_, value): &Edit| value.as_ref().is_none_or(|value| value.len() <= VALUE_SMALL);
    let (true, true, Some(base)) = (edits.is_empty(), first.iter().all(is_small), parts.base) else {
        let old = parts.edits(src)?.into_iter();
        let new = first.into_iter().chain(edits.rest());
        return apply_plain(src, sink, parts.base, Later { old: old.peekable(), new: new.peekable() }, sizes);
    };
    let deletions = first.iter().map(|(key, value)| (key.clone(), value.is_none().then(Vec::new)));
    let deleted = apply_plain::<_, _, E>(src, sink, parts.deleted, deletions, sizes)?;
    let put = apply_plain::<_, _, E>(src, sink, parts.put, first.into_iter(), sizes)?;
    let parts = Parts { base: Some(base), deleted, put };
    let node = sink.put_node(parts.encode())?;
    Ok(Some(Root { node, height: base.height | FLAG, entries: base.entries }))
}

/// Two sequences of edits as one: where both have a key, the new one counts.
struct Later<A: Iterator, B: Iterator> {
    old: std::iter::Peekable<A>,
    new: std::iter::Peekable<B>,
}

impl<A: Iterator<Item = Edit>, B: Iterator<Item = Edit>> Iterator for Later<A, B> {
    type Item = Edit;

    fn next(&mut self) -> Option<Edit> {
        let Some((key, _)) = self.new.peek() else { return self.old.next() };
        match self.old.peek().map(|(old, _)| old.cmp(key)) {
            Some(Ordering::Less) => self.old.next(),
            Some(Ordering::Equal) => {
                self.old.next();
                self.new.next()
            }
            _ => self.new.next(),
        }
    }
}
