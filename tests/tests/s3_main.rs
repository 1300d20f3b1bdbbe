//! The main job with the store in a bucket: what the directory's tests show of snapshots and of what is stored, small.
//!
//! | of the main job | shown in a bucket by |
//! |---|---|
//! | copy in, compare: in use, after a remount, from the store alone | `s3::a_tree_and_a_large_file_come_back_from_a_bucket_and_a_second_copy_is_almost_free`, here with `rsync -c` |
//! | a second copy adds under 1 %; nothing is clear text | the same; names here |
//! | bytes inserted cost a few chunks; a snapshot without changes under 64 KiB | here |
//! | a snapshot stays as it was whatever happens to `live/` | here |
//! | kills at random moments | `crash::what_was_acknowledged_survives_kills_at_random_moments_with_the_store_in_a_bucket`, `s3::what_was_written_to_a_bucket_survives_kills_and_swaps_under_load` |
//! | the chain changes every 100 ms during a copy | `swap::swapping_the_chain_every_100_ms_during_a_copy_to_a_bucket_harms_nothing` |
//!
//! Power cuts (`powercut`) hit the state directory, which is the same whatever the store is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axiomfs_tests::observe::{self, same_for_diff};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::s3::S3Server;
use axiomfs_tests::source::{check_noise, copy_real_files, walk, write_noise};

const LONG: Duration = Duration::from_secs(600);

fn same(want: &Path, have: &Path, when: &str) {
    same_for_diff(want, have, when);
    observe::same(want, have, when);
}

fn bytes_in(server: &S3Server, prefix: &str) -> u64 {
    server.objects(prefix).iter().map(|(_, len)| len).sum()
}

#[test]
fn a_snapshot_in_a_bucket_keeps_everything_whatever_happens_to_live() {
    let _slot = alone();
    let server = S3Server::shared();
    let dir = scratch("s3-snapshot-source");
    let tree = dir.path().join("tree");
    copy_real_files(&tree, 600);
    let mut repo = TestRepo::in_bucket("s3-snapshot", &server.url("snapshot"));
    repo.mount();
    let copy = repo.live().join("tree");
    must("cp", &["-a", text(&tree), text(&copy)], LONG);
    fs::create_dir(repo.snapshot("before")).expect("a snapshot");
    for (number, path) in walk(&copy).iter().enumerate() {
        let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        match number % 4 {
            0 => fs::remove_file(path).expect("removed"),
            1 => fs::rename(path, repo.live().join(format!("renamed-{number}"))).expect("renamed"),
            2 if is_file => fs::write(path, b"overwritten").expect("written"),
            3 if is_file => {
                let mut file = File::options().append(true).open(path).expect("opened");
                file.write_all(b"more").expect("appended");
            }
            _ => {}
        }
    }
    same(&tree, &repo.snapshot("before").join("tree"), "in use");
    let changed = walk(&copy).len();
    repo.umount().mount();
    same(&tree, &repo.snapshot("before").join("tree"), "after a remount");
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    same(&tree, &repo.snapshot("before").join("tree"), "from the bucket alone");
    assert_eq!(walk(&copy).len(), changed, "live/ is as it was changed");
    let done = run(
        Command::new("rsync")
            .args(["-anc", "-i", &format!("{}/", text(&tree))])
            .arg(repo.snapshot("before").join("tree/")),
        LONG,
    );
    assert!(done.status.success() && done.stdout.is_empty(), "rsync finds:\n{}{}", done.stdout, done.stderr);
    repo.umount();
    no_names(server, "snapshot", &tree);
}

/// No name of a file stands in the bucket.
fn no_names(server: &S3Server, prefix: &str, tree: &Path) {
    let names = walk(tree).into_iter().filter_map(|path| Some(path.file_name()?.as_encoded_bytes().to_vec()));
    let names: HashSet<Vec<u8>> = names.filter(|name| name.len() >= 16).map(|name| name[..16].to_vec()).collect();
    assert!(!names.is_empty());
    for (object, _) in server.objects(prefix) {
        let bytes = server.read(&object);
        let found = bytes.windows(16).find(|window| names.contains(*window));
        assert!(found.is_none(), "{object} holds {} in clear", String::from_utf8_lossy(found.unwrap_or_default()));
    }
}

#[test]
fn little_changes_add_little_to_a_bucket() {
    let _slot = alone();
    let server = S3Server::shared();
    let mut repo = TestRepo::in_bucket("s3-little", &server.url("little"));
    repo.mount();
    let (path, other, len) = (repo.live().join("big"), repo.live().join("shifted"), 64 << 20);
    write_noise(&path, 7, len);
    copy_real_files(&repo.live().join("tree"), 500);
    repo.sync();
    let mut before = bytes_in(server, "little");
    let mut shifted = File::create(&other).expect("created");
    shifted.write_all(b"ten bytes!").expect("written");
    std::io::copy(&mut File::open(&path).expect("opened"), &mut shifted).expect("copied");
    drop(shifted);
    repo.sync();
    let now = bytes_in(server, "little");
    assert!(now - before < 4 << 20, "10 bytes inserted added {} bytes", now - before);
    before = now;
    for number in 0..10 {
        fs::create_dir(repo.snapshot(&format!("s{number}"))).expect("taken");
        repo.sync();
        let now = bytes_in(server, "little");
        let added = now.saturating_sub(before);
        assert!(added < 64 << 10, "snapshot {number} without a change added {added} bytes");
        before = now;
    }
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    check_noise(&path, 7, len);
    let done = run(Command::new("cmp").args(["-i", "10:0", text(&other), text(&path)]), LONG);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    repo.umount();
}
