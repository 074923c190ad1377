//! An allocator that counts what is allocated, in the sizes that glibc's malloc makes of it: multiples of 16 bytes, at
//! least 32, of which it keeps 8 for itself.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<i64> = const { Cell::new(0) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that this thread holds; those that it freed for others count against it.
pub(crate) fn allocated_bytes() -> i64 {
    ALLOCATED.get()
}

/// Allocations of this thread so far, in number.
pub(crate) fn allocations() -> u64 {
    CALLS.get()
}

pub(crate) struct CountingAllocator;

fn taken(layout: Layout) -> i64 {
    (layout.size() + 8).next_multiple_of(16).max(32) as i64
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches nothing of the memory and does
// not allocate (the counters are thread-locals with constant initial values and no destructor).
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + taken(layout));
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + taken(layout));
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above, of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.set(ALLOCATED.get() - taken(layout));
        // SAFETY: as above, of `dealloc`; the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}
