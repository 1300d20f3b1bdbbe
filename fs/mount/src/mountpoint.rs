//! The directory that is mounted on: checks before, clearing away a dead mount, unmounting.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::error::MountError;

/// Filesystem type in `/proc/mounts`.
pub(crate) const FILESYSTEM_TYPE: &str = "fuse.axiomfs";
/// Between two attempts to unmount.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How many processes a busy unmount names.
const MAX_HOLDERS: usize = 5;

/// Whether an unmount waits until nobody uses the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// Fails while somebody does.
    WhenUnused,
    /// Takes it out of the tree at once; it ends with its last user.
    Lazily,
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// Number of the mount.
    pub(crate) id: u64,
    /// Device number of the filesystem, `major:minor`.
    pub(crate) device: String,
    /// Where it is mounted.
    pub(crate) target: PathBuf,
    /// Type.
    pub(crate) kind: String,
    /// What is mounted.
    pub(crate) source: String,
}

/// Checks that `path` is an empty directory nothing is mounted on, and gives its absolute form. What a killed daemon
/// left there that had mounted `name` too is unmounted first.
pub(crate) fn prepare(path: &Path, name: &str) -> Result<PathBuf, MountError> {
    let examine = |source| MountError::Examine { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(examine)?;
    if is_dead(&absolute) {
        clear_dead_mount(&absolute, name)?;
    }
    if let Err(error) = std::fs::metadata(&absolute) {
        return match error.raw_os_error() {
            Some(libc::ENOENT) => Err(MountError::Missing { path: absolute }),
            _ => Err(examine(error)),
        };
    }
    let path = absolute.canonicalize().map_err(examine)?;
    if !path.metadata().map_err(examine)?.is_dir() {
        return Err(MountError::NotDirectory { path });
    }
    if let Some(entry) = mounted_at(&path).map_err(examine)? {
        return Err(MountError::AlreadyMounted { path, kind: entry.kind, source_name: entry.source });
    }
    if path.read_dir().map_err(examine)?.next().is_some() {
        return Err(MountError::NotEmpty { path });
    }
    Ok(path)
}

/// Whether a FUSE mount lies here whose daemon is gone. The mount point itself may still be answered by the kernel from
/// memory, so something below it is asked for.
pub fn is_dead(mountpoint: &Path) -> bool {
    let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED));
    std::fs::symlink_metadata(mountpoint.join(".axiomfs/status")).is_err_and(|error| gone(&error))
}

/// Whether what a daemon left at `mountpoint` that ended without unmounting was a mount of `name` (as in
/// [`MountOptions::name`](crate::MountOptions::name)). Such a mount is cleared away by the next [`mount`](crate::mount) of the same
/// name there; any other may have an owner who still looks for it.
///
/// # Errors
/// What reading the table of mounts met.
pub fn is_dead_mount_of(mountpoint: &Path, name: &str) -> io::Result<bool> {
    let ours = |entry: MountEntry| entry.kind == FILESYSTEM_TYPE && entry.source == source_name(OsStr::new(name));
    Ok(is_dead(mountpoint) && mounted_at(mountpoint)?.is_some_and(ours))
}

/// A place where a filesystem is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedAt {
    /// The mount point.
    pub path: PathBuf,
    /// A process that has it there, where this one has not: it is in another mount namespace, as a container has.
    pub seen_by: Option<u32>,
}

/// Number of the device mounted at `mountpoint`, by which [`where_mounted`] finds it elsewhere; none if nothing is mounted there.
///
/// # Errors
/// What reading the table of mounts met.
pub fn device_at(mountpoint: &Path) -> io::Result<Option<String>> {
    Ok(mounted_at(mountpoint)?.map(|entry| entry.device))
}

/// Where the device of that number is mounted, the first place that is found in any mount namespace this process may look into.
pub fn where_mounted(device: &str) -> Option<MountedAt> {
    let place_in = |process: &str| {
        let entries = parse_mounts(&std::fs::read(format!("/proc/{process}/mountinfo")).ok()?);
        entries
            .into_iter()
            .find(|entry| entry.device == device && entry.kind == FILESYSTEM_TYPE)
            .map(|entry| entry.target)
    };
    if let Some(path) = place_in("self") {
        return Some(MountedAt { path, seen_by: None });
    }
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let mut looked = vec![namespace("self")];
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let other = namespace(&pid.to_string());
        if other.is_none() || looked.contains(&other) {
            continue;
        }
        if let Some(path) = place_in(&pid.to_string()) {
            return Some(MountedAt { path, seen_by: Some(pid) });
        }
        looked.push(other);
    }
    None
}

