//! Taking up what an earlier mount staged.

use std::io;
use std::path::Path;
use std::sync::Arc;

use axiomfs_api::StoreErrorKind;

use crate::commit::open_pack;
use crate::error::RepositoryError;
use crate::ids::PackId;
use crate::names;
use crate::pack::{Table, read_table, staged_path};
use crate::packer::{AdoptedPack, Packer, sync_dir};
use crate::repository::Repository;
use crate::staged::StagedPack;

/// What became of packs that an earlier mount had staged.
#[derive(Debug, Default)]
pub struct Adopted {
    /// Packs that are neither in the staging directory nor in the store. If the head that was last attempted is there they were merged
    /// into others by its commit and are not needed; else they are lost.
    pub missing: Vec<PackId>,
    /// The damage of the first that does not tell any more what it holds, here or in the store.
    pub damaged: Option<RepositoryError>,
}

impl Repository {
    /// [`adopt_staged_beside`](Self::adopt_staged_beside) nothing else.
    ///
    /// # Errors
    /// As for that.
    pub fn adopt_staged(&self, packs: &[PackId]) -> Result<Adopted, RepositoryError> {
        self.adopt_staged_beside(packs, &[])
    }

    /// Takes the packs that an earlier mount staged and did not commit, and removes whatever else it left in the staging directory but
    /// the files of `others`, which something may still name.
    /// To be called before anything is added. A pack that is no longer there but was moved into the store is taken from there.
    ///
    /// # Errors
    /// What the staging directory or the store met.
    pub fn adopt_staged_beside(&self, packs: &[PackId], others: &[PackId]) -> Result<Adopted, RepositoryError> {
        let packer = self.packer()?;
        let (mut adopted, mut missing, mut damaged) = (Vec::new(), Vec::new(), None);
        for id in packs {
            match self.adopt(packer, id) {
                Ok(Some(pack)) => adopted.push(pack),
                Ok(None) => missing.push(*id),
                Err(error) if error.is_damage() => {
                    damaged.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        self.remove_unadopted(&[packs, others].concat())?;
        packer.adopt(adopted);
        Ok(Adopted { missing, damaged })
    }

    /// Removes what lies in the staging directory beside `packs`. To be called before anything is added.
    ///
    /// # Errors
    /// What the staging directory met.
    pub fn remove_unadopted(&self, packs: &[PackId]) -> Result<(), RepositoryError> {
        let keep: Vec<String> = packs.iter().map(|id| format!("{id}.pack")).collect();
        remove_others(self.packer()?.dir(), &keep)
    }

    fn adopt(&self, packer: &Packer, id: &PackId) -> Result<Option<(AdoptedPack, Table)>, RepositoryError> {
        let path = staged_path(packer.dir(), id);
        let (len, uploaded) = match std::fs::metadata(&path) {
            Ok(found) => (found.len(), false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.store.stat(&names::key(&names::pack(id))?) {
                Ok(meta) => (meta.len, true),
                Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            },
            Err(e) => return Err(RepositoryError::staging("look at", &path, e)),
        };
        let (source, name) = open_pack(self.store.as_ref(), id, &path, len, uploaded)?;
        let (seal, table) = read_table(source.as_ref(), &self.keyring, self.seal.as_ref(), &name)?;
        let info = StagedPack { id: *id, kind: seal.kind, len, path };
        Ok(Some((AdoptedPack { seal: Arc::new(seal), info, uploaded }, table)))
    }
}

/// Removes what an earlier mount left beside the packs in `keep`; other people's files stay.
fn remove_others(dir: &Path, keep: &[String]) -> Result<(), RepositoryError> {
    let failed = |e| RepositoryError::staging("clean", dir, e);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let ours = [".pack", ".open", ".index"].iter().any(|end| name.to_string_lossy().ends_with(end));
        if ours && !keep.iter().any(|kept| name == kept.as_str()) {
            std::fs::remove_file(entry.path()).map_err(|e| RepositoryError::staging("remove", &entry.path(), e))?;
        }
    }
    sync_dir(dir)
}
