//! A store in memory: the second implementation of the contract, and what tests of the upper layers stand on.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use axiomfs_api::{Body, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};

type Objects = BTreeMap<ObjectKey, Arc<[u8]>>;

/// Objects in a map. Lives as long as the value; share it by `Arc`.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: RwLock<Objects>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sum of the objects' lengths in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.read().values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Changes an object behind everybody's back, as a failing disk would; `false` if there is none.
    pub fn tamper(&self, key: &ObjectKey, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut objects = self.write();
        let Some(object) = objects.get_mut(key) else { return false };
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
        true
    }

    // Every change is one call on the map, so a panic elsewhere cannot leave it half-changed.
    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, operation: &'static str, key: &ObjectKey) -> Result<Arc<[u8]>, StoreError> {
        let missing = || StoreError::new(StoreErrorKind::NotFound, operation, key.as_str());
        self.read().get(key).cloned().ok_or_else(missing)
    }
}

fn load(key: &ObjectKey, body: Body<'_>) -> Result<Arc<[u8]>, StoreError> {
    let failed = |error| StoreError::new(StoreErrorKind::Invalid, "put", key.as_str()).with_source(error);
    Ok(body.bytes().map_err(failed)?.into())
}

impl Store for MemoryStore {
    fn location(&self) -> String {
        "memory".into()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        let object = self.object("get", key)?;
        if object.len() as u64 > max {
            return Err(StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str()));
        }
        Ok(object.to_vec())
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        let object = self.object("get", key)?;
        let range = usize::try_from(offset).ok().zip(offset.checked_add(len).and_then(|end| usize::try_from(end).ok()));
        match range.and_then(|(start, end)| object.get(start..end)) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str())),
        }
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let object = self.object("stat", key)?;
        Ok(ObjectMeta { key: key.clone(), len: object.len() as u64 })
    }

    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let object = load(key, body)?;
        match self.write().entry(key.clone()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(object);
                Ok(())
            }
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(StoreError::new(StoreErrorKind::AlreadyExists, "put", key.as_str()))
            }
        }
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let object = load(key, body)?;
        self.write().insert(key.clone(), object);
        Ok(())
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.write().remove(key);
        Ok(())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        Ok(self
            .read()
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .take(limit)
            .map(|(key, bytes)| ObjectMeta { key: key.clone(), len: bytes.len() as u64 })
            .collect())
    }
}
