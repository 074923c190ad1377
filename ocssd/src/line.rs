//! Waiting in line: first come, first served, on one thread.
//!
//! Whoever wants something that may be taken right now (a place in a ring, a turn at a zone) [waits](Turn) until it
//! is at the front **and** what it wants is free. A later one never overtakes, however small its wish.
//!
//! Invariants:
//! - Whoever makes something free, leaves the line or is served wakes the one at the front; nobody else has to be woken.
//! - A dropped wait leaves the line.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Those who wait, the first in front.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: VecDeque<(u64, Waker)>,
    next_ticket: u64,
}

impl Line {
    /// The waker of the one at the front, to be woken once nothing is borrowed any more.
    pub(crate) fn front(&self) -> Option<Waker> {
        self.waiting.front().map(|(_, waker)| waker.clone())
    }

    /// Wakes the one at the front as it stood when [`Self::front`] was asked. A place of its own, since a waker may run what
    /// borrows the line again.
    pub(crate) fn wake(front: Option<Waker>) {
        if let Some(waker) = front {
            waker.wake();
        }
    }

    /// Sends everybody away who waits; who is polled all the same waits again, behind those who came meanwhile. Returns their
    /// wakers, for the caller to drop when nothing is borrowed.
    pub(crate) fn forget(&mut self) -> VecDeque<(u64, Waker)> {
        std::mem::take(&mut self.waiting)
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// A wait for `take` to give something. `line` finds the line in the state that both share.
pub(crate) struct Turn<'a, S, F> {
    state: &'a RefCell<S>,
    line: fn(&mut S) -> &mut Line,
    take: F,
    ticket: Option<u64>,
}

impl<'a, S, F> Turn<'a, S, F> {
    /// Waits, when polled, until nobody is before it and `take` gives something.
    pub(crate) fn new<T>(state: &'a RefCell<S>, line: fn(&mut S) -> &mut Line, take: F) -> Self
    where
        F: FnMut(&mut S) -> Option<T> + Unpin,
    {
        Self { state, line, take, ticket: None }
    }
}

impl<S, T, F: FnMut(&mut S) -> Option<T> + Unpin> Future for Turn<'_, S, F> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        let mut state = this.state.borrow_mut();
        let line = (this.line)(&mut state);
        // A line that forgot who waits begins anew.
        this.ticket = this.ticket.filter(|ticket| line.waiting.iter().any(|(waiting, _)| waiting == ticket));
        let front = line.waiting.front().map(|(ticket, _)| *ticket);
        if front == this.ticket
            && let Some(taken) = (this.take)(&mut state)
        {
            let line = (this.line)(&mut state);
            if this.ticket.take().is_some() {
                line.waiting.pop_front();
            }
            let next = line.front();
            drop(state);
            Line::wake(next);
            return Poll::Ready(taken);
        }
        let line = (this.line)(&mut state);
        let waker = context.waker().clone();
        match this.ticket {
            None => {
                this.ticket = Some(line.next_ticket);
                line.waiting.push_back((line.next_ticket, waker));
                line.next_ticket += 1;
            }
            Some(ticket) => {
                let place = line.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket);
                place.expect("who has a ticket is in the line").1 = waker;
            }
        }
        Poll::Pending
    }
}

impl<S, F> Drop for Turn<'_, S, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let mut state = self.state.borrow_mut();
            let line = (self.line)(&mut state);
            line.waiting.retain(|(waiting, _)| *waiting != ticket);
            let next = line.front();
            drop(state);
            Line::wake(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Places {
        free: u32,
        line: Line,
    }

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wait(places: &RefCell<Places>, wanted: u32) -> impl Future<Output = ()> + Unpin {
        Turn::new(
            places,
            |places| &mut places.line,
            move |places: &mut Places| {
                places.free = places.free.checked_sub(wanted)?;
                Some(())
            },
        )
    }

    fn is_served(turn: &mut (impl Future<Output = ()> + Unpin), woken: &Arc<Woken>) -> bool {
        Pin::new(turn).poll(&mut Context::from_waker(&Waker::from(woken.clone()))).is_ready()
    }

    /// Without the look at the front the small wish overtakes the large one.
    #[test]
    fn nobody_overtakes() {
        let places = RefCell::new(Places { free: 1, ..Places::default() });
        let (large, small) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let (mut first, mut second) = (wait(&places, 2), wait(&places, 1));
        assert!(!is_served(&mut first, &large));
        assert!(!is_served(&mut second, &small));
        places.borrow_mut().free = 3;
        assert!(!is_served(&mut second, &small));
        assert!(is_served(&mut first, &large));
        // The one served wakes the next.
        assert_eq!(small.0.load(Ordering::Relaxed), 1);
        assert!(is_served(&mut second, &small));
    }

    #[test]
    fn a_dropped_wait_lets_the_next_go() {
        let places = RefCell::new(Places::default());
        let woken = Arc::new(Woken::default());
        let (mut first, mut second) = (wait(&places, 2), wait(&places, 1));
        assert!(!is_served(&mut first, &woken));
        assert!(!is_served(&mut second, &woken));
        places.borrow_mut().free = 1;
        drop(first);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(is_served(&mut second, &woken));
        assert_eq!(places.borrow().line.len(), 0);
    }

    #[test]
    fn who_was_forgotten_and_comes_again_stands_at_the_end() {
        let places = RefCell::new(Places::default());
        let woken = Arc::new(Woken::default());
        let (mut first, mut second) = (wait(&places, 1), wait(&places, 1));
        assert!(!is_served(&mut first, &woken));
        drop(places.borrow_mut().line.forget());
        assert!(!is_served(&mut second, &woken));
        places.borrow_mut().free = 2;
        assert!(!is_served(&mut first, &woken));
        assert!(is_served(&mut second, &woken));
        assert!(is_served(&mut first, &woken));
        assert_eq!(places.borrow().line.len(), 0);
    }
}
