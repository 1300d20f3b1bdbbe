//! The bytes of one file: sparse blocks that two versions of the file share until one of them changes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Bytes that a disk writes whole or not at all.
pub const SECTOR: u64 = 512;

/// The content of a file. Absent blocks are zeros. A copy costs a pointer per block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    size: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK as usize]>>,
}

impl Blocks {
    /// The length of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of blocks that exist.
    pub fn allocated(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// The bytes at `offset`, cut off at the end of the file.
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len));
        if offset >= end {
            return Vec::new();
        }
        let mut out = vec![0; (end - offset) as usize];
        for (number, block) in self.blocks.range(offset / BLOCK..=(end - 1) / BLOCK) {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            let source = &block[(from - number * BLOCK) as usize..(to - number * BLOCK) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        out
    }

    /// The blocks that exist, each with its offset and cut off at the end of the file.
    pub fn present(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let size = self.size;
        self.blocks.iter().map(move |(number, block)| {
            let offset = number * BLOCK;
            (offset, &block[..(size - offset).min(BLOCK) as usize])
        })
    }

    /// Overwrites the bytes at `offset`, growing the file to hold them.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let number = at / BLOCK;
            let stop = ((number + 1) * BLOCK).min(end);
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK as usize]));
            Arc::make_mut(block)[(at - number * BLOCK) as usize..(stop - number * BLOCK) as usize]
                .copy_from_slice(&data[(at - offset) as usize..(stop - offset) as usize]);
            at = stop;
        }
        if !data.is_empty() {
            self.grow(end);
        }
    }

    /// Sets the length. What is beyond a shorter one is gone and reads as zeros if the file grows again.
    pub fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size - size);
            self.blocks.split_off(&size.div_ceil(BLOCK));
        }
        self.size = size;
    }

    /// Makes the file at least `size` long.
    pub fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// Makes the range read as zeros, without changing the length.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let touched: Vec<u64> = self.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)).map(|(n, _)| *n).collect();
        for number in touched {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            if to - from == BLOCK {
                self.blocks.remove(&number);
            } else if let Some(block) = self.blocks.get_mut(&number) {
                Arc::make_mut(block)[(from - number * BLOCK) as usize..(to - number * BLOCK) as usize].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, noise};

    #[test]
    fn behaves_like_a_plain_vector() {
        let mut rng = Rng::new(7);
        let (mut blocks, mut plain) = (Blocks::default(), Vec::<u8>::new());
        for step in 0..2_000 {
            let (offset, len) = (rng.below(20_000), rng.below(9_000));
            match rng.below(4) {
                0 => {
                    blocks.truncate(offset);
                    plain.resize(offset as usize, 0);
                }
                1 => {
                    blocks.zero(offset, len);
                    let end = plain.len().min((offset + len) as usize);
                    plain[(offset as usize).min(end)..end].fill(0);
                }
                _ => {
                    let data = noise(rng.next(), len as usize);
                    blocks.write(offset, &data);
                    if len > 0 {
                        plain.resize(plain.len().max((offset + len) as usize), 0);
                        plain[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    }
                }
            }
            assert_eq!(blocks.size(), plain.len() as u64, "step {step}");
            assert_eq!(blocks.read(0, u64::MAX), plain, "step {step}");
            let (from, to) = (3_000.min(plain.len()), 7_000.min(plain.len()));
            assert_eq!(blocks.read(3_000, 4_000), plain[from..to], "step {step}");
        }
    }
}
