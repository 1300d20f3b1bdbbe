//! The threads behind a volume: one makes checkpoints, one commits, one keeps the log's last second durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::change::{FROZEN_MAX, Need};
use crate::checkpoint::{CheckpointError, Checkpointer};
use crate::commit::{Committer, tell_of_foreign};
use crate::layer::AUDITS_ALONE;
use crate::orders::{Order, TICK};
use crate::state::State;
use crate::types::{Access, FsError, FsResult, NodeId};
use crate::volume::{Shared, lock};

/// Pause after a failed checkpoint or commit; doubled up to the maximum while it fails.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Log segments that mounts which changed nothing may leave beside the one in use.
const IDLE_SEGMENTS: u64 = 1;

/// The life of the thread that makes checkpoints.
pub(crate) fn make_checkpoints(shared: &Arc<Shared>, checkpointer: Checkpointer) {
    guard(shared, "checkpoint", || checkpoints(shared, checkpointer));
}

/// The life of the thread that commits.
pub(crate) fn make_commits(shared: &Arc<Shared>, committer: Committer) {
    guard(shared, "commit", || commits(shared, committer));
}

/// If a worker panics nothing more is accepted: what came in would never reach the store.
fn guard(shared: &Shared, name: &str, life: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).is_err() {
        let text = format!(
            "The {name} thread panicked; nothing more is accepted, what was acknowledged is in the state directory: mount again"
        );
        // First of all: the other one must not go on from what this one left half done.
        shared.worker_dead.store(true, Ordering::SeqCst);
        shared.events.add("error", text.clone());
        shared.state_mut().refused = Some(FsError::Io(text));
    }
}

