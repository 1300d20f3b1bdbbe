//! `axiomfs init`.

use axiomfs_encryption_aes_gcm::Aes256Gcm;
use axiomfs_host::Counts;
use axiomfs_repository::{InitOptions, KdfParams, Repository};
use serde_json::json;

use crate::args::InitArgs;
use crate::commands::config;
use crate::failure::Failure;
use crate::passphrase::{self, Ask, Environment};
use crate::stores::StoreOptions;
use crate::{output, progress, stores};

/// Passes over the memory, as RFC 9106 recommends for less memory than its first choice.
const PASSES: u32 = 3;
const LANES: u32 = 4;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if the place is not empty or the passphrase can't be had; nothing is left behind then.
pub fn run(args: &InitArgs, environment: Environment, json: bool) -> Result<(), Failure> {
    let settings = config::load_or_default(args.at.config.as_deref())?;
    let (counts, unsafe_single_writer) = (Counts::default(), args.at.unsafe_single_writer);
    let how = StoreOptions { settings: &settings, unsafe_single_writer, counts: &counts };
    stores::check_new(&args.at.store, how)?;
    let passphrase = passphrase::obtain(&args.passphrase, environment, Ask::Twice)?;
    let mut options = InitOptions { volume: args.volume.clone(), ..InitOptions::default() };
    if let Some(bytes) = args.kdf_memory {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        options.kdf = KdfParams::new(kib, PASSES, LANES)
            .map_err(|error| Failure::caused("Could not use --kdf-memory", &error))?;
    }
    let target = stores::create(&args.at.store, how)?;
    let made = progress::watch(
        "Deriving the key from the passphrase",
        json,
        || Repository::init(&*target.store, &Aes256Gcm, &passphrase, &options),
        || (0, None),
    );
    let id =
        made.map_err(|error| Failure::caused(format!("Could not make a repository in {}", args.at.store), &error))?;
    output::show(
        json,
        &json!({ "ok": true, "repository": id.to_string(), "store": target.store.location(), "volume": args.volume }),
        &format!(
            "Made repository {id} in {}\nWithout the passphrase nobody can read it: keep it.\nMount it with: axiomfs mount {} MOUNTPOINT",
            target.store.location(),
            args.at.store
        ),
    )
}
