//! Recovering without a mount: what others have gone past is set aside, and brought into the store as snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axiomfs_host::Host;
use axiomfs_live::{Recovered, VolumeOptions};
use serde_json::Value;

use crate::failure::Failure;
use crate::faults;
use crate::locks::Locks;
use crate::passphrase::Secret;
use crate::session::{Prepared, chunker, could_not_open};
use crate::stores::{self, OpenStore};
use crate::system;

/// What became of all that was set aside.
#[derive(Debug, Default)]
pub struct Recoveries {
    /// Where it was, and what it is in the store.
    pub recovered: Vec<(PathBuf, Recovered)>,
    /// Why others were not, or stay where they were.
    pub failed: Vec<Failure>,
}

/// What to say of `set_aside`, a list of paths, unless it is empty.
pub fn note(set_aside: &Value) -> Option<String> {
    let places: Vec<&str> = set_aside.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let places = (!places.is_empty()).then(|| places.join(", "))?;
    Some(format!(
        "Set aside in {places}: what this machine had not committed when another one went on writing.\n\
         `axiomfs recover` puts it into a snapshot"
    ))
}

impl Prepared {
    /// Brings all that is set aside, and the state itself if others have gone past it, into snapshots; one for each.
    ///
    /// # Errors
    /// [`Failure`] if the volume is in use, or the store can't be reached; what is not recovered stays where it is.
    pub fn recover(&self, passphrase: &Secret, quiet: bool) -> Result<Recoveries, Failure> {
        let (host, store) = (self.host()?, self.store()?);
        let locks = Locks::take(&self.places, &self.holder(&store))?;
        let recovered = self.recover_all(&store, &host, passphrase, quiet);
        // Only what was made for this attempt goes, and only where it is empty.
        locks.undo();
        recovered
    }

    fn recover_all(
        &self,
        store: &OpenStore,
        host: &Arc<Host>,
        passphrase: &Secret,
        quiet: bool,
    ) -> Result<Recoveries, Failure> {
        if !self.args.unsafe_single_writer {
            stores::probe(store, &self.config)?;
        }
        let repository = self.unlock(store, host, None, passphrase, quiet)?;
        system::raise_open_files();
        let id = repository.volume(&self.args.volume).map_err(|error| could_not_open(store, &error))?;
        self.lease(&repository, id)?;
        let faults = faults::from_environment(&self.places.state)?;
        let options = self.volume_options(id, Arc::clone(&faults));
        let places = axiomfs_live::set_apart(&repository, &options)
            .map_err(|error| Failure::caused(format!("Could not open volume {}", self.args.volume), &error))?;
        drop(repository);
        let mut all = Recoveries::default();
        // One that can't be recovered keeps no other from it.
        for place in places {
            let aside = VolumeOptions { state_dir: place.clone(), ..options.clone() };
            let found = self.recover_one(store, host, passphrase, quiet, aside).and_then(|found| {
                if !found.damaged.is_empty() {
                    let what = format!("Recovered into {} what is sound of {}", found.snapshot, place.display());
                    return Err(Failure::new(format!("{what}, which stays: {}", found.damaged.join("; ")))
                        .hint("compare the snapshot with what you have elsewhere; then remove the directory by hand"));
                }
                // All of it is in the store now.
                let moved = axiomfs_live::remove_recovered(&options.state_dir, &place, || faults("recover.moved"));
                let stays = || format!("Recovered into {}, but {} stays", found.snapshot, place.display());
                moved.map_err(|error| Failure::caused(stays(), &error)).map(|()| found)
            });
            match found {
                Ok(found) => all.recovered.push((place, found)),
                Err(failure) => all.failed.push(failure),
            }
        }
        Ok(all)
    }

    fn recover_one(
        &self,
        store: &OpenStore,
        host: &Arc<Host>,
        passphrase: &Secret,
        quiet: bool,
        options: VolumeOptions,
    ) -> Result<Recovered, Failure> {
        let place = options.state_dir.clone();
        let repository = self.unlock(store, host, Some(place.join("staging")), passphrase, quiet)?;
        let chunker = chunker(host, &repository);
        axiomfs_live::recover(&repository, Arc::clone(host), chunker, options, &name(&place)).map_err(|error| {
            Failure::caused(format!("Could not recover {}", place.display()), &error)
                .hint("it stays where it is; try again")
        })
    }
}

/// What the snapshot is called: after the time at which the state was set aside.
fn name(place: &Path) -> String {
    format!("recovered-{}", place.file_name().unwrap_or_default().to_string_lossy())
}
