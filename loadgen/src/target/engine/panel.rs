//! What each shard has counted, to be asked from another thread while it runs.
//!
//! A shard's store counts from its opening. It stays open from phase to phase, as long as the crew that drives it; the
//! panel adds up what one crew's opening after another has counted. A question rings the shard's bell; the shard answers between two operations. A shard that has ended left its last
//! word here, so nobody waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use terrane_engine::Store;
use terrane_ocssd::Media;
use tokio::sync::oneshot;

use crate::target::engine::mesh::Post;

/// How long a shard may take to answer before its last word is taken instead: one whose thread waits for others to
/// connect answers nobody.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Counts of one shard, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Written to the medium, anchors included.
    pub(super) device_written: u64,
    /// Keys and values appended.
    pub(super) user: u64,
    /// Part of the slice in use, in whole chunks.
    pub(super) occupied: u64,
}

/// One shard's panel.
#[derive(Debug, Default)]
pub(super) struct Panel {
    asked: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the openings before this one came to.
    before: Counts,
    last: Counts,
    /// The shard, while it runs.
    post: Option<Arc<Post>>,
    questions: Vec<oneshot::Sender<()>>,
}

impl Panel {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard runs from now on, until the guard is dropped.
    pub(super) fn runs(self: &Arc<Self>, post: Arc<Post>) -> Running {
        self.state().post = Some(post);
        Running { panel: self.clone() }
    }

    /// Whether someone has asked.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The shard's own: publishes what its store has counted, and answers who asked.
    pub(super) fn publish<M: Media>(&self, store: &Store<M>, chunk_bytes: u64) {
        self.asked.store(false, Ordering::Relaxed);
        let counters = store.counters();
        let mut state = self.state();
        state.last = Counts {
            device_written: state.before.device_written + counters.media.written_bytes,
            user: state.before.user + counters.user_bytes,
            occupied: counters.used_bytes.next_multiple_of(chunk_bytes),
        };
        for question in std::mem::take(&mut state.questions) {
            // Whoever asked may have gone since.
            let _ = question.send(());
        }
    }

    /// What the shard has counted as of now; its last word if it does not run or does not answer.
    pub(super) async fn look(&self) -> Counts {
        let answered = {
            let mut state = self.state();
            state.post.clone().map(|post| {
                let (question, answered) = oneshot::channel();
                state.questions.push(question);
                self.asked.store(true, Ordering::Relaxed);
                post.ring();
                answered
            })
        };
        if let Some(answered) = answered {
            // Late or ended: either way the last word stands.
            let _ = tokio::time::timeout(ANSWER_WITHIN, answered).await;
        }
        self.state().last
    }
}

/// A shard runs while this is held.
#[derive(Debug)]
pub(super) struct Running {
    panel: Arc<Panel>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.panel.state();
        state.before = state.last;
        state.post = None;
        state.questions.clear();
    }
}
