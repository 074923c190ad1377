//! The rules that every medium keeps.
//!
//! A backend joins by implementing [`Harness`]; [`every_rule`] then has to pass.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Media, MediaError};

pub(crate) const CHUNK_BYTES: u64 = 64 << 10;
pub(crate) const CHUNKS: u32 = 8;

/// One backend: how a medium of it is made, driven, and started again.
pub(crate) trait Harness {
    type Media: Media;

    /// A new medium of at least 8 chunks of at least 16 smallest writes.
    fn create(&self) -> Self::Media;

    /// The same medium after its process came back.
    fn reopen(&self, media: Self::Media) -> Self::Media;

    /// Whether write pointers survive that.
    fn remembers_write_pointers(&self) -> bool {
        false
    }

    /// Whether a chunk that was open is closed by that.
    fn closes_open_chunks(&self) -> bool {
        false
    }

    /// Whether the last sectors of an open chunk are hidden from reads, where `mw_cunits` says that there are such: not if
    /// the host's side keeps them in memory.
    fn hides(&self) -> bool {
        true
    }

    /// Whether finishing a chunk pads it to its end, since the device has no command for it.
    fn finish_pads(&self) -> bool {
        false
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T;
}

/// A medium in units of its smallest write.
pub(crate) struct Probe<M> {
    pub(crate) media: Rc<M>,
    pub(crate) ws: u32,
    pub(crate) ws_bytes: usize,
    pub(crate) chunk_writes: u32,
    /// Units below the write pointer of an open chunk that cannot be read.
    pub(crate) hidden: u32,
}

impl<M: Media> Probe<M> {
    pub(crate) fn of(media: M) -> Self {
        let geometry = *media.geometry();
        Self {
            media: Rc::new(media),
            ws: geometry.ws_min,
            ws_bytes: geometry.ws_min as usize * geometry.sector_bytes as usize,
            chunk_writes: geometry.chunk_sectors / geometry.ws_min,
            hidden: geometry.mw_cunits.div_ceil(geometry.ws_min),
        }
    }

    pub(crate) fn into_media(self) -> M {
        Rc::into_inner(self.media).expect("nothing else holds the medium")
    }

    /// `count` smallest writes, each filled with its own byte from `first` on.
    pub(crate) fn pattern(&self, first: u8, count: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(count * self.ws_bytes);
        for (index, unit) in buf.chunks_mut(self.ws_bytes).enumerate() {
            unit.fill(first.wrapping_add(index as u8));
        }
        buf
    }

    pub(crate) async fn write(&self, chunk: u32, at: u32, first: u8, count: usize) -> Result<(), MediaError> {
        self.write_as(chunk, at, first, count, Durability::Volatile).await
    }

    pub(crate) async fn write_as(
        &self,
        chunk: u32,
        at: u32,
        first: u8,
        count: usize,
        durability: Durability,
    ) -> Result<(), MediaError> {
        let buf = self.pattern(first, count);
        let address = (buf.as_ptr(), buf.len());
        let (result, buf) = self.media.write(ChunkId(chunk), at * self.ws, buf, durability).await;
        assert_eq!((buf.as_ptr(), buf.len()), address, "another buffer came back");
        result
    }

    pub(crate) async fn read(&self, chunk: u32, at: u32, count: usize) -> Result<Vec<u8>, MediaError> {
        let buf = AlignedBuf::zeroed(count * self.ws_bytes);
        let (result, buf) = self.media.read(ChunkId(chunk), at * self.ws, buf).await;
        result.map(|()| buf.to_vec())
    }

    pub(crate) async fn expect(&self, chunk: u32, at: u32, first: u8, count: usize) {
        let found = self.read(chunk, at, count).await.unwrap();
        assert!(found == *self.pattern(first, count), "other bytes at unit {at} of chunk {chunk}");
    }

    /// Writes on behind the units below `at`, until the device lets them be read.
    pub(crate) async fn push_out(&self, chunk: u32, at: u32) {
        if self.hidden > 0 {
            self.write(chunk, at, 0, self.hidden as usize).await.unwrap();
        }
    }

    /// Fills the chunk if it is free: not every device erases what is free already.
    pub(crate) async fn occupy(&self, chunk: u32) {
        if self.state(chunk).await.0 == ChunkState::Free {
            self.write(chunk, 0, 7, self.chunk_writes as usize).await.unwrap();
        }
    }

