//! Bringing staged packs into the store (design: packs, index, head; deletions after).

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axiomfs_api::{Body, Store, StoreErrorKind};

use crate::error::RepositoryError;
use crate::frame::FrameKind;
use crate::ids::{ChunkId, PackId};
use crate::index::{Located, NewPack, PackEntry, SegmentRef, write_segment};
use crate::limits;
use crate::names;
use crate::node_packs::NodePacks;
use crate::pack::{FinishedPack, PackFile, PackSeal, PackSource, Table, read_table};
use crate::packer::{Mark, Packer};
use crate::repository::Repository;
use crate::small_packs::plan;
use crate::staged::{Staged, StagedPack, StoredPack};
use crate::stats::count;
use crate::tree::{Root, walk_new};
use crate::yielding::BEFORE_UPLOAD;

/// What has lain in the staging directory for so long is compared with its name before it is sent: as after an outage.
const UNCHECKED: Duration = Duration::from_secs(600);
/// Bytes that are read at once for that.
const PIECE: u64 = 1 << 20;
/// Texts that are kept for who asks what was damaged.
const DAMAGE_NOTES: usize = 100;

/// What was found damaged on this machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamageNote {
    /// The object and the damage, for people.
    pub text: String,
    /// Whether some of it is lost: it is not in the store, though what names it is.
    pub lost: bool,
}

/// What a commit uploaded; the head that names `segments` makes it count.
#[derive(Debug)]
pub struct CommitSet {
    /// All live index segments, newest first, for the head.
    pub segments: Vec<SegmentRef>,
    /// Packs that were uploaded.
    pub packs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Staged packs that it supersedes.
    slots: HashSet<u32>,
    /// Chunks of other volumes that its segments locate.
    borrowed: Vec<(ChunkId, Located)>,
    /// Up to where it has what was staged.
    upto: Mark,
}

/// Files that commits superseded, to be removed once nothing names them.
#[derive(Debug, Default)]
pub struct Superseded(Vec<PathBuf>);

impl Superseded {
    /// Adds those of another commit.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Removes them.
    ///
    /// # Errors
    /// The first that can't be removed, which leaves rubbish until the next mount, nothing worse.
    pub fn remove(&mut self) -> Result<(), RepositoryError> {
        // All are tried, also after one failed.
        let failed: Vec<_> =
            std::mem::take(&mut self.0).iter().filter_map(|path| remove_if_there(path).err()).collect();
        failed.into_iter().next().map_or(Ok(()), Err)
    }
}

/// What was uploaded since the last finished commit. A commit that failed half-way is continued from it.
#[derive(Default)]
pub(crate) struct Progress {
    done: Vec<Uploaded>,
    slots: HashSet<u32>,
    nodes: HashSet<ChunkId>,
    /// Chunks and nodes in them.
    members: u64,
    /// Packs made for a commit whose upload got no good answer: they may be in the store, and are sent again under the same name.
    unanswered: Vec<Made>,
}

impl Progress {
    /// Slots of staged packs that need not be uploaded any more, once what is unanswered is there.
    fn covered(&self) -> HashSet<u32> {
        let again = self.unanswered.iter().flat_map(|made| &made.sources).map(|pack| pack.slot);
        self.slots.iter().copied().chain(again).collect()
    }

    /// The same of tree nodes.
    fn covered_nodes(&self) -> HashSet<ChunkId> {
        let again = self.unanswered.iter().filter(|made| made.seal.kind == FrameKind::Metadata);
        self.nodes.iter().copied().chain(again.flat_map(|made| members(&made.finished.table))).collect()
    }
}

/// A pack made for a commit.
pub(crate) struct Made {
    pub(crate) finished: FinishedPack,
    pub(crate) seal: Arc<PackSeal>,
    /// The staged packs that were put together for it; none for tree nodes.
    pub(crate) sources: Vec<Arc<Staged>>,
    /// Whether it was sent before, so that the store may have it.
    pub(crate) sent: bool,
}

struct Uploaded {
    entry: PackEntry,
    table: Table,
}

