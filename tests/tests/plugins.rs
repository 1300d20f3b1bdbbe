//! Plugins that are wrong, failing, greedy, slow or missing: a mount goes on, and nothing is lost.

use std::fs;
use std::path::Path;

use axiomfs_tests::metrics::Metrics;
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::prose;
use axiomfs_tests::run::wait_for;
use serde_json::Value;

/// What `faulty` does to one in so many frames, chosen by their first 64 bytes.
const RARE: u64 = 10_000;
/// One chunk exactly: the shortest there is.
const CHUNK: usize = 16 << 10;

/// FNV-1a of a frame's beginning, by which the plugin chooses frames.
fn is_chosen(mark: &[u8], n: u64) -> bool {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    (mark.iter().fold(0xcbf2_9ce4_8422_2325, step) >> 32).is_multiple_of(n)
}

fn mark(number: u64) -> String {
    format!("{number:064}")
}

/// Text that begins with its number, so that a frame which begins with it is known to be chosen or not.
fn content(number: u64, len: usize) -> Vec<u8> {
    [mark(number).into_bytes(), prose(number, len - 64)].concat()
}

/// Numbers from `from` on whose frames are chosen, once in `n`.
fn chosen(from: u64, n: u64) -> u64 {
    (from..).find(|number| is_chosen(mark(*number).as_bytes(), n)).expect("one in so many")
}

/// The steps of each of a file's frames, joined.
fn steps(repo: &TestRepo, name: &str) -> Vec<String> {
    let done = repo.axiomfs(&["stat", text(&repo.live().join(name)), "--json"]);
    assert!(done.status.success(), "{name}: {}{}", done.stdout, done.stderr);
    let stat: Value = serde_json::from_str(&done.stdout).expect("JSON");
    let frames = stat["frames"].as_array().expect("a list");
    assert!(!frames.is_empty() && stat["frames_total"] == frames.len(), "{stat}");
    let joined = |frame: &Value| {
        let steps = frame["steps"].as_array().expect("a list").iter();
        steps.map(|step| step.as_str().expect("text")).collect::<Vec<_>>().join("|")
    };
    frames.iter().map(joined).collect()
}

fn count(repo: &TestRepo, counter: &str) -> f64 {
    let metrics = Metrics::of(repo);
    let all = metrics.series(&format!("axiomfs_plugin_{counter}_total"));
    all.into_iter().find(|(labels, _)| *labels == "plugin=\"faulty\"").expect("it is counted").1
}

fn chain(repo: &TestRepo, name: &str) -> String {
    repo.control_ok(&format!("chain show {name}"))["chains"][0]["chain"].as_str().expect("steps").to_owned()
}

