//! Decoders on arbitrary bytes, and on nearly right ones: no panic, no allocation beyond the input's size, and what is accepted encodes to the same.

use proptest::prelude::*;

use crate::codec::{Reader, padme};
use crate::frame::directory;
use crate::head::Head;
use crate::index::{SegmentRef, decode_block_for_tests};
use crate::lease::Lease;
use crate::pack::Table;
use crate::snapshot::SnapshotRecord;

fn decode_everything(bytes: &[u8]) {
    drop(Table::decode(bytes, u64::MAX));
    drop(Head::decode(bytes));
    drop(Lease::decode(bytes));
    assert!(SegmentRef::decode(&mut Reader::new(bytes)).is_ok() == (bytes.len() >= SegmentRef::LEN));
    drop(SnapshotRecord::decode(bytes));
    decode_block_for_tests(bytes);
    if let Ok(ranges) = directory(bytes) {
        let end = ranges.last().map_or(0, |r| r.end);
        assert_eq!(end + 4 * ranges.len() + 4, bytes.len());
    }
    crate::keys::decode_for_tests(bytes);
    crate::config::decode_for_tests(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_everything(&bytes);
    }

    #[test]
    fn huge_counts(prefix in prop::collection::vec(any::<u8>(), 0..60), count in prop::sample::select(vec![u32::MAX, 1 << 31, 1 << 24, 65_535])) {
        let mut bytes = prefix;
        for _ in 0..20 {
            bytes.extend(count.to_le_bytes());
        }
        decode_everything(&bytes);
    }

    #[test]
    fn roots_of_few_blocks(rows in 0u64..300, full in 0u16..70, filtered in 0u16..5, bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        // Behind the chains: rows, frames, packs, rows in a block, blocks under a filter, and then anything.
        let mut root = rows.to_le_bytes().to_vec();
        root.extend([0; 8]);
        root.extend(full.to_le_bytes());
        root.extend(filtered.to_le_bytes());
        let blocks = if full == 0 { 0 } else { rows.div_ceil(full.into()) as u32 };
        let filters = if filtered == 0 { 0 } else { blocks.div_ceil(filtered.into()) };
        root.extend(filters.to_le_bytes());
        for filter in 0..filters {
            let offset = bytes.get(filter as usize).copied().unwrap_or(0);
            root.extend((u64::from(offset) << (offset % 57)).to_le_bytes());
            root.extend([0; 12]);
        }
        root.extend(blocks.to_le_bytes());
        root.resize(root.len() + blocks as usize * 8, 7);
        root.extend([0; 4]);
        decode_everything(&root);
    }

    #[test]
    fn changed_heads(place in 0usize..600, value in any::<u8>()) {
        let segment = SegmentRef {
            id: crate::ids::SegmentId([1; 16]), len: 5000, root_offset: 4000, root_len: 100, epoch: 1, salt: [3; 32], rows: 9,
        };
        let root = crate::tree::Root { node: crate::ids::ChunkId([4; 32]), height: 2, entries: 10 };
        let mut head = super::support::next_head(None, Some(root), vec![segment; 3]);
        head.snapshots_root = Some(root);
        head.parent = Some(crate::ids::CommitId([9; 16]));
        let mut bytes = head.encode();
        prop_assert_eq!(&Head::decode(&bytes).unwrap(), &head);
        let place = place % bytes.len();
        bytes[place] = value;
        if let Ok(other) = Head::decode(&bytes) {
            prop_assert_eq!(&other.encode(), &bytes);
        }
        bytes.truncate(place);
        prop_assert!(Head::decode(&bytes).is_err());
    }

    #[test]
    fn snapshot_records_come_back(ordinal in 1u32..1 << 24, created_ns: i64, height in 1u8..=16, entries in 1u64.., empty: bool) {
        let root = (!empty).then_some(crate::tree::Root { node: crate::ids::ChunkId([5; 32]), height, entries });
        let record = SnapshotRecord { ordinal: crate::ids::Ordinal(ordinal), root, created_ns };
        prop_assert_eq!(SnapshotRecord::decode(&record.encode()).unwrap(), record);
    }
}

#[test]
fn snapshot_names_can_do_no_harm() {
    for bad in [b"".as_slice(), b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 256]] {
        assert!(crate::check_snapshot_name(bad).is_err(), "{bad:?}");
    }
    for good in [b"a".as_slice(), b"...", b".hidden", "\u{fc}ber".as_bytes(), &[b'a'; 255], b"\xff\xfe"] {
        assert!(crate::check_snapshot_name(good).is_ok(), "{good:?}");
    }
}

#[test]
fn padding_is_part_of_what_is_checked() {
    let mut table = Table::default().encode_for_tests();
    assert_eq!(table.len(), padme(10));
    assert_eq!(Table::decode(&table, 0), Ok(Table::default()));
    table.push(0);
    assert!(Table::decode(&table, 0).is_ok());
    table.push(1);
    assert!(Table::decode(&table, 0).is_err());
}
