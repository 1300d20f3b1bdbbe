//! From what a command line names to an open store: a directory or a bucket, with the patience that the settings ask for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axiomfs_api::{Body, ObjectKey, Store, StoreError, StoreErrorKind};
use axiomfs_config::{OnStoreError, S3Encryption, Settings};
use axiomfs_host::{Counted, Counts, Retry, RetryPolicy};
use axiomfs_storage_local::LocalStore;
use axiomfs_storage_s3::{Location, S3Options, S3Store, ServerEncryption};

use crate::failure::{self, Failure};
use crate::faults;

/// Far more than the six lines of a `config` object need.
const MAX_CONFIG: u64 = 64 << 10;
/// Most uploads at a time into a directory: one disk is busy with a few.
const LOCAL_UPLOADS: usize = 4;
/// Most uploads at a time into a bucket: as many as the settings can ask for.
const S3_UPLOADS: usize = 32;
/// Attempts of a probe that gets no answer.
const PROBES: u32 = 3;

/// Where a repository lies, opened.
pub struct OpenStore {
    /// The store; repeats what failed in a way that may pass.
    pub store: Arc<dyn Store>,
    /// Its directory on this machine, if it is one.
    pub directory: Option<PathBuf>,
    /// The same without repetitions, counted.
    pub seen: Arc<Counted>,
    /// Most uploads at a time, whatever the settings say now or later.
    pub uploads: usize,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// Whether to go on where the server can't create objects exclusively.
    pub unsafe_single_writer: bool,
    /// Where its requests are counted, with those to stores opened before.
    pub counts: &'a Counts,
}

enum Place<'a> {
    Directory(&'a Path),
    Bucket(Location),
}

fn place(location: &str) -> Result<Place<'_>, Failure> {
    let known = "give the path of a directory, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME";
    match location.split_once("://") {
        Some(("s3", _)) => match Location::parse(location) {
            Ok(location) => Ok(Place::Bucket(location)),
            Err(error) => Err(Failure::usage(format!("Could not read the store's URL: {error}")).hint(known)),
        },
        Some((scheme, _)) => {
            Err(Failure::usage(format!("Stores of the kind {scheme}:// are not part of this build")).hint(known))
        }
        None if location.is_empty() => Err(Failure::usage("The store's name is empty").hint(known)),
        None => Ok(Place::Directory(Path::new(location))),
    }
}

/// The id of the plugin that serves the store of that name.
pub fn plugin(location: &str) -> &'static str {
    match place(location) {
        Ok(Place::Bucket(_)) => axiomfs_storage_s3::DESCRIPTOR.id,
        _ => axiomfs_storage_local::DESCRIPTOR.id,
    }
}

/// What the store calls itself, without asking it for anything.
///
/// # Errors
/// [`Failure`] if `location` is none.
pub fn name(location: &str) -> Result<String, Failure> {
    match place(location)? {
        Place::Bucket(location) => Ok(location.to_string()),
        Place::Directory(path) => match std::path::absolute(path) {
            Ok(path) => Ok(path.display().to_string()),
            Err(error) => Err(Failure::caused(format!("Could not find out where {location} is"), &error)),
        },
    }
}

/// Opens the store that a command line names.
///
/// # Errors
/// [`Failure`] if there is none.
pub fn open(location: &str, options: StoreOptions<'_>) -> Result<OpenStore, Failure> {
    match place(location)? {
        Place::Bucket(bucket) => open_bucket(bucket, options),
        Place::Directory(path) => match LocalStore::open(path) {
            Ok(store) => Ok(open_directory(store, options)),
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                Err(Failure::new(format!("There is no directory {location}"))
                    .hint(format!("axiomfs init {location} makes a repository there")))
            }
            Err(error) => Err(Failure::caused(format!("Could not open the store {location}"), &error)),
        },
    }
}

/// Makes sure that a repository can be made there, before the passphrase is asked for.
///
/// # Errors
/// [`Failure`] if there is something already; nothing is changed.
pub fn check_new(location: &str, options: StoreOptions<'_>) -> Result<(), Failure> {
    let unchanged = "nothing was changed; choose a directory that is empty or does not exist";
    let path = match place(location)? {
        Place::Directory(path) => path,
        Place::Bucket(bucket) => return check_new_bucket(&open_bucket(bucket, options)?),
    };
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) if path.join("config").is_file() && path.join("keys").is_dir() => {
                Err(Failure::new(format!("{location} holds a repository already")).hint(unchanged))
            }
            Some(_) => Err(Failure::new(format!("The directory {location} is not empty")).hint(unchanged)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::caused(format!("Could not use {location}"), &error).hint(unchanged)),
    }
}

