//! Operations that change bytes of files.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attributes::{FILE_MAX, kill_set_ids, resize};
use super::cut::allocated;
use super::live_only;
use super::xattrs::drop_capabilities;
use crate::change::{Change, Need, OpResult};
use crate::edit::Edit;
use crate::extent_map::{Run, RunSource};
use crate::ingest::Paths;
use crate::types::{Access, Caller, FallocMode, FileKind, FsError, FsResult, Handle, NodeId};
use crate::versions::Place;
use crate::volume::Volume;

/// Most bytes of one log record's data.
const RECORD_DATA: usize = 1 << 20;
/// Most runs that one `copy_file_range` shares in one record.
const SHARED_RUNS: usize = 512;
/// Bytes of the source that are looked at for it.
const COPY_WINDOW: u64 = 64 << 20;
/// Most bytes of inline pieces in it: they stand in the record themselves.
const SHARED_INLINE: u64 = 64 << 10;

impl Volume {
    /// Opens a file; `truncate` cuts it to nothing.
    ///
    /// # Errors
    /// `IsDirectory`, `ReadOnly`, `Stale`, `NoSpace`, or the tree can't be read.
    pub fn open(&self, access: Access, node: NodeId, write: bool, truncate: bool) -> FsResult<Handle> {
        if write || truncate {
            live_only(node)?;
        }
        let kind = self.getattr(access, node)?.kind;
        if kind == FileKind::Directory && write {
            return Err(FsError::IsDirectory);
        }
        let counted = if truncate { self.count_cut(access, node, 0..u64::MAX)? } else { None };
        self.note_open(node)?;
        let handle = self.shared.handles.open(node);
        if truncate {
            let cut = self.shared.change(access, Need::Room, None, |change, _| {
                let now = change.now;
                resize(change, node.ino, 0, counted.as_ref())?;
                let inode = change.inode_mut(node.ino)?;
                inode.ctime = now;
                Ok(())
            });
            if let Err(e) = cut {
                self.release(node, handle);
                return Err(e);
            }
        }
        Ok(handle)
    }

    /// Counts who has a node open.
    fn note_open(&self, node: NodeId) -> FsResult<()> {
        if node.is_in_snapshot() {
            return Ok(());
        }
        let mut state = self.shared.state_mut();
        match &mut state.versions {
            // A new state may have come since its attributes were asked for.
            Some(versions) if versions.place(node) == Place::Gone => return Err(FsError::Stale),
            Some(versions) => versions.open(node),
            None => *state.opens.entry(node.ino).or_insert(0) += 1,
        }
        Ok(())
    }

