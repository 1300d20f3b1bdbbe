//! The state of the disk: what programs see, what is durable, and the changes between the two in their order.

use super::blocks::Blocks;
use fuser::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::time::SystemTime;

/// An inode number. Never used twice on one disk.
pub type Ino = u64;

/// The root directory.
pub const ROOT: Ino = 1;

/// Where an entry stands: its directory and its name.
pub(super) type Slot = (Ino, Vec<u8>);

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A socket: it can be bound on the disk but doesn't survive a cut.
    Socket,
}

/// What `chmod` and `chown` change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The permission bits, 07777.
    pub perm: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// One change of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes were written.
    Write {
        /// Where they begin.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The length was set.
    Truncate {
        /// The new length.
        size: u64,
    },
    /// Room was allocated: the file is at least this long.
    Allocate {
        /// The least length.
        size: u64,
    },
    /// A range was zeroed or punched.
    Zero {
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
}

impl Change {
    /// Makes the change.
    pub fn apply(&self, content: &mut Blocks) {
        match self {
            Change::Write { offset, data } => content.write(*offset, data),
            Change::Truncate { size } => content.truncate(*size),
            Change::Allocate { size } => content.grow(*size),
            Change::Zero { offset, len } => content.zero(*offset, *len),
        }
    }
}

/// A file, directory or link, as programs see it and as the platter has it.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub kind: Kind,
    pub attributes: Attributes,
    pub synced_attributes: Attributes,
    pub content: Blocks,
    pub synced: Blocks,
    /// Changes of the content since the last fsync, each with its place in the order of all changes.
    pub pending: Vec<(u64, Change)>,
    /// Whether a sync failed: the content has what will never be durable.
    pub lost: bool,
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    pub opens: u32,
}

impl Inode {
    pub(super) fn new(kind: Kind, attributes: Attributes) -> Self {
        let now = SystemTime::now();
        Inode {
            kind,
            attributes,
            synced_attributes: attributes,
            content: Blocks::default(),
            synced: Blocks::default(),
            pending: Vec::new(),
            lost: false,
            atime: now,
            mtime: now,
            ctime: now,
            opens: 0,
        }
    }
}

/// One change of directory entries, made whole or not at all.
#[derive(Clone, Debug)]
pub(super) struct EntryChange {
    pub order: u64,
    /// Each entry that it sets, and to which inode (or to nothing).
    pub sets: Vec<(Slot, Option<Ino>)>,
    /// Inodes that it moves from one entry to another: it makes no sense without the change that put them there.
    pub moves: Vec<Ino>,
}

impl EntryChange {
    fn touches(&self, directory: Ino) -> bool {
        self.sets.iter().any(|((parent, _), _)| *parent == directory)
    }

    /// Whether this change can't be on the disk unless `earlier` is too: it moves what `earlier` put somewhere.
    pub(super) fn needs(&self, earlier: &EntryChange) -> bool {
        earlier.sets.iter().any(|(_, target)| target.is_some_and(|ino| self.moves.contains(&ino)))
    }

    fn overwrites(&self, earlier: &EntryChange) -> bool {
        earlier.sets.iter().any(|(slot, _)| self.sets.iter().any(|(mine, _)| mine == slot))
    }
}

