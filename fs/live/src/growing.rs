//! A tree while a layer's changes come to it: some at a time, so that those of a layer that removes much are never all in memory.

use std::ops::Bound;

use axiomfs_repository::record;
use axiomfs_repository::tree::{self, Root};

use crate::background::describe;
use crate::checkpoint::{CheckpointError, Edits, Sink};
use crate::view::{LookError, Nodes};
use crate::volume::Shared;

/// Of the memory, the share that changes may have before they are applied: one for so many bytes, which takes about 128.
const SHARE: u64 = 2048;

/// A tree and what is to be changed of it. Keys come in ascending order.
pub(crate) struct Growing<'a> {
    shared: &'a Shared,
    /// What it grows from, which is what is looked at.
    base: Option<Root>,
    root: Option<Root>,
    edits: Edits,
    changed: bool,
    /// Changes that are gathered.
    many: usize,
}

impl<'a> Growing<'a> {
    /// From `base`, with room for about `expected` changes.
    pub(crate) fn new(shared: &'a Shared, base: Option<Root>, expected: usize) -> Self {
        let many = (shared.options.memory / SHARE) as usize;
        Self { shared, base, root: base, edits: Vec::with_capacity(expected.min(many)), changed: false, many }
    }

    /// Where changes go.
    pub(crate) fn edits(&mut self) -> &mut Edits {
        &mut self.edits
    }

    /// Applies what was gathered, if it is much.
    pub(crate) fn apply_if_many(&mut self) -> Result<(), CheckpointError> {
        if self.edits.len() < self.many {
            return Ok(());
        }
        let edits = std::mem::take(&mut self.edits);
        self.apply(edits)
    }

    fn apply(&mut self, edits: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Result<(), CheckpointError> {
        let mut edits = edits.into_iter().peekable();
        self.changed |= edits.peek().is_some();
        let (nodes, sink) = (nodes(self.shared), &mut Sink(self.shared));
        self.root = tree::apply::<_, _, CheckpointError>(&nodes, sink, self.root, edits)?;
        Ok(())
    }

    /// Takes everything of an inode out, or nothing where some of it can't be read: nothing leads there, the number is never used again,
    /// and what is beside a damaged node may have to be put together with it where it gets too small.
    pub(crate) fn remove_all(&mut self, ino: u64) -> Result<(), CheckpointError> {
        let room = self.edits.len() + self.many;
        let mut rest = None;
        let before = self.edits.len();
        for key in keys_of(&nodes(self.shared), self.base, record::inode_key(ino), ino) {
            match key {
                Ok(key) if self.edits.len() < room => self.edits.push((key, None)),
                // Looked at all the same: it may be damaged.
                Ok(key) => drop(rest.get_or_insert(key)),
                Err(error) if error.is_damage() => {
                    self.edits.truncate(before);
                    let text = format!("The records of inode {ino}, which was removed, stay in the store");
                    self.shared.events.add("error", format!("{text}: {}", describe(&error)));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some(rest) = rest else { return Ok(()) };
        for key in keys_of(&nodes(self.shared), self.base, rest, ino) {
            self.apply_if_many()?;
            self.edits.push((key?, None));
        }
        Ok(())
    }

    /// The tree with all changes, and whether there were any; `first` go before all that are left, and don't count.
    pub(crate) fn end(
        mut self,
        first: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(Option<Root>, bool), CheckpointError> {
        let edits = std::mem::take(&mut self.edits);
        let changed = self.changed || !edits.is_empty();
        self.apply(first.chain(edits))?;
        Ok((self.root, changed))
    }
}

fn nodes(shared: &Shared) -> Nodes<'_> {
    Nodes { repository: &shared.repository, fetch: true, pinned: &[] }
}

/// The keys of an inode from `first` on.
fn keys_of<'n>(
    nodes: &'n Nodes<'_>,
    base: Option<Root>,
    first: Vec<u8>,
    ino: u64,
) -> impl Iterator<Item = Result<Vec<u8>, LookError>> + use<'n> {
    let end = record::inode_key(ino + 1);
    tree::range(nodes, base, Bound::Included(&first), Bound::Excluded(&end)).map(|item| Ok(item?.0.to_vec()))
}
