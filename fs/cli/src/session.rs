//! One opened volume: from arguments and settings to a running [`Volume`], and its orderly end.

use std::cell::RefCell;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axiomfs_api::Chunker;
use axiomfs_chunker_fastcdc::{DEFAULT_SIZES, DESCRIPTOR, FastCdc};
use axiomfs_config::{Durability, Settings};
use axiomfs_host::{Counted, Counts, Host};
use axiomfs_live::{
    Access, Caller, Deed, FsError, Manifest, NodeId, OpenError, ROOT_INO, RenameMode, SetAttr, SnapshotInfo, Time,
    Volume, VolumeOptions,
};
use axiomfs_repository::ids::{CommitId, VolumeId};
use axiomfs_repository::{OpenOptions, Repository, RepositoryError, SnapshotRecord, tree};
use serde_json::{Value, json};

use crate::args::StoreArgs;
use crate::audit;
use crate::commands::{config, snapshot};
use crate::control::DAMAGED_HINT;
use crate::failure::Failure;
use crate::lease::Lease;
use crate::locks::Locks;
use crate::passphrase::Secret;
use crate::places::{Holder, Places, Surroundings};
use crate::progress::{self, Bar};
use crate::reload::{self, Mark};
use crate::status::{self, Facts};
use crate::stores::{OpenStore, StoreOptions};
use crate::{daemon_log, faults, output, places, stores, system, wiring};

/// What a volume is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// To be mounted.
    Mount {
        /// Where, settled.
        mountpoint: PathBuf,
        /// Whether nothing may be changed.
        read_only: bool,
        /// The head that the newest one must be, or must have come after.
        expect_head: Option<(u64, [u8; 16])>,
    },
    /// To change something straight on the store.
    Change,
}

impl Purpose {
    fn read_only(&self) -> bool {
        matches!(self, Self::Mount { read_only: true, .. })
    }

    fn expect_head(&self) -> Option<(u64, CommitId)> {
        match self {
            Self::Mount { expect_head, .. } => expect_head.map(|(sequence, commit)| (sequence, CommitId(commit))),
            Self::Change => None,
        }
    }

    fn mountpoint(&self) -> Option<&Path> {
        match self {
            Self::Mount { mountpoint, .. } => Some(mountpoint),
            Self::Change => None,
        }
    }

    fn words(&self, store: &str) -> String {
        match self {
            Self::Mount { mountpoint, read_only, .. } => {
                let reader = if *read_only { places::READER } else { "" };
                format!("{reader}mount of {store} on {}", mountpoint.display())
            }
            Self::Change => format!("a command on {store}"),
        }
    }
}

/// Where the daemon's log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logging {
    /// To standard error.
    Terminal,
    /// To a file in the state directory.
    StateDirectory,
    /// Nowhere: a short command reports its own failure.
    Nowhere,
}

/// All that can be checked without the passphrase, checked. Nothing is changed so far.
pub struct Prepared {
    settings: Settings,
    settings_file: Option<PathBuf>,
    /// Of the file, right before it was read.
    settings_mark: Mark,
    purpose: Purpose,
    location: String,
    /// The bytes of the repository's `config`.
    pub(crate) config: Vec<u8>,
    /// Requests to the store, from the first on.
    counts: Counts,
    pub(crate) places: Places,
    /// Where the writer of this user has its state, if that is somewhere else.
    beside: Option<PathBuf>,
    pub(crate) args: StoreArgs,
}

/// What a start gives: all but the locks.
type Running = (Arc<Repository>, Arc<Volume>, Option<Lease>);

/// A running volume.
pub struct Session {
    prepared: Prepared,
    store: OpenStore,
    host: Arc<Host>,
    repository: Arc<Repository>,
    volume: Arc<Volume>,
    lease: Option<Lease>,
    /// Dropped last: nobody else may come in before the volume's threads have ended.
    locks: Locks,
}

