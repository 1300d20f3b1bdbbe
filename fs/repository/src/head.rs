//! Heads: the commits of a volume (format.md §7).

use axiomfs_api::Seal;

use crate::codec::{Malformed, Put, Reader};
use crate::crypto::Envelope;
use crate::error::{InObject, RepositoryError};
use crate::ids::{CommitId, Epoch, SequenceNo, VolumeId};
use crate::index::SegmentRef;
use crate::keyring::Keyring;
use crate::tree::Root;
use crate::{limits, names};

/// One committed state of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number; creating the object of that number is the commit.
    pub sequence: SequenceNo,
    /// Grows with each takeover.
    pub epoch: Epoch,
    /// Random, so that a writer recognises its own commit.
    pub commit: CommitId,
    /// The commit before.
    pub parent: Option<CommitId>,
    /// The live tree.
    pub live_root: Option<Root>,
    /// The table of snapshots.
    pub snapshots_root: Option<Root>,
    /// Inode numbers from here on are free.
    pub next_ino: u64,
    /// Snapshot ordinals from here on are free.
    pub next_ordinal: u32,
    /// Live index segments, newest first.
    pub segments: Vec<SegmentRef>,
    /// The keyring that the writer had.
    pub keyring_generation: u32,
    /// What garbage collection may not go behind.
    pub index_generation: u64,
    /// When, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Hash of the last audit record in the live tree; zeros where there is none.
    pub audit: [u8; 32],
}

/// What became of an attempt to create a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutHead {
    /// It is there and it is ours.
    Created,
    /// Another writer's head has that number.
    Exists(Box<Head>),
}

impl Head {
    pub(crate) fn seal(
        &self,
        keyring: &Keyring,
        seal: &dyn Seal,
        volume: VolumeId,
    ) -> Result<Vec<u8>, RepositoryError> {
        let epoch = keyring.current_epoch();
        let names = place(volume, self.sequence);
        let sealed = envelope(keyring, &names).seal(seal, epoch.number, &epoch.key, &self.encode())?;
        if sealed.len() as u64 > limits::HEAD {
            return Err(RepositoryError::TooLarge { what: "Head", len: sealed.len() as u64, limit: limits::HEAD });
        }
        Ok(sealed)
    }

    pub(crate) fn open(
        keyring: &Keyring,
        seal: &dyn Seal,
        volume: VolumeId,
        sequence: SequenceNo,
        bytes: Vec<u8>,
    ) -> Result<Self, RepositoryError> {
        let object = names::head(volume, sequence);
        let names = place(volume, sequence);
        let envelope = envelope(keyring, &names);
        let epoch = envelope.key_number(&bytes, &object)?;
        let Some(key) = keyring.epoch(epoch) else { return Err(RepositoryError::UnknownEpoch { object, epoch }) };
        let plain = envelope.open(seal, &key.key, bytes, &object)?;
        let head = Self::decode(&plain).in_object(&object)?;
        if head.sequence != sequence {
            return Err(RepositoryError::corrupt(object, "it has another sequence number than its name"));
        }
        Ok(head)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.segments.len() * SegmentRef::LEN);
        out.put_u64(self.sequence.0);
        out.put_u64(self.epoch.0);
        out.put(&self.commit.0);
        out.put_option(self.parent.as_ref(), |out, id| out.put(&id.0));
        put_root(&mut out, self.live_root.as_ref());
        put_root(&mut out, self.snapshots_root.as_ref());
        out.put_u64(self.next_ino);
        out.put_u32(self.next_ordinal);
        out.put_u32(self.keyring_generation);
        out.put_u64(self.index_generation);
        out.put_i64(self.time_ns);
        out.put(&self.audit);
        out.put_len32(self.segments.len());
        for segment in &self.segments {
            segment.encode(&mut out);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let mut head = Self {
            sequence: SequenceNo(r.u64()?),
            epoch: Epoch(r.u64()?),
            commit: r.array()?.into(),
            parent: r.option(|r| Ok(r.array()?.into()))?,
            live_root: root(&mut r)?,
            snapshots_root: root(&mut r)?,
            next_ino: r.u64()?,
            next_ordinal: r.u32()?,
            keyring_generation: r.u32()?,
            index_generation: r.u64()?,
            time_ns: r.i64()?,
            audit: r.array()?,
            segments: Vec::new(),
        };
        for _ in 0..r.count(SegmentRef::LEN, limits::SEGMENTS)? {
            head.segments.push(SegmentRef::decode(&mut r)?);
        }
        r.end()?;
        Ok(head)
    }
}

pub(crate) fn put_root(out: &mut Vec<u8>, root: Option<&Root>) {
    out.put_option(root, |out, root| out.put(&root.encode()));
}

pub(crate) fn root(r: &mut Reader<'_>) -> Result<Option<Root>, Malformed> {
    r.option(|r| Root::decode(&r.array()?).map_err(|_| Malformed("a root is not possible")))
}

fn place(volume: VolumeId, sequence: SequenceNo) -> Vec<u8> {
    [volume.0.as_slice(), &sequence.0.to_le_bytes()].concat()
}

fn envelope<'a>(keyring: &Keyring, names: &'a [u8]) -> Envelope<'a> {
    Envelope { magic: b"AXHD", label: "axiomfs head", repository: keyring.repository, names }
}
