//! Versions of files, on a mount that follows another writer.
//!
//! The kernel keeps a file's pages by its node id, and whoever has a file open goes on reading it. So a file whose contents
//! changed gets another node id, as if it had been replaced: what is cached under an id is never wrong, an open file
//! stays what it was, and nothing mixes two states. Directories keep their ids: who stands in one sees what becomes of it.

use std::collections::HashMap;

use axiomfs_repository::tree::Root;

use crate::types::{FIRST_VERSION, NodeId, ROOT_INO};

/// Files whose versions are remembered one by one. With more, all files of the tree get a new version at once.
const FILES_MAX: usize = 1 << 20;
/// After the last version that fits into a node id the first is used again.
const LAST_VERSION: u32 = (1 << 24) - 1;

/// Which version each file is.
#[derive(Debug, Default)]
pub struct Versions {
    /// Of each file that isn't in `files`.
    rest: u32,
    files: HashMap<u64, u32>,
    /// The one given last.
    last: u32,
    opened: HashMap<NodeId, Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    count: u32,
    /// The last tree that has it, once the present one hasn't.
    left: Option<Option<Root>>,
}

/// Where a node of the live tree is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the tree shown now.
    Current,
    /// There too, if it is a directory.
    CurrentDirectory,
    /// In an earlier one, because somebody has it open.
    Left(Option<Root>),
    /// Nowhere any more.
    Gone,
}

/// What a new state changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Files whose contents changed. `None` if there are too many to tell.
    pub files: Option<Vec<u64>>,
    /// Nodes that are no more.
    pub removed: Vec<u64>,
    /// Directories with other entries.
    pub directories: Vec<u64>,
}

impl Versions {
    /// The version of file `ino`: the ordinal of its node id.
    pub fn of(&self, ino: u64) -> u32 {
        self.files.get(&ino).copied().unwrap_or(self.rest)
    }

    /// Where `node` is.
    pub fn place(&self, node: NodeId) -> Place {
        if let Some(Opened { left: Some(root), .. }) = self.opened.get(&node) {
            return Place::Left(*root);
        }
        if node.ordinal == self.of(node.ino) {
            Place::Current
        } else if node.ordinal == 0 && !self.files.contains_key(&node.ino) {
            Place::CurrentDirectory
        } else {
            Place::Gone
        }
    }

    /// Somebody opened `node`.
    pub fn open(&mut self, node: NodeId) {
        self.opened.entry(node).or_default().count += 1;
    }

    /// Somebody closed it.
    pub fn close(&mut self, node: NodeId) {
        if let Some(opened) = self.opened.get_mut(&node) {
            opened.count -= 1;
            if opened.count == 0 {
                self.opened.remove(&node);
            }
        }
    }

    /// A new state takes the place of the one with the tree `old`.
    pub fn advance(&mut self, old: Option<Root>, changed: &Changed) {
        self.last = match self.last {
            0 | LAST_VERSION => FIRST_VERSION,
            last => last + 1,
        };
        let many = changed.files.as_ref().is_none_or(|files| self.files.len() + files.len() > FILES_MAX);
        let gone = |node: &NodeId| {
            let ino = node.ino;
            many && ino != ROOT_INO
                || changed.removed.binary_search(&ino).is_ok()
                || changed.files.as_ref().is_some_and(|files| files.binary_search(&ino).is_ok())
        };
        for (node, opened) in &mut self.opened {
            if opened.left.is_none() && gone(node) {
                opened.left = Some(old);
            }
        }
        if many {
            self.files.clear();
            self.rest = self.last;
        } else {
            self.files.extend(changed.files.iter().flatten().map(|ino| (*ino, self.last)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(files: &[u64], removed: &[u64]) -> Changed {
        Changed { files: Some(files.to_vec()), removed: removed.to_vec(), directories: Vec::new() }
    }

    #[test]
    fn a_file_that_changed_is_another_one_and_who_has_it_open_keeps_it() {
        let mut versions = Versions::default();
        let (held, loose) = (NodeId::live(2000), NodeId::live(2001));
        versions.open(held);
        versions.advance(None, &changed(&[2000, 2001], &[]));
        assert_eq!(versions.place(held), Place::Left(None));
        assert_eq!(versions.place(loose), Place::Gone);
        let now = NodeId { ordinal: versions.of(2000), ino: 2000 };
        assert!(now.ordinal >= FIRST_VERSION && !now.is_in_snapshot());
        assert_eq!(versions.place(now), Place::Current);
        versions.close(held);
        assert_eq!(versions.place(held), Place::Gone);
        assert_eq!(versions.place(NodeId::live(3000)), Place::Current, "the rest stays");
    }

    #[test]
    fn a_removed_file_stays_for_who_has_it_open() {
        let mut versions = Versions::default();
        let node = NodeId::live(2000);
        versions.open(node);
        versions.open(node);
        versions.advance(None, &changed(&[], &[2000]));
        versions.close(node);
        assert_eq!(versions.place(node), Place::Left(None));
    }

    #[test]
    fn after_too_many_changes_every_file_is_another_one() {
        let mut versions = Versions::default();
        versions.advance(None, &Changed::default());
        let ordinal = versions.of(2000);
        assert!(ordinal >= FIRST_VERSION);
        assert_eq!(versions.place(NodeId { ordinal, ino: 2000 }), Place::Current);
        assert_eq!(versions.place(NodeId::live(2000)), Place::CurrentDirectory, "directories keep their number");
        versions.advance(None, &changed(&[2000], &[]));
        assert_eq!(versions.place(NodeId { ordinal, ino: 2000 }), Place::Gone);
        assert_eq!(versions.place(NodeId { ordinal, ino: 2001 }), Place::Current);
    }
}
