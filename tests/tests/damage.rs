//! Damaged bytes: an error that names the object, the rest keeps working, and never wrong bytes.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axiomfs_tests::place::{Objects, Place, flip};
use axiomfs_tests::repo::{LIMIT, TestRepo, beside_others, text};
use axiomfs_tests::rng::{Rng, noise, run_seed};
use axiomfs_tests::run::{must, run};
use axiomfs_tests::source::walk;

const MIB: usize = 1 << 20;
const STILL: &str = "checkpoint: {interval: 1h, bytes: 1GiB}\ncommit: {interval: 1h, bytes: 1GiB}\n";

fn segments(repo: &TestRepo) -> Vec<PathBuf> {
    let name = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("segment-"));
    let found: Vec<PathBuf> = walk(&repo.state.join("log")).into_iter().filter(name).collect();
    assert!(!found.is_empty(), "no log segment in {}", repo.state.display());
    found
}

/// The offset behind the last byte of a segment that isn't zero.
fn used(segment: &Path) -> u64 {
    let bytes = fs::read(segment).expect("the segment can be read");
    bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i as u64 + 1)
}

#[test]
fn a_torn_last_record_is_cut_off_and_reported() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("torn");
    repo.settings(STILL).mount();
    for i in 0..10 {
        fs::write(repo.live().join(format!("f{i}")), noise(i, 50_000)).expect("written");
    }
    let file = fs::File::create(repo.live().join("synced")).expect("created");
    file.write_all_at(&noise(77, 50_000), 0).expect("written");
    file.sync_all().expect("synced");
    fs::write(repo.live().join("last"), noise(99, 50_000)).expect("written");
    repo.kill9();
    let segment = segments(&repo).pop().expect("a segment");
    let end = used(&segment);
    // The power fails in the middle of the last write: what was written after the fsync may be torn.
    let torn = OpenOptions::new().write(true).open(&segment).expect("opened");
    torn.write_all_at(&[0; 20_000], end - 20_000).expect("torn");
    repo.mount();
    let events = repo.events().to_lowercase();
    assert!(["cut", "torn", "tail"].iter().any(|w| events.contains(w)), "no word of the cut in events: {events}");
    for i in 0..10 {
        assert!(
            fs::read(repo.live().join(format!("f{i}"))).expect("read") == noise(i, 50_000),
            "f{i} was damaged by the cut"
        );
    }
    assert!(
        fs::read(repo.live().join("synced")).expect("read") == noise(77, 50_000),
        "a synced file was damaged by the cut"
    );
    let last = fs::read(repo.live().join("last")).unwrap_or_default();
    assert!(last == noise(99, 50_000)[..last.len()], "the torn file has wrong bytes");
    fs::write(repo.live().join("new"), b"goes on").expect("written");
    repo.umount().mount();
    assert_eq!(fs::read(repo.live().join("new")).expect("read"), b"goes on");
}

