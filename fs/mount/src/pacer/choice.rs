//! Which way of waiting for requests is the best: told by how many are served in each. Knows no clock and no thread.

use std::time::Duration;

/// How long one way is kept to before another is tried, at first and at most.
const KEEP: (Duration, Duration) = (Duration::from_millis(60), Duration::from_millis(2000));
/// All ways but blocking cost a CPU that nobody else wants: they have to serve so many times as many requests to be chosen instead of it.
const WORTH: f64 = 1.06;
/// So many times more than chance alone makes of two equal ways.
const SURE: f64 = 1.05;
/// Where they serve so many times fewer than that, blocking is gone back to.
const BACK: f64 = 1.02;

/// Where the best serves so many times fewer than it did, others are tried at once.
const WORSE: f64 = 1.5;

/// How requests are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The reader blocks.
    Block,
    /// The reader polls. It need not be woken; its client, on another CPU, still has to be.
    Poll,
    /// The reader blocks, and a thread that gives way to all others runs on the CPU that reader and client leave free. They wake each
    /// other on one CPU then, and none has to be woken from its sleep.
    Keep,
}

/// What came of requests while they were waited for in one way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    /// Requests per second; 0 where there was no CPU to spare for this way.
    pub(super) rate: f64,
    /// Time that counting took.
    pub(super) took: Duration,
}

/// The best way so far, and what is to be tried.
#[derive(Debug)]
pub(super) struct Choice {
    best: Way,
    /// The others, the next to be tried first.
    others: Vec<Way>,
    /// How long to keep to the best before another is tried, and for how long that was done.
    keep: Duration,
    kept: Duration,
    /// Requests per second of the best when others were tried last.
    promised: f64,
    /// Whether the best was chosen then: what serves soon may have been left by the one before.
    is_new: bool,
}

impl Choice {
    /// Begins with the first of two or more `ways`, and tries the others in their order.
    pub(super) fn new(mut ways: Vec<Way>) -> Self {
        Self { best: ways.remove(0), others: ways, keep: KEEP.0, kept: Duration::ZERO, promised: 0.0, is_new: false }
    }

    /// Others may make the requests from now on, for which another way is the best.
    pub(super) fn doubt(&mut self) {
        self.keep = KEEP.0;
    }

    /// Keeps to the best way for a while, then tries another. `count` counts requests for a moment in the way it is given, and may stop
    /// where they are fewer per second than the number it is given; nothing once it gives nothing, as requests have ceased to come densely.
    pub(super) fn follow(&mut self, mut count: impl FnMut(Way, f64) -> Option<Count>) -> Option<()> {
        let mut before;
        loop {
            let counted = count(self.best, 0.0)?;
            before = counted.rate;
            self.kept += counted.took;
            let is_worse = before * WORSE < self.promised && (self.is_new || self.kept >= KEEP.0);
            if is_worse {
                self.keep = KEEP.0;
            }
            if self.kept >= self.keep || before == 0.0 || is_worse {
                break;
            }
        }
        if before == 0.0 && self.best != Way::Block {
            self.choose(Way::Block);
            // There was no CPU for it: it is the last to be tried again.
            self.others.rotate_left(1);
            self.keep = KEEP.0;
            before = count(Way::Block, 0.0)?.rate;
        }
        (self.promised, self.is_new) = (before, false);
        // Also where requests cease meanwhile: another is tried next time.
        let other = self.others[0];
        self.others.rotate_left(1);
        let tried = count(other, before / 2.0)?.rate;
        let after = count(self.best, 0.0);
        self.kept = Duration::ZERO;
        let rate = after.map_or(before, |after| after.rate);
        let kept = (before + rate) / 2.0;
        if is_better(other, tried, self.best, kept) {
            tracing::trace!(best = ?other, instead = ?self.best, tried, kept, "Waits for requests another way");
            self.choose(other);
            (self.promised, self.is_new) = (tried, true);
            // Of ways that serve nearly the same either will do: looking again soon costs more than the other can give.
            let shorter = if tried > kept * WORSE { KEEP.0 } else { self.keep / 4 };
            self.keep = shorter.max(KEEP.0);
        } else if rate * WORSE > before && before * WORSE > rate {
            self.keep = (self.keep * 2).min(KEEP.1);
        }
        after.map(drop)
    }

    /// Makes `way` the best; the one before is the first to be tried again.
    fn choose(&mut self, way: Way) {
        self.others.retain(|other| *other != way);
        self.others.insert(0, std::mem::replace(&mut self.best, way));
    }
}

