//! Programs that demand much of a filesystem, with `live/` under them: tar, cp, git, sqlite, cargo.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use axiomfs_tests::observe::same;
use axiomfs_tests::odd_tree::plant;
use axiomfs_tests::repo::{TestRepo, alone, beside_others, scratch, text};
use axiomfs_tests::rng::{Rng, prose, run_seed};
use axiomfs_tests::run::{must, run, tail};

const LONG: Duration = Duration::from_secs(300);

/// Runs the shell script in `dir`; it must succeed.
fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir).env("LC_ALL", "C").env("GIT_CONFIG_GLOBAL", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "A").env(format!("GIT_{role}_EMAIL"), "a@example.org");
    }
    let done = run(&mut command, LONG);
    assert!(done.status.success(), "{script}\n{}: {}{}", done.status, tail(&done.stdout), tail(&done.stderr));
    done.stdout
}

#[test]
fn tar_archives_come_out_as_they_went_in() {
    let _slot = beside_others();
    let local = scratch("tar");
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    plant(&source);
    // What tar has no form for.
    fs::remove_file(source.join("special/socket")).expect("removed");
    fs::remove_file(source.join("special/large numbers")).expect("removed");
    for name in ["also fifo", "also device"] {
        fs::remove_file(source.join("z/last/directory").join(name)).expect("removed");
    }
    let mut repo = TestRepo::new("tar");
    repo.mount();
    let tar = |from: &Path, to: &Path| {
        fs::create_dir(to).expect("made");
        let kept = "--format=posix --xattrs --xattrs-include='*' --acls --numeric-owner";
        let archive = local.path().join("archive");
        let archive = text(&archive);
        sh(from, &format!("tar {kept} --sparse -cf {archive} ."));
        sh(to, &format!("umask 0; tar {kept} --same-owner -xpf {archive}"));
    };
    let copy = repo.live().join("copy");
    tar(&source, &copy);
    same(&source, &copy, "unpacked");
    tar(&copy, &back);
    same(&source, &back, "packed");
    repo.remount_from_the_store_alone();
    same(&source, &copy, "from the store alone");
}

#[test]
fn cp_keeps_everything_and_makes_holes() {
    let _slot = beside_others();
    let local = scratch("cp");
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    plant(&source);
    let mut repo = TestRepo::new("cp");
    repo.mount();
    let live = repo.live();
    let (from, out) = (text(&source), text(&back));
    sh(&live, &format!("cp -ax --sparse=always {from} sparse; cp -a --reflink=auto {from} auto"));
    sh(&live, "cp -ax --reflink=auto auto again; cp -a --sparse=always again once");
    for name in ["sparse", "auto", "again", "once"] {
        same(&source, &live.join(name), name);
    }
    for name in ["sparse", "once"] {
        let blocks = fs::metadata(live.join(name).join("contents/zeros")).expect("metadata").blocks();
        assert_eq!(blocks, 0, "{name}: zeros were written");
    }
    repo.remount_from_the_store_alone();
    // Of one filesystem: live/ and snapshots/ are one, what the mount point lies in is another.
    sh(&live, &format!("cp -ax once {out}"));
    same(&source, &back, "copied out of the store alone");
    let above = scratch("cp-above");
    sh(&repo.dir, &format!("rsync -ax --exclude=/store mnt {}", text(above.path())));
    let listed = fs::read_dir(above.path().join("mnt")).expect("listed").count();
    assert_eq!(listed, 2, "rsync -x given the mount itself copies it");
    sh(&repo.dir, &format!("rsync -ax --exclude=/store ./ {}/whole", text(above.path())));
    let listed = fs::read_dir(above.path().join("whole/mnt")).expect("listed").count();
    assert_eq!(listed, 0, "rsync -x from above goes into the mount");
}

/// A history in the form of `git fast-import`: `commits` of them, each with a new blob, two trees and itself.
fn history(commits: usize, files: usize) -> String {
    let mut out = String::new();
    for i in 0..commits {
        let text = if i < files { prose(i as u64, 400) } else { format!("version {i}\n").into_bytes() };
        let text = String::from_utf8(text).expect("prose is text");
        let file = i % files;
        write!(
            out,
            "commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata 2\nc\n\
             M 100644 inline d{}/f{file}\ndata {}\n{text}\n",
            1_700_000_000 + i,
            file % 20,
            text.len()
        )
        .expect("text grows");
    }
    out
}

