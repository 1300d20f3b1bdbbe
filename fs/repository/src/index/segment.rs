//! One index segment: its root in memory, its blocks read by range (format.md §6).

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_api::{ObjectKey, Sealer};

use super::block::ChunkBlock;
use super::root::{self, Place, Root};
use crate::codec::{Malformed, Put, Reader};
use crate::crypto::{SALT, derive, nonce};
use crate::error::{InObject, RepositoryError};
use crate::ids::{RepositoryId, SegmentId, VolumeId};
use crate::keyring::Keyring;
use crate::near::Source;
use crate::{limits, names};

pub(crate) const MAGIC: &[u8; 4] = b"AXIX";
pub(crate) const END: &[u8; 4] = b"AXIE";
pub(crate) const HEADER: usize = 48;
/// Bytes that a block's seal covers beside the block.
const AAD: usize = 66;
/// Bytes of chunk blocks that are read by one request where all are wanted.
const RUN: u64 = 256 << 10;
/// What stands for the whole segment: without its root nothing of it is found.
pub(crate) const WHOLE_SEGMENT: (BlockKind, u32) = (BlockKind::Root, 0);
/// So many damaged blocks of a segment are known; more are asked for again.
const DAMAGED_MOST: usize = 1024;
/// For how long a block that was found damaged is not read again.
const DAMAGED_FOR: Duration = Duration::from_secs(30);
const WRONG_SEAL: Malformed = Malformed("its seal does not fit");

/// The number of a block as seals and caches take it.
pub(crate) fn block_number(number: usize) -> u32 {
    u32::try_from(number).expect("a root has fewer blocks, being bounded in bytes")
}

/// What a head says of an index segment; enough to read its root with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRef {
    /// Names the object.
    pub id: SegmentId,
    /// The object's length in bytes.
    pub len: u64,
    /// Where its root begins.
    pub root_offset: u64,
    /// The sealed root's length in bytes.
    pub root_len: u32,
    /// Sealing epoch.
    pub epoch: u32,
    /// Salt of its key.
    pub salt: [u8; SALT],
    /// Chunks it locates.
    pub rows: u64,
}

impl SegmentRef {
    pub(crate) const LEN: usize = 16 + 8 + 8 + 4 + 4 + SALT + 8;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.id.0);
        out.put_u64(self.len);
        out.put_u64(self.root_offset);
        out.put_u32(self.root_len);
        out.put_u32(self.epoch);
        out.put(&self.salt);
        out.put_u64(self.rows);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: r.array()?.into(),
            len: r.u64()?,
            root_offset: r.u64()?,
            root_len: r.u32()?,
            epoch: r.u32()?,
            salt: r.array()?,
            rows: r.u64()?,
        })
    }
}

/// Kinds of blocks, as in nonce and associated data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum BlockKind {
    Chunks = 3,
    Packs = 4,
    Filter = 5,
    Root = 6,
}

/// Seals and opens the blocks of one segment.
pub(crate) struct SegmentSeal {
    repository: RepositoryId,
    volume: VolumeId,
    pub(crate) id: SegmentId,
    sealer: Box<dyn Sealer>,
}

impl SegmentSeal {
    pub(crate) fn new(
        keyring: &Keyring,
        seal: &dyn axiomfs_api::Seal,
        volume: VolumeId,
        id: SegmentId,
        epoch: u32,
        salt: &[u8; SALT],
    ) -> Result<Self, RepositoryError> {
        let key = keyring
            .epoch(epoch)
            .ok_or_else(|| RepositoryError::UnknownEpoch { object: names::segment(volume, id), epoch })?;
        let sealer = seal.sealer(&derive(&key.key, "axiomfs index", salt));
        Ok(Self { repository: keyring.repository, volume, id, sealer })
    }

    pub(crate) fn seal(&self, kind: BlockKind, number: u32, block: &mut Vec<u8>) {
        self.sealer.seal(&nonce(kind as u8, number.into()), &self.aad(kind, number), block);
    }

