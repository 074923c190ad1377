//! A Terrane cluster through its client library: as the target of load, and for the questions around it (who leads,
//! what the nodes have counted).

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use terrane_client::wire::{ErrorReply, NodeStatus};
use terrane_client::{Client, ConnectError, GetError, PutError, ScanError};
use tokio::sync::OnceCell;

use crate::measure::meter::{
    CPU_US, Counters, DEVICE_WRITTEN_BYTES, Gauges, Look, PROC_WRITE_BYTES, RSS_BYTES, RSS_MAX_BYTES,
    USED_BYTES, USER_BYTES,
};
use crate::target::clock::{self, TokioClock};
use crate::target::leaders::Leaders;
use crate::target::{Ability, Connect, Failure, FailureKind, Found, Row, Seat, Target};

/// How long a question about the cluster may take: they are asked again and again.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster, for questions.
#[derive(Debug)]
pub(crate) struct Cluster {
    addresses: Vec<String>,
    client: Client,
}

impl Cluster {
    /// Connects to the cluster at these base addresses.
    pub(crate) async fn connect(addresses: &[String]) -> anyhow::Result<Cluster> {
        let client = Client::builder().timeout(QUESTION_TIMEOUT).connect(addresses).await;
        let client = client.map_err(|error| explained(error, addresses))?;
        Ok(Cluster { addresses: addresses.to_owned(), client })
    }

    /// Who leads what, as the first node that answers knows it.
    pub(crate) async fn leaders(&self) -> anyhow::Result<Leaders> {
        let topology = self.client.topology().await.context("no node tells who leads")?;
        Leaders::of(&topology)
    }

    /// A look at all nodes, without those that do not answer.
    pub(crate) async fn looks(&self) -> Vec<(u64, Look)> {
        let Ok(topology) = self.client.topology().await else { return Vec::new() };
        let mut all = Vec::new();
        for node in &topology.nodes {
            if let Ok(status) = self.client.status(&node.base_address()).await {
                all.push((node.id.0, look(&status)));
            }
        }
        all
    }

    /// A look at one node, if it answers.
    pub(crate) async fn look_at(&self, node: u64) -> Option<Look> {
        let topology = self.client.topology().await.ok()?;
        let node = topology.nodes.iter().find(|known| known.id.0 == node)?;
        self.client.status(&node.base_address()).await.ok().map(|status| look(&status))
    }

    /// A target with patience of its own, on the caller's runtime.
    pub(crate) async fn target(&self) -> anyhow::Result<ClusterTarget> {
        ClusterConnect::new(&self.addresses).connect(Rc::default()).await
    }
}

/// What is looked at, out of all that a node reports.
fn look(status: &NodeStatus) -> Look {
    let counters = Counters {
        cpu_us: status.counter(CPU_US),
        device_written_bytes: status.counter(DEVICE_WRITTEN_BYTES),
        proc_write_bytes: status.counter(PROC_WRITE_BYTES),
        user_bytes: status.counter(USER_BYTES),
    };
    let gauges = Gauges {
        resident_bytes: status.counter(RSS_BYTES),
        resident_max_bytes: status.counter(RSS_MAX_BYTES),
        occupied_bytes: status.counter(USED_BYTES),
    };
    Look { counters, gauges }
}

/// Says what to do about a cluster that cannot be reached.
fn explained(error: ConnectError, addresses: &[String]) -> anyhow::Error {
    let advice = match &error {
        ConnectError::Unreachable { .. } => format!(
            "cannot reach a cluster at {}: is it running? Start one with `terrane local --nodes 3 --dir DIR`, or say \
             where it is with --addr HOST:PORT",
            addresses.join(",")
        ),
        _ => "cannot connect (--addr HOST:PORT says where the cluster is)".to_owned(),
    };
    anyhow::Error::new(error).context(advice)
}

/// Connects a client of its own for each thread.
#[derive(Debug, Clone)]
pub(crate) struct ClusterConnect {
    addresses: Vec<String>,
    /// For looks, connected at the first one.
    questions: Arc<OnceCell<Cluster>>,
}

