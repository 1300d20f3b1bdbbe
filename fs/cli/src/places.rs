//! Directories on this machine: where they are by default, that they don't overlap, and who holds them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axiomfs_mount::is_dead_mount_of;

use crate::failure::Failure;
use crate::system;

/// How the purpose of a holder begins whose mount is gone.
const DRAINING: &str = "unmounted, still sending to ";
/// How the purpose of a holder begins that only reads.
pub(crate) const READER: &str = "read-only ";

/// Environment variables that the defaults depend on.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `XDG_STATE_HOME`
    pub state_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`
    pub cache_home: Option<PathBuf>,
}

impl Surroundings {
    /// Reads the environment. Relative paths in the XDG variables don't count, as their specification demands.
    pub fn read() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self { home: absolute("HOME"), state_home: absolute("XDG_STATE_HOME"), cache_home: absolute("XDG_CACHE_HOME") }
    }
}

/// The two local directories of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Log, staged packs, manifest: may hold the only copy of acknowledged data.
    pub state: PathBuf,
    /// What can be fetched again.
    pub cache: PathBuf,
}

impl Places {
    /// What was asked for, or the defaults for a volume whose local name is `volume`.
    ///
    /// # Errors
    /// [`Failure`] if neither a directory is given nor a home is known.
    pub fn choose(
        state: Option<&Path>,
        cache: Option<&Path>,
        volume: &str,
        surroundings: &Surroundings,
    ) -> Result<Self, Failure> {
        let default = |base: &Option<PathBuf>, below_home: &str, option: &str| {
            let home = || surroundings.home.as_ref().map(|home| home.join(below_home));
            let base = base.clone().or_else(home).ok_or_else(|| {
                Failure::usage(format!("HOME is not set, so there is no default for {option}"))
                    .hint(format!("give {option} DIR"))
            })?;
            Ok::<_, Failure>(base.join("axiomfs").join(volume))
        };
        let state = match (state, cache) {
            (Some(state), _) => state.to_owned(),
            (None, Some(cache)) => cache.join("state"),
            (None, None) => default(&surroundings.state_home, ".local/state", "--state")?,
        };
        let cache = match cache {
            Some(cache) => cache.to_owned(),
            None => default(&surroundings.cache_home, ".cache", "--cache")?,
        };
        Ok(Self { state: settle(&state)?, cache: settle(&cache)? })
    }

    /// Refuses directories that lie in one another, where one would store itself or be hidden by the mount.
    ///
    /// # Errors
    /// [`Failure`] that names both.
    pub fn check_apart(&self, store: Option<&Path>, mountpoint: Option<&Path>) -> Result<(), Failure> {
        let mut pairs = Vec::new();
        let locals = [("state directory", "--state", &self.state), ("cache directory", "--cache", &self.cache)];
        for (name, option, path) in locals {
            if let Some(store) = store {
                pairs.push((name, path.as_path(), "store", store, option));
            }
            if let Some(mountpoint) = mountpoint {
                pairs.push((name, path.as_path(), "mount point", mountpoint, option));
            }
        }
        if let (Some(store), Some(mountpoint)) = (store, mountpoint) {
            pairs.push(("store", store, "mount point", mountpoint, "MOUNTPOINT"));
        }
        if self.state == self.cache {
            let shown = self.state.display();
            return Err(Failure::new(format!("The state directory {shown} is also the cache directory"))
                .hint("leave out --state: it is a directory in the cache directory then"));
        }
        for (name_a, a, name_b, b, option) in pairs {
            let relation = if a == b {
                "is also"
            } else if a.starts_with(b) {
                "lies inside"
            } else if b.starts_with(a) {
                "contains"
            } else {
                continue;
            };
            return Err(Failure::new(format!("The {name_a} {} {relation} the {name_b} {}", a.display(), b.display()))
                .hint(format!("choose another {option}")));
        }
        Ok(())
    }
}

/// An absolute path, whose links stay as they are.
///
/// # Errors
/// [`Failure`] if the working directory is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| lost(path, &error))
}

/// An absolute path by which a file can be read again later, also by another process: with its links as they are, so that whoever
/// follows them again finds what they lead to then. Where they go by a descriptor of this process, as `/dev/stdin` does, what that leads
/// to; none if that is no file with a name.
///
/// # Errors
/// [`Failure`] if the working directory is gone.
pub fn lasting(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let absolute = absolute(path)?;
    if !["/dev", "/proc"].iter().any(|of_process| absolute.starts_with(of_process)) {
        return Ok(Some(absolute));
    }
    Ok(absolute.canonicalize().ok().filter(|file| file.is_file() && !file.starts_with("/proc")))
}

fn lost(path: &Path, error: &io::Error) -> Failure {
    Failure::caused(format!("Could not find out where {} is", path.display()), error)
}

/// An absolute path without links, also for what does not exist yet below its nearest existing parent.
///
/// # Errors
/// [`Failure`] if a parent can't be read.
pub fn settle(path: &Path) -> Result<PathBuf, Failure> {
    let absolute = absolute(path)?;
    let mut missing = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match existing.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(lost(path, &error)),
        }
        match (existing.parent(), existing.file_name()) {
            (Some(parent), Some(name)) => {
                missing.push(name.to_owned());
                existing = parent;
            }
            _ => return Ok(absolute),
        }
    }
}

/// What stands in a lock file, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Name of the machine.
    pub host: String,
    /// When it took the lock, as people write it.
    pub since: String,
    /// What for: `mount of STORE on MOUNTPOINT`.
    pub purpose: String,
}

/// The exclusive right to a directory, as long as it lives or its process does.
#[derive(Debug)]
pub struct DirectoryLock(File);

impl DirectoryLock {
    /// Makes the directory if need be, closes it to others, and locks it.
    ///
    /// # Errors
    /// [`Failure`] that names the holder if there is one, or says what is wrong with the directory.
    pub fn take(directory: &Path, name: &str, holder: &Holder) -> Result<Self, Failure> {
        let shown = directory.display();
        let failed = |error: io::Error| Failure::caused(format!("Could not use the {name} {shown}"), &error);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let meta = fs::metadata(directory).map_err(failed)?;
        if meta.uid() != system::user().0 {
            return Err(Failure::new(format!("The {name} {shown} belongs to another user (uid {})", meta.uid()))
                .hint("choose another, or mount as that user"));
        }
        let path = directory.join("lock");
        if meta.mode() & 0o077 != 0 {
            // Others may rely on it: only what is ours alone is closed to them.
            let is_ours = fs::symlink_metadata(&path).is_ok_and(|lock| lock.is_file() && lock.uid() == meta.uid());
            let is_empty = || fs::read_dir(directory).map(|mut entries| entries.next().is_none());
            if !is_ours && !is_empty().map_err(failed)? {
                return Err(Failure::new(format!("The {name} {shown} is open to others and has other things in it"))
                    .hint(format!("give a directory of its own, as {}", directory.join("axiomfs").display())));
            }
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        if !system::try_lock(&file).map_err(failed)? {
            let mut text = String::new();
            // The holder may be writing it right now: then the message has less in it.
            let who = match file.read_to_string(&mut text) {
                Ok(_) => Holder::parse(&text),
                Err(_) => Holder::default(),
            };
            let hint = if who.purpose.starts_with(DRAINING) {
                "it ends by itself once what it was given is in the store: wait for that"
            } else if holder.purpose.starts_with(READER) {
                "each mount has directories of its own: give this one --state DIR and --cache DIR"
            } else {
                "a volume has one writer: unmount that one first, with `axiomfs umount`"
            };
            return Err(Failure::new(format!("The {name} {shown} is in use by {who}")).hint(hint));
        }
        let lock = Self(file);
        lock.describe(holder).map_err(failed)?;
        Ok(lock)
    }

    /// Says who holds it, and what for.
    ///
    /// # Errors
    /// What the disk answers.
    pub fn describe(&self, holder: &Holder) -> io::Result<()> {
        let mut file = &self.0;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(holder.render().as_bytes())
    }
}

/// Whether who holds the state directory has said that nothing is mounted any more.
pub fn is_draining(state: &Path) -> bool {
    fs::read_to_string(state.join("lock")).is_ok_and(|text| Holder::parse(&text).purpose.starts_with(DRAINING))
}

impl Holder {
    /// The same when nothing is mounted any more, and not all is in `store` yet.
    pub fn draining(self, store: &str) -> Self {
        Self { purpose: format!("{DRAINING}{store}"), ..self }
    }

    fn render(&self) -> String {
        format!("{}\n{}\n{}\n{}\n", self.pid, self.host, self.since, self.purpose)
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or("").chars().take(300).collect::<String>();
        Self { pid: next().parse().unwrap_or(0), host: next(), since: next(), purpose: next() }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process");
        }
        write!(f, "process {} on {} since {} ({})", self.pid, self.host, self.since, self.purpose)
    }
}

/// Checks that something can be mounted here, and settles the path.
///
/// # Errors
/// [`Failure`] that says what to do.
pub fn check_mountpoint(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let shown = mountpoint.display();
    let meta = match fs::metadata(mountpoint) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(
                Failure::new(format!("The mount point {shown} does not exist")).hint(format!("run: mkdir {shown}"))
            );
        }
        Err(error) => return Err(Failure::caused(format!("Could not look at the mount point {shown}"), &error)),
    };
    if !meta.is_dir() {
        return Err(
            Failure::new(format!("The mount point {shown} is not a directory")).hint("choose an empty directory")
        );
    }
    let settled = settle(mountpoint)?;
    if is_axiomfs(&settled) {
        return Err(Failure::new(format!("An axiomfs is mounted on {shown} already"))
            .hint(format!("run: axiomfs umount {shown}, or choose another mount point")));
    }
    let mut entries = fs::read_dir(&settled)
        .map_err(|error| Failure::caused(format!("Could not list the mount point {shown}"), &error))?;
    if entries.next().is_some() {
        return Err(Failure::new(format!("The mount point {shown} is not empty")).hint("choose an empty directory"));
    }
    Ok(settled)
}

/// Whether an error means that the daemon behind a mount is gone.
pub fn is_stale(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Checks that the stale mount at this mount point is one of `store`, which mounting that store again clears away, and settles
/// the path.
///
/// # Errors
/// [`Failure`] that says what to do, if it is a mount of something else.
pub fn check_stale_mount(mountpoint: &Path, store: &str) -> Result<PathBuf, Failure> {
    let settled = settle(mountpoint)?;
    match is_dead_mount_of(&settled, store) {
        Ok(true) => Ok(settled),
        Ok(false) => Err(stale(mountpoint)),
        Err(error) => Err(Failure::caused("Could not read the table of mounts", &error)),
    }
}

/// What to say of a mount whose daemon is gone.
pub fn stale(mountpoint: &Path) -> Failure {
    let shown = mountpoint.display();
    Failure::new(format!("The mount on {shown} is stale: its daemon is gone"))
        .hint(format!("run: axiomfs umount {shown}, then mount again; what was written is in the state directory"))
}

/// Whether an axiomfs answers here.
pub fn is_axiomfs(path: &Path) -> bool {
    fs::symlink_metadata(path.join(".axiomfs/status")).is_ok()
}

#[cfg(test)]
mod tests;
