//! What is found on the disk after the power failed.

use super::blocks::{Blocks, SECTOR};
use super::disk::{Change, Disk, Ino, Inode, Kind, ROOT, close_over, set_entries};
use crate::rng::Rng;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How much of what was not durable a cut takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it.
    Everything,
    /// None of it, as when only the program died.
    Nothing,
    /// All after a random moment: the disk wrote in order, and the last write may be torn.
    Tail,
    /// A random subset, so that later changes survive earlier ones.
    Subset,
    /// A random subset, and writes survive in part: a prefix, or single sectors, or only as a length.
    Torn,
}

impl Loss {
    /// Every kind of loss.
    pub const ALL: [Loss; 5] = [Loss::Everything, Loss::Nothing, Loss::Tail, Loss::Subset, Loss::Torn];
}

impl Disk {
    /// The disk as the machine finds it when it starts again: all of it durable, nothing open.
    pub fn after_cut(&self, seed: u64, loss: Loss) -> Disk {
        let mut rng = Rng::new(seed);
        let mut fate = Fate::new(self, loss, &mut rng);
        let mut entries = self.synced_entries.clone();
        let mut survived: Vec<bool> = self.pending.iter().map(|change| fate.survives(change.order, &mut rng)).collect();
        close_over(&mut survived, &self.pending, |later, earlier| later.needs(earlier));
        for (change, _) in self.pending.iter().zip(&survived).filter(|(_, survived)| **survived) {
            set_entries(&mut entries, change);
        }
        let mut disk = Disk::new();
        let reachable = reachable(&entries, &self.inodes);
        entries.retain(|(parent, _), ino| reachable.contains(parent) && reachable.contains(ino));
        // In the order of their numbers: the random numbers must not depend on the order of a hash map.
        let mut inodes: Vec<Ino> = reachable.into_iter().collect();
        inodes.sort_unstable();
        for ino in inodes {
            disk.inodes.insert(ino, self.inodes[&ino].survivor(&mut fate, &mut rng));
        }
        disk.entries = entries.clone();
        disk.synced_entries = entries;
        disk.renumber_after(self);
        disk
    }
}

/// Which changes survive.
struct Fate {
    loss: Loss,
    /// For [`Loss::Tail`]: the first change that is lost.
    end: u64,
    /// For the subsets: how many of a hundred survive.
    percent: u64,
}

impl Fate {
    fn new(disk: &Disk, loss: Loss, rng: &mut Rng) -> Self {
        let mut orders: Vec<u64> = disk.pending.iter().map(|change| change.order).collect();
        orders.extend(disk.inodes.values().flat_map(|inode| inode.pending.iter().map(|(order, _)| *order)));
        orders.sort_unstable();
        let end = orders.get(rng.below(orders.len() as u64 + 1) as usize).copied().unwrap_or(u64::MAX);
        Fate { loss, end, percent: *rng.pick(&[15, 50, 85]) }
    }

    fn survives(&mut self, order: u64, rng: &mut Rng) -> bool {
        match self.loss {
            Loss::Everything => false,
            Loss::Nothing => true,
            Loss::Tail => order < self.end,
            Loss::Subset | Loss::Torn => in_hundred(self.percent, rng),
        }
    }

    fn tears(&self, order: u64, rng: &mut Rng) -> bool {
        match self.loss {
            Loss::Everything | Loss::Nothing | Loss::Subset => false,
            Loss::Tail => order == self.end,
            Loss::Torn => in_hundred(50, rng),
        }
    }
}

impl Inode {
    /// The inode with what was durable and what of the rest survives.
    fn survivor(&self, fate: &mut Fate, rng: &mut Rng) -> Inode {
        let mut content = self.synced.clone();
        for (order, change) in &self.pending {
            let survives = fate.survives(*order, rng);
            match change {
                Change::Write { offset, data } if fate.tears(*order, rng) => tear(&mut content, *offset, data, rng),
                _ if survives => change.apply(&mut content),
                _ => {}
            }
        }
        let changed = self.attributes != self.synced_attributes;
        let attributes = match fate.loss {
            Loss::Nothing => self.attributes,
            Loss::Everything => self.synced_attributes,
            _ if changed && in_hundred(50, rng) => self.attributes,
            _ => self.synced_attributes,
        };
        Inode {
            kind: self.kind.clone(),
            attributes,
            synced_attributes: attributes,
            synced: content.clone(),
            content,
            pending: Vec::new(),
            lost: false,
            opens: 0,
            ..*self
        }
    }
}

/// True in `percent` of a hundred cases.
fn in_hundred(percent: u64, rng: &mut Rng) -> bool {
    rng.below(100) < percent
}

/// Writes a part of a write: sectors up to one of them, or any of them, or none but the length.
fn tear(content: &mut Blocks, offset: u64, data: &[u8], rng: &mut Rng) {
    let end = offset + data.len() as u64;
    let sectors: Vec<(u64, u64)> = (offset / SECTOR..end.div_ceil(SECTOR))
        .map(|sector| ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end)))
        .collect();
    let prefix = rng.below(sectors.len() as u64 + 1) as usize;
    let style = rng.below(4);
    for (number, (from, to)) in sectors.into_iter().enumerate() {
        let kept = match style {
            0 | 1 => number < prefix,
            2 => in_hundred(50, rng),
            _ => false,
        };
        if kept {
            content.write(from, &data[(from - offset) as usize..(to - offset) as usize]);
        }
    }
    if style >= 2 {
        content.grow(end);
    }
}

/// Inodes that can be reached from the root. Sockets can't: they are gone with the program that bound them.
fn reachable(entries: &BTreeMap<(Ino, Vec<u8>), Ino>, inodes: &HashMap<Ino, Inode>) -> HashSet<Ino> {
    let mut children: HashMap<Ino, Vec<Ino>> = HashMap::new();
    for ((parent, _), ino) in entries {
        children.entry(*parent).or_default().push(*ino);
    }
    let mut found = HashSet::from([ROOT]);
    let mut open = vec![ROOT];
    while let Some(directory) = open.pop() {
        for child in children.get(&directory).into_iter().flatten() {
            if inodes.get(child).is_some_and(|inode| inode.kind != Kind::Socket) && found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}
