//! Tree nodes on their way into packs: what a commit makes of the reachable ones.

use std::sync::Arc;

use crate::commit::remove_if_there;
use crate::error::RepositoryError;
use crate::frame::{FrameKind, Member, put_directory};
use crate::ids::ChunkId;
use crate::pack::{FinishedPack, PackSeal, PackWriter};
use crate::packer::{METADATA_FRAME, Packer, encode_frame};
use crate::repository::Repository;

/// Forms frames and packs of nodes.
pub(crate) struct NodePacks<'a> {
    repository: &'a Repository,
    packer: &'a Packer,
    raw: Vec<u8>,
    members: Vec<Member>,
    writer: Option<PackWriter>,
    done: Vec<(FinishedPack, Arc<PackSeal>)>,
}

impl<'a> NodePacks<'a> {
    pub(crate) fn new(repository: &'a Repository, packer: &'a Packer) -> Self {
        Self { repository, packer, raw: Vec::new(), members: Vec::new(), writer: None, done: Vec::new() }
    }

    pub(crate) fn add(&mut self, id: ChunkId, node: &[u8]) -> Result<(), RepositoryError> {
        if self.raw.len() + node.len() > METADATA_FRAME {
            self.end_frame()?;
        }
        self.raw.extend_from_slice(node);
        self.members.push((id, u32::try_from(node.len()).expect("nodes are bounded")));
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), RepositoryError> {
        if self.members.is_empty() {
            return Ok(());
        }
        let (mut raw, members) = (std::mem::take(&mut self.raw), std::mem::take(&mut self.members));
        put_directory(&mut raw, &members);
        let repository = self.repository;
        let frame = encode_frame(
            &repository.host,
            repository.seal.as_ref(),
            &repository.metadata_chain,
            FrameKind::Metadata,
            &raw,
        )?;
        let stored = frame.padded.len() + axiomfs_api::TAG_LEN;
        if self.writer.as_ref().is_some_and(|w| w.is_full_for(stored, repository.pack_bytes)) {
            self.end_pack()?;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let seal = PackSeal::fresh(&repository.keyring, repository.seal.as_ref(), FrameKind::Metadata)?;
                none.insert(PackWriter::create(self.packer.dir(), Arc::new(seal))?)
            }
        };
        writer.write(&frame.chain, frame.lengths, frame.padded, members)?;
        Ok(())
    }

    fn end_pack(&mut self) -> Result<(), RepositoryError> {
        if let Some(writer) = self.writer.take() {
            let finished = writer.finish()?;
            writer.sync()?;
            self.done.push((finished, writer.seal.clone()));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<(FinishedPack, Arc<PackSeal>)>, RepositoryError> {
        self.end_frame()?;
        self.end_pack()?;
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for NodePacks<'_> {
    fn drop(&mut self) {
        for (pack, _) in &self.done {
            if let Err(error) = remove_if_there(&pack.path) {
                tracing::warn!(%error, "could not remove a pack of a commit that failed");
            }
        }
    }
}
