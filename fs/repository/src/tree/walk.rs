//! Visiting the nodes that a tree doesn't share with others.

use super::{Node, NodeSource, Root, load};
use crate::ids::ChunkId;

/// What a walk calls for each node.
pub type Visit<'a, E> = dyn FnMut(ChunkId, &Node) -> Result<(), E> + 'a;

/// Visits the nodes of the tree `root` for which `is_new` is true, in key order, each before its children, and descends only through those:
/// below a node that is known, all nodes are known. `is_new` is asked once for each edge, before the node is read.
///
/// # Errors
/// Those of `src` and of `visit`, which end the walk.
pub fn walk_new<S: NodeSource>(
    src: &S,
    root: Option<Root>,
    is_new: &mut dyn FnMut(&ChunkId) -> bool,
    visit: &mut Visit<'_, S::Error>,
) -> Result<(), S::Error> {
    match root {
        Some(root) => walk(src, root.node, root.level()?, is_new, visit),
        None => Ok(()),
    }
}

fn walk<S: NodeSource>(
    src: &S,
    id: ChunkId,
    level: u8,
    is_new: &mut dyn FnMut(&ChunkId) -> bool,
    visit: &mut Visit<'_, S::Error>,
) -> Result<(), S::Error> {
    if !is_new(&id) {
        return Ok(());
    }
    let node = load(src, &id, level)?;
    visit(id, &node)?;
    for child in node.child_ids() {
        walk(src, child, level - 1, is_new, visit)?;
    }
    Ok(())
}
