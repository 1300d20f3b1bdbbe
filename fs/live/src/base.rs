//! What local state stands on, held against the store's newest head: whether it goes on from there, has nothing that the store
//! lacks, or has to be set aside because others went on from another head.

use std::path::PathBuf;

use axiomfs_repository::ids::{CommitId, Epoch, SequenceNo, StateId};
use axiomfs_repository::{Descent, Head, PutHead, Repository, RepositoryError};

use crate::edit;
use crate::events::Events;
use crate::log::{Log, LogError, LogIdentity, Record};
use crate::manifest::Manifest;
use crate::memory::Memory;
use crate::open::{log_options, sealer};
use crate::open_error::OpenError;
use crate::set_aside;
use crate::volume::VolumeOptions;

/// Local state on its way to a mount.
pub(crate) struct Local<'a> {
    pub repository: &'a std::sync::Arc<Repository>,
    pub options: &'a VolumeOptions,
    pub events: &'a Events,
}

impl Local<'_> {
    /// What is mounted: local state on the newest head, or the newest head alone where local state had to be set aside. A
    /// takeover has created the head that it is, then.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was lost.
    pub fn settle(&self, head: Option<Head>) -> Result<(Manifest, Option<Head>), OpenError> {
        let mut manifest = match self.stand(head.as_ref())? {
            Some(manifest) => manifest,
            None => {
                self.memory().remember(head.as_ref(), self.options.accept_rollback);
                self.set_aside()?;
                first_manifest(head.as_ref())
            }
        };
        if manifest.state.is_none() {
            manifest.state = Some(StateId(random()?));
        }
        manifest.volume = Some(self.options.volume);
        if self.options.accept_rollback {
            self.memory().remember(head.as_ref(), true);
        }
        if !self.options.takeover {
            return Ok((manifest, head));
        }
        let head = self.take_over(&mut manifest, head.as_ref())?;
        Ok((manifest, Some(head)))
    }

    /// Sets local state aside if it can't go on from the newest head, and tells what is set aside then, the oldest first.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was lost.
    pub fn set_apart(&self, head: Option<&Head>) -> Result<Vec<PathBuf>, OpenError> {
        if self.stand(head)?.is_none() {
            self.memory().remember(head, self.options.accept_rollback);
            self.set_aside()?;
        }
        set_aside::list(&self.options.state_dir).map_err(|e| self.failed(e))
    }

    pub fn memory(&self) -> Memory<'_> {
        Memory { dir: &self.options.state_dir, repository: self.repository, volume: self.options.volume }
    }

    /// What is durable here, on the newest head. `None` if it stands on another one and has something that the store lacks.
    fn stand(&self, head: Option<&Head>) -> Result<Option<Manifest>, OpenError> {
        set_aside::finish(&self.options.state_dir).map_err(|e| self.failed(e))?;
        Manifest::sync(&self.options.state_dir).map_err(|e| self.failed(e))?;
        // Nothing is built on it, or thrown away because of it, before it is sure to stay.
        if let Some(head) = head {
            self.repository.make_head_durable(self.options.volume, head.sequence)?;
        }
        let manifest = Manifest::read(&self.options.state_dir, self.repository)?;
        if !self.options.accept_rollback {
            self.memory().check(manifest.as_ref(), None, head)?;
        }
        let Some(mut manifest) = manifest else {
            // Without a manifest nothing tells what a log stands on, but where there was nothing yet to stand on.
            let empty = self.unfinished(0, 0)?.is_some_and(|left| left.operations == 0);
            return Ok((empty || head.is_none()).then(|| first_manifest(head)));
        };
        if manifest.volume.is_some_and(|volume| volume != self.options.volume) {
            return Err(OpenError::OtherVolume { dir: self.options.state_dir.clone() });
        }
        self.find_pending(&mut manifest, head)?;
        if manifest.head == head.map(number) {
            return Ok(Some(manifest));
        }
        let left = self.unfinished(manifest.first_segment, manifest.last_op)?;
        Ok(match left {
            Some(left) if left.operations == 0 && !manifest.dirty => {
                let (found, own) =
                    (head.map_or(0, |head| head.sequence.0), manifest.head.map_or(0, |(sequence, _)| sequence));
                self.events.add("info", format!("Goes on from head {found}; this machine had seen up to {own}"));
                Some(Manifest {
                    generation: manifest.generation,
                    state: manifest.state,
                    last_op: manifest.last_op.max(left.last_op),
                    first_segment: manifest.first_segment,
                    ..first_manifest(head)
                })
            }
            _ => None,
        })
    }

    /// The head may have been created and the answer, or the note of it, lost.
    fn find_pending(&self, manifest: &mut Manifest, newest: Option<&Head>) -> Result<(), OpenError> {
        let next = manifest.head.map_or(1, |(sequence, _)| sequence + 1);
        let Some(newest) = newest.filter(|newest| !manifest.pending.is_empty() && newest.sequence.0 >= next) else {
            return Ok(());
        };
        let head = if newest.sequence.0 == next {
            newest.clone()
        } else {
            match self.repository.head(self.options.volume, SequenceNo(next)) {
                Err(RepositoryError::MissingObject { .. }) => return Ok(()),
                head => head?,
            }
        };
        // A head that was created where others had been trimmed has ours for a name, and is no commit: nothing came after it.
        let known = (head.sequence, head.commit);
        let is_ours = manifest.pending.contains(&head.commit)
            && matches!(self.repository.descent(self.options.volume, newest, known)?, Descent::Same | Descent::Later);
        if is_ours {
            manifest.head = Some(number(&head));
            manifest.pending.clear();
            // An attempt may have had less than there is by now.
            if head.live_root == manifest.root && head.snapshots_root == manifest.snapshots_root {
                manifest.dirty = false;
                manifest.staged.clear();
            }
        }
        Ok(())
    }

    /// What the log has after `last_op`. `None` if it is damaged: then there is something.
    fn unfinished(&self, first_segment: u64, last_op: u64) -> Result<Option<Left>, OpenError> {
        let repository = self.repository.id().0;
        let identity = LogIdentity { repository, volume: self.options.volume.0, epoch: 0 };
        let mut left = Left { operations: 0, last_op };
        let options = log_options(self.options);
        let read =
            Log::replay(&options, &identity, &sealer(self.repository), first_segment, &mut |record: Record<'_>| {
                let (op, edits) = edit::decode(record.meta).map_err(|e| Box::new(e) as Box<_>)?;
                // That somebody mounted here and changed nothing must not set this state against what others wrote since.
                let audit = edit::only_audit(&edits);
                if op > last_op {
                    match record.check_seal(&options) {
                        // Not believed by the replay either.
                        Err(_) if audit => return Ok(()),
                        sealed => sealed?,
                    }
                    left.operations += u64::from(!audit);
                    left.last_op = left.last_op.max(op);
                }
                Ok(())
            });
        match read {
            Ok(_) => Ok(Some(left)),
            Err(LogError::Damaged { .. } | LogError::Apply { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn set_aside(&self) -> Result<(), OpenError> {
        let dir = &self.options.state_dir;
        let aside = set_aside::set_aside(dir, &self.options.stamp).map_err(|e| self.failed(e))?;
        self.events.add(
            "warning",
            format!(
                "Another machine has written since: what this one had not committed is set aside in {}; \
                 `axiomfs recover` puts it into a snapshot",
                aside.display()
            ),
        );
        Ok(())
    }

    /// Creates the head that takes the volume over: a higher epoch over the same trees.
    fn take_over(&self, manifest: &mut Manifest, head: Option<&Head>) -> Result<Head, OpenError> {
        let next = next_epoch(self.repository, head, manifest.epoch)?;
        let dir = &self.options.state_dir;
        if manifest.generation > 0 {
            manifest.attempt(next.commit);
            manifest.write(dir, self.repository)?;
        }
        if let PutHead::Exists(other) = self.repository.put_head(self.options.volume, &next)? {
            return Err(OpenError::TakeoverLost { sequence: other.sequence.0 });
        }
        manifest.head = Some(number(&next));
        manifest.pending.clear();
        manifest.epoch = next.epoch.0;
        let (epoch, sequence) = (next.epoch, next.sequence);
        self.events.add("warning", format!("Took the volume over: epoch {epoch} begins with head {sequence}"));
        Ok(next)
    }

    fn failed(&self, source: std::io::Error) -> OpenError {
        OpenError::State { dir: self.options.state_dir.clone(), source }
    }
}

struct Left {
    operations: u64,
    last_op: u64,
}

/// The head after `head` with the same trees and a higher epoch.
fn next_epoch(repository: &Repository, head: Option<&Head>, epoch: u64) -> Result<Head, OpenError> {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let keep = first_manifest(head);
    Ok(Head {
        sequence: SequenceNo(head.map_or(0, |head| head.sequence.0) + 1),
        epoch: Epoch(epoch.max(keep.epoch) + 1),
        commit: CommitId(random()?),
        parent: head.map(|head| head.commit),
        live_root: keep.root,
        snapshots_root: keep.snapshots_root,
        next_ino: keep.next_ino,
        next_ordinal: keep.next_ordinal,
        segments: head.map(|head| head.segments.clone()).unwrap_or_default(),
        keyring_generation: repository.keyring_generation(),
        index_generation: head.map_or(0, |head| head.index_generation) + 1,
        time_ns: i64::try_from(time.as_nanos()).unwrap_or(i64::MAX),
        audit: head.map_or([0; 32], |head| head.audit),
    })
}

/// What an empty state directory stands for: the store's newest head, or an empty volume.
pub(crate) fn first_manifest(head: Option<&Head>) -> Manifest {
    let Some(head) = head else { return Manifest { epoch: 1, ..Manifest::default() } };
    Manifest {
        epoch: head.epoch.0,
        head: Some(number(head)),
        root: head.live_root,
        snapshots_root: head.snapshots_root,
        next_ino: head.next_ino,
        next_ordinal: head.next_ordinal,
        ..Manifest::default()
    }
}

/// Makes sure that the newest head is the one that the caller expects, or came after it.
///
/// # Errors
/// [`OpenError::Unexpected`], or what the store met.
pub(crate) fn expect(repository: &Repository, options: &VolumeOptions, newest: Option<&Head>) -> Result<(), OpenError> {
    let Some((sequence, commit)) = options.expect_head else { return Ok(()) };
    let found = newest.map(number);
    let descent = match newest {
        None => Descent::Older,
        Some(newest) => repository.descent(options.volume, newest, (SequenceNo(sequence), commit))?,
    };
    match descent {
        Descent::Same | Descent::Later => Ok(()),
        Descent::Unknown => Err(OpenError::TooOldToExpect { sequence }),
        Descent::Broken(missing) => {
            let found = found.map_or(0, |(sequence, _)| sequence);
            Err(OpenError::MissingHead { found, missing: missing.0, seen: sequence })
        }
        Descent::Older | Descent::Unrelated => Err(OpenError::Unexpected {
            expected: format!("{sequence}:{commit}"),
            found: found.map_or_else(|| "none".to_owned(), |(sequence, commit)| format!("{sequence}:{commit}")),
        }),
    }
}

fn number(head: &Head) -> (u64, CommitId) {
    (head.sequence.0, head.commit)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| OpenError::Entropy)?;
    Ok(bytes)
}
