//! Clear frames: apart from the sealed ones, readable in the store, and safe from changes.

use super::support::*;
use crate::*;

fn add_clear(repository: &Repository, route: &str, data: &[u8]) -> (ids::ChunkId, Added) {
    let id = repository.clear_id(data);
    let class = FrameClass { kind: FrameKind::Clear, ..class(0, route) };
    (id, repository.add_chunk(class, id, data).unwrap())
}

/// Bytes that no transform makes shorter, so that they stand in a clear pack as they are.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Contents of all packs of the kind that stands in their header.
fn packs(bed: &Bed, kind: u8) -> Vec<(String, Vec<u8>)> {
    bed.store.objects().into_iter().filter(|(name, bytes)| name.starts_with("packs/") && bytes[6] == kind).collect()
}

#[test]
fn clear_chunks_stand_in_packs_of_their_own_and_never_stand_for_sealed_ones() {
    let bed = Bed::new();
    let repository = bed.open();
    let (large, small) = (noise(1, 200_000), noise(2, 700));
    let mut ids = Vec::new();
    for data in [&large, &small] {
        let (clear, added) = add_clear(&repository, "plain", data);
        assert_eq!(added, Added::New);
        assert_eq!(add_clear(&repository, "plain", data).1, Added::Known, "once is enough");
        let (sealed, added) = add(&repository, data);
        assert!(clear != sealed && added == Added::New, "the same bytes under another key");
        ids.push((clear, sealed, data.clone()));
        // So that there are several small packs of each kind, which the commit puts together.
        repository.flush().unwrap();
    }
    commit(&repository, None);
    for (clear, sealed, data) in &ids {
        assert_eq!((add_clear(&repository, "plain", data).1, add(&repository, data).1), (Added::Known, Added::Known));
        assert_eq!(repository.frame_of(clear).unwrap().unwrap().seal, "");
        assert_eq!(repository.frame_of(sealed).unwrap().unwrap().seal, "aes-256-gcm/1");
    }
    let (sealed, clear) = (packs(&bed, 1), packs(&bed, 3));
    assert_eq!((sealed.len(), clear.len()), (1, 1), "put together, each kind for itself");
    assert!(holds(&clear[0].1, &large[..64]) && holds(&clear[0].1, &small[600..]));
    assert!(!holds(&sealed[0].1, &large[..16]) && !holds(&sealed[0].1, &small[..16]));
    let cold = bed.open_cold();
    for (clear, sealed, data) in &ids {
        assert!(*cold.read_chunk(clear).unwrap() == **data && *cold.read_chunk(sealed).unwrap() == **data);
    }
}

#[test]
fn a_frame_is_sealed_by_what_it_holds_whatever_its_chain_says() {
    let bed = Bed::new();
    let repository = bed.open();
    let data = noise(3, 300_000);
    // A chain without a seal gets one, and that of a clear frame is left out.
    let id = repository.data_id(&data);
    repository.add_chunk(class(0, "plain"), id, &data).unwrap();
    let (clear, _) = add_clear(&repository, "media", &data);
    commit(&repository, None);
    assert!(!holds(&packs(&bed, 1)[0].1, &data[..16]));
    assert!(holds(&packs(&bed, 3)[0].1, &data[..64]));
    let cold = bed.open_cold();
    assert!(*cold.read_chunk(&id).unwrap() == *data && *cold.read_chunk(&clear).unwrap() == *data);
}

#[test]
fn a_later_mount_adopts_staged_clear_packs() {
    let bed = Bed::new();
    let repository = bed.open();
    let data = noise(4, 5_000);
    let (id, _) = add_clear(&repository, "plain", &data);
    let staged: Vec<_> = repository.flush().unwrap().iter().map(|pack| pack.id).collect();
    drop(repository);
    let repository = bed.open();
    assert!(repository.adopt_staged(&staged).unwrap().missing.is_empty());
    assert_eq!(add_clear(&repository, "plain", &data).1, Added::Known);
    commit(&repository, None);
    assert!(*bed.open_cold().read_chunk(&id).unwrap() == *data);
}

#[test]
fn a_changed_byte_of_a_clear_pack_is_never_taken_for_data() {
    let bed = Bed::new();
    let repository = bed.open();
    let (one, two) = (noise(5, 140_000), noise(6, 3_000));
    let ids = [(add_clear(&repository, "plain", &one).0, &one), (add_clear(&repository, "plain", &two).0, &two)];
    commit(&repository, None);
    drop(repository);
    let (name, bytes) = packs(&bed, 3).remove(0);
    let key = axiomfs_api::ObjectKey::new(name.clone()).unwrap();
    let mut failed = 0;
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 97).chain(bytes.len() - 16..bytes.len()) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        axiomfs_api::Store::put(bed.store.as_ref(), &key, axiomfs_api::Body::Bytes(&changed)).unwrap();
        let cold = bed.open_cold();
        for (id, data) in &ids {
            match cold.read_chunk(id) {
                Ok(read) => assert!(*read == ***data, "byte {at}"),
                Err(RepositoryError::Corrupt { object, .. }) => {
                    failed += 1;
                    assert!(object.contains(&name), "{object}");
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
    }
    assert!(failed > 90, "{failed}: nearly every byte of the pack is one of a frame");
}
