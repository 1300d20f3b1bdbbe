//! A store in a plain directory: each object is a file of that name.
//!
//! An object is written to `tmp/`, fsynced, hard-linked to its name (which fails if the name exists: that is the
//! create-only put), and its directory is fsynced. So a name appears whole, exactly once, and stays.
#![forbid(unsafe_code)]

mod directories;
mod errors;
mod listing;
mod opened;
mod staged;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use axiomfs_api::{Body, Descriptor, Kind, LeftOut, ObjectKey, ObjectMeta, Store, StoreError, StoreErrorKind};
use rustix::fs::{Mode, OFlags};

use directories::Directories;
use errors::failed;
use opened::{Identity, Opened};
use staged::Staged;

/// Where objects lie before they have their name. Not an object's first segment, therefore.
const TMP: &str = "tmp";

/// What the host must know of this plugin.
pub static DESCRIPTOR: Descriptor = Descriptor {
    id: "local",
    kind: Kind::Store,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Objects as files in a directory of this machine",
    writes: 1,
    reads: &[1],
    provides: &["storage"],
    requires: &[],
    before: &[],
    after: &[],
    memory: 1 << 20,
    skippable: false,
};

/// Objects as files under one directory.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    /// That of the directory.
    identity: Identity,
    directories: Directories,
    opened: Opened,
    left_out: LeftOut,
    /// Whether what dead processes left in `tmp/` was looked for.
    cleaned: Once,
}

impl LocalStore {
    /// Makes the directory, with parents, for a new store.
    ///
    /// # Errors
    /// `AlreadyExists` if it is there and not empty; what making it met.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = absolute(dir.as_ref())?;
        let name = root.display().to_string();
        directories::make_durable(&root).map_err(|error| failed("create", &name, error))?;
        for entry in fs::read_dir(&root).map_err(|error| failed("create", &name, error))? {
            let entry = entry.map_err(|error| failed("create", &name, error))?;
            if entry.file_name() != TMP {
                let found = format!("The directory is not empty: it holds {:?}", entry.file_name());
                return Err(StoreError::new(StoreErrorKind::AlreadyExists, "create", name).with_source(found));
            }
        }
        Self::open(root)
    }

    /// Opens the directory of an existing store.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory; what opening it met.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = absolute(dir.as_ref())?;
        let name = root.display().to_string();
        let metadata = fs::metadata(&root).map_err(|error| failed("open", &name, error))?;
        if !metadata.is_dir() {
            return Err(StoreError::new(StoreErrorKind::Invalid, "open", name).with_source("It is not a directory"));
        }
        let identity = Identity::of(&metadata);
        Ok(Self {
            directories: Directories::new(root.clone()),
            opened: Opened::default(),
            left_out: LeftOut::default(),
            cleaned: Once::new(),
            identity,
            root,
        })
    }

    /// The store's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Fails if the directory is no longer the one that was opened: its disk was unmounted, or it was moved away. What is
    /// there instead must not be written to, and says nothing about which objects exist.
    fn check_root(&self, operation: &'static str, object: &str) -> Result<(), StoreError> {
        match fs::metadata(&self.root) {
            Ok(metadata) if Identity::of(&metadata) == self.identity => Ok(()),
            _ => {
                let reason = format!("{} is gone or another directory now; is its disk mounted?", self.root.display());
                Err(StoreError::new(StoreErrorKind::Unavailable, operation, object).with_source(reason))
            }
        }
    }

    /// `error`, unless it says that an object is missing when in truth the whole store is.
    fn explain(&self, error: StoreError) -> StoreError {
        if error.kind == StoreErrorKind::NotFound
            && let Err(gone) = self.check_root(error.operation, &error.object)
        {
            return gone;
        }
        error
    }

    fn path(&self, operation: &'static str, key: &ObjectKey) -> Result<PathBuf, StoreError> {
        if is_reserved(key.as_str()) {
            let reason = "This store keeps unfinished objects under tmp/";
            return Err(StoreError::new(StoreErrorKind::Invalid, operation, key.as_str()).with_source(reason));
        }
        Ok(self.root.join(key.as_str()))
    }

    /// The object's file, opened, and its attributes.
    fn file(&self, operation: &'static str, key: &ObjectKey) -> Result<(File, Metadata), StoreError> {
        let path = self.path(operation, key)?;
        // What is no file must not be waited for: opening a pipe would.
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(|error| self.explain(errors::reading(operation, key, error.into())))?;
        let metadata = file.metadata().map_err(|error| failed(operation, key.as_str(), error))?;
        if !metadata.is_file() {
            return Err(StoreError::new(StoreErrorKind::NotFound, operation, key.as_str()));
        }
        Ok((file, metadata))
    }

    /// A range of the object's file, if that is open and still has the object's name. Whatever goes wrong, a file opened anew tells
    /// better: an open one may have lost its server.
    fn range_of_kept(&self, key: &ObjectKey, offset: u64, len: u64) -> Option<Vec<u8>> {
        let (file, identity) = self.opened.get(key)?;
        let read = || {
            let metadata = fs::metadata(self.path("get", key).ok()?).ok()?;
            if identity != Identity::of(&metadata) || offset.checked_add(len)? > metadata.len() {
                return None;
            }
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        };
        let bytes = read();
        if bytes.is_none() {
            self.opened.forget(key);
        }
        bytes
    }

    fn staged(&self, body: Body<'_>) -> io::Result<Staged> {
        let tmp = self.directories.ensure(Path::new(TMP))?;
        // Only now: who is asked for an object may be no store at all, and somebody's directory.
        self.cleaned.call_once(|| staged::clean(&tmp));
        match body {
            Body::Bytes(bytes) => Staged::write(&tmp, bytes),
            Body::File(path) => Staged::link_or_copy(&tmp, path),
        }
    }

    /// The directory of an object, below the root.
    fn parent<'p>(&self, path: &'p Path) -> &'p Path {
        path.parent().and_then(|p| p.strip_prefix(&self.root).ok()).unwrap_or(Path::new(""))
    }

    /// Runs `place` on the object's final path, making its directory if need be, then makes the name durable.
    fn place(&self, path: &Path, place: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let parent = self.parent(path);
        let mut directory = self.directories.ensure(parent)?;
        let mut placed = place(path);
        if matches!(&placed, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            // Somebody removed the empty directory since we last used it.
            self.directories.forget();
            directory = self.directories.ensure(parent)?;
            placed = place(path);
        }
        // Also when the name was there already: who is told so may rely on it.
        File::open(directory)?.sync_all()?;
        placed
    }

    /// The same for a name that must not be there. Where it can't be made durable it goes again: the next try would find it, sync what
    /// counts as clean by then, and take that for success.
    fn place_new(&self, path: &Path, place: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        let is_made = std::cell::Cell::new(false);
        let placed = self.place(path, |path| place(path).inspect(|()| is_made.set(true)));
        if placed.is_err() && is_made.get() {
            fs::remove_file(path)?;
        }
        placed
    }
}