    fn open(&self, kind: BlockKind, number: u32, block: &mut Vec<u8>) -> Result<(), Malformed> {
        self.sealer.open(&nonce(kind as u8, number.into()), &self.aad(kind, number), block).map_err(|_| WRONG_SEAL)
    }

    fn aad(&self, kind: BlockKind, number: u32) -> Vec<u8> {
        let mut aad = Vec::with_capacity(AAD);
        aad.put(b"axiomfs index");
        aad.put(&self.repository.0);
        aad.put(&self.volume.0);
        aad.put(&self.id.0);
        aad.put_u8(kind as u8);
        aad.put_u32(number);
        aad
    }
}

/// A segment that a head names.
pub(crate) struct Segment {
    pub(crate) reference: SegmentRef,
    pub(crate) name: String,
    key: ObjectKey,
    seal: SegmentSeal,
    root: OnceLock<Arc<Root>>,
    /// Whether it was found damaged when it was to be merged.
    left_alone: AtomicBool,
    /// When which blocks were found damaged, and how.
    damage: Mutex<HashMap<(BlockKind, u32), (Instant, RepositoryError)>>,
}

impl Segment {
    /// Reads nothing yet.
    pub(crate) fn new(
        keyring: &Keyring,
        seal: &dyn axiomfs_api::Seal,
        volume: VolumeId,
        reference: SegmentRef,
    ) -> Result<Self, RepositoryError> {
        let name = names::segment(volume, reference.id);
        let root_end = reference.root_offset.checked_add(reference.root_len.into());
        if u64::from(reference.root_len) > limits::INDEX_ROOT || root_end.is_none_or(|end| end > reference.len) {
            return Err(RepositoryError::corrupt(&name, "the head gives it an impossible root"));
        }
        let seal = SegmentSeal::new(keyring, seal, volume, reference.id, reference.epoch, &reference.salt)?;
        let (key, left_alone) = (names::key(&name)?, AtomicBool::new(false));
        Ok(Self { reference, key, name, seal, root: OnceLock::new(), left_alone, damage: Mutex::default() })
    }

    /// What `read` gives of a block. Where that is damaged, or the whole segment gone, the store isn't asked again for a while: every
    /// look-up comes by here.
    pub(crate) fn unless_damaged<T>(
        &self,
        block: (BlockKind, u32),
        read: impl FnOnce() -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        for either in [block, WHOLE_SEGMENT] {
            if let Some((since, error)) = self.damage().get(&either)
                && since.elapsed() < DAMAGED_FOR
            {
                return Err(error.clone());
            }
        }
        read().inspect_err(|error| {
            if error.is_damage() {
                tracing::warn!(%error, "an index segment is damaged: what only that locates can't be read, and is stored again");
                let is_gone = matches!(error, RepositoryError::MissingObject { .. });
                let mut damage = self.damage();
                if damage.len() >= DAMAGED_MOST {
                    damage.clear();
                }
                damage.insert(if is_gone { WHOLE_SEGMENT } else { block }, (Instant::now(), error.clone()));
            }
        })
    }

    fn damage(&self) -> MutexGuard<'_, HashMap<(BlockKind, u32), (Instant, RepositoryError)>> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges it no more until the next mount, which tries once again.
    pub(crate) fn leave_alone(&self) {
        self.left_alone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_left_alone(&self) -> bool {
        self.left_alone.load(Ordering::Relaxed)
    }

    pub(crate) fn root_cached(&self) -> Option<&Arc<Root>> {
        self.root.get()
    }

    /// For one that was just written.
    pub(crate) fn set_root(&self, root: Root) {
        self.root.get_or_init(|| Arc::new(root));
    }

    /// The root; two threads may both read it, the first wins.
    pub(crate) fn root(&self, source: &Source) -> Result<&Arc<Root>, RepositoryError> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let read = || {
            let mut bytes = source.range(&self.key, self.reference.root_offset, self.reference.root_len.into())?;
            self.seal.open(BlockKind::Root, 0, &mut bytes).in_object(self.root_name())?;
            self.decode_root(&bytes)
        };
        let root = source.again_if_damaged(&self.key, read)?;
        Ok(self.root.get_or_init(|| Arc::new(root)))
    }

