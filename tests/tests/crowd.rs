//! Eight processes read, write, rename and list in the same directories.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use axiomfs_tests::crowd::{Tally, check_sums, prepare};
use axiomfs_tests::repo::{TestRepo, alone, scratch};
use axiomfs_tests::rng::{run_seed, soak};

const PROCESSES: u64 = 8;

#[test]
fn eight_processes_in_the_same_directories_find_what_the_model_says() {
    let _slot = alone();
    let seconds = if soak() { 600 } else { 60 };
    let mut repo = TestRepo::new("crowd");
    repo.settings("checkpoint: {interval: 200ms}\ncommit: {interval: 1s}\n").mount();
    let root = repo.live().join("crowd");
    fs::create_dir(&root).expect("made");
    prepare(&root).expect("prepared");
    let mut crowd = Crowd::start(&root, run_seed("crowd"));
    let tallies = crowd.work(seconds);
    println!("{seconds} s: {tallies:?}");
    for tally in &tallies {
        assert!(tally.operations > seconds * 5 && tally.counted > 0 && tally.read > 0, "too little: {tally:?}");
    }
    let check = |crowd: &mut Crowd, when: &str| {
        crowd.all("check", when);
        check_sums(&root, &tallies).unwrap_or_else(|e| panic!("{when}: {e}"));
    };
    check(&mut crowd, "at once");
    repo.kill9();
    repo.mount();
    crowd.all("reopen", "after a crash");
    check(&mut crowd, "after a crash");
    // The log is held open.
    crowd.all_end();
    repo.umount();
    fs::remove_dir_all(&repo.state).expect("the state can be deleted");
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    check_sums(&root, &tallies).unwrap_or_else(|e| panic!("from the store: {e}"));
}

#[test]
fn the_crowd_finds_nothing_wrong_on_the_local_filesystem_and_notices_a_changed_byte() {
    let dir = scratch("crowd-local");
    prepare(dir.path()).expect("prepared");
    let mut crowd = Crowd::start(dir.path(), 4711);
    let tallies = crowd.work(1);
    crowd.all("check", "locally");
    check_sums(dir.path(), &tallies).expect("locally");
    let log = dir.path().join("log");
    let mut bytes = fs::read(&log).expect("read");
    bytes.pop();
    fs::write(&log, bytes).expect("written");
    check_sums(dir.path(), &tallies).expect_err("a byte is missing in the log");
    let mut own = fs::read_dir(dir.path().join("d1")).expect("listed").flatten();
    let own = own.find(|e| e.file_name().to_string_lossy().starts_with("own3-")).expect("a file of process 3");
    fs::rename(own.path(), dir.path().join("d1/own3-another")).expect("renamed");
    let said = crowd.ask(3, "check");
    assert!(said.starts_with("wrong") && said.contains("own3-another"), "{said}");
}

/// The running processes; they end with their input.
struct Crowd {
    members: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Crowd {
    fn start(root: &Path, seed: u64) -> Crowd {
        let one = |id: u64| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_crowd-member"));
            command.arg(root).arg(id.to_string()).arg(seed.to_string());
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
            let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            (child, input, BufReader::new(output))
        };
        Crowd { members: (0..PROCESSES).map(one).collect() }
    }

    fn tell(&mut self, id: usize, what: &str) {
        writeln!(self.members[id].1, "{what}").unwrap_or_else(|e| panic!("process {id} is gone: {e}"));
    }

    fn hear(&mut self, id: usize) -> String {
        let mut line = String::new();
        self.members[id].2.read_line(&mut line).expect("an answer");
        line
    }

    fn ask(&mut self, id: usize, what: &str) -> String {
        self.tell(id, what);
        self.hear(id)
    }

    /// All at the same time; none may find anything wrong.
    fn all(&mut self, what: &str, when: &str) -> Vec<String> {
        (0..self.members.len()).for_each(|id| self.tell(id, what));
        let said: Vec<String> = (0..self.members.len()).map(|id| self.hear(id)).collect();
        let wrong: Vec<_> = said.iter().filter(|said| !said.starts_with("done")).collect();
        assert!(wrong.is_empty(), "{when}, {what}: {wrong:#?}");
        said
    }

    fn work(&mut self, seconds: u64) -> Vec<Tally> {
        let said = self.all(&format!("work {seconds}"), "at work");
        let tally = |line: &String| {
            let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|n| n.parse().expect("a number")).collect();
            let [operations, appended, counted, read] = numbers[..] else { panic!("no tally: {line}") };
            Tally { operations, appended, counted, read }
        };
        said.iter().map(tally).collect()
    }

    /// Lets all end, and waits for them.
    fn all_end(&mut self) {
        for (mut child, input, _) in std::mem::take(&mut self.members) {
            drop(input);
            child.wait().expect("waited");
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Only those that a failed test left at work.
        for (child, ..) in &mut self.members {
            child.kill().and_then(|()| child.wait()).map_or_else(|e| eprintln!("it can't be killed: {e}"), drop);
        }
    }
}