/// Unmounts what a killed daemon left.
fn clear_dead_mount(path: &Path, name: &str) -> Result<(), MountError> {
    let examine = |source| MountError::Examine { path: path.to_owned(), source };
    let ours = is_dead_mount_of(path, name).map_err(examine)?;
    match mounted_at(path).map_err(examine)? {
        Some(_) if ours => {
            tracing::warn!(path = %path.display(), "Unmounting what a daemon left that ended without unmounting");
            unmount(path, Detach::Lazily, Duration::ZERO)
        }
        Some(entry) => {
            Err(MountError::AlreadyMounted { path: path.to_owned(), kind: entry.kind, source_name: entry.source })
        }
        None => Err(examine(io::Error::from_raw_os_error(libc::ENOTCONN))),
    }
}

/// Unmounts `path`, trying again for `patience` while it is in use. What isn't mounted any more counts as done.
pub(crate) fn unmount(path: &Path, detach: Detach, patience: Duration) -> Result<(), MountError> {
    let flags = match detach {
        Detach::WhenUnused => MntFlags::UMOUNT_NOFOLLOW,
        Detach::Lazily => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    let begun = Instant::now();
    loop {
        let errno = match umount2(path, flags) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EPERM) => match unmount_by_helper(path, detach) {
                Ok(()) => return Ok(()),
                Err(errno) => errno,
            },
            Err(errno) => errno,
        };
        if errno != Errno::EBUSY {
            return Err(MountError::Unmount { path: path.to_owned(), source: errno.into() });
        }
        if begun.elapsed() >= patience {
            return Err(MountError::Busy { path: path.to_owned(), waited: patience, holders: holders(path) });
        }
        std::thread::sleep(RETRY_PAUSE);
    }
}

/// Only root may call `umount`; the helper is set-user-id and unmounts what its caller has mounted.
fn unmount_by_helper(path: &Path, detach: Detach) -> Result<(), Errno> {
    for helper in crate::kernel_mount::HELPERS {
        let mut command = Command::new(helper);
        command.arg("-u").arg("-q");
        if detach == Detach::Lazily {
            command.arg("-z");
        }
        match command.arg("--").arg(path).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(_) if matches!(mounted_at(path), Ok(None)) => return Ok(()),
            Ok(_) => return Err(Errno::EBUSY),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        }
    }
    Err(Errno::EPERM)
}

/// What is mounted on `path` itself; the topmost if there are several.
pub(crate) fn mounted_at(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mounts()?.into_iter().rfind(|entry| entry.target == path))
}

/// All mounts this process sees, in the order in which they were made.
fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse_mounts(&std::fs::read("/proc/self/mountinfo")?))
}

/// Unmounts `ours` wherever it is by now, as [`unmount`] does; nothing else, and nothing if it is gone.
pub(crate) fn unmount_entry(ours: &MountEntry, detach: Detach, patience: Duration) -> Result<(), MountError> {
    let all = mounts().map_err(|source| MountError::Examine { path: ours.target.clone(), source })?;
    let Some(found) = all.iter().find(|entry| entry.id == ours.id && entry.device == ours.device) else {
        return Ok(());
    };
    let topmost = all.iter().rfind(|entry| entry.target == found.target);
    if let Some(above) = topmost.filter(|entry| entry.id != found.id) {
        let holders = vec![format!("a mount of {} above it", above.source)];
        return Err(MountError::Busy { path: found.target.clone(), waited: Duration::ZERO, holders });
    }
    unmount(&found.target, detach, patience)
}

/// Parses `/proc/self/mountinfo` (proc(5)): id, parent, device, root, target, options, optional fields up to a single
/// dash, type, source, superblock options. Lines of another form are left out.
fn parse_mounts(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_mount).collect()
}

