//! How requests of one thread reach the controller: data to and from the storage, and the passing of time.
//!
//! Invariants:
//! - The controller's lock is never held across an `await`, nor while a hook of the host runs. It stands for hardware
//!   that all shards share; uncontended, it costs less than the descriptors it guards.
//! - A waker is used on the thread that it came from: monoio's are of no use elsewhere.
//! - A transfer to the file goes on when the future that waits for it is dropped, so that a chunk is never left with
//!   bytes that may still arrive.
//! - A durable write is answered after everything below it in its chunk is stored and synced: pages are programmed in
//!   order, so a device could not answer earlier.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::controller::{Controller, Storage};
use super::request::{ReadTicket, ResetTicket, Wait, WriteRequest, WriteTicket};
use super::status::Refusal;
use super::timing::FlashClock;
use crate::buffer::AlignedBuf;
use crate::geometry::Geometry;
use crate::ring_file::RingFile;

/// The device as all handles share it.
pub(super) struct Shared {
    pub(super) geometry: Geometry,
    controller: Mutex<Controller>,
    /// Durable writes and flushes that wait for transfers of other tasks, each with its thread.
    waiting: Mutex<Vec<(ThreadId, Waker)>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(controller: Controller) -> Self {
        let geometry = controller.geometry();
        Self { geometry, controller: Mutex::new(controller), waiting: Mutex::default() }
    }

    /// A panic while it was held is a bug of ours, which was told; handles that go while it unwinds must not add another.
    pub(super) fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(ThreadId, Waker)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something landed, or the power went: whoever waits on this thread looks again. Those of other threads wait for
    /// transfers of their own slices, which end there.
    pub(super) fn wake_waiting(&self) {
        let here = thread::current().id();
        let woken: Vec<_> = self.waiting().extract_if(.., |(thread, _)| *thread == here).collect();
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// One thread's way to the device.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) shared: Arc<Shared>,
    ring: Option<Rc<RingFile>>,
    pub(super) clock: Option<FlashClock>,
}

impl Port {
    /// For the calling thread.
    pub(super) fn open(shared: &Arc<Shared>) -> io::Result<Self> {
        let data = match &shared.controller().storage {
            Storage::Memory(_) => None,
            Storage::File(image) => Some(image.data.try_clone()?),
        };
        let ring = data.map(|data| Rc::new(RingFile::new(data)));
        Ok(Self { shared: Arc::clone(shared), ring, clock: None })
    }

    pub(super) fn controller(&self) -> MutexGuard<'_, Controller> {
        self.shared.controller()
    }

    fn now(&self) -> Duration {
        self.clock.as_ref().map_or(Duration::ZERO, |clock| (clock.now)())
    }

    async fn pause(&self, wait: Wait) {
        Yields(wait.yields).await;
        if let (Some(clock), Some(until)) = (&self.clock, wait.until) {
            (clock.sleep_until)(until).await;
        }
    }

    fn offset(&self, chunk: u32, sector: u32) -> u64 {
        match &self.controller().storage {
            Storage::Memory(_) => 0,
            Storage::File(image) => image.offset(&self.shared.geometry, chunk, sector),
        }
    }

    fn bytes(&self, sectors: u32) -> usize {
        sectors as usize * self.shared.geometry.sector_bytes as usize
    }

    pub(super) fn submit_write(
        &self,
        life: u64,
        request: &WriteRequest<'_>,
        data: &[u8],
    ) -> Result<Rc<WriteTicket>, Refusal> {
        let now = self.now();
        self.controller().submit_write(life, request, data, now).map(Rc::new)
    }

    /// Carries what was accepted of a write, which begins at a byte of the buffer, to the storage.
    pub(super) async fn carry(
        &self,
        ticket: &Rc<WriteTicket>,
        buf: AlignedBuf,
        from: usize,
    ) -> (io::Result<()>, AlignedBuf) {
        let Some(ring) = self.ring.as_ref().filter(|_| ticket.end > ticket.start) else {
            return (Ok(()), buf);
        };
        let (ring, shared, ticket) = (Rc::clone(ring), Arc::clone(&self.shared), Rc::clone(ticket));
        let at = self.offset(ticket.chunk, ticket.start);
        let part = from..from + self.bytes(ticket.end - ticket.start);
        monoio::spawn(async move {
            let sector_bytes = shared.geometry.sector_bytes;
            let (ended, buf) = ring.write_whole(buf, part.clone(), at, sector_bytes).await;
            shared.controller().land(&ticket, &buf[part], &ended);
            shared.wake_waiting();
            (ended, buf)
        })
        .await
    }

    /// What remains of a write once its data was carried.
    pub(super) async fn end_write(
        &self,
        ticket: &WriteTicket,
        carried: io::Result<()>,
    ) -> Result<u32, Refusal> {
        self.controller().check_life(ticket.life)?;
        carried.map_err(Refusal::Io)?;
        if ticket.durable && ticket.end > ticket.start {
            poll_fn(|context| self.poll_landed(context, |controller| controller.may_complete(ticket))).await;
            self.sync().await?;
        }
        self.pause(ticket.wait).await;
        self.controller().complete_write(ticket)
    }