impl ClusterConnect {
    /// Connects to the cluster at these base addresses.
    pub(crate) fn new(addresses: &[String]) -> Self {
        ClusterConnect { addresses: addresses.to_owned(), questions: Arc::default() }
    }
}

impl Connect for ClusterConnect {
    type Target = ClusterTarget;

    fn can(&self, ability: Ability) -> bool {
        // The rest the server answers with `unsupported`.
        ability == Ability::Scan
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<ClusterTarget>>>),
    ) -> anyhow::Result<()> {
        clock::on_tokio(async {
            let clock = Rc::new(TokioClock::default());
            let mut targets = Ok(Vec::new());
            for _ in 0..seat.connections {
                let target = self.connect(clock.clone()).await;
                targets = targets.and_then(|mut targets: Vec<_>| {
                    targets.push(Rc::new(target?));
                    Ok(targets)
                });
            }
            load(targets).await;
        })
    }

    async fn looks(&self) -> Vec<(u64, Look)> {
        match self.questions.get_or_try_init(|| Cluster::connect(&self.addresses)).await {
            Ok(cluster) => cluster.looks().await,
            // The load itself says what is wrong.
            Err(_) => Vec::new(),
        }
    }
}

impl ClusterConnect {
    /// Opens one more connection, on the caller's runtime.
    pub(crate) async fn connect(&self, clock: Rc<TokioClock>) -> anyhow::Result<ClusterTarget> {
        let client = Client::connect(self.addresses.as_slice()).await;
        let client = client.map_err(|error| explained(error, &self.addresses))?;
        Ok(ClusterTarget { client, clock })
    }
}

/// The cluster, for load.
#[derive(Debug, Clone)]
pub(crate) struct ClusterTarget {
    client: Client,
    clock: Rc<TokioClock>,
}

impl Target for ClusterTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        let found = self.client.get(key).await.map_err(|error| Failure {
            kind: match &error {
                GetError::TimedOut { .. } => FailureKind::TimedOut,
                GetError::Refused(reply) => refused(reply),
                _ => FailureKind::Refused,
            },
            message: error.to_string(),
        })?;
        Ok(found.map(|found| Found { version: Some(found.version), value: found.value }))
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        self.client.put(key, value).await.map(Some).map_err(|error| Failure {
            kind: match &error {
                PutError::TimedOut { .. } => FailureKind::TimedOut,
                PutError::OutcomeUnknown { .. } => FailureKind::OutcomeUnknown,
                PutError::Full => FailureKind::Full,
                PutError::TooLarge { .. } => FailureKind::TooLarge,
                PutError::Refused(reply) => refused(reply),
                _ => FailureKind::Refused,
            },
            message: error.to_string(),
        })
    }

    async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
        let rows = self.client.scan(from.., limit).await.map_err(|error| Failure {
            kind: match &error {
                ScanError::TimedOut { .. } => FailureKind::TimedOut,
                ScanError::Refused(reply) => refused(reply),
                _ => FailureKind::Refused,
            },
            message: error.to_string(),
        })?;
        let found = |row: terrane_client::wire::Row| Row {
            key: row.key,
            found: Found { version: Some(row.version), value: row.value },
        };
        Ok(rows.into_iter().map(found).collect())
    }

    async fn sleep_until(&self, at: Instant) {
        self.clock.sleep_until(at).await;
    }
}

/// What a server's refusal counts as.
fn refused(reply: &ErrorReply) -> FailureKind {
    match reply {
        ErrorReply::Busy { .. } => FailureKind::Busy,
        ErrorReply::Full => FailureKind::Full,
        ErrorReply::TooLarge { .. } => FailureKind::TooLarge,
        ErrorReply::OutcomeUnknown => FailureKind::OutcomeUnknown,
        ErrorReply::Unavailable { .. } | ErrorReply::NotLeader { .. } => FailureKind::Unavailable,
        _ => FailureKind::Refused,
    }
}
