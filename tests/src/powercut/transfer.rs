//! A disk from a directory, and a directory from a disk.

use super::blocks::BLOCK;
use super::disk::{Attributes, Change, Disk, Ino, Kind, ROOT};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

impl Disk {
    /// A disk that holds a copy of a directory, all of it durable.
    pub fn import(from: &Path) -> io::Result<Disk> {
        let mut disk = Disk::new();
        let mut seen = HashMap::new();
        disk.import_directory(from, ROOT, &mut seen)?;
        disk.sync_all();
        Ok(disk)
    }

    fn import_directory(&mut self, from: &Path, into: Ino, seen: &mut HashMap<(u64, u64), Ino>) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let found = fs::symlink_metadata(&path)?;
            let identity = (found.dev(), found.ino());
            if let Some(ino) = seen.get(&identity) {
                self.link(*ino, into, name.as_bytes()).map_err(error)?;
                continue;
            }
            let attributes = Attributes { perm: (found.mode() & 0o7777) as u16, uid: found.uid(), gid: found.gid() };
            let kind = if found.is_dir() {
                Kind::Directory
            } else if found.is_symlink() {
                Kind::Symlink(fs::read_link(&path)?.as_os_str().as_bytes().to_vec())
            } else if found.is_file() {
                Kind::File
            } else {
                continue;
            };
            let ino = self.make(into, name.as_bytes(), kind, attributes).map_err(error)?;
            if found.is_dir() {
                self.import_directory(&path, ino, seen)?;
            } else if found.is_file() {
                seen.insert(identity, ino);
                self.import_file(&path, ino)?;
            }
        }
        Ok(())
    }

    fn import_file(&mut self, path: &Path, ino: Ino) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        // Blocks of zeros stay holes, or a preallocated log would cost its whole length in memory.
        for (number, block) in data.chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                let change = Change::Write { offset: number as u64 * BLOCK, data: block.to_vec() };
                self.change(ino, change).map_err(error)?;
            }
        }
        self.change(ino, Change::Truncate { size: data.len() as u64 }).map_err(error)
    }

    /// Writes a directory of the disk, as programs see it, into a new directory `to`.
    pub fn export(&self, directory: Ino, to: &Path) -> io::Result<()> {
        fs::create_dir(to)?;
        self.export_entries(directory, to, &mut HashMap::new())?;
        self.set_mode(directory, to)
    }

    fn export_entries(&self, directory: Ino, to: &Path, seen: &mut HashMap<Ino, PathBuf>) -> io::Result<()> {
        for (name, ino) in self.list(directory) {
            let path = to.join(OsStr::from_bytes(&name));
            let inode = self.inode(ino).map_err(error)?;
            match &inode.kind {
                Kind::Directory => {
                    fs::create_dir(&path)?;
                    self.export_entries(ino, &path, seen)?;
                    self.set_mode(ino, &path)?;
                }
                Kind::Symlink(target) => symlink(OsStr::from_bytes(target), &path)?,
                Kind::Socket => {}
                Kind::File => match seen.get(&ino) {
                    Some(first) => fs::hard_link(first, &path)?,
                    None => {
                        self.export_file(ino, &path)?;
                        seen.insert(ino, path);
                    }
                },
            }
        }
        Ok(())
    }

    fn export_file(&self, ino: Ino, path: &Path) -> io::Result<()> {
        let content = &self.inode(ino).map_err(error)?.content;
        let file = File::create_new(path)?;
        file.set_len(content.size())?;
        for (offset, data) in content.present() {
            file.write_all_at(data, offset)?;
        }
        self.set_mode(ino, path)
    }

    fn set_mode(&self, ino: Ino, path: &Path) -> io::Result<()> {
        let perm = self.inode(ino).map_err(error)?.attributes.perm;
        fs::set_permissions(path, Permissions::from_mode(perm.into()))
    }
}

fn error(errno: fuser::Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.code())
}
