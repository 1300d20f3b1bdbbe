//! The rules of the disk, each as a test: what must survive a cut, what must not, and what may.

use super::blocks::SECTOR;
use super::{Attributes, Change, Disk, Ino, Kind, Loss, ROOT, Switch};
use crate::rng::{Rng, noise};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const PLAIN: Attributes = Attributes { perm: 0o644, uid: 0, gid: 0 };
const SEEDS: u64 = 60;

fn file(disk: &mut Disk, parent: Ino, name: &str, data: &[u8]) -> Ino {
    let ino = disk.make(parent, name.as_bytes(), Kind::File, PLAIN).expect("The name is free");
    write(disk, ino, 0, data);
    ino
}

fn directory(disk: &mut Disk, parent: Ino, name: &str) -> Ino {
    disk.make(parent, name.as_bytes(), Kind::Directory, PLAIN).expect("The name is free")
}

fn write(disk: &mut Disk, ino: Ino, offset: u64, data: &[u8]) {
    disk.change(ino, Change::Write { offset, data: data.to_vec() }).expect("It is a file");
}

fn content(disk: &Disk, path: &str) -> Option<Vec<u8>> {
    let ino = disk.find(path).ok()?;
    Some(disk.read(ino, 0, u64::MAX).expect("An entry names an inode that exists"))
}

/// Every outcome of a cut that the seeds reach.
fn outcomes(disk: &Disk) -> Vec<(Loss, Disk)> {
    Loss::ALL.into_iter().flat_map(|loss| (0..SEEDS).map(move |seed| (loss, disk.after_cut(seed, loss)))).collect()
}

#[test]
fn a_file_whose_data_and_entry_are_synced_survives_whole() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"kept");
    disk.sync_file(ino).unwrap();
    disk.sync_directory(ROOT).unwrap();
    for (loss, after) in outcomes(&disk) {
        assert_eq!(content(&after, "f").as_deref(), Some(&b"kept"[..]), "{loss:?}");
    }
    assert_eq!(disk.unsynced(), 0);
}

#[test]
fn an_entry_is_lost_without_a_sync_of_its_directory() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"data");
    disk.sync_file(ino).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "f"), None);
    assert_eq!(content(&disk.after_cut(1, Loss::Nothing), "f").unwrap(), b"data");
}

#[test]
fn data_is_lost_without_a_sync_of_the_file() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"data");
    disk.sync_directory(ROOT).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "f").unwrap(), b"");
    disk.sync_file(ino).unwrap();
    disk.change(ino, Change::Truncate { size: 1 }).unwrap();
    disk.change(ino, Change::Allocate { size: 10_000 }).unwrap();
    disk.change(ino, Change::Zero { offset: 0, len: 1 }).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "f").unwrap(), b"data");
    assert_eq!(content(&disk.after_cut(1, Loss::Nothing), "f").unwrap(), vec![0; 10_000]);
}

#[test]
fn what_a_failed_sync_left_is_seen_and_lost_in_any_cut_until_it_is_written_again() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"old");
    disk.sync_file(ino).expect("It exists");
    disk.sync_directory(ROOT).expect("It exists");
    write(&mut disk, ino, 0, b"new");
    disk.fail_sync_of(ino).expect_err("It fails");
    disk.sync_file(ino).expect("There is nothing to do");
    assert_eq!(content(&disk, "f").as_deref(), Some(&b"new"[..]));
    for (loss, cut) in outcomes(&disk) {
        assert_eq!(content(&cut, "f").as_deref(), Some(&b"old"[..]), "{loss:?}");
    }
    write(&mut disk, ino, 0, b"new");
    disk.sync_file(ino).expect("It exists");
    for (loss, cut) in outcomes(&disk) {
        assert_eq!(content(&cut, "f").as_deref(), Some(&b"new"[..]), "{loss:?}");
    }
}

#[test]
fn names_that_a_failed_sync_of_their_directory_left_are_lost_in_any_cut() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"f");
    disk.sync_file(ino).expect("It exists");
    disk.fail_sync_of(ROOT).expect_err("It fails");
    disk.sync_directory(ROOT).expect("There is nothing to do");
    assert!(content(&disk, "f").is_some());
    for (loss, cut) in outcomes(&disk) {
        assert_eq!(content(&cut, "f"), None, "{loss:?}");
    }
}

