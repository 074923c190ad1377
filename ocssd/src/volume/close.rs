//! Closing lines: on purpose, and by a power cut.
//!
//! **Finish.** What waits in memory is written, then every member that is open is finished. On a device that knows no
//! such command the backend pads the chunk to its end. After the next flush all of it is durable, the last `mw_cunits`
//! sectors of each member too, for they are those of *open* chunks. Members that hold nothing stay free: padding them
//! would make the line look longer than it is. No padding of our own is needed, since the smallest write of a line is
//! that of its members; what of the line stays unused is counted as padding all the same.
//!
//! # What a power cut leaves
//!
//! Each member comes back with a write pointer of its own, anywhere between what was durable there and what was
//! submitted, so the members of a line end unevenly. What is the line then?
//!
//! *The longest prefix, no more.* A sector counts as there if its member's pointer is beyond it. The line ends at the
//! first sector that is not there, for the host reads a line front to back and takes what is below the write pointer as
//! written. What is beyond that on other members is dropped.
//!
//! *Nothing durable is lost by that.* Let the host have been promised everything below `P`. A flush promises only after
//! a barrier that covered **all** members up to the line's write pointer; a durable write at sector `s` is acknowledged
//! only when everything below `s` is durable as well ([`flush`](super::flush)). So every member's pointer comes back at
//! or beyond what it has below `P`, and the prefix is at least `P`.
//!
//! *A line with uneven members cannot go on.* The next sector of the line belongs to a member at its pointer, but some
//! other member is already beyond what the line has of it, and flash is not rewound. Padding the line up to the
//! furthest member would let it go on, at the price of handing out zeros (or old bytes) that nobody wrote as if they
//! had been; and log-structured hosts open a fresh segment after a start anyway. So it is **closed** at the prefix.
//! Its open members are finished, so that all of it can be read.
//!
//! *A line whose members end just where round robin would have left them* is as it was, and stays open if the device
//! hides nothing. Else it is closed too: the last `mw_cunits` sectors of an open chunk can be read by nobody, since the
//! memory that held them is gone, and nothing durable follows them. Closed and flushed, all of it can be read, and none
//! of it is lost to the next cut. To let it go on, each of its members would have to be copied to a spare.
//!
//! *Old content never looks new.* A reset resolves only when it is durable on all members, so no member comes back with
//! an earlier life's pointer behind a newer life's writes.
//!
//! A member that is offline says nothing of where it ended. It does not limit the prefix: the others' sectors can still
//! be read, and its own give a typed error. If all members are gone, the line is closed at its end and every read
//! fails, so that the loss is noticed rather than taken for an empty chunk.

use std::rc::Rc;

use futures_util::future::join_all;

use super::line::{Health, Remains};
use super::shared::Shared;
use super::stripe::Stripe;
use crate::geometry::ChunkId;
use crate::media::{ChunkState, Media, MediaError};

/// What a line is, from what the device says of its members: state and write pointer of each, in order.
pub(super) fn recovered(stripe: &Stripe, ws_min: u32, members: &[(ChunkState, u32)]) -> (ChunkState, u32) {
    let end = |(state, pointer): &(ChunkState, u32)| match state {
        ChunkState::Offline => None,
        ChunkState::Free => Some(0),
        ChunkState::Open | ChunkState::Closed => Some((*pointer).min(stripe.chunk_sectors)),
    };
    let prefix = stripe.prefix(members.iter().map(end));
    if prefix == stripe.line_sectors() {
        return (ChunkState::Closed, prefix);
    }
    let even = members.iter().enumerate().all(|(index, (state, pointer))| {
        let expected = stripe.member_end(index, prefix);
        match state {
            ChunkState::Offline => false,
            ChunkState::Free => expected == 0,
            ChunkState::Open => *pointer == expected && expected < stripe.chunk_sectors,
            ChunkState::Closed => *pointer == expected && expected == stripe.chunk_sectors,
        }
    });
    let empty = members.iter().all(|(state, pointer)| match state {
        ChunkState::Free | ChunkState::Offline => true,
        ChunkState::Open => *pointer == 0,
        ChunkState::Closed => false,
    });
    match (empty && prefix == 0, even && prefix.is_multiple_of(ws_min)) {
        (true, _) => (ChunkState::Free, 0),
        (false, true) => (ChunkState::Open, prefix),
        (false, false) => (ChunkState::Closed, prefix / ws_min * ws_min),
    }
}