/// One pack to upload.
pub(crate) enum Task {
    /// A staged pack as it is.
    AsIs(Arc<Staged>),
    /// Small staged packs, put together.
    Merge(Vec<Arc<Staged>>),
    /// A pack of reachable tree nodes made for this commit, or one of an earlier try.
    Made(Made),
}

impl Repository {
    /// Up to where things are staged now. After [`flush`](Self::flush), and before anything else is added: all of what is durable.
    ///
    /// # Errors
    /// The repository was opened without a staging directory.
    pub fn mark(&self) -> Result<Mark, RepositoryError> {
        Ok(self.packer()?.mark())
    }

    /// The packs before `upto` that are staged and in no head: a later mount needs them. Later ones may be finished, but their names are
    /// durable only with the next flush.
    ///
    /// # Errors
    /// The repository was opened without a staging directory.
    pub fn staged(&self, upto: Mark) -> Result<Vec<PackId>, RepositoryError> {
        let packs = self.packer()?.finished().into_iter().filter(|pack| pack.slot < upto.slots);
        Ok(packs.filter_map(|pack| pack.info()).map(|(info, _)| info.id).collect())
    }

    /// Uploads what was staged and flushed, then writes the index segment for it.
    ///
    /// Of staged tree nodes only those reachable from `roots` are uploaded: `roots` must name every tree that is still needed and was
    /// built before the last flush returned. (Nodes added since the flush before that are kept for later commits in any case.)
    ///
    /// # Errors
    /// [`RepositoryError::CommitRunning`], or what store, staging directory or chain met; then what was uploaded is kept and the next
    /// call goes on from there.
    pub fn commit_packs(&self, roots: &[Option<Root>]) -> Result<CommitSet, RepositoryError> {
        self.commit_packs_then(roots, self.mark()?, &|| {})
    }

    /// The same for what was staged up to `upto` only, while more is added and flushed; `roots` are those of then. `uploaded` is called
    /// when the packs are in the store and the index segment is not yet.
    ///
    /// # Errors
    /// As [`commit_packs`](Self::commit_packs).
    pub fn commit_packs_then(
        &self,
        roots: &[Option<Root>],
        upto: Mark,
        uploaded: &dyn Fn(),
    ) -> Result<CommitSet, RepositoryError> {
        let packer = self.packer()?;
        let _running = Running::begin(&self.committing)?;
        self.follow_keys();
        let packs = packer.finished().into_iter().filter(|pack| pack.slot < upto.slots);
        let (mut data, metadata): (Vec<_>, Vec<_>) = packs.partition(|p| p.seal.kind != FrameKind::Metadata);
        let nodes = match self.pack_nodes(packer, roots) {
            // Packs of nodes need room on this machine, which packs of data give once they are in the store.
            Err(error) if error.is_no_space() => {
                self.without_covered(&mut data);
                let again = std::mem::take(&mut self.progress().unanswered).into_iter().map(Task::Made);
                self.upload_all(packer, again.chain(data.iter().cloned().map(Task::AsIs)).collect())?;
                self.pack_nodes(packer, roots)?
            }
            nodes => nodes?,
        };
        self.without_covered(&mut data);
        let again = std::mem::take(&mut self.progress().unanswered);
        let made = nodes.into_iter().map(|(finished, seal)| Made { finished, seal, sources: Vec::new(), sent: false });
        let (clear, sealed): (Vec<_>, Vec<_>) = data.into_iter().partition(|p| p.seal.kind == FrameKind::Clear);
        // First those that make room on this machine; the others need some.
        let (mut tasks, mut small) = (VecDeque::new(), Vec::new());
        for packs in [sealed, clear] {
            plan(packs, self.pack_bytes, limits::FRAMES, &mut tasks, &mut small);
        }
        tasks.extend(small.into_iter().chain(again.into_iter().chain(made).map(Task::Made)));
        self.upload_all(packer, tasks)?;
        uploaded();

        let mut slots: HashSet<u32> = metadata.iter().map(|pack| pack.slot).collect();
        let borrowed = self.others.all();
        let (segments, packs, bytes) = self.write_index(packer, &borrowed)?;
        slots.extend(&self.progress().slots);
        Ok(CommitSet { segments, packs, bytes, slots, borrowed, upto })
    }

