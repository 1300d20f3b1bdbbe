//! The one place where errors of the tree become errno values.

use axiomfs_live::FsError;
use fuser::Errno;

/// The errno a caller of the kernel gets for `error`.
pub(crate) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::ReadOnly => Errno::EROFS,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::QuotaExceeded => Errno::EDQUOT,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NotPermitted => Errno::EPERM,
        FsError::Access => Errno::EACCES,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::AttributeTooLarge => Errno::E2BIG,
        FsError::Range => Errno::ENXIO,
        FsError::CrossDevice => Errno::EXDEV,
        FsError::FileTooLarge => Errno::EFBIG,
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::BadHandle => Errno::EBADF,
        FsError::Stale => Errno::ESTALE,
        FsError::Busy => Errno::EBUSY,
        FsError::WouldBlock => Errno::EAGAIN,
        FsError::TimedOut(_) | FsError::Damaged(_) | FsError::Io(_) => Errno::EIO,
        FsError::Fenced => Errno::EROFS,
    }
}

/// Like [`errno`], and writes into the log what an errno can't tell: which object, which operation.
pub(crate) fn report(operation: &'static str, error: &FsError) -> Errno {
    if matches!(error, FsError::TimedOut(_) | FsError::Io(_)) {
        tracing::warn!(operation, %error, "Answered EIO");
    }
    errno(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_name_an_object_are_input_output_errors() {
        assert_eq!(errno(&FsError::Io("pack 12 is missing".into())).code(), libc::EIO);
        assert_eq!(errno(&FsError::TimedOut("store".into())).code(), libc::EIO);
    }

    #[test]
    fn callers_can_tell_why_a_write_was_refused() {
        assert_eq!(errno(&FsError::ReadOnly).code(), libc::EROFS);
        assert_eq!(errno(&FsError::Fenced).code(), libc::EROFS);
        assert_eq!(errno(&FsError::NoSpace).code(), libc::ENOSPC);
        assert_eq!(errno(&FsError::CrossDevice).code(), libc::EXDEV);
        assert_eq!(errno(&FsError::NotPermitted).code(), libc::EPERM);
    }

    #[test]
    fn a_missing_attribute_is_not_a_missing_file() {
        assert_eq!(errno(&FsError::NoAttribute).code(), libc::ENODATA);
        assert_eq!(errno(&FsError::NotFound).code(), libc::ENOENT);
    }
}
