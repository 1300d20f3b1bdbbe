//! Where the bytes of a file are, for people who ask.

use axiomfs_repository::ids::ChunkId;

use crate::extent_map::RunSource;
use crate::types::{Access, FileKind, FsError, FsResult, NodeId};
use crate::volume::Volume;

/// Bytes of a file that are looked at in one go.
const WINDOW: u64 = 64 << 20;

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
            let to = at.saturating_add(WINDOW).min(attr.size);
            for run in self.shared.look(access, node, |view| Ok(view.runs(node.ino, at, to)?))? {
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
            at = to;
        }
        Ok(layout)
    }
}
