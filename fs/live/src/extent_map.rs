//! What a layer says of a file's bytes: disjoint runs, each with its source; between them the layers below show through.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use axiomfs_repository::ids::ChunkId;

use crate::log::DataRef;

/// Where the bytes of a run are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunSource {
    /// In the write-ahead log.
    Log(DataRef),
    /// In a chunk, from `skip`.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// First byte within it.
        skip: u32,
        /// Whether it is one of clear data.
        clear: bool,
    },
    /// Here, from `skip`.
    Inline {
        /// The bytes.
        bytes: Arc<[u8]>,
        /// First byte of them.
        skip: u32,
    },
    /// Nowhere: zeros.
    Hole,
}

impl RunSource {
    /// The source of the bytes from `by` on.
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Log(r) => Self::Log(DataRef { start: r.start + by as u32, len: r.len - by as u32, ..*r }),
            Self::Chunk { id, skip, clear } => Self::Chunk { id: *id, skip: skip + by as u32, clear: *clear },
            Self::Inline { bytes, skip } => Self::Inline { bytes: bytes.clone(), skip: skip + by as u32 },
            Self::Hole => Self::Hole,
        }
    }

    /// The same source, of a run shortened to `len`.
    fn shortened(&self, len: u64) -> Self {
        match self {
            Self::Log(r) => Self::Log(DataRef { len: len as u32, ..*r }),
            other => other.clone(),
        }
    }
}

/// A run of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its first byte's offset in the file.
    pub offset: u64,
    /// Its length, not 0.
    pub len: u64,
    /// Where the bytes are.
    pub source: RunSource,
}

impl Run {
    /// Offset after its last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of it within `from..to`, which must overlap it.
    pub fn clipped(&self, from: u64, to: u64) -> Self {
        let start = self.offset.max(from);
        let end = self.end().min(to);
        let source = if start > self.offset { self.source.advanced(start - self.offset) } else { self.source.clone() };
        Self { offset: start, len: end - start, source: source.shortened(end - start) }
    }
}

/// Disjoint runs in order.
#[derive(Debug, Clone, Default)]
pub struct ExtentMap {
    runs: BTreeMap<u64, (u64, RunSource)>,
}

impl ExtentMap {
    /// Lays `run` over what is there.
    pub fn insert(&mut self, run: Run) {
        if run.len == 0 {
            return;
        }
        let end = run.end();
        let mut overlapped: Vec<u64> = Vec::new();
        if let Some((&start, (len, _))) = self.runs.range(..run.offset).next_back()
            && start + len > run.offset
        {
            overlapped.push(start);
        }
        overlapped.extend(self.runs.range(run.offset..end).map(|(&start, _)| start));
        for start in overlapped {
            let Some((len, source)) = self.runs.remove(&start) else { continue };
            let old = Run { offset: start, len, source };
            if start < run.offset {
                self.put(old.clipped(start, run.offset));
            }
            if old.end() > end {
                self.put(old.clipped(end, old.end()));
            }
        }
        self.put(run);
    }

    fn put(&mut self, run: Run) {
        self.runs.insert(run.offset, (run.len, run.source));
    }

    /// The runs that overlap `from..to`, clipped to it, in order.
    pub fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = Run> + '_ {
        let first = self
            .runs
            .range(..from)
            .next_back()
            .filter(move |(start, (len, _))| **start + len > from)
            .map(|(&start, (len, source))| (start, *len, source));
        let rest = if from < to { Some(self.runs.range((Bound::Included(from), Bound::Excluded(to)))) } else { None };
        first
            .into_iter()
            .filter(move |_| from < to)
            .chain(rest.into_iter().flatten().map(|(&start, (len, source))| (start, *len, source)))
            .map(move |(offset, len, source)| Run { offset, len, source: source.clone() }.clipped(from, to))
    }

    /// All runs in order.
    pub fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(&offset, (len, source))| Run { offset, len: *len, source: source.clone() })
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log_run(offset: u64, len: u64, record: u64) -> Run {
        let source = RunSource::Log(DataRef { segment: 1, offset: record, start: 0, len: len as u32 });
        Run { offset, len, source }
    }

    /// What byte `at` shows: the record it came from and which byte of it; the naive oracle keeps one such per byte.
    fn byte_of(run: &Run, at: u64) -> Option<(u64, u64)> {
        match &run.source {
            RunSource::Log(r) => Some((r.offset, u64::from(r.start) + (at - run.offset))),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn shows_for_every_byte_what_was_laid_last(ops in prop::collection::vec((0u64..200, 1u64..60, any::<bool>()), 1..40),
                                                   window in (0u64..260, 0u64..260)) {
            let mut map = ExtentMap::default();
            let mut bytes: Vec<Option<Option<(u64, u64)>>> = vec![None; 300];
            for (n, (offset, len, hole)) in ops.iter().copied().enumerate() {
                let run = if hole { Run { offset, len, source: RunSource::Hole } } else { log_run(offset, len, n as u64) };
                map.insert(run);
                for i in 0..len {
                    bytes[(offset + i) as usize] = Some((!hole).then_some((n as u64, i)));
                }
            }
            let (from, to) = window;
            let mut seen = vec![None; 300];
            let mut last = from;
            for run in map.overlapping(from, to) {
                prop_assert!(run.offset >= last && run.end() <= to && run.len > 0);
                if let RunSource::Log(r) = &run.source { prop_assert_eq!(u64::from(r.len), run.len); }
                last = run.end();
                for at in run.offset..run.end() { seen[at as usize] = Some(byte_of(&run, at)); }
            }
            for at in 0..300u64 {
                let expected = if at >= from && at < to { bytes[at as usize] } else { None };
                prop_assert_eq!(seen[at as usize], expected, "byte {}", at);
            }
        }
    }
}