fn checkpoints(shared: &Shared, mut checkpointer: Checkpointer) {
    let mut retry = RETRY_MIN;
    loop {
        let order = shared.work.next_order();
        if shared.is_over() {
            return;
        }
        freeze_if_due(shared, order);
        let done = checkpoint(shared, &mut checkpointer, order.commit);
        checkpointer.failed = done.is_err();
        match done {
            Ok(()) => {
                retry = RETRY_MIN;
                shared.checkpoint_over_quota.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                let told = tell(shared, &error, &shared.checkpoint_over_quota);
                if let Some(number) = order.commit {
                    shared.work.no_checkpoint(number, told);
                }
                shared.work.pause_checkpoints(retry, order.asked);
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

fn commits(shared: &Shared, mut committer: Committer) {
    let mut pace = Pace { last: Instant::now(), begun: None };
    let mut retry = RETRY_MIN;
    loop {
        let next = shared.work.next_commit();
        if shared.is_over() {
            return;
        }
        if !next.waited_for {
            let left = if lock(&committer.ledger).changed() { pace.left(shared) } else { Duration::MAX };
            if !left.is_zero() {
                shared.work.wait_for_checkpoint(next, left);
                continue;
            }
        }
        pace.begun = Some(Instant::now());
        let done = committer.commit(shared);
        shared.note_staged();
        for note in shared.repository.take_damage_notes() {
            shared.events.add("error", note.text.clone());
            if note.lost {
                shared.work.lost(note.text);
            }
        }
        match done {
            Ok(()) => {
                retry = RETRY_MIN;
                pace.last = Instant::now();
                shared.commit_over_quota.store(false, Ordering::Relaxed);
                shared.made_room();
                shared.work.committed(next.number, committer.newest());
                // Listing a store may take long: nobody waits for it.
                tell_of_foreign(shared);
            }
            Err(error) => {
                shared.work.no_commit(next.number, tell(shared, &error, &shared.commit_over_quota));
                shared.work.pause_commits(retry, next.number);
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// When the next commit is due that nobody asked for.
struct Pace {
    /// When the last one ended.
    last: Instant,
    /// When the last one began, if there was one.
    begun: Option<Instant>,
}

impl Pace {
    /// How long it is until then, if no checkpoint stages more before.
    fn left(&self, shared: &Shared) -> Duration {
        let options = &shared.options;
        let staged = shared.staged_bytes.load(Ordering::Relaxed);
        let many = shared.staged_chunks.load(Ordering::Relaxed) >= shared.staged_chunks_max() / 2;
        if shared.is_staging_full() {
            return Duration::ZERO;
        }
        let by_time = options.commit_interval.saturating_sub(self.last.elapsed());
        if staged < options.commit_bytes && !many {
            return by_time;
        }
        // Each has a head and an index segment of its own: where much comes in, as often as checkpoints would be made where little does.
        let spaced =
            self.begun.map_or(Duration::ZERO, |begun| options.checkpoint_interval.saturating_sub(begun.elapsed()));
        by_time.min(spaced)
    }
}

/// Notes what went wrong; the error for those who wait.
fn tell(shared: &Shared, error: &CheckpointError, over_quota: &AtomicBool) -> FsError {
    let text = describe(error);
    over_quota.store(is_quota(error), Ordering::Relaxed);
    shared.events.add("error", text.clone());
    let fenced = matches!(error, CheckpointError::Fenced { .. });
    if fenced { FsError::Fenced } else { FsError::Io(text) }
}

/// Whether some cause of `e` is a quota.
fn is_quota(e: &(dyn std::error::Error + 'static)) -> bool {
    let kind = e.downcast_ref::<io::Error>().or_else(|| e.downcast_ref::<Arc<io::Error>>().map(Arc::as_ref));
    kind.is_some_and(|e| e.kind() == io::ErrorKind::QuotaExceeded) || e.source().is_some_and(is_quota)
}

/// An error with all its causes in one line.
pub(crate) fn describe(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn freeze_if_due(shared: &Shared, order: Order) {
    let now = order.checkpoint || order.commit.is_some();
    shared.log_access_times();
    let mut state = shared.state_mut();
    // Audit records alone are checkpointed where the log needs the room, and where there are many.
    if state.active.is_empty() || !order.checkpoint && state.active.is_quiet() {
        return;
    }
    let many = state.active.audits().len() >= AUDITS_ALONE;
    let age = state.active.since.map_or(Duration::ZERO, |since| since.elapsed());
    let needed = (now || many) && state.frozen.is_empty();
    // Where checkpoints fail there is a bound: then changes wait.
    let may = state.frozen.len() < FROZEN_MAX;
    if may && (needed || now && age > TICK || age >= shared.options.checkpoint_interval) {
        state.freeze();
    }
}

/// Whether the active layer keeps segments of several mounts in the log. Where each of them left records of itself alone, a checkpoint
/// frees them.
fn many_segments(state: &State) -> bool {
    state.active.first_segment.is_some_and(|first| state.last_segment >= first + IDLE_SEGMENTS)
}

/// Makes a checkpoint of what is frozen. Of the commits up to `asked` it has everything.
fn checkpoint(shared: &Shared, checkpointer: &mut Checkpointer, mut asked: Option<u64>) -> Result<(), CheckpointError> {
    if asked.is_some() {
        // Everything up to the order must be in it. Audit records go with what else there is: alone they are no reason for a head.
        let changed = lock(&checkpointer.ledger).changed();
        let mut state = shared.state_mut();
        let something = !state.frozen.is_empty() || changed || many_segments(&state);
        if !state.active.is_quiet() || something && !state.active.is_empty() {
            if checkpointer.may_freeze(&state) {
                state.freeze();
            } else {
                // The next one has it.
                asked = None;
            }
        }
    }
    let base = lock(&checkpointer.ledger).newest.root;
    if checkpointer.sealing.is_due(shared, base) {
        // A layer without a change: its checkpoint seals what left its exempted directory.
        let mut state = shared.state_mut();
        if state.frozen.is_empty() {
            state.freeze();
        }
    }
    checkpointer.asked = asked.unwrap_or(0);
    let made = checkpointer.checkpoint(shared)?;
    if made {
        shared.note_staged();
    }
    if made || asked.is_some() {
        shared.work.checkpointed(checkpointer.asked);
    }
    if made {
        fetch_for_reap(shared);
    }
    if !shared.state().frozen.is_empty() {
        shared.work.wake();
    }
    Ok(())
}

/// The ticker's life: what `write` accepted is durable a second later, times of access that moved are logged, and files without a name
/// are reclaimed.
pub(crate) fn tick(shared: &Shared) {
    shared.ticker.get_or_init(std::thread::current);
    let Some(log) = &shared.log else { return };
    let mut last = Instant::now();
    std::thread::scope(|scope| {
        while !shared.stopped.load(Ordering::Relaxed) {
            std::thread::park_timeout(TICK);
            if last.elapsed() >= TICK {
                shared.log_access_times();
                log.tick();
                last = Instant::now();
            } else if let Err(e) = log.sync() {
                shared.events.add("error", describe(&e));
            }
            // Beside this thread: where a file is allocated by writing it that takes longer than a write may stay without a sync.
            if log.is_stock_due()
                && let Err(error) =
                    std::thread::Builder::new().name("log-stock".into()).spawn_scoped(scope, || log.stock())
            {
                tracing::debug!(%error, "could not start a thread");
            }
            reap(shared);
        }
    });
}

/// Reclaims unlinked files that could not be at their last close, where that has to wait for nothing: what was written is not durable
/// meanwhile.
fn reap(shared: &Shared) {
    let files = std::mem::take(&mut *lock(&shared.reap));
    for ino in files {
        if shared.reclaim(Access::Cached, ino).is_err() {
            lock(&shared.reap).push(ino);
        }
    }
}

/// Brings what [`reap`] needs into memory.
fn fetch_for_reap(shared: &Shared) {
    let files = lock(&shared.reap).clone();
    for ino in files {
        let found = shared.look(Access::Wait, NodeId::live(ino), |view| Ok(view.inode(ino)?.is_some()));
        // A store that does not answer for one is not waited for with the others; next time another is the first.
        if !matches!(found, Ok(_) | Err(FsError::Stale)) {
            let mut files = lock(&shared.reap);
            if !files.is_empty() {
                files.rotate_left(1);
            }
            return;
        }
    }
}

impl Shared {
    /// Whether the workers are to end: the volume is stopped, or one of them panicked.
    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.worker_dead.load(Ordering::SeqCst)
    }

    /// Notes how many bytes of packs are not in the store, and how many chunks.
    pub fn note_staged(&self) {
        let stats = self.repository.stats();
        self.staged_bytes.store(stats.staged_bytes, Ordering::Relaxed);
        // A pack that has reached the store makes room, but what is known of it stays in memory until the commit is done.
        let waiting = (stats.staged_chunks - stats.sent_chunks).max(stats.staged_chunks / 3 * 2);
        self.staged_chunks.store(waiting, Ordering::Relaxed);
    }

    /// Removes a file that has neither a name nor a handle.
    pub fn reclaim(&self, access: Access, ino: u64) -> FsResult<()> {
        if self.log.is_none() {
            return Ok(());
        }
        let gone = self.state().active.node(ino).is_some_and(|n| matches!(n.stand, crate::layer::Stand::Gone));
        if gone {
            return Ok(());
        }
        let unnamed = match self
            .look(access, NodeId::live(ino), |view| Ok(view.inode(ino)?.is_some_and(|inode| inode.nlink == 0)))
        {
            Err(FsError::Stale) => return Ok(()),
            other => other?,
        };
        if !unnamed {
            return Ok(());
        }
        self.change(access, Need::Reserve, None, |change, _| {
            if !change.opens.contains_key(&ino) {
                change.remove(ino);
            }
            Ok(())
        })
    }
}