    /// Leaves of `packs` those that are to be uploaded.
    fn without_covered(&self, packs: &mut Vec<Arc<Staged>>) {
        let covered = self.progress().covered();
        packs.retain(|pack| !covered.contains(&pack.slot));
    }

    /// To be called once the head is created: the index switches over, and what the commit superseded is forgotten. The files that are
    /// returned may be removed when no manifest names them any more; those that [`staged`](Self::staged) names are not among them.
    ///
    /// # Errors
    /// If a segment's reference is not possible.
    pub fn supersede(&self, set: &CommitSet) -> Result<Superseded, RepositoryError> {
        let packer = self.packer()?;
        self.index.set_segments(&set.segments)?;
        self.others.returned(&set.borrowed);
        let progress = std::mem::take(&mut *self.progress());
        let data = &progress.slots;
        // A node that is not in the store may be needed by a tree that was not in `roots`, if it was added lately.
        let kept_from = set.upto.generation.saturating_sub(1);
        let gone = packer.forget(&set.slots, |id, chunk| {
            data.contains(&chunk.slot) || progress.nodes.contains(id) || chunk.touched < kept_from
        });
        Ok(Superseded(gone.iter().filter_map(|pack| pack.info()).map(|(info, _)| info.path).collect()))
    }

    /// [`supersede`](Self::supersede) where nothing names the files: they are removed.
    ///
    /// # Errors
    /// As for that, or a file can't be removed (which leaves rubbish, nothing worse).
    pub fn finish_commit(&self, set: CommitSet) -> Result<(), RepositoryError> {
        self.supersede(&set)?.remove()
    }

