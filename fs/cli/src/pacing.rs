//! Watches queues and store: tells the host once a second what holds frames up, and moves the number of uploads in flight.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_config::Uploads;
use axiomfs_host::{Counted, Host, Pressure};
use axiomfs_live::Volume;
use axiomfs_repository::Repository;

/// Looks per decision, and the time between them.
const LOOKS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(100);
/// Of so many looks most must show the same for it to count.
const MOST: u32 = 7;
/// Raw bytes that wait for the encoders from which on they count as busy: half of their queue.
const WAITING: u64 = 8 << 20;
/// How long nothing is said again of work that gives way to reads.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// Decisions in a row that find no pressure before a level goes back: a commit that ends is no sign of a faster store.
const CALM: u32 = 2;
/// Decisions over which staged packs are compared.
const BACK: usize = 3;

/// Fewest uploads at the same time, moved by whoever changes the settings, and the most that this store is given.
pub struct UploadBounds {
    least: AtomicUsize,
    most: AtomicUsize,
}

impl UploadBounds {
    /// Those of the settings.
    pub fn new(uploads: Uploads) -> Self {
        let bounds = Self { least: AtomicUsize::new(1), most: AtomicUsize::new(1) };
        bounds.set(uploads);
        bounds
    }

    /// Takes other settings over.
    pub fn set(&self, uploads: Uploads) {
        self.least.store(uploads.min as usize, Ordering::Relaxed);
        self.most.store(uploads.max as usize, Ordering::Relaxed);
    }

    fn get(&self) -> (usize, usize) {
        (self.least.load(Ordering::Relaxed), self.most.load(Ordering::Relaxed))
    }
}

/// Watches until the last other owner of `host` is gone.
pub fn start(
    host: &Arc<Host>,
    repository: &Arc<Repository>,
    counted: &Arc<Counted>,
    volume: &Arc<Volume>,
    bounds: &Arc<UploadBounds>,
) {
    repository.set_uploads(bounds.get().0);
    let (bounds, volume) = (Arc::clone(bounds), Arc::downgrade(volume));
    let watched = Watched {
        host: Arc::downgrade(host),
        repository: Arc::downgrade(repository),
        counted: Arc::downgrade(counted),
    };
    thread::spawn(move || {
        let mut staged: Vec<u64> = Vec::new();
        let (mut told, mut calm) = (None, 0);
        while let Some(seen) = watched.look() {
            staged.push(seen.staged);
            if staged.len() > BACK + 1 {
                staged.remove(0);
            }
            let grows = seen.staged >= staged[0];
            let Some(host) = watched.host.upgrade() else { return };
            let pressure = decide(&seen, grows);
            calm = if pressure == Pressure::None { calm + 1 } else { 0 };
            if calm == 0 || calm >= CALM {
                host.pace(pressure);
            }
            let (Some(repository), Some(volume)) = (watched.repository.upgrade(), volume.upgrade()) else { return };
            turn_uploads(&repository, &volume, &seen, bounds.get());
            if seen.yields > 0 && told.is_none_or(|at: Instant| at.elapsed() >= TELL_AGAIN) {
                told = Some(Instant::now());
                let text = format!("encoders and uploads gave way to reads {} times within a second", seen.yields);
                volume.note("adapt", text);
            }
        }
    });
}

struct Watched {
    host: Weak<Host>,
    repository: Weak<Repository>,
    counted: Weak<Counted>,
}

/// What one second showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    /// Looks at which a pack or segment was on its way to the store.
    sending: u32,
    /// Looks at which the encoders had more than they could do at once.
    encoding: u32,
    /// Bytes of packs on this machine at the end.
    staged: u64,
    /// Looks at which as many packs as may were on their way.
    full: u32,
    /// Uploads that failed in a way that may pass.
    failed: u64,
    /// How often background work gave way to reads.
    yields: u64,
}

impl Watched {
    fn look(&self) -> Option<Seen> {
        let mut seen = Seen::default();
        let failed = self.counted.upgrade()?.failed_puts();
        let yields = self.repository.upgrade()?.stats().yields;
        for _ in 0..LOOKS {
            thread::sleep(BETWEEN);
            let (repository, counted) = (self.repository.upgrade()?, self.counted.upgrade()?);
            let stats = repository.stats();
            seen.sending += u32::from(counted.putting() > 0);
            seen.encoding += u32::from(stats.pending_bytes >= WAITING);
            seen.staged = stats.staged_bytes;
            seen.full += u32::from(counted.putting() >= repository.uploads() as u64);
            seen.failed = counted.failed_puts() - failed;
            seen.yields = stats.yields - yields;
        }
        Some(seen)
    }
}

/// Moves how many uploads may run, and says so.
fn turn_uploads(repository: &Repository, volume: &Volume, seen: &Seen, bounds: (usize, usize)) {
    let now = repository.uploads();
    let (wanted, why) = uploads(now, seen, bounds);
    repository.set_uploads(wanted);
    // The store's own bound may be lower.
    let then = repository.uploads();
    if then != now {
        volume.note("adapt", format!("uploads in flight go from {now} to {then}: {why}"));
    }
}

/// One more while all are busy, half as many when one failed.
fn uploads(now: usize, seen: &Seen, (least, most): (usize, usize)) -> (usize, &'static str) {
    if seen.failed > 0 {
        return ((now / 2).max(least), "one failed");
    }
    let wanted = if seen.full >= MOST { now + 1 } else { now };
    (wanted.clamp(least, most), if seen.full >= MOST { "all of them are busy" } else { "the settings say so" })
}

/// A store that is busy while packs pile up is the slower one; encoders that are busy while it is not, or keeps up, are.
fn decide(seen: &Seen, piling_up: bool) -> Pressure {
    let (sending, encoding) = (seen.sending >= MOST, seen.encoding >= MOST);
    match (sending, encoding) {
        (true, true) if piling_up => Pressure::Store,
        (_, true) => Pressure::Encoders,
        (true, false) => Pressure::Store,
        (false, false) => Pressure::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_rise_by_one_and_fall_by_half() {
        let seen = |full, failed| Seen { full, failed, ..Seen::default() };
        let mut now = 2;
        for wanted in [3, 4, 5, 6] {
            now = uploads(now, &seen(10, 0), (2, 6)).0;
            assert_eq!(now, wanted);
        }
        assert_eq!(uploads(6, &seen(10, 0), (2, 6)).0, 6, "up to the bound");
        assert_eq!(uploads(6, &seen(3, 0), (2, 6)).0, 6, "those that are not needed harm nobody");
        assert_eq!(uploads(6, &seen(10, 1), (2, 6)).0, 3);
        assert_eq!(uploads(3, &seen(10, 5), (2, 6)).0, 2, "down to the bound");
        assert_eq!(uploads(6, &seen(0, 0), (1, 4)).0, 4, "other settings count at once");
    }

    #[test]
    fn the_slower_side_is_named() {
        let seen = |sending, encoding| Seen { sending, encoding, ..Seen::default() };
        assert_eq!(decide(&seen(0, 0), true), Pressure::None);
        assert_eq!(decide(&seen(6, 6), true), Pressure::None, "now and then is not enough");
        assert_eq!(decide(&seen(10, 0), true), Pressure::Store);
        assert_eq!(decide(&seen(10, 0), false), Pressure::Store, "the encoders have time to spare");
        assert_eq!(decide(&seen(10, 10), true), Pressure::Store);
        assert_eq!(decide(&seen(10, 10), false), Pressure::Encoders, "the store keeps up");
        assert_eq!(decide(&seen(0, 10), true), Pressure::Encoders);
    }
}