impl Prepared {
    /// Reads settings, finds the repository, chooses the directories.
    ///
    /// # Errors
    /// [`Failure`] that says what to do.
    pub fn new(location: &str, args: &StoreArgs, purpose: &Purpose) -> Result<Self, Failure> {
        let settings_mark = args.config.as_deref().and_then(reload::mark);
        let settings = config::load_or_default(args.config.as_deref())?;
        let settings_file = args.config.as_deref().map(places::lasting).transpose()?.flatten();
        // Closed again: a store may have threads, and the daemon is forked off after this.
        let counts = Counts::default();
        let store = stores::open(location, options(&settings, args, &counts))?;
        let config = stores::config(&store)?;
        let id = stores::repository_id(&config).unwrap_or_else(|| "unknown".to_owned());
        let local_name = format!("{id}-{}", args.volume);
        let surroundings = Surroundings::read();
        let choose = |name: &str| Places::choose(args.state.as_deref(), args.cache.as_deref(), name, &surroundings);
        // Readers of a volume are not in the way of its writer.
        let (places, beside) = if purpose.read_only() {
            let places = choose(&format!("reader-{local_name}"))?;
            let writer = choose(&local_name)?.state;
            let beside = (writer != places.state).then_some(writer);
            (places, beside)
        } else {
            (choose(&local_name)?, None)
        };
        let directory = store.directory.as_deref().map(places::settle).transpose()?;
        places.check_apart(directory.as_deref(), purpose.mountpoint())?;
        let (purpose, location) = (purpose.clone(), location.to_owned());
        let args = args.clone();
        Ok(Self { settings, settings_file, settings_mark, purpose, location, config, counts, places, beside, args })
    }

    /// Takes the local directories, unlocks the repository, recovers what an earlier mount left, and starts.
    ///
    /// # Errors
    /// [`Failure`] that says what to do; what was made for this attempt is removed again.
    pub fn open(self, passphrase: Secret, logging: Logging, quiet: bool) -> Result<Session, Failure> {
        let (host, store) = (self.host()?, self.store()?);
        let locks = Locks::take(&self.places, &self.holder(&store))?;
        match self.start(&store, &host, &passphrase, logging, quiet) {
            Ok((repository, volume, lease)) => {
                Ok(Session { prepared: self, store, host, repository, volume, lease, locks })
            }
            Err(failure) => {
                locks.undo();
                Err(failure)
            }
        }
    }

    pub(crate) fn host(&self) -> Result<Arc<Host>, Failure> {
        host(&self.settings)
    }

    pub(crate) fn store(&self) -> Result<OpenStore, Failure> {
        stores::open(&self.location, options(&self.settings, &self.args, &self.counts))
    }

    /// What the locks say of us.
    pub(crate) fn holder(&self, store: &OpenStore) -> Holder {
        Holder {
            pid: std::process::id(),
            host: system::host_name(),
            since: output::utc_now(),
            purpose: self.purpose.words(&store.store.location()),
        }
    }

    pub(crate) fn unlock(
        &self,
        store: &OpenStore,
        host: &Arc<Host>,
        staging: Option<PathBuf>,
        passphrase: &Secret,
        quiet: bool,
    ) -> Result<Arc<Repository>, Failure> {
        let options = OpenOptions {
            volume: self.args.volume.clone(),
            staging,
            config: Some(self.config.clone()),
            near: store.directory.is_none().then(|| self.places.cache.join("near")),
            ..OpenOptions::default()
        };
        unlock(store, host, &self.settings, options, passphrase, quiet)
    }

    fn start(
        &self,
        store: &OpenStore,
        host: &Arc<Host>,
        passphrase: &Secret,
        logging: Logging,
        quiet: bool,
    ) -> Result<Running, Failure> {
        if !self.purpose.read_only() && !self.args.unsafe_single_writer {
            stores::probe(store, &self.config)?;
        }
        let state = &self.places.state;
        let faults = faults::from_environment(state)?;
        // Reading only needs what an earlier mount staged, where there is something.
        let staging = Some(state.join("staging")).filter(|staging| !self.purpose.read_only() || staging.is_dir());
        let repository = self.unlock(store, host, staging, passphrase, quiet)?;
        match logging {
            Logging::Terminal => daemon_log::to_terminal()?,
            Logging::StateDirectory => daemon_log::to_directory(state)?,
            Logging::Nowhere => {}
        }
        system::raise_open_files();
        let id = repository.volume(&self.args.volume).map_err(|error| could_not_open(store, &error))?;
        let mut lease = match self.purpose.read_only() {
            true => None,
            false => Some(self.lease(&repository, id)?),
        };
        let chunker = chunker(host, &repository);
        let options = self.volume_options(id, faults);
        let volume = Volume::start(Arc::clone(&repository), Arc::clone(host), chunker, options)
            .map_err(|error| self.could_not_start(&error))?;
        if let Some(lease) = &mut lease {
            give_to_user(&volume)?;
            lease.put(&repository, volume.status().state_id, state);
            self.record_mount(&volume, &repository);
        }
        Ok((repository, volume, lease))
    }

