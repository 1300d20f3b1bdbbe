//! Looking through layers onto the tree below them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use axiomfs_repository::Repository;
use axiomfs_repository::RepositoryError;
use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::record::{self, Entry, Extent, Inode, RecordError, Source, Xattr};
use axiomfs_repository::tree::{self, Node, NodeSource, Root, TreeError};

use crate::extent_map::{Run, RunSource};
use crate::layer::{Layer, NodeDelta, Slot, Stand};
use crate::ops::attr_of;
use crate::types::{Attr, FileKind, FsError, NodeId};
use crate::versions::Versions;

/// Why a look at the tree gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The node isn't in memory, and the caller may not fetch.
    #[error("Node {0} is not cached")]
    Miss(ChunkId),
    /// The repository could not give it.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// It is not a node.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// It holds what no writer writes.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl LookError {
    /// Whether what was stored is damaged or gone, as against not here or unreachable.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Miss(_) => false,
            Self::Repository(error) => error.is_damage(),
            Self::Tree(_) | Self::Record(_) => true,
        }
    }
}

impl From<LookError> for FsError {
    fn from(e: LookError) -> Self {
        match e {
            LookError::Miss(_) => Self::WouldBlock,
            LookError::Repository(e) => crate::repository_error(&e),
            LookError::Tree(e) => Self::Io(e.to_string()),
            LookError::Record(e) => Self::Io(e.to_string()),
        }
    }
}

/// Nodes from memory, or fetched where the caller may wait.
#[derive(Clone, Copy)]
pub struct Nodes<'a> {
    /// Where they come from.
    pub repository: &'a Repository,
    /// Whether a node that isn't in memory may be fetched.
    pub fetch: bool,
    /// Nodes that an earlier try of the same operation fetched: pinned, so that a small cache can't make it run in circles.
    pub pinned: &'a [(ChunkId, Arc<Node>)],
}

impl NodeSource for Nodes<'_> {
    type Error = LookError;

    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, LookError> {
        if let Some(node) = self.repository.node_cached(id) {
            return Ok(node);
        }
        if let Some((_, node)) = self.pinned.iter().find(|(pinned, _)| pinned == id) {
            return Ok(node.clone());
        }
        if self.fetch { Ok(self.repository.node(id)?) } else { Err(LookError::Miss(*id)) }
    }
}

/// Layers, the topmost last, over a tree.
pub struct View<'a> {
    /// The tree.
    pub base: Option<Root>,
    /// Layers over it that change no more, oldest first.
    pub frozen: &'a [Arc<Layer>],
    /// The layer on top, where there is one.
    pub active: Option<&'a Layer>,
    /// Where nodes of the tree come from.
    pub nodes: Nodes<'a>,
    /// The ordinal of its nodes.
    pub ordinal: u32,
    /// Which version each file of the live tree is, where a reader follows.
    pub versions: Option<&'a Versions>,
    /// A node that counts only if it is a directory.
    pub directory: Option<u64>,
}

/// What was found of a directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its sequence.
    pub seq: u64,
    /// The entry.
    pub entry: Entry,
}

impl<'a> View<'a> {
    /// The live tree, or a part of its layers.
    pub fn of(base: Option<Root>, frozen: &'a [Arc<Layer>], active: Option<&'a Layer>, nodes: Nodes<'a>) -> Self {
        Self { base, frozen, active, nodes, ordinal: 0, versions: None, directory: None }
    }

    /// The id of a node.
    pub fn node_id(&self, ino: u64, kind: FileKind) -> NodeId {
        let ordinal = match self.versions {
            Some(versions) if kind != FileKind::Directory => versions.of(ino),
            _ => self.ordinal,
        };
        NodeId { ordinal, ino }
    }

    /// What `stat` shows of a node.
    pub fn attr(&self, ino: u64, inode: &Inode) -> Attr {
        Attr { ordinal: self.node_id(ino, inode.kind).ordinal, ..attr_of(ino, inode) }
    }

    fn top_down(&self) -> impl Iterator<Item = &'a Layer> + use<'a> {
        self.active.into_iter().chain(self.frozen.iter().rev().map(Arc::as_ref))
    }

    /// The deltas of `ino` from the top down, ended by the first that hides everything below it; and whether the base shows.
    fn deltas(&self, ino: u64) -> (Vec<&'a NodeDelta>, bool) {
        let mut deltas = Vec::with_capacity(self.frozen.len() + 1);
        for layer in self.top_down() {
            let Some(delta) = layer.node(ino) else { continue };
            let ends = delta.fresh || matches!(delta.stand, Stand::Gone);
            deltas.push(delta);
            if ends {
                return (deltas, false);
            }
        }
        (deltas, true)
    }

