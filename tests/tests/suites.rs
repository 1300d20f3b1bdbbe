//! Test suites that others wrote for local filesystems: what they find right on ext4 must be right here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axiomfs_tests::ext4::Ext4;
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, text};
use axiomfs_tests::rng::{Rng, soak};
use axiomfs_tests::run::{must, run, tail};
use axiomfs_tests::tools::tool;
use rustix::process::{Pid, Signal, kill_process};

const PJDFSTEST: &str = "0.2.2";
const FSX: &str = "0.3.2";

/// Other users that every Debian has, and all that Linux offers.
const PJDFSTEST_SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The C library knows the largest number of links of ext4 and of a few others by name, not of any filesystem in user space: it is
/// told, so that the suite asks for all of them.
const LINK_MAX: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
long pathconf(const char *path, int name) {
    long (*real)(const char *, int) = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    return name == _PC_LINK_MAX ? 65000 : real(path, name);
}
"#;

/// A library that answers for the C library's `pathconf`.
fn link_max(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("link_max.c"), dir.join("link_max.so"));
    fs::write(&source, LINK_MAX).expect("a source file");
    must("gcc", &["-shared", "-fPIC", "-o", text(&library), text(&source), "-ldl"], LIMIT);
    library
}

#[test]
fn what_pjdfstest_finds_right_on_ext4_is_right_here() {
    let _slot = alone();
    let program = tool("pjdfstest", PJDFSTEST);
    let mut repo = TestRepo::new("pjdfstest");
    for dir in [&repo.dir, &repo.mnt] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    repo.try_mount(&["-o", "allow_other"]).unwrap_or_else(|e| panic!("{e}"));
    let settings = repo.dir.join("pjdfstest.toml");
    fs::write(&settings, PJDFSTEST_SETTINGS).expect("settings");
    let disk = Ext4::new(&repo.dir.join("ext4.img"), &repo.dir.join("ext"), 512 << 20);
    // As long a path as that of live/: some cases make paths of the greatest length.
    let local = disk.at.join("live");
    fs::create_dir(&local).expect("made");
    let told = link_max(&repo.dir);
    let cases = |at: &Path| {
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert_eq!(at.as_os_str().len(), repo.live().as_os_str().len());
        let mut command = Command::new(&program);
        command
            .args(["-c", text(&settings), "-p", text(at), "-s", "/dev/shm"])
            .env("NO_COLOR", "1")
            .env("LD_PRELOAD", &told);
        run(&mut command, LIMIT).stdout
    };
    let on_ext4 = cases(&local);
    let want = results(&on_ext4);
    let passed = want.values().filter(|result| *result == "ok").count();
    assert!(passed >= 369, "only {passed} cases pass on ext4: {}", tail(&on_ext4));
    let mut differ = differences(&want, &cases(&repo.live()));
    if !differ.is_empty() {
        // Some cases race with a program that they start (`open::etxtbsy` with its exec): what is wrong is wrong again.
        let again = differences(&want, &cases(&repo.live()));
        differ.retain(|name, _| again.contains_key(name));
    }
    let differ: Vec<String> = differ.into_iter().map(|(name, how)| format!("{name}: {how}")).collect();
    assert!(differ.is_empty(), "{} cases pass on ext4 and not here:\n{}", differ.len(), differ.join("\n"));
    println!("{passed} of {} cases of pjdfstest {PJDFSTEST} pass on ext4 and here", want.len());
}

/// Cases that pass on ext4 and not in the output of a run here, and what that says of them.
fn differences(want: &BTreeMap<String, String>, here: &str) -> BTreeMap<String, String> {
    let have = results(here);
    want.iter()
        .filter(|(name, result)| *result == "ok" && have.get(*name).is_none_or(|here| here != "ok"))
        .map(|(name, _)| (name.clone(), format!("{:?} {}", have.get(name), reason(here, name))))
        .collect()
}

/// Name and result of each case.
fn results(output: &str) -> BTreeMap<String, String> {
    let case = |line: &str| {
        let (name, result) = line.split_once(char::is_whitespace)?;
        name.contains("::").then(|| (name.to_owned(), result.trim().to_owned()))
    };
    output.lines().filter_map(case).collect()
}

