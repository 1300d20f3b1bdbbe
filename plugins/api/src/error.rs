use thiserror::Error;

/// Why a plugin could not do its work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PluginError {
    /// A parameter the plugin does not have.
    #[error("Plugin {plugin} has no parameter {key:?}; it has: {known}")]
    UnknownParameter {
        /// The plugin's id.
        plugin: &'static str,
        /// What was asked for.
        key: String,
        /// The parameters there are, comma-separated.
        known: &'static str,
    },
    /// A parameter's value is of the wrong type or out of bounds.
    #[error("Parameter {key} of plugin {plugin} must be {expected}, not {value:?}")]
    BadParameter {
        /// The plugin's id.
        plugin: &'static str,
        /// The parameter.
        key: String,
        /// What was given.
        value: String,
        /// What is allowed, in words.
        expected: &'static str,
    },
    /// The output would pass its bound.
    #[error("Output would be larger than its bound of {limit} bytes")]
    OutputTooLarge {
        /// The bound in bytes.
        limit: usize,
    },
    /// The decoded length is not the authenticated one.
    #[error("Decoded to {actual} bytes, expected {expected}")]
    LengthMismatch {
        /// What the frame's record says.
        expected: usize,
        /// What came out.
        actual: usize,
    },
    /// A format number this code does not read.
    #[error("Plugin {plugin} does not read format {format}; a newer version would")]
    UnknownFormat {
        /// The plugin's id.
        plugin: &'static str,
        /// The number found.
        format: u16,
    },
    /// The encoded bytes are not what the plugin writes.
    #[error("Plugin {plugin} could not decode its input: {reason}")]
    Corrupt {
        /// The plugin's id.
        plugin: &'static str,
        /// The codec's own words.
        reason: String,
    },
    /// The plugin took more memory than it may.
    #[error("Plugin {plugin} took {used} bytes of memory for one frame; {bound} are allowed")]
    MemoryExceeded {
        /// The plugin's id.
        plugin: &'static str,
        /// What it held at once, in bytes.
        used: usize,
        /// What it may, in bytes.
        bound: usize,
    },
    /// The plugin did not finish a frame in its time.
    #[error("Plugin {plugin} did not finish a frame within {bound:?}")]
    TimedOut {
        /// The plugin's id.
        plugin: &'static str,
        /// The time it had.
        bound: std::time::Duration,
    },
    /// The plugin made a frame that does not decode, or broke a bound, and is not given frames any more.
    #[error("Plugin {plugin} is not trusted any more: {reason}")]
    Distrusted {
        /// The plugin's id.
        plugin: &'static str,
        /// What it did.
        reason: String,
    },
    /// Encoding failed inside the plugin.
    #[error("Plugin {plugin} failed: {reason}")]
    Failed {
        /// The plugin's id.
        plugin: &'static str,
        /// The codec's own words.
        reason: String,
    },
}

/// What kind of failure a store met. Says whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No object of that name. Final.
    NotFound,
    /// A create-only put met an existing object. Final.
    AlreadyExists,
    /// The store does not let us. Final until somebody changes that.
    AccessDenied,
    /// The store, its disk or quota, is full. Final until there is room.
    NoSpace,
    /// The request makes no sense to the store. Final.
    Invalid,
    /// The object is shorter than the range asked for, or the store returned something else than was stored. Final.
    Corrupt,
    /// No answer in time; the request may or may not have been carried out. Worth another try.
    Timeout,
    /// The store asks to slow down. Worth another try, later.
    Throttled,
    /// Any other failure that may pass. Worth another try.
    Unavailable,
}

impl StoreErrorKind {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Timeout | Self::Throttled | Self::Unavailable)
    }
}

/// A failed call to a store.
#[derive(Debug, Error)]
#[error("Store could not {operation} {object}")]
pub struct StoreError {
    /// What kind of failure.
    pub kind: StoreErrorKind,
    /// The verb: `get`, `put`, `delete`, `list`.
    pub operation: &'static str,
    /// The object's or prefix's name.
    pub object: String,
    /// What the store or the operating system said.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// A failure without a deeper cause.
    pub fn new(kind: StoreErrorKind, operation: &'static str, object: impl Into<String>) -> Self {
        Self { kind, operation, object: object.into(), source: None }
    }

    /// The same with its cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}
