//! Stores around stores: they keep the contract of what they wrap, and do what they are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axiomfs_api::{Body, ObjectKey, Store, StoreErrorKind, conformance};
use axiomfs_host::{Call, Counted, Fault, Faulty, Operation, Retry, RetryPolicy};
use axiomfs_storage_local::LocalStore;
use axiomfs_storage_memory::MemoryStore;

const QUICK: RetryPolicy = RetryPolicy {
    count: 5,
    first_pause: Duration::from_micros(100),
    longest_pause: Duration::from_millis(1),
    deadline: Duration::from_secs(10),
};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).expect("a valid name")
}

fn faulty() -> Arc<Faulty> {
    Arc::new(Faulty::new(Arc::new(MemoryStore::new())))
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[test]
fn wrappers_keep_the_contract() {
    let scratch = temp();
    conformance::store(&*faulty(), scratch.path());
    conformance::store(&Retry::new(Arc::new(MemoryStore::new()), QUICK), scratch.path());
    conformance::store(&Counted::new(Arc::new(MemoryStore::new())), scratch.path());
    let dir = temp();
    let local: Arc<dyn Store> = Arc::new(LocalStore::create(dir.path()).expect("creates"));
    conformance::store(&Retry::new(Arc::new(Faulty::new(local)), QUICK), scratch.path());
}

/// One call of three fails, a third of these after they happened: through retries nobody notices.
#[test]
fn retries_hide_what_passes() {
    let scratch = temp();
    let inner = faulty();
    inner.set_plan(|call: &Call<'_>| match conformance::Noise::new(call.number).below(9) {
        0 => Fault::Refuse(StoreErrorKind::Unavailable),
        1 => Fault::Refuse(StoreErrorKind::Throttled),
        2 => Fault::LoseAnswer(StoreErrorKind::Timeout),
        _ => Fault::None,
    });
    // Racing threads share the numbering, so one of them may meet many faults in a row.
    let store = Retry::new(inner, RetryPolicy { count: 60, ..QUICK });
    conformance::store(&store, scratch.path());
    assert!(store.retries() > 100);
}

#[test]
fn a_lost_answer_is_told_from_a_lost_race() {
    let inner = faulty();
    let store = Retry::new(inner.clone(), QUICK);
    let lose_first = |call: &Call<'_>| match call.operation {
        Operation::PutNew if call.number == 0 => Fault::LoseAnswer(StoreErrorKind::Timeout),
        _ => Fault::None,
    };
    inner.set_plan(lose_first);
    store.put_new(&key("heads/1"), Body::Bytes(b"ours")).expect("it was our own put");

    let inner = faulty();
    let store = Retry::new(inner.clone(), QUICK);
    inner.set_plan(|call| if call.number == 0 { Fault::Refuse(StoreErrorKind::Timeout) } else { Fault::None });
    let other = inner.clone();
    inner.set_plan(move |call| match (call.operation, call.number) {
        (Operation::PutNew, 0) => {
            other.heal();
            other.put_new(&key("heads/1"), Body::Bytes(b"them")).expect("another writer wins");
            Fault::Refuse(StoreErrorKind::Timeout)
        }
        _ => Fault::None,
    });
    let error = store.put_new(&key("heads/1"), Body::Bytes(b"ours")).expect_err("it was another's put");
    assert_eq!(error.kind, StoreErrorKind::AlreadyExists);
    assert_eq!(store.get(&key("heads/1"), 9).expect("gets"), b"them");

    let error = store.put_new(&key("heads/1"), Body::Bytes(b"them")).expect_err("no answer was lost this time");
    assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "the first try is never taken for a repetition");
}

#[test]
fn what_is_final_is_not_repeated() {
    let finals = [
        StoreErrorKind::NotFound,
        StoreErrorKind::AlreadyExists,
        StoreErrorKind::AccessDenied,
        StoreErrorKind::NoSpace,
        StoreErrorKind::Invalid,
        StoreErrorKind::Corrupt,
    ];
    for kind in finals {
        let inner = faulty();
        inner.set_plan(move |_| Fault::Refuse(kind));
        let store = Retry::new(inner.clone(), QUICK);
        assert_eq!(store.get(&key("x"), 1).expect_err("fails").kind, kind);
        assert_eq!(inner.calls(), 1, "{kind:?}");
    }
}

#[test]
fn retries_end() {
    let inner = faulty();
    inner.set_plan(|_| Fault::Refuse(StoreErrorKind::Unavailable));
    let store = Retry::new(inner.clone(), QUICK);
    let error = store.list("a", None, 1).expect_err("fails");
    assert_eq!((error.kind, error.operation, error.object.as_str()), (StoreErrorKind::Unavailable, "list", "a"));
    assert_eq!(inner.calls(), 1 + u64::from(QUICK.count));

    let inner = faulty();
    inner.set_plan(|_| Fault::Refuse(StoreErrorKind::Timeout));
    let pause = Duration::from_millis(20);
    let deadline = Duration::from_millis(100);
    let policy = RetryPolicy { count: 1000, first_pause: pause, longest_pause: pause, deadline };
    let start = Instant::now();
    Retry::new(inner.clone(), policy).space().expect_err("fails");
    assert!((2..=11).contains(&inner.calls()), "{} calls", inner.calls());
    assert!(start.elapsed() < Duration::from_secs(5), "the deadline is kept");
}

