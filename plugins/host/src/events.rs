use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::pool::lock;

/// Most events kept.
const KEPT: usize = 256;

/// Something people may want to know: a swap, a refusal, a plugin loaded or unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEvent {
    /// Counts up from 1 without gaps.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// A short, stable word: `chain`, `plugin`, `routes`, `refused`.
    pub kind: &'static str,
    /// In words.
    pub text: String,
}

/// The latest events.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<VecDeque<HostEvent>>,
}

impl Events {
    pub fn add(&self, kind: &'static str, text: String) {
        tracing::info!(kind, "{text}");
        let mut ring = lock(&self.ring);
        let number = ring.back().map_or(0, |event| event.number) + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(HostEvent { number, at: SystemTime::now(), kind, text });
    }

    /// Those with a number above `number`, oldest first.
    pub fn after(&self, number: u64) -> Vec<HostEvent> {
        lock(&self.ring).iter().filter(|event| event.number > number).cloned().collect()
    }
}
