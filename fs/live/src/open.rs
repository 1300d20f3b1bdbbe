//! Opening a volume: from the store's newest head, the manifest and the log to the state they stand for.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axiomfs_api::Chunker;
use axiomfs_host::Host;
use axiomfs_repository::ids::CommitId;
use axiomfs_repository::record::{self, FileKind, Inode};
use axiomfs_repository::tree::{self, Root};
use axiomfs_repository::{Adopted, Head, Repository, SnapshotRecord};

use crate::audit::AuditTail;
use crate::background::{self, describe};
use crate::base::{self, Local, first_manifest};
use crate::checkpoint::Checkpointer;
use crate::commit::Committer;
use crate::edit::{self, Edit};
use crate::events::Events;
use crate::follow;
use crate::layer::Stand;
use crate::ledger::{Ledger, SharedLedger};
use crate::log::{Log, LogIdentity, LogOptions, Record, SealerFactory};
use crate::manifest::Manifest;
use crate::memory::Memory;
use crate::open_error::OpenError;
use crate::read_ahead::ReadAhead;
use crate::set_aside;
use crate::state::{FIRST_SEQ, Snapshot, SnapshotTree, State};
use crate::types::{Access, FIRST_FILE_INO, FsError, NodeId, ROOT_INO, Time};
use crate::versions::Versions;
use crate::view::Nodes;
use crate::volume::{HeadSeen, LocalFacts, Shared, Volume, VolumeOptions, now};

/// Threads that fetch ahead of sequential readers.
const AHEAD_THREADS: usize = 2;
/// Log segments kept back for draining and for removals.
const RESERVE_SEGMENTS: u64 = 3;

impl Volume {
    /// Opens a volume, recovers what an earlier mount left, and starts the threads that serve it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn start(
        repository: Arc<Repository>,
        host: Arc<Host>,
        chunker: Arc<dyn Chunker>,
        options: VolumeOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let events = Events::default();
        let local = Local { repository: &repository, options: &options, events: &events };
        local.memory().hint();
        // Before the newest is looked for: the writer beside may make another meanwhile.
        let beside = options.beside.as_deref().and_then(|dir| Memory { dir, ..local.memory() }.newest());
        let head = repository.latest_head(options.volume)?;
        base::expect(&repository, &options, head.as_ref())?;
        if options.read_only {
            look_at_state(&local, head.as_ref(), beside)?;
            return Self::open_read_only(repository, host, chunker, options, head, events);
        }
        let (mut manifest, head) = local.settle(head)?;
        let snapshots_root = head.as_ref().and_then(|head| head.snapshots_root);
        repository.load_segments(head.as_ref().map_or(&[], |head| &head.segments))?;
        // What the manifest on the disk names stays until another one is there: this mount may fail before.
        let on_disk = Manifest::read(&options.state_dir, &repository)?;
        let named = on_disk.as_ref().map_or(&[][..], |on_disk| &on_disk.staged);
        let adopted = repository.adopt_staged_beside(&manifest.staged, named)?;
        (options.faults)("open.adopted");
        whole(adopted, &options.state_dir)?;
        let (mut state, table) = load(&repository, &manifest, snapshots_root)?;
        if let Some(lost) = borrow_again(&repository, &manifest, &table)? {
            events.add("warning", lost);
        }
        state.audit = AuditTail::load(&repository, options.volume, manifest.root)?;
        state.audit.settle(head.as_ref(), manifest.root, &events);
        let audit = state.audit.hash;
        let log_options = log_options(&options);
        let identity = LogIdentity { repository: repository.id().0, volume: options.volume.0, epoch: manifest.epoch };
        let sealer = sealer(&repository);
        let seen = head.as_ref().map(seen).unwrap_or_default();
        let next_segment = replay(&mut state, &manifest, &log_options, &identity, &sealer, &events)?;
        let log = Log::create(log_options, identity, sealer, next_segment)?;
        state.last_segment = next_segment;
        // From here on the log may hold something: what it stands on must be known first. Where it is, nothing is written: a full
        // disk keeps nobody from mounting.
        if on_disk.as_ref() != Some(&manifest) {
            manifest.write(&options.state_dir, &repository)?;
        }
        if named != manifest.staged {
            repository.remove_unadopted(&manifest.staged)?;
        }
        release_unneeded(&log, &state, &mut manifest, &local)?;
        note_foreign(&repository, &events);
        let committed: HashSet<u32> = table_of(&repository, snapshots_root)?.values().map(|r| r.ordinal.0).collect();
        let mut shared = Shared::new(repository, host, chunker, options, Some(log), state, seen, events);
        // What a head has already may be staged still: nodes of trees that were replaced.
        if manifest.dirty {
            shared.count_staged();
        }
        shared.note_staged();
        let shared = Arc::new(shared);
        let id = manifest.state;
        let set_aside = set_aside::list(&shared.options.state_dir)
            .map_err(|source| OpenError::State { dir: shared.options.state_dir.clone(), source })?;
        shared.local.get_or_init(|| LocalFacts { id, set_aside });
        let ledger = Ledger::begin(&shared, manifest, table, audit)?;
        make_root(&shared)?;
        reclaim_orphans(&shared)?;
        Self::spawn(shared, Some((ledger, committed)))
    }

    /// Shows what the store's newest head has, and from then on what the heads after it have. The state directory is neither needed nor touched, so this works
    /// whatever is wrong with it.
    fn open_read_only(
        repository: Arc<Repository>,
        host: Arc<Host>,
        chunker: Arc<dyn Chunker>,
        options: VolumeOptions,
        head: Option<Head>,
        events: Events,
    ) -> Result<Arc<Self>, OpenError> {
        let head = head.as_ref();
        repository.load_segments(head.map_or(&[], |head| &head.segments))?;
        let (mut state, _) = load(&repository, &first_manifest(head), head.and_then(|head| head.snapshots_root))?;
        if state.base.is_none() {
            state.active.apply(&Edit::Create(ROOT_INO, Box::new(root_directory())), None);
        }
        state.versions = Some(Versions::default());
        let seen = head.map(seen).unwrap_or_default();
        note_foreign(&repository, &events);
        let shared = Shared::new(repository, host, chunker, options, None, state, seen, events);
        Self::spawn(Arc::new(shared), None)
    }

    fn spawn(shared: Arc<Shared>, writes: Option<(SharedLedger, HashSet<u32>)>) -> Result<Arc<Self>, OpenError> {
        let mut threads = Vec::new();
        let mut spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(run).map_err(OpenError::Thread)?;
            threads.push(thread);
            Ok::<_, OpenError>(())
        };
        for _ in 0..AHEAD_THREADS {
            let shared = shared.clone();
            spawn("read-ahead", Box::new(move || ReadAhead::serve(&shared)))?;
        }
        if shared.options.read_only {
            follow::begin(&shared);
            let follower = shared.clone();
            spawn("follow", Box::new(move || follow::serve(&follower)))?;
        }
        if let Some((ledger, committed)) = writes {
            let (checkpointer, committer) = (Checkpointer::new(ledger.clone()), Committer { ledger, committed });
            let worker = shared.clone();
            spawn("checkpoint", Box::new(move || background::make_checkpoints(&worker, checkpointer)))?;
            let worker = shared.clone();
            spawn("commit", Box::new(move || background::make_commits(&worker, committer)))?;
            let ticker = shared.clone();
            spawn("log-sync", Box::new(move || background::tick(&ticker)))?;
        }
        Ok(Arc::new(Self { shared, threads: Mutex::new(threads) }))
    }
}

