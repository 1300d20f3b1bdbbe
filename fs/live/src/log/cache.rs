//! Records unsealed lately, so that many small reads of one long record unseal it once.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::format::Position;

/// Bound of the cache in bytes.
const BOUND: usize = 4 << 20;
/// What an entry costs beside its bytes.
const ENTRY: usize = 128;

/// Clear bytes of one record.
pub(super) struct Clear {
    bytes: Vec<u8>,
    data: Range<usize>,
}

impl Clear {
    /// `bytes` is a record with its header; its data stands at `data`.
    pub fn new(bytes: Vec<u8>, data: Range<usize>) -> Self {
        Self { bytes, data }
    }

    pub fn data(&self) -> &[u8] {
        &self.bytes[self.data.clone()]
    }

    /// Gives the buffer back.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

pub(super) struct ReadCache {
    inner: Mutex<Inner>,
    /// A buffer for records that aren't kept, so that reading them allocates nothing.
    buffer: Mutex<Vec<u8>>,
}

struct Inner {
    records: LruCache<Position, Arc<Clear>>,
    bytes: usize,
}

impl ReadCache {
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { records: LruCache::unbounded(), bytes: 0 }), buffer: Mutex::new(Vec::new()) }
    }

    pub fn get(&self, at: Position) -> Option<Arc<Clear>> {
        self.lock().records.get(&at).cloned()
    }

    pub fn put(&self, at: Position, record: Arc<Clear>) {
        let mut inner = self.lock();
        inner.bytes += record.bytes.capacity() + ENTRY;
        if let Some((_, old)) = inner.records.push(at, record) {
            inner.bytes -= old.bytes.capacity() + ENTRY;
        }
        while inner.bytes > BOUND {
            let Some((_, old)) = inner.records.pop_lru() else { break };
            inner.bytes -= old.bytes.capacity() + ENTRY;
        }
    }

    /// Forgets the records of segments before `segment`.
    pub fn forget_before(&self, segment: u64) {
        let mut inner = self.lock();
        let gone: Vec<Position> = inner.records.iter().map(|(at, _)| *at).filter(|at| at.segment < segment).collect();
        for at in gone {
            if let Some(old) = inner.records.pop(&at) {
                inner.bytes -= old.bytes.capacity() + ENTRY;
            }
        }
    }

    /// A buffer to read into; give it back with [`put_buffer`](Self::put_buffer).
    pub fn take_buffer(&self) -> Vec<u8> {
        std::mem::take(&mut *self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn put_buffer(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= BOUND / 2 {
            *self.buffer.lock().unwrap_or_else(PoisonError::into_inner) = buffer;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}
