//! What was removed while the kernel still knows it.
//!
//! On a local filesystem a node outlives its last name for as long as anybody refers to it: who has just looked a name
//! up, who stands in a directory, who holds an `O_PATH` descriptor. The tree forgets a node with its last name unless
//! it is open. So each file is held open from before its last name goes until the kernel says that it has let go of
//! it, which mostly follows at once; of a directory its attributes are kept, for nothing is in it any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axiomfs_live::{Access, Attr, FileKind, FsError, FsResult, Handle, NodeId, Volume};

use crate::settling::Settling;

/// Removed nodes that the kernel may still ask for.
#[derive(Default)]
pub(crate) struct Removed {
    nodes: Mutex<HashMap<NodeId, Kept>>,
    /// Number of entries: nearly always 0, and looked at for each node the kernel forgets.
    count: AtomicUsize,
}

/// A node that is about to lose a name, and how it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Victim {
    node: NodeId,
    kept: Kept,
}

#[derive(Debug, Clone, Copy)]
enum Kept {
    /// A directory's last attributes.
    Directory(Attr),
    /// What holds a file open.
    File(Handle),
    /// It has further names.
    Named,
}

impl Victim {
    /// Takes hold of what `name` stands for; to be followed by [`Removed::add`] or [`let_go`](Self::let_go).
    pub(crate) fn hold(volume: &Volume, access: Access, parent: NodeId, name: &[u8]) -> FsResult<Self> {
        let attr = volume.lookup(access, parent, name)?;
        let node = attr.node();
        let kept = match attr.kind {
            FileKind::Directory => Kept::Directory(Attr { nlink: 0, size: 0, ..attr }),
            _ if attr.nlink > 1 => Kept::Named,
            _ => Kept::File(volume.open(access, node, false, false)?),
        };
        Ok(Self { node, kept })
    }

    /// The same where there may be nothing of that name.
    pub(crate) fn hold_if_any(volume: &Volume, access: Access, parent: NodeId, name: &[u8]) -> FsResult<Option<Self>> {
        match Self::hold(volume, access, parent, name) {
            Ok(victim) => Ok(Some(victim)),
            Err(FsError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// If it has further names, notes that thread `by` removes one.
    pub(crate) fn settles(&self, settling: &Settling, by: u32) {
        if matches!(self.kept, Kept::Named) {
            settling.add(self.node, by);
        }
    }

    /// It keeps its name after all.
    pub(crate) fn let_go(self, volume: &Volume) {
        if let Kept::File(handle) = self.kept {
            volume.release(self.node, handle);
        }
    }
}

impl Removed {
    /// Notes that `victim` has lost a name. To be called before the kernel hears of it.
    pub(crate) fn add(&self, volume: &Volume, victim: Victim) {
        if matches!(victim.kept, Kept::Named) {
            return;
        }
        let mut nodes = lock(&self.nodes);
        let before = nodes.insert(victim.node, victim.kept);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        if let Some(kept) = before {
            Victim { node: victim.node, kept }.let_go(volume);
        }
    }

    /// What is left of a directory.
    pub(crate) fn directory(&self, node: NodeId) -> Option<Attr> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        match lock(&self.nodes).get(&node) {
            Some(Kept::Directory(attr)) => Some(*attr),
            _ => None,
        }
    }

    /// The kernel has let go of `node`. Inode numbers aren't reused, so it never comes back.
    pub(crate) fn forget(&self, volume: &Volume, node: NodeId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut nodes = lock(&self.nodes);
        let kept = nodes.remove(&node);
        self.count.store(nodes.len(), Ordering::Release);
        drop(nodes);
        if let Some(kept) = kept {
            Victim { node, kept }.let_go(volume);
        }
    }

    /// The kernel is gone, and with it all that it knew.
    pub(crate) fn forget_all(&self, volume: &Volume) {
        let nodes = std::mem::take(&mut *lock(&self.nodes));
        self.count.store(0, Ordering::Release);
        for (node, kept) in nodes {
            Victim { node, kept }.let_go(volume);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
