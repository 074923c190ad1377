//! A Redis server as the target of load.
//!
//! Each connection is one TCP connection, which its workers share: their commands are pipelined. Redis keeps no order of
//! keys, so there is no scan, and tells no versions. A connection that was lost stays lost: every later operation on it
//! fails.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError};

use crate::measure::meter::Look;
use crate::target::clock::{self, TokioClock};
use crate::target::footprint::Watched;
use crate::target::{Ability, Connect, Failure, FailureKind, Found, Seat, Target};

/// How long an answer is waited for: with everything synced before its answer, a busy disk takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Connects to one server.
#[derive(Debug, Clone)]
pub(crate) struct RedisConnect {
    address: String,
    watched: Watched,
}

impl RedisConnect {
    /// The server at this address, host:port; `watched` is its process where it is ours.
    pub(crate) fn new(addresses: &[String], watched: Watched) -> anyhow::Result<Self> {
        match addresses {
            [address] => Ok(RedisConnect { address: address.clone(), watched }),
            _ => bail!("--addr: redis is one server; {} addresses were given", addresses.len()),
        }
    }

    /// What the server says of its version and of what survives a power loss.
    pub(crate) async fn settings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut connection = self.connect().await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        let mut settings = vec![("version".to_owned(), version.unwrap_or("unknown").to_owned())];
        for name in ["appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "io-threads"] {
            let pair: Vec<String> =
                redis::cmd("CONFIG").arg("GET").arg(name).query_async(&mut connection).await?;
            settings.extend(pair.get(1).map(|value| (name.to_owned(), value.clone())));
        }
        Ok(settings)
    }

    async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER_LIMIT))
            .set_connection_timeout(Some(CONNECT_LIMIT));
        let client = redis::Client::open(format!("redis://{}/", self.address))
            .with_context(|| format!("--addr {}: not host:port", self.address))?;
        client.get_multiplexed_async_connection_with_config(&config).await.with_context(|| {
            format!(
                "cannot reach a redis server at {}: is it running? --addr HOST:PORT says where",
                self.address
            )
        })
    }
}

impl Connect for RedisConnect {
    type Target = RedisTarget;

