//! What the device says of its chunks, in the words of lines.

use super::assignment::MemberId;
use super::shared::{Shared, State};
use crate::geometry::ChunkId;
use crate::media::{Media, Notice, NoticeKind};

impl<M: Media> Shared<M> {
    /// [`Media::take_notices`]: those of members as notices of their lines, one for each stripe unit concerned. Those of
    /// spares and of metadata are dealt with here.
    pub(super) fn take_notices(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        for notice in self.media.take_notices() {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if notice.chunk.0 >= self.assignment.geometry.chunk_count() {
                continue;
            }
            match self.member_on(state, notice.chunk) {
                Some(id) => {
                    if notice.kind != NoticeKind::EccLow {
                        state.lines[id.line as usize].mark(notice.kind);
                    }
                    self.on_line(id, notice, &mut notices);
                }
                None => self.off_lines(state, notice),
            }
        }
        notices
    }

    /// The member that stands on a chunk.
    fn member_on(&self, state: &State, chunk: ChunkId) -> Option<MemberId> {
        let stands = |id: &MemberId| {
            state
                .lines
                .get(id.line as usize)
                .and_then(|line| line.members.get(id.member as usize))
                .is_some_and(|member| member.chunk == chunk)
        };
        let at_home = self.assignment.member_at_home(chunk).filter(stands);
        at_home.or_else(|| state.tables.remaps.keys().copied().find(stands)).or_else(|| {
            // Evacuated and not recorded yet.
            let members = |line: &u32| {
                (0..self.assignment.stripe.width).map({
                    let line = *line;
                    move |member| MemberId { line, member }
                })
            };
            state.unsettled.iter().flat_map(members).find(stands)
        })
    }

    fn on_line(&self, id: MemberId, notice: Notice, notices: &mut Vec<Notice>) {
        let (stripe, chunk, kind) = (&self.assignment.stripe, ChunkId(id.line), notice.kind);
        let Some((first, count)) = notice.sectors else {
            notices.push(Notice { chunk, sectors: None, kind });
            return;
        };
        let end = first.saturating_add(count).min(stripe.chunk_sectors);
        let mut at = first;
        while at < end {
            let unit_end = ((at / stripe.unit_sectors + 1) * stripe.unit_sectors).min(end);
            let sector = stripe.sector_of(id.member as usize, at);
            notices.push(Notice { chunk, sectors: Some((sector, unit_end - at)), kind });
            at = unit_end;
        }
    }

    fn off_lines(&self, state: &mut State, notice: Notice) {
        if state.places.is_candidate(notice.chunk) {
            if notice.kind > NoticeKind::EccLow {
                // The next record goes elsewhere, and whatever is next to be durable writes one.
                state.places.leave(notice.chunk);
                state.places.invalidate();
            }
        } else if notice.kind == NoticeKind::Offline
            && (state.spares.ready.contains(&notice.chunk) || state.spares.used.contains(&notice.chunk))
        {
            state.retire_for_good(notice.chunk);
        }
    }
}
