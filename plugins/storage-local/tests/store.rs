//! The store in a directory against the suite, and what only a directory can show.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use axiomfs_api::{Body, ObjectKey, Store, StoreErrorKind, conformance};
use axiomfs_storage_local::LocalStore;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).expect("a valid name")
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn files_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

#[test]
fn keeps_the_contract() {
    let (dir, scratch) = (temp(), temp());
    let store = LocalStore::create(dir.path().join("made/with/parents")).expect("creates");
    conformance::store(&store, scratch.path());
    assert_eq!(files_below(dir.path()), 0, "nothing is left, in tmp/ neither");
}

/// `/dev/shm` is another filesystem than the temporary directory on any Linux; where it is missing, the same code runs.
#[test]
fn keeps_the_contract_across_filesystems() {
    let dir = temp();
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| temp());
    conformance::store(&LocalStore::create(dir.path()).expect("creates"), scratch.path());
}

#[test]
fn objects_are_files_that_only_the_owner_reads() {
    let dir = temp();
    let root = dir.path().join("store");
    let store = LocalStore::create(&root).expect("creates");
    store.put_new(&key("packs/ab/cd"), Body::Bytes(b"bytes")).expect("creates");
    let source = dir.path().join("source");
    fs::write(&source, b"file").expect("writes");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).expect("sets");
    store.put_new(&key("packs/ab/ef"), Body::File(&source)).expect("creates");
    assert_eq!(fs::read(root.join("packs/ab/cd")).expect("a file of the object's name"), b"bytes");
    for name in ["packs/ab/cd", "packs/ab/ef"] {
        assert_eq!(fs::metadata(root.join(name)).expect("a file").mode() & 0o7777, 0o600, "{name}");
    }
    for name in ["", "packs", "packs/ab", "tmp"] {
        assert_eq!(fs::metadata(root.join(name)).expect("a directory").mode() & 0o7777, 0o700, "{name}");
    }
}

#[test]
fn a_file_on_the_same_filesystem_is_not_copied() {
    let dir = temp();
    let store = LocalStore::create(dir.path().join("store")).expect("creates");
    let source = dir.path().join("source");
    fs::write(&source, b"file").expect("writes");
    let inode = fs::metadata(&source).expect("a file").ino();
    store.put_new(&key("packs/x"), Body::File(&source)).expect("creates");
    store.put(&key("packs/y"), Body::File(&source)).expect("creates");
    store.put(&key("packs/y"), Body::File(&source)).expect("replaces it by itself");
    for name in ["packs/x", "packs/y"] {
        assert_eq!(fs::metadata(store.root().join(name)).expect("an object").ino(), inode, "{name}");
    }
    assert_eq!(files_below(&store.root().join("tmp")), 0);
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    store.put_new(&key("packs/a"), Body::Bytes(b"1")).expect("creates");
    for name in ["README.TXT", "packs/With Space", "tmp/left", "packs/\u{fc}"] {
        fs::write(dir.path().join(name), b"foreign").expect("writes");
    }
    std::os::unix::fs::symlink("a", dir.path().join("packs/link")).expect("links");
    fs::create_dir(dir.path().join("lost+found")).expect("makes");
    let names: Vec<_> = store.list("", None, 100).expect("lists").into_iter().map(|m| m.key.to_string()).collect();
    assert_eq!(names, ["packs/a"]);
    for prefix in ["../", "/", "tmp/", "tmp", "packs//", "./packs", "PACKS/"] {
        assert_eq!(store.list(prefix, None, 100).expect("lists"), [], "prefix {prefix:?}");
    }
    let error = store.put_new(&key("tmp/left"), Body::Bytes(b"x")).expect_err("reserved");
    assert_eq!(error.kind, StoreErrorKind::Invalid);
    assert_eq!(fs::read(dir.path().join("tmp/left")).expect("still there"), b"foreign");
}

#[test]
fn a_removed_directory_is_made_again() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    store.put_new(&key("a/b/c"), Body::Bytes(b"1")).expect("creates");
    fs::remove_dir_all(dir.path().join("a")).expect("removes");
    store.put_new(&key("a/b/c"), Body::Bytes(b"2")).expect("creates again");
    fs::remove_dir_all(dir.path().join("tmp")).expect("removes");
    store.put(&key("a/b/c"), Body::Bytes(b"3")).expect("replaces");
    assert_eq!(store.get(&key("a/b/c"), 1).expect("gets"), b"3");
}

