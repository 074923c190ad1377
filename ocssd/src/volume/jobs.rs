//! Work that must run to its end although the operation that began it may be dropped: programs, evacuations,
//! metadata records.
//!
//! The volume has no thread and may spawn none. Its jobs are futures that it owns, and **every** operation that waits
//! drives all of them. So no operation ever waits for another one's caller to poll, and a dropped write leaves nothing
//! half done that a later flush could stumble over.
//!
//! Invariants:
//! - A job is first polled in the order in which it was added: programs of one chunk reach the device in the order of
//!   their addresses.
//! - A job never drives the others, it only waits for them; so it is never polled from within itself.
//! - Whoever changes what others wait for calls [`Jobs::notify`].

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::{FuturesUnordered, StreamExt};

type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Everyone who waits for something to change. `Wake` asks for a thread-safe type; there is one thread.
#[derive(Default)]
struct Waiting(Mutex<Vec<Waker>>);

impl Waiting {
    fn register(&self, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }

    fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// The jobs of one volume.
#[derive(Default)]
pub(super) struct Jobs {
    added: RefCell<Vec<Job>>,
    running: RefCell<FuturesUnordered<Job>>,
    waiting: Arc<Waiting>,
}

impl Jobs {
    /// Adds a job. It is first polled by the next [`Self::drive`], after those added before it.
    pub(super) fn add(&self, job: impl Future<Output = ()> + 'static) {
        self.added.borrow_mut().push(Box::pin(job));
    }

    /// Polls what can go on. True if a job ended, of which everyone is told. Does nothing when called from within a job.
    pub(super) fn drive(&self) -> bool {
        let Ok(mut running) = self.running.try_borrow_mut() else { return false };
        let ended = self.poll_all(&mut running);
        drop(running);
        if ended {
            // What ended may be what others wait for.
            self.notify();
        }
        ended
    }

    fn poll_all(&self, running: &mut FuturesUnordered<Job>) -> bool {
        let waker = Waker::from(Arc::clone(&self.waiting));
        let mut context = Context::from_waker(&waker);
        let mut ended = false;
        loop {
            let added = self.added.take();
            let any = !added.is_empty();
            running.extend(added);
            match running.poll_next_unpin(&mut context) {
                Poll::Ready(Some(())) => ended = true,
                Poll::Ready(None) | Poll::Pending if !any && self.added.borrow().is_empty() => return ended,
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
    }

    /// Something changed that others may wait for.
    pub(super) fn notify(&self) {
        self.waiting.wake_all();
    }

    /// Resolves with what `ready` gives as soon as it gives something, and drives all jobs meanwhile. For operations.
    pub(super) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|context| {
            loop {
                if let Some(value) = ready() {
                    return Poll::Ready(value);
                }
                self.waiting.register(context.waker());
                if !self.drive() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// The same for a job, which must not drive.
    pub(super) async fn wait<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(|context| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waiting.register(context.waker());
                Poll::Pending
            }
        })
        .await
    }

    /// Drops all jobs: they hold the volume that owns them.
    pub(super) fn clear(&self) {
        self.added.take();
        if let Ok(mut running) = self.running.try_borrow_mut() {
            running.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::rc::Rc;

    use super::*;

    fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn jobs_begin_in_the_order_in_which_they_were_added() {
        let jobs = Jobs::default();
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..50 {
            let order = Rc::clone(&order);
            jobs.add(async move {
                order.borrow_mut().push(number);
                std::future::pending::<()>().await;
            });
        }
        jobs.drive();
        assert_eq!(*order.borrow(), (0..50).collect::<Vec<_>>());
    }

    /// Without driving in `until`, the job of a dropped operation would never end and the second one wait for ever.
    #[test]
    fn a_dropped_operation_leaves_its_job_to_the_next() {
        let jobs = Jobs::default();
        let (gate, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        {
            let (gate, done) = (Rc::clone(&gate), Rc::clone(&done));
            jobs.add(async move {
                std::future::poll_fn(|context| match gate.get() {
                    true => Poll::Ready(()),
                    false => {
                        context.waker().wake_by_ref();
                        Poll::Pending
                    }
                })
                .await;
                done.set(true);
            });
        }
        let ready = || done.get().then_some(());
        assert!(poll(pin!(jobs.until(ready))).is_pending());
        gate.set(true);
        assert!(poll(pin!(jobs.until(ready))).is_ready());
    }

    #[test]
    fn a_job_may_add_and_await_another() {
        let jobs = Rc::new(Jobs::default());
        let done = Rc::new(Cell::new(0));
        {
            let (jobs, done) = (Rc::clone(&jobs), Rc::clone(&done));
            let outer = Rc::clone(&jobs);
            outer.add(async move {
                let first = Rc::clone(&done);
                jobs.add(async move { first.set(1) });
                jobs.wait(|| (done.get() == 1).then_some(())).await;
                done.set(2);
            });
        }
        let mut waits = pin!(jobs.until(|| (done.get() == 2).then_some(())));
        let mut polls = 0;
        while poll(waits.as_mut()).is_pending() {
            polls += 1;
            assert!(polls < 10);
        }
    }
}
