//! Several media operations at once, with results in the order of submission.
//!
//! Invariant: a future that was pushed is polled from then on whenever [`Pipeline::next`] is polled, until it is done;
//! a result waits for the results before it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(crate) struct Pipeline<F: Future> {
    stages: VecDeque<Stage<F>>,
}

enum Stage<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}

impl<F: Future> Pipeline<F> {
    pub(crate) fn new() -> Self {
        Self { stages: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, future: F) {
        self.stages.push_back(Stage::Running(Box::pin(future)));
    }

    /// Futures whose result was not taken yet.
    pub(crate) fn len(&self) -> usize {
        self.stages.len()
    }

    /// The result of the oldest future; `None` when there is none left.
    pub(crate) async fn next(&mut self) -> Option<F::Output> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        for stage in &mut self.stages {
            if let Stage::Running(future) = stage
                && let Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *stage = Stage::Done(output);
            }
        }
        match self.stages.pop_front() {
            None => Poll::Ready(None),
            Some(Stage::Done(output)) => Poll::Ready(Some(output)),
            Some(running) => {
                self.stages.push_front(running);
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Waker;

    #[test]
    fn results_come_in_the_order_of_submission() {
        let mut pipeline = Pipeline::new();
        let mut cx = Context::from_waker(Waker::noop());
        for (name, mut polls_left) in [("slow", 3), ("quick", 1), ("middle", 2)] {
            pipeline.push(std::future::poll_fn(move |_| {
                polls_left -= 1;
                if polls_left == 0 { Poll::Ready(name) } else { Poll::Pending }
            }));
        }
        let mut order = Vec::new();
        for _ in 0..8 {
            if let Poll::Ready(Some(name)) = pin!(pipeline.next()).poll(&mut cx) {
                order.push(name);
            }
        }
        assert_eq!(order, ["slow", "quick", "middle"]);
        assert_eq!(pipeline.len(), 0);
    }
}
