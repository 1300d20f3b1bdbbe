//! What is asked of the threads that make checkpoints and commits, and how far they are.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::types::{Committed, FsError};
use crate::volume::lock;

/// How often the workers look at the clock.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Longest that somebody sleeps who has nothing to do until there is a checkpoint.
const IDLE: Duration = Duration::from_secs(60);
/// Losses that are known at a time.
const LOSSES_MAX: usize = 16;

/// Commits that are asked for are numbered; each is first in a checkpoint, then in a head.
#[derive(Debug, Default)]
struct Orders {
    /// Something is frozen.
    wake: bool,
    /// Freeze now and make a checkpoint.
    checkpoint: bool,
    /// The newest commit asked for.
    asked: u64,
    /// The newest of them of which a checkpoint has everything.
    checkpointed: u64,
    /// The newest done.
    committed: u64,
    /// The newest head.
    newest: Option<Committed>,
    /// The newest checkpoint that failed, with the newest commit that would have been in it.
    no_checkpoint: Option<(u64, FsError)>,
    /// The newest commit that failed.
    no_commit: Option<(u64, FsError)>,
    /// What was lost of what was written.
    losses: Vec<Loss>,
    /// Counts checkpoints.
    checkpoints: u64,
    /// Nobody waits any more.
    stopped: bool,
}

/// Something that was written and can't come into the store any more.
#[derive(Debug)]
struct Loss {
    /// What, for people.
    text: String,
    /// The newest commit that was done before.
    after: u64,
    /// The newest commit that was asked for when somebody was told who asked for all: later ones are not.
    told: Option<u64>,
}

impl Orders {
    /// What is lost that is news to who waits for the commit `number`, which is done.
    fn tell(&mut self, number: u64, settles: bool) -> Option<FsError> {
        let asked = self.asked;
        let mut texts = Vec::new();
        for loss in &mut self.losses {
            if (loss.after + 1..=loss.told.unwrap_or(u64::MAX)).contains(&number) {
                texts.push(loss.text.clone());
                if settles {
                    loss.told.get_or_insert(asked);
                }
            }
        }
        (!texts.is_empty()).then(|| FsError::Damaged(texts.join("; ")))
    }
}

/// Orders to the workers.
#[derive(Debug, Default)]
pub(crate) struct Work {
    orders: Mutex<Orders>,
    changed: Condvar,
}

/// What the thread that makes checkpoints is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    /// Make one now.
    pub checkpoint: bool,
    /// The newest commit asked for, if no checkpoint has it yet.
    pub commit: Option<u64>,
    /// The newest commit asked for.
    pub asked: u64,
}

/// What the thread that commits may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next {
    /// The newest commit asked for that a checkpoint has.
    pub number: u64,
    /// Whether somebody waits for it.
    pub waited_for: bool,
    checkpoints: u64,
}

/// How a commit goes that somebody waits for.
#[derive(Debug)]
pub(crate) enum Waiting {
    Done(Committed),
    Failed(FsError),
    NotYet,
}

impl Work {
    /// A layer was frozen.
    pub fn wake(&self) {
        let mut orders = lock(&self.orders);
        if !orders.wake {
            orders.wake = true;
            self.changed.notify_all();
        }
    }

    /// Room is needed.
    pub fn checkpoint_soon(&self) {
        let mut orders = lock(&self.orders);
        if !orders.checkpoint {
            orders.checkpoint = true;
            self.changed.notify_all();
        }
    }

    /// Asks for a commit of all that was written before. Gives its number.
    pub fn ask_commit(&self) -> u64 {
        let mut orders = lock(&self.orders);
        orders.asked += 1;
        self.changed.notify_all();
        orders.asked
    }

    /// Whether `number` was given to somebody.
    pub fn was_asked(&self, number: u64) -> bool {
        (1..=lock(&self.orders).asked).contains(&number)
    }

    /// The newest commit asked for, if no checkpoint has everything of it and none was tried in vain.
    pub fn commit_waits(&self) -> Option<u64> {
        let orders = lock(&self.orders);
        let failed = orders.no_checkpoint.as_ref().map_or(0, |(number, _)| *number);
        (orders.asked > orders.checkpointed && orders.asked > failed).then_some(orders.asked)
    }

