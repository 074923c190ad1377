//! The async client: connections by address, and the loop that carries an operation to its end.
//!
//! The rules (who is asked, when again) are in [`routing`](crate::routing), the bytes in [`wire`]; here are only time,
//! sockets and tasks.
//!
//! **Invariants**
//! - No lock is held across an `await`, and none is held for longer than a request takes to encode.
//! - Dropping the last clone of a client ends its connections and tasks.

use crate::error::{ConnectError, Failure, LastProblem, NodeError, UnknownTable};
use crate::link::{Connector, Link, Tcp};
use crate::routing::{Action, Operation, RouteError, Routing, Target};
use crate::scan::{KeyRange, Scanner};
use crate::table::{Table, Value};
use crate::wire::{
    self, Condition, Consistency, ErrorReply, NodeStatus, Request, RequestHead, Response, Row,
};
use crate::{DeleteError, GetError, PutError, ScanError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use wire::{TableId, Topology};

/// The table that a client's own methods work on.
pub const DEFAULT_TABLE: &str = "default";

/// After a refresh that did not bring the promised newer map: how long until the next is tried.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);

/// Most requests of one connection under way that a client may be built for.
const PIPELINE_MAX: usize = 1 << 20;

/// A list of addresses: one or more `host:port`, separated by commas or as a collection.
pub trait Addresses {
    /// Each address, still unchecked.
    fn into_list(self) -> Vec<String>;
}

fn split(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned)
}

impl Addresses for &str {
    fn into_list(self) -> Vec<String> {
        split(self).collect()
    }
}

impl Addresses for String {
    fn into_list(self) -> Vec<String> {
        split(&self).collect()
    }
}

impl Addresses for &String {
    fn into_list(self) -> Vec<String> {
        split(self).collect()
    }
}

impl<S: AsRef<str>> Addresses for &[S] {
    fn into_list(self) -> Vec<String> {
        self.iter().flat_map(|text| split(text.as_ref())).collect()
    }
}

impl<S: AsRef<str>> Addresses for Vec<S> {
    fn into_list(self) -> Vec<String> {
        self.as_slice().into_list()
    }
}

impl<S: AsRef<str>> Addresses for &Vec<S> {
    fn into_list(self) -> Vec<String> {
        self.as_slice().into_list()
    }
}

impl<S: AsRef<str>, const N: usize> Addresses for [S; N] {
    fn into_list(self) -> Vec<String> {
        self.as_slice().into_list()
    }
}

impl<S: AsRef<str>, const N: usize> Addresses for &[S; N] {
    fn into_list(self) -> Vec<String> {
        self.as_slice().into_list()
    }
}

/// Settings of a client; [`Client::builder`] makes one.
#[derive(Clone)]
#[must_use = "settings do nothing until `connect`"]
pub struct ClientBuilder {
    timeout: Duration,
    attempt_timeout: Duration,
    connect_timeout: Duration,
    connections_per_shard: usize,
    pipeline: usize,
    connector: Arc<dyn Connector>,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("timeout", &self.timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("connections_per_shard", &self.connections_per_shard)
            .field("pipeline", &self.pipeline)
            .finish_non_exhaustive()
    }
}

impl Default for ClientBuilder {
    fn default() -> ClientBuilder {
        ClientBuilder {
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            connections_per_shard: 1,
            pipeline: 4096,
            connector: Arc::new(Tcp),
        }
    }
}