    pub(crate) async fn reset(&self, chunk: u32) {
        self.media.reset(ChunkId(chunk)).await.unwrap();
    }

    /// State, and write pointer in smallest writes.
    pub(crate) async fn state(&self, chunk: u32) -> (ChunkState, u32) {
        let info = self.media.report().await.unwrap()[chunk as usize];
        assert_eq!(info.id, ChunkId(chunk));
        assert!(info.write_pointer.is_multiple_of(self.ws));
        (info.state, info.write_pointer / self.ws)
    }
}

pub(crate) fn assert_rule<T>(result: Result<T, MediaError>, operation: &str) {
    match result {
        Err(MediaError::Rule { operation: refused, .. }) => assert_eq!(refused, operation),
        Err(other) => panic!("{operation} failed otherwise: {other}"),
        Ok(_) => panic!("{operation} was accepted against the rules"),
    }
}

pub(crate) async fn reads_return_what_was_written<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    for chunk in [0, CHUNKS - 1] {
        probe.reset(chunk).await;
        probe.write(chunk, 0, 1 + chunk as u8, 3).await.unwrap();
        probe.write_as(chunk, 3, 4 + chunk as u8, 5, Durability::Durable).await.unwrap();
        probe.push_out(chunk, 8).await;
    }
    for chunk in [0, CHUNKS - 1] {
        probe.expect(chunk, 0, 1 + chunk as u8, 8).await;
        probe.expect(chunk, 2, 3 + chunk as u8, 2).await;
    }
    probe.into_media()
}

pub(crate) async fn a_chunk_goes_through_its_states<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    let wear = async |chunk: u32| probe.media.report().await.unwrap()[chunk as usize].wear;
    probe.occupy(2).await;
    let worn = wear(2).await;
    probe.reset(2).await;
    assert_eq!(probe.state(2).await, (ChunkState::Free, 0));
    assert_eq!(wear(2).await, worn + 1);
    probe.write(2, 0, 1, 2).await.unwrap();
    assert_eq!(probe.state(2).await, (ChunkState::Open, 2));
    let rest = probe.chunk_writes - 2;
    probe.write(2, 2, 3, rest as usize).await.unwrap();
    assert_eq!(probe.state(2).await, (ChunkState::Closed, probe.chunk_writes));
    probe.expect(2, probe.chunk_writes - 1, probe.chunk_writes as u8, 1).await;
    probe.reset(2).await;
    assert_eq!(probe.state(2).await, (ChunkState::Free, 0));
    probe.write(2, 0, 9, 1).await.unwrap();
    probe.push_out(2, 1).await;
    probe.expect(2, 0, 9, 1).await;
    probe.into_media()
}

pub(crate) async fn finish_closes_an_open_chunk<M: Media>(media: M, pads: bool) -> M {
    let probe = Probe::of(media);
    probe.reset(3).await;
    assert_rule(probe.media.finish(ChunkId(3)).await, "finish");
    probe.write(3, 0, 1, 2).await.unwrap();
    probe.media.finish(ChunkId(3)).await.unwrap();
    let end = if pads { probe.chunk_writes } else { 2 };
    assert_eq!(probe.state(3).await, (ChunkState::Closed, end));
    probe.expect(3, 0, 1, 2).await;
    if pads {
        probe.read(3, 0, end as usize).await.expect("padding can be read");
    } else {
        assert_rule(probe.read(3, 0, 3).await, "read");
    }
    assert_rule(probe.write(3, 2, 1, 1).await, "write");
    assert_rule(probe.media.finish(ChunkId(3)).await, "finish");
    probe.reset(3).await;
    probe.write(3, 0, 5, 1).await.unwrap();
    probe.into_media()
}

pub(crate) async fn writes_only_at_the_write_pointer<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    probe.reset(1).await;
    assert_rule(probe.write(1, 1, 1, 1).await, "write");
    probe.write(1, 0, 1, 2).await.unwrap();
    for at in [0, 1, 3] {
        assert_rule(probe.write(1, at, 9, 1).await, "write");
    }
    let beyond = probe.chunk_writes as usize - 1;
    assert_rule(probe.write(1, 2, 9, beyond).await, "write");
    assert_eq!(probe.state(1).await, (ChunkState::Open, 2));
    probe.write(1, 2, 3, 1).await.unwrap();
    probe.push_out(1, 3).await;
    probe.expect(1, 0, 1, 3).await;
    probe.into_media()
}