#[test]
fn faults_are_as_planned() {
    let store = faulty();
    store.put_new(&key("a"), Body::Bytes(&[0, 0])).expect("creates");
    store.set_plan(|call| match call.operation {
        Operation::Get => Fault::FlipBit(9),
        Operation::Put => Fault::LoseAnswer(StoreErrorKind::Timeout),
        Operation::Delete => Fault::Refuse(StoreErrorKind::AccessDenied),
        Operation::Stat => Fault::Delay(Duration::from_millis(20)),
        _ => Fault::None,
    });
    assert_eq!(store.get(&key("a"), 2).expect("gets"), [0, 2]);
    assert_eq!(store.get_range(&key("a"), 0, 2).expect("gets"), [0, 0]);
    assert_eq!(store.delete(&key("a")).expect_err("refused").kind, StoreErrorKind::AccessDenied);
    assert_eq!(store.put(&key("a"), Body::Bytes(b"new")).expect_err("lost").kind, StoreErrorKind::Timeout);
    let start = Instant::now();
    assert_eq!(store.stat(&key("a")).expect("stats").len, 3, "a put whose answer was lost happened");
    assert!(start.elapsed() >= Duration::from_millis(20));
    store.heal();
    assert_eq!(store.get(&key("a"), 3).expect("gets"), b"new");
    let seen = Arc::new(AtomicU32::new(0));
    let count = seen.clone();
    store.set_plan(move |call| {
        assert_eq!((call.operation, call.object), (Operation::List, "pre"));
        count.fetch_add(1, Ordering::SeqCst);
        Fault::None
    });
    store.list("pre", None, 1).expect("lists");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[test]
fn requests_are_counted_by_kind() {
    let faulty = faulty();
    let counted = Counted::new(faulty.clone());
    let (a, b) = (key("a"), key("b"));
    counted.put_new(&a, Body::Bytes(b"12345")).expect("puts");
    counted.put_new(&a, Body::Bytes(b"12345")).expect_err("is there");
    counted.get(&a, 100).expect("gets");
    counted.get_range(&a, 1, 2).expect("gets");
    counted.get(&b, 100).expect_err("is not there");
    faulty.set_plan(|_| Fault::Refuse(StoreErrorKind::Throttled));
    counted.get(&a, 100).expect_err("throttled");
    faulty.set_plan(|_| Fault::Refuse(StoreErrorKind::AccessDenied));
    counted.list("", None, 10).expect_err("denied");
    let metrics = counted.metrics();
    let value = |name: &str, series: &str, labels: &[&str]| {
        let mut found = metrics.iter().filter(|m| {
            m.name == name && m.series == series && labels.iter().all(|label| m.labels.iter().any(|(_, v)| v == label))
        });
        found.next().map(|m| m.value).expect(name)
    };
    assert_eq!(value("axiomfs_store_bytes_total", "", &["put_new"]), 5.0);
    assert_eq!(value("axiomfs_store_bytes_total", "", &["get"]), 5.0);
    assert_eq!(value("axiomfs_store_bytes_total", "", &["get_range"]), 2.0);
    assert_eq!(value("axiomfs_store_request_seconds", "_count", &["get"]), 3.0);
    assert_eq!(value("axiomfs_store_errors_total", "", &["get", "transient"]), 1.0);
    assert_eq!(value("axiomfs_store_errors_total", "", &["get", "permanent"]), 0.0, "not there is an answer");
    assert_eq!(value("axiomfs_store_errors_total", "", &["list", "permanent"]), 1.0);
    assert_eq!(value("axiomfs_store_errors_total", "", &["put_new", "permanent"]), 0.0);
    assert_eq!(value("axiomfs_store_requests_running", "", &["get"]), 0.0);
}

#[test]
fn trouble_is_told_until_it_is_over() {
    let inner = faulty();
    let store = Counted::new(inner.clone());
    store.put_new(&key("a"), Body::Bytes(b"x")).expect("creates");
    inner.set_plan(|_| Fault::Refuse(StoreErrorKind::Unavailable));
    let before = std::time::SystemTime::now();
    for _ in 0..3 {
        store.get(&key("a"), 10).expect_err("refused");
    }
    let trouble = store.trouble().expect("there is trouble");
    assert!(trouble.since >= before && trouble.error.contains("injected"), "{trouble:?}");
    inner.heal();
    assert_eq!(store.get(&key("b"), 10).expect_err("not there").kind, StoreErrorKind::NotFound);
    assert_eq!(store.trouble(), None, "an answer, if not a good one");
}
