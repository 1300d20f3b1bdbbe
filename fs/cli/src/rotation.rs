//! Sealing keys of a mount: by command, and by itself when they are old or have sealed much.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axiomfs_config::Rotate;
use axiomfs_host::ControlError;
use axiomfs_live::{AuditLine, Deed, Time, Volume, Who};
use axiomfs_repository::{KeyChange, KeyEpoch, Repository, RepositoryError};
use serde_json::{Value, json};

use crate::control::Panel;
use crate::{audit, failure, output};

/// How often it is looked whether a key is due.
const LOOK: Duration = Duration::from_secs(1);
/// Pause after a rotation that the store did not take.
const RETRY: Duration = Duration::from_secs(60);

/// Rotates by the settings until the last other owner of `panel` is gone.
pub fn start(panel: &Arc<Panel>) {
    let mut watched = Watched::new(panel.repository());
    let panel = Arc::downgrade(panel);
    thread::spawn(move || {
        loop {
            thread::sleep(LOOK);
            let Some(panel) = panel.upgrade() else { return };
            panel.rotate_if_due(&mut watched);
            panel.record_put_out();
            panel.carry_key_changes(&mut watched);
        }
    });
}

/// What `key status` answers.
pub fn status(repository: &Repository) -> Value {
    let epoch = |epoch: &KeyEpoch| {
        json!({
            "number": epoch.number,
            "created": output::utc(epoch.created_ns.div_euclid(1_000_000_000)),
            "compromised": epoch.compromised,
        })
    };
    json!({
        "ok": true,
        "seal": "aes-256-gcm",
        "keyring_generation": repository.keyring_generation(),
        "epoch": repository.sealing_epoch().number,
        "epochs": repository.epochs().iter().map(epoch).collect::<Vec<_>>(),
    })
}

/// `key rotate [compromised]`.
///
/// # Errors
/// The refusal.
pub fn by_command(repository: &Repository, compromised: bool, confirmed: bool) -> Result<Value, ControlError> {
    if compromised && !confirmed {
        return Err(ControlError {
            code: "CONFIRM",
            errno_name: "EPERM",
            msg: "From then on all data that comes again is stored anew: the store grows".to_owned(),
            hint: "Add confirm=TOKEN with the token from status".to_owned(),
        });
    }
    let epoch = repository.rotate(compromised).map_err(|error| ControlError {
        code: "KEY",
        errno_name: if matches!(error, RepositoryError::KeySlot { .. }) { "EBUSY" } else { "EIO" },
        msg: failure::chain(&error),
        hint: "The key in use stays in use".to_owned(),
    })?;
    Ok(json!({
        "ok": true,
        "epoch": epoch,
        "keyring_generation": repository.keyring_generation(),
        "compromised": compromised,
    }))
}

/// What is known of the key in use.
pub struct Watched {
    epoch: u32,
    /// Sealed bytes of this mount before that key.
    before: u64,
    not_before: Option<Instant>,
    /// Number of the last change of the keyring that the audit log has; none as long as nobody looked.
    carried: Option<u32>,
    /// When to look again after that failed.
    carry_after: Option<Instant>,
}

impl Watched {
    /// Of the key that seals now.
    pub fn new(repository: &Repository) -> Self {
        Self {
            epoch: repository.sealing_epoch().number,
            before: sealed(repository),
            not_before: None,
            carried: None,
            carry_after: None,
        }
    }

    /// Takes into the audit log what the keyring tells of passphrases and keys that somebody changed beside mounts, with
    /// the user, process, time and result of then. What can't be recorded now is recorded later: the keyring keeps it.
    pub fn carry(&mut self, repository: &Repository, volume: &Volume) {
        let changes = repository.key_changes();
        let Some(newest) = changes.last() else { return };
        let waits = self.carry_after.is_some_and(|time| Instant::now() < time);
        if self.carried.is_some_and(|carried| carried >= newest.number) || waits {
            return;
        }
        let status = volume.status();
        if status.read_only || status.refused.is_some() {
            return;
        }
        let carried = match self.carried {
            Some(carried) => Ok(carried),
            None => volume.audit_log().map(|lines| last_carried(&lines, &changes)),
        };
        let taken = carried.and_then(|carried| {
            self.carried = Some(carried);
            for change in changes.into_iter().filter(|change| change.number > carried) {
                let number = change.number;
                volume.audit(&carried_deed(change))?;
                self.carried = Some(number);
            }
            Ok(())
        });
        if let Err(error) = taken {
            tracing::warn!(%error, "could not take changes of keys into the audit log yet");
            self.carry_after = Some(Instant::now() + RETRY);
        }
    }

