//! An etcd cluster as the target of load.
//!
//! Each connection is a client of its own, which spreads its requests over the given members; followers pass writes on
//! to the leader. Reads are linearizable. A version is the key's `mod_revision`: the cluster-wide revision of the write.
//! Values never expire here: a lease is an object of its own that would have to be granted, kept and revoked for each
//! write, which is another operation than a write with a TTL.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use etcd_client::{
    Client, ConnectOptions, Error, GetOptions, KeyValue, KvClient, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};

use crate::measure::meter::Look;
use crate::target::clock::{self, TokioClock};
use crate::target::footprint::Watched;
use crate::target::{Ability, Connect, Failure, FailureKind, Found, Row, Seat, Target};

/// How long an answer is waited for; etcd itself gives up after 5 s and two elections.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of an answer at most: a scan of long values exceeds the 4 MiB that the client library takes by default.
const ANSWER_BYTES: usize = 256 << 20;

/// Operations of one transaction at most, by etcd's default (`max-txn-ops`).
const TXN_OPS: usize = 128;

/// Connects to the members of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct EtcdConnect {
    endpoints: Vec<String>,
    watched: Watched,
}

impl EtcdConnect {
    /// The cluster whose members answer at these addresses, host:port; `watched` are the members' processes where they
    /// are ours.
    pub(crate) fn new(addresses: &[String], watched: Watched) -> anyhow::Result<Self> {
        if addresses.is_empty() {
            bail!("--addr: at least one member of the etcd cluster is needed");
        }
        let url = |address: &String| match address.contains("://") {
            true => address.clone(),
            false => format!("http://{address}"),
        };
        Ok(EtcdConnect { endpoints: addresses.iter().map(url).collect(), watched })
    }

    /// What the cluster says of its version.
    pub(crate) async fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut client = self.client().await?;
        let status = client.status().await.context("no etcd member tells its status")?;
        Ok(vec![
            ("version".to_owned(), status.version().to_owned()),
            (
                "durability".to_owned(),
                "every write is synced on a majority; it cannot be switched off".to_owned(),
            ),
            ("reads".to_owned(), "linearizable".to_owned()),
        ])
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let options = ConnectOptions::new().with_timeout(ANSWER_LIMIT).with_connect_timeout(CONNECT_LIMIT);
        let addresses = self.endpoints.join(",");
        let mut client = Client::connect(&self.endpoints, Some(options))
            .await
            .with_context(|| format!("--addr {addresses}: not addresses of an etcd cluster"))?;
        // Connections are made by the first request only; this one tells whether anybody is there.
        client.status().await.with_context(|| {
            format!(
                "cannot reach an etcd cluster at {addresses}: is it running? --addr HOST:PORT,... says where"
            )
        })?;
        Ok(client)
    }

    async fn connect(&self, clock: Rc<TokioClock>) -> anyhow::Result<EtcdTarget> {
        let client = self.client().await?.kv_client();
        let client = client.max_decoding_message_size(ANSWER_BYTES).max_encoding_message_size(ANSWER_BYTES);
        Ok(EtcdTarget { client, clock })
    }
}

impl Connect for EtcdConnect {
    type Target = EtcdTarget;

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::Scan | Ability::MultiGet | Ability::Batch => true,
            Ability::Ttl => false,
        }
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<EtcdTarget>>>),
    ) -> anyhow::Result<()> {
        clock::on_tokio(async {
            let clock = Rc::new(TokioClock::default());
            let connect = async {
                let mut targets = Vec::new();
                for _ in 0..seat.connections {
                    targets.push(Rc::new(self.connect(clock.clone()).await?));
                }
                Ok(targets)
            };
            load(connect.await).await;
        })
    }

    async fn looks(&self) -> Vec<(u64, Look)> {
        self.watched.looks()
    }
}

/// One client.
pub(crate) struct EtcdTarget {
    client: KvClient,
    clock: Rc<TokioClock>,
}

impl EtcdTarget {
    /// One transaction without conditions.
    async fn transaction(
        &self,
        operations: Vec<TxnOp>,
        wrote: Wrote,
    ) -> Result<(Option<u64>, Vec<TxnOpResponse>), Failure> {
        if operations.len() > TXN_OPS {
            let message =
                format!("{} operations in one transaction; etcd allows {TXN_OPS}", operations.len());
            return Err(Failure { kind: FailureKind::TooLarge, message });
        }
        let answer = self.client.clone().txn(Txn::new().and_then(operations)).await;
        let answer = answer.map_err(|error| failure(&error, wrote))?;
        Ok((revision(answer.header()), answer.op_responses()))
    }
}