    fn could_not_start(&self, error: &OpenError) -> Failure {
        let failure = Failure::caused(format!("Could not open volume {}", self.args.volume), error);
        if !error.is_local_damage() {
            return failure;
        }
        failure.hint(format!(
            "nothing of it was changed; --read-only shows what the store has; to go on from that, without what was not yet in it, move {} \
             away, keep it, and mount with --takeover",
            self.places.state.display()
        ))
    }

    /// With all keys there are, the one that opened it first: so it is seen when some came or went.
    fn record_mount(&self, volume: &Volume, repository: &Repository) {
        let Some(mountpoint) = self.purpose.mountpoint() else { return };
        let keys: Vec<String> = repository.key_ids().iter().map(|id| id[..8].to_owned()).collect();
        let (epoch, keys) = (repository.sealing_epoch().number, keys.join(" "));
        let mut path = mountpoint.display().to_string();
        // What stands behind it must find room in the record.
        if path.len() > 256 {
            path = path.chars().take(64).chain("…".chars()).collect();
        }
        let subject = format!("{path} on {}, sealing epoch {epoch}, keys {keys}", system::host_name());
        let action = if self.args.takeover { "takeover" } else { "mount" };
        volume.audit_noted(&Deed::done(audit::us(), action, subject));
    }

    /// Our claim to write, if nobody else has one.
    pub(crate) fn lease(&self, repository: &Repository, volume: VolumeId) -> Result<Lease, Failure> {
        // What is wrong with a manifest is said when it is used.
        let own = Manifest::read(&self.places.state, repository).ok().flatten().and_then(|manifest| manifest.state);
        Lease::check(repository, volume, &self.args.volume, own, self.args.takeover)
    }

    pub(crate) fn volume_options(&self, volume: VolumeId, faults: faults::Hook) -> VolumeOptions {
        let settings = &self.settings;
        VolumeOptions {
            state_dir: self.places.state.clone(),
            expect_head: self.purpose.expect_head(),
            stamp: output::utc_now().replacen(' ', "T", 1).replace(':', "-"),
            volume,
            log_max: settings.log.max,
            log_segment: settings.log.segment,
            staging_max: settings.staging.max,
            encrypt_log: settings.cache.encrypt,
            checkpoint_interval: settings.checkpoint.interval,
            checkpoint_bytes: settings.checkpoint.bytes,
            commit_interval: settings.commit.interval,
            commit_bytes: settings.commit.bytes,
            timeout: settings.timeout,
            memory: settings.memory,
            read_only: self.purpose.read_only(),
            refresh: settings.refresh,
            durability_remote: settings.durability == Durability::Remote,
            faults,
            takeover: self.args.takeover,
            beside: self.beside.clone(),
            accept_rollback: self.args.accept_rollback,
        }
    }
}

/// How this repository's files are cut.
pub(crate) fn chunker(host: &Host, repository: &Repository) -> Arc<dyn Chunker> {
    host.chunker(DESCRIPTOR.id, || FastCdc::new(repository.chunker_seed(), DEFAULT_SIZES))
}

/// The root directory of a volume nobody has written to yet is root's. It is given to the user who mounts it first, who
/// could not put anything into it otherwise.
fn give_to_user(volume: &Volume) -> Result<(), Failure> {
    let (uid, gid) = system::user();
    if uid == 0 {
        return Ok(());
    }
    let root = NodeId::live(ROOT_INO);
    let give = || {
        let fresh = volume.status().head_commit.is_none()
            && volume.getattr(Access::Wait, root)?.uid == 0
            && volume.readdir(Access::Wait, root, 0, u64::MAX, 1, false)?.is_empty();
        if fresh {
            let owner = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
            volume.setattr(Access::Wait, Caller { uid: 0, gid: 0, pid: std::process::id() }, root, &owner)?;
        }
        Ok(())
    };
    give().map_err(|error: FsError| Failure::caused("Could not make the root directory yours", &error))
}

fn options<'a>(settings: &'a Settings, args: &StoreArgs, counts: &'a Counts) -> StoreOptions<'a> {
    StoreOptions { settings, unsafe_single_writer: args.unsafe_single_writer, counts }
}

fn host(settings: &Settings) -> Result<Arc<Host>, Failure> {
    wiring::host(&settings.pipeline)
        .map_err(|error| Failure::caused("The chains of the settings can't run", &error).hint(error.hint()))
}

