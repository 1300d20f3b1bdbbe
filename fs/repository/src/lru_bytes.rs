//! A least-recently-used cache bounded by bytes.

use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Thread-safe; every call takes one short lock.
pub(crate) struct ByteLru<K: Hash + Eq, V> {
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize)>,
    bytes: usize,
    limit: usize,
}

impl<K: Hash + Eq, V> Inner<K, V> {
    /// Takes out what is too much.
    fn evict(&mut self, evicted: &mut Vec<V>) {
        while self.bytes > self.limit {
            let Some((_, (old, size))) = self.entries.pop_lru() else { break };
            self.bytes -= size;
            evicted.push(old);
        }
    }
}

impl<K: Hash + Eq, V: Clone> ByteLru<K, V> {
    /// A cache that holds at most `limit` bytes, as its users count them.
    pub(crate) fn new(limit: usize) -> Self {
        Self { inner: Mutex::new(Inner { entries: LruCache::unbounded(), bytes: 0, limit }) }
    }

    /// Sets another limit.
    pub(crate) fn set_limit(&self, limit: usize) {
        let mut evicted = Vec::new();
        let mut inner = self.lock();
        inner.limit = limit;
        inner.evict(&mut evicted);
        // Before what was taken out is freed.
        drop(inner);
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.lock().entries.get(key).map(|(value, _)| value.clone())
    }

    /// Without making it the latest used.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.lock().entries.contains(key)
    }

    /// Puts `value`, which takes `bytes`; one larger than the whole cache is not kept.
    pub(crate) fn put(&self, key: K, value: V, bytes: usize) {
        let mut evicted = Vec::new();
        {
            let mut inner = self.lock();
            if bytes > inner.limit {
                return;
            }
            inner.bytes += bytes;
            if let Some((old, size)) = inner.entries.put(key, (value, bytes)) {
                inner.bytes -= size;
                evicted.push(old);
            }
            inner.evict(&mut evicted);
        }
        // Large values are freed after the lock.
        drop(evicted);
    }

    pub(crate) fn remove(&self, key: &K) {
        let mut inner = self.lock();
        if let Some((_, size)) = inner.entries.pop(key) {
            inner.bytes -= size;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_no_more_than_its_bound_and_drops_the_oldest() {
        let cache = ByteLru::new(100);
        for key in 0..10 {
            cache.put(key, key, 30);
            assert!(cache.bytes() <= 100);
        }
        assert_eq!((6..10).map(|k| cache.get(&k)).collect::<Vec<_>>(), [None, Some(7), Some(8), Some(9)]);
        assert_eq!(cache.get(&7), Some(7));
        cache.put(10, 10, 30);
        assert!(cache.contains(&7), "it was used last");
        assert!(!cache.contains(&8));
        cache.put(7, 70, 90);
        assert_eq!((cache.get(&7), cache.bytes()), (Some(70), 90));
        cache.put(11, 11, 101);
        assert!(!cache.contains(&11));
        cache.put(12, 12, 10);
        cache.set_limit(95);
        assert_eq!((cache.get(&7), cache.get(&12), cache.bytes()), (None, Some(12), 10));
        cache.remove(&12);
        assert_eq!(cache.bytes(), 0);
    }
}
