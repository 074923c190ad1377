//! Reads that wait for proof of leadership (section 6.4 of Ongaro's dissertation).
//!
//! A read takes the commit index at its arrival and waits until a quorum has answered a heartbeat round that
//! began after it. Reads that arrive together share a round. A leader that has not yet committed an entry of
//! its own term does not know the commit index; such a read takes the index of the leader's first entry
//! instead, and also waits for its commit.
//!
//! Invariant: both the rounds and the indexes of waiting reads ascend.

use std::collections::VecDeque;

use crate::{effects::ReadReady, types::Index};

#[derive(Clone, Copy, Debug)]
struct PendingRead {
    context: u64,
    index: Index,
    round: u64,
}

/// The leader's waiting reads, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct PendingReads(VecDeque<PendingRead>);

impl PendingReads {
    /// A read that needs the state at `index` and a quorum's answer to `round` or a later one.
    pub(crate) fn push(&mut self, context: u64, index: Index, round: u64) {
        debug_assert!(self.0.back().is_none_or(|last| last.index <= index && last.round <= round));
        self.0.push_back(PendingRead { context, index, round });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves the reads that a quorum has confirmed, and whose index is committed, to `ready`.
    pub(crate) fn release(&mut self, confirmed_round: u64, commit: Index, ready: &mut Vec<ReadReady>) {
        while let Some(read) = self.0.front() {
            if read.round > confirmed_round || read.index > commit {
                break;
            }
            ready.push(ReadReady { context: read.context, index: read.index });
            self.0.pop_front();
        }
    }

    /// Gives up all of them: the contexts, in order of arrival.
    pub(crate) fn fail(&mut self) -> impl Iterator<Item = u64> + '_ {
        self.0.drain(..).map(|read| read.context)
    }
}
