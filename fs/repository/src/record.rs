//! What the metadata tree holds: keys and values of inodes, directory entries, extended attributes and extents.
//!
//! A key is the inode number (8 bytes, big-endian), a kind (1 byte) and a sub-key, so that all of one inode lies
//! together and siblings, which get neighbouring numbers, lie next to each other. `fs/doc/format.md`, "Metadata
//! records", is the specification. Decoders accept exactly what the encoders write.

use std::sync::Arc;

use thiserror::Error;

use crate::ids::ChunkId;

mod fields;
mod key;

pub use fields::{Fields, put_time, put_varint};
pub use key::{
    audit_key, clear_key, entry_key, extent_key, inode_key, key, name_hash, name_key, orphan_key, parse_key, sub_key,
    trailing_number, valid_name, xattr_key,
};

/// Kind byte of an inode record; the sub-key is empty.
pub const KIND_INODE: u8 = 0x00;
/// Kind byte of a name index: sub-key is a 4-byte name hash and the 8-byte sequence of the entry; the value is empty.
pub const KIND_NAME: u8 = 0x10;
/// Kind byte of a directory entry: sub-key is its 8-byte sequence.
pub const KIND_ENTRY: u8 = 0x20;
/// Kind byte of an extended attribute: sub-key is its name.
pub const KIND_XATTR: u8 = 0x30;
/// Kind byte of an extent: sub-key is the 8-byte offset of its END, so that the first extent past an offset is one seek.
pub const KIND_EXTENT: u8 = 0x40;
/// Kind byte of an orphan (unlinked, still open), under inode number 0; the sub-key is the orphan's number.
pub const KIND_ORPHAN: u8 = 0x50;
/// Kind of the mark of a file with clear chunks, under inode 0.
pub const KIND_CLEAR: u8 = 0x60;
/// Kind byte of an audit record, under inode number 0; the sub-key is the record's 8-byte number.
pub const KIND_AUDIT: u8 = 0x70;

/// Longest directory entry name in bytes.
pub const NAME_MAX: usize = 255;
/// Longest symbolic link target in bytes.
pub const TARGET_MAX: usize = 4095;
/// Longest value of an extended attribute that stands in the tree itself; longer ones become chunks.
pub const XATTR_INLINE_MAX: usize = 8192;
/// Longest value of an extended attribute (Linux: `XATTR_SIZE_MAX`).
pub const XATTR_MAX: usize = 65536;
/// Files up to this length stand in the tree itself.
pub const INLINE_MAX: usize = 512;

/// A record that no encoder writes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("Metadata record of kind {kind:#04x} is malformed: {reason}")]
pub struct RecordError {
    /// The kind byte of its key.
    pub kind: u8,
    /// What is wrong.
    pub reason: &'static str,
}

/// Type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    File = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Unix domain socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
}

impl FileKind {
    fn from_byte(b: u8) -> Option<Self> {
        Some(match b {
            1 => Self::File,
            2 => Self::Directory,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return None,
        })
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds `0..1_000_000_000` added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds, rounded towards the past.
    pub secs: i64,
    /// Nanoseconds added.
    pub nanos: u32,
}

/// All of an inode that isn't in records of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Type.
    pub kind: FileKind,
    /// `07777` bits.
    pub perm: u16,
    /// Number of names; for directories 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes; for directories the number of entries.
    pub size: u64,
    /// Bytes that are no holes.
    pub allocated: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// Directory that held its newest name; its own number for a root.
    pub parent: u64,
    /// Sequence of that entry in `parent`.
    pub parent_seq: u64,
    /// Directories: sequence the next entry gets.
    pub next_seq: u64,
    /// Symbolic links: the target.
    pub target: Option<Arc<[u8]>>,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Inode it names.
    pub ino: u64,
    /// Type of that inode.
    pub kind: FileKind,
    /// The name, 1–255 bytes, without `/` and NUL, not `.` or `..`.
    pub name: Arc<[u8]>,
}

/// Where bytes of a file lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In a chunk, from `skip`.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// First byte within it.
        skip: u32,
        /// Whether it is one of clear data.
        clear: bool,
    },
    /// Here.
    Inline(Arc<[u8]>),
}

