//! One shard: a load thread with its slice, its store, and its end of the mesh.
//!
//! ```text
//!  worker ── put ──▶ append ──▶ flusher ──▶ durable ──▶ apply, in order ──▶ worker
//!         ── get ──▶ index, then memory or one direct read
//!         ── key of another shard ──▶ ring ──▶ the same there ──▶ ring ──▶ worker
//! ```
//!
//! Workers, flusher, applier and server of the others' requests are one future on one thread ([`Shard::live`]).
//!
//! Invariants:
//! - Indexes are given out in the order of the calls, and applied in that order once they are durable: what a put
//!   returns is readable, and nothing is readable that is not durable.
//! - Nothing is acknowledged after a failed write or flush.
//! - A shard serves the others until the load of all has ended; only then does it close its store.
//! - The thread parks: its own operations do so by [`Breath`], the others' by the bell between two rounds.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Bound;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::join3;
use futures_util::stream::{FuturesUnordered, StreamExt};
use terrane_engine::compression::ValueCompressor;
use terrane_engine::{
    AppendError, ENTRY_OPS, Entry, GroupId, Lookup, Lsn, ReadError, Recovery, Store, StoreError, op,
};
use terrane_ocssd::Media;
use xxhash_rust::xxh3::xxh3_64;

use crate::target::engine::mesh::{CAPACITY, End, Received};
use crate::target::engine::panel::Panel;
use crate::target::engine::ring::{Breath, Door, Timers};
use crate::target::engine::slots::Slots;
use crate::target::{Failure, FailureKind, Found, Row};

/// What one shard asks of another.
#[derive(Debug)]
pub(super) enum Ask {
    /// A key's value.
    Get { group: GroupId, key: Bytes },
    /// To append an entry: the payload is encoded where the key and value are, so it moves and is copied nowhere.
    Put { group: GroupId, payload: Bytes },
    /// Up to `limit` rows from a key on.
    Scan { group: GroupId, from: Bound<Bytes>, limit: usize },
}

/// What it gets.
#[derive(Debug)]
pub(super) enum Answer {
    Found(Option<Found>),
    Written { version: u64 },
    Rows(Rows),
}

/// Rows of one group.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// In the order of keys.
    pub(super) rows: Vec<Row>,
    /// There are more keys after these.
    pub(super) more: bool,
}

type Result<T> = std::result::Result<T, Failure>;

/// An end of the mesh, as the shards use it.
pub(super) type ShardEnd = End<Ask, Result<Answer>>;

/// A put that waits until it is durable.
struct Pending {
    lsn: Lsn,
    group: GroupId,
    index: u64,
    asker: Asker,
}

/// Who is to be answered.
#[derive(Debug, Clone, Copy)]
enum Asker {
    Own { slot: u32 },
    Shard { from: usize, slot: u32 },
}

/// A shard.
pub(super) struct Shard<M: Media> {
    store: Store<M>,
    /// Borrowed for one value at a time; `None`: values are stored as they are.
    compressor: Option<RefCell<ValueCompressor>>,
    end: ShardEnd,
    slots: Slots<Result<Answer>>,
    /// The shard's groups are numbered from here.
    group_first: u64,
    groups_each: u64,
    /// The index after the last, by group.
    next_index: Vec<Cell<u64>>,
    /// Of all that this start of the store appends: its epoch, so that an index and a term never name two entries,
    /// not even where a crash took the first of them.
    term: u64,
    pending: RefCell<VecDeque<Pending>>,
    breath: Breath,
    timers: Timers,
    panel: std::sync::Arc<Panel>,
    chunk_bytes: u64,
}