pub(crate) async fn lengths_are_whole_units<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    let sector = probe.media.geometry().sector_bytes as usize;
    probe.reset(1).await;
    for len in [0, 1, sector - 1, probe.ws_bytes + 1] {
        let write = probe.media.write(ChunkId(1), 0, AlignedBuf::zeroed(len), Durability::Durable).await;
        assert_rule(write.0, "write");
        assert_eq!(write.1.len(), len);
        let append = probe.media.append(ChunkId(1), AlignedBuf::zeroed(len), Durability::Durable).await;
        assert_rule(append.0, "append");
        let read = probe.media.read(ChunkId(1), 0, AlignedBuf::zeroed(len)).await;
        assert_rule(read.0, "read");
    }
    if probe.ws > 1 {
        let write = probe.media.write(ChunkId(1), 0, AlignedBuf::zeroed(sector), Durability::Durable).await;
        assert_rule(write.0, "write");
        probe.write(1, 0, 1, 1).await.unwrap();
        probe.push_out(1, 1).await;
        let (read, _) = probe.media.read(ChunkId(1), 1, AlignedBuf::zeroed(sector)).await;
        read.expect("reads go by the sector");
    }
    probe.into_media()
}

pub(crate) async fn reads_stay_below_the_write_pointer<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    probe.reset(1).await;
    assert_rule(probe.read(1, 0, 1).await, "read");
    probe.write(1, 0, 1, 2).await.unwrap();
    assert_rule(probe.read(1, 1, 2).await, "read");
    assert_rule(probe.read(1, 2, 1).await, "read");
    let (read, _) = probe.media.read(ChunkId(1), u32::MAX, probe.pattern(0, 2)).await;
    assert_rule(read, "read");
    let chunk_writes = probe.chunk_writes;
    probe.write(1, 2, 3, chunk_writes as usize - 2).await.unwrap();
    assert_rule(probe.read(1, chunk_writes - 1, 2).await, "read");
    probe.into_media()
}

/// Neither a flush nor a durable write shows them; closing the chunk does.
pub(crate) async fn the_last_units_of_an_open_chunk_are_hidden<M: Media>(media: M, hides: bool) -> M {
    let probe = Probe::of(media);
    let written = probe.hidden + 2;
    let hidden = if hides { probe.hidden } else { 0 };
    probe.reset(1).await;
    probe.write(1, 0, 1, written as usize - 1).await.unwrap();
    probe.write_as(1, written - 1, written as u8, 1, Durability::Durable).await.unwrap();
    probe.media.flush().await.unwrap();
    probe.expect(1, 0, 1, 2).await;
    for at in 2..2 + hidden {
        assert_rule(probe.read(1, at, 1).await, "read");
    }
    if hidden > 0 {
        assert_rule(probe.read(1, 0, 3).await, "read");
    } else {
        probe.expect(1, 0, 1, written as usize).await;
    }
    probe.media.finish(ChunkId(1)).await.unwrap();
    probe.expect(1, 0, 1, written as usize).await;
    probe.into_media()
}

pub(crate) async fn there_are_no_chunks_beyond_the_last<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    let count = probe.media.geometry().chunk_count();
    assert_eq!(probe.media.report().await.unwrap().len(), count as usize);
    for chunk in [count, u32::MAX] {
        assert_rule(probe.write(chunk, 0, 1, 1).await, "write");
        assert_rule(probe.read(chunk, 0, 1).await, "read");
        assert_rule(probe.media.reset(ChunkId(chunk)).await, "reset");
        assert_rule(probe.media.finish(ChunkId(chunk)).await, "finish");
    }
    probe.into_media()
}

pub(crate) async fn appends_say_where_they_went<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    probe.reset(4).await;
    let mut next = 0;
    for (first, count, durability) in
        [(1, 2, Durability::Volatile), (3, 1, Durability::Durable), (4, 3, Durability::Volatile)]
    {
        let (place, _) = probe.media.append(ChunkId(4), probe.pattern(first, count), durability).await;
        assert_eq!(place.unwrap(), next * probe.ws);
        next += count as u32;
    }
    probe.push_out(4, next).await;
    probe.expect(4, 0, 1, 6).await;
    let (place, _) = probe
        .media
        .append(ChunkId(4), probe.pattern(0, probe.chunk_writes as usize), Durability::Durable)
        .await;
    assert_rule(place, "append");
    probe.into_media()
}

