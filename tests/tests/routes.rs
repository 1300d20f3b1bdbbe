//! Which chain a file goes through, and what `axiomfs stat` tells of it afterwards.

use std::fs;
use std::path::Path;
use std::time::Duration;

use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, scratch, text};
use axiomfs_tests::rng::prose;
use axiomfs_tests::run::must;
use serde_json::Value;

const SETTINGS: &str = "chains:\n  default: [{plugin: zstd, level: 1}, {plugin: aes-256-gcm}]\n  \
    media: [{plugin: aes-256-gcm}]\n  archive: [{plugin: zstd, level: 19}, {plugin: padme}, {plugin: aes-256-gcm}]\n\
    routes:\n  - {under: /logs, chain: archive}\n  - {match: \"*.mp4\", chain: media}\n\
    checkpoint: {interval: 200ms}\n";

fn stat(repo: &TestRepo, path: &Path) -> Value {
    let done = repo.axiomfs(&["stat", text(path), "--json"]);
    assert!(done.status.success(), "{}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).expect("JSON")
}

/// The steps of a file's frames; all of them must agree.
fn steps(stat: &Value) -> Vec<String> {
    let frames = stat["frames"].as_array().expect("a list");
    assert!(!frames.is_empty(), "{stat}");
    let of = |frame: &Value| -> Vec<String> {
        frame["steps"].as_array().expect("a list").iter().map(|s| s.as_str().expect("text").to_owned()).collect()
    };
    assert!(frames.iter().all(|frame| of(frame) == of(&frames[0])), "{stat}");
    assert!(frames.iter().all(|frame| frame["seal"] == "aes-256-gcm/1"), "{stat}");
    of(&frames[0])
}

#[test]
fn files_take_the_chain_of_their_route_also_under_the_temporary_names_of_rsync() {
    let _slot = beside_others();
    let source = scratch("routes-source");
    let tree = source.path().join("tree");
    fs::create_dir_all(tree.join("logs/deep")).expect("directories");
    // Large enough that their names are seen before they are renamed, and each with bytes of its own.
    for (i, name) in ["film.mp4", "logs/today", "logs/deep/film.mp4", "note.txt"].iter().enumerate() {
        fs::write(tree.join(name), prose(i as u64, 3 << 20)).expect("written");
    }
    let mut repo = TestRepo::new("routes");
    repo.settings(SETTINGS).mount();
    // Slower than a checkpoint comes, so that rsync's temporary files are stored while they have their temporary names.
    let from = format!("{}/", text(&tree));
    must("rsync", &["-a", "--bwlimit=4m", &from, text(&repo.live())], Duration::from_secs(120));
    repo.settle();
    let live = repo.live();
    for (name, route, wanted) in [
        ("film.mp4", "media", &[][..]),
        ("logs/today", "archive", &["zstd/1", "padme/1"][..]),
        ("logs/deep/film.mp4", "archive", &["zstd/1", "padme/1"]),
        ("note.txt", "default", &["zstd/1"]),
    ] {
        let stat = stat(&repo, &live.join(name));
        assert_eq!(
            (stat["route"].as_str(), steps(&stat).as_slice()),
            (Some(route), wanted.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().as_slice()),
            "{name}"
        );
        assert_eq!(stat["size"].as_u64(), Some(3 << 20));
        let of_file: u64 =
            stat["frames"].as_array().expect("a list").iter().filter_map(|f| f["bytes_of_file"].as_u64()).sum();
        let elsewhere: u64 =
            ["in_log", "waiting", "inline", "holes"].iter().filter_map(|key| stat[*key].as_u64()).sum();
        assert_eq!(of_file + elsewhere, 3 << 20, "{stat}");
        let explained = repo.control_ok(&format!("route explain /{name}"));
        assert_eq!(explained["chain"].as_str(), Some(route), "{name}");
    }
    let ratio = |name: &str| stat(&repo, &live.join(name))["ratio"].as_f64().expect("a number");
    assert!(ratio("film.mp4") < 1.01, "what isn't compressed does not shrink");
    assert!(ratio("logs/today") > ratio("note.txt") && ratio("note.txt") > 1.2, "harder is smaller");

    fs::create_dir(repo.snapshot("one")).expect("a snapshot");
    assert_eq!(steps(&stat(&repo, &repo.snapshot("one").join("note.txt"))), ["zstd/1"]);
    fs::write(live.join("tiny"), b"so small that it stands in its record").expect("written");
    repo.settle();
    let tiny = stat(&repo, &live.join("tiny"));
    assert_eq!((tiny["inline"].as_u64(), tiny["frames_total"].as_u64()), (Some(37), Some(0)), "{tiny}");
    let shown = repo.axiomfs(&["stat", text(&live.join("logs/today"))]).stdout;
    assert!(shown.contains("zstd/1|padme/1|aes-256-gcm/1") && shown.contains("chain archive"), "{shown}");
}

#[test]
fn a_route_for_everything_can_be_written_back() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("routes-root");
    repo.settings(SETTINGS).mount();
    repo.control_ok("route add under / media first");
    for refused in ["route add under // media", "route add under /a// media", "route add under logs media"] {
        assert_eq!(repo.control(refused)["errno"], "EINVAL", "{refused}");
    }
    let (file, shown) = (repo.mnt.join(".axiomfs/chain.yaml"), repo.dir.join("shown.yaml"));
    must("cp", &["--no-preserve=all", text(&file), text(&shown)], LIMIT);
    must("cp", &[text(&shown), text(&file)], LIMIT);
    assert_eq!(fs::read_to_string(&file).expect("read"), fs::read_to_string(&shown).expect("read"));
    for path in ["/a", "/deep/er/b", "/logs/c"] {
        assert_eq!(repo.control_ok(&format!("route explain {path}"))["chain"], "media", "{path}");
    }
    repo.umount();
}

#[test]
fn what_can_not_be_looked_at_is_named() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("stat-refused");
    repo.mount();
    for (path, word) in [
        (repo.live().join("nothing"), "nothing"),
        (repo.live(), "live"),
        (repo.mnt.join("snapshots/none/x"), "no such snapshot"),
        (repo.dir.join("elsewhere"), "in no mounted axiomfs"),
    ] {
        let done = repo.axiomfs(&["stat", text(&path)]);
        assert!(done.code() == 1 && done.stderr.contains(word), "{}: {}{}", path.display(), done.stdout, done.stderr);
    }
}