impl<M: Media> Shard<M> {
    /// A shard over its opened store. All that was recovered counts: an entry that is durable on the only replica is
    /// committed.
    pub(super) async fn new(
        store: Store<M>,
        recovery: &Recovery,
        end: ShardEnd,
        groups_each: u32,
        compressor: Option<ValueCompressor>,
        panel: std::sync::Arc<Panel>,
        chunk_bytes: u64,
    ) -> anyhow::Result<Rc<Shard<M>>> {
        if let Some(damage) = recovery.damage.first() {
            anyhow::bail!(
                "the slice of shard {} is damaged: {:?} at {:?}, sector {}: name another folder",
                end.me(),
                damage.what,
                damage.chunk,
                damage.sector
            );
        }
        let groups_each = u64::from(groups_each);
        let group_first = end.me() as u64 * groups_each;
        let wanted: Vec<GroupId> = (group_first..group_first + groups_each).map(GroupId).collect();
        let found = store.groups();
        if let Some(stray) = found.iter().find(|group| !wanted.contains(group)) {
            anyhow::bail!(
                "the device holds {stray}, which is not among the {groups_each} groups of shard {}: set `groups` as \
                 before, or name another folder",
                end.me()
            );
        }
        let mut next_index = Vec::new();
        for group in wanted {
            let last = store.last_index(group);
            if found.contains(&group) {
                store.apply(group, last)?;
                store.truncate_front(group, last + 1)?;
            } else {
                // Durable with the first entries at the latest; nobody waits for it alone.
                drop(store.create_group(group, Bytes::new())?);
            }
            next_index.push(Cell::new(last + 1));
        }
        panel.publish(&store, chunk_bytes);
        Ok(Rc::new(Shard {
            store,
            compressor: compressor.map(RefCell::new),
            end,
            slots: Slots::default(),
            group_first,
            groups_each,
            next_index,
            term: recovery.epoch.into(),
            pending: RefCell::default(),
            breath: Breath::default(),
            timers: Timers::default(),
            panel,
            chunk_bytes,
        }))
    }

    /// Lives: runs `load`, serves the others until all are done, and ends the store in order.
    ///
    /// # Errors
    /// If the store could not be kept to its end: what was not acknowledged may be lost.
    pub(super) async fn live(&self, load: impl Future<Output = ()>, door: &mut Door) -> anyhow::Result<()> {
        let loads = async {
            load.await;
            self.end.unload();
        };
        let serves = async {
            self.serve(door).await;
            self.store.close();
        };
        // One future with one waker: a pass polls all of it, in this order. So what the workers append in a pass is
        // what the flusher takes in the same one.
        let ends = join3(loads, serves, self.settle_durable());
        let (_, flushed) = futures_util::future::join(ends, self.store.run_flusher()).await;
        self.panel.publish(&self.store, self.chunk_bytes);
        flushed.map_err(|error| anyhow::Error::new(error).context(format!("shard {} failed", self.end.me())))
    }

    /// The group that a key belongs to: the first `log2(groups)` bits of its hash where their number is a power of
    /// two, and as even a division otherwise.
    fn group_of(&self, key: &[u8]) -> GroupId {
        let groups = self.end.shards() as u64 * self.groups_each;
        GroupId(((u128::from(xxh3_64(key)) * u128::from(groups)) >> 64) as u64)
    }

    fn owner_of(&self, group: GroupId) -> usize {
        (group.0 / self.groups_each) as usize
    }

    /// Whether a key belongs to this shard.
    #[cfg(test)]
    pub(super) fn owns(&self, key: &[u8]) -> bool {
        self.owner_of(self.group_of(key)) == self.end.me()
    }

    /// All groups of all shards.
    pub(super) fn all_groups(&self) -> impl Iterator<Item = GroupId> + use<M> {
        (0..self.end.shards() as u64 * self.groups_each).map(GroupId)
    }

    /// The timers of this thread.
    pub(super) fn timers(&self) -> &Timers {
        &self.timers
    }

    /// The value of a key, whoever owns it.
    pub(super) async fn get(&self, key: &[u8]) -> Result<Option<Found>> {
        let group = self.group_of(key);
        let owner = self.owner_of(group);
        if owner != self.end.me() {
            return match self.ask(owner, Ask::Get { group, key: Bytes::copy_from_slice(key) }).await? {
                Answer::Found(found) => Ok(found),
                other => Err(misanswered(&other)),
            };
        }
        let found = self.breathing(self.store.get(group, key)).await;
        Ok(found.map_err(unreadable)?.map(Found::from))
    }

    /// Writes a key, whoever owns it; gives its version once it is durable and readable.
    pub(super) async fn put(&self, key: &[u8], value: &[u8]) -> Result<u64> {
        let limit = u64::from(self.store.payload_bytes_max());
        if key.len() > op::KEY_BYTES_MAX || value.len() as u64 > limit {
            return Err(Failure {
                kind: FailureKind::TooLarge,
                message: format!(
                    "a key of {} bytes with a value of {}: the limits are {} and {limit}",
                    key.len(),
                    value.len(),
                    op::KEY_BYTES_MAX
                ),
            });
        }
        let group = self.group_of(key);
        let payload = match &self.compressor {
            None => op::encode_put(key, value, None),
            Some(compressor) => op::encode_put_compressed(key, value, None, &mut compressor.borrow_mut()),
        };
        let owner = self.owner_of(group);
        let answer = if owner == self.end.me() {
            let ticket = self.slots.take(owner);
            if let Err(refused) = self.append(group, payload, Asker::Own { slot: ticket.number() }) {
                self.slots.answer(ticket.number(), Err(refused));
                self.breath.after_op(self.end.crew().post(owner)).await;
            }
            ticket.await?
        } else {
            self.ask(owner, Ask::Put { group, payload }).await?
        };
        match answer {
            Answer::Written { version } => Ok(version),
            other => Err(misanswered(&other)),
        }
    }