    /// Closes a file. A file without a name goes with its last handle. Never waits. Tells whether an opening moved the time of last
    /// access and nothing was read of the file since, where nobody was told so yet.
    pub fn release(&self, _node: NodeId, handle: Handle) -> bool {
        let Some((node, unread)) = self.shared.handles.close(handle) else { return false };
        if node.is_in_snapshot() {
            return false;
        }
        let last = {
            let mut state = self.shared.state_mut();
            if let Some(versions) = &mut state.versions {
                versions.close(node);
                return false;
            }
            match state.opens.get_mut(&node.ino) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => {
                    state.opens.remove(&node.ino);
                    true
                }
            }
        };
        if last && self.shared.reclaim(Access::Cached, node.ino).is_err() {
            crate::volume::lock(&self.shared.reap).push(node.ino);
        }
        unread
    }

    /// Writes `data` at `offset`, or at the end. It is in the log when this returns.
    ///
    /// # Errors
    /// `FileTooLarge`, `NoSpace`, `Stale`, `ReadOnly`, or the tree or the log can't be used.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &self,
        access: Access,
        caller: Caller,
        node: NodeId,
        _handle: Handle,
        offset: u64,
        data: &[u8],
        append: bool,
        kill_suid: bool,
    ) -> FsResult<u32> {
        let ino = live_only(node)?;
        let mut done = 0;
        for piece in data.chunks(RECORD_DATA) {
            let result = self.write_piece(access, caller, ino, offset + done as u64, piece, append, kill_suid);
            match result {
                Ok(()) => done += piece.len(),
                Err(FsError::WouldBlock) if done > 0 => break,
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done as u32)
    }

    #[allow(clippy::too_many_arguments)]
    fn write_piece(
        &self,
        access: Access,
        caller: Caller,
        ino: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        kill_suid: bool,
    ) -> FsResult<()> {
        let len = data.len() as u64;
        self.shared.change(access, Need::Room, Some(data), |change, _| {
            let size = change.inode(ino)?.size;
            drop_capabilities(change, ino)?;
            let offset = if append { size } else { offset };
            let end = offset.checked_add(len).filter(|&end| end <= FILE_MAX).ok_or(FsError::FileTooLarge)?;
            let there = allocated(change, ino, offset.min(size)..end.min(size), None)?;
            let now = change.now;
            let inode = change.inode_mut(ino)?;
            inode.size = inode.size.max(end);
            inode.allocated = inode.allocated + len - there;
            inode.mtime = now;
            inode.ctime = now;
            if kill_suid {
                kill_set_ids(inode, caller.gid == inode.gid);
            }
            change.edit(Edit::Data { ino, offset });
            Ok(())
        })
    }

    /// All that was written before is on this machine's disk when it returns; with `durability: remote`, in the store.
    ///
    /// # Errors
    /// The log or the store can't be written.
    pub fn fsync(&self, access: Access, _node: NodeId) -> FsResult<()> {
        let Some(log) = &self.shared.log else { return Ok(()) };
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        if let Some(e) = &self.shared.state().refused {
            return Err(e.clone());
        }
        log.sync().map_err(|e| FsError::Io(e.to_string()))?;
        if self.shared.options.durability_remote {
            self.sync_untold(self.shared.options.timeout)?;
        }
        Ok(())
    }

    /// Allocates, punches or zeroes a range.
    ///
    /// # Errors
    /// `Invalid`, `FileTooLarge`, `IsDirectory`, `NoSpace`, `ReadOnly`, or the tree can't be read.
    pub fn fallocate(
        &self,
        access: Access,
        _caller: Caller,
        node: NodeId,
        mode: FallocMode,
        offset: u64,
        len: u64,
    ) -> FsResult<()> {
        let ino = live_only(node)?;
        let end = offset.checked_add(len).filter(|&end| end <= FILE_MAX).ok_or(FsError::FileTooLarge)?;
        if len == 0 {
            return Err(FsError::Invalid);
        }
        let cuts = matches!(mode, FallocMode::PunchHole | FallocMode::ZeroRange | FallocMode::ZeroRangeKeepSize);
        let counted = if cuts { self.count_cut(access, node, offset..end)? } else { None };
        self.shared.change(access, Need::Room, None, |change, _| {
            let now = change.now;
            let inode = change.inode(ino)?;
            if inode.kind != FileKind::File {
                return Err(FsError::Invalid.into());
            }
            let size = inode.size;
            let cut = if cuts && offset < size {
                allocated(change, ino, offset..end.min(size), counted.as_ref())?
            } else {
                0
            };
            drop_capabilities(change, ino)?;
            if cuts && offset < size {
                change.edit(Edit::Map { ino, run: Run { offset, len, source: RunSource::Hole } });
                change.inode_mut(ino)?.allocated -= cut.min(change.inode(ino)?.allocated);
            }
            let inode = change.inode_mut(ino)?;
            if matches!(mode, FallocMode::Allocate | FallocMode::ZeroRange) {
                inode.size = inode.size.max(end);
            }
            inode.mtime = now;
            inode.ctime = now;
            Ok(())
        })
    }

    /// Copies bytes between files without reading what lies in chunks: both share them.
    ///
    /// # Errors
    /// `Invalid` for overlapping ranges of one file, `IsDirectory`, `NoSpace`, `ReadOnly`, or data can't be read.
    #[allow(clippy::too_many_arguments)]
    pub fn copy_range(
        &self,
        access: Access,
        caller: Caller,
        source: NodeId,
        source_offset: u64,
        target: NodeId,
        target_offset: u64,
        len: u64,
    ) -> FsResult<u64> {
        let ino = live_only(target)?;
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        let size = self.getattr(access, source)?.size;
        let len = len.min(size.saturating_sub(source_offset)).min(1 << 30);
        let overlaps = source_offset < target_offset + len && target_offset < source_offset + len;
        if source == target && overlaps && len > 0 {
            return Err(FsError::Invalid);
        }
        let exempt = self.is_exempt(access, ino)?;
        let mut done = 0;
        while done < len && !self.shared.stopped.load(Ordering::Relaxed) {
            let (from, to) = (source_offset + done..source_offset + len, target_offset + done);
            match self.copy_piece(access, caller, source, from, target, to, exempt) {
                Ok(0) => break,
                Ok(count) => done += count,
                // What is copied already is in the target: the caller has to hear of it, and meets the error with its next call.
                Err(error) if done > 0 => {
                    tracing::debug!(%error, done, "Copied a part");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Copies the first of `from`, by its chunks if they may be shared. How much that was, in bytes; 0 at the end of the source.
    #[allow(clippy::too_many_arguments)]
    fn copy_piece(
        &self,
        access: Access,
        caller: Caller,
        source: NodeId,
        from: Range<u64>,
        target: NodeId,
        to: u64,
        exempt: bool,
    ) -> FsResult<u64> {
        // Chunks are shared by files of one kind only: clear ones never come into a sealed file, nor the other way round.
        let is_shared = |run: &&Run| match run.source {
            RunSource::Log(_) => false,
            RunSource::Chunk { clear, .. } => clear == exempt,
            RunSource::Inline { .. } | RunSource::Hole => true,
        };
        let runs = self.shared.look(access, source, |view| {
            // As long as it is now: who cuts it meanwhile leaves nothing to copy, and no zeros.
            let size = view.inode(source.ino)?.map_or(0, |inode| inode.size);
            let end = from.end.min(size).min(from.start.saturating_add(COPY_WINDOW));
            Ok(view.first_runs(source.ino, from.start, end, SHARED_RUNS)?)
        })?;
        let mut inline = 0;
        let mut fits = |run: &&Run| {
            inline += if matches!(run.source, RunSource::Inline { .. }) { run.len } else { 0 };
            inline <= SHARED_INLINE
        };
        let shared: Vec<Run> = runs
            .iter()
            .take_while(|run| is_shared(run) && fits(run))
            .map(|run| Run { offset: to + (run.offset - from.start), ..run.clone() })
            .collect();
        if !shared.is_empty() {
            let count = shared.iter().map(|run| run.len).sum::<u64>();
            self.share(access, live_only(target)?, shared)?;
            return Ok(count);
        }
        let piece = runs.first().map_or(0, |run| run.len.min(RECORD_DATA as u64));
        let mut bytes = Vec::new();
        self.read(access, source, Handle(0), from.start, &mut bytes, piece as usize)?;
        if !bytes.is_empty() {
            self.write(access, caller, target, Handle(0), to, &bytes, false, false)?;
        }
        Ok(bytes.len() as u64)
    }

    /// Whether what comes into the file now is stored in clear.
    fn is_exempt(&self, access: Access, ino: u64) -> FsResult<bool> {
        let host = &self.shared.host;
        if !host.has_exemptions() {
            return Ok(false);
        }
        self.shared.look(access, NodeId::live(ino), |view| {
            let inode = view.inode(ino)?.ok_or(FsError::Stale)?;
            let (path, known) = Paths::default().of(view, ino, &inode)?;
            Ok(known && host.place(&path).1)
        })
    }

    fn share(&self, access: Access, ino: u64, runs: Vec<Run>) -> FsResult<()> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        let (from, to) = (first.offset, last.end());
        if to > FILE_MAX {
            return Err(FsError::FileTooLarge);
        }
        let runs: Arc<[Run]> = Arc::from(runs);
        self.shared.change(access, Need::Room, None, |change, _| share_runs(change, ino, from, to, &runs))
    }
}

fn share_runs(change: &mut Change<'_>, ino: u64, from: u64, to: u64, runs: &[Run]) -> OpResult<()> {
    let now = change.now;
    let size = change.inode(ino)?.size;
    drop_capabilities(change, ino)?;
    let there = if from < size { allocated(change, ino, from..to.min(size), None)? } else { 0 };
    let come: u64 = runs.iter().filter(|run| run.source != RunSource::Hole).map(|run| run.len).sum();
    let inode = change.inode_mut(ino)?;
    inode.size = inode.size.max(to);
    inode.allocated = (inode.allocated + come).saturating_sub(there);
    inode.mtime = now;
    inode.ctime = now;
    for run in runs {
        change.edit(Edit::Map { ino, run: run.clone() });
    }
    Ok(())
}
