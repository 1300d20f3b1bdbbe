use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};

/// Bytes compared at a time when an object's fate is unknown.
const COMPARED: usize = 1 << 20;

/// How long to insist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries after the first.
    pub count: u32,
    /// Pause before the first of them; doubles each time.
    pub first_pause: Duration,
    /// Longest pause.
    pub longest_pause: Duration,
    /// No try begins later than this after the first did.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            count: 8,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(30),
            deadline: Duration::from_secs(30),
        }
    }
}

/// A store that repeats calls whose failure may pass, with growing, jittered pauses.
///
/// A create-only put whose answer was lost may have succeeded; when a repetition then meets an object of that name, the
/// bytes decide: if they are the ones to be put, the put has succeeded. (Heads carry a random commit id and packs are
/// named by their bytes, so equal bytes are ours.)
pub struct Retry {
    inner: Arc<dyn Store>,
    policy: RetryPolicy,
    retries: AtomicU64,
}

impl Retry {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Store>, policy: RetryPolicy) -> Self {
        Self { inner, policy, retries: AtomicU64::new(0) }
    }

    /// Calls repeated so far.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Calls until it succeeds, fails for good or the policy is used up; `call` learns how many tries came before.
    fn repeat<T>(&self, mut call: impl FnMut(u32) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let start = Instant::now();
        let mut tries = 0;
        loop {
            let error = match call(tries) {
                Err(error) if error.kind.is_transient() => error,
                done => return done,
            };
            let pause = self.pause(tries);
            if tries >= self.policy.count || start.elapsed() + pause > self.policy.deadline {
                return Err(error);
            }
            tracing::debug!(%error, kind = ?error.kind, tries, ?pause, "Store call failed, trying again");
            self.retries.fetch_add(1, Ordering::Relaxed);
            tries += 1;
            std::thread::sleep(pause);
        }
    }

    /// Half to all of the doubling pause, so that many clients don't come back at once.
    fn pause(&self, tries: u32) -> Duration {
        let full = self.policy.first_pause.saturating_mul(1 << tries.min(20)).min(self.policy.longest_pause);
        // Every `RandomState` has keys of its own.
        let random = RandomState::new().build_hasher().finish() as u32;
        full / 2 + full.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    fn create<'b>(
        &self,
        key: &ObjectKey,
        body: Body<'b>,
        put: impl Fn(&ObjectKey, Body<'b>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.repeat(|tries| match put(key, body) {
            Err(error) if error.kind == StoreErrorKind::AlreadyExists && tries > 0 && self.holds(key, body)? => Ok(()),
            done => done,
        })
    }

    /// Whether the object holds exactly what was to be put.
    fn holds(&self, key: &ObjectKey, body: Body<'_>) -> Result<bool, StoreError> {
        let unreadable = |error| StoreError::new(StoreErrorKind::Invalid, "put", key.as_str()).with_source(error);
        let (mut reader, len): (Box<dyn Read + '_>, u64) = match body {
            Body::Bytes(bytes) => (Box::new(bytes), bytes.len() as u64),
            Body::File(path) => {
                let file = std::fs::File::open(path).map_err(unreadable)?;
                let len = file.metadata().map_err(unreadable)?.len();
                (Box::new(file), len)
            }
        };
        if self.inner.stat(key)?.len != len {
            return Ok(false);
        }
        let mut offset = 0;
        let mut ours = Vec::with_capacity(COMPARED.min(len as usize));
        while offset < len {
            ours.clear();
            let read = reader.by_ref().take(COMPARED as u64).read_to_end(&mut ours).map_err(unreadable)?;
            if read == 0 || self.inner.get_range(key, offset, read as u64)? != ours {
                return Ok(false);
            }
            offset += read as u64;
        }
        Ok(true)
    }
}

impl Store for Retry {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        self.repeat(|_| self.inner.get(key, max))
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        self.repeat(|_| self.inner.get_range(key, offset, len))
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.repeat(|_| self.inner.stat(key))
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.create(key, body, |key, body| self.inner.put_new(key, body))
    }

    fn put_new_data(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.create(key, body, |key, body| self.inner.put_new_data(key, body))
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.repeat(|_| self.inner.put(key, body))
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.repeat(|_| self.inner.delete(key))
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.repeat(|_| self.inner.list(prefix, after, limit))
    }

    fn make_durable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        // Not repeated: after a sync that failed another one would succeed without doing anything.
        self.inner.make_durable(key)
    }

    fn left_out(&self) -> Vec<String> {
        self.inner.left_out()
    }

    fn bytes_sent(&self) -> Option<u64> {
        self.inner.bytes_sent()
    }

    fn space(&self) -> Result<Option<(u64, u64)>, StoreError> {
        self.repeat(|_| self.inner.space())
    }
}