    /// Takes the next key into use if that is due. What is to be recorded: that it was, could not be, or that another key is in use.
    pub fn look(&mut self, repository: &Repository, rotate: &Rotate, now: SystemTime) -> Option<Deed> {
        let epoch = repository.sealing_epoch();
        if epoch.number != self.epoch {
            (self.epoch, self.before) = (epoch.number, sealed(repository));
            return Some(Deed::done(audit::us(), "key", format!("epoch {} is in use", epoch.number)));
        }
        let why = due(&epoch, sealed(repository).saturating_sub(self.before), rotate, now)?;
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return None;
        }
        let result = repository.rotate(false);
        let epoch = repository.sealing_epoch().number;
        let subject = format!("epoch {epoch} is in use, by policies.rotate ({why})");
        (self.epoch, self.before) = (epoch, sealed(repository));
        self.not_before = result.is_err().then(|| Instant::now() + RETRY);
        match result {
            Ok(_) => Some(Deed::done(audit::us(), "key", subject)),
            Err(error) => Some(Deed { result: failure::chain(&error), ..Deed::done(audit::us(), "key", subject) }),
        }
    }
}

/// Action of the records that come from the keyring; their subjects begin with the change's number.
const CARRIED: &str = "key change";

fn carried_deed(change: KeyChange) -> Deed {
    let who = Who { uid: change.uid, pid: change.pid };
    let nanos = u32::try_from(change.time_ns.rem_euclid(1_000_000_000)).unwrap_or(0);
    let time = Time { secs: change.time_ns.div_euclid(1_000_000_000), nanos };
    let subject = format!("{}: {}", change.number, change.what);
    Deed { time: Some(time), ..Deed::ended(who, CARRIED, subject, change.result) }
}

/// Number of the last change that the log has, or had before its oldest records went; 0 if none.
fn last_carried(lines: &[AuditLine], changes: &[KeyChange]) -> u32 {
    let number = |line: &AuditLine| line.record.subject.split_once(':').and_then(|(number, _)| number.parse().ok());
    let carried = lines.iter().filter(|line| line.record.action == CARRIED).filter_map(number).max();
    // What was done before the oldest record that is left was recorded before it.
    let oldest = lines.first().filter(|line| line.number > 1).map(|line| time_ns(line.record.time));
    let gone = changes.iter().filter(|change| oldest.is_some_and(|oldest| change.time_ns < oldest));
    carried.or_else(|| gone.map(|change| change.number).max()).unwrap_or(0)
}

fn time_ns(time: Time) -> i64 {
    time.secs.saturating_mul(1_000_000_000).saturating_add(time.nanos.into())
}

fn sealed(repository: &Repository) -> u64 {
    repository.stats().frame_bytes_stored
}

/// Why a key is due, if it is. One that has sealed nothing in this mount is not: a mount that writes nothing writes no keyring.
fn due(epoch: &KeyEpoch, sealed: u64, rotate: &Rotate, now: SystemTime) -> Option<&'static str> {
    let created = UNIX_EPOCH + Duration::from_nanos(u64::try_from(epoch.created_ns).unwrap_or(0));
    let age = now.duration_since(created).unwrap_or_default();
    match sealed {
        0 => None,
        _ if sealed >= rotate.bytes => Some("bytes"),
        _ if age >= rotate.age => Some("age"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use axiomfs_repository::AuditRecord;

    use super::*;

    #[test]
    fn a_key_is_due_by_bytes_or_age_and_never_where_nothing_is_written() {
        let epoch = KeyEpoch { number: 3, created_ns: 1_000_000_000_000, compromised: false };
        let rotate = Rotate { age: Duration::from_secs(100), bytes: 1000 };
        let at = |secs| UNIX_EPOCH + Duration::from_secs(secs);
        for (sealed, secs, want) in [
            (0, 9_999, None),
            (1, 1_099, None),
            (1, 1_100, Some("age")),
            (999, 1_000, None),
            (1_000, 1_000, Some("bytes")),
            // A clock that was set back makes no key old.
            (1, 10, None),
        ] {
            assert_eq!(due(&epoch, sealed, &rotate, at(secs)), want, "{sealed} bytes at {secs}");
        }
    }

    #[test]
    fn changes_of_keys_are_taken_up_once_also_when_their_records_are_gone() {
        let change = |number: u32| KeyChange {
            number,
            time_ns: i64::from(number) * 10_000_000_000,
            uid: 0,
            pid: 1,
            what: "passphrase added".into(),
            result: "ok".into(),
        };
        let changes: Vec<KeyChange> = (1..=3).map(change).collect();
        let line = |number: u64, action: &str, secs: i64, subject: &str| {
            let time = Time { secs, nanos: 0 };
            let (action, subject, result) = (action.into(), subject.into(), "ok".into());
            let record = AuditRecord { previous: [0; 32], time, uid: 0, pid: 1, action, subject, result };
            AuditLine { number, hash: [0; 32], record }
        };
        let mount = |number, secs| line(number, "mount", secs, "/mnt");
        assert_eq!(last_carried(&[mount(1, 25)], &changes), 0, "a whole log without them");
        assert_eq!(last_carried(&[mount(1, 5), line(2, CARRIED, 20, "2: passphrase added")], &changes), 2);
        assert_eq!(last_carried(&[mount(900, 25), mount(901, 50)], &changes), 2, "its oldest records are gone");
        assert_eq!(last_carried(&[], &changes), 0);
    }
}
