use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axiomfs_api::{StoreError, StoreErrorKind};
use axiomfs_host::HostError;
use thiserror::Error;

use crate::codec::Malformed;
use crate::ids::ChunkId;
use crate::tree::TreeError;

/// Why the repository could not do what was asked. Cheap to clone, since readers of one frame share its failure.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// There is no `config` object.
    #[error("{location} is not an axiomfs repository; `axiomfs init` makes one")]
    NotARepository {
        /// The store.
        location: String,
    },
    /// `init` met a repository.
    #[error("{location} holds a repository already")]
    AlreadyARepository {
        /// The store.
        location: String,
    },
    /// `init` met something else.
    #[error("{location} is not empty: it holds {object}; choose an empty place")]
    NotEmpty {
        /// The store.
        location: String,
        /// The first object found.
        object: String,
    },
    /// An object of a version this code does not read.
    #[error("{object} has format version {found}; this axiomfs reads up to {supported}, a newer one is needed")]
    UnsupportedVersion {
        /// The object's name.
        object: String,
        /// Its version.
        found: u32,
        /// The highest version read.
        supported: u32,
    },
    /// No key slot opens with the passphrase.
    #[error("Passphrase opens none of the {slots} key slots")]
    WrongPassphrase {
        /// How many were tried.
        slots: usize,
    },
    /// A parameter of the key derivation is out of bounds.
    #[error("Key derivation needs {expected}, not {found}")]
    KdfParameters {
        /// What is allowed.
        expected: &'static str,
        /// What was given.
        found: u64,
    },
    /// An object or a part of it is not what was written.
    #[error("{object} is damaged: {reason}")]
    Corrupt {
        /// The object's name, with frame or block where that is known.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A chunk that nothing locates.
    #[error("Chunk {chunk} is in no pack that the index knows")]
    Missing {
        /// The chunk.
        chunk: ChunkId,
    },
    /// An object that should exist does not.
    #[error("{object} is missing from the store")]
    MissingObject {
        /// Its name.
        object: String,
    },
    /// The keyring names no such sealing epoch.
    #[error("{object} is sealed under epoch {epoch}, which the keyring does not have")]
    UnknownEpoch {
        /// The object.
        object: String,
        /// The epoch.
        epoch: u32,
    },
    /// No volume of that name.
    #[error("Repository has no volume {name:?}")]
    UnknownVolume {
        /// The name asked for.
        name: String,
    },
    /// A key slot or epoch can't be changed like that.
    #[error("Key {slot} {reason}")]
    KeySlot {
        /// The slot's id, or what it was about.
        slot: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A name that cannot be one.
    #[error("{what} {name:?} is not possible: {reason}")]
    BadName {
        /// What would have it.
        what: &'static str,
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// More bytes than the format allows.
    #[error("{what} of {len} bytes is larger than the bound of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The bound.
        limit: u64,
    },
    /// The repository was opened without a staging directory.
    #[error("Repository was opened for reading only")]
    ReadOnly,
    /// Another commit is being prepared.
    #[error("Another commit is running")]
    CommitRunning,
    /// The packer has stopped for good.
    #[error("Packer has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: &'static str,
    },
    /// The system gave no random bytes.
    #[error("System gave no random bytes")]
    Entropy,
    /// A local file in the staging directory.
    #[error("Could not {operation} {path}")]
    Staging {
        /// The verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The store.
    #[error("Store failed on {object}")]
    Store {
        /// The object.
        object: String,
        /// What the store met.
        #[source]
        source: Arc<StoreError>,
    },
    /// The chain.
    #[error("Chain failed on {object}")]
    Host {
        /// The frame, or the chain's name.
        object: String,
        /// What the host met.
        #[source]
        source: Arc<HostError>,
    },
    /// A node of the tree.
    #[error("Metadata tree is damaged or was used wrongly")]
    Tree(#[from] TreeError),
}

impl RepositoryError {
    pub(crate) fn corrupt(object: impl fmt::Display, reason: &'static str) -> Self {
        Self::Corrupt { object: object.to_string(), reason }
    }

    pub(crate) fn staging(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Staging { operation, path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn host(object: impl fmt::Display, source: HostError) -> Self {
        Self::Host { object: object.to_string(), source: Arc::new(source) }
    }

    /// Whether the cause is a full disk, local or in the store.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Staging { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Store { source, .. } => source.kind == StoreErrorKind::NoSpace,
            _ => false,
        }
    }

    /// Whether the cause is a quota on the disk of the state directory; [`is_no_space`](Self::is_no_space) says yes to it too.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::Staging { source, .. } if source.kind() == io::ErrorKind::QuotaExceeded)
    }

    /// Whether the same call may succeed later by itself.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.kind.is_transient())
    }

    /// Whether what was stored is damaged or gone, as against unreachable.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Missing { .. } | Self::MissingObject { .. } | Self::Tree(_))
    }
}

impl From<StoreError> for RepositoryError {
    fn from(source: StoreError) -> Self {
        let object = source.object.clone();
        match source.kind {
            StoreErrorKind::NotFound => Self::MissingObject { object },
            StoreErrorKind::Corrupt => {
                Self::Corrupt { object, reason: "the store returned another length than was written" }
            }
            _ => Self::Store { object, source: Arc::new(source) },
        }
    }
}

/// Names the object in which a field is malformed.
pub(crate) trait InObject<T> {
    fn in_object(self, object: impl fmt::Display) -> Result<T, RepositoryError>;
}

impl<T> InObject<T> for Result<T, Malformed> {
    fn in_object(self, object: impl fmt::Display) -> Result<T, RepositoryError> {
        self.map_err(|Malformed(reason)| RepositoryError::corrupt(object, reason))
    }
}
/// Reads once more what came damaged: a range of an object has no checksum that would tell bytes changed on the way from
/// bytes changed where they lie.
pub(crate) fn again_if_damaged<T>(mut read: impl FnMut() -> Result<T, RepositoryError>) -> Result<T, RepositoryError> {
    match read() {
        Err(RepositoryError::Corrupt { object, .. }) => {
            tracing::debug!(%object, "damaged as it was read, reading it once more");
            read()
        }
        done => done,
    }
}