    /// Waits for an order or for the clock.
    pub fn next_order(&self) -> Order {
        let orders = lock(&self.orders);
        let idle = !orders.wake && !orders.checkpoint && orders.asked == orders.checkpointed;
        let mut orders = if idle { self.wait(orders, TICK) } else { orders };
        orders.wake = false;
        let checkpoint = std::mem::take(&mut orders.checkpoint);
        let commit = (orders.asked != orders.checkpointed).then_some(orders.asked);
        Order { checkpoint, commit, asked: orders.asked }
    }

    /// What may be committed now.
    pub fn next_commit(&self) -> Next {
        let orders = lock(&self.orders);
        let number = orders.checkpointed;
        Next { number, waited_for: number != orders.committed, checkpoints: orders.checkpoints }
    }

    /// Waits for a checkpoint after those that `next` knew of, at most for `time`.
    pub fn wait_for_checkpoint(&self, next: Next, time: Duration) {
        self.wait_until(Instant::now() + time.min(IDLE), |orders| orders.checkpoints != next.checkpoints);
    }

    /// A checkpoint has everything of the commits up to `number`.
    pub fn checkpointed(&self, number: u64) {
        let mut orders = lock(&self.orders);
        orders.checkpointed = orders.checkpointed.max(number);
        orders.checkpoints += 1;
        self.changed.notify_all();
    }

    /// A head has everything of the commits up to `number`.
    pub fn committed(&self, number: u64, newest: Option<Committed>) {
        let mut orders = lock(&self.orders);
        orders.committed = number;
        orders.newest = newest;
        self.changed.notify_all();
    }

    /// Something that was written can't come into the store any more. Who waits for a commit from now on is told, until one was.
    pub fn lost(&self, text: String) {
        let mut orders = lock(&self.orders);
        if orders.losses.len() >= LOSSES_MAX {
            orders.losses.retain(|loss| loss.told.is_none());
        }
        if orders.losses.len() < LOSSES_MAX {
            let after = orders.committed;
            orders.losses.push(Loss { text, after, told: None });
        }
    }

    /// A checkpoint failed that would have had everything of the commits up to `number`. Those who wait for them are told; it is tried again.
    pub fn no_checkpoint(&self, number: u64, error: FsError) {
        lock(&self.orders).no_checkpoint = Some((number, error));
        self.changed.notify_all();
    }

    /// The commits up to `number` failed. Those who wait for them are told; they are tried again.
    pub fn no_commit(&self, number: u64, error: FsError) {
        lock(&self.orders).no_commit = Some((number, error));
        self.changed.notify_all();
    }

    /// How the commit `number` goes; waits a moment if it isn't done. Who waits is told of all that was lost, until somebody was for whom
    /// that `settles` it.
    pub fn wait_for(&self, number: u64, time: Duration, settles: bool) -> Waiting {
        let mut orders = lock(&self.orders);
        for last in [false, true] {
            if orders.committed >= number
                && let Some(newest) = orders.newest
            {
                return match orders.tell(number, settles) {
                    Some(loss) => Waiting::Failed(loss),
                    None => Waiting::Done(newest),
                };
            }
            // What else failed is nothing to who waits for this one.
            let failed = if number > orders.checkpointed { &orders.no_checkpoint } else { &orders.no_commit };
            if let Some((failed, error)) = failed
                && *failed >= number
            {
                return Waiting::Failed(error.clone());
            }
            if !last {
                orders = self.wait(orders, time);
            }
        }
        Waiting::NotYet
    }

    /// Waits for whatever changes next.
    pub fn wait_for_change(&self, time: Duration) {
        drop(self.wait(lock(&self.orders), time));
    }

    /// A pause of checkpoints after one failed, when `failed` was the newest commit asked for; a newer one ends it.
    pub fn pause_checkpoints(&self, time: Duration, failed: u64) {
        self.wait_until(Instant::now() + time, |orders| orders.asked > failed);
    }

    /// The same of commits: a checkpoint with a newer one ends it.
    pub fn pause_commits(&self, time: Duration, failed: u64) {
        self.wait_until(Instant::now() + time, |orders| orders.checkpointed > failed);
    }

