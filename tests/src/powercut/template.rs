//! A repository on a disk that can lose power.

use super::disk::Disk;
use crate::model::Op;
use crate::perform::Performer;
use crate::repo::{TestRepo, text};
use crate::run::run;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A repository that was initialised once and unmounted cleanly.
pub struct Template {
    /// It has store, state and cache.
    pub disk: Disk,
    _repo: TestRepo,
}

impl Template {
    /// Makes one.
    ///
    /// # Panics
    /// It can't be made.
    #[expect(clippy::new_without_default, reason = "it starts programs")]
    pub fn new() -> Template {
        let mut repo = TestRepo::new("powercut-template");
        repo.mount();
        let chmod = Op::Chmod { path: Vec::new(), mode: 0o755 };
        Performer::new(&repo.live()).perform(&chmod).expect("The root belongs to the test");
        repo.umount();
        let place = repo.dir.join("all");
        fs::create_dir(&place).expect("It is new");
        for part in [&repo.store, &repo.state, &repo.cache] {
            fs::rename(part, place.join(part.file_name().expect("It has a name"))).expect("It is on the same disk");
        }
        Template { disk: Disk::import(&place).expect("A repository can be read"), _repo: repo }
    }
}

/// The repository on a disk that is mounted at `disk`.
pub fn repository_on(disk: &Path, settings: &str) -> TestRepo {
    let mut repo = TestRepo::without_init("powercut-mount");
    (repo.store, repo.state, repo.cache) = (disk.join("store"), disk.join("state"), disk.join("cache"));
    repo.settings(settings);
    repo
}

/// Unmounts a disk, whoever has files open there.
pub fn unmount(mountpoint: &Path) {
    let done = run(Command::new("umount").args(["-l", text(mountpoint)]), Duration::from_secs(60));
    if !done.status.success() {
        eprintln!("umount -l {}: {}", mountpoint.display(), done.stderr);
    }
}
