use std::path::{Path, PathBuf};
use std::sync::Barrier;

use super::Noise;
use crate::{Body, ObjectKey, Store, StoreError, StoreErrorKind};

/// Most bytes any object of the suite has.
const MAX: u64 = 8 << 20;

/// What every [`Store`] must hold: exact bytes, exact errors, create-only puts, ordered listings.
///
/// `store` is empty and is left empty; `scratch` is an empty directory for files to put.
///
/// # Panics
/// If `store` breaks its contract.
pub fn store(store: &dyn Store, scratch: &Path) {
    assert!(!store.location().is_empty(), "a store says where it is");
    assert_eq!(names(store, "", None, 10), Vec::<String>::new(), "the suite starts with an empty store");
    what_is_missing(store);
    bytes_come_back(store);
    create_only(store);
    replacing(store);
    files(store, scratch);
    ranges(store);
    listing(store);
    races(store);
    for meta in store.list("", None, usize::MAX).expect("lists") {
        store.delete(&meta.key).expect("deletes");
    }
    assert_eq!(names(store, "", None, 10), Vec::<String>::new(), "what was deleted is gone");
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).expect("a valid name")
}

fn names(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let list = store.list(prefix, after, limit).expect("lists");
    list.into_iter().map(|meta| meta.key.as_str().to_owned()).collect()
}

#[track_caller]
fn fails<T>(result: Result<T, StoreError>, kind: StoreErrorKind, what: &str) {
    match result {
        Ok(_) => panic!("{what}: must fail with {kind:?}"),
        Err(error) => {
            assert_eq!(error.kind, kind, "{what}: {error}");
            assert!(!error.object.is_empty() && !error.operation.is_empty(), "{what}: the error names what failed");
        }
    }
}

fn what_is_missing(store: &dyn Store) {
    for name in ["none", "none/deeper/still"] {
        fails(store.get(&key(name), MAX), StoreErrorKind::NotFound, "get of a missing object");
        fails(store.get_range(&key(name), 0, 1), StoreErrorKind::NotFound, "range of a missing object");
        fails(store.stat(&key(name)), StoreErrorKind::NotFound, "stat of a missing object");
        store.delete(&key(name)).expect("deleting a missing object succeeds");
        assert_eq!(names(store, name, None, 10), Vec::<String>::new(), "a prefix without objects is an empty list");
    }
}

fn bytes_come_back(store: &dyn Store) {
    let mut noise = Noise::new(5);
    for (i, len) in [0, 1, 4095, 4096, 65_537, 3 << 20].into_iter().enumerate() {
        let (name, data) = (key(&format!("bytes/{i:02}/o-{i}.x_y")), noise.bytes(len));
        store.put_new(&name, Body::Bytes(&data)).expect("creates");
        assert!(store.get(&name, MAX).expect("gets") == data, "an object of {len} bytes comes back");
        assert!(store.get(&name, len as u64).expect("gets") == data, "the bound itself is allowed");
        assert_eq!(store.stat(&name).expect("stats").len, len as u64);
        if len > 0 {
            fails(store.get(&name, len as u64 - 1), StoreErrorKind::Corrupt, "get of more than the bound");
        }
        store.delete(&name).expect("deletes");
        fails(store.get(&name, MAX), StoreErrorKind::NotFound, "get after delete");
        store.put_new(&name, Body::Bytes(b"again")).expect("a deleted name can be created again");
        store.delete(&name).expect("deletes");
    }
    fails(store.get(&key("bytes"), MAX), StoreErrorKind::NotFound, "get of a segment that is no object");
    fails(store.stat(&key("bytes/00")), StoreErrorKind::NotFound, "stat of a segment that is no object");
}

fn create_only(store: &dyn Store) {
    let name = key("heads/v/0000000000000001");
    store.put_new(&name, Body::Bytes(b"first")).expect("creates");
    fails(store.put_new(&name, Body::Bytes(b"second")), StoreErrorKind::AlreadyExists, "creating what exists");
    assert_eq!(store.get(&name, MAX).expect("gets"), b"first", "a refused put changes nothing");
    assert_eq!(names(store, "heads/", None, 10), [name.as_str()], "a refused put leaves nothing behind");
    store.make_durable(&name).expect("what can be read can be made durable");
    store.delete(&name).expect("deletes");
}

fn replacing(store: &dyn Store) {
    let name = key("lease/v");
    store.put(&name, Body::Bytes(b"one, which is longer")).expect("creates");
    store.put(&name, Body::Bytes(b"two")).expect("replaces");
    assert_eq!(store.get(&name, MAX).expect("gets"), b"two", "the last put wins, whole");
    assert_eq!(names(store, "lease", None, 10), [name.as_str()]);
    store.delete(&name).expect("deletes");
}

fn file(scratch: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = scratch.join(name);
    std::fs::write(&path, data).expect("writes a file");
    std::fs::File::open(&path).and_then(|f| f.sync_all()).expect("syncs a file");
    path
}

