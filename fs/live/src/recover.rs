//! Bringing state that was set aside into the store: its live tree, as it was acknowledged, becomes a snapshot of the volume.
//!
//! The tree is built from the base that the state stands on, its staged packs and its log, as a mount would have built it. Live is
//! not touched: the head that is created has the newest head's live tree, and one more entry in the table of snapshots.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use axiomfs_api::Chunker;
use axiomfs_host::Host;
use axiomfs_repository::ids::{CommitId, Epoch, Ordinal, SequenceNo};
use axiomfs_repository::tree::Root;
use axiomfs_repository::{Head, PutHead, Repository, RepositoryError, SegmentRef, SnapshotRecord};

use crate::base::{Local, random};
use crate::checkpoint::{Checkpointer, write_table};
use crate::events::Events;
use crate::ledger::{Ledger, Made};
use crate::log::{Log, LogIdentity};
use crate::manifest::Manifest;
use crate::open::{borrow_again, load, log_options, replay, sealer, table_of, whole};
use crate::open_error::OpenError;
use crate::types::Committed;
use crate::volume::{Shared, VolumeOptions, lock};

/// How often others may commit in between.
const TRIES: usize = 8;

/// What was brought into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The snapshot with the live tree.
    pub snapshot: String,
    /// Snapshots that were taken there and are in no head: what they are called now.
    pub others: Vec<String>,
    /// The head that has them.
    pub head: Committed,
    /// What is not in it: it was damaged on this machine's disk, or nothing locates it.
    pub damaged: Vec<String>,
}

/// Sets the state in `options.state_dir` aside if others have gone past what it stands on, and tells what is set aside then, the
/// oldest first.
///
/// # Errors
/// [`OpenError`]; nothing was lost.
pub fn set_apart(repository: &Arc<Repository>, options: &VolumeOptions) -> Result<Vec<PathBuf>, OpenError> {
    let events = Events::default();
    let head = repository.latest_head(options.volume)?;
    Local { repository, options, events: &events }.set_apart(head.as_ref())
}

/// Puts what was set aside in `options.state_dir` into a snapshot `name`, with a commit on the newest head. `repository` was opened
/// with the staging directory in there. May be called again after any failure; the directory can be deleted when it returned.
///
/// # Errors
/// [`OpenError`]; nothing was lost.
pub fn recover(
    repository: &Arc<Repository>,
    host: Arc<Host>,
    chunker: Arc<dyn Chunker>,
    options: VolumeOptions,
    name: &str,
) -> Result<Recovered, OpenError> {
    let dir = options.state_dir.clone();
    Manifest::sync(&dir).map_err(|source| OpenError::State { dir: dir.clone(), source })?;
    let manifest = Manifest::read(&dir, repository)?.ok_or(OpenError::NoManifest { dir: dir.clone() })?;
    let volume = options.volume;
    let newest = repository.latest_head(volume)?;
    let base = base_of(repository, &options, &manifest)?;
    repository.load_segments(&union(newest.as_ref(), base.as_ref()))?;
    whole(repository.adopt_staged(&manifest.staged)?, &dir)?;
    let known = base.as_ref().or(newest.as_ref()).and_then(|head| head.snapshots_root);
    // By the time, too: two machines that went on from one head give the same numbers to what they take. Where the head that this state
    // stands on is gone, one that was forgotten since comes back.
    let known: HashSet<(Ordinal, i64)> = table_of(repository, known)?.values().map(number_and_time).collect();
    let takeover = options.takeover;
    let (shared, made, lost) = rebuild(repository, host, chunker, options, manifest)?;
    let mine = made.table.iter().filter(|(_, record)| !known.contains(&number_and_time(record)));
    let found = Found {
        name,
        root: made.root,
        others: mine.map(|(name, record)| (name.clone(), *record)).collect(),
        next_ino: made.next_ino,
        base,
        takeover,
        lost,
    };
    for _ in 0..TRIES {
        let newest = repository.latest_head(volume)?;
        if let Some(recovered) = found.commit(&shared, newest.as_ref())? {
            return Ok(recovered);
        }
    }
    Err(OpenError::Busy)
}

fn number_and_time(record: &SnapshotRecord) -> (Ordinal, i64) {
    (record.ordinal, record.created_ns)
}

