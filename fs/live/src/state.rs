//! What a mounted volume knows, behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use axiomfs_repository::record::Inode;
use axiomfs_repository::tree::Root;

use crate::audit::AuditTail;
use crate::edit::{self, Edit};
use crate::layer::{Layer, Stand};
use crate::log::DataRef;
use crate::types::{FIRST_FILE_INO, FsError, FsResult, NodeId, SnapshotInfo, Time};
use crate::versions::{Place, Versions};
use crate::view::{Nodes, View};

/// Sequence of the first entry of a directory; smaller cookies are the mount's own.
pub const FIRST_SEQ: u64 = 16;
/// Inode numbers a directory takes at once, so that its files lie together in the tree.
const INO_RANGE: u64 = 64;
/// About the most bytes that an inode's record takes in the log, without a target.
const RECORD_BYTES: usize = 128;
/// Moved times of access that wait for the log.
const ACCESSED_MAX: usize = 16_384;
/// Directories whose ranges are remembered.
const RANGES_MAX: usize = 4096;

/// Where a snapshot's tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotTree {
    /// The base and the frozen layers up to this one.
    Layers(u64),
    /// A tree of its own.
    Root(Option<Root>),
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its number.
    pub ordinal: u32,
    /// When it was taken.
    pub created: Time,
    /// Its tree.
    pub tree: SnapshotTree,
    /// Whether a head in the store has it.
    pub committed: bool,
}

/// What a mounted volume knows.
#[derive(Debug, Default)]
pub struct State {
    /// Tree of the last local checkpoint.
    pub base: Option<Root>,
    /// Layers over it that change no more, oldest first, with their numbers.
    pub frozen: Vec<Arc<Layer>>,
    /// Number of the oldest frozen layer; they count up.
    pub first_layer: u64,
    /// The layer that takes the changes.
    pub active: Layer,
    /// Inodes whose time of last access moved in a layer and is not in the log yet.
    pub accessed: Vec<u64>,
    /// Snapshots by name.
    pub snapshots: BTreeMap<Arc<str>, Snapshot>,
    names: HashMap<u32, Arc<str>>,
    /// Hands out inode numbers.
    pub inos: Inos,
    /// Next snapshot number.
    pub next_ordinal: u32,
    /// Next operation number.
    pub next_op: u64,
    /// Segment of the newest record.
    pub last_segment: u64,
    /// Open handles per live inode.
    pub opens: HashMap<u64, u32>,
    /// On a mount that follows another writer: versions of files.
    pub versions: Option<Versions>,
    /// End of the audit log.
    pub audit: AuditTail,
    /// Why nothing may be written any more.
    pub refused: Option<FsError>,
}

impl State {
    /// The live tree.
    pub fn live<'a>(&'a self, nodes: Nodes<'a>) -> View<'a> {
        View { versions: self.versions.as_ref(), ..View::of(self.base, &self.frozen, Some(&self.active), nodes) }
    }

    /// The tree that `node` is in.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such snapshot any more, or the version of a file that nobody has open is gone.
    pub fn tree<'a>(&'a self, node: NodeId, nodes: Nodes<'a>) -> FsResult<View<'a>> {
        let ordinal = node.ordinal;
        match (&self.versions, node.is_in_snapshot()) {
            (_, true) => {}
            (None, false) => return if ordinal == 0 { Ok(self.live(nodes)) } else { Err(FsError::Stale) },
            (Some(versions), false) => {
                return match versions.place(node) {
                    Place::Current => Ok(self.live(nodes)),
                    Place::CurrentDirectory => Ok(View { directory: Some(node.ino), ..self.live(nodes) }),
                    Place::Left(base) => Ok(View { ordinal, ..View::of(base, &[], None, nodes) }),
                    Place::Gone => Err(FsError::Stale),
                };
            }
        }
        let name = self.names.get(&ordinal).ok_or(FsError::Stale)?;
        let snapshot = self.snapshots.get(name).ok_or(FsError::Stale)?;
        Ok(match snapshot.tree {
            SnapshotTree::Root(base) => View { ordinal, ..View::of(base, &[], None, nodes) },
            SnapshotTree::Layers(id) => {
                let n = (id + 1).saturating_sub(self.first_layer) as usize;
                View { ordinal, ..View::of(self.base, &self.frozen[..n.min(self.frozen.len())], None, nodes) }
            }
        })
    }

    /// The first log segment that the layers after the first `done` frozen ones need.
    pub fn first_needed_segment(&self, done: usize) -> u64 {
        let later = self.frozen[done..].iter().find_map(|layer| layer.first_segment);
        later.or(self.active.first_segment).unwrap_or(self.last_segment)
    }

    /// Number that the active layer will have once it is frozen.
    pub fn active_layer(&self) -> u64 {
        self.first_layer + self.frozen.len() as u64
    }

    /// Freezes the active layer and puts an empty one on top. O(1).
    pub fn freeze(&mut self) {
        let layer = std::mem::take(&mut self.active);
        self.active.last_op = layer.last_op;
        self.frozen.push(Arc::new(layer));
    }

