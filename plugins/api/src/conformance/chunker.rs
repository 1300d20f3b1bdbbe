use super::Noise;
use crate::Chunker;

/// What every [`Chunker`] must hold: bounds, determinism, resumption at any cut, resynchronisation after an insertion.
///
/// # Panics
/// If `chunker` breaks its contract.
pub fn chunker(chunker: &dyn Chunker) {
    let sizes = chunker.sizes();
    assert!(0 < sizes.min && sizes.min <= sizes.avg && sizes.avg <= sizes.max, "bounds are ordered: {sizes:?}");
    let mut noise = Noise::new(3);
    for len in [1, 2, sizes.min - 1, sizes.min, sizes.min + 1, sizes.max - 1, sizes.max, sizes.max + 1] {
        if len > 0 {
            check_cuts(chunker, &noise.bytes(len));
        }
    }
    check_cuts(chunker, &vec![0; sizes.max * 2 + 5]);
    let data = noise.bytes(sizes.avg * 24);
    let cuts = check_cuts(chunker, &data);
    assert!(cuts.len() >= 6, "24 wanted sizes of noise give at least a quarter as many chunks, not {}", cuts.len());
    resynchronises(chunker, &data);
}

/// Cuts of the whole of `data`, each checked against the contract.
fn check_cuts(chunker: &dyn Chunker, data: &[u8]) -> Vec<usize> {
    let sizes = chunker.sizes();
    let mut cuts = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let rest = &data[start..];
        let len = chunker.cut(rest);
        assert!(len >= 1 && len <= rest.len() && len <= sizes.max, "a cut of {len} lies within its bounds");
        assert!(len >= sizes.min || len == rest.len(), "only the last chunk is shorter than the minimum");
        assert_eq!(len, chunker.cut(rest), "the same bytes give the same cut");
        let window = &rest[..rest.len().min(sizes.max)];
        assert_eq!(len, chunker.cut(window), "no cut depends on bytes beyond the largest chunk");
        start += len;
        cuts.push(start);
    }
    cuts
}

/// Bytes inserted at the start change few chunks.
fn resynchronises(chunker: &dyn Chunker, data: &[u8]) {
    let chunks = |data: &[u8]| -> Vec<Vec<u8>> {
        let mut start = 0;
        check_cuts(chunker, data)
            .into_iter()
            .map(|end| data[std::mem::replace(&mut start, end)..end].to_vec())
            .collect()
    };
    let before: std::collections::HashSet<Vec<u8>> = chunks(data).into_iter().collect();
    let shifted = [b"ten bytes!", data].concat();
    let new: usize = chunks(&shifted).iter().filter(|c| !before.contains(*c)).map(Vec::len).sum();
    assert!(new <= chunker.sizes().max * 2, "ten bytes at the start made {new} new bytes");
}