    /// The root, and all bytes of the segment.
    pub(crate) fn read_whole(&self, source: &Source) -> Result<(&Arc<Root>, Vec<u8>), RepositoryError> {
        let SegmentRef { len, root_offset, root_len, .. } = self.reference;
        let read = || {
            let bytes = source.range(&self.key, 0, len)?;
            let place = Place { offset: root_offset, len: root_len };
            let root = self.open_in(&bytes, BlockKind::Root, 0, place).ok_or(WRONG_SEAL).in_object(self.root_name())?;
            Ok((self.decode_root(&root)?, bytes))
        };
        let (root, bytes) = source.again_if_damaged(&self.key, read)?;
        Ok((self.root.get_or_init(|| Arc::new(root)), bytes))
    }

    fn decode_root(&self, bytes: &[u8]) -> Result<Root, RepositoryError> {
        let found = Root::version(bytes).in_object(self.root_name())?;
        if found > root::VERSION {
            let (object, supported) = (self.root_name(), root::VERSION.into());
            return Err(RepositoryError::UnsupportedVersion { object, found: found.into(), supported });
        }
        Root::decode(bytes, self.reference.root_offset).in_object(self.root_name())
    }

    fn root_name(&self) -> String {
        format!("Root of {}", self.name)
    }

    /// One block out of the whole segment, unless it is damaged.
    pub(crate) fn open_in(&self, whole: &[u8], kind: BlockKind, number: u32, place: Place) -> Option<Vec<u8>> {
        let start = usize::try_from(place.offset).ok()?;
        let mut block = whole.get(start..start.checked_add(place.len as usize)?)?.to_vec();
        self.seal.open(kind, number, &mut block).ok()?;
        Some(block)
    }

    /// Reads and opens one block.
    pub(crate) fn read(
        &self,
        source: &Source,
        kind: BlockKind,
        number: u32,
        place: Place,
    ) -> Result<Vec<u8>, RepositoryError> {
        source.again_if_damaged(&self.key, || {
            let mut bytes = source.range(&self.key, place.offset, place.len.into())?;
            self.seal.open(kind, number, &mut bytes).in_object(self.block_name(kind, number))?;
            Ok(bytes)
        })
    }

    /// The chunk blocks from `number` on that lie one after the other, at least one, up to [`RUN`] bytes of them: one request for many.
    pub(crate) fn read_run(
        &self,
        source: &Source,
        root: &Root,
        number: usize,
    ) -> Result<Vec<ChunkBlock>, RepositoryError> {
        let (mut run, mut end) = (Vec::new(), None);
        while let Some((rows, place)) = root.block(number + run.len()) {
            let begin = run.first().map_or(place.offset, |(_, first): &(usize, Place)| first.offset);
            let follows = end.is_none_or(|end| end == place.offset && end + u64::from(place.len) - begin <= RUN);
            if !follows {
                break;
            }
            end = Some(place.offset + u64::from(place.len));
            run.push((rows, place));
        }
        let (Some((_, first)), Some(end)) = (run.first(), end) else { return Ok(Vec::new()) };
        source.again_if_damaged(&self.key, || {
            let bytes = source.range(&self.key, first.offset, end - first.offset)?;
            let open = |(number, (rows, place)): (usize, &(usize, Place))| {
                let number = block_number(number);
                let within = Place { offset: place.offset - first.offset, len: place.len };
                let block = self.open_in(&bytes, BlockKind::Chunks, number, within).ok_or(WRONG_SEAL);
                let parsed = block.and_then(|block| ChunkBlock::parse(block, *rows));
                parsed.in_object(self.block_name(BlockKind::Chunks, number))
            };
            (number..).zip(&run).map(open).collect()
        })
    }

    /// What errors call a block. Written out only for an error: it would cost as much as finding the block.
    pub(crate) fn block_name(&self, kind: BlockKind, number: u32) -> impl Display {
        BlockName { kind, number, segment: &self.name }
    }
}

struct BlockName<'a> {
    kind: BlockKind,
    number: u32,
    segment: &'a str,
}

impl Display for BlockName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} block {} of {}", self.kind, self.number, self.segment)
    }
}
