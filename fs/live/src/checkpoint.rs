//! Checkpoints: frozen layers become trees, in packs on this machine's disk, and the log behind them is freed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use axiomfs_host::HostError;
use axiomfs_repository::ids::{ChunkId, Ordinal};
use axiomfs_repository::record::{self, Inode, Xattr};
use axiomfs_repository::tree::{self, Root, TreeError};
use axiomfs_repository::{FrameClass, FrameKind, Label, RepositoryError, SnapshotRecord};
use thiserror::Error;

use crate::audit;
use crate::change::{FROZEN_MAX, FROZEN_SNAPSHOT_MAX};
use crate::edit::Edit;
use crate::extent_edits::extent_edits;
use crate::extent_map::{Run, RunSource};
use crate::growing::Growing;
use crate::ingest::{Ingest, Paths};
use crate::layer::{Layer, NodeDelta, Slot, Stand};
use crate::ledger::{Made, SharedLedger};
use crate::log::LogError;
use crate::manifest::ManifestError;
use crate::sealing::{Pass, Sealing};
use crate::state::{SnapshotTree, State};
use crate::view::{LookError, Nodes, View, extent_run};
use crate::volume::{Shared, lock};

/// Why a checkpoint or a commit could not be done. Nothing is lost: the log still has it all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The repository, its staging directory or its store.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The tree can't be read.
    #[error("The metadata tree can't be read")]
    Look(#[from] LookError),
    /// The tree can't be written.
    #[error("The metadata tree can't be changed")]
    Tree(#[from] TreeError),
    /// The log can't be read.
    #[error("The log can't be read back")]
    Log(#[from] LogError),
    /// The chain of plugins.
    #[error("The chain of plugins failed")]
    Host(#[from] HostError),
    /// The manifest can't be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An extent wants more than its chunk has.
    #[error("Chunk {chunk} is shorter than an extent that names it")]
    ShortChunk {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Another writer committed.
    #[error(
        "Another writer has committed head {sequence} of this volume: live is read-only now, and what is not in the store is kept \
         in the state directory; unmount, then `axiomfs recover` puts it into a snapshot"
    )]
    Fenced {
        /// Number of the other's head.
        sequence: u64,
    },
    /// The system gave no random bytes.
    #[error("The system gave no random bytes")]
    Entropy,
    /// The mount is read-only.
    #[error("The mount is read-only")]
    ReadOnly,
}

/// What checkpoints carry on from one to the next. One thread owns it.
pub(crate) struct Checkpointer {
    /// How far checkpoints and commits are.
    pub ledger: SharedLedger,
    /// What is known of files with clear chunks.
    pub sealing: Sealing,
    /// The newest commit asked for of which the last checkpoint has everything.
    pub asked: u64,
    /// The last one failed.
    pub failed: bool,
}

/// Changes of a tree: each key with its new value, or with none.
pub(crate) type Edits = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Checkpointer {
    /// Goes on from what the ledger says.
    pub fn new(ledger: SharedLedger) -> Self {
        Self { ledger, sealing: Sealing::default(), asked: 0, failed: false }
    }

    /// Whether what was written last may be frozen for the next checkpoint. Where they fail there is a bound: then changes wait. What
    /// snapshots have frozen has one of its own.
    pub fn may_freeze(&self, state: &State) -> bool {
        state.frozen.len() < if self.failed { FROZEN_MAX } else { FROZEN_SNAPSHOT_MAX }
    }

    /// Makes trees of all frozen layers, makes them durable here, and frees the log behind them. False if there are none.
    ///
    /// # Errors
    /// [`CheckpointError`]; everything then is as before and may be tried again.
    pub fn checkpoint(&mut self, shared: &Shared) -> Result<bool, CheckpointError> {
        let mut frozen = Frozen::of(&shared.state());
        if frozen.layers.is_empty() {
            return Ok(false);
        }
        shared.fault("checkpoint.frozen");
        let last = lock(&self.ledger).newest.clone();
        let mut root = last.root;
        let mut roots = Vec::with_capacity(frozen.layers.len());
        let mut table = (*last.table).clone();
        let mut next_ino = last.next_ino;
        let mut changed = false;
        let mut waited_for = false;
        while let Some(layer) = frozen.layers.get(roots.len()).cloned() {
            let applied = apply_layer(shared, root, &layer, &mut self.sealing)?;
            root = applied.root;
            changed |= applied.changed || !layer.snapshot_edits().is_empty();
            roots.push(root);
            change_table(&mut table, &layer, root);
            next_ino = next_ino.max(layer.max_ino + 1);
            if roots.len() == frozen.layers.len()
                && !waited_for
                && let Some(asked) = shared.work.commit_waits()
            {
                // What came meanwhile goes with this checkpoint: else a second one would be waited for.
                waited_for = true;
                let mut state = shared.state_mut();
                if self.may_freeze(&state) {
                    (frozen, self.asked) = (Frozen::with_active(&mut state), asked);
                }
            }
        }
        let Frozen { layers, first, next_ordinal } = frozen;
        let Some(newest) = layers.last() else { return Ok(false) };
        shared.fault("checkpoint.ingested");
        let table = Arc::new(table);
        let snapshots_root = if table == last.table { last.snapshots_root } else { write_table(shared, &table)? };
        shared.repository.flush()?;
        shared.fault("checkpoint.packs-synced");

        let made = Made {
            number: last.number + 1,
            root,
            snapshots_root,
            table,
            next_ino,
            next_ordinal,
            audit: audit::last_hash(shared, &layers).unwrap_or(last.audit),
            audits: last.audits + layers.iter().map(|layer| layer.audits().len()).sum::<usize>(),
            data_bytes: last.data_bytes + layers.iter().map(|layer| layer.data_bytes()).sum::<u64>(),
            upto: shared.repository.mark()?,
        };
        let first_segment = shared.state().first_needed_segment(layers.len());
        {
            let mut ledger = lock(&self.ledger);
            ledger.checkpointed(shared, made, changed, newest.last_op, first_segment)?;
            shared.fault("checkpoint.manifest-written");
            // Before a commit can drop what only the tree before it had.
            switch(shared, root, &roots, first, layers.len());
        }
        self.sealing.done();
        if let Some(log) = &shared.log {
            log.release_before(first_segment)?;
        }
        shared.made_room();
        Ok(true)
    }
}

/// From now on reads see the trees in the layers' place.
fn switch(shared: &Shared, root: Option<Root>, roots: &[Option<Root>], first: u64, count: usize) {
    let old: Vec<Arc<Layer>>;
    {
        let mut state = shared.state_mut();
        state.base = root;
        old = state.frozen.drain(..count).collect();
        state.first_layer = first + count as u64;
        for snapshot in state.snapshots.values_mut() {
            if let SnapshotTree::Layers(id) = snapshot.tree
                && let Some(root) = id.checked_sub(first).and_then(|n| roots.get(n as usize))
            {
                snapshot.tree = SnapshotTree::Root(*root);
            }
        }
    }
    // Freed outside the lock: a layer may hold a hundred thousand nodes.
    drop(old);
}

/// The frozen layers, and what the state says of them at that moment.
struct Frozen {
    layers: Vec<Arc<Layer>>,
    /// Number of the first of them.
    first: u64,
    next_ordinal: u32,
}

impl Frozen {
    fn of(state: &State) -> Self {
        Self { layers: state.frozen.clone(), first: state.first_layer, next_ordinal: state.next_ordinal }
    }

    /// The same after freezing the active layer, if there is anything in it.
    fn with_active(state: &mut State) -> Self {
        if !state.active.is_empty() {
            state.freeze();
        }
        Self::of(state)
    }
}

fn change_table(table: &mut BTreeMap<String, SnapshotRecord>, layer: &Layer, root: Option<Root>) {
    for edit in layer.snapshot_edits() {
        match edit {
            Edit::Snapshot { ordinal, created, name } => {
                let created_ns = created.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(created.nanos));
                table.insert(name.to_string(), SnapshotRecord { ordinal: Ordinal(*ordinal), root, created_ns });
            }
            Edit::SnapshotRename { ordinal, name } => {
                let old = table.iter().find(|(_, r)| r.ordinal.0 == *ordinal).map(|(name, _)| name.clone());
                if let Some(record) = old.and_then(|old| table.remove(&old)) {
                    table.insert(name.to_string(), record);
                }
            }
            Edit::SnapshotDelete(ordinal) => table.retain(|_, record| record.ordinal.0 != *ordinal),
            _ => {}
        }
    }
}

/// A tree of `table`; its nodes are staged.
pub(crate) fn write_table(
    shared: &Shared,
    table: &BTreeMap<String, SnapshotRecord>,
) -> Result<Option<Root>, CheckpointError> {
    let edits = table.iter().map(|(name, record)| (name.as_bytes().to_vec(), Some(record.encode())));
    let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
    tree::apply::<_, _, CheckpointError>(&nodes, &mut Sink(shared), None, edits)
}

/// Puts new nodes of a tree into packs.
pub(crate) struct Sink<'a>(pub &'a Shared);