fn parse_mount(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
    let target = PathBuf::from(unescape(fields.nth(1)?));
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next()?).to_string_lossy().into_owned();
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    Some(MountEntry { id, device, target, kind, source })
}

/// Space, tab, line end and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_shl(3) | (digit - b'0')));
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Processes with a working directory or an open file in the mount. Reads links in `/proc` only, which does not ask
/// the mounted filesystem anything.
fn holders(path: &Path) -> Vec<String> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter(|process| process.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter(|process| uses(&process.path(), path))
        .take(MAX_HOLDERS)
        .map(|process| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_else(|_| "?".into());
            format!("{} ({})", name.trim_end(), process.file_name().display())
        })
        .collect()
}

fn uses(process: &Path, path: &Path) -> bool {
    let within = |link: PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    if within(process.join("cwd")) || within(process.join("root")) {
        return true;
    }
    let Ok(open) = std::fs::read_dir(process.join("fd")) else { return false };
    open.flatten().any(|file| within(file.path()))
}

/// `name` as the source of a mount. The mount helper splits its options at commas and takes backslashes away; spaces
/// and line ends would need escapes in `/proc/mounts`. They are written as in addresses: `%2C`.
pub(crate) fn source_name(name: &OsStr) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.as_bytes() {
        match byte {
            b',' | b'\\' | b'%' | b'#' | 0..=b' ' | 0x7f.. => escaped.push_str(&format!("%{byte:02X}")),
            byte => escaped.push(char::from(*byte)),
        }
    }
    if escaped.is_empty() { "axiomfs".into() } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_understood() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            40 1 0:51 / /a\\040b\\134c rw shared:3 master:2 - fuse.axiomfs /s%2Ct rw\nnonsense\n";
        let mounts = parse_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, "98:0");
        assert_eq!(mounts[1].target, Path::new("/a b\\c"));
        assert_eq!((mounts[1].kind.as_str(), mounts[1].source.as_str()), ("fuse.axiomfs", "/s%2Ct"));
        assert_eq!(mounts[1].id, 40);
    }

    #[test]
    fn the_root_of_this_machine_is_a_mount() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }

    #[test]
    fn what_is_mounted_nowhere_is_found_nowhere() {
        assert_eq!(where_mounted("0:4294967295"), None);
        // Only mounts of ours count, whatever has the number.
        let root = device_at(Path::new("/")).unwrap().expect("the root is mounted");
        assert_eq!(where_mounted(&root), None);
    }

    #[test]
    fn a_comma_in_the_name_can_not_add_mount_options() {
        assert_eq!(source_name(OsStr::new("/srv/a,suid,dev b\\c")), "/srv/a%2Csuid%2Cdev%20b%5Cc");
        assert_eq!(source_name(OsStr::new("s3://bucket/p\n")), "s3://bucket/p%0A");
        assert_eq!(source_name(OsStr::new("")), "axiomfs");
    }

    #[test]
    fn only_an_empty_directory_is_mounted_on() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(prepare(directory.path(), "s").unwrap(), directory.path().canonicalize().unwrap());
        let missing = directory.path().join("missing");
        assert!(matches!(prepare(&missing, "s"), Err(MountError::Missing { path }) if path == missing));
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file, "s"), Err(MountError::NotDirectory { .. })));
        assert!(matches!(prepare(directory.path(), "s"), Err(MountError::NotEmpty { .. })));
        assert!(
            matches!(prepare(Path::new("/proc"), "s"), Err(MountError::AlreadyMounted { kind, .. }) if kind == "proc")
        );
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_done_already() {
        let directory = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            unmount(directory.path(), Detach::WhenUnused, Duration::ZERO).unwrap();
        }
        unmount(&directory.path().join("gone"), Detach::WhenUnused, Duration::ZERO).unwrap();
    }

    #[test]
    fn this_process_is_seen_to_hold_its_open_files() {
        let directory = tempfile::tempdir().unwrap();
        let _held = std::fs::File::create(directory.path().join("held")).unwrap();
        let me = format!("({})", std::process::id());
        assert!(holders(directory.path()).iter().any(|holder| holder.ends_with(&me)));
    }
}