#[test]
fn a_flipped_bit_in_the_log_stops_the_mount_and_says_where() {
    let _slot = beside_others();
    let seed = run_seed("a_flipped_bit_in_the_log_stops_the_mount_and_says_where");
    let mut rng = Rng::new(seed);
    let mut repo = TestRepo::new("log-damage");
    repo.settings(STILL).mount();
    for i in 0..10 {
        fs::write(repo.live().join(format!("f{i}")), noise(i, 100_000)).expect("written");
    }
    let file = fs::File::create(repo.live().join("synced")).expect("created");
    file.sync_all().expect("synced");
    // A record behind a sync says up to where the log is durable; an idle log writes one of its own.
    fs::write(repo.live().join("later"), b"x").expect("written");
    file.sync_all().expect("synced");
    fs::write(repo.live().join("latest"), b"x").expect("written");
    repo.kill9();
    let kept = repo.dir.join("kept");
    must("cp", &["-a", text(&repo.state), text(&kept)], Duration::from_secs(60));
    let segment = segments(&repo).remove(0);
    let end = used(&segment);
    for round in 0..5 {
        let offset = rng.between(4096, end - 20_000);
        flip(&segment, offset);
        let error = repo.try_mount(&[]).expect_err(&format!("a log damaged at {offset} of {end} was mounted"));
        let name = segment.file_name().and_then(|n| n.to_str()).expect("text").to_lowercase();
        let number = name.trim_start_matches("segment-").trim_end_matches(".log").trim_start_matches('0').to_owned();
        let said = error.to_lowercase();
        assert!(
            said.contains("segment") && said.contains(&number),
            "round {round}: the message doesn't name the segment {name}: {error}"
        );
        assert!(said.contains("log"), "round {round}: {error}");
        repo.clear_dead_mount();
        if round == 0 {
            repo.try_mount(&["--read-only"]).unwrap_or_else(|e| panic!("--read-only must still work: {e}"));
            for entry in fs::read_dir(repo.live()).expect("listed") {
                let name = entry.expect("entry").file_name().into_string().expect("text");
                if let Some(i) = name.strip_prefix('f').and_then(|n| n.parse::<u64>().ok()) {
                    let have = fs::read(repo.live().join(&name)).unwrap_or_default();
                    assert!(have == noise(i, 100_000)[..have.len()], "{name} has wrong bytes");
                }
            }
            repo.umount();
        }
        fs::remove_dir_all(&repo.state).expect("removed");
        must("cp", &["-a", text(&kept), text(&repo.state)], Duration::from_secs(60));
    }
    repo.mount();
    for i in 0..10 {
        assert!(fs::read(repo.live().join(format!("f{i}"))).expect("read") == noise(i, 100_000), "f{i}");
    }
}

/// A repository with 12 files of 4 MiB and 100 small ones, unmounted, its local state gone.
fn stored(place: Place, name: &str) -> TestRepo {
    let mut repo = place.repo(name);
    repo.mount();
    for i in 0..12 {
        fs::write(repo.live().join(format!("big{i}")), noise(i, 4 * MIB)).expect("written");
    }
    repo.sync();
    for i in 0..100 {
        fs::write(repo.live().join(format!("small{i}")), noise(1000 + i, 2000)).expect("written");
    }
    repo.umount();
    repo.forget_local_state();
    repo
}

/// Reads every file: right bytes or EIO, never wrong bytes. Returns how many were refused, and the names of those.
fn read_all(repo: &TestRepo) -> Vec<String> {
    let mut refused = Vec::new();
    let mut check = |name: String, want: Vec<u8>| match fs::read(repo.live().join(&name)) {
        Ok(have) => assert!(have == want, "{name} has wrong bytes, and no error"),
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(5), "{name}: {e}");
            refused.push(name);
        }
    };
    (0..12).for_each(|i| check(format!("big{i}"), noise(i, 4 * MIB)));
    (0..100).for_each(|i| check(format!("small{i}"), noise(1000 + i, 2000)));
    refused
}

/// Packs and numbers of the frames in which a file's chunks are; several files may share one.
fn frames(repo: &TestRepo, name: &str) -> BTreeSet<String> {
    let told = repo.control_ok(&format!("stat live/{name}"));
    let frames = told["frames"].as_array().expect("a list");
    frames.iter().map(|frame| format!("{} {}", frame["pack"], frame["frame"])).collect()
}

fn objects(repo: &TestRepo, kind: &str) -> Vec<PathBuf> {
    let found = walk(&repo.store.join(kind));
    assert!(!found.is_empty(), "no {kind} in the store");
    found
}

fn stem(path: &Path) -> String {
    path.file_name().and_then(|n| n.to_str()).expect("object names are text").to_owned()
}

