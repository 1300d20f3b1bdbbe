//! The newest head that this machine has seen, so that a store that shows an older one is noticed.
//!
//! The manifest names the head that local changes stand on; `seen` in the state directory names a newer one where a mount saw
//! one without going on from it: to read, or because another writer had made it. `fs/doc/format-records.md` has the bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use axiomfs_repository::ids::{CommitId, SequenceNo, VolumeId};
use axiomfs_repository::record::{Fields, RecordError, put_varint};
use axiomfs_repository::{Descent, Head, Repository};

use crate::manifest::{Manifest, write_durably};
use crate::open_error::OpenError;

const FILE: &str = "seen";
const PURPOSE: &str = "axiomfs head seen v1";
const KIND: u8 = 0xf2;
/// Largest file that is read.
const MAX_BYTES: u64 = 4 << 10;

/// What a state directory remembers of a volume's heads.
pub(crate) struct Memory<'a> {
    pub dir: &'a Path,
    pub repository: &'a Repository,
    pub volume: VolumeId,
}

impl Memory<'_> {
    /// The newest head that was seen or made.
    pub fn newest(&self) -> Option<(u64, CommitId)> {
        // What is wrong with a manifest is said when it is used.
        let base = Manifest::read(self.dir, self.repository).ok().flatten().and_then(|manifest| manifest.head);
        self.read().max(base)
    }

    /// Refuses a newest head that is older than what was seen, or of another history. Who has seen none goes by `beside`.
    ///
    /// # Errors
    /// [`OpenError::Rollback`], [`OpenError::OtherHistory`], or what the store met.
    pub fn check(
        &self,
        manifest: Option<&Manifest>,
        beside: Option<(u64, CommitId)>,
        newest: Option<&Head>,
    ) -> Result<(), OpenError> {
        let base = manifest.and_then(|manifest| manifest.head);
        let Some((seen, commit)) = self.read().max(base).or(beside) else { return Ok(()) };
        let Some(newest) = newest else { return Err(OpenError::Rollback { found: 0, seen }) };
        let found = newest.sequence.0;
        match self.repository.descent(self.volume, newest, (SequenceNo(seen), commit))? {
            Descent::Same | Descent::Later | Descent::Unknown => Ok(()),
            Descent::Older => Err(OpenError::Rollback { found, seen }),
            Descent::Broken(missing) => Err(OpenError::MissingHead { found, missing: missing.0, seen }),
            Descent::Unrelated => Err(OpenError::OtherHistory { found, seen, commit }),
        }
    }

    /// Lets the search for the newest head begin at the one that was seen last.
    pub fn hint(&self) {
        if let Some((sequence, _)) = self.newest() {
            self.repository.expect_head(self.volume, SequenceNo(sequence));
        }
    }

    /// Remembers `head` if it is newer than what is remembered, or in any case where an older one was accepted. What can't be
    /// remembered is not noticed later: no reason to fail.
    pub fn remember(&self, head: Option<&Head>, in_any_case: bool) {
        let head = head.map(|head| (head.sequence.0, head.commit));
        let known = self.read();
        if head == known || head < known && !in_any_case {
            return;
        }
        let written = match head {
            Some((sequence, commit)) => self.write(sequence, commit),
            None => fs::remove_file(self.path()),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the newest head seen can't be remembered");
        }
    }

    /// `None` also where it can't be read: then the manifest alone remembers.
    fn read(&self) -> Option<(u64, CommitId)> {
        let path = self.path();
        let meta = fs::metadata(&path).ok().filter(|meta| meta.len() <= MAX_BYTES)?;
        let opened = fs::read(&path).map_err(|e| e.to_string()).and_then(|bytes| {
            let plain = self.repository.open_record(PURPOSE, &self.aad(), &bytes).map_err(|e| e.to_string())?;
            decode(&plain).map_err(|e| e.to_string())
        });
        match opened {
            Ok(seen) => Some(seen),
            Err(error) => {
                tracing::warn!(bytes = meta.len(), error, "{} can't be read", path.display());
                None
            }
        }
    }

    fn write(&self, sequence: u64, commit: CommitId) -> io::Result<()> {
        let mut plain = Vec::new();
        put_varint(&mut plain, 1);
        put_varint(&mut plain, sequence);
        plain.extend_from_slice(&commit.0);
        let sealed = self.repository.seal_record(PURPOSE, &self.aad(), &plain).map_err(io::Error::other)?;
        let next = self.dir.join("seen.new");
        write_durably(&next, &sealed)?;
        fs::rename(next, self.path())
    }

    fn aad(&self) -> Vec<u8> {
        [self.repository.id().0, self.volume.0].concat()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }
}

fn decode(bytes: &[u8]) -> Result<(u64, CommitId), RecordError> {
    let mut f = Fields::new(KIND, bytes);
    if f.varint()? != 1 {
        return Err(f.error("its version is not 1"));
    }
    let sequence = f.varint()?;
    let commit = f.bytes(16)?.try_into().map_err(|_| f.error("it ends too early"))?;
    f.finish()?;
    Ok((sequence, CommitId(commit)))
}
