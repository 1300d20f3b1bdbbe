//! Bytes that nobody would write, on a real mount: nothing crashes, and what is refused has changed nothing.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::{Rng, prose, run_seed, soak};
use axiomfs_tests::run::run;
use serde_json::Value;

/// The chains, the routes and how often they were changed.
fn stand(repo: &TestRepo) -> (String, String, String) {
    let show = repo.control_ok("chain show");
    let yaml = fs::read_to_string(repo.mnt.join(".axiomfs/chain.yaml")).expect("read");
    let mut chains = show["chains"].clone();
    // Frames come and go by themselves.
    chains.as_array_mut().expect("a list").iter_mut().for_each(|chain| chain["in_flight"] = Value::Null);
    (chains.to_string(), show["generation"].to_string(), yaml)
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

/// One write to `control`: its reply, if it was accepted.
fn command(repo: &TestRepo, bytes: &[u8]) -> Option<Value> {
    let path = repo.mnt.join(".axiomfs/control");
    let mut control = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let count = control.write(bytes).ok()?;
    let mut reply = String::new();
    control.read_to_string(&mut reply).expect("a reply");
    (count > 0).then(|| serde_json::from_str(&reply).unwrap_or_else(|e| panic!("{e}: {reply}")))
}

/// What the reply to an accepted command tells is what there is.
fn told(repo: &TestRepo, before: &(String, String, String), reply: &Value, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert_eq!(reply["ok"], true, "{text}: {reply}");
    let show = repo.control_ok("chain show");
    if let Some(generation) = reply["generation"].as_u64() {
        assert_eq!(show["generation"], generation, "{text}: {reply}");
    }
    if let Some(name) = reply["name"].as_str() {
        let chain = show["chains"].as_array().expect("a list").iter().find(|chain| chain["name"] == name);
        assert_eq!(chain.expect("the chain")["chain"], reply["chain"], "{text}: {reply}");
    } else if reply["chain"].is_string() {
        assert!(show["chains"].to_string().contains(&reply["chain"].to_string()), "{text}: {reply} {show}");
    } else if reply["routes"].is_array() {
        assert_eq!(repo.control_ok("route list")["routes"], reply["routes"], "{text}");
        assert_ne!(show["generation"].to_string(), before.1, "{text}");
    }
}

/// Whether the mount takes it as its chain file.
fn takes(repo: &TestRepo, file: &Path, bytes: &[u8]) -> bool {
    fs::write(file, bytes).expect("written");
    let target = repo.mnt.join(".axiomfs/chain.yaml");
    run(Command::new("cp").args([text(file), text(&target)]), LIMIT).status.success()
}

/// A right chain file of which every part is known.
struct Wish {
    level: u64,
    others: u64,
    routes: u64,
    in_flight: u64,
}

impl Wish {
    fn random(rng: &mut Rng) -> Self {
        let (level, others) = (rng.between(1, 8), rng.below(3));
        Self { level, others, routes: if others > 0 { rng.below(4) } else { 0 }, in_flight: rng.between(1, 32) }
    }

    fn yaml(&self) -> String {
        let chains: String =
            (0..self.others).map(|i| format!("  other{i}: [{{plugin: lz4}}, {{plugin: aes-256-gcm}}]\n")).collect();
        let routes: String =
            (0..self.routes).map(|i| format!("  - {{match: \"*.e{i}\", chain: other{}}}\n", i % self.others)).collect();
        let routes = if routes.is_empty() { String::new() } else { format!("routes:\n{routes}") };
        let Self { level, in_flight, .. } = self;
        format!(
            "version: 1\nrequire: [encryption]\nlimits: {{max_in_flight: {in_flight}}}\nchains:\n  \
             default: [{{plugin: zstd, level: {level}}}, {{plugin: aes-256-gcm}}]\n{chains}{routes}"
        )
    }

    /// All of it is in force, and nothing else.
    fn check(&self, repo: &TestRepo) {
        let show = repo.control_ok("chain show");
        let chains: Vec<(&str, &str)> = show["chains"].as_array().expect("a list").iter().map(steps).collect();
        let level = format!("zstd(level={})|aes-256-gcm", self.level);
        let mut expected = vec![("default", level.as_str())];
        let names: Vec<String> = (0..self.others).map(|i| format!("other{i}")).collect();
        expected.extend(names.iter().map(|name| (name.as_str(), "lz4|aes-256-gcm")));
        assert_eq!(chains, expected);
        let routes = repo.control_ok("route list")["routes"].clone();
        assert_eq!(routes.as_array().map(Vec::len), Some(self.routes as usize), "{routes}");
        for i in 0..self.routes {
            let explained = repo.control_ok(&format!("route explain x.e{i}"));
            assert_eq!(explained["chain"], format!("other{}", i % self.others), "{explained}");
        }
        let yaml = fs::read_to_string(repo.mnt.join(".axiomfs/chain.yaml")).expect("read");
        assert!(yaml.lines().any(|line| line.contains(&format!("max_in_flight: {}", self.in_flight))), "{yaml}");
    }
}

fn steps(chain: &Value) -> (&str, &str) {
    (chain["name"].as_str().expect("a name"), chain["chain"].as_str().expect("steps"))
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
        let accepted = match round % 5 {
            0 | 2 => {
                let right = commands[round / 2 % commands.len()];
                let bytes = spoiled(&mut rng, right.as_bytes());
                command(&repo, &bytes).map(|reply| told(&repo, &before, &reply, &bytes))
            }
            4 => {
                let wish = Wish::random(&mut rng);
                assert!(takes(&repo, &file, wish.yaml().as_bytes()), "{}", wish.yaml());
                wish.check(&repo);
                Some(())
            }
            _ => {
                let bytes = spoiled(&mut rng, before.2.as_bytes());
                takes(&repo, &file, &bytes).then_some(())
            }
        };
        let after = stand(&repo);
        match accepted {
            None => {
                refused += 1;
                assert_eq!(before, after, "it was refused, and changed something");
            }
            Some(()) => {
                taken += 1;
                assert!(after.0.contains("aes-256-gcm"), "{after:?}");
                let number = |stand: &(String, String, String)| stand.1.parse::<u64>().expect("a generation");
                assert!(number(&after) <= number(&before) + 1, "one input is one change: {before:?} {after:?}");
                assert!(number(&after) > number(&before) || after == before, "it changed, and is no change");
                // What is in force is all that is shown: given again, it is the same.
                assert!(takes(&repo, &file, after.2.as_bytes()), "{}", after.2);
                let again = stand(&repo);
                assert_eq!((&again.0, &again.2), (&after.0, &after.2));
            }
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
