//! A store that shows an older state, another history or other people's objects, or has objects exchanged or missing.

use std::fs;
use std::thread;
use std::time::Duration;

use axiomfs_tests::place::{Objects, Place};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::noise;
use axiomfs_tests::run::{run, wait_for};

const ASKED: &str = "checkpoint: {interval: 200ms}\ncommit: {interval: 1h, bytes: 1GiB}\n";

axiomfs_tests::on_directory_and_bucket! {
    an_older_head_put_back_is_refused_until_it_is_accepted,
    a_head_with_an_older_ones_bytes_is_refused_and_named,
    another_history_is_refused_and_accepting_it_sets_local_changes_aside,
    a_new_machine_can_be_told_which_head_to_expect,
    foreign_objects_are_passed_over_and_named,
    an_object_exchanged_for_another_is_never_taken_for_it,
}

/// A file's text.
fn shown(repo: &TestRepo) -> String {
    fs::read_to_string(repo.live().join("file")).expect("read")
}

/// Writes and syncs; `SEQUENCE:COMMIT` of the head that has it.
fn commit(repo: &TestRepo, content: &str) -> String {
    fs::write(repo.live().join("file"), content).expect("written");
    let done = repo.axiomfs(&["sync", text(&repo.mnt)]);
    assert_eq!(done.code(), 0, "{}", done.stderr);
    done.stdout.trim().to_owned()
}

fn an_older_head_put_back_is_refused_until_it_is_accepted(place: Place) {
    let _slot = beside_others();
    let mut writer = place.repo("rollback");
    writer.settings(ASKED).mount();
    commit(&writer, "one");
    let objects = Objects::of(&writer.store);
    let kept = objects.keep();
    commit(&writer, "two");
    commit(&writer, "three");
    writer.umount();
    let newest = objects.keep();
    let mut reader = writer.elsewhere(&writer.store, "rollback-reader");
    reader.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shown(&reader), "three");
    reader.umount();

    objects.restore(&kept);
    for refused in [writer.try_mount(&[]), writer.try_mount(&["--read-only"]), reader.try_mount(&["--read-only"])] {
        let refused = refused.expect_err("an older state was taken for the newest");
        assert!(refused.contains("newest head is 1") && refused.contains("has seen 3"), "{refused}");
        assert!(refused.contains("--accept-rollback"), "{refused}");
    }
    // What was withheld is back: nothing has happened.
    objects.restore(&newest);
    writer.mount();
    assert_eq!(shown(&writer), "three");
    writer.umount();
    objects.restore(&kept);
    reader.try_mount(&["--read-only", "--accept-rollback"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shown(&reader), "one");
    reader.umount();
    reader.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("accepted once and for all: {e}"));
    reader.umount();
    writer.try_mount(&["--accept-rollback"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shown(&writer), "one");
    commit(&writer, "another two");
    writer.umount().mount();
    assert_eq!(shown(&writer), "another two");
    writer.umount();
}

fn a_head_with_an_older_ones_bytes_is_refused_and_named(place: Place) {
    let _slot = beside_others();
    let mut repo = place.repo("old-bytes");
    repo.settings(ASKED).mount();
    for content in ["one", "two", "three"] {
        commit(&repo, content);
    }
    repo.umount();
    let objects = Objects::of(&repo.store);
    let heads = objects.list("heads");
    objects.write(&heads[2].0, &objects.read(&heads[0].0));
    let refused = repo.try_mount(&[]).expect_err("an older head under the newest number");
    assert!(refused.contains("heads/") && refused.contains("0000000000000003"), "{refused}");
}