    /// Folds one operation in.
    pub fn apply(&mut self, op: u64, edits: &[Edit], segment: u64, data: Option<DataRef>) {
        self.next_op = self.next_op.max(op + 1);
        self.last_segment = segment;
        self.active.first_segment.get_or_insert(segment);
        self.active.last_op = op;
        if !edit::only_audit(edits) {
            self.active.since.get_or_insert_with(Instant::now);
        }
        for edit in edits {
            if let Edit::Create(ino, _) = edit {
                self.inos.seen(*ino);
            }
            self.active.apply(edit, data);
            match edit {
                Edit::Snapshot { ordinal, created, name } => self.take_snapshot(*ordinal, *created, name),
                Edit::SnapshotRename { ordinal, name } => self.rename_snapshot(*ordinal, name),
                Edit::SnapshotDelete(ordinal) => self.delete_snapshot(*ordinal),
                Edit::Audit { number, value } => self.audit.follow(*number, value),
                _ => {}
            }
        }
    }

    /// Changes a file's time of last access in the active layer alone; the log is to hear of it later. Of more than it can remember it
    /// hears nothing: they go with the next checkpoint.
    pub fn move_access_time(&mut self, ino: u64, inode: Inode) {
        self.active.since.get_or_insert_with(Instant::now);
        self.active.apply(&Edit::Update(ino, Box::new(inode)), None);
        if self.accessed.len() < ACCESSED_MAX {
            self.accessed.push(ino);
        }
    }

    /// Takes some of the moved times of last access, `most` bytes of edits or one more, the newest first. What is in no layer any more
    /// stands in the tree.
    pub fn take_accessed(&mut self, most: usize) -> Vec<Edit> {
        let (mut edits, mut bytes) = (Vec::new(), 0);
        while bytes < most
            && let Some(ino) = self.accessed.pop()
        {
            if let Some(inode) = self.record_in_layers(ino) {
                bytes += RECORD_BYTES + inode.target.as_ref().map_or(0, |target| target.len());
                edits.push(Edit::Update(ino, Box::new(inode)));
            }
        }
        edits
    }

    fn record_in_layers(&self, ino: u64) -> Option<Inode> {
        let mut newest_first = [&self.active].into_iter().chain(self.frozen.iter().rev().map(|layer| &**layer));
        newest_first.find_map(|layer| match &layer.node(ino)?.stand {
            Stand::Put(inode) => Some(Some((**inode).clone())),
            Stand::Gone => Some(None),
            Stand::Unchanged => None,
        })?
    }

    /// A snapshot shows the active layer and all below it; from now on nothing is added to that layer.
    fn take_snapshot(&mut self, ordinal: u32, created: Time, name: &Arc<str>) {
        self.next_ordinal = self.next_ordinal.max(ordinal + 1);
        let tree = SnapshotTree::Layers(self.active_layer());
        self.freeze();
        self.put_snapshot(name.clone(), Snapshot { ordinal, created, tree, committed: false });
    }

    /// Shows the snapshots of `fresh`.
    pub fn take_snapshots(&mut self, fresh: &mut Self) {
        self.snapshots = std::mem::take(&mut fresh.snapshots);
        self.names = std::mem::take(&mut fresh.names);
    }

    /// Puts a snapshot into the table.
    pub fn put_snapshot(&mut self, name: Arc<str>, snapshot: Snapshot) {
        self.names.insert(snapshot.ordinal, name.clone());
        if let Some(old) = self.snapshots.insert(name, snapshot) {
            self.names.remove(&old.ordinal);
        }
    }

    fn rename_snapshot(&mut self, ordinal: u32, name: &Arc<str>) {
        let Some(old) = self.names.get(&ordinal).cloned() else { return };
        if let Some(mut snapshot) = self.snapshots.remove(&old) {
            snapshot.committed = false;
            self.put_snapshot(name.clone(), snapshot);
        }
    }

    fn delete_snapshot(&mut self, ordinal: u32) {
        if let Some(name) = self.names.remove(&ordinal) {
            self.snapshots.remove(&name);
        }
    }

    /// One snapshot for people.
    pub fn info(name: &Arc<str>, snapshot: &Snapshot) -> SnapshotInfo {
        SnapshotInfo {
            name: name.to_string(),
            ordinal: snapshot.ordinal,
            created: snapshot.created,
            committed: snapshot.committed,
        }
    }
}

/// Hands out inode numbers so that the files of a directory lie together in the tree; none is ever given twice.
#[derive(Debug, Default)]
pub struct Inos {
    /// The lowest number that no range holds.
    pub next: u64,
    ranges: HashMap<u64, (u64, u64)>,
}

impl Inos {
    /// A number for a new inode in `dir`. It counts as used only once [`taken`](Self::taken).
    pub fn peek(&mut self, dir: u64) -> u64 {
        self.next = self.next.max(FIRST_FILE_INO);
        if self.ranges.len() > RANGES_MAX {
            self.ranges.clear();
        }
        let range = self.ranges.entry(dir).or_insert((0, 0));
        if range.0 == range.1 {
            *range = (self.next, self.next + INO_RANGE);
            self.next += INO_RANGE;
        }
        range.0
    }

    /// Marks the number that [`peek`](Self::peek) gave as used.
    pub fn taken(&mut self, dir: u64) {
        if let Some(range) = self.ranges.get_mut(&dir) {
            range.0 += 1;
        }
    }

    fn seen(&mut self, ino: u64) {
        self.next = self.next.max(ino + 1);
    }
}
