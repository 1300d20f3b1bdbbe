//! The program from outside, as far as it goes without a mount: exit codes, messages, and that a refusal changes nothing.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A directory of its own for one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a plain path").to_owned()
    }

    /// A command whose defaults lie in this place, without a terminal to ask on.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setsid");
        command.arg("--wait").arg(env!("CARGO_BIN_EXE_axiomfs")).args(words).stdin(Stdio::null());
        command.env("HOME", self.0.path()).env_remove("XDG_STATE_HOME").env_remove("XDG_CACHE_HOME");
        command.env_remove("AXIOMFS_PASSPHRASE");
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("it runs")
    }

    fn run_with_passphrase(&self, passphrase: &str, words: &[&str]) -> Output {
        self.command(words).env("AXIOMFS_PASSPHRASE", passphrase).output().expect("it runs")
    }

    /// An empty repository, made the cheapest way there is.
    fn repository(&self) -> String {
        let store = self.text("store");
        let made = self.run_with_passphrase("right", &["init", &store, "--kdf-memory", "64MiB"]);
        assert!(made.status.success(), "{}", err(&made));
        store
    }

    /// Every file with its contents, and every directory.
    fn everything(&self) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        let mut open = vec![self.0.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path.clone());
                    found.push((path, None));
                } else {
                    let bytes = fs::read(&path).expect("a file");
                    found.push((path, Some(bytes)));
                }
            }
        }
        found.sort();
        found
    }
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one line that explains a refusal; the warning about the environment comes before it.
fn refusal(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", out(output), err(output));
    let text = err(output);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("warning: ")).collect();
    assert_eq!(lines.len(), 1, "not one line: {lines:?}");
    lines[0].to_owned()
}

#[test]
fn wrong_use_ends_with_2_and_help_with_0() {
    let place = Place::new();
    for words in [&["mount"][..], &["explode"], &["init", "s3://"], &["init", ""]] {
        assert_eq!(place.run(words).status.code(), Some(2), "{words:?}");
    }
    for words in [&["--help"][..], &["mount", "--help"], &["snapshot", "--help"], &["--version"]] {
        let output = place.run(words);
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""), "{words:?}");
    }
    assert!(out(&place.run(&["--help"])).contains("Examples:"));
}

