//! The client of Terrane, a replicated key-value store: the wire format (sans-IO), routing (sans-IO), and an async
//! [`Client`] on tokio.
//!
//! # Example
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use terrane_client::{Client, Condition, PutError};
//!
//! # let cluster = terrane_client::testing::MemoryCluster::listen(Default::default()).await?;
//! # let addresses = cluster.addresses();
//! // One or more nodes' base addresses, as in "10.0.0.1:7400,10.0.0.2:7400".
//! let client = Client::connect(addresses).await?;
//!
//! let version = client.put("fruit", "apple").await?;
//! let read = client.get("fruit").await?.expect("it was just written");
//! assert_eq!((&read.value[..], read.version), (&b"apple"[..], version));
//!
//! // Replace exactly what was read; somebody else's write in between is not overwritten.
//! let newer = client.put_if("fruit", "pear", Condition::Version(version)).await?;
//! match client.put_if("fruit", "plum", Condition::Version(version)).await {
//!     Err(PutError::ConditionFailed { current }) => assert_eq!(current, Some(newer)),
//!     other => panic!("{other:?}"),
//! }
//!
//! client.put("vegetable", "leek").await?;
//! let rows = client.scan("a".."z", 10).await?;
//! assert_eq!(rows.len(), 2);
//! assert_eq!(rows[0].key, "fruit");
//!
//! assert!(client.delete("fruit").await?.is_some());
//! assert_eq!(client.get("fruit").await?, None);
//! # Ok(())
//! # }
//! ```
//!
//! # What a call promises
//!
//! - A write that returns `Ok` is durable on a majority of the key's replicas, and every later read sees it.
//! - A write that returns an error was not done, except for `OutcomeUnknown`: then it may have been, or may be
//!   yet.
//! - Calls follow the leader, ride out elections, and repeat what may be repeated, until the client's timeout (5 s
//!   unless [built](Client::builder) otherwise). When a connection breaks, unconditional puts and deletes may thereby
//!   be done **more than once**; conditional ones never are. A write that returned is not followed by a late
//!   repetition of itself.
//! - Many calls at once share a connection to each shard; run as many futures as you like over one [`Client`].
//!
//! # The parts
//!
//! [`wire`] and [`routing`] do no I/O: servers, simulators and clients on other runtimes use them directly.
//! [`testing`] is a cluster in memory for the tests of applications.

mod client;
mod error;
mod link;
pub mod routing;
mod scan;
mod table;
pub mod testing;
pub mod wire;

pub use client::{Addresses, Client, ClientBuilder, DEFAULT_TABLE};
pub use error::{
    ConnectError, DeleteError, GetError, LastProblem, NodeError, PutError, ScanError, UnknownTable,
};
pub use scan::{KeyRange, Scanner};
pub use table::{Table, Value};
pub use wire::{Condition, Consistency, Row};
