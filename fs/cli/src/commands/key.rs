//! `axiomfs key`: passphrases and sealing epochs of a repository, beside whoever has it mounted.

use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::Counts;
use axiomfs_live::Who;
use axiomfs_repository::{KdfParams, Keys, NewKeyChange, RepositoryError, key_slots};
use serde_json::{Value, json};

use crate::args::{AtStore, KeyArgs, KeyVerb, PassphraseArgs};
use crate::commands::config;
use crate::failure::Failure;
use crate::passphrase::{self, Ask, Environment, Secret};
use crate::stores::{self, OpenStore, StoreOptions};
use crate::{audit, key_file, output, progress};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if there is no repository, the passphrase is wrong, or the change is refused; nothing is changed then.
pub fn run(verb: &KeyVerb, environment: Environment, json: bool) -> Result<(), Failure> {
    let (reply, text) = match verb {
        KeyVerb::List { at } => list(&open(at)?)?,
        KeyVerb::Add { key, new } => {
            let target = open(&key.at)?;
            let keys = unlock(&target, &obtain(key, environment)?, json)?;
            let secret = new_passphrase(&new.source())?;
            let id = noted(&keys, "passphrase added", || {
                let id = add(&keys, &secret, json)?;
                Ok((format!("passphrase added, key {id}"), id))
            })?;
            let text = format!("Added key {id}: the new passphrase opens the repository too");
            (json!({ "ok": true, "id": id }), text)
        }
        KeyVerb::Passwd { key, new } => {
            let target = open(&key.at)?;
            let keys = unlock(&target, &obtain(key, environment)?, json)?;
            let secret = new_passphrase(&new.source())?;
            let begun = format!("passphrase of key {} changed", keys.opened());
            let id = noted(&keys, &begun, || {
                let id = add(&keys, &secret, json)?;
                // The new one was read back and opens the repository.
                keys.hand_over(&id).map_err(|error| failed("Could not remove the old passphrase", &error))?;
                Ok((format!("{begun}, key {id} took its place"), id))
            })?;
            let text = format!("Changed: key {id} took the place of {}", keys.opened());
            (json!({ "ok": true, "id": id, "removed": keys.opened() }), text)
        }
        KeyVerb::Remove { key, id } => {
            let target = open(&key.at)?;
            let keys = unlock(&target, &obtain(key, environment)?, json)?;
            let begun = format!("passphrase of key {id} removed");
            noted(&keys, &begun, || {
                keys.remove(id).map_err(|error| failed("Could not remove the key", &error))?;
                Ok((begun.clone(), ()))
            })?;
            let text = format!("Removed key {id}; what was stored stays sealed as it was");
            (json!({ "ok": true, "removed": id }), text)
        }
        KeyVerb::Rotate { key, compromised } => {
            let target = open(&key.at)?;
            let keys = unlock(&target, &obtain(key, environment)?, json)?;
            let Who { uid, pid } = audit::us();
            let epoch =
                keys.rotate_noted(*compromised, uid, pid).map_err(|error| failed("Could not rotate", &error))?;
            let text = format!(
                "Epoch {epoch} seals what is written from now on; mounts that write take it up within about a minute, \
                 with a commit (at once: axiomfs ctl MOUNTPOINT key rotate)"
            );
            (json!({ "ok": true, "epoch": epoch, "compromised": compromised }), text)
        }
        KeyVerb::Export { key, file } => {
            let target = open(&key.at)?;
            let keys = unlock(&target, &obtain(key, environment)?, json)?;
            let objects = keys.export().map_err(|error| failed("Could not read the keys", &error))?;
            key_file::write(file, &objects)?;
            output::complain(&format!("axiomfs: warning: {}", key_file::WARNING));
            let names: Vec<&str> = objects.iter().map(|(name, _)| name.as_str()).collect();
            let text = format!("Wrote {} to {}", names.join(", "), file.display());
            (json!({ "ok": true, "file": file.to_string_lossy(), "objects": names }), text)
        }
        KeyVerb::Import { at, file } => {
            let target = open(at)?;
            let put = key_file::put_back(&target, &key_file::read(file)?)?;
            let text = match put.len() {
                0 => "Nothing was missing".to_owned(),
                _ => format!("Put back {}", put.join(", ")),
            };
            (json!({ "ok": true, "put": put }), text)
        }
    };
    output::show(json, &reply, &text)
}

