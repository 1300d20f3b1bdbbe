//! Small staged packs, as frequent checkpoints leave them, are put together when they are uploaded.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::commit::{DamageNote, Made, Task, is_rotten, open_pack};
use crate::error::RepositoryError;
use crate::frame::{FrameKind, FrameRecord, Member};
use crate::pack::{Chain, FinishedPack, NewFrame, PackSeal, PackSource, PackWriter, read_table};
use crate::packer::Packer;
use crate::repository::Repository;
use crate::staged::Staged;

/// Full packs of one kind go as they are, small ones together, up to `pack_bytes` and `most_frames` in one: no reader takes a pack of more
/// than [`limits::FRAMES`](crate::limits::FRAMES).
pub(crate) fn plan(
    packs: Vec<Arc<Staged>>,
    pack_bytes: u64,
    most_frames: usize,
    whole: &mut VecDeque<Task>,
    small: &mut Vec<Task>,
) {
    let mut group: Vec<Arc<Staged>> = Vec::new();
    let (mut bytes, mut frames) = (0, 0);
    let mut end = |group: &mut Vec<Arc<Staged>>| match group.len() {
        0 => {}
        1 => small.extend(group.drain(..).map(Task::AsIs)),
        _ => small.push(Task::Merge(std::mem::take(group))),
    };
    for pack in packs {
        let Some((info, uploaded)) = pack.info() else { continue };
        if uploaded || info.len >= pack_bytes / 2 {
            whole.push_back(Task::AsIs(pack));
            continue;
        }
        let more = pack.frame_count();
        if bytes + info.len > pack_bytes || frames + more > most_frames {
            end(&mut group);
            (bytes, frames) = (0, 0);
        }
        bytes += info.len;
        frames += more;
        group.push(pack);
    }
    end(&mut group);
}

/// What came of putting packs together.
enum Merged {
    Into(FinishedPack, Arc<PackSeal>),
    /// Nothing, since the pack at this place is damaged.
    NotWith(usize, RepositoryError),
}

impl Repository {
    /// Uploads small packs as one. What is damaged on this machine's disk keeps nothing else back: of such a pack goes what is sound in it.
    pub(crate) fn upload_merged(&self, packer: &Packer, mut packs: Vec<Arc<Staged>>) -> Result<(), RepositoryError> {
        while packs.len() > 1 {
            let merged = match self.merge(packer, &packs) {
                // Each as it lies here needs no room.
                Err(error) if error.is_no_space() => break,
                merged => merged?,
            };
            match merged {
                Merged::Into(finished, seal) => {
                    self.upload_made(Made { finished, seal, sources: std::mem::take(&mut packs), sent: false })?;
                }
                Merged::NotWith(place, error) => self.upload_sound(packer, &packs.remove(place), &error)?,
            }
        }
        packs.into_iter().try_for_each(|staged| self.upload_as_is(packer, &staged))
    }

