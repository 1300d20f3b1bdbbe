//! What must stay small or short, however large a file, a removal or a number of snapshots is.

mod common;

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axiomfs_live::{Access, Caller, FallocMode, FsError, Handle, NodeId, ROOT_INO, Seek, SetAttr, Volume, Who};
use axiomfs_repository::ids::ChunkId;
use axiomfs_repository::tree::{self, Node, NodeSource};
use axiomfs_repository::{Repository, RepositoryError, record};
use common::Bench;

const WAIT: Access = Access::Wait;
const WHO: Caller = Caller { uid: 1000, gid: 100, pid: 1 };

fn create(volume: &Volume, name: &str) -> (NodeId, Handle) {
    let root = NodeId::live(ROOT_INO);
    let (attr, handle) = volume.create(WAIT, WHO, root, name.as_bytes(), (0o644, 0)).expect("created");
    (attr.node(), handle)
}

fn write(volume: &Volume, (node, handle): (NodeId, Handle), offset: u64, data: &[u8]) {
    let done = volume.write(WAIT, WHO, node, handle, offset, data, false, false).expect("written");
    assert_eq!(done as usize, data.len());
}

fn sync(volume: &Volume) {
    volume.sync(Duration::from_secs(60), &|_| {}).expect("synced");
}

#[test]
fn looking_for_data_in_a_hole_takes_no_longer_where_that_is_large() {
    const END: u64 = i64::MAX as u64;
    let bench = Bench::new();
    let volume = bench.open();
    let (empty, full) = (create(&volume, "empty"), create(&volume, "full"));
    let size = SetAttr { size: Some(END), ..SetAttr::default() };
    volume.setattr(WAIT, WHO, empty.0, &size).expect("grown");
    write(&volume, full, END - 1, b"x");
    let check = |volume: &Volume| {
        let begun = Instant::now();
        for access in [WAIT, Access::Cached] {
            assert_eq!(volume.seek(access, empty.0, 0, Seek::Data), Err(FsError::Range));
            assert_eq!(volume.seek(access, empty.0, 5, Seek::Hole), Ok(5));
            assert_eq!(volume.seek(access, full.0, 0, Seek::Data), Ok(END - 1));
            assert_eq!(volume.seek(access, full.0, END - 1, Seek::Hole), Ok(END));
        }
        let layout = volume.layout(WAIT, full.0).expect("a layout");
        assert_eq!((layout.size, layout.holes), (END, END - 1));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    };
    check(&volume);
    sync(&volume);
    check(&volume);
}

#[test]
fn who_may_not_wait_does_not_look_through_millions_of_runs() {
    let bench = Bench::new();
    let volume = bench.open();
    let file = create(&volume, "file");
    // No run joins the one before it.
    for piece in (0..20_000).rev() {
        write(&volume, file, piece * 2, b"ab");
    }
    assert_eq!(volume.seek(Access::Cached, file.0, 0, Seek::Hole), Err(FsError::WouldBlock));
    assert_eq!(volume.seek(WAIT, file.0, 0, Seek::Hole), Ok(40_000));
}

/// Nodes of a repository, for a look at its trees.
struct Nodes(Arc<Repository>);

impl NodeSource for Nodes {
    type Error = RepositoryError;

    fn node(&self, id: &ChunkId) -> Result<Arc<Node>, RepositoryError> {
        self.0.node(id)
    }
}

#[test]
fn what_is_cut_off_or_removed_in_many_pieces_is_gone_from_the_tree_and_nothing_else_is() {
    let bench = Bench::new();
    let volume = bench.open();
    let (before, file, after) = (create(&volume, "before"), create(&volume, "file"), create(&volume, "after"));
    // More extents than changes of a tree are gathered, twice over: one for each 2 KiB of the memory.
    for piece in 0..80_000u64 {
        write(&volume, file, piece * 1000, &piece.to_le_bytes()[..4]);
    }
    for other in [before, after] {
        write(&volume, other, 0, &[7; 3000]);
    }
    sync(&volume);
    let records_of_file = || {
        let repository = bench.repository();
        let head = repository.latest_head(repository.volume("main").expect("a volume")).expect("a head").expect("one");
        repository.load_segments(&head.segments).expect("an index");
        let nodes = Nodes(repository);
        let (from, to) = (record::inode_key(file.0.ino), record::inode_key(file.0.ino + 1));
        let found = tree::range(&nodes, head.live_root, Bound::Included(&from), Bound::Excluded(&to));
        found.collect::<Result<Vec<_>, _>>().expect("entries").len()
    };
    assert!(records_of_file() > 80_000, "{} records", records_of_file());
    let cut = |size: u64, access: Access| {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        volume.setattr(access, WHO, file.0, &set)
    };
    assert_eq!(
        cut(20_000_002, Access::Cached).map(drop),
        Err(FsError::WouldBlock),
        "many runs are not looked at there"
    );
    assert_eq!(cut(20_000_002, WAIT).expect("cut").allocated, 20_000 * 4 + 2);
    sync(&volume);
    let left = records_of_file();
    assert!((20_000..20_100).contains(&left), "{left} records");
    volume.fallocate(WAIT, WHO, file.0, FallocMode::PunchHole, 1_000_000, 9_000_001).expect("punched");
    assert_eq!(volume.getattr(WAIT, file.0).expect("attributes").allocated, 11_000 * 4 + 2 - 1);
    sync(&volume);
    let left = records_of_file();
    assert!((11_000..11_100).contains(&left), "{left} records");
    let mut bytes = Vec::new();
    volume.read(WAIT, file.0, file.1, 20_000_000, &mut bytes, 10).expect("read");
    assert_eq!(bytes, &20_000u64.to_le_bytes()[..2]);
    bytes.clear();
    volume.read(WAIT, file.0, file.1, 10_000_000, &mut bytes, 4).expect("read");
    assert_eq!(bytes, [&[0][..], &10_000u64.to_le_bytes()[1..4]].concat());
    assert_eq!(cut(5, WAIT).expect("cut").allocated, 4);
    sync(&volume);
    assert!(records_of_file() < 5, "{} records", records_of_file());
    for piece in 0..10_000u64 {
        write(&volume, file, piece * 1000, &piece.to_le_bytes()[..4]);
    }
    volume.release(file.0, file.1);
    volume.unlink(WAIT, WHO, NodeId::live(ROOT_INO), b"file").expect("removed");
    sync(&volume);
    assert_eq!(records_of_file(), 0);
    for other in [before, after] {
        let mut bytes = Vec::new();
        volume.read(WAIT, other.0, other.1, 0, &mut bytes, 4000).expect("read");
        assert_eq!(bytes, [7; 3000]);
    }
}

