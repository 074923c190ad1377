//! A medium that writes down what another one does.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice};
use crate::trace::{Event, TraceWriter};

/// Any medium, with every write, reset and finish that succeeds recorded into a sink.
///
/// Whoever uses the medium owns the recorder; whoever wants the trace keeps the [`Recording`].
///
/// Events are in the order of completion; of one chunk that is also the order of submission. An operation whose
/// future was dropped is not recorded, whether it took effect or not.
///
/// Recording never changes what the host sees: an error of the sink is kept and returned by [`Recording::end`], and
/// recording stops there. The sink is written to synchronously, some tens of KiB at a time, from within the
/// operation that fills a frame: a tool for measuring, not for production. Memory: one frame, and a byte a chunk.
pub struct Recorder<M, W: Write> {
    media: M,
    state: Rc<RefCell<State<W>>>,
}

/// The other end of a [`Recorder`]: what becomes of the trace.
///
/// If it is dropped, the recorder goes on, and the trace is told as cut off when it is read.
pub struct Recording<W: Write> {
    state: Rc<RefCell<State<W>>>,
}

struct State<W: Write> {
    tape: Tape<W>,
    /// By chunk, since the last reset. Of no chunk if nothing is recorded.
    classes: Vec<LifetimeClass>,
}

enum Tape<W: Write> {
    Off,
    Runs(TraceWriter<W>),
    Broke(io::Error),
}

impl<W: Write> State<W> {
    fn record(&mut self, event: Event) {
        if let Tape::Runs(writer) = &mut self.tape
            && let Err(error) = writer.push(&event)
        {
            self.tape = Tape::Broke(error);
        }
    }

    fn expect_lifetime(&mut self, chunk: ChunkId, class: LifetimeClass) {
        if let Some(entry) = self.classes.get_mut(chunk.0 as usize) {
            *entry = class;
        }
    }
}

impl<M: Media, W: Write> Recorder<M, W> {
    /// Records what is done to `media` from now on.
    pub fn new(media: M, sink: W) -> io::Result<(Self, Recording<W>)> {
        let tape = Tape::Runs(TraceWriter::new(sink, media.geometry())?);
        let classes = vec![LifetimeClass::default(); media.geometry().chunk_count() as usize];
        let state = Rc::new(RefCell::new(State { tape, classes }));
        Ok((Self { media, state: state.clone() }, Recording { state }))
    }

    /// Records nothing: for a host that records at times, so that it is compiled for one type of medium.
    pub fn idle(media: M) -> Self {
        Self { media, state: Rc::new(RefCell::new(State { tape: Tape::Off, classes: Vec::new() })) }
    }

    /// The medium behind. What is done to it directly is not recorded.
    pub fn media(&self) -> &M {
        &self.media
    }

    /// The medium behind, and no recorder before it any more.
    pub fn into_media(self) -> M {
        self.media
    }

    fn record_write(&self, chunk: ChunkId, sector: u32, bytes: usize) {
        let sectors = (bytes / self.media.geometry().sector_bytes as usize) as u32;
        let mut state = self.state.borrow_mut();
        let class = state.classes.get(chunk.0 as usize).copied().unwrap_or_default();
        state.record(Event::Write { chunk, sector, sectors, class });
    }
}

impl<W: Write> Recording<W> {
    /// Ends the trace and returns the sink, flushed. What the medium does after that is not recorded.
    ///
    /// # Errors
    /// The first that the sink returned: what came after it is not in the trace, which is told as cut off.
    pub fn end(self) -> io::Result<W> {
        match std::mem::replace(&mut self.state.borrow_mut().tape, Tape::Off) {
            Tape::Runs(writer) => writer.end(),
            Tape::Broke(error) => Err(error),
            Tape::Off => unreachable!("a recording begins as one that runs, and is ended once"),
        }
    }
}

impl<M: Media, W: Write + 'static> Media for Recorder<M, W> {
    fn geometry(&self) -> &Geometry {
        self.media.geometry()
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        self.media.report().await
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (result, buf) = self.media.write(chunk, sector, buf, durability).await;
        if result.is_ok() {
            self.record_write(chunk, sector, buf.len());
        }
        (result, buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let (result, buf) = self.media.append(chunk, buf, durability).await;
        if let Ok(sector) = result {
            self.record_write(chunk, sector, buf.len());
        }
        (result, buf)
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        self.media.read(chunk, sector, buf).await
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        self.state.borrow_mut().expect_lifetime(chunk, class);
        self.media.expect_lifetime(chunk, class);
    }

    fn protects_buffer(&self) -> bool {
        self.media.protects_buffer()
    }

    fn take_notices(&self) -> Vec<Notice> {
        self.media.take_notices()
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.media.reset(chunk).await?;
        let mut state = self.state.borrow_mut();
        state.expect_lifetime(chunk, LifetimeClass::default());
        state.record(Event::Reset { chunk });
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.media.finish(chunk).await?;
        self.state.borrow_mut().record(Event::Finish { chunk });
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.media.flush().await
    }

    fn counters(&self) -> MediaCounters {
        self.media.counters()
    }
}