impl Target for EtcdTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        let answer = self.client.clone().get(key, None).await;
        let mut answer = answer.map_err(|error| failure(&error, Wrote::No))?;
        Ok(answer.take_kvs().pop().map(|pair| row(pair).found))
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let answer = self.client.clone().put(key, value, None).await;
        Ok(revision(answer.map_err(|error| failure(&error, Wrote::Perhaps))?.header()))
    }

    async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
        if limit == 0 {
            // To etcd, 0 is no limit.
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let options = GetOptions::new().with_from_key().with_limit(limit);
        // The smallest key there is: an empty one is not allowed.
        let from = if from.is_empty() { b"\0" } else { from };
        let answer = self.client.clone().get(from, Some(options)).await;
        let mut answer = answer.map_err(|error| failure(&error, Wrote::No))?;
        Ok(answer.take_kvs().into_iter().map(row).collect())
    }

    /// One transaction; more keys than etcd allows in one are `TooLarge`.
    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Found>>, Failure> {
        let gets = keys.iter().map(|key| TxnOp::get(&key[..], None)).collect();
        let (_, answers) = self.transaction(gets, Wrote::No).await?;
        let found = |answer| match answer {
            TxnOpResponse::Get(mut answer) => answer.take_kvs().pop().map(|pair| row(pair).found),
            _ => None,
        };
        Ok(answers.into_iter().map(found).collect())
    }

    /// One transaction, all or nothing; all its writes get the same version. More pairs than etcd allows in one are
    /// `TooLarge`, a key that comes twice is refused.
    async fn put_batch(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
        ttl: Option<Duration>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let count = pairs.len();
        let puts = pairs.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
        let (revision, _) = self.transaction(puts, Wrote::Perhaps).await?;
        Ok(vec![revision; count])
    }

    async fn sleep_until(&self, at: Instant) {
        self.clock.sleep_until(at).await;
    }
}

fn row(pair: KeyValue) -> Row {
    let version = u64::try_from(pair.mod_revision()).ok();
    let (key, value) = pair.into_key_value();
    Row { key: key.into(), found: Found { version, value: value.into() } }
}

fn revision(header: Option<&ResponseHeader>) -> Option<u64> {
    u64::try_from(header?.revision()).ok()
}

/// Whether an operation that got no answer may have written something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    No,
    Perhaps,
}

/// Status codes of gRPC (its documentation, "Status codes and their use").
const CANCELLED: i32 = 1;
const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

