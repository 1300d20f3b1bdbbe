use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags};

/// Temporary files older than this belong to no put that still runs.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A complete, fsynced file in `tmp/` that has no name yet; removed when dropped.
#[derive(Debug)]
pub struct Staged(PathBuf);

impl Staged {
    /// Writes `bytes` to a new file.
    pub fn write(tmp: &Path, bytes: &[u8]) -> io::Result<Self> {
        let path = tmp.join(unused_name());
        let mut file = crate::create_private(&path)?;
        let staged = Self(path);
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// Makes `source`, complete and fsynced, available under a new name: by a link, or by a copy where that can't be.
    pub fn link_or_copy(tmp: &Path, source: &Path) -> io::Result<Self> {
        let path = tmp.join(unused_name());
        // A symbolic link would be linked itself, not its file.
        if fs::symlink_metadata(source)?.is_file() {
            make_private(source)?;
            match fs::hard_link(source, &path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if needs_copy(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut from = fs::File::open(source)?;
        let mut file = crate::create_private(&path)?;
        let staged = Self(path);
        io::copy(&mut from, &mut file)?;
        file.sync_all()?;
        Ok(staged)
    }

    /// Gives it the name `path`, which must not exist.
    pub fn create(&self, path: &Path) -> io::Result<()> {
        match fs::hard_link(&self.0, path) {
            // A filesystem without hard links, such as exFAT; the flag makes rename refuse an existing name.
            Err(error) if needs_copy(&error) => {
                Ok(rustix::fs::renameat_with(CWD, &self.0, CWD, path, RenameFlags::NOREPLACE)?)
            }
            linked => linked,
        }
    }

    /// Gives it the name `path`, in place of what has it.
    pub fn replace(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.0, path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already after a rename. What can't be removed now is removed as abandoned when the store is next opened.
        fs::remove_file(&self.0).ok();
    }
}

/// Whether a link was refused for a reason that a copy does not have.
pub fn needs_copy(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::CrossesDevices | ErrorKind::TooManyLinks | ErrorKind::PermissionDenied | ErrorKind::Unsupported
    )
}

/// Takes other users' permissions from a file that is to become an object.
pub fn make_private(file: &Path) -> io::Result<()> {
    if fs::metadata(file)?.permissions().mode() & 0o177 == 0 {
        return Ok(());
    }
    match fs::set_permissions(file, Permissions::from_mode(0o600)) {
        // Somebody else's file: it can't be linked either then, and its copy is private.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        set => set,
    }
}

/// Removes what puts of dead processes left in `tmp`. Best effort: it only costs space. Files of others stay, and so does all that a
/// link leads to.
pub fn clean(tmp: &Path) {
    if !fs::symlink_metadata(tmp).is_ok_and(|found| found.is_dir()) {
        return;
    }
    let Ok(entries) = fs::read_dir(tmp) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_unused_name)) {
        let age =
            entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| SystemTime::now().duration_since(t).ok());
        if age.is_some_and(|age| age > ABANDONED) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// A name no other process or thread uses: several machines may share the directory.
fn unused_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("{:x}-{now:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether it is the form of [`unused_name`].
fn is_unused_name(name: &str) -> bool {
    let is_number = |part: &str| (1..=32).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
    name.split('-').count() == 3 && name.split('-').all(is_number)
}
