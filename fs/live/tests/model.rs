//! Random operations on a volume and on a naive filesystem in memory: they agree after every step, and again after a
//! checkpoint, a commit, a crash and a remount. Snapshots stay what the model was when they were taken.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use axiomfs_live::{
    Access, Caller, FallocMode, FileKind, FsError, Make, NodeId, ROOT_INO, RenameMode, SetAttr, Volume, Who, XattrMode,
};
use common::Bench;
use proptest::prelude::*;

const WAIT: Access = Access::Wait;
const WHO: Caller = Caller { uid: 1000, gid: 100, pid: 1 };

/// A node of the naive filesystem. Hard links share one through its number.
#[derive(Clone, Debug, PartialEq)]
enum Naive {
    File { data: Vec<u8>, xattrs: BTreeMap<Vec<u8>, Vec<u8>>, perm: u16 },
    Dir(BTreeMap<String, usize>),
    Link(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Model {
    nodes: Vec<Naive>,
}

impl Model {
    fn new() -> Self {
        Self { nodes: vec![Naive::Dir(BTreeMap::new())] }
    }

    fn dir(&self, at: usize) -> &BTreeMap<String, usize> {
        match &self.nodes[at] {
            Naive::Dir(entries) => entries,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn dir_mut(&mut self, at: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[at] {
            Naive::Dir(entries) => entries,
            other => panic!("{other:?} is no directory"),
        }
    }

    /// All directories with their paths.
    fn dirs(&self) -> Vec<(String, usize)> {
        let mut found = vec![(String::new(), 0)];
        let mut at = 0;
        while at < found.len() {
            let (path, node) = found[at].clone();
            for (name, child) in self.dir(node) {
                if matches!(self.nodes[*child], Naive::Dir(_)) {
                    found.push((format!("{path}/{name}"), *child));
                }
            }
            at += 1;
        }
        found
    }

    fn links_to(&self, node: usize) -> usize {
        self.dirs().iter().map(|(_, d)| self.dir(*d).values().filter(|n| **n == node).count()).sum()
    }
}

/// An operation; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Op {
    Create(u8, u8),
    Mkdir(u8, u8),
    Symlink(u8, u8, String),
    Unlink(u8, u8),
    Rmdir(u8, u8),
    Rename(u8, u8, u8, u8, u8),
    Link(u8, u8, u8, u8),
    Write(u8, u8, u32, u32, u8),
    Truncate(u8, u8, u32),
    Punch(u8, u8, u32, u32),
    Copy(u8, u8, u8, u8, u32, u32, u32),
    Chmod(u8, u8, u16),
    SetXattr(u8, u8, u8, u32),
    RemoveXattr(u8, u8, u8),
    Snapshot,
    DeleteSnapshot(u8),
    Checkpoint,
    Commit,
    Crash,
    Remount,
}

fn op() -> impl Strategy<Value = Op> {
    let d = any::<u8>;
    let n = || 0u8..6;
    let big = || prop_oneof![3 => 0u32..2_000, 2 => 0u32..100_000, 1 => 0u32..3_000_000];
    prop_oneof![
        6 => (d(), n()).prop_map(|(a, b)| Op::Create(a, b)),
        3 => (d(), n()).prop_map(|(a, b)| Op::Mkdir(a, b)),
        1 => (d(), n(), "[a-z]{1,20}").prop_map(|(a, b, t)| Op::Symlink(a, b, t)),
        3 => (d(), n()).prop_map(|(a, b)| Op::Unlink(a, b)),
        2 => (d(), n()).prop_map(|(a, b)| Op::Rmdir(a, b)),
        4 => (d(), n(), d(), n(), 0u8..3).prop_map(|(a, b, c, e, m)| Op::Rename(a, b, c, e, m)),
        2 => (d(), n(), d(), n()).prop_map(|(a, b, c, e)| Op::Link(a, b, c, e)),
        10 => (d(), n(), big(), big(), any::<u8>()).prop_map(|(a, b, o, l, s)| Op::Write(a, b, o, l, s)),
        3 => (d(), n(), big()).prop_map(|(a, b, s)| Op::Truncate(a, b, s)),
        2 => (d(), n(), big(), big()).prop_map(|(a, b, o, l)| Op::Punch(a, b, o, l)),
        2 => (d(), n(), d(), n(), big(), big(), big()).prop_map(|(a, b, c, e, f, t, l)| Op::Copy(a, b, c, e, f, t, l)),
        1 => (d(), n(), 0u16..0o10000).prop_map(|(a, b, m)| Op::Chmod(a, b, m)),
        1 => (d(), n(), 0u8..3, 0u32..20_000).prop_map(|(a, b, x, l)| Op::SetXattr(a, b, x, l)),
        1 => (d(), n(), 0u8..3).prop_map(|(a, b, x)| Op::RemoveXattr(a, b, x)),
        1 => Just(Op::Snapshot),
        1 => d().prop_map(Op::DeleteSnapshot),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Commit),
        1 => Just(Op::Crash),
        1 => Just(Op::Remount),
    ]
}

/// Bytes that no other `seed` gives and that don't compress to nothing.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    (0..len)
        .map(|i| {
            if i % 8 == 0 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            }
            (state >> (i % 8 * 8)) as u8
        })
        .collect()
}

