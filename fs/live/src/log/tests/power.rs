//! Random work, cut short at a random operation, as by a killed process or by a power cut that keeps any mixture of unsynced sectors.
//! The oracle is a list of what was appended and a number: how much of it was acknowledged as durable.

use proptest::prelude::*;

use super::super::disk::Disk;
use super::super::format::FIRST_RECORD;
use super::probe::{Op, Probe, SharedProbe, Verdict};
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append {
        meta: usize,
        data: usize,
    },
    Sync,
    Tick,
    Rotate,
    /// A checkpoint that covers everything before the last rotation.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..400, 0usize..3000).prop_map(|(meta, data)| Step::Append { meta, data }),
        3 => (0usize..100, Just(0)).prop_map(|(meta, data)| Step::Append { meta, data }),
        2 => Just(Step::Sync),
        1 => Just(Step::Tick),
        1 => Just(Step::Rotate),
        1 => Just(Step::Release),
    ]
}

/// What the log should hold.
#[derive(Default)]
struct Model {
    /// Segment, meta and data of every record, from the first mount on.
    records: Vec<(u64, Vec<u8>, Vec<u8>)>,
    /// How many of them were durable when something said so.
    durable: usize,
    /// What was being appended when the machine died: it may be there or not.
    unanswered: Option<(Vec<u8>, Vec<u8>)>,
    /// The segment that the manifest names.
    from: u64,
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Works until the steps are done or the machine dies.
fn work(log: &Log, steps: &[Step], model: &mut Model) {
    let mut checkpoint = model.from;
    for step in steps {
        let result = match step {
            Step::Append { meta, data } => {
                let n = model.records.len() as u64;
                let (meta, data) = (noise(n, *meta), noise(n + 1_000_000, *data));
                match log.append(&meta, Some(&data), Urgency::Reserve) {
                    Ok(at) => {
                        model.records.push((at.segment, meta, data));
                        Ok(())
                    }
                    Err(error) => {
                        if !matches!(error, LogError::Full { .. }) {
                            model.unanswered = Some((meta, data));
                        }
                        Err(error)
                    }
                }
            }
            Step::Sync => log.sync().map(|()| model.durable = model.records.len()),
            Step::Tick => {
                log.tick();
                Ok(())
            }
            Step::Rotate => log.rotate().map(|next| {
                // Everything in an earlier segment is durable, wherever the record came from.
                model.durable = model.records.len();
                checkpoint = next;
            }),
            Step::Release => {
                model.from = checkpoint;
                log.release_before(checkpoint).map(drop)
            }
        };
        match result {
            Ok(()) => {}
            Err(LogError::Full { .. }) => {}
            Err(_) => return,
        }
    }
}

fn check(
    options: &LogOptions,
    sealer: &SealerFactory,
    model: &mut Model,
    all: bool,
) -> Result<Replayed, TestCaseError> {
    let (replayed, seen) =
        replay_dir(options, sealer, model.from).map_err(|error| TestCaseError::fail(format!("{error}")))?;
    let first = model.records.iter().position(|record| record.0 >= model.from).unwrap_or(model.records.len());
    let answered = model.records.len() - first;
    if let Some((meta, data)) = model.unanswered.take() {
        model.records.push((replayed.next_segment - 1, meta, data));
    }
    let expected = &model.records[first..];
    prop_assert!(seen.len() <= expected.len(), "{} records out of {}", seen.len(), expected.len());
    let least = if all { answered } else { model.durable.saturating_sub(first) };
    prop_assert!(seen.len() >= least, "{} records of {least} that must be there", seen.len());
    for (seen, (segment, meta, data)) in seen.iter().zip(expected) {
        prop_assert_eq!(&seen.meta, meta);
        prop_assert_eq!(seen.data_len as usize, data.len());
        prop_assert!(seen.data.is_none_or(|r| r.segment == *segment));
    }
    model.records.truncate(first + seen.len());
    model.durable = model.records.len(); // Replay synced it.

    // The data too, through the next mount's eyes.
    let probe = Log::create(options.clone(), IDENTITY, Arc::clone(sealer), replayed.next_segment);
    let log = probe.map_err(|error| TestCaseError::fail(format!("{error}")))?;
    for (seen, (_, _, data)) in seen.iter().zip(&model.records[first..]) {
        prop_assert_eq!(&seen.data.map(|r| read_all(&log, r)).unwrap_or_default(), data);
    }
    Ok(replayed)
}

fn mount(options: &LogOptions, sealer: &SealerFactory, next: u64, dies_at: u64) -> (SharedProbe, Option<Log>) {
    let probe = Probe::new(move |count, _| if count >= dies_at { Verdict::Fail(5) } else { Verdict::Pass });
    let disk = Disk::open_or_create(&options.dir).unwrap();
    let disk = disk.with_probe(Arc::clone(&probe));
    probe.adopt(&options.dir);
    let log = Log::create_on(disk, options.clone(), IDENTITY, Arc::clone(sealer), next).ok();
    (probe, log)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three mounts, each cut short, each replaying what the one before left.
    #[test]
    fn after_any_crash_the_log_is_a_prefix_with_all_that_was_durable(
        mounts in proptest::collection::vec((proptest::collection::vec(step(), 1..60), 0u64..160), 1..4),
        power_cut: bool,
        encrypt: bool,
        seed: u64,
    ) {
        let bench = Bench::new(16 << 10, 64, encrypt);
        let mut options = bench.options.clone();
        let mut model = Model::default();
        let mut draw = Draw(seed);
        let mut next = 0;
        for (n, (steps, dies_at)) in mounts.iter().enumerate() {
            let (probe, log) = mount(&options, &bench.sealer, next, *dies_at);
            if let Some(log) = log {
                work(&log, steps, &mut model);
            }
            if power_cut {
                options.dir = bench.dir.path().join(format!("after-cut-{n}"));
                probe.cut_power(&options.dir, &mut |bound| draw.below(bound));
            }
            let replayed = check(&options, &bench.sealer, &mut model, !power_cut)?;
            next = replayed.next_segment + 1;
        }
    }
}

#[test]
fn a_probe_that_never_syncs_loses_data_so_the_test_can_fail() {
    let bench = Bench::new(16 << 10, 8, true);
    let (probe, log) = mount(&bench.options, &bench.sealer, 0, u64::MAX);
    let log = log.unwrap();
    append(&log, b"never synced", &[]);
    let options = LogOptions { dir: bench.dir.path().join("cut"), ..bench.options.clone() };
    probe.cut_power(&options.dir, &mut |_| 0);
    assert_eq!(replay_dir(&options, &bench.sealer, 0).unwrap().1, []);
    log.sync().unwrap();
    let options = LogOptions { dir: bench.dir.path().join("cut again"), ..bench.options.clone() };
    probe.cut_power(&options.dir, &mut |_| 0);
    assert_eq!(metas(&replay_dir(&options, &bench.sealer, 0).unwrap().1), [b"never synced"]);
}

#[test]
fn what_was_replayed_is_durable_before_it_is_served() {
    let bench = Bench::new(16 << 10, 8, true);
    let (_, log) = mount(&bench.options, &bench.sealer, 0, u64::MAX);
    let log = log.unwrap();
    append(&log, b"written, not synced", &[]);
    drop(log); // A killed process.

    for (fails, errno) in [(false, 0), (true, 5)] {
        let probe = Probe::new(move |_, op| match op {
            Op::Sync if fails => Verdict::Fail(errno),
            _ => Verdict::Pass,
        });
        let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(Arc::clone(&probe));
        probe.adopt(&bench.options.dir);
        probe.forget_contents();
        let result = Log::replay_on(&disk, &IDENTITY, &bench.sealer, 0, &mut |_| Ok(()));
        if fails {
            assert!(matches!(result, Err(LogError::Io { operation: "fdatasync", .. })), "{result:?}");
            continue;
        }
        assert_eq!(result.unwrap().records, 1);
        let options = LogOptions { dir: bench.dir.path().join("cut"), ..bench.options.clone() };
        probe.cut_power(&options.dir, &mut |_| 0);
        assert_eq!(metas(&replay_dir(&options, &bench.sealer, 0).unwrap().1), [b"written, not synced"]);
    }
}

#[test]
fn replay_writes_again_what_nothing_says_is_durable_and_no_more() {
    for synced in [true, false] {
        let bench = Bench::new(64 << 10, 8, true);
        let log = bench.create(0);
        append(&log, b"before", &noise(1, 3000));
        if synced {
            log.sync().unwrap();
        }
        let second = append(&log, b"second", &noise(2, 5000));
        append(&log, b"third", &noise(3, 70));
        let end = log.lock_active().end;
        drop(log);

        let before = fs::read(bench.segment_path(0)).unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&written);
        let probe = Probe::new(move |_, op| {
            if let Op::Write { bytes, offset, .. } = op {
                seen.lock().unwrap().push((*offset, offset + bytes.len() as u64));
            }
            Verdict::Pass
        });
        let disk = Disk::open(&bench.options.dir).unwrap().unwrap().with_probe(probe);
        Log::replay_on(&disk, &IDENTITY, &bench.sealer, 0, &mut |_| Ok(())).unwrap();
        let from = if synced { second.data.unwrap().offset } else { FIRST_RECORD };
        assert_eq!(*written.lock().unwrap(), [(from, end)]);
        assert_eq!(fs::read(bench.segment_path(0)).unwrap(), before, "the bytes are the same");
    }
}
