//! The threads behind a volume: one makes checkpoints and commits, one keeps the log's last second durable.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::change::Need;
use crate::checkpoint::{CheckpointError, Checkpointer};
use crate::layer::AUDITS_ALONE;
use crate::state::State;
use crate::types::{Access, Committed, FsError, FsResult, NodeId, Progress};
use crate::volume::{Shared, Volume, lock};

/// How often the worker looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// Pause after a failed checkpoint or commit; doubled up to the maximum while it fails.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Under writers that never pause a commit that failed is tried again after so many intervals, or so many times the longest pause.
const AFTER_FAILURE: u32 = 4;
/// How often somebody who waits for a commit reports progress.
const REPORT: Duration = Duration::from_millis(100);

/// Log segments that mounts which changed nothing may leave beside the one in use.
const IDLE_SEGMENTS: u64 = 1;

/// What is asked of the worker, and how far it is.
#[derive(Debug, Default)]
struct Orders {
    /// Something is frozen.
    wake: bool,
    /// Freeze now and make a checkpoint.
    checkpoint: bool,
    /// Number of the newest commit asked for.
    commit_asked: u64,
    /// Number of the newest commit done.
    commit_done: u64,
    newest: Option<Committed>,
    /// The newest failure, with the commit that was asked for then.
    failed: Option<(u64, FsError)>,
}

/// Orders to the worker.
#[derive(Debug, Default)]
pub(crate) struct Work {
    orders: Mutex<Orders>,
    changed: Condvar,
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

    /// Somebody waits for a commit that was not tried in vain yet.
    pub fn commit_waits(&self) -> bool {
        let orders = lock(&self.orders);
        let failed = orders.failed.as_ref().map_or(0, |(asked, _)| *asked);
        orders.commit_asked != orders.commit_done && orders.commit_asked > failed
    }

    /// Room is needed.
    pub fn checkpoint_soon(&self) {
        let mut orders = lock(&self.orders);
        if !orders.checkpoint {
            orders.checkpoint = true;
            self.changed.notify_all();
        }
    }

    fn wait<'a>(&self, orders: MutexGuard<'a, Orders>, time: Duration) -> MutexGuard<'a, Orders> {
        self.changed.wait_timeout(orders, time).unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    /// Ends the wait of everybody.
    pub fn stop(&self) {
        self.changed.notify_all();
    }
}

/// The worker's life. If it panics nothing more is accepted: what came in would never reach the store.
pub(crate) fn serve(shared: &Arc<Shared>, checkpointer: Checkpointer) {
    let life = std::panic::AssertUnwindSafe(|| work(shared, checkpointer));
    if std::panic::catch_unwind(life).is_err() {
        let text = "The checkpoint thread panicked; nothing more is accepted, what was acknowledged is in the log: mount again";
        shared.events.add("error", text);
        shared.state_mut().refused = Some(FsError::Io(text.into()));
        shared.worker_dead.store(true, Ordering::SeqCst);
        shared.work.stop();
    }
}

