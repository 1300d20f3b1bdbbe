//! Mistakes: each is answered by one line that says what to do, an exit code that isn't 0, and no change.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use axiomfs_tests::observe::{Bytes, Observed, observe};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::run::{Finished, run};
use rustix::process::{Pid, Signal, kill_process};

/// Runs with the passphrase from a file: one in the environment is warned about, which is another line.
fn with_file(repo: &TestRepo, args: &[&str], passphrase: &str) -> Finished {
    let file = repo.dir.join("passphrase");
    fs::write(&file, format!("{passphrase}\n")).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("for its owner only");
    let mut command = repo.command(args);
    command.env_remove("AXIOMFS_PASSPHRASE").args(["--passphrase-file", text(&file)]);
    run(&mut command, LIMIT)
}

const RIGHT: &str = "correct horse battery staple";

fn refused(done: &Finished, words: &[&str]) {
    let shown = format!("exit code {}, stdout {:?}, stderr {:?}", done.code(), done.stdout, done.stderr);
    assert!(done.code() == 1 || done.code() == 2, "should have failed: {shown}");
    let lines: Vec<&str> = done.stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "the message must be one line: {shown}");
    let line = lines[0].to_lowercase();
    for word in words {
        assert!(word.split('|').any(|w| line.contains(&w.to_lowercase())), "the message should have {word:?}: {shown}");
    }
    assert!(!line.contains("panicked"), "{shown}");
}

/// Mounts with what the arguments say, must be refused, and nothing may have changed in the store or be mounted.
fn mount_refused(repo: &TestRepo, args: &[&str], passphrase: &str, words: &[&str]) {
    let before = contents(&repo.store);
    let done = with_file(repo, &[&["mount"], args].concat(), passphrase);
    refused(&done, words);
    assert!(before.contents == contents(&repo.store).contents, "a refused mount changed the store");
}

fn contents(dir: &Path) -> Observed {
    if dir.is_dir() { observe(dir, Bytes::Keep).expect("the store can be read") } else { Observed::default() }
}

#[test]
fn a_wrong_passphrase_is_refused() {
    let _slot = beside_others();
    let repo = TestRepo::new("passphrase");
    let args = repo.mount_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mount_refused(&repo, &args, "wrong", &["passphrase", "wrong"]);
    mount_refused(&repo, &args, "", &["passphrase"]);
    let mut command = repo.command(&["mount"]);
    command.env_remove("AXIOMFS_PASSPHRASE").args(&args).args(["--passphrase-file", "/nowhere/at all"]);
    refused(&run(&mut command, LIMIT), &["/nowhere/at all"]);
}

#[test]
fn what_is_not_a_repository_is_refused() {
    let _slot = beside_others();
    let repo = TestRepo::without_init("no-repository");
    let at = |name: &str| repo.dir.join(name);
    fs::create_dir(at("empty")).expect("made");
    fs::create_dir(at("other")).expect("made");
    fs::write(at("other/notes.txt"), b"mine").expect("written");
    for name in ["empty", "other", "missing"] {
        let store = at(name);
        let args = ["mount", text(&store), text(&repo.mnt), "--cache", text(&repo.cache)];
        refused(&with_file(&repo, &args, RIGHT), &[text(&at(name)), "not an axiomfs repository|there is no directory"]);
        assert!(!at("missing").exists(), "a refused mount made the directory");
    }
    refused(&with_file(&repo, &["init", text(&at("other"))], RIGHT), &["empty|not empty"]);
    assert_eq!(fs::read(at("other/notes.txt")).expect("read"), b"mine");
    assert_eq!(fs::read_dir(at("other")).expect("listed").count(), 1, "a refused init left something behind");
}

#[test]
fn init_refuses_an_existing_repository_and_changes_nothing() {
    let _slot = beside_others();
    let repo = TestRepo::new("init-twice");
    let before = contents(&repo.store);
    refused(&with_file(&repo, &["init", text(&repo.store)], "another passphrase"), &["already|not empty"]);
    assert!(before.contents == contents(&repo.store).contents, "init changed an existing repository");
}