/// Whether the way that was tried serves enough more requests than the best so far.
fn is_better(other: Way, tried: f64, best: Way, kept: f64) -> bool {
    match (other, best) {
        (_, Way::Block) => tried > kept * WORTH,
        (Way::Block, _) => tried * WORTH > kept * BACK,
        _ => tried > kept * SURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_millis(8);
    const ALL: [Way; 3] = [Way::Keep, Way::Block, Way::Poll];

    /// Follows for `time`; `rate` gives the requests per second of a way. Tells for how long each way of [`ALL`] was used.
    fn follow(choice: &mut Choice, time: Duration, rate: impl Fn(Way) -> f64) -> [Duration; 3] {
        let mut used = [Duration::ZERO; 3];
        while used.iter().sum::<Duration>() < time {
            choice.follow(|way, least| {
                // As long as it takes to settle, where it is not known before.
                let took = if rate(way) < least { WINDOW } else { 6 * WINDOW };
                used[ALL.iter().position(|one| *one == way).unwrap()] += took;
                Some(Count { rate: rate(way), took })
            });
        }
        used
    }

    #[test]
    fn keeps_to_the_way_that_serves_most() {
        for (at, best) in ALL.into_iter().enumerate() {
            let mut choice = Choice::new(ALL.to_vec());
            let rate = |way| if way == best { 10_000.0 } else { 3_000.0 };
            // It is found in the first three tries, and then more than nine tenths of the time are its.
            follow(&mut choice, Duration::from_millis(600), rate);
            let used = follow(&mut choice, Duration::from_secs(10), rate);
            let all: Duration = used.iter().sum();
            assert!(used[at] * 10 > all * 9, "{best:?}: {used:?}");
        }
    }

    #[test]
    fn blocking_is_enough_where_the_others_serve_little_more() {
        let mut choice = Choice::new(ALL.to_vec());
        let rate = |way| if way == Way::Block { 9_700.0 } else { 10_000.0 };
        let used = follow(&mut choice, Duration::from_secs(10), rate);
        assert!(used[1] > Duration::from_secs(8), "{used:?}");
    }

    #[test]
    fn short_work_loses_little_to_tries_of_what_is_worse() {
        let mut choice = Choice::new(ALL.to_vec());
        let used = follow(&mut choice, Duration::from_secs(1), |way| if way == Way::Keep { 9_000.0 } else { 3_000.0 });
        assert!(used[1] + used[2] < Duration::from_millis(50), "{used:?}");
    }

    #[test]
    fn another_way_is_found_when_the_requests_change() {
        let mut choice = Choice::new(ALL.to_vec());
        follow(&mut choice, Duration::from_secs(10), |way| if way == Way::Poll { 9_000.0 } else { 1_000.0 });
        assert_eq!(choice.best, Way::Poll);
        let rate = |way| match way {
            Way::Keep => 9_000.0,
            Way::Poll => 3_000.0,
            Way::Block => 2_000.0,
        };
        follow(&mut choice, Duration::from_millis(600), rate);
        let used = follow(&mut choice, Duration::from_secs(2), rate);
        assert!(used[0] > Duration::from_secs(1), "{used:?}");
    }

    #[test]
    fn a_way_without_a_cpu_to_spare_is_left_at_once() {
        let mut choice = Choice::new(ALL.to_vec());
        let used = follow(&mut choice, Duration::from_secs(4), |way| if way == Way::Block { 5_000.0 } else { 0.0 });
        assert!(used[1] > Duration::from_millis(3500), "{used:?}");
        assert_eq!(choice.best, Way::Block);
    }

    #[test]
    fn where_requests_cease_while_one_is_tried_the_next_one_is_tried_next() {
        let mut choice = Choice::new(ALL.to_vec());
        for other in [Way::Block, Way::Poll, Way::Block] {
            let mut tried = None;
            let ceased = choice.follow(|way, _| {
                tried = Some(way);
                (way == Way::Keep).then_some(Count { rate: 5_000.0, took: WINDOW })
            });
            assert_eq!((ceased, tried), (None, Some(other)));
        }
    }

    /// Requests that pause now and then must not keep the first way for ever.
    #[test]
    fn what_was_kept_to_before_a_pause_counts() {
        let mut choice = Choice::new(ALL.to_vec());
        let mut counts = 0;
        for _ in 0..40 {
            choice.follow(|way, _| {
                counts += 1;
                let rate = if way == Way::Block { 9_000.0 } else { 3_000.0 };
                (counts % 5 != 0).then_some(Count { rate, took: WINDOW })
            });
        }
        assert_eq!(choice.best, Way::Block);
    }

    #[test]
    fn ways_that_serve_the_same_are_not_exchanged_for_each_other() {
        for slow in ALL {
            let mut choice = Choice::new(ALL.to_vec());
            let mut turn = 0;
            let mut changes = 0;
            for _ in 0..100 {
                let before = choice.best;
                choice.follow(|way, _| {
                    turn += 1;
                    let chance = 1.0 + f64::from(turn % 5) / 125.0;
                    Some(Count { rate: if way == slow { 5_000.0 } else { 8_000.0 } * chance, took: WINDOW })
                });
                changes += usize::from(choice.best != before);
            }
            assert!(changes <= 2, "{changes} changes where {slow:?} is slow");
        }
    }

    #[test]
    fn polling_has_to_be_worth_its_cpu() {
        for way in [Way::Poll, Way::Keep] {
            assert!(is_better(way, 107.0, Way::Block, 100.0) && !is_better(way, 105.0, Way::Block, 100.0));
            assert!(is_better(Way::Block, 97.0, way, 100.0) && !is_better(Way::Block, 96.0, way, 100.0));
        }
        assert!(is_better(Way::Keep, 106.0, Way::Poll, 100.0) && !is_better(Way::Keep, 104.0, Way::Poll, 100.0));
    }
}
