//! What load is sent to: the two operations that the workloads need, and the kinds of failure that are told apart.
//!
//! The runner knows nothing of Terrane: it drives any [`Target`]. The cluster is one (`cluster_target.rs`), the tests'
//! in-memory map another.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

/// A value that a read found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The version that wrote it.
    pub(crate) version: u64,
    /// The value.
    pub(crate) value: Bytes,
}

/// Something that keeps values under keys. One instance serves all workers of one thread.
pub(crate) trait Target {
    /// Reads a key; `None` if there is no such key.
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure>;

    /// Writes a key whatever it held; gives the new version (at least 1) once the write is durable.
    async fn put(&self, key: &[u8], value: Bytes) -> Result<u64, Failure>;
}

/// Makes a [`Target`] for each thread.
pub(crate) trait Connect: Clone + Send + 'static {
    /// What it connects to.
    type Target: Target + 'static;

    /// Connects; called on the thread (and the runtime) that will use the target.
    async fn connect(&self) -> anyhow::Result<Self::Target>;
}

/// The kinds of failure that the reports count apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FailureKind {
    /// No success within the client's time limit; a write did not happen.
    TimedOut,
    /// The partition has no leader.
    Unavailable,
    /// The write's fate was lost with its leader or its connection: it may have happened, or yet happen, or not.
    OutcomeUnknown,
    /// The cluster is overloaded and said so.
    Busy,
    /// The cluster's space is used up.
    Full,
    /// The value exceeds the cluster's limit.
    TooLarge,
    /// Anything else that the cluster refused.
    Refused,
}

impl FailureKind {
    /// Whether another try cannot help: the phase should end.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, FailureKind::Full | FailureKind::TooLarge)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::TimedOut => "timed out",
            FailureKind::Unavailable => "unavailable",
            FailureKind::OutcomeUnknown => "outcome unknown",
            FailureKind::Busy => "busy",
            FailureKind::Full => "full",
            FailureKind::TooLarge => "too large",
            FailureKind::Refused => "refused",
        })
    }
}

/// A failed operation, after the client's own retries.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// What it counts as.
    pub(crate) kind: FailureKind,
    /// The client's own words, kept as an example.
    pub(crate) message: String,
}

/// An in-memory target that can be told to misbehave.
#[cfg(test)]
pub(crate) mod memory {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    /// What the target does wrong, counted in writes (0: never).
    #[derive(Debug, Clone, Copy, Default)]
    pub(crate) struct Faults {
        /// Every n-th write is acknowledged and forgotten.
        pub(crate) lose_every: u64,
        /// Every n-th write fails with this kind, after having been applied.
        pub(crate) fail_every: Option<(u64, FailureKind)>,
        /// Writes are refused with `Full` from this many on.
        pub(crate) full_after: Option<u64>,
        /// Every n-th write damages the value it stores.
        pub(crate) damage_every: u64,
        /// Every read fails.
        pub(crate) reads_fail: bool,
    }

    #[derive(Debug, Default)]
    struct Held {
        map: BTreeMap<Vec<u8>, Found>,
        writes: u64,
    }

    /// The map; clones share it.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct MemoryTarget {
        held: Arc<Mutex<Held>>,
        faults: Arc<Mutex<Faults>>,
    }

    impl MemoryTarget {
        pub(crate) fn with(faults: Faults) -> Self {
            MemoryTarget { faults: Arc::new(Mutex::new(faults)), ..Default::default() }
        }

        pub(crate) fn set(&self, faults: Faults) {
            *self.faults.lock().unwrap() = faults;
        }

        pub(crate) fn len(&self) -> usize {
            self.held.lock().unwrap().map.len()
        }

        /// Changes what is stored under a key behind everyone's back.
        pub(crate) fn tamper(&self, key: &[u8], change: impl FnOnce(Option<Found>) -> Option<Found>) {
            let map = &mut self.held.lock().unwrap().map;
            let old = map.remove(key);
            if let Some(new) = change(old) {
                map.insert(key.to_vec(), new);
            }
        }
    }

    fn nth(every: u64, count: u64) -> bool {
        every != 0 && count.is_multiple_of(every)
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, message: format!("the test said: {kind}") }
    }

    impl Target for MemoryTarget {
        async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
            tokio::task::yield_now().await;
            if self.faults.lock().unwrap().reads_fail {
                return Err(failure(FailureKind::Unavailable));
            }
            Ok(self.held.lock().unwrap().map.get(key).cloned())
        }

        async fn put(&self, key: &[u8], value: Bytes) -> Result<u64, Failure> {
            tokio::task::yield_now().await;
            let faults = *self.faults.lock().unwrap();
            let mut held = self.held.lock().unwrap();
            if faults.full_after.is_some_and(|limit| held.writes >= limit) {
                return Err(failure(FailureKind::Full));
            }
            held.writes += 1;
            let version = held.writes;
            if nth(faults.lose_every, version) {
                return Ok(version);
            }
            let mut value = value;
            if nth(faults.damage_every, version) {
                let mut bent = value.to_vec();
                bent[0] ^= 1;
                value = bent.into();
            }
            held.map.insert(key.to_vec(), Found { version, value });
            match faults.fail_every {
                Some((every, kind)) if nth(every, version) => Err(failure(kind)),
                _ => Ok(version),
            }
        }
    }

    impl Connect for MemoryTarget {
        type Target = MemoryTarget;

        async fn connect(&self) -> anyhow::Result<MemoryTarget> {
            Ok(self.clone())
        }
    }
}