/// Refuses staged packs of which something is lost.
pub(crate) fn whole(adopted: Adopted, dir: &Path) -> Result<(), OpenError> {
    if let Some(source) = adopted.damaged {
        return Err(OpenError::DamagedPack { dir: dir.to_owned(), source });
    }
    match adopted.missing.first() {
        Some(pack) => Err(OpenError::MissingPack { pack: *pack, dir: dir.to_owned() }),
        None => Ok(()),
    }
}

/// What checkpoints that are in no head took from other volumes is found there again.
pub(crate) fn borrow_again(
    repository: &Repository,
    manifest: &Manifest,
    table: &BTreeMap<String, SnapshotRecord>,
) -> Result<Option<String>, OpenError> {
    if !manifest.dirty {
        return Ok(None);
    }
    let of_snapshots = table.values().map(|record| record.root);
    let roots: Vec<Option<Root>> = [manifest.root].into_iter().chain(of_snapshots).collect();
    let missing = repository.borrow_again(&roots)?;
    Ok((missing > 0).then(|| {
        format!("{missing} chunks of files are neither here nor in the index of any volume that can be read; reading them fails")
    }))
}

/// A read-only mount needs nothing of the state directory, but what it remembers of the store.
fn look_at_state(local: &Local<'_>, head: Option<&Head>, beside: Option<(u64, CommitId)>) -> Result<(), OpenError> {
    // Whatever is wrong with it.
    let manifest = Manifest::read(&local.options.state_dir, local.repository).ok().flatten();
    let (memory, accepted) = (local.memory(), local.options.accept_rollback);
    if !accepted {
        memory.check(manifest.as_ref(), beside, head)?;
    }
    memory.remember(head, accepted);
    if manifest.is_some_and(|manifest| manifest.dirty) {
        local.events.add(
            "warning",
            "The state directory has changes that are not in the store; a read-only mount does not show them",
        );
    }
    Ok(())
}

