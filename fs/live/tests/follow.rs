//! A mount that only reads, against heads that no writer stands behind.

mod common;

use std::time::{Duration, Instant};

use axiomfs_repository::ids::{CommitId, Epoch, SequenceNo, VolumeId};
use axiomfs_repository::{Head, PutHead, Repository};
use common::Bench;

/// A head of an empty tree on `parent`; its number and `branch` make its commit id.
fn put(repository: &Repository, volume: VolumeId, parent: Option<&Head>, branch: u8) -> Head {
    let sequence = parent.map_or(0, |parent| parent.sequence.0) + 1;
    let mut commit = [branch; 16];
    commit[0] = sequence as u8;
    let head = Head {
        sequence: SequenceNo(sequence),
        epoch: Epoch(1),
        commit: CommitId(commit),
        parent: parent.map(|parent| parent.commit),
        live_root: None,
        snapshots_root: None,
        next_ino: 1024,
        next_ordinal: 1,
        segments: Vec::new(),
        keyring_generation: 1,
        index_generation: 0,
        time_ns: 1,
        audit: [0; 32],
    };
    assert_eq!(repository.put_head(volume, &head).expect("put"), PutHead::Created);
    head
}

#[test]
fn a_head_created_where_others_were_trimmed_is_not_followed() {
    let bench = Bench::new();
    let repository = bench.repository();
    let volume = repository.volume("main").expect("volume");
    let first = (0..3).fold(None, |last: Option<Head>, _| Some(put(&repository, volume, last.as_ref(), 1)));
    let reader = bench.open_read_only();
    let last = (0..80).fold(first.clone(), |last, _| Some(put(&repository, volume, last.as_ref(), 1)));
    let newest = last.as_ref().expect("a head").sequence;
    repository.trim_heads(volume, newest, 64).expect("trimmed");
    assert_eq!(reader.status().head_sequence, 3, "it was quicker than those that are trimmed");
    // By one who slept since the third and found the number free.
    put(&repository, volume, first.as_ref(), 2);
    let commit = last.map(|last| last.commit.0);
    let begun = Instant::now();
    while reader.status().head_commit != commit {
        assert!(begun.elapsed() < Duration::from_secs(10), "it shows {:?}", reader.status().head_sequence);
        std::thread::sleep(Duration::from_millis(20));
    }
    reader.stop();
}