fn check_new_bucket(store: &OpenStore) -> Result<(), Failure> {
    let location = store.store.location();
    let unchanged = "nothing was changed; choose another bucket or prefix";
    let failed = |error: StoreError| could_not_use(&location, &error);
    // Asked for first: listing all of a large repository only to refuse it takes long on some servers.
    match ObjectKey::new("config").and_then(|key| store.store.stat(&key)) {
        Ok(_) => return Err(Failure::new(format!("{location} holds a repository already")).hint(unchanged)),
        Err(error) if error.kind == StoreErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    match store.store.list("", None, 1).map_err(failed)?.first() {
        None => Ok(()),
        Some(first) => Err(Failure::new(format!("{location} is not empty: it holds {}", first.key)).hint(unchanged)),
    }
}

/// Makes the place of a new store.
///
/// # Errors
/// [`Failure`] if there is something already, or if a bucket can't create objects exclusively.
pub fn create(location: &str, options: StoreOptions<'_>) -> Result<OpenStore, Failure> {
    check_new(location, options)?;
    match place(location)? {
        Place::Directory(path) => LocalStore::create(path)
            .map(|store| open_directory(store, options))
            .map_err(|error| Failure::caused(format!("Could not make the store {location}"), &error)),
        Place::Bucket(bucket) => {
            let store = open_bucket(bucket, options)?;
            if !options.unsafe_single_writer {
                probe_new(&store)?;
            }
            Ok(store)
        }
    }
}

fn open_directory(store: LocalStore, options: StoreOptions<'_>) -> OpenStore {
    let settings = options.settings;
    let directory = Some(store.root().to_owned());
    let seen = Arc::new(Counted::going_on(faults::slowed(Arc::new(store)), options.counts));
    OpenStore { store: insistent(&seen, settings, settings.timeout), directory, seen, uploads: LOCAL_UPLOADS }
}

fn open_bucket(location: Location, options: StoreOptions<'_>) -> Result<OpenStore, Failure> {
    let (settings, shown) = (options.settings, location.to_string());
    // A third, so that after a silence there is time for two more tries.
    let silence = settings.timeout / 3;
    let s3 = S3Options {
        timeout: silence,
        upload_rate: settings.s3.up,
        download_rate: settings.s3.down,
        ca_bundle: settings.s3.ca_bundle.clone(),
        data_class: settings.s3.data_class.clone(),
        metadata_class: settings.s3.metadata_class.clone(),
        encryption: match &settings.s3.encryption {
            S3Encryption::Bucket => None,
            S3Encryption::S3 => Some(ServerEncryption::S3),
            S3Encryption::Kms(key) => Some(ServerEncryption::Kms(key.clone())),
        },
        look_before_create: options.unsafe_single_writer,
        ..S3Options::new(location)
    };
    let store = S3Store::open(s3).map_err(|error| could_not_use(&shown, &error))?;
    let seen = Arc::new(Counted::going_on(faults::slowed(Arc::new(store)), options.counts));
    let store = insistent(&seen, settings, settings.timeout - silence);
    Ok(OpenStore { store, directory: None, seen, uploads: S3_UPLOADS })
}

/// The store with the patience that the settings ask for. No try begins after `deadline`.
fn insistent(seen: &Arc<Counted>, settings: &Settings, deadline: std::time::Duration) -> Arc<dyn Store> {
    match &settings.pipeline.store.on_error {
        OnStoreError::Fail => Arc::clone(seen) as Arc<dyn Store>,
        OnStoreError::Retry(retry) => {
            let (first_pause, longest_pause) = retry.backoff;
            let policy = RetryPolicy { count: retry.count, first_pause, longest_pause, deadline };
            Arc::new(Retry::new(Arc::clone(seen) as Arc<dyn Store>, policy))
        }
    }
}

/// What is wrong with a bucket, and what to do.
pub fn could_not_use(location: &str, error: &StoreError) -> Failure {
    let failure = Failure::caused(format!("Could not use {location}"), error);
    match error.kind {
        StoreErrorKind::AccessDenied => failure
            .hint("check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or `aws sso login`"),
        StoreErrorKind::Invalid if failure::chain(error).contains("certificate") => failure.hint(
            "if the server has a certificate of your own authority, name that authority: s3: {ca_bundle: FILE} in the settings",
        ),
        StoreErrorKind::Invalid => failure.hint("check the bucket, the region and the endpoint in the URL"),
        kind if kind.is_transient() => failure.hint("is the network up, and the endpoint right?"),
        _ => failure,
    }
}

/// The bytes of the repository's `config` object.
///
/// # Errors
/// [`Failure`] if there is no repository.
pub fn config(store: &OpenStore) -> Result<Vec<u8>, Failure> {
    let location = store.store.location();
    let bytes = ObjectKey::new("config").and_then(|key| store.store.get(&key, MAX_CONFIG));
    bytes.map_err(|error| match error.kind {
        StoreErrorKind::NotFound => Failure::new(format!("{location} is not an axiomfs repository"))
            .hint(format!("is it the right place? `axiomfs init {location}` makes a new one")),
        _ if store.directory.is_none() => could_not_use(&location, &error),
        _ => Failure::caused(format!("Could not open {location}"), &error),
    })
}

/// The repository's id as its `config` object says it, to name local directories by, before the passphrase proves it. `None` if
/// the object is not as expected: opening the repository then says what is wrong with it.
pub fn repository_id(config: &[u8]) -> Option<String> {
    id_in(&String::from_utf8_lossy(config))
}

fn id_in(config: &str) -> Option<String> {
    let id = config.lines().find_map(|line| line.strip_prefix("repository: "))?;
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_id.then(|| id.to_owned())
}

/// Makes sure that two writers can't create the same object, where a repository is already. A directory always can tell them
/// apart, a bucket is asked: to create `config` once more with the bytes that it has, which harms nothing if it is done.
///
/// # Errors
/// [`Failure`] if the server lets it happen, or can't be asked.
pub fn probe(store: &OpenStore, config: &[u8]) -> Result<(), Failure> {
    if store.directory.is_some() {
        return Ok(());
    }
    let key = ObjectKey::new("config").map_err(|error| could_not_use(&store.store.location(), &error))?;
    refuses_second(store, &key, config)
}

fn probe_new(store: &OpenStore) -> Result<(), Failure> {
    let failed = |error: StoreError| could_not_use(&store.store.location(), &error);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let key = ObjectKey::new(format!("probe-{}-{}", std::process::id(), now.as_nanos())).map_err(failed)?;
    store.store.put_new(&key, Body::Bytes(b"probe")).map_err(failed)?;
    let probed = refuses_second(store, &key, b"another");
    store.store.delete(&key).map_err(failed)?;
    probed
}

/// Asked without repetitions: one of them would take a lost answer for success.
fn refuses_second(store: &OpenStore, key: &ObjectKey, bytes: &[u8]) -> Result<(), Failure> {
    let location = store.store.location();
    let unsafe_hint =
        "use another server, or give --unsafe-single-writer and make sure yourself that nobody else writes";
    let mut tries = 0;
    loop {
        match store.seen.put_new(key, Body::Bytes(bytes)) {
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => return Ok(()),
            Ok(()) => {
                return Err(Failure::new(format!(
                    "The server of {location} overwrites what it was asked only to create"
                ))
                .hint(unsafe_hint));
            }
            Err(error) if error.kind.is_transient() && tries < PROBES => {
                tries += 1;
                tracing::debug!("a probe got no answer: {}", failure::chain(&error));
            }
            Err(error) if error.kind == StoreErrorKind::Invalid => {
                return Err(Failure::caused(format!("The server of {location} can't create exclusively"), &error)
                    .hint(unsafe_hint));
            }
            Err(error) => return Err(could_not_use(&location, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_in_a_config_object() {
        let id = "00112233445566778899aabbccddeeff";
        assert_eq!(id_in(&format!("axiomfs repository\nformat: 1\nrepository: {id}\n")), Some(id.to_owned()));
        for other in ["", "repository: ../../etc", "repository: 0011"] {
            assert_eq!(id_in(other), None);
        }
    }

    #[test]
    fn wrong_places_say_what_to_write() {
        for (location, word) in [("", "empty"), ("ftp://x", "ftp"), ("s3://", "bucket"), ("s3://b?x=y", "parameter")] {
            let Err(error) = name(location) else { panic!("{location} was taken") };
            assert!(error.to_string().contains(word), "{location}: {error}");
        }
        assert_eq!(name("s3://b/c?endpoint=http://h").unwrap(), "s3://b/c?endpoint=http://h");
    }
}