/// A run of a file's bytes. Its end stands in the key; what no extent covers is a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not 0.
    pub len: u64,
    /// Where the bytes are.
    pub source: Source,
}

/// Value of an extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xattr {
    /// The value itself.
    Inline(Arc<[u8]>),
    /// A chunk with the value.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// Its length in bytes.
        len: u32,
    },
}

impl Inode {
    /// Appends the record's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind as u8);
        put_varint(out, u64::from(self.perm));
        put_varint(out, u64::from(self.nlink));
        put_varint(out, u64::from(self.uid));
        put_varint(out, u64::from(self.gid));
        put_varint(out, u64::from(self.rdev));
        put_varint(out, self.size);
        put_varint(out, self.allocated);
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            put_time(out, t);
        }
        put_varint(out, self.parent);
        put_varint(out, self.parent_seq);
        put_varint(out, self.next_seq);
        if let Some(target) = &self.target {
            out.extend_from_slice(target);
        }
    }

    /// Reads a value back.
    ///
    /// # Errors
    /// [`RecordError`] on anything else than an encoder wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND_INODE, bytes);
        let kind = f.file_kind()?;
        let perm = f.varint()?;
        if perm > 0o7777 {
            return Err(f.error("the mode has unknown bits"));
        }
        let (nlink, uid, gid, rdev) = (f.varint32()?, f.varint32()?, f.varint32()?, f.varint32()?);
        let (size, allocated) = (f.varint()?, f.varint()?);
        let (atime, mtime, ctime, btime) = (f.time()?, f.time()?, f.time()?, f.time()?);
        let (parent, parent_seq, next_seq) = (f.varint()?, f.varint()?, f.varint()?);
        let rest = f.take_rest();
        let target = match kind {
            FileKind::Symlink if rest.is_empty() || rest.len() > TARGET_MAX || rest.contains(&0) => {
                return Err(f.error("the link target is out of bounds"));
            }
            FileKind::Symlink => Some(Arc::from(rest)),
            _ if !rest.is_empty() => return Err(f.error("it has bytes after its end")),
            _ => None,
        };
        Ok(Self {
            kind,
            perm: perm as u16,
            nlink,
            uid,
            gid,
            rdev,
            size,
            allocated,
            atime,
            mtime,
            ctime,
            btime,
            parent,
            parent_seq,
            next_seq,
            target,
        })
    }
}

impl Entry {
    /// Appends the record's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ino);
        out.push(self.kind as u8);
        out.extend_from_slice(&self.name);
    }

    /// Reads a value back.
    ///
    /// # Errors
    /// [`RecordError`] on anything else than an encoder wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND_ENTRY, bytes);
        let (ino, kind, name) = (f.varint()?, f.file_kind()?, f.take_rest());
        if !valid_name(name) {
            return Err(f.error("the name is not allowed in a directory"));
        }
        Ok(Self { ino, kind, name: Arc::from(name) })
    }
}

impl Extent {
    /// Appends the record's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.source {
            Source::Chunk { id, skip, clear } => {
                out.push(if *clear { 3 } else { 1 });
                put_varint(out, self.len);
                put_varint(out, u64::from(*skip));
                out.extend_from_slice(&id.0);
            }
            Source::Inline(bytes) => {
                out.push(2);
                out.extend_from_slice(bytes);
            }
        }
    }

    /// Reads a value back.
    ///
    /// # Errors
    /// [`RecordError`] on anything else than an encoder wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND_EXTENT, bytes);
        let extent = match f.byte()? {
            tag @ (1 | 3) => {
                let (len, skip) = (f.varint()?, f.varint32()?);
                Self { len, source: Source::Chunk { id: f.chunk_id()?, skip, clear: tag == 3 } }
            }
            2 => {
                let b = f.take_rest();
                if b.len() > INLINE_MAX {
                    return Err(f.error("inline data is over its bound"));
                }
                Self { len: b.len() as u64, source: Source::Inline(Arc::from(b)) }
            }
            _ => return Err(f.error("the extent type is unknown")),
        };
        if extent.len == 0 || extent.len > u64::from(u32::MAX) {
            return Err(f.error("the length is out of bounds"));
        }
        f.finish()?;
        Ok(extent)
    }
}