    /// Rows of one group, whoever owns it.
    pub(super) async fn scan_group(&self, group: GroupId, from: Bound<Bytes>, limit: usize) -> Result<Rows> {
        let owner = self.owner_of(group);
        if owner == self.end.me() {
            return self.breathing(self.scan_own(group, from, limit)).await;
        }
        match self.ask(owner, Ask::Scan { group, from, limit }).await? {
            Answer::Rows(rows) => Ok(rows),
            other => Err(misanswered(&other)),
        }
    }

    /// Drives an operation of this shard's own worker, and breathes if it did not have to wait.
    async fn breathing<T>(&self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        let mut waited = false;
        let output = std::future::poll_fn(|cx| {
            let polled = operation.as_mut().poll(cx);
            waited |= polled.is_pending();
            polled
        })
        .await;
        if waited {
            self.breath.reaped();
        } else {
            self.breath.after_op(self.end.crew().post(self.end.me())).await;
        }
        output
    }

    /// Asks another shard, and waits for its answer.
    async fn ask(&self, to: usize, ask: Ask) -> Result<Answer> {
        let credit = std::future::poll_fn(|cx| match self.end.has_credit(to) {
            Some(true) => Poll::Ready(true),
            None => Poll::Ready(false),
            Some(false) => {
                self.end.wait_for_credit(to, cx.waker());
                Poll::Pending
            }
        });
        if !credit.await {
            // Not at once: a worker that tries again and again must not keep the thread from parking.
            self.breath.after_op(self.end.crew().post(self.end.me())).await;
            return Err(gone(to));
        }
        let ticket = self.slots.take(to);
        self.end.ask(to, ticket.number(), ask);
        ticket.await
    }

    /// Appends an entry, to be answered once it is durable and applied.
    fn append(&self, group: GroupId, payload: Bytes, asker: Asker) -> Result<()> {
        let next = &self.next_index[(group.0 - self.group_first) as usize];
        let index = next.get();
        let entry = Entry { term: self.term, kind: ENTRY_OPS, payload };
        let durable = self.store.append(group, index, vec![entry]).map_err(refused)?;
        next.set(index + 1);
        self.pending.borrow_mut().push_back(Pending { lsn: durable.lsn(), group, index, asker });
        Ok(())
    }

    /// Applies what becomes durable, and answers for it: once for each flush, however many puts it holds.
    async fn settle_durable(&self) {
        let mut seen = self.store.durable_lsn();
        let stopped = loop {
            match self.store.durable_after(seen).await {
                Ok(durable) => {
                    seen = durable;
                    self.breath.reaped();
                    self.settle(durable);
                }
                Err(error) => break error,
            }
        };
        // Their flush failed, or never began. It may be on the medium none the less.
        for pending in self.pending.take() {
            let message = format!("the write was under way when the store ended: {stopped}");
            self.answer(pending.asker, Err(Failure { kind: FailureKind::OutcomeUnknown, message }));
        }
    }

    fn settle(&self, durable: Lsn) {
        let count = self.pending.borrow().iter().take_while(|pending| pending.lsn <= durable).count();
        // Answered only when all is applied: an answer may wake a worker that reads what another wrote.
        let settled: Vec<Pending> = self.pending.borrow_mut().drain(..count).collect();
        let mut newest: Vec<u64> = vec![0; self.next_index.len()];
        for pending in &settled {
            newest[(pending.group.0 - self.group_first) as usize] = pending.index;
        }
        for (group, index) in (self.group_first..).zip(newest).filter(|(_, index)| *index > 0) {
            let group = GroupId(group);
            let applied = self.store.apply(group, index);
            // Nobody follows: what is applied need not stay in the log.
            let truncated = applied.and_then(|()| self.store.truncate_front(group, index + 1));
            truncated.expect("the group was created with the shard");
        }
        for pending in settled {
            self.answer(pending.asker, Ok(Answer::Written { version: pending.index }));
        }
    }

    fn answer(&self, asker: Asker, answer: Result<Answer>) {
        match asker {
            Asker::Own { slot } => self.slots.answer(slot, answer),
            Asker::Shard { from, slot } => self.end.reply(from, slot, answer),
        }
    }

