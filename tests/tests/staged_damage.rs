//! Damage of what is staged on this machine's disk and not in the store yet: told once to who waits for the store, or the mount is refused.

use std::fs;
use std::path::PathBuf;

use axiomfs_tests::place::flip;
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::wait_for;
use axiomfs_tests::source::walk;

const MIB: usize = 1 << 20;
/// Checkpoints at once, commits when asked.
const STAGED: &str = "checkpoint: {interval: 100ms}\ncommit: {interval: 1h, bytes: 1GiB}\n";

/// Writes a file of 6 MiB, kills the daemon once that is staged, and flips a bit in the middle of the pack or, from its end, in its table.
fn stage_damaged(repo: &mut TestRepo, name: &str, seed: u64, table: bool) {
    fs::write(repo.live().join(name), noise(seed, 6 * MIB)).expect("written");
    wait_for("a checkpoint has it", LIMIT, || {
        repo.status_number("live/layers") == 1 && repo.status_number("live/layer_bytes") == 0
    });
    repo.kill9();
    repo.clear_dead_mount();
    let len = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let pack = walk(&repo.state.join("staging")).into_iter().max_by_key(len).expect("a staged pack");
    assert!(len(&pack) > 4 * MIB as u64, "{} has {} bytes", pack.display(), len(&pack));
    flip(&pack, if table { len(&pack) - 100 } else { len(&pack) / 2 });
}

#[test]
fn a_sync_or_an_unmount_that_finds_staged_data_damaged_fails_once_and_names_it() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("staged-damaged");
    repo.settings(STAGED).mount();
    fs::write(repo.live().join("sound"), b"sound").expect("written");
    stage_damaged(&mut repo, "lost", 1, false);
    repo.mount();
    let done = repo.axiomfs(&["sync", text(&repo.mnt)]);
    assert_eq!(done.code(), 1, "{}", done.stdout);
    for said in ["Staged pack", "is damaged", "write them again"] {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
    assert!(repo.events().contains("is damaged"), "{}", repo.events());
    repo.sync();
    assert!(fs::read(repo.live().join("lost")).is_err(), "wrong bytes");
    assert_eq!(fs::read(repo.live().join("sound")).expect("read"), b"sound");
    fs::write(repo.live().join("lost"), noise(1, 6 * MIB)).expect("written again");
    repo.sync();
    stage_damaged(&mut repo, "more", 2, false);
    repo.mount();
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert_eq!(done.code(), 1, "{}", done.stdout);
    for said in ["stays mounted", "is damaged"] {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
    repo.remount_from_the_store_alone();
    assert!(fs::read(repo.live().join("lost")).expect("read") == noise(1, 6 * MIB), "it was not healed");
    assert!(fs::read(repo.live().join("more")).is_err(), "wrong bytes");
}

#[test]
fn recovering_what_is_damaged_brings_in_what_is_sound_and_keeps_its_directory() {
    let _slot = beside_others();
    let mut a = TestRepo::new("recover-damaged");
    a.settings(STAGED).mount();
    fs::write(a.live().join("sound"), b"sound").expect("written");
    stage_damaged(&mut a, "lost", 3, false);
    let mut b = a.elsewhere(&a.store, "recover-damaged-b");
    b.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    fs::write(b.live().join("of the other"), b"b").expect("written");
    b.umount();
    let args = ["recover", text(&a.store), "--state", text(&a.state), "--cache", text(&a.cache)];
    let done = a.axiomfs(&args);
    assert_eq!(done.code(), 1, "{}", done.stdout);
    for said in ["Staged pack", "is damaged", "which stays"] {
        assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
    }
    let aside = walk(&a.state.join("set-aside"));
    assert!(aside.iter().any(|path| text(path).contains("/staging/")), "{aside:?}");
    a.mount();
    let taken = fs::read_dir(a.mnt.join("snapshots")).expect("listed").map(|entry| entry.expect("an entry").path());
    let recovered = taken.collect::<Vec<_>>().pop().expect("a snapshot");
    assert_eq!(fs::read(recovered.join("sound")).expect("read"), b"sound");
    assert!(fs::read(recovered.join("lost")).is_err(), "wrong bytes");
    a.umount();
}

#[test]
fn staged_data_that_nothing_tells_of_any_more_refuses_the_mount_and_says_the_way_out() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("staged-table");
    repo.settings(STAGED).mount();
    fs::write(repo.live().join("committed"), b"committed").expect("written");
    repo.sync();
    stage_damaged(&mut repo, "lost", 4, true);
    let error = repo.try_mount(&[]).expect_err("nothing tells what the pack holds");
    for said in ["is damaged", text(&repo.state), "--read-only", "--takeover"] {
        assert!(error.contains(said), "{said}: {error}");
    }
    repo.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read(repo.live().join("committed")).expect("read"), b"committed");
    repo.umount();
    // What it said.
    fs::rename(&repo.state, repo.dir.join("kept")).expect("moved away");
    repo.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(fs::read(repo.live().join("committed")).expect("read"), b"committed");
    fs::write(repo.live().join("new"), b"new").expect("written");
    repo.remount_from_the_store_alone();
    assert_eq!(fs::read(repo.live().join("new")).expect("read"), b"new");
    repo.umount();
}