impl ClientBuilder {
    /// How long a call may take in all, retries included. Default 5 s. Longer rides out longer elections.
    pub fn timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.timeout = timeout;
        self
    }

    /// How long one server may take to answer a read before another is asked. Default 2 s. Shorter notices a
    /// frozen server sooner, and repeats more requests of a merely slow one. Writes are not sent elsewhere while
    /// a server may yet execute them, so they wait for the whole [`timeout`](ClientBuilder::timeout).
    pub fn attempt_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.attempt_timeout = timeout;
        self
    }

    /// How long a connection may take to be made. Default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.connect_timeout = timeout;
        self
    }

    /// How many connections to each shard share its requests. Default 1, which is enough for one core: requests
    /// are pipelined.
    pub fn connections_per_shard(mut self, connections: usize) -> ClientBuilder {
        self.connections_per_shard = connections;
        self
    }

    /// How many requests of one connection may be under way; more callers wait their turn. Default 4096.
    pub fn pipeline(mut self, requests: usize) -> ClientBuilder {
        self.pipeline = requests;
        self
    }

    pub(crate) fn connector(mut self, connector: Arc<dyn Connector>) -> ClientBuilder {
        self.connector = connector;
        self
    }

    /// Connects: fetches the topology from the first of `addresses` (base addresses of nodes) that answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(self, addresses: impl Addresses) -> Result<Client, ConnectError> {
        let mut seeds: Vec<Arc<str>> = Vec::new();
        for address in addresses.into_list() {
            let sound = address.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if !sound {
                return Err(ConnectError::BadAddress { address });
            }
            seeds.push(address.into());
        }
        if seeds.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        if self.connections_per_shard == 0 {
            return Err(ConnectError::BadSetting { setting: "connections_per_shard", bounds: "at least 1" });
        }
        if !(1..=PIPELINE_MAX).contains(&self.pipeline) {
            return Err(ConnectError::BadSetting { setting: "pipeline", bounds: "1 to 1,048,576" });
        }
        let shared = Arc::new(Shared {
            routing: Mutex::new(Routing::new(seeds)),
            endpoints: Mutex::new(BTreeMap::new()),
            refreshing: tokio::sync::Mutex::new(()),
            fetched: AtomicU64::new(0),
            refreshing_in_background: AtomicBool::new(false),
            settings: self,
        });
        let deadline = Instant::now() + shared.settings.timeout;
        let topology = shared.fetch_topology(deadline).await.map_err(|problems| problems.into_connect())?;
        let table = topology.table(DEFAULT_TABLE).map_or(TableId(0), |table| table.id);
        Ok(Client { default: Table::new(shared, table, Consistency::TableDefault) })
    }
}

/// A client of one cluster. Cheap to clone; clones share their connections.
///
/// Its own `get`, `put`, ... work on the table named [`DEFAULT_TABLE`]; [`Client::table`] gives the others. All
/// methods must be called within a tokio runtime (of any flavour) with I/O and time enabled.
#[derive(Clone, Debug)]
pub struct Client {
    default: Table,
}

