//! The lease object: a hint that names who writes a volume, so that a second writer is refused with a useful message.
//! Nothing depends on it being right: who writes is decided by heads, which are created and never replaced.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_repository::ids::{StateId, VolumeId};
use axiomfs_repository::{Lease as Record, LeaseState, Repository};

use crate::failure::Failure;
use crate::{output, system};

/// Clocks of the kernel's boot time and of the lease differ by less.
const SLACK: Duration = Duration::from_secs(2);

/// Our claim to write a volume.
pub struct Lease {
    volume: VolumeId,
    record: Record,
}

impl Lease {
    /// Makes sure that nobody else says he writes the volume. `own` is the id of the state directory here, if it has one yet.
    ///
    /// # Errors
    /// [`Failure`] that names who does, or which state directory may have what the store lacks, unless `takeover`.
    pub fn check(
        repository: &Repository,
        volume: VolumeId,
        name: &str,
        own: Option<StateId>,
        takeover: bool,
    ) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let record = Record {
            host: system::host_name(),
            pid: std::process::id(),
            since_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            state: None,
            head: 0,
        };
        match repository.read_lease(volume) {
            Ok(Some(other)) => match hindrance(name, &other, &record, own) {
                Some(failure) if !takeover => Err(failure),
                _ => Ok(Self { volume, record }),
            },
            Ok(None) => Ok(Self { volume, record }),
            Err(error) => {
                // A hint that can't be read must not keep anybody from writing.
                tracing::warn!("the lease can't be read: {}", crate::failure::chain(&error));
                Ok(Self { volume, record })
            }
        }
    }

    /// Says that we write, and where what the store does not have yet is kept.
    pub fn put(&mut self, repository: &Repository, id: Option<StateId>, directory: &Path) {
        self.record.state = id.map(|id| LeaseState { id, directory: directory.to_string_lossy().into_owned() });
        self.store(repository, &self.record);
    }

    /// Says that nobody writes and all is in the store, unless somebody else has taken over since.
    pub fn release(&self, repository: &Repository) {
        match repository.read_lease(self.volume) {
            Ok(Some(other)) if !self.is_ours(&other) => {
                tracing::warn!(host = other.host, pid = other.pid, "the lease is another writer's by now");
            }
            _ => self.store(repository, &Record { pid: 0, ..self.record.clone() }),
        }
    }

    /// The lease that we put, or one of an earlier mount of our state directory, where the store did not take ours.
    fn is_ours(&self, other: &Record) -> bool {
        let id = |record: &Record| record.state.as_ref().map(|state| state.id);
        let same = Record { head: self.record.head, ..other.clone() } == self.record;
        same || id(other).is_some() && id(other) == id(&self.record)
    }

    fn store(&self, repository: &Repository, record: &Record) {
        if let Err(error) = repository.put_lease(self.volume, record) {
            tracing::warn!("the lease can't be written: {}", crate::failure::chain(&error));
        }
    }
}

/// Why somebody else's lease keeps us from writing; `own` is the id of the state directory here.
fn hindrance(volume: &str, lease: &Record, us: &Record, own: Option<StateId>) -> Option<Failure> {
    // Whatever the machine was called then: this state is the one that it speaks of, and its lock tells who uses it.
    let is_own = lease.state.as_ref().is_some_and(|state| Some(state.id) == own);
    if !is_own && is_held(lease, us) {
        return Some(refuse(volume, lease));
    }
    let state = lease.state.as_ref().filter(|_| !is_own && lease.pid != 0)?;
    Some(left_behind(volume, lease, &state.directory))
}

fn refuse(volume: &str, holder: &Record) -> Failure {
    let since = output::utc(holder.since_ns.div_euclid(1_000_000_000));
    let lost = match &holder.state {
        Some(state) => format!("; what it has not committed is only in {} there", state.directory),
        None => String::new(),
    };
    Failure::new(format!("Volume {volume} is written by process {} on {} since {since}", holder.pid, holder.host)).hint(
        format!("a volume has one writer: unmount it there, or give --takeover if that one is gone for good{lost}"),
    )
}

