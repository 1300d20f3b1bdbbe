//! The mount: serves a volume to the kernel over FUSE.
//!
//! ```text
//! transport   the session with the kernel           pacer     polls for requests while that pays
//! adapter     decodes, calls, replies               service   at once from memory, or on a worker (pool)
//! own_nodes   root, snapshots/, .axiomfs/           keeper    keeps a CPU awake meanwhile
//! control_files   what reading and writing those does
//! ```
//!
//! Nothing but this crate knows FUSE or errno.
#![deny(unsafe_code)]

mod adapter;
mod calls;
mod control;
mod control_files;
mod convert;
mod errno;
mod error;
mod invalidate;
mod keeper;
mod listings;
// Takes over a descriptor that the mount helper sends.
#[allow(unsafe_code)]
mod kernel_mount;
mod mountpoint;
mod nodes;
mod own_nodes;
mod pacer;
mod panics;
mod pool;
mod privileges;
mod removed;
mod replies;
mod service;
mod settling;
mod transport;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axiomfs_live::Volume;

pub use control::{Control, ControlReply, PluginFiles};
pub use error::MountError;
pub use mountpoint::{MountedAt, device_at, is_dead, is_dead_mount_of, where_mounted};

use adapter::Adapter;
use kernel_mount::KernelMount;
use mountpoint::{Detach, MountEntry};
use service::Service;
use transport::Transport;

/// How long an unmount waits for others to let go, where nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// An empty directory.
    pub mountpoint: PathBuf,
    /// Shown by `mount` and `df` as what is mounted: the store.
    pub name: String,
    /// Users other than the one who mounts may use it, as permissions allow.
    pub allow_other: bool,
    /// Nothing can be changed; the volume may have another writer.
    pub read_only: bool,
    /// Threads for reads and writes that have to wait.
    pub workers: usize,
    /// How long the reader of requests polls for more after the last one, while that pays; 0 switches it off.
    pub poll: Duration,
    /// Threads that read requests. Polling needs 1, and 1 is as fast for a single client.
    pub event_threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            mountpoint: PathBuf::new(),
            name: String::new(),
            allow_other: false,
            read_only: false,
            workers: 8,
            poll: Duration::from_millis(1),
            event_threads: 1,
        }
    }
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Mounted {
    session: Option<JoinHandle<io::Result<()>>>,
    service: ServiceHandle,
    unmounter: Unmounter,
}

/// Unmounts, from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    path: PathBuf,
    /// What the kernel calls our mount; nothing else at the same place is touched.
    entry: Option<MountEntry>,
    ended: Arc<AtomicBool>,
}

struct ServiceHandle(Arc<Service>);

impl std::fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

/// Mounts `volume` and serves it. Returns when the mount answers.
///
/// # Errors
/// The mount point is missing, no directory, not empty or in use; the kernel or its helper refuses; a thread can't be
/// started. In each case nothing stays mounted.
pub fn mount(volume: Arc<Volume>, control: Arc<dyn Control>, options: MountOptions) -> Result<Mounted, MountError> {
    let path = mountpoint::prepare(&options.mountpoint, &options.name)?;
    let poll = transport::polling_tick(options.poll, options.event_threads);
    let service = Service::new(volume, control, options.workers, poll);
    let service = Arc::new(service.map_err(MountError::Thread)?);
    let source = mountpoint::source_name(options.name.as_ref());
    let device =
        KernelMount { target: &path, source: &source, allow_other: options.allow_other, read_only: options.read_only }
            .mount()?;
    serve(&service, &path, device, &options).inspect_err(|_| {
        service.stop();
        undo(&path);
    })
}

