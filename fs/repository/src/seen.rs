//! Which frames were decoded before: tells how large a cache would have to be. Keeps hashes of names, no frames.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

use crate::place::FrameKey;
use crate::repository::lock;

/// Frames remembered, the latest: 16 to 32 GiB of them.
const MOST: usize = 65_536;

/// What was read more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reread {
    /// Raw bytes of frames that were decoded again because they had been in memory and were not any more.
    pub again: u64,
    /// Raw bytes of all frames decoded.
    pub all: u64,
    /// Raw bytes of the frames that were decoded more than once, each counted once: what a cache would have to hold.
    pub set: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Raw length and times seen, by hash.
    known: HashMap<u64, (u32, u32)>,
    order: VecDeque<u64>,
    sums: Reread,
}

/// The frames decoded since the repository was opened.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    hasher: RandomState,
    state: Mutex<State>,
}

impl Seen {
    pub(crate) fn note(&self, key: &FrameKey, raw: u32) {
        let hash = self.hasher.hash_one(key);
        let mut state = lock(&self.state);
        let State { known, order, sums } = &mut *state;
        sums.all += u64::from(raw);
        if let Some((_, times)) = known.get_mut(&hash) {
            *times = times.saturating_add(1);
            sums.again += u64::from(raw);
            if *times == 2 {
                sums.set += u64::from(raw);
            }
            return;
        }
        if order.len() == MOST
            && let Some((len, times)) = order.pop_front().and_then(|oldest| known.remove(&oldest))
            && times > 1
        {
            sums.set -= u64::from(len);
        }
        order.push_back(hash);
        known.insert(hash, (raw, 1));
    }

    pub(crate) fn sums(&self) -> Reread {
        lock(&self.state).sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_read_twice_is_told_by_its_size() {
        let seen = Seen::default();
        let key = |number: u32| ([7; 32], number);
        for round in 1..=3u64 {
            for number in 0..100 {
                seen.note(&key(number), 1000);
            }
            let sums = seen.sums();
            assert_eq!((sums.all, sums.again), (round * 100_000, (round - 1) * 100_000));
            assert_eq!(sums.set, if round > 1 { 100_000 } else { 0 });
        }
        // What has not been seen for long is forgotten, and counts no more.
        for number in 0..MOST as u32 {
            seen.note(&key(1000 + number), 1);
        }
        assert_eq!(seen.sums().set, 0);
        assert_eq!(lock(&seen.state).known.len(), MOST);
    }
}
