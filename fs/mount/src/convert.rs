//! Plain data of the tree to and from what fuser hands over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axiomfs_live::{Attr, FileKind, NodeId, SetTime, Time};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

/// What `stat` shows as preferred size of a request. `cp` and `cat` write and read in units of it, and every unit is
/// at least one request, so larger is faster until it reaches the 1 MiB that fit into one.
const PREFERRED_IO: u32 = 1 << 20;
/// The same of a small directory. `opendir` makes its buffer of it (32 KiB at least), and the kernel one of as many pages for each request:
/// a megabyte cost more than the listing.
const SMALL_DIRECTORY: u32 = 4 << 10;
/// Unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Attributes of `node` in the form of a reply. The inode number shown to users is the packed node id, so that files
/// of different snapshots are never taken for hard links of each other.
pub(crate) fn file_attr(node: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.pack()),
        size: attr.size,
        blocks: attr.allocated.div_ceil(BLOCK),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: preferred_io(attr.kind, attr.size),
        flags: 0,
    }
}

/// The preferred size of a request: for a directory what its listing takes, which its size tells roughly.
fn preferred_io(kind: FileKind, size: u64) -> u32 {
    if kind != FileKind::Directory {
        return PREFERRED_IO;
    }
    let size = u32::try_from(size).unwrap_or(PREFERRED_IO).min(PREFERRED_IO);
    size.next_power_of_two().max(SMALL_DIRECTORY)
}

/// The kind as a reply has it.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind named by the format bits of a mode as `mknod` gets it; none of them means a regular file.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

/// A time for a reply; one that `SystemTime` can't hold becomes 1970.
pub(crate) fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(time.nanos)))).unwrap_or(UNIX_EPOCH)
}

/// A time as `setattr` gets it.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(at) => SetTime::At(time_from_fuser(at)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// Undoes a fault of fuser 0.18 (`time.rs`, `system_time_from_time`): the kernel sends seconds rounded towards the
/// past and nanoseconds to add, but for negative seconds fuser *subtracts* the nanoseconds. What it hands over for
/// (-2 s, 700 ms) is 2.7 s before 1970 and not 1.3 s. Nothing is lost by that: the distance to 1970 still has the
/// seconds and the nanoseconds as the kernel sent them, only the sign of the latter is wrong.
pub(crate) fn time_from_fuser(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { secs: 0i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

/// The present.
pub(crate) fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => Time { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
        Err(_) => Time::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser does to the pair the kernel sends, written down from its source.
    fn as_fuser_does(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    const PAIRS: [(i64, u32); 9] = [
        (0, 0),
        (0, 1),
        (1, 999_999_999),
        (-1, 0),
        (-1, 999_999_999),
        (-1, 500_000_000),
        (-2, 1),
        (-86_400 * 365 * 60, 123_456_789),
        (4_000_000_000, 5),
    ];

    #[test]
    fn directories_are_listed_by_as_much_as_they_are_large() {
        for (size, expected) in [(0, 4096), (4096, 4096), (12_288, 16_384), (1 << 19, 1 << 19), (u64::MAX, 1 << 20)] {
            assert_eq!(preferred_io(FileKind::Directory, size), expected, "{size}");
        }
        assert_eq!(preferred_io(FileKind::File, 7), 1 << 20);
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        for (secs, nanos) in PAIRS {
            assert_eq!(time_from_fuser(as_fuser_does(secs, nanos)), Time { secs, nanos }, "{secs} s + {nanos} ns");
        }
    }

    #[test]
    fn times_in_replies_are_floor_seconds_plus_nanoseconds() {
        assert_eq!(system_time(Time { secs: -2, nanos: 700_000_000 }), UNIX_EPOCH - Duration::from_millis(1300));
        assert_eq!(system_time(Time { secs: 5, nanos: 1 }), UNIX_EPOCH + Duration::new(5, 1));
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for secs in [i64::MIN, i64::MIN + 1, i64::MAX] {
            for nanos in [0, 999_999_999] {
                system_time(Time { secs, nanos });
            }
        }
    }

    #[test]
    fn blocks_are_of_512_bytes_whatever_the_preferred_size() {
        let time = Time::default();
        let attr = Attr {
            ino: 2000,
            ordinal: 3,
            kind: FileKind::File,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 10,
            allocated: 513,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        };
        let shown = file_attr(NodeId { ordinal: 3, ino: 2000 }, &attr);
        assert_eq!(shown.blocks, 2);
        assert_eq!(shown.ino.0, (3 << 40) | 2000);
    }
}
