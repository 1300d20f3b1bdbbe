//! Bounded reading and plain writing of the format's fields.

/// Why bytes are not what the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// Takes fields off the front of a slice; every method fails instead of passing the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Bytes with their length before them.
    pub(crate) fn bytes16(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }

    /// A byte 0 or 1, and after a 1 the value.
    pub(crate) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Malformed("an option is neither absent nor present")),
        }
    }

    /// A count of items of which each takes at least `item` bytes: so it can't ask for more memory than there is input.
    pub(crate) fn count(&mut self, item: usize, limit: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        self.checked(count, item, limit)
    }

    /// As [`count`](Self::count), of two bytes.
    pub(crate) fn count16(&mut self, item: usize, limit: usize) -> Result<usize> {
        let count = usize::from(self.u16()?);
        self.checked(count, item, limit)
    }

    fn checked(&self, count: usize, item: usize, limit: usize) -> Result<usize> {
        let fits = count.checked_mul(item).is_some_and(|bytes| bytes <= self.rest.len());
        if count <= limit && fits { Ok(count) } else { Err(Malformed("a count is out of bounds")) }
    }

    /// Skips bytes that must be zero.
    pub(crate) fn zeros(&mut self, len: usize) -> Result<()> {
        if self.bytes(len)?.iter().all(|b| *b == 0) { Ok(()) } else { Err(Malformed("a reserved field is not zero")) }
    }

    /// The rest is padding: zeros.
    pub(crate) fn padding(mut self) -> Result<()> {
        let len = self.rest.len();
        self.zeros(len).map_err(|_| Malformed("its padding is not zero"))
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    pub(crate) fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("it is longer than its fields")) }
    }
}

/// Appends fields.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    fn put_i64(&mut self, value: i64) {
        self.put(&value.to_le_bytes());
    }

    /// A length that the caller knows to fit.
    ///
    /// # Panics
    /// If it doesn't: lengths are bounded where they arise.
    fn put_len32(&mut self, len: usize) {
        self.put_u32(u32::try_from(len).expect("bounded by the limits of the format"));
    }

    /// # Panics
    /// If `bytes` are longer than 65,535: lengths are bounded where they arise.
    fn put_bytes16(&mut self, bytes: &[u8]) {
        self.put_u16(u16::try_from(bytes.len()).expect("bounded by the limits of the format"));
        self.put(bytes);
    }

    fn put_option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T))
    where
        Self: Sized,
    {
        match value {
            None => self.put_u8(0),
            Some(value) => {
                self.put_u8(1);
                write(self, value);
            }
        }
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// `len` rounded up so that it leaks few bits (Nikitin et al., PURBs, 2019).
pub(crate) fn padme(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let e = len.ilog2();
    let s = e.ilog2() + 1;
    let mask = (1usize << e.saturating_sub(s)) - 1;
    (len + mask) & !mask
}

/// Pads `bytes` with zeros to [`padme`] of its length.
pub(crate) fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(padme(bytes.len()), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padme_is_the_published_function() {
        // From the definition: E = floor(log2 n), S = floor(log2 E) + 1, round up to a multiple of 2^(E-S).
        for (n, padded) in [(0, 0), (1, 1), (2, 2), (8, 8), (9, 10), (33, 36), (1000, 1024), (1_048_577, 1_081_344)] {
            assert_eq!(padme(n), padded, "{n}");
        }
        for n in 2..200_000usize {
            let p = padme(n);
            assert!(p >= n && (p - n) * 100 <= n * 12, "{n} {p}");
            assert_eq!(padme(p), p, "padding again changes nothing: {n}");
        }
    }

    #[test]
    fn counts_are_checked_against_what_is_left() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(Reader::new(&bytes).count(1, usize::MAX), Err(Malformed("a count is out of bounds")));
        let bytes = [2, 0, 0, 0, 7, 7];
        assert_eq!(Reader::new(&bytes).count(1, 2), Ok(2));
        assert_eq!(Reader::new(&bytes).count(1, 1), Err(Malformed("a count is out of bounds")));
        assert_eq!(Reader::new(&bytes).count(2, 2), Err(Malformed("a count is out of bounds")));
    }
}