/// The next write is submitted before the last completed, and a chunk with one in flight is not reset.
pub(crate) async fn writes_may_follow_before_the_last_completed<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    probe.reset(5).await;
    let mut writes: Vec<_> =
        (0..8).map(|at| Box::pin(probe.write(5, at, 1 + at as u8, 1))).map(Some).collect();
    std::future::poll_fn(|context| {
        for write in &mut writes {
            let done = write.as_mut().map(|write| write.as_mut().poll(context));
            if let Some(Poll::Ready(result)) = done {
                result.unwrap();
                *write = None;
            }
        }
        if writes.iter().any(Option::is_some) {
            // The rule is checked before anything can be pending.
            let reset: Pin<Box<dyn Future<Output = _>>> = Box::pin(probe.media.reset(ChunkId(5)));
            match pin!(reset).as_mut().poll(context) {
                Poll::Ready(result) => assert_rule(result, "reset"),
                Poll::Pending => panic!("a chunk with writes in flight is being reset"),
            }
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    drop(writes);
    probe.push_out(5, 8).await;
    probe.expect(5, 0, 1, 8).await;
    probe.media.flush().await.unwrap();
    probe.into_media()
}

pub(crate) async fn counters_count<M: Media>(media: M) -> M {
    let probe = Probe::of(media);
    probe.occupy(6).await;
    let before = probe.media.counters();
    probe.reset(6).await;
    probe.write(6, 0, 1, 2).await.unwrap();
    probe.media.append(ChunkId(6), probe.pattern(1, 1), Durability::Durable).await.0.unwrap();
    probe.push_out(6, 3).await;
    probe.read(6, 0, 3).await.unwrap();
    probe.media.flush().await.unwrap();
    let after = probe.media.counters();
    let unit = probe.ws_bytes as u64;
    assert_eq!(after.written_bytes - before.written_bytes, u64::from(3 + probe.hidden) * unit);
    assert_eq!(after.read_bytes - before.read_bytes, 3 * unit);
    assert_eq!(after.writes - before.writes, 2 + u64::from(probe.hidden > 0));
    assert_eq!(after.reads - before.reads, 1);
    assert_eq!(after.flushes - before.flushes, 1);
    assert_eq!(after.resets - before.resets, 1);
    probe.into_media()
}

/// What was written before a restart is there after it, whatever became of the write pointers.
pub(crate) fn content_survives_a_restart<H: Harness>(harness: &H) {
    let mut probe = Probe::of(harness.create());
    harness.run(async {
        probe.reset(7).await;
        probe.write(7, 0, 1, 2).await.unwrap();
        probe.write_as(7, 2, 3, 2, Durability::Durable).await.unwrap();
        probe.media.flush().await.unwrap();
    });
    probe = Probe::of(harness.reopen(probe.into_media()));
    harness.run(async {
        let goes_on = harness.remembers_write_pointers() && !harness.closes_open_chunks();
        let expected = match (harness.remembers_write_pointers(), goes_on) {
            (true, true) => (ChunkState::Open, 4),
            (true, false) => (ChunkState::Closed, 4),
            (false, _) => (ChunkState::Closed, probe.chunk_writes),
        };
        assert_eq!(probe.state(7).await, expected);
        if goes_on {
            probe.push_out(7, 4).await;
        }
        probe.expect(7, 0, 1, 4).await;
        if goes_on {
            probe.write(7, 4 + probe.hidden, 5, 1).await.unwrap();
        } else {
            assert_rule(probe.write(7, 4, 5, 1).await, "write");
            probe.reset(7).await;
            probe.write(7, 0, 6, 1).await.unwrap();
        }
    });
}

pub(crate) fn every_rule<H: Harness>(harness: &H) {
    let mut media = harness.create();
    macro_rules! rules {
        ($($rule:ident),* $(,)?) => {
            $(media = harness.run($rule(media));)*
        };
    }
    rules!(
        reads_return_what_was_written,
        a_chunk_goes_through_its_states,
        writes_only_at_the_write_pointer,
        lengths_are_whole_units,
        reads_stay_below_the_write_pointer,
        there_are_no_chunks_beyond_the_last,
        appends_say_where_they_went,
        writes_may_follow_before_the_last_completed,
        counters_count,
    );
    media = harness.run(the_last_units_of_an_open_chunk_are_hidden(media, harness.hides()));
    media = harness.run(finish_closes_an_open_chunk(media, harness.finish_pads()));
    drop(media);
    content_survives_a_restart(harness);
}
