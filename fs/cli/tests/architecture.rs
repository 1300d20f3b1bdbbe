//! Fails when a dependency goes the wrong way, or a name stands where it must not. The rules are those of
//! `fs/doc/architecture.md`; cargo itself says who depends on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crates of ours each crate may name in its shipping code.
const MAY_USE: [(&str, &[&str]); 18] = [
    ("axiomfs-api", &[]),
    ("axiomfs-config", &[]),
    ("axiomfs-host", &["axiomfs-api", "axiomfs-meter"]),
    ("axiomfs-chunker-fastcdc", &["axiomfs-api"]),
    ("axiomfs-compression-lz4", &["axiomfs-api"]),
    ("axiomfs-compression-zstd", &["axiomfs-api"]),
    ("axiomfs-encryption-aes-gcm", &["axiomfs-api"]),
    ("axiomfs-meter", &[]),
    ("axiomfs-padding-padme", &["axiomfs-api"]),
    ("axiomfs-storage-local", &["axiomfs-api"]),
    ("axiomfs-storage-memory", &["axiomfs-api"]),
    ("axiomfs-storage-s3", &["axiomfs-api"]),
    ("axiomfs-transform-faulty", &["axiomfs-api"]),
    ("axiomfs-repository", &["axiomfs-api", "axiomfs-host"]),
    ("axiomfs-live", &["axiomfs-api", "axiomfs-host", "axiomfs-repository"]),
    ("axiomfs-mount", &["axiomfs-host", "axiomfs-live"]),
    (
        "axiomfs",
        &[
            "axiomfs-api",
            "axiomfs-chunker-fastcdc",
            "axiomfs-compression-lz4",
            "axiomfs-compression-zstd",
            "axiomfs-config",
            "axiomfs-encryption-aes-gcm",
            "axiomfs-host",
            "axiomfs-live",
            "axiomfs-meter",
            "axiomfs-mount",
            "axiomfs-padding-padme",
            "axiomfs-repository",
            "axiomfs-storage-local",
            "axiomfs-storage-s3",
            "axiomfs-transform-faulty",
        ],
    ),
    // Black-box tests know the program and, as data, what it promises: none of its crates.
    ("axiomfs-tests", &[]),
];

/// Crates of others that only some of ours may name.
const ONLY_IN: [(&str, &[&str]); 11] = [
    ("clap", &["axiomfs"]),
    ("indicatif", &["axiomfs"]),
    ("tracing-subscriber", &["axiomfs"]),
    ("fuser", &["axiomfs-mount", "axiomfs-tests"]),
    ("serde_yaml", &["axiomfs-config"]),
    ("tokio", &["axiomfs-storage-s3"]),
    ("aws-sdk-s3", &["axiomfs-storage-s3"]),
    ("aes-gcm", &["axiomfs-encryption-aes-gcm"]),
    // The tests check and make signatures of requests with it.
    ("ring", &["axiomfs-encryption-aes-gcm", "axiomfs-tests"]),
    ("lz4_flex", &["axiomfs-compression-lz4"]),
    ("zstd", &["axiomfs-compression-zstd"]),
];

/// Words in shipping code that belong to one layer.
const WORDS_ONLY_IN: [(&str, &[&str]); 3] = [
    ("std::env::var", &["axiomfs", "axiomfs-tests"]),
    ("std::process::exit", &["axiomfs", "axiomfs-tests"]),
    // The command line answers control commands, whose errors are named by errno.
    ("libc::EIO", &["axiomfs", "axiomfs-mount", "axiomfs-tests"]),
];

struct Package {
    name: String,
    directory: PathBuf,
    /// Without those for tests only.
    dependencies: BTreeSet<String>,
}

fn workspace() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    metadata["packages"].as_array().expect("packages").iter().map(package).collect()
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let dependencies = value["dependencies"].as_array().expect("dependencies").iter();
    let manifest = PathBuf::from(text(&value["manifest_path"]));
    Package {
        name: text(&value["name"]),
        directory: manifest.parent().expect("a directory").to_owned(),
        dependencies: dependencies.filter(|d| d["kind"] != "dev").map(|d| text(&d["name"])).collect(),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

#[test]
fn dependencies_run_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut seen = 0;
    for package in workspace() {
        let may = allowed.get(package.name.as_str());
        let may = may.unwrap_or_else(|| panic!("{} is new: say in MAY_USE what it may depend on", package.name));
        for dependency in package.dependencies.iter().filter(|d| d.as_str() == "axiomfs" || d.starts_with("axiomfs-")) {
            assert!(may.contains(&dependency.as_str()), "{} must not depend on {dependency}", package.name);
        }
        seen += 1;
    }
    assert!(seen >= 12, "cargo showed only {seen} crates");
}

#[test]
fn crates_of_others_stay_in_their_layer() {
    for package in workspace() {
        for (name, homes) in ONLY_IN {
            assert!(
                !package.dependencies.contains(name) || homes.contains(&package.name.as_str()),
                "{} must not depend on {name}; only {homes:?} may",
                package.name
            );
        }
    }
}

#[test]
fn nothing_is_called_utils_common_or_types() {
    for package in workspace() {
        for word in ["util", "common", "types", "helper"] {
            assert!(!package.name.contains(word), "{}: a name that says nothing", package.name);
        }
    }
}

#[test]
fn words_stay_in_their_layer() {
    for package in workspace() {
        for file in sources(&package.directory.join("src")) {
            let text = fs::read_to_string(&file).expect("a source file");
            let shipping = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (word, homes) in WORDS_ONLY_IN {
                assert!(
                    !shipping.contains(word) || homes.contains(&package.name.as_str()),
                    "{} names {word}; only {homes:?} may",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn every_dependency_is_justified() {
    let document = fs::read_to_string(root().join("fs/doc/architecture.md")).expect("architecture.md");
    for package in workspace() {
        for dependency in package.dependencies.iter().filter(|d| *d != "axiomfs" && !d.starts_with("axiomfs-")) {
            assert!(
                document.contains(&format!("`{dependency}`")),
                "{dependency}, used by {}, has no line in fs/doc/architecture.md",
                package.name
            );
        }
    }
}

/// What `cargo test --doc` compiles and runs is the page as it stands, and its plugin is as short as promised.
#[test]
fn the_authors_guide_shows_a_whole_plugin_in_under_100_lines() {
    let guide = fs::read_to_string(root().join("plugins/README.md")).expect("the guide");
    let blocks: Vec<&str> = guide.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [block] = blocks[..] else { panic!("{} examples; one is the plugin", blocks.len()) };
    for part in ["impl TransformFactory for", "impl Transform for", "impl Worker for", "conformance::transform("] {
        assert!(block.contains(part), "{part} is missing");
    }
    let lines = block.lines().count();
    assert!(lines < 100, "{lines} lines");
    let host = fs::read_to_string(root().join("plugins/host/src/lib.rs")).expect("the host");
    assert!(host.contains("#[doc = include_str!(\"../../README.md\")]"), "nobody compiles the guide");
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if !path.ends_with("tests") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
                found.push(path);
            }
        }
    }
    found
}