impl tree::NodeSink for Sink<'_> {
    type Error = RepositoryError;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, RepositoryError> {
        self.0.repository.add_node(bytes)
    }
}

/// What a layer made of a tree.
struct Applied {
    root: Option<Root>,
    /// Whether it has more than new audit records.
    changed: bool,
}

/// The tree with all of `layer` in it.
fn apply_layer(
    shared: &Shared,
    base: Option<Root>,
    layer: &Arc<Layer>,
    sealing: &mut Sealing,
) -> Result<Applied, CheckpointError> {
    let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
    let own = [layer.clone()];
    let mut ingest = Ingest {
        shared,
        view: View::of(base, &own, None, nodes),
        below: View::of(base, &[], None, nodes),
        buffer: Vec::with_capacity(4 * shared.chunker.sizes().max),
        paths: Paths::default(),
        away: false,
    };
    let mut pass = sealing.begin(&mut ingest, base, layer)?;
    let mut inos: Vec<u64> = layer.nodes().map(|(ino, _)| ino).chain(pass.left_alone(layer)).collect();
    inos.sort_unstable();
    let mut tree = Growing::new(shared, base, inos.len() * 4);
    let mut orphans: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    for ino in layer.orphans() {
        orphans.insert(record::orphan_key(ino), Some(Vec::new()));
    }
    for &ino in &inos {
        if let Some(NodeDelta { stand: Stand::Gone, .. }) = layer.node(ino) {
            orphans.insert(record::orphan_key(ino), None);
            pass.gone(ino);
        }
    }
    let untouched = NodeDelta::default();
    for ino in inos {
        let delta = layer.node(ino).unwrap_or(&untouched);
        match delta.stand {
            Stand::Gone => tree.remove_all(ino)?,
            _ => node_edits(&mut ingest, base, nodes, ino, delta, &mut pass, &mut tree)?,
        }
        tree.apply_if_many()?;
    }
    // These lists stand under inode 0, before everything else, in the order of their kinds.
    let lists: Edits = orphans.into_iter().chain(pass.end(shared, sealing)).collect();
    let listed = !lists.is_empty();
    let (root, changed) = tree.end(lists.into_iter().chain(audit::tree_edits(layer)))?;
    Ok(Applied { root, changed: listed || changed })
}

