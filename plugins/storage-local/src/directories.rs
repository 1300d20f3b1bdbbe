use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Which of the store's directories are known to survive a power cut.
///
/// One that merely exists may have been made a moment ago, by another thread or by a process that died before it fsynced
/// the parent; so each is made durable once by each process that puts something into it.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    durable: Mutex<HashSet<PathBuf>>,
}

impl Directories {
    pub fn new(root: PathBuf) -> Self {
        Self { root, durable: Mutex::default() }
    }

    /// The absolute path of `relative`, which exists durably when this returns.
    pub fn ensure(&self, relative: &Path) -> io::Result<PathBuf> {
        let path = self.root.join(relative);
        if relative.as_os_str().is_empty() {
            return Ok(path);
        }
        // Held while directories are made: rare, short, and nobody may go on before they are durable.
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.contains(relative) {
            return Ok(path);
        }
        let mut parent = self.root.clone();
        let mut made = PathBuf::new();
        for segment in relative.components() {
            made.push(segment);
            let child = self.root.join(&made);
            if !durable.contains(&made) {
                let is_new = make(&child)?;
                if let Err(error) = File::open(&parent).and_then(|parent| parent.sync_all()) {
                    // The next try must not find it and sync what is clean by then.
                    if is_new {
                        fs::remove_dir(&child)?;
                    }
                    return Err(error);
                }
                durable.insert(made.clone());
            }
            parent = child;
        }
        Ok(path)
    }

    /// Forgets what is known, because a directory turned out to be gone.
    pub fn forget(&self) {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Makes `path` and the parents it lacks, each durably.
pub fn make_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().ok_or(io::ErrorKind::NotFound)?;
    make_durable(parent)?;
    make(path)?;
    File::open(parent)?.sync_all()
}

/// Whether it was not there before.
fn make(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::metadata(path)?.is_dir() => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::NotADirectory.into()),
        made => made.map(|()| true),
    }
}
