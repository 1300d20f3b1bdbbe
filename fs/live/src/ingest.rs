//! From log to chunks: reads a file's new bytes from the log, cuts them, and puts the chunks into packs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::record::{INLINE_MAX, Inode};
use axiomfs_repository::{FrameClass, FrameKind, Label};

use crate::background::describe;
use crate::checkpoint::CheckpointError;
use crate::extent_map::{ExtentMap, Run, RunSource};
use crate::samples::{SAMPLED, ending};
use crate::types::{FileKind, ROOT_INO};
use crate::view::{LookError, View};
use crate::volume::Shared;

/// A rest of at most this many bytes at the end of what was stored is cut anew together with what is appended.
const REJOIN_SHORT: u64 = 128 << 10;
/// An append of at least this many bytes joins a longer rest.
const REJOIN_APPEND: u64 = 64 << 10;
/// Deepest directory whose path is looked up for routing.
const DEPTH_MAX: usize = 4096;
/// Directory paths remembered for routing.
const PATHS_MAX: usize = 10_000;

/// Turns the bytes that one layer brought into chunks.
pub(crate) struct Ingest<'a> {
    pub shared: &'a Shared,
    /// The tree with the layer on top.
    pub view: View<'a>,
    /// The tree without the layer.
    pub below: View<'a>,
    /// Buffer for cutting, kept between files.
    pub buffer: Vec<u8>,
    pub paths: Paths,
    /// The store did not answer: what can be done without it is.
    pub away: bool,
}

