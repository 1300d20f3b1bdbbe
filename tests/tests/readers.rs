//! One writer and many readers: each committed state is seen, wholly, and soon.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axiomfs_tests::place::{Objects, Place};
use axiomfs_tests::proxy::Proxy;
use axiomfs_tests::repo::{LIMIT, TestRepo, alone, beside_others, text};
use axiomfs_tests::run::{run, wait_for};
use axiomfs_tests::s3::{S3Server, url_at};
use axiomfs_tests::source::write_noise;

const REFRESH: Duration = Duration::from_secs(1);
/// What a refresh may take beside the pause before it, on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
const SETTINGS: &str = "refresh: 1s\ncommit: {interval: 1h}\n";

axiomfs_tests::on_directory_and_bucket! {
    no_reader_sees_a_torn_state,
}

fn reader_of(writer: &TestRepo, name: &str) -> TestRepo {
    let mut reader = writer.elsewhere(&writer.store, name);
    reader.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    reader
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    names
}

/// Waits for what the reader must see; says how long that took.
fn soon(what: &str, seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    wait_for(what, REFRESH + SLACK, seen);
    eprintln!("{what}: after {:?}", begun.elapsed());
}

/// All that can change between two states, seen from another cache directory.
fn follows(writer: &mut TestRepo, name: &str) {
    writer.settings(SETTINGS).mount();
    let live = writer.live();
    fs::create_dir(live.join("dir")).expect("makes");
    fs::write(live.join("dir/kept"), b"kept").expect("writes");
    fs::write(live.join("dir/changed"), vec![1; 300_000]).expect("writes");
    fs::write(live.join("dir/replaced"), vec![1; 300_000]).expect("writes");
    fs::write(live.join("dir/removed"), b"removed").expect("writes");
    writer.sync();
    let reader = reader_of(writer, name);
    let there = reader.live();
    assert_eq!(names(&there.join("dir")), ["changed", "kept", "removed", "replaced"]);
    assert!(fs::read(there.join("dir/changed")).expect("reads") == vec![1; 300_000]);
    let kept = fs::metadata(there.join("dir/kept")).expect("stats");
    assert_eq!(kept.ino(), fs::metadata(live.join("dir/kept")).expect("stats").ino());
    assert!(!there.join("dir/new").exists());

    fs::write(live.join("dir/new"), b"new").expect("writes");
    fs::write(live.join("dir/changed"), vec![2; 300_000]).expect("writes");
    fs::write(live.join("dir/other"), vec![3; 300_000]).expect("writes");
    fs::rename(live.join("dir/other"), live.join("dir/replaced")).expect("renames");
    fs::remove_file(live.join("dir/removed")).expect("removes");
    fs::create_dir(live.join("dir/sub")).expect("makes");
    fs::create_dir(writer.snapshot("one")).expect("a snapshot");
    fs::set_permissions(live.join("dir/kept"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    writer.sync();
    soon("the new state", || there.join("dir/new").exists());
    assert_eq!(names(&there.join("dir")), ["changed", "kept", "new", "replaced", "sub"]);
    assert!(fs::read(there.join("dir/changed")).expect("reads") == vec![2; 300_000]);
    assert!(fs::read(there.join("dir/replaced")).expect("reads") == vec![3; 300_000]);
    let after = fs::metadata(there.join("dir/kept")).expect("stats");
    assert_eq!((after.ino(), after.mode() & 0o777), (kept.ino(), 0o600), "an attribute makes no other file");
    soon("the snapshot", || names(&reader.mnt.join("snapshots")) == ["one"]);
    assert_eq!(fs::read(reader.snapshot("one").join("dir/new")).expect("reads"), b"new");

    fs::rename(writer.snapshot("one"), writer.snapshot("two")).expect("renames");
    writer.sync();
    soon("the snapshot's new name", || names(&reader.mnt.join("snapshots")) == ["two"]);
    fs::remove_dir(writer.snapshot("two")).expect("forgets");
    writer.sync();
    soon("the snapshot is gone", || names(&reader.mnt.join("snapshots")).is_empty());
    assert!(!reader.events().contains("Could not follow"), "{}", reader.events());
    writer.umount();
}

#[test]
fn a_reader_sees_each_committed_state_within_refresh() {
    follows(&mut TestRepo::new("readers"), "readers-there");
}

#[test]
fn a_reader_of_a_bucket_sees_each_committed_state_within_refresh() {
    let url = S3Server::shared().url("readers");
    follows(&mut TestRepo::in_bucket("readers-s3", &url), "readers-s3-there");
}

#[test]
fn a_reader_that_begins_before_the_first_commit_sees_it() {
    let mut writer = TestRepo::new("readers-first");
    writer.settings(SETTINGS);
    let reader = reader_of(&writer, "readers-first-there");
    assert!(names(&reader.live()).is_empty());
    writer.mount();
    fs::write(writer.live().join("file"), b"text").expect("writes");
    writer.sync();
    soon("the first state", || names(&reader.live()) == ["file"]);
    assert_eq!(fs::read(reader.live().join("file")).expect("reads"), b"text");
}

#[test]
fn an_open_file_keeps_the_version_it_was_opened_in() {
    let mut writer = TestRepo::new("readers-open");
    writer.settings(SETTINGS).mount();
    let fill = |n: u8| vec![n; 2 << 20];
    fs::write(writer.live().join("file"), fill(1)).expect("writes");
    fs::write(writer.live().join("gone"), fill(7)).expect("writes");
    writer.sync();
    let reader = reader_of(&writer, "readers-open-there");
    let open = |name: &str| fs::File::open(reader.live().join(name)).expect("opens");
    let (mut held, mut gone) = (vec![open("file")], open("gone"));
    let mut half = vec![0; 1 << 20];
    held[0].read_exact(&mut half).expect("reads");
    fs::remove_file(writer.live().join("gone")).expect("removes");
    for n in 2..=3 {
        fs::write(writer.live().join("file"), fill(n)).expect("writes");
        writer.sync();
        soon("the new contents", || {
            let mut first = [0];
            open("file").read_at(&mut first, 0).expect("reads") == 1 && first[0] == n
        });
        held.push(open("file"));
    }
    let mut inodes = Vec::new();
    for (n, file) in (1..).zip(&mut held) {
        let mut all = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("seeks");
        file.read_to_end(&mut all).expect("reads");
        assert!(all == fill(n), "the file opened in version {n} shows another");
        let shown = file.metadata().expect("stats");
        assert_eq!(shown.len(), 2 << 20);
        inodes.push(shown.ino());
    }
    inodes.dedup();
    assert_eq!(inodes.len(), 3, "each version is a file of its own");
    assert!(!reader.live().join("gone").exists());
    let mut all = Vec::new();
    gone.read_to_end(&mut all).expect("a removed file can be read while it is open");
    assert!(all == fill(7) && gone.metadata().expect("stats").len() == 2 << 20);
}

/// A file whose every byte says which commit it is from, and another that is renamed with it.
fn no_reader_sees_a_torn_state(place: Place) {
    let _slot = alone();
    let mut writer = place.repo("readers-torn");
    writer.settings(SETTINGS).mount();
    let change = |n: u8| {
        fs::write(writer.live().join("file"), vec![n; 500_000 + usize::from(n) * 100_000]).expect("writes");
        fs::write(writer.live().join("small"), [n]).expect("writes");
        writer.sync();
    };
    change(1);
    let readers: Vec<TestRepo> = (0..2).map(|n| reader_of(&writer, &format!("readers-torn-{n}"))).collect();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching: Vec<_> = readers.iter().map(|reader| scope.spawn(|| watch(reader, &ended))).collect();
        for n in 2..=12 {
            change(n);
            std::thread::sleep(Duration::from_millis(500));
        }
        std::thread::sleep(REFRESH + SLACK);
        ended.store(true, Ordering::SeqCst);
        for watched in watching {
            let (states, last) = watched.join().expect("no torn state");
            eprintln!("{states} states seen");
            assert!(states >= 4 && last == 12, "{states} states, the last {last}");
        }
    });
}

