//! What the log records: each operation as the edits that it makes to the tree. Edits carry resulting values, so that
//! replaying a log needs nothing but the log, and any prefix of it is a state that was, but for times of last
//! access, which come later.
//!
//! The byte form is part of `fs/doc/format-log.md`, "Edits".

use std::sync::Arc;

use axiomfs_repository::record::{Entry, Fields, Inode, RecordError, put_time, put_varint};

use crate::extent_map::{Run, RunSource};
use crate::types::{FileKind, Time};

/// One change of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// An inode that was not there before.
    Create(u64, Box<Inode>),
    /// An inode's record as it is from now on.
    Update(u64, Box<Inode>),
    /// An inode is gone with all that belongs to it.
    Remove(u64),
    /// A name comes into a directory.
    Link {
        /// The directory.
        dir: u64,
        /// The entry's sequence in it.
        seq: u64,
        /// Name, inode and type.
        entry: Entry,
    },
    /// A name leaves a directory.
    Unlink {
        /// The directory.
        dir: u64,
        /// The entry's sequence in it.
        seq: u64,
        /// The name.
        name: Arc<[u8]>,
    },
    /// Bytes of a file: this record's data.
    Data {
        /// The file.
        ino: u64,
        /// Where they go.
        offset: u64,
    },
    /// Bytes of a file from somewhere else, or a hole.
    Map {
        /// The file.
        ino: u64,
        /// Where they go and where they are.
        run: Run,
    },
    /// An extended attribute, or `None` where it is removed.
    Xattr {
        /// The inode.
        ino: u64,
        /// The attribute's name.
        name: Arc<[u8]>,
        /// Its value.
        value: Option<Arc<[u8]>>,
    },
    /// An inode has no name any more but is open.
    Orphan(u64),
    /// A snapshot of all before this record.
    Snapshot {
        /// Its number.
        ordinal: u32,
        /// When it was taken.
        created: Time,
        /// Its name.
        name: Arc<str>,
    },
    /// A snapshot has another name now.
    SnapshotRename {
        /// Its number.
        ordinal: u32,
        /// The new name.
        name: Arc<str>,
    },
    /// A snapshot is forgotten.
    SnapshotDelete(u32),
    /// An audit record.
    Audit {
        /// Its number.
        number: u64,
        /// Its value in the tree.
        value: Arc<[u8]>,
    },
}

const CREATE: u8 = 1;
const UPDATE: u8 = 2;
const REMOVE: u8 = 3;
const LINK: u8 = 4;
const UNLINK: u8 = 5;
const DATA: u8 = 6;
const MAP: u8 = 7;
const XATTR: u8 = 8;
const ORPHAN: u8 = 9;
const SNAPSHOT: u8 = 10;
const SNAPSHOT_RENAME: u8 = 11;
const SNAPSHOT_DELETE: u8 = 12;
const AUDIT: u8 = 13;

/// Whether `edits` are audit records and nothing else: they change nothing that a commit would be made for.
pub(crate) fn only_audit(edits: &[Edit]) -> bool {
    edits.iter().all(|edit| matches!(edit, Edit::Audit { .. }))
}

/// Kind byte that errors about the log's edits carry.
const EDIT_KIND: u8 = 0xf0;

/// Longest name of a snapshot in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 255;

