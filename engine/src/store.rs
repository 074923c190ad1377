//! The store's handle: what a host calls.
//!
//! Invariants: no borrow of the core lives across an await; nothing here reads a clock, draws a random number or
//! knows a runtime. Futures wait on the medium or on the store's own watches.

use std::cell::{RefCell, RefMut};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use terrane_ocssd::Media;

use crate::anchor::{self, Anchor, Found};
use crate::compression::Decompressor;
use crate::core::{Core, Counters};
use crate::entry::{ENTRY_MEMBERSHIP, ENTRY_NOOP, ENTRY_OPS, Entry, GroupId, HardState, Lsn, VOTE_SPENT};
use crate::error::{AppendError, ApplyError, FormatError, Malformed, OpenError, StoreError};
use crate::group::{self, Group, StatePending};
use crate::hint;
use crate::op;
use crate::options::Options;
use crate::record::Extent;
use crate::recovery::{self, Recovery};
use crate::slice::{ANCHOR_CHUNKS, Layout, SliceId};
use crate::watch::{Seat, Watch};

/// One shard's store over one slice. A handle: clones share the store. It belongs to one thread.
pub struct Store<M: Media> {
    pub(crate) shared: Rc<Shared<M>>,
}

pub(crate) struct Shared<M: Media> {
    pub(crate) media: M,
    pub(crate) slice: SliceId,
    pub(crate) options: Options,
    pub(crate) epoch: u32,
    pub(crate) core: RefCell<Core>,
    /// Borrowed for one value at a time.
    pub(crate) decompressor: RefCell<Decompressor>,
    /// Something became durable, or nothing ever will again.
    pub(crate) progress: Watch,
    /// The flusher has something to do.
    pub(crate) work: Watch,
}

impl<M: Media> Clone for Store<M> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl<M: Media> std::fmt::Debug for Store<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("slice", &self.shared.slice).finish_non_exhaustive()
    }
}

impl<M: Media> Store<M> {
    /// Lays out an empty store. Only what gives birth to a node calls this (`terrane format` and the first run of
    /// `local` and `demo`): a replica that lost its memory and starts empty would vote again.
    ///
    /// The slice must not hold frames of an earlier store of the same identity: format zeroes the device first.
    /// Resolves when the first anchor is durable.
    pub async fn format(media: &M, slice: SliceId) -> Result<(), FormatError> {
        let layout = Layout::new(media.geometry()).map_err(FormatError::Geometry)?;
        let report = media.report().await?;
        for chunk in ANCHOR_CHUNKS {
            let info = &report[chunk.0 as usize];
            let readable = anchor::readable_bytes(&layout, info.state, info.write_pointer);
            if let Found::Valid(anchor) = anchor::read(media, &layout, chunk, readable).await?
                && anchor.slice == slice
            {
                return Err(FormatError::Exists(slice));
            }
        }
        let first = Anchor::first(slice);
        anchor::blank(media, &layout, first.other_chunk()).await?;
        let written = anchor::write(media, &layout, &first).await;
        written.map(drop).map_err(|error| match error {
            anchor::WriteError::Full => FormatError::Geometry("a chunk cannot hold an anchor"),
            anchor::WriteError::Media(error) => error.into(),
        })
    }

    /// Opens the store and recovers what is on the slice. A new epoch begins, durably.
    ///
    /// Memory: the index, 12 bytes per log entry, and the payloads of entries that are not known to be committed.
    pub async fn open(media: M, slice: SliceId, options: Options) -> Result<(Store<M>, Recovery), OpenError> {
        options.validate()?;
        let layout = Layout::new(media.geometry()).map_err(OpenError::Geometry)?;
        let (core, recovery) = recovery::recover(&media, &layout, slice, &options).await?;
        let store = Store {
            shared: Rc::new(Shared {
                media,
                slice,
                options,
                epoch: core.epoch,
                core: RefCell::new(core),
                decompressor: RefCell::default(),
                progress: Watch::default(),
                work: Watch::default(),
            }),
        };
        Ok((store, recovery))
    }