fn work(shared: &Arc<Shared>, mut checkpointer: Checkpointer) {
    let mut retry = RETRY_MIN;
    let mut pace = Pace { last_commit: Instant::now(), changed_since: None, failed: None };
    lock(&shared.work.orders).newest = checkpointer.newest();
    loop {
        let (checkpoint, asked) = next_orders(shared);
        if shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        let commit = asked.is_some();
        freeze_if_due(shared, checkpoint, commit);
        match run(shared, &mut checkpointer, commit, &mut pace) {
            Ok(()) => {
                retry = RETRY_MIN;
                shared.over_quota.store(false, Ordering::Relaxed);
                report(shared, asked, Ok(checkpointer.newest()));
            }
            Err(e) => {
                let error = describe(&e);
                shared.over_quota.store(is_quota(&e), Ordering::Relaxed);
                shared.events.add("error", error.clone());
                let fenced = matches!(e, CheckpointError::Fenced { .. });
                report(shared, asked, Err(if fenced { FsError::Fenced } else { FsError::Io(error) }));
                // Between tries somebody may stop the volume; nobody else is kept waiting by this pause.
                let until = Instant::now() + retry;
                while Instant::now() < until && !shared.stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(TICK.min(retry));
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
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

/// Waits for an order or for the clock.
fn next_orders(shared: &Shared) -> (bool, Option<u64>) {
    let orders = lock(&shared.work.orders);
    let idle = !orders.wake && !orders.checkpoint && orders.commit_asked == orders.commit_done;
    let mut orders = if idle { shared.work.wait(orders, TICK) } else { orders };
    orders.wake = false;
    let checkpoint = std::mem::take(&mut orders.checkpoint);
    let asked = (orders.commit_asked != orders.commit_done).then_some(orders.commit_asked);
    (checkpoint, asked)
}

fn freeze_if_due(shared: &Shared, checkpoint: bool, commit: bool) {
    let now = checkpoint || commit;
    let mut state = shared.state_mut();
    // Audit records alone are checkpointed where the log needs the room, and where there are many.
    if state.active.is_empty() || !checkpoint && state.active.is_quiet() {
        return;
    }
    let many = state.active.audits().len() >= AUDITS_ALONE;
    let age = state.active.since.map_or(Duration::ZERO, |since| since.elapsed());
    let needed = (now || many) && state.frozen.is_empty();
    if needed || now && age > TICK || age >= shared.options.checkpoint_interval {
        state.freeze();
    }
}

/// Whether the active layer keeps segments of several mounts in the log. Where each of them left records of itself alone, a checkpoint
/// frees them.
fn many_segments(state: &State) -> bool {
    state.active.first_segment.is_some_and(|first| state.last_segment >= first + IDLE_SEGMENTS)
}

/// When the worker commits.
struct Pace {
    last_commit: Instant,
    /// Since when there is a checkpoint that no commit has.
    changed_since: Option<Instant>,
    /// When the last commit failed, if it did.
    failed: Option<Instant>,
}

impl Pace {
    /// Whether a commit can't wait any longer for writers to pause. One that failed is not tried again as soon: checkpoints stand still
    /// meanwhile, and writers soon wait for the log.
    fn is_overdue(&self, shared: &Shared) -> bool {
        let interval = shared.options.commit_interval;
        let spared = self.failed.is_some_and(|at| at.elapsed() < AFTER_FAILURE * interval.max(RETRY_MAX));
        !spared && self.changed_since.is_some_and(|since| since.elapsed() >= interval)
    }
}

fn run(shared: &Shared, checkpointer: &mut Checkpointer, commit: bool, pace: &mut Pace) -> Result<(), CheckpointError> {
    if commit {
        // Everything up to the order must be in it. Audit records go with what else there is: alone they are no reason for a head.
        let mut state = shared.state_mut();
        let something = !state.frozen.is_empty() || checkpointer.changed() || many_segments(&state);
        if !state.active.is_quiet() || something && !state.active.is_empty() {
            state.freeze();
        }
    }
    let base = checkpointer.manifest.root;
    if checkpointer.sealing.is_due(shared, base) {
        // A layer without a change: its checkpoint seals what left its exempted directory.
        let mut state = shared.state_mut();
        if state.frozen.is_empty() {
            state.freeze();
        }
    }
    // Under writers that never pause there is always a next layer: each checkpoint must tell what it has staged, and who asks for a
    // commit, or has waited for one for long, doesn't wait for those that come after.
    let staged = loop {
        let done = checkpointer.checkpoint(shared)?;
        let staged = shared.note_staged();
        if checkpointer.changed() {
            pace.changed_since.get_or_insert_with(Instant::now);
        }
        if !done || pace.is_overdue(shared) || shared.work.commit_waits() {
            break staged;
        }
    };
    let options = &shared.options;
    let full = staged >= options.commit_bytes.min(options.staging_max);
    // Who asked meanwhile wants more in it than there is; the next turn serves them.
    let due = (full || pace.last_commit.elapsed() >= options.commit_interval) && !shared.work.commit_waits();
    if commit || due && checkpointer.changed() {
        // Until it is done: an error ends this here.
        pace.failed = Some(Instant::now());
        checkpointer.commit(shared)?;
        shared.note_staged();
        shared.made_room();
        *pace = Pace { last_commit: Instant::now(), changed_since: None, failed: None };
    }
    if !shared.state().frozen.is_empty() {
        shared.work.wake();
    }
    Ok(())
}

fn report(shared: &Shared, asked: Option<u64>, result: Result<Option<Committed>, FsError>) {
    let mut orders = lock(&shared.work.orders);
    match (asked, result) {
        (Some(asked), Ok(newest)) => {
            orders.commit_done = asked;
            orders.newest = newest;
            orders.failed = None;
        }
        (None, Ok(newest)) => orders.newest = newest,
        (Some(asked), Err(e)) => orders.failed = Some((asked, e)),
        (None, Err(_)) => {}
    }
    shared.work.changed.notify_all();
}

/// The ticker's life: what `write` accepted is durable a second later, and files without a name are reclaimed.
pub(crate) fn tick(shared: &Shared) {
    shared.ticker.get_or_init(std::thread::current);
    let mut last = Instant::now();
    while !shared.stopped.load(Ordering::Relaxed) {
        std::thread::park_timeout(TICK);
        let Some(log) = &shared.log else { return };
        if last.elapsed() >= TICK {
            log.tick();
            last = Instant::now();
        } else if let Err(e) = log.sync() {
            shared.events.add("error", describe(&e));
        }
        log.stock();
        let reap = std::mem::take(&mut *lock(&shared.reap));
        for ino in reap {
            if shared.reclaim(Access::Wait, ino).is_err() {
                lock(&shared.reap).push(ino);
            }
        }
    }
}

impl Shared {
    /// Notes how many bytes of packs wait for a commit.
    fn note_staged(&self) -> u64 {
        let staged = self.repository.stats().staged_bytes;
        self.staged_bytes.store(staged, Ordering::Relaxed);
        staged
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

impl Volume {
    /// Everything that was written before is in the store under a committed head when this returns.
    ///
    /// # Errors
    /// `TimedOut` after `deadline`, or what kept the commit from being done.
    pub fn sync(&self, deadline: Duration, progress: &dyn Fn(Progress)) -> FsResult<Committed> {
        let shared = &self.shared;
        if shared.log.is_none() {
            let head = *lock(&shared.head);
            let commit = head.commit.map_or([0; 16], |c| c.0);
            return Ok(Committed { sequence: head.sequence, commit });
        }
        let started = Instant::now();
        let total = shared.written.load(Ordering::Relaxed);
        let from = shared.committed_bytes.load(Ordering::Relaxed);
        let mut orders = lock(&shared.work.orders);
        orders.commit_asked += 1;
        let ticket = orders.commit_asked;
        orders.failed = None;
        shared.work.changed.notify_all();
        loop {
            if orders.commit_done >= ticket
                && let Some(newest) = orders.newest
            {
                return Ok(newest);
            }
            if let Some((failed, e)) = &orders.failed
                && *failed >= ticket
            {
                return Err(e.clone());
            }
            if shared.stopped.load(Ordering::Relaxed) {
                return Err(FsError::Stale);
            }
            if shared.worker_dead.load(Ordering::Relaxed) {
                return Err(FsError::Io("The checkpoint thread panicked; what was acknowledged is in the log".into()));
            }
            if started.elapsed() > deadline {
                return Err(FsError::TimedOut(
                    "The store did not take everything in time; it goes on in the background".into(),
                ));
            }
            orders = shared.work.wait(orders, REPORT);
            let done = shared.ingested.load(Ordering::Relaxed);
            progress(Progress {
                bytes_total: total.saturating_sub(from),
                bytes_done: done.saturating_sub(from).min(total),
            });
        }
    }

    /// A local checkpoint of everything up to now.
    ///
    /// # Errors
    /// `TimedOut`, or the volume is shut down.
    pub fn checkpoint_now(&self) -> FsResult<()> {
        let shared = &self.shared;
        let started = Instant::now();
        {
            let mut state = shared.state_mut();
            if !state.active.is_empty() {
                state.freeze();
            }
        }
        while !shared.state().frozen.is_empty() {
            if shared.stopped.load(Ordering::Relaxed) {
                return Err(FsError::Stale);
            }
            if started.elapsed() > shared.options.timeout {
                return Err(FsError::TimedOut("The checkpoint is not done yet; it goes on in the background".into()));
            }
            shared.work.checkpoint_soon();
            let orders = lock(&shared.work.orders);
            drop(shared.work.wait(orders, REPORT));
        }
        Ok(())
    }

    /// Drains everything into the store and stops. All calls after it give `Stale`.
    ///
    /// # Errors
    /// What kept the drain from being done; the volume is stopped all the same, and its state directory has everything.
    pub fn shutdown(&self, progress: &dyn Fn(Progress)) -> FsResult<Committed> {
        let drained = self.sync(Duration::from_secs(24 * 3600), progress);
        self.stop();
        drained
    }

    /// Stops the threads without draining. What isn't in the store stays in the state directory, for the next mount.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.work.stop();
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("A thread of the volume panicked");
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.stop();
    }
}