impl Client {
    /// Connects with default settings. `addresses` are one or more nodes' base addresses: `"host:port"`,
    /// `"host:port,host:port"`, or a collection of those. One that answers is enough to learn of all others.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(addresses: impl Addresses) -> Result<Client, ConnectError> {
        Client::builder().connect(addresses).await
    }

    /// Settings to connect with.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// The table named `name`.
    ///
    /// # Errors
    /// The topology knows no such table.
    pub fn table(&self, name: &str) -> Result<Table, UnknownTable> {
        let id = self.shared().routing().map().and_then(|map| map.table(name));
        match id {
            Some(id) => Ok(Table::new(self.shared().clone(), id, Consistency::TableDefault)),
            None => Err(UnknownTable { name: name.to_owned() }),
        }
    }

    /// Reads a key of the default table; see [`Table::get`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>, GetError> {
        self.default.get(key).await
    }

    /// Writes a key of the default table; see [`Table::put`].
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, PutError> {
        self.default.put(key, value).await
    }

    /// Writes a key of the default table on a condition; see [`Table::put_if`].
    pub async fn put_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        condition: Condition,
    ) -> Result<u64, PutError> {
        self.default.put_if(key, value, condition).await
    }

    /// Deletes a key of the default table; see [`Table::delete`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Option<u64>, DeleteError> {
        self.default.delete(key).await
    }

    /// Deletes a key of the default table on a condition; see [`Table::delete_if`].
    pub async fn delete_if(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition,
    ) -> Result<Option<u64>, DeleteError> {
        self.default.delete_if(key, condition).await
    }

    /// The first `limit` rows of a range of the default table; see [`Table::scan`].
    pub async fn scan(&self, range: impl Into<KeyRange>, limit: usize) -> Result<Vec<Row>, ScanError> {
        self.default.scan(range, limit).await
    }

    /// Walks a range of the default table; see [`Table::scanner`].
    pub fn scanner(&self, range: impl Into<KeyRange>) -> Scanner {
        self.default.scanner(range)
    }

    /// Fetches the topology anew, from whichever node answers first, and routes by it from now on.
    ///
    /// # Errors
    /// No node answered, or not usably.
    pub async fn topology(&self) -> Result<Topology, NodeError> {
        let shared = self.shared();
        shared.fetch_topology(shared.deadline()).await.map_err(Problems::into_node)
    }

    /// The topology as the node at `address` (`host:port`) sees it. What the client routes by is not changed.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn topology_at(&self, address: &str) -> Result<Topology, NodeError> {
        match self.shared().ask(&address.into(), &Request::Topology, self.shared().deadline()).await? {
            Response::Topology(topology) => Ok(topology),
            other => Err(unexpected(&other)),
        }
    }

    /// The statistics of the node at `address` (`host:port`; see
    /// [`NodeInfo::base_address`](wire::NodeInfo::base_address)).
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn status(&self, address: &str) -> Result<NodeStatus, NodeError> {
        match self.shared().ask(&address.into(), &Request::Status, self.shared().deadline()).await? {
            Response::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the node or shard at `address` (`host:port`) for a sign of life.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn ping(&self, address: &str) -> Result<(), NodeError> {
        match self.shared().ask(&address.into(), &Request::Ping, self.shared().deadline()).await? {
            Response::Pong => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The cluster's id.
    pub fn cluster(&self) -> u128 {
        self.shared().routing().map().map_or(0, |map| map.cluster())
    }

    fn shared(&self) -> &Arc<Shared> {
        self.default.shared()
    }
}

fn unexpected(reply: &Response) -> NodeError {
    match Failure::unexpected(kind(reply)) {
        Failure::Protocol { why } => NodeError::Protocol { why },
        _ => unreachable!("an unexpected reply is a protocol failure"),
    }
}

/// A reply's kind in a word.
pub(crate) fn kind(reply: &Response) -> &'static str {
    match reply {
        Response::Pong => "pong",
        Response::Topology(_) => "topology",
        Response::Status(_) => "status",
        Response::Value { .. } => "value",
        Response::Written { .. } => "written",
        Response::Rows { .. } => "rows",
        Response::Error(_) => "error",
    }
}

/// The connections to one address.
struct Endpoint {
    links: Vec<Arc<Link>>,
    next: usize,
}

/// What a client's clones, tables and scanners share.
pub(crate) struct Shared {
    settings: ClientBuilder,
    routing: Mutex<Routing>,
    endpoints: Mutex<BTreeMap<Arc<str>, Endpoint>>,
    /// Held while a topology is fetched on behalf of operations: one fetch serves all that wait.
    refreshing: tokio::sync::Mutex<()>,
    /// How many topologies were installed.
    fetched: AtomicU64,
    refreshing_in_background: AtomicBool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What each source of the topology failed with.
struct Problems {
    lines: Vec<String>,
    last: NodeError,
}

impl Problems {
    fn into_connect(self) -> ConnectError {
        match self.last {
            NodeError::Map(error) => ConnectError::Map(error),
            _ => ConnectError::Unreachable { problems: self.lines },
        }
    }

    fn into_node(self) -> NodeError {
        match self.last {
            NodeError::Unreachable { .. } => NodeError::Unreachable { why: self.lines.join("; ") },
            other => other,
        }
    }
}

impl Shared {
    /// Never held across an `await`. (Its state is whole after every call, so a panic elsewhere does not spoil it.)
    pub(crate) fn routing(&self) -> MutexGuard<'_, Routing> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.timeout
    }

    /// A usable connection to `address`, perhaps one that is only being made.
    fn link(&self, address: &Arc<str>) -> Arc<Link> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = match endpoints.get_mut(address) {
            Some(endpoint) => endpoint,
            None => endpoints.entry(address.clone()).or_insert(Endpoint { links: Vec::new(), next: 0 }),
        };
        let open = || {
            let settings = &self.settings;
            let connector = settings.connector.clone();
            Arc::new(Link::open(address.clone(), connector, settings.connect_timeout, settings.pipeline))
        };
        endpoint.next = (endpoint.next + 1) % self.settings.connections_per_shard;
        let at = endpoint.next;
        if at >= endpoint.links.len() {
            let link = open();
            endpoint.links.push(link.clone());
            return link;
        }
        if !endpoint.links[at].is_usable() {
            endpoint.links[at] = open();
        }
        endpoint.links[at].clone()
    }

    /// Lets go of connections to addresses that the map no longer has. Who still waits for an answer of one gets it.
    fn close_strangers(&self) {
        let known = self.routing().addresses();
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.retain(|address, _| known.contains(address));
    }

    /// Carries an operation to its end. `encode` appends its request for the head it is given.
    pub(crate) async fn run(
        self: &Arc<Self>,
        mut operation: Operation,
        consistency: Consistency,
        encode: impl Fn(&RequestHead, &mut Vec<u8>),
    ) -> Result<Response, Failure> {
        let kind = operation.kind();
        let result = self.attempt_until_done(&mut operation, consistency, encode).await;
        result.map_err(|failure| failure.after_attempts(kind, operation.maybe_done()))
    }

    async fn attempt_until_done(
        self: &Arc<Self>,
        operation: &mut Operation,
        consistency: Consistency,
        encode: impl Fn(&RequestHead, &mut Vec<u8>),
    ) -> Result<Response, Failure> {
        let deadline = self.deadline();
        let timed_out = |last: Option<String>| Failure::TimedOut {
            after: self.settings.timeout,
            last: LastProblem(last),
        };
        let mut last = None;
        let mut named: Option<Target> = None;
        loop {
            let (target, map_version) = {
                let routing = self.routing();
                let target = match named.take() {
                    Some(target) => Ok(target),
                    None => routing.target(operation.table(), operation.hash()),
                };
                (target, routing.map_version())
            };
            let target = match target {
                Ok(target) => target,
                Err(RouteError::UnknownTable { .. }) => {
                    return Err(Failure::Refused(ErrorReply::UnknownTable));
                }
                Err(error @ RouteError::NoMap) => return Err(Failure::Protocol { why: error.to_string() }),
            };
            let head = RequestHead {
                request_id: 0,
                table: operation.table(),
                partition_hash: operation.hash(),
                consistency,
                map_version,
            };
            let attempt_deadline = if operation.may_be_repeated_after_silence() {
                deadline.min(Instant::now() + self.settings.attempt_timeout)
            } else {
                deadline
            };
            let answer = self
                .link(&target.address)
                .call(attempt_deadline, |request_id, out| encode(&RequestHead { request_id, ..head }, out))
                .await;
            let action = match answer {
                Ok((header, body)) => {
                    let reply = Response::decode(&header, body)
                        .map_err(|error| Failure::Protocol { why: error.to_string() })?;
                    if let Response::Error(error) = &reply {
                        last = Some(format!("{}: {error}", target.address));
                    }
                    let mut routing = self.routing();
                    let action = routing.on_reply(operation, &target, &header, reply);
                    let stale = routing.is_stale();
                    drop(routing);
                    if stale {
                        self.refresh_in_background();
                    }
                    action
                }
                Err(lost) => {
                    last = Some(lost.why.to_string());
                    self.routing().on_lost(operation, &target, lost.loss)
                }
            };
            let (pause, refresh) = match action {
                Action::Done(Response::Error(ErrorReply::OutcomeUnknown)) => {
                    return Err(Failure::OutcomeUnknown { last: LastProblem(last) });
                }
                Action::Done(Response::Error(error)) => return Err(Failure::Refused(error)),
                Action::Done(reply) => return Ok(reply),
                Action::RetryAt(target) => {
                    named = Some(target);
                    (Duration::ZERO, false)
                }
                Action::BackOff(pause) => (pause, false),
                Action::RefreshMap(pause) => (pause, true),
            };
            if Instant::now() + pause >= deadline {
                return Err(timed_out(last));
            }
            if !pause.is_zero() {
                sleep(pause).await;
            }
            if refresh && let Err(error) = self.refresh(deadline).await {
                last = Some(error.to_string());
            }
        }
    }

    /// Fetches the topology unless somebody else just did while we waited for them.
    async fn refresh(&self, deadline: Instant) -> Result<(), NodeError> {
        let before = self.fetched.load(Ordering::Acquire);
        let Ok(_one_at_a_time) = timeout_at(deadline, self.refreshing.lock()).await else {
            return Err(NodeError::Unreachable { why: "the topology did not come in time".to_owned() });
        };
        if self.fetched.load(Ordering::Acquire) != before {
            return Ok(());
        }
        self.fetch_topology(deadline).await.map(drop).map_err(Problems::into_node)
    }

    /// A server has a newer map: fetch it without holding up the operation that found out.
    fn refresh_in_background(self: &Arc<Self>) {
        if self.refreshing_in_background.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared: Weak<Shared> = Arc::downgrade(self);
        tokio::spawn(async move {
            let Some(strong) = shared.upgrade() else { return };
            // A failure shows in the next operation that needs the newer map.
            let refreshed = strong.refresh(strong.deadline()).await;
            let settled = refreshed.is_ok() && !strong.routing().is_stale();
            drop(strong);
            if !settled {
                sleep(REFRESH_PAUSE).await;
            }
            if let Some(strong) = shared.upgrade() {
                strong.refreshing_in_background.store(false, Ordering::Release);
            }
        });
    }

    /// Asks the sources in turn until one's topology is installed.
    async fn fetch_topology(&self, deadline: Instant) -> Result<Topology, Problems> {
        let sources = self.routing().sources();
        let mut problems = Problems {
            lines: Vec::new(),
            last: NodeError::Unreachable { why: "no address is known".to_owned() },
        };
        for _ in 0..sources {
            let Some(address) = self.routing().next_source() else { break };
            // One that does not answer must leave time for the others.
            let attempt_deadline = deadline.min(Instant::now() + self.settings.attempt_timeout);
            let result = match self.ask(&address, &Request::Topology, attempt_deadline).await {
                Ok(Response::Topology(topology)) => {
                    let installed = self.routing().install(&topology);
                    if installed.is_ok() {
                        self.fetched.fetch_add(1, Ordering::AcqRel);
                        self.close_strangers();
                    }
                    installed.map(|_| topology).map_err(NodeError::Map)
                }
                Ok(other) => Err(unexpected(&other)),
                Err(error) => Err(error),
            };
            match result {
                Ok(topology) => return Ok(topology),
                Err(error) => {
                    problems.lines.push(match &error {
                        NodeError::Unreachable { why } => why.clone(),
                        error => format!("{address}: {error}"),
                    });
                    problems.last = error;
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(problems)
    }

    /// One question to one address, without retries.
    async fn ask(
        &self,
        address: &Arc<str>,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, NodeError> {
        let map_version = self.routing().map_version();
        let encode = |request_id: u64, out: &mut Vec<u8>| {
            request.encode(&RequestHead { request_id, map_version, ..RequestHead::default() }, out);
        };
        match self.link(address).call(deadline, encode).await {
            Ok((header, body)) => match Response::decode(&header, body) {
                Ok(Response::Error(error)) => Err(NodeError::Refused(error)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(NodeError::Protocol { why: error.to_string() }),
            },
            Err(lost) => Err(NodeError::Unreachable { why: lost.why.to_string() }),
        }
    }
}