/// The disk. See the module documentation for its rules.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(super) inodes: HashMap<Ino, Inode>,
    pub(super) entries: BTreeMap<Slot, Ino>,
    pub(super) synced_entries: BTreeMap<Slot, Ino>,
    pub(super) pending: Vec<EntryChange>,
    next_ino: Ino,
    next_order: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Disk::new()
    }
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        let root = Inode::new(Kind::Directory, Attributes { perm: 0o755, uid: 0, gid: 0 });
        Disk {
            inodes: HashMap::from([(ROOT, root)]),
            entries: BTreeMap::new(),
            synced_entries: BTreeMap::new(),
            pending: Vec::new(),
            next_ino: ROOT + 1,
            next_order: 0,
        }
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::ENOENT)
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    /// The inode that an entry names.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Ino, Errno> {
        self.entries.get(&(parent, name.to_vec())).copied().ok_or(Errno::ENOENT)
    }

    /// The inode at a path of names below the root.
    pub fn find(&self, path: &str) -> Result<Ino, Errno> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| self.lookup(at, name.as_bytes()))
    }

    /// Names and inodes of a directory, in the order of the names.
    pub fn list(&self, directory: Ino) -> Vec<(Vec<u8>, Ino)> {
        let (from, to) = (Bound::Included((directory, Vec::new())), Bound::Excluded((directory + 1, Vec::new())));
        self.entries.range((from, to)).map(|((_, name), ino)| (name.clone(), *ino)).collect()
    }

    /// How many entries name an inode.
    pub fn links(&self, ino: Ino) -> u32 {
        self.entries.values().filter(|target| **target == ino).count() as u32
    }

    /// Bytes of a file, as programs see them.
    pub fn read(&self, ino: Ino, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
        Ok(self.inode(ino)?.content.read(offset, len))
    }

    /// Changes the content of a file. It becomes durable by [`Disk::sync_file`].
    pub fn change(&mut self, ino: Ino, change: Change) -> Result<(), Errno> {
        let order = self.order();
        let inode = self.inode_mut(ino)?;
        if inode.kind != Kind::File {
            return Err(Errno::EINVAL);
        }
        change.apply(&mut inode.content);
        inode.mtime = SystemTime::now();
        inode.ctime = inode.mtime;
        inode.pending.push((order, change));
        Ok(())
    }

    /// Makes the content and the attributes of a file durable, but no entry that names it.
    pub fn sync_file(&mut self, ino: Ino) -> Result<(), Errno> {
        let inode = self.inode_mut(ino)?;
        for (_, change) in inode.pending.drain(..) {
            change.apply(&mut inode.synced);
        }
        inode.synced_attributes = inode.attributes;
        debug_assert!(inode.lost || inode.synced == inode.content);
        Ok(())
    }

    /// A sync that fails as Linux lets it fail: programs go on seeing what was done, and the next sync finds nothing to write. It is lost in
    /// any cut.
    pub fn fail_sync_of(&mut self, ino: Ino) -> Result<(), Errno> {
        let inode = self.inode_mut(ino)?;
        inode.lost |= !inode.pending.is_empty();
        inode.pending.clear();
        self.pending.retain(|change| !change.touches(ino));
        Err(Errno::EIO)
    }

    /// Makes a file or the entries of a directory durable.
    pub(super) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        if self.inode(ino)?.kind == Kind::Directory { self.sync_directory(ino) } else { self.sync_file(ino) }
    }

    /// Bytes written to a file since it was last synced; `None` for a directory.
    pub(super) fn unsynced_bytes(&self, ino: Ino) -> Option<u64> {
        let inode = self.inodes.get(&ino).filter(|inode| inode.kind != Kind::Directory)?;
        let len = |change: &Change| if let Change::Write { data, .. } = change { data.len() as u64 } else { 0 };
        Some(inode.pending.iter().map(|(_, change)| len(change)).sum())
    }

    /// Makes a new inode under a name that is free.
    pub fn make(&mut self, parent: Ino, name: &[u8], kind: Kind, attributes: Attributes) -> Result<Ino, Errno> {
        if self.inode(parent)?.kind != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        if self.lookup(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, Inode::new(kind, attributes));
        self.enter(vec![((parent, name.to_vec()), Some(ino))], Vec::new());
        Ok(ino)
    }

    /// Gives an inode one more name.
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        if self.inode(ino)?.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        if self.lookup(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.enter(vec![((parent, name.to_vec()), Some(ino))], Vec::new());
        Ok(())
    }

    /// Removes a name of a file, or with `directory` an empty directory.
    pub fn remove(&mut self, parent: Ino, name: &[u8], directory: bool) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        match (self.inode(ino)?.kind == Kind::Directory, directory) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            (true, true) if !self.list(ino).is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.enter(vec![((parent, name.to_vec()), None)], Vec::new());
        Ok(())
    }

    /// Moves an entry, over another one if there is one.
    pub fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8]), no_replace: bool) -> Result<(), Errno> {
        let moved = self.lookup(from.0, from.1)?;
        if let Ok(old) = self.lookup(to.0, to.1) {
            if no_replace {
                return Err(Errno::EEXIST);
            }
            if old == moved {
                return Ok(());
            }
            match (self.inode(moved)?.kind == Kind::Directory, self.inode(old)?.kind == Kind::Directory) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.list(old).is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let sets = vec![((from.0, from.1.to_vec()), None), ((to.0, to.1.to_vec()), Some(moved))];
        self.enter(sets, vec![moved]);
        Ok(())
    }

    /// Exchanges two entries.
    pub fn exchange(&mut self, one: (Ino, &[u8]), other: (Ino, &[u8])) -> Result<(), Errno> {
        let (first, second) = (self.lookup(one.0, one.1)?, self.lookup(other.0, other.1)?);
        let sets = vec![((one.0, one.1.to_vec()), Some(second)), ((other.0, other.1.to_vec()), Some(first))];
        self.enter(sets, vec![first, second]);
        Ok(())
    }

    /// Makes the entries of a directory durable, with what they can't be without: the other half of a rename, and
    /// earlier changes of what it moved.
    pub fn sync_directory(&mut self, directory: Ino) -> Result<(), Errno> {
        let inode = self.inode_mut(directory)?;
        if inode.kind != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        inode.synced_attributes = inode.attributes;
        let mut chosen: Vec<bool> = self.pending.iter().map(|change| change.touches(directory)).collect();
        close_over(&mut chosen, &self.pending, |later, earlier| later.needs(earlier) || later.overwrites(earlier));
        let mut keep = Vec::new();
        for (change, chosen) in std::mem::take(&mut self.pending).into_iter().zip(chosen) {
            if chosen {
                set_entries(&mut self.synced_entries, &change);
            } else {
                keep.push(change);
            }
        }
        self.pending = keep;
        self.collect();
        Ok(())
    }

    /// Declares everything durable, as after a clean shutdown.
    pub fn sync_all(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.synced = inode.content.clone();
            inode.synced_attributes = inode.attributes;
            inode.pending.clear();
            inode.lost = false;
        }
        self.synced_entries = self.entries.clone();
        self.pending.clear();
        self.collect();
    }

    /// How many changes a cut could lose.
    pub fn unsynced(&self) -> usize {
        self.pending.len() + self.inodes.values().map(|inode| inode.pending.len()).sum::<usize>()
    }

    /// A path to `ino` from the root, if it has one.
    pub(super) fn path(&self, ino: Ino) -> Option<String> {
        let (mut at, mut path) = (ino, String::new());
        while at != ROOT {
            let ((parent, name), _) = self.entries.iter().find(|(_, target)| **target == at)?;
            path = format!("/{}{path}", String::from_utf8_lossy(name));
            at = *parent;
        }
        Some(path)
    }

    /// A directory above `ino`, if it is in one.
    pub(super) fn parent(&self, ino: Ino) -> Option<Ino> {
        self.entries.iter().find(|(_, target)| **target == ino).map(|((parent, _), _)| *parent)
    }

    /// Goes on counting where another disk stopped, so that no number means two things.
    pub(super) fn renumber_after(&mut self, other: &Disk) {
        self.next_ino = other.next_ino;
        self.next_order = other.next_order;
    }

    fn enter(&mut self, sets: Vec<(Slot, Option<Ino>)>, moves: Vec<Ino>) {
        let change = EntryChange { order: self.order(), sets, moves };
        set_entries(&mut self.entries, &change);
        self.pending.push(change);
    }

    fn order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    /// Forgets inodes that neither a program nor any outcome of a cut could reach.
    pub(super) fn collect(&mut self) {
        let mut reachable: HashSet<Ino> = self.entries.values().chain(self.synced_entries.values()).copied().collect();
        reachable.insert(ROOT);
        reachable.extend(self.pending.iter().flat_map(|change| change.sets.iter().filter_map(|(_, target)| *target)));
        self.inodes.retain(|ino, inode| reachable.contains(ino) || inode.opens > 0);
    }
}

pub(super) fn set_entries(entries: &mut BTreeMap<Slot, Ino>, change: &EntryChange) {
    for (slot, target) in &change.sets {
        match target {
            Some(ino) => entries.insert(slot.clone(), *ino),
            None => entries.remove(slot),
        };
    }
}

/// Chooses what chosen changes depend on, too. A change can depend on earlier ones only.
pub(super) fn close_over(
    chosen: &mut [bool],
    changes: &[EntryChange],
    depends: impl Fn(&EntryChange, &EntryChange) -> bool,
) {
    for later in (0..changes.len()).rev() {
        let (before, rest) = chosen.split_at_mut(later);
        if rest[0] {
            for (chosen, earlier) in before.iter_mut().zip(changes) {
                *chosen |= depends(&changes[later], earlier);
            }
        }
    }
}
