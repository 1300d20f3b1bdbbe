//! What happened lately, for people.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::volume::lock;

/// Events kept.
const KEPT: usize = 1000;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// `info`, `warning` or `error`.
    pub kind: &'static str,
    /// What, in one line.
    pub text: String,
}

/// The latest events, the oldest first.
#[derive(Debug, Default)]
pub struct Events {
    ring: Mutex<VecDeque<Event>>,
}

impl Events {
    /// Adds one; the same text within the latest few is not repeated.
    pub fn add(&self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        let mut ring = lock(&self.ring);
        if kind == "error" && ring.iter().rev().take(8).any(|e| e.text == text) {
            return;
        }
        match kind {
            "error" => tracing::error!("{text}"),
            "warning" => tracing::warn!("{text}"),
            _ => tracing::info!("{text}"),
        }
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Event { at: SystemTime::now(), kind, text });
    }

    /// All that are kept, the oldest first.
    pub fn all(&self) -> Vec<Event> {
        lock(&self.ring).iter().cloned().collect()
    }
}
