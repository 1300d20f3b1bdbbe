//! Why a volume can't be opened.

use axiomfs_repository::{RepositoryError, record};
use thiserror::Error;

use crate::log::LogError;
use crate::manifest::ManifestError;
use crate::view::LookError;

/// Why a volume can't be opened. Nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The log.
    #[error("The write-ahead log can't be used: {0}")]
    Log(#[from] LogError),
    /// The tree.
    #[error("The metadata tree can't be read")]
    Look(#[from] LookError),
    /// The log holds what no version writes.
    #[error("The write-ahead log holds an operation this version can't read: {0}")]
    Operation(#[from] record::RecordError),
    /// The store's newest head is older than the one this state directory has seen.
    #[error(
        "The store's newest head is {found}, but this machine has seen {seen}: the store was rolled back; \
         restore it, or mount with --accept-rollback"
    )]
    Rollback {
        /// Newest head in the store.
        found: u64,
        /// Newest head seen.
        seen: u64,
    },
    /// A head between the newest one and the one that was seen is missing, and is not old enough to be trimmed.
    #[error(
        "The store lacks head {missing}, so that its newest head {found} can't be told to have come after head {seen}, which was seen \
         before: no writer removes one of the last 64; restore it, or mount with --accept-rollback"
    )]
    MissingHead {
        /// Newest head in the store.
        found: u64,
        /// The head that is missing.
        missing: u64,
        /// Newest head seen.
        seen: u64,
    },
    /// The store's newest head has a history without the newest head that this state directory has seen.
    #[error(
        "The store's newest head {found} did not come after head {seen}:{commit}, which this machine has seen: the store has \
         another history; restore it, or mount with --accept-rollback"
    )]
    OtherHistory {
        /// Newest head in the store.
        found: u64,
        /// Newest head seen.
        seen: u64,
        /// Its commit.
        commit: axiomfs_repository::ids::CommitId,
    },
    /// The store's newest head is not the expected one and did not come after it.
    #[error("The store's newest head is {found}, which is not {expected} and did not come after it")]
    Unexpected {
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The heads after the expected one are trimmed.
    #[error(
        "Head {sequence} is so old that the store doesn't keep its history any more: expect a newer one, as `axiomfs sync` prints it"
    )]
    TooOldToExpect {
        /// The expected number.
        sequence: u64,
    },
    /// Somebody else committed or took over at the same moment.
    #[error(
        "Another writer committed head {sequence} while the volume was being taken over; look who it is, and try again"
    )]
    TakeoverLost {
        /// The other's head.
        sequence: u64,
    },
    /// The state directory is that of another volume.
    #[error("The state in {} belongs to another volume of this repository; choose another --state", dir.display())]
    OtherVolume {
        /// The state directory.
        dir: std::path::PathBuf,
    },
    /// State that was set aside has no manifest that would say what it stands on.
    #[error("What is set aside in {} has no manifest, which would say what it stands on", dir.display())]
    NoManifest {
        /// Where it is.
        dir: std::path::PathBuf,
    },
    /// The state directory can't be read or changed.
    #[error("The state directory {} can't be used", dir.display())]
    State {
        /// The state directory.
        dir: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system gave no random bytes.
    #[error("The system gave no random bytes")]
    Entropy,
    /// What was recovered can't be brought into the store.
    #[error(transparent)]
    Commit(#[from] crate::checkpoint::CheckpointError),
    /// Other writers committed faster than this one could.
    #[error("Other writers keep committing; try again")]
    Busy,
    /// The manifest names log segments and there are none.
    #[error(
        "The log is gone from the state directory (segment {segment} and all later ones), and what was not yet in the store \
         with it"
    )]
    LogLost {
        /// The first segment that is needed.
        segment: u64,
    },
    /// A staged pack is gone.
    #[error("Pack {pack} is neither in {} nor in the store; data that was acknowledged is lost with it", dir.display())]
    MissingPack {
        /// The pack.
        pack: axiomfs_repository::ids::PackId,
        /// The state directory.
        dir: std::path::PathBuf,
    },
    /// A pack that was staged and is in no head can't be read.
    #[error("What {} stands on and no head has yet can't be read", dir.display())]
    DamagedPack {
        /// The state directory.
        dir: std::path::PathBuf,
        /// The pack and its damage.
        source: RepositoryError,
    },
    /// A thread can't be started.
    #[error("A thread can't be started")]
    Thread(#[source] std::io::Error),
}

impl OpenError {
    /// Whether something is damaged or gone that only the state directory had, or that no head has yet.
    pub fn is_local_damage(&self) -> bool {
        matches!(
            self,
            Self::Log(LogError::Damaged { .. })
                | Self::LogLost { .. }
                | Self::Manifest(ManifestError::Damaged { .. })
                | Self::MissingPack { .. }
                | Self::DamagedPack { .. }
        )
    }
}
