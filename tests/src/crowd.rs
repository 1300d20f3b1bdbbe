//! One of several processes that work in the same directories at the same time, and what it must find.
//!
//! Each has names of its own there, whose state nobody else changes: they must always be as its model says, whatever the
//! others do beside them. It reads what others publish: each version is whole, and none is older than one seen before. All
//! append to one log, and all take the same tokens: a rename gives each to one of them, who counts in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path as FsPath, PathBuf};
use std::time::{Duration, Instant};

use crate::model::{Data, Kind, Model, Op, Outcome, Path, join};
use crate::observe::{Observed, differences, entry};
use crate::perform::Performer;
use crate::rng::{Rng, noise};

/// The directories that all work in.
pub const DIRECTORIES: [&str; 4] = ["d0", "d1", "d2", "d3"];
/// What all append to.
pub const LOG: &str = "log";
/// The files that processes take from each other.
pub const TOKENS: usize = 3;
/// Files that each process publishes.
const PUBLISHED: u64 = 3;
/// Nodes of its own, beyond which a process mostly removes.
const NODES: usize = 40;

/// What a process did, for the sums at the end.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Operations of all kinds.
    pub operations: u64,
    /// Lines appended to the log.
    pub appended: u64,
    /// Tokens taken and counted in.
    pub counted: u64,
    /// Published files of others that were read whole.
    pub read: u64,
}

/// One of the processes.
#[derive(Debug)]
pub struct Member {
    id: u64,
    root: PathBuf,
    rng: Rng,
    model: Model,
    performer: Performer,
    log: File,
    versions: BTreeMap<u64, u64>,
    seen: BTreeMap<String, u64>,
    tally: Tally,
}

impl Member {
    /// Number `id` below `root`, where [`prepare`] was called.
    pub fn new(root: &FsPath, id: u64, seed: u64) -> io::Result<Member> {
        let mut model = Model::new();
        for name in DIRECTORIES {
            let made = model.apply(&Op::Mkdir { path: name.into(), mode: 0o755 });
            made.map_err(io::Error::from_raw_os_error)?;
        }
        Ok(Member {
            id,
            root: root.to_owned(),
            rng: Rng::new(seed ^ (id << 32)),
            model,
            performer: Performer::new(root),
            log: OpenOptions::new().append(true).open(root.join(LOG))?,
            versions: BTreeMap::new(),
            seen: BTreeMap::new(),
            tally: Tally::default(),
        })
    }

