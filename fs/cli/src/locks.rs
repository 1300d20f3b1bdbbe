//! The locks of both local directories, and the undoing of an attempt that failed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::places::{DirectoryLock, Holder, Places};

/// Held as long as a volume is open here.
pub struct Locks {
    held: Vec<DirectoryLock>,
    /// Directories that were not there before.
    made: Vec<PathBuf>,
}

impl Locks {
    /// Makes, closes to others and locks both directories.
    ///
    /// # Errors
    /// [`Failure`] that names the holder if there is one.
    pub fn take(places: &Places, holder: &Holder) -> Result<Self, Failure> {
        let mut locks = Self { held: Vec::new(), made: Vec::new() };
        for (name, directory) in [("state directory", &places.state), ("cache directory", &places.cache)] {
            locks.made.extend(missing(directory));
            match DirectoryLock::take(directory, name, holder) {
                Ok(lock) => locks.held.push(lock),
                Err(failure) => {
                    locks.undo();
                    return Err(failure);
                }
            }
        }
        Ok(locks)
    }

    /// Says in both what they are held for from now on. Only messages of others go by it.
    pub fn describe(&self, holder: &Holder) {
        for lock in &self.held {
            if let Err(error) = lock.describe(holder) {
                tracing::debug!(%error, "could not say what the directories are held for");
            }
        }
    }

    /// Removes what an attempt that failed has made. Only empty directories go: anything else may be data.
    pub fn undo(self) {
        for directory in self.made.iter().rev() {
            for file in ["lock", "axiomfs.log"] {
                note(fs::remove_file(directory.join(file)), directory);
            }
            // What was read of a store can be read again.
            note(fs::remove_dir_all(directory.join("near")), directory);
            note(fs::remove_dir(directory.join("staging")), directory);
            note(fs::remove_dir(directory), directory);
        }
        drop(self.held);
    }
}

/// The directory and its parents, as far as they don't exist, outermost first.
fn missing(directory: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> =
        directory.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

fn note(result: io::Result<()>, directory: &Path) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(directory = %directory.display(), %error, "left something behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_attempt_leaves_nothing_but_what_was_there() {
        let base = std::env::temp_dir().join(format!("axiomfs-cli-{}-undo", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        let places = Places { state: base.join("a/b/state"), cache: base.join("cache") };
        let locks = Locks::take(&places, &Holder::default()).unwrap();
        fs::create_dir(places.state.join("staging")).unwrap();
        locks.undo();
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);

        let locks = Locks::take(&places, &Holder::default()).unwrap();
        fs::write(places.state.join("precious"), "x").unwrap();
        locks.undo();
        assert!(places.state.join("precious").exists());
        assert!(!places.cache.exists());
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_cache_that_holds_the_state_is_locked_beside_it() {
        let base = std::env::temp_dir().join(format!("axiomfs-cli-{}-nested", std::process::id()));
        let places = Places { state: base.join("state"), cache: base.clone() };
        let holder = Holder { pid: 5, ..Holder::default() };
        let locks = Locks::take(&places, &holder).unwrap();
        assert!(Locks::take(&places, &holder).is_err_and(|failure| failure.to_string().contains("process 5")));
        locks.undo();
        assert!(!base.exists());
    }
}
