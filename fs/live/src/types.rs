//! Plain data that crosses the border of this crate: no errno, no FUSE.

use std::time::Instant;

use thiserror::Error;

pub use axiomfs_repository::record::{FileKind, Time};

/// Whether a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Answers from memory or not at all ([`FsError::WouldBlock`]). For threads that decode requests.
    Cached,
    /// Answers from this machine, its disk too, or not at all. For worker threads of requests that the store keeps no longer.
    Here,
    /// May fetch from the store and wait for room, within the volume's `timeout`. For worker threads.
    Wait,
    /// The same for a request that came then: what it waited for a worker counts as waiting for room.
    Since(Instant),
}

/// A node of the live tree or of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    /// 0 is the live tree; from [`FIRST_VERSION`] on, a file of it that changed while a reader followed; else a snapshot.
    pub ordinal: u32,
    /// Inode number within it.
    pub ino: u64,
}

/// Inode number of the root directory of the live tree and of each snapshot.
pub const ROOT_INO: u64 = 2;
/// Inode numbers below this one are never given to files; the mount uses some for its own nodes.
pub const FIRST_FILE_INO: u64 = 1024;
/// How many bits of a packed node id are inode number.
pub const INO_BITS: u32 = 40;
/// Ordinals from here on are no snapshots: they tell versions of the live tree's files apart, on a mount that follows another
/// writer.
pub const FIRST_VERSION: u32 = 3 << 22;
/// Longest name of a directory entry in bytes.
pub const NAME_MAX: usize = 255;

impl NodeId {
    /// A node of the live tree.
    pub fn live(ino: u64) -> Self {
        Self { ordinal: 0, ino }
    }

    /// Whether it is in a snapshot, where nothing changes.
    pub fn is_in_snapshot(self) -> bool {
        self.ordinal != 0 && self.ordinal < FIRST_VERSION
    }

    /// Both parts in one word: ordinal in the upper 24 bits, inode number in the lower 40.
    pub fn pack(self) -> u64 {
        (u64::from(self.ordinal) << INO_BITS) | self.ino
    }

    /// The inverse of [`pack`](Self::pack).
    pub fn unpack(packed: u64) -> Self {
        Self { ordinal: (packed >> INO_BITS) as u32, ino: packed & ((1 << INO_BITS) - 1) }
    }
}

/// Why an operation on the tree was not done. Maps one to one to an errno at the edge.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FsError {
    /// No such entry or node.
    #[error("No such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("The name exists already")]
    Exists,
    /// A directory is needed.
    #[error("Not a directory")]
    NotDirectory,
    /// Not possible on a directory.
    #[error("Is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("Directory not empty")]
    NotEmpty,
    /// Snapshots and read-only mounts can't be changed.
    #[error("Read-only")]
    ReadOnly,
    /// Log, staging or disk are full and did not become free within the timeout.
    #[error("No space left")]
    NoSpace,
    /// The same, where the disk of the state directory has room but not for who mounted.
    #[error("Disk quota exceeded")]
    QuotaExceeded,
    /// A name of more than 255 bytes or a link target of more than 4095.
    #[error("Name too long")]
    NameTooLong,
    /// Arguments that make no sense.
    #[error("Invalid argument")]
    Invalid,
    /// The link count is at its limit.
    #[error("Too many links")]
    TooManyLinks,
    /// Only root or the owner may.
    #[error("Operation not permitted")]
    NotPermitted,
    /// Permission bits forbid it.
    #[error("Permission denied")]
    Access,
    /// No such extended attribute.
    #[error("No such attribute")]
    NoAttribute,
    /// An extended attribute's value is over its bound.
    #[error("Attribute too large")]
    AttributeTooLarge,
    /// No data or hole past this offset.
    #[error("Offset out of range")]
    Range,
    /// Between live and a snapshot.
    #[error("Cross-device link")]
    CrossDevice,
    /// Past the largest offset a file may have.
    #[error("File too large")]
    FileTooLarge,
    /// Not supported.
    #[error("Not supported")]
    Unsupported,
    /// No such open handle.
    #[error("Bad handle")]
    BadHandle,
    /// The node is gone, or the volume is shut down.
    #[error("Stale node")]
    Stale,
    /// In use.
    #[error("Busy")]
    Busy,
    /// The store did not answer within the timeout.
    #[error("Timed out: {0}")]
    TimedOut(String),
    /// Some of what was written has been damaged on this machine's disk: everything else is in the store.
    #[error("Not all that was written is in the store, it was damaged on this machine's disk: {0}")]
    Damaged(String),
    /// [`Access::Cached`] can't answer; call again with [`Access::Wait`].
    #[error("Would block")]
    WouldBlock,
    /// Data or metadata can't be read or written; the text names the object.
    #[error("{0}")]
    Io(String),
    /// Another writer has taken the volume over.
    #[error("The volume was taken over by another writer")]
    Fenced,
}

/// Result of an operation on the tree.
pub type FsResult<T> = Result<T, FsError>;

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number, unique in its tree.
    pub ino: u64,
    /// The other half of its node id: the tree it is in, or its version where that counts.
    pub ordinal: u32,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, set-id and sticky bits: `07777`.
    pub perm: u16,
    /// Number of names; for directories 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that aren't holes.
    pub allocated: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

impl Attr {
    /// The node they are of.
    pub fn node(&self) -> NodeId {
        NodeId { ordinal: self.ordinal, ino: self.ino }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process.
    pub pid: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This one.
    At(Time),
}

/// What to change of a node's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: cut off, or grown by a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of data.
    pub mtime: Option<SetTime>,
    /// Last change of the inode; the time of the call where it isn't given.
    pub ctime: Option<Time>,
    /// The call came through an open handle.
    pub handle: bool,
    /// Clear set-uid and set-gid bits, as a change by somebody else must.
    pub kill_suid_sgid: bool,
}

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Make<'a> {
    /// Kind of node.
    pub kind: FileKind,
    /// Permission bits as they were asked for.
    pub perm: u16,
    /// Bits to take away where the directory has no default ACL.
    pub umask: u16,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Option<&'a [u8]>,
}

/// How `rename` treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// The two swap places.
    Exchange,
}

/// How `setxattr` treats an existing attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// Must not exist.
    Create,
    /// Must exist.
    Replace,
}

/// What `fallocate` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocMode {
    /// Grow the file where needed.
    Allocate,
    /// Keep the length.
    KeepSize,
    /// Make a hole; keeps the length.
    PunchHole,
    /// Make the range read as zeros, growing the file where needed.
    ZeroRange,
    /// Make the range read as zeros; keeps the length.
    ZeroRangeKeepSize,
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that isn't in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// One directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// What it names.
    pub node: NodeId,
    /// What that is.
    pub kind: FileKind,
    /// The name.
    pub name: Vec<u8>,
    /// Where to go on after it.
    pub cookie: u64,
    /// Attributes, where asked for.
    pub attr: Option<Attr>,
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// What `statfs` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes per block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Inode numbers given away so far: none is used again.
    pub files: u64,
    /// Longest name.
    pub max_name: u32,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// Its number, never given twice.
    pub ordinal: u32,
    /// When it was taken.
    pub created: Time,
    /// Whether a committed head in the store has it.
    pub committed: bool,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that waited when it began, and what came since.
    pub bytes_total: u64,
    /// Of these, done.
    pub bytes_done: u64,
}

/// A committed head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub sequence: u64,
    /// Its random id.
    pub commit: [u8; 16],
}