    /// Chunks and nodes that are in the store and in no head yet.
    pub(crate) fn members_sent(&self) -> u64 {
        self.progress().members
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packs the reachable staged nodes in key order, so that neighbours in the tree share frames.
    fn pack_nodes(
        &self,
        packer: &Packer,
        roots: &[Option<Root>],
    ) -> Result<Vec<(FinishedPack, Arc<PackSeal>)>, RepositoryError> {
        let covered = self.progress().covered_nodes();
        let mut seen = HashSet::new();
        let mut nodes = NodePacks::new(self, packer);
        for root in roots {
            // Also below those that an earlier try has uploaded: their children may have been in a pack that failed.
            let mut is_new = |id: &ChunkId| packer.holds(id) && seen.insert(*id);
            walk_new(self, *root, &mut is_new, &mut |id, node| {
                if covered.contains(&id) { Ok(()) } else { nodes.add(id, node.bytes()) }
            })?;
        }
        nodes.finish()
    }

    /// Runs the tasks on several threads; the first failure ends all.
    fn upload_all(&self, packer: &Packer, tasks: VecDeque<Task>) -> Result<(), RepositoryError> {
        let threads = self.uploads.most().min(tasks.len());
        let tasks = Mutex::new(tasks);
        let failed: Mutex<Option<RepositoryError>> = Mutex::new(None);
        let work = || {
            loop {
                // Before the look at the tasks: who waits here takes none.
                let _passed = self.uploads.pass();
                if failed.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                    return;
                }
                let Some(task) = tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
                self.reads.give_way(BEFORE_UPLOAD);
                if let Err(error) = self.run(packer, task) {
                    count(&self.counters.uploads_failed, 1);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        for task in tasks.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match task {
                Task::Made(made) if made.sent => self.progress().unanswered.push(made),
                Task::Made(made) => remove_if_there(&made.finished.path)?,
                Task::AsIs(_) | Task::Merge(_) => {}
            }
        }
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn run(&self, packer: &Packer, task: Task) -> Result<(), RepositoryError> {
        match task {
            Task::AsIs(staged) => self.upload_as_is(packer, &staged),
            Task::Merge(packs) => self.upload_merged(packer, packs),
            Task::Made(made) => self.upload_made(made),
        }
    }

    /// Notes damage that nobody gets an error for.
    pub(crate) fn note_damage(&self, note: DamageNote) {
        let mut notes = self.damage_notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < DAMAGE_NOTES {
            notes.push(note);
        }
    }

    /// What was found damaged on this machine's disk since the last call, a hundred notes at most.
    pub fn take_damage_notes(&self) -> Vec<DamageNote> {
        std::mem::take(&mut *self.damage_notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Nothing of a staged pack is needed any more once the commit is done.
    pub(crate) fn done_with(&self, staged: &Staged) {
        self.progress().slots.insert(staged.slot);
    }

    pub(crate) fn upload_as_is(&self, packer: &Packer, staged: &Arc<Staged>) -> Result<(), RepositoryError> {
        let Some((info, uploaded)) = staged.info() else { return Ok(()) };
        let (_, table) = match self.table_to_send(staged, &info, uploaded) {
            Err(error) if !uploaded && is_rotten(&error) => return self.upload_sound(packer, staged, &error),
            table => table?,
        };
        if !table.frames.is_empty() {
            if !uploaded {
                self.upload(staged.seal.kind, &info.id, &info.path, info.len)?;
                staged.uploaded();
                // The disk has room for others at once; who wants it finds it in the store.
                remove_if_there(&info.path)?;
            }
            self.note(entry(&staged.seal, info.id, info.len), table, &[]);
        }
        self.done_with(staged);
        Ok(())
    }

    /// Uploads a pack made for a commit. Where that may have been done though it failed, a later try sends the same file again: made
    /// anew it would have another salt and name, and the store would keep both.
    pub(crate) fn upload_made(&self, made: Made) -> Result<(), RepositoryError> {
        let Made { finished, seal, .. } = &made;
        match self.send(&made) {
            Ok(()) => {}
            // It may have been done all the same.
            Err(error) if error.is_transient() => {
                self.progress().unanswered.push(Made { sent: true, ..made });
                return Err(error);
            }
            Err(error) => {
                remove_if_there(&finished.path)?;
                return Err(error);
            }
        }
        remove_if_there(&finished.path)?;
        let entry = entry(seal, finished.id, finished.len);
        self.note(entry, made.finished.table, &made.sources);
        Ok(())
    }

    fn send(&self, made: &Made) -> Result<(), RepositoryError> {
        let Made { finished, seal, .. } = made;
        // A store on the same filesystem has taken the file away.
        if made.sent && !finished.path.exists() {
            let stored = self.store().stat(&names::key(&names::pack(&finished.id))?)?;
            if stored.len == finished.len {
                return Ok(());
            }
        }
        self.upload(seal.kind, &finished.id, &finished.path, finished.len)
    }

    fn note(&self, entry: PackEntry, table: Table, sources: &[Arc<Staged>]) {
        let mut progress = self.progress();
        if entry.kind == FrameKind::Metadata {
            progress.nodes.extend(members(&table));
        }
        progress.slots.extend(sources.iter().map(|pack| pack.slot));
        progress.members += table.frames.iter().map(|(_, members)| members.len() as u64).sum::<u64>();
        progress.done.push(Uploaded { entry, table });
    }

    fn upload(&self, kind: FrameKind, id: &PackId, path: &Path, len: u64) -> Result<(), RepositoryError> {
        self.put_object(kind, &names::pack(id), path, len)?;
        count(&self.counters.packs_uploaded, 1);
        Ok(())
    }

    fn put_object(&self, kind: FrameKind, name: &str, path: &Path, len: u64) -> Result<(), RepositoryError> {
        let key = names::key(name)?;
        let put = match kind {
            FrameKind::Data | FrameKind::Clear => self.store().put_new_data(&key, Body::File(path)),
            FrameKind::Metadata => self.store().put_new(&key, Body::File(path)),
        };
        match put {
            Ok(()) => {}
            // Its name is its hash, or random: an earlier attempt was carried out after all.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        // The next mount begins with what is in these.
        if let (FrameKind::Metadata, Some(near)) = (kind, &self.near) {
            near.keep_whole(&key, path, len);
        }
        count(&self.counters.objects_uploaded, 1);
        count(&self.counters.bytes_uploaded, len);
        Ok(())
    }

    /// The table of a pack that is to be sent. What has lain here for long is compared with its name: a disk may lose bits.
    fn table_to_send(
        &self,
        staged: &Staged,
        info: &StagedPack,
        uploaded: bool,
    ) -> Result<(PackSeal, Table), RepositoryError> {
        let (source, name) = open_pack(self.store().as_ref(), &info.id, &info.path, info.len, uploaded)?;
        let read = read_table(source.as_ref(), &self.keyring, self.seal.as_ref(), &name)?;
        if !uploaded && staged.has_lain_for(UNCHECKED) && !is_whole(source.as_ref(), &info.id)? {
            return Err(RepositoryError::corrupt(&name, "its bytes are not what its name says"));
        }
        Ok(read)
    }

    /// Writes and uploads the segment for all that was uploaded; with nothing new the live segments stay.
    fn write_index(
        &self,
        packer: &Packer,
        borrowed: &[(ChunkId, Located)],
    ) -> Result<(Vec<SegmentRef>, usize, u64), RepositoryError> {
        let done = std::mem::take(&mut self.progress().done);
        let result = if done.is_empty() && borrowed.is_empty() {
            Ok(self.index.refs())
        } else {
            let packs: Vec<NewPack<'_>> = done
                .iter()
                .map(|d| NewPack { entry: d.entry, chains: &d.table.chains, frames: &d.table.frames })
                .collect();
            write_segment(&self.index, packer.dir(), &packs, borrowed).and_then(|(path, reference, refs)| {
                let name = names::segment(self.index.volume(), reference.id);
                let uploaded = self.put_object(FrameKind::Metadata, &name, &path, reference.len);
                remove_if_there(&path)?;
                uploaded.map(|()| refs)
            })
        };
        let (packs, bytes) = (done.len(), done.iter().map(|d| d.entry.len).sum());
        // Until the head is there a later commit has to index these again.
        self.progress().done.extend(done);
        result.map(|refs| (refs, packs, bytes))
    }
}

/// The chunks in a pack.
fn members(table: &Table) -> impl Iterator<Item = ChunkId> + '_ {
    table.frames.iter().flat_map(|(_, members)| members).map(|(id, _)| *id)
}

fn entry(seal: &PackSeal, id: PackId, len: u64) -> PackEntry {
    PackEntry { id, len, epoch: seal.epoch, salt: seal.salt, kind: seal.kind }
}

/// A staged pack, from its file or, where a store took the file, from the store.
pub(crate) fn open_pack<'a>(
    store: &'a dyn Store,
    id: &PackId,
    path: &Path,
    len: u64,
    uploaded: bool,
) -> Result<(Box<dyn PackSource + 'a>, String), RepositoryError> {
    if !uploaded {
        match PackFile::open(path) {
            Ok(file) => return Ok((Box::new(file), path.display().to_string())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(RepositoryError::staging("open", path, e)),
        }
    }
    Ok((Box::new(StoredPack { store, id: *id, len }), names::pack(id)))
}

/// Whether a pack's bytes have the hash that it is named by.
fn is_whole(source: &dyn PackSource, id: &PackId) -> Result<bool, RepositoryError> {
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < source.len() {
        let part = source.read(at, PIECE.min(source.len() - at))?;
        hasher.update(&part);
        at += part.len() as u64;
    }
    Ok(*hasher.finalize().as_bytes() == id.0)
}

/// Whether what this mount has written to this machine's disk is something else now, as against not there.
pub(crate) fn is_rotten(error: &RepositoryError) -> bool {
    matches!(
        error,
        RepositoryError::Corrupt { .. }
            | RepositoryError::UnknownEpoch { .. }
            | RepositoryError::UnsupportedVersion { .. }
    )
}

/// A store on the same filesystem has moved the file away, any other has not.
pub(crate) fn remove_if_there(path: &Path) -> Result<(), RepositoryError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(RepositoryError::staging("remove", path, e)),
        _ => Ok(()),
    }
}

/// One commit at a time.
struct Running<'a>(&'a AtomicBool);

impl<'a> Running<'a> {
    fn begin(flag: &'a AtomicBool) -> Result<Self, RepositoryError> {
        if flag.swap(true, Ordering::Acquire) { Err(RepositoryError::CommitRunning) } else { Ok(Self(flag)) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
