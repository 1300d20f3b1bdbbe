//! Sealing keys of a mount: by command, and by itself when they are old or have sealed much.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axiomfs_config::Rotate;
use axiomfs_host::ControlError;
use axiomfs_live::Deed;
use axiomfs_repository::{KeyEpoch, Repository, RepositoryError};
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
}

impl Watched {
    /// Of the key that seals now.
    pub fn new(repository: &Repository) -> Self {
        Self { epoch: repository.sealing_epoch().number, before: sealed(repository), not_before: None }
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
}
