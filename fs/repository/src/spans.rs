//! Larger reads of packs that are read in order, for stores where each request costs a round trip.
//!
//! A span is a range of a pack as it lies in the store; no two that are held overlap. Who reads a pack from front to back leaves
//! a trail: ahead of it spans are fetched, several at the same time and ever more, so that what is under way covers the
//! store's delay. Who jumps about gets what was asked for and no more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::RepositoryError;
use crate::frame::FrameKind;
use crate::ids::PackId;
use crate::names;
use crate::near::Source;
use crate::trails::{Step, Trails};

/// Longest span in bytes.
const LONGEST: u64 = 4 << 20;
/// Shorter ones are not worth a request of their own.
const SHORTEST: u64 = 1 << 20;
/// What of a span was read is noted by parts of this length, one bit each.
const PART: u64 = LONGEST / 64;
/// Threads that fetch what comes next.
const AHEAD: usize = 16;

type Fetched = Result<Arc<Vec<u8>>, RepositoryError>;

/// The pack that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) id: PackId,
    pub(crate) len: u64,
    pub(crate) kind: FrameKind,
}

struct Span {
    pack: Whole,
    start: u64,
    end: u64,
    /// How many bytes had been read of all spans when this one was made.
    made_at: u64,
    /// Parts that were read.
    taken: AtomicU64,
    fetched: Mutex<Option<Fetched>>,
    landed: Condvar,
}

/// The spans of one store, shared by all its readers.
pub(crate) struct Spans {
    source: Source,
    held: Mutex<Held>,
    ahead: AtomicUsize,
    /// Most bytes that are held.
    budget: u64,
}

struct Held {
    /// The newest last.
    spans: VecDeque<Arc<Span>>,
    bytes: u64,
    /// Bytes read of all spans so far.
    clock: u64,
    trails: Trails,
}

/// What one read takes.
struct Plan {
    /// All that it is put together from, in order.
    parts: Vec<Arc<Span>>,
    /// Those of them that nobody fetches yet.
    own: Vec<Arc<Span>>,
    /// For later reads.
    ahead: Vec<Arc<Span>>,
}

impl Spans {
    /// Holds up to `budget` bytes.
    pub fn new(source: Source, budget: u64) -> Arc<Self> {
        let held = Held { spans: VecDeque::new(), bytes: 0, clock: 0, trails: Trails::new(budget / 2) };
        Arc::new(Self { source, held: Mutex::new(held), ahead: AtomicUsize::new(0), budget })
    }

    /// The bytes from `start` to `end` of a pack.
    pub fn read(self: &Arc<Self>, pack: Whole, start: u64, end: u64) -> Result<Vec<u8>, RepositoryError> {
        let plan = self.plan(pack, start, end);
        for span in plan.ahead {
            self.fetch_beside(span);
        }
        for span in plan.own.iter().skip(1) {
            self.fetch_beside(span.clone());
        }
        if let Some(span) = plan.own.first() {
            self.fetch(span);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(end - start).unwrap_or(0));
        for span in plan.parts {
            let got = match span.wait() {
                // It was fetched for somebody else or ahead; what is asked for now is asked for once itself.
                Err(_) if !plan.own.iter().any(|own| Arc::ptr_eq(own, &span)) => Arc::new(self.get(&span)?),
                fetched => fetched?,
            };
            let range = (start.max(span.start) - span.start) as usize..(end.min(span.end) - span.start) as usize;
            let part = got.get(range);
            bytes.extend_from_slice(
                part.ok_or_else(|| RepositoryError::corrupt(names::pack(&pack.id), "it ends too early"))?,
            );
        }
        Ok(bytes)
    }

    /// Fetches ranges that will be read soon, in the order of their packs' first, as far as there is room.
    pub fn announce(self: &Arc<Self>, mut ranges: Vec<(Whole, u64, u64)>) {
        let mut packs: Vec<PackId> = Vec::new();
        for (pack, ..) in &ranges {
            if !packs.contains(&pack.id) {
                packs.push(pack.id);
            }
        }
        ranges.sort_by_key(|(pack, start, _)| (packs.iter().position(|id| *id == pack.id), *start));
        let mut joined: Vec<(Whole, u64, u64)> = Vec::new();
        for (pack, start, end) in ranges {
            match joined.last_mut() {
                Some((last, _, to)) if last.id == pack.id && start <= *to => *to = end.max(*to),
                _ => joined.push((pack, start, end)),
            }
        }
        for (pack, start, end) in joined {
            let fetched = self.take_ahead(&mut self.lock(), pack, start, end, LONGEST, &[]);
            for span in fetched {
                self.fetch_beside(span);
            }
        }
    }

