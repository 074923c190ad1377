//! Ctrl-C and SIGTERM end a run in order: whatever is being awaited is dropped, and with it the nodes that were
//! started and the temporary folder.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// The run was interrupted; the process exits with 130, as shells expect.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Runs `work` unless SIGINT or SIGTERM comes first; then `work` is dropped where it stands.
pub(crate) async fn or_interrupted<R>(work: impl Future<Output = anyhow::Result<R>>) -> anyhow::Result<R> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(Interrupted.into()),
        _ = terminate.recv() => Err(Interrupted.into()),
    }
}
