//! Larger reads of packs that are read in order, for stores where each request costs a round trip.
//!
//! A span is a range of a pack as it lies in the store. Who reads a pack from front to back gets ever longer ones, and the
//! next is fetched while the last is used; who jumps about gets what was asked for and no more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use axiomfs_api::{ObjectKey, Store};

use crate::error::RepositoryError;
use crate::ids::PackId;
use crate::names;

/// Longest span in bytes.
const LONGEST: u64 = 4 << 20;
/// Spans held: with the longest span, and one being fetched for each of a few readers, this bounds the memory.
const HELD: usize = 8;
/// Readers of one pack overtake each other by this much and still count as in order.
const SLACK: u64 = 1 << 20;
/// Threads that fetch what comes next.
const AHEAD: usize = 4;

type Fetched = Result<Arc<Vec<u8>>, RepositoryError>;

struct Span {
    pack: PackId,
    start: u64,
    end: u64,
    pack_len: u64,
    fetched: Mutex<Option<Fetched>>,
    landed: Condvar,
}

/// The spans of one store, shared by all its readers.
pub(crate) struct Spans {
    store: Arc<dyn Store>,
    /// The newest last.
    held: Mutex<VecDeque<Arc<Span>>>,
    ahead: AtomicUsize,
}

impl Spans {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store, held: Mutex::default(), ahead: AtomicUsize::new(0) })
    }

    /// The bytes from `start` to `end` of a pack.
    pub fn read(
        self: &Arc<Self>,
        pack: PackId,
        pack_len: u64,
        start: u64,
        end: u64,
    ) -> Result<Vec<u8>, RepositoryError> {
        let (span, leads) = self.find(pack, pack_len, start, end);
        if leads {
            self.fetch(&span);
        } else {
            self.fetch_next(&span, start);
        }
        let bytes = span.wait()?;
        let range = (start - span.start) as usize..(end - span.start) as usize;
        bytes
            .get(range)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| RepositoryError::corrupt(names::pack(&pack), "it ends too early"))
    }

    /// Forgets what was read of a pack, so that the next read asks the store.
    pub fn forget(&self, pack: PackId) {
        self.lock().retain(|span| span.pack != pack);
    }

    /// A span with all of that range in it, and whether the caller has to fetch it.
    fn find(&self, pack: PackId, pack_len: u64, start: u64, end: u64) -> (Arc<Span>, bool) {
        let mut held = self.lock();
        let of_pack = || held.iter().rev().filter(|span| span.pack == pack);
        if let Some(span) = of_pack().find(|span| span.start <= start && end <= span.end) {
            return (span.clone(), false);
        }
        let before = of_pack().find(|span| start >= span.start && start <= span.end + SLACK);
        // A reader that came to the end of one pack goes on in the next.
        let other = held.back().filter(|span| start < SLACK && span.pack != pack && span.end == span.pack_len);
        let len = before.or(other).map_or(0, |span| (span.end - span.start).saturating_mul(2).min(LONGEST));
        let span = Span::new(pack, pack_len, start, end.max(start + len).min(pack_len.max(end)));
        push(&mut held, &span);
        (span, true)
    }

    fn fetch(&self, span: &Arc<Span>) {
        let mut landing = Landing { span, result: None };
        let key = names::key(&names::pack(&span.pack));
        let read = |key: ObjectKey| Ok(Arc::new(self.store.get_range(&key, span.start, span.end - span.start)?));
        let result: Fetched = key.and_then(read);
        if result.is_err() {
            // Nobody may find it later: the next read asks again.
            self.lock().retain(|held| !Arc::ptr_eq(held, span));
        }
        landing.result = Some(result);
    }

    /// Fetches the span after this one by another thread, once its reader is half through.
    fn fetch_next(self: &Arc<Self>, span: &Arc<Span>, at: u64) {
        let len = span.end - span.start;
        // Short ones belong to readers that have not shown yet that they read in order.
        if len < LONGEST / 4 || at < span.start + len / 2 || span.end >= span.pack_len {
            return;
        }
        let next = {
            let mut held = self.lock();
            let end = (span.end + len.saturating_mul(2).min(LONGEST)).min(span.pack_len);
            if held.iter().any(|held| held.pack == span.pack && held.start <= span.end && span.end < held.end) {
                return;
            }
            if self.ahead.fetch_add(1, Ordering::SeqCst) >= AHEAD {
                self.ahead.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let next = Span::new(span.pack, span.pack_len, span.end, end);
            push(&mut held, &next);
            next
        };
        let (spans, fetched) = (self.clone(), next.clone());
        let thread = std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            spans.fetch(&fetched);
            spans.ahead.fetch_sub(1, Ordering::SeqCst);
        });
        if thread.is_err() {
            self.ahead.fetch_sub(1, Ordering::SeqCst);
            self.fetch(&next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Span>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(held: &mut VecDeque<Arc<Span>>, span: &Arc<Span>) {
    if held.len() >= HELD {
        held.pop_front();
    }
    held.push_back(span.clone());
}

impl Span {
    fn new(pack: PackId, pack_len: u64, start: u64, end: u64) -> Arc<Self> {
        Arc::new(Self { pack, start, end, pack_len, fetched: Mutex::default(), landed: Condvar::new() })
    }

    fn wait(&self) -> Fetched {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = &*fetched {
                return result.clone();
            }
            fetched = self.landed.wait(fetched).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells those who wait, also when the store panics.
struct Landing<'a> {
    span: &'a Span,
    result: Option<Fetched>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or(Err(RepositoryError::Stopped { reason: "reading a pack panicked" }));
        *self.span.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.span.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiomfs_api::Body;
    use axiomfs_host::{Call, Fault, Faulty};
    use axiomfs_storage_memory::MemoryStore;

    const LEN: u64 = 32 << 20;

    fn setup() -> (Arc<Faulty>, PackId, Vec<u8>, Arc<Spans>) {
        let pack = PackId([7; 32]);
        let data: Vec<u8> = (0..LEN).map(|i| (i / 251) as u8).collect();
        let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
        store.put_new(&names::key(&names::pack(&pack)).unwrap(), Body::Bytes(&data)).unwrap();
        let spans = Spans::new(store.clone());
        (store, pack, data, spans)
    }

    #[test]
    fn reading_in_order_takes_few_requests_and_jumping_reads_no_more_than_asked() {
        let (store, pack, data, spans) = setup();
        let step = 64 << 10;
        let before = store.calls();
        for start in (0..LEN).step_by(step) {
            let end = start + step as u64;
            assert!(spans.read(pack, LEN, start, end).unwrap() == data[start as usize..end as usize]);
        }
        let calls = store.calls() - before;
        assert!(calls < 20, "{calls} requests for {} reads", LEN / step as u64);
        let (store, pack, _, spans) = setup();
        let lens = Arc::new(AtomicUsize::new(0));
        for at in [20u64, 3, 14, 9, 28] {
            let before = store.calls();
            spans.read(pack, LEN, at << 20, (at << 20) + 65_536).unwrap();
            assert_eq!(store.calls() - before, 1);
            let longest = spans.lock().iter().map(|span| span.end - span.start).max().unwrap();
            lens.fetch_max(longest as usize, Ordering::SeqCst);
        }
        assert_eq!(lens.load(Ordering::SeqCst), 65_536);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let (store, pack, data, spans) = setup();
        store.set_plan(|_: &Call<'_>| Fault::Refuse(axiomfs_api::StoreErrorKind::Unavailable));
        spans.read(pack, LEN, 0, 100).expect_err("refused");
        store.heal();
        assert!(spans.read(pack, LEN, 0, 100).unwrap() == data[..100]);
    }
}
