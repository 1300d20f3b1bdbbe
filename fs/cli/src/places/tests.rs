use std::os::unix::fs::symlink;

use super::*;

fn surroundings() -> Surroundings {
    Surroundings { home: Some("/home/u".into()), state_home: None, cache_home: Some("/x/cache".into()) }
}

fn choose(state: Option<&str>, cache: Option<&str>) -> Places {
    Places::choose(state.map(Path::new), cache.map(Path::new), "abc-main", &surroundings()).unwrap()
}

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("axiomfs-cli-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn directories_have_defaults() {
    let both = choose(None, None);
    assert_eq!(both.state, Path::new("/home/u/.local/state/axiomfs/abc-main"));
    assert_eq!(both.cache, Path::new("/x/cache/axiomfs/abc-main"));
    let cache_alone = choose(None, Some("/fast"));
    assert_eq!((cache_alone.state, cache_alone.cache), ("/fast/state".into(), "/fast".into()));
    let state_alone = choose(Some("/s"), None);
    assert_eq!((state_alone.state, state_alone.cache), ("/s".into(), "/x/cache/axiomfs/abc-main".into()));
    let failure = Places::choose(None, None, "v", &Surroundings::default()).unwrap_err();
    assert_eq!((failure.code(), failure.to_string().contains("--state DIR")), (2, true));
}

#[test]
fn overlapping_directories_are_refused_either_way() {
    let places = Places { state: "/a/state".into(), cache: "/a/cache".into() };
    let check = |store: &str, mountpoint: &str| places.check_apart(Some(Path::new(store)), Some(Path::new(mountpoint)));
    assert_eq!(check("/store", "/mnt"), Ok(()));
    // A common beginning of two names is no nesting.
    assert_eq!(check("/a/state2", "/a/cache.d"), Ok(()));
    for (store, mountpoint, part) in [
        ("/a/state", "/mnt", "is also the store"),
        ("/a", "/mnt", "lies inside the store"),
        ("/a/cache/x", "/mnt", "contains the store"),
        ("/store", "/a/cache/x", "contains the mount point"),
        ("/store", "/a", "lies inside the mount point"),
        ("/store", "/store/x", "contains the mount point"),
        ("/mnt/x", "/mnt", "lies inside the mount point"),
    ] {
        let message = check(store, mountpoint).unwrap_err().to_string();
        assert!(message.contains(part), "{store} {mountpoint}: {message}");
    }
}

#[test]
fn paths_are_settled_through_links_and_missing_ends() {
    let scratch = Scratch::new("settle");
    fs::create_dir(scratch.0.join("real")).unwrap();
    symlink("real", scratch.0.join("link")).unwrap();
    assert_eq!(settle(&scratch.0.join("link/a/b")).unwrap(), scratch.0.join("real/a/b"));
}

#[test]
fn a_lock_closes_the_directory_and_names_its_holder() {
    let scratch = Scratch::new("lock");
    let directory = scratch.0.join("deep/state");
    let holder = Holder { pid: 77, host: "h".into(), since: "noon".into(), purpose: "mount of /s on /m".into() };
    let lock = DirectoryLock::take(&directory, "state directory", &holder).unwrap();
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
    let message = DirectoryLock::take(&directory, "state directory", &holder).unwrap_err().to_string();
    assert!(message.contains("process 77 on h since noon (mount of /s on /m)"), "{message}");
    drop(lock);
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    DirectoryLock::take(&directory, "state directory", &holder).unwrap();
    assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_mountpoint_must_be_an_empty_directory() {
    let scratch = Scratch::new("mountpoint");
    let message = |name: &str| check_mountpoint(&scratch.0.join(name)).unwrap_err().to_string();
    assert!(message("missing").contains("does not exist; run: mkdir"));
    fs::write(scratch.0.join("file"), "x").unwrap();
    assert!(message("file").contains("is not a directory"));
    fs::create_dir_all(scratch.0.join("full/x")).unwrap();
    assert!(message("full").contains("is not empty"));
    fs::create_dir_all(scratch.0.join("mounted/.axiomfs")).unwrap();
    fs::write(scratch.0.join("mounted/.axiomfs/status"), "{}").unwrap();
    assert!(message("mounted").contains("is mounted on"));
    fs::create_dir(scratch.0.join("empty")).unwrap();
    assert_eq!(check_mountpoint(&scratch.0.join("empty")), Ok(scratch.0.join("empty")));
}
