//! The manifest: what of this volume is durable on this machine.
//!
//! Two files take turns, so that a torn write leaves the other. Each is sealed: it names what the log and the packs
//! mean. `fs/doc/format-log.md`, "Manifest", describes the bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use axiomfs_repository::ids::{CommitId, PackId, StateId, VolumeId};
use axiomfs_repository::record::{Fields, RecordError, put_varint};
use axiomfs_repository::tree::Root;
use axiomfs_repository::{Repository, RepositoryError};
use thiserror::Error;

use crate::log::{drop_cached, is_no_space};

/// Format version of the sealed part that is written; version 1 is read, too.
const VERSION: u64 = 2;
/// Kind byte that errors about the manifest carry.
const KIND: u8 = 0xf1;
/// Largest manifest that is read.
const MAX_BYTES: u64 = 64 << 20;
/// Purpose of the sealed record, part of its key.
const PURPOSE: &str = "axiomfs manifest v1";

/// Why a manifest can't be read or written.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The disk.
    #[error("Manifest {} can't be read or written", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It can't be sealed.
    #[error("The manifest can't be sealed")]
    Seal(#[from] RepositoryError),
    /// Both files are damaged.
    #[error("Both manifests in {} are damaged: {reason}", dir.display())]
    Damaged {
        /// The state directory.
        dir: PathBuf,
        /// What is wrong with the newer one.
        reason: String,
    },
}

/// What is durable here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Counts up with each write.
    pub generation: u64,
    /// Epoch of the writer.
    pub epoch: u64,
    /// Newest head that is ours or that we began from.
    pub head: Option<(u64, CommitId)>,
    /// Heads that were about to be created after `head`: if the store has one of them, it is ours. Several attempts may have gone
    /// unanswered, and any of them may still be carried out.
    pub pending: Vec<CommitId>,
    /// Tree of the live files.
    pub root: Option<Root>,
    /// Tree of the snapshot table.
    pub snapshots_root: Option<Root>,
    /// Last operation in these trees.
    pub last_op: u64,
    /// First log segment that holds later ones.
    pub first_segment: u64,
    /// Next inode number.
    pub next_ino: u64,
    /// Next snapshot number.
    pub next_ordinal: u32,
    /// Whether the trees have changed since `head`.
    pub dirty: bool,
    /// Packs in the staging directory.
    pub staged: Vec<PackId>,
    /// Tells this state directory from others; version 1 had none.
    pub state: Option<StateId>,
    /// The volume that it belongs to; version 1 did not say.
    pub volume: Option<VolumeId>,
}

/// Attempts that are remembered; the oldest are long answered or lost by then.
const MOST_PENDING: usize = 16;

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.staged.len() * 32);
        for n in [VERSION, self.generation, self.epoch] {
            put_varint(&mut out, n);
        }
        out.push(u8::from(self.head.is_some()));
        if let Some((sequence, commit)) = &self.head {
            put_varint(&mut out, *sequence);
            out.extend_from_slice(&commit.0);
        }
        put_varint(&mut out, self.pending.len() as u64);
        for commit in &self.pending {
            out.extend_from_slice(&commit.0);
        }
        for root in [&self.root, &self.snapshots_root] {
            out.extend_from_slice(&Root::encode_option(*root));
        }
        for n in [self.last_op, self.first_segment, self.next_ino, u64::from(self.next_ordinal), u64::from(self.dirty)]
        {
            put_varint(&mut out, n);
        }
        put_varint(&mut out, self.staged.len() as u64);
        for pack in &self.staged {
            out.extend_from_slice(&pack.0);
        }
        for id in [self.state.map(|id| id.0), self.volume.map(|id| id.0)] {
            out.push(u8::from(id.is_some()));
            out.extend(id.into_iter().flatten());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND, bytes);
        let version = f.varint()?;
        if !(1..=VERSION).contains(&version) {
            return Err(f.error("its version is not 1 or 2; a newer axiomfs would read it"));
        }
        let (generation, epoch) = (f.varint()?, f.varint()?);
        let head = if flag(&mut f)? { Some((f.varint()?, CommitId(array(&mut f)?))) } else { None };
        // The flag of version 1 reads like a count.
        let count = f.varint()?;
        if count > MOST_PENDING as u64 || version == 1 && count > 1 {
            return Err(f.error("it has too many pending heads"));
        }
        let mut pending = Vec::new();
        for _ in 0..count {
            pending.push(CommitId(array(&mut f)?));
        }
        let mut roots = [None, None];
        for root in &mut roots {
            *root = Root::decode_option(&array(&mut f)?).map_err(|_| f.error("a root is malformed"))?;
        }
        let (last_op, first_segment, next_ino) = (f.varint()?, f.varint()?, f.varint()?);
        let (next_ordinal, dirty) = (f.varint32()?, f.varint()? != 0);
        let count = f.varint()?;
        let mut staged = Vec::new();
        for _ in 0..count {
            staged.push(PackId(array(&mut f)?));
        }
        let mut ids = [None, None];
        if version > 1 {
            for id in &mut ids {
                *id = if flag(&mut f)? { Some(array(&mut f)?) } else { None };
            }
        }
        f.finish()?;
        let [root, snapshots_root] = roots;
        let [state, volume] = ids;
        Ok(Self {
            generation,
            epoch,
            head,
            pending,
            root,
            snapshots_root,
            last_op,
            first_segment,
            next_ino,
            next_ordinal,
            dirty,
            staged,
            state: state.map(StateId),
            volume: volume.map(VolumeId),
        })
    }

    /// Notes that a head of this id is about to be created.
    pub(crate) fn attempt(&mut self, commit: CommitId) {
        if self.pending.len() == MOST_PENDING {
            self.pending.remove(0);
        }
        self.pending.push(commit);
    }

    /// Writes this as the next generation; the generation before stays until the one after.
    ///
    /// # Errors
    /// [`ManifestError::Io`]; the manifest on disk is then the one before.
    pub fn write(&mut self, dir: &Path, repository: &Repository) -> Result<(), ManifestError> {
        let next = Self { generation: self.generation + 1, ..self.clone() };
        let path = slot(dir, next.generation);
        let sealed = repository.seal_record(PURPOSE, &aad(repository), &next.encode())?;
        write_durably(&path, &sealed).map_err(|source| ManifestError::Io { path, source })?;
        // Only now: a second try must not go over the one that is good.
        self.generation = next.generation;
        Ok(())
    }

    /// Makes durable what [`read`](Self::read) reads: whoever wrote it may have died before that, or his fsync may have failed.
    ///
    /// # Errors
    /// What the disk met.
    pub fn sync(dir: &Path) -> io::Result<()> {
        for path in [slot(dir, 0), slot(dir, 1)] {
            match fs::metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Ok(meta) if meta.len() > MAX_BYTES => {}
                found => found.and_then(|_| write_again(&path))?,
            }
        }
        File::open(dir)?.sync_all()
    }

    /// The newer of the two that can be read; `None` where there is none yet.
    ///
    /// # Errors
    /// The disk can't be read, or what is there can't be opened.
    pub fn read(dir: &Path, repository: &Repository) -> Result<Option<Self>, ManifestError> {
        let mut best: Option<Self> = None;
        let mut damage = None;
        for generation in 0..2 {
            let path = slot(dir, generation);
            let io = |source| ManifestError::Io { path: path.clone(), source };
            let bytes = match fs::metadata(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io(e)),
                Ok(meta) if meta.len() > MAX_BYTES => {
                    damage = Some(format!("{} is too large", path.display()));
                    continue;
                }
                Ok(_) => fs::read(&path).map_err(io)?,
            };
            match open(repository, &bytes) {
                Ok(manifest) if best.as_ref().is_none_or(|b| b.generation < manifest.generation) => {
                    best = Some(manifest);
                }
                Ok(_) => {}
                Err(reason) => damage = Some(format!("{}: {reason}", path.display())),
            }
        }
        match (best, damage) {
            (Some(manifest), _) => Ok(Some(manifest)),
            (None, None) => Ok(None),
            // The very first manifest may be torn by a power cut; then nothing was checkpointed yet.
            (None, Some(reason)) if !slot(dir, 0).exists() => {
                tracing::warn!("The first manifest was never finished ({reason}); the log has everything");
                Ok(None)
            }
            (None, Some(reason)) => Err(ManifestError::Damaged { dir: dir.to_path_buf(), reason }),
        }
    }
}

