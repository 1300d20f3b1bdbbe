//! A few files of each ending of names, so that somebody who gives advice can look at what they are like.

use std::collections::HashMap;
use std::sync::Mutex;

use axiomfs_repository::Label;

use crate::types::{Access, FileKind, Handle, NodeId, Time};
use crate::volume::{Volume, lock};

/// Files remembered of each ending.
const KEPT: usize = 12;
/// Files of at least so many bytes and with an ending share frames only with others like that, so that what becomes of them can be
/// counted. Of the rest, what happens to lie in frames of one ending is.
pub(crate) const SAMPLED: u64 = 128 << 10;
/// Longest ending, in bytes.
const LONGEST: usize = 16;

/// Some files by ending, each as likely as any other of its ending (reservoir sampling).
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<HashMap<Label, (u64, Vec<u64>)>>);

impl Samples {
    /// A file of the ending was stored.
    pub fn note(&self, label: Label, ino: u64) {
        let mut all = lock(&self.0);
        let (count, kept) = all.entry(label).or_default();
        if kept.contains(&ino) {
            return;
        }
        *count += 1;
        if kept.len() < KEPT {
            kept.push(ino);
            return;
        }
        // Any fixed mixing will do: nobody gains by choosing which files are looked at.
        let place = count.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) % *count;
        if let Some(slot) = usize::try_from(place).ok().and_then(|place| kept.get_mut(place)) {
            *slot = ino;
        }
    }

    fn of(&self, label: Label) -> Vec<u64> {
        lock(&self.0).get(&label).map(|(_, kept)| kept.clone()).unwrap_or_default()
    }
}

/// A file of an ending, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The file.
    pub node: NodeId,
    /// When it was last read or changed, whichever is later.
    pub used: Time,
    /// Its size in bytes.
    pub size: u64,
}

impl Volume {
    /// Some of the files with chunks counted under `label`, as they are now; those that are gone are left out.
    pub fn samples(&self, label: Label) -> Vec<Sample> {
        let look = |ino: u64| {
            let attr = self.getattr(Access::Wait, NodeId::live(ino)).ok().filter(|attr| attr.kind == FileKind::File)?;
            let used = attr.mtime.max(attr.atime);
            Some(Sample { node: NodeId::live(ino), used, size: attr.size })
        };
        self.shared.samples.of(label).into_iter().filter_map(look).collect()
    }

    /// The first bytes of a file, without counting as somebody who reads it.
    pub fn peek(&self, node: NodeId, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.read(Access::Wait, node, Handle(0), 0, &mut bytes, len) {
            Ok(()) => bytes,
            Err(error) => {
                tracing::debug!(%error, ino = node.ino, "A file can't be looked at");
                Vec::new()
            }
        }
    }
}

/// The ending of a file's settled name, where it is a plain word: `mp4` of `.film.mp4.Xy12zA`. As it is written: globs tell
/// large letters from small ones.
pub(crate) fn ending(path: &[u8]) -> Option<String> {
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    let name = axiomfs_host::settled(name);
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    let ending = &name[dot + 1..];
    let plain = !ending.is_empty() && ending.len() <= LONGEST && ending.iter().all(u8::is_ascii_alphanumeric);
    plain.then(|| ending.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_a_plain_word() {
        for (path, wanted) in [
            ("/a/film.MP4", Some("MP4")),
            ("/.film.mp4.Xy12zA", Some("mp4")),
            ("/x.tar.gz", Some("gz")),
            ("/a.b/c", None),
            ("/.bashrc", None),
            ("/x.", None),
            ("/x.a b", None),
            ("/x.abcdefghijklmnopq", None),
            ("", None),
        ] {
            assert_eq!(ending(path.as_bytes()).as_deref(), wanted, "{path}");
        }
    }
}
