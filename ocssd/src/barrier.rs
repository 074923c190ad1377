//! The barrier of a device's cache: once it broke, it never holds again.
//!
//! The slices of a device share its cache, and the kernel or the device reports a write that the cache lost once and then
//! forgets it, to whichever flush comes first. So whoever emptied the cache, or tried to, has to learn how that ended
//! before anybody may trust a later flush.
//!
//! Invariant: after a flush that failed, or whose future was dropped before it said how it ended, every later flush of
//! every slice fails, until the device is opened again.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::geometry::ChunkId;
use crate::media::MediaError;

/// What the slices of a device know of its cache. Any thread may ask.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    broken: AtomicBool,
}

impl Barrier {
    /// Awaits the device's own flush, if there may be one, and tells whether it can be relied on.
    pub(crate) async fn flush(
        &self,
        flush: impl Future<Output = Result<(), MediaError>>,
    ) -> Result<(), MediaError> {
        self.check()?;
        self.depends_on(flush, Result::is_err).await?;
        // One of another slice may have failed meanwhile, over the same cache.
        self.check()
    }

    /// Awaits what empties the cache, a durable write through the kernel for example. If it `failed`, or is dropped while
    /// it runs, the barrier is broken.
    pub(crate) async fn depends_on<T>(
        &self,
        operation: impl Future<Output = T>,
        failed: impl FnOnce(&T) -> bool,
    ) -> T {
        let mut unlearned = Unlearned { barrier: self, well: false };
        let outcome = operation.await;
        unlearned.well = !failed(&outcome);
        outcome
    }

    fn check(&self) -> Result<(), MediaError> {
        if self.broken.load(Ordering::Acquire) {
            let text = "an earlier flush failed or was not waited for; what it covered may be lost";
            let source = io::Error::other(text);
            return Err(MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source });
        }
        Ok(())
    }
}

/// Breaks the barrier when it is dropped, unless all went well.
struct Unlearned<'a> {
    barrier: &'a Barrier,
    well: bool,
}

impl Drop for Unlearned<'_> {
    fn drop(&mut self) {
        if !self.well {
            self.barrier.broken.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn holds(barrier: &Barrier) -> bool {
        matches!(poll(barrier.flush(ready(Ok(())))), Poll::Ready(Ok(())))
    }

    #[test]
    fn what_failed_or_was_dropped_breaks_it_for_good() {
        let failure = || MediaError::Offline { chunk: ChunkId(0) };
        let barrier = Barrier::default();
        assert!(holds(&barrier));
        assert!(poll(barrier.flush(ready(Err(failure())))).is_ready());
        assert!(!holds(&barrier));

        let barrier = Barrier::default();
        assert!(poll(barrier.flush(pending())).is_pending());
        assert!(!holds(&barrier), "nobody learned how the flush ended");

        let barrier = Barrier::default();
        assert_eq!(poll(barrier.depends_on(ready(7), |_| false)), Poll::Ready(7));
        assert!(holds(&barrier));
        assert!(poll(barrier.depends_on(pending::<()>(), |()| false)).is_pending());
        assert!(!holds(&barrier));
    }

    #[test]
    fn a_flush_that_was_never_begun_breaks_nothing() {
        let barrier = Barrier::default();
        drop(barrier.flush(pending()));
        assert!(holds(&barrier));
    }

    #[test]
    fn a_flush_fails_with_another_that_failed_meanwhile() {
        let barrier = Barrier::default();
        let flush = barrier.flush(async {
            assert!(poll(barrier.flush(pending())).is_pending());
            Ok(())
        });
        assert!(matches!(poll(flush), Poll::Ready(Err(MediaError::Io { operation: "flush", .. }))));
    }
}