    /// Serves the other shards until nobody has load any more.
    async fn serve(&self, door: &mut Door) {
        let reads = RefCell::new(FuturesUnordered::new());
        loop {
            self.receive_all(|asker, ask| reads.borrow_mut().push(self.read_for(asker, ask)));
            if self.panel.asked() {
                self.panel.publish(&self.store, self.chunk_bytes);
            }
            if self.end.crew().all_unloaded() {
                return;
            }
            if !self.end.prepare_sleep() {
                // More has come meanwhile. Round by way of the ring, so that completions are reaped.
                self.end.crew().post(self.end.me()).ring();
            }
            let mut rung = pin!(door.rung());
            std::future::poll_fn(|cx| {
                while let Poll::Ready(Some(())) = reads.borrow_mut().poll_next_unpin(cx) {}
                rung.as_mut().poll(cx)
            })
            .await;
            self.end.wake_up();
            self.breath.take();
        }
    }

    /// Takes what has come from the other shards. `read` is given what must be read from the medium.
    fn receive_all(&self, read: impl Fn(Asker, Ask)) {
        for from in (0..self.end.shards()).filter(|from| *from != self.end.me()) {
            // At most what a ring holds: who asks as fast as it is answered must not keep this thread from parking.
            for _ in 0..CAPACITY {
                let Some(received) = self.end.receive(from) else { break };
                match received {
                    Received::Reply { slot, reply } => self.slots.answer(slot, reply),
                    Received::Gone { shard } => self.slots.give_up(shard, || Err(gone(shard))),
                    Received::Ask { from, slot, ask } => {
                        self.serve_one(Asker::Shard { from, slot }, ask, &read)
                    }
                }
            }
        }
    }

    fn serve_one(&self, asker: Asker, ask: Ask, read: impl Fn(Asker, Ask)) {
        match ask {
            Ask::Put { group, payload } => {
                if let Err(refused) = self.append(group, payload, asker) {
                    self.answer(asker, Err(refused));
                }
            }
            Ask::Get { group, ref key } => match self.store.try_get(group, key) {
                Lookup::Absent => self.answer(asker, Ok(Answer::Found(None))),
                Lookup::Ready(value) => self.answer(asker, Ok(Answer::Found(Some(value.into())))),
                Lookup::OnMedia { .. } => read(asker, ask),
            },
            Ask::Scan { .. } => read(asker, ask),
        }
    }

    /// Reads for another shard, and answers it.
    async fn read_for(&self, asker: Asker, ask: Ask) {
        let answer = match ask {
            Ask::Get { group, key } => {
                let found = self.store.get(group, &key).await;
                found.map(|found| Answer::Found(found.map(Found::from))).map_err(unreadable)
            }
            Ask::Scan { group, from, limit } => self.scan_own(group, from, limit).await.map(Answer::Rows),
            Ask::Put { .. } => unreachable!("a put is appended where it is received"),
        };
        self.answer(asker, answer);
    }

    async fn scan_own(&self, group: GroupId, from: Bound<Bytes>, limit: usize) -> Result<Rows> {
        let from = from.as_ref().map(|key| &key[..]);
        let scan = self.store.scan(group, from, Bound::Unbounded, limit, usize::MAX).await;
        let scan = scan.map_err(unreadable)?;
        let rows = scan.rows.into_iter().map(|(key, found)| Row { key, found: found.into() });
        Ok(Rows { rows: rows.collect(), more: scan.more })
    }
}

impl From<terrane_engine::Value> for Found {
    fn from(value: terrane_engine::Value) -> Found {
        Found { version: Some(value.version), value: value.value }
    }
}

fn refused(error: AppendError) -> Failure {
    let kind = match &error {
        AppendError::Full | AppendError::IndexFull { .. } | AppendError::Store(StoreError::Full) => {
            FailureKind::Full
        }
        AppendError::TooLarge { .. } => FailureKind::TooLarge,
        _ => FailureKind::Refused,
    };
    Failure { kind, message: error.to_string() }
}

fn unreadable(error: ReadError) -> Failure {
    Failure { kind: FailureKind::Refused, message: error.to_string() }
}

fn gone(shard: usize) -> Failure {
    Failure { kind: FailureKind::Unavailable, message: format!("the thread of shard {shard} has ended") }
}

fn misanswered(answer: &Answer) -> Failure {
    Failure { kind: FailureKind::Refused, message: format!("another question was answered: {answer:?}") }
}