pub(crate) fn open(at: &AtStore) -> Result<OpenStore, Failure> {
    let settings = config::load_or_default(at.config.as_deref())?;
    let (counts, unsafe_single_writer) = (Counts::default(), at.unsafe_single_writer);
    stores::open(&at.store, StoreOptions { settings: &settings, unsafe_single_writer, counts: &counts })
}

fn list(target: &OpenStore) -> Result<(Value, String), Failure> {
    let slots = key_slots(&*target.store).map_err(|error| failed("Could not list the keys", &error))?;
    let since = |ns: i64| output::utc(ns.div_euclid(1_000_000_000));
    let lines: Vec<String> = slots
        .iter()
        .map(|slot| {
            let (kdf, made) = (slot.kdf, since(slot.created_ns));
            let cost = format!("{} MiB, {} passes, {} lanes", kdf.memory_kib() >> 10, kdf.passes(), kdf.lanes());
            format!("{}  made {made}, argon2id with {cost} for a guess", slot.id)
        })
        .collect();
    let keys: Vec<Value> = slots
        .iter()
        .map(|slot| {
            json!({
                "id": slot.id,
                "created": since(slot.created_ns),
                "kdf": "argon2id",
                "memory_kib": slot.kdf.memory_kib(),
                "passes": slot.kdf.passes(),
                "lanes": slot.kdf.lanes(),
            })
        })
        .collect();
    Ok((json!({ "ok": true, "keys": keys }), lines.join("\n")))
}

pub(crate) fn obtain(key: &KeyArgs, environment: Environment) -> Result<Secret, Failure> {
    passphrase::obtain(&key.passphrase, environment, Ask::Once)
}

/// From its own file or descriptor, or from the terminal; never from where the old one came.
fn new_passphrase(source: &PassphraseArgs) -> Result<Secret, Failure> {
    if source.passphrase_file.is_none() && source.passphrase_fd.is_none() {
        output::complain("The new passphrase:");
    }
    passphrase::obtain(source, Environment::none(), Ask::Twice)
}

pub(crate) fn unlock<'a>(target: &'a OpenStore, secret: &Secret, quiet: bool) -> Result<Keys<'a>, Failure> {
    let open = || Keys::unlock(&*target.store, &Aes256Gcm, secret);
    progress::watch("Deriving the key from the passphrase", quiet, open, || (0, None)).map_err(|error| match error {
        RepositoryError::WrongPassphrase { .. } => {
            Failure::new(format!("Could not open {}: wrong passphrase", target.store.location()))
                .hint("nothing was changed; try again")
        }
        error => failed(&format!("Could not open {}", target.store.location()), &error),
    })
}

fn add(keys: &Keys<'_>, secret: &Secret, quiet: bool) -> Result<String, Failure> {
    let make = || keys.add(secret, KdfParams::default());
    progress::watch("Deriving the new key", quiet, make, || (0, None))
        .map_err(|error| failed("Could not add the passphrase", &error))
}

/// Does what changes passphrases, told in the keyring before anything is done and with its result after it: so no change is
/// without its record, whatever happens to this process. `change` gives what was done in words, and its value.
fn noted<T>(keys: &Keys<'_>, begun: &str, change: impl FnOnce() -> Result<(String, T), Failure>) -> Result<T, Failure> {
    let Who { uid, pid } = audit::us();
    let note = |what: &str, result: &str| keys.note(NewKeyChange { uid, pid, what, result });
    note(begun, "begun").map_err(|error| {
        failed("Could not record the change", &error).hint("nothing was changed; what is not recorded is not done")
    })?;
    let (told, done) = match change() {
        Ok((what, value)) => (note(&what, "ok"), Ok(value)),
        Err(failure) => (note(begun, &failure.to_string()), Err(failure)),
    };
    if let Err(error) = told {
        output::complain(&format!(
            "axiomfs: warning: {}",
            failed("The record of the change says only that it begun", &error)
        ));
    }
    done
}

pub(crate) fn failed(context: &str, error: &RepositoryError) -> Failure {
    Failure::caused(context, error)
}