    /// The inode's record.
    pub fn inode(&self, ino: u64) -> Result<Option<Inode>, LookError> {
        for layer in self.top_down() {
            let Some(delta) = layer.node(ino) else { continue };
            match &delta.stand {
                Stand::Put(inode) => return Ok(Some((**inode).clone())),
                Stand::Gone => return Ok(None),
                Stand::Unchanged => {}
            }
        }
        let Some(value) = tree::get(&self.nodes, self.base, &record::inode_key(ino))? else { return Ok(None) };
        let inode = Inode::decode(&value)?;
        let other = self.directory == Some(ino) && inode.kind != FileKind::Directory;
        Ok(if other { None } else { Some(inode) })
    }

    /// The entry `name` of directory `dir`.
    pub fn entry(&self, dir: u64, name: &[u8]) -> Result<Option<Found>, LookError> {
        let (deltas, base) = self.deltas(dir);
        for delta in deltas {
            let Some(entries) = &delta.entries else { continue };
            match entries.by_name.get(name) {
                Some(Some(seq)) => {
                    let entry = entries.by_seq.get(seq).and_then(Slot::entry);
                    return Ok(entry.map(|entry| Found { seq: *seq, entry: entry.clone() }));
                }
                Some(None) => return Ok(None),
                None => {}
            }
        }
        if base { self.base_entry(dir, name) } else { Ok(None) }
    }

    fn base_entry(&self, dir: u64, name: &[u8]) -> Result<Option<Found>, LookError> {
        let from = record::name_key(dir, name, 0);
        let to = record::name_key(dir, name, u64::MAX);
        for item in tree::range(&self.nodes, self.base, Bound::Included(&from), Bound::Included(&to)) {
            let (key, _) = item?;
            let Some(seq) = record::trailing_number(&key) else { continue };
            if let Some(value) = tree::get(&self.nodes, self.base, &record::entry_key(dir, seq))? {
                let entry = Entry::decode(&value)?;
                if *entry.name == *name {
                    return Ok(Some(Found { seq, entry }));
                }
            }
        }
        Ok(None)
    }

    /// The entry of `dir` at `seq`.
    pub fn entry_at(&self, dir: u64, seq: u64) -> Result<Option<Entry>, LookError> {
        let (deltas, base) = self.deltas(dir);
        for delta in deltas {
            if let Some(slot) = delta.entries.as_ref().and_then(|e| e.by_seq.get(&seq)) {
                return Ok(slot.entry().cloned());
            }
        }
        if !base {
            return Ok(None);
        }
        let Some(value) = tree::get(&self.nodes, self.base, &record::entry_key(dir, seq))? else { return Ok(None) };
        Ok(Some(Entry::decode(&value)?))
    }

    /// Up to `limit` entries of `dir` with a sequence above `after` and below `end`, in order.
    pub fn entries(&self, dir: u64, after: u64, end: u64, limit: usize) -> Result<Vec<Found>, LookError> {
        let (deltas, base) = self.deltas(dir);
        let past = (Bound::Excluded(after), Bound::Unbounded);
        let mut uppers: Vec<_> = deltas
            .iter()
            .filter_map(|delta| delta.entries.as_ref())
            .map(|entries| entries.by_seq.range(past).peekable())
            .collect();
        let from = record::entry_key(dir, after);
        let to = record::entry_key(dir, if base { u64::MAX } else { after });
        let mut lowest = if base {
            Some(tree::range(&self.nodes, self.base, Bound::Excluded(&from), Bound::Included(&to)))
        } else {
            None
        };
        let mut below = next_entry(&mut lowest)?;
        let mut found = Vec::new();
        while found.len() < limit {
            let in_layers = uppers.iter_mut().filter_map(|upper| upper.peek().map(|(seq, _)| **seq)).min();
            let next = in_layers.into_iter().chain(below.as_ref().map(|b| b.seq)).min();
            let Some(seq) = next.filter(|seq| *seq < end) else { break };
            // The topmost layer that knows the sequence decides; the others step over it.
            let mut decided: Option<Option<&Entry>> = None;
            for upper in &mut uppers {
                if let Some((_, slot)) = upper.next_if(|(at, _)| **at == seq) {
                    decided.get_or_insert(slot.entry());
                }
            }
            let from_base = if below.as_ref().is_some_and(|b| b.seq == seq) {
                std::mem::replace(&mut below, next_entry(&mut lowest)?)
            } else {
                None
            };
            match decided {
                Some(entry) => found.extend(entry.map(|entry| Found { seq, entry: entry.clone() })),
                None => found.extend(from_base),
            }
        }
        Ok(found)
    }

    /// One extended attribute as the layers or the tree hold it.
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Xattr>, LookError> {
        let (deltas, base) = self.deltas(ino);
        for delta in deltas {
            if let Some(value) = delta.xattrs.as_ref().and_then(|x| x.get(name)) {
                return Ok(value.clone().map(Xattr::Inline));
            }
        }
        if !base {
            return Ok(None);
        }
        let Some(value) = tree::get(&self.nodes, self.base, &record::xattr_key(ino, name))? else { return Ok(None) };
        Ok(Some(Xattr::decode(&value)?))
    }