fn watch(reader: &TestRepo, ended: &AtomicBool) -> (usize, u8) {
    let (mut states, mut last) = (0, 0);
    while !ended.load(Ordering::SeqCst) {
        let before = fs::read(reader.live().join("small")).expect("reads")[0];
        let file = fs::File::open(reader.live().join("file")).expect("opens");
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("reads");
        let n = bytes[0];
        assert!(bytes.iter().all(|byte| *byte == n), "bytes of two states");
        assert_eq!(bytes.len(), 500_000 + usize::from(n) * 100_000, "the length of another state");
        assert_eq!(file.metadata().expect("stats").len(), bytes.len() as u64);
        assert!(n >= before && n >= last, "state {n} after {before} and {last}");
        states += usize::from(n != last);
        last = n;
    }
    (states, last)
}

#[test]
fn an_idle_reader_makes_one_small_request_for_each_refresh() {
    let server = S3Server::shared();
    let proxy = Proxy::start(server.port);
    let mut writer = TestRepo::in_bucket("readers-cost", &server.url("readers-cost"));
    writer.mount();
    write_noise(&writer.live().join("file"), 1, 1 << 20);
    writer.umount();
    let mut reader = writer.elsewhere(Path::new(&url_at(proxy.port, "readers-cost")), "readers-cost-there");
    reader.settings("refresh: 1s\n").try_mount(&["--read-only"]).expect("mounts");
    fs::read(reader.live().join("file")).expect("reads");
    // At its first refresh it looks once for foreign objects.
    std::thread::sleep(2 * REFRESH);
    let (all, gets) = (proxy.requests(), proxy.count("GET"));
    std::thread::sleep(Duration::from_secs(10));
    let (all, gets) = (proxy.requests() - all, proxy.count("GET") - gets);
    eprintln!("an idle reader made {all} requests, {gets} GETs, in 10 refreshes");
    assert!((8..=11).contains(&gets) && all == gets, "{all} requests, {gets} GETs in 10 refreshes");
}

