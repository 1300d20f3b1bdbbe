//! Suites that every implementation of a trait runs, and every wrapper around one.
//!
//! Each suite panics with a message that names the broken sentence of the trait's contract. They are ordinary
//! functions, so that a plugin outside this repository can run them from its own tests.

mod chunker;
mod seal;
mod store;
mod transform;

pub use chunker::chunker;
pub use seal::seal;
pub use store::store;
pub use transform::transform;

/// Bytes that look random and are the same in every run (xorshift64*).
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// A sequence of its own for every `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// `len` bytes of words in random order, which compress about as text does.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 16] = [
            "segment ", "the ", "frame\n", "of ", "a ", "pack ", "index ", "and\n", "log ", "tree ", "fn ", "{ ",
            "}\n", "is ", "0x7f ", "root ",
        ];
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(WORDS[self.below(WORDS.len())].as_bytes());
        }
        out.truncate(len);
        out
    }
}