fn another_history_is_refused_and_accepting_it_sets_local_changes_aside(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("history");
    a.settings(ASKED).mount();
    commit(&a, "one");
    a.umount();
    let (objects, fork) = (Objects::of(&a.store), place.empty_store(&a, "history-fork"));
    Objects::of(&fork).restore(&objects.keep());
    let mut b = a.elsewhere(&fork, "history-b");
    b.mount();
    for content in ["b two", "b three", "b four"] {
        commit(&b, content);
    }
    b.umount();
    a.mount();
    commit(&a, "a two");
    fs::write(a.live().join("only here"), "x").expect("written");
    a.kill9();
    objects.restore(&Objects::of(&fork).keep());
    let refused = a.try_mount(&[]).expect_err("another history");
    assert!(refused.contains("another history") && refused.contains("--accept-rollback"), "{refused}");
    // Nor does it help to withhold the heads that tell.
    let heads = objects.list("heads");
    heads[1..heads.len() - 1].iter().for_each(|(name, _)| objects.remove(name));
    let refused = a.try_mount(&[]).expect_err("heads between are withheld");
    assert!(refused.contains("lacks head 3") && refused.contains("--accept-rollback"), "{refused}");
    a.try_mount(&["--accept-rollback"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shown(&a), "b four");
    assert_eq!(a.status()["set_aside"].as_array().map(Vec::len), Some(1));
    commit(&a, "five");
    a.umount().mount();
    assert_eq!(shown(&a), "five");
    a.umount();
}

fn a_new_machine_can_be_told_which_head_to_expect(place: Place) {
    let _slot = beside_others();
    let mut a = place.repo("expect");
    a.settings(ASKED).mount();
    let first = commit(&a, "one");
    let objects = Objects::of(&a.store);
    let kept = objects.keep();
    commit(&a, "two");
    let newest = commit(&a, "three");
    a.umount();
    let mount = |expected: &str, more: &[&str]| {
        let mut fresh = a.elsewhere(&a.store, "expect-new");
        fresh.try_mount(&[&["--expect-head", expected], more].concat()).map(|()| {
            let text = shown(&fresh);
            fresh.umount();
            text
        })
    };
    for more in [&["--read-only"][..], &[]] {
        assert_eq!(mount(&newest, more).as_deref(), Ok("three"));
        assert_eq!(mount(&first, more).as_deref(), Ok("three"), "what came after it will do");
        let (number, commit) = newest.split_once(':').expect("SEQUENCE:COMMIT");
        let later = format!("{}:{commit}", number.parse::<u64>().expect("a number") + 1);
        let other = format!("{number}:{}", "0".repeat(32));
        for wrong in [&later, &other] {
            let refused = mount(wrong, more).expect_err("not the expected head");
            assert!(refused.contains(wrong.as_str()) && refused.contains("did not come after it"), "{refused}");
        }
    }
    objects.restore(&kept);
    let refused = mount(&newest, &["--read-only"]).expect_err("a store that was rolled back");
    assert!(refused.contains(&newest) && refused.contains(&first), "{refused}");
    for wrong in ["7", "x:y", "3:abc"] {
        let done = a.axiomfs(&["mount", text(&a.store), text(&a.mnt), "--expect-head", wrong]);
        assert_eq!(done.code(), 2, "{}", done.stderr);
    }
}

fn foreign_objects_are_passed_over_and_named(place: Place) {
    let _slot = beside_others();
    let mut repo = place.repo("foreign");
    repo.settings(ASKED).mount();
    commit(&repo, "one");
    repo.umount();
    let objects = Objects::of(&repo.store);
    let below = |kind: &str| {
        let first = objects.list(kind).into_iter().next().expect("an object").0;
        first.rsplit_once('/').expect("a directory").0.to_owned()
    };
    // The last one has a name that none of ours can have.
    let names = ["zzz", "0", "notes.txt", "NOTES.TXT"];
    let junk: Vec<String> = ["packs", "index", "heads", "keys", "keyring"].iter().map(|kind| below(kind)).collect();
    let junk: Vec<String> = junk.iter().flat_map(|dir| names.map(|name| format!("{dir}/{name}"))).collect();
    junk.iter().for_each(|name| objects.write(name, b"not one of ours"));
    let unnamed = |text: &str| junk.iter().find(|name| !text.contains(*name)).cloned();
    let warnings = |repo: &TestRepo| repo.events().matches("is passed over").count();
    repo.mount();
    assert_eq!(shown(&repo), "one");
    let named = repo.status()["foreign_objects"].to_string();
    for name in junk.iter().filter(|name| name.starts_with("key")) {
        assert!(named.contains(name) && repo.events().contains(name), "{name}: {named}");
    }
    assert!(repo.axiomfs(&["status", text(&repo.mnt)]).stdout.contains("Foreign"));
    commit(&repo, "two");
    // The others are not listed before something is committed.
    wait_for("those among packs, index and heads are named", LIMIT, || unnamed(&repo.events()).is_none());
    assert_eq!(unnamed(&repo.status()["foreign_objects"].to_string()), None);
    let log = fs::read_to_string(repo.dir.join("daemon.log")).expect("read");
    assert_eq!(unnamed(&log), None);
    commit(&repo, "three");
    assert_eq!(warnings(&repo), junk.len(), "each once: {}", repo.events());
    repo.umount();

    let mut reader = repo.elsewhere(&repo.store, "foreign-reader");
    reader.settings("refresh: 1s\n").try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shown(&reader), "three");
    wait_for("a reader names them", LIMIT, || unnamed(&reader.events()).is_none());
    assert_eq!(unnamed(&reader.status()["foreign_objects"].to_string()), None);
    thread::sleep(Duration::from_secs(3));
    assert_eq!(warnings(&reader), junk.len(), "each once: {}", reader.events());
    reader.umount();

    let listed = repo.axiomfs(&["key", "list", text(&repo.store)]);
    assert_eq!((listed.code(), listed.stdout.lines().count()), (0, 1), "{}{}", listed.stdout, listed.stderr);
    let wrong = run(repo.command(&["snapshot", "list", text(&repo.store)]).env("AXIOMFS_PASSPHRASE", "wrong"), LIMIT);
    assert!(wrong.stderr.contains("wrong passphrase"), "{}", wrong.stderr);
    for name in &junk {
        assert_eq!(objects.read(name), b"not one of ours", "nothing of others is changed");
    }
}