/// The head that the state stands on, where the store still has it.
fn base_of(repository: &Repository, options: &VolumeOptions, manifest: &Manifest) -> Result<Option<Head>, OpenError> {
    let Some((sequence, commit)) = manifest.head else { return Ok(None) };
    match repository.head(options.volume, SequenceNo(sequence)) {
        Ok(head) => Ok(Some(head).filter(|head| head.commit == commit)),
        Err(RepositoryError::MissingObject { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The index of both heads: that of another history may know what the newest does not.
fn union(newest: Option<&Head>, base: Option<&Head>) -> Vec<SegmentRef> {
    let mut segments: Vec<SegmentRef> = newest.map(|head| head.segments.clone()).unwrap_or_default();
    for segment in base.into_iter().flat_map(|head| &head.segments) {
        if !segments.iter().any(|known| known.id == segment.id) {
            segments.push(*segment);
        }
    }
    segments
}

/// Makes one tree of base and log, and makes it durable where it is set aside. Also gives what nothing locates that it names.
fn rebuild(
    repository: &Arc<Repository>,
    host: Arc<Host>,
    chunker: Arc<dyn Chunker>,
    options: VolumeOptions,
    manifest: Manifest,
) -> Result<(Shared, Arc<Made>, Option<String>), OpenError> {
    let events = Events::default();
    let (mut state, table) = load(repository, &manifest, manifest.snapshots_root)?;
    let lost = borrow_again(repository, &manifest, &table)?;
    let log_options = log_options(&options);
    let identity = LogIdentity { repository: repository.id().0, volume: options.volume.0, epoch: manifest.epoch };
    let sealer = sealer(repository);
    let next = replay(&mut state, &manifest, &log_options, &identity, &sealer, &events)?;
    let log = Log::create(log_options, identity, sealer, next)?;
    state.last_segment = next;
    // What is recovered becomes a snapshot: its audit records stay in it, and the chain of the volume goes on as the newest head has it.
    let audit = state.audit.hash;
    if !state.active.is_empty() {
        state.freeze();
    }
    let shared = Shared::new(repository.clone(), host, chunker, options, Some(log), state, Default::default(), events);
    let ledger = Ledger::begin(&shared, manifest, table, audit)?;
    let mut checkpointer = Checkpointer::new(ledger.clone());
    while checkpointer.checkpoint(&shared)? {}
    let made = lock(&ledger).newest.clone();
    Ok((shared, made, lost))
}

/// What is to be brought into the table of snapshots.
struct Found<'a> {
    name: &'a str,
    root: Option<Root>,
    others: Vec<(String, SnapshotRecord)>,
    next_ino: u64,
    base: Option<Head>,
    takeover: bool,
    /// What nothing locates that the trees name.
    lost: Option<String>,
}

impl Found<'_> {
    /// Creates the head after `newest`. `None` if somebody else did.
    fn commit(&self, shared: &Shared, newest: Option<&Head>) -> Result<Option<Recovered>, OpenError> {
        let repository = &shared.repository;
        let (epoch, sequence) = newest.map_or((1, 0), |head| (head.epoch.0, head.sequence.0));
        let mut table = table_of(repository, newest.and_then(|head| head.snapshots_root))?;
        let mut ordinal = newest.map_or(1, |head| head.next_ordinal.max(1));
        let live = SnapshotRecord { ordinal: Ordinal(0), root: self.root, created_ns: now_ns() };
        let mut names = Vec::new();
        for (wanted, record) in
            std::iter::once((self.name, &live)).chain(self.others.iter().map(|(n, r)| (n.as_str(), r)))
        {
            names.push(insert(&mut table, wanted, self.name, record, &mut ordinal));
        }
        repository.load_segments(&union(newest, self.base.as_ref()))?;
        let snapshots_root = write_table(shared, &table)?;
        repository.flush()?;
        let roots: Vec<Option<Root>> =
            [self.root, snapshots_root].into_iter().chain(self.others.iter().map(|(_, record)| record.root)).collect();
        let set = repository.commit_packs(&roots)?;
        let head = Head {
            sequence: SequenceNo(sequence + 1),
            epoch: Epoch(epoch + u64::from(self.takeover)),
            commit: CommitId(random()?),
            parent: newest.map(|head| head.commit),
            live_root: newest.and_then(|head| head.live_root),
            snapshots_root,
            next_ino: self.next_ino.max(newest.map_or(0, |head| head.next_ino)),
            next_ordinal: ordinal,
            segments: set.segments.clone(),
            keyring_generation: repository.keyring_generation(),
            index_generation: newest.map_or(0, |head| head.index_generation) + 1,
            time_ns: now_ns(),
            audit: newest.map_or([0; 32], |head| head.audit),
        };
        if let PutHead::Exists(_) = repository.put_head(shared.options.volume, &head)? {
            return Ok(None);
        }
        // The files of packs that the commit supersedes stay: the manifest names them, and this may be done again.
        drop(repository.supersede(&set)?);
        shared.fault("recover.committed");
        let committed = Committed { sequence: head.sequence.0, commit: head.commit.0 };
        let snapshot = names.remove(0);
        let notes = repository.take_damage_notes().into_iter().filter(|note| note.lost).map(|note| note.text);
        let damaged = notes.chain(self.lost.clone()).collect();
        Ok(Some(Recovered { snapshot, others: names, head: committed, damaged }))
    }
}

/// Enters a snapshot under the name wanted, or under one that is free.
fn insert(
    table: &mut BTreeMap<String, SnapshotRecord>,
    wanted: &str,
    stem: &str,
    record: &SnapshotRecord,
    ordinal: &mut u32,
) -> String {
    let mut name = wanted.to_owned();
    let mut number = 1;
    while let Some(there) = table.get(&name) {
        // Brought in by an earlier try whose answer was lost.
        if there.root == record.root && (wanted == stem || there.created_ns == record.created_ns) {
            return name;
        }
        number += 1;
        name = format!("{stem}-{number}");
    }
    table.insert(name.clone(), SnapshotRecord { ordinal: Ordinal(*ordinal), ..*record });
    *ordinal += 1;
    name
}

fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