#[test]
fn a_flipped_bit_in_a_pack_gives_eio_for_its_files_only_and_names_the_pack() {
    let _slot = beside_others();
    let seed = run_seed("a_flipped_bit_in_a_pack_gives_eio_for_its_files_only_and_names_the_pack");
    let mut rng = Rng::new(seed);
    let mut repo = stored(Place::Directory, "pack-damage");
    let big: Vec<PathBuf> =
        objects(&repo, "packs").into_iter().filter(|p| fs::metadata(p).is_ok_and(|m| m.len() > 4 << 20)).collect();
    assert!(!big.is_empty(), "no pack with data");
    for _ in 0..4 {
        let pack = rng.pick(&big).clone();
        let len = fs::metadata(&pack).expect("metadata").len();
        let offset = rng.between(len / 10, len * 9 / 10);
        flip(&pack, offset);
        repo.mount();
        let refused = read_all(&repo);
        assert!(!refused.is_empty(), "a flipped bit at {offset} of {} was not noticed", pack.display());
        let damaged = refused.iter().map(|name| frames(&repo, name)).reduce(|a, b| &a & &b).expect("some");
        assert!(!damaged.is_empty(), "one flipped bit took {refused:?}, which have no frame in common");
        let told = format!("{}{}", repo.events(), repo.daemon_log());
        assert!(told.contains(&stem(&pack)[..8]), "nothing names the pack {}: {told}", stem(&pack));
        fs::write(repo.live().join("new"), b"the rest goes on").expect("written");
        repo.sync();
        assert_eq!(fs::read(repo.live().join("new")).expect("read"), b"the rest goes on");
        repo.umount();
        repo.forget_local_state();
        flip(&pack, offset);
    }
    repo.mount();
    assert!(read_all(&repo).is_empty(), "with the bits restored everything must be readable");
}

axiomfs_tests::on_directory_and_bucket! {
    a_missing_pack_gives_eio_for_its_files_only,
}

fn a_missing_pack_gives_eio_for_its_files_only(place: Place) {
    let _slot = beside_others();
    let mut repo = stored(place, "pack-missing");
    let objects = Objects::of(&repo.store);
    let pack = objects.largest("packs");
    let (aside, name) = (objects.read(&pack), pack.rsplit('/').next().expect("a name"));
    objects.remove(&pack);
    repo.mount();
    let refused = read_all(&repo);
    assert!(!refused.is_empty(), "a missing pack was not noticed");
    assert!(refused.iter().all(|n| n.starts_with("big")), "small files lie in other packs: {refused:?}");
    let told = format!("{}{}", repo.events(), repo.daemon_log());
    assert!(told.contains(&name[..8]), "nothing names the pack {name}: {told}");
    let missing = repo.status()["missing_packs"].to_string();
    assert!(missing.contains(name), "the status doesn't name the pack {name}: {missing}");
    let shown = repo.axiomfs(&["status", text(&repo.mnt)]).stdout;
    assert!(shown.contains("Missing") && shown.contains(name), "{shown}");
    objects.write(&pack, &aside);
    assert!(read_all(&repo).is_empty(), "the pack is back, but its files aren't");
    assert_eq!(repo.status()["missing_packs"].as_array().map(Vec::len), Some(0), "it is not missing any more");
}