    /// Creates a group with an empty log. `membership` is the host's own encoding.
    ///
    /// Where damage was ever found on the slice, it may have taken all that was known of the group: then the group
    /// starts as suspect, with its vote spent in the highest term of the shard ([`Store::suspect`],
    /// [`Store::hard_state`]).
    ///
    /// The future resolves when the group is durable; it may be used at once.
    pub fn create_group(&self, group: GroupId, membership: Bytes) -> Result<Durable<M>, StoreError> {
        let mut core = self.shared.core.borrow_mut();
        core.check_accepts()?;
        if core.slot(group).is_some() {
            return Err(StoreError::GroupExists(group));
        }
        let mut group = Group::new(group, 1, membership);
        if core.damage_known {
            group.suspect = true;
            group.hard_state = HardState { term: core.term_max, vote: VOTE_SPENT, commit: 0 };
        }
        check_state_bytes(&core, group.state_bytes(0))?;
        if core.chunks_left_after_state(group.state_bytes(0)) < 0 {
            return Err(StoreError::Full);
        }
        let slot = core.add_group(group);
        Ok(self.durable_state(core, slot))
    }

    /// Appends entries at `first`, `first + 1`, ... Where the log already reaches that far, its tail from `first`
    /// on is truncated before.
    ///
    /// Within the life of a group, an index and a term name one entry for ever (Raft's log matching): entries that
    /// come again at a place and term that they had must be the same.
    ///
    /// The future resolves when the entries are durable on this replica, and so is the change of lineage that they
    /// bring; that says nothing of being committed. An error means that nothing happened.
    ///
    /// # Panics
    /// If `first` is applied already: Raft never truncates what is committed.
    pub fn append(&self, group: GroupId, first: u64, entries: Vec<Entry>) -> Result<Durable<M>, AppendError> {
        let mut core = self.shared.core.borrow_mut();
        let lsn = self.append_to(&mut core, group, first, entries)?;
        // A waker may run code that calls the store.
        drop(core);
        self.shared.work.wake_all();
        Ok(Durable::new(&self.shared, lsn, None))
    }

    /// Returns the LSN counter with which the entries are durable.
    fn append_to(
        &self,
        core: &mut Core,
        group: GroupId,
        first: u64,
        entries: Vec<Entry>,
    ) -> Result<u64, AppendError> {
        core.check_accepts()?;
        let slot = core.slot(group).ok_or(StoreError::UnknownGroup(group))?;
        let at = &core.groups[slot as usize];
        if first == 0 || first > at.last_index + 1 || first < at.first_index {
            return Err(AppendError::Gap { first, last: at.last_index });
        }
        if entries.is_empty() {
            return Ok(core.issued);
        }
        let before = at.term_at(first - 1).unwrap_or(0);
        let check = check_entries(core, slot, first, before, &entries)?;
        let at = &core.groups[slot as usize];
        let new_lineage = check.new_terms > 0 || first <= at.last_index || at.lineage_unrecorded;
        let (mut cost, mut largest) = (check.cost, check.largest);
        if new_lineage {
            let state_bytes = at.state_bytes(check.new_terms);
            check_state_bytes(core, state_bytes)?;
            let state_cost = core.state_cost(state_bytes);
            cost += state_cost;
            largest = largest.max(state_cost);
        }
        // What a leader needs to lead, and members to change, may use the reserve.
        let reserve = match entries.iter().any(|entry| entry.kind == ENTRY_OPS) {
            true => self.shared.options.append_reserve_chunks,
            false => 0,
        };
        if core.chunks_left(cost, largest) < i64::from(reserve) {
            return Err(AppendError::Full);
        }
        let limit = self.shared.options.index_bytes_max;
        let ops = entries.iter().filter(|entry| entry.kind == ENTRY_OPS);
        if !core.index_takes(slot, ops.flat_map(|entry| group::put_keys(&entry.payload)), limit) {
            return Err(AppendError::IndexFull { limit });
        }
        core.counters.user_bytes += check.user_bytes;
        core.allow_moves(check.user_bytes);
        let at = &mut core.groups[slot as usize];
        assert!(first > at.applied, "{group}: index {first} is applied and cannot be written again");
        let mut lineage_changed = std::mem::take(&mut at.lineage_unrecorded);
        if first <= at.last_index {
            let (bytes, changed) = core.change_index(slot, |at, log| at.truncate_from(first, log));
            lineage_changed |= changed;
            core.forget_tail(bytes);
        }
        for entry in entries {
            lineage_changed |= core.push_entry(slot, entry);
        }
        if lineage_changed {
            core.want_state(slot, StatePending::Wanted);
        }
        core.shrink_tail();
        Ok(core.issued)
    }

