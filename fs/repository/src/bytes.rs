use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A chunk's bytes: a part of a shared buffer. Cheap to clone; keeps the whole buffer alive.
#[derive(Clone)]
pub struct Bytes {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Bytes {
    /// The part `range` of `buffer`; `None` if it passes the end.
    pub(crate) fn slice_of(buffer: &Arc<Vec<u8>>, offset: u32, len: u32) -> Option<Self> {
        let start = offset as usize;
        let range = start..start.checked_add(len as usize)?;
        buffer.get(range.clone())?;
        Some(Self { buffer: buffer.clone(), range })
    }

    /// Bytes of memory that it keeps alive.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { buffer: Arc::new(bytes), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}
