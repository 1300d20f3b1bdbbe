//! The lease object: a hint that names who writes a volume, so that a second writer is refused with a useful message.
//! Nothing depends on it being right: who writes is decided by heads, which are created and never replaced.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_repository::ids::VolumeId;
use axiomfs_repository::{Lease as Record, Repository};

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
    /// Makes sure that nobody else says he writes the volume.
    ///
    /// # Errors
    /// [`Failure`] that names who does, unless `takeover`.
    pub fn check(repository: &Repository, volume: VolumeId, name: &str, takeover: bool) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let record = Record {
            host: system::host_name(),
            pid: std::process::id(),
            since_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        };
        match repository.read_lease(volume) {
            Ok(Some(other)) if !takeover && is_held(&other, &record) => Err(refuse(name, &other)),
            Ok(_) => Ok(Self { volume, record }),
            Err(error) => {
                // A hint that can't be read must not keep anybody from writing.
                tracing::warn!("the lease can't be read: {}", crate::failure::chain(&error));
                Ok(Self { volume, record })
            }
        }
    }

    /// Says that we write.
    pub fn put(&self, repository: &Repository) {
        self.store(repository, &self.record);
    }

    /// Says that nobody writes.
    pub fn release(&self, repository: &Repository) {
        self.store(repository, &Record { pid: 0, ..self.record.clone() });
    }

    fn store(&self, repository: &Repository, record: &Record) {
        if let Err(error) = repository.put_lease(self.volume, record) {
            tracing::warn!("the lease can't be written: {}", crate::failure::chain(&error));
        }
    }
}

fn refuse(volume: &str, holder: &Record) -> Failure {
    let since = output::utc(holder.since_ns.div_euclid(1_000_000_000));
    Failure::new(format!("Volume {volume} is written by process {} on {} since {since}", holder.pid, holder.host))
        .hint("a volume has one writer: unmount it there, or give --takeover if that one is gone for good")
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
        Record { host: host.into(), pid, since_ns }
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
}