    /// Replaces a group's hard state. A vote must not change within its term.
    ///
    /// The future resolves when it is durable. It may overtake entries that were appended earlier.
    ///
    /// # Panics
    /// If the term falls.
    pub fn set_hard_state(&self, group: GroupId, hard_state: HardState) -> Result<Durable<M>, StoreError> {
        let mut core = self.shared.core.borrow_mut();
        core.check_accepts()?;
        let slot = core.slot(group).ok_or(StoreError::UnknownGroup(group))?;
        self.check_state_room(&core, slot)?;
        let at = &mut core.groups[slot as usize];
        assert!(hard_state.term >= at.hard_state.term, "{group}: the term never falls");
        at.hard_state = hard_state;
        core.term_max = core.term_max.max(hard_state.term);
        Ok(self.durable_state(core, slot))
    }

    /// Replaces a group's membership, when it is committed. The future resolves when it is durable.
    pub fn set_membership(&self, group: GroupId, membership: Bytes) -> Result<Durable<M>, StoreError> {
        let mut core = self.shared.core.borrow_mut();
        core.check_accepts()?;
        let slot = core.slot(group).ok_or(StoreError::UnknownGroup(group))?;
        let at = &core.groups[slot as usize];
        let state_bytes = at.state_bytes(0) - at.membership.len() as u64 + membership.len() as u64;
        check_state_bytes(&core, state_bytes)?;
        if core.chunks_left_after_state(state_bytes) < 0 {
            return Err(StoreError::Full);
        }
        core.groups[slot as usize].membership = membership;
        Ok(self.durable_state(core, slot))
    }

    /// The leader has repaired the group's log (or it was never short of anything): it is no longer suspect.
    /// The future resolves when that is durable.
    pub fn clear_suspect(&self, group: GroupId) -> Result<Durable<M>, StoreError> {
        let mut core = self.shared.core.borrow_mut();
        core.check_accepts()?;
        let slot = core.slot(group).ok_or(StoreError::UnknownGroup(group))?;
        self.check_state_room(&core, slot)?;
        core.groups[slot as usize].suspect = false;
        Ok(self.durable_state(core, slot))
    }

    fn check_state_room(&self, core: &Core, slot: u32) -> Result<(), StoreError> {
        let at = &core.groups[slot as usize];
        // A state that is pending anyway is counted already, and is written once.
        let left = match at.state_pending {
            StatePending::Wanted => core.chunks_left(0, 0),
            StatePending::Along | StatePending::No => core.chunks_left_after_state(at.state_bytes(0)),
        };
        if left < 0 { Err(StoreError::Full) } else { Ok(()) }
    }

    fn durable_state(&self, mut core: RefMut<'_, Core>, slot: u32) -> Durable<M> {
        let sequence = core.want_state(slot, StatePending::Wanted);
        let lsn = core.issue();
        // A waker may run code that calls the store.
        drop(core);
        self.shared.work.wake_all();
        Durable::new(&self.shared, lsn, Some((slot, sequence)))
    }

