//! What shares a frame, how large frames become, and how much of one a read decodes.

use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use axiomfs_api::{Applied, BoundedBuf, Descriptor, Hint, PluginError, Store, Transform, TransformFactory, Worker};
use axiomfs_compression_zstd::Factory;
use axiomfs_host::Host;

use super::support::*;
use crate::ids::ChunkId;
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

#[test]
fn sorts_never_share_a_frame_and_all_of_them_is_counted() {
    let bed = Bed::new();
    let repository = bed.open();
    let (film, log) = (repository.label("mp4"), repository.label("log"));
    for number in 0..60 {
        let label = if number % 2 == 0 { film } else { log };
        let data = shrinking(number);
        let class = FrameClass { sort: label, ..class(0, "default") };
        repository.add_labelled(&class, label, repository.data_id(&data), &data).unwrap();
    }
    repository.flush().unwrap();
    let counts = repository.label_counts();
    assert_eq!(counts.iter().map(|count| count.raw).collect::<Vec<_>>(), [600_000, 600_000]);
    assert_eq!(repository.stats().frames_written, 4, "two of each are begun");
}

/// 20,000 bytes that shrink to half, others for each number.
fn shrinking(number: u64) -> Vec<u8> {
    let mut data = Random(number + 1).data(20_000);
    data[10_000..].fill(0);
    data
}

/// A store with the first so many of those, and their ids.
fn stored(count: u64) -> (Bed, Vec<ChunkId>) {
    let bed = Bed::new();
    let repository = bed.open();
    let ids = (0..count).map(|number| add(&repository, &shrinking(number)).0).collect();
    commit(&repository, None);
    (bed, ids)
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
    let (bed, ids) = stored(26);
    let cold = bed.open_cold();
    let in_memory = |repository: &Repository| ids.iter().filter(|id| repository.chunk_cached(id).is_some()).count();
    assert_eq!(cold.read_chunk(&ids[0]).unwrap()[..], shrinking(0)[..]);
    assert_eq!(in_memory(&cold), (128 << 10) / 20_000, "one block of it");
    assert!(cold.stats().frame_cache_bytes < 26 * 20_000, "that and the encoded frame");
    assert_eq!(cold.read_chunk(&ids[7]).unwrap()[..], shrinking(7)[..]);
    assert_eq!(in_memory(&cold), 26, "who comes again wants all of it");
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(cold.chunk_cached(id).unwrap()[..], shrinking(number as u64)[..]);
    }
    assert_eq!(cold.stats().frames_read, 1, "it was fetched once");

    let ahead = bed.open_cold();
    ahead.prefetch_chunk(&ids[0]).unwrap();
    assert_eq!(in_memory(&ahead), 26, "who reads ahead wants all of it");
}

#[test]
fn small_frames_hold_no_more_memory_than_is_counted() {
    let bed = Bed::new();
    let repository = bed.open();
    let mut random = Random(41);
    // A frame for each owner. A store reads 64 KiB for one.
    let mut add_small = |owner| {
        let data: Vec<u8> = (0..600).map(|_| random.next() as u8).collect();
        let id = repository.data_id(&data);
        repository.add_chunk(class(owner, "default"), id, &data).unwrap();
        id
    };
    let ids: Vec<_> = (0..200).map(&mut add_small).collect();
    commit(&repository, None);
    let cold = bed.open_cold();
    let held: usize = ids.iter().map(|id| cold.read_chunk(id).unwrap().held()).sum();
    assert_eq!(ids.iter().filter(|id| cold.chunk_cached(id).is_some()).count(), 200);
    let counted = cold.stats().frame_cache_bytes;
    assert!(held as u64 <= counted, "{held} bytes are held, {counted} counted");
    assert!(counted < 200 * 1200, "{counted} bytes for 120,000");
}

/// zstd, but for what its fault does to decoding.
struct Faulty<T>(T, Arc<Mutex<Fault>>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// A start is something else.
    Starts,
    /// It says that its input is damaged.
    Corrupt,
    /// It gives too little.
    Short,
    /// It gives too much.
    Long,
    Memory,
    Time,
}

fn faulty(fault: &Arc<Mutex<Fault>>) -> Arc<Host> {
    host_with(Faulty(Factory, fault.clone()))
}

impl TransformFactory for Faulty<Factory> {
    fn descriptor(&self) -> &'static Descriptor {
        self.0.descriptor()
    }

    fn build(&self, params: &[(String, String)]) -> Result<Arc<dyn Transform>, PluginError> {
        Ok(Arc::new(Faulty(self.0.build(params)?, self.1.clone())))
    }

    fn decoder(&self, format: u16, decode_params: &[u8]) -> Result<Arc<dyn Transform>, PluginError> {
        Ok(Arc::new(Faulty(self.0.decoder(format, decode_params)?, self.1.clone())))
    }
}

impl Transform for Faulty<Arc<dyn Transform>> {
    fn descriptor(&self) -> &'static Descriptor {
        self.0.descriptor()
    }

    fn decode_params(&self) -> Vec<u8> {
        self.0.decode_params()
    }

    fn params(&self) -> Vec<(&'static str, String)> {
        self.0.params()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, PluginError> {
        Ok(Box::new(Faulty(self.0.worker()?, self.1.clone())))
    }
}

impl Worker for Faulty<Box<dyn Worker>> {
    fn encode(&mut self, hint: Hint, src: &[u8], out: &mut BoundedBuf) -> Result<Applied, PluginError> {
        self.0.encode(hint, src, out)
    }

