//! Real trees copied in: they come out the same, twice the same costs once, and the store shows nothing of them.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axiomfs_tests::observe::{Ignore, compare_dirs};
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::search::clear_text;
use axiomfs_tests::source::{check_noise, copy_real_files, tree_bytes, write_noise};

const FILES: usize = 10_000;
const BIG: u64 = 512 << 20;
const LONG: Duration = Duration::from_secs(600);

/// Compares by two programs that have nothing to do with us; where rsync isn't installed, by our own walk.
fn no_difference(want: &Path, have: &Path, when: &str) {
    let start = Instant::now();
    let done = run(Command::new("diff").args(["-r", "--no-dereference", text(want), text(have)]), LONG);
    assert!(done.stdout.is_empty() && done.status.success(), "{when}: diff -r says:\n{}{}", done.stdout, done.stderr);
    let slash = |p: &Path| format!("{}/", text(p));
    if Command::new("rsync").arg("--version").output().is_ok() {
        let args = ["-anc", "--delete", "--itemize-changes", &slash(want), &slash(have)];
        let out = must("rsync", &args, LONG);
        let changes: Vec<&str> = out.lines().filter(|l| !l.ends_with(" ./")).collect();
        assert!(
            changes.is_empty(),
            "{when}: rsync -anc would change:\n{}",
            changes[..changes.len().min(30)].join("\n")
        );
    } else {
        let found = compare_dirs(want, have, Ignore::default());
        assert!(found.is_empty(), "{when}:\n{}", found.join("\n"));
    }
    eprintln!("{when}: no difference ({:?})", start.elapsed());
}

#[test]
fn a_tree_of_10000_files_comes_out_as_it_went_in_and_a_second_copy_is_almost_free() {
    let _slot = alone();
    let source = scratch("source");
    let (tree, big) = (source.path().join("tree"), source.path().join("tree/big.bin"));
    let (files, bytes) = copy_real_files(&tree, FILES);
    write_noise(&big, 42, BIG);
    eprintln!("{files} files of {} MiB and one of {} MiB", bytes >> 20, BIG >> 20);
    let mut repo = TestRepo::new("tree");
    repo.mount();
    let start = Instant::now();
    must("cp", &["-a", text(&tree), text(&repo.live().join("one"))], LONG);
    eprintln!("cp -a took {:?}", start.elapsed());
    no_difference(&tree, &repo.live().join("one"), "after cp -a");
    let start = Instant::now();
    repo.umount();
    eprintln!("umount took {:?}", start.elapsed());
    repo.mount();
    no_difference(&tree, &repo.live().join("one"), "after umount and mount");
    repo.umount();
    repo.forget_local_state();
    repo.mount();
    no_difference(&tree, &repo.live().join("one"), "with state and cache deleted");

    let before = tree_bytes(&repo.store);
    must("cp", &["-a", text(&tree), text(&repo.live().join("two"))], LONG);
    repo.umount();
    let after = tree_bytes(&repo.store);
    let added = after - before;
    eprintln!("the store held {before} bytes, and {added} more after the second copy");
    assert!(added * 100 < before, "the second copy added {added} bytes to {before}: 1 % or more");
}

#[test]
fn nothing_in_the_store_is_clear_text() {
    let _slot = alone();
    let source = scratch("clear");
    let tree = source.path().join("tree");
    copy_real_files(&tree, FILES);
    write_noise(&tree.join("a file of noise"), 43, 16 << 20);
    let mut repo = TestRepo::new("clear-text");
    repo.mount();
    must("cp", &["-a", text(&tree), text(&repo.live())], LONG);
    fs::create_dir(repo.snapshot("a snapshot with a long name")).expect("taken");
    repo.umount();
    let start = Instant::now();
    fs::write(source.path().join("a snapshot with a long name"), b"").expect("its name counts as well");
    let leaks = clear_text(&repo.store, &[source.path().to_owned()]);
    eprintln!("the store was searched in {:?}", start.elapsed());
    assert!(
        leaks.is_empty(),
        "{} runs of clear text in the store, such as {:?}",
        leaks.len(),
        &leaks[..leaks.len().min(5)]
    );
}

#[test]
fn ten_bytes_inserted_into_512_mib_add_under_4_mib() {
    let _slot = alone();
    let mut repo = TestRepo::new("insert");
    repo.mount();
    let path = repo.live().join("big");
    write_noise(&path, 7, BIG);
    repo.settle();
    let before = tree_bytes(&repo.store);
    let other = repo.live().join("shifted");
    let mut shifted = File::create(&other).expect("created");
    shifted.write_all(b"ten bytes!").expect("written");
    std::io::copy(&mut File::open(&path).expect("opened"), &mut shifted).expect("copied");
    drop(shifted);
    repo.umount();
    let added = tree_bytes(&repo.store) - before;
    eprintln!("10 bytes inserted added {added} bytes");
    assert!(added < 4 << 20, "10 bytes inserted at the start of {BIG} added {added} bytes to the store");
    repo.mount();
    check_noise(&path, 7, BIG);
    let done = run(Command::new("cmp").args(["-i", "10:0", text(&other), text(&path)]), LONG);
    assert!(
        done.status.success(),
        "the shifted file isn't the other one behind ten bytes: {}{}",
        done.stdout,
        done.stderr
    );
}

#[test]
fn ten_snapshots_without_changes_add_under_64_kib_each() {
    let _slot = alone();
    let mut repo = TestRepo::new("ten-snapshots");
    repo.mount();
    copy_real_files(&repo.live().join("tree"), 2_000);
    repo.settle();
    let mut before = tree_bytes(&repo.store);
    for i in 0..10 {
        fs::create_dir(repo.snapshot(&format!("s{i}"))).expect("taken");
        repo.settle();
        let now = tree_bytes(&repo.store);
        let added = now.saturating_sub(before);
        assert!(added < 64 << 10, "snapshot {i} without a change added {added} bytes");
        before = now;
    }
}
