//! In which order steps may stand.

use axiomfs_api::{Descriptor, Kind};

use crate::HostError;

/// Checks an order that somebody gave.
///
/// # Errors
/// [`HostError::Order`] naming the rule and the right order; [`HostError::Duplicate`].
pub fn check(steps: &[&Descriptor]) -> Result<(), HostError> {
    for (j, second) in steps.iter().enumerate() {
        for first in &steps[..j] {
            if first.id == second.id {
                return Err(HostError::Duplicate { what: "Plugin", name: first.id.into() });
            }
            match (must_precede(second, first), must_precede(first, second)) {
                (false, _) => {}
                (true, true) => return Err(incompatible(first, second)),
                (true, false) => return Err(misplaced(steps, first, second)),
            }
        }
    }
    Ok(())
}

/// The place in `steps`, which are in order, where `new` may stand; the last of several.
///
/// # Errors
/// [`HostError::Order`] if there is none.
pub fn place(steps: &[&Descriptor], new: &Descriptor) -> Result<usize, HostError> {
    let low = steps.iter().rposition(|step| must_precede(step, new)).map_or(0, |i| i + 1);
    let high = steps.iter().position(|step| must_precede(new, step)).unwrap_or(steps.len());
    if low <= high {
        return Ok(high);
    }
    if let Some(step) = steps.iter().find(|step| must_precede(step, new) && must_precede(new, step)) {
        return Err(incompatible(step, new));
    }
    let (before, after) = (steps[high].id, steps[low - 1].id);
    Err(HostError::Order {
        reason: format!("{} must stand before {before} and after {after}, but {after} stands after {before}", new.id),
        hint: format!("Give the whole order with chain set, or leave {} out", new.id),
    })
}

/// Whether `a` may only stand before `b`.
fn must_precede(a: &Descriptor, b: &Descriptor) -> bool {
    let names = |list: &[&str], d: &Descriptor| list.iter().any(|name| *name == d.id || d.provides.contains(name));
    (a.kind != Kind::Seal && b.kind == Kind::Seal) || names(a.before, b) || names(b.after, a)
}

fn incompatible(a: &Descriptor, b: &Descriptor) -> HostError {
    HostError::Order {
        reason: format!("{} and {} can't be in one chain: each must stand before the other", a.id, b.id),
        hint: "Leave one of them out".into(),
    }
}

/// `second` must stand before `first`, but was given after it.
fn misplaced(steps: &[&Descriptor], first: &Descriptor, second: &Descriptor) -> HostError {
    let why = if first.kind == Kind::Seal { ": the seal is always the last step" } else { "" };
    let reason = format!("{} must stand before {}{why}", second.id, first.id);
    let hint = match sorted(steps) {
        Some(order) => format!("Use the order {}", order.join(" | ")),
        None => "No order of these steps keeps all their rules: leave one out".into(),
    };
    HostError::Order { reason, hint }
}

/// An order that keeps every rule and otherwise the one given, if there is any.
fn sorted(steps: &[&Descriptor]) -> Option<Vec<&'static str>> {
    let mut left: Vec<&Descriptor> = steps.to_vec();
    let mut order = Vec::new();
    while !left.is_empty() {
        let free = |d: &&Descriptor| !left.iter().any(|other| other.id != d.id && must_precede(other, d));
        let next = left.iter().position(free)?;
        order.push(left.remove(next).id);
    }
    Some(order)
}
