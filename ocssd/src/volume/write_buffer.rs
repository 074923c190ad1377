//! What the host keeps in memory of an open chunk: what the device does not have yet, and what it cannot return yet.
//!
//! ```text
//!         readable from the device    hidden      waiting
//! 0 ------------------------------|-----------|------------|
//!                                 ^           ^            ^
//!                               start       issued        end
//!                                 +---- in memory ---------+
//! ```
//!
//! *Hidden* are the last `mw_cunits` sectors below the device's write pointer of an open chunk, and whatever is still
//! on its way to it; *waiting* are sectors that do not fill a stripe unit, which become one program with what follows,
//! as they would in a drive's cache.
//!
//! **Memory.** A member holds at most `mw_cunits` hidden sectors, less than one stripe unit that waits, and what the
//! host has in flight. So an open line costs `width * mw_cunits + unit` sectors of memory (only the unit at the line's
//! write pointer is partly filled), beside the writes in flight; a closed one nothing, unless it broke: that one keeps what
//! it had until it is reset.

use std::collections::VecDeque;

/// A run of sectors in memory that grows at its end and is forgotten from its start.
#[derive(Debug)]
pub(super) struct WriteBuffer {
    start: u32,
    sector_bytes: usize,
    bytes: VecDeque<u8>,
}

impl WriteBuffer {
    /// Nothing, with `sector` as the next one.
    pub(super) fn at(sector: u32, sector_bytes: usize) -> Self {
        Self { start: sector, sector_bytes, bytes: VecDeque::new() }
    }

    /// First sector in memory.
    pub(super) fn start(&self) -> u32 {
        self.start
    }

    /// First sector beyond those in memory.
    pub(super) fn end(&self) -> u32 {
        self.start + (self.bytes.len() / self.sector_bytes) as u32
    }

    /// Adds whole sectors at the end.
    pub(super) fn push(&mut self, sectors: &[u8]) {
        debug_assert!(sectors.len().is_multiple_of(self.sector_bytes));
        self.bytes.extend(sectors);
    }

    /// Fills `out` with the sectors from `sector` on.
    ///
    /// # Panics
    /// If one of them is not in memory.
    pub(super) fn copy_out(&self, sector: u32, out: &mut [u8]) {
        assert!(sector >= self.start, "sector {sector} was forgotten: memory begins at {}", self.start);
        let from = (sector - self.start) as usize * self.sector_bytes;
        let (front, back) = self.bytes.as_slices();
        let in_front = front.len().saturating_sub(from).min(out.len());
        out[..in_front].copy_from_slice(&front[from.min(front.len())..][..in_front]);
        let rest = &mut out[in_front..];
        let from_back = (from + in_front).saturating_sub(front.len());
        rest.copy_from_slice(&back[from_back..from_back + rest.len()]);
    }

    /// Forgets what is below `sector`.
    pub(super) fn forget_below(&mut self, sector: u32) {
        let sector = sector.min(self.end());
        if sector > self.start {
            self.bytes.drain(..(sector - self.start) as usize * self.sector_bytes);
            self.start = sector;
            if self.bytes.is_empty() {
                self.bytes = VecDeque::new();
            }
        }
    }
}

/// Where the next program of a member ends, if one is due: whole units at once, a part of one only as far as it is
/// `wanted` (by a flush, a durable write, a finish).
pub(super) fn program_end(issued: u32, end: u32, wanted: u32, unit_sectors: u32) -> Option<u32> {
    let whole_units = end / unit_sectors * unit_sectors;
    let to = whole_units.max(wanted.min(end));
    (to > issued).then_some(to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unit_is_written_when_it_is_full() {
        assert_eq!(program_end(0, 7, 0, 8), None);
        assert_eq!(program_end(0, 8, 0, 8), Some(8));
        assert_eq!(program_end(0, 30, 0, 8), Some(24));
        assert_eq!(program_end(24, 30, 0, 8), None);
    }

    #[test]
    fn a_part_of_a_unit_is_written_when_wanted() {
        assert_eq!(program_end(0, 7, 7, 8), Some(7));
        assert_eq!(program_end(7, 8, 7, 8), Some(8), "the rest of the unit once it is full");
        assert_eq!(program_end(7, 7, 7, 8), None);
        assert_eq!(program_end(0, 5, 9, 8), Some(5), "no more than there is");
    }

    proptest! {
        /// Against a plain vector, with the start moved at will.
        #[test]
        fn memory_is_what_was_pushed(steps in prop::collection::vec((1..5usize, 0..12u32), 1..40)) {
            let mut buffer = WriteBuffer::at(3, 2);
            let mut all: Vec<u8> = vec![0; 6];
            let mut next = 0u8;
            for (count, forget) in steps {
                let sectors: Vec<u8> = (0..count * 2).map(|_| { next = next.wrapping_add(1); next }).collect();
                buffer.push(&sectors);
                all.extend(&sectors);
                buffer.forget_below(buffer.start() + forget);
                prop_assert_eq!(buffer.end() as usize * 2, all.len());
                for from in buffer.start()..buffer.end() {
                    let mut out = vec![0; (buffer.end() - from) as usize * 2];
                    buffer.copy_out(from, &mut out);
                    prop_assert_eq!(&out[..], &all[from as usize * 2..]);
                    buffer.copy_out(from, &mut out[..2]);
                }
            }
        }
    }
}
