//! A test filesystem that can lose power.
//!
//! Everything lives in memory. What a program has written is kept apart from what it has made durable, and
//! [`Disk::after_cut`] says what a machine would find on its disk if the power failed now. The rules are
//! stricter than any one real filesystem, so that a program which is right here is right on all of them:
//!
//! - Bytes, sizes, holes and preallocations of a file become durable by `fsync`/`fdatasync` of that file, and by nothing else.
//! - A directory entry becomes durable by `fsync` of its directory, and by nothing else: not by `fsync` of the file it names.
//!   `fsync` of either directory of a `rename` makes both of its halves durable; a rename is never half done.
//! - What isn't durable survives a cut in any subset and thereby in any order, and a write may survive in part, sector by sector.
//! - An `fsync` that fails makes nothing durable, ever: programs go on seeing what they wrote, and the next `fsync` finds nothing to do.
//! - Of two changes to the same directory entry the later one wins if both survive, and a file is never in two
//!   places because a rename survived and the step before it did not.
//!
//! Not modelled: extended attributes (refused), timestamps (always kept), device nodes (refused).

mod adapter;
mod blocks;
mod cut;
mod disk;
pub mod oracle;
#[cfg(test)]
mod rules;
mod switch;
mod template;
mod transfer;

pub use adapter::PowercutFs;
pub use blocks::{BLOCK, Blocks, SECTOR};
pub use cut::Loss;
pub use disk::{Attributes, Change, Disk, Ino, Kind, ROOT};
pub use switch::{Failing, Failure, Switch};
pub use template::{Template, repository_on, unmount};
