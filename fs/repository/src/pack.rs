//! Packs: files of frames (format.md §5).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axiomfs_api::{Seal, Sealer, TAG_LEN};

use crate::codec::{Malformed, Put, Reader, pad};
use crate::crypto::{SALT, Secret, VERSION, check_magic, derive, nonce, random};
use crate::error::{InObject, RepositoryError};
use crate::frame::{FrameKind, FrameRecord, FrameSeal, Member, RECORD};
use crate::ids::{PackId, RepositoryId, hex};
use crate::keyring::Keyring;
use crate::limits;
use crate::temporary::Temporary;

const MAGIC: &[u8; 4] = b"AXPK";
const END: &[u8; 4] = b"AXPE";
pub(crate) const HEADER: usize = 48;
pub(crate) const TRAILER: usize = 16;
const NONCE_TABLE: u8 = 2;
/// Encoders that may have been given a pack before any of them has written its frame.
const UNDER_WAY: usize = 256;

/// A chain's descriptor and its id, as packs carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) descriptor: Arc<[u8]>,
    pub(crate) id: [u8; 32],
}

impl Chain {
    pub(crate) fn new(descriptor: &[u8]) -> Self {
        Self { descriptor: descriptor.into(), id: *blake3::hash(descriptor).as_bytes() }
    }
}

/// What binds a pack's seals, and the key in use.
pub(crate) struct PackSeal {
    pub(crate) repository: RepositoryId,
    pub(crate) kind: FrameKind,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; SALT],
    sealer: Box<dyn Sealer>,
    /// Key of the tags of clear frames.
    clear: Secret,
}

impl PackSeal {
    /// For a new pack: a fresh salt under the current epoch.
    pub(crate) fn fresh(keyring: &Keyring, seal: &dyn Seal, kind: FrameKind) -> Result<Self, RepositoryError> {
        let epoch = keyring.current_epoch().number;
        Self::of(keyring, seal, kind, epoch, random()?, &"a new pack")
    }

    /// For a pack that exists.
    pub(crate) fn of(
        keyring: &Keyring,
        seal: &dyn Seal,
        kind: FrameKind,
        epoch: u32,
        salt: [u8; SALT],
        object: &dyn std::fmt::Display,
    ) -> Result<Self, RepositoryError> {
        let key =
            keyring.epoch(epoch).ok_or_else(|| RepositoryError::UnknownEpoch { object: object.to_string(), epoch })?;
        let sealer = seal.sealer(&derive(&key.key, "axiomfs pack", &salt));
        let clear = derive(&key.key, "axiomfs clear", &salt);
        Ok(Self { repository: keyring.repository, kind, epoch, salt, sealer, clear })
    }

    pub(crate) fn frame(&self) -> FrameSeal<'_> {
        FrameSeal { repository: self.repository, salt: &self.salt, sealer: self.sealer.as_ref(), clear: &self.clear }
    }

    fn header(&self) -> [u8; HEADER] {
        let mut out = Vec::with_capacity(HEADER);
        out.put(MAGIC);
        out.put_u16(VERSION);
        out.put_u8(self.kind.to_byte());
        out.put_u8(0);
        out.put_u32(self.epoch);
        out.put_u32(0);
        out.put(&self.salt);
        let mut header = [0; HEADER];
        header.copy_from_slice(&out);
        header
    }

    fn table_aad(&self) -> Vec<u8> {
        [b"axiomfs toc".as_slice(), &self.repository.0, &self.header()].concat()
    }
}

/// A pack's table of contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) chains: Vec<Chain>,
    pub(crate) frames: Vec<(FrameRecord, Vec<Member>)>,
}

impl Table {
    fn encode(&self) -> Vec<u8> {
        let members: usize = self.frames.iter().map(|(_, m)| m.len()).sum();
        let mut out = Vec::with_capacity(64 + self.frames.len() * (RECORD + 4) + members * 36);
        out.put_u32(0);
        out.put_u16(u16::try_from(self.chains.len()).expect("bounded by the limit of chains"));
        for chain in &self.chains {
            out.put_bytes16(&chain.descriptor);
        }
        out.put_len32(self.frames.len());
        for (record, members) in &self.frames {
            record.encode(&mut out);
            out.put_len32(members.len());
            for (id, len) in members {
                out.put(&id.0);
                out.put_u32(*len);
            }
        }
        let len = u32::try_from(out.len()).expect("bounded by the limits of frames and chunks");
        out[..4].copy_from_slice(&len.to_le_bytes());
        pad(&mut out);
        out
    }

