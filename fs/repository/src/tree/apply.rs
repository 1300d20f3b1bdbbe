//! Bulk changes: one pass over the edits in key order, which reads only what they touch.

use std::marker::PhantomData;
use std::sync::Arc;

use super::buffer::NodeBuffer;
use super::{HEIGHT_MAX, KEY_MAX, Node, NodeSink, NodeSource, Root, TreeError, VALUE_MAX, load};
use crate::ids::ChunkId;

/// A key and what becomes of it: a value, or nothing.
pub(super) type Edit = (Vec<u8>, Option<Vec<u8>>);

/// How large nodes are made, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// At most this (as long as each entry is shorter than half of it).
    pub target: usize,
    /// What would be smaller is put together with a neighbour.
    pub min: usize,
}

/// [`apply`](super::apply) to a plain tree, with a plain one as the result.
pub(super) fn apply_plain<S, K, E>(
    src: &S,
    sink: &mut K,
    root: Option<Root>,
    edits: impl Iterator<Item = Edit>,
    sizes: Sizes,
) -> Result<Option<Root>, E>
where
    S: NodeSource,
    K: NodeSink,
    E: From<S::Error> + From<K::Error> + From<TreeError>,
{
    let mut edits = Edits::new(edits)?;
    if edits.next.is_none() {
        return Ok(root);
    }
    let writer = Writer { src, sink, sizes, levels: Vec::new(), spare: Vec::new(), error: PhantomData::<E> };
    let mut merge = Merge { writer, edits: &mut edits, inserted: 0, deleted: 0 };
    match root {
        Some(root) => merge.subtree(root.node, root.level()?, b"", None)?,
        None => merge.fill()?,
    }
    let Merge { writer, inserted, deleted, .. } = merge;
    let Some((node, height)) = writer.finish()? else { return Ok(None) };
    let before = root.map_or(0, |root| root.entries);
    match before.checked_add(inserted).and_then(|sum| sum.checked_sub(deleted)) {
        Some(entries) if entries > 0 => Ok(Some(Root { node, height, entries })),
        _ => Err(TreeError::Entries { node: root.map_or(node, |root| root.node), entries: before }.into()),
    }
}

/// The edits, each checked as it comes to be the next.
pub(super) struct Edits<I> {
    rest: I,
    next: Option<Edit>,
    index: u64,
}

impl<I: Iterator<Item = Edit>> Edits<I> {
    pub fn new(mut rest: I) -> Result<Self, TreeError> {
        let next = rest.next();
        check_lengths(next.as_ref())?;
        Ok(Self { rest, next, index: 0 })
    }

    pub fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// Up to `most` edits off the front.
    pub fn take(&mut self, most: usize) -> Result<Vec<Edit>, TreeError> {
        let mut taken = Vec::new();
        while taken.len() < most && self.next.is_some() {
            taken.extend(self.advance()?);
        }
        Ok(taken)
    }

    /// What is left.
    pub fn rest(self) -> impl Iterator<Item = Edit> {
        self.next.into_iter().chain(self.rest)
    }

    /// The next edit, if its key is below `upper`.
    fn below(&self, upper: Option<&[u8]>) -> Option<(&[u8], Option<&[u8]>)> {
        let (key, value) = self.next.as_ref()?;
        let below = upper.is_none_or(|upper| key.as_slice() < upper);
        below.then_some((key, value.as_deref()))
    }

    fn advance(&mut self) -> Result<Option<Edit>, TreeError> {
        let next = self.rest.next();
        check_lengths(next.as_ref())?;
        self.index += 1;
        if let (Some((key, _)), Some((previous, _))) = (&next, &self.next)
            && key <= previous
        {
            return Err(TreeError::EditOrder { index: self.index });
        }
        Ok(std::mem::replace(&mut self.next, next))
    }
}