/// The line that the suite prints below a case that was skipped or failed.
fn reason<'a>(output: &'a str, case: &str) -> &'a str {
    let mut lines = output.lines().skip_while(|line| !line.starts_with(&format!("{case} ")));
    lines.nth(1).filter(|line| line.starts_with('\t')).unwrap_or_default().trim()
}

/// Every operation that fsx has and ext4 passes.
const FSX_SETTINGS: &str = "
flen = 1048576
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 3
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2
punch_hole = 3
sendfile = 2
posix_fadvise = 2
copy_file_range = 4
";

/// Checkpoints and commits all the time, so that each read may meet data wherever it can lie.
const RESTLESS: &str =
    "checkpoint: {interval: 200ms, bytes: 16MiB}\ncommit: {interval: 500ms, bytes: 8MiB}\nlog: {max: 512MiB}\n";

/// A repository that is mounted with [`RESTLESS`] settings, and those of fsx.
fn for_fsx(name: &str) -> (TestRepo, PathBuf) {
    let mut repo = TestRepo::new(name);
    repo.settings(RESTLESS).mount();
    let settings = repo.dir.join("fsx.toml");
    fs::write(&settings, FSX_SETTINGS).expect("settings");
    (repo, settings)
}

fn fsx(settings: &Path, seed: u64, operations: u64, file: &Path) -> Command {
    let mut command = Command::new(tool("fsx", FSX));
    command.args(["-f", text(settings), "-S", &seed.to_string(), "-N", &operations.to_string()]);
    // What it keeps of a failure goes beside its settings.
    command.args(["-P", text(settings.parent().expect("a directory")), text(file)]);
    command
}

#[test]
fn fsx_finds_no_wrong_byte_across_checkpoints_and_dropped_caches() {
    let _slot = alone();
    let operations = if soak() { 200_000 } else { 15_000 };
    let (repo, settings) = for_fsx("fsx");
    let start = Instant::now();
    let (mut drops, mut syncs) = (0, 0);
    for seed in 1..=5 {
        let begun = Instant::now();
        let file = repo.live().join(format!("fsx-{seed}"));
        let mut command = fsx(&settings, seed, operations, &file);
        let mut child = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("fsx runs"));
        let said = collect(&mut child.0);
        let status = loop {
            if let Some(status) = child.0.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(850), "fsx with seed {seed} does not end");
            thread::sleep(Duration::from_millis(700));
            // 1: contents; 3: names and attributes too.
            fs::write("/proc/sys/vm/drop_caches", if drops % 2 == 0 { "1" } else { "3" }).expect("caches are dropped");
            drops += 1;
            if drops % 2 == 0 {
                repo.sync();
                syncs += 1;
            }
        };
        let said = said.join().expect("its output");
        assert!(status.success(), "seed {seed}, {operations} operations: {status}\n{}", tail(&said));
    }
    assert!(drops >= 5 && syncs >= 2, "the caches were dropped {drops} times with {syncs} syncs");
    println!("5 × {operations} operations, {drops} drops, {syncs} syncs, {:?}", start.elapsed());
}

#[test]
fn what_fsx_did_is_there_after_each_kill() {
    let _slot = alone();
    let kills = if soak() { 20 } else { 4 };
    let (mut repo, settings) = for_fsx("fsx-kill");
    let mut rng = Rng::new(0x5eed);
    let mut in_flight = BTreeMap::new();
    for kill in 0..kills {
        let seed = 100 + kill;
        let file = repo.live().join("fsx");
        let target = if soak() { 10_000 } else { 3_000 } + rng.below(1000);
        let (step, operation) = run_until_killed(&mut repo, &settings, seed, target, &file);
        repo.mount();
        let have = fs::read(&file).expect("the file is there");
        let [before, after] = [step - 1, step].map(|operations| {
            let local = repo.dir.join("local");
            let done = run(&mut fsx(&settings, seed, operations, &local), LIMIT);
            assert!(done.status.success(), "fsx fails on the local filesystem: {}", tail(&done.stderr));
            fs::read(&local).expect("what fsx wrote")
        });
        assert!(
            have == before || have == after || is_part(&operation, &have, &before, &after),
            "kill {kill}, seed {seed}: after {step} operations, the last a {operation}, the file is neither what it was \
             before nor after it: {}",
            first_difference(&have, &before, &after)
        );
        *in_flight.entry(operation).or_insert(0) += 1;
    }
    println!("{kills} kills, operations in flight: {in_flight:?}");
}

