use thiserror::Error;

/// Why a settings text was refused. Each is one line; lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The text is longer than any settings file needs.
    #[error("Settings are {len} bytes long, more than {max}; is this the right file?")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// Not YAML.
    #[error("Line {line}: this is no YAML: {problem}")]
    Syntax {
        /// Where the parser stopped.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// No `version`.
    #[error("Line 1: version is missing; write \"version: {supported}\" as the first line")]
    NoVersion {
        /// The version this build reads.
        supported: u64,
    },
    /// A `version` from another time.
    #[error(
        "Line {line}: version {found} is not known here, only {supported}; use a newer axiomfs or \"version: {supported}\""
    )]
    UnknownVersion {
        /// Where it stands.
        line: usize,
        /// What it says.
        found: String,
        /// The version this build reads.
        supported: u64,
    },
    /// A key that does not exist there.
    #[error("Line {line}: there is no setting {key}; {hint}")]
    UnknownKey {
        /// Where it stands.
        line: usize,
        /// The key with its path, as `log.maximum`.
        key: String,
        /// The nearest one there is, or all of them.
        hint: String,
    },
    /// A key without which the part makes no sense.
    #[error("Line {line}: {key} is missing; {hint}")]
    MissingKey {
        /// Where the part begins.
        line: usize,
        /// The key with its path.
        key: String,
        /// What to write.
        hint: String,
    },
    /// A value of the wrong type, out of bounds, or in conflict with another.
    #[error("Line {line}: {key} {problem}; {hint}")]
    BadValue {
        /// Where it stands.
        line: usize,
        /// The key with its path.
        key: String,
        /// What is wrong, as the rest of a sentence that begins with the key.
        problem: String,
        /// What to do.
        hint: String,
    },
}

impl ConfigError {
    /// The line the error is about, from 1, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::TooLong { .. } => None,
            Self::NoVersion { .. } => Some(1),
            Self::Syntax { line, .. }
            | Self::UnknownVersion { line, .. }
            | Self::UnknownKey { line, .. }
            | Self::MissingKey { line, .. }
            | Self::BadValue { line, .. } => Some(*line),
        }
    }
}
