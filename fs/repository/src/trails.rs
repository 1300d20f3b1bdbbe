//! Who reads which pack in order, and how far ahead of him it is worth reading.

use crate::frame::FrameKind;
use crate::spans::Whole;

/// Readers of one pack overtake each other by this much and still count as in order.
const SLACK: u64 = 1 << 20;
/// What lies this far behind a reader is not come back for: chunks of a file are up to 4 MiB long, and several encoders put
/// them into a pack in the order in which they are done.
const BEHIND: u64 = 8 << 20;
/// How far ahead of one that has just begun to read in order. Tree nodes are small and asked for one after the other, so
/// there already the first read counts as such.
const FIRST: u64 = 512 << 10;
/// How much further each time the half of it was used.
const GROWTH: u64 = 4;
/// Trails remembered.
const MOST: usize = 16;
/// A trail that was not gone on for so many reads leaves its share to others.
const RECENT: u64 = 16;

#[derive(Debug)]
struct Trail {
    pack: Whole,
    /// Up to where it was read.
    at: u64,
    /// Up to where it is read ahead.
    ahead: u64,
    window: u64,
    last: u64,
}

/// What comes of a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// From here on it is read ahead …
    pub(crate) from: u64,
    /// … to here.
    pub(crate) ahead: u64,
}

/// The latest trails.
#[derive(Debug)]
pub(crate) struct Trails {
    trails: Vec<Trail>,
    reads: u64,
    /// Furthest that all of them together may be ahead, in bytes.
    most: u64,
}

impl Trails {
    pub(crate) fn new(most: u64) -> Self {
        Self { trails: Vec::new(), reads: 0, most }
    }

    /// Notes a read and says what is worth reading beside it.
    pub(crate) fn step(&mut self, pack: Whole, start: u64, end: u64) -> Step {
        self.reads += 1;
        let is_near = |trail: &Trail| match trail.window > FIRST {
            true => start + BEHIND >= trail.at && start <= trail.ahead + SLACK,
            false => start + SLACK >= trail.at && start <= trail.at + SLACK,
        };
        let same = self.trails.iter().position(|trail| trail.pack.id == pack.id && is_near(trail));
        // A reader that came to the end of one pack goes on in the next.
        let ended = |trail: &Trail| trail.pack.kind == pack.kind && trail.at + SLACK >= trail.pack.len;
        let index = match same.or_else(|| self.trails.iter().position(|t| start < SLACK && t.window > 0 && ended(t))) {
            Some(index) => index,
            None => self.begin(pack, start),
        };
        let (reads, share) = (self.reads, self.share());
        let trail = &mut self.trails[index];
        if trail.pack.id != pack.id {
            (trail.pack, trail.at, trail.ahead) = (pack, start, start);
        }
        let in_order = same.is_some() || trail.window > 0;
        trail.last = reads;
        trail.at = trail.at.max(end);
        trail.ahead = trail.ahead.max(end);
        let from = trail.ahead;
        if in_order && trail.ahead - trail.at <= trail.window / 2 {
            trail.window = if trail.window == 0 { FIRST } else { trail.window * GROWTH }.min(share);
            trail.ahead = trail.ahead.max(trail.at + trail.window).min(pack.len.max(end));
        }
        Step { from, ahead: trail.ahead }
    }

    fn begin(&mut self, pack: Whole, start: u64) -> usize {
        if self.trails.len() == MOST {
            let oldest = self.trails.iter().enumerate().min_by_key(|(_, trail)| trail.last).map_or(0, |(i, _)| i);
            self.trails.swap_remove(oldest);
        }
        let window = if pack.kind == FrameKind::Metadata { FIRST / GROWTH } else { 0 };
        self.trails.push(Trail { pack, at: start, ahead: start, window, last: self.reads });
        self.trails.len() - 1
    }

    /// How far ahead one of those may be that read just now.
    fn share(&self) -> u64 {
        let active = self.trails.iter().filter(|trail| trail.window > 0 && trail.last + RECENT > self.reads).count();
        (self.most / active.max(1) as u64).max(FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PackId;

    const LEN: u64 = 64 << 20;

    fn pack(number: u8) -> Whole {
        Whole { id: PackId([number; 32]), len: LEN, kind: FrameKind::Data }
    }

    #[test]
    fn a_reader_in_order_is_kept_ahead_of_by_ever_more_and_within_the_bound() {
        let most = 16 << 20;
        let mut trails = Trails::new(most);
        let mut furthest = 0;
        for start in (0..LEN).step_by(64 << 10) {
            let end = start + (64 << 10);
            let step = trails.step(pack(1), start, end);
            assert!(step.ahead - end <= most && step.ahead <= LEN, "at {start}: {step:?}");
            if end < LEN / 2 && start > 8 << 20 {
                assert!(step.ahead - end >= most / 2 - (64 << 10), "at {start}: {step:?}");
            }
            furthest = furthest.max(step.ahead - end);
        }
        assert_eq!(furthest, most);
        let next = trails.step(pack(2), 0, 64 << 10);
        assert_eq!(next.ahead, most + (64 << 10), "it goes on in the next pack as in the last");
    }

    #[test]
    fn who_jumps_about_gets_nothing_ahead_and_many_readers_share_the_bound() {
        let mut trails = Trails::new(16 << 20);
        for at in [20u64, 3, 14, 9, 28, 50, 33] {
            let step = trails.step(pack(1), at << 20, (at << 20) + 65_536);
            assert_eq!(step.ahead, (at << 20) + 65_536, "{step:?}");
        }
        let mut trails = Trails::new(16 << 20);
        let mut ahead = [0; 4];
        for start in (0..32 << 20).step_by(64 << 10) {
            for reader in 0..4 {
                let end = start + (64 << 10);
                ahead[usize::from(reader)] = trails.step(pack(reader), start, end).ahead - end;
            }
        }
        assert!(ahead.iter().sum::<u64>() <= 16 << 20, "{ahead:?}");
    }
}
