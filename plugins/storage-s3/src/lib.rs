//! A store in an S3 bucket, on the AWS SDK.
//!
//! Calls block: each drives its request on a small runtime of the store's own, watches that bytes flow, and gives up
//! when none do. Nothing is repeated here; a wrapper above does that for every store alike.
#![forbid(unsafe_code)]

mod client;
mod errors;
mod limiter;
mod location;
mod store;
mod upload;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use axiomfs_api::{Descriptor, Kind};

pub use location::{BadLocation, Location};
pub use store::S3Store;

/// What this plugin is.
pub static DESCRIPTOR: Descriptor = Descriptor {
    id: "s3",
    kind: Kind::Store,
    version: env!("CARGO_PKG_VERSION"),
    summary: "Objects in a bucket of S3 or a server that speaks its protocol",
    writes: 1,
    reads: &[1],
    provides: &["storage"],
    requires: &[],
    before: &[],
    after: &[],
    memory: 64 << 20,
    skippable: false,
};

/// How a bucket is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// Where it is.
    pub location: Location,
    /// Longest time without a byte of progress before a request counts as lost.
    pub timeout: Duration,
    /// Most bytes per second sent, over all requests.
    pub upload_rate: Option<u64>,
    /// Most bytes per second received, over all requests.
    pub download_rate: Option<u64>,
    /// Certificate authorities beside the system's, as a PEM file.
    pub ca_bundle: Option<PathBuf>,
    /// Storage class of packs of file data; the bucket's default if none.
    pub data_class: Option<String>,
    /// Storage class of all else: tree nodes, index, heads, keys.
    pub metadata_class: Option<String>,
    /// Encryption by the server, beside our own.
    pub encryption: Option<ServerEncryption>,
    /// Whether to look before each create-only put instead of asking the server for it: for servers without conditional
    /// writes, and only safe with a single writer.
    pub look_before_create: bool,
}

impl S3Options {
    /// The defaults for a location: no limits, nothing special.
    pub fn new(location: Location) -> Self {
        Self {
            location,
            timeout: Duration::from_secs(10),
            upload_rate: None,
            download_rate: None,
            ca_bundle: None,
            data_class: None,
            metadata_class: None,
            encryption: None,
            look_before_create: false,
        }
    }
}

/// Encryption by the server (`x-amz-server-side-encryption`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEncryption {
    /// With keys of S3 (`AES256`).
    S3,
    /// With a key of the key management service (`aws:kms`): its id, or the account's default.
    Kms(Option<String>),
}