    /// Forgets what was read of a pack, so that the next read asks the store.
    pub fn forget(&self, pack: PackId) {
        self.lock().keep(|span| span.pack.id != pack);
        if let (Some(near), Ok(key)) = (&self.source.near, names::key(&names::pack(&pack))) {
            near.forget(&key);
        }
    }

    fn plan(&self, pack: Whole, start: u64, end: u64) -> Plan {
        let mut held = self.lock();
        let Step { from, ahead } = held.trails.step(pack, start, end);
        held.clock += end - start;
        let own = held.add_gaps(pack, start, end, LONGEST);
        let parts = held.covering(pack.id, start, end);
        for span in &parts {
            span.take(start, end);
        }
        // Of whole parts, so that what was read of a span is known exactly.
        let piece = (ahead.saturating_sub(end) / 4).clamp(SHORTEST, LONGEST) / PART * PART;
        let ahead = self.take_ahead(&mut held, pack, from.max(end), ahead, piece, &parts);
        if !held.make_room(0, self.budget, &parts) {
            held.drop_oldest(0, self.budget, &parts, |_| true);
        }
        Plan { parts, own, ahead }
    }

    /// New spans for what is not held of a range, as many as there is room for.
    fn take_ahead(
        &self,
        held: &mut Held,
        pack: Whole,
        start: u64,
        end: u64,
        piece: u64,
        in_use: &[Arc<Span>],
    ) -> Vec<Arc<Span>> {
        let free = AHEAD.saturating_sub(self.ahead.load(Ordering::SeqCst));
        let mut taken = Vec::new();
        for (start, end) in held.gaps(pack.id, start, end, piece).into_iter().take(free) {
            // An eighth stays for what is asked for at once.
            if !held.make_room(end - start, self.budget - self.budget / 8, in_use) {
                break;
            }
            taken.push(held.add(pack, start, end));
        }
        taken
    }

    /// Asks the store for a span's bytes.
    fn get(&self, span: &Span) -> Result<Vec<u8>, RepositoryError> {
        let key = names::key(&names::pack(&span.pack.id))?;
        let len = span.end - span.start;
        Ok(match span.pack.kind {
            FrameKind::Metadata => self.source.range(&key, span.start, len)?,
            FrameKind::Data | FrameKind::Clear => self.source.store.get_range(&key, span.start, len)?,
        })
    }

    fn fetch(&self, span: &Arc<Span>) {
        let mut landing = Landing { span, result: None };
        let result: Fetched = self.get(span).map(Arc::new);
        if result.is_err() {
            // Nobody may find it later: the next read asks again.
            self.lock().keep(|held| !std::ptr::eq(held, Arc::as_ptr(span)));
        }
        landing.result = Some(result);
    }

    /// Fetches by another thread.
    fn fetch_beside(self: &Arc<Self>, span: Arc<Span>) {
        self.ahead.fetch_add(1, Ordering::SeqCst);
        let (spans, fetched) = (self.clone(), span.clone());
        let thread = std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
            spans.fetch(&fetched);
            spans.ahead.fetch_sub(1, Ordering::SeqCst);
        });
        if thread.is_err() {
            self.ahead.fetch_sub(1, Ordering::SeqCst);
            self.fetch(&span);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn add(&mut self, pack: Whole, start: u64, end: u64) -> Arc<Span> {
        let span = Arc::new(Span {
            pack,
            start,
            end,
            made_at: self.clock,
            taken: AtomicU64::new(0),
            fetched: Mutex::default(),
            landed: Condvar::new(),
        });
        self.spans.push_back(span.clone());
        self.bytes += end - start;
        span
    }

    fn keep(&mut self, wanted: impl Fn(&Span) -> bool) {
        self.spans.retain(|span| wanted(span));
        self.bytes = self.spans.iter().map(|span| span.end - span.start).sum();
    }

    /// The spans that have something of a range, in order.
    fn covering(&self, pack: PackId, start: u64, end: u64) -> Vec<Arc<Span>> {
        let has = |span: &&Arc<Span>| span.pack.id == pack && span.start < end && start < span.end;
        let mut parts: Vec<Arc<Span>> = self.spans.iter().filter(has).cloned().collect();
        parts.sort_by_key(|span| span.start);
        parts
    }

    /// What no span has of a range, in pieces of at most `longest`.
    fn gaps(&self, pack: PackId, start: u64, end: u64, longest: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        let mut gap = |from: u64, to: u64| {
            let mut from = from;
            while from < to {
                let piece = to.min(from + longest);
                gaps.push((from, piece));
                from = piece;
            }
        };
        for span in self.covering(pack, start, end) {
            gap(at, span.start);
            at = at.max(span.end);
        }
        gap(at, end);
        gaps
    }

    fn add_gaps(&mut self, pack: Whole, start: u64, end: u64, longest: u64) -> Vec<Arc<Span>> {
        let gaps = self.gaps(pack.id, start, end, longest);
        gaps.into_iter().map(|(start, end)| self.add(pack, start, end)).collect()
    }

    /// Drops what was read, as frames are kept decoded, and what nobody came for, until `more` fit in; whether they do. What is
    /// still to be read stays: fetching ahead must not cost what was fetched ahead before.
    fn make_room(&mut self, more: u64, budget: u64, in_use: &[Arc<Span>]) -> bool {
        let clock = self.clock;
        self.drop_oldest(more, budget, in_use, |span| span.is_spent() || clock - span.made_at > 2 * budget)
    }

    /// Drops the oldest of those that may go, have landed and are not read just now, until `more` fit in; whether they do.
    fn drop_oldest(&mut self, more: u64, budget: u64, in_use: &[Arc<Span>], may_go: impl Fn(&Span) -> bool) -> bool {
        let mut at = 0;
        while self.bytes + more > budget && at < self.spans.len() {
            let span = &self.spans[at];
            if may_go(span) && span.has_landed() && !in_use.iter().any(|used| Arc::ptr_eq(used, span)) {
                self.bytes -= span.end - span.start;
                self.spans.remove(at);
            } else {
                at += 1;
            }
        }
        self.bytes + more <= budget
    }
}

