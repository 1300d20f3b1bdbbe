use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_api::ObjectKey;

/// How many files stay open: the segments of an index, or the packs that a tree is read from.
const MOST: usize = 16;
/// For how long after their last use, so that the store's disk can be unmounted, and what somebody deleted takes no space.
const UNUSED: Duration = Duration::from_secs(10);

/// Files that were read lately, still open: opening and closing one costs as much as reading a page of it.
///
/// Who uses one compares it with what has the object's name at that moment, so what was deleted or replaced is not read.
#[derive(Debug)]
pub struct Opened {
    shared: Arc<Shared>,
    unused: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The latest used last.
    files: Vec<Kept>,
    /// A thread will close what is not used.
    watched: bool,
    ended: bool,
}

#[derive(Debug)]
struct Kept {
    key: ObjectKey,
    identity: Identity,
    file: Arc<File>,
    used: Instant,
}

impl Default for Opened {
    fn default() -> Self {
        Self { shared: Arc::default(), unused: UNUSED }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
    }
}

impl Opened {
    /// The object's open file. What has the object's name is to be looked at after this call, and compared by its [`Identity`].
    pub fn get(&self, key: &ObjectKey) -> Option<(Arc<File>, Identity)> {
        let mut state = self.shared.lock();
        let at = state.files.iter().rposition(|kept| kept.key == *key)?;
        let kept = &mut state.files[at];
        kept.used = Instant::now();
        let found = (Arc::clone(&kept.file), kept.identity);
        state.files[at..].rotate_left(1);
        Some(found)
    }

    /// Keeps the object's `file`, which `metadata` is of, in the place of the one used longest ago.
    pub fn keep(&self, key: &ObjectKey, metadata: &Metadata, file: Arc<File>) {
        let kept = Kept { key: key.clone(), identity: Identity::of(metadata), file, used: Instant::now() };
        let mut state = self.shared.lock();
        if !state.watched && !self.watch(&mut state) {
            return;
        }
        let mut closed: Vec<_> = state.files.extract_if(.., |other| other.key == kept.key).collect();
        if state.files.len() == MOST {
            closed.push(state.files.remove(0));
        }
        state.files.push(kept);
        drop(state);
        // Without the lock: closing may wait for a network.
        drop(closed);
    }

    /// Closes the object's file.
    pub fn forget(&self, key: &ObjectKey) {
        let mut state = self.shared.lock();
        let closed: Vec<_> = state.files.extract_if(.., |kept| kept.key == *key).collect();
        drop(state);
        drop(closed);
    }

    /// Starts the thread that closes what is not used. It ends when there is nothing left to close.
    fn watch(&self, state: &mut State) -> bool {
        let (shared, unused) = (Arc::clone(&self.shared), self.unused);
        let thread = std::thread::Builder::new().name("close-unused".to_owned());
        state.watched = thread.spawn(move || shared.close_unused(unused)).is_ok();
        state.watched
    }
}

impl Shared {
    fn close_unused(&self, unused: Duration) {
        let mut state = self.lock();
        // Closed without the lock.
        let mut closed: Vec<Kept>;
        while !state.ended {
            let oldest = state.files.first().map_or(Duration::ZERO, |kept| kept.used.elapsed());
            let left = unused.saturating_sub(oldest).max(unused / 8);
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            closed = state.files.extract_if(.., |kept| kept.used.elapsed() >= unused).collect();
            if state.files.is_empty() {
                state.watched = false;
                drop(state);
                return drop(closed);
            }
            drop(state);
            drop(closed);
            state = self.lock();
        }
        closed = std::mem::take(&mut state.files);
        drop(state);
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Device and inode: what tells a file or directory from all others, while it is open or stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, u64);

impl Identity {
    /// That of what `metadata` is of.
    pub fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

#[cfg(test)]
mod tests {
    use axiomfs_api::{Body, Store};

    use super::*;
    use crate::LocalStore;

    #[test]
    fn what_nobody_uses_is_closed() {
        let key = ObjectKey::new("packs/a").expect("a valid name");
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let metadata = file.metadata().expect("its attributes");
        let opened = Opened { shared: Arc::default(), unused: Duration::from_millis(20) };
        for _ in 0..2 {
            opened.keep(&key, &metadata, Arc::clone(&file));
            let begun = Instant::now();
            while Arc::strong_count(&file) > 1 {
                assert!(begun.elapsed() < Duration::from_secs(20), "it stays open");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(opened.get(&key).is_none());
        }
        let patient = Opened { shared: Arc::default(), unused: Duration::from_secs(3600) };
        patient.keep(&key, &metadata, Arc::clone(&file));
        assert!(patient.get(&key).is_some_and(|(_, identity)| identity == Identity::of(&metadata)));
        patient.forget(&key);
        assert!(patient.get(&key).is_none() && Arc::strong_count(&file) == 1);
    }

    #[test]
    fn an_open_file_that_can_no_longer_be_read_is_opened_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::create(dir.path()).expect("creates");
        let key = ObjectKey::new("packs/a").expect("a valid name");
        store.put_new(&key, Body::Bytes(b"bytes")).expect("creates");
        // As one whose server was away for a while.
        let unreadable = File::options().write(true).open(dir.path().join("packs/a")).expect("opens");
        let metadata = unreadable.metadata().expect("its attributes");
        store.opened.keep(&key, &metadata, Arc::new(unreadable));
        for _ in 0..2 {
            assert_eq!(store.get_range(&key, 1, 3).expect("reads"), b"yte");
        }
    }
}
