//! The table of snapshots: a tree from name to record (format.md §7).

use crate::codec::{Malformed, Put, Reader};
use crate::error::{InObject, RepositoryError};
use crate::head::{put_root, root};
use crate::ids::Ordinal;
use crate::tree::Root;

const VERSION: u8 = 1;

/// What the table says of one snapshot; its key is the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its number, never reused.
    pub ordinal: Ordinal,
    /// Its tree.
    pub root: Option<Root>,
    /// When it was taken, in nanoseconds since 1970.
    pub created_ns: i64,
}

impl SnapshotRecord {
    /// The value in the table.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_u8(VERSION);
        out.put_u32(self.ordinal.0);
        put_root(&mut out, self.root.as_ref());
        out.put_i64(self.created_ns);
        out
    }

    /// Parses a value of the table.
    ///
    /// # Errors
    /// [`RepositoryError::Corrupt`] if it is none, [`RepositoryError::UnsupportedVersion`] if it is of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RepositoryError> {
        const OBJECT: &str = "Record of a snapshot";
        let mut r = Reader::new(bytes);
        let found = r.u8().in_object(OBJECT)?;
        if found != VERSION {
            let (found, supported) = (found.into(), VERSION.into());
            return Err(RepositoryError::UnsupportedVersion { object: OBJECT.to_owned(), found, supported });
        }
        Self::fields(r).in_object(OBJECT)
    }

    fn fields(mut r: Reader<'_>) -> Result<Self, Malformed> {
        let record = Self { ordinal: Ordinal(r.u32()?), root: root(&mut r)?, created_ns: r.i64()? };
        r.end()?;
        if record.ordinal.0 == 0 || record.ordinal.0 >> 24 != 0 {
            return Err(Malformed("its ordinal is not possible"));
        }
        Ok(record)
    }
}

/// Checks a snapshot's name: 1 to 255 bytes, not `.` or `..`, without `/` and NUL.
///
/// # Errors
/// [`RepositoryError::BadName`].
pub fn check_snapshot_name(name: &[u8]) -> Result<(), RepositoryError> {
    let reason = match name {
        b"" => "it is empty",
        b"." | b".." => "it means a directory",
        _ if name.len() > 255 => "it has more than 255 bytes",
        _ if name.contains(&b'/') || name.contains(&0) => "it has a slash or a NUL",
        _ => return Ok(()),
    };
    Err(RepositoryError::BadName { what: "Snapshot name", name: String::from_utf8_lossy(name).into_owned(), reason })
}
