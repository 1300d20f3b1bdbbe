//! `axiomfs snapshot create|list|rename|delete`, on a mount or straight on a store.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::{SnapshotVerb, TargetArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::passphrase::{self, Ask, Environment};
use crate::session::{self, Logging, Prepared, Purpose};
use crate::{output, places, recovery, replies};

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the mount or the store refuses.
pub fn run(verb: &SnapshotVerb, environment: Environment, json: bool) -> Result<(), Failure> {
    let (SnapshotVerb::Create { target, .. }
    | SnapshotVerb::List { target }
    | SnapshotVerb::Rename { target, .. }
    | SnapshotVerb::Delete { target, .. }) = verb;
    check_names(verb)?;
    match place(target)? {
        Place::Mount(client) => on_mount(verb, &client, json),
        Place::Store => on_store(verb, target, environment, json),
    }
}

enum Place {
    Mount(Client),
    Store,
}

/// A target with `.axiomfs` in it is a mount; one whose daemon is gone is said to be stale.
fn place(target: &TargetArgs) -> Result<Place, Failure> {
    if target.target.contains("://") {
        return Ok(Place::Store);
    }
    let path = Path::new(&target.target);
    match fs::metadata(path) {
        _ if axiomfs_mount::is_dead(path) => Err(places::stale(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new(format!("{} does not exist", path.display()))
                .hint("give the mount point of an axiomfs, or the directory of a repository"))
        }
        _ if places::is_axiomfs(path) => Client::connect(path).map(Place::Mount),
        _ => Ok(Place::Store),
    }
}

/// Refuses what can't be a directory's name, before anything is opened.
fn check_names(verb: &SnapshotVerb) -> Result<(), Failure> {
    let names: &[&String] = match verb {
        SnapshotVerb::List { .. } => &[],
        SnapshotVerb::Create { name, .. } | SnapshotVerb::Delete { name, .. } => &[name],
        SnapshotVerb::Rename { from, to, .. } => &[from, to],
    };
    for name in names {
        if name.is_empty() || name.len() > 255 || *name == "." || *name == ".." || name.contains(['/', '\0']) {
            return Err(Failure::usage(format!("A snapshot can't be called {name:?}"))
                .hint("names have 1 to 255 bytes and no slash"));
        }
    }
    Ok(())
}

fn on_mount(verb: &SnapshotVerb, client: &Client, json: bool) -> Result<(), Failure> {
    let path = |name: &str| -> PathBuf { client.mountpoint().join("snapshots").join(OsStr::new(name)) };
    match verb {
        SnapshotVerb::List { .. } => {
            let snapshots = match client.is_read_only()? {
                true => client.snapshots()?,
                false => client.control("snapshot list")?["snapshots"].clone(),
            };
            list(snapshots, json)
        }
        SnapshotVerb::Create { name, .. } => {
            fs::create_dir(path(name)).map_err(|error| explain("take", name, &error))?;
            done(json, "create", name, &Value::Null)
        }
        SnapshotVerb::Rename { from, to, .. } => {
            // rename(2) may replace a directory; a snapshot must never vanish that way.
            if fs::symlink_metadata(path(to)).is_ok() {
                return Err(taken(to));
            }
            fs::rename(path(from), path(to)).map_err(|error| explain("rename", from, &error))?;
            done(json, "rename", to, &Value::Null)
        }
        SnapshotVerb::Delete { name, .. } => {
            fs::remove_dir(path(name)).map_err(|error| explain("forget", name, &error))?;
            done(json, "delete", name, &Value::Null)
        }
    }
}

