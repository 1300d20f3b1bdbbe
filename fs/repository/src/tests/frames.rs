//! What shares a frame, how large frames become, and how much of one a read decodes.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::support::*;
use crate::*;

#[test]
fn owners_and_routes_never_share_a_frame() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(3);
    let frames = |repository: &Repository| repository.stats().frames_written;
    for (owner, route) in [(0, "default"), (1, "default"), (0, "media"), (0, "default")] {
        let data = random.data(1000);
        repository.add_chunk(class(owner, route), repository.data_id(&data), &data).unwrap();
    }
    repository.flush().unwrap();
    assert_eq!(frames(&repository), 3);
    for number in 0..100 {
        add(&repository, &shrinking(number));
    }
    repository.flush().unwrap();
    assert_eq!(frames(&repository), 3 + 4, "100 chunks of 20,000 bytes fill four frames of 512 KiB");
}

/// 20,000 bytes that shrink to half, others for each number.
fn shrinking(number: u64) -> Vec<u8> {
    let mut data = Random(number + 1).data(20_000);
    data[10_000..].fill(0);
    data
}

#[test]
fn frames_that_do_not_shrink_are_smaller() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(3);
    let mut add_random = |count: usize| {
        for _ in 0..count {
            let bytes: Vec<u8> = (0..20_000).map(|_| random.next() as u8).collect();
            add(&repository, &bytes);
        }
    };
    let frames = |count: u64| {
        let begun = Instant::now();
        while repository.stats().frames_written < count {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {count} frames");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // 26 of them fill a frame of 512 KiB; once it is known that it did not shrink, 13 fill the next.
    add_random(27);
    frames(1);
    add_random(13);
    frames(2);
    add_random(13);
    frames(3);
    repository.flush().unwrap();
    assert_eq!(repository.stats().frames_written, 4);
}

/// A chunk near the front of a frame is decoded without the rest, which is decoded from memory when somebody wants it.
#[test]
fn a_read_decodes_no_more_of_a_frame_than_it_needs() {
    let bed = Bed::new();
    let repository = bed.open();
    let ids: Vec<_> = (0..26).map(|number| add(&repository, &shrinking(number)).0).collect();
    commit(&repository, None);
    let cold = bed.open_cold();
    let decoded = |repository: &Repository| {
        let zstd = repository.host.plugins().into_iter().find(|plugin| plugin.id == "zstd").unwrap();
        zstd.decoded_to_bytes
    };
    let before = decoded(&cold);
    assert_eq!(cold.read_chunk(&ids[0]).unwrap()[..], shrinking(0)[..]);
    assert_eq!(decoded(&cold) - before, 128 << 10);
    assert_eq!(cold.stats().frames_read, 1);
    for (number, id) in ids.iter().enumerate().take(6) {
        assert_eq!(cold.chunk_cached(id).unwrap()[..], shrinking(number as u64)[..], "it lies before that");
    }
    assert!(cold.chunk_cached(&ids[7]).is_none());
    assert_eq!(cold.read_chunk(&ids[7]).unwrap()[..], shrinking(7)[..]);
    assert_eq!(decoded(&cold) - before, (128 << 10) + 26 * 20_000, "who comes again wants all of it");
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(cold.chunk_cached(id).unwrap()[..], shrinking(number as u64)[..]);
    }
    assert_eq!(cold.stats().frames_read, 1, "it was fetched once");

    let ahead = bed.open_cold();
    let before = decoded(&ahead);
    ahead.prefetch_chunk(&ids[0]).unwrap();
    assert_eq!(decoded(&ahead) - before, 26 * 20_000, "who reads ahead wants all of it");
}

#[test]
fn who_reads_a_frame_at_the_same_time_gets_as_much_of_it_as_he_wants() {
    let bed = Bed::new();
    let repository = bed.open();
    let ids: Vec<_> = (0..26).map(|number| add(&repository, &shrinking(number)).0).collect();
    commit(&repository, None);
    for _ in 0..20 {
        let cold = bed.open_cold();
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let (cold, start, ids) = (&cold, &start, &ids);
                scope.spawn(move || {
                    start.wait();
                    for (number, id) in ids.iter().enumerate().skip(reader * 6) {
                        assert_eq!(cold.read_chunk(id).unwrap()[..], shrinking(number as u64)[..]);
                    }
                });
            }
        });
        assert_eq!(cold.stats().frames_read, 1);
    }
}