fn distrusted(repo: &TestRepo) -> Option<String> {
    let listed = repo.control_ok("plugin list");
    let plugins = listed["plugins"].as_array().expect("a list");
    let faulty = plugins.iter().find(|plugin| plugin["id"] == "faulty").expect("it is listed");
    faulty["distrusted"].as_str().map(str::to_owned)
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// That the host itself has put a plugin out, why, and what came of it.
fn is_in_the_audit_log(repo: &TestRepo) {
    let log = fs::read_to_string(repo.mnt.join(".axiomfs/audit.log")).expect("read");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines.iter().filter(|line| line["action"] == "plugin put out").collect();
    assert_eq!(told.len(), 1, "{log}");
    let subject = told[0]["subject"].as_str().expect("text");
    assert!(subject.starts_with("faulty ") && subject.contains("does not decode"), "{log}");
    let generation = repo.control_ok("chain show")["generation"].clone();
    assert_eq!(told[0]["result"], format!("ok, generation {generation}"), "{log}");
    assert_eq!((&told[0]["uid"], &told[0]["pid"]), (&0.into(), &repo.pid().into()), "{log}");
    repo.control_ok("audit verify");
}

#[test]
fn a_plugin_that_is_wrong_for_one_input_in_10_000_loses_nothing_and_missing_it_harms_only_its_files() {
    const FILES: u64 = 200;
    let _slot = beside_others();
    let mut repo = TestRepo::new("plugin-wrong");
    let odd = "chains:\n  default: [{plugin: zstd}, {plugin: aes-256-gcm}]\n  \
        odd: [{plugin: faulty, wrong: 10000, on_error: {fallback: default}}, {plugin: aes-256-gcm}]\n\
        routes: [{match: \"*.odd\", chain: odd}]\n";
    repo.environment("AXIOMFS_FAULT_PLUGINS", "1").settings(odd).mount();
    let wrong = chosen(FILES, RARE);
    assert!((0..FILES).all(|number| !is_chosen(mark(number).as_bytes(), RARE)), "none of the others is chosen");
    for number in 0..FILES {
        fs::write(repo.live().join(format!("{number}.odd")), content(number, CHUNK)).expect("written");
    }
    repo.settle();
    for number in [0, FILES / 2, FILES - 1] {
        assert_eq!(steps(&repo, &format!("{number}.odd")), ["faulty/1"]);
    }
    assert_eq!((count(&repo, "wrong"), distrusted(&repo)), (0.0, None));

    // Alone, so that its frame begins as the file does.
    fs::write(repo.live().join("wrong.odd"), content(wrong, CHUNK)).expect("written");
    repo.settle();
    assert_eq!(steps(&repo, "wrong.odd"), ["zstd/1"], "its frame was made again by the fallback");
    assert_eq!(count(&repo, "wrong"), 1.0);
    assert!(distrusted(&repo).is_some_and(|why| why.contains("does not decode")), "{:?}", distrusted(&repo));
    fs::write(repo.live().join("later.odd"), content(wrong + 1, CHUNK)).expect("written");
    fs::write(repo.live().join("plain"), content(wrong + 2, CHUNK)).expect("written");
    repo.settle();
    assert_eq!(steps(&repo, "later.odd"), ["zstd/1"]);
    assert!(!chain(&repo, "odd").contains("faulty"), "it is out of the chain");
    is_in_the_audit_log(&repo);
    let events = repo.events();
    assert!(events.contains("Plugin faulty is given no more frames: it made a frame that does not decode"), "{events}");
    let refused = repo.control("chain add default faulty");
    assert_eq!((refused["ok"].as_bool(), refused["errno"].as_str()), (Some(false), Some("EILSEQ")), "{refused}");

    let named = |name: &str| match name {
        "wrong.odd" => content(wrong, CHUNK),
        "later.odd" => content(wrong + 1, CHUNK),
        "plain" => content(wrong + 2, CHUNK),
        _ => content(name.trim_end_matches(".odd").parse().expect("a number"), CHUNK),
    };
    let names = || (0..FILES).map(|n| format!("{n}.odd")).chain(["wrong.odd", "later.odd", "plain"].map(String::from));
    assert!(names().all(|name| read(&repo.live().join(&name)) == named(&name)), "all is there");
    repo.umount();
    fs::remove_dir_all(&repo.cache).expect("the cache can be deleted");
    repo.mount();
    assert!(names().all(|name| read(&repo.live().join(&name)) == named(&name)), "and from the store alone");
    repo.umount();

    // A program without the plugin: what went through it can't be read, and nothing else suffers.
    let mut without = repo.elsewhere(&repo.store, "plugin-missing");
    without.settings("").mount();
    assert_eq!(without.status()["missing_plugins"], serde_json::json!(["faulty (format 1)"]), "{}", without.status());
    let shown = without.axiomfs(&["status", text(&without.mnt)]).stdout;
    assert!(shown.contains("plugin faulty (format 1): what went through it can't be read"), "{shown}");
    for name in names() {
        let have = fs::read(without.live().join(&name));
        match name.as_str() {
            "wrong.odd" | "later.odd" | "plain" => assert!(have.expect("readable") == named(&name), "{name}"),
            _ => {
                assert_eq!(have.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)), "{name}");
            }
        }
    }
    let said = without.events() + &without.daemon_log();
    assert!(said.contains("faulty") && said.contains("format 1"), "the error names the plugin: {said}");
    // What comes again is stored again: the chunk that is there can't be read here.
    fs::write(without.live().join("again"), content(0, CHUNK)).expect("written");
    fs::write(without.live().join("new"), content(FILES, CHUNK)).expect("written");
    without.umount();
    fs::remove_dir_all(&without.cache).expect("the cache can be deleted");
    without.mount();
    assert!(read(&without.live().join("again")) == content(0, CHUNK));
    assert!(read(&without.live().join("new")) == content(FILES, CHUNK));
    without.umount();
}