fn on_store(verb: &SnapshotVerb, target: &TargetArgs, environment: Environment, json: bool) -> Result<(), Failure> {
    let (store, args) = (&target.target, &target.repository);
    if matches!(verb, SnapshotVerb::List { .. }) {
        let passphrase = passphrase::obtain(&args.passphrase, environment, Ask::Once)?;
        let snapshots = session::committed_snapshots(store, args, passphrase, json)?;
        return list(replies::snapshots(&snapshots), json);
    }
    let prepared = Prepared::new(store, args, &Purpose::Change)?;
    let passphrase = passphrase::obtain(&args.passphrase, environment, Ask::Once)?;
    let session = prepared.open(passphrase, Logging::Nowhere, json)?;
    let set_aside = session.set_aside();
    let work = match verb {
        SnapshotVerb::List { .. } => Ok(()),
        SnapshotVerb::Create { name, .. } => session.snapshot_create(name),
        SnapshotVerb::Rename { from, to, .. } => session.snapshot_rename(from, to),
        SnapshotVerb::Delete { name, .. } => session.snapshot_delete(name),
    };
    let end = session.close(json);
    // The work's own failure says more than that of the end.
    if let Err(failure) = work.and(end.map(drop)) {
        // Opening the volume has set it aside, whatever became of the work.
        if let Some(note) = recovery::note(&set_aside).filter(|_| !json) {
            output::complain(&format!("axiomfs: {note}"));
        }
        return Err(failure.answer(json!({ "set_aside": set_aside })));
    }
    match verb {
        SnapshotVerb::List { .. } => Ok(()),
        SnapshotVerb::Create { name, .. } => done(json, "create", name, &set_aside),
        SnapshotVerb::Rename { to, .. } => done(json, "rename", to, &set_aside),
        SnapshotVerb::Delete { name, .. } => done(json, "delete", name, &set_aside),
    }
}

fn list(snapshots: Value, json: bool) -> Result<(), Failure> {
    let lines: Vec<String> = snapshots.as_array().map(|list| list.iter().map(line).collect()).unwrap_or_default();
    output::show(json, &json!({ "ok": true, "snapshots": snapshots }), &lines.join("\n"))
}

fn line(snapshot: &Value) -> String {
    let created = snapshot["created"].as_i64().map_or_else(|| "-".to_owned(), output::utc);
    let pending = if snapshot["committed"] == false { "  (not yet in the store)" } else { "" };
    format!("{created}  {}{pending}", snapshot["name"].as_str().unwrap_or("-"))
}

/// `set_aside` is null where a mount did it: its status tells.
fn done(json: bool, verb: &str, name: &str, set_aside: &Value) -> Result<(), Failure> {
    let mut text = match verb {
        "create" => format!("Took snapshot {name}"),
        "rename" => format!("Renamed to {name}"),
        _ => format!("Forgot snapshot {name}"),
    };
    let mut answer = json!({ "ok": true, "verb": verb, "name": name });
    if !set_aside.is_null() {
        answer["set_aside"] = set_aside.clone();
    }
    if let Some(note) = recovery::note(set_aside) {
        text = format!("{text}\n{note}");
    }
    output::show(json, &answer, &text)
}

/// A name that is in use.
pub fn taken(name: &str) -> Failure {
    Failure::new(format!("There is a snapshot {name} already")).hint("choose another name")
}

/// A name that is not in use.
pub fn unknown(name: &str) -> Failure {
    Failure::new(format!("There is no snapshot {name}")).hint("`axiomfs snapshot list` shows which there are")
}

fn explain(verb: &str, name: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AlreadyExists => taken(name),
        io::ErrorKind::NotFound => unknown(name),
        io::ErrorKind::ReadOnlyFilesystem => {
            Failure::new(format!("Could not {verb} snapshot {name}: the mount is read-only"))
        }
        _ => Failure::caused(format!("Could not {verb} snapshot {name}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_wrong_use() {
        let target = || TargetArgs {
            target: "/".into(),
            repository: crate::args::StoreArgs {
                state: None,
                cache: None,
                config: None,
                volume: "main".into(),
                takeover: false,
                accept_rollback: false,
                unsafe_single_writer: false,
                passphrase: Default::default(),
            },
        };
        for name in ["", ".", "..", "a/b", &"x".repeat(256)] {
            let verb = SnapshotVerb::Create { target: target(), name: name.to_string() };
            assert_eq!(check_names(&verb).unwrap_err().code(), 2, "{name:?}");
        }
        let verb = SnapshotVerb::Rename { target: target(), from: "a".into(), to: "…ä b".into() };
        assert_eq!(check_names(&verb), Ok(()));
    }

    #[test]
    fn a_listing_says_what_is_not_committed() {
        let text = line(&json!({"name": "a", "created": 0, "committed": false}));
        assert_eq!(text, "1970-01-01 00:00:00Z  a  (not yet in the store)");
        assert_eq!(line(&json!({"name": "b", "created": 0, "committed": true})), "1970-01-01 00:00:00Z  b");
    }
}
