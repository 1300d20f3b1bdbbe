use std::path::PathBuf;

use crate::document::{Bounds, Cursor, Map};
use crate::error::ConfigError;

const RATE: Bounds<u64> = Bounds { min: 64 << 10, max: 1 << 40 };

/// How a bucket is used; nothing of it counts for a store in a directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct S3Settings {
    /// Storage class of packs of file data.
    pub data_class: Option<String>,
    /// Storage class of all else.
    pub metadata_class: Option<String>,
    /// Encryption by the server, beside ours.
    pub encryption: S3Encryption,
    /// Most bytes per second sent.
    pub up: Option<u64>,
    /// Most bytes per second received.
    pub down: Option<u64>,
    /// Certificate authorities beside the system's, absolute.
    pub ca_bundle: Option<PathBuf>,
}

/// Encryption by the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum S3Encryption {
    /// What the bucket does by itself.
    #[default]
    Bucket,
    /// With keys of S3.
    S3,
    /// With a key of the key management service: its id, or the account's default.
    Kms(Option<String>),
}

impl S3Settings {
    pub(crate) fn read(group: &Cursor<'_>) -> Result<Self, ConfigError> {
        let map = group.mapping(&["storage_class", "encryption", "bandwidth", "ca_bundle"])?;
        let mut settings = Self::default();
        if let Some(group) = map.get("storage_class") {
            let map = group.mapping(&["data", "metadata"])?;
            settings.data_class = class(&map, "data")?;
            settings.metadata_class = class(&map, "metadata")?;
        }
        if let Some(value) = map.get("encryption") {
            settings.encryption = encryption(&value)?;
        }
        if let Some(group) = map.get("bandwidth") {
            let map = group.mapping(&["up", "down"])?;
            settings.up = map.get("up").map(|value| value.bytes(RATE)).transpose()?;
            settings.down = map.get("down").map(|value| value.bytes(RATE)).transpose()?;
        }
        if let Some(value) = map.get("ca_bundle") {
            let path = PathBuf::from(value.text()?);
            if !path.is_absolute() {
                return Err(value.bad("is no absolute path", "begin it with /"));
            }
            settings.ca_bundle = Some(path);
        }
        Ok(settings)
    }
}

fn class(map: &Map<'_>, key: &str) -> Result<Option<String>, ConfigError> {
    let Some(value) = map.get(key) else { return Ok(None) };
    let text = value.text()?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
        return Err(value.bad(format!("is {text:?}"), "write a storage class, as STANDARD_IA"));
    }
    // What has to be thawed first can't be read by a filesystem.
    if ["GLACIER", "DEEP_ARCHIVE"].contains(&text) {
        return Err(value.bad(format!("is {text}"), "choose a class that is read at once, as GLACIER_IR"));
    }
    Ok(Some(text.to_owned()))
}

fn encryption(value: &Cursor<'_>) -> Result<S3Encryption, ConfigError> {
    if value.is_mapping() {
        let map = value.mapping(&["kms"])?;
        let key = map.required("kms", "write {kms: KEY-ID}")?;
        return Ok(S3Encryption::Kms(Some(key.text()?.to_owned())));
    }
    match value.text()? {
        "bucket" => Ok(S3Encryption::Bucket),
        "s3" => Ok(S3Encryption::S3),
        "kms" => Ok(S3Encryption::Kms(None)),
        other => Err(value.bad(format!("is {other:?}"), "write bucket, s3, kms or {kms: KEY-ID}")),
    }
}