/// What an error counts as: by etcd's own words (its api/v3rpc/rpctypes/error.go), which say more than the codes.
fn failure(error: &Error, wrote: Wrote) -> Failure {
    let lost = |kind| if wrote == Wrote::Perhaps { FailureKind::OutcomeUnknown } else { kind };
    let kind = match error {
        Error::GRpcStatus(status) => match status.message() {
            words if words.contains("database space exceeded") => FailureKind::Full,
            words if words.contains("request is too large") => FailureKind::TooLarge,
            words if words.contains("too many operations") => FailureKind::TooLarge,
            // Half a MiB further, gRPC itself refuses.
            words if words.contains("received message larger than max") => FailureKind::TooLarge,
            words if words.contains("too many requests") => FailureKind::Busy,
            words if words.contains("etcdserver: no leader") => FailureKind::Unavailable,
            words if words.contains("timed out") => lost(FailureKind::TimedOut),
            _ => match status.code() as i32 {
                CANCELLED | DEADLINE_EXCEEDED => lost(FailureKind::TimedOut),
                UNAVAILABLE => lost(FailureKind::Unavailable),
                // A connection that breaks in the middle comes as one of several codes, with an error of transport
                // within; etcd's own refusals have none.
                _ if std::error::Error::source(status).is_some() => lost(FailureKind::Unavailable),
                _ => FailureKind::Refused,
            },
        },
        Error::IoError(_) | Error::TransportError(_) => lost(FailureKind::Unavailable),
        _ => FailureKind::Refused,
    };
    Failure { kind, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::etcd::EtcdServers;
    use crate::target::setup::Overrides;

    /// Runs `test` against a cluster of its own and one client of it; where there is no etcd, says so.
    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn with_cluster(
        members: usize,
        overrides: Overrides,
        test: impl AsyncFnOnce(EtcdServers, EtcdConnect, EtcdTarget),
    ) {
        let folder = tempfile::tempdir().unwrap();
        clock::on_tokio(async {
            let servers = match EtcdServers::start(members, folder.path(), overrides).await {
                Err(error) if error.to_string().contains("not installed") => {
                    return println!("skipped: etcd not installed");
                }
                servers => servers.unwrap(),
            };
            let watched = Watched { pids: servers.pids(), folders: servers.folders() };
            let connect = EtcdConnect::new(&servers.addresses(), watched).unwrap();
            let target = connect.connect(Rc::default()).await.unwrap();
            test(servers, connect, target).await;
        })
        .unwrap();
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn values_come_back_as_written() {
        with_cluster(3, Overrides::default(), async |_servers, connect, target| {
            assert!(target.get(b"a").await.unwrap().is_none());
            let first = target.put(b"a", bytes("1"), None).await.unwrap().unwrap();
            let second = target.put(b"a", bytes("2"), None).await.unwrap().unwrap();
            assert!(second > first && first >= 1);
            let found = target.get(b"a").await.unwrap().unwrap();
            assert_eq!((found.version, &found.value[..]), (Some(second), &b"2"[..]));

            let pairs = vec![(bytes("b"), bytes("3")), (bytes("c"), bytes("4"))];
            let versions = target.put_batch(pairs, None).await.unwrap();
            assert!(versions.iter().all(|version| *version > Some(second)) && versions.len() == 2);
            let read = target.multi_get(&[bytes("c"), bytes("none"), bytes("a")]).await.unwrap();
            let values: Vec<_> =
                read.iter().map(|found| found.as_ref().map(|found| &found.value[..])).collect();
            assert_eq!(values, [Some(&b"4"[..]), None, Some(b"2")]);
            assert_eq!(read[0].as_ref().unwrap().version, versions[1]);

            let rows = target.scan(b"b", 10).await.unwrap();
            let keys: Vec<_> = rows.iter().map(|row| &row.key[..]).collect();
            assert_eq!(keys, [b"b", b"c"]);
            assert_eq!(target.scan(b"", 1).await.unwrap()[0].key, "a");
            assert!(target.scan(b"a", 0).await.unwrap().is_empty());

            let ttl = Some(Duration::from_secs(1));
            for refused in [
                target.put(b"a", bytes("1"), ttl).await.unwrap_err(),
                target.put_batch(Vec::new(), ttl).await.unwrap_err(),
            ] {
                assert_eq!(refused.kind, FailureKind::Unsupported);
                assert!(refused.message.contains("TTL"), "{}", refused.message);
            }
            assert!(connect.can(Ability::Scan) && !connect.can(Ability::Ttl));

            let looks = connect.looks().await;
            assert_eq!(looks.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [1, 2, 3]);
            assert!(looks.iter().all(|(_, look)| look.gauges.occupied_bytes > Some(0)));
            assert_ne!(connect.settings().await.unwrap()[0].1, "");
        });
    }

    #[test]
    fn what_is_too_large_is_refused_as_such() {
        with_cluster(1, Overrides::default(), async |mut servers, _connect, target| {
            let keys: Vec<Bytes> = (0..=TXN_OPS).map(|key| format!("key {key}").into()).collect();
            let error = target.multi_get(&keys).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::TooLarge);
            assert!(error.message.contains("129 operations in one transaction; etcd allows 128"));
            let pairs = |keys: &[Bytes]| keys.iter().map(|key| (key.clone(), key.clone())).collect();
            assert_eq!(target.put_batch(pairs(&keys), None).await.unwrap_err().kind, FailureKind::TooLarge);
            assert_eq!(target.put_batch(pairs(&keys[1..]), None).await.unwrap().len(), TXN_OPS);
            for bytes in [1600 << 10, 3 << 20] {
                let error = target.put(b"big", vec![0; bytes].into(), None).await.unwrap_err();
                assert_eq!(error.kind, FailureKind::TooLarge, "{}", error.message);
            }
            // 8 values of 1 MiB in one answer: more than the client library takes by default.
            for key in &keys[..8] {
                target.put(key, vec![0; 1 << 20].into(), None).await.unwrap();
            }
            assert_eq!(target.scan(b"key", 200).await.unwrap().len(), TXN_OPS + 1);

            assert_eq!(servers.stop(), Vec::<String>::new());
            let error = target.put(b"a", bytes("1"), None).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::OutcomeUnknown, "{}", error.message);
            let error = target.get(b"a").await.unwrap_err();
            assert!(matches!(error.kind, FailureKind::Unavailable | FailureKind::TimedOut), "{error:?}");
        });
    }

    #[test]
    fn a_full_database_is_full() {
        let quota = Overrides::new([("quota_backend_bytes".to_owned(), "1MiB".to_owned())]);
        with_cluster(1, quota, async |_servers, _connect, target| {
            let error = loop {
                if let Err(error) = target.put(b"key", vec![0; 256 << 10].into(), None).await {
                    break error;
                }
            };
            assert_eq!(error.kind, FailureKind::Full, "{}", error.message);
        });
    }

    #[test]
    fn nobody_there_is_a_reason() {
        let connect = EtcdConnect::new(&["127.0.0.1:1".to_owned()], Watched::default()).unwrap();
        let seat = Seat { thread: 0, threads: 1, connections: 1 };
        connect
            .host(seat, async |targets| {
                let error = targets.err().unwrap().to_string();
                assert!(error.contains("cannot reach an etcd cluster at http://127.0.0.1:1"), "{error}");
            })
            .unwrap();
        assert!(EtcdConnect::new(&[], Watched::default()).is_err());
    }
}
