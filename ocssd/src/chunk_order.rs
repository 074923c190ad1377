//! The order of writes within one chunk, where the device has a write pointer of its own.
//!
//! The seam lets the host submit the next write of a chunk before the last completed. A zone lets it only if the writes
//! reach the device in the order of their addresses, which neither NVMe (commands of a queue are processed in
//! any order) nor the kernel's block layer (a request that finds no tag is handed to a worker) promises. So:
//!
//! - A **write** at the pointer goes alone: it waits until everything before it has completed, and what comes
//!   after waits for it.
//! - **Appends** share: several are in flight in one chunk, and the device says where each went.
//!
//! Waiting is first come, first served, so the host's order of submission is the order on the device.
//!
//! Invariants:
//! - A chunk whose write failed takes no more of those that waited behind it: they would find another write pointer.
//! - A chunk whose write was dropped half-way takes no more until the medium is opened again, if the device has write
//!   pointers: where it stands is known to nobody.

use std::cell::RefCell;

use crate::geometry::ChunkId;
use crate::line::{Line, Turn};
use crate::media::MediaError;

/// How a write shares its chunk with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nothing else is in flight in the chunk.
    Alone,
    /// Others of the kind may be in flight.
    Shared,
}

/// Why a chunk takes no more writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// A future was dropped.
    Dropped,
    /// A write before failed; nothing at or above `sector` counts. `programming`: since the device could not write,
    /// not since it did not want to.
    Failed { sector: u32, programming: bool },
}

impl Broken {
    /// What those that waited behind are told.
    pub(crate) fn told(self, operation: &'static str, chunk: ChunkId, sector: u32) -> MediaError {
        match self {
            Self::Dropped => MediaError::Rule {
                operation,
                chunk,
                sector,
                reason: "something was dropped in flight in the chunk; open the medium again",
            },
            Self::Failed { sector, programming: true } => MediaError::WriteFailed { chunk, sector },
            Self::Failed { sector, programming: false } => {
                MediaError::ClosedEarly { chunk, write_pointer: sector }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Chunk {
    alone: bool,
    shared: u32,
    broken: Option<Broken>,
    /// End of the highest write that completed well, in sectors.
    acknowledged: u32,
    line: Line,
}

/// The order of writes within each chunk of a slice.
#[derive(Debug)]
pub(crate) struct ChunkOrder {
    chunks: Vec<RefCell<Chunk>>,
    /// A dropped write breaks its chunk.
    strict: bool,
}

impl ChunkOrder {
    /// For a device with write pointers: a dropped write breaks its chunk.
    pub(crate) fn strict(chunks: u32) -> Self {
        Self { chunks: (0..chunks).map(|_| RefCell::default()).collect(), strict: true }
    }

    /// For a device that takes writes anywhere: a dropped write is only that.
    pub(crate) fn lenient(chunks: u32) -> Self {
        Self { strict: false, ..Self::strict(chunks) }
    }

    /// Says that everything below `sector` of the chunk was there when the medium was opened.
    pub(crate) fn starts_at(&self, chunk: ChunkId, sector: u32) {
        self.chunks[chunk.0 as usize].borrow_mut().acknowledged = sector;
    }

    /// Whether something was dropped on its way, and may still come to the device.
    pub(crate) fn any_dropped(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.borrow().broken == Some(Broken::Dropped))
    }

    /// A way into the chunk for a write that was admitted to it, to be taken with [`Passage::enter`].
    pub(crate) fn passage(&self, chunk: ChunkId) -> Passage<'_> {
        Passage { chunk: &self.chunks[chunk.0 as usize], within: None, left: false, strict: self.strict }
    }
}

/// A write's way through its chunk: enter, write, leave.
#[derive(Debug)]
pub(crate) struct Passage<'a> {
    chunk: &'a RefCell<Chunk>,
    within: Option<Sharing>,
    left: bool,
    strict: bool,
}

impl Passage<'_> {
    /// Waits for the write's turn. `opens`: it is the first of the chunk's life, so what broke the last life is over.
    pub(crate) async fn enter(&mut self, sharing: Sharing, opens: bool) -> Result<(), Broken> {
        let entered = self.wait(sharing, move |chunk| {
            if opens {
                chunk.broken = None;
                chunk.acknowledged = 0;
            }
            chunk.broken.map_or(Ok(()), Err)
        });
        entered.await
    }

    /// Gives up a shared place for one alone, after all that waited before it, though the chunk be broken: to clean up.
    pub(crate) async fn stay_alone(&mut self) {
        if self.within != Some(Sharing::Alone) {
            self.step_out();
            let Ok(()) = self.wait(Sharing::Alone, |_| Ok::<_, std::convert::Infallible>(())).await;
        }
    }

    async fn wait<E>(
        &mut self,
        sharing: Sharing,
        check: impl Fn(&mut Chunk) -> Result<(), E> + Unpin,
    ) -> Result<(), E> {
        let result = Turn::new(
            self.chunk,
            |chunk| &mut chunk.line,
            move |chunk: &mut Chunk| {
                let free = !chunk.alone && (sharing == Sharing::Shared || chunk.shared == 0);
                if !free {
                    return None;
                }
                if let Err(refused) = check(chunk) {
                    return Some(Err(refused));
                }
                match sharing {
                    Sharing::Alone => chunk.alone = true,
                    Sharing::Shared => chunk.shared += 1,
                }
                Some(Ok(()))
            },
        )
        .await;
        if result.is_ok() {
            self.within = Some(sharing);
        }
        result
    }

