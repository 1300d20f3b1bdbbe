//! Makes the mount and gives the descriptor requests are read from.
//!
//! fuser could do this, but its way of ending a mount can't be used: a busy unmount is not tried again, and after an
//! unmount from outside it unmounts the path once more, whatever is mounted there by then.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getgid, getuid};

use crate::error::MountError;
use crate::mountpoint::FILESYSTEM_TYPE;

/// Set-user-id programs that mount and unmount for users, in the order they are tried.
pub(crate) const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
/// Tells the helper where to send the descriptor.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// How to mount.
pub(crate) struct KernelMount<'a> {
    /// Mount point.
    pub(crate) target: &'a Path,
    /// Shown as what is mounted; escaped.
    pub(crate) source: &'a str,
    /// Users other than the owner may use it.
    pub(crate) allow_other: bool,
    /// The kernel refuses changes.
    pub(crate) read_only: bool,
}

impl KernelMount<'_> {
    /// Mounts by the system call, or by the helper where that isn't allowed.
    pub(crate) fn mount(&self) -> Result<OwnedFd, MountError> {
        match self.mount_directly() {
            Err(MountError::Refused { source, .. } | MountError::Device(source))
                if matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) =>
            {
                self.mount_by_helper()
            }
            result => result,
        }
    }

    fn mount_directly(&self) -> Result<OwnedFd, MountError> {
        let device: File = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
        let data = format!(
            "fd={},rootmode={:o},user_id={},group_id={},default_permissions{}",
            device.as_raw_fd(),
            libc::S_IFDIR,
            getuid(),
            getgid(),
            if self.allow_other { ",allow_other" } else { "" }
        );
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        flags.set(MsFlags::MS_RDONLY, self.read_only);
        mount(Some(self.source), self.target, Some(FILESYSTEM_TYPE), flags, Some(data.as_str()))
            .map_err(|errno| self.refused(errno.into()))?;
        Ok(device.into())
    }

    fn mount_by_helper(&self) -> Result<OwnedFd, MountError> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| self.refused(source))?;
        // The helper inherits its end; ours stays closed on exec.
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| self.refused(errno.into()))?;
        for helper in HELPERS {
            let child = Command::new(helper)
                .args(["-o", &self.helper_options(), "--"])
                .arg(self.target)
                .env(HELPER_SOCKET, theirs.as_raw_fd().to_string())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn();
            let child = match child {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.refused(error)),
            };
            // Without our copy of its end the read below ends when the helper does.
            drop(theirs);
            let device = receive_descriptor(&ours);
            let output = child.wait_with_output().map_err(|source| self.refused(source))?;
            return device.map_err(|error| {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let message = if said.is_empty() { error.to_string() } else { said };
                MountError::Helper { path: self.target.to_owned(), message }
            });
        }
        Err(self.refused(io::Error::other("only root may mount, and fusermount3 (package fuse3) is not installed")))
    }

    fn helper_options(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let others = if self.allow_other { ",allow_other" } else { "" };
        format!("{access},nosuid,nodev,default_permissions,fsname={},subtype=axiomfs{others}", self.source)
    }

    fn refused(&self, source: io::Error) -> MountError {
        MountError::Refused { path: self.target.to_owned(), source }
    }
}

/// Waits for the descriptor the helper sends; its end without one is an error.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us out of the message; nobody else knows of it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*descriptor) });
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it sent no descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_told_the_same_as_the_kernel() {
        let mut mount =
            KernelMount { target: Path::new("/m"), source: "/s%2Csuid", allow_other: false, read_only: false };
        assert_eq!(mount.helper_options(), "rw,nosuid,nodev,default_permissions,fsname=/s%2Csuid,subtype=axiomfs");
        mount.allow_other = true;
        mount.read_only = true;
        assert!(mount.helper_options().starts_with("ro,nosuid,nodev,default_permissions,"));
        assert!(mount.helper_options().ends_with(",allow_other"));
    }
}
