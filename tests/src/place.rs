//! The same test on a directory and on a bucket: where its repository is, and what lies there, behind everybody's back.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::repo::{TestRepo, text};
use crate::s3::S3Server;
use crate::source::walk;

/// Where a test has its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a directory.
    Directory,
    /// On the S3 server.
    Bucket,
}

impl Place {
    /// An initialised repository there, not mounted. No other test of the same binary may use that name.
    pub fn repo(self, name: &str) -> TestRepo {
        match self {
            Place::Directory => TestRepo::new(name),
            Place::Bucket => TestRepo::in_bucket(name, &S3Server::shared().url(name)),
        }
    }

    /// Another store of that kind, without anything in it.
    pub fn empty_store(self, beside: &TestRepo, name: &str) -> PathBuf {
        match self {
            Place::Directory => beside.dir.join(name),
            Place::Bucket => S3Server::shared().url(name).into(),
        }
    }
}

/// Makes two tests of each function that takes a [`Place`]: `directory::NAME` and `bucket::NAME`.
#[macro_export]
macro_rules! on_directory_and_bucket {
    ($($test:ident),+ $(,)?) => {
        mod directory {
            $(#[test] fn $test() { super::$test($crate::place::Place::Directory) })+
        }
        mod bucket {
            $(#[test] fn $test() { super::$test($crate::place::Place::Bucket) })+
        }
    };
}

/// The objects of a repository, by their names in it, as `heads/…`.
#[derive(Debug, Clone)]
pub struct Objects(At);

#[derive(Debug, Clone)]
enum At {
    Directory(PathBuf),
    Bucket(String),
}

impl Objects {
    /// Those of a store, which is a directory or a prefix on the shared S3 server.
    pub fn of(store: &std::path::Path) -> Objects {
        let bucket = text(store).strip_prefix("s3://vault/").and_then(|rest| rest.split('?').next());
        Objects(bucket.map_or_else(|| At::Directory(store.to_owned()), |prefix| At::Bucket(prefix.to_owned())))
    }

    /// Names and lengths of what lies below `kind`, or of all objects if that is empty; by name.
    pub fn list(&self, kind: &str) -> Vec<(String, u64)> {
        let mut found: Vec<(String, u64)> = match &self.0 {
            At::Directory(root) => walk(&root.join(kind))
                .into_iter()
                .filter_map(|path| {
                    let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
                    Some((text(path.strip_prefix(root).ok()?).to_owned(), meta.len()))
                })
                .collect(),
            At::Bucket(prefix) => {
                let below = format!("{prefix}/{kind}");
                let objects = S3Server::shared().objects(&below).into_iter();
                objects
                    .filter_map(|(name, len)| Some((name.strip_prefix(&format!("{prefix}/"))?.to_owned(), len)))
                    .collect()
            }
        };
        found.sort();
        found
    }

    /// The name of the largest object below `kind`.
    pub fn largest(&self, kind: &str) -> String {
        self.list(kind).into_iter().max_by_key(|(_, len)| *len).unwrap_or_else(|| panic!("no {kind}")).0
    }

    /// An object's bytes.
    pub fn read(&self, name: &str) -> Vec<u8> {
        match &self.0 {
            At::Directory(root) => fs::read(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")),
            At::Bucket(prefix) => S3Server::shared().read(&format!("{prefix}/{name}")),
        }
    }

    /// Makes or replaces an object.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        match &self.0 {
            At::Directory(root) => {
                let path = root.join(name);
                fs::create_dir_all(path.parent().expect("below the store")).expect("a directory");
                fs::write(&path, bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            At::Bucket(prefix) => S3Server::shared().write(&format!("{prefix}/{name}"), bytes),
        }
    }

    /// Removes an object.
    pub fn remove(&self, name: &str) {
        match &self.0 {
            At::Directory(root) => fs::remove_file(root.join(name)).unwrap_or_else(|e| panic!("{name}: {e}")),
            At::Bucket(prefix) => S3Server::shared().remove(&format!("{prefix}/{name}")),
        }
    }

    /// All objects, as they are now.
    pub fn keep(&self) -> BTreeMap<String, Vec<u8>> {
        self.list("").into_iter().map(|(name, _)| (name.clone(), self.read(&name))).collect()
    }

    /// Makes the store what it was when it was kept.
    pub fn restore(&self, kept: &BTreeMap<String, Vec<u8>>) {
        let now = self.keep();
        for name in now.keys().filter(|name| !kept.contains_key(*name)) {
            self.remove(name);
        }
        for (name, bytes) in kept.iter().filter(|(name, bytes)| now.get(*name) != Some(bytes)) {
            self.write(name, bytes);
        }
    }
}

/// Flips a bit of a file.
///
/// # Panics
/// When the file can't be changed there.
pub fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the object can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("flipped");
}
