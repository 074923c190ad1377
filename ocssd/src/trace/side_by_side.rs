//! Several shards on one drive: their traces joined into one.
//!
//! Traces carry no times. Those that were recorded together began and ended together, so each is taken to be always as
//! far through the bytes that it writes as the others are: who writes twice as much writes twice as fast.
//!
//! Invariants:
//! - Of each trace every event is there, in its order.
//! - Chunks of the traces are apart, in the order of the traces; so are lifetime classes, numbered without gaps.

use std::collections::BTreeMap;

use crate::geometry::{ChunkId, Geometry};
use crate::media::LifetimeClass;
use crate::trace::{Event, Tail, Trace};

/// Why traces cannot be put side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SideBySideError {
    /// There is none.
    #[error("there is no trace")]
    NoTrace,
    /// One was not recorded on a slice of the same device: those are alike.
    #[error("trace {number} is of a medium of another shape than the first")]
    OtherShape {
        /// Which, from 1.
        number: usize,
    },
    /// More chunks than there are numbers.
    #[error("the traces have more chunks together than can be numbered")]
    TooManyChunks,
    /// More lifetime classes than there are numbers.
    #[error("the traces have more than 256 lifetime classes together")]
    TooManyClasses,
}

/// The traces of the shards of one drive as one trace of a medium that is all their slices in a row. It is cut off if
/// one of them is.
///
/// # Errors
/// If they are not of shards of one drive, or too many.
pub fn side_by_side(traces: &[Trace]) -> Result<Trace, SideBySideError> {
    let first = traces.first().ok_or(SideBySideError::NoTrace)?;
    if let Some(other) = traces.iter().position(|trace| trace.geometry != first.geometry) {
        return Err(SideBySideError::OtherShape { number: other + 1 });
    }
    let geometry = all_slices(&first.geometry, traces.len()).ok_or(SideBySideError::TooManyChunks)?;
    let mut classes = BTreeMap::new();
    for (number, trace) in traces.iter().enumerate() {
        for event in &trace.events {
            if let Event::Write { class, .. } = event {
                classes.insert((number, *class), LifetimeClass(0));
            }
        }
    }
    for (index, class) in classes.values_mut().enumerate() {
        *class = LifetimeClass(u8::try_from(index).map_err(|_| SideBySideError::TooManyClasses)?);
    }
    let mut lanes: Vec<Lane<'_>> = traces.iter().map(Lane::new).collect();
    let mut events = Vec::with_capacity(traces.iter().map(|trace| trace.events.len()).sum());
    while let Some(number) = least_far(&lanes) {
        let event = lanes[number].next();
        let there = |chunk: ChunkId| ChunkId(first.geometry.chunk_count() * number as u32 + chunk.0);
        events.push(match event {
            Event::Write { chunk, sector, sectors, class } => {
                Event::Write { chunk: there(chunk), sector, sectors, class: classes[&(number, class)] }
            }
            Event::Reset { chunk } => Event::Reset { chunk: there(chunk) },
            Event::Finish { chunk } => Event::Finish { chunk: there(chunk) },
        });
    }
    let tail = traces.iter().map(|trace| trace.tail).find(|tail| *tail != Tail::Ended);
    Ok(Trace { geometry, events, tail: tail.unwrap_or(Tail::Ended) })
}

fn all_slices(slice: &Geometry, count: usize) -> Option<Geometry> {
    let count = u32::try_from(count).ok()?;
    slice.chunk_count().checked_mul(count)?;
    Some(Geometry { groups: slice.groups * count, max_open: slice.max_open.saturating_mul(count), ..*slice })
}

/// One of the traces, as far as it was taken.
struct Lane<'a> {
    left: &'a [Event],
    sectors_done: u64,
    sectors: u64,
}

impl<'a> Lane<'a> {
    fn new(trace: &'a Trace) -> Self {
        Self { left: &trace.events, sectors_done: 0, sectors: trace.written_sectors() }
    }