    fn wait_until(&self, until: Instant, ends: impl Fn(&Orders) -> bool) {
        let mut orders = lock(&self.orders);
        while !ends(&orders) && !orders.stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            orders = self.wait(orders, left);
        }
    }

    fn wait<'a>(&self, orders: MutexGuard<'a, Orders>, time: Duration) -> MutexGuard<'a, Orders> {
        if orders.stopped {
            return orders;
        }
        self.changed.wait_timeout(orders, time).unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    /// Ends the wait of everybody; nobody waits here any more.
    pub fn stop(&self) {
        lock(&self.orders).stopped = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Committed = Committed { sequence: 1, commit: [1; 16] };

    fn broken() -> FsError {
        FsError::Io("broken".into())
    }

    #[test]
    fn a_commit_is_done_once_a_head_has_what_a_checkpoint_had_of_it() {
        let work = Work::default();
        let number = work.ask_commit();
        let goes = || work.wait_for(number, Duration::ZERO, true);
        assert!(matches!(goes(), Waiting::NotYet));
        work.checkpointed(0);
        work.committed(work.next_commit().number, Some(HEAD));
        assert!(matches!(goes(), Waiting::NotYet), "that head is of an earlier checkpoint");
        work.checkpointed(number);
        assert!(work.next_commit().waited_for && matches!(goes(), Waiting::NotYet));
        work.committed(number, Some(HEAD));
        assert!(matches!(goes(), Waiting::Done(HEAD)) && !work.next_commit().waited_for);
    }

    #[test]
    fn who_waits_is_told_of_the_own_failure_only() {
        let work = Work::default();
        let first = work.ask_commit();
        work.checkpointed(first);
        let second = work.ask_commit();
        work.no_checkpoint(second, broken());
        assert!(matches!(work.wait_for(first, Duration::ZERO, true), Waiting::NotYet), "it is in a checkpoint");
        assert!(matches!(work.wait_for(second, Duration::ZERO, true), Waiting::Failed(_)));
        assert_eq!(work.commit_waits(), None, "it was tried in vain");
        work.no_commit(first, broken());
        assert!(matches!(work.wait_for(first, Duration::ZERO, true), Waiting::Failed(_)));
        let third = work.ask_commit();
        assert_eq!(work.commit_waits(), Some(third));
        assert!(matches!(work.wait_for(third, Duration::ZERO, true), Waiting::NotYet), "that was before it");
    }

    #[test]
    fn a_loss_is_told_once_to_who_waits_for_a_commit_after_it() {
        let work = Work::default();
        let told = |number, once| match work.wait_for(number, Duration::ZERO, once) {
            Waiting::Failed(FsError::Damaged(text)) => Some(text),
            Waiting::Done(HEAD) => None,
            other => panic!("{other:?}"),
        };
        let done = || {
            let number = work.ask_commit();
            work.checkpointed(number);
            work.committed(number, Some(HEAD));
            number
        };
        let before = done();
        work.lost("pack 1".into());
        // Nobody asked for this one.
        work.committed(before, Some(HEAD));
        assert_eq!(told(before, true), None);
        let (first, second) = (work.ask_commit(), done());
        for _ in 0..2 {
            assert_eq!(told(second, false).as_deref(), Some("pack 1"), "whose file it was is not known");
        }
        let waits = work.ask_commit();
        for _ in 0..2 {
            for number in [first, second] {
                assert_eq!(told(number, true).as_deref(), Some("pack 1"), "{number} waited for it");
            }
        }
        work.checkpointed(waits);
        work.committed(waits, Some(HEAD));
        assert_eq!(told(waits, true).as_deref(), Some("pack 1"), "it waited when the first was told");
        let third = done();
        assert_eq!((told(third, true), told(third, false)), (None, None));
        for pack in ["pack 2", "pack 3"] {
            work.lost(pack.into());
        }
        // Given up before it was done.
        done();
        assert_eq!(told(done(), true).as_deref(), Some("pack 2; pack 3"));
        assert_eq!((told(third, true), told(done(), true)), (None, None));
    }

    #[test]
    fn what_happened_meanwhile_and_the_end_let_nobody_wait() {
        let (work, begun) = (Work::default(), Instant::now());
        let next = work.next_commit();
        work.checkpointed(0);
        work.wait_for_checkpoint(next, Duration::from_secs(60));
        let asked = work.next_order().asked;
        work.ask_commit();
        work.pause_checkpoints(Duration::from_secs(60), asked);
        work.stop();
        work.pause_commits(Duration::from_secs(60), 9);
        work.wait_for_change(Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
