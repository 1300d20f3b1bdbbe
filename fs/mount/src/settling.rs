//! Nodes that have just lost one of several names, until the kernel has surely counted that.
//!
//! The kernel counts the names of a node itself: when a removal is answered, the thread that asked lowers the count as soon as it runs
//! again. Attributes of the node that were made after the removal and reach the kernel before that are counted down once more, maybe to
//! 0, and `link(2)` then refuses the file with ENOENT though it has a name. Nothing says when the kernel is done, so others
//! get attributes of such a node a moment later. Who removed the name has seen the answer before asking for anything else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axiomfs_live::{Access, Attr, FsError, FsResult, NodeId};

/// How long a thread that was answered may take to run.
const SETTLES_IN: Duration = Duration::from_millis(10);

/// Which nodes these are: nearly always none.
#[derive(Default)]
pub(crate) struct Settling {
    any: AtomicBool,
    lost: Mutex<VecDeque<Lost>>,
}

/// A name that was removed.
struct Lost {
    node: NodeId,
    /// Thread that asked for it.
    by: u32,
    at: Instant,
}

impl Settling {
    /// A name of `node`, which has others, is removed by thread `by`. To be called before it is gone, and before the kernel hears of it.
    pub(crate) fn add(&self, node: NodeId, by: u32) {
        let at = Instant::now();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        forget_settled(&mut lost, at);
        lost.push_back(Lost { node, by, at });
        self.any.store(true, Ordering::Release);
    }

    /// How long thread `by` has to wait for attributes of `node`.
    pub(crate) fn wait(&self, node: NodeId, by: u32) -> Option<Duration> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let now = Instant::now();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        forget_settled(&mut lost, now);
        self.any.store(!lost.is_empty(), Ordering::Release);
        let newest = lost.iter().rev().find(|lost| lost.node == node && lost.by != by)?;
        Some((newest.at + SETTLES_IN).saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    /// Calls `ask` for attributes that go to thread `by`: `WouldBlock`, or after a wait, where the node is settling.
    pub(crate) fn attributes(&self, access: Access, by: u32, ask: impl Fn() -> FsResult<Attr>) -> FsResult<Attr> {
        let attr = ask()?;
        let Some(wait) = self.wait(attr.node(), by) else { return Ok(attr) };
        if access == Access::Cached {
            return Err(FsError::WouldBlock);
        }
        std::thread::sleep(wait);
        ask()
    }
}

fn forget_settled(lost: &mut VecDeque<Lost>, now: Instant) {
    while lost.front().is_some_and(|lost| now.saturating_duration_since(lost.at) >= SETTLES_IN) {
        lost.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { ordinal: 0, ino: 7 };
    const OTHER: NodeId = NodeId { ordinal: 0, ino: 8 };

    #[test]
    fn others_wait_until_the_kernel_has_counted() {
        let settling = Settling::default();
        assert_eq!(settling.wait(NODE, 1), None);
        settling.add(NODE, 1);
        assert_eq!(settling.wait(NODE, 1), None, "who removed it knows");
        assert_eq!(settling.wait(OTHER, 2), None);
        let wait = settling.wait(NODE, 2).expect("the kernel may not have counted yet");
        assert!(wait <= SETTLES_IN);
        std::thread::sleep(wait);
        assert_eq!(settling.wait(NODE, 2), None);
        assert!(!settling.any.load(Ordering::Acquire), "nothing is looked through when nothing settles");
    }
}