fn note_foreign(repository: &Repository, events: &Events) {
    repository.foreign_objects().iter().for_each(|name| warn_of_foreign(events, name));
}

pub(crate) fn warn_of_foreign(events: &Events, name: &str) {
    events.add("warning", format!("The store holds {name}, which is not one of ours; it is passed over"));
}

/// What a mount knows of the head that it begins with.
pub(crate) fn seen(head: &Head) -> HeadSeen {
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_nanos(head.time_ns.max(0) as u64));
    HeadSeen {
        sequence: head.sequence.0,
        commit: Some(head.commit),
        epoch: head.epoch.0,
        index_generation: head.index_generation,
        at,
    }
}

/// Most segments of a log: each that is not freed yet is an open file.
const SEGMENTS_MAX: u64 = 16_384;

/// Bytes of a segment: what was asked for, but so that the reserve leaves half of the log and there are not too many, in whole MiB.
fn segment_bytes(wanted: u64, max: u64) -> u64 {
    const UNIT: u64 = 1 << 20;
    let fitting = wanted.min(max / (2 * RESERVE_SEGMENTS));
    (fitting - fitting % UNIT).max(2 * UNIT).max(max.div_ceil(SEGMENTS_MAX).next_multiple_of(UNIT))
}

pub(crate) fn log_options(options: &VolumeOptions) -> LogOptions {
    let segment = segment_bytes(options.log_segment, options.log_max);
    LogOptions {
        segment_bytes: segment,
        max_bytes: options.log_max,
        reserve_bytes: RESERVE_SEGMENTS * segment,
        encrypt: options.encrypt_log,
        faults: Some(options.faults.clone()),
        ..LogOptions::new(options.state_dir.join("log"))
    }
}

pub(crate) fn sealer(repository: &Arc<Repository>) -> SealerFactory {
    let repository = repository.clone();
    Arc::new(move |salt: &[u8; 32]| repository.log_sealer(salt))
}

/// The snapshot table that `root` names.
pub(crate) fn table_of(
    repository: &Repository,
    root: Option<Root>,
) -> Result<BTreeMap<String, SnapshotRecord>, OpenError> {
    let nodes = Nodes { repository, fetch: true, pinned: &[] };
    let mut table = BTreeMap::new();
    for item in tree::range(&nodes, root, Bound::Unbounded, Bound::Unbounded) {
        let (key, value) = item?;
        let name = String::from_utf8_lossy(&key).into_owned();
        table.insert(name, SnapshotRecord::decode(&value)?);
    }
    Ok(table)
}

pub(crate) fn load(
    repository: &Repository,
    manifest: &Manifest,
    committed_root: Option<Root>,
) -> Result<(State, BTreeMap<String, SnapshotRecord>), OpenError> {
    let table = table_of(repository, manifest.snapshots_root)?;
    let committed = table_of(repository, committed_root)?;
    let mut state = State::default();
    state.base = manifest.root;
    state.next_ordinal = manifest.next_ordinal.max(1);
    state.next_op = manifest.last_op + 1;
    state.last_segment = manifest.first_segment;
    state.inos.next = manifest.next_ino.max(FIRST_FILE_INO);
    state.active.last_op = manifest.last_op;
    for (name, record) in &table {
        let created = Time {
            secs: record.created_ns.div_euclid(1_000_000_000),
            nanos: record.created_ns.rem_euclid(1_000_000_000) as u32,
        };
        let snapshot = Snapshot {
            ordinal: record.ordinal.0,
            created,
            tree: SnapshotTree::Root(record.root),
            committed: committed.get(name) == Some(record),
        };
        state.put_snapshot(Arc::from(name.as_str()), snapshot);
    }
    Ok((state, table))
}

/// Folds the log's operations after the manifest into layers. Returns the number for the next segment.
pub(crate) fn replay(
    state: &mut State,
    manifest: &Manifest,
    options: &LogOptions,
    identity: &LogIdentity,
    sealer: &SealerFactory,
    events: &Events,
) -> Result<u64, OpenError> {
    let mut last_op = manifest.last_op;
    let (mut operations, mut left_out) = (0u64, 0u64);
    let replayed = Log::replay(options, identity, sealer, manifest.first_segment, &mut |record: Record<'_>| {
        let (op, edits) = edit::decode(record.meta).map_err(|e| Box::new(e) as Box<_>)?;
        if op > manifest.last_op {
            let audit = edit::only_audit(&edits);
            // A mount leaves records of its end there, that no checkpoint waits for. Not even their numbers are believed.
            match record.check_seal(options) {
                Err(_) if audit => {
                    left_out += 1;
                    return Ok(());
                }
                sealed => sealed?,
            }
            last_op = op;
            state.apply(op, &edits, record.segment, record.data);
            operations += u64::from(!audit);
        }
        Ok(())
    })?;
    if manifest.generation > 0 && replayed.segments == 0 {
        return Err(OpenError::LogLost { segment: manifest.first_segment });
    }
    if let Some(cut) = replayed.cut_tail {
        events.add(
            "warning",
            format!(
                "The log's torn end was cut off: segment {} from byte {}, {} bytes; none of it was reported as durable",
                cut.segment, cut.offset, cut.bytes
            ),
        );
    }
    if left_out > 0 {
        let text = "records for the audit log were left out: they stood in a log without a seal, where anybody could have put them";
        events.add("warning", format!("{left_out} {text}"));
    }
    if operations > 0 {
        events.add("info", format!("Recovered {operations} operations from the log"));
    }
    state.next_op = last_op + 1;
    Ok(replayed.next_segment)
}

