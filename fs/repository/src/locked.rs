//! Memory that the system does not write to swap.

use std::mem::ManuallyDrop;

/// Locks the pages on which `value` lies, where the system permits it (`RLIMIT_MEMLOCK`). They stay locked until the process ends:
/// locks don't nest, and another key may lie on the same page. So this is for what lives long and does not move.
pub(crate) fn keep_out_of_swap<T>(value: &T) {
    // Its end would unlock them.
    let locked = region::lock(std::ptr::from_ref(value), size_of::<T>()).map(ManuallyDrop::new);
    if let Err(error) = locked {
        tracing::debug!("Keys could not be locked into memory: {error}");
    }
}
