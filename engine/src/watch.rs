//! Waiting for a change of state on one thread, without a runtime.
//!
//! Invariants: whoever changes what is waited for calls [`Watch::wake_all`] afterwards; whoever waits checks its
//! condition first and registers when it does not hold. Nothing runs in between on the same thread, so no wake-up is
//! lost. A waiter's seat is freed when the waiter is dropped.

use std::cell::RefCell;
use std::task::{Context, Waker};

#[derive(Default)]
pub(crate) struct Watch {
    seats: RefCell<Seats>,
}

#[derive(Default)]
struct Seats {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// A waiter's place in a watch; empty until it first had to wait.
#[derive(Default)]
pub(crate) struct Seat(Option<usize>);

impl Watch {
    /// Wakes the task of `cx` at the next [`Watch::wake_all`].
    pub(crate) fn register(&self, seat: &mut Seat, cx: &Context<'_>) {
        let mut seats = self.seats.borrow_mut();
        let at = match seat.0 {
            Some(at) => at,
            None => {
                let at = seats.free.pop().unwrap_or_else(|| {
                    seats.wakers.push(None);
                    seats.wakers.len() - 1
                });
                seat.0 = Some(at);
                at
            }
        };
        match &mut seats.wakers[at] {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Gives the seat back. Every seat that was registered must be left before it is dropped.
    pub(crate) fn leave(&self, seat: &mut Seat) {
        if let Some(at) = seat.0.take() {
            let mut seats = self.seats.borrow_mut();
            seats.wakers[at] = None;
            seats.free.push(at);
        }
    }

    /// Wakes everyone who registered since the last call.
    pub(crate) fn wake_all(&self) {
        // Taken out first: a waker may run code that registers again.
        let count = self.seats.borrow().wakers.len();
        for at in 0..count {
            let waker = self.seats.borrow_mut().wakers.get_mut(at).and_then(Option::take);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        let seats = self.seats.borrow();
        seats.wakers.len() - seats.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_registered_waiter_is_woken_once_and_seats_are_reused() {
        let watch = Watch::default();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let (mut first, mut second) = (Seat::default(), Seat::default());
        watch.register(&mut first, &cx);
        watch.register(&mut first, &cx);
        watch.register(&mut second, &cx);
        watch.wake_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        watch.wake_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 2, "nobody registered again");
        watch.leave(&mut first);
        assert_eq!(watch.taken(), 1);
        let mut third = Seat::default();
        watch.register(&mut third, &cx);
        watch.leave(&mut second);
        watch.wake_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
        watch.leave(&mut third);
        assert_eq!(watch.taken(), 0);
    }
}
