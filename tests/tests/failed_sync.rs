//! Syncs that fail. Afterwards the kernel takes for written what never reached the disk: programs still see it, another sync succeeds, and
//! a power cut takes it. So what lies in the page cache after such a failure must not be believed by the next mount, nor an object in the
//! store of which nobody knows whether its name is durable.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use axiomfs_tests::powercut::{Disk, Failing, Failure, Loss, Switch, Template, repository_on, unmount};
use axiomfs_tests::repo::{TestRepo, beside_others, scratch};
use axiomfs_tests::run::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);
/// No checkpoint by itself: all stays in the log.
const LOG_ALONE: &str = "log: {max: 64MiB, segment: 4MiB}\ncheckpoint: {interval: 10m}\ncommit: {interval: 10m}\n";
/// Checkpoints and no commit: manifest and staging directory have all.
const CHECKPOINTS: &str = "log: {max: 64MiB, segment: 4MiB}\ncheckpoint: {interval: 1s}\ncommit: {interval: 10m}\n";
/// Commits, too.
const COMMITS: &str = "log: {max: 64MiB, segment: 4MiB}\ncheckpoint: {interval: 1s}\ncommit: {interval: 1s}\n";

#[test]
fn what_a_failed_sync_of_the_log_left_is_durable_once_the_next_mount_says_so() {
    let _slot = beside_others();
    let disk = life(&Template::new().disk, LOG_ALONE, |repo, switch| {
        put(repo, "before");
        let bytes = Some(content("meant").len() as u64);
        switch.fail(Failing { bytes, ..failing("log/segment-", Failure::Error) });
        write(repo, "meant");
        sync(repo, "meant").expect_err("It failed below");
        wait_for_failure(switch);
    });
    the_next_mount_keeps_its_word(&disk);
}

#[test]
fn what_a_failed_sync_of_a_pack_or_of_its_directory_left_is_made_anew() {
    let _slot = beside_others();
    for bytes in [Some(1), None] {
        let disk = life(&Template::new().disk, CHECKPOINTS, |repo, switch| {
            put(repo, "before");
            repo.sync();
            switch.fail(Failing { bytes, ..failing("state/staging", Failure::Error) });
            put(repo, "meant");
            wait_for_failure(switch);
            // Not a wait for something: the time in which it is tried again.
            sleep(Duration::from_secs(2));
        });
        the_next_mount_keeps_its_word(&disk);
    }
}

#[test]
fn what_a_failed_sync_of_the_manifest_left_is_durable_once_the_next_mount_says_so() {
    let _slot = beside_others();
    let disk = until_it_fails(CHECKPOINTS, |repo, switch| {
        let first = repo.state.join("log/segment-0000000000000001.log");
        assert!(first.exists(), "it holds what is written now");
        put(repo, "before");
        // The manifest from before this checkpoint is of no use any more.
        wait_for("the log's first segment is given back", PATIENCE, || !first.exists());
        wait_for("nothing is in the log alone", PATIENCE, || repo.status_number("live/layer_bytes") == 0);
        switch.fail(failing("state/manifest.", Failure::Error));
        put(repo, "meant");
        wait_for_failure(switch);
    });
    the_next_mount_keeps_its_word(&disk);
    // The power fails while that mount, which has synced what it read, writes the manifest after it over the one before it.
    for after in 0..4 {
        let switch = Switch::new(disk.clone());
        switch.fail(Failing { after, ..failing("state/manifest.", Failure::Cut) });
        let mounted = on(&switch, LOG_ALONE, |_| ());
        assert!(mounted.is_ok() == switch.cause().is_none(), "{mounted:?}");
        for (seed, loss) in
            [(1, Loss::Everything), (2, Loss::Subset), (3, Loss::Subset), (4, Loss::Torn), (5, Loss::Torn)]
        {
            life(&switch.disk().after_cut(seed, loss), LOG_ALONE, |repo, _| {
                ["before", "meant"].map(|name| check(repo, name))
            });
        }
    }
}

#[test]
fn a_head_that_a_killed_mount_did_not_make_durable_is_durable_once_the_next_mount_shows_it() {
    let _slot = beside_others();
    let disk = until_it_fails(COMMITS, |repo, switch| {
        switch.fail(Failing { bytes: None, ..failing("store/heads/", Failure::Refused) });
        put(repo, "meant");
        wait_for_failure(switch);
    });
    let mounted = life(&disk, LOG_ALONE, |repo, _| check(repo, "meant"));
    for seed in 0..4 {
        for loss in [Loss::Everything, Loss::Subset, Loss::Tail] {
            life(&mounted.after_cut(seed, loss), LOG_ALONE, |repo, _| check(repo, "meant"));
        }
    }
}

