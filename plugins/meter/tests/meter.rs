//! The meter against allocations of known size.

use axiomfs_meter::{Metered, measure};

#[global_allocator]
static ALLOCATOR: Metered<std::alloc::System> = Metered(std::alloc::System);

#[test]
fn peak_and_rest_are_those_of_this_thread() {
    let (kept, usage) = measure(|| {
        drop(vec![1u8; 3 << 20]);
        // Of another thread: not ours.
        std::thread::scope(|scope| scope.spawn(|| drop(vec![1u8; 9 << 20])).join().expect("no panic"));
        vec![1u8; 1 << 20]
    });
    assert!((3 << 20..4 << 20).contains(&usage.peak), "{usage:?}");
    assert!((1 << 20..2 << 20).contains(&usage.kept), "{usage:?}");
    let ((), usage) = measure(|| drop(kept));
    assert_eq!((usage.peak, usage.kept), (0, -(1 << 20)));
}

#[test]
fn growing_counts_the_difference_and_measurements_nest() {
    let ((inner, _grown), outer) = measure(|| {
        let mut bytes: Vec<u8> = Vec::with_capacity(1 << 20);
        let ((), inner) = measure(|| bytes.reserve_exact(4 << 20));
        (inner, bytes)
    });
    assert_eq!(inner.kept, 3 << 20);
    assert!(outer.kept >= 4 << 20 && outer.peak >= 4 << 20, "{outer:?}");
}

#[test]
fn a_panic_ends_a_measurement() {
    let ((), usage) = measure(|| {
        let result = std::panic::catch_unwind(|| measure(|| panic!("told to")));
        assert!(result.is_err());
    });
    let ((), after) = measure(|| drop(vec![0u8; 100]));
    assert_eq!((after.peak, after.kept), (100, 0), "{usage:?}");
}
