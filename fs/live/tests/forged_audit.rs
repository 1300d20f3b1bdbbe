//! The audit log against somebody who has the keys: what he takes out of the tree, changes or cuts off is found.

mod common;

use std::time::Duration;

use axiomfs_live::{Access, Caller, Deed, FileKind, Make, NodeId, ROOT_INO, Volume, Who};
use axiomfs_repository::ids::{ChunkId, CommitId, SequenceNo, VolumeId};
use axiomfs_repository::tree::{self, NodeSink};
use axiomfs_repository::{Head, Repository, RepositoryError, record};
use common::Bench;

const WHO: Who = Who { uid: 1000, pid: 77 };

struct Sink<'a>(&'a Repository);

impl NodeSink for Sink<'_> {
    type Error = RepositoryError;

    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, RepositoryError> {
        self.0.add_node(bytes)
    }
}

/// A change of the tree: keys with their new values.
type Change = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Commits a head whose live tree has `change` in it and whose `audit` is as before.
fn forge(bench: &Bench, change: Change) {
    let repository = bench.repository();
    let volume = repository.volume("main").expect("volume");
    let old = head(&repository, volume);
    repository.load_segments(&old.segments).expect("index");
    let root = tree::apply::<_, _, Box<dyn std::error::Error>>(
        &*repository,
        &mut Sink(&repository),
        old.live_root,
        change.into_iter(),
    )
    .expect("tree");
    repository.flush().expect("flushed");
    let set = repository.commit_packs(&[root, old.snapshots_root]).expect("uploaded");
    let forged = Head {
        sequence: SequenceNo(old.sequence.0 + 1),
        commit: CommitId([7; 16]),
        parent: Some(old.commit),
        live_root: root,
        segments: set.segments.clone(),
        ..old
    };
    repository.put_head(volume, &forged).expect("created");
    repository.finish_commit(set).expect("finished");
}

fn head(repository: &Repository, volume: VolumeId) -> Head {
    repository.latest_head(volume).expect("read").expect("there")
}

/// A volume whose log has `count` records, committed.
fn with_records(count: usize) -> Bench {
    let bench = Bench::new();
    let volume = bench.open();
    for n in 0..count {
        volume.audit(&Deed::done(WHO, "command", format!("set zstd level={n}"))).expect("recorded");
    }
    make_file(&volume, b"file");
    volume.shutdown(&|_| {}).expect("drained");
    bench
}

fn make_file(volume: &Volume, name: &[u8]) {
    let make = Make { kind: FileKind::File, perm: 0o644, umask: 0, rdev: 0, target: None };
    let caller = Caller { uid: 0, gid: 0, pid: 1 };
    volume.make(Access::Wait, caller, NodeId::live(ROOT_INO), name, &make).expect("made");
}

/// What `audit verify` says of the store alone.
fn faults(bench: &mut Bench) -> Vec<String> {
    bench.lose_state();
    let volume = bench.open();
    let faults = volume.audit_verify().expect("read").faults;
    volume.stop();
    faults
}

/// Number and value of the record.
fn record_of(bench: &Bench, number: u64) -> Vec<u8> {
    let repository = bench.repository();
    let head = head(&repository, repository.volume("main").expect("volume"));
    repository.load_segments(&head.segments).expect("index");
    let found = tree::get(&*repository, head.live_root, &record::audit_key(number)).expect("read");
    found.expect("there").to_vec()
}

#[test]
fn what_was_recorded_verifies_from_the_store_alone() {
    let mut bench = with_records(20);
    assert_eq!(faults(&mut bench), Vec::<String>::new());
}

#[test]
fn a_record_removed_changed_exchanged_or_cut_off_is_found() {
    for (what, words) in [
        ("removed", "Records 10 to 10 are gone"),
        ("changed", "Record 11 does not follow record 10"),
        ("exchanged", "does not follow"),
        ("cut off", "its end was cut off"),
        ("all gone", "its end was cut off"),
        ("beginning gone", "begins with record 4"),
        ("last changed", "its end was cut off or changed"),
        ("one more", "names record 20 as the last"),
    ] {
        let mut bench = with_records(20);
        let key = record::audit_key;
        let (ten, eleven, last) = (record_of(&bench, 10), record_of(&bench, 11), record_of(&bench, 20));
        let other = |value: &[u8]| {
            let mut value = value.to_vec();
            let end = value.len() - 1;
            value[end] = b'K';
            value
        };
        let change: Change = match what {
            "removed" => vec![(key(10), None)],
            "changed" => vec![(key(10), Some(other(&ten)))],
            "exchanged" => vec![(key(10), Some(eleven)), (key(11), Some(ten))],
            "cut off" => vec![(key(19), None), (key(20), None)],
            "all gone" => (1..=20).map(|n| (key(n), None)).collect(),
            "beginning gone" => (1..=3).map(|n| (key(n), None)).collect(),
            "last changed" => vec![(key(20), Some(other(&last)))],
            _ => {
                let mut added = last.clone();
                added[0] = 1;
                vec![(key(21), Some(added))]
            }
        };
        forge(&bench, change);
        bench.lose_state();
        let volume = bench.open_read_only();
        let found = volume.audit_verify().expect("read").faults;
        volume.stop();
        assert!(found.iter().any(|fault| fault.contains(words)), "{what}: {found:?}");
        // A writer that goes on from there does not cover it up, not with the next commit either.
        if what != "one more" {
            assert_ne!(faults(&mut bench), Vec::<String>::new(), "{what}");
            let volume = bench.open();
            volume.audit(&Deed::done(WHO, "command", "reload")).expect("recorded");
            make_file(&volume, b"later");
            volume.sync(Duration::from_secs(20), &|_| {}).expect("committed");
            volume.stop();
            assert_ne!(faults(&mut bench), Vec::<String>::new(), "{what}, after another commit");
        }
    }
}

#[test]
fn mounts_that_change_nothing_leave_few_segments_and_no_head() {
    let bench = with_records(1);
    let sequence = || {
        let repository = bench.repository();
        head(&repository, repository.volume("main").expect("volume")).sequence.0
    };
    let before = sequence();
    for n in 0..20 {
        let volume = bench.open();
        volume.audit(&Deed::done(WHO, "mount", format!("{n}"))).expect("recorded");
        volume.shutdown(&|_| {}).expect("drained");
        assert!(bench.log_segments() <= 3, "{} segments after {n} mounts", bench.log_segments());
    }
    assert_eq!(sequence(), before);
    let volume = bench.open();
    let report = volume.audit_verify().expect("read");
    assert_eq!((report.faults, report.records, report.committed), (vec![], 21, 1));
    make_file(&volume, b"more");
    volume.shutdown(&|_| {}).expect("drained");
    assert_eq!(sequence(), before + 1);
    let volume = bench.open();
    assert_eq!(volume.audit_verify().expect("read").committed, 21, "they go with the next change");
    volume.stop();
}

#[test]
fn many_records_make_a_head_by_themselves() {
    let mut bench = with_records(1);
    let volume = bench.open();
    for n in 0..1_100 {
        volume.audit(&Deed::done(WHO, "command", format!("{n}"))).expect("recorded");
    }
    volume.shutdown(&|_| {}).expect("drained");
    bench.lose_state();
    let volume = bench.open();
    assert_eq!(volume.audit_log().expect("read").len(), 1_101);
    volume.stop();
}
