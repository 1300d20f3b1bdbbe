//! Reading bytes of files.

use axiomfs_repository::Bytes;
use axiomfs_repository::ids::ChunkId;

use crate::extent_map::{Run, RunSource};
use crate::log::LogError;
use crate::types::{Access, FileKind, FsError, FsResult, Handle, NodeId, Seek};
use crate::view::View;
use crate::volume::Volume;

/// Most bytes one `read` gives.
const READ_MAX: usize = 1 << 20;
/// Runs of a file that are looked at in one go.
pub(crate) const RUNS_AT_A_TIME: usize = 1024;
/// How often who may not wait looks: a file may have millions of runs, and nothing else is answered meanwhile.
const SHORT_SEEK: usize = 16;

impl Volume {
    /// Appends up to `size` bytes from `offset` to `out`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `IsDirectory`, `Stale`, `Io` naming what can't be read, `TimedOut`.
    pub fn read(
        &self,
        access: Access,
        node: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut Vec<u8>,
        size: usize,
    ) -> FsResult<()> {
        let size = size.min(READ_MAX) as u64;
        let start = out.len();
        // A checkpoint may free the log's segment between the look and the read; the next look then finds the chunk.
        for _ in 0..8 {
            let runs = self.shared.look(access, node, |view| {
                let inode = view.inode(node.ino)?.ok_or(FsError::Stale)?;
                match inode.kind {
                    FileKind::File => {}
                    FileKind::Directory => return Err(FsError::IsDirectory.into()),
                    _ => return Err(FsError::Invalid.into()),
                }
                Ok(view.runs(node.ino, offset, offset.saturating_add(size).min(inode.size))?)
            })?;
            out.truncate(start);
            if self.copy_runs(access, &runs, out)? {
                let stored = runs.iter().any(|r| matches!(r.source, RunSource::Chunk { .. }));
                if access == Access::Cached || stored {
                    self.read_ahead(node, handle, offset, (out.len() - start) as u64);
                }
                if stored && offset == 0 {
                    self.shared.ahead.begun(node);
                }
                return Ok(());
            }
        }
        Err(FsError::Io("The log's segments were freed while they were read, again and again".into()))
    }

    /// False if a log segment was freed meanwhile.
    fn copy_runs(&self, access: Access, runs: &[Run], out: &mut Vec<u8>) -> FsResult<bool> {
        for run in runs {
            let len = run.len as usize;
            match &run.source {
                RunSource::Hole => out.resize(out.len() + len, 0),
                RunSource::Inline { bytes, skip } => {
                    let skip = *skip as usize;
                    out.extend_from_slice(slice(bytes, skip, len, "Inline data")?);
                }
                RunSource::Chunk { id, skip, .. } => {
                    let chunk = self.chunk(access, id)?;
                    let object = format_args!("Chunk {id}").to_string();
                    out.extend_from_slice(slice(&chunk, *skip as usize, len, &object)?);
                }
                RunSource::Log(data) => {
                    let Some(log) = &self.shared.log else { return Err(FsError::Stale) };
                    let at = out.len();
                    out.resize(at + len, 0);
                    match log.read(*data, &mut out[at..]) {
                        Ok(()) => {}
                        Err(LogError::Released { .. }) => return Ok(false),
                        Err(e) => {
                            self.shared.events.add("error", e.to_string());
                            return Err(FsError::Io(e.to_string()));
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    /// A chunk's bytes.
    pub(crate) fn chunk(&self, access: Access, id: &ChunkId) -> FsResult<Bytes> {
        let repository = &self.shared.repository;
        match access {
            Access::Cached => repository.chunk_cached(id).ok_or(FsError::WouldBlock),
            Access::Here => match repository.read_chunk_here(id) {
                Ok(found) => found.ok_or(FsError::WouldBlock),
                Err(error) => Err(self.shared.report(&error)),
            },
            Access::Wait | Access::Since(_) => {
                let _waiting = repository.foreground();
                repository.read_chunk(id).map_err(|e| self.shared.report(&e))
            }
        }
    }

    fn read_ahead(&self, node: NodeId, handle: Handle, offset: u64, len: u64) {
        let window = self.shared.ahead_window();
        if let Some((from, to)) = self.shared.handles.note_read(handle, offset, len, window) {
            self.shared.ahead.ask(node, from, to);
        }
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `Range` past the end or where only a hole follows; `Stale`; or the tree can't be read.
    pub fn seek(&self, access: Access, node: NodeId, offset: u64, what: Seek) -> FsResult<u64> {
        let size = self.getattr(access, node)?.size;
        if offset >= size {
            return Err(FsError::Range);
        }
        let (mut at, mut looks) = (offset, 0);
        while at < size {
            if access == Access::Cached && looks == SHORT_SEEK {
                return Err(FsError::WouldBlock);
            }
            let look = |view: &View<'_>| Ok(view.first_runs(node.ino, at, size, RUNS_AT_A_TIME)?);
            let runs = self.shared.look(access, node, look)?;
            let wanted = |run: &&Run| (run.source == RunSource::Hole) == (what == Seek::Hole);
            if let Some(run) = runs.iter().find(wanted) {
                return Ok(run.offset);
            }
            (at, looks) = (runs.last().map_or(size, Run::end), looks + 1);
        }
        if what == Seek::Hole { Ok(size) } else { Err(FsError::Range) }
    }
}

fn slice<'a>(bytes: &'a [u8], skip: usize, len: usize, object: &str) -> FsResult<&'a [u8]> {
    bytes.get(skip..skip + len).ok_or_else(|| {
        FsError::Io(format!("{object} has {} bytes, an extent wants {skip}..{}", bytes.len(), skip + len))
    })
}
