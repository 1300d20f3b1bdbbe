//! Chunks that other volumes of the repository have stored already (format.md §6, "Chunks of other volumes").
//!
//! A writer looks chunks of file data up in the committed segments of the other volumes too. What it finds it *borrows*: its
//! own next segment gets rows for it, so whoever reads the volume needs nothing of another one, and no pack that a head's
//! segments name is ever deleted. Until that segment is committed the places are kept here, in memory; after a crash they
//! are looked up again.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::RepositoryError;
use crate::frame::FrameKind;
use crate::ids::{ChunkId, SequenceNo, VolumeId};
use crate::index::{Index, Io, Located};
use crate::pack::Chain;
use crate::packer::Packer;
use crate::place::ChunkPlace;
use crate::record::{self, Extent, Source, Xattr};
use crate::repository::{Repository, lock};
use crate::tree::{Root, walk_new};

/// How often the heads of other volumes are listed while data comes in. Tests make a store that is slower than that.
const REFRESH: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(10) };
/// Places kept until the next commit, about 8 MiB of them; beyond that chunks are stored again, which is harmless.
const BORROWED_MAX: usize = 1 << 15;
/// Other volumes that are looked at, the oldest first: each costs a look into its filters for every new chunk.
const OTHERS_MAX: usize = 16;

/// The other volumes, and what was borrowed of them.
#[derive(Default)]
pub(crate) struct Others {
    volumes: Vec<Other>,
    asked: Mutex<Option<Instant>>,
    borrowed: Mutex<HashMap<ChunkId, Located>>,
}

struct Other {
    id: VolumeId,
    /// The head whose segments `index` has.
    seen: Mutex<Option<SequenceNo>>,
    index: Index,
}

impl Others {
    /// The chains of what is borrowed.
    pub(crate) fn chains(&self) -> Vec<Chain> {
        lock(&self.borrowed).values().map(|place| place.chain.clone()).collect()
    }

    pub(crate) fn new(volumes: impl Iterator<Item = (VolumeId, Index)>) -> Self {
        let volumes = volumes.take(OTHERS_MAX).map(|(id, index)| Other { id, seen: Mutex::default(), index });
        Self { volumes: volumes.collect(), ..Self::default() }
    }

    /// Where a borrowed chunk is.
    pub(crate) fn borrowed(&self, id: &ChunkId) -> Option<Located> {
        lock(&self.borrowed).get(id).cloned()
    }

    /// All that is borrowed, for the next segment.
    pub(crate) fn all(&self) -> Vec<(ChunkId, Located)> {
        lock(&self.borrowed).iter().map(|(id, located)| (*id, located.clone())).collect()
    }

    /// A committed segment has these. A chunk that was borrowed from another place meanwhile stays.
    pub(crate) fn returned(&self, rows: &[(ChunkId, Located)]) {
        let key = |place: &Located| ChunkPlace::stored(place.clone()).key();
        let mut borrowed = lock(&self.borrowed);
        for (id, place) in rows {
            if borrowed.get(id).is_some_and(|now| key(now) == key(place)) {
                borrowed.remove(id);
            }
        }
    }
}

impl Repository {
    /// Whether another volume has the chunk of sealed data, in a frame that can be decoded and is not known to be bad. Then it is borrowed.
    /// What is wrong with another volume is no reason to fail: then the chunk counts as absent.
    pub(crate) fn borrow_chunk(&self, id: &ChunkId, io: Io) -> Result<bool, RepositoryError> {
        if self.others.borrowed(id).is_some_and(|place| self.is_good(&place)) {
            return Ok(true);
        }
        if lock(&self.others.borrowed).len() >= BORROWED_MAX {
            return Ok(false);
        }
        let found = self.find_elsewhere(id, io)?;
        Ok(found.map(|place| lock(&self.others.borrowed).insert(*id, place)).is_some())
    }

    /// Where another volume has a chunk that is to be read and can't be had here. The next commit makes it ours, if there is one and room.
    pub(crate) fn borrow_to_read(&self, id: &ChunkId) -> Result<Option<Located>, RepositoryError> {
        let found = self.find_elsewhere(id, Io::Allowed)?;
        let mut borrowed = lock(&self.others.borrowed);
        if let Some(place) = &found
            && self.packer.is_some()
            && borrowed.len() < BORROWED_MAX
        {
            borrowed.insert(*id, place.clone());
        }
        Ok(found)
    }

