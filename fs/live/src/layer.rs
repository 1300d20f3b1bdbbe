//! A layer: what a run of operations changed, to be looked at before everything below it.
//!
//! A layer is the fold of its edits and nothing else: the same edits, replayed from the log, give the same layer, but for times of last
//! access that the log hasn't heard of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use axiomfs_repository::record::{Entry, Inode};

use crate::edit::Edit;
use crate::extent_map::{ExtentMap, Run, RunSource};
use crate::log::DataRef;

/// What a layer says of an inode's record.
#[derive(Debug, Clone, Default)]
pub enum Stand {
    /// Nothing: look below.
    #[default]
    Unchanged,
    /// This.
    Put(Box<Inode>),
    /// It is gone.
    Gone,
}

impl Stand {
    fn target_len(&self) -> usize {
        if let Self::Put(inode) = self { target_len(inode) } else { 0 }
    }
}

/// Bytes of a symbolic link's target, which are shared by no other record.
fn target_len(inode: &Inode) -> usize {
    inode.target.as_ref().map_or(0, |target| target.len())
}

/// Extended attributes by name; `None` for one that is removed.
pub type XattrDelta = BTreeMap<Arc<[u8]>, Option<Arc<[u8]>>>;

/// What a layer says of one inode.
#[derive(Debug, Clone, Default)]
pub struct NodeDelta {
    /// Its record.
    pub stand: Stand,
    /// Made in this layer: nothing of it is below.
    pub fresh: bool,
    /// Its entries, for directories.
    pub entries: Option<Box<DirDelta>>,
    /// Its bytes, for files.
    pub extents: Option<Box<ExtentMap>>,
    /// Its extended attributes; `None` for one that is removed.
    pub xattrs: Option<Box<XattrDelta>>,
}

/// What a layer says of a directory's entries.
#[derive(Debug, Clone, Default)]
pub struct DirDelta {
    /// By sequence.
    pub by_seq: BTreeMap<u64, Slot>,
    /// Sequence by name; `None` for a name that is removed.
    pub by_name: HashMap<Arc<[u8]>, Option<u64>>,
}

/// What a layer says of one place in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// This entry. Nothing of this place is below.
    Put(Entry),
    /// This entry, in the place of one of its name below.
    Over(Entry),
    /// The entry from below, of this name, is removed.
    Removed(Arc<[u8]>),
}

impl Slot {
    /// The entry, unless it is removed.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Put(entry) | Self::Over(entry) => Some(entry),
            Self::Removed(_) => None,
        }
    }
}

/// One layer of changes.
#[derive(Debug, Default)]
pub struct Layer {
    nodes: HashMap<u64, NodeDelta>,
    orphans: HashSet<u64>,
    snapshot_edits: Vec<Edit>,
    audits: Vec<(u64, Arc<[u8]>)>,
    heap: usize,
    data_bytes: u64,
    /// Nodes that have extents.
    files: u64,
    /// Log segment of its first record.
    pub first_segment: Option<u64>,
    /// Number of its last operation.
    pub last_op: u64,
    /// When its first operation came.
    pub since: Option<std::time::Instant>,
    /// Largest inode number it made.
    pub max_ino: u64,
}

/// About what a node's delta takes on the heap, map slots included.
const NODE_COST: usize = 420;
/// The same for a directory entry in both its maps.
const ENTRY_COST: usize = 260;
/// The part of that which stays of a name that is removed.
const WHITEOUT_COST: usize = 100;
/// The same for a run of bytes.
const RUN_COST: usize = 120;

/// Files with less data than this, as a mean, are small ones.
const SMALL_FILE: u64 = 64 << 10;
/// As many audit records make a head by themselves.
pub(crate) const AUDITS_ALONE: usize = 1024;

impl Layer {
    /// What it says of `ino`.
    pub fn node(&self, ino: u64) -> Option<&NodeDelta> {
        self.nodes.get(&ino)
    }

    /// All it says.
    pub fn nodes(&self) -> impl Iterator<Item = (u64, &NodeDelta)> {
        self.nodes.iter().map(|(&ino, delta)| (ino, delta))
    }