impl Span {
    /// Notes that the parts between are read.
    fn take(&self, start: u64, end: u64) {
        let (start, end) = (start.max(self.start) - self.start, end.min(self.end) - self.start);
        let parts = (start / PART..end.div_ceil(PART)).fold(0, |parts, part| parts | 1 << part);
        self.taken.fetch_or(parts, Ordering::Relaxed);
    }

    /// Whether all of it was read.
    fn is_spent(&self) -> bool {
        u64::from(self.taken.load(Ordering::Relaxed).count_ones()) == (self.end - self.start).div_ceil(PART)
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

    fn has_landed(&self) -> bool {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).is_some()
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
    use axiomfs_api::{Body, Store};
    use axiomfs_host::{Call, Fault, Faulty};
    use axiomfs_storage_memory::MemoryStore;

    const LEN: u64 = 32 << 20;
    const BUDGET: u64 = 24 << 20;

    fn setup() -> (Arc<Faulty>, Whole, Vec<u8>, Arc<Spans>) {
        let pack = Whole { id: PackId([7; 32]), len: LEN, kind: FrameKind::Data };
        let data: Vec<u8> = (0..LEN).map(|i| (i / 251) as u8).collect();
        let store = Arc::new(Faulty::new(Arc::new(MemoryStore::new())));
        store.put_new(&names::key(&names::pack(&pack.id)).unwrap(), Body::Bytes(&data)).unwrap();
        let spans = Spans::new(Source { store: store.clone(), near: None }, BUDGET);
        (store, pack, data, spans)
    }

    #[test]
    fn reading_in_order_takes_few_requests_and_jumping_reads_no_more_than_asked() {
        let (store, pack, data, spans) = setup();
        let step = 64 << 10;
        let before = store.calls();
        for start in (0..LEN).step_by(step) {
            let end = start + step as u64;
            assert!(spans.read(pack, start, end).unwrap() == data[start as usize..end as usize]);
        }
        let calls = store.calls() - before;
        assert!(calls < 20, "{calls} requests for {} reads", LEN / step as u64);
        let (store, pack, _, spans) = setup();
        for at in [20u64, 3, 14, 9, 28] {
            let before = store.calls();
            spans.read(pack, at << 20, (at << 20) + 65_536).unwrap();
            assert_eq!(store.calls() - before, 1);
        }
        assert_eq!(spans.lock().bytes, 5 * 65_536);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let (store, pack, data, spans) = setup();
        store.set_plan(|_: &Call<'_>| Fault::Refuse(axiomfs_api::StoreErrorKind::Unavailable));
        spans.read(pack, 0, 100).expect_err("refused");
        store.heal();
        assert!(spans.read(pack, 0, 100).unwrap() == data[..100]);
    }

    #[test]
    fn who_waits_for_what_was_fetched_ahead_and_failed_asks_himself() {
        let (store, pack, data, _) = setup();
        let late = Arc::new(Late::new(store.clone()));
        let spans = Spans::new(Source { store: late, near: None }, BUDGET);
        let calls = AtomicUsize::new(0);
        store.set_plan(move |_: &Call<'_>| match calls.fetch_add(1, Ordering::SeqCst) {
            0 => Fault::Refuse(axiomfs_api::StoreErrorKind::Unavailable),
            _ => Fault::None,
        });
        spans.announce(vec![(pack, 0, 100_000)]);
        assert!(spans.read(pack, 0, 100).unwrap() == data[..100]);
    }

    /// A store that answers after a while and knows how many wait.
    struct Late {
        inner: Arc<dyn Store>,
        waiting: AtomicUsize,
        most: AtomicUsize,
        bytes: AtomicUsize,
    }

    impl Late {
        fn new(inner: Arc<dyn Store>) -> Self {
            let none = || AtomicUsize::new(0);
            Self { inner, waiting: none(), most: none(), bytes: none() }
        }
    }

    impl Store for Late {
        fn location(&self) -> String {
            self.inner.location()
        }
        fn get(&self, key: &axiomfs_api::ObjectKey, max: u64) -> Result<Vec<u8>, axiomfs_api::StoreError> {
            self.inner.get(key, max)
        }
        fn get_range(
            &self,
            key: &axiomfs_api::ObjectKey,
            offset: u64,
            len: u64,
        ) -> Result<Vec<u8>, axiomfs_api::StoreError> {
            let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(waiting, Ordering::SeqCst);
            self.bytes.fetch_add(len as usize, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            self.inner.get_range(key, offset, len)
        }
        fn stat(&self, key: &axiomfs_api::ObjectKey) -> Result<axiomfs_api::ObjectMeta, axiomfs_api::StoreError> {
            self.inner.stat(key)
        }
        fn put_new(&self, key: &axiomfs_api::ObjectKey, body: Body<'_>) -> Result<(), axiomfs_api::StoreError> {
            self.inner.put_new(key, body)
        }
        fn put(&self, key: &axiomfs_api::ObjectKey, body: Body<'_>) -> Result<(), axiomfs_api::StoreError> {
            self.inner.put(key, body)
        }
        fn delete(&self, key: &axiomfs_api::ObjectKey) -> Result<(), axiomfs_api::StoreError> {
            self.inner.delete(key)
        }
        fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            limit: usize,
        ) -> Result<Vec<axiomfs_api::ObjectMeta>, axiomfs_api::StoreError> {
            self.inner.list(prefix, after, limit)
        }
    }

    #[test]
    fn several_requests_are_under_way_at_once_and_no_byte_is_read_twice() {
        let (store, pack, data, _) = setup();
        let late = Arc::new(Late::new(store.clone()));
        let spans = Spans::new(Source { store: late.clone(), near: None }, BUDGET);
        // As frames do, the reads overlap where they were widened to whole blocks.
        let (step, widened) = (300_000, 64 << 10);
        for at in (0..LEN - step).step_by(step as usize) {
            let (start, end) = (at / widened * widened, (at + step).next_multiple_of(widened).min(LEN));
            assert!(spans.read(pack, start, end).unwrap() == data[start as usize..end as usize], "at {at}");
            assert!(spans.lock().bytes <= BUDGET);
        }
        let (most, bytes) = (late.most.load(Ordering::SeqCst), late.bytes.load(Ordering::SeqCst) as u64);
        assert!(most >= 3, "at most {most} requests were under way");
        assert!(bytes <= LEN, "{bytes} bytes of {LEN} were read");
    }

    #[test]
    fn what_was_announced_beyond_the_budget_costs_no_byte_twice() {
        let (store, pack, data, _) = setup();
        let late = Arc::new(Late::new(store.clone()));
        let spans = Spans::new(Source { store: late.clone(), near: None }, BUDGET);
        let step = 512 << 10;
        // As two encoders fill two packs, a file's chunks lie in both.
        let other = Whole { id: PackId([8; 32]), ..pack };
        store.put_new(&names::key(&names::pack(&other.id)).unwrap(), Body::Bytes(&data)).unwrap();
        let order: Vec<_> = (0..LEN).step_by(step as usize).flat_map(|at| [(pack, at), (other, at)]).collect();
        for (i, &(pack, at)) in order.iter().enumerate() {
            spans.announce(order[i..].iter().map(|&(pack, at)| (pack, at, at + step)).collect());
            assert!(spans.read(pack, at, at + step).unwrap() == data[at as usize..(at + step) as usize], "at {at}");
        }
        let bytes = late.bytes.load(Ordering::SeqCst) as u64;
        assert!(bytes <= 2 * LEN, "{bytes} bytes of {} were read", 2 * LEN);
        // What nobody came for makes room in the end.
        spans.announce(vec![(Whole { id: PackId([9; 32]), ..pack }, 0, LEN)]);
        for at in (0..2).flat_map(|_| (0..LEN).step_by(step as usize)) {
            spans.read(pack, at, at + step).unwrap();
        }
        assert!(!spans.lock().spans.iter().any(|span| span.pack.id != pack.id), "what was announced in vain is held");
    }
}