#[test]
fn a_newer_format_version_is_refused_by_its_number() {
    let _slot = beside_others();
    let repo = TestRepo::new("newer");
    let path = repo.store.join("config");
    let config = fs::read_to_string(&path).expect("config is text");
    assert!(config.contains("format: 1\n"), "{config}");
    fs::write(&path, config.replace("format: 1\n", "format: 7\n")).expect("written");
    let args = repo.mount_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mount_refused(&repo, &args, RIGHT, &["7", "newer|version"]);
}

#[test]
fn a_mount_point_that_is_missing_full_or_a_file_is_refused() {
    let _slot = beside_others();
    let repo = TestRepo::new("mount-point");
    let at = |name: &str| repo.dir.join(name);
    fs::create_dir(at("full")).expect("made");
    fs::write(at("full/x"), b"x").expect("written");
    fs::write(at("file"), b"x").expect("written");
    for (name, word) in [("missing", "does not exist|no such"), ("full", "not empty"), ("file", "not a directory")] {
        let mnt = at(name);
        let args = [text(&repo.store), text(&mnt), "--cache", text(&repo.cache)];
        mount_refused(&repo, &args, RIGHT, &[text(&mnt), word]);
    }
    assert!(!at("missing").exists());
}

#[test]
fn directories_that_lie_in_one_another_are_refused() {
    let _slot = beside_others();
    let repo = TestRepo::new("nested");
    let at = |name: &str| repo.dir.join(name);
    for dir in ["store/mnt", "cache/mnt", "state/mnt", "mnt/inner"] {
        fs::create_dir_all(at(dir)).expect("made");
    }
    let s = |name: &str| at(name).to_str().expect("text").to_owned();
    let cases = [
        ("mount point in the store", s("store/mnt"), s("state"), s("cache")),
        ("mount point in the cache", s("cache/mnt"), s("state"), s("cache")),
        ("mount point in the state", s("state/mnt"), s("state"), s("cache")),
        ("state in the store", s("mnt2"), s("store/state"), s("cache")),
        ("cache in the store", s("mnt2"), s("state"), s("store/cache")),
        ("state under the mount point", s("mnt2"), s("mnt2/state"), s("cache")),
        ("store in the mount point", s("."), s("state"), s("cache")),
    ];
    fs::create_dir(at("mnt2")).expect("made");
    for (what, mnt, state, cache) in &cases {
        let done = with_file(&repo, &["mount", text(&repo.store), mnt, "--state", state, "--cache", cache], RIGHT);
        eprintln!("{what}: {}", done.stderr.trim());
        refused(&done, &["mount point|store|state|cache"]);
    }
    let both = s("both");
    let done = with_file(&repo, &["mount", text(&repo.store), &s("mnt2"), "--state", &both, "--cache", &both], RIGHT);
    refused(&done, &["is also", "leave out --state"]);
    let left: Vec<_> = fs::read_dir(&repo.store).expect("listed").map(|e| e.expect("entry").file_name()).collect();
    assert!(
        !left.iter().any(|n| n == "state" || n == "cache"),
        "a refused mount made directories in the store: {left:?}"
    );
}

#[test]
fn a_store_named_by_a_detour_is_known_for_where_it_is() {
    let _slot = beside_others();
    let repo = TestRepo::new("nested-link");
    let at = |name: &str| repo.dir.join(name);
    fs::create_dir(at("store/mnt")).expect("made");
    symlink(&repo.store, at("link")).expect("linked");
    fs::create_dir(at("real")).expect("made");
    symlink(at("real"), at("deep")).expect("linked");
    let (mnt, state, cache) = (at("store/mnt"), at("store/state"), at("store/cache"));
    for store in [at("link"), at("mnt/../store"), at("deep/../store")] {
        for (mnt, state, cache, word) in [
            (&mnt, &repo.state, &repo.cache, "contains the mount point"),
            (&repo.mnt, &state, &repo.cache, "lies inside the store"),
            (&repo.mnt, &repo.state, &cache, "lies inside the store"),
        ] {
            let args = ["mount", text(&store), text(mnt), "--state", text(state), "--cache", text(cache)];
            refused(&with_file(&repo, &args, RIGHT), &[word]);
        }
    }
    assert!(!state.exists() && !cache.exists());
}

