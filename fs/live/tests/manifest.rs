//! What becomes of the manifest where it can't be written.

mod common;

use axiomfs_live::Manifest;
use common::Bench;

#[test]
fn a_failed_write_is_tried_again_in_its_place_and_not_over_the_good_one() {
    let (bench, dir) = (Bench::new(), tempfile::tempdir().expect("a directory"));
    let repository = bench.repository();
    let mut manifest = Manifest { epoch: 7, ..Manifest::default() };
    for _ in 0..2 {
        manifest.write(dir.path(), &repository).expect("written");
    }
    let good = std::fs::read(dir.path().join("manifest.0")).expect("the newer one");
    // Nothing can be written where the third belongs.
    let place = dir.path().join("manifest.1");
    std::fs::remove_file(&place).and_then(|()| std::fs::create_dir(&place)).expect("in the way");
    manifest.last_op = 9;
    for _ in 0..3 {
        assert!(manifest.write(dir.path(), &repository).is_err());
        assert_eq!(std::fs::read(dir.path().join("manifest.0")).expect("the newer one"), good);
    }
    std::fs::remove_dir(&place).expect("out of the way");
    manifest.write(dir.path(), &repository).expect("written");
    assert_eq!(Manifest::read(dir.path(), &repository).expect("read"), Some(manifest));
}
