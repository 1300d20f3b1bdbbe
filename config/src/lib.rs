//! Settings: YAML text to typed, bounded, validated values, and back.
//!
//! This crate only parses. It reads no file and no environment, knows no plugin, and depends on nothing of ours; the
//! command line hands it text and passes the values on. Every error is one line that says where, what and what to do.
#![forbid(unsafe_code)]

mod document;
mod error;
mod pipeline;
mod render;
mod s3;
mod settings;
mod units;

pub use error::ConfigError;
pub use pipeline::{
    ChainSettings, LimitSettings, MAX_ENTRIES, MAX_STEPS, OnError, OnStoreError, Pipeline, Policies, Retry, Rotate,
    RouteSettings, Selector, StepSettings, StoreSettings, Uploads, Verify,
};
pub use s3::{S3Encryption, S3Settings};
pub use settings::{
    CacheSettings, CheckpointSettings, CommitSettings, Durability, LogSettings, Settings, StagingSettings, VERSION,
};
pub use units::{format_bytes, format_duration, parse_bytes, parse_duration};
