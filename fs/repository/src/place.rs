//! Where a chunk is: its frame, in a staged pack or in one of the store.

use std::sync::Arc;

use crate::crypto::SALT;
use crate::frame::FrameRecord;
use crate::ids::PackId;
use crate::index::Located;
use crate::names;
use crate::pack::Chain;
use crate::packer::StagedChunk;
use crate::staged::Staged;

/// Names a frame wherever its pack is: a salt belongs to one pack.
pub type FrameKey = ([u8; SALT], u32);

/// A chunk's place, staged or stored.
pub(crate) struct ChunkPlace {
    pub(crate) frame: FramePlace,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

pub(crate) struct FramePlace {
    pub(crate) record: FrameRecord,
    pub(crate) chain: Chain,
    pub(crate) pack: PackPlace,
}

pub(crate) enum PackPlace {
    Staged(Arc<Staged>),
    Stored(Located),
}

impl ChunkPlace {
    /// `None` if the packer has forgotten the frame meanwhile.
    pub(crate) fn staged(pack: Arc<Staged>, chunk: &StagedChunk) -> Option<Self> {
        let (record, chain) = pack.frame(chunk.frame)?;
        let frame = FramePlace { record, chain, pack: PackPlace::Staged(pack) };
        Some(Self { frame, offset: chunk.offset, len: chunk.len })
    }

    pub(crate) fn stored(located: Located) -> Self {
        let (record, chain, offset, len) = (located.frame, located.chain.clone(), located.offset, located.len);
        Self { frame: FramePlace { record, chain, pack: PackPlace::Stored(located) }, offset, len }
    }

    pub(crate) fn key(&self) -> FrameKey {
        self.frame.key()
    }

    /// Where the chunk ends in the frame's raw bytes.
    pub(crate) fn end(&self) -> u32 {
        self.offset.saturating_add(self.len)
    }

    /// The frame's record and chain, the name and epoch of its pack, and whether that is staged.
    pub(crate) fn facts(&self) -> (&FrameRecord, &Chain, String, u32, bool) {
        let (pack, epoch, is_staged) = match &self.frame.pack {
            PackPlace::Staged(pack) => (pack.name(), pack.seal.epoch, true),
            PackPlace::Stored(located) => (names::pack(&located.pack.id), located.pack.epoch, false),
        };
        (&self.frame.record, &self.frame.chain, pack, epoch, is_staged)
    }
}

impl FramePlace {
    pub(crate) fn key(&self) -> FrameKey {
        let salt = match &self.pack {
            PackPlace::Staged(pack) => pack.seal.salt,
            PackPlace::Stored(located) => located.pack.salt,
        };
        (salt, self.record.number)
    }

    /// Its pack, if it is read from the store.
    pub(crate) fn stored_pack(&self) -> Option<PackId> {
        match &self.pack {
            PackPlace::Staged(pack) => pack.info().filter(|(_, uploaded)| *uploaded).map(|(info, _)| info.id),
            PackPlace::Stored(located) => Some(located.pack.id),
        }
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        let pack = match &self.pack {
            PackPlace::Staged(pack) => pack.name(),
            PackPlace::Stored(located) => names::pack(&located.pack.id),
        };
        format!("Frame {} of {pack}", self.record.number)
    }
}