/// Changes in the tree what one inode's delta does, in the order of keys.
fn node_edits(
    ingest: &mut Ingest<'_>,
    base: Option<Root>,
    nodes: Nodes<'_>,
    ino: u64,
    delta: &NodeDelta,
    pass: &mut Pass,
    tree: &mut Growing<'_>,
) -> Result<(), CheckpointError> {
    let edits = tree.edits();
    if let Stand::Put(inode) = &delta.stand {
        let mut value = Vec::with_capacity(64);
        inode.encode(&mut value);
        edits.push((record::inode_key(ino), Some(value)));
    }
    if let Some(entries) = &delta.entries {
        let from = edits.len();
        for (&seq, slot) in &entries.by_seq {
            let (name, value) = match slot {
                Slot::Put(entry) | Slot::Over(entry) => {
                    let mut value = Vec::with_capacity(entry.name.len() + 8);
                    entry.encode(&mut value);
                    (&entry.name, Some(value))
                }
                Slot::Removed(name) => (name, None),
            };
            edits.push((record::name_key(ino, name, seq), value.as_ref().map(|_| Vec::new())));
            edits.push((record::entry_key(ino, seq), value));
        }
        edits[from..].sort_unstable_by(|a, b| a.0.cmp(&b.0));
    }
    if let Some(xattrs) = &delta.xattrs {
        for (name, value) in xattrs.iter() {
            let value = value.as_ref().map(|v| xattr_value(ingest, ino, v)).transpose()?;
            edits.push((record::xattr_key(ino, name), value));
        }
    }
    if delta.extents.is_some() || pass.leaves(ino) {
        let Some(inode) = ingest.view.inode(ino)? else { return Ok(()) };
        let runs = pass.file(ingest, ino, &inode, delta.extents.as_deref())?;
        put_extents(if delta.fresh { None } else { base }, nodes, ino, inode.size, &runs, tree)?;
    }
    Ok(())
}

