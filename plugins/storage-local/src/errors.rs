use std::io::{self, ErrorKind};

use axiomfs_api::{ObjectKey, StoreError, StoreErrorKind};

/// What the operating system said, in the store's words.
pub fn failed(operation: &'static str, object: &str, error: io::Error) -> StoreError {
    StoreError::new(kind(&error), operation, object).with_source(error)
}

/// The same for a read, where a directory or file in the place of a segment means that there is no such object.
pub fn reading(operation: &'static str, key: &ObjectKey, error: io::Error) -> StoreError {
    if is_absent(&error) {
        return StoreError::new(StoreErrorKind::NotFound, operation, key.as_str()).with_source(error);
    }
    failed(operation, key.as_str(), error)
}

/// The same for a put, where nothing can be missing but the file that was to be put.
pub fn writing(key: &ObjectKey, error: io::Error) -> StoreError {
    let mut failure = failed("put", key.as_str(), error);
    if failure.kind == StoreErrorKind::NotFound {
        failure.kind = StoreErrorKind::Invalid;
    }
    failure
}

/// Whether there is no object of that name.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory)
}

fn kind(error: &io::Error) -> StoreErrorKind {
    match error.kind() {
        ErrorKind::NotFound => StoreErrorKind::NotFound,
        ErrorKind::AlreadyExists => StoreErrorKind::AlreadyExists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreErrorKind::AccessDenied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StoreErrorKind::NoSpace,
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            StoreErrorKind::Invalid
        }
        ErrorKind::UnexpectedEof => StoreErrorKind::Corrupt,
        ErrorKind::TimedOut => StoreErrorKind::Timeout,
        _ => StoreErrorKind::Unavailable,
    }
}