    fn next(&mut self) -> Event {
        let (event, left) = self.left.split_first().expect("only a trace that goes on is taken from");
        self.left = left;
        self.sectors_done += event.written_sectors();
        *event
    }
}

/// The trace that is least far through what it writes, of those that are not at their end; the first among equals.
fn least_far(lanes: &[Lane<'_>]) -> Option<usize> {
    // done / all, compared without division.
    let further = |one: &Lane<'_>, other: &Lane<'_>| {
        u128::from(one.sectors_done) * u128::from(other.sectors)
            > u128::from(other.sectors_done) * u128::from(one.sectors)
    };
    let mut least: Option<usize> = None;
    for (number, lane) in lanes.iter().enumerate().filter(|(_, lane)| !lane.left.is_empty()) {
        if least.is_none_or(|least| further(&lanes[least], lane)) {
            least = Some(number);
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Geometry = Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 10,
        chunk_sectors: 8,
        sector_bytes: 4096,
        ws_min: 1,
        ws_opt: 1,
        mw_cunits: 0,
        max_open: 0,
    };

    fn trace(events: Vec<Event>) -> Trace {
        Trace { geometry: SLICE, events, tail: Tail::Ended }
    }

    fn write(chunk: u32, sector: u32, sectors: u32, class: u8) -> Event {
        Event::Write { chunk: ChunkId(chunk), sector, sectors, class: LifetimeClass(class) }
    }

    fn reset(chunk: u32) -> Event {
        Event::Reset { chunk: ChunkId(chunk) }
    }

    /// The second writes twice as much, so twice between any two writes of the first.
    #[test]
    fn each_is_as_far_as_the_others() {
        let slow =
            trace(vec![reset(2), write(2, 0, 2, 0), write(2, 2, 2, 0), Event::Finish { chunk: ChunkId(2) }]);
        let fast = trace(vec![write(0, 0, 2, 0), write(0, 2, 2, 5), write(0, 4, 2, 0), write(0, 6, 2, 0)]);
        let joined = side_by_side(&[slow, fast]).unwrap();
        assert_eq!(joined.geometry.chunk_count(), 20);
        let expected = [
            reset(2),
            write(2, 0, 2, 0),
            write(10, 0, 2, 1),
            write(10, 2, 2, 2),
            write(2, 2, 2, 0),
            write(10, 4, 2, 1),
            write(10, 6, 2, 1),
            Event::Finish { chunk: ChunkId(2) },
        ];
        assert_eq!(joined.events, expected);
    }

    #[test]
    fn one_alone_stays_as_it_is() {
        let mut one = trace(vec![reset(1), write(1, 0, 8, 0), write(3, 0, 1, 1)]);
        assert_eq!(side_by_side(std::slice::from_ref(&one)).unwrap(), one);
        one.tail = Tail::CutOff { whole_bytes: 99 };
        let joined = side_by_side(&[trace(vec![]), one.clone()]).unwrap();
        assert_eq!((joined.events.len(), joined.tail), (3, one.tail));
    }

    #[test]
    fn what_shares_no_drive_is_refused() {
        let refused = |traces: &[Trace]| side_by_side(traces).unwrap_err();
        assert_eq!(refused(&[]), SideBySideError::NoTrace);
        let mut other = trace(vec![]);
        other.geometry.chunk_sectors = 16;
        assert_eq!(refused(&[trace(vec![]), other]), SideBySideError::OtherShape { number: 2 });
        let mut large = trace(vec![]);
        large.geometry.groups = 1 << 28;
        assert_eq!(refused(&[large.clone(), large]), SideBySideError::TooManyChunks);
        let of_all_classes = trace((0..=255).map(|class| write(0, 0, 1, class)).collect());
        side_by_side(std::slice::from_ref(&of_all_classes)).unwrap();
        assert_eq!(
            refused(&[of_all_classes, trace(vec![write(0, 0, 1, 0)])]),
            SideBySideError::TooManyClasses
        );
    }
}