fn unlock(
    store: &OpenStore,
    host: &Arc<Host>,
    settings: &Settings,
    options: OpenOptions,
    passphrase: &Secret,
    quiet: bool,
) -> Result<Arc<Repository>, Failure> {
    // A directory needs no reading ahead of our own: the kernel does it.
    let ahead_bytes = if store.directory.is_none() { settings.memory / 6 } else { 0 };
    let options = OpenOptions {
        cache_bytes: settings.memory * 13 / 24 - ahead_bytes,
        workers: std::thread::available_parallelism().map_or(2, usize::from),
        uploads: store.uploads,
        ahead_bytes,
        ..options
    };
    let insistent = Arc::clone(&store.store);
    let open = || Repository::open(insistent, Arc::clone(host), wiring::seal(host), passphrase, options);
    let repository = progress::watch("Deriving the key from the passphrase", quiet, open, || (0, None))
        .map_err(|error| could_not_open(store, &error))?;
    // The settings can be changed while mounted, the store's own bound can't.
    repository.set_uploads(settings.pipeline.store.uploads.max as usize);
    Ok(repository)
}

/// What is wrong with a repository, and what to do.
pub(crate) fn could_not_open(store: &OpenStore, error: &RepositoryError) -> Failure {
    let location = store.store.location();
    let context = format!("Could not open {location}");
    match error {
        RepositoryError::WrongPassphrase { .. } => {
            Failure::new(format!("{context}: wrong passphrase")).hint("nothing was changed; try again")
        }
        RepositoryError::NotARepository { .. } => Failure::new(format!("{location} is not an axiomfs repository"))
            .hint(format!("is it the right directory? `axiomfs init {location}` makes a new one")),
        RepositoryError::UnsupportedVersion { .. } => Failure::caused(context, error).hint("install a newer axiomfs"),
        RepositoryError::UnknownVolume { .. } => Failure::caused(context, error)
            .hint(format!("`axiomfs volume create {location} NAME` makes one, `volume list` shows which there are")),
        _ => Failure::caused(context, error),
    }
}

/// The snapshots that the store's newest head has, beside whoever writes: nothing is locked, nothing local is read.
///
/// # Errors
/// [`Failure`] if the store can't be read.
pub fn committed_snapshots(
    location: &str,
    args: &StoreArgs,
    passphrase: Secret,
    quiet: bool,
) -> Result<Vec<SnapshotInfo>, Failure> {
    let settings = config::load_or_default(args.config.as_deref())?;
    let store = stores::open(location, options(&settings, args, &Counts::default()))?;
    // Says what is wrong with the place better than the repository could.
    let config = Some(stores::config(&store)?);
    let options = OpenOptions { volume: args.volume.clone(), config, ..OpenOptions::default() };
    let repository = unlock(&store, &host(&settings)?, &settings, options, &passphrase, quiet)?;
    read_snapshots(&repository, &args.volume).map_err(|error| could_not_open(&store, &error))
}