impl Xattr {
    /// Appends the record's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Inline(v) => {
                out.push(0);
                out.extend_from_slice(v);
            }
            Self::Chunk { id, len } => {
                out.push(1);
                put_varint(out, u64::from(*len));
                out.extend_from_slice(&id.0);
            }
        }
    }

    /// Reads a value back.
    ///
    /// # Errors
    /// [`RecordError`] on anything else than an encoder wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut f = Fields::new(KIND_XATTR, bytes);
        match f.byte()? {
            0 if bytes.len() <= XATTR_INLINE_MAX + 1 => Ok(Self::Inline(Arc::from(f.take_rest()))),
            1 => {
                let len = f.varint32()?;
                let id = f.chunk_id()?;
                f.finish()?;
                if len as usize > XATTR_MAX {
                    return Err(f.error("the length is out of bounds"));
                }
                Ok(Self::Chunk { id, len })
            }
            _ => Err(f.error("the attribute type is unknown or too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: FileKind) -> Inode {
        Inode {
            kind,
            perm: 0o6755,
            nlink: 3,
            uid: 0,
            gid: u32::MAX,
            rdev: 0x0801,
            size: u64::MAX,
            allocated: 5,
            atime: Time { secs: -1, nanos: 999_999_999 },
            mtime: Time { secs: i64::MIN, nanos: 0 },
            ctime: Time { secs: i64::MAX, nanos: 1 },
            btime: Time::default(),
            parent: 2,
            parent_seq: 16,
            next_seq: 17,
            target: (kind == FileKind::Symlink).then(|| Arc::from(&b"../a"[..])),
        }
    }

    #[test]
    fn an_inode_keeps_every_field() {
        for kind in [FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::BlockDevice] {
            let mut out = Vec::new();
            sample(kind).encode(&mut out);
            assert_eq!(Inode::decode(&out), Ok(sample(kind)));
            for cut in 0..out.len() {
                if kind != FileKind::Symlink || cut < out.len() - 4 {
                    assert!(Inode::decode(&out[..cut]).is_err(), "{cut} bytes of {} decoded", out.len());
                }
            }
        }
    }

    #[test]
    fn forbidden_names_are_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            let mut out = vec![7, FileKind::File as u8];
            out.extend_from_slice(name);
            assert!(Entry::decode(&out).is_err(), "{name:?}");
        }
        let entry = Entry { ino: 7, kind: FileKind::File, name: Arc::from(&[0xff; 255][..]) };
        let mut out = Vec::new();
        entry.encode(&mut out);
        assert_eq!(Entry::decode(&out), Ok(entry));
    }

    #[test]
    fn extents_and_xattrs_keep_their_fields() {
        let id = ChunkId([9; 32]);
        for extent in [
            Extent { len: 1 << 20, source: Source::Chunk { id, skip: 77, clear: false } },
            Extent { len: 1 << 20, source: Source::Chunk { id, skip: 77, clear: true } },
            Extent { len: 3, source: Source::Inline(Arc::from(&b"abc"[..])) },
        ] {
            let mut out = Vec::new();
            extent.encode(&mut out);
            assert_eq!(Extent::decode(&out), Ok(extent));
        }
        assert!(Extent::decode(&[2]).is_err());
        assert!(Extent::decode(&[3, 1]).is_err());
        for xattr in [Xattr::Inline(Arc::from(&b""[..])), Xattr::Chunk { id, len: 65536 }] {
            let mut out = Vec::new();
            xattr.encode(&mut out);
            assert_eq!(Xattr::decode(&out), Ok(xattr));
        }
    }

    #[test]
    fn golden_bytes_of_a_file_inode() {
        let mut out = Vec::new();
        let mut inode = sample(FileKind::File);
        inode.mtime = Time { secs: 1, nanos: 2 };
        inode.ctime = inode.mtime;
        inode.size = 300;
        inode.gid = 1;
        inode.encode(&mut out);
        let golden =
            [1, 0xed, 0x1b, 3, 0, 1, 0x81, 0x10, 0xac, 2, 5, 1, 0xff, 0x93, 0xeb, 0xdc, 3, 2, 2, 2, 2, 0, 0, 2, 16, 17];
        assert_eq!(out, golden);
    }
}
