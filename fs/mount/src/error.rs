//! Why a mount was not made or did not end as it should.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Errors of mounting, serving and unmounting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MountError {
    /// There is nothing at the mount point.
    #[error("The mount point {path} does not exist")]
    Missing {
        /// Mount point.
        path: PathBuf,
    },
    /// The mount point is no directory.
    #[error("The mount point {path} is not a directory")]
    NotDirectory {
        /// Mount point.
        path: PathBuf,
    },
    /// Mounting would hide files.
    #[error("The mount point {path} is not empty")]
    NotEmpty {
        /// Mount point.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("{path} is already a mount point of {source_name} ({kind})")]
    AlreadyMounted {
        /// Mount point.
        path: PathBuf,
        /// Type of that filesystem.
        kind: String,
        /// What is mounted.
        source_name: String,
    },
    /// The mount point can't be looked at.
    #[error("Could not examine the mount point {path}")]
    Examine {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The kernel's side could not be opened.
    #[error("Could not open /dev/fuse (is the fuse module loaded?)")]
    Device(#[source] io::Error),
    /// The kernel refused the mount.
    #[error("Could not mount on {path}")]
    Refused {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The mount helper refused the mount.
    #[error("fusermount3 did not mount on {path}: {message}")]
    Helper {
        /// Mount point.
        path: PathBuf,
        /// What it wrote.
        message: String,
    },
    /// Kernel and daemon did not come to terms.
    #[error("The session with the kernel could not be set up")]
    Handshake(#[source] io::Error),
    /// A thread could not be started.
    #[error("Could not start a thread")]
    Thread(#[source] io::Error),
    /// The session ended otherwise than by an unmount.
    #[error("The session with the kernel broke off")]
    Session(#[source] io::Error),
    /// Still in use after waiting.
    #[error("{path} is still in use after {} s{}", waited.as_secs(), list(holders))]
    Busy {
        /// Mount point.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Processes that use it, as far as they may be seen.
        holders: Vec<String>,
    },
    /// The kernel refused the unmount.
    #[error("Could not unmount {path}")]
    Unmount {
        /// Mount point.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

fn list(holders: &[String]) -> String {
    if holders.is_empty() { String::new() } else { format!(", by {}", holders.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_mount_names_who_uses_it() {
        let mut busy = MountError::Busy { path: "/mnt".into(), waited: Duration::from_secs(3), holders: Vec::new() };
        assert_eq!(busy.to_string(), "/mnt is still in use after 3 s");
        if let MountError::Busy { holders, .. } = &mut busy {
            holders.push("bash (12)".into());
        }
        assert_eq!(busy.to_string(), "/mnt is still in use after 3 s, by bash (12)");
    }
}
