/// What a plugin does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Splits streams.
    Chunker,
    /// Changes frames reversibly.
    Transform,
    /// Encrypts and authenticates; always the last step.
    Seal,
    /// Keeps objects.
    Store,
}

/// What the host must know of a plugin before it runs any of its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Stable name, as in a chain: `zstd`.
    pub id: &'static str,
    /// What it does.
    pub kind: Kind,
    /// Version of the code, for people.
    pub version: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Format number that it writes.
    pub writes: u16,
    /// Format numbers that it reads.
    pub reads: &'static [u16],
    /// Capabilities it brings, e.g. `compression`.
    pub provides: &'static [&'static str],
    /// Capabilities that must stand somewhere in the chain.
    pub requires: &'static [&'static str],
    /// Capabilities or ids that may only stand after it.
    pub before: &'static [&'static str],
    /// Capabilities or ids that may only stand before it.
    pub after: &'static [&'static str],
    /// Most memory one worker may use, in bytes.
    pub memory: usize,
    /// Whether a frame stays correct without this step (then `on_error: skip` is allowed).
    pub skippable: bool,
}