fn open(repository: &Repository, bytes: &[u8]) -> Result<Manifest, String> {
    let plain = repository.open_record(PURPOSE, &aad(repository), bytes).map_err(|e: RepositoryError| e.to_string())?;
    Manifest::decode(&plain).map_err(|e| e.to_string())
}

fn aad(repository: &Repository) -> Vec<u8> {
    repository.id().0.to_vec()
}

fn slot(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("manifest.{}", generation % 2))
}

pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes a file durable that was read, whatever became of the fsync of whoever wrote it: after one that failed the kernel takes all for
/// written, and another one alone would succeed without doing anything. A new file with the same bytes takes its name. The directory is
/// still to be fsynced.
pub(crate) fn write_again(path: &Path) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let replaced = fs::read(path).and_then(|bytes| {
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    });
    match replaced {
        // A full disk keeps nobody from mounting.
        Err(e) if is_no_space(&e) => {
            // It may never have been made, and the next one goes over it.
            fs::remove_file(&new).ok();
            drop_cached(&File::open(path)?)
        }
        done => done,
    }
}

fn flag(f: &mut Fields<'_>) -> Result<bool, RecordError> {
    match f.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(f.error("a flag is neither 0 nor 1")),
    }
}

fn array<const N: usize>(f: &mut Fields<'_>) -> Result<[u8; N], RecordError> {
    let bytes = f.bytes(N)?;
    bytes.try_into().map_err(|_| f.error("it ends too early"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_manifest_keeps_every_field() {
        let root = Some(Root { node: axiomfs_repository::ids::ChunkId([7; 32]), height: 2, entries: 99 });
        let manifest = Manifest {
            generation: 5,
            epoch: 2,
            head: Some((9, CommitId([1; 16]))),
            pending: vec![CommitId([2; 16]), CommitId([5; 16])],
            root,
            snapshots_root: None,
            last_op: 77,
            first_segment: 3,
            next_ino: 2048,
            next_ordinal: 4,
            dirty: true,
            staged: vec![PackId([3; 32]), PackId([4; 32])],
            state: Some(StateId([6; 16])),
            volume: Some(VolumeId([8; 16])),
        };
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn version_1_is_read() {
        for pending in [vec![], vec![CommitId([2; 16])]] {
            let manifest = Manifest { generation: 3, epoch: 1, pending, dirty: true, ..Manifest::default() };
            let mut bytes = manifest.encode();
            bytes[0] = 1;
            bytes.truncate(bytes.len() - 2);
            assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        }
    }

    #[test]
    fn the_latest_attempts_are_remembered() {
        let mut manifest = Manifest::default();
        for n in 0..20 {
            manifest.attempt(CommitId([n; 16]));
        }
        assert_eq!(manifest.pending.len(), MOST_PENDING);
        assert_eq!(manifest.pending.last(), Some(&CommitId([19; 16])));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
            }
        }
    }
}
