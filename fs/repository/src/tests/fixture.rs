//! A repository of format version 1 as it was written once: every later build reads it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axiomfs_api::{Body, ObjectKey, Store};

use super::support::*;
use crate::ids::hex;
use crate::tree::{apply, get};
use crate::*;

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// In the second fixture every other chunk is a clear one.
fn is_clear(name: &str, number: usize) -> bool {
    name == "clear-v1" && number % 2 == 1
}

fn id_of(repository: &Repository, clear: bool, data: &[u8]) -> ids::ChunkId {
    if clear { repository.clear_id(data) } else { repository.data_id(data) }
}

fn load(dir: &Path, prefix: &str, store: &TestStore) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            load(&entry.path(), &format!("{name}/"), store);
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            store.put_new(&ObjectKey::new(name).unwrap(), Body::Bytes(&bytes)).unwrap();
        }
    }
}

/// Data that anybody can make again.
fn content(number: usize) -> Vec<u8> {
    let len = match number {
        0..23 => 40 * (number * number + 1),
        23 => 150_000,
        _ => number,
    };
    (0..len).map(|i| (i / 7 + i * number % 251) as u8).collect()
}

#[test]
fn the_repository_of_format_1_is_readable() {
    read("format-v1");
}

#[test]
fn the_repository_with_clear_frames_is_readable() {
    read("clear-v1");
}

#[test]
fn the_repository_with_an_overlay_is_readable() {
    read("overlay-v1");
}

#[test]
fn the_repository_with_index_segments_of_version_2_is_readable() {
    read("index-v2");
}

#[test]
fn a_repository_of_format_1_is_written_on() {
    let store = Arc::new(TestStore::default());
    load(&dir("format-v1").join("store"), "", &store);
    let bed = Bed { store, dir: tempfile::TempDir::new().unwrap() };
    let writer = bed.open();
    let head = writer.latest_head(writer.volume("main").unwrap()).unwrap().unwrap();
    writer.load_segments(&head.segments).unwrap();
    let early = |repository: &Repository| repository.segments().iter().filter(|s| head.segments.contains(s)).count();
    let mut added = Vec::new();
    while early(&writer) > 0 {
        assert_eq!(add(&writer, &content(added.len() % 24)).1, Added::Known, "its chunks are not stored again");
        added.push(format!("another {}", added.len()).into_bytes());
        add(&writer, added.last().unwrap());
        commit(&writer, head.live_root);
        assert!(added.len() < 50, "its segments are merged with what comes");
    }
    let cold = bed.open_cold();
    for data in (0..24).map(content).chain(added) {
        assert_eq!(*cold.read_chunk(&cold.data_id(&data)).unwrap(), *data);
    }
    for number in 0..500 {
        let value = get(&*cold, head.live_root, &name_of(number)).unwrap();
        assert_eq!(value.as_deref(), value_of("plain", number).as_deref());
    }
}

/// How many chunks of data: in the last fixture so many that their rows fill several blocks.
fn chunks_of(name: &str) -> usize {
    if name == "index-v2" { 200 } else { 24 }
}

fn name_of(number: usize) -> Vec<u8> {
    format!("name {number:04}").into_bytes()
}

/// The value of a name in the live tree. In the third fixture an overlay has removed one name and changed another.
fn value_of(name: &str, number: usize) -> Option<Vec<u8>> {
    match number {
        3 if name == "overlay-v1" => None,
        10 if name == "overlay-v1" => Some(b"changed".to_vec()),
        _ => Some(format!("value {}", number * number).into_bytes()),
    }
}

