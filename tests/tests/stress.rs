//! The filesystem stressors of stress-ng, four at a time: nothing hangs, nothing leaks, nothing goes wrong that goes right
//! on ext4.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use axiomfs_tests::ext4::Ext4;
use axiomfs_tests::observe::same_for_diff;
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, scratch, text};
use axiomfs_tests::rng::soak;
use axiomfs_tests::run::{must, run, wait_for};
use axiomfs_tests::source::{copy_real_files, write_noise};

/// They mount filesystems of their own, or work on one of the kernel's.
const ELSEWHERE: [&str; 3] = ["bind-mount", "binderfs", "procfs"];
/// The setting `memory` and what may come on top of it.
const MEMORY: u64 = 356 << 20;
const AT_A_TIME: usize = 4;
/// Longest that a stressor may take to clear up after its time, on a loaded machine.
const GRACE: Duration = Duration::from_secs(240);
/// The kernel answers for the filesystems it knows: it has no FS_IOC_FIEMAP for those in user space.
const NOT_ASKED: [(&str, &str); 1] = [("fiemap", "FS_IOC_FIEMAP not supported")];

#[test]
fn stressors_find_what_they_find_on_ext4_and_nothing_hangs_or_leaks() {
    let _slot = alone();
    let each = if soak() { 60 } else { 3 };
    let mut repo = TestRepo::new("stress");
    repo.settings("memory: 256MiB\n").mount();
    let source = scratch("stress-source");
    let control = source.path().join("control");
    copy_real_files(&control, 500);
    write_noise(&control.join("large"), 3, 32 << 20);
    must("cp", &["-a", text(&control), text(&repo.live().join("control"))], LIMIT);
    repo.settle();
    let before = held(&repo);

    let here = stress(&repo.live().join("work"), &stressors(), each);
    let hung: Vec<_> = here.iter().filter(|(_, said)| said.contains(&HUNG.to_owned())).collect();
    assert!(hung.is_empty(), "{hung:?} did not end");
    let complaining: Vec<String> = here.iter().filter(|(_, said)| !said.is_empty()).map(|(n, _)| n.clone()).collect();
    let disk = Ext4::new(&repo.dir.join("ext4.img"), &repo.dir.join("ext"), 4 << 30);
    let there = stress(&disk.at.join("work"), &complaining, each);
    for (name, said) in &here {
        let only_here: Vec<_> = said
            .iter()
            .filter(|line| !there[name].contains(line))
            .filter(|line| !NOT_ASKED.iter().any(|(n, what)| n == name && line.contains(what)))
            .collect();
        assert!(only_here.is_empty(), "{name} complains here and not on ext4: {only_here:#?}\n{:#?}", there[name]);
    }
    println!("{} stressors, {each} s each; on ext4 too complain: {complaining:?}", here.len());

    let peak = repo.peak_rss();
    assert!(peak < MEMORY, "the daemon used {peak} bytes, {MEMORY} are allowed");
    fs::remove_dir_all(repo.live().join("work")).expect("removed");
    same_for_diff(&control, &repo.live().join("control"), "at once");
    repo.settle();
    wait_for("what was held is given back", LIMIT, || held(&repo).within(&before));
    println!("peak resident memory {} MiB, held: {:?}, before: {before:?}", peak >> 20, held(&repo));
    // What has no name and isn't held open is gone: nothing is left for the recovery to reclaim.
    repo.kill9();
    repo.mount();
    assert!(!repo.events().contains("without a name"), "{}", repo.events());
    same_for_diff(&control, &repo.live().join("control"), "after a crash");
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    same_for_diff(&control, &repo.live().join("control"), "from the store");
    assert_eq!(fs::read_dir(repo.live()).expect("listed").count(), 1, "the stressors left something");
}

/// What the daemon holds for others.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    handles: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn within(&self, other: &Held) -> bool {
        self.handles <= other.handles && self.descriptors <= other.descriptors && self.threads <= other.threads
    }
}

fn held(repo: &TestRepo) -> Held {
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", repo.pid())).expect("a running daemon").count();
    Held { handles: repo.status_number("live/handles"), descriptors: count("fd"), threads: count("task") }
}

/// All of the class, less those that work elsewhere.
fn stressors() -> Vec<String> {
    let said = run(Command::new("stress-ng").args(["--class", "filesystem?"]), LIMIT);
    let all = format!("{}{}", said.stdout, said.stderr);
    let names = all.split_once("stressors:").unwrap_or_else(|| panic!("stress-ng lists no stressors: {all}")).1;
    let names: Vec<String> = names.split_whitespace().filter(|n| !ELSEWHERE.contains(n)).map(str::to_owned).collect();
    assert!(names.len() > 40, "only {names:?}");
    names
}

const HUNG: &str = "it did not end";

/// Runs them below `at`, each for `seconds`, and returns what each complained of: failures, what it found unsupported.
fn stress(at: &Path, names: &[String], seconds: u64) -> BTreeMap<String, Vec<String>> {
    let queue: Mutex<VecDeque<&String>> = Mutex::new(names.iter().collect());
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|s| {
        for _ in 0..AT_A_TIME {
            s.spawn(|| {
                while let Some(name) = { queue.lock().expect("no panic").pop_front() } {
                    let said = complaints(name, at.join(name), seconds);
                    found.lock().expect("no panic").insert(name.clone(), said);
                }
            });
        }
    });
    found.into_inner().expect("no panic")
}

fn complaints(name: &str, at: PathBuf, seconds: u64) -> Vec<String> {
    fs::create_dir_all(&at).expect("made");
    let limit = Duration::from_secs(seconds) + GRACE;
    let mut command = Command::new("timeout");
    // Its children end with it: they belong to its process group.
    command.args(["--kill-after=10", &limit.as_secs().to_string(), "stress-ng", &format!("--{name}"), "1"]);
    command.args(["--timeout", &seconds.to_string(), "--verify", "--temp-path", text(&at)]);
    // What they fill the disk with by default is a gigabyte.
    for option in ["hdd", "iomix", "fallocate", "sync-file"] {
        command.args([&format!("--{option}-bytes"), "64m"]);
    }
    let done = run(command.args(["--copy-file-bytes", "128m"]), limit + Duration::from_secs(30));
    let text = format!("{}{}", done.stdout, done.stderr);
    let mut said: Vec<String> =
        text.lines().filter(|line| is_complaint(line)).map(|line| without_numbers(line, &at)).collect();
    match done.code() {
        0 => {}
        124 | 137 => said.push(HUNG.into()),
        code => said.push(format!("exit code {code}")),
    }
    said.sort();
    said.dedup();
    said
}

fn is_complaint(line: &str) -> bool {
    ["fail:", "error:", "warn:"].iter().any(|level| line.contains(&format!("stress-ng: {level}")))
        || ["skipping", "not supported"].iter().any(|word| line.contains(word))
}

/// A message without its process, its numbers and where it happened.
fn without_numbers(line: &str, at: &Path) -> String {
    let message = line.split_once("] ").map_or(line, |(_, message)| message);
    let message = message.split(", filesystem type").next().unwrap_or_default().replace(text(at), "DIR");
    message.chars().filter(|c| !c.is_ascii_digit()).collect()
}