    fn tells_versions(&self) -> bool {
        false
    }

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::Scan => false,
            Ability::MultiGet | Ability::Batch | Ability::Ttl => true,
        }
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<RedisTarget>>>),
    ) -> anyhow::Result<()> {
        clock::on_tokio(async {
            let clock = Rc::new(TokioClock::default());
            let connect = async {
                let mut targets = Vec::new();
                for _ in 0..seat.connections {
                    let connection = self.connect().await?;
                    targets.push(Rc::new(RedisTarget { connection, clock: clock.clone() }));
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

/// One connection.
pub(crate) struct RedisTarget {
    connection: MultiplexedConnection,
    clock: Rc<TokioClock>,
}

impl Target for RedisTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        let answer = redis::cmd("GET").arg(key).query_async(&mut self.connection.clone()).await;
        let value: Option<Bytes> = answer.map_err(|error| failure(&error, Wrote::No))?;
        Ok(value.map(found))
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(&value[..]);
        if let Some(ttl) = ttl {
            set.arg("PX").arg(milliseconds(ttl));
        }
        let answer: Result<(), _> = set.query_async(&mut self.connection.clone()).await;
        answer.map(|()| None).map_err(|error| failure(&error, Wrote::Perhaps))
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Found>>, Failure> {
        let mut mget = redis::cmd("MGET");
        for key in keys {
            mget.arg(&key[..]);
        }
        let answer = mget.query_async(&mut self.connection.clone()).await;
        let values: Vec<Option<Bytes>> = answer.map_err(|error| failure(&error, Wrote::No))?;
        Ok(values.into_iter().map(|value| value.map(found)).collect())
    }

    /// All or nothing: MSET, which knows no TTL; with one a MULTI of SETs.
    async fn put_batch(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
        ttl: Option<Duration>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        let mut connection = self.connection.clone();
        let answer: Result<(), _> = match ttl {
            None => {
                let mut mset = redis::cmd("MSET");
                for (key, value) in &pairs {
                    mset.arg(&key[..]).arg(&value[..]);
                }
                mset.query_async(&mut connection).await
            }
            Some(ttl) => {
                let mut transaction = redis::pipe();
                transaction.atomic();
                for (key, value) in &pairs {
                    let set = transaction.cmd("SET").arg(&key[..]).arg(&value[..]);
                    set.arg("PX").arg(milliseconds(ttl)).ignore();
                }
                transaction.query_async(&mut connection).await
            }
        };
        answer.map_err(|error| failure(&error, Wrote::Perhaps))?;
        Ok(vec![None; pairs.len()])
    }

    async fn sleep_until(&self, at: Instant) {
        self.clock.sleep_until(at).await;
    }
}

fn found(value: Bytes) -> Found {
    Found { version: None, value }
}

/// PX takes whole milliseconds, at least one.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Whether an operation that got no answer may have written something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    No,
    Perhaps,
}

/// What an error counts as. The server's own errors come before it does anything; only a lost answer leaves a write in
/// doubt.
fn failure(error: &RedisError, wrote: Wrote) -> Failure {
    let lost = |kind| if wrote == Wrote::Perhaps { FailureKind::OutcomeUnknown } else { kind };
    // A transaction has the errors of its commands within.
    let refusals = error.clone().into_server_errors();
    let kind = match refusals.as_deref() {
        Some([(_, refusal), ..]) => refused(refusal.code(), refusal.details()),
        _ if error.is_timeout() => lost(FailureKind::TimedOut),
        _ if error.is_io_error() || error.is_connection_dropped() => lost(FailureKind::Unavailable),
        _ => FailureKind::Refused,
    };
    Failure { kind, message: error.to_string() }
}

/// What a server's refusal counts as, by its code.
fn refused(code: &str, details: Option<&str>) -> FailureKind {
    match code {
        // Beyond `maxmemory`, with `noeviction`.
        "OOM" => FailureKind::Full,
        // The append-only file or the snapshot cannot be written: a full disk, as a rule.
        "MISCONF" => FailureKind::Full,
        "READONLY" | "NOREPLICAS" | "MASTERDOWN" | "CLUSTERDOWN" => FailureKind::Unavailable,
        "LOADING" | "BUSY" | "TRYAGAIN" => FailureKind::Busy,
        // 512 MB by default.
        "ERR" if details.is_some_and(|details| details.contains("invalid bulk length")) => {
            FailureKind::TooLarge
        }
        _ => FailureKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::redis::{AppendFsync, RedisServer};
    use crate::target::setup::Overrides;

    /// Runs `test` against a server of its own and one connection to it; where there is no server, says so.
    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn with_server(test: impl AsyncFnOnce(RedisServer, RedisConnect, RedisTarget)) {
        let folder = tempfile::tempdir().unwrap();
        clock::on_tokio(async {
            let server =
                match RedisServer::start(folder.path(), AppendFsync::Always, Overrides::default()).await {
                    Err(error) if error.to_string().contains("not installed") => {
                        return println!("skipped: redis-server not installed");
                    }
                    server => server.unwrap(),
                };
            let watched = Watched { pids: server.pids(), folders: server.folders() };
            let connect = RedisConnect::new(&server.addresses(), watched).unwrap();
            let target = RedisTarget { connection: connect.connect().await.unwrap(), clock: Rc::default() };
            test(server, connect, target).await;
        })
        .unwrap();
    }

    async fn value(target: &RedisTarget, key: &[u8]) -> Option<Bytes> {
        target.get(key).await.unwrap().map(|found| found.value)
    }

    #[test]
    fn values_come_back_as_written() {
        with_server(async |_server, connect, target| {
            assert_eq!(value(&target, b"a").await, None);
            let binary = Bytes::from((0..=255).collect::<Vec<u8>>().repeat(100));
            assert_eq!(target.put(b"a", binary.clone(), None).await.unwrap(), None);
            assert_eq!(value(&target, b"a").await, Some(binary));
            target.put(b"a", Bytes::from_static(b"2"), None).await.unwrap();
            assert_eq!(value(&target, b"a").await.unwrap(), "2");

            let pairs = |text: &'static str| {
                ["b", "c"].map(|key| (Bytes::from(key), Bytes::from_static(text.as_bytes()))).to_vec()
            };
            assert_eq!(target.put_batch(pairs("x"), None).await.unwrap(), [None, None]);
            let keys = ["c", "none", "b", "a"].map(Bytes::from);
            let read = target.multi_get(&keys).await.unwrap();
            let values: Vec<_> =
                read.iter().map(|found| found.as_ref().map(|found| &found.value[..])).collect();
            assert_eq!(values, [Some(&b"x"[..]), None, Some(b"x"), Some(b"2")]);

            let refused = target.scan(b"a", 10).await.unwrap_err();
            assert_eq!(refused.kind, FailureKind::Unsupported);
            assert!(refused.message.contains("scan"), "{}", refused.message);
            assert!(!connect.can(Ability::Scan) && connect.can(Ability::Ttl));

            let looks = connect.looks().await;
            assert_eq!(looks.len(), 1);
            assert!(looks[0].1.gauges.occupied_bytes.unwrap() > 0);
            let settings = connect.settings().await.unwrap();
            assert!(settings.contains(&("appendfsync".to_owned(), "always".to_owned())), "{settings:?}");
        });
    }

    #[test]
    fn a_ttl_reaches_the_server() {
        with_server(async |_server, _connect, target| {
            let hour = Some(Duration::from_secs(3600));
            target.put(b"one", Bytes::from_static(b"1"), hour).await.unwrap();
            let pair = (Bytes::from_static(b"two"), Bytes::from_static(b"2"));
            target.put_batch(vec![pair], hour).await.unwrap();
            target.put(b"for ever", Bytes::from_static(b"3"), None).await.unwrap();
            for (key, expiring) in [("one", true), ("two", true), ("for ever", false)] {
                let left: i64 =
                    redis::cmd("PTTL").arg(key).query_async(&mut target.connection.clone()).await.unwrap();
                assert_eq!(left > 0, expiring, "{key}: {left} ms");
                assert!(left <= 3_600_000);
            }
            assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        });
    }

    #[test]
    fn refusals_count_as_what_they_are() {
        with_server(async |mut server, _connect, target| {
            let config = async |name: &str, value: &str| {
                let set = redis::cmd("CONFIG").arg("SET").arg(name).arg(value).to_owned();
                set.query_async::<()>(&mut target.connection.clone()).await.unwrap();
            };
            let put = async |bytes: usize| {
                let value = Bytes::from(vec![b'x'; bytes]);
                target.put(b"key", value, None).await.unwrap_err().kind
            };
            config("maxmemory", "1").await;
            assert_eq!(put(1000).await, FailureKind::Full);
            let pair = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
            let error = target.put_batch(vec![pair], Some(Duration::from_secs(1))).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::Full, "{}", error.message);
            config("maxmemory", "0").await;
            let replica = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).to_owned();
            replica.query_async::<()>(&mut target.connection.clone()).await.unwrap();
            assert_eq!(put(1000).await, FailureKind::Unavailable);

            assert_eq!(server.stop(), Vec::<String>::new());
            assert_eq!(put(1).await, FailureKind::OutcomeUnknown);
            assert_eq!(target.get(b"key").await.unwrap_err().kind, FailureKind::Unavailable);
        });
    }

    #[test]
    fn nobody_there_is_a_reason() {
        let connect = RedisConnect::new(&["127.0.0.1:1".to_owned()], Watched::default()).unwrap();
        let seat = Seat { thread: 0, threads: 1, connections: 1 };
        connect
            .host(seat, async |targets| {
                let error = targets.err().unwrap().to_string();
                assert!(error.contains("cannot reach a redis server at 127.0.0.1:1"), "{error}");
            })
            .unwrap();
        assert!(RedisConnect::new(&[], Watched::default()).is_err());
    }
}
