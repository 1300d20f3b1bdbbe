//! Visiting the nodes that a tree doesn't share with others.

use super::overlay::Parts;
use super::{Node, NodeSource, Root, load};
use crate::ids::ChunkId;

/// What a walk calls for each node.
pub type Visit<'a, E> = dyn FnMut(ChunkId, &Node) -> Result<(), E> + 'a;

/// Visits the nodes of the tree `root` for which `is_new` is true, each before its children, in key order within each of
/// the trees that an overlay is made of, and descends only through those:
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
    let Some(root) = root else { return Ok(()) };
    if !root.is_overlay()? {
        return walk(src, root.node, root.level()?, is_new, visit);
    }
    if !is_new(&root.node) {
        return Ok(());
    }
    visit(root.node, &*load(src, &root.node, 0)?)?;
    let Parts { base, deleted, put } = Parts::of(src, Some(root))?;
    for part in [base, deleted, put].into_iter().flatten() {
        walk(src, part.node, part.level()?, is_new, visit)?;
    }
    Ok(())
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