fn xattr_value(ingest: &mut Ingest<'_>, ino: u64, value: &Arc<[u8]>) -> Result<Vec<u8>, CheckpointError> {
    let xattr = if value.len() <= record::XATTR_INLINE_MAX {
        Xattr::Inline(value.clone())
    } else {
        let inode: Inode = ingest.view.inode(ino)?.ok_or(CheckpointError::ReadOnly)?;
        // Attributes are sealed wherever their file is.
        let class = FrameClass { kind: FrameKind::Data, ..ingest.class(ino, &inode)? };
        Xattr::Chunk { id: ingest.store(&class, Label::NONE, value)?, len: value.len() as u32 }
    };
    let mut out = Vec::with_capacity(value.len().min(record::XATTR_INLINE_MAX) + 1);
    xattr.encode(&mut out);
    Ok(out)
}

/// Extent records for `runs`, and the end or the trimming of those they cover.
fn put_extents(
    base: Option<Root>,
    nodes: Nodes<'_>,
    ino: u64,
    size: u64,
    runs: &[Run],
    tree: &mut Growing<'_>,
) -> Result<(), CheckpointError> {
    let old = |offset: u64| {
        let (from, to) = (record::extent_key(ino, offset), record::extent_key(ino, u64::MAX));
        let found = tree::range(&nodes, base, Bound::Excluded(&from), Bound::Included(&to));
        found.map(|item| {
            let (key, value) = item?;
            Ok::<_, CheckpointError>(extent_run(&key, &value)?)
        })
    };
    extent_edits(runs, size, old, |end, run| {
        let value = run.map(|run| {
            let mut value = Vec::with_capacity(48);
            record_of(&run).encode(&mut value);
            value
        });
        tree.apply_if_many()?;
        tree.edits().push((record::extent_key(ino, end), value));
        Ok(())
    })
}

fn record_of(run: &Run) -> record::Extent {
    let source = match &run.source {
        RunSource::Inline { bytes, skip } => {
            let skip = *skip as usize;
            record::Source::Inline(Arc::from(&bytes[skip..skip + run.len as usize]))
        }
        RunSource::Chunk { id, skip, clear } => record::Source::Chunk { id: *id, skip: *skip, clear: *clear },
        RunSource::Log(_) | RunSource::Hole => {
            unreachable!("ingest made chunks of what the log held, and holes aren't stored")
        }
    };
    record::Extent { len: run.len, source }
}
