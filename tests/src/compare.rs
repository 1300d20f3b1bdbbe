//! The same on the mount and on the local filesystem: what programs saw, and the trees they left.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::Mode;

use crate::observe::{Bytes, Entry, observe};
use crate::repo::{LIMIT, TestRepo, beside_others, scratch};
use crate::run::{run, tail};

/// What was seen, one line each; the same lines must come from the local filesystem.
pub type Facts = Vec<String>;

/// Adds `what: result` to the facts, errors as their number.
pub fn note<T: std::fmt::Debug, E: Into<io::Error>>(facts: &mut Facts, what: &str, result: Result<T, E>) {
    let line = match result {
        Ok(value) => format!("{what}: {value:?}"),
        Err(e) => format!("{what}: error {:?}", e.into().raw_os_error()),
    };
    facts.push(line);
}

/// Runs `act` on the mount and on a local directory; facts and the resulting trees must agree, at once, after a crash
/// and when mounted from the store alone.
///
/// # Panics
/// When they don't.
pub fn same_as_local(name: &str, act: fn(&Path) -> Facts) {
    let _slot = beside_others();
    rustix::process::umask(Mode::empty());
    let local = scratch(name);
    let mut repo = TestRepo::new(name);
    repo.mount();
    let want = act(local.path());
    let have = act(&repo.live());
    for (want, have) in want.iter().zip(&have) {
        assert_eq!(have, want, "{name}: differs from the local filesystem (left: the mount)");
    }
    assert_eq!(have.len(), want.len(), "{name}: another number of facts");
    let want = snapshot_of(local.path());
    assert_same(&snapshot_of(&repo.live()), &want, name, "at once");
    repo.kill9();
    repo.mount();
    assert_same(&snapshot_of(&repo.live()), &want, name, "after a crash");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    assert_same(&snapshot_of(&repo.live()), &want, name, "from the store alone");
}

/// Everything about a tree that must be the same on both sides: not inode numbers, not times that nobody set.
fn snapshot_of(root: &Path) -> Vec<String> {
    let seen = observe(root, Bytes::Keep).unwrap_or_else(|e| panic!("the tree can't be read: {e}"));
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as i64;
    let line = |(path, e): (&Vec<u8>, &Entry)| {
        // Times that a test sets are years away from now; those that nobody set are not.
        let set = (now.abs_diff(e.mtime.0) > 24 * 3600).then_some(e.mtime);
        let size = if e.kind == "directory" { 0 } else { e.size };
        let root = path.is_empty();
        let mode = if root { 0 } else { e.mode };
        let content = seen.contents.get(path).map(|c| checksum(c));
        format!(
            "{}: {} {mode:o} {}:{} links {} size {size} rdev {} {set:?} {:?} {:?} {content:?}",
            path.escape_ascii(),
            e.kind,
            e.uid,
            e.gid,
            e.nlink,
            e.rdev,
            e.target,
            e.xattrs
        )
    };
    seen.entries.iter().map(line).collect()
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn assert_same(have: &[String], want: &[String], name: &str, when: &str) {
    for (have, want) in have.iter().zip(want) {
        assert_eq!(have, want, "{name}, {when}: (left: the mount)");
    }
    assert_eq!(have.len(), want.len(), "{name}, {when}: another number of nodes");
}

/// Runs the shell script on the mount and in a local directory; what it prints must agree. Other users may use both.
///
/// # Panics
/// When it doesn't.
pub fn same_output(name: &str, script: &str) {
    let _slot = beside_others();
    let mut repo = TestRepo::new(name);
    for dir in [&repo.dir, &repo.mnt] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    repo.try_mount(&["-o", "allow_other"]).unwrap_or_else(|e| panic!("{e}"));
    let local = repo.dir.join("local");
    fs::create_dir(&local).expect("made");
    let output = |dir: &Path| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
        let script = format!("exec 2>&1; umask 022; set -x\n{script}");
        run(Command::new("sh").args(["-c", &script]).env("LC_ALL", "C").current_dir(dir), LIMIT).stdout
    };
    let (want, have) = (output(&local), output(&repo.live()));
    for (want, have) in want.lines().zip(have.lines()) {
        assert_eq!(have, want, "{name}: differs from the local filesystem (left: the mount):\n{}", tail(want));
    }
    assert_eq!(have.lines().count(), want.lines().count(), "{name}: another number of lines");
    assert!(!want.contains("not found"), "{name}: a program is missing: {want}");
}
