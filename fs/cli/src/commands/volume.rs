//! `axiomfs volume`: volumes of a repository, beside whoever has one mounted.

use serde_json::json;

use crate::args::VolumeVerb;
use crate::commands::key;
use crate::failure::Failure;
use crate::output;
use crate::passphrase::Environment;

/// Runs the verb.
///
/// # Errors
/// [`Failure`] if there is no repository, the passphrase is wrong, or there is a volume of that name; nothing is changed then.
pub fn run(verb: &VolumeVerb, environment: Environment, quiet: bool) -> Result<(), Failure> {
    match verb {
        VolumeVerb::Create { key, name } => {
            let target = key::open(&key.at)?;
            let keys = key::unlock(&target, &key::obtain(key, environment)?, quiet)?;
            keys.add_volume(name).map_err(|error| key::failed(&format!("Could not make volume {name}"), &error))?;
            let text =
                format!("Made volume {name}\nMount it with: axiomfs mount {} MOUNTPOINT --volume {name}", key.at.store);
            output::show(quiet, &json!({ "ok": true, "volume": name }), &text)
        }
        VolumeVerb::List { key } => {
            let target = key::open(&key.at)?;
            let keys = key::unlock(&target, &key::obtain(key, environment)?, quiet)?;
            let names = keys.volumes().map_err(|error| key::failed("Could not list the volumes", &error))?;
            output::show(quiet, &json!({ "ok": true, "volumes": names }), &names.join("\n"))
        }
    }
}