    fn poll_landed(&self, context: &mut Context<'_>, landed: impl Fn(&Controller) -> bool) -> Poll<()> {
        if landed(&self.controller()) {
            return Poll::Ready(());
        }
        // The waker is in place before the look that counts, so that no landing between the two is missed.
        self.shared.waiting().push((thread::current().id(), context.waker().clone()));
        if landed(&self.controller()) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Makes the file durable, if there is one. Once that failed, it fails for ever: the kernel reports a lost write
    /// once and then forgets it.
    async fn sync(&self) -> Result<(), Refusal> {
        let Some(ring) = &self.ring else {
            return Ok(());
        };
        let broken = self.controller().broken;
        if let Some(kind) = broken {
            return Err(Refusal::Io(kind.into()));
        }
        let synced = match ring.get() {
            Ok(file) => file.sync_data().await,
            Err(error) => Err(error),
        };
        synced.map_err(|error| {
            self.controller().broken = Some(error.kind());
            Refusal::Io(error)
        })
    }

    pub(super) fn submit_read(
        &self,
        life: u64,
        chunk: u32,
        sector: u32,
        bytes: usize,
    ) -> Result<ReadTicket, Refusal> {
        let now = self.now();
        self.controller().submit_read(life, chunk, sector, bytes, now)
    }

    /// Brings what a read asked for into a part of the buffer.
    pub(super) async fn end_read(
        &self,
        ticket: &ReadTicket,
        mut buf: AlignedBuf,
        part: Range<usize>,
    ) -> (Result<(), Refusal>, AlignedBuf) {
        if let Some(ring) = &self.ring {
            let at = self.offset(ticket.chunk, ticket.sector);
            let sector_bytes = self.shared.geometry.sector_bytes;
            let (result, back) = ring.read_whole(buf, part.clone(), at, sector_bytes).await;
            buf = back;
            if let Err(error) = result {
                return (Err(Refusal::Io(error)), buf);
            }
        }
        self.pause(ticket.wait).await;
        let result = self.controller().complete_read(ticket, &mut buf[part]);
        (result, buf)
    }

    pub(super) fn submit_reset(&self, life: u64, chunk: u32) -> Result<ResetTicket, Refusal> {
        let now = self.now();
        self.controller().submit_reset(life, chunk, now)
    }

    pub(super) async fn end_reset(&self, ticket: &ResetTicket) -> Result<(), Refusal> {
        self.pause(ticket.wait).await;
        self.controller().complete_reset(ticket)
    }

    /// Flushes the chunks of some units.
    pub(super) async fn flush(&self, life: u64, units: &Range<u32>) -> Result<(), Refusal> {
        let ticket = self.controller().submit_flush(life, units)?;
        poll_fn(|context| self.poll_landed(context, |controller| controller.may_flush(&ticket))).await;
        self.sync().await?;
        self.pause(ticket.wait).await;
        self.controller().complete_flush(&ticket)
    }
}

/// Pending so many times, waking itself.
struct Yields(u32);

impl Future for Yields {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::pin::pin;

    use super::super::image::Image;
    use super::super::options::FlashOptions;
    use super::super::request::Origin;
    use super::*;
    use crate::media::ChunkState;

    /// A device of 2 chunks a unit in a file, and a port whose transfers go to the file at `to`, or to its own.
    fn port(to: Option<&str>) -> (Port, tempfile::TempDir) {
        // In the build's folder: a system's `/tmp` may be memory, without direct I/O.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("flash");
        let geometry = Geometry { chunks: 2, mw_cunits: 0, ..FlashOptions::default().geometry };
        Image::create(&path, &FlashOptions { geometry, ..FlashOptions::default() }, &mut |_, _| {}).unwrap();
        let opened = Image::open(&path).unwrap();
        let storage = Storage::File(opened.image);
        let controller = Controller::new(opened.options, opened.chunks, storage, opened.state);
        let mut port = Port::open(&Arc::new(Shared::new(controller))).unwrap();
        if let Some(to) = to {
            port.ring = Some(Rc::new(RingFile::new(File::open(to).unwrap())));
        }
        (port, folder)
    }

    fn unit() -> AlignedBuf {
        AlignedBuf::zeroed(4 * 4096)
    }

    fn submit(port: &Port, sector: u32, durable: bool) -> Rc<WriteTicket> {
        let origin = Origin::Host;
        let request = WriteRequest { chunk: 0, sector: Some(sector), durable, origin, share: None };
        port.submit_write(0, &request, &unit()).unwrap()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
        runtime.block_on(future)
    }