#[test]
fn what_is_in_a_lost_directory_is_lost() {
    let mut disk = Disk::new();
    let dir = directory(&mut disk, ROOT, "d");
    let ino = file(&mut disk, dir, "f", b"data");
    disk.sync_file(ino).unwrap();
    disk.sync_directory(dir).unwrap();
    assert!(disk.after_cut(1, Loss::Everything).find("d").is_err());
    disk.sync_directory(ROOT).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "d/f").unwrap(), b"data");
}

#[test]
fn an_unsynced_unlink_may_come_back_and_a_synced_one_never() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", b"data");
    disk.sync_file(ino).unwrap();
    disk.sync_directory(ROOT).unwrap();
    disk.remove(ROOT, b"f", false).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "f").unwrap(), b"data");
    assert_eq!(content(&disk.after_cut(1, Loss::Nothing), "f"), None);
    disk.sync_directory(ROOT).unwrap();
    for (loss, after) in outcomes(&disk) {
        assert_eq!(content(&after, "f"), None, "{loss:?}");
    }
}

#[test]
fn a_rename_is_never_half_done() {
    let mut disk = Disk::new();
    let (one, other) = (directory(&mut disk, ROOT, "one"), directory(&mut disk, ROOT, "other"));
    let ino = file(&mut disk, one, "f", b"data");
    disk.sync_file(ino).unwrap();
    for directory in [ROOT, one, other] {
        disk.sync_directory(directory).unwrap();
    }
    disk.rename((one, b"f"), (other, b"g"), false).unwrap();
    disk.rename((other, b"g"), (one, b"h"), false).unwrap();
    let mut places = HashMap::<&str, u32>::new();
    for (loss, after) in outcomes(&disk) {
        let found: Vec<_> = ["one/f", "other/g", "one/h"].into_iter().filter(|path| after.find(path).is_ok()).collect();
        assert_eq!(found.len(), 1, "{loss:?} leaves it at {found:?}");
        *places.entry(found[0]).or_default() += 1;
    }
    assert_eq!(places.len(), 3, "Each of the three places must be a possible outcome: {places:?}");
}