#[test]
fn a_second_writer_is_refused_and_told_who_holds_the_volume() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("second");
    repo.mount();
    fs::write(repo.live().join("f"), b"mine").expect("written");
    repo.sync();
    let pid = repo.pid().to_string();
    fs::create_dir(repo.dir.join("mnt2")).expect("made");
    let second = repo.dir.join("mnt2");
    let same_state = [text(&repo.store), text(&second), "--state", text(&repo.state), "--cache", text(&repo.cache)];
    mount_refused(&repo, &same_state, RIGHT, &["use", &pid]);
    let (state, cache) = (repo.dir.join("state2"), repo.dir.join("cache2"));
    let own_state = [text(&repo.store), text(&second), "--state", text(&state), "--cache", text(&cache)];
    mount_refused(&repo, &own_state, RIGHT, &[&pid]);
    let onto_it = [text(&repo.store), text(&repo.mnt), "--state", text(&state), "--cache", text(&cache)];
    mount_refused(&repo, &onto_it, RIGHT, &["mounted|not empty"]);
    fs::write(repo.live().join("g"), b"still").expect("the first mount goes on");
    repo.sync();
}

#[test]
fn a_stale_mount_says_how_to_get_rid_of_it() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("stale");
    repo.mount();
    fs::write(repo.live().join("f"), b"kept").expect("written");
    let pid = Pid::from_raw(repo.pid() as i32).expect("a process id");
    kill_process(pid, Signal::KILL).expect("killed");
    repo.wait_daemon();
    // It is not a mount of this store: its owner may still look for it.
    let other = TestRepo::new("stale-other");
    let (state, cache) = (other.dir.join("state2"), other.dir.join("cache2"));
    let onto_it = [text(&other.store), text(&repo.mnt), "--state", text(&state), "--cache", text(&cache)];
    mount_refused(&other, &onto_it, RIGHT, &["umount"]);
    for verb in ["status", "sync"] {
        refused(&repo.axiomfs(&[verb, text(&repo.mnt)]), &["umount|stale|daemon"]);
    }
    let done = repo.axiomfs(&["umount", text(&repo.mnt)]);
    assert_eq!(done.code(), 0, "umount must clear a stale mount: {}{}", done.stdout, done.stderr);
    repo.mount();
    assert_eq!(fs::read(repo.live().join("f")).expect("read"), b"kept");
}

#[test]
fn a_stale_mount_of_the_same_store_is_cleared_away_by_mounting_again() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("stale-same");
    repo.mount();
    fs::write(repo.live().join("f"), b"kept").expect("written");
    let pid = Pid::from_raw(repo.pid() as i32).expect("a process id");
    kill_process(pid, Signal::KILL).expect("killed");
    repo.wait_daemon();
    // In the background too, as a user would, and with a wrong passphrase first: that must not unmount anything.
    let args = repo.mount_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mount_refused(&repo, &args, "wrong", &["passphrase"]);
    assert!(repo.live().symlink_metadata().is_err(), "the dead mount is still there");
    repo.mount();
    assert_eq!(fs::read(repo.live().join("f")).expect("read"), b"kept");
    repo.umount();
    assert!(fs::read_dir(&repo.mnt).expect("the empty mount point").next().is_none(), "one mount lay above another");
}

