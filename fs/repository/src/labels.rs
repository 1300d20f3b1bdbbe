//! What became of chunks of one sort, as their owner tells sorts apart: by the endings of files' names.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::repository::lock;
use crate::stats::count;

/// Most labels; what comes later is not told apart.
const MOST: usize = 255;
/// Longest label in bytes.
const LONGEST: usize = 32;

/// A sort of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Label(u8);

impl Label {
    /// Of chunks that nobody tells apart.
    pub const NONE: Self = Self(0);
}

/// What compressing chains made of the chunks of one label. Only of those in frames that hold chunks of no other label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelCount {
    /// The label.
    pub label: Label,
    /// Its name.
    pub name: String,
    /// Frames.
    pub frames: u64,
    /// Bytes that went in.
    pub raw: u64,
    /// Bytes that came out.
    pub encoded: u64,
    /// Time it took.
    pub took: Duration,
}

#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    raw: AtomicU64,
    encoded: AtomicU64,
    nanos: AtomicU64,
}

/// All labels and what was counted of them since the repository was opened.
#[derive(Debug)]
pub(crate) struct Labels {
    names: Mutex<HashMap<Box<str>, Label>>,
    counts: Vec<Counts>,
}

impl Default for Labels {
    fn default() -> Self {
        Self { names: Mutex::default(), counts: (0..=MOST).map(|_| Counts::default()).collect() }
    }
}

impl Labels {
    pub(crate) fn of(&self, name: &str) -> Label {
        if name.is_empty() || name.len() > LONGEST {
            return Label::NONE;
        }
        let mut names = lock(&self.names);
        if let Some(known) = names.get(name) {
            return *known;
        }
        match u8::try_from(names.len() + 1) {
            Ok(number) => {
                names.insert(name.into(), Label(number));
                Label(number)
            }
            Err(_) => Label::NONE,
        }
    }

    pub(crate) fn add(&self, label: Label, raw: u32, encoded: u32, took: Duration) {
        if label == Label::NONE {
            return;
        }
        let counts = &self.counts[usize::from(label.0)];
        count(&counts.frames, 1);
        count(&counts.raw, raw.into());
        count(&counts.encoded, encoded.into());
        count(&counts.nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Those that have frames, the largest first.
    pub(crate) fn counts(&self) -> Vec<LabelCount> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of = |name: &str, label: &Label| {
            let counts = &self.counts[usize::from(label.0)];
            LabelCount {
                label: *label,
                name: name.to_string(),
                frames: load(&counts.frames),
                raw: load(&counts.raw),
                encoded: load(&counts.encoded),
                took: Duration::from_nanos(load(&counts.nanos)),
            }
        };
        let mut all: Vec<LabelCount> =
            lock(&self.names).iter().map(|(name, label)| of(name, label)).filter(|count| count.frames > 0).collect();
        all.sort_by(|a, b| b.raw.cmp(&a.raw).then_with(|| a.name.cmp(&b.name)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_counted() {
        let labels = Labels::default();
        assert_eq!((labels.of(""), labels.of(&"x".repeat(33))), (Label::NONE, Label::NONE));
        let mp4 = labels.of("mp4");
        assert!(mp4 != Label::NONE && labels.of("mp4") == mp4);
        labels.add(mp4, 1000, 900, Duration::from_millis(2));
        labels.add(mp4, 1000, 950, Duration::from_millis(3));
        labels.add(Label::NONE, 7, 7, Duration::ZERO);
        for number in 0..400 {
            labels.add(labels.of(&format!("n{number}")), 1, 1, Duration::ZERO);
        }
        let counts = labels.counts();
        assert_eq!(counts.len(), MOST, "what comes later is not told apart");
        assert_eq!(
            (counts[0].name.as_str(), counts[0].frames, counts[0].raw, counts[0].encoded),
            ("mp4", 2, 2000, 1850)
        );
        assert_eq!(counts[0].took, Duration::from_millis(5));
    }
}
