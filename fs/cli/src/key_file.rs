//! A copy of a repository's sealed keys in a file outside of the store.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use axiomfs_api::{Body, ObjectKey, StoreErrorKind};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::stores::OpenStore;

/// What the user must know of such a file.
pub const WARNING: &str = "the file opens the repository together with the passphrase that was given, also after that \
                           passphrase was changed or taken away in the store; keep it offline, and make a new one after \
                           a rotation: it has the keys of today only";
/// Longest file that is read, in bytes.
const MAX_LEN: u64 = 4 << 20;
const KIND: &str = "axiomfs sealed keys";

/// Writes `objects` to a new file that only its owner can read.
///
/// # Errors
/// [`Failure`] if there is such a file already or it can't be written; then there is none.
pub fn write(file: &Path, objects: &[(String, Vec<u8>)]) -> Result<(), Failure> {
    let name = file.display();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(format!("{name} is there already")).hint("nothing was written; give the name of a new file")
        }
        _ => Failure::caused(format!("Could not write {name}"), &error),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let objects: Vec<Value> =
        objects.iter().map(|(name, bytes)| json!({ "object": name, "bytes": hex(bytes) })).collect();
    let text = json!({ "kind": KIND, "version": 1, "objects": objects }).to_string() + "\n";
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.sync_all());
    written.map_err(|error| {
        // Half a copy is worse than none: it would be found out on the day it is needed.
        match std::fs::remove_file(file) {
            Ok(()) => failed(error),
            Err(_) => failed(error).hint("the file is not whole; remove it"),
        }
    })
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// [`Failure`] if it can't be read or is no such file.
pub fn read(file: &Path) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let name = file.display();
    let unreadable = |error: std::io::Error| Failure::caused(format!("Could not read {name}"), &error);
    let foreign = || Failure::new(format!("{name} is not a file that `axiomfs key export` wrote"));
    if std::fs::metadata(file).map_err(unreadable)?.len() > MAX_LEN {
        return Err(foreign());
    }
    let text = std::fs::read(file).map_err(unreadable)?;
    let value: Value = serde_json::from_slice(&text).map_err(|_| foreign())?;
    if value["kind"] != KIND {
        return Err(foreign());
    }
    if value["version"] != 1 {
        return Err(Failure::new(format!("{name} is of version {}", value["version"])).hint("install a newer axiomfs"));
    }
    let object = |entry: &Value| Some((entry["object"].as_str()?.to_owned(), unhex(entry["bytes"].as_str()?)?));
    value["objects"].as_array().and_then(|all| all.iter().map(object).collect()).ok_or_else(foreign)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Creates those of `objects` that the store has not; their names. None is replaced. `config` comes last, as in `init`.
///
/// # Errors
/// [`Failure`] if the store has other keys under these names, or can't be written.
pub fn put_back(target: &OpenStore, objects: &[(String, Vec<u8>)]) -> Result<Vec<String>, Failure> {
    let location = target.store.location();
    let mut put = Vec::new();
    let last = |(name, _): &&(String, Vec<u8>)| name == "config";
    for (name, bytes) in objects.iter().filter(|o| !last(o)).chain(objects.iter().filter(last)) {
        let known = name == "config" || name.starts_with("keys/") || name.starts_with("keyring/");
        let key = ObjectKey::new(name).ok().filter(|_| known);
        let key =
            key.ok_or_else(|| Failure::new(format!("{name} is no object of keys; nothing of it was put back")))?;
        match target.store.put_new(&key, Body::Bytes(bytes)) {
            Ok(()) => put.push(name.clone()),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                let there = target.store.get(&key, MAX_LEN);
                let there = there.map_err(|error| Failure::caused(format!("Could not read {name}"), &error))?;
                if there != *bytes {
                    return Err(Failure::new(format!("{location} has another {name}"))
                        .hint("it was not touched; if it is damaged move it away, then try again"));
                }
            }
            Err(error) => return Err(Failure::caused(format!("Could not put {name} into {location}"), &error)),
        }
    }
    Ok(put)
}