/// Flips bits all over the objects of one kind: mount or reads must fail with the object's name, or everything is right.
fn damage_everywhere(kind: &str, rounds: u64, must_refuse_mount: bool) {
    let _slot = beside_others();
    let seed = run_seed(kind);
    let mut rng = Rng::new(seed);
    let mut repo = stored(Place::Directory, "damage");
    let mut noticed = 0;
    for round in 0..rounds {
        let all = if kind == "config" { vec![repo.store.join("config")] } else { objects(&repo, kind) };
        let object = if kind == "heads" { all[all.len() - 1].clone() } else { rng.pick(&all).clone() };
        let len = fs::metadata(&object).expect("metadata").len();
        let offset = rng.below(len);
        flip(&object, offset);
        let what = format!("{} damaged at {offset} of {len} (seed {seed}, round {round})", object.display());
        let name = stem(&object);
        let short = &name[..name.len().min(8)];
        // The state of the round before is gone.
        match repo.try_mount(&["--takeover"]) {
            Err(said) => {
                noticed += 1;
                let family = kind.trim_end_matches('s');
                assert!(
                    said.contains(short) || said.to_lowercase().contains(family),
                    "{what}: the message names no {kind}: {said}"
                );
                assert!(!said.contains("panicked"), "{what}: {said}");
            }
            Ok(()) => {
                assert!(!must_refuse_mount, "{what}: was mounted");
                let listed = fs::read_dir(repo.live()).and_then(|d| d.collect::<Result<Vec<_>, _>>());
                let refused = read_all(&repo);
                if !refused.is_empty() || listed.is_err() {
                    noticed += 1;
                    let told = format!("{}{}", repo.events(), repo.daemon_log());
                    assert!(told.contains(short), "{what}: nothing names it: {told}");
                }
                repo.kill9();
            }
        }
        repo.kill9();
        repo.forget_local_state();
        flip(&object, offset);
    }
    eprintln!("{kind}: {noticed} of {rounds} flipped bits made an error, the others changed nothing that was read");
    assert!(noticed > 0, "no flipped bit in {kind} was noticed");
    repo.try_mount(&["--takeover"]).unwrap_or_else(|e| panic!("{e}"));
    assert!(read_all(&repo).is_empty(), "with the bits restored everything must be readable");
}

#[test]
fn a_flipped_bit_in_an_index_segment_is_never_taken_for_data() {
    damage_everywhere("index", 6, false);
}

#[test]
fn a_flipped_bit_in_any_pack_is_never_taken_for_data() {
    damage_everywhere("packs", 8, false);
}

#[test]
fn a_flipped_bit_in_the_newest_head_refuses_the_mount() {
    damage_everywhere("heads", 4, true);
}

#[test]
fn a_flipped_bit_in_a_key_slot_refuses_the_mount() {
    damage_everywhere("keys", 6, true);
}

#[test]
fn a_flipped_bit_in_the_keyring_refuses_the_mount() {
    damage_everywhere("keyring", 4, true);
}

#[test]
fn a_flipped_bit_in_the_config_refuses_the_mount() {
    damage_everywhere("config", 6, true);
}

/// A deleted or half-written manifest, or garbage in the cache, never loses what is in the store.
#[test]
fn a_damaged_cache_is_only_a_cache() {
    let _slot = beside_others();
    let mut repo = stored(Place::Directory, "cache-damage");
    repo.mount();
    assert!(read_all(&repo).is_empty());
    repo.umount();
    let mut rng = Rng::new(1);
    for path in walk(&repo.cache) {
        let len = fs::metadata(&path).map_or(0, |m| m.len());
        if len > 0 {
            flip(&path, rng.below(len));
        }
    }
    repo.mount();
    assert!(read_all(&repo).is_empty(), "damage in the cache reached a reader");
}

#[test]
fn what_is_appended_to_a_file_with_a_missing_pack_keeps_nothing_from_the_store() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("append-missing");
    repo.mount();
    fs::write(repo.live().join("log"), noise(1, 100_000)).expect("written");
    fs::write(repo.live().join("short"), noise(2, 20_000)).expect("written");
    repo.umount();
    repo.forget_local_state();
    let objects = Objects::of(&repo.store);
    // The data's; what the tree needs is in the other.
    let pack = objects.largest("packs");
    let aside = objects.read(&pack);
    objects.remove(&pack);
    repo.mount();
    let mut log = OpenOptions::new().append(true).open(repo.live().join("log")).expect("opened");
    std::io::Write::write_all(&mut log, b"one more line").expect("appended");
    drop(log);
    // Short enough for the tree, with a piece that can't be read.
    let short = OpenOptions::new().write(true).open(repo.live().join("short")).expect("opened");
    short.set_len(300).expect("cut");
    short.write_all_at(b"new", 100).expect("written");
    drop(short);
    fs::write(repo.live().join("other"), b"another file").expect("written");
    repo.sync();
    objects.write(&pack, &aside);
    repo.remount_from_the_store_alone();
    assert_eq!(fs::read(repo.live().join("other")).expect("read"), b"another file");
    let have = fs::read(repo.live().join("log")).expect("the pack is back");
    assert!(have == [&noise(1, 100_000)[..], b"one more line"].concat(), "the log has other bytes");
    let mut want = noise(2, 20_000)[..300].to_vec();
    want[100..103].copy_from_slice(b"new");
    assert!(fs::read(repo.live().join("short")).expect("the pack is back") == want, "the short file has other bytes");
}

