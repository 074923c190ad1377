//! A medium that writes down what another one does.

use std::cell::RefCell;
use std::io::{self, Write};

use crate::buffer::AlignedBuf;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice};
use crate::trace::{Event, TraceWriter};

/// Any medium, with every write, reset and finish that succeeds recorded into a sink.
///
/// Events are in the order of completion; of one chunk that is also the order of submission. An operation whose
/// future was dropped is not recorded, whether it took effect or not.
///
/// Recording never changes what the host sees: an error of the sink is kept and returned by [`Recorder::end`], and
/// recording stops there. The sink is written to synchronously, some tens of KiB at a time, from within the
/// operation that fills a frame: a tool for measuring, not for production.
pub struct Recorder<M> {
    media: M,
    state: RefCell<State>,
}

struct State {
    writer: Result<TraceWriter<Box<dyn Write>>, io::Error>,
    /// By chunk, since the last reset.
    classes: Vec<LifetimeClass>,
}

impl State {
    fn record(&mut self, event: Event) {
        if let Ok(writer) = &mut self.writer
            && let Err(error) = writer.push(&event)
        {
            self.writer = Err(error);
        }
    }
}

impl<M: Media> Recorder<M> {
    /// Records what is done to `media` from now on.
    pub fn new(media: M, sink: impl Write + 'static) -> io::Result<Self> {
        let sink: Box<dyn Write> = Box::new(sink);
        let writer = Ok(TraceWriter::new(sink, media.geometry())?);
        let classes = vec![LifetimeClass::default(); media.geometry().chunk_count() as usize];
        Ok(Self { media, state: RefCell::new(State { writer, classes }) })
    }

    /// The medium behind. What is done to it directly is not recorded.
    pub fn media(&self) -> &M {
        &self.media
    }

    /// Ends the trace, flushes the sink, and returns the medium. Without this the trace is told as cut off when it is
    /// read.
    ///
    /// The error is the first that the sink returned.
    pub fn end(self) -> (M, io::Result<()>) {
        let ended = self.state.into_inner().writer.and_then(|writer| writer.end().map(drop));
        (self.media, ended)
    }

    fn record_write(&self, chunk: ChunkId, sector: u32, bytes: usize) {
        let sectors = (bytes / self.media.geometry().sector_bytes as usize) as u32;
        let mut state = self.state.borrow_mut();
        let class = state.classes[chunk.0 as usize];
        state.record(Event::Write { chunk, sector, sectors, class });
    }
}

impl<M: Media> Media for Recorder<M> {
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
        if let Some(entry) = self.state.borrow_mut().classes.get_mut(chunk.0 as usize) {
            *entry = class;
        }
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
        state.classes[chunk.0 as usize] = LifetimeClass::default();
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
