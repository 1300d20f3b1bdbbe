//! Where the bytes of a file are, for people who ask.

use axiomfs_repository::ids::ChunkId;

use crate::extent_map::{Run, RunSource};
use crate::ops::read::RUNS_AT_A_TIME;
use crate::types::{Access, FileKind, FsError, FsResult, NodeId};
use crate::view::View;
use crate::volume::Volume;

/// Where a file's bytes are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that are in the log so far.
    pub in_log: u64,
    /// Bytes that stand in its record.
    pub inline: u64,
    /// Bytes of holes.
    pub holes: u64,
    /// Chunks in the file's order, with the bytes of the file that each has; equal neighbours are one.
    pub chunks: Vec<(ChunkId, u64)>,
}

impl Volume {
    /// Where the bytes of the file `node` are.
    ///
    /// # Errors
    /// `IsDirectory`; `Invalid` for what has no bytes; `Stale`; or the tree can't be read.
    pub fn layout(&self, access: Access, node: NodeId) -> FsResult<Layout> {
        let attr = self.getattr(access, node)?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        let mut layout = Layout { size: attr.size, ..Layout::default() };
        let mut at = 0;
        while at < attr.size {
            let look = |view: &View<'_>| Ok(view.first_runs(node.ino, at, attr.size, RUNS_AT_A_TIME)?);
            let runs = self.shared.look(access, node, look)?;
            at = runs.last().map_or(attr.size, Run::end);
            for run in runs {
                match run.source {
                    RunSource::Log(_) => layout.in_log += run.len,
                    RunSource::Inline { .. } => layout.inline += run.len,
                    RunSource::Hole => layout.holes += run.len,
                    RunSource::Chunk { id, .. } => match layout.chunks.last_mut() {
                        Some((last, len)) if *last == id => *len += run.len,
                        _ => layout.chunks.push((id, run.len)),
                    },
                }
            }
        }
        Ok(layout)
    }
}