#[test]
fn a_reader_and_the_writer_of_one_user_are_not_in_each_others_way() {
    let _slot = alone();
    let repo = TestRepo::new("reader-beside");
    let mount = |to: &Path, more: &[&str]| {
        let args = [&["mount", text(&repo.store), text(to)], more].concat();
        run(&mut repo.command(&args), LIMIT)
    };
    // Each unmounts its mount point in the end, whatever comes.
    let places = ["first", "writer", "second"].map(|name| repo.elsewhere(&repo.store, name));
    let [first, writer, second] = places.each_ref().map(|place| place.mnt.as_path());
    // With the directories that they choose themselves.
    let reads = mount(first, &["--read-only"]);
    assert!(reads.status.success(), "{}", reads.stderr);
    let writes = mount(writer, &[]);
    assert!(writes.status.success(), "{}", writes.stderr);
    let refused = mount(second, &["--read-only"]);
    assert!(!refused.status.success() && refused.stderr.contains("--state DIR"), "{}", refused.stderr);
    for place in [writer, first] {
        let done = run(&mut repo.command(&["umount", text(place)]), LIMIT);
        assert!(done.status.success(), "{}", done.stderr);
    }
}

#[test]
fn a_reader_lists_snapshots_with_the_times_that_the_writer_knows() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("reader-lists");
    repo.mount();
    let listed = |repo: &TestRepo| {
        let done = repo.axiomfs(&["snapshot", "list", text(&repo.mnt), "--json"]);
        let reply: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
        let list = reply["snapshots"].as_array().expect("a list").clone();
        list.iter().map(|s| (s["name"].to_string(), s["created"].to_string())).collect::<Vec<_>>()
    };
    // Not in the order of their names.
    for name in ["monday", "april"] {
        fs::create_dir(repo.snapshot(name)).expect("taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    repo.sync();
    let written = listed(&repo);
    assert!(written.len() == 2 && written.iter().all(|(_, created)| created != "null"), "{written:?}");
    let mut reader = reader_of(&repo, "reader-lists-reader");
    assert_eq!(listed(&reader), written);
    reader.umount();
    repo.umount();
}

#[test]
fn a_reader_that_has_seen_no_head_goes_by_what_the_writer_has() {
    let _slot = alone();
    let repo = TestRepo::new("reader-memory");
    let place = repo.elsewhere(&repo.store, "place");
    let command = |args: &[&str]| run(&mut repo.command(args), LIMIT);
    let objects = Objects::of(&repo.store);
    let mut kept = None;
    for content in ["one", "two"] {
        let mounted = command(&["mount", text(&repo.store), text(&place.mnt)]);
        assert!(mounted.status.success(), "{}", mounted.stderr);
        fs::write(place.live().join("file"), content).expect("written");
        let done = command(&["umount", text(&place.mnt)]);
        assert!(done.status.success(), "{}", done.stderr);
        kept.get_or_insert_with(|| objects.keep());
    }
    objects.restore(&kept.expect("the first state"));
    let args = ["mount", text(&repo.store), text(&place.mnt), "--read-only"];
    let refused = command(&args);
    assert!(!refused.status.success() && refused.stderr.contains("--accept-rollback"), "{}", refused.stderr);
    let accepted = command(&[&args[..], &["--accept-rollback"]].concat());
    assert!(accepted.status.success(), "{}", accepted.stderr);
    assert_eq!(fs::read(place.live().join("file")).expect("read"), b"one");
    assert!(command(&["umount", text(&place.mnt)]).status.success());
    let again = command(&args);
    assert!(again.status.success(), "accepted once and for all: {}", again.stderr);
    assert!(command(&["umount", text(&place.mnt)]).status.success());
}