fn read(name: &str) {
    let dir = dir(name);
    let store = Arc::new(TestStore::default());
    load(&dir.join("store"), "", &store);
    let bed = Bed { store, dir: tempfile::TempDir::new().unwrap() };
    let repository = bed.open_cold();
    let volume = repository.volume("main").unwrap();
    let head = repository.latest_head(volume).unwrap().unwrap();
    let expected = std::fs::read_to_string(dir.join("EXPECTED")).unwrap();
    let mut lines = expected.lines();
    let mut field = |name: &str| lines.next().unwrap().strip_prefix(name).unwrap().trim().to_owned();
    assert_eq!(repository.id().to_hex(), field("repository"));
    assert_eq!(volume.to_hex(), field("volume"));
    assert_eq!(head.sequence.0.to_string(), field("sequence"));
    assert_eq!(head.commit.to_hex(), field("commit"));
    assert_eq!(repository.chunker_seed().to_string(), field("seed"));
    for number in 0..chunks_of(name) {
        let data = content(number);
        let id = id_of(&repository, is_clear(name, number), &data);
        assert_eq!(id.to_hex(), field("chunk"));
        assert!(*repository.read_chunk(&id).unwrap() == *data, "chunk {number}");
    }
    for number in 0..500 {
        let value = get(&*repository, head.live_root, &name_of(number)).unwrap();
        assert_eq!(value.as_deref(), value_of(name, number).as_deref());
    }
    assert_eq!(head.live_root.unwrap().height & 0x80 > 0, name == "overlay-v1");
    let record = get(&*repository, head.snapshots_root, b"monday").unwrap().unwrap();
    let record = SnapshotRecord::decode(&record).unwrap();
    assert_eq!((record.ordinal.0, record.root, record.created_ns), (1, head.live_root, 1_700_000_000_000_000_000));
}

/// Writes the fixture: `AXIOMFS_WRITE_FIXTURE=$PWD/tests/fixtures/format-v1 cargo test -p axiomfs-repository write_fixture -- --ignored`; the directory's name
/// says which. Never over an old one.
#[test]
#[ignore = "writes files; run by hand for a new format version"]
fn write_fixture() {
    let out = PathBuf::from(std::env::var_os("AXIOMFS_WRITE_FIXTURE").unwrap());
    let name = out.file_name().unwrap().to_str().unwrap().to_owned();
    let bed = Bed::new();
    let repository = bed.open();
    let mut head = None;
    for part in [0..16, 16..chunks_of(&name)] {
        for number in part {
            let data = content(number);
            let route = if number % 3 == 0 { "media" } else { "default" };
            let clear = is_clear(&name, number);
            let kind = if clear { FrameKind::Clear } else { FrameKind::Data };
            let class = FrameClass { kind, ..class(number as u32 % 2, route) };
            repository.add_chunk(class, id_of(&repository, clear, &data), &data).unwrap();
        }
        let edits = (0..500).map(|n| (name_of(n), value_of("plain", n)));
        let mut root = apply::<_, _, RepositoryError>(&*repository, &mut &*repository, None, edits).unwrap();
        let changes = (0..500).filter(|n| value_of(&name, *n) != value_of("plain", *n));
        let changes = changes.map(|n| (name_of(n), value_of(&name, n)));
        root = apply::<_, _, RepositoryError>(&*repository, &mut &*repository, root, changes).unwrap();
        let record = SnapshotRecord { ordinal: crate::ids::Ordinal(1), root, created_ns: 1_700_000_000_000_000_000 };
        let entry = std::iter::once((b"monday".to_vec(), Some(record.encode())));
        let snapshots = apply::<_, _, RepositoryError>(&*repository, &mut &*repository, None, entry).unwrap();
        repository.flush().unwrap();
        let set = repository.commit_packs(&[root, snapshots]).unwrap();
        let next = Head { snapshots_root: snapshots, ..next_head(head.as_ref(), root, set.segments.clone()) };
        repository.put_head(repository.volume("main").unwrap(), &next).unwrap();
        repository.finish_commit(set).unwrap();
        head = Some(next);
    }
    for (name, bytes) in bed.store.objects() {
        let path = out.join("store").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let head = head.unwrap();
    let mut expected = format!(
        "repository {}\nvolume {}\nsequence {}\ncommit {}\nseed {}\n",
        repository.id(),
        repository.volume("main").unwrap(),
        head.sequence,
        hex::encode(&head.commit.0),
        repository.chunker_seed(),
    );
    for number in 0..chunks_of(&name) {
        let id = id_of(&repository, is_clear(&name, number), &content(number));
        expected += &format!("chunk {id}\n");
    }
    std::fs::write(out.join("EXPECTED"), expected).unwrap();
}
