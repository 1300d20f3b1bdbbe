//! A cache on this machine of what was read and written of index segments and packs of tree nodes, for stores where each request costs a
//! round trip: a mount that comes back finds there what it begins with.
//!
//! Whatever is wrong with it costs a request and nothing else. Ranges are kept as they lie in the store, sealed, each under a
//! hash, since a disk that flips bits must not look like a damaged store.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use axiomfs_api::{ObjectKey, Store, StoreError};

use crate::error::{RepositoryError, again_if_damaged};
use crate::ids::hex;
use crate::temporary::Temporary;

/// Bytes that are kept; beyond them the oldest half goes.
const MOST: u64 = 64 << 20;
/// Longer ranges are not kept: who reads so much at once has other costs.
const LONGEST: u64 = 4 << 20;
const HASH: usize = 32;

/// A store, and where there is one a cache before it, for objects that never change.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) near: Option<Arc<Near>>,
}

impl Source {
    /// `len` bytes at `offset` of an object.
    pub(crate) fn range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        match &self.near {
            Some(near) => near.range(self.store.as_ref(), key, offset, len),
            None => self.store.get_range(key, offset, len),
        }
    }

    /// What `read` gives. If that is damage of the object, it is read once more, from the store itself.
    pub(crate) fn again_if_damaged<T>(
        &self,
        key: &ObjectKey,
        mut read: impl FnMut() -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        again_if_damaged(|| {
            read().inspect_err(|error| {
                if let (RepositoryError::Corrupt { .. }, Some(near)) = (error, &self.near) {
                    near.forget(key);
                }
            })
        })
    }
}

/// Ranges of objects in a directory.
#[derive(Debug)]
pub(crate) struct Near {
    dir: PathBuf,
    bytes: AtomicU64,
    next: AtomicU64,
}

