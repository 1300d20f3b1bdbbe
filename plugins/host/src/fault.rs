use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The whole object.
    Get,
    /// A range of it.
    GetRange,
    /// Its length.
    Stat,
    /// A create-only put.
    PutNew,
    /// A replacing put.
    Put,
    /// A deletion.
    Delete,
    /// A listing.
    List,
    /// Free space.
    Space,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Self::Get | Self::GetRange => "get",
            Self::Stat | Self::Space => "stat",
            Self::PutNew | Self::Put => "put",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

/// One call, as a plan of faults sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// What is asked.
    pub operation: Operation,
    /// The object's name or the listing's prefix.
    pub object: &'a str,
    /// Calls of any kind before this one.
    pub number: u64,
}

/// What happens to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It takes this much longer, then happens.
    Delay(Duration),
    /// It fails without happening.
    Refuse(StoreErrorKind),
    /// It happens, and the answer is lost.
    LoseAnswer(StoreErrorKind),
    /// What was read has one bit flipped, the one of this number (modulo the length).
    FlipBit(u64),
}

type Plan = dyn Fn(&Call<'_>) -> Fault + Send + Sync;

/// A store in which calls fail as a plan says, to see what the layers above make of it.
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: RwLock<Arc<Plan>>,
    calls: AtomicU64,
}

impl Faulty {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, plan: RwLock::new(Arc::new(|_| Fault::None)), calls: AtomicU64::new(0) }
    }

    /// From now on calls fail as `plan` says.
    pub fn set_plan(&self, plan: impl Fn(&Call<'_>) -> Fault + Send + Sync + 'static) {
        *self.plan.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(plan);
    }

    /// From now on nothing fails.
    pub fn heal(&self) {
        self.set_plan(|_| Fault::None);
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Does `call`, or what the plan wants instead; the fault that is left to the answer comes back with it.
    fn run<T>(
        &self,
        operation: Operation,
        object: &str,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<(T, Option<u64>), StoreError> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let plan = self.plan.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let failed = |kind| StoreError::new(kind, operation.verb(), object).with_source("An injected fault");
        match plan(&Call { operation, object, number }) {
            Fault::None => Ok((call()?, None)),
            Fault::Delay(time) => {
                std::thread::sleep(time);
                Ok((call()?, None))
            }
            Fault::Refuse(kind) => Err(failed(kind)),
            Fault::LoseAnswer(kind) => {
                call()?;
                Err(failed(kind))
            }
            Fault::FlipBit(bit) => Ok((call()?, Some(bit))),
        }
    }

    fn read(
        &self,
        operation: Operation,
        object: &str,
        call: impl FnOnce() -> Result<Vec<u8>, StoreError>,
    ) -> Result<Vec<u8>, StoreError> {
        let (mut bytes, flip) = self.run(operation, object, call)?;
        if let Some(bit) = flip
            && !bytes.is_empty()
        {
            let at = (bit / 8 % bytes.len() as u64) as usize;
            bytes[at] ^= 1 << (bit % 8);
        }
        Ok(bytes)
    }
}

impl Store for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        self.read(Operation::Get, key.as_str(), || self.inner.get(key, max))
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        self.read(Operation::GetRange, key.as_str(), || self.inner.get_range(key, offset, len))
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        self.run(Operation::Stat, key.as_str(), || self.inner.stat(key)).map(|(meta, _)| meta)
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.run(Operation::PutNew, key.as_str(), || self.inner.put_new(key, body)).map(|_| ())
    }

    fn put_new_data(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.run(Operation::PutNew, key.as_str(), || self.inner.put_new_data(key, body)).map(|_| ())
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.run(Operation::Put, key.as_str(), || self.inner.put(key, body)).map(|_| ())
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.run(Operation::Delete, key.as_str(), || self.inner.delete(key)).map(|_| ())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.run(Operation::List, prefix, || self.inner.list(prefix, after, limit)).map(|(list, _)| list)
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
        self.run(Operation::Space, "", || self.inner.space()).map(|(space, _)| space)
    }
}