#[test]
fn a_file_whose_part_of_the_tree_is_damaged_can_be_removed() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("remove-damaged");
    repo.mount();
    // Little data in many pieces: what is stored of it is its part of the tree, in several frames.
    let file = fs::File::create(repo.live().join("large")).expect("made");
    for piece in 0..20_000 {
        file.write_all_at(b"the same piece", piece << 16).expect("written");
    }
    drop(file);
    repo.umount();
    repo.forget_local_state();
    let (mut removed, mut damaged) = (false, false);
    let tree = PathBuf::from(Objects::of(&repo.store).largest("packs"));
    let tree = repo.store.join(tree);
    let whole = fs::read(&tree).expect("read");
    for part in 1..20 {
        let mut bytes = whole.clone();
        let at = whole.len() * part / 20;
        bytes[at] ^= 0x10;
        fs::write(&tree, &bytes).expect("damaged");
        // The state of the round before is gone. Where the tree can't be opened at all, another part is damaged.
        if repo.try_mount(&["--takeover"]).is_err() {
            continue;
        }
        damaged = fs::read(repo.live().join("large")).is_err();
        removed = damaged && fs::remove_file(repo.live().join("large")).is_ok();
        if removed {
            break;
        }
        repo.kill9();
        repo.clear_dead_mount();
        repo.forget_local_state();
    }
    assert!(damaged && removed, "no damage of {} left the file to be removed", tree.display());
    fs::write(repo.live().join("new"), b"the rest goes on").expect("written");
    repo.sync();
    repo.remount_from_the_store_alone();
    assert_eq!(fs::read(repo.live().join("new")).expect("read"), b"the rest goes on");
    assert!(!repo.live().join("large").exists(), "it is back");
}

/// How many names a walk through a directory finds, and of how many the attributes can't be had.
fn listed(dir: &Path) -> Option<(usize, usize)> {
    let (mut all, mut damaged) = (0, 0);
    for entry in fs::read_dir(dir).ok()? {
        // Asked for at once, as `find` does: the kernel goes on to list names with their attributes then.
        damaged += usize::from(entry.ok()?.metadata().is_err());
        all += 1;
    }
    Some((all, damaged))
}

#[test]
fn files_whose_attributes_are_damaged_are_listed_with_all_others() {
    const FILES: usize = 30_000;
    let _slot = beside_others();
    let mut repo = TestRepo::new("list-damaged");
    repo.mount();
    fs::create_dir(repo.live().join("many")).expect("made");
    for number in 0..FILES {
        fs::write(repo.live().join(format!("many/{number}")), b"x").expect("written");
    }
    repo.umount();
    repo.forget_local_state();
    let tree = repo.store.join(Objects::of(&repo.store).largest("packs"));
    let whole = fs::read(&tree).expect("read");
    let mut found = Vec::new();
    for part in 1..20 {
        fs::write(&tree, &whole).expect("whole again");
        flip(&tree, (whole.len() * part / 20) as u64);
        if repo.try_mount(&["--read-only"]).is_err() {
            continue;
        }
        found.push(listed(&repo.live().join("many")));
        repo.umount();
    }
    println!("{found:?}");
    let is_whole = |(all, damaged): (usize, usize)| all == FILES && damaged > 0 && damaged < FILES / 2;
    assert!(found.into_iter().flatten().any(is_whole), "wherever it is damaged the directory can't be listed");
}

