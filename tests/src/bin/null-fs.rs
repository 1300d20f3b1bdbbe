//! A filesystem that answers at once: names and attributes are kept in memory, data is thrown away and reads as zeros.
//!
//! It is what the kernel's FUSE and its round trips cost by themselves: the ceiling that a benchmark measures against.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

/// What a file is best read and written in, and how far the kernel reads ahead, as axiomfs has them.
const LARGEST_REQUEST: u32 = 1 << 20;
/// The kernel may keep names and attributes for long: nobody else changes them.
const TTL: Duration = Duration::from_secs(3600);
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

struct Node {
    attr: FileAttr,
    target: Option<OsString>,
    parent: u64,
    /// Entries in the order of their making, which is the readdir offset.
    entries: BTreeMap<u64, (OsString, u64)>,
    names: HashMap<OsString, u64>,
    next_entry: u64,
}

struct NullFs {
    nodes: Mutex<HashMap<u64, Node>>,
    /// Whether it has access control lists, as axiomfs has. They are taken and forgotten, but for what they say of the mode.
    lists: bool,
}

fn new_attr(ino: u64, kind: FileType, perm: u16, uid: u32, gid: u32) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid,
        gid,
        rdev: 0,
        blksize: if kind == FileType::Directory { 4096 } else { LARGEST_REQUEST },
        flags: 0,
    }
}

fn new_node(attr: FileAttr, parent: u64, target: Option<OsString>) -> Node {
    // The readdir offsets 1 and 2 are "." and "..".
    Node { attr, target, parent, entries: BTreeMap::new(), names: HashMap::new(), next_entry: 3 }
}

type Nodes = HashMap<u64, Node>;

fn get(nodes: &mut Nodes, ino: u64) -> Result<&mut Node, Errno> {
    nodes.get_mut(&ino).ok_or(Errno::ENOENT)
}

fn enter(nodes: &mut Nodes, parent: u64, name: &OsStr, ino: u64) -> Result<(), Errno> {
    let directory = get(nodes, parent)?;
    let place = directory.next_entry;
    directory.next_entry += 1;
    directory.names.insert(name.to_owned(), place);
    directory.entries.insert(place, (name.to_owned(), ino));
    Ok(())
}

fn leave(nodes: &mut Nodes, parent: u64, name: &OsStr) -> Result<u64, Errno> {
    let directory = get(nodes, parent)?;
    let place = directory.names.remove(name).ok_or(Errno::ENOENT)?;
    directory.entries.remove(&place).map(|(_, ino)| ino).ok_or(Errno::ENOENT)
}

fn drop_link(nodes: &mut Nodes, ino: u64) -> Result<(), Errno> {
    let node = get(nodes, ino)?;
    node.attr.nlink = node.attr.nlink.saturating_sub(1);
    Ok(())
}

fn find(nodes: &mut Nodes, parent: u64, name: &OsStr) -> Result<FileAttr, Errno> {
    let directory = get(nodes, parent)?;
    let place = directory.names.get(name).ok_or(Errno::ENOENT)?;
    let ino = directory.entries[place].1;
    Ok(get(nodes, ino)?.attr)
}