    /// Works for this long. An error says what was not as it must be.
    pub fn work(&mut self, time: Duration) -> Result<Tally, String> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.tally.operations += 1;
            match self.rng.below(20) {
                0 => self.publish()?,
                1..=3 => self.read_published()?,
                4 => self.append()?,
                5 => self.take_a_token()?,
                6..=7 => self.list()?,
                _ => self.change()?,
            }
            if self.tally.operations.is_multiple_of(1000) {
                self.check()?;
            }
        }
        Ok(self.tally)
    }

    fn said<T>(&self, what: &str, result: io::Result<T>) -> Result<T, String> {
        result.map_err(|e| format!("process {}: {what}: {e}", self.id))
    }

    fn is_own(&self, name: &[u8]) -> bool {
        name.starts_with(format!("own{}-", self.id).as_bytes())
    }

    /// An operation on its own names, which must end as the model says.
    fn change(&mut self) -> Result<(), String> {
        let op = self.operation();
        let want = self.model.apply(&op);
        let have = self.try_to(&op);
        if have == want {
            return Ok(());
        }
        Err(format!("process {}: {} gave {have:?}, should be {want:?}", self.id, op.describe()))
    }

    fn try_to(&mut self, op: &Op) -> Result<Outcome, i32> {
        self.performer.perform(op).map_err(|e| e.raw_os_error().unwrap_or(-1))
    }

    fn operation(&mut self) -> Op {
        let (mut files, mut dirs) = (Vec::new(), Vec::new());
        for (path, id) in self.model.paths() {
            match self.model.node(id).kind {
                Kind::Dir(_) if path.contains(&b'/') => dirs.push(path),
                Kind::File(_) => files.push(path),
                _ => {}
            }
        }
        let new = self.new_path(&dirs);
        if files.len() < 8 {
            return Op::Create { path: new, mode: 0o644 };
        }
        let file = self.rng.pick(&files).clone();
        if files.len() + dirs.len() > NODES {
            return Op::Unlink { path: file };
        }
        let other = self.rng.pick(&files).clone();
        let data = Data { seed: self.rng.next(), len: 1 + self.rng.below(40_000) as u32, text: self.rng.one_in(2) };
        let offset = self.rng.below(60_000);
        match self.rng.below(16) {
            0..=1 => Op::Create { path: new, mode: 0o600 },
            2..=4 => Op::Write { path: file, offset, data },
            5 => Op::Append { path: file, data },
            6 => Op::Truncate { path: file, size: offset },
            7..=8 => Op::Rename { from: file, to: new },
            9 => Op::Rename { from: file, to: other },
            10 => Op::Exchange { a: file, b: other },
            11 => Op::Link { from: file, to: new },
            12 if dirs.len() < 3 => Op::Mkdir { path: new, mode: 0o755 },
            12 => Op::Rename { from: self.rng.pick(&dirs).clone(), to: new },
            13 => Op::Unlink { path: file },
            14 if !dirs.is_empty() => Op::Rmdir { path: self.rng.pick(&dirs).clone() },
            _ => Op::Read { path: file, offset: 0, len: 200_000 },
        }
    }

    /// A name of its own in a directory of all, sometimes in one of its own.
    fn new_path(&mut self, dirs: &[Path]) -> Path {
        let name = format!("own{}-{}", self.id, self.rng.below(60));
        let dir = if self.rng.one_in(4) && !dirs.is_empty() {
            self.rng.pick(dirs).clone()
        } else {
            self.rng.pick(&DIRECTORIES).as_bytes().to_vec()
        };
        join(&dir, name.as_bytes())
    }

    /// Whatever the others do, its own names are there exactly once, and no other that looks so.
    fn list(&mut self) -> Result<(), String> {
        let path = self.rng.pick(&DIRECTORIES).as_bytes().to_vec();
        let listing = fs::read_dir(self.root.join(OsStr::from_bytes(&path)));
        let names =
            listing.and_then(|l| l.map(|e| e.map(|e| e.file_name().into_vec())).collect::<io::Result<Vec<_>>>());
        let mut have: Vec<_> = self.said("a listing", names)?.into_iter().filter(|name| self.is_own(name)).collect();
        have.sort();
        let Ok(Outcome::Names(want)) = self.model.apply(&Op::List { path: path.clone() }) else {
            return Err("the model lists no names".into());
        };
        let want: Vec<_> = want.into_iter().collect();
        if have == want {
            return Ok(());
        }
        let text = |names: &[Vec<u8>]| names.iter().map(|n| crate::model::show(n)).collect::<Vec<_>>().join(" ");
        let dir = crate::model::show(&path);
        Err(format!("process {}: {dir} lists {}, should be {}", self.id, text(&have), text(&want)))
    }

    /// A new version of one of its published files: whole under another name first, then renamed.
    fn publish(&mut self) -> Result<(), String> {
        let n = self.rng.below(PUBLISHED);
        let version = self.versions.entry(n).or_default();
        *version += 1;
        let content = published(self.id, n, *version);
        let dir = self.root.join(DIRECTORIES[n as usize]);
        let (new, name) = (dir.join(format!(".new{}-{n}", self.id)), dir.join(format!("pub{}-{n}", self.id)));
        let done = fs::write(&new, content).and_then(|()| fs::rename(&new, &name));
        self.said("publishing", done)
    }

    fn read_published(&mut self) -> Result<(), String> {
        let (of, n) = (self.rng.below(8), self.rng.below(PUBLISHED));
        let name = format!("{}/pub{of}-{n}", DIRECTORIES[n as usize]);
        let bytes = match fs::read(self.root.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.seen.contains_key(&name) => return Ok(()),
            read => self.said(&name, read)?,
        };
        let version = bytes.first_chunk::<8>().map_or(0, |v| u64::from_le_bytes(*v));
        if bytes != published(of, n, version) {
            return Err(format!(
                "process {}: {name} is no version, {} bytes, begins as {version}",
                self.id,
                bytes.len()
            ));
        }
        let newest = self.seen.entry(name.clone()).or_default();
        if version < *newest {
            return Err(format!("process {}: {name} went back from version {newest} to {version}", self.id));
        }
        *newest = version;
        self.tally.read += 1;
        Ok(())
    }

    fn append(&mut self) -> Result<(), String> {
        let line = log_line(self.id, self.tally.appended);
        let written = self.log.write(line.as_bytes());
        self.tally.appended += 1;
        match self.said("appending", written)? {
            n if n == line.len() => Ok(()),
            n => Err(format!("process {}: {n} of {} bytes were appended", self.id, line.len())),
        }
    }

    /// Takes a token if nobody has it, counts in it, and gives it back elsewhere.
    fn take_a_token(&mut self) -> Result<(), String> {
        let token = self.rng.below(TOKENS as u64);
        let held = self.root.join(self.rng.pick(&DIRECTORIES)).join(format!("held{}", self.id));
        let free = self.root.join(DIRECTORIES[token as usize]).join(format!("token{token}"));
        match fs::rename(&free, &held) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            taken => self.said("taking a token", taken)?,
        }
        let counted = count_one(&held).and_then(|()| fs::rename(&held, &free));
        self.tally.counted += 1;
        self.said("counting in a token", counted)
    }

    /// All that is its own must be as its model says.
    pub fn check(&mut self) -> Result<(), String> {
        let mut seen = Observed::default();
        let mut todo: Vec<Path> = DIRECTORIES.iter().map(|d| d.as_bytes().to_vec()).collect();
        let root = entry(&self.root);
        seen.entries.insert(Vec::new(), self.said("the root", root)?);
        while let Some(path) = todo.pop() {
            let full = self.root.join(OsStr::from_bytes(&path));
            let found = entry(&full).map_err(|e| format!("process {}: {}: {e}", self.id, full.display()))?;
            if found.kind == "directory" {
                let listing = fs::read_dir(&full).and_then(|l| l.collect::<io::Result<Vec<_>>>());
                let names = self.said("a listing", listing)?.into_iter().map(|e| e.file_name().into_vec());
                todo.extend(names.filter(|name| self.is_own(name)).map(|name| join(&path, &name)));
            } else {
                let read = fs::read(&full);
                seen.contents.insert(path.clone(), self.said("a file of its own", read)?);
            }
            seen.entries.insert(path, found);
        }
        let mut root_mode = self.model.clone();
        let mode = seen.entries[&Vec::new()].mode;
        root_mode.apply(&Op::Chmod { path: Vec::new(), mode }).map_err(|e| format!("the model: {e}"))?;
        let differ = differences(&root_mode, &seen);
        for (n, version) in &self.versions {
            let name = self.root.join(DIRECTORIES[*n as usize]).join(format!("pub{}-{n}", self.id));
            let read = fs::read(name);
            if self.said("its published file", read)? != published(self.id, *n, *version) {
                return Err(format!("process {}: its published file {n} is not version {version}", self.id));
            }
        }
        if differ.is_empty() { Ok(()) } else { Err(format!("process {}:\n{}", self.id, differ.join("\n"))) }
    }

    /// Closes and opens what it holds open: after a crash.
    pub fn reopen(&mut self) -> Result<(), String> {
        let log = OpenOptions::new().append(true).open(self.root.join(LOG));
        self.log = self.said("the log", log)?;
        Ok(())
    }
}