#[test]
fn a_bucket_without_credentials_is_refused_with_a_remedy() {
    let place = Place::new();
    let mut command = place.command(&["init", "s3://bucket/x"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    // Nothing is asked for over the network: neither an instance's metadata service nor the bucket.
    let output =
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AXIOMFS_PASSPHRASE", "x").output().expect("it runs");
    let refusal = refusal(&output, 1);
    assert!(refusal.contains("s3://bucket/x") && refusal.contains("AWS_ACCESS_KEY_ID"), "{refusal}");
}

#[test]
fn failures_are_json_where_that_is_asked_for() {
    let place = Place::new();
    for (words, code) in [
        (&["--json", "status", "/nonexistent"][..], 1),
        (&["mount", "--json"], 2),
        (&["umount", "/", "--json"], 1),
        (&["ctl", "/nonexistent", "sync", "--json"], 1),
    ] {
        let output = place.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        let json: Value = serde_json::from_str(&out(&output)).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        assert_eq!((&json["ok"], &json["exit"]), (&Value::Bool(false), &Value::from(code)), "{words:?}");
        assert!(json["msg"].as_str().is_some_and(|msg| !msg.is_empty()));
    }
}

#[test]
fn settings_files_are_checked() {
    let place = Place::new();
    fs::write(place.path("good.yaml"), "version: 1\nmemory: 128MiB\n").expect("written");
    fs::write(place.path("bad.yaml"), "version: 1\n\nlog:\n  max: 1KiB\n").expect("written");
    fs::write(place.path("order.yaml"), "version: 1\nchains:\n  default: [{plugin: aes-256-gcm}, {plugin: zstd}]\n")
        .expect("written");
    assert!(place.run(&["config", "check", &place.text("good.yaml")]).status.success());
    let line = refusal(&place.run(&["config", "check", &place.text("bad.yaml")]), 1);
    assert!(line.ends_with("bad.yaml: Line 4: log.max is 1KiB; it must be from 64MiB to 1TiB"), "{line}");
    refusal(&place.run(&["config", "check", &place.text("order.yaml")]), 1);
    refusal(&place.run(&["config", "check", &place.text("missing.yaml")]), 1);
    let commented = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/axiomfs.yaml");
    assert!(place.run(&["config", "check", commented.to_str().expect("a path")]).status.success());
}

#[test]
fn a_repository_is_made_once_and_only_in_an_empty_place() {
    let place = Place::new();
    let store = place.repository();
    let before = place.everything();
    let line = refusal(&place.run_with_passphrase("other", &["init", &store]), 1);
    assert!(line.contains("holds a repository already"), "{line}");
    fs::create_dir(place.path("full")).expect("made");
    fs::write(place.path("full/file"), "x").expect("written");
    let line = refusal(&place.run_with_passphrase("other", &["init", &place.text("full")]), 1);
    assert!(line.contains("is not empty"), "{line}");
    fs::remove_dir_all(place.path("full")).expect("removed");
    assert_eq!(place.everything(), before);
}

#[test]
fn a_repository_shows_nothing_of_its_passphrase_or_volume() {
    let place = Place::new();
    let made = place.run_with_passphrase(
        "a passphrase to look for",
        &["init", &place.text("store"), "--volume", "a-volume-to-look-for", "--kdf-memory", "64MiB", "--json"],
    );
    let json: Value = serde_json::from_str(&out(&made)).expect("JSON");
    assert_eq!(json["repository"].as_str().map(str::len), Some(32));
    for (path, bytes) in place.everything() {
        let bytes = bytes.unwrap_or_default();
        for word in ["a passphrase to look for", "a-volume-to-look-for"] {
            assert!(!bytes.windows(word.len()).any(|w| w == word.as_bytes()), "{word} in {}", path.display());
        }
    }
}

#[test]
fn the_passphrase_comes_from_a_file_or_a_descriptor_or_not_at_all() {
    let place = Place::new();
    let line = refusal(&place.run(&["init", &place.text("store")]), 2);
    assert!(line.contains("no terminal") && line.contains("--passphrase-file"), "{line}");
    assert!(!place.path("store").exists());
    let line = refusal(&place.run(&["init", &place.text("store"), "--passphrase-file", &place.text("missing")]), 1);
    assert!(line.contains("missing"), "{line}");

    fs::write(place.path("secret"), "from a file\nsecond line\n").expect("written");
    let file = ["init", &place.text("store"), "--kdf-memory", "64MiB", "--passphrase-file", &place.text("secret")];
    let made = place.run(&file);
    assert!(made.status.success(), "{}", err(&made));
    assert!(err(&made).contains("chmod 600"), "a file that others can read is warned of: {}", err(&made));

    // The same words through a pipe must open what the file's first line closed.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(b"from a file\n").expect("written");
    drop(writer);
    let fd = reader.as_raw_fd().to_string();
    let store = place.text("store");
    let script = format!("exec {fd}<&0; exec \"$@\" --passphrase-fd {fd}");
    let mut command = place.command(&["snapshot", "list", &store]);
    let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    command = Command::new("sh");
    command.args(["-c", &script, "sh", "setsid"]).args(words).stdin(reader).env("HOME", place.0.path());
    let listed = command.output().expect("it runs");
    assert!(listed.status.success(), "{}", err(&listed));
    assert_eq!(out(&listed).trim(), "");
}

#[test]
fn a_mount_that_can_not_be_is_refused_and_changes_nothing() {
    let place = Place::new();
    let store = place.repository();
    for directory in ["mnt", "full/x", "other"] {
        fs::create_dir_all(place.path(directory)).expect("made");
    }
    fs::write(place.path("other/file"), "no repository").expect("written");
    fs::write(place.path("bad.yaml"), "version: 1\nmemroy: 1GiB\n").expect("written");
    fs::create_dir_all(place.path("store-inside/x")).expect("made");
    let (mnt, other) = (place.text("mnt"), place.text("other"));
    let before = place.everything();
    let inside = format!("{store}/keys");
    for (passphrase, words, part) in [
        ("wrong", &["mount", &store, &mnt][..], "wrong passphrase"),
        ("right", &["mount", &other, &mnt], "is not an axiomfs repository"),
        ("right", &["mount", &place.text("none"), &mnt], "There is no directory"),
        ("right", &["mount", &store, &place.text("missing")], "does not exist"),
        ("right", &["mount", &store, &place.text("full")], "is not empty"),
        ("right", &["mount", &store, &place.text("bad.yaml")], "is not a directory"),
        ("right", &["mount", &store, &mnt, "--config", &place.text("bad.yaml")], "Line 2: there is no setting memroy"),
        ("right", &["mount", &store, &mnt, "--state", &format!("{mnt}/state")], "lies inside the mount point"),
        ("right", &["mount", &store, &mnt, "--cache", &inside], "lies inside the store"),
        ("right", &["mount", &store, &mnt, "--state", &store], "is also the store"),
        ("right", &["mount", &store, &mnt, "--volume", "second"], "no volume"),
        ("right", &["mount", &store, &mnt, "-f", "--cache", place.0.path().to_str().unwrap()], "contains the store"),
        ("wrong", &["snapshot", "list", &store], "wrong passphrase"),
        ("right", &["snapshot", "delete", &store, "none"], "There is no snapshot none"),
    ] {
        let line = refusal(&place.run_with_passphrase(passphrase, words), 1);
        assert!(line.contains(part), "{words:?}: {line}");
        if !words.contains(&"delete") {
            assert_eq!(place.everything(), before, "{words:?}");
        }
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let place = Place::new();
    let store = place.repository();
    fs::create_dir(place.path("mnt")).expect("made");
    let config = place.path("store/config");
    let newer = fs::read_to_string(&config).expect("text").replace("format: 1", "format: 2");
    fs::remove_file(&config).expect("removed");
    fs::write(&config, newer).expect("written");
    let before = place.everything();
    let line = refusal(&place.run_with_passphrase("right", &["mount", &store, &place.text("mnt")]), 1);
    assert!(line.contains("version 2") && line.contains("newer axiomfs"), "{line}");
    assert_eq!(place.everything(), before);
}

#[test]
fn snapshots_can_be_taken_straight_on_a_store() {
    let place = Place::new();
    let store = place.repository();
    let run = |words: &[&str]| place.run_with_passphrase("right", words);
    let done = run(&["snapshot", "create", &store, "one"]);
    assert!(done.status.success(), "{}", err(&done));
    let line = refusal(&run(&["snapshot", "create", &store, "one"]), 1);
    assert!(line.contains("There is a snapshot one already"), "{line}");
    assert!(run(&["snapshot", "rename", &store, "one", "two"]).status.success());
    let listed = run(&["snapshot", "list", &store, "--json"]);
    let json: Value = serde_json::from_str(&out(&listed)).expect("JSON");
    let names: Vec<_> = json["snapshots"].as_array().expect("a list").iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["two"]);
    assert_eq!(json["snapshots"][0]["committed"], true);
    assert!(run(&["snapshot", "delete", &store, "two"]).status.success());
    assert_eq!(out(&run(&["snapshot", "list", &store])).trim(), "");
}

#[test]
fn the_environment_is_wiped_and_warned_about() {
    let place = Place::new();
    let made = place.run_with_passphrase("right", &["init", &place.text("store"), "--kdf-memory", "64MiB"]);
    assert!(made.status.success() && err(&made).contains("--passphrase-file is safer"), "{}", err(&made));
}