    #[cfg(test)]
    pub(crate) fn encode_for_tests(&self) -> Vec<u8> {
        self.encode()
    }

    pub(crate) fn decode(bytes: &[u8], frames_end: u64) -> Result<Self, Malformed> {
        let len = Reader::new(bytes).u32()? as usize;
        let (plain, padding) = bytes.split_at_checked(len).ok_or(Malformed("its table ends too early"))?;
        Reader::new(padding).padding()?;
        let mut r = Reader::new(plain);
        r.u32()?;
        let chains = decode_chains(&mut r)?;
        let count = r.count(RECORD + 4, limits::FRAMES)?;
        let mut frames = Vec::with_capacity(count);
        for _ in 0..count {
            let record = FrameRecord::decode(&mut r)?;
            if usize::from(record.chain) >= chains.len() {
                return Err(Malformed("a frame names no chain of the list"));
            }
            if (record.offset as usize) < HEADER || u64::from(record.offset) + u64::from(record.stored) > frames_end {
                return Err(Malformed("a frame lies outside of the pack"));
            }
            frames.push((record, decode_members(&mut r, &record)?));
        }
        r.end()?;
        Ok(Self { chains, frames })
    }
}

fn decode_members(r: &mut Reader<'_>, record: &FrameRecord) -> Result<Vec<Member>, Malformed> {
    let count = r.count(36, usize::MAX)?;
    let mut members = Vec::with_capacity(count);
    let mut sum = 0u64;
    for _ in 0..count {
        let member = (r.array()?.into(), r.u32()?);
        sum += u64::from(member.1);
        members.push(member);
    }
    let directory = match record.kind {
        FrameKind::Data | FrameKind::Clear => 0,
        FrameKind::Metadata => count as u64 * 4 + 4,
    };
    if sum + directory == u64::from(record.raw) {
        Ok(members)
    } else {
        Err(Malformed("a frame's chunks do not fill it"))
    }
}

pub(crate) fn decode_chains(r: &mut Reader<'_>) -> Result<Vec<Chain>, Malformed> {
    let count = r.count16(2, limits::CHAINS)?;
    let mut chains = Vec::with_capacity(count);
    for _ in 0..count {
        let descriptor = r.bytes16()?;
        if descriptor.len() > limits::DESCRIPTOR {
            return Err(Malformed("a chain's descriptor is too long"));
        }
        chains.push(Chain::new(descriptor));
    }
    Ok(chains)
}

/// Place of `chain` in `chains`, where it is put if new.
pub(crate) fn intern(chains: &mut Vec<Chain>, chain: &Chain) -> u16 {
    let place = chains.iter().position(|c| c.id == chain.id).unwrap_or_else(|| {
        chains.push(chain.clone());
        chains.len() - 1
    });
    u16::try_from(place).expect("a pack is closed long before it has so many chains")
}

/// Bytes of a pack after which the disk begins to write, while more are made.
const SYNC_EARLY: usize = 16 << 20;

/// Writes one pack into a file. Frames may come from several threads: each reserves its number and place, then seals
/// and writes without a lock.
pub(crate) struct PackWriter {
    pub(crate) seal: Arc<PackSeal>,
    file: File,
    temporary: Temporary,
    state: Mutex<WriterState>,
    /// Bytes written since [`sync_early`](Self::sync_early) was last due.
    unsynced: AtomicUsize,
}

struct WriterState {
    next_number: u32,
    next_offset: u64,
    table: Table,
    /// What frames and their members will take in it, in bytes.
    table_bytes: usize,
}

/// A pack that is complete; its file has the name it keeps, and is not yet fsynced.
#[derive(Debug)]
pub(crate) struct FinishedPack {
    pub(crate) id: PackId,
    pub(crate) len: u64,
    pub(crate) path: PathBuf,
    pub(crate) table: Table,
}