/// Each object of a kind takes the place of another: an error or the right bytes, never others.
fn an_object_exchanged_for_another_is_never_taken_for_it(place: Place) {
    let _slot = beside_others();
    let mut repo = place.repo("exchanged");
    repo.settings(ASKED).mount();
    for i in 0..4 {
        fs::write(repo.live().join(format!("big{i}")), noise(i, 2 << 20)).expect("written");
        commit(&repo, &format!("text {i}"));
    }
    repo.umount();
    let check = |repo: &TestRepo, when: &str| {
        let mut refused = 0;
        for i in 0..4 {
            match fs::read(repo.live().join(format!("big{i}"))) {
                Ok(have) => assert!(have == noise(i, 2 << 20), "{when}: big{i} has wrong bytes"),
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(5), "{when}: big{i}: {e}");
                    refused += 1;
                }
            }
        }
        refused
    };
    let objects = Objects::of(&repo.store);
    for kind in ["packs", "index"] {
        let mut largest = objects.list(kind);
        largest.sort_by_key(|(_, len)| std::cmp::Reverse(*len));
        let (one, other) = (&largest[0].0, &largest[1].0);
        let exchange = || {
            let (a, b) = (objects.read(one), objects.read(other));
            objects.write(one, &b);
            objects.write(other, &a);
        };
        exchange();
        let mut reader = repo.elsewhere(&repo.store, "exchanged-reader");
        match reader.try_mount(&["--read-only"]) {
            Ok(()) => {
                let refused = check(&reader, kind);
                assert!(refused > 0 || kind == "index", "exchanged {kind} were not noticed");
                let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
                let told = reader.events();
                assert!(refused == 0 || told.contains(&last(one)) || told.contains(&last(other)), "{kind}: {told}");
                reader.umount();
            }
            Err(said) => assert!(said.contains(kind) && !said.contains("panicked"), "{said}"),
        }
        exchange();
    }
    repo.mount();
    assert_eq!(check(&repo, "with all in its place"), 0);
}