fn check_lengths(edit: Option<&Edit>) -> Result<(), TreeError> {
    match edit {
        Some((key, _)) if key.len() > KEY_MAX => Err(TreeError::KeyTooLong { len: key.len() }),
        Some((_, Some(value))) if value.len() > VALUE_MAX => Err(TreeError::ValueTooLong { len: value.len() }),
        _ => Ok(()),
    }
}

/// The walk through the old tree and the edits together.
struct Merge<'a, S, K, E, I> {
    writer: Writer<'a, S, K, E>,
    edits: &'a mut Edits<I>,
    inserted: u64,
    deleted: u64,
}

impl<S, K, E, I> Merge<'_, S, K, E, I>
where
    S: NodeSource,
    K: NodeSink,
    E: From<S::Error> + From<K::Error> + From<TreeError>,
    I: Iterator<Item = Edit>,
{
    /// The old tree is empty: all edits become entries.
    fn fill(&mut self) -> Result<(), E> {
        self.writer.begin_leaf(b"")?;
        while let Some((key, value)) = self.edits.below(None) {
            if let Some(value) = value {
                self.writer.push(0, key, value)?;
                self.inserted += 1;
            }
            self.edits.advance()?;
        }
        self.writer.end_node(0)
    }

    /// The old node `id`, with all its keys in `lower..upper`, and the edits in that range.
    fn subtree(&mut self, id: ChunkId, level: u8, lower: &[u8], upper: Option<&[u8]>) -> Result<(), E> {
        if self.edits.below(upper).is_none() && self.writer.pass(id, level, lower)? {
            return Ok(());
        }
        let node = load(self.writer.src, &id, level)?;
        // A branch's first key is left out and stands for `lower`.
        let first = usize::from(level > 0);
        let too_small = first < node.len() && node.key(first) < lower;
        if too_small || upper.is_some_and(|upper| node.last_key() >= upper) {
            return Err(TreeError::OutOfRange { node: id }.into());
        }
        if level == 0 {
            return self.leaf(id, &node, lower, upper);
        }
        for i in 0..node.len() {
            let child_lower = if i == 0 { lower } else { node.key(i) };
            let child_upper = if i + 1 < node.len() { Some(node.key(i + 1)) } else { upper };
            self.subtree(node.child(i), level - 1, child_lower, child_upper)?;
        }
        self.writer.end_node(level)
    }

    fn leaf(&mut self, id: ChunkId, node: &Arc<Node>, lower: &[u8], upper: Option<&[u8]>) -> Result<(), E> {
        let mut changed = false;
        let mut copied = 0;
        while let Some((key, value)) = self.edits.below(upper) {
            let found = node.find(key);
            let same = match found {
                Ok(at) => value == Some(node.value(at)),
                Err(_) => value.is_none(),
            };
            if !same {
                if !changed {
                    changed = true;
                    self.writer.begin_leaf(lower)?;
                }
                let at = found.unwrap_or_else(|at| at);
                self.writer.extend(node, copied..at)?;
                copied = at + usize::from(found.is_ok());
                if let Some(value) = value {
                    self.writer.push(0, key, value)?;
                }
                self.inserted += u64::from(found.is_err());
                self.deleted += u64::from(value.is_none());
            }
            self.edits.advance()?;
        }
        if !changed {
            if self.writer.pass(id, 0, lower)? {
                return Ok(());
            }
            self.writer.begin_leaf(lower)?;
        }
        self.writer.extend(node, copied..node.len())?;
        self.writer.end_node(0)
    }
}

/// One level of the tree in the making.
#[derive(Default)]
struct Level {
    /// Comes before `open` and is a whole node. It is held back in case that `open` stays too small and must be put together with it.
    ready: Option<NodeBuffer>,
    open: NodeBuffer,
    /// Something was pushed.
    begun: bool,
    /// The node of this level that was written last, in case that it is needed again.
    last: Option<(ChunkId, NodeBuffer)>,
}

impl Level {
    fn is_empty(&self) -> bool {
        self.ready.is_none() && self.open.is_empty()
    }
}