/// Files stay open between ranges: what is read must be what has the name all the same.
#[test]
fn a_range_is_of_the_object_that_has_the_name_now() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    let (a, path) = (key("packs/a"), dir.path().join("packs/a"));
    store.put_new(&a, Body::Bytes(b"first")).expect("creates");
    assert_eq!(store.get_range(&a, 0, 5).expect("reads"), b"first");
    store.put(&a, Body::Bytes(b"other")).expect("replaces");
    assert_eq!(store.get_range(&a, 0, 5).expect("reads"), b"other");
    fs::write(&path, b"cut").expect("cuts it short in place");
    assert_eq!(store.get_range(&a, 0, 5).expect_err("it is too short now").kind, StoreErrorKind::Corrupt);
    fs::remove_file(&path).expect("removes it behind the store's back");
    assert_eq!(store.get_range(&a, 0, 3).expect_err("it is gone").kind, StoreErrorKind::NotFound);
    fs::create_dir(&path).expect("puts a directory in its place");
    assert_eq!(store.get_range(&a, 0, 3).expect_err("it is no object").kind, StoreErrorKind::NotFound);
}

#[test]
fn only_so_many_files_stay_open() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    let root = dir.path().canonicalize().expect("a path without links");
    let open = || {
        let links = fs::read_dir("/proc/self/fd").expect("lists").filter_map(|e| fs::read_link(e.ok()?.path()).ok());
        links.filter(|target| target.starts_with(&root)).count()
    };
    for number in 0..100 {
        let key = key(&format!("packs/{number}"));
        store.put_new(&key, Body::Bytes(format!("object {number:3}").as_bytes())).expect("creates");
        for _ in 0..2 {
            assert_eq!(store.get_range(&key, 7, 3).expect("reads"), format!("{number:3}").as_bytes());
        }
    }
    let kept = open();
    assert!((1..=16).contains(&kept), "{kept} files are open");
    for number in 0..100 {
        let bytes = store.get_range(&key(&format!("packs/{number}")), 7, 3).expect("reads again");
        assert_eq!(bytes, format!("{number:3}").as_bytes());
    }
}

#[test]
fn a_store_whose_disk_is_gone_is_not_an_empty_store() {
    let dir = temp();
    let root = dir.path().join("store");
    let store = LocalStore::create(&root).expect("creates");
    store.put_new(&key("a/b"), Body::Bytes(b"1")).expect("creates");
    for replaced in [false, true] {
        if replaced {
            fs::create_dir(&root).expect("an empty mount point");
        } else {
            fs::rename(&root, dir.path().join("away")).expect("moves it away");
        }
        let errors = [
            store.get(&key("a/b"), 1).map(drop).expect_err("get"),
            store.get_range(&key("a/b"), 0, 1).map(drop).expect_err("range"),
            store.stat(&key("a/b")).map(drop).expect_err("stat"),
            store.put_new(&key("a/c"), Body::Bytes(b"2")).expect_err("put_new"),
            store.put(&key("a/c"), Body::Bytes(b"2")).expect_err("put"),
            store.delete(&key("a/b")).expect_err("delete"),
            store.list("", None, 9).map(drop).expect_err("list"),
        ];
        for error in errors {
            assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error:?}");
            assert!(error.source.as_ref().is_some_and(|s| s.to_string().contains("mounted")), "{error:?}");
        }
    }
    assert_eq!(fs::read_dir(&root).expect("the mount point").count(), 0, "nothing was written there");
    fs::remove_dir(&root).expect("removes");
    fs::rename(dir.path().join("away"), &root).expect("moves it back");
    assert_eq!(store.get(&key("a/b"), 1).expect("gets"), b"1");
}

#[test]
fn a_symbolic_link_is_put_as_its_file() {
    let dir = temp();
    let store = LocalStore::create(dir.path().join("store")).expect("creates");
    fs::write(dir.path().join("file"), b"bytes").expect("writes");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("file", &link).expect("links");
    store.put_new(&key("a"), Body::File(&link)).expect("creates");
    store.put(&key("b"), Body::File(&link)).expect("creates");
    fs::remove_file(&link).expect("removes");
    let names: Vec<_> =
        store.list("", None, 9).expect("lists").into_iter().map(|m| (m.key.to_string(), m.len)).collect();
    assert_eq!(names, [("a".to_owned(), 5), ("b".to_owned(), 5)]);
}