    /// Applies the entries up to `index`: the group's index points at their records from now on, on the medium or in
    /// memory. Nothing is read, written or copied. An index that is applied already changes nothing.
    ///
    /// # Panics
    /// If the log does not reach `index`.
    pub fn apply(&self, group: GroupId, index: u64) -> Result<(), ApplyError> {
        let mut core = self.shared.core.borrow_mut();
        let slot = core.slot(group).ok_or(ApplyError::UnknownGroup(group))?;
        core.apply(slot, index, self.shared.options.commit_mark_bytes);
        core.shrink_tail();
        self.wake_starved(core);
        Ok(())
    }

    /// Something became superfluous: cleaning may find room for those who wait for it.
    fn wake_starved(&self, core: RefMut<'_, Core>) {
        let starved = core.starved;
        drop(core);
        if starved {
            self.shared.work.wake_all();
        }
    }

    /// The group's log begins at `first` from now on: nobody needs the entries before it any more. What they wrote stays, as
    /// long as it is not overwritten; their space is cleaned. Entries that are not durable yet are kept, so the log may begin
    /// earlier for now ([`Store::first_index`]).
    ///
    /// # Panics
    /// If an entry before `first` is not applied.
    pub fn truncate_front(&self, group: GroupId, first: u64) -> Result<(), ApplyError> {
        let mut core = self.shared.core.borrow_mut();
        let slot = core.slot(group).ok_or(ApplyError::UnknownGroup(group))?;
        let at = &mut *core;
        at.groups[slot as usize].truncate_front(first, &mut at.log);
        self.wake_starved(core);
        Ok(())
    }

    /// Highest applied index; 0 for a group that does not exist.
    pub fn applied(&self, group: GroupId) -> u64 {
        self.shared.core.borrow().group(group).map_or(0, |group| group.applied)
    }

    /// Last index of the log, durable or not; 0 for an empty log or a group that does not exist.
    pub fn last_index(&self, group: GroupId) -> u64 {
        self.shared.core.borrow().group(group).map_or(0, |group| group.last_index)
    }

    /// First index of the log; 1 for a group that does not exist.
    pub fn first_index(&self, group: GroupId) -> u64 {
        self.shared.core.borrow().group(group).map_or(1, |group| group.first_index)
    }

