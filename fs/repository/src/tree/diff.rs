//! What differs between two trees, without reading what they share.

use std::cmp::Ordering;
use std::iter;
use std::sync::Arc;

use super::overlay::{Ahead, Parts};
use super::{KeyRef, Node, NodeSource, Root, ValueRef, load};
use crate::ids::ChunkId;

/// A key, its value in the old tree, its value in the new one. At least one is there, and they differ.
pub type Change = (KeyRef, Option<ValueRef>, Option<ValueRef>);

/// All keys whose values differ between the trees `old` and `new`, in key order. Reads a number of nodes that is proportional to the changes,
/// not to the trees: subtrees with equal ids are skipped unread.
pub fn diff<S: NodeSource>(src: &S, old: Option<Root>, new: Option<Root>) -> Diff<'_, S> {
    Diff { src, state: Differing::Unopened(old, new) }
}

/// An iterator over changes; see [`diff`]. After an error it stands where it stood, and asking again tries again.
pub struct Diff<'s, S: NodeSource> {
    src: &'s S,
    state: Differing<'s, S>,
}

enum Differing<'s, S: NodeSource> {
    Unopened(Option<Root>, Option<Root>),
    Plain(Sides<'s, S>),
    /// What differs between the bases, what is deleted, and what is put. A key of which all three say the same has the same value.
    Overlays {
        old: Parts,
        new: Parts,
        parts: Box<[Ahead<Sides<'s, S>, Change>; 3]>,
    },
}

impl<S: NodeSource> Diff<'_, S> {
    fn advance(&mut self) -> Result<Option<Change>, S::Error> {
        if let Differing::Unopened(old, new) = self.state {
            let sides = |old, new| Sides { old: Side::of(self.src, old), new: Side::of(self.src, new) };
            let (old, new) = (Parts::of(self.src, old)?, Parts::of(self.src, new)?);
            self.state = if old.is_plain() && new.is_plain() {
                Differing::Plain(sides(old.base, new.base))
            } else {
                let ahead = |old, new| Ahead { rest: sides(old, new), next: None };
                let parts = [ahead(old.base, new.base), ahead(old.deleted, new.deleted), ahead(old.put, new.put)];
                Differing::Overlays { old, new, parts: Box::new(parts) }
            };
        }
        match &mut self.state {
            Differing::Unopened(..) => Ok(None),
            Differing::Plain(sides) => sides.advance(),
            Differing::Overlays { old, new, parts } => overlays(self.src, old, new, parts),
        }
    }
}

/// The next key that one of the parts has changed, if its value has changed too.
fn overlays<S: NodeSource>(
    src: &S,
    old: &Parts,
    new: &Parts,
    parts: &mut [Ahead<Sides<'_, S>, Change>; 3],
) -> Result<Option<Change>, S::Error> {
    loop {
        let mut first: Option<KeyRef> = None;
        for part in parts.iter_mut() {
            if let Some((key, ..)) = part.peek()?
                && first.as_ref().is_none_or(|first| key < first)
            {
                first = Some(key.clone());
            }
        }
        let Some(key) = first else { return Ok(None) };
        let (before, after) = (old.get(src, &key)?, new.get(src, &key)?);
        for part in parts.iter_mut() {
            part.next.take_if(|(next, ..)| *next == key);
        }
        if before != after {
            return Ok(Some((key, before, after)));
        }
    }
}

/// Two plain trees, side by side.
struct Sides<'s, S> {
    old: Side<'s, S>,
    new: Side<'s, S>,
}

/// A position in one of the trees.
struct Side<'s, S> {
    src: &'s S,
    /// The whole tree, until it has been opened or skipped.
    root: Option<Root>,
    /// Nodes from the root down, each with its next entry.
    stack: Vec<(Arc<Node>, usize)>,
}

/// What comes next in one of the trees.
enum Item<'a> {
    /// All that is below a node not opened; no key in it is smaller than `lower`.
    Subtree {
        id: ChunkId,
        level: u8,
        lower: &'a [u8],
    },
    Entry {
        node: &'a Arc<Node>,
        index: usize,
    },
}

impl<'s, S: NodeSource> Side<'s, S> {
    fn of(src: &'s S, root: Option<Root>) -> Self {
        Self { src, root, stack: Vec::new() }
    }

