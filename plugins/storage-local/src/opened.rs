use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many files stay open: the segments of an index, or the packs that a tree is read from.
const MOST: usize = 16;
/// For how long they should stay open after their last use, so that an object that somebody deleted does not hold its space.
pub const UNUSED: Duration = Duration::from_secs(10);

/// Files that were read lately, still open: opening and closing one costs as much as reading a page of it.
///
/// Each use names the file that has the object's name at that moment, so what was deleted or replaced is not read.
#[derive(Debug, Default)]
pub struct Opened {
    /// The latest used last.
    files: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// Device and inode. No other file can have them while this one is open.
    identity: (u64, u64),
    file: Arc<File>,
    used: Instant,
}

impl Opened {
    /// The open file that `metadata` is of.
    pub fn get(&self, metadata: &Metadata) -> Option<Arc<File>> {
        let identity = identity(metadata);
        let mut files = self.lock();
        let at = files.iter().rposition(|kept| kept.identity == identity)?;
        files[at].used = Instant::now();
        files[at..].rotate_left(1);
        Some(files.last()?.file.clone())
    }

    /// Keeps `file`, which `metadata` is of, in the place of the one used longest ago.
    pub fn keep(&self, metadata: &Metadata, file: Arc<File>) {
        let kept = Kept { identity: identity(metadata), file, used: Instant::now() };
        let mut files = self.lock();
        files.retain(|other| other.identity != kept.identity);
        let closed = if files.len() < MOST { None } else { Some(files.remove(0)) };
        files.push(kept);
        drop(files);
        drop(closed);
    }

    /// Closes what was not used for so long.
    pub fn close_unused(&self, long: Duration) {
        self.lock().retain(|kept| kept.used.elapsed() < long);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_uses_is_closed() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let metadata = file.metadata().expect("its attributes");
        let opened = Opened::default();
        opened.keep(&metadata, Arc::clone(&file));
        opened.close_unused(Duration::from_secs(3600));
        assert!(opened.get(&metadata).is_some());
        opened.close_unused(Duration::ZERO);
        assert!(opened.get(&metadata).is_none());
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