    /// Notes that everything below `sector` that this write wrote is there.
    pub(crate) fn acknowledge(&self, end: u32) {
        let mut chunk = self.chunk.borrow_mut();
        chunk.acknowledged = chunk.acknowledged.max(end);
    }

    /// End of the highest write that completed well in this life of the chunk.
    pub(crate) fn acknowledged(&self) -> u32 {
        self.chunk.borrow().acknowledged
    }

    /// Why the chunk is broken, if it is.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.chunk.borrow().broken
    }

    /// Tells all that wait that the chunk takes no more.
    pub(crate) fn break_off(&self, sector: u32, programming: bool) {
        self.chunk.borrow_mut().broken = Some(Broken::Failed { sector, programming });
    }

    /// The write is over, well or not.
    pub(crate) fn leave(mut self) {
        self.left = true;
    }

    fn step_out(&mut self) {
        let mut chunk = self.chunk.borrow_mut();
        match self.within.take() {
            Some(Sharing::Alone) => chunk.alone = false,
            Some(Sharing::Shared) => chunk.shared -= 1,
            None => {}
        }
        let next = chunk.line.front();
        drop(chunk);
        Line::wake(next);
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if self.strict && !self.left {
            self.chunk.borrow_mut().broken = Some(Broken::Dropped);
        }
        self.step_out();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    const CHUNK: ChunkId = ChunkId(0);

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// A write that was polled once: it is within, or it waits.
    macro_rules! entering {
        ($order:ident, $passage:ident, $entering:ident, $sharing:expr) => {
            let mut $passage = $order.passage(CHUNK);
            let mut $entering = Box::pin($passage.enter($sharing, false));
        };
    }

    #[test]
    fn a_write_goes_alone_and_in_order() {
        let order = ChunkOrder::strict(1);
        let mut first = order.passage(CHUNK);
        assert!(poll(pin!(first.enter(Sharing::Alone, true))).is_ready());
        entering!(order, second, entering_second, Sharing::Alone);
        entering!(order, third, entering_third, Sharing::Shared);
        assert!(poll(entering_second.as_mut()).is_pending());
        assert!(poll(entering_third.as_mut()).is_pending());
        first.leave();
        assert!(poll(entering_third.as_mut()).is_pending(), "the append overtook the write before it");
        assert_eq!(poll(entering_second.as_mut()), Poll::Ready(Ok(())));
        assert!(poll(entering_third.as_mut()).is_pending());
        drop(entering_second);
        second.leave();
        assert_eq!(poll(entering_third.as_mut()), Poll::Ready(Ok(())));
        drop(entering_third);
        third.leave();
    }

    #[test]
    fn appends_share_and_a_write_waits_for_all() {
        let order = ChunkOrder::strict(1);
        let (mut first, mut second) = (order.passage(CHUNK), order.passage(CHUNK));
        assert!(poll(pin!(first.enter(Sharing::Shared, true))).is_ready());
        assert!(poll(pin!(second.enter(Sharing::Shared, false))).is_ready());
        entering!(order, write, entering_write, Sharing::Alone);
        assert!(poll(entering_write.as_mut()).is_pending());
        first.leave();
        assert!(poll(entering_write.as_mut()).is_pending());
        second.leave();
        assert!(poll(entering_write.as_mut()).is_ready());
        drop(entering_write);
        write.leave();
    }

    #[test]
    fn those_behind_a_failed_write_fail_until_the_chunk_begins_anew() {
        let order = ChunkOrder::strict(1);
        let mut first = order.passage(CHUNK);
        assert!(poll(pin!(first.enter(Sharing::Alone, true))).is_ready());
        entering!(order, second, entering_second, Sharing::Alone);
        assert!(poll(entering_second.as_mut()).is_pending());
        first.break_off(5, true);
        first.leave();
        let broken = Broken::Failed { sector: 5, programming: true };
        assert_eq!(poll(entering_second.as_mut()), Poll::Ready(Err(broken)));
        drop(entering_second);
        second.leave();
        let mut next_life = order.passage(CHUNK);
        assert_eq!(poll(pin!(next_life.enter(Sharing::Alone, true))), Poll::Ready(Ok(())));
        next_life.leave();
    }

    #[test]
    fn a_dropped_write_breaks_the_chunk_of_a_device_with_write_pointers() {
        for (order, expected) in
            [(ChunkOrder::strict(1), Err(Broken::Dropped)), (ChunkOrder::lenient(1), Ok(()))]
        {
            let mut first = order.passage(CHUNK);
            assert!(poll(pin!(first.enter(Sharing::Alone, true))).is_ready());
            drop(first);
            let mut second = order.passage(CHUNK);
            assert_eq!(poll(pin!(second.enter(Sharing::Alone, false))), Poll::Ready(expected));
            second.leave();
        }
    }

    #[test]
    fn a_failed_append_stays_until_the_others_are_done() {
        let order = ChunkOrder::strict(1);
        let (mut failed, mut good) = (order.passage(CHUNK), order.passage(CHUNK));
        assert!(poll(pin!(failed.enter(Sharing::Shared, true))).is_ready());
        assert!(poll(pin!(good.enter(Sharing::Shared, false))).is_ready());
        {
            let mut alone = pin!(failed.stay_alone());
            assert!(poll(alone.as_mut()).is_pending());
            good.acknowledge(7);
            good.leave();
            assert!(poll(alone.as_mut()).is_ready());
        }
        assert_eq!(failed.acknowledged(), 7);
        failed.leave();
    }
}
