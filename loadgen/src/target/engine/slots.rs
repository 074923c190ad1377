//! What the operations of a thread wait for: a numbered slot each, which the answer goes to.
//!
//! Invariant: a slot is used again only after its answer has come, even if nobody waits for it any more: a late answer
//! never reaches another operation.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Slots for answers `T` that come from `owner`s.
#[derive(Debug)]
pub(super) struct Slots<T> {
    state: RefCell<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
enum Slot<T> {
    Free,
    Waiting {
        owner: usize,
        waker: Option<Waker>,
    },
    Answered(T),
    /// The operation was dropped; the answer is still to come.
    Abandoned {
        owner: usize,
    },
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { state: RefCell::new(State { slots: Vec::new(), free: Vec::new() }) }
    }
}

impl<T> Slots<T> {
    /// Takes a slot for an answer that `owner` will give.
    pub(super) fn take(&self, owner: usize) -> Ticket<'_, T> {
        let mut state = self.state.borrow_mut();
        let waiting = Slot::Waiting { owner, waker: None };
        let number = match state.free.pop() {
            Some(number) => {
                state.slots[number as usize] = waiting;
                number
            }
            None => {
                state.slots.push(waiting);
                u32::try_from(state.slots.len() - 1).expect("operations in flight are far fewer")
            }
        };
        Ticket { slots: self, number }
    }

    /// Answers the operation that waits at this slot.
    pub(super) fn answer(&self, number: u32, answer: T) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[number as usize];
        match std::mem::replace(slot, Slot::Free) {
            Slot::Waiting { waker, .. } => {
                *slot = Slot::Answered(answer);
                // A waker may run code that takes a slot.
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Abandoned { .. } => state.free.push(number),
            Slot::Free | Slot::Answered(_) => unreachable!("a slot is answered once"),
        }
    }

    /// Answers all operations that wait for `owner`, which will not.
    pub(super) fn give_up(&self, owner: usize, answer: impl Fn() -> T) {
        let waits = |slot: &Slot<T>| match slot {
            Slot::Waiting { owner: of, .. } | Slot::Abandoned { owner: of } => *of == owner,
            Slot::Free | Slot::Answered(_) => false,
        };
        let waiting: Vec<u32> = {
            let state = self.state.borrow();
            (0..).zip(&state.slots).filter(|(_, slot)| waits(slot)).map(|(number, _)| number).collect()
        };
        for number in waiting {
            self.answer(number, answer());
        }
    }
}

/// An operation's place in [`Slots`]; resolves with the answer.
#[derive(Debug)]
pub(super) struct Ticket<'a, T> {
    slots: &'a Slots<T>,
    number: u32,
}

impl<T> Ticket<'_, T> {
    /// Where the answer is to go.
    pub(super) fn number(&self) -> u32 {
        self.number
    }
}

impl<T> Future for Ticket<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.slots.state.borrow_mut();
        let slot = &mut state.slots[self.number as usize];
        if let Slot::Waiting { waker, .. } = slot {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(slot, Slot::Free) {
            Slot::Answered(answer) => {
                // The slot is given back when the ticket is dropped.
                Poll::Ready(answer)
            }
            _ => panic!("a ticket is not polled again after its answer"),
        }
    }
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        let mut state = self.slots.state.borrow_mut();
        let slot = &mut state.slots[self.number as usize];
        match slot {
            Slot::Waiting { owner, .. } => *slot = Slot::Abandoned { owner: *owner },
            Slot::Free | Slot::Answered(_) => {
                *slot = Slot::Free;
                state.free.push(self.number);
            }
            Slot::Abandoned { .. } => unreachable!("a ticket is dropped once"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll<T>(ticket: &mut Ticket<'_, T>) -> Poll<T> {
        Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn answers_find_their_operations_and_slots_are_used_again() {
        let slots = Slots::default();
        let (mut one, mut two) = (slots.take(0), slots.take(0));
        assert!(poll(&mut one).is_pending());
        slots.answer(two.number(), "two");
        slots.answer(one.number(), "one");
        assert_eq!((poll(&mut one), poll(&mut two)), (Poll::Ready("one"), Poll::Ready("two")));
        drop((one, two));
        let (three, four) = (slots.take(0), slots.take(0));
        assert!(three.number() < 2 && four.number() < 2);
    }

    #[test]
    fn an_abandoned_slot_waits_for_its_answer() {
        let slots = Slots::default();
        let abandoned = slots.take(0).number();
        assert_ne!(slots.take(0).number(), abandoned);
        slots.answer(abandoned, 1);
        let (again, fresh) = (slots.take(0), slots.take(0));
        assert_eq!(again.number(), abandoned);
        assert_ne!(fresh.number(), abandoned);
    }

    #[test]
    fn who_waits_for_the_dead_is_told_and_nobody_else() {
        let slots = Slots::default();
        let (mut dead, mut alive) = (slots.take(1), slots.take(2));
        let abandoned = slots.take(1).number();
        slots.give_up(1, || "gone");
        assert_eq!(poll(&mut dead), Poll::Ready("gone"));
        assert!(poll(&mut alive).is_pending());
        assert_eq!(slots.take(2).number(), abandoned, "its answer will not come");
    }
}
