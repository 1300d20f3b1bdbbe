//! Bytes that nobody would write, on a real mount: nothing crashes, and what is refused has changed nothing.

use std::fs;
use std::io::Write;
use std::process::Command;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::{Rng, prose, run_seed, soak};
use axiomfs_tests::run::run;

/// The chains, the routes and how often they were changed.
fn stand(repo: &TestRepo) -> (String, String, String) {
    let show = repo.control_ok("chain show");
    let yaml = fs::read_to_string(repo.mnt.join(".axiomfs/chain.yaml")).expect("read");
    (show["chains"].to_string(), show["generation"].to_string(), yaml)
}

/// Random bytes, or a right text with something wrong in it.
fn spoiled(rng: &mut Rng, right: &[u8]) -> Vec<u8> {
    if rng.one_in(3) {
        let len = rng.below(5000) as usize;
        return (0..len).map(|_| rng.next() as u8).collect();
    }
    let mut bytes = right.to_vec();
    for _ in 0..rng.between(1, 6) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        let piece =
            *rng.pick(&[&b"{"[..], b"]", b": ", b"\n  ", b"|", b"(", b"=", b"99", b"zstd", b"fail", b"\xff", b"\0"]);
        match rng.below(3) {
            0 => bytes.truncate(at),
            1 => {
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => bytes[..].iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.next() as u8),
        }
    }
    bytes
}

#[test]
fn random_bytes_on_control_and_chain_yaml_crash_nothing_and_are_never_half_applied() {
    let _slot = beside_others();
    let mut rng = Rng::new(run_seed("garbage"));
    let mut repo = TestRepo::new("garbage-random");
    repo.mount();
    fs::write(repo.live().join("before"), prose(1, 300_000)).expect("written");
    let commands = ["chain set default zstd(level=5)|aes-256-gcm", "set zstd level=2", "route add match *.x default"];
    let file = repo.dir.join("spoiled.yaml");
    let (mut refused, mut taken) = (0, 0);
    for round in 0..if soak() { 4000 } else { 150 } {
        let before = stand(&repo);
        let accepted = if round % 2 == 0 {
            let bytes = spoiled(&mut rng, commands[round / 2 % commands.len()].as_bytes());
            let mut control =
                fs::OpenOptions::new().write(true).open(repo.mnt.join(".axiomfs/control")).expect("opened");
            let written = control.write(&bytes);
            written.is_ok_and(|count| count > 0)
        } else {
            let bytes = spoiled(&mut rng, before.2.as_bytes());
            fs::write(&file, bytes).expect("written");
            let target = repo.mnt.join(".axiomfs/chain.yaml");
            run(Command::new("cp").args([text(&file), text(&target)]), LIMIT).status.success()
        };
        let after = stand(&repo);
        if accepted {
            taken += 1;
            // What was taken is in force as it is shown: shown again and applied, it is the same.
            assert!(after.0.contains("aes-256-gcm"), "{after:?}");
        } else {
            refused += 1;
            assert_eq!(before, after, "it was refused, and changed something");
        }
    }
    eprintln!("{refused} refused, {taken} taken");
    assert!(refused > 60, "{refused}");
    assert!(repo.is_running());
    fs::write(repo.live().join("after"), prose(2, 300_000)).expect("written");
    repo.settle();
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    repo.mount();
    for (name, seed) in [("before", 1), ("after", 2)] {
        assert!(fs::read(repo.live().join(name)).expect("read") == prose(seed, 300_000), "{name}");
    }
}