    /// Fails without the wait for what is below: the write would be answered while a cut could still take it.
    #[test]
    fn a_durable_write_waits_for_what_is_below_it() {
        let (port, _folder) = port(None);
        run(async {
            let (first, second) = (submit(&port, 0, false), submit(&port, 4, true));
            port.carry(&second, unit(), 0).await.0.unwrap();
            // That the chunk ends behind it changes nothing.
            port.controller().chunks[0].armed.write = true;
            submit(&port, 8, false);
            let mut answer = pin!(port.end_write(&second, Ok(())));
            // As long as it would take if it did not wait.
            for _ in 0..3 {
                let answered = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context).is_ready())).await;
                assert!(!answered, "what is below it has not arrived");
                port.sync().await.unwrap();
            }
            port.carry(&first, unit(), 0).await.0.unwrap();
            assert_eq!(answer.await.unwrap(), 4);
        });
        let mut controller = port.controller();
        controller.cut();
        assert_eq!(controller.chunks[0].write_pointer, 8, "it is durable with what is below it");
    }

    /// Fails if the chunk goes on behind data that never came.
    #[test]
    fn a_failed_transfer_ends_the_chunk() {
        // It cannot be written.
        let (port, _folder) = port(Some("/dev/null"));
        run(async {
            let (first, second, third) =
                (submit(&port, 0, false), submit(&port, 4, false), submit(&port, 8, true));
            let (carried, _) = port.carry(&second, unit(), 0).await;
            assert!(matches!(port.end_write(&second, carried).await, Err(Refusal::Io(_))));
            // Those behind it are cut off, whatever becomes of their own data; the one before it is not.
            assert!(port.end_write(&third, Ok(())).await.is_err());
            port.controller().land(&first, &unit(), &Ok(()));
            assert_eq!(port.end_write(&first, Ok(())).await.unwrap(), 0);
        });
        let controller = port.controller();
        let chunk = &controller.chunks[0];
        assert_eq!((chunk.state, chunk.write_pointer), (ChunkState::Closed, 4));
        assert_eq!(controller.counters.programmed_bytes, 4 * 4096);
    }

    /// Fails if a chunk that stopped keeps no flush waiting: a cut would take what the flush covered.
    #[test]
    fn a_flush_waits_for_what_is_below_where_a_chunk_stopped() {
        let (port, _folder) = port(None);
        run(async {
            let units = 0..port.shared.geometry.unit_count();
            let (first, second) = (submit(&port, 0, false), submit(&port, 4, false));
            port.carry(&second, unit(), 0).await.0.unwrap();
            assert_eq!(port.end_write(&second, Ok(())).await.unwrap(), 4, "the host knows that it is there");
            port.controller().chunks[0].armed.write = true;
            submit(&port, 8, false);
            let mut flush = pin!(port.flush(0, &units));
            // As long as it would take if it did not wait.
            for _ in 0..3 {
                let answered = poll_fn(|context| Poll::Ready(flush.as_mut().poll(context).is_ready())).await;
                assert!(!answered, "what is below it has not arrived");
                port.sync().await.unwrap();
            }
            port.carry(&first, unit(), 0).await.0.unwrap();
            flush.await.unwrap();
        });
        let mut controller = port.controller();
        controller.cut();
        assert_eq!(controller.chunks[0].write_pointer, 8, "the flush covered both");
    }

    /// Fails if a flush says that what completed is durable, although it went with what failed below it.
    #[test]
    fn a_flush_fails_if_what_it_covers_went_with_what_was_below() {
        let (port, _folder) = port(None);
        run(async {
            let units = 0..port.shared.geometry.unit_count();
            let (first, second) = (submit(&port, 0, false), submit(&port, 4, false));
            port.carry(&second, unit(), 0).await.0.unwrap();
            assert_eq!(port.end_write(&second, Ok(())).await.unwrap(), 4, "the host knows that it is there");
            let mut flush = pin!(port.flush(0, &units));
            let answered = poll_fn(|context| Poll::Ready(flush.as_mut().poll(context).is_ready())).await;
            assert!(!answered, "what is below it has not arrived");
            port.controller().land(&first, &unit(), &Err(io::ErrorKind::Other.into()));
            port.shared.wake_waiting();
            assert!(matches!(flush.await, Err(Refusal::Io(_))));
            assert!(matches!(port.flush(0, &units).await, Err(Refusal::Io(_))), "nor does a later one");
        });
        let controller = port.controller();
        assert_eq!((controller.chunks[0].state, controller.chunks[0].write_pointer), (ChunkState::Closed, 0));
    }

    #[test]
    fn a_failed_sync_fails_all_that_follow() {
        // It cannot be synced.
        let (port, _folder) = port(Some("/dev/null"));
        run(async {
            let units = 0..port.shared.geometry.unit_count();
            assert!(matches!(port.flush(0, &units).await, Err(Refusal::Io(_))));
            let port = Port::open(&port.shared).unwrap();
            assert!(
                matches!(port.flush(0, &units).await, Err(Refusal::Io(_))),
                "the kernel forgets, we do not"
            );
            let ticket = submit(&port, 0, true);
            let (carried, _) = port.carry(&ticket, unit(), 0).await;
            assert!(matches!(port.end_write(&ticket, carried).await, Err(Refusal::Io(_))));
            let ticket = submit(&port, 4, false);
            let (carried, _) = port.carry(&ticket, unit(), 0).await;
            assert_eq!(port.end_write(&ticket, carried).await.unwrap(), 4, "it promises nothing");
        });
    }
}
