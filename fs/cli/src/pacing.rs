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
/// Seconds over which the rate of a number of uploads is taken, after one in which it settles.
const MEASURED: u32 = 2;
/// Of what one more upload would bring at best, so much it must bring.
const PAYS: f64 = 0.25;
/// For so many busy seconds one more is not tried again after it brought nothing.
const HOLD: u32 = 60;

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
        let mut climb = Climb::default();
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
            turn_uploads(&repository, &volume, &mut climb, &seen, bounds.get());
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
    /// Bytes sent, where the store tells.
    sent: Option<u64>,
    /// How often background work gave way to reads.
    yields: u64,
}

impl Watched {
    fn look(&self) -> Option<Seen> {
        if let Some(staged) = self.idle()? {
            thread::sleep(LOOKS * BETWEEN);
            return Some(Seen { staged, ..Seen::default() });
        }
        let mut seen = Seen::default();
        let failed = self.counted.upgrade()?.failed_puts();
        let yields = self.repository.upgrade()?.stats().yields;
        let sent = self.repository.upgrade()?.sent().bytes;
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
            seen.sent = repository.sent().bytes.zip(sent).map(|(now, then)| now.saturating_sub(then));
        }
        Some(seen)
    }

    /// Bytes staged, where nothing is encoded or sent at this moment: there is nothing to be seen then by looking often.
    fn idle(&self) -> Option<Option<u64>> {
        let (repository, counted) = (self.repository.upgrade()?, self.counted.upgrade()?);
        let stats = repository.stats();
        Some((stats.pending_bytes == 0 && counted.putting() == 0).then_some(stats.staged_bytes))
    }
}

/// Moves how many uploads may run, and says so.
fn turn_uploads(repository: &Repository, volume: &Volume, climb: &mut Climb, seen: &Seen, bounds: (usize, usize)) {
    let now = repository.uploads();
    let (wanted, why) = climb.uploads(now, seen, bounds);
    repository.set_uploads(wanted);
    // The store's own bound may be lower.
    let then = repository.uploads();
    if then != wanted {
        climb.before = None;
    }
    if then != now {
        climb.moved();
        volume.note("adapt", format!("uploads in flight go from {now} to {then}: {why}"));
    }
}

/// What is known of how much faster more uploads are. Many that share a line which one fills all end late, and writers who wait for room
/// wait for the first of them.
#[derive(Debug, Default)]
struct Climb {
    /// Busy seconds with this number of uploads.
    seconds: u32,
    /// Bytes sent in those that count.
    bytes: u64,
    /// Bytes per second with one upload fewer, since one more is tried.
    before: Option<f64>,
    /// Busy seconds until one more is tried again.
    hold: u32,
}

impl Climb {
    /// The number of uploads has changed.
    fn moved(&mut self) {
        (self.seconds, self.bytes) = (0, 0);
    }

    /// One more while all are busy, as long as the last one paid where the store tells; half as many when one failed.
    fn uploads(&mut self, now: usize, seen: &Seen, (least, most): (usize, usize)) -> (usize, &'static str) {
        if seen.failed > 0 {
            self.before = None;
            return ((now / 2).max(least), "one failed");
        }
        if seen.full < MOST || now < least || now > most {
            self.moved();
            self.before = None;
            return (now.clamp(least, most), "the settings say so");
        }
        let Some(sent) = seen.sent else { return ((now + 1).clamp(least, most), "all of them are busy") };
        self.seconds += 1;
        self.hold = self.hold.saturating_sub(1);
        if self.seconds <= 1 {
            return (now, "");
        }
        self.bytes += sent;
        if self.seconds <= MEASURED {
            return (now, "");
        }
        let rate = self.bytes as f64 / f64::from(self.seconds - 1);
        let paid = self.before.is_none_or(|before| rate >= before * (1.0 + PAYS / now.saturating_sub(1).max(1) as f64));
        if !paid {
            (self.before, self.hold) = (None, HOLD);
            return ((now - 1).max(least), "one more brought nothing");
        }
        if self.hold > 0 || now >= most {
            (self.before, self.seconds, self.bytes) = (None, 1, 0);
            return (now, "");
        }
        self.before = Some(rate);
        (now + 1, "all of them are busy")
    }
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
        let uploads = |now, seen: &Seen, bounds| Climb::default().uploads(now, seen, bounds).0;
        let mut now = 2;
        for wanted in [3, 4, 5, 6] {
            now = uploads(now, &seen(10, 0), (2, 6));
            assert_eq!(now, wanted);
        }
        assert_eq!(uploads(6, &seen(10, 0), (2, 6)), 6, "up to the bound");
        assert_eq!(uploads(6, &seen(3, 0), (2, 6)), 6, "those that are not needed harm nobody");
        assert_eq!(uploads(6, &seen(10, 1), (2, 6)), 3);
        assert_eq!(uploads(3, &seen(10, 5), (2, 6)), 2, "down to the bound");
        assert_eq!(uploads(6, &seen(0, 0), (1, 4)), 4, "other settings count at once");
    }

    /// The numbers of uploads, second by second, where `rate` says how many bytes pass with each.
    fn climbs(seconds: usize, bounds: (usize, usize), rate: impl Fn(usize) -> u64) -> Vec<usize> {
        let (mut climb, mut now) = (Climb::default(), bounds.0);
        let mut numbers = Vec::new();
        for _ in 0..seconds {
            let seen = Seen { full: LOOKS, sent: Some(rate(now)), ..Seen::default() };
            let (then, _) = climb.uploads(now, &seen, bounds);
            if then != now {
                climb.moved();
            }
            now = then;
            numbers.push(now);
        }
        numbers
    }

    #[test]
    fn uploads_rise_as_long_as_one_more_pays() {
        let wide = climbs(100, (2, 32), |n| 50_000_000 * n as u64);
        assert_eq!(wide.iter().max(), Some(&32), "each brings as much as the one before");
        assert!(wide.is_sorted(), "{wide:?}");
        let narrow = climbs(300, (2, 32), |_| 2_000_000);
        assert_eq!(narrow.iter().max(), Some(&3), "two fill the line");
        let tries = narrow.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((2..=6).contains(&tries), "it may become wider later: {tries} tries in 300 s");
        assert!(narrow.iter().filter(|n| **n == 2).count() > 270, "{narrow:?}");
        let five = climbs(300, (1, 32), |n| 10_000_000 * n.min(5) as u64);
        assert_eq!(five.iter().max(), Some(&6));
        assert!(five[100..].iter().filter(|n| **n == 5).count() > 180, "{five:?}");
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