/// Closes lines that may not stay open: all of them on a device that hides sectors of open chunks; else those beyond the
/// limit of open ones, the fullest first, for a power cut may have taken the last sector of a line that was full, which
/// makes one more that is open.
pub(super) fn limit_open(lines: &mut [(ChunkState, u32)], hidden: u32, max_open: u32) {
    let may_stay = match (hidden, max_open) {
        (0, 0) => usize::MAX,
        (0, _) => max_open as usize,
        _ => 0,
    };
    let mut open: Vec<usize> = (0..lines.len()).filter(|index| lines[*index].0 == ChunkState::Open).collect();
    open.sort_by_key(|index| (lines[*index].1, *index));
    for index in open.into_iter().skip(may_stay) {
        lines[index].0 = ChunkState::Closed;
    }
}

impl<M: Media> Shared<M> {
    /// [`Media::finish`].
    pub(super) async fn finish(self: &Rc<Self>, chunk: ChunkId) -> Result<(), MediaError> {
        {
            let mut state = self.state.borrow_mut();
            if state.lines.get(chunk.0 as usize).is_some()
                && let Some(error) = state.broken("finish", chunk.0, 0)
            {
                return Err(error);
            }
            state.table.check_finish(chunk)?;
            let line = &mut state.lines[chunk.0 as usize];
            if line.finishing {
                let reason = "a finish of the chunk is in flight";
                return Err(MediaError::Rule { operation: "finish", chunk, sector: 0, reason });
            }
            line.finishing = true;
            for member in &mut line.members {
                member.want(member.buffer.end());
            }
            // Until a flush covers it, the members' last sectors are not durable.
            state.unsettled.insert(chunk.0);
        }
        self.pump(chunk.0, false);
        let shared = Rc::clone(self);
        self.run(async move { shared.finish_members(chunk).await }).await
    }

    async fn finish_members(self: Rc<Self>, chunk: ChunkId) -> Result<(), MediaError> {
        loop {
            self.jobs.wait(|| self.at_rest(chunk.0)).await;
            let open: Vec<(usize, ChunkId)> = {
                let mut state = self.state.borrow_mut();
                if let Some(error) = state.broken("finish", chunk.0, 0) {
                    state.lines[chunk.0 as usize].finishing = false;
                    return Err(error);
                }
                let members = state.lines[chunk.0 as usize].members.iter().enumerate();
                let open = members.filter(|(_, member)| {
                    !member.finished && member.issued() > 0 && member.issued() < self.limits.chunk_sectors
                });
                open.map(|(index, member)| (index, member.chunk)).collect()
            };
            if open.is_empty() {
                break;
            }
            let results = join_all(open.iter().map(|(_, chunk)| self.media.finish(*chunk))).await;
            for ((index, _), result) in open.into_iter().zip(results) {
                self.finished(chunk.0, index, result);
            }
        }
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.table.finish(chunk);
        // A flush that began before the close did not cover it.
        state.unsettled.insert(chunk.0);
        let line = &mut state.lines[chunk.0 as usize];
        line.finishing = false;
        let unused = self.geometry.chunk_sectors - line.end();
        state.padding_bytes += u64::from(unused) * u64::from(self.geometry.sector_bytes);
        drop(guard);
        self.pump_waiting();
        Ok(())
    }

    /// A member was finished, or not.
    fn finished(self: &Rc<Self>, line: u32, index: usize, result: Result<(), MediaError>) {
        let mut state = self.state.borrow_mut();
        let member = &mut state.lines[line as usize].members[index];
        if member.note_finish(&result, &self.limits) {
            return;
        }
        let verdict = super::line::verdict(&mut result.err().into_iter().collect());
        drop(state);
        match verdict {
            Ok(failure) => self.begin_evacuation(line, index, failure),
            // Closing the broken line tries once more.
            Err(broken) => self.give_up(line, index, Remains::Done, broken),
        }
    }