fn files(store: &dyn Store, scratch: &Path) {
    let data = Noise::new(6).bytes(1_234_567);
    let name = key("packs/ab/abcdef");
    let path = file(scratch, "pack", &data);
    store.put_new(&name, Body::File(&path)).expect("creates from a file");
    assert!(store.get(&name, MAX).expect("gets") == data, "a file's bytes come back");
    if path.exists() {
        std::fs::remove_file(&path).expect("removes the file");
    }
    assert!(store.get(&name, MAX).expect("gets") == data, "the object does not need the file");
    let path = file(scratch, "other", b"other");
    fails(store.put_new(&name, Body::File(&path)), StoreErrorKind::AlreadyExists, "creating what exists");
    assert_eq!(std::fs::read(&path).expect("a refused put leaves the file"), b"other");
    assert!(store.get(&name, MAX).expect("gets") == data, "a refused put changes nothing");
    store.put(&name, Body::File(&path)).expect("replaces from a file");
    assert_eq!(store.get(&name, MAX).expect("gets"), b"other");
    assert!(store.put_new(&key("packs/none"), Body::File(&scratch.join("none"))).is_err(), "a missing file fails");
    assert_eq!(names(store, "packs", None, 10), [name.as_str()], "a failed put leaves nothing behind");
    store.delete(&name).expect("deletes");
}

fn ranges(store: &dyn Store) {
    let data = Noise::new(7).bytes(100_000);
    let name = key("ranged");
    store.put_new(&name, Body::Bytes(&data)).expect("creates");
    for (offset, len) in [(0, 1), (0, 100_000), (99_999, 1), (4096, 65_536), (1, 99_998), (500, 0), (100_000, 0)] {
        let got = store.get_range(&name, offset, len).expect("a range inside the object");
        assert!(got == data[offset as usize..(offset + len) as usize], "range {offset}+{len}");
    }
    for (offset, len) in [(0, 100_001), (99_999, 2), (100_000, 1), (u64::MAX, 1), (1, u64::MAX), (1 << 40, 1 << 40)] {
        fails(store.get_range(&name, offset, len), StoreErrorKind::Corrupt, "a range beyond the end");
    }
    store.delete(&name).expect("deletes");
}

fn listing(store: &dyn Store) {
    // `-` and `.` sort before `/`, digits and letters after: a walk of directories alone gets this wrong.
    let mut all = ["a-b", "a-b.c", "a.b", "a/b", "a/b-c/d", "a/bb", "a0", "b/c/d/e", "b/c.d", "z"];
    all.sort_unstable();
    for name in all.iter().rev() {
        store.put_new(&key(name), Body::Bytes(name.as_bytes())).expect("creates");
    }
    for meta in store.list("", None, 100).expect("lists") {
        assert_eq!(meta.len, meta.key.as_str().len() as u64, "a listing tells lengths");
    }
    let mut points: Vec<String> = all.iter().map(|s| (*s).to_owned()).collect();
    points.extend(["", "a", "a-", "a/", "a/b-", "b/c", "b/c/", "b/c/d/", "b/d", "c", "zz", "A", "~"].map(String::from));
    for prefix in &points {
        for after in std::iter::once(None).chain(points.iter().map(|p| Some(p.as_str()))) {
            for limit in [0, 1, 3, 100] {
                let want: Vec<&str> = all
                    .iter()
                    .copied()
                    .filter(|n| n.starts_with(prefix.as_str()) && after.is_none_or(|a| *n > a))
                    .take(limit)
                    .collect();
                assert_eq!(names(store, prefix, after, limit), want, "list({prefix:?}, {after:?}, {limit})");
            }
        }
    }
    for name in all {
        store.delete(&key(name)).expect("deletes");
    }
}

/// Of racing creators exactly one wins, and what is there afterwards is the winner's, whole.
fn races(store: &dyn Store) {
    const RACERS: usize = 8;
    for round in 0..10 {
        let name = key(&format!("race/{round}/head"));
        let barrier = Barrier::new(RACERS);
        let won: Vec<usize> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|i| {
                    let (name, barrier) = (&name, &barrier);
                    scope.spawn(move || {
                        let data = vec![i as u8; 10_000];
                        barrier.wait();
                        match store.put_new(name, Body::Bytes(&data)) {
                            Ok(()) => Some(i),
                            Err(error) => {
                                assert_eq!(error.kind, StoreErrorKind::AlreadyExists, "a loser is told so: {error}");
                                let seen = store.get(name, MAX).expect("a loser sees the winner's object");
                                assert_eq!(seen.len(), 10_000, "a loser sees it whole");
                                None
                            }
                        }
                    })
                })
                .collect();
            racers.into_iter().filter_map(|r| r.join().expect("no racer panics")).collect()
        });
        assert_eq!(won.len(), 1, "exactly one creator wins, not {won:?}");
        assert!(store.get(&name, MAX).expect("gets") == vec![won[0] as u8; 10_000], "the winner's bytes are there");
        store.delete(&name).expect("deletes");
    }
}
