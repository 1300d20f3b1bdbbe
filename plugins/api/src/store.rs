use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{fmt, io};

use crate::{StoreError, StoreErrorKind};

/// Name of an object: `/`-separated segments of `[a-z0-9._-]`, none empty, none `.` or `..`, at most 200 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`StoreErrorKind::Invalid`] if it is not of the form above.
    pub fn new(name: impl Into<String>) -> Result<Self, StoreError> {
        let name = name.into();
        let ok = !name.is_empty()
            && name.len() <= 200
            && name.split('/').all(|s| {
                !s.is_empty()
                    && s != "."
                    && s != ".."
                    && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            });
        if ok { Ok(Self(name)) } else { Err(StoreError::new(StoreErrorKind::Invalid, "name", name)) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The same order and hash as the name's, so that maps can be searched by it.
impl std::borrow::Borrow<str> for ObjectKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names that the listings of a store left out, for [`Store::left_out`].
#[derive(Debug, Default)]
pub struct LeftOut(Mutex<BTreeSet<String>>);

impl LeftOut {
    /// Names that are remembered.
    const MOST: usize = 32;
    /// Characters of a name that are remembered.
    const LONGEST: usize = 200;

    /// Notes one.
    pub fn note(&self, name: &str) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < Self::MOST {
            // It goes to terminals, and may be anything.
            names.insert(name.chars().take(Self::LONGEST).flat_map(char::escape_debug).collect());
        }
    }

    /// The first few.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// What a listing tells of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its name.
    pub key: ObjectKey,
    /// Its length in bytes.
    pub len: u64,
}

/// What to put.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A file that is complete and fsynced. A store on the same filesystem may rename it into place, so after a
    /// successful put the file may be gone; a failed put leaves it.
    File(&'a Path),
}

impl<'a> Body<'a> {
    /// The bytes, read into memory where they lie in a file.
    ///
    /// # Errors
    /// What reading the file met.
    pub fn bytes(&self) -> io::Result<Cow<'a, [u8]>> {
        match self {
            Self::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Self::File(path) => std::fs::read(path).map(Cow::Owned),
        }
    }
}

/// Where objects lie. Blocking; the callers bring the threads. Calls on one store may run concurrently.
///
/// Contract:
/// - **Atomic**: an object is seen whole or not at all, by name and by listing.
/// - **Durable**: when a put returned, the object survives a power cut.
/// - **Create-only** `put_new`: of any number of racing calls for one name exactly one succeeds, the others get
///   [`StoreErrorKind::AlreadyExists`] and change nothing.
/// - **Read after write**: what a put stored, a later get, range or list of anybody shows.
/// - **Flat names**: no object's name is another's followed by `/` (a directory can't hold both); a store may refuse it.
/// - Each call ends within the store's timeout, with an answer or an error.
pub trait Store: Send + Sync {
    /// Where this store is, for messages; never with a secret.
    fn location(&self) -> String;

    /// The whole object.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is longer than `max` bytes; or what the store met.
    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError>;

    /// Exactly `len` bytes from `offset`.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if the object ends before; or what the store met.
    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError>;

    /// Name and length without the bytes.
    ///
    /// # Errors
    /// `NotFound`, or what the store met.
    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError>;

    /// Creates an object that must not exist yet.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the store met. After `Timeout` or `Unavailable` it may exist or not: read it, and then
    /// [`make_durable`](Self::make_durable).
    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError>;

    /// The same for a pack of file data, which may lie in a colder class of storage than what is needed to find it. A wrapper
    /// passes it on.
    ///
    /// # Errors
    /// As [`put_new`](Self::put_new).
    fn put_new_data(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        self.put_new(key, body)
    }

    /// Makes sure that an object which can be read stays: whoever put it may have died before it was durable. Nothing to do where all
    /// that can be read is durable. A wrapper passes it on.
    ///
    /// # Errors
    /// What the store met.
    fn make_durable(&self, _key: &ObjectKey) -> Result<(), StoreError> {
        Ok(())
    }

    /// Creates or replaces an object (hints only: leases).
    ///
    /// # Errors
    /// What the store met.
    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError>;

    /// Removes an object; one that is not there is removed already.
    ///
    /// # Errors
    /// What the store met.
    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Up to `limit` objects whose names begin with `prefix` (any string, also half a segment), in byte order, after
    /// the name `after`. Foreign files (temporary ones, names that are no [`ObjectKey`]) are left out.
    ///
    /// # Errors
    /// What the store met. A prefix without objects is an empty list.
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError>;

    /// The first few names that listings left out because they are no [`ObjectKey`], for warnings. A wrapper passes it on.
    fn left_out(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes of bodies that the store was sent since it was opened, those of calls under way included, of calls that failed not: for
    /// whoever waits for uploads. None from a store that doesn't tell. A wrapper passes it on.
    fn bytes_sent(&self) -> Option<u64> {
        None
    }

    /// Free and total bytes where the store knows them.
    ///
    /// # Errors
    /// What the store met.
    fn space(&self) -> Result<Option<(u64, u64)>, StoreError> {
        Ok(None)
    }
}