/// Lets fsx work until it has begun about `target` operations, kills the daemon, and returns the number and the name of
/// the last operation that fsx began: all before it were acknowledged.
fn run_until_killed(repo: &mut TestRepo, settings: &Path, seed: u64, target: u64, file: &Path) -> (u64, String) {
    let mut command = fsx(settings, seed, 10_000_000, file);
    let mut child = Running(command.arg("-v").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("fsx runs"));
    let lines = BufReader::new(child.0.stderr.take().expect("piped")).split(b'\n');
    let mut last = (0, String::new());
    let (mut killed, ended) = (false, Arc::new(AtomicBool::new(false)));
    for line in lines {
        let line = String::from_utf8_lossy(&line.expect("fsx speaks")).into_owned();
        // `[INFO  fsx]     12 write    0x1 .. 0x2 (0x2 bytes)`; what comes after a failure is of level ERROR.
        let Some(rest) = line.strip_prefix("[INFO  fsx]") else { continue };
        let mut words = rest.split_whitespace();
        if let (Some(Ok(step)), Some(name)) = (words.next().map(str::parse), words.next()) {
            last = (step, name.to_owned());
        }
        if last.0 >= target && !killed {
            repo.kill9();
            killed = true;
            // Where `sendfile` fails, fsx waits for the bytes for ever. It has said what it began.
            let fsx = Pid::from_raw(child.0.id() as i32).expect("a process");
            let ended = ended.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_secs(5));
                if !ended.load(Ordering::SeqCst)
                    && let Err(e) = kill_process(fsx, Signal::KILL)
                {
                    eprintln!("fsx can't be ended: {e}");
                }
            });
        }
    }
    ended.store(true, Ordering::SeqCst);
    assert!(killed, "fsx ended by itself at operation {}", last.0);
    let status = child.0.wait().expect("a child can be waited for");
    assert!(!status.success(), "fsx did not notice the kill");
    last
}

/// Whether `have` may be what is left of an operation that takes more than one request.
fn is_part(operation: &str, have: &[u8], before: &[u8], after: &[u8]) -> bool {
    match operation {
        // A write whose first page isn't in the page cache is sent in two parts, that page first.
        "write" => (0..after.len()).step_by(4096).any(|cut| {
            have.len() == before.len().max(cut)
                && have[..cut] == after[..cut]
                && have[cut..] == before[cut.min(before.len())..]
        }),
        "mapwrite" | "copy_file_range" => is_mixture(have, before, after),
        _ => false,
    }
}

/// Whether each byte is as it was before or after the operation.
fn is_mixture(have: &[u8], before: &[u8], after: &[u8]) -> bool {
    let (short, long) = (before.len().min(after.len()), before.len().max(after.len()));
    let byte = |of: &[u8], at: usize| of.get(at).copied().unwrap_or(0);
    (short..=long).contains(&have.len())
        && (0..have.len()).all(|at| have[at] == byte(before, at) || have[at] == byte(after, at))
}

fn first_difference(have: &[u8], before: &[u8], after: &[u8]) -> String {
    let differs = |want: &[u8]| have.iter().zip(want).position(|(a, b)| a != b);
    format!(
        "{} bytes; before {} bytes, differs at {:?}; after {} bytes, differs at {:?}",
        have.len(),
        before.len(),
        differs(before),
        after.len(),
        differs(after)
    )
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None))
            && let Err(e) = self.0.kill().and_then(|()| self.0.wait())
        {
            eprintln!("it can't be killed: {e}");
        }
    }
}

fn collect(child: &mut Child) -> thread::JoinHandle<String> {
    let mut pipe = child.stderr.take().expect("piped");
    thread::spawn(move || {
        let mut said = Vec::new();
        if let Err(e) = pipe.read_to_end(&mut said) {
            said.extend_from_slice(e.to_string().as_bytes());
        }
        String::from_utf8_lossy(&said).into_owned()
    })
}