/// The last writer ended without draining, and its state directory is not the one in use here.
fn left_behind(volume: &str, lease: &Record, directory: &str) -> Failure {
    let since = output::utc(lease.since_ns.div_euclid(1_000_000_000));
    Failure::new(format!(
        "Volume {volume} was last written from this machine with the state directory {directory}, since {since}, and not all of it \
         may be in the store"
    ))
    .hint(format!(
        "mount with --state {directory} to bring the rest in; if that directory is lost, what was written after the newest head is lost \
         with it, and --takeover goes on from that head"
    ))
}

/// On this machine the process itself tells; of another one nothing is known but what it said.
fn is_held(lease: &Record, us: &Record) -> bool {
    if lease.pid == 0 || (lease.pid == us.pid && lease.host == us.host) {
        return false;
    }
    lease.host != us.host || started(lease.pid).is_some_and(|at| is_older(at, lease.since_ns))
}

/// Whether a process that started at `at` can have made a lease at `since_ns`; a later one only has its number.
fn is_older(at: SystemTime, since_ns: i64) -> bool {
    let since = UNIX_EPOCH + Duration::from_nanos(u64::try_from(since_ns).unwrap_or(0));
    at <= since + SLACK
}

/// When a process of this machine started; `None` if it does not run.
fn started(pid: u32) -> Option<SystemTime> {
    /// Ticks per second in `/proc`, the same on all architectures (`USER_HZ`).
    const TICKS: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let ticks: u64 = fields.get(19)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(boot) + Duration::from_millis(ticks * 1000 / TICKS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(host: &str, pid: u32, since_ns: i64) -> Record {
        Record { host: host.into(), pid, since_ns, state: None, head: 0 }
    }

    fn now_ns() -> i64 {
        i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
    }

    #[test]
    fn a_process_that_runs_here_holds_its_lease() {
        let us = lease("here", 1, 0);
        let own = std::process::id();
        assert!(is_held(&lease("here", own, now_ns()), &us));
        assert!(!is_held(&lease("here", own, 1), &us), "made before this process began: another had its number");
        assert!(!is_held(&lease("here", u32::MAX - 1, now_ns()), &us), "no such process");
    }

    #[test]
    fn another_machine_holds_its_lease_until_it_lets_go() {
        let us = lease("here", 1, 0);
        assert!(is_held(&lease("there", 7, 1), &us));
        assert!(!is_held(&lease("there", 0, 1), &us));
        let message = refuse("main", &lease("there", 7, 0)).to_string();
        assert!(message.contains("process 7 on there since 1970-01-01 00:00:00Z") && message.contains("--takeover"));
    }

    #[test]
    fn a_lease_of_the_same_state_directory_is_ours_to_release() {
        let of = |pid, id: Option<u8>| Record {
            state: id.map(|id| LeaseState { id: StateId([id; 16]), directory: "/var/vault".to_owned() }),
            ..lease("here", pid, i64::from(pid))
        };
        let ours = Lease { volume: VolumeId([0; 16]), record: of(7, Some(1)) };
        assert!(
            ours.is_ours(&of(7, Some(1))) && ours.is_ours(&of(6, Some(1))),
            "a full store kept the lease of the mount before"
        );
        assert!(!ours.is_ours(&of(6, Some(2))) && !ours.is_ours(&of(6, None)));
    }

    #[test]
    fn state_that_was_left_behind_is_named() {
        let (us, id) = (lease("here", 1, 0), StateId([7; 16]));
        let state = LeaseState { id, directory: "/var/vault".to_owned() };
        let dead = |host: &str, pid| Record { state: Some(state.clone()), ..lease(host, pid, 1) };
        let said = |lease: &Record, own| hindrance("main", lease, &us, own).map(|failure| failure.to_string());
        for own in [None, Some(StateId([8; 16]))] {
            let message = said(&dead("here", u32::MAX - 1), own).expect("refused");
            assert!(message.contains("--state /var/vault") && message.contains("--takeover"), "{message}");
            assert!(said(&dead("there", 7), own).is_some_and(|text| text.contains("only in /var/vault there")));
            assert_eq!(said(&dead("here", 0), own), None, "released");
            assert_eq!(said(&lease("here", u32::MAX - 1, 1), own), None, "a lease of an earlier version");
        }
        for host in ["here", "there"] {
            assert_eq!(said(&dead(host, u32::MAX - 1), Some(id)), None, "our own state, whatever the host was called");
        }
    }
}
