//! What the SDK and the server say, in the store's words.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use axiomfs_api::{StoreError, StoreErrorKind};

/// The failure of a request. Says what the server's code and words were and never what was sent: no header, no credential.
pub(crate) fn failed<E>(operation: &'static str, object: &str, error: SdkError<E, HttpResponse>) -> StoreError
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let (kind, words) = match &error {
        SdkError::TimeoutError(_) => (StoreErrorKind::Timeout, words(&error)),
        SdkError::DispatchFailure(failure) => {
            let kind = match () {
                () if names_credentials(&error) => StoreErrorKind::AccessDenied,
                () if failure.is_timeout() => StoreErrorKind::Timeout,
                () if failure.is_user() || is_stranger(&words(&error)) => StoreErrorKind::Invalid,
                () => StoreErrorKind::Unavailable,
            };
            (kind, words(&error))
        }
        SdkError::ConstructionFailure(_) if names_credentials(&error) => (StoreErrorKind::AccessDenied, words(&error)),
        SdkError::ConstructionFailure(_) => (StoreErrorKind::Invalid, words(&error)),
        SdkError::ServiceError(service) => {
            let (status, code) = (service.raw().status().as_u16(), service.err().code());
            let message = service.err().message().unwrap_or_default();
            (kind(status, code), format!("The server answered {status} {} {message}", code.unwrap_or("")))
        }
        SdkError::ResponseError(response) => {
            (kind(response.raw().status().as_u16(), None).max_transient(), words(&error))
        }
        _ => (StoreErrorKind::Unavailable, words(&error)),
    };
    StoreError::new(kind, operation, object).with_source(words.trim_end().to_owned())
}

/// Whether a connection failed because the server's certificate is not trusted: trying again does not help. In rustls' words,
/// whose error the SDK hides behind its own.
fn is_stranger(words: &str) -> bool {
    words.contains("invalid peer certificate")
}

/// The status that the server answered with, if it did.
pub(crate) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

trait MaxTransient {
    fn max_transient(self) -> Self;
}

impl MaxTransient for StoreErrorKind {
    /// An answer that could not be read says nothing for good.
    fn max_transient(self) -> Self {
        if self.is_transient() { self } else { Self::Unavailable }
    }
}

/// What a status and an error code mean. Codes: Amazon S3 API reference, "Error responses".
fn kind(status: u16, code: Option<&str>) -> StoreErrorKind {
    match code.unwrap_or_default() {
        "NoSuchKey" => return StoreErrorKind::NotFound,
        // Not the object is missing but all of them: nobody may take this for an empty store.
        "NoSuchBucket" => return StoreErrorKind::Invalid,
        "PreconditionFailed" => return StoreErrorKind::AlreadyExists,
        "ConditionalRequestConflict" | "OperationAborted" => return StoreErrorKind::Unavailable,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "BandwidthLimitExceeded" => return StoreErrorKind::Throttled,
        "RequestTimeout" => return StoreErrorKind::Timeout,
        // Damaged on the way: sent again it may arrive.
        "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
            return StoreErrorKind::Unavailable;
        }
        "InvalidRange" => return StoreErrorKind::Corrupt,
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => return StoreErrorKind::NoSpace,
        _ => {}
    }
    match status {
        404 => StoreErrorKind::NotFound,
        401 | 403 => StoreErrorKind::AccessDenied,
        408 => StoreErrorKind::Timeout,
        409 => StoreErrorKind::Unavailable,
        412 => StoreErrorKind::AlreadyExists,
        416 => StoreErrorKind::Corrupt,
        429 => StoreErrorKind::Throttled,
        501 => StoreErrorKind::Invalid,
        503 => StoreErrorKind::Throttled,
        507 => StoreErrorKind::NoSpace,
        500..=599 => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Invalid,
    }
}

/// An error and its causes in one line, each once.
pub(crate) fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        next = cause.source();
    }
    words
}

/// Whether no credentials could be had: more tries would not find any. A provider that did not answer in time may.
fn names_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<CredentialsError>() {
            return !matches!(error, CredentialsError::ProviderTimedOut(_));
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_whether_to_try_again() {
        for (status, code, expected) in [
            (404, Some("NoSuchKey"), StoreErrorKind::NotFound),
            (404, None, StoreErrorKind::NotFound),
            (404, Some("NoSuchBucket"), StoreErrorKind::Invalid),
            (412, Some("PreconditionFailed"), StoreErrorKind::AlreadyExists),
            (409, Some("ConditionalRequestConflict"), StoreErrorKind::Unavailable),
            (503, Some("SlowDown"), StoreErrorKind::Throttled),
            (503, None, StoreErrorKind::Throttled),
            (500, Some("InternalError"), StoreErrorKind::Unavailable),
            (502, None, StoreErrorKind::Unavailable),
            (403, Some("AccessDenied"), StoreErrorKind::AccessDenied),
            (403, Some("SignatureDoesNotMatch"), StoreErrorKind::AccessDenied),
            (416, Some("InvalidRange"), StoreErrorKind::Corrupt),
            (400, Some("BadDigest"), StoreErrorKind::Unavailable),
            (400, Some("RequestTimeout"), StoreErrorKind::Timeout),
            (501, Some("NotImplemented"), StoreErrorKind::Invalid),
            (301, Some("PermanentRedirect"), StoreErrorKind::Invalid),
            (507, None, StoreErrorKind::NoSpace),
        ] {
            assert_eq!(kind(status, code), expected, "{status} {code:?}");
        }
    }
}
