//! Ctrl-C and SIGTERM end a run in order: what is under way stops, what was measured is told and marked as partial,
//! what was started is stopped. A second signal ends the process at once, whatever its other threads wait for: signals
//! are listened for on a thread of their own.

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::watch;

/// The exit code of a run that was interrupted, as shells expect it.
pub(crate) const INTERRUPTED: u8 = 130;

/// The run was interrupted before it had anything to tell.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether someone asked for an end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    raised: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens for SIGINT and SIGTERM until the process ends.
    pub(crate) fn listen() -> anyhow::Result<Interrupt> {
        // Handlers, not a mask of blocked signals: children start with neither.
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for Ctrl-C and SIGTERM")?;
        let (raise, raised) = watch::channel(false);
        let listen = move || {
            for _ in signals.forever() {
                if raise.send_replace(true) {
                    // Without exit handlers: other threads may be in the middle of anything.
                    signal_hook::low_level::exit(i32::from(INTERRUPTED));
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(listen)
            .context("cannot start the thread that listens for signals")?;
        Ok(Interrupt { raised })
    }

    /// Whether it has been asked for.
    pub(crate) fn is_raised(&self) -> bool {
        *self.raised.borrow()
    }

    /// Resolves when it is asked for.
    pub(crate) async fn raised(&self) {
        let mut raised = self.raised.clone();
        if raised.wait_for(|raised| *raised).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }

    /// Runs `work` unless an end is asked for first; then `work` is dropped where it stands.
    pub(crate) async fn or_interrupted<R>(
        &self,
        work: impl Future<Output = anyhow::Result<R>>,
    ) -> anyhow::Result<R> {
        tokio::select! {
            done = work => done,
            () = self.raised() => Err(Interrupted.into()),
        }
    }
}
