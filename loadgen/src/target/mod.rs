//! What load is sent to: anything that keeps values under keys.
//!
//! The runner knows nothing of Terrane: it drives any [`Target`], through a [`Connect`] that also says on which runtime
//! the target lives. Terrane's cluster is one (`cluster`), the embedded engine another; peers sit behind features of
//! their own.

pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod engine;
#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(feature = "fjall")]
pub(crate) mod fjall;
#[cfg(any(feature = "etcd", feature = "fjall", feature = "redis", feature = "rocksdb"))]
pub(crate) mod footprint;
pub(crate) mod leaders;
pub(crate) mod open;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "rocksdb")]
pub(crate) mod rocksdb;
pub(crate) mod setup;

use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use crate::measure::meter::Look;

/// A value that a read found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// The version that wrote it, rising with every write of the key; `None`: the target tells no versions.
    pub(crate) version: Option<u64>,
    /// The value.
    pub(crate) value: Bytes,
}

/// A row of a scan.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// The key.
    pub(crate) key: Bytes,
    /// What it held.
    pub(crate) found: Found,
}

/// What not every target can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    /// [`Target::scan`].
    Scan,
    /// [`Target::multi_get`].
    MultiGet,
    /// [`Target::put_batch`].
    Batch,
    /// The `ttl` of a write.
    Ttl,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ability::Scan => "scan",
            Ability::MultiGet => "multi-get",
            Ability::Batch => "batch",
            Ability::Ttl => "TTL",
        })
    }
}

/// Something that keeps values under keys: one connection of it, used by the workers of one thread.
///
/// Every method that writes resolves when the target says that the write is as durable as its mode promises.
pub(crate) trait Target {
    /// Reads a key; `None` if there is no such key.
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure>;

    /// Writes a key whatever it held, to vanish after `ttl` if that is given; gives the new version (at least 1),
    /// `None` if the target tells no versions.
    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure>;

    /// The first `limit` rows from this key on, in key order, values included.
    async fn scan(&self, _from: &[u8], _limit: usize) -> Result<Vec<Row>, Failure> {
        Err(Failure::unsupported(Ability::Scan))
    }

    /// Reads several keys in one request; answers in the order of the keys.
    async fn multi_get(&self, _keys: &[Bytes]) -> Result<Vec<Option<Found>>, Failure> {
        Err(Failure::unsupported(Ability::MultiGet))
    }

    /// Writes several pairs in one request; versions in the order of the pairs.
    async fn put_batch(
        &self,
        _pairs: Vec<(Bytes, Bytes)>,
        _ttl: Option<Duration>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        Err(Failure::unsupported(Ability::Batch))
    }

    /// Waits until `at`, as precisely as the target's runtime can: late by tens of microseconds, not by the
    /// millisecond of an ordinary timer. At once if `at` is past.
    async fn sleep_until(&self, at: Instant);
}

/// A load thread's place in the crew.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    /// The thread's number, 0..`threads`.
    pub(crate) thread: u32,
    /// Threads of the crew.
    pub(crate) threads: u32,
    /// Connections that this thread's workers share, at least 1 unless the thread has no worker.
    pub(crate) connections: u32,
}

/// Makes [`Target`]s, and the threads' runtimes to use them on. Clones share what is behind.
pub(crate) trait Connect: Clone + Send + 'static {
    /// What it connects to.
    type Target: Target + 'static;

    /// Whether the target can do this.
    fn can(&self, ability: Ability) -> bool;

    /// Whether its calls block: then every worker gets a thread of its own.
    fn blocks(&self) -> bool {
        false
    }

    /// Whether it tells versions: without them, a read can only be held against what is there at all.
    fn tells_versions(&self) -> bool {
        true
    }

    /// Runs one load thread, from its start to its end: makes the runtime, connects `seat.connections` times, and
    /// drives `load` with the connections (or with the reason why there are none) until it ends. Called once for every
    /// seat, on that seat's own thread.
    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<Self::Target>>>),
    ) -> anyhow::Result<()>;

    /// Waits until the store has no work left over from what it was given: between loading and measuring, so that
    /// nobody's debts are counted in the wrong place. Blocks.
    fn settle(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What each process behind the target has used and counted so far, by node number; none that do not answer.
    /// An embedded target is node 0.
    async fn looks(&self) -> Vec<(u64, Look)>;
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
    /// The target cannot do this kind of operation.
    Unsupported,
    /// Anything else that the target refused.
    Refused,
}

impl FailureKind {
    /// Whether another try cannot help: the phase should end.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, FailureKind::Full | FailureKind::TooLarge | FailureKind::Unsupported)
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
            FailureKind::Unsupported => "unsupported",
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

impl Failure {
    /// The answer of a target that lacks an ability.
    pub(crate) fn unsupported(ability: Ability) -> Self {
        Failure { kind: FailureKind::Unsupported, message: format!("this target does not support {ability}") }
    }
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
        /// The next read takes this long.
        pub(crate) stall_once: Option<Duration>,
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
            let stall = self.faults.lock().unwrap().stall_once.take();
            if let Some(stall) = stall {
                tokio::time::sleep(stall).await;
            }
            if self.faults.lock().unwrap().reads_fail {
                return Err(failure(FailureKind::Unavailable));
            }
            Ok(self.held.lock().unwrap().map.get(key).cloned())
        }

        async fn put(
            &self,
            key: &[u8],
            value: Bytes,
            _ttl: Option<Duration>,
        ) -> Result<Option<u64>, Failure> {
            tokio::task::yield_now().await;
            let faults = *self.faults.lock().unwrap();
            let mut held = self.held.lock().unwrap();
            if faults.full_after.is_some_and(|limit| held.writes >= limit) {
                return Err(failure(FailureKind::Full));
            }
            held.writes += 1;
            let version = held.writes;
            if nth(faults.lose_every, version) {
                return Ok(Some(version));
            }
            let mut value = value;
            if nth(faults.damage_every, version) {
                let mut bent = value.to_vec();
                bent[0] ^= 1;
                value = bent.into();
            }
            held.map.insert(key.to_vec(), Found { version: Some(version), value });
            match faults.fail_every {
                Some((every, kind)) if nth(every, version) => Err(failure(kind)),
                _ => Ok(Some(version)),
            }
        }

        async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
            let held = self.held.lock().unwrap();
            let rows = held.map.range(from.to_vec()..).take(limit);
            Ok(rows.map(|(key, found)| Row { key: key.clone().into(), found: found.clone() }).collect())
        }

        async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Found>>, Failure> {
            let held = self.held.lock().unwrap();
            Ok(keys.iter().map(|key| held.map.get(&key[..]).cloned()).collect())
        }

        async fn put_batch(
            &self,
            pairs: Vec<(Bytes, Bytes)>,
            ttl: Option<Duration>,
        ) -> Result<Vec<Option<u64>>, Failure> {
            let mut versions = Vec::new();
            for (key, value) in pairs {
                versions.push(self.put(&key, value, ttl).await?);
            }
            Ok(versions)
        }

        async fn sleep_until(&self, at: Instant) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    impl Connect for MemoryTarget {
        type Target = MemoryTarget;

        fn can(&self, ability: Ability) -> bool {
            ability != Ability::Ttl
        }

        fn host(
            &self,
            seat: Seat,
            load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<MemoryTarget>>>),
        ) -> anyhow::Result<()> {
            let connections = (0..seat.connections).map(|_| Rc::new(self.clone())).collect();
            clock::on_tokio(load(Ok(connections)))
        }

        async fn looks(&self) -> Vec<(u64, Look)> {
            Vec::new()
        }
    }
}