#[test]
fn a_plugin_that_fails_hangs_or_takes_too_much_ends_as_its_strategy_says() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("plugin-fails");
    let chain_of = |name: &str, fault: &str, on_error: &str| {
        format!("  {name}: [{{plugin: faulty, {fault}, on_error: {on_error}}}, {{plugin: aes-256-gcm}}]\n")
    };
    let settings = [
        "limits: {frame_timeout: 1s}\nchains:\n  default: [{plugin: zstd}, {plugin: aes-256-gcm}]\n".to_owned(),
        chain_of("skips", "fail: 100", "skip"),
        chain_of("falls", "fail: 100", "{fallback: default}"),
        chain_of("fails", "fail: 100", "fail"),
        "routes: [{match: \"*.skips\", chain: skips}, {match: \"*.falls\", chain: falls}, \
         {match: \"*.fails\", chain: fails}]\n"
            .to_owned(),
    ];
    repo.environment("AXIOMFS_FAULT_PLUGINS", "1").settings(&settings.concat()).mount();
    // Some MiB of which the first frame at least is chosen.
    let mut number = 0;
    let mut write = |repo: &TestRepo, name: &str| {
        number = chosen(number + 1, 100);
        let bytes = content(number, 8 << 20);
        fs::write(repo.live().join(name), &bytes).expect("the log takes it");
        bytes
    };

    // One that asks for more than its bound is refused, and the chain is as before.
    let before = (chain(&repo, "skips"), repo.status()["generation"].clone());
    let refused = repo.control("chain add skips faulty-large");
    assert_eq!((refused["errno"].as_str(), refused["code"].as_str()), (Some("ENOMEM"), Some("MEMORY")), "{refused}");
    assert!(refused["msg"].as_str().is_some_and(|msg| msg.contains("faulty-large")), "{refused}");
    assert_eq!((chain(&repo, "skips"), repo.status()["generation"].clone()), before);

    // One that fails for 1 % of its frames, under each strategy.
    let mut failed = 0.0;
    for (name, counter, otherwise) in [("a.skips", "skipped", ""), ("a.falls", "fallbacks", "zstd/1")] {
        let bytes = write(&repo, name);
        repo.settle();
        let steps = steps(&repo, name);
        let ended = steps.iter().filter(|steps| *steps == otherwise).count();
        assert!(ended >= 1 && steps.iter().all(|s| s == otherwise || s == "faulty/1"), "{name}: {steps:?}");
        assert_eq!(count(&repo, counter), ended as f64, "{name}");
        failed += ended as f64;
        assert_eq!(count(&repo, "encode_errors"), failed, "{name}");
        assert!(read(&repo.live().join(name)) == bytes, "{name}");
    }
    let bytes = write(&repo, "a.fails");
    let sync = repo.axiomfs(&["sync", text(&repo.mnt)]);
    assert!(sync.code() == 1 && sync.stderr.contains("faulty"), "the error names the plugin: {}", sync.stderr);
    assert!(read(&repo.live().join("a.fails")) == bytes, "it waits in the log, whole");
    assert_eq!((distrusted(&repo), chain(&repo, "fails").contains("faulty")), (None, true), "who only fails stays");
    repo.control_ok("chain remove fails faulty");
    // A failure answers for a second before what failed is tried again.
    wait_for("it goes on without", LIMIT, || repo.axiomfs(&["sync", text(&repo.mnt)]).status.success());
    repo.settle();
    assert!(steps(&repo, "a.fails").contains(&String::new()), "what failed was made without it");
    assert!(read(&repo.live().join("a.fails")) == bytes);

    // One that takes more memory than it may, or more time, is stopped and put out.
    for (fault, why) in [("greedy", "bytes of memory"), ("slow", "did not finish a frame within 1s")] {
        repo.control_ok("plugin load faulty");
        repo.control_ok(&format!("chain set skips faulty({fault}=100,on_error=skip)|aes-256-gcm"));
        let name = format!("{fault}.skips");
        let bytes = write(&repo, &name);
        repo.settle();
        assert!(distrusted(&repo).is_some_and(|reason| reason.contains(why)), "{:?}", distrusted(&repo));
        assert!(steps(&repo, &name).contains(&String::new()), "{name}: the frame goes on without it");
        assert_eq!(chain(&repo, "skips"), "aes-256-gcm");
        assert!(repo.events().contains("Plugin faulty is given no more frames"), "{}", repo.events());
        assert!(read(&repo.live().join(&name)) == bytes, "{name}");
    }
    repo.umount();
}