    /// Whether everything of the line was written and nothing is under way; or it is broken.
    fn at_rest(&self, line: u32) -> Option<()> {
        let state = self.state.borrow();
        let line = &state.lines[line as usize];
        let at_rest = |member: &super::line::Member| {
            let busy = matches!(member.health, Health::Failing | Health::Evacuating);
            !busy && member.done() == member.buffer.end()
        };
        (line.broken.is_some() || line.members.iter().all(at_rest)).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use ChunkState::{Closed, Free, Offline, Open};

    use super::*;

    /// Three members of four units of two sectors.
    const STRIPE: Stripe = Stripe { width: 3, unit_sectors: 2, chunk_sectors: 8 };

    fn line(members: [(ChunkState, u32); 3]) -> (ChunkState, u32) {
        recovered(&STRIPE, 1, &members)
    }

    #[test]
    fn an_even_line_is_as_it_was() {
        assert_eq!(line([(Free, 0), (Free, 0), (Free, 0)]), (Free, 0));
        assert_eq!(line([(Open, 1), (Free, 0), (Free, 0)]), (Open, 1));
        assert_eq!(line([(Open, 2), (Open, 2), (Open, 1)]), (Open, 5));
        assert_eq!(line([(Closed, 8), (Closed, 8), (Open, 7)]), (Open, 23));
        assert_eq!(line([(Closed, 8), (Closed, 8), (Closed, 8)]), (Closed, 24));
        assert_eq!(line([(Open, 0), (Free, 0), (Free, 0)]), (Free, 0), "opened, and not written");
    }

    #[test]
    fn an_uneven_line_is_closed_at_its_prefix() {
        assert_eq!(line([(Open, 4), (Open, 2), (Open, 4)]), (Closed, 8));
        assert_eq!(line([(Free, 0), (Open, 2), (Free, 0)]), (Closed, 0));
        assert_eq!(line([(Open, 4), (Open, 3), (Open, 2)]), (Open, 9));
        assert_eq!(line([(Open, 4), (Open, 1), (Open, 2)]), (Closed, 3));
        assert_eq!(line([(Closed, 8), (Free, 0), (Closed, 8)]), (Closed, 2), "a reset that was cut short");
    }

    #[test]
    fn a_line_that_was_finished_is_closed() {
        assert_eq!(line([(Closed, 2), (Closed, 1), (Free, 0)]), (Closed, 3));
        assert_eq!(line([(Closed, 2), (Open, 1), (Free, 0)]), (Closed, 3), "a finish that was cut short");
        assert_eq!(line([(Closed, 8), (Closed, 8), (Free, 0)]), (Closed, 4), "padded by the device");
    }

    #[test]
    fn a_member_that_is_gone_does_not_hide_the_others() {
        assert_eq!(line([(Closed, 8), (Offline, 0), (Closed, 8)]), (Closed, 24));
        assert_eq!(line([(Offline, 0), (Open, 2), (Open, 2)]), (Closed, 8));
        assert_eq!(line([(Offline, 0), (Free, 0), (Free, 0)]), (Closed, 2), "it may have held something");
        assert_eq!(
            line([(Free, 0), (Offline, 0), (Free, 0)]),
            (Free, 0),
            "nothing was promised beyond sector 0"
        );
        assert_eq!(line([(Offline, 0), (Offline, 0), (Offline, 0)]), (Closed, 24));
    }

    #[test]
    fn the_fullest_lines_beyond_the_limit_are_closed() {
        let mut lines = [(Open, 3), (Closed, 24), (Open, 23), (Free, 0), (Open, 7), (Open, 7)];
        limit_open(&mut lines, 0, 0);
        assert_eq!(lines[2], (Open, 23));
        limit_open(&mut lines, 0, 2);
        assert_eq!(lines, [(Open, 3), (Closed, 24), (Closed, 23), (Free, 0), (Open, 7), (Closed, 7)]);
    }

    #[test]
    fn no_line_stays_open_where_its_last_sectors_are_hidden() {
        let mut lines = [(Open, 3), (Closed, 24), (Free, 0)];
        limit_open(&mut lines, 1, 2);
        assert_eq!(lines, [(Closed, 3), (Closed, 24), (Free, 0)]);
    }

    #[test]
    fn pointers_that_make_no_sense_are_rounded() {
        assert_eq!(recovered(&STRIPE, 2, &[(Open, 2), (Open, 1), (Free, 0)]), (Closed, 2));
        assert_eq!(line([(Closed, 99), (Closed, 99), (Closed, 99)]), (Closed, 24));
    }
}