impl PackWriter {
    /// Begins a pack in `dir`.
    pub(crate) fn create(dir: &Path, seal: Arc<PackSeal>) -> Result<Self, RepositoryError> {
        let path = dir.join(format!("{}.open", hex::encode(&seal.salt[..16])));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| RepositoryError::staging("create", &path, e))?;
        let temporary = Temporary::new(path);
        file.write_all_at(&seal.header(), 0).map_err(|e| RepositoryError::staging("write", temporary.path(), e))?;
        let state = WriterState { next_number: 0, next_offset: HEADER as u64, table: Table::default(), table_bytes: 0 };
        Ok(Self { seal, file, temporary, state: Mutex::new(state), unsynced: AtomicUsize::new(0) })
    }

    /// Bytes that were written before.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, RepositoryError> {
        read_at(&self.file, self.temporary.path(), offset, len)
    }

    /// Whether a frame of `stored` bytes would pass what the format allows.
    pub(crate) fn is_full_for(&self, stored: usize, target: u64) -> bool {
        let state = self.lock();
        let end = state.next_offset + stored as u64;
        state.next_number as usize >= limits::FRAMES - UNDER_WAY
            || state.table.chains.len() >= 64
            || state.table_bytes as u64 > limits::TABLE / 4
            || (state.next_number > 0 && end > target.min(limits::PACK - limits::TABLE))
    }

    /// Seals `padded` as the next frame and writes it. If writing fails its number and place are lost, never reused.
    ///
    /// # Errors
    /// The disk's; `TooLarge` for one frame more than any reader takes.
    pub(crate) fn write(
        &self,
        chain: &Chain,
        frame: NewFrame,
        mut padded: Vec<u8>,
        members: Vec<Member>,
    ) -> Result<FrameRecord, RepositoryError> {
        let stored = padded.len() + TAG_LEN;
        let record = {
            let mut state = self.lock();
            if state.next_number as usize >= limits::FRAMES {
                let (len, limit) = ((u64::from(state.next_number) + 1) * RECORD as u64, limits::FRAMES * RECORD);
                return Err(RepositoryError::TooLarge { what: "List of frames of a pack", len, limit: limit as u64 });
            }
            let record = FrameRecord {
                number: state.next_number,
                kind: self.seal.kind,
                chain: intern(&mut state.table.chains, chain),
                applied: frame.applied,
                offset: u32::try_from(state.next_offset).expect("packs are closed at their target size"),
                stored: u32::try_from(stored).expect("frames are bounded"),
                encoded: frame.encoded,
                raw: frame.raw,
            };
            state.next_number += 1;
            state.next_offset += stored as u64;
            state.table_bytes += RECORD + 4 + members.len() * size_of::<Member>();
            record
        };
        self.seal.frame().seal(&record, &chain.id, &mut padded);
        self.file
            .write_all_at(&padded, record.offset.into())
            .map_err(|e| RepositoryError::staging("write", self.temporary.path(), e))?;
        self.lock().table.frames.push((record, members));
        self.unsynced.fetch_add(stored, Ordering::Relaxed);
        Ok(record)
    }

    /// Whether so much was written that the disk should begin with it; true once for each time that it is.
    pub(crate) fn is_sync_due(&self) -> bool {
        let enough = |unsynced: usize| (unsynced >= SYNC_EARLY).then_some(0);
        self.unsynced.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_ok()
    }

    /// Makes durable what was written so far, so that little is left for [`sync`](Self::sync) to wait for.
    pub(crate) fn sync_early(&self) -> Result<(), RepositoryError> {
        self.file.sync_data().map_err(|e| RepositoryError::staging("sync", self.temporary.path(), e))
    }

    /// Writes table and trailer and gives the file its name. Nobody may be writing a frame. If it fails it may be called again.
    pub(crate) fn finish(&self) -> Result<FinishedPack, RepositoryError> {
        let (mut table, offset) = {
            let mut state = self.lock();
            state.table.frames.sort_by_key(|(record, _)| record.number);
            (state.table.encode(), state.next_offset)
        };
        self.seal.sealer.seal(&nonce(NONCE_TABLE, 0), &self.seal.table_aad(), &mut table);
        let sealed = table.len();
        table.put_u64(offset);
        table.put_len32(sealed);
        table.put(END);
        let failed = |operation, e| RepositoryError::staging(operation, self.temporary.path(), e);
        self.file.write_all_at(&table, offset).map_err(|e| failed("write", e))?;
        let len = offset + table.len() as u64;
        let id = PackId(hash_file(&self.file, len).map_err(|e| failed("read", e))?);
        let path = staged_path(self.temporary.path().parent().unwrap_or(Path::new(".")), &id);
        std::fs::rename(self.temporary.path(), &path).map_err(|e| failed("rename", e))?;
        self.temporary.keep();
        let table = std::mem::take(&mut self.lock().table);
        Ok(FinishedPack { id, len, path, table })
    }

    /// Makes the file's bytes durable; its name is when the directory is.
    pub(crate) fn sync(&self) -> Result<(), RepositoryError> {
        self.file.sync_all().map_err(|e| RepositoryError::staging("sync", self.temporary.path(), e))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame's lengths before it has a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewFrame {
    pub(crate) applied: u32,
    pub(crate) encoded: u32,
    pub(crate) raw: u32,
}

