//! Who waits for room, and for how long.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use axiomfs_repository::Sent;

use crate::change::Need;
use crate::types::{Access, FsError, FsResult};
use crate::volume::{Shared, Volume, lock};

/// So many wait for room longer than `timeout` while the store takes packs; each keeps one of the mount's workers.
const MOST_PATIENT: usize = 4;
/// Bytes that flow to the store within `timeout` at least where writers wait on for them: a try that will fail may send some, too.
const LEAST_FLOW: u64 = 512 << 10;
/// Longest a request waits in one go before it looks again whether it may go on.
const WAIT_SLICE: Duration = Duration::from_millis(200);

/// Those that wait for room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waits: Mutex<Waits>,
    /// There is room, perhaps.
    pub made: Condvar,
}

#[derive(Debug, Default)]
struct Waits {
    /// How many wait.
    count: usize,
    /// When one of them found some last.
    found: Option<Instant>,
}

impl Volume {
    /// What a change is answered that can't even be queued: there is no room, and others wait for some already.
    pub fn waits_for_room(&self) -> Option<FsError> {
        (lock(&self.shared.room.waits).count > 0).then(|| self.shared.no_room())
    }
}

impl Shared {
    fn no_room(&self) -> FsError {
        let over_quota = [&self.checkpoint_over_quota, &self.commit_over_quota];
        let over_quota = over_quota.iter().any(|flag| flag.load(Ordering::Relaxed));
        if over_quota { FsError::QuotaExceeded } else { FsError::NoSpace }
    }

    /// Waits a moment for room. An error once patience is over.
    pub fn wait_or_give_up<'a>(
        &'a self,
        access: Access,
        need: Need,
        patience: &mut Option<Patience<'a>>,
    ) -> FsResult<()> {
        // Where only the store can make room, checkpoints would make it less.
        if need != Need::Room || !self.is_staging_full() {
            self.work.checkpoint_soon();
        }
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        if patience.get_or_insert_with(|| Patience::new(self, access)).is_over() {
            return Err(self.no_room());
        }
        let guard = lock(&self.room.waits);
        drop(self.room.made.wait_timeout(guard, WAIT_SLICE));
        // A commit makes room pack by pack.
        self.note_staged();
        Ok(())
    }
}

/// How long somebody waits for room: `timeout`, and on while packs reach the store, or bytes of them flow.
pub(crate) struct Patience<'a> {
    shared: &'a Shared,
    since: Instant,
    /// What the store had when `since` was set.
    before: Option<Sent>,
    /// The same when the last pack had reached it.
    at_pack: Option<Sent>,
    /// Whether this is one of those that wait on.
    is_patient: bool,
}

impl<'a> Patience<'a> {
    /// Of a request that came when `access` says: all that wait for the same room give up together, however many there are for each
    /// worker. Where one of them has found some meanwhile it counts from there: it is this one's turn now.
    fn new(shared: &'a Shared, access: Access) -> Self {
        let came = if let Access::Since(came) = access { came } else { Instant::now() };
        let mut waits = lock(&shared.room.waits);
        waits.count += 1;
        let since = waits.found.map_or(came, |found| found.max(came));
        Self { shared, since, before: None, at_pack: None, is_patient: false }
    }

    /// There was room.
    pub fn found(self) {
        lock(&self.shared.room.waits).found = Some(Instant::now());
    }

    /// Whether it has ended.
    fn is_over(&mut self) -> bool {
        let now = self.shared.repository.sent();
        if now.packs != self.at_pack.get_or_insert(now).packs {
            self.at_pack = Some(now);
        }
        // Fewer where a try has failed: those after it count all the same.
        let before = self.before.get_or_insert(now);
        before.bytes = before.bytes.min(now.bytes);
        let before = *before;
        if self.since.elapsed() <= self.shared.options.timeout {
            return false;
        }
        // Where uploads fail, or twice what can be under way was sent and no pack has arrived, sending is not getting anywhere.
        let flowed = |since: Option<Sent>| since.and_then(|s| Some(now.bytes?.saturating_sub(s.bytes?))).unwrap_or(0);
        let useful = now.failed == before.failed && flowed(self.at_pack) <= 2 * now.under_way;
        let moves = now.packs != before.packs || useful && flowed(self.before) >= LEAST_FLOW;
        if !moves || !self.is_patient && !self.may_wait_on() {
            return true;
        }
        (self.since, self.before, self.is_patient) = (Instant::now(), Some(now), true);
        false
    }

    fn may_wait_on(&self) -> bool {
        let taken = self
            .shared
            .patient
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < MOST_PATIENT).then_some(now + 1));
        taken.is_ok()
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        lock(&self.shared.room.waits).count -= 1;
        if self.is_patient {
            self.shared.patient.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