    /// Names of all extended attributes.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>, LookError> {
        let (deltas, base) = self.deltas(ino);
        let mut names: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        if base {
            let from = record::key(ino, record::KIND_XATTR, &[]);
            let to = record::key(ino, record::KIND_XATTR + 1, &[]);
            for item in tree::range(&self.nodes, self.base, Bound::Included(&from), Bound::Excluded(&to)) {
                names.insert(record::sub_key(&item?.0).to_vec(), true);
            }
        }
        for delta in deltas.iter().rev() {
            for (name, value) in delta.xattrs.iter().flat_map(|x| x.iter()) {
                names.insert(name.to_vec(), value.is_some());
            }
        }
        Ok(names.into_iter().filter_map(|(name, there)| there.then_some(name)).collect())
    }

    /// Where the bytes `from..to` of `ino` are: runs that cover all of it, in order, holes included.
    pub fn runs(&self, ino: u64, from: u64, to: u64) -> Result<Vec<Run>, LookError> {
        self.first_runs(ino, from, to, usize::MAX)
    }

    /// The first runs of these, at most `most`: they cover a first part of `from..to`, however large its holes are.
    pub fn first_runs(&self, ino: u64, from: u64, to: u64, most: usize) -> Result<Vec<Run>, LookError> {
        let (deltas, base) = self.deltas(ino);
        let mut runs = Runs { found: Vec::new(), most };
        self.fill(&deltas, base, ino, from, to, &mut runs)?;
        Ok(runs.found)
    }

    fn fill(
        &self,
        deltas: &[&NodeDelta],
        base: bool,
        ino: u64,
        from: u64,
        to: u64,
        out: &mut Runs,
    ) -> Result<(), LookError> {
        if from >= to || out.is_full() {
            return Ok(());
        }
        let Some((top, below)) = deltas.split_first() else {
            return if base {
                self.fill_from_base(ino, from, to, out)
            } else {
                out.push(Run { offset: from, len: to - from, source: RunSource::Hole });
                Ok(())
            };
        };
        let mut at = from;
        if let Some(extents) = &top.extents {
            for run in extents.overlapping(from, to) {
                self.fill(below, base, ino, at, run.offset, out)?;
                if out.is_full() {
                    return Ok(());
                }
                at = run.end();
                out.push(run);
            }
        }
        self.fill(below, base, ino, at, to, out)
    }

    fn fill_from_base(&self, ino: u64, from: u64, to: u64, out: &mut Runs) -> Result<(), LookError> {
        let mut at = from;
        for item in base_extents(&self.nodes, self.base, ino, from) {
            let run = item?;
            if run.offset >= to || out.is_full() {
                break;
            }
            let run = run.clipped(from, to);
            if run.offset > at {
                out.push(Run { offset: at, len: run.offset - at, source: RunSource::Hole });
            }
            at = run.end();
            out.push(run);
        }
        if at < to && !out.is_full() {
            out.push(Run { offset: at, len: to - at, source: RunSource::Hole });
        }
        Ok(())
    }
}

/// Runs that are gathered one after the other, until there are as many as are wanted.
struct Runs {
    found: Vec<Run>,
    most: usize,
}

impl Runs {
    fn is_full(&self) -> bool {
        self.found.len() >= self.most
    }

    fn push(&mut self, run: Run) {
        if !self.is_full() {
            self.found.push(run);
        }
    }
}

fn next_entry<'a>(range: &mut Option<tree::Range<'a, Nodes<'a>>>) -> Result<Option<Found>, LookError> {
    let Some(item) = range.as_mut().and_then(Iterator::next) else { return Ok(None) };
    let (key, value) = item?;
    let malformed = RecordError { kind: record::KIND_ENTRY, reason: "its key is too short" };
    let seq = record::trailing_number(&key).ok_or(malformed)?;
    Ok(Some(Found { seq, entry: Entry::decode(&value)? }))
}

/// The tree's extents of `ino` that end after `from`, in order.
pub fn base_extents<'a>(
    nodes: &'a Nodes<'a>,
    base: Option<Root>,
    ino: u64,
    from: u64,
) -> impl Iterator<Item = Result<Run, LookError>> + 'a {
    let from = record::extent_key(ino, from);
    let to = record::extent_key(ino, u64::MAX);
    tree::range(nodes, base, Bound::Excluded(&from), Bound::Included(&to)).map(|item| {
        let (key, value) = item?;
        extent_run(&key, &value)
    })
}

/// The run that an extent record describes.
pub fn extent_run(key: &[u8], value: &[u8]) -> Result<Run, LookError> {
    let extent = Extent::decode(value)?;
    let malformed = RecordError { kind: record::KIND_EXTENT, reason: "it ends before its own length" };
    let end = record::trailing_number(key).ok_or(malformed.clone())?;
    let offset = end.checked_sub(extent.len).ok_or(malformed)?;
    let source = match extent.source {
        Source::Chunk { id, skip, clear } => RunSource::Chunk { id, skip, clear },
        Source::Inline(bytes) => RunSource::Inline { bytes, skip: 0 },
    };
    Ok(Run { offset, len: extent.len, source })
}