#[test]
fn opening_and_creating_say_what_is_wrong() {
    let dir = temp();
    let missing = LocalStore::open(dir.path().join("none")).expect_err("missing");
    assert_eq!(missing.kind, StoreErrorKind::NotFound);
    assert!(missing.object.ends_with("/none"), "{missing}");
    fs::write(dir.path().join("file"), b"x").expect("writes");
    assert_eq!(LocalStore::open(dir.path().join("file")).expect_err("a file").kind, StoreErrorKind::Invalid);
    let used = LocalStore::create(dir.path()).expect_err("in use");
    assert_eq!(used.kind, StoreErrorKind::AlreadyExists);
    assert!(used.source.as_ref().is_some_and(|s| s.to_string().contains("\"file\"")), "{used:?}");
    LocalStore::create(dir.path().join("new")).expect("creates");
    LocalStore::create(dir.path().join("new")).expect("an empty one can be created again");
}

#[test]
fn old_temporary_files_go_with_the_first_put_new_ones_and_those_of_others_stay() {
    let dir = temp();
    LocalStore::create(dir.path()).expect("creates");
    let tmp = dir.path().join("tmp");
    fs::create_dir(&tmp).expect("makes");
    let old = |path: &Path, hours: u64| {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        fs::File::create(path).and_then(|file| file.set_modified(then)).expect("creates");
    };
    for (name, hours) in [("4d2-18a-0", 48), ("4d2-18a-1", 1), ("thesis.tex", 48), ("a-b", 48), ("4d2-18a-0-bak", 48)] {
        old(&tmp.join(name), hours);
    }
    let store = LocalStore::open(dir.path()).expect("opens");
    store.get(&key("a"), 10).expect_err("nothing is there");
    assert!(tmp.join("4d2-18a-0").exists(), "who only reads may be in a directory that is no store");
    store.put(&key("a"), Body::Bytes(b"1")).expect("puts");
    assert!(!tmp.join("4d2-18a-0").exists());
    assert!(tmp.join("4d2-18a-1").exists(), "another machine may be writing it");
    for name in ["thesis.tex", "a-b", "4d2-18a-0-bak"] {
        assert!(tmp.join(name).exists(), "{name} is somebody's");
    }

    let linked = temp();
    old(&dir.path().join("5d2-18a-0"), 48);
    LocalStore::create(linked.path()).expect("creates");
    std::os::unix::fs::symlink(dir.path(), linked.path().join("tmp")).expect("links");
    let store = LocalStore::open(linked.path()).expect("opens");
    store.put(&key("b"), Body::Bytes(b"1")).unwrap_or_default();
    assert!(dir.path().join("5d2-18a-0").exists(), "it was followed");
}

#[test]
fn a_pipe_under_an_object_s_name_is_not_waited_for() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    let pipe = dir.path().join("a");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).expect("makes");
    assert_eq!(store.get(&key("a"), 10).expect_err("a pipe").kind, StoreErrorKind::NotFound);
    assert_eq!(store.get_range(&key("a"), 0, 1).expect_err("a pipe").kind, StoreErrorKind::NotFound);
}

#[test]
fn the_system_s_refusals_have_their_kind() {
    let dir = temp();
    let store = LocalStore::create(dir.path()).expect("creates");
    store.put_new(&key("a"), Body::Bytes(b"1")).expect("creates");
    let error = store.put_new(&key("a/b"), Body::Bytes(b"1")).expect_err("a is an object");
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error:?}");
    let error = store.put(&key("a/b"), Body::Bytes(b"1")).expect_err("a is an object");
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error:?}");
    // Every write to this device is answered with ENOSPC.
    if Path::new("/dev/full").exists() {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .and_then(|mut f| std::io::Write::write_all(&mut f, b"x"));
        assert_eq!(full.expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    }
    let (free, total) = store.space().expect("statvfs works").expect("a directory knows its space");
    assert!(0 < total && free <= total);
}