#[test]
fn snapshots_pile_up_no_layers_where_checkpoints_stand_still() {
    let bench = Bench::new();
    let held = Arc::new(AtomicBool::new(true));
    let hold = held.clone();
    let volume = bench.open_with(move |options| {
        options.timeout = Duration::from_millis(200);
        options.faults = Arc::new(move |point| {
            while point == "checkpoint.frozen" && hold.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    });
    let file = create(&volume, "file");
    let mut taken = 0;
    let refused = (0..100).find_map(|number| {
        drop(volume.write(WAIT, WHO, file.0, file.1, number, b"x", false, false));
        let done = volume.snapshot_create(WAIT, Who::default(), &format!("s{number}"));
        taken += usize::from(done.is_ok());
        done.err()
    });
    assert_eq!(refused, Some(FsError::NoSpace), "after {taken} snapshots");
    let layers = volume.status().frozen_layers;
    assert!(layers <= 65, "{layers} layers");
    assert!(taken >= 60, "{taken} snapshots");
    held.store(false, Ordering::Relaxed);
    sync(&volume);
    volume.snapshot_create(WAIT, Who::default(), "afterwards").expect("taken");
}

#[test]
fn what_an_earlier_mount_left_is_pending_until_it_is_in_the_store() {
    let bench = Bench::new();
    let data = vec![1; 3 << 20];
    {
        let volume = bench.open();
        write(&volume, create(&volume, "file"), 0, &data);
        volume.stop();
    }
    let volume = bench.open();
    assert_eq!(volume.status().pending_bytes, data.len() as u64);
    assert_eq!(volume.status().written_bytes, 0);
    sync(&volume);
    assert_eq!(volume.status().pending_bytes, 0);
    write(&volume, create(&volume, "other"), 0, &data[..5000]);
    assert_eq!(volume.status().pending_bytes, 5000, "what is new is not hidden by what was left");
}

#[test]
fn places_of_staged_chunks_have_their_share_of_the_memory() {
    const MEMORY: u64 = 4 << 20;
    let bench = Bench::new();
    let held = Arc::new(AtomicBool::new(true));
    let hold = held.clone();
    let volume = bench.open_with(move |options| {
        options.memory = MEMORY;
        options.timeout = Duration::from_secs(2);
        options.checkpoint_interval = Duration::from_millis(20);
        options.faults = Arc::new(move |point| {
            while point == "commit.packs-uploaded" && hold.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
    });
    let root = NodeId::live(ROOT_INO);
    let one = |number: u32| -> Result<(), FsError> {
        let (attr, handle) = volume.create(WAIT, WHO, root, format!("f{number}").as_bytes(), (0o644, 0))?;
        let bytes: Vec<u8> = (0..250).flat_map(|word: u32| (word ^ number).to_le_bytes()).collect();
        let done = volume.write(WAIT, WHO, attr.node(), handle, 0, &bytes, false, false).map(drop);
        volume.release(attr.node(), handle);
        done
    };
    let refused = (0..100_000).map(one).zip(0u64..).find(|(done, _)| done.is_err());
    let (done, taken) = refused.expect("100,000 chunks were staged in 4 MiB of memory");
    assert_eq!(done, Err(FsError::NoSpace));
    assert!((MEMORY / 800..MEMORY / 100).contains(&taken), "{taken} files of a chunk each");
    held.store(false, Ordering::Relaxed);
    sync(&volume);
    one(200_000).expect("there is room again");
}