    /// Uploads what is sound in a staged pack that is damaged. What isn't is lost here and comes again as new.
    pub(crate) fn upload_sound(
        &self,
        packer: &Packer,
        staged: &Arc<Staged>,
        error: &RepositoryError,
    ) -> Result<(), RepositoryError> {
        let Some((info, _)) = staged.info() else { return Ok(()) };
        let seal = Arc::new(PackSeal::fresh(&self.keyring, self.seal.as_ref(), staged.seal.kind)?);
        let writer = PackWriter::create(packer.dir(), seal.clone())?;
        let (source, name) = open_pack(self.store().as_ref(), &info.id, &info.path, info.len, false)?;
        // As it was written, or where that can't be read as it is known.
        let table = match read_table(source.as_ref(), &self.keyring, self.seal.as_ref(), &name) {
            Err(error) if is_rotten(&error) => packer.table_of(staged),
            read => read?.1,
        };
        let (all, mut sound) = (staged.frame_count(), 0);
        for (record, members) in table.frames {
            match self.copy_frame(staged, source.as_ref(), &name, &table.chains, (record, members), &writer) {
                Ok(()) => sound += 1,
                // One that is not there at all may come back: that is no damage.
                Err(error) if is_rotten(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let text = format!(
            "Staged pack {} is damaged: {error}; {sound} of its {all} frames are sound and go to the store",
            info.id
        );
        tracing::error!("{text}");
        self.note_damage(DamageNote { text, lost: sound < all });
        if sound == 0 {
            // Its file goes once no manifest names it.
            self.done_with(staged);
            return Ok(());
        }
        let finished = writer.finish()?;
        writer.sync()?;
        self.upload_made(Made { finished, seal, sources: vec![staged.clone()], sent: false })
    }

    /// Copies the frames of small packs into one, resealed under a new salt; nothing is compressed again.
    fn merge(&self, packer: &Packer, packs: &[Arc<Staged>]) -> Result<Merged, RepositoryError> {
        let kind = packs.first().map_or(FrameKind::Data, |pack| pack.seal.kind);
        let seal = Arc::new(PackSeal::fresh(&self.keyring, self.seal.as_ref(), kind)?);
        let writer = PackWriter::create(packer.dir(), seal.clone())?;
        for (place, staged) in packs.iter().enumerate() {
            match self.copy_frames(staged, &writer) {
                Err(error) if is_rotten(&error) => return Ok(Merged::NotWith(place, error)),
                copied => copied?,
            }
        }
        let finished = writer.finish()?;
        writer.sync()?;
        Ok(Merged::Into(finished, seal))
    }

    fn copy_frames(&self, staged: &Staged, writer: &PackWriter) -> Result<(), RepositoryError> {
        let Some((info, uploaded)) = staged.info() else { return Ok(()) };
        let (source, name) = open_pack(self.store().as_ref(), &info.id, &info.path, info.len, uploaded)?;
        let (_, table) = read_table(source.as_ref(), &self.keyring, self.seal.as_ref(), &name)?;
        table
            .frames
            .into_iter()
            .try_for_each(|frame| self.copy_frame(staged, source.as_ref(), &name, &table.chains, frame, writer))
    }

    fn copy_frame(
        &self,
        staged: &Staged,
        source: &dyn PackSource,
        name: &str,
        chains: &[Chain],
        (record, members): (FrameRecord, Vec<Member>),
        writer: &PackWriter,
    ) -> Result<(), RepositoryError> {
        let chain = &chains[usize::from(record.chain)];
        let padded = open_padded(source, &staged.seal, &record, chain, name);
        if padded.as_ref().is_err_and(RepositoryError::is_damage) {
            // What comes again is stored again.
            self.reader.put_into_quarantine((staged.seal.salt, record.number));
        }
        let lengths = NewFrame { applied: record.applied, encoded: record.encoded, raw: record.raw };
        writer.write(chain, lengths, padded?, members)?;
        Ok(())
    }
}

/// A frame's encoded and padded bytes, authenticated.
fn open_padded(
    source: &dyn PackSource,
    seal: &PackSeal,
    record: &FrameRecord,
    chain: &Chain,
    name: &str,
) -> Result<Vec<u8>, RepositoryError> {
    let mut bytes = source.read(record.offset.into(), record.stored.into())?;
    seal.frame()
        .open(record, &chain.id, &mut bytes)
        .map_err(|e| RepositoryError::corrupt(format_args!("Frame {} of {name}", record.number), e.0))?;
    bytes.truncate(bytes.len() - axiomfs_api::TAG_LEN);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::OpenOptions;
    use crate::tests::support::*;

    #[test]
    fn a_merged_pack_stays_within_the_limit_of_frames() {
        let bed = Bed::new();
        let repository = bed.try_open(OpenOptions { pack_bytes: 1 << 20, ..bed.options() }).unwrap();
        let packer = repository.packer().unwrap();
        let mut model = BTreeMap::new();
        for pack in 0..7 {
            // A frame for each owner.
            for owner in 0..=pack % 3 {
                let data = Random(u64::from(pack * 10 + owner)).data(500);
                let id = repository.data_id(&data);
                repository.add_chunk(class(owner, "media"), id, &data).unwrap();
                model.insert(id, data);
            }
            repository.flush().unwrap();
        }
        let (mut whole, mut small) = (VecDeque::new(), Vec::new());
        plan(packer.finished(), 1 << 20, 4, &mut whole, &mut small);
        assert!(whole.is_empty());
        let mut planned = 0;
        for task in &small {
            let group = match task {
                Task::AsIs(pack) => std::slice::from_ref(pack),
                Task::Merge(packs) => packs,
                Task::Made(_) => panic!("nothing is made yet"),
            };
            let frames = group.iter().map(|pack| pack.frame_count()).sum::<usize>();
            assert!(frames <= 4, "{frames} frames");
            planned += frames;
        }
        assert_eq!(planned, model.len());
        assert!(small.len() < 7, "some are put together");
        commit(&repository, None);
        let cold = bed.open_cold();
        for (id, data) in &model {
            assert_eq!(*cold.read_chunk(id).unwrap(), **data);
        }
    }
}