/// Gives up the segments of earlier mounts whose operations are all in the manifest's trees. The bound of the log may be lower than what
/// they take, and no later checkpoint would release them before something new was written.
fn release_unneeded(log: &Log, state: &State, manifest: &mut Manifest, local: &Local<'_>) -> Result<(), OpenError> {
    let needed = state.first_needed_segment(0);
    if needed > manifest.first_segment {
        let mut shorter = Manifest { first_segment: needed, ..manifest.clone() };
        if let Err(error) = shorter.write(&local.options.state_dir, local.repository) {
            // The manifest there is still says all; a disk without room for another is no reason not to mount.
            local
                .events
                .add("warning", format!("Log segments of earlier mounts are kept for now: {}", describe(&error)));
            return Ok(());
        }
        *manifest = shorter;
    }
    log.release_before(manifest.first_segment)?;
    Ok(())
}

/// The first mount of a volume makes its root directory.
fn make_root(shared: &Shared) -> Result<(), OpenError> {
    let there = {
        let state = shared.state();
        let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
        state.live(nodes).inode(ROOT_INO)?.is_some()
    };
    if there {
        return Ok(());
    }
    Ok(shared.log_now(&[Edit::Create(ROOT_INO, Box::new(root_directory()))])?)
}

/// An empty root directory, made now.
fn root_directory() -> Inode {
    let t = now();
    Inode {
        kind: FileKind::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        parent: ROOT_INO,
        parent_seq: 0,
        next_seq: FIRST_SEQ,
        target: None,
    }
}

/// Files that had lost their last name while they were open end with the mount that had them open.
fn reclaim_orphans(shared: &Shared) -> Result<(), OpenError> {
    let mut orphans = Vec::new();
    {
        let state = shared.state();
        let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
        let from = record::key(0, record::KIND_ORPHAN, &[]);
        let to = record::key(0, record::KIND_ORPHAN + 1, &[]);
        for item in tree::range(&nodes, state.base, Bound::Included(&from), Bound::Excluded(&to)) {
            orphans.extend(record::trailing_number(&item?.0));
        }
        for layer in state.frozen.iter().map(Arc::as_ref).chain([&state.active]) {
            orphans.extend(layer.orphans());
        }
        let gone = |ino: &u64| {
            let layers = state.frozen.iter().map(Arc::as_ref).chain([&state.active]);
            layers.filter_map(|l| l.node(*ino)).any(|n| matches!(n.stand, Stand::Gone))
        };
        orphans.retain(|ino| !gone(ino));
    }
    if orphans.is_empty() {
        return Ok(());
    }
    // Nobody makes room yet, so that isn't waited for; nor is a store that doesn't answer, but once.
    let (mut later, mut away) = (Vec::new(), false);
    for &ino in &orphans {
        if !away {
            let found = shared.look(Access::Wait, NodeId::live(ino), |view| Ok(view.inode(ino)?.is_some()));
            away = !matches!(found, Ok(_) | Err(FsError::Stale));
        }
        if shared.reclaim(Access::Cached, ino).is_err() {
            later.push(ino);
        }
    }
    shared.events.add("info", format!("Reclaimed {} files without a name", orphans.len() - later.len()));
    if !later.is_empty() {
        shared.events.add("warning", format!("{} files without a name are still to be reclaimed", later.len()));
        crate::volume::lock(&shared.reap).append(&mut later);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_whole_mib_whatever_the_bound_of_the_log() {
        for (wanted, max, bytes) in
            [(256, 4096, 256), (256, 512, 85), (32, 64, 10), (128, 513, 85), (4, 4096, 4), (256, 8, 2)]
        {
            assert_eq!(segment_bytes(wanted << 20, max << 20), bytes << 20, "{wanted} MiB of {max} MiB");
        }
        assert_eq!(segment_bytes((5 << 20) + 1, 1 << 30), 5 << 20);
    }
}