    /// Term of the entry at `index`, or of the last one before the log: 0 for index 0, `None` elsewhere outside the log.
    pub fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        self.shared.core.borrow().group(group)?.term_at(index)
    }

    /// The hard state as it was last set; `None` for a group that does not exist.
    pub fn hard_state(&self, group: GroupId) -> Option<HardState> {
        self.shared.core.borrow().group(group).map(|group| group.hard_state)
    }

    /// Whether the group may have lost what it acknowledged ([`RecoveredGroup::suspect`](crate::RecoveredGroup)) and
    /// was not repaired since; false for a group that does not exist.
    pub fn suspect(&self, group: GroupId) -> bool {
        self.shared.core.borrow().group(group).is_some_and(|group| group.suspect)
    }

    /// All groups, ascending.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.core.borrow().slots.keys().copied().collect()
    }

    /// Version of the key in the applied index; `None` if it is absent or deleted.
    pub fn version(&self, group: GroupId, key: &[u8]) -> Option<u64> {
        self.shared.core.borrow().group(group)?.index.get(key).map(|located| located.version)
    }

    /// Everything issued up to here is durable.
    pub fn durable_lsn(&self) -> Lsn {
        let core = self.shared.core.borrow();
        Lsn { epoch: core.epoch, counter: core.durable }
    }

    /// Resolves with the durable LSN once it is greater than `lsn`. Fails once that can no longer happen.
    pub async fn durable_after(&self, lsn: Lsn) -> Result<Lsn, StoreError> {
        let mut seat = HeldSeat::new(&self.shared.progress);
        std::future::poll_fn(|cx| {
            let core = self.shared.core.borrow();
            let durable = Lsn { epoch: core.epoch, counter: core.durable };
            if durable > lsn {
                return Poll::Ready(Ok(durable));
            }
            if let Some(stopped) = &core.stopped {
                return Poll::Ready(Err(stopped.clone()));
            }
            if core.closing && core.durable == core.issued {
                return Poll::Ready(Err(StoreError::Closed));
            }
            seat.register(cx);
            Poll::Pending
        })
        .await
    }

    /// Ends the store: nothing is accepted any more; [`Store::run_flusher`] writes what is pending and returns.
    pub fn close(&self) {
        let mut core = self.shared.core.borrow_mut();
        if !core.closing {
            core.mark_commits();
            core.closing = true;
        }
        drop(core);
        self.shared.work.wake_all();
        self.shared.progress.wake_all();
    }

    /// Whether a leader should take proposals. It turns false before followers refuse to append.
    pub fn accepts_proposals(&self) -> bool {
        let core = self.shared.core.borrow();
        core.check_accepts().is_ok()
            && core.chunks_left(0, 0) >= i64::from(self.shared.options.propose_reserve_chunks)
    }

    /// Whether a leader should take a put of this key: it has room for proposals, and its index for the key, or holds it
    /// already. It turns false before followers refuse to append.
    pub fn accepts_put(&self, group: GroupId, key: &[u8]) -> bool {
        let limit = self.shared.options.index_bytes_max;
        let core = self.shared.core.borrow();
        let index_takes = |slot| core.index_takes(slot, [key], limit - limit / PROPOSE_INDEX_RESERVE);
        core.slot(group).is_some_and(index_takes) && self.accepts_proposals()
    }

    /// Whether [`Store::append`] has room in the index for these payloads of ops. A follower asks before it believes
    /// in entries that it would then be unable to store.
    pub fn index_accepts<'a>(&self, group: GroupId, payloads: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let core = self.shared.core.borrow();
        let keys = payloads.into_iter().flat_map(group::put_keys);
        core.slot(group).is_some_and(|slot| core.index_takes(slot, keys, self.shared.options.index_bytes_max))
    }

    /// Whether a leader should take deletions. They free space one day, so they go on a little longer than puts.
    pub fn accepts_deletes(&self) -> bool {
        let core = self.shared.core.borrow();
        core.check_accepts().is_ok()
            && core.chunks_left(0, 0) > i64::from(self.shared.options.append_reserve_chunks)
    }

    /// Whether [`Store::append`] has room for one more call with payloads of these lengths, in bytes. A follower asks
    /// before it believes in entries that it would then be unable to store.
    pub fn accepts_append(&self, payloads: impl IntoIterator<Item = usize>) -> bool {
        let core = self.shared.core.borrow();
        let (mut cost, mut largest) = (0, 0);
        for payload in payloads {
            let bytes = (crate::record::HEADER_BYTES + payload) as u32;
            let record = core.log.record_cost(Extent { bytes, hint_bytes: hint::entry_bytes_max(payload) });
            cost += record;
            largest = largest.max(record);
        }
        // A state record may go along, if the entries change the lineage.
        let state = core.state_cost(core.payload_bytes_max().min(STATE_BYTES_ALLOWED).into());
        core.check_accepts().is_ok()
            && core.chunks_left(cost + state, largest.max(state))
                >= i64::from(self.shared.options.append_reserve_chunks)
    }

    /// Bytes of the slice that are free for records, reserves included.
    pub fn free_bytes(&self) -> u64 {
        let core = self.shared.core.borrow();
        core.log.free_bytes().saturating_sub(core.pending_cost)
    }

    /// The largest payload of an entry, in bytes.
    pub fn payload_bytes_max(&self) -> u32 {
        self.shared.core.borrow().payload_bytes_max()
    }

    /// What the store did since it was opened, and what it holds.
    pub fn counters(&self) -> Counters {
        self.shared.core.borrow().counters(self.shared.media.counters())
    }
}

/// The part of the index's memory that leaders leave to what is under way.
const PROPOSE_INDEX_RESERVE: u64 = 16;

/// What [`Store::accepts_append`] sets aside for a state record; a lineage of some thousand terms.
const STATE_BYTES_ALLOWED: u32 = 64 << 10;

struct EntriesCheck {
    new_terms: usize,
    user_bytes: u64,
    cost: u64,
    largest: u64,
}

