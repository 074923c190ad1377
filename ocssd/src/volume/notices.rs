//! What the device says of its chunks, in the words of lines, and what the volume finds out itself: one stream of notices
//! for the host's list of what to rewrite ([`RefreshList`](crate::policy::refresh::RefreshList)).
//!
//! Its own notices: a line with a chunk that is offline ([`NoticeKind::Offline`]); a sector that cannot be read
//! ([`NoticeKind::Unrecoverable`]); a line that takes no more writes since a chunk of it failed and could not be
//! replaced, of which what is there is good ([`NoticeKind::EccHigh`]). Each is kept once until it is taken, or the line
//! is reset.

use super::assignment::MemberId;
use super::shared::{Shared, State};
use crate::geometry::ChunkId;
use crate::media::{Media, Notice, NoticeKind};

/// A notice of the volume's own: line, what it says, sectors of the line.
pub(super) type OwnNotice = (u32, NoticeKind, Option<(u32, u32)>);

impl State {
    /// Keeps a notice of the volume's own for the host.
    pub(super) fn notice(&mut self, line: u32, sectors: Option<(u32, u32)>, kind: NoticeKind) {
        self.noticed.insert((line, kind, sectors));
    }

    /// A line begins a new life: whatever was wrong with it is gone.
    pub(super) fn forget_notices(&mut self, line: u32) {
        self.noticed.retain(|(noticed, ..)| *noticed != line);
    }
}

impl<M: Media> Shared<M> {
    /// [`Media::take_notices`]: those of members as notices of their lines, one for each stripe unit concerned, then the
    /// volume's own. Those of spares and of metadata are dealt with here.
    pub(super) fn take_notices(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        for notice in self.media.take_notices() {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if notice.chunk.0 >= self.assignment.geometry.chunk_count() {
                continue;
            }
            match self.member_on(state, notice.chunk) {
                Some(id) => self.on_line(state, id, notice, &mut notices),
                None => self.off_lines(state, notice),
            }
        }
        let own = std::mem::take(&mut self.state.borrow_mut().noticed);
        notices.extend(own.into_iter().map(|(line, kind, sectors)| Notice {
            chunk: ChunkId(line),
            sectors,
            kind,
        }));
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

    fn on_line(&self, state: &mut State, id: MemberId, notice: Notice, notices: &mut Vec<Notice>) {
        let (stripe, chunk, kind) = (&self.assignment.stripe, ChunkId(id.line), notice.kind);
        let Some((first, count)) = notice.sectors else {
            if kind == NoticeKind::Offline {
                // Empty it would pass for sound until a program of it fails; the next reset replaces it.
                state.lines[id.line as usize].members[id.member as usize].free = false;
            }
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
            if notice.kind > NoticeKind::EccLow && state.places.leave(notice.chunk) {
                // The next record goes elsewhere, and whatever is next to be durable writes one.
                state.tables_version += 1;
            }
        } else if notice.kind == NoticeKind::Offline && state.spares.contains(notice.chunk) {
            state.retire_for_good(notice.chunk);
        }
    }
}