    fn is_good(&self, place: &Located) -> bool {
        place.frame.kind == FrameKind::Data
            && self.can_decode(place)
            && !self.reader.is_quarantined(&ChunkPlace::stored(place.clone()).key())
    }

    fn find_elsewhere(&self, id: &ChunkId, io: Io) -> Result<Option<Located>, RepositoryError> {
        if self.others.volumes.is_empty() {
            return Ok(None);
        }
        if io == Io::Allowed {
            self.refresh_others()?;
        }
        for other in &self.others.volumes {
            match other.index.locate(id, io) {
                Ok(places) => {
                    if let Some(place) = places.unwrap_or_default().into_iter().find(|place| self.is_good(place)) {
                        return Ok(Some(place));
                    }
                }
                Err(error) => self.pass_over(other, error)?,
            }
        }
        Ok(None)
    }

    /// Takes the newest committed segments of the other volumes, at most once in a while.
    fn refresh_others(&self) -> Result<(), RepositoryError> {
        {
            let mut asked = lock(&self.others.asked);
            if asked.is_some_and(|at| at.elapsed() < REFRESH) {
                return Ok(());
            }
            *asked = Some(Instant::now());
        }
        let mut others = self.others.volumes.iter();
        let refreshed = others.try_for_each(|other| self.refresh(other).or_else(|error| self.pass_over(other, error)));
        // Listings that took longer than the pause between them are not begun again for the next chunk.
        *lock(&self.others.asked) = Some(Instant::now());
        refreshed
    }

    /// One listing; not a look for the next number, which is trimmed if the other volume has made many commits meanwhile.
    fn refresh(&self, other: &Other) -> Result<(), RepositoryError> {
        let seen = *lock(&other.seen);
        let Some((newest, _)) = self.heads_after(other.id, seen)?.pop() else { return Ok(()) };
        let head = self.head(other.id, newest)?;
        other.index.set_segments(&head.segments)?;
        *lock(&other.seen) = Some(newest);
        Ok(())
    }

    /// Does without a volume whose index can't be used (damaged, or sealed under an epoch made after this keyring was read) until
    /// heads are listed again. An error of a store that can't be reached is handed back.
    fn pass_over(&self, other: &Other, error: RepositoryError) -> Result<(), RepositoryError> {
        if error.is_transient() {
            return Err(error);
        }
        tracing::warn!(volume = %other.id, %error, "the index of another volume can't be used, so its chunks are not shared");
        *lock(&other.seen) = None;
        other.index.set_segments(&[])
    }

    /// After a crash: finds the chunks again that the staged nodes of these trees name and that were borrowed, so that the next
    /// commit puts them into its segment. Returns how many there are that nothing locates.
    ///
    /// # Errors
    /// If a node can't be read, or the store can't be reached.
    pub fn borrow_again(&self, roots: &[Option<Root>]) -> Result<u64, RepositoryError> {
        if self.others.volumes.is_empty() {
            return Ok(0);
        }
        let packer = self.packer()?;
        let (mut seen, mut missing) = (HashSet::new(), 0);
        for root in roots {
            let mut is_new = |id: &ChunkId| packer.holds(id) && seen.insert(*id);
            walk_new(self, *root, &mut is_new, &mut |_, node| {
                let leaves = if node.level() == 0 { node.len() } else { 0 };
                for id in (0..leaves).filter_map(|at| chunk_in(node.key(at), node.value(at))) {
                    missing += u64::from(!self.is_found(packer, &id)?);
                }
                Ok(())
            })?;
        }
        Ok(missing)
    }

    fn is_found(&self, packer: &Packer, id: &ChunkId) -> Result<bool, RepositoryError> {
        if packer.holds(id) {
            return Ok(true);
        }
        match self.index.locate(id, Io::Allowed) {
            Ok(Some(places)) if !places.is_empty() => Ok(true),
            Err(error) if !error.is_damage() => Err(error),
            _ => self.borrow_chunk(id, Io::Allowed),
        }
    }
}

/// The chunk that a record names.
fn chunk_in(key: &[u8], value: &[u8]) -> Option<ChunkId> {
    match record::parse_key(key)?.1 {
        record::KIND_EXTENT => match Extent::decode(value).ok()?.source {
            Source::Chunk { id, .. } => Some(id),
            Source::Inline(_) => None,
        },
        record::KIND_XATTR => match Xattr::decode(value).ok()? {
            Xattr::Chunk { id, .. } => Some(id),
            Xattr::Inline(_) => None,
        },
        _ => None,
    }
}
