use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};

use crate::fault::Operation;
use crate::stats::{Histogram, HostMetric, MetricKind};

const OPERATIONS: [(Operation, &str); 8] = [
    (Operation::Get, "get"),
    (Operation::GetRange, "get_range"),
    (Operation::Stat, "stat"),
    (Operation::PutNew, "put_new"),
    (Operation::Put, "put"),
    (Operation::Delete, "delete"),
    (Operation::List, "list"),
    (Operation::Space, "space"),
];

/// What was counted of all requests of one program, also to stores that it opened one after the other.
#[derive(Clone, Default)]
pub struct Counts(Arc<[Requests; 8]>);

/// Nothing but numbers, which `metrics` have.
impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

/// What was counted of one kind of request.
#[derive(Default)]
struct Requests {
    running: AtomicU64,
    /// Failures that may pass, and others. That an object is not there, or is there already, is an answer and no failure.
    transient: AtomicU64,
    permanent: AtomicU64,
    bytes: AtomicU64,
    time: Histogram,
}

/// Since when a store does not answer as it should, and what it said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreTrouble {
    /// When the first of the requests that failed in a row did.
    pub since: SystemTime,
    /// The last failure, in words.
    pub error: String,
}

/// Requests to a store, of all kinds together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreTotals {
    /// Requests, each try by itself.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Bytes that they carried.
    pub bytes: u64,
}

/// A store whose requests are counted and timed, each try by itself, and whose last failure is remembered until a request
/// is answered.
pub struct Counted {
    inner: Arc<dyn Store>,
    requests: Counts,
    trouble: Mutex<Option<StoreTrouble>>,
}

impl Counted {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self::going_on(inner, &Counts::default())
    }

    /// Wraps `inner` and adds to what was counted before.
    pub fn going_on(inner: Arc<dyn Store>, counts: &Counts) -> Self {
        Self { inner, requests: counts.clone(), trouble: Mutex::default() }
    }

    /// What is wrong, if the last request failed in a way that may pass.
    pub fn trouble(&self) -> Option<StoreTrouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note<T>(&self, result: &Result<T, StoreError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *trouble = match result {
            Err(error) if error.kind.is_transient() => {
                let since = trouble.as_ref().map_or_else(SystemTime::now, |trouble| trouble.since);
                let error = match &error.source {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                };
                Some(StoreTrouble { since, error })
            }
            // Any other failure is an answer.
            _ => None,
        };
    }

    /// Create-only puts that run now: packs, segments and heads on their way.
    pub fn putting(&self) -> u64 {
        let put_new = OPERATIONS.iter().position(|(known, _)| *known == Operation::PutNew).unwrap_or_default();
        self.requests.0[put_new].running.load(Relaxed)
    }

    /// Create-only puts that failed so far in a way that may pass.
    pub fn failed_puts(&self) -> u64 {
        let put_new = OPERATIONS.iter().position(|(known, _)| *known == Operation::PutNew).unwrap_or_default();
        self.requests.0[put_new].transient.load(Relaxed)
    }

    /// What was counted of all kinds of requests together.
    pub fn totals(&self) -> StoreTotals {
        let sum = |of: &dyn Fn(&Requests) -> u64| self.requests.0.iter().map(of).sum();
        StoreTotals {
            requests: sum(&|r| r.time.count()),
            errors: sum(&|r| r.transient.load(Relaxed) + r.permanent.load(Relaxed)),
            bytes: sum(&|r| r.bytes.load(Relaxed)),
        }
    }

    /// What was counted.
    pub fn metrics(&self) -> Vec<HostMetric> {
        let mut out = Vec::new();
        let family = |name, help, kind, of: &dyn Fn(&Requests) -> u64, out: &mut Vec<HostMetric>| {
            for ((_, word), requests) in OPERATIONS.iter().zip(self.requests.0.iter()) {
                let labels = vec![("request", (*word).to_owned())];
                out.push(HostMetric { name, series: "", help, kind, labels, value: of(requests) as f64 });
            }
        };
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let (counter, gauge) = (MetricKind::Counter, MetricKind::Gauge);
        let help = "Bytes that requests to the store carried";
        family("axiomfs_store_bytes_total", help, counter, &|r| load(&r.bytes), &mut out);
        let help = "Requests to the store that run now";
        family("axiomfs_store_requests_running", help, gauge, &|r| load(&r.running), &mut out);
        for (class, of) in [
            ("transient", (&|r: &Requests| load(&r.transient)) as &dyn Fn(&Requests) -> u64),
            ("permanent", &|r| load(&r.permanent)),
        ] {
            for ((_, word), requests) in OPERATIONS.iter().zip(self.requests.0.iter()) {
                let labels = vec![("request", (*word).to_owned()), ("class", class.to_owned())];
                let (name, help) = ("axiomfs_store_errors_total", "Requests to the store that failed");
                out.push(HostMetric { name, series: "", help, kind: counter, labels, value: of(requests) as f64 });
            }
        }
        for ((_, word), requests) in OPERATIONS.iter().zip(self.requests.0.iter()) {
            let help = "Time of requests to the store, each try by itself";
            requests.time.metrics("axiomfs_store_request_seconds", help, Some(("request", word)), &mut out);
        }
        out
    }

    fn count<T>(
        &self,
        operation: Operation,
        call: impl FnOnce() -> Result<T, StoreError>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Result<T, StoreError> {
        let place = OPERATIONS.iter().position(|(known, _)| *known == operation).unwrap_or_default();
        let requests = &self.requests.0[place];
        requests.running.fetch_add(1, Relaxed);
        let start = Instant::now();
        let result = call();
        requests.time.record(start.elapsed());
        requests.running.fetch_sub(1, Relaxed);
        self.note(&result);
        match &result {
            Ok(done) => requests.bytes.fetch_add(bytes(done), Relaxed),
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::AlreadyExists) => 0,
            Err(error) if error.kind.is_transient() => requests.transient.fetch_add(1, Relaxed),
            Err(_) => requests.permanent.fetch_add(1, Relaxed),
        };
        result
    }
}

/// Length of what is put, as far as it can be told.
fn len(body: Body<'_>) -> u64 {
    match body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
    }
}

impl Store for Counted {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        self.count(Operation::Get, || self.inner.get(key, max), |bytes| bytes.len() as u64)
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        self.count(Operation::GetRange, || self.inner.get_range(key, offset, len), |bytes| bytes.len() as u64)
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.count(Operation::Stat, || self.inner.stat(key), |_| 0)
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        // Before the call: the file may be gone after it.
        let bytes = len(body);
        self.count(Operation::PutNew, || self.inner.put_new(key, body), |()| bytes)
    }

    fn put_new_data(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let bytes = len(body);
        self.count(Operation::PutNew, || self.inner.put_new_data(key, body), |()| bytes)
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let bytes = len(body);
        self.count(Operation::Put, || self.inner.put(key, body), |()| bytes)
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.count(Operation::Delete, || self.inner.delete(key), |()| 0)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.count(Operation::List, || self.inner.list(prefix, after, limit), |_| 0)
    }

    fn make_durable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.make_durable(key)
    }

    fn left_out(&self) -> Vec<String> {
        self.inner.left_out()
    }

    fn bytes_sent(&self) -> Option<u64> {
        self.inner.bytes_sent()
    }

    fn space(&self) -> Result<Option<(u64, u64)>, StoreError> {
        self.count(Operation::Space, || self.inner.space(), |_| 0)
    }
}
