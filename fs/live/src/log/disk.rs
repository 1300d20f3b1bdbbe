//! The directory and the files of the log. In tests every operation passes a probe, which can refuse it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags};

use super::error::{LogError, is_no_space};

#[cfg(test)]
pub(super) use super::tests::probe::{Op, SharedProbe};

/// Bytes that are written again at once.
const AGAIN: u64 = 1 << 20;

/// The directory of the log.
pub(super) struct Disk {
    dir: PathBuf,
    handle: File,
    #[cfg(test)]
    probe: Option<SharedProbe>,
}

/// One open file of the log.
pub(super) struct DiskFile {
    file: File,
    #[cfg(test)]
    probe: Option<SharedProbe>,
}

/// What lies in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Length by number.
    pub segments: BTreeMap<u64, u64>,
    /// Length by number.
    pub spares: BTreeMap<u64, u64>,
}

impl Disk {
    /// Opens the directory; `Ok(None)` if it isn't there.
    pub fn open(dir: &Path) -> Result<Option<Self>, LogError> {
        match File::open(dir) {
            Ok(handle) => Ok(Some(Self {
                dir: dir.to_owned(),
                handle,
                #[cfg(test)]
                probe: None,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { operation: "open", path: dir.to_owned(), source }),
        }
    }

    /// Opens the directory, and makes it (for its owner only) if it isn't there.
    pub fn open_or_create(dir: &Path) -> Result<Self, LogError> {
        if let Some(disk) = Self::open(dir)? {
            return Ok(disk);
        }
        let failed = |source| LogError::Io { operation: "create", path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        if let Some(parent) = dir.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        Self::open(dir)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
    }

    #[cfg(test)]
    pub fn with_probe(mut self, probe: SharedProbe) -> Self {
        self.probe = Some(probe);
        self
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn list(&self) -> Result<Listing, LogError> {
        let failed = |source| LogError::Io { operation: "list", path: self.dir.clone(), source };
        let mut listing = Listing::default();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some((kind, number)) = name.to_str().and_then(parse_name) else { continue };
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_file() {
                let files = if kind == Name::Segment { &mut listing.segments } else { &mut listing.spares };
                files.insert(number, metadata.len());
            }
        }
        Ok(listing)
    }

    /// Opens a segment of an earlier mount.
    pub fn open_segment(&self, number: u64) -> io::Result<DiskFile> {
        Ok(self.file(OpenOptions::new().read(true).write(true).open(self.path(Name::Segment, number))?))
    }

    /// Opens a spare for writing.
    pub fn open_spare(&self, number: u64) -> io::Result<DiskFile> {
        Ok(self.file(OpenOptions::new().read(true).write(true).open(self.path(Name::Spare, number))?))
    }

    /// Makes a spare whose blocks are allocated. Nothing of it is left if that fails.
    pub fn allocate_spare(&self, number: u64, len: u64) -> io::Result<DiskFile> {
        let path = self.path(Name::Spare, number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let allocated = self.allocate(&file, len);
        if let Err(error) = allocated {
            fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(self.file(file))
    }

    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        #[cfg(test)]
        self.before(Op::Allocate)?;
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(file, len),
            result => result,
        }
    }

    /// Gives a spare its name as a segment. It is durable after [`sync_dir`](Self::sync_dir).
    pub fn promote(&self, spare: u64, segment: u64) -> io::Result<()> {
        self.rename((Name::Spare, spare), (Name::Segment, segment))
    }

    /// Makes a segment a spare.
    pub fn recycle(&self, segment: u64, spare: u64) -> io::Result<()> {
        self.rename((Name::Segment, segment), (Name::Spare, spare))
    }

    pub fn remove_segment(&self, number: u64) -> io::Result<()> {
        self.remove(Name::Segment, number)
    }

    pub fn remove_spare(&self, number: u64) -> io::Result<()> {
        self.remove(Name::Spare, number)
    }

    pub fn sync_dir(&self) -> io::Result<()> {
        #[cfg(test)]
        self.before(Op::SyncDir)?;
        self.handle.sync_all()?;
        #[cfg(test)]
        self.after_dir_change(true);
        Ok(())
    }

    fn rename(&self, from: (Name, u64), to: (Name, u64)) -> io::Result<()> {
        #[cfg(test)]
        self.before(Op::Rename)?;
        fs::rename(self.path(from.0, from.1), self.path(to.0, to.1))?;
        #[cfg(test)]
        self.after_dir_change(false);
        Ok(())
    }

    fn remove(&self, name: Name, number: u64) -> io::Result<()> {
        #[cfg(test)]
        self.before(Op::Remove)?;
        fs::remove_file(self.path(name, number))?;
        #[cfg(test)]
        self.after_dir_change(false);
        Ok(())
    }

    fn file(&self, file: File) -> DiskFile {
        #[cfg(test)]
        if let Some(probe) = &self.probe {
            probe.opened(&file);
            self.after_dir_change(false);
        }
        DiskFile {
            file,
            #[cfg(test)]
            probe: self.probe.clone(),
        }
    }

    fn path(&self, name: Name, number: u64) -> PathBuf {
        match name {
            Name::Segment => self.dir.join(format!("segment-{number:016x}.log")),
            Name::Spare => self.dir.join(format!("spare-{number:016x}.log")),
        }
    }

    #[cfg(test)]
    fn before(&self, op: Op<'_>) -> io::Result<()> {
        self.probe.as_ref().map_or(Ok(()), |probe| probe.before(op))
    }

    #[cfg(test)]
    fn after_dir_change(&self, durable: bool) {
        if let Some(probe) = &self.probe {
            probe.after_dir_change(&self.dir, durable);
        }
    }
}

impl DiskFile {
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_counted(bytes, offset).map_err(|(_, error)| error)
    }

    /// Writes all of `bytes`, or says how many of them may have been written before the error.
    pub fn write_counted(&self, bytes: &[u8], offset: u64) -> Result<(), (usize, io::Error)> {
        #[cfg(test)]
        if let Some(probe) = &self.probe {
            // How much of it a fault lets through is the probe's secret.
            probe.before(Op::Write { file: &self.file, bytes, offset }).map_err(|error| (bytes.len(), error))?;
        }
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }

    /// Writes the bytes from `from` to `to` again as they are. After an fdatasync that failed the kernel takes them for written, and
    /// only what is written anew is part of the next one.
    pub fn write_again(&self, from: u64, to: u64) -> io::Result<()> {
        let mut buffer = vec![0; AGAIN.min(to.saturating_sub(from)) as usize];
        let mut at = from;
        while at < to {
            let wanted = AGAIN.min(to - at) as usize;
            let read = self.read(&mut buffer[..wanted], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.write(&buffer[..read], at)?;
            at += read as u64;
        }
        Ok(())
    }

    /// Lets the next read see what is on the disk.
    pub fn drop_cached(&self) -> io::Result<()> {
        drop_cached(&self.file)
    }

    /// fdatasync.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(probe) = &self.probe {
            probe.before(Op::Sync)?;
            let seen = probe.contents(&self.file);
            self.file.sync_data()?;
            probe.synced(&self.file, seen);
            return Ok(());
        }
        self.file.sync_data()
    }

    /// Reads up to `out.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// Lets the next read of a file see what is on the disk: what an fsync that failed left in the page cache goes, as far as the kernel obeys.
pub(crate) fn drop_cached(file: &File) -> io::Result<()> {
    file.sync_data()?;
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

impl LogError {
    /// `operation` on `segment` failed before anything depended on it.
    pub(super) fn from_write(operation: &'static str, segment: u64, disk: &Disk, source: io::Error) -> Self {
        let no_descriptor =
            [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        if no_descriptor.contains(&source.raw_os_error()) {
            Self::NoDescriptor { segment, source }
        } else if is_no_space(&source) {
            Self::NoSpace { operation, segment, source }
        } else {
            Self::Io { operation, path: disk.path(Name::Segment, segment), source }
        }
    }

    pub(super) fn from_read(segment: u64, disk: &Disk, source: io::Error) -> Self {
        Self::Io { operation: "read", path: disk.path(Name::Segment, segment), source }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Segment,
    Spare,
}

/// The number 2⁶⁴−1 is nobody's: it stands for "none" in headers.
fn parse_name(name: &str) -> Option<(Name, u64)> {
    let stem = name.strip_suffix(".log")?;
    let (kind, digits) = match stem.strip_prefix("segment-") {
        Some(digits) => (Name::Segment, digits),
        None => (Name::Spare, stem.strip_prefix("spare-")?),
    };
    let lower_hex = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let number = if lower_hex { u64::from_str_radix(digits, 16).ok()? } else { return None };
    (number != u64::MAX).then_some((kind, number))
}

/// For filesystems that can't allocate without writing.
fn write_zeros(file: &File, len: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let mut at = 0;
    while at < len {
        let step = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..step as usize], at)?;
        at += step;
    }
    Ok(())
}
