//! Counting what a change takes away of a file.
//!
//! That is done with the change itself, under the lock that everybody waits for, where there is little to look at. A file of millions of
//! extents is looked through before, in steps without the lock; the count stands if the file is still the same then.

use std::ops::Range;

use axiomfs_repository::record::Inode;

use super::read::RUNS_AT_A_TIME;
use crate::change::{Change, OpResult};
use crate::extent_map::{Run, RunSource};
use crate::types::{Access, FsError, FsResult, NodeId};
use crate::volume::Volume;

/// How often it is counted again where the file changes meanwhile.
const TRIES: usize = 8;

/// The bytes of a part of a file that are no hole, when it was like `inode`.
#[derive(Debug)]
pub(crate) struct Cut {
    inode: Inode,
    range: Range<u64>,
    bytes: u64,
}

impl Volume {
    /// Counts what `range` has. `None` where these are few runs, or the file changes all the time: then the change is to count itself.
    ///
    /// # Errors
    /// `Stale`, or the tree can't be read.
    pub(crate) fn count_cut(&self, access: Access, node: NodeId, range: Range<u64>) -> FsResult<Option<Cut>> {
        let look = |from: u64| {
            self.shared.look(access, node, |view| {
                let inode = view.inode(node.ino)?.ok_or(FsError::Stale)?;
                let runs = view.first_runs(node.ino, from, range.end.min(inode.size), RUNS_AT_A_TIME)?;
                Ok((runs, inode))
            })
        };
        'again: for _ in 0..TRIES {
            let (mut runs, inode) = look(range.start)?;
            if runs.len() < RUNS_AT_A_TIME {
                return Ok(None);
            }
            if access == Access::Cached {
                return Err(FsError::WouldBlock);
            }
            let mut bytes = 0;
            while let Some(end) = runs.last().map(Run::end) {
                bytes += no_holes(&runs);
                let (next, now) = look(end)?;
                if now != inode {
                    continue 'again;
                }
                runs = next;
            }
            return Ok(Some(Cut { inode, range, bytes }));
        }
        Ok(None)
    }
}

fn no_holes(runs: &[Run]) -> u64 {
    runs.iter().filter(|run| run.source != RunSource::Hole).map(|run| run.len).sum()
}

/// Bytes within `range`, which ends where the file does at most, that are no hole. `counted` is what was counted before; nothing of the
/// inode may have been changed since by this change.
pub(crate) fn allocated(change: &mut Change<'_>, ino: u64, range: Range<u64>, counted: Option<&Cut>) -> OpResult<u64> {
    if let Some(cut) = counted
        && cut.inode == *change.inode(ino)?
        && cut.range.start == range.start
        && cut.range.end.min(cut.inode.size) == range.end
    {
        return Ok(cut.bytes);
    }
    let (mut at, mut bytes) = (range.start, 0);
    while at < range.end {
        let runs = change.view.first_runs(ino, at, range.end, RUNS_AT_A_TIME)?;
        bytes += no_holes(&runs);
        at = runs.last().map_or(range.end, Run::end);
    }
    Ok(bytes)
}
