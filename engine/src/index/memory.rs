//! What allocations cost, and how much room to ask for.
//!
//! Memory is counted as the allocator takes it: glibc's malloc hands out multiples of 16 bytes, at least 32, of which it
//! keeps 8 for itself. What other allocators add is of that order.

const HEADER_BYTES: usize = 8;
const GRANULE_BYTES: usize = 16;
const LEAST_BYTES: usize = 32;

/// Bytes that an allocation of `bytes` takes; none for none.
pub(super) fn allocated(bytes: usize) -> u64 {
    match bytes {
        0 => 0,
        bytes => (bytes + HEADER_BYTES).next_multiple_of(GRANULE_BYTES).max(LEAST_BYTES) as u64,
    }
}

/// The size of a page's allocation that is to hold `needed` bytes now and a little more soon: what the allocator rounds
/// up to, of a 32nd more. Less room means more copying, more room more waste (docs/decisions/0009).
pub(super) fn roomy(needed: usize) -> usize {
    let wanted = needed + needed / 32 + HEADER_BYTES;
    wanted.next_multiple_of(GRANULE_BYTES).max(LEAST_BYTES) - HEADER_BYTES
}

/// Whether so large an allocation should be exchanged for a `roomy` one.
pub(super) fn is_wasteful(capacity: usize, needed: usize) -> bool {
    capacity > needed + needed / 8 + 4 * GRANULE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_the_allocator_rounds_up_to_and_is_not_wasteful() {
        for needed in 1..10_000 {
            let capacity = roomy(needed);
            assert_eq!(allocated(capacity), (capacity + HEADER_BYTES) as u64);
            assert!(capacity >= needed && !is_wasteful(capacity, needed), "{needed}: {capacity}");
        }
        assert_eq!(allocated(0), 0);
    }
}