#[test]
fn replacing_by_rename_leaves_the_old_or_the_new_file() {
    let mut disk = Disk::new();
    let old = file(&mut disk, ROOT, "f", b"old");
    disk.sync_file(old).unwrap();
    disk.sync_directory(ROOT).unwrap();
    let new = file(&mut disk, ROOT, "f.tmp", b"new");
    disk.sync_file(new).unwrap();
    disk.rename((ROOT, b"f.tmp"), (ROOT, b"f"), false).unwrap();
    let mut seen = HashMap::<Vec<u8>, u32>::new();
    for (_, after) in outcomes(&disk) {
        *seen.entry(content(&after, "f").expect("One of the two is there")).or_default() += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    disk.sync_directory(ROOT).unwrap();
    for (_, after) in outcomes(&disk) {
        assert_eq!(content(&after, "f").unwrap(), b"new");
        assert!(after.find("f.tmp").is_err());
    }
}

#[test]
fn replacing_by_rename_without_a_sync_of_the_new_file_can_destroy_it() {
    let mut disk = Disk::new();
    let old = file(&mut disk, ROOT, "f", b"old");
    disk.sync_file(old).unwrap();
    disk.sync_directory(ROOT).unwrap();
    file(&mut disk, ROOT, "f.tmp", b"new");
    disk.rename((ROOT, b"f.tmp"), (ROOT, b"f"), false).unwrap();
    disk.sync_directory(ROOT).unwrap();
    assert_eq!(content(&disk.after_cut(1, Loss::Everything), "f").unwrap(), b"");
}

#[test]
fn a_sync_of_one_directory_of_a_rename_settles_what_came_before_it() {
    let mut disk = Disk::new();
    let (one, other) = (directory(&mut disk, ROOT, "one"), directory(&mut disk, ROOT, "other"));
    for directory in [ROOT, one, other] {
        disk.sync_directory(directory).unwrap();
    }
    file(&mut disk, one, "f", b"");
    disk.remove(one, b"f", false).unwrap();
    file(&mut disk, one, "f", b"");
    file(&mut disk, one, "unrelated", b"");
    disk.rename((one, b"f"), (other, b"g"), false).unwrap();
    disk.sync_directory(other).unwrap();
    for (loss, after) in outcomes(&disk) {
        assert!(after.find("other/g").is_ok(), "{loss:?}");
        assert!(after.find("one/f").is_err(), "{loss:?}: an entry came back that a durable rename had emptied");
    }
    assert!(disk.after_cut(1, Loss::Everything).find("one/unrelated").is_err());
}

#[test]
fn a_torn_write_is_made_of_whole_sectors() {
    let sectors = 8;
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", &vec![b'o'; sectors * SECTOR as usize]);
    disk.sync_file(ino).unwrap();
    disk.sync_directory(ROOT).unwrap();
    // Not aligned, so that the first and the last sector are written in part.
    write(&mut disk, ino, 100, &vec![b'n'; (sectors - 1) * SECTOR as usize]);
    let mut mixed = 0;
    for (loss, after) in outcomes(&disk) {
        let found = content(&after, "f").unwrap();
        let mut kinds = Vec::new();
        for (number, sector) in found.chunks(SECTOR as usize).enumerate() {
            let written = if number == 0 {
                &sector[100..]
            } else if number == 7 {
                &sector[..100]
            } else {
                sector
            };
            assert!(written.iter().all(|byte| *byte == written[0]), "{loss:?}: sector {number} is torn");
            kinds.push(written[0]);
        }
        assert_eq!((&found[..100], found.len()), (&[b'o'; 100][..], sectors * SECTOR as usize));
        kinds.dedup();
        let torn = kinds.len() > 1;
        assert!(!torn || matches!(loss, Loss::Torn | Loss::Tail), "{loss:?} must not tear");
        mixed += u32::from(torn);
    }
    assert!(mixed > 10, "Only {mixed} outcomes were torn");
}

#[test]
fn a_subset_reorders_and_a_tail_does_not() {
    let mut disk = Disk::new();
    let ino = file(&mut disk, ROOT, "f", &[0; 1024]);
    disk.sync_file(ino).unwrap();
    disk.sync_directory(ROOT).unwrap();
    write(&mut disk, ino, 0, &[1; 512]);
    write(&mut disk, ino, 512, &[2; 512]);
    let only_later = |loss| {
        (0..SEEDS).any(|seed| {
            let found = content(&disk.after_cut(seed, loss), "f").unwrap();
            found[0] == 0 && found[512] == 2
        })
    };
    assert!(only_later(Loss::Subset));
    assert!(!only_later(Loss::Tail));
}

#[test]
fn the_seed_determines_the_outcome() {
    let mut disk = random_disk(3);
    disk.change(disk.find("d0").unwrap(), Change::Truncate { size: 1 }).expect_err("A directory has no length");
    for loss in Loss::ALL {
        assert_eq!(dump(&disk.after_cut(11, loss)), dump(&disk.clone().after_cut(11, loss)));
    }
    let different =
        (0..SEEDS).map(|seed| dump(&disk.after_cut(seed, Loss::Torn))).collect::<std::collections::HashSet<_>>();
    assert!(different.len() > SEEDS as usize / 2);
}

#[test]
fn every_outcome_is_a_tree() {
    for seed in 0..40 {
        let disk = random_disk(seed);
        for loss in Loss::ALL {
            let after = disk.after_cut(seed, loss);
            let mut parents = HashMap::new();
            for ((parent, name), ino) in &after.entries {
                let inode = after.inode(*ino).expect("An entry names an inode that exists");
                assert_eq!(after.inode(*parent).expect("An entry is in a directory").kind, Kind::Directory);
                if inode.kind == Kind::Directory {
                    assert_eq!(parents.insert(*ino, *parent), None, "{name:?} has two parents");
                }
            }
            assert_eq!(after.unsynced(), 0);
        }
        assert_eq!(dump(&disk.after_cut(seed, Loss::Nothing)), dump(&disk), "Without a loss nothing changes");
    }
}

/// A disk after many random operations, some of them synced.
fn random_disk(seed: u64) -> Disk {
    let mut rng = Rng::new(seed);
    let mut disk = Disk::new();
    let mut directories = vec![ROOT];
    directories.extend((0..3).map(|number| directory(&mut disk, ROOT, &format!("d{number}"))));
    let mut refused = 0;
    for _ in 0..200 {
        let (here, there) = (*rng.pick(&directories), *rng.pick(&directories));
        let (name, other) = (format!("n{}", rng.below(6)), format!("n{}", rng.below(6)));
        let target = disk.lookup(here, name.as_bytes());
        // Refusals (a name that exists, a directory that is not empty) are a part of the mix.
        let tried = match (rng.below(9), target) {
            (0 | 1, _) => disk.make(here, name.as_bytes(), Kind::File, PLAIN).map(|_| ()),
            (2, Ok(ino)) => disk.link(ino, there, other.as_bytes()),
            (3, Ok(_)) => disk.remove(here, name.as_bytes(), false),
            (4, Ok(_)) => disk.rename((here, name.as_bytes()), (there, other.as_bytes()), rng.one_in(5)),
            (5 | 6, Ok(ino)) => {
                let change = Change::Write { offset: rng.below(5_000), data: noise(rng.next(), 700) };
                disk.change(ino, change)
            }
            (7, Ok(ino)) => disk.sync_file(ino),
            (8, _) => disk.sync_directory(here),
            _ => Ok(()),
        };
        refused += u32::from(tried.is_err());
    }
    assert!((1..150).contains(&refused), "{refused} of 200 operations were refused");
    disk
}

fn dump(disk: &Disk) -> Vec<(Ino, Vec<u8>, Vec<u8>)> {
    let read = |ino: &Ino| disk.read(*ino, 0, u64::MAX).expect("An entry names an inode that exists");
    disk.entries.iter().map(|((parent, name), ino)| (*parent, name.clone(), read(ino))).collect()
}

#[test]
fn a_mounted_disk_loses_what_was_not_synced() {
    let place = tempfile::tempdir().unwrap();
    let (from, mountpoint) = (place.path().join("from"), place.path().join("mnt"));
    fs::create_dir_all(from.join("dir")).unwrap();
    fs::create_dir(&mountpoint).unwrap();
    fs::write(from.join("dir/old"), b"was here before").unwrap();
    let switch = Switch::new(Disk::import(&from).unwrap());
    let session = switch.mount(&mountpoint).unwrap();
    let dir = mountpoint.join("dir");
    assert_eq!(fs::read(dir.join("old")).unwrap(), b"was here before");

    let mut kept = File::create(dir.join("kept")).unwrap();
    kept.write_all(&[b'k'; 300_000]).unwrap();
    kept.sync_data().unwrap();
    fs::rename(dir.join("kept"), dir.join("renamed")).unwrap();
    File::open(&dir).unwrap().sync_all().unwrap();
    fs::write(dir.join("lost"), b"lost").unwrap();
    let overwritten = OpenOptions::new().write(true).open(dir.join("old")).unwrap();
    overwritten.write_all_at(b"WAS", 0).unwrap();
    assert_eq!(fs::read(dir.join("old")).unwrap(), b"WAS here before");

    let fault = File::create(dir.join(".fault-some.point")).unwrap_err();
    assert_eq!(fault.raw_os_error(), Some(libc::EIO));
    assert_eq!(switch.wait(Duration::ZERO).as_deref(), Some("some.point"));
    assert_eq!(fs::metadata(dir.join("old")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(overwritten.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));

    let image = place.path().join("image");
    switch.disk().after_cut(5, Loss::Everything).export(ROOT, &image).unwrap();
    assert_eq!(fs::read(image.join("dir/renamed")).unwrap(), [b'k'; 300_000]);
    assert_eq!(fs::read(image.join("dir/old")).unwrap(), b"was here before");
    let mut names: Vec<_> = fs::read_dir(image.join("dir")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["old", "renamed"]);
    drop((kept, overwritten, session));
}

#[test]
fn the_power_fails_at_the_given_operation() {
    let place = tempfile::tempdir().unwrap();
    let switch = Switch::new(Disk::new());
    switch.cut_at(4);
    let session = switch.mount(place.path()).unwrap();
    let file = File::create(place.path().join("f")).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.write_all_at(b"two", 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(switch.cause().as_deref(), Some("operation 4"));
    assert_eq!(switch.operations(), 4);
    // The write was in the cache of the disk: it may survive.
    let disk = switch.disk();
    assert_eq!(content(&disk.after_cut(1, Loss::Nothing), "f").unwrap(), b"two");
    assert!(disk.after_cut(1, Loss::Everything).find("f").is_err());
    drop((file, session));
}