/// Appends `edits` after the operation's number.
pub fn encode(op: u64, edits: &[Edit], out: &mut Vec<u8>) {
    put_varint(out, op);
    let mut body = Vec::with_capacity(128);
    for edit in edits {
        body.clear();
        let tag = encode_body(edit, &mut body);
        out.push(tag);
        put_varint(out, body.len() as u64);
        out.extend_from_slice(&body);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn encode_body(edit: &Edit, out: &mut Vec<u8>) -> u8 {
    match edit {
        Edit::Create(ino, inode) => {
            put_varint(out, *ino);
            inode.encode(out);
            CREATE
        }
        Edit::Update(ino, inode) => {
            put_varint(out, *ino);
            inode.encode(out);
            UPDATE
        }
        Edit::Remove(ino) => {
            put_varint(out, *ino);
            REMOVE
        }
        Edit::Link { dir, seq, entry } => {
            put_varint(out, *dir);
            put_varint(out, *seq);
            entry.encode(out);
            LINK
        }
        Edit::Unlink { dir, seq, name } => {
            put_varint(out, *dir);
            put_varint(out, *seq);
            out.extend_from_slice(name);
            UNLINK
        }
        Edit::Data { ino, offset } => {
            put_varint(out, *ino);
            put_varint(out, *offset);
            DATA
        }
        Edit::Map { ino, run } => {
            put_varint(out, *ino);
            encode_run(run, out);
            MAP
        }
        Edit::Xattr { ino, name, value } => {
            put_varint(out, *ino);
            put_bytes(out, name);
            out.push(u8::from(value.is_some()));
            out.extend_from_slice(value.as_deref().unwrap_or(&[]));
            XATTR
        }
        Edit::Orphan(ino) => {
            put_varint(out, *ino);
            ORPHAN
        }
        Edit::Snapshot { ordinal, created, name } => {
            put_varint(out, u64::from(*ordinal));
            put_time(out, *created);
            out.extend_from_slice(name.as_bytes());
            SNAPSHOT
        }
        Edit::SnapshotRename { ordinal, name } => {
            put_varint(out, u64::from(*ordinal));
            out.extend_from_slice(name.as_bytes());
            SNAPSHOT_RENAME
        }
        Edit::SnapshotDelete(ordinal) => {
            put_varint(out, u64::from(*ordinal));
            SNAPSHOT_DELETE
        }
        Edit::Audit { number, value } => {
            put_varint(out, *number);
            out.extend_from_slice(value);
            AUDIT
        }
    }
}

fn encode_run(run: &Run, out: &mut Vec<u8>) {
    put_varint(out, run.offset);
    put_varint(out, run.len);
    match &run.source {
        RunSource::Hole => out.push(0),
        // `copy_range` writes such bytes anew: the segment they are in may be freed before this record is replayed.
        RunSource::Log(_) => unreachable!("an edit never refers to another record's data"),
        RunSource::Chunk { id, skip, clear } => {
            out.push(if *clear { 4 } else { 2 });
            put_varint(out, u64::from(*skip));
            out.extend_from_slice(&id.0);
        }
        RunSource::Inline { bytes, skip } => {
            out.push(3);
            let skip = *skip as usize;
            out.extend_from_slice(&bytes[skip..skip + run.len as usize]);
        }
    }
}

/// Reads back the operation's number and its edits.
///
/// # Errors
/// [`RecordError`] on anything else than [`encode`] wrote.
pub fn decode(bytes: &[u8]) -> Result<(u64, Vec<Edit>), RecordError> {
    let mut f = Fields::new(EDIT_KIND, bytes);
    let op = f.varint()?;
    let mut edits = Vec::new();
    loop {
        let rest = f.take_rest();
        if rest.is_empty() {
            return Ok((op, edits));
        }
        f = Fields::new(EDIT_KIND, rest);
        let tag = f.byte()?;
        let len = f.varint()? as usize;
        let body = f.bytes(len)?;
        edits.push(decode_body(tag, Fields::new(EDIT_KIND, body))?);
    }
}

fn text(f: &mut Fields<'_>) -> Result<Arc<str>, RecordError> {
    let bytes = f.take_rest();
    if bytes.is_empty() || bytes.len() > SNAPSHOT_NAME_MAX {
        return Err(f.error("a snapshot's name is out of bounds"));
    }
    std::str::from_utf8(bytes).map(Arc::from).map_err(|_| f.error("a snapshot's name is not UTF-8"))
}

fn decode_body(tag: u8, mut f: Fields<'_>) -> Result<Edit, RecordError> {
    let edit = match tag {
        CREATE => Edit::Create(f.varint()?, Box::new(Inode::decode(f.take_rest())?)),
        UPDATE => Edit::Update(f.varint()?, Box::new(Inode::decode(f.take_rest())?)),
        REMOVE => Edit::Remove(f.varint()?),
        LINK => Edit::Link { dir: f.varint()?, seq: f.varint()?, entry: Entry::decode(f.take_rest())? },
        UNLINK => Edit::Unlink { dir: f.varint()?, seq: f.varint()?, name: Arc::from(f.take_rest()) },
        DATA => Edit::Data { ino: f.varint()?, offset: f.varint()? },
        MAP => Edit::Map { ino: f.varint()?, run: decode_run(&mut f)? },
        XATTR => {
            let ino = f.varint()?;
            let len = f.varint()? as usize;
            let name = Arc::from(f.bytes(len)?);
            let value = match f.byte()? {
                0 => None,
                1 => Some(Arc::from(f.take_rest())),
                _ => return Err(f.error("an attribute edit is of an unknown form")),
            };
            Edit::Xattr { ino, name, value }
        }
        ORPHAN => Edit::Orphan(f.varint()?),
        SNAPSHOT => Edit::Snapshot { ordinal: f.varint32()?, created: f.time()?, name: text(&mut f)? },
        SNAPSHOT_RENAME => Edit::SnapshotRename { ordinal: f.varint32()?, name: text(&mut f)? },
        SNAPSHOT_DELETE => Edit::SnapshotDelete(f.varint32()?),
        AUDIT => Edit::Audit { number: f.varint()?, value: Arc::from(f.take_rest()) },
        _ => return Err(f.error("the edit is of an unknown kind")),
    };
    f.finish()?;
    Ok(edit)
}

fn decode_run(f: &mut Fields<'_>) -> Result<Run, RecordError> {
    let (offset, len) = (f.varint()?, f.varint()?);
    if len == 0 || offset.checked_add(len).is_none() {
        return Err(f.error("a run is out of bounds"));
    }
    let source = match f.byte()? {
        0 => RunSource::Hole,
        tag @ (2 | 4) => RunSource::Chunk { skip: f.varint32()?, id: f.chunk_id()?, clear: tag == 4 },
        3 => {
            let bytes = f.take_rest();
            if bytes.len() as u64 != len {
                return Err(f.error("a run is out of bounds"));
            }
            RunSource::Inline { bytes: Arc::from(bytes), skip: 0 }
        }
        _ => return Err(f.error("a run's source is unknown")),
    };
    Ok(Run { offset, len, source })
}

/// What an entry of `kind` adds to its directory's link count.
pub fn links_of(kind: FileKind) -> u32 {
    u32::from(kind == FileKind::Directory)
}

#[cfg(test)]
mod tests {
    use axiomfs_repository::ids::ChunkId;
    use proptest::prelude::*;

    use super::*;

    fn inode() -> Inode {
        let t = Time { secs: -5, nanos: 7 };
        Inode {
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 1000,
            gid: 1000,
            rdev: 0,
            size: 9,
            allocated: 9,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            parent: 2,
            parent_seq: 16,
            next_seq: 0,
            target: None,
        }
    }

    #[test]
    fn every_kind_of_edit_is_read_back() {
        let name: Arc<[u8]> = Arc::from(&b"na\xffme"[..]);
        let edits = vec![
            Edit::Create(1024, Box::new(inode())),
            Edit::Update(1024, Box::new(inode())),
            Edit::Link { dir: 2, seq: 16, entry: Entry { ino: 1024, kind: FileKind::File, name: name.clone() } },
            Edit::Data { ino: 1024, offset: u64::MAX / 2 },
            Edit::Map { ino: 1024, run: Run { offset: 0, len: u64::MAX, source: RunSource::Hole } },
            Edit::Map {
                ino: 1024,
                run: Run {
                    offset: 0,
                    len: 77,
                    source: RunSource::Chunk { id: ChunkId([3; 32]), skip: 5, clear: false },
                },
            },
            Edit::Map {
                ino: 1024,
                run: Run { offset: 0, len: 2, source: RunSource::Inline { bytes: Arc::from(&b"ab"[..]), skip: 0 } },
            },
            Edit::Xattr { ino: 1024, name: name.clone(), value: Some(Arc::from(&b""[..])) },
            Edit::Xattr { ino: 1024, name: name.clone(), value: None },
            Edit::Orphan(1024),
            Edit::Unlink { dir: 2, seq: 16, name },
            Edit::Remove(1024),
            Edit::Snapshot { ordinal: 1, created: Time { secs: 5, nanos: 6 }, name: Arc::from("before") },
            Edit::SnapshotRename { ordinal: 1, name: Arc::from("after") },
            Edit::SnapshotDelete(1),
        ];
        let mut out = Vec::new();
        encode(42, &edits, &mut out);
        assert_eq!(decode(&out), Ok((42, edits)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((op, edits)) = decode(&bytes) {
                let mut out = Vec::new();
                encode(op, &edits, &mut out);
                let again = decode(&out);
                prop_assert_eq!(again, Ok((op, edits)));
            }
        }
    }
}