#[test]
fn commands_on_what_is_no_mount_are_refused() {
    let _slot = beside_others();
    let repo = TestRepo::new("no-mount");
    for args in [vec!["status"], vec!["sync"], vec!["umount"], vec!["ctl"], vec!["snapshot", "list"]] {
        let mut args = args;
        args.push(text(&repo.mnt));
        if args[0] == "ctl" {
            args.push("chain show");
        }
        // A snapshot verb may also work on a store, so it alone would ask for a passphrase.
        let done = if args[0] == "snapshot" { with_file(&repo, &args, RIGHT) } else { repo.axiomfs(&args) };
        refused(&done, &[text(&repo.mnt)]);
    }
    assert_eq!(repo.axiomfs(&["frobnicate"]).code(), 2, "an unknown verb is wrong use");
    assert_eq!(repo.axiomfs(&["mount"]).code(), 2, "missing arguments are wrong use");
    assert_eq!(repo.axiomfs(&["init", text(&repo.store), "--nonsense"]).code(), 2, "an unknown option is wrong use");
    for args in [vec!["--help"], vec!["mount", "--help"], vec!["snapshot", "create", "--help"]] {
        let done = repo.axiomfs(&args);
        assert!(done.code() == 0 && done.stdout.contains("axiomfs"), "{args:?}: {}{}", done.stdout, done.stderr);
    }
}

#[test]
fn garbage_on_control_is_refused() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("garbage");
    repo.mount();
    let path = repo.mnt.join(".axiomfs/control");
    let garbage: Vec<Vec<u8>> = vec![
        b"\x00\xff\xfe".to_vec(),
        vec![b'x'; 4097],
        vec![b'x'; 100_000],
        b"chain".to_vec(),
        b"chain set default |||".to_vec(),
        b"set zstd level=9 level=10".to_vec(),
        b"chain set default zstd(((".to_vec(),
        "sync ü".as_bytes().to_vec(),
    ];
    for bytes in garbage {
        let mut file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
        let e = file.write(&bytes).expect_err("garbage on control was accepted");
        assert!(
            [1, 2, 7, 22, 27, 84].contains(&e.raw_os_error().unwrap_or(0)),
            "{:?}: {e}",
            bytes.escape_ascii().to_string().get(..40)
        );
    }
    assert_eq!(repo.status()["state"], "ok");
    repo.control_ok("chain show");
}

#[test]
fn a_wrong_settings_file_is_refused_with_its_line() {
    let _slot = beside_others();
    let repo = TestRepo::new("settings");
    let file = repo.dir.join("settings.yaml");
    for (yaml, line, word) in [
        ("version: 1\nmemroy: 256MiB\n", "2", "memroy"),
        ("version: 1\n\nmemory: lots\n", "3", "memory"),
        ("version: 1\nmemory: 1MiB\n", "2", "memory"),
        ("version: 1\nlog:\n  max: 4GiB\n  sgment: 1MiB\n", "4", "sgment"),
        ("version: 9\n", "1", "version"),
        ("version: 1\nlog: [1, 2]\n", "2", "log"),
        ("version: 1\nlog: {max: 4GiB\n", "", ""),
        ("version: 1\nchains:\n  default: [{plugin: zstd}]\n", "", "encrypt|seal|aes"),
        ("version: 1\nchains:\n  default: [{plugin: nosuch}, {plugin: aes-256-gcm}]\n", "", "nosuch"),
        ("version: 1\ndurability: maybe\n", "2", "durability"),
    ] {
        fs::write(&file, yaml).expect("written");
        let mut args = repo.mount_args();
        args.extend(["--config".into(), text(&file).into()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        mount_refused(&repo, &args, RIGHT, &[line, word]);
    }
    let mut args = repo.mount_args();
    args.extend(["--config".into(), "/nowhere/settings.yaml".into()]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mount_refused(&repo, &args, RIGHT, &["/nowhere/settings.yaml"]);
}

#[test]
fn a_comma_in_the_path_of_the_store_is_no_mount_option() {
    let _slot = beside_others();
    let mut repo = TestRepo::without_init("comma");
    repo.store = repo.dir.join("a,allow_other,suid=x store");
    let done = repo.axiomfs(&["init", text(&repo.store), "--kdf-memory", "64MiB"]);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    repo.mount();
    fs::write(repo.live().join("f"), b"x").expect("written");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = mounts.lines().find(|l| l.contains(text(&repo.mnt))).expect("the mount is listed");
    let options = line.split(' ').nth(3).unwrap_or_default();
    assert!(!options.contains("allow_other"), "{line}");
    assert!(options.split(',').any(|o| o == "nosuid") && options.split(',').any(|o| o == "nodev"), "{line}");
}
