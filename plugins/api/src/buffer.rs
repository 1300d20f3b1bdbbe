use crate::PluginError;

/// An output buffer with a fixed upper bound, so that no plugin can make the host allocate without limit.
#[derive(Debug)]
pub struct BoundedBuf {
    bytes: Vec<u8>,
    limit: usize,
}

impl BoundedBuf {
    /// An empty buffer that will never hold more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    /// Reuses `bytes`' allocation; its contents are dropped.
    pub fn reuse(mut bytes: Vec<u8>, limit: usize) -> Self {
        bytes.clear();
        Self { bytes, limit }
    }

    /// The most bytes this buffer may hold.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was written; keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Appends `src`.
    ///
    /// # Errors
    /// [`PluginError::OutputTooLarge`] if the bound would be passed; nothing is written then.
    pub fn extend(&mut self, src: &[u8]) -> Result<(), PluginError> {
        if src.len() > self.limit - self.bytes.len() {
            return Err(PluginError::OutputTooLarge { limit: self.limit });
        }
        self.bytes.extend_from_slice(src);
        Ok(())
    }

    /// Appends `len` zero bytes and hands them out for writing; call [`truncate`](Self::truncate) with what was used.
    ///
    /// # Errors
    /// [`PluginError::OutputTooLarge`] if the bound would be passed.
    pub fn grow(&mut self, len: usize) -> Result<&mut [u8], PluginError> {
        if len > self.limit - self.bytes.len() {
            return Err(PluginError::OutputTooLarge { limit: self.limit });
        }
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        Ok(&mut self.bytes[start..])
    }

    /// Lets `write` replace the contents through a `Vec` with room for at least `room` bytes, without zeroing it first.
    ///
    /// `write` gets the vector empty and should not let it grow beyond its capacity, which may be more than `room`.
    ///
    /// # Errors
    /// [`PluginError::OutputTooLarge`] if `room` or what was written passes the bound; the buffer is empty then.
    pub fn write_with<T>(&mut self, room: usize, write: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, PluginError> {
        self.bytes.clear();
        if room > self.limit {
            return Err(PluginError::OutputTooLarge { limit: self.limit });
        }
        self.bytes.reserve_exact(room);
        let result = write(&mut self.bytes);
        if self.bytes.len() > self.limit {
            self.bytes.clear();
            return Err(PluginError::OutputTooLarge { limit: self.limit });
        }
        Ok(result)
    }

    /// Shortens the contents to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// The contents, consuming the buffer.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }
}
