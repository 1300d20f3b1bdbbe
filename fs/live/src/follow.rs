//! A mount that only reads follows the writer: it asks for the next head and, where there is one, shows its state.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use axiomfs_repository::ids::SequenceNo;
use axiomfs_repository::record::{self, Inode};
use axiomfs_repository::tree::{self, Root};
use axiomfs_repository::{Head, RepositoryError};
use thiserror::Error;

use crate::background::describe;
use crate::base;
use crate::commit::tell_of_foreign;
use crate::layer::Layer;
use crate::open;
use crate::open_error::OpenError;
use crate::types::NodeId;
use crate::versions::Changed;
use crate::view::{LookError, Nodes};
use crate::volume::{Shared, Volume, lock};

/// How often it looks whether the volume has stopped.
const LOOK: Duration = Duration::from_millis(250);
/// The kernel keeps names and attributes from when an answer reaches it, and counts in ticks: what it keeps ends so long before the next
/// state may come, or a name of one state could be read beside one of another.
const KEPT_LONGER: Duration = Duration::from_millis(50);
/// Asked for in vain so often, the writer may have gone on so fast that the next head was trimmed before it was seen.
const GAP_AFTER: u32 = 30;
/// Changed files that are told one by one.
const FILES_MAX: usize = 200_000;
/// Changed records that are looked at.
const RECORDS_MAX: usize = 2_000_000;

/// Hears which directories changed.
type Watcher = Box<dyn Fn(&[NodeId]) + Send + Sync>;

/// What a following mount keeps in mind.
#[derive(Default)]
pub(crate) struct Follow {
    next: Mutex<Option<Instant>>,
    watcher: OnceLock<Watcher>,
    /// The last failure, so that it is told once.
    failed: Mutex<Option<String>>,
}

#[derive(Debug, Error)]
enum FollowError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("The metadata tree can't be read")]
    Look(#[from] LookError),
    #[error(
        "Head {0} in the store does not follow the one shown here: the store was rolled back or its history rewritten; \
         mount again to see what it has now"
    )]
    Diverged(u64),
}

/// Notes when the next state may come, and says when. Before anything is answered, too: until then it would be taken for unchanging.
pub(crate) fn begin(shared: &Shared) -> Instant {
    let due = Instant::now() + shared.options.refresh;
    *lock(&shared.follow.next) = Some(due);
    due
}

/// The follower's life.
pub(crate) fn serve(shared: &Shared) {
    let mut in_vain = 0;
    loop {
        let due = begin(shared);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if shared.stopped.load(Ordering::Relaxed) {
                return;
            }
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK));
        }
        let late = due.elapsed() > shared.options.refresh;
        match refresh(shared, late || in_vain >= GAP_AFTER) {
            Ok(found) => {
                tell_of_foreign(shared);
                in_vain = if found || in_vain >= GAP_AFTER { 0 } else { in_vain + 1 };
                *lock(&shared.follow.failed) = None;
            }
            Err(e) => {
                let text = describe(&e);
                let mut failed = lock(&shared.follow.failed);
                if failed.as_ref() != Some(&text) {
                    shared.events.add("error", format!("Could not follow the writer: {text}"));
                    *failed = Some(text);
                }
            }
        }
    }
}

/// Shows the newest state; whether it is another.
fn refresh(shared: &Shared, look_for_gap: bool) -> Result<bool, FollowError> {
    let Some(head) = newest(shared, look_for_gap)? else { return Ok(false) };
    let repository = &shared.repository;
    repository.load_segments(&head.segments)?;
    let manifest = base::first_manifest(Some(&head));
    let (mut fresh, _) = open::load(repository, &manifest, head.snapshots_root)?;
    // Nothing but this thread changes the base.
    let old = shared.state().base;
    let changed = changes(shared, old, head.live_root)?;
    let mut state = shared.state_mut();
    state.show(&mut fresh, &changed);
    *lock(&shared.head) = open::seen(&head);
    drop(state);
    if let Some(watcher) = shared.follow.watcher.get() {
        let directories: Vec<NodeId> = changed.directories.iter().map(|ino| NodeId::live(*ino)).collect();
        watcher(&directories);
    }
    Ok(true)
}