#[test]
fn a_git_repository_of_50000_objects_is_cloned_checked_packed_and_clean() {
    let _slot = alone();
    let local = scratch("git");
    fs::write(local.path().join("history"), history(12_500, 1000)).expect("written");
    sh(local.path(), "git init -q --bare -b main origin; git --git-dir origin fast-import --quiet < history");
    let mut repo = TestRepo::new("git");
    repo.mount();
    let live = repo.live();
    sh(&live, &format!("git clone -q file://{} clone", text(&local.path().join("origin"))));
    let clone = live.join("clone");
    let count = sh(&clone, "git rev-list --all --objects | wc -l");
    assert!(count.trim().parse::<u32>().expect("a number") >= 50_000, "{count}");
    sh(&clone, "git fsck --full --strict");
    // Objects of its own, loose, for gc to pack; and files that come, change and go.
    sh(
        &clone,
        "for i in 1 2 3 4 5; do echo $i > d$i/f$i; git add -A; git commit -qm $i; done; git rm -qr d7; git commit -qm 7",
    );
    let head = sh(&clone, "git rev-parse HEAD");
    sh(&clone, "git gc --quiet --prune=now; git fsck --full --strict");
    let clean = |when: &str| {
        // Without a look into the files: what stat says must be what it said.
        let touched = sh(&clone, "git -c core.checkStat=default diff-files --name-only");
        assert!(touched.is_empty(), "{when}: other attributes than before: {}", tail(&touched));
        let status = sh(&clone, "git status --porcelain");
        assert!(status.is_empty(), "{when}: git status says {}", tail(&status));
        assert_eq!(sh(&clone, "git rev-parse HEAD"), head, "{when}");
    };
    sh(&clone, "git update-index -q --refresh");
    clean("at once");
    repo.umount().mount();
    clean("after a remount");
    repo.kill9();
    repo.mount();
    clean("after a crash");
    repo.remount_from_the_store_alone();
    clean("from the store alone");
    sh(&clone, "git fsck --full --strict; git checkout -q HEAD~100; git checkout -q main");
    clean("after a checkout");
}

/// Moves money between accounts in transactions, and says which it has committed.
const WRITER: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute('PRAGMA journal_mode=' + sys.argv[2])
db.execute('PRAGMA synchronous=FULL')
db.execute('CREATE TABLE IF NOT EXISTS account(id INTEGER PRIMARY KEY, money INTEGER)')
db.execute('CREATE TABLE IF NOT EXISTS done(n INTEGER PRIMARY KEY, filler BLOB)')
db.execute('INSERT OR IGNORE INTO account VALUES (1, 1000), (2, 1000)')
n = db.execute('SELECT coalesce(max(n), 0) FROM done').fetchone()[0]
while True:
    n += 1
    db.execute('BEGIN IMMEDIATE')
    db.execute('UPDATE account SET money = money - ? WHERE id = 1', (n,))
    db.execute('INSERT INTO done VALUES (?, randomblob(?))', (n, n * 37 % 9000))
    db.execute('UPDATE account SET money = money + ? WHERE id = 2', (n,))
    if n % 7 == 0: db.execute('DELETE FROM done WHERE n < ?', (n - 200,))
    db.execute('COMMIT')
    print(n, flush=True)
";

const CHECKER: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30)
print(db.execute('PRAGMA integrity_check').fetchall())
print(db.execute('SELECT sum(money) FROM account').fetchone()[0])
print(db.execute('SELECT max(n) FROM done').fetchone()[0])
print(db.execute('SELECT money FROM account WHERE id = 2').fetchone()[0])
";

fn write_database(at: &Path, mode: &str) -> Child {
    let mut command = Command::new("python3");
    command.args(["-ISc", WRITER, text(at), mode]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("python3 starts")
}

/// The transactions that a writer has reported.
struct Reports(Lines<BufReader<ChildStdout>>);

impl Reports {
    fn of(writer: &mut Child) -> Reports {
        Reports(BufReader::new(writer.stdout.take().expect("piped")).lines())
    }
}

impl Iterator for Reports {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // A line is written at once, so none is cut off by the kill.
        let line = self.0.next()?.expect("a pipe can be read");
        Some(line.parse().expect("a number"))
    }
}