/// Makes the directories, the log and the tokens.
pub fn prepare(root: &FsPath) -> io::Result<()> {
    for name in DIRECTORIES {
        fs::create_dir(root.join(name))?;
        fs::set_permissions(root.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    for (token, dir) in DIRECTORIES.iter().enumerate().take(TOKENS) {
        fs::write(root.join(dir).join(format!("token{token}")), 0u64.to_le_bytes())?;
    }
    File::create(root.join(LOG)).map(drop)
}

/// What the log and the tokens say must be what the processes say that they did.
pub fn check_sums(root: &FsPath, tallies: &[Tally]) -> Result<(), String> {
    let log = fs::read_to_string(root.join(LOG)).map_err(|e| format!("the log: {e}"))?;
    let mut next = vec![0; tallies.len()];
    for line in log.split_inclusive('\n') {
        let id: usize = line.split(' ').next().and_then(|id| id.parse().ok()).unwrap_or(usize::MAX);
        let count = next.get_mut(id).ok_or_else(|| format!("a line of nobody in the log: {line:?}"))?;
        if line != log_line(id as u64, *count) {
            return Err(format!("line {count} of process {id} in the log is {line:?}"));
        }
        *count += 1;
    }
    let appended: Vec<u64> = tallies.iter().map(|t| t.appended).collect();
    if next != appended {
        return Err(format!("the log has {next:?} lines, appended were {appended:?}"));
    }
    let mut counted = 0;
    for (token, dir) in DIRECTORIES.iter().enumerate().take(TOKENS) {
        let path = root.join(dir).join(format!("token{token}"));
        let bytes = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let bytes: [u8; 8] = bytes.try_into().map_err(|b: Vec<u8>| format!("a token of {} bytes", b.len()))?;
        counted += u64::from_le_bytes(bytes);
    }
    let want: u64 = tallies.iter().map(|t| t.counted).sum();
    if counted == want { Ok(()) } else { Err(format!("the tokens count {counted}, taken were {want}")) }
}

/// One that has the token to itself loses no count.
fn count_one(path: &FsPath) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    file.write_all_at(&(u64::from_le_bytes(bytes) + 1).to_le_bytes(), 0)
}

fn published(id: u64, n: u64, version: u64) -> Vec<u8> {
    let seed = version << 16 | id << 8 | n;
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(noise(seed, 2_000 + (seed % 61) as usize * 1_000));
    bytes
}

fn log_line(id: u64, number: u64) -> String {
    format!("{id} {number} {}\n", "x".repeat((number * 131 % 3_000) as usize))
}
