//! The allocator's side of the meter. Unsafe because the trait is: every call goes to the inner allocator unchanged.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};

use crate::note;

/// An allocator that counts, per thread, what goes through it.
#[derive(Debug, Default)]
pub struct Metered<A>(pub A);

// SAFETY: each method hands its arguments to the inner allocator as they are and returns its answer; counting touches
// thread-local integers only, neither allocates nor panics.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Metered<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps this method's contract, which is the inner one's.
        let pointer = unsafe { self.0.alloc(layout) };
        if !pointer.is_null() {
            note(layout.size().cast_signed());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { self.0.alloc_zeroed(layout) };
        if !pointer.is_null() {
            note(layout.size().cast_signed());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(pointer, layout) };
        note(-layout.size().cast_signed());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { self.0.realloc(pointer, layout, size) };
        if !moved.is_null() {
            note(size.cast_signed() - layout.size().cast_signed());
        }
        moved
    }
}