fn check_entries(
    core: &Core,
    slot: u32,
    first: u64,
    before: u64,
    entries: &[Entry],
) -> Result<EntriesCheck, AppendError> {
    let mut check = EntriesCheck { new_terms: 0, user_bytes: 0, cost: 0, largest: 0 };
    let mut before = before;
    for (index, entry) in (first..).zip(entries) {
        let malformed = |reason| AppendError::Malformed { index, reason };
        let (bytes, limit) = (entry.payload.len() as u64, u64::from(core.payload_bytes_max()));
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        if entry.term < before.max(1) {
            return Err(malformed(Malformed::Term { term: entry.term, before }));
        }
        match entry.kind {
            ENTRY_OPS => {
                for op in op::decode(&entry.payload) {
                    check.user_bytes += op.map_err(|error| malformed(error.into()))?.user_bytes();
                }
            }
            ENTRY_NOOP | ENTRY_MEMBERSHIP => {}
            kind => return Err(malformed(Malformed::Kind(kind))),
        }
        check.new_terms += usize::from(entry.term != before);
        before = entry.term;
        let (records, extent) =
            crate::record::entry_shape(&core.entry_header(slot, index, entry), &entry.payload);
        if records > 1 << 16 {
            return Err(malformed(Malformed::OpCount(records)));
        }
        if extent.bytes > core.record_bytes_max {
            let bytes = u64::from(extent.bytes) - crate::record::HEADER_BYTES as u64;
            return Err(AppendError::TooLarge { bytes, limit });
        }
        let cost = core.log.record_cost(extent);
        check.cost += cost;
        check.largest = check.largest.max(cost);
    }
    Ok(check)
}

fn check_state_bytes(core: &Core, bytes: u64) -> Result<(), StoreError> {
    let limit = u64::from(core.payload_bytes_max());
    if bytes > limit { Err(StoreError::StateTooLarge { bytes, limit }) } else { Ok(()) }
}

/// A seat that is given back when it is dropped.
pub(crate) struct HeldSeat<'a> {
    watch: &'a Watch,
    seat: Seat,
}

impl<'a> HeldSeat<'a> {
    pub(crate) fn new(watch: &'a Watch) -> Self {
        Self { watch, seat: Seat::default() }
    }

    pub(crate) fn register(&mut self, cx: &Context<'_>) {
        self.watch.register(&mut self.seat, cx);
    }
}

impl Drop for HeldSeat<'_> {
    fn drop(&mut self) {
        self.watch.leave(&mut self.seat);
    }
}

/// Resolves when a change is durable on this replica. Dropping it changes nothing.
#[must_use = "the change is not durable before this resolves"]
pub struct Durable<M: Media> {
    shared: Rc<Shared<M>>,
    lsn: Lsn,
    /// The change is in a group's state alone: slot, and the state's number.
    state: Option<(u32, u64)>,
    seat: Seat,
}

impl<M: Media> Durable<M> {
    fn new(shared: &Rc<Shared<M>>, lsn: u64, state: Option<(u32, u64)>) -> Self {
        let lsn = Lsn { epoch: shared.epoch, counter: lsn };
        Self { shared: Rc::clone(shared), lsn, state, seat: Seat::default() }
    }

    /// The change is durable, at the latest, when [`Store::durable_lsn`] reaches this.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

impl<M: Media> Future for Durable<M> {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let core = this.shared.core.borrow();
        let state_durable =
            this.state.is_some_and(|(slot, sequence)| core.groups[slot as usize].state_durable >= sequence);
        if core.durable >= this.lsn.counter || state_durable {
            return Poll::Ready(Ok(()));
        }
        if let Some(stopped) = &core.stopped {
            return Poll::Ready(Err(stopped.clone()));
        }
        this.shared.progress.register(&mut this.seat, cx);
        Poll::Pending
    }
}

impl<M: Media> Drop for Durable<M> {
    fn drop(&mut self) {
        self.shared.progress.leave(&mut self.seat);
    }
}

impl<M: Media> std::fmt::Debug for Durable<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Durable").field(&self.lsn).finish()
    }
}
