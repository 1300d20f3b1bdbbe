//! The `config` object (format.md §3).

use axiomfs_api::{Body, Store, StoreErrorKind};

use crate::crypto::derive;
use crate::error::RepositoryError;
use crate::ids::{RepositoryId, hex};
use crate::{limits, names};

const FORMAT: u32 = 1;
const FIRST_LINE: &str = "axiomfs repository\n";

/// What `config` says, before it is known to be true.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) repository: RepositoryId,
    authenticated: String,
    mac: [u8; 32],
}

/// Creates `config`; from then on there is a repository.
pub(crate) fn create(
    store: &dyn Store,
    repository: RepositoryId,
    master: &[u8; 32],
    now_ns: i64,
) -> Result<(), RepositoryError> {
    let text = format!("{FIRST_LINE}format: {FORMAT}\nrepository: {repository}\ncreated: {now_ns}\n");
    let mac = mac(repository, master, &text);
    let text = format!("{text}mac: {}\n", hex::encode(mac.as_bytes()));
    let text = format!("{text}check: {}\n", hex::encode(blake3::hash(text.as_bytes()).as_bytes()));
    Ok(store.put_new(&names::key(names::CONFIG)?, Body::Bytes(text.as_bytes()))?)
}

/// Reads and parses `config`.
pub(crate) fn load(store: &dyn Store) -> Result<Config, RepositoryError> {
    let bytes = store.get(&names::key(names::CONFIG)?, limits::CONFIG).map_err(|error| match error.kind {
        StoreErrorKind::NotFound => RepositoryError::NotARepository { location: store.location() },
        _ => error.into(),
    })?;
    decode(&bytes)
}

/// Parses `config`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Config, RepositoryError> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    // Another program's file, or ours with a flipped bit: never a reason to suggest `init`.
    let rest =
        text.strip_prefix(FIRST_LINE).ok_or_else(|| damaged("its first line is not that of an axiomfs repository"))?;
    parse(text, rest)
}

fn parse(text: &str, rest: &str) -> Result<Config, RepositoryError> {
    let (format, rest) = field(rest, "format: ").ok_or_else(|| damaged("its format line is not readable"))?;
    let found: u32 = format.parse().map_err(|_| damaged("its format line is not readable"))?;
    if found != FORMAT {
        let object = names::CONFIG.to_owned();
        return Err(RepositoryError::UnsupportedVersion { object, found, supported: FORMAT });
    }
    let unreadable = || damaged("a line is not readable");
    let (repository, rest) = field(rest, "repository: ").ok_or_else(unreadable)?;
    let (created, rest) = field(rest, "created: ").ok_or_else(unreadable)?;
    let authenticated = text[..text.len() - rest.len()].to_owned();
    let (mac, rest) = field(rest, "mac: ").ok_or_else(unreadable)?;
    let checked = &text[..text.len() - rest.len()];
    let (check, rest) = field(rest, "check: ").ok_or_else(unreadable)?;
    if hex::decode(check) != Some(*blake3::hash(checked.as_bytes()).as_bytes()) {
        return Err(damaged("its checksum does not fit"));
    }
    created.parse::<i64>().map_err(|_| unreadable())?;
    let repository = RepositoryId::from_hex(repository).ok_or_else(unreadable)?;
    let mac = hex::decode(mac).ok_or_else(unreadable)?;
    if !rest.is_empty() {
        return Err(damaged("it is longer than its fields"));
    }
    Ok(Config { repository, authenticated, mac })
}

impl Config {
    /// Checks that whoever had the master key wrote this.
    pub(crate) fn authenticate(&self, master: &[u8; 32]) -> Result<(), RepositoryError> {
        // blake3's comparison takes the same time whatever differs.
        if mac(self.repository, master, &self.authenticated) == blake3::Hash::from_bytes(self.mac) {
            Ok(())
        } else {
            Err(damaged("its seal does not fit"))
        }
    }
}

fn mac(repository: RepositoryId, master: &[u8; 32], text: &str) -> blake3::Hash {
    blake3::keyed_hash(&derive(master, "axiomfs config", &repository.0), text.as_bytes())
}

fn field<'a>(text: &'a str, key: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(key)?.split_once('\n')
}

fn damaged(reason: &'static str) -> RepositoryError {
    RepositoryError::corrupt(names::CONFIG, reason)
}

#[cfg(test)]
pub(crate) fn decode_for_tests(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(parse(text, text).is_err(), "no checksum fits by chance");
    }
}
