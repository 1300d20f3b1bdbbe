mod concurrency;
mod power;
pub(super) mod probe;
mod reading;
mod space;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axiomfs_api::{NONCE_LEN, OpenError, Sealer, TAG_LEN};

use super::*;

/// A seal that anyone can read in one minute: a BLAKE3 keystream and a keyed BLAKE3 tag. It panics when a nonce is used twice under one key.
struct TestSealer {
    key: [u8; 32],
    used: Arc<Mutex<HashSet<KeyAndNonce>>>,
}

type KeyAndNonce = ([u8; 32], [u8; NONCE_LEN]);

impl TestSealer {
    fn stream(&self, nonce: &[u8; NONCE_LEN], data: &mut [u8]) {
        let mut stream = vec![0; data.len()];
        blake3::Hasher::new_keyed(&self.key).update(b"stream").update(nonce).finalize_xof().fill(&mut stream);
        data.iter_mut().zip(stream).for_each(|(byte, key)| *byte ^= key);
    }

    fn tag(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &[u8]) -> [u8; TAG_LEN] {
        let mut tag = [0; TAG_LEN];
        let mut mac = blake3::Hasher::new_keyed(&self.key);
        mac.update(b"tag").update(nonce).update(&(aad.len() as u64).to_le_bytes()).update(aad).update(data);
        mac.finalize_xof().fill(&mut tag);
        tag
    }
}

impl Sealer for TestSealer {
    fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) {
        let tag = self.seal_detached(nonce, aad, buf);
        buf.extend_from_slice(&tag);
    }

    fn seal_detached(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> [u8; TAG_LEN] {
        assert!(self.used.lock().unwrap().insert((self.key, *nonce)), "nonce {nonce:?} used twice");
        self.stream(nonce, data);
        self.tag(nonce, aad, data)
    }

    fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], buf: &mut Vec<u8>) -> Result<(), OpenError> {
        let at = buf.len().checked_sub(TAG_LEN).ok_or(OpenError)?;
        let tag = buf.split_off(at).try_into().map_err(|_| OpenError)?;
        self.open_detached(nonce, aad, buf, &tag)
    }

    fn open_detached(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        if self.tag(nonce, aad, data) != *tag {
            data.fill(0);
            return Err(OpenError);
        }
        self.stream(nonce, data);
        Ok(())
    }
}

fn sealer() -> SealerFactory {
    let used = Arc::new(Mutex::new(HashSet::new()));
    Arc::new(move |salt| {
        let key = blake3::derive_key("axiomfs test log key", salt);
        Box::new(TestSealer { key, used: Arc::clone(&used) })
    })
}

const IDENTITY: LogIdentity = LogIdentity { repository: [1; 16], volume: [2; 16], epoch: 3 };

/// A directory, options for small segments, and one sealer for all that is done in it.
struct Bench {
    dir: tempfile::TempDir,
    options: LogOptions,
    sealer: SealerFactory,
}

impl Bench {
    fn new(segment_bytes: u64, segments: u64, encrypt: bool) -> Self {
        // In memory: these tests sync thousands of times, and none of them cuts power for real.
        let dir = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "." }).unwrap();
        let options = LogOptions {
            segment_bytes,
            max_bytes: segment_bytes * segments,
            reserve_bytes: segment_bytes,
            encrypt,
            ..LogOptions::new(dir.path().join("log"))
        };
        Self { dir, options, sealer: sealer() }
    }

    fn create(&self, next: u64) -> Log {
        Log::create(self.options.clone(), IDENTITY, Arc::clone(&self.sealer), next).unwrap()
    }

    fn replay(&self, from: u64) -> Result<(Replayed, Vec<Seen>), LogError> {
        replay_dir(&self.options, &self.sealer, from)
    }

    fn segment_path(&self, number: u64) -> PathBuf {
        self.options.dir.join(format!("segment-{number:016x}.log"))
    }

    fn flip(&self, segment: u64, offset: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(self.segment_path(segment)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    }
}

/// A replayed record; its data is read later, through the next log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    meta: Vec<u8>,
    data_len: u32,
    data: Option<DataRef>,
}

fn replay_dir(options: &LogOptions, sealer: &SealerFactory, from: u64) -> Result<(Replayed, Vec<Seen>), LogError> {
    let mut seen = Vec::new();
    let replayed = Log::replay(options, &IDENTITY, sealer, from, &mut |record| {
        seen.push(Seen { meta: record.meta.to_vec(), data_len: record.data_len, data: record.data });
        Ok(())
    })?;
    assert_eq!(replayed.records, seen.len() as u64);
    Ok((replayed, seen))
}

fn metas(seen: &[Seen]) -> Vec<Vec<u8>> {
    seen.iter().map(|seen| seen.meta.clone()).collect()
}

/// `len` bytes that differ from those of every other `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn append(log: &Log, meta: &[u8], data: &[u8]) -> Appended {
    log.append(meta, (!data.is_empty()).then_some(data), Urgency::Normal).unwrap()
}

fn read_all(log: &Log, r: DataRef) -> Vec<u8> {
    let mut out = vec![0; r.len as usize];
    log.read(r, &mut out).unwrap();
    out
}