#[test]
fn snapshots_beside_one_that_cannot_be_read_are_listed_and_read() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("list-snapshots");
    repo.settings(STILL).mount();
    let objects = Objects::of(&repo.store);
    let packs = || -> BTreeSet<String> { objects.list("packs").into_iter().map(|(name, _)| name).collect() };
    let mut of_b = BTreeSet::new();
    for name in ["a", "b", "c"] {
        let before = packs();
        for i in 0..50 {
            fs::write(repo.live().join(format!("{name}-{i}")), name).expect("written");
        }
        fs::create_dir(repo.mnt.join("snapshots").join(name)).expect("taken");
        repo.sync();
        if name == "b" {
            of_b = packs().difference(&before).cloned().collect();
        }
    }
    // Later trees share nothing with this one: every node is another.
    repo.umount();
    repo.forget_local_state();
    of_b.iter().for_each(|pack| objects.remove(pack));
    repo.mount();
    let list = |long: bool| {
        let what = repo.mnt.join("snapshots");
        let done = run(Command::new("ls").args(if long { &["-l"][..] } else { &[] }).arg(&what), LIMIT);
        ["a", "b", "c"].iter().filter(|name| done.stdout.lines().any(|line| line.ends_with(**name))).count()
    };
    assert_eq!((list(false), list(true)), (3, 3));
    assert_eq!(fs::read(repo.mnt.join("snapshots/c/c-0")).expect("read"), b"c");
    assert!(fs::read(repo.mnt.join("snapshots/b/b-0")).is_err(), "what is tested is not damaged");
    repo.umount();
}

/// Into a directory with another seal bytes are copied, not chunks: some may be there and some not.
#[test]
fn a_copy_by_ranges_that_meets_a_missing_pack_says_how_far_it_came() {
    let _slot = beside_others();
    let mut repo = TestRepo::new("copy-missing");
    let open = "chains:\n  default: [{plugin: zstd}, {plugin: aes-256-gcm}]\n  open: [{plugin: lz4}]\n";
    repo.settings(&format!("{open}routes: [{{under: /pub, chain: open, allow_unencrypted: true}}]\n{STILL}")).mount();
    let objects = Objects::of(&repo.store);
    let source = repo.live().join("source");
    fs::write(&source, noise(1, 2 * MIB)).expect("written");
    fs::create_dir(repo.live().join("pub")).expect("made");
    repo.sync();
    let first: BTreeSet<String> = objects.list("packs").into_iter().map(|(name, _)| name).collect();
    let mut end = OpenOptions::new().append(true).open(&source).expect("opened");
    std::io::Write::write_all(&mut end, &noise(2, 2 * MIB)).expect("appended");
    drop(end);
    repo.sync();
    let second = objects.list("packs").into_iter().filter(|(name, _)| !first.contains(name));
    let pack = second.max_by_key(|(_, len)| *len).expect("a pack of its own").0;
    repo.umount();
    repo.forget_local_state();
    objects.remove(&pack);
    repo.mount();

    let from = fs::File::open(&source).expect("opened");
    let target = repo.live().join("pub/target");
    let to = fs::File::create(&target).expect("created");
    let copy = |at: u64| {
        let (mut begin, mut into) = (at, at);
        rustix::fs::copy_file_range(&from, Some(&mut begin), &to, Some(&mut into), 4 * MIB - at as usize)
    };
    let done = copy(0).expect("the first half is there");
    assert!((MIB..=2 * MIB).contains(&done), "{done} bytes were copied");
    assert_eq!(fs::metadata(&target).expect("there").len(), done as u64, "the kernel was told of another length");
    assert!(fs::read(&target).expect("read") == noise(1, 2 * MIB)[..done], "other bytes were copied");
    let (mut at, mut ended) = (done as u64, None);
    while ended.is_none() {
        match copy(at) {
            Ok(0) => panic!("the end of the file came at {at}"),
            Ok(more) => at += more as u64,
            Err(e) => ended = Some(e),
        }
        assert!(at <= 2 * MIB as u64 + (256 << 10), "it got {at} bytes, of which some aren't there");
    }
    assert_eq!(ended, Some(rustix::io::Errno::IO));
}