/// Takes entries and whole subtrees in key order and makes nodes of them.
struct Writer<'a, S, K, E> {
    src: &'a S,
    sink: &'a mut K,
    sizes: Sizes,
    levels: Vec<Level>,
    /// Empty buffers to use again.
    spare: Vec<NodeBuffer>,
    error: PhantomData<E>,
}

impl<S, K, E> Writer<'_, S, K, E>
where
    S: NodeSource,
    K: NodeSink,
    E: From<S::Error> + From<K::Error> + From<TreeError>,
{
    /// What is pushed next stood in the leaf with the separator `lower`.
    fn begin_leaf(&mut self, lower: &[u8]) -> Result<(), E> {
        let open = &mut self.level(0)?.open;
        if open.is_empty() {
            open.lower.clear();
            open.lower.extend_from_slice(lower);
        }
        Ok(())
    }

    fn push(&mut self, level: u8, key: &[u8], value: &[u8]) -> Result<(), E> {
        self.level(level)?;
        // Neither here nor above it stands anything yet.
        let leftmost = level > 0 && self.levels[usize::from(level)..].iter().all(|above| !above.begun);
        let state = self.level(level)?;
        state.begun = true;
        // Whatever stood before the first child is gone; all that reads the tree takes its separator for the empty one.
        state.open.push(if leftmost { b"" } else { key }, value);
        self.cut(level)
    }

    /// Adds entries of an old leaf as they are.
    fn extend(&mut self, node: &Node, range: std::ops::Range<usize>) -> Result<(), E> {
        if range.is_empty() {
            return Ok(());
        }
        self.level(0)?.open.extend_from_node(node, range);
        self.cut(0)
    }

    /// Takes an old subtree as it is, unless nodes before it would stay too small: then answers false, and the subtree must be opened.
    fn pass(&mut self, id: ChunkId, level: u8, lower: &[u8]) -> Result<bool, E> {
        for below in 0..=level {
            if !self.settle(below)? {
                return Ok(false);
            }
        }
        self.push(level + 1, lower, id.as_bytes())?;
        Ok(true)
    }

    /// An old node of `level` ended here. If possible a new one ends here too, so that nodes further on stay as they are.
    fn end_node(&mut self, level: u8) -> Result<(), E> {
        for below in 0..level {
            // What stays too small goes into the next node.
            if !self.settle(below)? {
                break;
            }
        }
        self.close(level)
    }

    fn level(&mut self, level: u8) -> Result<&mut Level, E> {
        // One more than there are levels holds the root's id.
        if level > HEIGHT_MAX {
            return Err(TreeError::TooHigh.into());
        }
        let index = usize::from(level);
        if self.levels.len() <= index {
            self.levels.resize_with(index + 1, Level::default);
        }
        Ok(&mut self.levels[index])
    }

    /// Cuts full nodes off what is open, once enough stays for another.
    fn cut(&mut self, level: u8) -> Result<(), E> {
        let sizes = self.sizes;
        while self.level(level)?.open.size() > sizes.target + sizes.min && self.level(level)?.open.len() > 1 {
            let at = self.level(level)?.open.fitting(sizes.target);
            self.split(level, at)?;
        }
        Ok(())
    }

    /// Makes `ready` of the first `at` entries of what is open.
    fn split(&mut self, level: u8, at: usize) -> Result<(), E> {
        self.write_ready(level)?;
        let mut rest = self.spare.pop().unwrap_or_default();
        let state = self.level(level)?;
        state.open.split_into(at, &mut rest, level);
        state.ready = Some(std::mem::replace(&mut state.open, rest));
        Ok(())
    }

    /// Makes `ready` of all that is open, if that is enough for a node.
    fn close(&mut self, level: u8) -> Result<(), E> {
        let sizes = self.sizes;
        let open = &self.level(level)?.open;
        if open.is_empty() || open.size() < sizes.min {
            return Ok(());
        }
        self.close_any(level)
    }

    fn close_any(&mut self, level: u8) -> Result<(), E> {
        let target = self.sizes.target;
        let open = &self.level(level)?.open;
        if open.size() > target && open.len() > 1 {
            let half = open.half();
            self.split(level, half)?;
        }
        self.write_ready(level)?;
        let fresh = self.spare.pop().unwrap_or_default();
        let state = self.level(level)?;
        state.ready = Some(std::mem::replace(&mut state.open, fresh));
        Ok(())
    }

    /// Writes all of the level; answers false if it stays too small for that.
    fn settle(&mut self, level: u8) -> Result<bool, E> {
        self.close(level)?;
        if !self.level(level)?.open.is_empty() && !self.join(level)? {
            return Ok(false);
        }
        self.write_ready(level)?;
        Ok(true)
    }

    /// Puts what is open together with what is ready, and makes one or two nodes of it.
    fn join(&mut self, level: u8) -> Result<bool, E> {
        let state = self.level(level)?;
        let Some(mut joined) = state.ready.take() else { return Ok(false) };
        joined.append(&state.open);
        let freed = std::mem::replace(&mut state.open, joined);
        self.recycle(freed);
        self.close_any(level)?;
        Ok(true)
    }

    /// Writes what is ready and enters it into the level above.
    fn write_ready(&mut self, level: u8) -> Result<(), E> {
        let Some(buffer) = self.level(level)?.ready.take() else { return Ok(()) };
        let id = self.sink.put_node(buffer.encode(level))?;
        self.push(level + 1, buffer.separator(level), id.as_bytes())?;
        if let Some((_, freed)) = self.level(level)?.last.replace((id, buffer)) {
            self.recycle(freed);
        }
        Ok(())
    }

    fn recycle(&mut self, mut buffer: NodeBuffer) {
        const KEPT: usize = 4;
        if self.spare.len() < KEPT {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    /// The end of all input: answers the root's id and the tree's height.
    fn finish(mut self) -> Result<Option<(ChunkId, u8)>, E> {
        let mut level = 0;
        while self.highest().is_some_and(|highest| highest >= level) {
            let alone = self.highest() == Some(level);
            if alone && level > 0 && self.level(level)?.ready.is_none() && self.level(level)?.open.len() == 1 {
                return Ok(self.level(level)?.open.pop_child().map(|(_, id)| (id, level)));
            }
            if !self.settle(level)? {
                if alone {
                    self.close_any(level)?;
                } else {
                    self.fetch_left(level)?;
                }
                self.settle(level)?;
            }
            level += 1;
        }
        Ok(None)
    }

    /// The highest level that holds anything.
    fn highest(&self) -> Option<u8> {
        self.levels.iter().rposition(|level| !level.is_empty()).map(|level| level as u8)
    }

    /// Makes `ready` of the node before what is open, which was passed or written already. Something stands on a higher level.
    fn fetch_left(&mut self, level: u8) -> Result<(), E> {
        let mut above = level + 1;
        while self.level(above)?.is_empty() {
            above += 1;
        }
        while above > level {
            let state = self.level(above)?;
            // What is ready would be too small without its last child.
            if state.open.is_empty()
                && let Some(ready) = state.ready.take()
            {
                state.open = ready;
            }
            let (separator, id) = state.open.pop_child().expect("a level that isn't empty has entries");
            above -= 1;
            let buffer = self.reopen(id, above, separator)?;
            let state = self.level(above)?;
            if above > level { state.open = buffer } else { state.ready = Some(buffer) }
        }
        Ok(())
    }

    fn reopen(&mut self, id: ChunkId, level: u8, separator: Vec<u8>) -> Result<NodeBuffer, E> {
        if let Some((_, buffer)) = self.level(level)?.last.take_if(|(last, _)| *last == id) {
            return Ok(buffer);
        }
        let node = load(self.src, &id, level)?;
        let mut buffer = self.spare.pop().unwrap_or_default();
        if level == 0 {
            buffer.lower = separator;
            buffer.extend_from_node(&node, 0..node.len());
        } else {
            buffer.push(&separator, node.value(0));
            buffer.extend_from_node(&node, 1..node.len());
        }
        Ok(buffer)
    }
}
