//! Files that left a directory which is exempted from encryption: moved out, linked from outside, or the exemption was
//! taken back. Their clear chunks are stored anew, sealed, by the next checkpoints.
//!
//! A list in the tree names all files with clear chunks (`fs/doc/format-records.md`), so that those that left are found.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use axiomfs_repository::FrameKind;
use axiomfs_repository::record::{self, Inode};
use axiomfs_repository::tree::{self, Root};

use crate::background::describe;
use crate::checkpoint::CheckpointError;
use crate::extent_map::{ExtentMap, Run, RunSource};
use crate::ingest::Ingest;
use crate::layer::{Layer, Stand};
use crate::ops::read::RUNS_AT_A_TIME;
use crate::types::FileKind;
use crate::view::{LookError, Nodes};
use crate::volume::Shared;

/// Files, and extents of them, that one layer's checkpoint seals at most; the next goes on with the rest.
const FILES_MAX: usize = 16_384;
const RUNS_MAX: usize = 16_384;
/// Pause after a file could not be sealed, as when the store can't be reached.
const RETRY: Duration = Duration::from_secs(10);

/// What is carried from checkpoint to checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Sealing {
    /// Generation of the chains and routes under which all listed files were looked at.
    checked: Option<u64>,
    /// The same of the checkpoint under way.
    seen: Option<u64>,
    /// Files are left over.
    unfinished: bool,
    /// When to look again at the earliest.
    not_before: Option<Instant>,
}

impl Sealing {
    /// Whether files may have to be sealed although nothing changed in the tree: the routes did, or some are left over.
    pub fn is_due(&mut self, shared: &Shared, base: Option<Root>) -> bool {
        let now = shared.host.generation();
        if self.checked == Some(now) || self.not_before.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
        match is_any_listed(nodes, base) {
            Ok(false) => {
                self.checked = Some(now);
                false
            }
            Ok(true) => true,
            Err(error) => {
                tracing::debug!("The list of files with clear chunks can't be read: {}", describe(&error));
                self.not_before = Some(Instant::now() + RETRY);
                false
            }
        }
    }

    /// Looks for the files that `layer` or a change of the routes took out of their directory.
    pub fn begin(
        &mut self,
        ingest: &mut Ingest<'_>,
        base: Option<Root>,
        layer: &Layer,
    ) -> Result<Pass, CheckpointError> {
        let generation = ingest.shared.host.generation();
        let nodes = ingest.below.nodes;
        let mut pass = Pass { budget: RUNS_MAX, listed: is_any_listed(nodes, base)?, ..Pass::default() };
        let all = self.checked != Some(generation) || has_moved_directory(ingest, layer, pass.listed)?;
        self.seen = Some(generation);
        if !pass.listed {
            return Ok(pass);
        }
        if all {
            let (from, to) = list();
            for item in tree::range(&nodes, base, Bound::Included(&from), Bound::Excluded(&to)) {
                if let Some(ino) = record::trailing_number(&item?.0) {
                    pass.look(ingest, ino)?;
                }
            }
        } else {
            for (ino, delta) in layer.nodes() {
                let is_file = matches!(&delta.stand, Stand::Put(inode) if inode.kind == FileKind::File);
                if is_file && !delta.fresh && tree::get(&nodes, base, &record::clear_key(ino))?.is_some() {
                    pass.look(ingest, ino)?;
                }
            }
        }
        Ok(pass)
    }

    /// The checkpoint is durable.
    pub fn done(&mut self) {
        self.checked = if std::mem::take(&mut self.unfinished) { None } else { self.seen };
    }
}

/// Start and end of the list's keys.
fn list() -> (Vec<u8>, Vec<u8>) {
    (record::key(0, record::KIND_CLEAR, &[]), record::key(0, record::KIND_CLEAR + 1, &[]))
}

fn is_any_listed(nodes: Nodes<'_>, base: Option<Root>) -> Result<bool, LookError> {
    let (from, to) = list();
    let first = tree::range(&nodes, base, Bound::Included(&from), Bound::Excluded(&to)).next();
    first.transpose().map(|item| item.is_some())
}