fn serve(
    service: &Arc<Service>,
    path: &Path,
    device: std::os::fd::OwnedFd,
    options: &MountOptions,
) -> Result<Mounted, MountError> {
    let entry = mountpoint::mounted_at(path).ok().flatten();
    let adapter = Adapter::new(service.clone());
    let transport = Transport::new(adapter, device, options.allow_other, options.event_threads)?;
    service.pacer.start(transport.device().map_err(MountError::Thread)?).map_err(MountError::Thread)?;
    service.invalidator.start(transport.notifier()).map_err(MountError::Thread)?;
    forget_what_others_change(service);
    let session = transport.serve()?;
    if let Some(entry) = &entry {
        transport::widen_read_ahead(&entry.device);
    }
    let unmounter = Unmounter { path: path.to_owned(), entry, ended: Arc::default() };
    Ok(Mounted { session: Some(session), service: ServiceHandle(service.clone()), unmounter })
}

/// Names and attributes the kernel keeps only until the next state may come; what it has listed of a directory it keeps
/// until it is told.
fn forget_what_others_change(service: &Arc<Service>) {
    let told = Arc::downgrade(service);
    service.volume.watch(move |directories| {
        let Some(service) = told.upgrade() else { return };
        for node in directories.iter().map(|node| node.pack()).chain([nodes::Place::Snapshots.node().pack()]) {
            service.invalidator.order(node, Duration::ZERO);
        }
    });
}

fn undo(path: &Path) {
    if let Err(error) = mountpoint::unmount(path, Detach::Lazily, Duration::ZERO) {
        tracing::warn!(%error, "A mount that could not be served stays");
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.unmounter.path
    }

    /// A handle to unmount it with.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Waits until it is unmounted, by an [`Unmounter`] or from outside, and all requests are answered. After that
    /// nobody uses the volume through it.
    ///
    /// # Errors
    /// The session broke off; the mount has been taken away.
    pub fn wait(mut self) -> Result<(), MountError> {
        let result = self.join();
        if result.is_err() {
            undo_if_ours(&self.unmounter);
        }
        self.end();
        match result {
            // What the kernel answers a read that an unmount, or an abort by the administrator, overtakes.
            Err(MountError::Session(error)) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            result => result,
        }
    }

    fn join(&mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match session.join() {
            Ok(result) => result.map_err(MountError::Session),
            Err(_) => Err(MountError::Session(io::Error::other("its thread panicked"))),
        }
    }

    fn end(&self) {
        self.unmounter.ended.store(true, Ordering::Release);
        self.service.0.stop();
    }
}

impl Drop for Mounted {
    /// A mount nobody waits for is unmounted, at once for new users and for good with the last one.
    fn drop(&mut self) {
        if self.session.is_none() {
            return;
        }
        undo_if_ours(&self.unmounter);
        if let Err(error) = self.join() {
            tracing::warn!(%error, "A mount did not end as it should");
        }
        self.end();
    }
}

fn undo_if_ours(unmounter: &Unmounter) {
    if let Err(error) = unmounter.detach() {
        tracing::warn!(%error, "Could not unmount");
    }
}

impl Unmounter {
    /// Unmounts; while the mount is in use tries again for ten seconds.
    ///
    /// # Errors
    /// [`MountError::Busy`] names who uses it.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.unmount_within(PATIENCE)
    }

    /// As [`unmount`](Self::unmount), trying for `patience`.
    ///
    /// # Errors
    /// [`MountError::Busy`] names who uses it.
    pub fn unmount_within(&self, patience: Duration) -> Result<(), MountError> {
        self.run(Detach::WhenUnused, patience)
    }

    /// Takes the mount out of the tree at once. Who uses it may go on; it ends with the last of them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn detach(&self) -> Result<(), MountError> {
        self.run(Detach::Lazily, Duration::ZERO)
    }

    fn run(&self, detach: Detach, patience: Duration) -> Result<(), MountError> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        match &self.entry {
            Some(entry) => mountpoint::unmount_entry(entry, detach, patience),
            // The mount could not be found in the table; better to try than to leave it.
            None => mountpoint::unmount(&self.path, detach, patience),
        }
    }
}