    /// Inodes without a name that were open.
    pub fn orphans(&self) -> impl Iterator<Item = u64> + '_ {
        self.orphans.iter().copied()
    }

    /// Changes of the snapshot table. A snapshot freezes its layer, so it shows all of the layer.
    pub fn snapshot_edits(&self) -> &[Edit] {
        &self.snapshot_edits
    }

    /// Audit records, in the order of their numbers.
    pub fn audits(&self) -> &[(u64, Arc<[u8]>)] {
        &self.audits
    }

    /// Whether nothing happened in it.
    pub fn is_empty(&self) -> bool {
        self.changes_nothing() && self.audits.is_empty()
    }

    /// Whether it has audit records at most, and not many. They are no reason for a checkpoint or a head of their own.
    pub fn is_quiet(&self) -> bool {
        self.changes_nothing() && self.audits.len() < AUDITS_ALONE
    }

    fn changes_nothing(&self) -> bool {
        self.nodes.is_empty() && self.snapshot_edits.is_empty()
    }

    /// About how many bytes of heap it takes.
    pub fn heap(&self) -> usize {
        self.heap
    }

    /// Bytes of file data that came with it and have not been overwritten by a later edit's inode removal.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Whether it is to be frozen: by `bytes` of file data, by `small` where they are of small files, or by `heap` bytes of its own.
    pub fn is_full(&self, bytes: u64, small: u64, heap: usize) -> bool {
        let most = if self.data_bytes < SMALL_FILE * self.files { small } else { bytes };
        self.data_bytes >= most || self.heap >= heap
    }

    /// Folds one edit in. `data` is where the log holds the record's data.
    pub fn apply(&mut self, edit: &Edit, data: Option<DataRef>) {
        match edit {
            Edit::Create(ino, inode) => {
                self.max_ino = self.max_ino.max(*ino);
                self.put(*ino, inode, true);
            }
            Edit::Update(ino, inode) => self.put(*ino, inode, false),
            Edit::Remove(ino) => self.remove(*ino),
            Edit::Link { dir, seq, entry } => self.link(*dir, *seq, entry),
            Edit::Unlink { dir, seq, name } => self.unlink(*dir, *seq, name),
            Edit::Data { ino, offset } => {
                if let Some(data) = data {
                    let run = Run { offset: *offset, len: u64::from(data.len), source: RunSource::Log(data) };
                    self.data_bytes += run.len;
                    self.lay(*ino, run);
                }
            }
            Edit::Map { ino, run } => self.lay(*ino, run.clone()),
            Edit::Xattr { ino, name, value } => {
                let cost = ENTRY_COST + name.len() + value.as_ref().map_or(0, |v| v.len());
                self.node_mut(*ino).xattrs.get_or_insert_default().insert(name.clone(), value.clone());
                self.heap += cost;
            }
            Edit::Orphan(ino) => {
                self.orphans.insert(*ino);
            }
            Edit::Snapshot { .. } | Edit::SnapshotRename { .. } | Edit::SnapshotDelete(_) => {
                self.snapshot_edits.push(edit.clone());
            }
            Edit::Audit { number, value } => {
                self.heap += ENTRY_COST + value.len();
                self.audits.push((*number, value.clone()));
            }
        }
    }

    fn node_mut(&mut self, ino: u64) -> &mut NodeDelta {
        let heap = &mut self.heap;
        self.nodes.entry(ino).or_insert_with(|| {
            *heap += NODE_COST;
            NodeDelta::default()
        })
    }

    fn put(&mut self, ino: u64, inode: &Inode, fresh: bool) {
        let node = self.node_mut(ino);
        node.fresh |= fresh;
        let before = std::mem::replace(&mut node.stand, Stand::Put(Box::new(inode.clone())));
        self.heap = (self.heap + target_len(inode)).saturating_sub(before.target_len());
    }

    fn lay(&mut self, ino: u64, run: Run) {
        if let RunSource::Inline { bytes, .. } = &run.source {
            self.heap += bytes.len();
        }
        let extents = &mut self.node_mut(ino).extents;
        let is_first = extents.is_none();
        let extents = extents.get_or_insert_default();
        let before = extents.len();
        extents.insert(run);
        let after = extents.len();
        self.heap = (self.heap + after * RUN_COST).saturating_sub(before * RUN_COST);
        self.files += u64::from(is_first);
    }

    fn remove(&mut self, ino: u64) {
        self.orphans.remove(&ino);
        let node = self.node_mut(ino);
        let extents = node.extents.take();
        let fresh = node.fresh;
        let freed = extents.as_ref().map_or(0, |extents| extents.len()) * RUN_COST + node.stand.target_len();
        if fresh {
            self.nodes.remove(&ino);
            self.heap = self.heap.saturating_sub(NODE_COST + freed);
        } else {
            *node = NodeDelta { stand: Stand::Gone, ..NodeDelta::default() };
            self.heap = self.heap.saturating_sub(freed);
        }
        self.files -= u64::from(extents.is_some());
    }

    fn link(&mut self, dir: u64, seq: u64, entry: &Entry) {
        let entries = self.node_mut(dir).entries.get_or_insert_default();
        let slot = match entries.by_seq.get(&seq) {
            Some(Slot::Removed(_) | Slot::Over(_)) => Slot::Over(entry.clone()),
            Some(Slot::Put(_)) | None => Slot::Put(entry.clone()),
        };
        let is_known = entries.by_seq.insert(seq, slot).is_some();
        let had_name = entries.by_name.insert(entry.name.clone(), Some(seq)).is_some();
        if !is_known {
            self.heap += if had_name { ENTRY_COST - WHITEOUT_COST } else { ENTRY_COST + entry.name.len() };
        }
    }

    fn unlink(&mut self, dir: u64, seq: u64, name: &Arc<[u8]>) {
        let node = self.node_mut(dir);
        let fresh = node.fresh;
        let entries = node.entries.get_or_insert_default();
        let before = entries.by_seq.remove(&seq);
        let is_known = before.is_some();
        let was_here = matches!(before, Some(Slot::Put(_)));
        if !was_here {
            entries.by_seq.insert(seq, Slot::Removed(name.clone()));
        }
        if fresh {
            entries.by_name.remove(name);
        } else {
            entries.by_name.insert(name.clone(), None);
        }
        if was_here {
            let less = if fresh { ENTRY_COST + name.len() } else { ENTRY_COST - WHITEOUT_COST };
            self.heap = self.heap.saturating_sub(less);
        } else if !is_known {
            self.heap += ENTRY_COST + name.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{FileKind, Time};

    fn inode(kind: FileKind) -> Box<Inode> {
        let t = Time::default();
        Box::new(Inode {
            kind,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            parent: 2,
            parent_seq: 16,
            next_seq: 16,
            target: None,
        })
    }

    #[test]
    fn a_file_made_and_removed_leaves_only_the_whiteout_of_its_name() {
        let mut layer = Layer::default();
        let name: Arc<[u8]> = Arc::from(&b"tmp"[..]);
        let entry = Entry { ino: 1024, kind: FileKind::File, name: name.clone() };
        layer.apply(&Edit::Create(1024, inode(FileKind::File)), None);
        layer.apply(&Edit::Link { dir: 2, seq: 16, entry }, None);
        layer.apply(&Edit::Unlink { dir: 2, seq: 16, name: name.clone() }, None);
        layer.apply(&Edit::Remove(1024), None);
        assert!(layer.node(1024).is_none());
        let dir = layer.node(2).and_then(|n| n.entries.as_ref()).expect("the directory was touched");
        assert!(dir.by_seq.is_empty());
        assert_eq!(dir.by_name.get(&name), Some(&None));
    }

    #[test]
    fn a_place_that_is_used_again_hides_what_is_below_until_the_end() {
        let name: Arc<[u8]> = Arc::from(&b"name"[..]);
        let link = |ino| Edit::Link { dir: 2, seq: 16, entry: Entry { ino, kind: FileKind::File, name: name.clone() } };
        let unlink = Edit::Unlink { dir: 2, seq: 16, name: name.clone() };
        let slot = |layer: &Layer| layer.node(2)?.entries.as_ref()?.by_seq.get(&16).cloned();
        let mut layer = Layer::default();
        let mut heap = None;
        for ino in [1024, 1025] {
            layer.apply(&unlink, None);
            assert_eq!(slot(&layer), Some(Slot::Removed(name.clone())));
            layer.apply(&link(ino), None);
            assert_eq!(slot(&layer).and_then(|slot| slot.entry().map(|entry| entry.ino)), Some(ino));
            assert_eq!(*heap.get_or_insert(layer.heap()), layer.heap());
        }
        layer.apply(&unlink, None);
        assert_eq!(slot(&layer), Some(Slot::Removed(name.clone())), "what is below stays hidden");
        let mut above = Layer::default();
        above.apply(&link(1024), None);
        above.apply(&unlink, None);
        assert_eq!(slot(&above), None, "nothing is below what was new");
    }

    #[test]
    fn removing_a_node_from_below_is_kept_as_gone() {
        let mut layer = Layer::default();
        layer.apply(&Edit::Update(7, inode(FileKind::File)), None);
        layer.apply(&Edit::Remove(7), None);
        assert!(matches!(layer.node(7), Some(NodeDelta { stand: Stand::Gone, .. })));
    }

    #[test]
    fn what_it_takes_follows_names_that_come_and_go() {
        let mut layer = Layer::default();
        let mut next = 16;
        let mut replace = |layer: &mut Layer, dir, name: &[u8], stays: bool| {
            let (seq, name): (u64, Arc<[u8]>) = (next, name.into());
            next += 1;
            let entry = Entry { ino: 1024, kind: FileKind::File, name: name.clone() };
            layer.apply(&Edit::Link { dir, seq, entry }, None);
            if !stays {
                layer.apply(&Edit::Unlink { dir, seq, name }, None);
            }
            layer.heap()
        };
        // Of a directory from below whiteouts stay, one for each name.
        let first = replace(&mut layer, 2, b"a name", false);
        assert_eq!(replace(&mut layer, 2, b"a name", false), first);
        assert_eq!(replace(&mut layer, 2, b"nother", false), first + WHITEOUT_COST + 6);
        assert_eq!(replace(&mut layer, 2, b"a name", true), first + ENTRY_COST + 6);
        layer.apply(&Edit::Create(1030, inode(FileKind::Directory)), None);
        let before = layer.heap();
        assert_eq!(replace(&mut layer, 1030, b"a name", false), before, "of a new one nothing does");
    }

    #[test]
    fn what_it_takes_counts_targets_of_links_and_bytes_that_stand_in_runs() {
        let mut layer = Layer::default();
        let link = |len: usize| Box::new(Inode { target: Some(vec![b'x'; len].into()), ..*inode(FileKind::Symlink) });
        layer.apply(&Edit::Create(1024, inode(FileKind::Symlink)), None);
        let bare = layer.heap();
        layer.apply(&Edit::Create(1025, link(4000)), None);
        assert_eq!(layer.heap(), 2 * bare + 4000);
        layer.apply(&Edit::Update(1025, link(4000)), None);
        assert_eq!(layer.heap(), 2 * bare + 4000);
        layer.apply(&Edit::Remove(1025), None);
        assert_eq!(layer.heap(), bare);
        let bytes: Arc<[u8]> = vec![1; 512].into();
        let run = Run { offset: 0, len: 512, source: RunSource::Inline { bytes, skip: 0 } };
        layer.apply(&Edit::Map { ino: 1024, run }, None);
        assert_eq!(layer.heap(), bare + RUN_COST + 512);
    }

    #[test]
    fn removed_files_are_no_files_with_data() {
        let mut layer = Layer::default();
        let data = DataRef { segment: 1, offset: 4096, start: 0, len: 4096 };
        layer.apply(&Edit::Create(1024, inode(FileKind::File)), None);
        for ino in [7, 7, 1024] {
            layer.apply(&Edit::Data { ino, offset: 0 }, Some(data));
        }
        assert_eq!(layer.files, 2);
        for ino in [7, 1024, 7, 1025] {
            layer.apply(&Edit::Remove(ino), None);
        }
        assert_eq!(layer.files, 0);
    }

    #[test]
    fn it_gathers_more_of_small_files_than_of_large_ones() {
        let full_of = |files: u64, len: u32| {
            let mut layer = Layer::default();
            let (mut bytes, mut ino) = (0, 1024);
            while !layer.is_full(8 << 20, 24 << 20, usize::MAX) {
                let data = DataRef { segment: 1, offset: 4096, start: 0, len };
                // What has no data counts for nothing.
                layer.apply(&Edit::Update(500_000 + bytes, inode(FileKind::File)), None);
                layer.apply(&Edit::Data { ino, offset: bytes }, Some(data));
                bytes += u64::from(len);
                ino = 1024 + (ino - 1023) % files;
            }
            bytes
        };
        assert_eq!(full_of(1, 1 << 20), 8 << 20);
        assert_eq!(full_of(1, 4096), 8 << 20, "one file, however it is written");
        assert_eq!(full_of(100_000, 4096), 24 << 20);
        let mut layer = Layer::default();
        assert!(!layer.is_full(1, 1, 1));
        layer.apply(&Edit::Update(7, inode(FileKind::File)), None);
        assert!(layer.is_full(1 << 30, 1 << 30, 1), "by what it takes itself");
    }
}
