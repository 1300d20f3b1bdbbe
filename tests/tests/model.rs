//! Random operations against a directory and a naive model, compared after every step and over the whole tree.

use std::path::Path;

use axiomfs_tests::generate::{Generator, Limits};
use axiomfs_tests::model::{Model, Op};
use axiomfs_tests::observe::{Bytes, differences, observe};
use axiomfs_tests::perform::Performer;
use axiomfs_tests::repo::{TestRepo, beside_others, scratch};
use axiomfs_tests::rng::{Rng, run_seed, soak};

/// Does `count` operations on both and panics at the first result that differs.
fn run_steps(
    model: &mut Model,
    performer: &mut Performer,
    generator: &mut Generator,
    count: usize,
    done: &mut Vec<Op>,
) {
    for _ in 0..count {
        let op = generator.next(model);
        let want = model.apply(&op);
        let have = performer.perform(&op).map_err(|e| e.raw_os_error().unwrap_or(-1));
        done.push(op);
        assert_eq!(have, want, "operation {} differs from the model (left: filesystem)\n{}", done.len(), recent(done));
        if want.is_ok() {
            performer
                .adopt_times(model)
                .unwrap_or_else(|e| panic!("after operation {}: {e}\n{}", done.len(), recent(done)));
        }
    }
}

fn recent(done: &[Op]) -> String {
    let from = done.len().saturating_sub(12);
    done[from..].iter().enumerate().map(|(i, op)| format!("  {}: {}\n", from + i + 1, op.describe())).collect()
}

fn check(model: &Model, root: &Path, when: &str, done: &[Op]) {
    let seen = observe(root, Bytes::Keep).unwrap_or_else(|e| panic!("{when}: the tree can't be read: {e}"));
    let found = differences(model, &seen);
    assert!(found.is_empty(), "{when} (after {} operations):\n{}\n{}", done.len(), found.join("\n"), recent(done));
}

/// The model itself, against the local filesystem: an oracle that is wrong would be worth nothing.
#[test]
fn the_model_agrees_with_the_local_filesystem() {
    let _slot = beside_others();
    let seed = run_seed("the_model_agrees_with_the_local_filesystem");
    for round in 0..4 {
        let dir = scratch("oracle");
        let mut performer = Performer::new(dir.path());
        let (mut model, mut done) = (Model::new(), Vec::new());
        let mut generator = Generator::new(seed.wrapping_add(round), Limits::small());
        performer.perform(&Op::Chmod { path: Vec::new(), mode: 0o755 }).expect("chmod of the root");
        for _ in 0..6 {
            run_steps(&mut model, &mut performer, &mut generator, 250, &mut done);
            check(&model, dir.path(), "on the local filesystem", &done);
        }
    }
}

/// The same against a mount, across forced checkpoints, commits, crashes and clean remounts.
#[test]
fn random_operations_agree_with_the_model_across_checkpoints_crashes_and_remounts() {
    let _slot = beside_others();
    let seed = run_seed("random_operations_agree_with_the_model");
    let rounds = if soak() { 30 } else { 4 };
    for round in 0..rounds {
        one_life(seed.wrapping_add(round * 7919));
    }
}

fn one_life(seed: u64) {
    let mut repo = TestRepo::new("model");
    repo.settings("checkpoint: {interval: 1s, bytes: 8MiB}\ncommit: {interval: 2s, bytes: 16MiB}\n").mount();
    let root = repo.live();
    let (mut model, mut done) = (Model::new(), Vec::new());
    let mut performer = Performer::new(&root);
    let mut generator = Generator::new(seed, Limits::small());
    let mut rng = Rng::new(!seed);
    eprintln!("life with seed {seed}");
    performer.perform(&Op::Chmod { path: Vec::new(), mode: 0o755 }).expect("chmod of the root");
    for step in 0..10 {
        run_steps(&mut model, &mut performer, &mut generator, 150, &mut done);
        check(&model, &root, "while mounted", &done);
        let event = rng.below(5);
        match event {
            0 => drop(repo.sync()),
            1 => drop(repo.control_ok("sync")),
            _ => {
                performer.release_all();
                model.release_all();
            }
        }
        match event {
            2 => {
                repo.kill9();
                repo.mount();
            }
            3 => drop(repo.umount().mount()),
            4 => {
                repo.umount();
                std::fs::remove_dir_all(&repo.state).expect("the state can be deleted");
                std::fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
                repo.mount();
            }
            _ => {}
        }
        let what =
            ["sync", "control sync", "a crash", "a clean remount", "a remount from the store alone"][event as usize];
        check(&model, &root, &format!("step {step}, after {what}"), &done);
    }
}