/// The newest head, if there is one after the one shown. Where that one is trimmed the next is not believed: it may have been created
/// where others were trimmed, and is no commit then.
fn newest(shared: &Shared, look_for_gap: bool) -> Result<Option<Head>, FollowError> {
    let (repository, volume) = (&shared.repository, shared.options.volume);
    let seen = *lock(&shared.head);
    let (mut parent, mut sequence, mut found) = (seen.commit, seen.sequence, None);
    let diverged = loop {
        match repository.head(volume, SequenceNo(sequence + 1)) {
            Ok(head) if head.parent != parent => break Some(FollowError::Diverged(head.sequence.0)),
            Ok(head) => {
                (parent, sequence) = (Some(head.commit), head.sequence.0);
                found = Some(head);
            }
            Err(RepositoryError::MissingObject { .. }) => break None,
            Err(e) => return Err(e.into()),
        }
    };
    let is_news = found.is_some() || diverged.is_some();
    let look = if is_news { seen.sequence > 0 } else { look_for_gap };
    if look && !repository.has_head(volume, SequenceNo(seen.sequence))? {
        return Ok(repository.latest_listed_head(volume)?.filter(|head| head.sequence.0 > seen.sequence));
    }
    diverged.map_or(Ok(found), Err)
}

/// What differs between two trees. With very much the files are not told.
fn changes(shared: &Shared, old: Option<Root>, new: Option<Root>) -> Result<Changed, LookError> {
    let nodes = Nodes { repository: &shared.repository, fetch: true, pinned: &[] };
    let (mut files, mut removed, mut directories) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (count, change) in tree::diff(&nodes, old, new).enumerate() {
        let (key, before, after) = change?;
        let Some((ino, kind)) = record::parse_key(&key) else { continue };
        match kind {
            record::KIND_ENTRY | record::KIND_NAME => {
                directories.insert(ino);
            }
            record::KIND_EXTENT => {
                files.insert(ino);
            }
            record::KIND_INODE => match (before, after) {
                (Some(_), None) => {
                    removed.insert(ino);
                }
                (Some(before), Some(after)) if Inode::decode(&before)?.size != Inode::decode(&after)?.size => {
                    files.insert(ino);
                }
                _ => {}
            },
            _ => {}
        }
        if files.len() > FILES_MAX || count > RECORDS_MAX {
            let sorted = |set: BTreeSet<u64>| set.into_iter().collect();
            return Ok(Changed { files: None, removed: sorted(removed), directories: sorted(directories) });
        }
    }
    // The size of a directory is its number of entries.
    let files = files.into_iter().filter(|ino| !directories.contains(ino)).collect();
    let sorted = |set: BTreeSet<u64>| set.into_iter().collect();
    Ok(Changed { files: Some(files), removed: sorted(removed), directories: sorted(directories) })
}

impl crate::state::State {
    /// Takes the place of what is shown, at once for every request.
    fn show(&mut self, fresh: &mut Self, changed: &Changed) {
        let old = self.base;
        self.active = Layer::default();
        self.base = fresh.base;
        self.take_snapshots(fresh);
        self.inos = std::mem::take(&mut fresh.inos);
        self.next_ordinal = fresh.next_ordinal;
        if let Some(versions) = &mut self.versions {
            versions.advance(old, changed);
        }
    }
}

impl Volume {
    /// How long what this volume answers stays right: on a mount that follows another writer until the next state may come.
    /// `None` where nothing changes but through the volume itself.
    pub fn fresh_for(&self) -> Option<Duration> {
        let next = (*lock(&self.shared.follow.next))?;
        Some(next.saturating_duration_since(Instant::now()).saturating_sub(KEPT_LONGER))
    }

    /// Calls `watcher` with the directories that another writer changed, after it is so. The first one stays.
    pub fn watch(&self, watcher: impl Fn(&[NodeId]) + Send + Sync + 'static) {
        if self.shared.follow.watcher.set(Box::new(watcher)).is_err() {
            tracing::warn!("The volume is watched already");
        }
    }
}
