//! Stands between the log and its files: refuses operations, and keeps what a power cut would leave.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(in crate::log) type SharedProbe = Arc<Probe>;

/// An operation about to be done.
pub(in crate::log) enum Op<'a> {
    Write { file: &'a File, bytes: &'a [u8], offset: u64 },
    Sync,
    SyncDir,
    Allocate,
    Rename,
    Remove,
}

/// What to do to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::log) enum Verdict {
    Pass,
    /// Fails with this errno. The first write that fails leaves half of its bytes.
    Fail(i32),
}

type Judge = dyn Fn(u64, &Op<'_>) -> Verdict + Send + Sync;

/// Names and inodes of a directory.
type Names = BTreeMap<String, u64>;

pub(in crate::log) struct Probe {
    judge: Box<Judge>,
    count: AtomicU64,
    dying: AtomicU64,
    disk: Mutex<Shadow>,
}

#[derive(Default)]
struct Shadow {
    files: BTreeMap<u64, (File, Vec<u8>)>,
    /// States of the directory since the last one known durable, which is the first.
    names: Vec<Names>,
}

impl Probe {
    pub fn new(judge: impl Fn(u64, &Op<'_>) -> Verdict + Send + Sync + 'static) -> SharedProbe {
        Arc::new(Self {
            judge: Box::new(judge),
            count: AtomicU64::new(0),
            dying: AtomicU64::new(0),
            disk: Mutex::default(),
        })
    }

    /// Operations so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub fn before(&self, op: Op<'_>) -> io::Result<()> {
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        match (self.judge)(count, &op) {
            Verdict::Pass => Ok(()),
            Verdict::Fail(errno) => {
                if let Op::Write { file, bytes, offset } = op
                    && self.dying.fetch_add(1, Ordering::SeqCst) == 0
                {
                    file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
                }
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    /// Takes what lies in `dir` for durable, as it is after a replay.
    pub fn adopt(&self, dir: &Path) {
        for entry in fs::read_dir(dir).unwrap() {
            self.opened(&File::options().read(true).write(true).open(entry.unwrap().path()).unwrap());
        }
        self.after_dir_change(dir, true);
    }

    /// Takes nothing in the files for durable.
    pub fn forget_contents(&self) {
        self.disk.lock().unwrap().files.values_mut().for_each(|(_, durable)| durable.fill(0));
    }

    pub fn opened(&self, file: &File) {
        let mut disk = self.disk.lock().unwrap();
        let inode = file.metadata().unwrap().ino();
        let seen = self.contents(file);
        disk.files.entry(inode).or_insert_with(|| (file.try_clone().unwrap(), seen));
    }

    pub fn contents(&self, file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// `seen` is what the file held when the fdatasync began.
    pub fn synced(&self, file: &File, seen: Vec<u8>) {
        let inode = file.metadata().unwrap().ino();
        if let Some(entry) = self.disk.lock().unwrap().files.get_mut(&inode) {
            entry.1 = seen;
        }
    }

    pub fn after_dir_change(&self, dir: &Path, durable: bool) {
        let names = names(dir);
        let mut disk = self.disk.lock().unwrap();
        if durable {
            disk.names.clear();
        }
        disk.names.push(names);
    }

    /// Writes to `target` what a power cut could leave: the directory at some moment since it was last synced, and of every file each sector as
    /// it was last synced or as it is now. `random` draws below its argument.
    pub fn cut_power(&self, target: &Path, random: &mut dyn FnMut(u64) -> u64) {
        let disk = self.disk.lock().unwrap();
        fs::create_dir_all(target).unwrap();
        let Some(names) = disk.names.get(random(disk.names.len().max(1) as u64) as usize) else { return };
        for (name, inode) in names {
            let Some((file, old)) = disk.files.get(inode) else { continue };
            let mut bytes = old.clone();
            let new = self.contents(file);
            bytes.resize(new.len(), 0);
            // Some cuts keep nearly all, some nearly nothing.
            let kept = random(9);
            for (old, new) in bytes.chunks_mut(512).zip(new.chunks(512)) {
                if random(8) < kept {
                    old.copy_from_slice(new);
                }
            }
            fs::write(target.join(name), bytes).unwrap();
        }
    }
}

fn names(dir: &Path) -> Names {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino())).collect()
}
