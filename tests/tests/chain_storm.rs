//! Chains are changed all the time while many write and read; and what any chain ever wrote stays readable.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::repo::{TestRepo, alone, scratch, text};
use axiomfs_tests::rng::{Rng, prose, run_seed, soak};
use axiomfs_tests::run::{must, run};

const WRITERS: usize = 32;
const READERS: usize = 8;
const EVERY: Duration = Duration::from_millis(50);

/// Every kind of change: level, bounds of the level, compressor, order, padding in and out, error strategies.
const COMMANDS: &[&str] = &[
    "set zstd level=9",
    "set zstd level=1 adapt=1..5",
    "chain set default lz4(on_error=skip)|aes-256-gcm",
    "chain add default padme",
    "chain set default lz4|zstd(level=2)|padme|aes-256-gcm",
    "chain set default zstd(level=2)|lz4|padme|aes-256-gcm",
    "chain remove default padme",
    "set zstd on_error=fallback:plain",
    "set zstd on_error=fail",
    "chain set default aes-256-gcm",
    "chain set default zstd(level=3,on_error=skip)|aes-256-gcm",
];

/// Route tables, one of them without routes; each replaces all settings at once.
fn tables() -> [String; 2] {
    let head = "version: 1\nrequire: [encryption]\nchains:\n  plain: [{plugin: aes-256-gcm}]\n  \
                fast: [{plugin: lz4, on_error: {fallback: plain}}, {plugin: aes-256-gcm}]\n  \
                default: [{plugin: zstd, level: 3, on_error: skip}, {plugin: aes-256-gcm}]\n";
    let routes = "routes:\n  - {match: \"*.fast\", chain: fast}\n  - {under: /w3, chain: plain}\n";
    [head.to_owned(), format!("{head}{routes}")]
}

/// Files of many sizes, half of them text and half noise, in a directory per writer, and their checksums.
fn make_source(dir: &Path, files: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    for writer in 0..WRITERS {
        let own = dir.join(format!("w{writer}"));
        fs::create_dir(&own).expect("a directory");
        for file in 0..files {
            let len = [300, 5_000, 60_000, 200_000, 1_200_000][rng.below(5) as usize] as usize;
            let mut bytes = prose(rng.next(), len);
            if rng.one_in(2) {
                bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8);
            }
            let end = if rng.one_in(4) { "fast" } else { "dat" };
            fs::write(own.join(format!("f{file}.{end}")), bytes).expect("written");
        }
    }
    let sums = format!("cd {} && find . -type f -print0 | xargs -0 sha256sum > ../SUMS", text(dir));
    must("sh", &["-c", &sums], Duration::from_secs(120));
}

fn check_sums(source: &Path, repo: &TestRepo, when: &str) {
    let sums = source.with_file_name("SUMS");
    let mut command = Command::new("sha256sum");
    command.args(["--check", "--quiet", text(&sums)]).current_dir(repo.live());
    let done = run(&mut command, Duration::from_secs(300));
    assert!(done.status.success(), "{when}: {}{}", done.stdout, done.stderr);
}

#[test]
fn a_swap_every_50_ms_under_32_writers_and_8_readers_harms_nobody() {
    let _slot = alone();
    let seed = run_seed("chain-storm");
    let (lasts, files) = if soak() { (Duration::from_secs(120), 60) } else { (Duration::from_secs(20), 12) };
    let scratch = scratch("storm-source");
    let source = scratch.path().join("tree");
    fs::create_dir(&source).expect("a directory");
    make_source(&source, files, seed);
    let mut repo = TestRepo::new("chain-storm");
    repo.settings("checkpoint: {interval: 300ms, bytes: 4MiB}\ncommit: {interval: 1s}\n").mount();
    for writer in 0..WRITERS {
        fs::create_dir(repo.live().join(format!("w{writer}"))).expect("a directory");
    }
    let (done, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let end = Instant::now() + lasts;
    let mut took = Vec::new();
    thread::scope(|s| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (source, live, written) = (&source, repo.live(), &written);
                s.spawn(move || write_all(source, &live, writer, files, end, written))
            })
            .collect();
        for reader in 0..READERS {
            let (source, live, done) = (&source, repo.live(), &done);
            s.spawn(move || read_on(source, &live, seed + reader as u64, files, done));
        }
        // Also when this thread panics, or the readers would go on for ever.
        let _ends = Ends(&done);
        let tables = tables();
        let mut next = Instant::now();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let start = Instant::now();
            change(&repo, took.len(), &tables);
            took.push(start.elapsed());
            next += EVERY;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = next.max(Instant::now());
        }
    });
    took.sort_unstable();
    let metrics = Metrics::of(&repo);
    let (p99, longest) =
        (metrics.quantile("axiomfs_swap_wait_seconds", 0.99), metrics.value("axiomfs_swap_wait_max_seconds"));
    eprintln!(
        "{} changes, median {:?}, longest {:?}; {} files; {} requests came during a change and waited: p99 under {p99} s, longest {longest} s",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1],
        written.load(Ordering::SeqCst),
        metrics.sum("axiomfs_swap_wait_seconds_count"),
    );
    // Two cores are shared by 40 others, so that a change takes longer than it does alone; each kind comes many times.
    let kinds = COMMANDS.len() + tables().len();
    assert!(took.len() as u128 > lasts.as_millis() / 100, "only {} changes", took.len());
    assert!(took.len() >= 10 * kinds, "only {} changes of {kinds} kinds", took.len());
    let generation = repo.control_ok("chain show")["generation"].as_u64().expect("a number");
    assert!(generation as usize >= took.len(), "{} changes, and generation {generation}", took.len());
    assert!(p99 <= 0.01 && longest < 0.01, "requests waited for a swap");
    check_sums(&source, &repo, "while mounted");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    check_sums(&source, &repo, "from the store alone");
}