/// An object whose name may not be durable is no object: the next try must not find it there and sync what counts as clean by then.
#[test]
fn what_a_failed_sync_of_a_directory_of_the_store_left_is_put_anew() {
    let _slot = beside_others();
    for directory in ["store/packs/", "store/index/", "store/heads/"] {
        let disk = life(&Template::new().disk, COMMITS, |repo, switch| {
            switch.fail(Failing { bytes: None, ..failing(directory, Failure::Error) });
            put(repo, "meant");
            wait_for_failure(switch);
            repo.sync();
        });
        let cut = disk.after_cut(1, Loss::Everything);
        life(&cut, LOG_ALONE, |repo, _| check(repo, "meant"));
    }
}

/// What the next mount says is durable survives a cut of the power at any time.
fn the_next_mount_keeps_its_word(disk: &Disk) {
    let worked = life(disk, LOG_ALONE, |repo, _| {
        for name in ["before", "meant"] {
            check(repo, name);
            sync(repo, name).expect("The disk is whole again");
        }
        put(repo, "after");
    });
    for loss in [Loss::Everything, Loss::Nothing] {
        life(&worked.after_cut(1, loss), LOG_ALONE, |repo, _| {
            ["before", "meant", "after"].map(|name| check(repo, name))
        });
    }
}

/// A first life that ends at the moment of a failure: the disk as programs see it then.
fn until_it_fails(settings: &str, work: impl FnOnce(&TestRepo, &Switch)) -> Disk {
    let switch = Switch::new(Template::new().disk.clone());
    on(&switch, settings, |repo| work(repo, &switch)).unwrap_or_else(|why| panic!("{why}"));
    switch.disk_at_failure().expect("It was waited for")
}

/// Mounts the disk and the repository on it, works there, and kills the daemon: the disk as programs see it then.
fn life<T>(disk: &Disk, settings: &str, work: impl FnOnce(&TestRepo, &Switch) -> T) -> Disk {
    let switch = Switch::new(disk.clone());
    on(&switch, settings, |repo| work(repo, &switch)).unwrap_or_else(|why| panic!("{why}"));
    switch.disk()
}

/// Mounts a disk and the repository on it, works there, and kills the daemon. The error is why it could not be mounted.
fn on<T>(switch: &Switch, settings: &str, work: impl FnOnce(&TestRepo) -> T) -> Result<T, String> {
    let place = scratch("failed-sync");
    let mountpoint = place.path().join("disk");
    fs::create_dir(&mountpoint).expect("It is new");
    let _session = switch.mount(&mountpoint).expect("The disk can be mounted");
    let _unmounted = Unmounted(mountpoint.clone());
    let mut repo = repository_on(&mountpoint, settings);
    let worked = repo.try_mount(&[]).map(|()| work(&repo));
    let said = repo.daemon_log();
    repo.kill9();
    worked.map_err(|why| format!("{why}\n{said}"))
}

/// Unmounts a disk in the end, however that comes.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn failing(part: &str, how: Failure) -> Failing {
    Failing { part: part.to_owned(), after: 0, bytes: Some(0), how }
}

fn wait_for_failure(switch: &Switch) {
    assert!(switch.wait_for_failure(PATIENCE), "nothing failed:\n{}", switch.trace().join("\n"));
}

/// Its content is its name, many times; that of the first file more than a segment of the log.
fn content(name: &str) -> Vec<u8> {
    name.as_bytes().repeat(if name == "before" { 1_000_000 } else { 10_000 })
}

fn write(repo: &TestRepo, name: &str) {
    fs::write(repo.live().join(name), content(name)).expect("A write reaches the log's file");
}

fn sync(repo: &TestRepo, name: &str) -> std::io::Result<()> {
    File::open(repo.live().join(name))?.sync_all()
}

/// Writes a file durably.
fn put(repo: &TestRepo, name: &str) {
    write(repo, name);
    sync(repo, name).expect("Nothing of the log fails");
}

fn check(repo: &TestRepo, name: &str) {
    let read = fs::read(repo.live().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(read == content(name), "{name} has other bytes");
}