/// Name of a finished pack in the staging directory.
pub(crate) fn staged_path(dir: &Path, id: &PackId) -> PathBuf {
    dir.join(format!("{id}.pack"))
}

fn hash_file(file: &File, len: u64) -> std::io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0u64;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..want], at)?;
        hasher.update(&buffer[..want]);
        at += want as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Where a pack's bytes are read from.
pub(crate) trait PackSource {
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, RepositoryError>;
    fn len(&self) -> u64;
}

/// Reads header, trailer and table of the pack `name`.
pub(crate) fn read_table(
    source: &dyn PackSource,
    keyring: &Keyring,
    seal: &dyn Seal,
    name: &str,
) -> Result<(PackSeal, Table), RepositoryError> {
    let len = source.len();
    if len < (HEADER + TRAILER + TAG_LEN) as u64 || len > limits::PACK {
        return Err(RepositoryError::corrupt(name, "its length is not possible"));
    }
    let header = source.read(0, HEADER as u64)?;
    let mut r = Reader::new(&header);
    check_magic(&mut r, MAGIC, name)?;
    let kind = FrameKind::from_byte(r.u8().in_object(name)?).in_object(name)?;
    r.zeros(1).in_object(name)?;
    let epoch = r.u32().in_object(name)?;
    r.zeros(4).in_object(name)?;
    let pack = PackSeal::of(keyring, seal, kind, epoch, r.array().in_object(name)?, &name)?;
    let trailer = source.read(len - TRAILER as u64, TRAILER as u64)?;
    let mut r = Reader::new(&trailer);
    let (offset, sealed) = (r.u64().in_object(name)?, u64::from(r.u32().in_object(name)?));
    if r.bytes(4).in_object(name)? != END
        || sealed > limits::TABLE
        || offset.checked_add(sealed) != Some(len - TRAILER as u64)
    {
        return Err(RepositoryError::corrupt(name, "its trailer is not possible"));
    }
    let mut table = source.read(offset, sealed)?;
    pack.sealer
        .open(&nonce(NONCE_TABLE, 0), &pack.table_aad(), &mut table)
        .map_err(|_| RepositoryError::corrupt(name, "the seal of its table does not fit"))?;
    let table = Table::decode(&table, offset).in_object(name)?;
    if table.frames.iter().any(|(record, _)| record.kind != kind) {
        return Err(RepositoryError::corrupt(name, "a frame is of another kind than its pack"));
    }
    Ok((pack, table))
}

/// A pack in a local file.
pub(crate) struct PackFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl PackFile {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, path: path.to_owned(), len })
    }
}

impl PackSource for PackFile {
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, RepositoryError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(RepositoryError::corrupt(self.path.display(), "it ends too early"));
        }
        read_at(&self.file, &self.path, offset, len)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

fn read_at(file: &File, path: &Path, offset: u64, len: u64) -> Result<Vec<u8>, RepositoryError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, offset).map_err(|e| RepositoryError::staging("read", path, e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChunkId;
    use crate::tests::support::Bed;

    #[test]
    fn no_more_frames_are_written_than_a_reader_takes() {
        let bed = Bed::new();
        let repository = bed.open_cold();
        let seal = PackSeal::fresh(&repository.keyring, repository.seal.as_ref(), FrameKind::Data).unwrap();
        let writer = PackWriter::create(bed.dir.path(), Arc::new(seal)).unwrap();
        let chain = Chain::new(b"chain");
        let write = || {
            let lengths = NewFrame { applied: 0, encoded: 4, raw: 4 };
            writer.write(&chain, lengths, vec![1; 4], vec![(ChunkId([1; 32]), 4)])
        };
        assert!(!writer.is_full_for(20, u64::MAX));
        writer.lock().next_number = u32::try_from(limits::FRAMES).unwrap() - 1;
        assert!(writer.is_full_for(20, u64::MAX), "before the last: several may ask at once");
        write().unwrap();
        let error = write().unwrap_err();
        assert!(matches!(error, RepositoryError::TooLarge { .. }), "{error}");
        let finished = writer.finish().unwrap();
        assert_eq!(finished.table.frames.len(), 1, "what was refused left nothing behind");
    }
}
