//! What runs that are laid over a file change in its extent records: in the order of keys, one after the other, since a file may have
//! millions of them and one run may cover all.

use crate::extent_map::{Run, RunSource};

/// Gives `emit` the records that change, by the offset they end at, ascending: with what stands there from now on, or nothing.
///
/// `runs` are disjoint and in order; what of them begins at `size` or is a hole ends what it covers and stays unrecorded. `old` gives the
/// records that end after an offset, in order.
///
/// # Errors
/// Those of `old` and `emit`.
pub(crate) fn extent_edits<E, I>(
    runs: &[Run],
    size: u64,
    mut old: impl FnMut(u64) -> I,
    mut emit: impl FnMut(u64, Option<Run>) -> Result<(), E>,
) -> Result<(), E>
where
    I: Iterator<Item = Result<Run, E>>,
{
    // What is left of a record that goes on behind the run before.
    let mut tail: Option<Run> = None;
    for run in runs {
        if let Some(before) = tail.take_if(|tail| tail.end() <= run.offset) {
            emit(before.end(), Some(before))?;
        }
        let recorded = run.source != RunSource::Hole && run.offset < size;
        let known = tail.as_ref().map(Run::end);
        let rest = old(run.offset).filter(|old| old.as_ref().map_or(true, |old| Some(old.end()) != known));
        for old in tail.take().map(Ok).into_iter().chain(rest) {
            let old = old?;
            if old.offset >= run.end() {
                break;
            }
            if old.offset < run.offset {
                emit(run.offset, Some(old.clipped(old.offset, run.offset)))?;
            }
            if old.end() > run.end() {
                tail = Some(old.clipped(run.end(), old.end()));
            } else if old.end() < run.end() || !recorded {
                emit(old.end(), None)?;
            }
        }
        if recorded {
            emit(run.end(), Some(run.clone()))?;
        }
    }
    tail.map_or(Ok(()), |tail| emit(tail.end(), Some(tail)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axiomfs_repository::ids::ChunkId;
    use proptest::prelude::*;

    use super::*;

    fn chunk(offset: u64, len: u64, name: u8) -> Run {
        Run { offset, len, source: RunSource::Chunk { id: ChunkId([name; 32]), skip: 0, clear: false } }
    }

    /// Lengths of holes and runs, one after the other.
    fn runs(steps: &[(u64, u64, bool)], name: u8) -> Vec<Run> {
        let mut at = 0;
        let mut found = Vec::new();
        for (number, (gap, len, hole)) in (0..).zip(steps) {
            let mut run = chunk(at + gap, *len, name + number);
            if *hole {
                run.source = RunSource::Hole;
            }
            at = run.end();
            found.push(run);
        }
        found
    }

    fn byte(records: &BTreeMap<u64, Run>, at: u64) -> Option<RunSource> {
        let (_, run) = records.range(at + 1..).next()?;
        (run.offset <= at).then(|| run.clipped(at, at + 1).source)
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_the_new_runs_and_beside_them_the_old_ones(
            old in prop::collection::vec((0u64..4, 1u64..9, Just(false)), 0..12),
            new in prop::collection::vec((0u64..9, 1u64..30, any::<bool>()), 0..8),
            size in 0u64..80,
        ) {
            let before: BTreeMap<u64, Run> = runs(&old, 0).into_iter().map(|run| (run.end(), run)).collect();
            let laid = runs(&new, 100);
            let mut after = before.clone();
            let mut last = 0;
            let from = |at: u64| before.range(at + 1..).map(|(_, run)| Ok(run.clone())).collect::<Vec<_>>().into_iter();
            extent_edits::<(), _>(&laid, size, from, |end, run| {
                assert!(end > last, "{end} after {last}");
                last = end;
                match run {
                    Some(run) => {
                        assert_eq!(run.end(), end);
                        after.insert(end, run);
                    }
                    None => assert!(after.remove(&end).is_some(), "there is no record that ends at {end}"),
                }
                Ok(())
            })
            .unwrap();
            let mut end = 0;
            for run in after.values() {
                assert!(run.offset >= end && run.len > 0, "{run:?} lies over the one before it");
                end = run.end();
            }
            for at in 0..300 {
                let over = laid.iter().find(|run| (run.offset..run.end()).contains(&at));
                let want = match over {
                    Some(run) if run.source == RunSource::Hole || run.offset >= size => None,
                    Some(run) => Some(run.clipped(at, at + 1).source),
                    None => byte(&before, at),
                };
                assert_eq!(byte(&after, at), want, "byte {at}");
            }
        }
    }
}
