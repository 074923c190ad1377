//! A wake-up call between the tasks of one shard: [`Notify`].
//!
//! It needs no runtime and takes no lock. The meaning of a permit is that of tokio's `Notify`: at most one
//! is stored, so a caller that finds work by looking (a queue, a flag) never misses any, provided that it
//! looks again after each wake-up.
//!
//! Invariants:
//! - A stored permit and a waiting task never exist together.
//! - A call of [`Notify::notify_one`] is never lost: if the chosen task goes away before it saw the call,
//!   the call passes to the next one, or becomes the stored permit.
//! - Tasks are chosen first come, first served.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Wakes tasks of the same thread. Share it through an `Rc`.
#[derive(Debug, Default)]
pub struct Notify {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    permit: bool,
    next_ticket: u64,
    /// Ordered by ticket. Called ones stay until their task sees the call.
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    waker: Waker,
    call: Option<Call>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    One,
    All,
}

impl Notify {
    /// No permit, nobody waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the task that has waited longest; with none waiting, the next one to wait goes on at once.
    pub fn notify_one(&self) {
        let mut state = self.state.borrow_mut();
        let waker = match state.waiters.iter_mut().find(|waiter| waiter.call.is_none()) {
            Some(waiter) => {
                waiter.call = Some(Call::One);
                waiter.waker.clone()
            }
            None => {
                state.permit = true;
                return;
            }
        };
        // A waker may run foreign code, so the state is free again before it is called.
        drop(state);
        waker.wake();
    }

    /// Wakes every task that waits now. Stores nothing for later ones.
    pub fn notify_all(&self) {
        let mut wakers = Vec::new();
        for waiter in &mut self.state.borrow_mut().waiters {
            if waiter.call.is_none() {
                waiter.call = Some(Call::All);
                wakers.push(waiter.waker.clone());
            }
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// Resolves at the next call; at once if a permit is stored. It starts to wait when it is first
    /// polled. May be dropped at any time: no call is lost.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, ticket: None }
    }
}

/// The future of [`Notify::notified`].
#[derive(Debug)]
#[must_use = "a future does nothing until it is awaited"]
pub struct Notified<'a> {
    notify: &'a Notify,
    /// Set while this future has a place among the waiters.
    ticket: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.notify.state.borrow_mut();
        let Some(ticket) = self.ticket else {
            if std::mem::take(&mut state.permit) {
                return Poll::Ready(());
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiters.push_back(Waiter { ticket, waker: context.waker().clone(), call: None });
            drop(state);
            self.ticket = Some(ticket);
            return Poll::Pending;
        };
        let place = state.place(ticket);
        if state.waiters[place].call.is_some() {
            state.waiters.remove(place);
            drop(state);
            self.ticket = None;
            return Poll::Ready(());
        }
        state.waiters[place].waker.clone_from(context.waker());
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.notify.state.borrow_mut();
        let place = state.place(ticket);
        let waiter = state.waiters.remove(place);
        drop(state);
        if waiter.is_some_and(|waiter| waiter.call == Some(Call::One)) {
            self.notify.notify_one();
        }
    }
}

impl State {
    fn place(&self, ticket: u64) -> usize {
        self.waiters
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
            .expect("a ticket is valid until its future takes it back")
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counted() -> (Arc<Wakes>, Waker) {
        let wakes = Arc::new(Wakes::default());
        (wakes.clone(), Waker::from(wakes))
    }

    fn ready(future: Pin<&mut Notified<'_>>, waker: &Waker) -> bool {
        future.poll(&mut Context::from_waker(waker)).is_ready()
    }

    #[test]
    fn a_call_before_the_wait_is_kept_once() {
        let notify = Notify::new();
        let (_, waker) = counted();
        notify.notify_one();
        notify.notify_one();
        assert!(ready(pin!(notify.notified()), &waker));
        assert!(!ready(pin!(notify.notified()), &waker));
    }

    #[test]
    fn waiters_are_called_in_the_order_they_came() {
        let notify = Notify::new();
        let ((wakes_a, a), (wakes_b, b)) = (counted(), counted());
        let mut first = pin!(notify.notified());
        let mut second = pin!(notify.notified());
        assert!(!ready(first.as_mut(), &a));
        assert!(!ready(second.as_mut(), &b));
        notify.notify_one();
        assert_eq!(wakes_a.0.load(Ordering::Relaxed), 1);
        assert_eq!(wakes_b.0.load(Ordering::Relaxed), 0);
        assert!(!ready(second.as_mut(), &b));
        assert!(ready(first.as_mut(), &a));
        notify.notify_one();
        assert!(ready(second.as_mut(), &b));
    }

    #[test]
    fn a_call_to_a_future_that_went_away_passes_on() {
        let notify = Notify::new();
        let (_, waker) = counted();
        let mut second = pin!(notify.notified());
        {
            let mut first = pin!(notify.notified());
            assert!(!ready(first.as_mut(), &waker));
            assert!(!ready(second.as_mut(), &waker));
            notify.notify_one();
        }
        assert!(ready(second.as_mut(), &waker));
        {
            let mut third = pin!(notify.notified());
            assert!(!ready(third.as_mut(), &waker));
            notify.notify_one();
        }
        assert!(ready(pin!(notify.notified()), &waker), "with nobody left it is stored");
    }

    #[test]
    fn a_future_that_went_away_uncalled_leaves_nothing() {
        let notify = Notify::new();
        let (_, waker) = counted();
        {
            let mut gone = pin!(notify.notified());
            assert!(!ready(gone.as_mut(), &waker));
        }
        let mut stays = pin!(notify.notified());
        assert!(!ready(stays.as_mut(), &waker));
        notify.notify_one();
        assert!(ready(stays.as_mut(), &waker));
    }

    #[test]
    fn notify_all_wakes_the_present_and_not_the_future() {
        let notify = Notify::new();
        let (wakes, waker) = counted();
        let mut first = pin!(notify.notified());
        let mut second = pin!(notify.notified());
        assert!(!ready(first.as_mut(), &waker));
        assert!(!ready(second.as_mut(), &waker));
        notify.notify_all();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert!(ready(first.as_mut(), &waker));
        assert!(ready(second.as_mut(), &waker));
        assert!(!ready(pin!(notify.notified()), &waker));
    }
}
