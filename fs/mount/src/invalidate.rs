//! Tells the kernel to forget what changed without it, from a thread of its own: a notification sent by the thread
//! that serves requests can wait for a request that waits for it.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};

/// How long the kernel may keep a listing of a directory that changes without it.
pub(crate) const VOLATILE: Duration = Duration::from_secs(1);

/// What the kernel is to forget of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// Listing or contents, and attributes.
    All,
    /// Attributes alone.
    Attributes,
}

impl What {
    /// The offset that says so to the kernel: it takes a negative one for "no contents".
    fn offset(self) -> i64 {
        match self {
            Self::All => 0,
            Self::Attributes => -1,
        }
    }
}

/// Queue of nodes of which the kernel is to forget something.
#[derive(Default)]
pub(crate) struct Invalidator {
    running: Mutex<Option<Running>>,
}

struct Running {
    orders: Sender<((u64, What), Instant)>,
    thread: JoinHandle<()>,
}

impl Invalidator {
    /// Starts the thread.
    pub(crate) fn start(&self, notifier: Notifier) -> io::Result<()> {
        let (orders, queue) = channel();
        let thread = std::thread::Builder::new().name("axiomfs-notify".into()).spawn(move || {
            serve(&queue, |(node, what)| {
                if let Err(error) = notifier.inval_inode(INodeNo(node), what.offset(), 0) {
                    tracing::debug!(%error, node, "The kernel did not take a notification");
                }
            });
        })?;
        *lock(&self.running) = Some(Running { orders, thread });
        Ok(())
    }

    /// Lets the kernel forget `node` after `delay`. Several orders for one node become one, at the earliest time.
    pub(crate) fn order(&self, node: u64, delay: Duration) {
        self.send(node, What::All, delay);
    }

    /// Lets the kernel forget the attributes of `node` and keep its contents.
    pub(crate) fn order_attributes(&self, node: u64) {
        self.send(node, What::Attributes, Duration::ZERO);
    }

    fn send(&self, node: u64, what: What, delay: Duration) {
        if let Some(running) = &*lock(&self.running)
            && running.orders.send(((node, what), Instant::now() + delay)).is_err()
        {
            tracing::debug!(node, "No thread takes notifications any more");
        }
    }

    /// Ends the thread; what is queued is dropped.
    pub(crate) fn stop(&self) {
        let running = lock(&self.running).take();
        if let Some(Running { orders, thread }) = running {
            drop(orders);
            if thread.join().is_err() {
                tracing::error!("The thread for notifications ended with a panic");
            }
        }
    }
}

fn serve(queue: &Receiver<((u64, What), Instant)>, mut notify: impl FnMut((u64, What))) {
    let mut due: BTreeMap<(u64, What), Instant> = BTreeMap::new();
    loop {
        let now = Instant::now();
        due.retain(|node, at| {
            let keep = *at > now;
            if !keep {
                notify(*node);
            }
            keep
        });
        let order = match due.values().min() {
            Some(next) => queue.recv_timeout(next.saturating_duration_since(now)),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match order {
            Ok((node, at)) => {
                let earliest = due.entry(node).or_insert(at);
                *earliest = at.min(*earliest);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_for_one_node_become_one_at_the_earliest_time() {
        let (orders, queue) = channel();
        let (told, heard) = channel();
        let thread = std::thread::spawn(move || serve(&queue, |order| told.send(order).unwrap()));
        let now = Instant::now();
        orders.send(((3, What::All), now + Duration::from_secs(60))).unwrap();
        orders.send(((11, What::Attributes), now + Duration::from_millis(50))).unwrap();
        orders.send(((3, What::All), now + Duration::from_millis(10))).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok((3, What::All)));
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok((11, What::Attributes)));
        drop(orders);
        thread.join().unwrap();
        assert!(heard.recv().is_err(), "the order in a minute was the same one");
    }
}