    fn peek(&mut self) -> Result<Option<Item<'_>>, S::Error> {
        if let Some(root) = self.root {
            return Ok(Some(Item::Subtree { id: root.node, level: root.level()?, lower: b"" }));
        }
        while self.stack.last().is_some_and(|(node, next)| *next == node.len()) {
            self.stack.pop();
        }
        Ok(self.stack.last().map(|(node, next)| match node.level() {
            0 => Item::Entry { node, index: *next },
            level => Item::Subtree { id: node.child(*next), level: level - 1, lower: self.lower() },
        }))
    }

    /// The separator of what comes next. That of a first child stands further up, where what is being visited is one behind.
    fn lower(&self) -> &[u8] {
        let mut indexes = self.stack.iter().rev().zip(iter::once(0).chain(iter::repeat(1)));
        let found = indexes.find_map(|((node, next), behind)| (*next > behind).then(|| node.key(next - behind)));
        found.unwrap_or_default()
    }

    fn skip(&mut self) {
        if self.root.take().is_none()
            && let Some((_, next)) = self.stack.last_mut()
        {
            *next += 1;
        }
    }

    fn open(&mut self, id: &ChunkId, level: u8) -> Result<(), S::Error> {
        let node = load(self.src, id, level)?;
        self.skip();
        self.stack.push((node, 0));
        Ok(())
    }
}

/// What to do next: decided while both sides are borrowed, done after.
enum Step {
    End,
    SkipBoth,
    OpenOld(ChunkId, u8),
    OpenNew(ChunkId, u8),
    Removed(KeyRef, ValueRef),
    Added(KeyRef, ValueRef),
    Changed(KeyRef, ValueRef, ValueRef),
}

fn entry(node: &Arc<Node>, index: usize) -> (KeyRef, ValueRef) {
    (KeyRef::key(node, index), ValueRef::value(node, index))
}

fn step(old: Option<Item<'_>>, new: Option<Item<'_>>) -> Step {
    use Item::{Entry, Subtree};
    let removed = |node, index| {
        let (key, value) = entry(node, index);
        Step::Removed(key, value)
    };
    let added = |node, index| {
        let (key, value) = entry(node, index);
        Step::Added(key, value)
    };
    match (old, new) {
        (None, None) => Step::End,
        (Some(Subtree { id, level, .. }), None) => Step::OpenOld(id, level),
        (None, Some(Subtree { id, level, .. })) => Step::OpenNew(id, level),
        (Some(Entry { node, index }), None) => removed(node, index),
        (None, Some(Entry { node, index })) => added(node, index),
        (Some(Subtree { id: a, .. }), Some(Subtree { id: b, .. })) if a == b => Step::SkipBoth,
        // The higher one may hold the other whole.
        (Some(Subtree { id: a, level: i, .. }), Some(Subtree { id: b, level: j, .. })) => {
            if i >= j {
                Step::OpenOld(a, i)
            } else {
                Step::OpenNew(b, j)
            }
        }
        (Some(Entry { node, index }), Some(Subtree { id, level, lower })) => {
            if node.key(index) < lower {
                removed(node, index)
            } else {
                Step::OpenNew(id, level)
            }
        }
        (Some(Subtree { id, level, lower }), Some(Entry { node, index })) => {
            if node.key(index) < lower {
                added(node, index)
            } else {
                Step::OpenOld(id, level)
            }
        }
        (Some(Entry { node: a, index: i }), Some(Entry { node: b, index: j })) => match a.key(i).cmp(b.key(j)) {
            Ordering::Less => removed(a, i),
            Ordering::Greater => added(b, j),
            Ordering::Equal if a.value(i) == b.value(j) => Step::SkipBoth,
            Ordering::Equal => {
                let (key, value) = entry(b, j);
                Step::Changed(key, ValueRef::value(a, i), value)
            }
        },
    }
}

impl<S: NodeSource> Sides<'_, S> {
    fn advance(&mut self) -> Result<Option<Change>, S::Error> {
        loop {
            match step(self.old.peek()?, self.new.peek()?) {
                Step::End => return Ok(None),
                Step::SkipBoth => {
                    self.old.skip();
                    self.new.skip();
                }
                Step::OpenOld(id, level) => self.old.open(&id, level)?,
                Step::OpenNew(id, level) => self.new.open(&id, level)?,
                Step::Removed(key, value) => {
                    self.old.skip();
                    return Ok(Some((key, Some(value), None)));
                }
                Step::Added(key, value) => {
                    self.new.skip();
                    return Ok(Some((key, None, Some(value))));
                }
                Step::Changed(key, old, new) => {
                    self.old.skip();
                    self.new.skip();
                    return Ok(Some((key, Some(old), Some(new))));
                }
            }
        }
    }
}

impl<S: NodeSource> Iterator for Sides<'_, S> {
    type Item = Result<Change, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl<S: NodeSource> Iterator for Diff<'_, S> {
    type Item = Result<Change, S::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}
