//! Putting local state aside that others have gone past: moved within the state directory, whole, and never deleted here.
//!
//! `STATE/set-aside/TIME/` then has log, staged packs and manifest as they were. A mark names the target while they are moved, so
//! that a move that was broken off is carried on before anything else is looked at.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::write_again;

/// Directory of what was set aside, in the state directory.
const DIRECTORY: &str = "set-aside";
/// The mark of a move that is not finished: its content is the target's name.
const MARK: &str = "setting-aside";
/// Directory of what was set aside, is in the store by now, and is being deleted.
const RECOVERED: &str = ".recovered";
/// What is moved.
const PARTS: [&str; 4] = ["log", "staging", "manifest.0", "manifest.1"];

/// Sets all of the state in `dir` aside; `stamp` is the time as the name has it. Returns where it is now.
///
/// # Errors
/// What the disk met; the next call of [`finish`] carries on.
pub(crate) fn set_aside(dir: &Path, stamp: &str) -> io::Result<PathBuf> {
    let target = free_name(&dir.join(DIRECTORY), stamp);
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut mark = File::create(dir.join(MARK))?;
    io::Write::write_all(&mut mark, name.as_encoded_bytes())?;
    mark.sync_all()?;
    sync(dir)?;
    finish(dir)?;
    Ok(target)
}

/// `stem` in `parent`, or with a number where that is taken.
fn free_name(parent: &Path, stem: &str) -> PathBuf {
    let (mut path, mut number) = (parent.join(stem), 1);
    while path.exists() {
        number += 1;
        path = parent.join(format!("{stem}-{number}"));
    }
    path
}

/// Carries on what was broken off, if anything was: setting aside, and deleting what was recovered.
///
/// # Errors
/// What the disk met while setting aside. What can't be deleted stays.
pub(crate) fn finish(dir: &Path) -> io::Result<()> {
    carry_on(dir)?;
    let recovered = dir.join(RECOVERED);
    match fs::remove_dir_all(&recovered) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %recovered.display(), "what is in the store by now could not be deleted here");
        }
        _ => {}
    }
    Ok(())
}

fn carry_on(dir: &Path) -> io::Result<()> {
    let mark = dir.join(MARK);
    // Before anything is moved: it may be in the page cache alone.
    match write_again(&mark) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        done => done?,
    }
    sync(dir)?;
    let name = fs::read_to_string(&mark)?;
    if !name.is_empty() {
        let target = dir.join(DIRECTORY).join(Path::new(&name).file_name().ok_or(io::ErrorKind::InvalidData)?);
        fs::create_dir_all(&target)?;
        for part in PARTS {
            match fs::rename(dir.join(part), target.join(part)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                // It was moved already, and a mount that came no further than this has made an empty one.
                Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                    fs::remove_dir(dir.join(part))?;
                }
                moved => moved?,
            }
        }
        for directory in [&target, &dir.join(DIRECTORY), dir] {
            sync(directory)?;
        }
        fs::create_dir_all(dir.join("staging"))?;
    }
    // An empty mark was torn by a power cut before anything was moved.
    fs::remove_file(mark)?;
    sync(dir)
}

/// What is set aside in `dir`, the oldest first.
///
/// # Errors
/// What the disk met.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    match fs::read_dir(dir.join(DIRECTORY)) {
        Ok(entries) => {
            for entry in entries {
                found.push(entry?.path());
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    found.sort();
    Ok(found)
}

/// Deletes `place`, which was set aside in the state directory `dir` and is in the store now. It is moved away first: half of it would
/// look like lost data to the next [`recover`](crate::recover). `moved` is called then.
///
/// # Errors
/// It could not be moved. Where it can't be deleted then, the next mount or recovery tries again.
pub fn remove_recovered(dir: &Path, place: &Path, moved: impl FnOnce()) -> io::Result<()> {
    let recovered = dir.join(RECOVERED);
    fs::create_dir_all(&recovered)?;
    let name = place.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    fs::rename(place, free_name(&recovered, &name))?;
    for directory in [&recovered, &dir.join(DIRECTORY), dir] {
        sync(directory)?;
    }
    moved();
    finish(dir)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for part in ["log", "staging"] {
            fs::create_dir(dir.path().join(part)).unwrap();
            fs::write(dir.path().join(part).join("inside"), part).unwrap();
        }
        fs::write(dir.path().join("manifest.1"), "m").unwrap();
        fs::write(dir.path().join("lock"), "l").unwrap();
        dir
    }

    fn check(dir: &Path, aside: &Path) {
        for (name, text) in [("log/inside", "log"), ("staging/inside", "staging"), ("manifest.1", "m")] {
            assert_eq!(fs::read_to_string(aside.join(name)).unwrap(), text);
        }
        let mut left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "set-aside", "staging"]);
        assert_eq!(fs::read_dir(dir.join("staging")).unwrap().count(), 0);
    }

    #[test]
    fn the_whole_state_moves_and_nothing_else() {
        let dir = state();
        let aside = set_aside(dir.path(), "2026-11-25T15-04-05Z").unwrap();
        check(dir.path(), &aside);
        assert_eq!(list(dir.path()).unwrap(), [aside]);
        let second = set_aside(dir.path(), "2026-11-25T15-04-05Z").unwrap();
        assert!(second.ends_with("2026-11-25T15-04-05Z-2"), "{}", second.display());
    }

    #[test]
    fn what_was_recovered_is_gone_at_once_and_deleted_in_the_end() {
        let dir = state();
        let aside = set_aside(dir.path(), "then").unwrap();
        let stopped = std::panic::catch_unwind(|| remove_recovered(dir.path(), &aside, || panic!("as by a crash")));
        assert!(stopped.is_err());
        assert!(list(dir.path()).unwrap().is_empty(), "it is set aside no more");
        assert!(dir.path().join(RECOVERED).join("then").exists());
        finish(dir.path()).unwrap();
        assert!(!dir.path().join(RECOVERED).exists());
        // What is in the way keeps nobody from mounting.
        fs::write(dir.path().join(RECOVERED), "a file").unwrap();
        finish(dir.path()).unwrap();
    }

    #[test]
    fn a_move_that_was_broken_off_is_carried_on() {
        let all = (0..=PARTS.len()).flat_map(|moved| [(moved, false), (moved, true)]);
        for (moved, opened_meanwhile) in all {
            let dir = state();
            fs::write(dir.path().join(MARK), "then").unwrap();
            let target = dir.path().join(DIRECTORY).join("then");
            fs::create_dir_all(&target).unwrap();
            for part in &PARTS[..moved] {
                drop(fs::rename(dir.path().join(part), target.join(part)));
            }
            if opened_meanwhile {
                fs::create_dir_all(dir.path().join("staging")).unwrap();
            }
            finish(dir.path()).unwrap();
            check(dir.path(), &target);
            finish(dir.path()).unwrap();
        }
    }
}
