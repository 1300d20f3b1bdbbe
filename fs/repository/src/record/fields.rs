//! The fields of a value, and how they are taken apart.

use super::{FileKind, RecordError, Time};
use crate::ids::ChunkId;

/// Appends `v` as an LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Reads fields off the front of a record.
#[derive(Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
    kind: u8,
}

impl<'a> Fields<'a> {
    /// Begins reading `bytes`, a record of `kind`.
    pub fn new(kind: u8, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, kind }
    }

    /// An error about this record.
    pub fn error(&self, reason: &'static str) -> RecordError {
        RecordError { kind: self.kind, reason }
    }

    /// One byte.
    ///
    /// # Errors
    /// The record ends before.
    pub fn byte(&mut self) -> Result<u8, RecordError> {
        let (&b, rest) = self.rest.split_first().ok_or_else(|| self.error("it ends too early"))?;
        self.rest = rest;
        Ok(b)
    }

    /// `n` bytes.
    ///
    /// # Errors
    /// The record ends before.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], RecordError> {
        if n > self.rest.len() {
            return Err(self.error("it ends too early"));
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(head)
    }

    /// A number written by [`put_varint`].
    ///
    /// # Errors
    /// It is cut short, not in its shortest form or over 64 bits.
    pub fn varint(&mut self) -> Result<u64, RecordError> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            if shift == 63 && b > 1 {
                return Err(self.error("a number is over 64 bits"));
            }
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                if b == 0 && shift > 0 {
                    return Err(self.error("a number isn't in its shortest form"));
                }
                return Ok(v);
            }
        }
        Err(self.error("a number is over 64 bits"))
    }

    /// A number that fits 32 bits.
    ///
    /// # Errors
    /// As [`varint`](Self::varint), or it is larger.
    pub fn varint32(&mut self) -> Result<u32, RecordError> {
        u32::try_from(self.varint()?).map_err(|_| self.error("a number is over 32 bits"))
    }

    /// A chunk id.
    ///
    /// # Errors
    /// The record ends before.
    pub fn chunk_id(&mut self) -> Result<ChunkId, RecordError> {
        let b = self.bytes(32)?;
        Ok(ChunkId(b.try_into().map_err(|_| self.error("it ends too early"))?))
    }

    /// A type of node.
    ///
    /// # Errors
    /// Unknown, or the record ends before.
    pub fn file_kind(&mut self) -> Result<FileKind, RecordError> {
        FileKind::from_byte(self.byte()?).ok_or_else(|| self.error("the file type is unknown"))
    }

    /// A point in time.
    ///
    /// # Errors
    /// Out of bounds, or the record ends before.
    pub fn time(&mut self) -> Result<Time, RecordError> {
        let z = self.varint()?;
        let secs = ((z >> 1) as i64) ^ -((z & 1) as i64);
        let nanos = self.varint32()?;
        if nanos >= 1_000_000_000 {
            return Err(self.error("nanoseconds are over a second"));
        }
        Ok(Time { secs, nanos })
    }

    /// Everything that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Ends reading.
    ///
    /// # Errors
    /// Something is left.
    pub fn finish(&self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("it has bytes after its end")) }
    }
}

/// Appends a point in time.
pub fn put_time(out: &mut Vec<u8>, t: Time) {
    put_varint(out, ((t.secs << 1) ^ (t.secs >> 63)) as u64);
    put_varint(out, u64::from(t.nanos));
}