impl Ingest<'_> {
    /// The runs that replace what the tree has, in order: chunks, inline data and holes. With `reseal` clear chunks become
    /// sealed ones.
    pub fn file(
        &mut self,
        ino: u64,
        inode: &Inode,
        map: &ExtentMap,
        reseal: bool,
    ) -> Result<Vec<Run>, CheckpointError> {
        let is_new = |run: &Run| match run.source {
            RunSource::Log(_) => true,
            RunSource::Chunk { clear, .. } => clear && reseal,
            RunSource::Inline { .. } | RunSource::Hole => false,
        };
        let has_data = map.iter().any(|run| is_new(&run));
        if has_data
            && inode.size <= INLINE_MAX as u64
            && let Some(runs) = self.inline(ino, inode.size)?
        {
            return Ok(runs);
        }
        let class = if has_data { Some(self.sort(ino, inode)?) } else { None };
        let mut out = Vec::with_capacity(map.len());
        let mut span: Vec<Run> = Vec::new();
        for run in map.iter() {
            let joins = span.last().is_none_or(|last| last.end() == run.offset);
            let is_new = is_new(&run);
            if !(span.is_empty() || is_new && joins) {
                self.span(ino, map, &class, &std::mem::take(&mut span), &mut out)?;
            }
            if !is_new {
                out.push(run);
            } else if run.offset < inode.size {
                span.push(run.clipped(0, inode.size));
            }
        }
        if !span.is_empty() {
            self.span(ino, map, &class, &span, &mut out)?;
        }
        Ok(out)
    }

    /// A short file stands in the tree whole, unless a chunk of it can't be read.
    fn inline(&mut self, ino: u64, size: u64) -> Result<Option<Vec<Run>>, CheckpointError> {
        let mut bytes = Vec::with_capacity(size as usize);
        for run in self.view.runs(ino, 0, size)? {
            if !self.read_if_there(&run, &mut bytes)? {
                return Ok(None);
            }
        }
        let mut runs = Vec::new();
        if !bytes.is_empty() {
            runs.push(Run { offset: 0, len: size, source: RunSource::Inline { bytes: Arc::from(bytes), skip: 0 } });
        }
        let rest = u64::MAX - size;
        runs.push(Run { offset: size, len: rest, source: RunSource::Hole });
        Ok(Some(runs))
    }

    /// Reads a run that is there already, to go on from it. One bad chunk must keep nothing else from the store, and an outage is not
    /// waited for more than once: then this is false.
    fn read_if_there(&mut self, run: &Run, out: &mut Vec<u8>) -> Result<bool, CheckpointError> {
        if !matches!(run.source, RunSource::Chunk { .. }) {
            return self.read_run(run, out).map(|()| true);
        }
        if self.away {
            return Ok(false);
        }
        match self.read_run(run, out) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.away = matches!(&error, CheckpointError::Repository(error) if !error.is_damage());
                tracing::debug!("What is new is stored without what was before it: {}", describe(&error));
                Ok(false)
            }
        }
    }

    fn read_run(&self, run: &Run, out: &mut Vec<u8>) -> Result<(), CheckpointError> {
        let len = run.len as usize;
        match &run.source {
            RunSource::Hole => out.resize(out.len() + len, 0),
            RunSource::Inline { bytes, skip } => out.extend_from_slice(&bytes[*skip as usize..*skip as usize + len]),
            RunSource::Chunk { id, skip, .. } => {
                let chunk = self.shared.repository.read_chunk(id)?;
                let skip = *skip as usize;
                let part = chunk.get(skip..skip + len).ok_or(CheckpointError::ShortChunk { chunk: *id })?;
                out.extend_from_slice(part);
            }
            RunSource::Log(data) => {
                let log = self.shared.log.as_ref().ok_or(CheckpointError::ReadOnly)?;
                log.read_onto(*data, out)?;
            }
        }
        Ok(())
    }

    /// Cuts a run of new bytes. Where it continues a file, the last chunk before it is cut anew with it, so that the
    /// cuts are those of a file written in one go, unless that chunk can't be read.
    fn span(
        &mut self,
        ino: u64,
        map: &ExtentMap,
        class: &Option<(FrameClass, Label)>,
        span: &[Run],
        out: &mut Vec<Run>,
    ) -> Result<(), CheckpointError> {
        let (Some(first), Some(last), Some((class, label))) = (span.first(), span.last(), class) else { return Ok(()) };
        let max = self.shared.chunker.sizes().max;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut start = first.offset;
        if let Some(prefix) = self.unfinished(ino, first.offset, last.end() - first.offset)?
            && map.overlapping(prefix.offset, first.offset).next().is_none()
            && self.read_if_there(&prefix, &mut buffer)?
        {
            start = prefix.offset;
        }
        let mut rest = span.iter();
        let mut at = 0;
        loop {
            while buffer.len() - at < max
                && let Some(run) = rest.next()
            {
                if at > 0 && buffer.len() + run.len as usize > buffer.capacity() {
                    buffer.drain(..at);
                    at = 0;
                }
                self.read_run(run, &mut buffer)?;
            }
            let data = &buffer[at..];
            if data.is_empty() {
                break;
            }
            let len = self.shared.chunker.cut(data).clamp(1, data.len());
            let id = self.store(class, *label, &data[..len])?;
            let clear = class.kind == FrameKind::Clear;
            out.push(Run { offset: start, len: len as u64, source: RunSource::Chunk { id, skip: 0, clear } });
            start += len as u64;
            at += len;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Puts a chunk into a pack, unless it is known.
    pub fn store(&self, class: &FrameClass, label: Label, data: &[u8]) -> Result<ChunkId, CheckpointError> {
        let id = match class.kind {
            FrameKind::Clear => self.shared.repository.clear_id(data),
            FrameKind::Data | FrameKind::Metadata => self.shared.repository.data_id(data),
        };
        self.shared.repository.add_labelled(class, label, id, data)?;
        self.shared.ingested.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(id)
    }

    /// The run before `offset`, if the file ended there and its end was not a cut by content.
    fn unfinished(&self, ino: u64, offset: u64, append: u64) -> Result<Option<Run>, CheckpointError> {
        if offset == 0 {
            return Ok(None);
        }
        match self.below.inode(ino)? {
            Some(old) if old.kind == FileKind::File && old.size == offset => {}
            _ => return Ok(None),
        }
        let max = self.shared.chunker.sizes().max as u64;
        let runs = self.below.runs(ino, offset.saturating_sub(max), offset)?;
        Ok(runs.last().cloned().filter(|run| match &run.source {
            RunSource::Inline { .. } => true,
            RunSource::Chunk { skip: 0, .. } => {
                run.len <= REJOIN_SHORT || (append >= REJOIN_APPEND && run.len < max && run.offset + max > offset)
            }
            _ => false,
        }))
    }

    /// Which frame the file's chunks may share: by owner and route, and whether they are clear.
    pub fn class(&mut self, ino: u64, inode: &Inode) -> Result<FrameClass, CheckpointError> {
        let (path, known) = self.paths.of(&self.view, ino, inode)?;
        Ok(self.class_at(&path, known, inode))
    }

    /// The same, and what its chunks are counted under: the ending of its name. A large file is noted as one of that ending, and shares
    /// frames with those only.
    fn sort(&mut self, ino: u64, inode: &Inode) -> Result<(FrameClass, Label), CheckpointError> {
        let (path, known) = self.paths.of(&self.view, ino, inode)?;
        let label = ending(&path).map_or(Label::NONE, |ending| self.shared.repository.label(&ending));
        let mut class = self.class_at(&path, known, inode);
        if label != Label::NONE && inode.size >= SAMPLED {
            self.shared.samples.note(label, ino);
            class.sort = label;
        }
        Ok((class, label))
    }

    fn class_at(&self, path: &[u8], known: bool, inode: &Inode) -> FrameClass {
        let (route, exempt) = self.shared.host.place(path);
        let kind = if exempt && known { FrameKind::Clear } else { FrameKind::Data };
        FrameClass { owner: inode.uid, route, kind, sort: Label::NONE }
    }
}

/// Finds the paths of files, for their routes; remembers those of directories.
#[derive(Default)]
pub(crate) struct Paths(HashMap<u64, (Arc<[u8]>, bool)>);

impl Paths {
    /// Path of the newest name, from the root of live; of a file without that name, that of its directory. And whether it
    /// is the file's only one: not for a file with more links, of which the others are not known.
    pub fn of(&mut self, view: &View<'_>, ino: u64, inode: &Inode) -> Result<(Vec<u8>, bool), LookError> {
        let (dir, known) = self.directory(view, inode.parent)?;
        let mut path = dir.to_vec();
        let Some(entry) = view.entry_at(inode.parent, inode.parent_seq)?.filter(|entry| entry.ino == ino) else {
            return Ok((path, false));
        };
        path.push(b'/');
        path.extend_from_slice(&entry.name);
        Ok((path, known && inode.nlink == 1))
    }

    fn directory(&mut self, view: &View<'_>, dir: u64) -> Result<(Arc<[u8]>, bool), LookError> {
        if let Some(known) = self.0.get(&dir) {
            return Ok(known.clone());
        }
        let mut names: Vec<Arc<[u8]>> = Vec::new();
        let mut at = dir;
        while at != ROOT_INO && names.len() < DEPTH_MAX {
            let Some(inode) = view.inode(at)? else { break };
            let Some(entry) = view.entry_at(inode.parent, inode.parent_seq)?.filter(|entry| entry.ino == at) else {
                break;
            };
            names.push(entry.name);
            at = inode.parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        let found: (Arc<[u8]>, bool) = (Arc::from(path), at == ROOT_INO);
        if self.0.len() >= PATHS_MAX {
            self.0.clear();
        }
        self.0.insert(dir, found.clone());
        Ok(found)
    }
}