impl Store for LocalStore {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn get(&self, key: &ObjectKey, max: u64) -> Result<Vec<u8>, StoreError> {
        let (file, metadata) = self.file("get", key)?;
        let too_long = || {
            let reason = format!("It is longer than the {max} bytes it may have");
            StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str()).with_source(reason)
        };
        if metadata.len() > max {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| failed("get", key.as_str(), error))?;
        if bytes.len() as u64 > max { Err(too_long()) } else { Ok(bytes) }
    }

    fn get_range(&self, key: &ObjectKey, offset: u64, len: u64) -> Result<Vec<u8>, StoreError> {
        if let Some(bytes) = self.range_of_kept(key, offset, len) {
            return Ok(bytes);
        }
        let (file, metadata) = self.file("get", key)?;
        let size = metadata.len();
        // Checked before the buffer is made, so that no damaged index can ask for any amount of memory.
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let reason = format!("It has {size} bytes, asked for {len} at {offset}");
            return Err(StoreError::new(StoreErrorKind::Corrupt, "get", key.as_str()).with_source(reason));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).map_err(|error| failed("get", key.as_str(), error))?;
        self.opened.keep(key, &metadata, Arc::new(file));
        Ok(bytes)
    }

    fn stat(&self, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let path = self.path("stat", key)?;
        let metadata = fs::metadata(path).map_err(|error| self.explain(errors::reading("stat", key, error)))?;
        if !metadata.is_file() {
            return Err(StoreError::new(StoreErrorKind::NotFound, "stat", key.as_str()));
        }
        Ok(ObjectMeta { key: key.clone(), len: metadata.len() })
    }

    /// [`Body::File`] on the same filesystem becomes the object by a second hard link, without a copy; the file itself
    /// stays for its owner to remove. Elsewhere it is copied.
    fn put_new(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let path = self.path("put", key)?;
        self.check_root("put", key.as_str())?;
        let put = || {
            if let Body::File(source) = body
                && fs::symlink_metadata(source)?.is_file()
            {
                staged::make_private(source)?;
                match self.place_new(&path, |path| fs::hard_link(source, path)) {
                    Err(error) if staged::needs_copy(&error) => {}
                    done => return done,
                }
            }
            let staged = self.staged(body)?;
            self.place_new(&path, |path| staged.create(path))
        };
        put().map_err(|error| errors::writing(key, error))?;
        // The store's disk may have been unmounted meanwhile, and all of it made below the mount point.
        self.check_root("put", key.as_str())
    }

    fn make_durable(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.path("make durable", key)?;
        self.check_root("make durable", key.as_str())?;
        let synced =
            self.directories.ensure(self.parent(&path)).and_then(|directory| File::open(directory)?.sync_all());
        synced.map_err(|error| failed("make durable", key.as_str(), error))?;
        self.check_root("make durable", key.as_str())
    }

    fn put(&self, key: &ObjectKey, body: Body<'_>) -> Result<(), StoreError> {
        let path = self.path("put", key)?;
        self.check_root("put", key.as_str())?;
        let put = || {
            let staged = self.staged(body)?;
            self.place(&path, |path| staged.replace(path))
        };
        put().map_err(|error| errors::writing(key, error))?;
        self.check_root("put", key.as_str())
    }

    /// Durable only with the next put into the same directory: a deletion that comes back is repeated.
    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match fs::remove_file(self.path("delete", key)?) {
            Ok(()) => Ok(()),
            Err(error) if errors::is_absent(&error) => self.check_root("delete", key.as_str()),
            Err(error) => Err(failed("delete", key.as_str(), error)),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.check_root("list", prefix)?;
        listing::list(&self.root, prefix, after, limit, &self.left_out).map_err(|error| failed("list", prefix, error))
    }

    fn left_out(&self) -> Vec<String> {
        self.left_out.names()
    }

    fn space(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|error| failed("stat", &self.location(), error.into()))?;
        Ok(Some((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize))))
    }
}

fn is_reserved(name: &str) -> bool {
    name.strip_prefix(TMP).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn absolute(dir: &Path) -> Result<PathBuf, StoreError> {
    std::path::absolute(dir).map_err(|error| failed("open", &dir.display().to_string(), error))
}

/// A new file that nobody else can read.
fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