/// Whether a directory has another name or place than before.
fn has_moved_directory(ingest: &Ingest<'_>, layer: &Layer, listed: bool) -> Result<bool, LookError> {
    if !listed {
        return Ok(false);
    }
    for (ino, delta) in layer.nodes() {
        let Stand::Put(now) = &delta.stand else { continue };
        if now.kind != FileKind::Directory || delta.fresh {
            continue;
        }
        let before = ingest.below.inode(ino)?;
        if before.is_some_and(|before| (before.parent, before.parent_seq) != (now.parent, now.parent_seq)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What one layer's checkpoint does about clear chunks.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// Whether any file was on the list before.
    listed: bool,
    leaving: BTreeSet<u64>,
    /// Files that come onto the list, or go.
    marks: BTreeMap<u64, bool>,
    budget: usize,
    sealed: usize,
    unfinished: bool,
    failed: bool,
}

impl Pass {
    fn look(&mut self, ingest: &mut Ingest<'_>, ino: u64) -> Result<(), CheckpointError> {
        let Some(inode) = ingest.view.inode(ino)? else { return Ok(()) };
        // What has no name ends with its last handle; its bytes are moved nowhere.
        if inode.nlink == 0 || ingest.class(ino, &inode)?.kind == FrameKind::Clear {
            return Ok(());
        }
        if self.leaving.len() < FILES_MAX {
            self.leaving.insert(ino);
        } else {
            self.unfinished = true;
        }
        Ok(())
    }

    /// Files to seal that `layer` says nothing of.
    pub fn left_alone(&self, layer: &Layer) -> Vec<u64> {
        self.leaving.iter().copied().filter(|ino| layer.node(*ino).is_none()).collect()
    }

    /// Whether the file is to be sealed.
    pub fn leaves(&self, ino: u64) -> bool {
        self.leaving.contains(&ino)
    }

    /// A file is removed.
    pub fn gone(&mut self, ino: u64) {
        if self.listed {
            self.marks.insert(ino, false);
        }
    }

    /// The runs that replace what the tree has of a file, of which `delta` is new.
    pub fn file(
        &mut self,
        ingest: &mut Ingest<'_>,
        ino: u64,
        inode: &Inode,
        delta: Option<&ExtentMap>,
    ) -> Result<Vec<Run>, CheckpointError> {
        let delta = delta.cloned().unwrap_or_default();
        let brought = delta.iter().any(|run| is_clear(&run));
        let leaves =
            self.leaves(ino) || brought && inode.nlink > 0 && ingest.class(ino, inode)?.kind != FrameKind::Clear;
        if leaves {
            match self.seal(ingest, ino, inode, delta.clone()) {
                Ok(runs) => return Ok(runs),
                // Nothing else waits for a chunk that can't be read: the file stays on the list.
                Err(error) => {
                    let text = format!("Inode {ino} left an exempted directory and isn't sealed yet");
                    ingest.shared.events.add("error", format!("{text}: {}", describe(&error)));
                    self.failed = true;
                }
            }
        }
        let runs = ingest.file(ino, inode, &delta, false)?;
        if runs.iter().any(is_clear) {
            self.marks.insert(ino, true);
        }
        Ok(runs)
    }

    fn seal(
        &mut self,
        ingest: &mut Ingest<'_>,
        ino: u64,
        inode: &Inode,
        mut map: ExtentMap,
    ) -> Result<Vec<Run>, CheckpointError> {
        let (mut at, mut left) = (0, false);
        while at < inode.size && !left {
            let runs = ingest.view.first_runs(ino, at, inode.size, RUNS_AT_A_TIME)?;
            at = runs.last().map_or(inode.size, Run::end);
            for run in runs.into_iter().filter(is_clear) {
                left = self.budget == 0;
                if left {
                    break;
                }
                self.budget -= 1;
                map.insert(run);
            }
        }
        let runs = ingest.file(ino, inode, &map, true)?;
        self.unfinished |= left;
        if !left {
            // The routes may have changed meanwhile, so that it was cut into clear chunks again.
            let is_listed = runs.iter().any(is_clear);
            self.marks.insert(ino, is_listed);
            self.sealed += usize::from(!is_listed);
        }
        Ok(runs)
    }

    /// The changes of the list, in the order of keys.
    pub fn end(self, shared: &Shared, sealing: &mut Sealing) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        sealing.unfinished |= self.unfinished || self.failed;
        sealing.not_before = self.failed.then(|| Instant::now() + RETRY);
        if self.sealed > 0 {
            let text = format!("{} files that left an exempted directory are stored anew, sealed", self.sealed);
            shared.events.add("info", text);
        }
        let edit = |(ino, listed): (u64, bool)| (record::clear_key(ino), listed.then(Vec::new));
        self.marks.into_iter().map(edit).collect()
    }
}

fn is_clear(run: &Run) -> bool {
    matches!(run.source, RunSource::Chunk { clear: true, .. })
}