/// Intact, every transaction whole, and none missing of those that were reported.
fn check_database(at: &Path, reported: u64, when: &str) -> u64 {
    let said = must("python3", &["-ISc", CHECKER, text(at)], LONG);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["[('ok',)]", "2000"], "{when}");
    let n: u64 = lines[2].parse().expect("a number");
    assert!(n >= reported && n <= reported + 1, "{when}: {reported} was committed, {n} is the last");
    assert_eq!(lines[3].parse::<u64>().expect("a number"), 1000 + n * (n + 1) / 2, "{when}");
    n
}

#[test]
fn sqlite_keeps_what_it_committed_whoever_is_killed() {
    let _slot = beside_others();
    let mut rng = Rng::new(run_seed("sqlite"));
    let mut repo = TestRepo::new("sqlite");
    repo.settings("checkpoint: {interval: 100ms}\n").mount();
    let modes = ["WAL", "DELETE"];
    let databases: Vec<PathBuf> = modes.iter().map(|mode| repo.live().join(mode)).collect();
    let mut last = [0u64; 2];
    for round in 0..20 {
        for kill_daemon in [false, true] {
            let mut writers: Vec<Child> =
                databases.iter().zip(modes).map(|(at, mode)| write_database(at, mode)).collect();
            let mut reports: Vec<_> = writers.iter_mut().map(Reports::of).collect();
            // A random moment of their work, once both have begun.
            for (i, reports) in reports.iter_mut().enumerate() {
                last[i] = reports.next().unwrap_or_else(|| panic!("{}: its writer ended", modes[i]));
            }
            thread::sleep(Duration::from_millis(rng.below(100)));
            if kill_daemon {
                repo.kill9();
            }
            for (i, writer) in writers.iter_mut().enumerate() {
                writer.kill().expect("killed");
                last[i] = reports[i].by_ref().last().unwrap_or(0).max(last[i]);
                writer.wait().expect("waited");
            }
            if kill_daemon {
                repo.mount();
            }
            for (i, at) in databases.iter().enumerate() {
                let when = format!("{}, round {round}, daemon killed: {kill_daemon}", modes[i]);
                last[i] = check_database(at, last[i], &when);
            }
        }
    }
    eprintln!("sqlite: {last:?} transactions");
    assert!(last.iter().all(|n| *n >= 40), "the writers came to nothing: {last:?}");
    repo.remount_from_the_store_alone();
    for (at, last) in databases.iter().zip(last) {
        assert_eq!(check_database(at, last, "from the store alone"), last);
    }
}

#[test]
fn a_crate_is_built_with_its_target_directory_in_live() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("cargo");
    repo.mount();
    let at = repo.live().join("crate");
    fs::create_dir_all(at.join("src")).expect("made");
    let files = [
        ("Cargo.toml", "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n"),
        ("build.rs", "fn main() { println!(\"cargo:rustc-env=MADE=by its build script\"); }\n"),
        ("src/lib.rs", "pub fn made() -> &'static str { env!(\"MADE\") }\n"),
        ("src/main.rs", "fn main() { println!(\"made {}\", small::made()); }\n"),
    ];
    for (name, content) in files {
        fs::write(at.join(name), content).expect("written");
    }
    let build = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "--offline"]).current_dir(&at);
        command.env("CARGO_TARGET_DIR", at.join("target")).env_remove("RUSTFLAGS");
        let done = run(&mut command, LONG);
        assert!(done.status.success(), "cargo build failed: {}", tail(&done.stderr));
        assert_eq!(must(text(&at.join("target/debug/small")), &[], LONG), "made by its build script\n");
        done.stderr.contains("Compiling")
    };
    assert!(build(), "nothing was built");
    assert!(!build(), "what is fresh was built again");
    repo.umount().mount();
    assert!(!build(), "what is fresh was built again after a remount");
    fs::write(at.join("src/lib.rs"), format!("// Changed.\n{}", files[2].1)).expect("written");
    assert!(build(), "a change wasn't seen");
    repo.kill9();
    repo.mount();
    assert!(!build(), "what is fresh was built again after a crash");
}
