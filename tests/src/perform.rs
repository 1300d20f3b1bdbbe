//! Does the operations of [`crate::model`] on a real directory, through ordinary system calls.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};

use crate::model::{Model, Op, Outcome};
use crate::observe::each_once;

/// A directory that operations are done on, and the files held open in it.
#[derive(Debug)]
pub struct Performer {
    root: PathBuf,
    held: BTreeMap<u32, File>,
}

impl Performer {
    /// Works below `root`. The process' umask becomes 0, so that modes are what operations say.
    pub fn new(root: &Path) -> Performer {
        rustix::process::umask(Mode::empty());
        Performer { root: root.to_owned(), held: BTreeMap::new() }
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(OsStr::from_bytes(path)) }
    }

    fn writable(&self, path: &[u8]) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.at(path))
    }

    /// Closes all held files.
    pub fn release_all(&mut self) {
        self.held.clear();
    }

    /// Does one operation.
    pub fn perform(&mut self, op: &Op) -> io::Result<Outcome> {
        match op {
            Op::Create { path, mode } => {
                drop(OpenOptions::new().write(true).create_new(true).mode(*mode).open(self.at(path))?);
            }
            Op::Mkdir { path, mode } => rustix::fs::mkdir(self.at(path), Mode::from_raw_mode(*mode))?,
            Op::Symlink { target, path } => std::os::unix::fs::symlink(OsStr::from_bytes(target), self.at(path))?,
            Op::Fifo { path, mode } => {
                rustix::fs::mknodat(CWD, self.at(path), FileType::Fifo, Mode::from_raw_mode(*mode), 0)?;
            }
            Op::Rmdir { path } => fs::remove_dir(self.at(path))?,
            Op::Unlink { path } => unlink(&self.at(path))?,
            Op::Rename { from, to } => fs::rename(self.at(from), self.at(to))?,
            Op::RenameNoReplace { from, to } => rename_with(&self.at(from), &self.at(to), RenameFlags::NOREPLACE)?,
            Op::Exchange { a, b } => rename_with(&self.at(a), &self.at(b), RenameFlags::EXCHANGE)?,
            Op::Link { from, to } => fs::hard_link(self.at(from), self.at(to))?,
            Op::Chmod { path, mode } => fs::set_permissions(self.at(path), fs::Permissions::from_mode(*mode))?,
            Op::Chown { path, uid, gid } => std::os::unix::fs::lchown(self.at(path), Some(*uid), Some(*gid))?,
            Op::Utimes { path, mtime } => set_mtime(&self.at(path), *mtime)?,
            Op::SetXattr { path, name, value } => {
                rustix::fs::lsetxattr(self.at(path), name.as_str(), &value.bytes(), XattrFlags::empty())?;
            }
            Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(self.at(path), name.as_str())?,
            Op::Fsync { path } => File::open(self.at(path))?.sync_all()?,
            Op::List { path } => {
                return Ok(Outcome::Names(each_once(fs::read_dir(self.at(path))?)?));
            }
            _ => return self.perform_on_contents(op),
        }
        Ok(Outcome::Done)
    }

    fn perform_on_contents(&mut self, op: &Op) -> io::Result<Outcome> {
        match op {
            Op::Write { path, offset, data } => self.writable(path)?.write_all_at(&data.bytes(), *offset)?,
            Op::Append { path, data } => {
                let file = OpenOptions::new().append(true).open(self.at(path))?;
                io::Write::write_all(&mut &file, &data.bytes())?;
            }
            Op::Truncate { path, size } => self.writable(path)?.set_len(*size)?,
            Op::Punch { path, offset, len } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.writable(path)?, flags, *offset, *len)?;
            }
            Op::Allocate { path, offset, len } => {
                rustix::fs::fallocate(self.writable(path)?, FallocateFlags::empty(), *offset, *len)?;
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                let source = File::open(self.at(from))?;
                let target = self.writable(to)?;
                copy_range(&source, *from_offset, &target, *to_offset, *len)?;
            }
            Op::Hold { slot, path } => {
                let file = OpenOptions::new().read(true).write(true).open(self.at(path))?;
                self.held.insert(*slot, file);
            }
            Op::HeldWrite { slot, offset, data } => self.held[slot].write_all_at(&data.bytes(), *offset)?,
            Op::HeldTruncate { slot, size } => self.held[slot].set_len(*size)?,
            Op::HeldRead { slot, offset, len } => {
                return Ok(Outcome::Bytes(read_at(&self.held[slot], *offset, *len as usize)?));
            }
            Op::Release { slot } => drop(self.held.remove(slot)),
            Op::Read { path, offset, len } => {
                // Opened for writing as well, so that a directory is refused at the open as everywhere else.
                let file = OpenOptions::new().read(true).write(true).open(self.at(path))?;
                return Ok(Outcome::Bytes(read_at(&file, *offset, *len as usize)?));
            }
            other => panic!("{other:?} isn't an operation on contents"),
        }
        Ok(Outcome::Done)
    }

    /// Looks up the times the model doesn't know, so that they must stay from now on.
    pub fn adopt_times(&self, model: &mut Model) -> io::Result<()> {
        for (path, id) in model.untimed() {
            let m = fs::symlink_metadata(self.at(&path))?;
            model.adopt(id, (m.mtime(), m.mtime_nsec() as u32));
        }
        Ok(())
    }
}

fn unlink(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::unlink(path)?)
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
}

/// Sets the modification time (and the access time to the same), in nanoseconds, of the node itself.
pub fn set_mtime(path: &Path, (secs, nanos): (i64, u32)) -> io::Result<()> {
    let t = Timespec { tv_sec: secs, tv_nsec: i64::from(nanos) };
    let times = Timestamps { last_access: t, last_modification: t };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_range(source: &File, mut from: u64, target: &File, mut to: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let n = rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len as usize)?;
        if n == 0 {
            break;
        }
        len -= n as u64;
    }
    Ok(())
}

/// Reads up to `len` bytes at `offset`, less only at the end of the file.
pub fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; len];
    let mut have = 0;
    while have < len {
        match file.read_at(&mut out[have..], offset + have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    out.truncate(have);
    Ok(out)
}