struct Run {
    bench: Bench,
    volume: RefCell<Arc<Volume>>,
    model: Model,
    snapshots: BTreeMap<String, Model>,
    taken: usize,
}

fn name(n: u8) -> String {
    ["a", "b", "cc", "a longer name than others", "\u{fc}ml\u{e4}ut", "f"][n as usize].to_string()
}

impl Run {
    fn new() -> Self {
        let bench = Bench::new();
        let volume = RefCell::new(bench.open());
        Self { bench, volume, model: Model::new(), snapshots: BTreeMap::new(), taken: 0 }
    }

    fn volume(&self) -> Arc<Volume> {
        self.volume.borrow().clone()
    }

    /// A directory of both.
    fn pick(&self, d: u8) -> (NodeId, usize) {
        let dirs = self.model.dirs();
        let (path, node) = dirs[d as usize % dirs.len()].clone();
        let mut at = NodeId::live(ROOT_INO);
        for part in path.split('/').filter(|p| !p.is_empty()) {
            at = NodeId::live(self.volume().lookup(WAIT, at, part.as_bytes()).expect("a directory of the model").ino);
        }
        (at, node)
    }

    fn child(&self, d: u8, n: u8) -> Option<(NodeId, usize)> {
        let (dir, at) = self.pick(d);
        let node = *self.model.dir(at).get(&name(n))?;
        let ino = self.volume().lookup(WAIT, dir, name(n).as_bytes()).expect("an entry of the model").ino;
        Some((NodeId::live(ino), node))
    }

    fn file(&self, d: u8, n: u8) -> Option<(NodeId, usize)> {
        self.child(d, n).filter(|(_, node)| matches!(self.model.nodes[*node], Naive::File { .. }))
    }

    fn data(&mut self, node: usize) -> &mut Vec<u8> {
        match &mut self.model.nodes[node] {
            Naive::File { data, .. } => data,
            other => panic!("{other:?} is no file"),
        }
    }

    fn add(&mut self, d: u8, n: u8, naive: Naive, make: Make<'_>) {
        let (dir, at) = self.pick(d);
        let made = self.volume().make(WAIT, WHO, dir, name(n).as_bytes(), &make);
        if self.model.dir(at).contains_key(&name(n)) {
            assert_eq!(made, Err(FsError::Exists));
            return;
        }
        assert_eq!(made.expect("made").uid, 1000);
        self.model.nodes.push(naive);
        let node = self.model.nodes.len() - 1;
        self.model.dir_mut(at).insert(name(n), node);
    }