fn time(wanted: TimeOrNow) -> SystemTime {
    match wanted {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl NullFs {
    fn new(lists: bool) -> Self {
        let root = new_attr(1, FileType::Directory, 0o755, 0, 0);
        NullFs { nodes: Mutex::new(HashMap::from([(1, new_node(root, 1, None))])), lists }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("No holder of the lock panics")
    }

    fn make(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        kind: FileType,
        mode: u32,
        target: Option<OsString>,
    ) -> Result<FileAttr, Errno> {
        let mut nodes = self.nodes();
        if get(&mut nodes, parent)?.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        // Nodes are never removed, so their number is free.
        let ino = nodes.len() as u64 + 1;
        let mut attr = new_attr(ino, kind, (mode & 0o7777) as u16, req.uid(), req.gid());
        attr.size = target.as_ref().map_or(0, |target| target.len() as u64);
        nodes.insert(ino, new_node(attr, parent, target));
        enter(&mut nodes, parent, name, ino)?;
        Ok(attr)
    }

    fn remove(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let mut nodes = self.nodes();
        let attr = find(&mut nodes, parent, name)?;
        if attr.kind == FileType::Directory && !get(&mut nodes, attr.ino.0)?.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        let ino = leave(&mut nodes, parent, name)?;
        drop_link(&mut nodes, ino)
    }

    /// Up to `limit` entries after `offset`, "." and ".." among them.
    fn list(&self, ino: u64, offset: u64, limit: usize) -> Result<Vec<(u64, OsString, FileAttr)>, Errno> {
        let mut nodes = self.nodes();
        let directory = get(&mut nodes, ino)?;
        let mut found = vec![(1, OsString::from("."), ino), (2, OsString::from(".."), directory.parent)];
        found.retain(|(place, _, _)| *place > offset);
        let after = (Bound::Excluded(offset.max(2)), Bound::Unbounded);
        found.extend(
            directory.entries.range(after).take(limit).map(|(place, (name, ino))| (*place, name.clone(), *ino)),
        );
        found.into_iter().map(|(place, name, ino)| Ok((place, name, get(&mut nodes, ino)?.attr))).collect()
    }
}

fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(reply: ReplyEntry, done: Result<FileAttr, Errno>) {
    match done {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(reply: ReplyAttr, done: Result<FileAttr, Errno>) {
    match done {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for NullFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What axiomfs asks for too, so that both get the same requests.
        let lists = [InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK];
        let always = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for wanted in always.into_iter().chain(lists.into_iter().filter(|_| self.lists)) {
            if config.capabilities().contains(wanted) {
                config.add_capabilities(wanted).map_err(|_| io::ErrorKind::Unsupported)?;
            }
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = find(&mut self.nodes(), parent.0, name);
        match found {
            // Inode 0 lets the kernel remember that there is no such name.
            Err(_) => reply.entry(&TTL, &new_attr(0, FileType::RegularFile, 0, 0, 0), Generation(0)),
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        attributes(reply, get(&mut self.nodes(), ino.0).map(|node| node.attr));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = get(&mut self.nodes(), ino.0).map(|node| {
            let attr = &mut node.attr;
            attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.size = size.unwrap_or(attr.size);
            attr.atime = atime.map_or(attr.atime, time);
            attr.mtime = mtime.map_or(attr.mtime, time);
            *attr
        });
        attributes(reply, set);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = get(&mut self.nodes(), ino.0).and_then(|node| node.target.clone().ok_or(Errno::EINVAL));
        match target {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make(req, parent.0, name, FileType::RegularFile, mode & !umask, None));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(reply, self.make(req, parent.0, name, FileType::Directory, mode & !umask, None));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Some(target.as_os_str().to_owned());
        entry(reply, self.make(req, parent.0, name, FileType::Symlink, 0o777, target));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent.0, name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent.0, name));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let nodes = &mut self.nodes();
        let moved = leave(nodes, parent.0, name).and_then(|ino| {
            if let Ok(old) = leave(nodes, newparent.0, newname) {
                drop_link(nodes, old)?;
            }
            get(nodes, ino)?.parent = newparent.0;
            enter(nodes, newparent.0, newname, ino)
        });
        empty(reply, moved);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let nodes = &mut self.nodes();
        let linked = enter(nodes, newparent.0, newname, ino.0).and_then(|()| {
            let node = get(nodes, ino.0)?;
            node.attr.nlink += 1;
            Ok(node.attr)
        });
        entry(reply, linked);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(req, parent.0, name, FileType::RegularFile, mode & !umask, None) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The kernel cuts the zeros off at the length that it knows.
        reply.data(&ZEROS[..ZEROS.len().min(size as usize)]);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let end = offset + data.len() as u64;
        match get(&mut self.nodes(), ino.0) {
            Ok(node) => {
                node.attr.size = node.attr.size.max(end);
                node.attr.blocks = node.attr.size.div_ceil(512);
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.list(ino.0, offset, 256) {
            Ok(found) => {
                for (place, name, attr) in found {
                    if reply.add(attr.ino, place, attr.kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.list(ino.0, offset, 64) {
            Ok(found) => {
                for (place, name, attr) in found {
                    if reply.add(attr.ino, place, name, &TTL, &attr, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: fuser::ReplyXattr) {
        // Answered, not refused: axiomfs has attributes, so the kernel asks it too.
        reply.error(Errno::ENODATA);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if !self.lists {
            return reply.error(Errno::ENOSYS);
        }
        if name == "system.posix_acl_access" {
            let bits = mode_of(value);
            match get(&mut self.nodes(), ino.0) {
                Ok(node) => node.attr.perm = node.attr.perm & !0o777 | bits,
                Err(errno) => return reply.error(errno),
            }
        }
        reply.ok();
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        // A list need not be there to be removed.
        if self.lists { reply.ok() } else { reply.error(Errno::ENOSYS) }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 28, 1 << 28, 1 << 28, 1 << 28, 1 << 28, 4096, 255, 4096);
    }
}

/// The bits of a mode that an access control list says, in the form of its attribute (acl(5), linux/posix_acl_xattr.h): a version
/// of four bytes, then tag (2), permissions (2) and id (4) of each entry.
fn mode_of(list: &[u8]) -> u16 {
    let bits = |tag: u16| {
        let mut entries = list.get(4..).unwrap_or_default().chunks_exact(8);
        entries.find(|entry| entry[..2] == tag.to_le_bytes()).map(|entry| u16::from(entry[2] & 7))
    };
    // A mask stands where the group's bits are.
    bits(1).unwrap_or(0) << 6 | bits(0x10).or_else(|| bits(4)).unwrap_or(0) << 3 | bits(0x20).unwrap_or(0)
}

/// Once it is mounted, lets the kernel read ahead as much as fits into one request.
fn widen_read_ahead(mountpoint: &Path) {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    let before = mountpoint.parent().and_then(device);
    for _ in 0..1000 {
        match device(mountpoint) {
            Some(own) if Some(own) != before => {
                let (major, minor) = (nix::sys::stat::major(own), nix::sys::stat::minor(own));
                let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
                if let Err(error) = std::fs::write(&path, (LARGEST_REQUEST / 1024).to_string()) {
                    eprintln!("null-fs: {path}: {error}");
                }
                return;
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (mountpoint, lists) = match arguments.as_slice() {
        [mountpoint] => (mountpoint, false),
        [mountpoint, option] if option == "--acl" => (mountpoint, true),
        _ => {
            eprintln!("usage: null-fs MOUNTPOINT [--acl]     serves until it is unmounted; with access control lists");
            return ExitCode::from(2);
        }
    };
    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::FSName("null".to_owned()), MountOption::DefaultPermissions, MountOption::NoAtime];
    let place = Path::new(mountpoint).to_owned();
    std::thread::spawn(move || widen_read_ahead(&place));
    match fuser::mount(NullFs::new(lists), mountpoint, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("null-fs: {}: {error}", Path::new(mountpoint).display());
            ExitCode::FAILURE
        }
    }
}