fn read_snapshots(repository: &Repository, volume: &str) -> Result<Vec<SnapshotInfo>, RepositoryError> {
    let Some(head) = repository.latest_head(repository.volume(volume)?)? else { return Ok(Vec::new()) };
    repository.load_segments(&head.segments)?;
    let mut snapshots = Vec::new();
    for entry in tree::range(repository, head.snapshots_root, Bound::Unbounded, Bound::Unbounded) {
        let (name, record) = entry?;
        let record = SnapshotRecord::decode(&record)?;
        let created = Time {
            secs: record.created_ns.div_euclid(1_000_000_000),
            nanos: u32::try_from(record.created_ns.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        let name = String::from_utf8_lossy(&name).into_owned();
        snapshots.push(SnapshotInfo { name, ordinal: record.ordinal.0, created, committed: true });
    }
    Ok(snapshots)
}

impl Session {
    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The plugins' host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<Repository> {
        &self.repository
    }

    /// The store, where its requests are counted.
    pub fn counted(&self) -> &Arc<Counted> {
        &self.store.seen
    }

    /// The local directories.
    pub fn places(&self) -> &Places {
        &self.prepared.places
    }

    /// Tells others who want the directories that it only drains now.
    pub fn note_unmounted(&self) {
        self.locks.describe(&self.prepared.holder(&self.store).draining(&self.store()));
    }

    /// Where the store is.
    pub fn store(&self) -> String {
        self.store.store.location()
    }

    /// What it runs with.
    pub fn settings(&self) -> &Settings {
        &self.prepared.settings
    }

    /// The file they came from.
    pub fn settings_file(&self) -> Option<&Path> {
        self.prepared.settings_file.as_deref()
    }

    /// The state of that file when they were read.
    pub fn settings_mark(&self) -> Mark {
        self.prepared.settings_mark.clone()
    }

    /// What its status says all the time.
    pub fn facts(&self, mountpoint: &Path) -> Facts {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Facts {
            volume: self.prepared.args.volume.clone(),
            repository: self.repository.id().to_string(),
            store: self.store(),
            seen: Arc::clone(&self.store.seen),
            mountpoint: text(mountpoint),
            state_dir: text(&self.places().state),
            cache_dir: text(&self.places().cache),
            memory: self.settings().memory,
            staging_max: self.settings().staging.max,
        }
    }

    /// Where state lies that others have gone past, as answers have it.
    pub fn set_aside(&self) -> Value {
        status::paths(&self.volume.status().set_aside).into()
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// [`Failure`] if the name is in use or it can't be logged.
    pub fn snapshot_create(&self, name: &str) -> Result<(), Failure> {
        let taken = self.volume.snapshot_create(Access::Wait, audit::us(), name);
        taken.map(drop).map_err(|error| explain("take", name, name, &error))
    }

    /// Renames a snapshot.
    ///
    /// # Errors
    /// [`Failure`] if there is no such snapshot or the new name is in use.
    pub fn snapshot_rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let renamed = self.volume.snapshot_rename(Access::Wait, audit::us(), from, to, RenameMode::NoReplace);
        renamed.map_err(|error| explain("rename", from, to, &error))
    }

    /// Forgets a snapshot.
    ///
    /// # Errors
    /// [`Failure`] if there is no such snapshot.
    pub fn snapshot_delete(&self, name: &str) -> Result<(), Failure> {
        self.volume
            .snapshot_delete(Access::Wait, audit::us(), name)
            .map_err(|error| explain("forget", name, name, &error))
    }

    /// Drains to the store and ends the volume's threads. The value says how it ended, for `axiomfs umount` to read.
    ///
    /// # Errors
    /// [`Failure`] if not all could be sent; it is safe in the state directory.
    pub fn close(self, quiet: bool) -> Result<Value, Failure> {
        if self.prepared.purpose.read_only() {
            self.volume.stop();
            return Ok(json!({ "ok": true }));
        }
        // Whatever else keeps changes out, what was taken before can still go to the store.
        if self.volume.is_fenced() {
            self.volume.stop();
            return Err(not_drained(&FsError::Fenced, &self.places().state));
        }
        if let Some(mountpoint) = self.prepared.purpose.mountpoint() {
            audit::record_put_out(&self.host, &self.volume);
            let subject = mountpoint.display().to_string();
            self.volume.audit_noted(&Deed::done(audit::us(), "unmount", subject));
        }
        let bar = RefCell::new(Bar::new("Writing to the store", quiet));
        let drained = self.volume.shutdown(&|progress| {
            bar.borrow_mut().set(progress.bytes_done, Some(progress.bytes_total));
        });
        // Also where something was lost: nothing more is to come.
        if let Some(lease) = self.lease.as_ref().filter(|_| matches!(drained, Ok(_) | Err(FsError::Damaged(_)))) {
            lease.release(&self.repository);
        }
        let committed = drained.map_err(|error| not_drained(&error, &self.places().state))?;
        Ok(json!({ "ok": true, "sequence": committed.sequence, "commit": status::hex(committed.commit) }))
    }
}

fn not_drained(reason: &FsError, state: &Path) -> Failure {
    let failure = Failure::caused("Not all is in the store", reason);
    let state = state.display();
    match reason {
        FsError::Fenced => failure.hint(format!(
            "the state directory {state} has what is missing: `axiomfs recover` puts it into a snapshot"
        )),
        FsError::Damaged(_) => failure.hint(DAMAGED_HINT),
        _ => failure.hint(format!("what is missing is safe in the state directory {state}; mount again to send it")),
    }
}

fn explain(verb: &str, name: &str, new: &str, error: &FsError) -> Failure {
    match error {
        FsError::Exists => snapshot::taken(new),
        FsError::NotFound => snapshot::unknown(name),
        _ => Failure::caused(format!("Could not {verb} snapshot {name}"), error),
    }
}