    fn decode(&mut self, format: u16, src: &[u8], raw_len: usize, out: &mut BoundedBuf) -> Result<(), PluginError> {
        let plugin = "zstd";
        let fault = *self.1.lock().unwrap();
        match fault {
            Fault::None | Fault::Starts => self.0.decode(format, src, raw_len, out),
            Fault::Corrupt => Err(PluginError::Corrupt { plugin, reason: "a bad block".to_owned() }),
            Fault::Short => out.extend(&vec![7; raw_len - 1]),
            Fault::Long => out.extend(&vec![7; raw_len + 1]),
            Fault::Memory => Err(PluginError::MemoryExceeded { plugin, used: 2, bound: 1 }),
            Fault::Time => Err(PluginError::TimedOut { plugin, bound: Duration::ZERO }),
        }
    }

    fn decode_start(
        &mut self,
        format: u16,
        src: &[u8],
        raw_len: usize,
        len: usize,
        out: &mut BoundedBuf,
    ) -> Result<(), PluginError> {
        let fault = *self.1.lock().unwrap();
        if fault == Fault::Starts { out.extend(&vec![7; len]) } else { self.decode(format, src, raw_len, out) }
    }
}

#[test]
fn a_frame_whose_start_is_decoded_wrongly_is_decoded_whole() {
    let (bed, ids) = stored(26);
    let cold = bed.open_cold_with(faulty(&Arc::new(Mutex::new(Fault::Starts))));
    for number in [0, 7] {
        assert_eq!(cold.read_chunk(&ids[number]).unwrap()[..], shrinking(number as u64)[..]);
    }
    assert_eq!(cold.stats().frames_read, 2, "once for its start, once for all of it");
    assert_eq!(cold.stats().frames_quarantined, 0, "it is sound");
}

#[test]
fn a_frame_that_does_not_decode_is_stored_anew() {
    let faults = [
        (Fault::Corrupt, Added::New),
        (Fault::Short, Added::New),
        (Fault::Long, Added::New),
        (Fault::Memory, Added::Known),
        (Fault::Time, Added::Known),
    ];
    for (what, added) in faults {
        let (bed, ids) = stored(1);
        let fault = Arc::new(Mutex::new(Fault::None));
        let seal = Arc::new(axiomfs_encryption_aes_gcm::Aes256Gcm);
        let repository = Repository::open(bed.store.clone(), faulty(&fault), seal, PASSPHRASE, bed.options()).unwrap();
        let head = repository.latest_head(repository.volume("main").unwrap()).unwrap().unwrap();
        repository.load_segments(&head.segments).unwrap();
        *fault.lock().unwrap() = what;
        let error = repository.read_chunk(&ids[0]).unwrap_err();
        assert!(matches!(error, RepositoryError::Host { .. }), "{what:?}: {error}");
        *fault.lock().unwrap() = Fault::None;
        assert_eq!(add(&repository, &shrinking(0)).1, added, "{what:?}");
        commit(&repository, None);
        assert_eq!(repository.read_chunk(&ids[0]).unwrap()[..], shrinking(0)[..], "{what:?}");
    }
}

#[test]
fn who_reads_a_frame_at_the_same_time_gets_as_much_of_it_as_he_wants() {
    let (bed, ids) = stored(26);
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

#[test]
fn a_clear_frame_is_decoded_in_part_too() {
    let bed = Bed::new();
    let repository = bed.open();
    let class = FrameClass { kind: FrameKind::Clear, ..class(0, "plain") };
    let add = |number| {
        let data = shrinking(number);
        let id = repository.clear_id(&data);
        repository.add_chunk(class.clone(), id, &data).unwrap();
        id
    };
    let ids: Vec<_> = (0..26).map(add).collect();
    commit(&repository, None);
    let cold = bed.open_cold();
    for number in [0, 25, 12] {
        assert_eq!(cold.read_chunk(&ids[number]).unwrap()[..], shrinking(number as u64)[..]);
    }
    assert_eq!(cold.stats().frames_read, 1);
}

#[test]
fn frames_that_no_cache_holds_are_read_by_many_at_once() {
    let (bed, ids) = stored(26);
    let cold = bed.try_open(OpenOptions { cache_bytes: 1 << 10, ..OpenOptions::default() }).unwrap();
    let head = cold.latest_head(cold.volume("main").unwrap()).unwrap().unwrap();
    cold.load_segments(&head.segments).unwrap();
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (cold, ids) = (&cold, &ids);
            scope.spawn(move || {
                for turn in 0..40 {
                    let number = (reader * 7 + turn * 11) % ids.len();
                    assert_eq!(cold.read_chunk(&ids[number]).unwrap()[..], shrinking(number as u64)[..]);
                }
            });
        }
    });
}

/// What is still in memory of it says nothing of the pack.
#[test]
fn a_missing_pack_stays_on_the_list_when_a_frame_is_completed_from_memory() {
    let (bed, ids) = stored(60);
    let cold = bed.open_cold();
    cold.read_chunk(&ids[0]).unwrap();
    for (name, _) in bed.store.objects().into_iter().filter(|(name, _)| name.starts_with("packs/")) {
        bed.store.delete(&names::key(&name).unwrap()).unwrap();
    }
    assert!(cold.read_chunk(&ids[59]).is_err());
    let missing = cold.missing_packs();
    assert_eq!(missing.len(), 1);
    assert_eq!(cold.read_chunk(&ids[20]).unwrap()[..], shrinking(20)[..], "it is in memory");
    assert_eq!(cold.missing_packs(), missing);
}
