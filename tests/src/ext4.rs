//! An ext4 filesystem in a file, to compare with: what the machine's own temporary directory is, nobody knows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repo::{LIMIT, text};
use crate::run::{must, run};

/// A mounted one; unmounted when dropped.
#[derive(Debug)]
pub struct Ext4 {
    /// The mount point.
    pub at: PathBuf,
}

impl Ext4 {
    /// Makes one of `bytes` in the sparse file `image` and mounts it at the new directory `at`.
    ///
    /// # Panics
    /// When it can't.
    pub fn new(image: &Path, at: &Path, bytes: u64) -> Ext4 {
        fs::File::create(image).and_then(|f| f.set_len(bytes)).expect("an image");
        must("mkfs.ext4", &["-q", "-F", text(image)], LIMIT);
        fs::create_dir(at).expect("a mount point");
        must("mount", &["-o", "loop", text(image), text(at)], LIMIT);
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("chmod");
        Ext4 { at: at.to_owned() }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let done = run(Command::new("umount").arg(&self.at), LIMIT);
        if !done.status.success() {
            eprintln!("{}: {}", self.at.display(), done.stderr);
        }
    }
}