impl Near {
    /// Keeps ranges in `dir`, which is made if it isn't there.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let near = Self { dir, bytes: AtomicU64::new(0), next: AtomicU64::new(0) };
        near.bytes.store(near.files()?.iter().map(|(_, _, len)| len).sum(), Ordering::Relaxed);
        Ok(near)
    }

    /// `len` bytes at `offset` of an object that never changes.
    pub(crate) fn range(
        &self,
        store: &dyn Store,
        key: &ObjectKey,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, StoreError> {
        let path = self.dir.join(format!("{}-{offset}-{len}", prefix(key)));
        if let Some(bytes) = kept(&path, len) {
            return Ok(bytes);
        }
        if let Some(bytes) = self.part_of_whole(key, offset, len) {
            return Ok(bytes);
        }
        let bytes = store.get_range(key, offset, len)?;
        if len <= LONGEST
            && let Err(error) = self.keep(&path, &bytes)
        {
            tracing::debug!(%error, path = %path.display(), "could not keep what was read");
        }
        Ok(bytes)
    }

    /// Keeps all of an object that was just stored, from its file.
    pub(crate) fn keep_whole(&self, key: &ObjectKey, file: &Path, len: u64) {
        if len > LONGEST {
            return;
        }
        if let Err(error) = fs::read(file).and_then(|bytes| self.keep(&self.whole(key), &bytes)) {
            tracing::debug!(%error, path = %file.display(), "could not keep what was written");
        }
    }

    fn part_of_whole(&self, key: &ObjectKey, offset: u64, len: u64) -> Option<Vec<u8>> {
        let path = self.whole(key);
        let all = kept(&path, fs::metadata(&path).ok()?.len().checked_sub(HASH as u64)?)?;
        let (start, end) = (usize::try_from(offset).ok()?, usize::try_from(offset.checked_add(len)?).ok()?);
        all.get(start..end).map(<[u8]>::to_vec)
    }

    fn whole(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join(format!("{}-whole", prefix(key)))
    }

    /// Drops what is kept of an object: it was damaged on its way here.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        let prefix = prefix(key);
        let is_of = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        self.remove(|files| files.retain(|(path, ..)| is_of(path)));
    }

    fn keep(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary::new(self.dir.join(format!("new-{}-{number}", std::process::id())));
        let mut file = fs::File::create(temporary.path())?;
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.write_all(bytes)?;
        fs::rename(temporary.path(), path)?;
        temporary.keep();
        let more = (bytes.len() + HASH) as u64;
        if self.bytes.fetch_add(more, Ordering::Relaxed) + more > MOST {
            self.remove(|files| {
                files.sort_by_key(|(_, time, _)| *time);
                files.truncate(files.len().div_ceil(2));
            });
        }
        Ok(())
    }

    /// Removes the files that `choose` leaves of all.
    fn remove(&self, choose: impl FnOnce(&mut Vec<(PathBuf, SystemTime, u64)>)) {
        let removed = self.files().and_then(|mut files| {
            choose(&mut files);
            for (path, _, len) in files {
                fs::remove_file(&path)?;
                self.bytes.fetch_sub(len.min(self.bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::debug!(%error, dir = %self.dir.display(), "could not tidy up the cache");
        }
    }

    fn files(&self) -> io::Result<Vec<(PathBuf, SystemTime, u64)>> {
        fs::read_dir(&self.dir)?
            .map(|entry| {
                let entry = entry?;
                let meta = entry.metadata()?;
                Ok((entry.path(), meta.modified()?, meta.len()))
            })
            .collect()
    }
}

fn prefix(key: &ObjectKey) -> String {
    hex::encode(&blake3::hash(key.as_str().as_bytes()).as_bytes()[..16])
}

/// What the file has, if it is whole.
fn kept(path: &Path, len: u64) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let rest = bytes.split_off(HASH.min(bytes.len()));
    let is_whole = rest.len() as u64 == len && blake3::hash(&rest).as_bytes().as_slice() == bytes;
    is_whole.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axiomfs_api::Body;
    use axiomfs_host::Faulty;
    use axiomfs_storage_memory::MemoryStore;

    #[test]
    fn a_range_is_asked_for_once_and_again_where_the_disk_or_the_way_damaged_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Faulty::new(Arc::new(MemoryStore::new()));
        let key = ObjectKey::new("index/a").unwrap();
        store.put_new(&key, Body::Bytes(b"0123456789")).unwrap();
        let near = Near::open(dir.path().join("near")).unwrap();
        let read = |near: &Near| {
            let before = store.calls();
            assert_eq!(near.range(&store, &key, 2, 5).unwrap(), b"23456");
            store.calls() - before
        };
        assert_eq!((read(&near), read(&near)), (1, 0));
        let near = Near::open(dir.path().join("near")).unwrap();
        assert_eq!(read(&near), 0, "another mount finds it");
        let file = near.files().unwrap()[0].0.clone();
        let mut bytes = fs::read(&file).unwrap();
        bytes[HASH + 1] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!((read(&near), read(&near)), (1, 0), "damage costs a request");
        near.forget(&key);
        assert_eq!((read(&near), near.files().unwrap().len()), (1, 1));
        fs::remove_dir_all(&near.dir).unwrap();
        assert_eq!((read(&near), read(&near)), (1, 1), "without a directory nothing is kept and all is read");
    }

    #[test]
    fn what_was_written_is_not_asked_for_until_the_disk_has_damaged_it() {
        let dir = tempfile::tempdir().unwrap();
        let (near, file) = (Near::open(dir.path().join("near")).unwrap(), dir.path().join("file"));
        let store = Faulty::new(Arc::new(MemoryStore::new()));
        let key = ObjectKey::new("packs/a").unwrap();
        store.put_new(&key, Body::Bytes(b"0123456789")).unwrap();
        fs::write(&file, b"0123456789").unwrap();
        near.keep_whole(&key, &file, 10);
        let before = store.calls();
        for (offset, len) in [(0, 10), (2, 5), (9, 1), (10, 0)] {
            let expected = &b"0123456789"[offset..offset + len];
            assert_eq!(near.range(&store, &key, offset as u64, len as u64).unwrap(), expected);
        }
        assert_eq!(store.calls(), before);
        assert!(near.range(&store, &key, 5, 6).is_err(), "what lies beyond the end is the store's to refuse");
        let mut bytes = fs::read(near.whole(&key)).unwrap();
        bytes[HASH + 3] ^= 1;
        fs::write(near.whole(&key), &bytes).unwrap();
        assert_eq!(near.range(&store, &key, 2, 5).unwrap(), b"23456");
        near.forget(&key);
        assert_eq!(near.files().unwrap().len(), 0);
    }

    #[test]
    fn it_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let near = Near::open(dir.path().to_owned()).unwrap();
        for number in 0..40u8 {
            near.keep(&dir.path().join(format!("{number}")), &vec![number; 4 << 20]).unwrap();
            let bytes: u64 = near.files().unwrap().iter().map(|(_, _, len)| len).sum();
            assert!(bytes <= MOST && bytes == near.bytes.load(Ordering::Relaxed), "{bytes} bytes after {number}");
        }
    }
}