    fn rename(&mut self, a: u8, b: u8, c: u8, e: u8, mode: u8) {
        let ((from, from_at), (to, to_at)) = (self.pick(a), self.pick(c));
        let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][mode as usize];
        let done = self.volume().rename(WAIT, WHO, from, name(b).as_bytes(), to, name(e).as_bytes(), mode);
        let source = self.model.dir(from_at).get(&name(b)).copied();
        let target = self.model.dir(to_at).get(&name(e)).copied();
        let below = |of: usize, dir: usize| self.below(of, dir);
        let is_dir = |n: usize| matches!(self.model.nodes[n], Naive::Dir(_));
        let expected = match (source, target, mode) {
            (None, _, _) => Err(FsError::NotFound),
            (Some(s), _, _) if is_dir(s) && below(s, to_at) => Err(FsError::Invalid),
            (Some(_), Some(_), RenameMode::NoReplace) => Err(FsError::Exists),
            (Some(_), None, RenameMode::Exchange) => Err(FsError::NotFound),
            (Some(s), Some(t), RenameMode::Exchange) if s != t && is_dir(t) && below(t, from_at) => {
                Err(FsError::Invalid)
            }
            (Some(s), Some(t), RenameMode::Replace) if s != t => match (is_dir(s), is_dir(t)) {
                (true, false) => Err(FsError::NotDirectory),
                (false, true) => Err(FsError::IsDirectory),
                (true, true) if !self.model.dir(t).is_empty() => Err(FsError::NotEmpty),
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        assert_eq!(done, expected, "rename {source:?} {target:?} {mode:?}");
        if let (Ok(()), Some(s)) = (done, source) {
            if target == Some(s) {
                return;
            }
            self.model.dir_mut(from_at).remove(&name(b));
            if let (RenameMode::Exchange, Some(t)) = (mode, target) {
                self.model.dir_mut(from_at).insert(name(b), t);
            }
            self.model.dir_mut(to_at).insert(name(e), s);
        }
    }

    /// Whether `dir` is `of` or below it.
    fn below(&self, of: usize, dir: usize) -> bool {
        of == dir
            || self.model.dir(of).values().any(|n| matches!(self.model.nodes[*n], Naive::Dir(_)) && self.below(*n, dir))
    }

    fn write(&mut self, d: u8, n: u8, offset: u32, len: u32, seed: u8) {
        let Some((node, at)) = self.file(d, n) else { return };
        let new = bytes(seed, len as usize);
        let handle = self.volume().open(WAIT, node, true, false).expect("opened");
        let mut done = 0;
        while done < new.len() {
            let part = &new[done..new.len().min(done + (1 << 20))];
            let at = u64::from(offset) + done as u64;
            let n = self.volume().write(WAIT, WHO, node, handle, at, part, false, false).expect("written");
            assert_eq!(n as usize, part.len());
            done += part.len();
        }
        self.volume().release(node, handle);
        let data = self.data(at);
        let end = offset as usize + new.len();
        if data.len() < end && !new.is_empty() {
            data.resize(end, 0);
        }
        if !new.is_empty() {
            data[offset as usize..end].copy_from_slice(&new);
        }
    }

    fn copy(&mut self, (a, b): (u8, u8), (c, e): (u8, u8), from: u32, to: u32, len: u32) {
        let (Some((source, s)), Some((target, t))) = (self.file(a, b), self.file(c, e)) else { return };
        let size = self.data(s).len();
        let len = (len as usize).min(size.saturating_sub(from as usize));
        let done = self.volume().copy_range(WAIT, WHO, source, from.into(), target, to.into(), len as u64);
        let (f, o) = (from as usize, to as usize);
        if s == t && len > 0 && f < o + len && o < f + len {
            assert_eq!(done, Err(FsError::Invalid));
            return;
        }
        assert_eq!(done, Ok(len as u64));
        if len == 0 {
            return;
        }
        let part = self.data(s)[f..f + len].to_vec();
        let data = self.data(t);
        if data.len() < o + len {
            data.resize(o + len, 0);
        }
        data[o..o + len].copy_from_slice(&part);
    }

    fn step(&mut self, op: &Op) {
        let file = Naive::File { data: Vec::new(), xattrs: BTreeMap::new(), perm: 0o640 };
        let plain = |kind| Make { kind, perm: 0o640, umask: 0, rdev: 0, target: None };
        match op.clone() {
            Op::Create(d, n) => self.add(d, n, file, plain(FileKind::File)),
            Op::Mkdir(d, n) => self.add(d, n, Naive::Dir(BTreeMap::new()), plain(FileKind::Directory)),
            Op::Symlink(d, n, t) => {
                let make = Make { target: Some(t.as_bytes()), ..plain(FileKind::Symlink) };
                self.add(d, n, Naive::Link(t.clone().into_bytes()), make);
            }
            Op::Unlink(d, n) => self.unlink(d, n),
            Op::Rmdir(d, n) => self.rmdir(d, n),
            Op::Rename(a, b, c, e, m) => self.rename(a, b, c, e, m),
            Op::Link(a, b, c, e) => self.link(a, b, c, e),
            Op::Write(d, n, o, l, s) => self.write(d, n, o, l, s),
            Op::Truncate(d, n, size) => {
                let Some((node, at)) = self.file(d, n) else { return };
                let set = SetAttr { size: Some(size.into()), ..SetAttr::default() };
                assert_eq!(self.volume().setattr(WAIT, WHO, node, &set).expect("truncated").size, u64::from(size));
                self.data(at).resize(size as usize, 0);
            }
            Op::Punch(d, n, o, l) => {
                let Some((node, at)) = self.file(d, n) else { return };
                if l > 0 {
                    let punched = self.volume().fallocate(WAIT, WHO, node, FallocMode::PunchHole, o.into(), l.into());
                    punched.expect("punched");
                    let data = self.data(at);
                    let end = data.len().min(o as usize + l as usize);
                    data[(o as usize).min(end)..end].fill(0);
                }
            }
            Op::Copy(a, b, c, e, f, t, l) => self.copy((a, b), (c, e), f, t, l),
            Op::Chmod(d, n, mode) => {
                let Some((node, at)) = self.file(d, n) else { return };
                let set = SetAttr { mode: Some(mode.into()), ..SetAttr::default() };
                self.volume().setattr(WAIT, WHO, node, &set).expect("mode set");
                if let Naive::File { perm, .. } = &mut self.model.nodes[at] {
                    *perm = mode;
                }
            }
            Op::SetXattr(d, n, x, l) => {
                let Some((node, at)) = self.file(d, n) else { return };
                let (key, value) = (format!("user.{x}").into_bytes(), bytes(x, l as usize));
                self.volume().setxattr(WAIT, WHO, node, &key, &value, XattrMode::Any).expect("xattr set");
                if let Naive::File { xattrs, .. } = &mut self.model.nodes[at] {
                    xattrs.insert(key, value);
                }
            }
            Op::RemoveXattr(d, n, x) => {
                let Some((node, at)) = self.file(d, n) else { return };
                let key = format!("user.{x}").into_bytes();
                let removed = self.volume().removexattr(WAIT, WHO, node, &key);
                if let Naive::File { xattrs, .. } = &mut self.model.nodes[at] {
                    assert_eq!(removed.is_ok(), xattrs.remove(&key).is_some());
                }
            }
            Op::Snapshot => {
                self.taken += 1;
                let name = format!("s{}", self.taken);
                self.volume().snapshot_create(WAIT, Who::default(), &name).expect("snapshot taken");
                self.snapshots.insert(name, self.model.clone());
            }
            Op::DeleteSnapshot(n) => {
                let Some(name) = self.snapshots.keys().nth(n as usize % self.snapshots.len().max(1)).cloned() else {
                    return;
                };
                self.volume().snapshot_delete(WAIT, Who::default(), &name).expect("snapshot forgotten");
                self.snapshots.remove(&name);
            }
            Op::Checkpoint => self.volume().checkpoint_now().expect("checkpoint"),
            Op::Commit => drop(self.volume().sync(std::time::Duration::from_secs(60), &|_| {}).expect("commit")),
            Op::Crash => self.remount(false),
            Op::Remount => self.remount(true),
        }
    }

    fn unlink(&mut self, d: u8, n: u8) {
        let (dir, at) = self.pick(d);
        let done = self.volume().unlink(WAIT, WHO, dir, name(n).as_bytes());
        match self.model.dir(at).get(&name(n)).map(|node| &self.model.nodes[*node]) {
            None => assert_eq!(done, Err(FsError::NotFound)),
            Some(Naive::Dir(_)) => assert_eq!(done, Err(FsError::IsDirectory)),
            Some(_) => {
                assert_eq!(done, Ok(()));
                self.model.dir_mut(at).remove(&name(n));
            }
        }
    }

    fn rmdir(&mut self, d: u8, n: u8) {
        let (dir, at) = self.pick(d);
        let done = self.volume().rmdir(WAIT, WHO, dir, name(n).as_bytes());
        match self.model.dir(at).get(&name(n)).map(|node| &self.model.nodes[*node]) {
            None => assert_eq!(done, Err(FsError::NotFound)),
            Some(Naive::Dir(entries)) if !entries.is_empty() => assert_eq!(done, Err(FsError::NotEmpty)),
            Some(Naive::Dir(_)) => {
                assert_eq!(done, Ok(()));
                self.model.dir_mut(at).remove(&name(n));
            }
            Some(_) => assert_eq!(done, Err(FsError::NotDirectory)),
        }
    }

    fn link(&mut self, a: u8, b: u8, c: u8, e: u8) {
        let Some((node, at)) = self.file(a, b) else { return };
        let (dir, to) = self.pick(c);
        let done = self.volume().link(WAIT, WHO, node, dir, name(e).as_bytes());
        if self.model.dir(to).contains_key(&name(e)) {
            assert_eq!(done, Err(FsError::Exists));
        } else {
            self.model.dir_mut(to).insert(name(e), at);
            assert_eq!(done.expect("linked").nlink as usize, self.model.links_to(at));
        }
    }

    /// Without draining it is a crash as far as this process can make one: only the log and the store are left.
    fn remount(&mut self, drain: bool) {
        if drain {
            self.volume().shutdown(&|_| {}).expect("drained");
        }
        self.volume().stop();
        drop(self.volume.replace(self.bench.open()));
    }

    fn check(&self) {
        self.compare(0, ROOT_INO, &self.model, 0, "");
        let names: Vec<String> = self.volume().snapshots().into_iter().map(|s| s.name).collect();
        assert_eq!(names, self.snapshots.keys().cloned().collect::<Vec<_>>());
        for (name, model) in &self.snapshots {
            let ordinal = self.volume().snapshot(name).expect("a snapshot of the model").ordinal;
            self.compare(ordinal, ROOT_INO, model, 0, name);
        }
    }

    fn compare(&self, ordinal: u32, ino: u64, model: &Model, at: usize, path: &str) {
        let volume = self.volume();
        let dir = NodeId { ordinal, ino };
        let mut entries = Vec::new();
        let mut cookie = 0;
        loop {
            let some = volume.readdir(WAIT, dir, cookie, u64::MAX, 3, true).expect("listed");
            let Some(last) = some.last() else { break };
            cookie = last.cookie;
            entries.extend(some);
        }
        let mut names: Vec<String> =
            entries.iter().map(|e| String::from_utf8(e.name.clone()).expect("UTF-8")).collect();
        names.sort();
        assert_eq!(names, model.dir(at).keys().cloned().collect::<Vec<_>>(), "entries of {path:?}");
        let subdirs = model.dir(at).values().filter(|n| matches!(model.nodes[**n], Naive::Dir(_))).count();
        assert_eq!(volume.getattr(WAIT, dir).expect("stat").nlink as usize, 2 + subdirs, "links of {path:?}");
        for entry in entries {
            let name = String::from_utf8(entry.name).expect("UTF-8");
            let path = format!("{path}/{name}");
            let node = model.dir(at)[&name];
            let attr = entry.attr.expect("asked for");
            assert_eq!(volume.lookup(WAIT, dir, name.as_bytes()), Ok(attr), "{path}");
            match &model.nodes[node] {
                Naive::Dir(_) => self.compare(ordinal, entry.node.ino, model, node, &path),
                Naive::Link(t) => assert_eq!(volume.readlink(WAIT, entry.node).as_ref(), Ok(t), "{path}"),
                Naive::File { data, xattrs, perm } => {
                    assert_eq!((attr.size as usize, attr.perm), (data.len(), *perm), "{path}");
                    assert_eq!(attr.nlink as usize, model.links_to(node), "links of {path}");
                    self.compare_file(entry.node, data, xattrs, &path);
                }
            }
        }
    }

    fn compare_file(&self, node: NodeId, data: &[u8], xattrs: &BTreeMap<Vec<u8>, Vec<u8>>, path: &str) {
        let volume = self.volume();
        let handle = volume.open(WAIT, node, false, false).expect("opened");
        let mut read = Vec::new();
        while read.len() < data.len() {
            let before = read.len();
            volume.read(WAIT, node, handle, before as u64, &mut read, 200_000).expect("read");
            assert!(read.len() > before, "{path} ends at {before} of {}", data.len());
        }
        volume.release(node, handle);
        if read != data {
            let first = read.iter().zip(data).position(|(a, b)| a != b);
            panic!("{path} differs at {first:?}; {} and {} bytes", read.len(), data.len());
        }
        let names: Vec<Vec<u8>> = xattrs.keys().cloned().collect();
        assert_eq!(volume.listxattr(WAIT, node), Ok(names), "{path}");
        for (name, value) in xattrs {
            assert_eq!(volume.getxattr(WAIT, node, name).as_ref(), Ok(value), "{path}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: common::cases(48), max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_volume_is_what_the_model_is(ops in prop::collection::vec(op(), 1..60)) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
            if !matches!(op, Op::Write(..)) {
                run.check();
            }
        }
        run.check();
        run.remount(true);
        run.check();
        run.volume().shutdown(&|_| {}).expect("drained");
        run.bench.lose_state();
        run.remount(false);
        run.check();
    }
}
