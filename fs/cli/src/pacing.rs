//! Watches queues and store, and tells the host once a second what holds frames up.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use axiomfs_host::{Counted, Host, Pressure};
use axiomfs_repository::Repository;

/// Looks per decision, and the time between them.
const LOOKS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(100);
/// Of so many looks most must show the same for it to count.
const MOST: u32 = 7;
/// Raw bytes that wait for the encoders from which on they count as busy: half of their queue.
const WAITING: u64 = 8 << 20;
/// Decisions over which staged packs are compared.
const BACK: usize = 3;

/// Watches until the last other owner of `host` is gone.
pub fn start(host: &Arc<Host>, repository: &Arc<Repository>, counted: &Arc<Counted>) {
    let watched = Watched {
        host: Arc::downgrade(host),
        repository: Arc::downgrade(repository),
        counted: Arc::downgrade(counted),
    };
    thread::spawn(move || {
        let mut staged: Vec<u64> = Vec::new();
        while let Some(seen) = watched.look() {
            staged.push(seen.staged);
            if staged.len() > BACK + 1 {
                staged.remove(0);
            }
            let grows = seen.staged >= staged[0];
            let Some(host) = watched.host.upgrade() else { return };
            host.pace(decide(&seen, grows));
        }
    });
}

struct Watched {
    host: Weak<Host>,
    repository: Weak<Repository>,
    counted: Weak<Counted>,
}

/// What one second showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Looks at which a pack or segment was on its way to the store.
    sending: u32,
    /// Looks at which the encoders had more than they could do at once.
    encoding: u32,
    /// Bytes of packs on this machine at the end.
    staged: u64,
}

impl Watched {
    fn look(&self) -> Option<Seen> {
        let mut seen = Seen { sending: 0, encoding: 0, staged: 0 };
        for _ in 0..LOOKS {
            thread::sleep(BETWEEN);
            let (repository, counted) = (self.repository.upgrade()?, self.counted.upgrade()?);
            let stats = repository.stats();
            seen.sending += u32::from(counted.putting() > 0);
            seen.encoding += u32::from(stats.pending_bytes >= WAITING);
            seen.staged = stats.staged_bytes;
        }
        Some(seen)
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
    fn the_slower_side_is_named() {
        let seen = |sending, encoding| Seen { sending, encoding, staged: 0 };
        assert_eq!(decide(&seen(0, 0), true), Pressure::None);
        assert_eq!(decide(&seen(6, 6), true), Pressure::None, "now and then is not enough");
        assert_eq!(decide(&seen(10, 0), true), Pressure::Store);
        assert_eq!(decide(&seen(10, 0), false), Pressure::Store, "the encoders have time to spare");
        assert_eq!(decide(&seen(10, 10), true), Pressure::Store);
        assert_eq!(decide(&seen(10, 10), false), Pressure::Encoders, "the store keeps up");
        assert_eq!(decide(&seen(0, 10), true), Pressure::Encoders);
    }
}
