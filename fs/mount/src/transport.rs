//! The session with the kernel: what is agreed on, which thread reads requests, how it ends. FUSE over io_uring would
//! replace this file and no other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, InitFlags, KernelConfig, Notifier, Session, SessionACL};

use crate::adapter::Adapter;
use crate::error::MountError;

/// Largest write and read in one request: what the kernel allows by default (`fs.fuse.max_pages_limit`).
const MAX_REQUEST: u32 = 1 << 20;
/// Requests the kernel sends without somebody waiting for each, like read-ahead. If all are writes that wait for room, half of what may
/// wait is left to others.
const MAX_BACKGROUND: u16 = 32;

/// What is asked of the kernel where it knows it.
///
/// Not asked for: `WRITEBACK_CACHE` (after `write` the daemon has the data), `POSIX_LOCKS` and `FLOCK_LOCKS` (the
/// kernel keeps locks itself, which is right for one machine), `AUTO_INVAL_DATA` (would drop cached pages after each
/// write of our own), `SETXATTR_EXT` (fuser 0.18 panics), `NO_OPENDIR_SUPPORT` (the kernel would keep every listing, and
/// may keep one from before a change if others list and change the directory at the same moment).
///
/// With `POSIX_ACL` the kernel checks permissions by ACLs and leaves the rest to the filesystem: the mode follows a
/// list and a list the mode, and what is made inherits. `DONT_MASK` goes with it, for a default ACL counts instead of
/// the umask.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// Answers the kernel's offer.
pub(crate) fn agree(config: &mut KernelConfig) {
    let offered = config.capabilities();
    for capability in WANTED {
        if offered.contains(capability) && config.add_capabilities(capability).is_err() {
            tracing::warn!(?capability, "Offered by the kernel and refused by the library");
        }
    }
    // Each of these is an error only beside the value that is set instead.
    if let Err(nearest) = config.set_max_write(MAX_REQUEST) {
        tracing::warn!(nearest, "The library does not take the size of a write");
    }
    if config.set_max_background(MAX_BACKGROUND).is_err() {
        tracing::warn!("The library does not take the number of background requests");
    }
}

/// A session that has been set up and isn't served yet.
pub(crate) struct Transport {
    session: Session<Adapter>,
}

impl Transport {
    /// Shakes hands over `device`. `event_threads` read requests.
    pub(crate) fn new(
        adapter: Adapter,
        device: OwnedFd,
        allow_other: bool,
        event_threads: usize,
    ) -> Result<Self, MountError> {
        let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(event_threads.max(1));
        let session = Session::from_fd(adapter, device, acl, config).map_err(MountError::Handshake)?;
        Ok(Self { session })
    }

    /// A copy of the descriptor requests are read from.
    pub(crate) fn device(&self) -> io::Result<OwnedFd> {
        self.session.as_fd().try_clone_to_owned()
    }

    /// Tells the kernel what changed without it.
    pub(crate) fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Serves requests in threads of its own until the mount is gone.
    pub(crate) fn serve(self) -> Result<JoinHandle<io::Result<()>>, MountError> {
        let session = self.session;
        std::thread::Builder::new()
            .name("axiomfs-session".into())
            .spawn(move || session.run())
            .map_err(MountError::Thread)
    }
}

/// Lets the kernel read ahead as much as fits into one request. It starts with 128 KiB and only takes more over
/// `/sys`, which needs root: without that reads are as they were.
pub(crate) fn widen_read_ahead(device_number: &str) {
    let path = format!("/sys/class/bdi/{device_number}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, (MAX_REQUEST / 1024).to_string()) {
        tracing::debug!(%error, path, "Read-ahead of the kernel stays as it is");
    }
}

/// Polling makes sense for one reader only: several would take the CPUs from those they serve.
pub(crate) fn polling_tick(asked: Duration, event_threads: usize) -> Duration {
    if event_threads > 1 && !asked.is_zero() {
        tracing::info!("Requests are not polled for with more than one event thread");
        return Duration::ZERO;
    }
    asked
}