/// Sets its flag when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One change of the chains, which must succeed.
fn change(repo: &TestRepo, number: usize, tables: &[String; 2]) {
    let round = number % (COMMANDS.len() + 2);
    match round.checked_sub(COMMANDS.len()) {
        Some(table) => {
            // That it is refused only closing it would tell.
            fs::write(repo.mnt.join(".axiomfs/chain.yaml"), &tables[table]).expect("a right chain file");
            let routes = repo.control_ok("route list")["routes"].as_array().map(Vec::len);
            assert_eq!(routes, Some([0, 2][table]), "the table is in force");
        }
        None => {
            // The chain `plain` comes with the tables: before their first round it isn't there.
            let reply = repo.control(COMMANDS[round]);
            let early = number < COMMANDS.len() && COMMANDS[round].contains("plain");
            assert!(reply["ok"] == true || early, "{}: {reply}", COMMANDS[round]);
        }
    }
}

/// Copies one writer's files one by one, evenly over the time there is.
fn write_all(source: &Path, live: &Path, writer: usize, files: usize, end: Instant, written: &AtomicUsize) {
    let pause = end.saturating_duration_since(Instant::now()) / files as u32;
    let own = format!("w{writer}");
    let mut names: Vec<_> =
        fs::read_dir(source.join(&own)).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
    names.sort();
    for name in names {
        let start = Instant::now();
        let temporary = live.join(&own).join(format!(".{}.Ab3dE9", name.to_str().expect("text")));
        fs::copy(source.join(&own).join(&name), &temporary).expect("a write during a swap");
        fs::rename(&temporary, live.join(&own).join(&name)).expect("a rename during a swap");
        written.fetch_add(1, Ordering::SeqCst);
        thread::sleep(pause.saturating_sub(start.elapsed()));
    }
}

/// Reads what is there by then, and compares.
fn read_on(source: &Path, live: &Path, seed: u64, files: usize, done: &AtomicBool) {
    let mut rng = Rng::new(seed);
    while !done.load(Ordering::SeqCst) {
        let (writer, file) = (rng.below(WRITERS as u64), rng.below(files as u64));
        for end in ["fast", "dat"] {
            let name = format!("w{writer}/f{file}.{end}");
            match fs::read(live.join(&name)) {
                Ok(bytes) => assert!(bytes == fs::read(source.join(&name)).expect("the source"), "{name} is different"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{name}: {error}"),
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// 200 changes, something stored under each; then everything but the store is gone, the chains' settings too.
#[test]
fn what_any_of_200_chains_wrote_is_readable_without_their_settings() {
    let _slot = alone();
    let mut repo = TestRepo::new("chains-forever");
    let chains = "chains:\n  default: [{plugin: zstd, level: 3}, {plugin: aes-256-gcm}]\n  \
                  other: [{plugin: lz4}, {plugin: padme}, {plugin: aes-256-gcm}]\nroutes: [{under: /o, chain: other}]\n";
    let rest = "checkpoint: {interval: 100ms}\ncommit: {interval: 1h}\n";
    repo.settings(&format!("{chains}{rest}")).mount();
    fs::create_dir(repo.live().join("o")).expect("a directory");
    let steps = ["zstd(level=1)", "lz4", "zstd(level=2)|lz4", "lz4|zstd(level=1)", ""];
    let content = |number: u64| prose(number, 3_000 + 1_500 * (number as usize % 150));
    for number in 0..200u64 {
        let mut chain = steps[number as usize % 5].to_owned();
        for more in [if number / 5 % 2 == 0 { "padme" } else { "" }, "aes-256-gcm"] {
            chain = [chain.as_str(), more].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("|");
        }
        let name = if number % 3 == 0 { "other" } else { "default" };
        repo.control_ok(&format!("chain set {name} {chain}"));
        for dir in ["", "o/"] {
            fs::write(repo.live().join(format!("{dir}{number}")), content(number)).expect("written");
        }
        repo.control_ok("sync");
    }
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.settings(rest).mount();
    assert_eq!(repo.control_ok("chain show")["chains"].as_array().map(Vec::len), Some(1), "only the default is left");
    for number in 0..200 {
        for dir in ["", "o/"] {
            let bytes = fs::read(repo.live().join(format!("{dir}{number}"))).expect("readable");
            assert!(bytes == content(number), "{dir}{number}");
        }
    }
}
