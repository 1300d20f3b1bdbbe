//! A node in the making.

use std::ops::Range;

use super::node::{HEADER, MAGIC, Node, SLOT, VERSION, common_prefix};
use crate::ids::ChunkId;

/// Entries of one level in key order, to become one or more nodes.
#[derive(Default)]
pub(super) struct NodeBuffer {
    /// For leaves: the separator of the first node made from this. A branch's is its first key, which is left out of the node itself.
    pub lower: Vec<u8>,
    heap: Vec<u8>,
    /// Each entry's end in the heap, and its key's length.
    slots: Vec<(u32, u16)>,
}

impl NodeBuffer {
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Length in bytes of a node with all the entries.
    pub fn size(&self) -> usize {
        HEADER + SLOT * self.len() + self.heap.len()
    }

    /// Length in bytes of a node with the first `count` entries.
    fn size_of(&self, count: usize) -> usize {
        HEADER + SLOT * count + self.start(count)
    }

    /// Where the `i`-th entry starts in the heap; for `len()`, where the heap ends.
    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.slots[i - 1].0 as usize }
    }

    pub fn key(&self, i: usize) -> &[u8] {
        &self.heap[self.start(i)..][..usize::from(self.slots[i].1)]
    }

    pub fn clear(&mut self) {
        self.lower.clear();
        self.heap.clear();
        self.slots.clear();
    }

    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.heap.extend_from_slice(key);
        self.heap.extend_from_slice(value);
        // Keys are at most KEY_MAX long and a buffer holds a few nodes' worth.
        self.slots.push((self.heap.len() as u32, key.len() as u16));
    }

    /// Adds the entries `range` of `node` at the end.
    pub fn extend_from_node(&mut self, node: &Node, range: Range<usize>) {
        let base = self.heap.len();
        let (heap, slots) = node.run(range);
        self.heap.extend_from_slice(heap);
        self.slots.extend(slots.map(|(end, key_len)| ((base + end) as u32, key_len as u16)));
    }

    /// Adds all of `other` at the end.
    pub fn append(&mut self, other: &Self) {
        let base = self.heap.len() as u32;
        self.heap.extend_from_slice(&other.heap);
        self.slots.extend(other.slots.iter().map(|&(end, key_len)| (base + end, key_len)));
    }

    /// Removes the last entry of a branch.
    pub fn pop_child(&mut self) -> Option<(Vec<u8>, ChunkId)> {
        let (_, key_len) = self.slots.pop()?;
        let entry = self.heap.split_off(self.start(self.slots.len()));
        let (key, child) = entry.split_at(usize::from(key_len));
        Some((key.to_vec(), ChunkId(child.try_into().expect("a branch's values are 32 bytes"))))
    }

    /// The most entries that fit into `target` bytes, at least one.
    pub fn fitting(&self, target: usize) -> usize {
        self.first_over(target).saturating_sub(1).max(1)
    }

    /// The number of entries that makes the first of two nodes most nearly half of all; leaves at least one for either.
    pub fn half(&self) -> usize {
        let half = self.size() / 2;
        let over = self.first_over(half).clamp(1, self.len() - 1);
        let under = (over - 1).max(1);
        if half.abs_diff(self.size_of(under)) <= half.abs_diff(self.size_of(over)) { under } else { over }
    }

    /// The smallest number of entries that takes more than `target` bytes; `len() + 1` if none does.
    fn first_over(&self, target: usize) -> usize {
        let (mut low, mut high) = (0, self.len() + 1);
        while low < high {
            let middle = low.midpoint(high);
            if self.size_of(middle) <= target {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Moves the entries from `at` on into `rest`, which is empty. Of leaves, `rest` gets the shortest separator that does.
    pub fn split_into(&mut self, at: usize, rest: &mut Self, level: u8) {
        let start = self.start(at);
        if level == 0 {
            let separator = separator(self.key(at - 1), self.key(at));
            rest.lower.clear();
            rest.lower.extend_from_slice(separator);
        }
        rest.heap.extend_from_slice(&self.heap[start..]);
        rest.slots.extend(self.slots[at..].iter().map(|&(end, key_len)| (end - start as u32, key_len)));
        self.heap.truncate(start);
        self.slots.truncate(at);
    }

    /// The separator for the parent.
    pub fn separator(&self, level: u8) -> &[u8] {
        if level == 0 { &self.lower } else { self.key(0) }
    }

    /// The node's bytes. The caller keeps the size within what the format allows.
    pub fn encode(&self, level: u8) -> Vec<u8> {
        let count = u16::try_from(self.len()).expect("a node within its size has fewer entries");
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(&[MAGIC, VERSION, level, 0, 0, 0]);
        out.extend_from_slice(&count.to_le_bytes());
        let left_out = if level == 0 { 0 } else { self.slots[0].1 };
        for (i, &(end, key_len)) in self.slots.iter().enumerate() {
            let end = u16::try_from(end - u32::from(left_out)).expect("a node within its size has a smaller heap");
            let key_len = if i == 0 { key_len - left_out } else { key_len };
            let [a, b] = end.to_le_bytes();
            let [c, d] = key_len.to_le_bytes();
            out.extend_from_slice(&[a, b, c, d]);
        }
        out.extend_from_slice(&self.heap[usize::from(left_out)..]);
        out
    }
}

/// The shortest prefix of `right` that is greater than `left`, which is smaller than `right`.
fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    &right[..(common_prefix(left, right) + 1).min(right.len())]
}

#[cfg(test)]
mod tests {
    use super::separator;

    #[test]
    fn a_separator_is_the_shortest_that_separates() {
        for (left, right, expected) in [
            ("a", "b", "b"),
            ("abc", "abd", "abd"),
            ("abc", "b", "b"),
            ("a", "ab", "ab"),
            ("", "zz", "z"),
            ("a", "abcd", "ab"),
        ] {
            assert_eq!(separator(left.as_bytes(), right.as_bytes()), expected.as_bytes(), "{left} {right}");
        }
    }
}
