//! The client when servers fail it: leaders that move, connections that break, answers that never come.
//!
//! Time is paused: waiting costs nothing, and elapsed time is exact.

use std::time::Duration;
use terrane_client::testing::{Fault, MemoryCluster, Presence, Shape};
use terrane_client::wire::{ErrorReply, NodeId, Request};
use terrane_client::{Client, Condition, DeleteError, GetError, NodeError, PutError};
use tokio::time::Instant;

const SHAPE: Shape = Shape { nodes: 3, shards: 2, partitions: 4 };

/// Lets the first `count` requests about keys meet `fault`.
fn fail_first(cluster: &MemoryCluster, count: usize, fault: Fault) {
    let mut left = count;
    cluster.on_call(move |call| {
        if call.request.key().is_none() || left == 0 {
            return Fault::None;
        }
        left -= 1;
        fault.clone()
    });
}

fn unavailable() -> ErrorReply {
    ErrorReply::Unavailable { why: "no leader".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_moved_leader_is_followed_without_waiting() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    let start = Instant::now();
    for leader in [2, 3, 1] {
        cluster.set_leaders(Some(NodeId(leader)));
        assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    let before = cluster.requests(NodeId(1));
    client.get("k").await.unwrap();
    assert_eq!(cluster.requests(NodeId(1)), before + 1, "who leads is remembered");
    assert_eq!(cluster.requests(NodeId(2)), 2, "one that it led, one that it pointed on");
}

#[tokio::test(start_paused = true)]
async fn an_election_is_waited_for() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    cluster.set_leaders(None);
    let put = tokio::spawn({
        let client = client.clone();
        async move { client.put_if("k", "v", Condition::Absent).await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!put.is_finished());
    let elected = Instant::now();
    cluster.set_leaders(Some(NodeId(3)));
    put.await.unwrap().unwrap();
    assert!(elected.elapsed() < Duration::from_millis(300), "found after {:?}", elected.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_time_runs_out_and_the_reason_is_told() {
    let cluster = MemoryCluster::new(SHAPE);
    let settings = Client::builder().timeout(Duration::from_millis(700));
    let client = cluster.client_with(settings).await.unwrap();
    cluster.set_leaders(None);
    let start = Instant::now();
    let GetError::TimedOut { after, last } = client.get("k").await.unwrap_err() else { panic!() };
    assert_eq!(after, Duration::from_millis(700));
    assert!(start.elapsed() <= after && start.elapsed() > after / 2);
    assert!(last.as_deref().unwrap().contains("not the leader"), "{last}");
    // Refusals say that nothing was done, so this is no unknown outcome.
    assert!(matches!(client.put("k", "v").await, Err(PutError::TimedOut { .. })));
    assert!(matches!(client.delete("k").await, Err(DeleteError::TimedOut { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_left_for_the_next() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    cluster.set_presence(NodeId(1), Presence::Down);
    cluster.set_leaders(Some(NodeId(2)));
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    // Certainly not received by the dead node: even a conditional write goes on to the next.
    client.put_if("k", "w", Condition::Present).await.unwrap();
    let topology = client.topology().await.unwrap();
    assert_eq!(topology.nodes.len(), 3, "another node tells");

    cluster.set_presence(NodeId(1), Presence::Up);
    cluster.set_presence(NodeId(2), Presence::Down);
    cluster.set_leaders(Some(NodeId(1)));
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "w", "a node that came back is used again");
}

#[tokio::test(start_paused = true)]
async fn a_hung_leader_costs_one_attempt() {
    let cluster = MemoryCluster::new(SHAPE);
    let settings = Client::builder().attempt_timeout(Duration::from_millis(500));
    let client = cluster.client_with(settings).await.unwrap();
    client.put("k", "v").await.unwrap();
    cluster.set_presence(NodeId(1), Presence::Hung);
    cluster.set_leaders(Some(NodeId(2)));
    let start = Instant::now();
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    assert_eq!(start.elapsed(), Duration::from_millis(500));
    let start = Instant::now();
    client.get("k").await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "it is not asked again");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_never_completed_is_given_up() {
    let cluster = MemoryCluster::new(SHAPE);
    cluster.set_presence(NodeId(1), Presence::Hung);
    let settings = Client::builder().connect_timeout(Duration::from_millis(300));
    let client = cluster.client_with(settings).await.unwrap();
    let start = Instant::now();
    // The map still names node 1 as the leader; the connection to it never is, so nothing was sent to it, and even
    // a conditional write may go on.
    cluster.set_leaders(Some(NodeId(3)));
    cluster.change_topology(|_| {});
    client.put_if("k", "v", Condition::Absent).await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(400), "{:?}", start.elapsed());
    let error = client.ping("node1:7400").await.unwrap_err();
    assert!(matches!(&error, NodeError::Unreachable { why } if why.contains("within 300 ms")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn reads_survive_lost_answers() {
    for fault in [Fault::Close, Fault::DoThenClose, Fault::Silence, Fault::DoThenSilence] {
        let cluster = MemoryCluster::new(SHAPE);
        let client = cluster.client().await.unwrap();
        client.put("k", "v").await.unwrap();
        fail_first(&cluster, 1, fault);
        assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    }
}

#[tokio::test(start_paused = true)]
async fn plain_writes_survive_broken_connections() {
    for fault in [Fault::Close, Fault::DoThenClose] {
        let cluster = MemoryCluster::new(SHAPE);
        let client = cluster.client().await.unwrap();
        client.put("k", "before").await.unwrap();
        let done = fault == Fault::DoThenClose;
        fail_first(&cluster, 1, fault.clone());
        let version = client.put("k", "after").await.unwrap();
        assert_eq!(version, if done { 3 } else { 2 }, "{fault:?}: at least once, and said so");
        assert_eq!(client.get("k").await.unwrap().unwrap().version, version);

        fail_first(&cluster, 1, fault.clone());
        assert_eq!(client.delete("k").await.unwrap().is_none(), done, "{fault:?}");
        assert_eq!(client.get("k").await, Ok(None));
    }
}

#[tokio::test(start_paused = true)]
async fn plain_writes_are_not_repeated_while_a_server_may_yet_do_them() {
    for fault in [Fault::Silence, Fault::DoThenSilence] {
        let cluster = MemoryCluster::new(SHAPE);
        let client = cluster.client().await.unwrap();
        let done = fault == Fault::DoThenSilence;
        fail_first(&cluster, 1, fault);
        let start = Instant::now();
        let PutError::OutcomeUnknown { last } = client.put("k", "v").await.unwrap_err() else { panic!() };
        assert_eq!(start.elapsed(), Duration::from_secs(5), "the whole time is given to the one server");
        assert!(last.as_deref().unwrap().contains("no answer in time"), "{last}");
        assert_eq!(client.get("k").await.unwrap().map(|value| value.version), done.then_some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn conditional_writes_are_not_repeated_once_sent() {
    for fault in [Fault::Close, Fault::DoThenClose, Fault::Silence, Fault::DoThenSilence] {
        let cluster = MemoryCluster::new(SHAPE);
        let client = cluster.client().await.unwrap();
        client.get("other").await.unwrap();
        fail_first(&cluster, 1, fault.clone());
        let result = client.put_if("k", "v", Condition::Absent).await;
        let Err(PutError::OutcomeUnknown { last }) = result else { panic!("{fault:?}: {result:?}") };
        assert!(last.as_deref().unwrap().starts_with("node1:740"), "it says who was asked: {last}");
        let done = matches!(fault, Fault::DoThenClose | Fault::DoThenSilence);
        assert_eq!(client.get("k").await.unwrap().is_some(), done);

        client.put("k", "v").await.unwrap();
        fail_first(&cluster, 1, fault.clone());
        let result = client.delete_if("k", Condition::Present).await;
        assert!(matches!(result, Err(DeleteError::OutcomeUnknown { .. })), "{fault:?}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_that_pass_are_retried_even_for_conditional_writes() {
    for error in [
        unavailable(),
        ErrorReply::Busy { retry_after_ms: 30 },
        ErrorReply::NotLeader { leader: None, address: None },
        ErrorReply::WrongPartition { map_version: 0 },
    ] {
        let cluster = MemoryCluster::new(SHAPE);
        let client = cluster.client().await.unwrap();
        fail_first(&cluster, 1, Fault::Answer(error.clone()));
        let version = client.put_if("k", "v", Condition::Absent).await;
        assert_eq!(version, Ok(1), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_is_obeyed() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    fail_first(&cluster, 3, Fault::Answer(ErrorReply::Busy { retry_after_ms: 200 }));
    let start = Instant::now();
    client.put("k", "v").await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(600));
}

#[tokio::test(start_paused = true)]
async fn final_refusals_come_back_at_once() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    fail_first(&cluster, 2, Fault::Answer(ErrorReply::Full));
    assert_eq!(client.put("k", "v").await, Err(PutError::Full));
    assert_eq!(client.delete("k").await, Err(DeleteError::Full));
    let unsupported = ErrorReply::Unsupported { what: "sequential reads".to_owned() };
    fail_first(&cluster, 1, Fault::Answer(unsupported.clone()));
    assert_eq!(client.get("k").await, Err(GetError::Refused(unsupported)));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_is_never_called_failed() {
    let settings =
        || Client::builder().timeout(Duration::from_secs(1)).attempt_timeout(Duration::from_millis(400));
    // Lost at first, then refused for good.
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client_with(settings()).await.unwrap();
    client.get("k").await.unwrap();
    let mut calls = 0;
    cluster.on_call(move |call| {
        calls += u32::from(call.request.key().is_some());
        match calls {
            1 => Fault::DoThenClose,
            _ => Fault::Answer(ErrorReply::Full),
        }
    });
    let PutError::OutcomeUnknown { last } = client.put("k", "v").await.unwrap_err() else { panic!() };
    assert!(last.as_deref().unwrap().contains("full"), "{last}");

    // Lost until time runs out.
    for fault in [Fault::DoThenClose, Fault::DoThenSilence] {
        fail_first(&cluster, usize::MAX, fault);
        assert!(matches!(client.put("k", "v").await, Err(PutError::OutcomeUnknown { .. })));
        assert!(matches!(client.delete("k").await, Err(DeleteError::OutcomeUnknown { .. })));
        assert!(matches!(client.get("k").await, Err(GetError::TimedOut { .. })));
    }

    // The server itself does not know.
    for error in [ErrorReply::OutcomeUnknown, ErrorReply::StorageFailed] {
        fail_first(&cluster, 1, Fault::Answer(error.clone()));
        let result = client.put_if("k", "v", Condition::Absent).await;
        assert!(matches!(result, Err(PutError::OutcomeUnknown { .. })), "{error}: {result:?}");
        fail_first(&cluster, 1, Fault::Answer(error));
        client.put("k", "v").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_that_moved_are_found_by_a_new_map() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    // Every partition leaves node 1, and shards swap.
    cluster.change_topology(|topology| {
        for partition in &mut topology.tables[0].partitions {
            partition.replicas.retain(|node| *node != NodeId(1));
            partition.leader = Some(NodeId(2));
            partition.shard = 1 - partition.shard;
        }
    });
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    client.put_if("k", "w", Condition::Present).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_newer_map_is_fetched_once_in_the_background() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    let fetches = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    cluster.on_call({
        let fetches = fetches.clone();
        move |call| {
            if *call.request == Request::Topology {
                fetches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Fault::None
        }
    });
    cluster.change_topology(|topology| topology.tables[0].name = "renamed".to_owned());
    for key in ["a", "b", "c", "d"] {
        client.get(key).await.unwrap();
    }
    // Virtual time only passes once everything else has come to rest.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(client.table("renamed").is_ok());
    assert_eq!(fetches.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_left_the_cluster_is_let_go() {
    let cluster = MemoryCluster::new(SHAPE);
    // Connected through node 3, so that node 1 is known by the map alone.
    cluster.set_presence(NodeId(1), Presence::Down);
    cluster.set_presence(NodeId(2), Presence::Down);
    let client = cluster.client().await.unwrap();
    cluster.set_presence(NodeId(1), Presence::Up);
    cluster.set_presence(NodeId(2), Presence::Up);
    client.put("k", "v").await.unwrap();
    client.ping("node2:7401").await.unwrap();
    assert_eq!((cluster.connections(NodeId(1)), cluster.connections(NodeId(2))), (1, 1));
    cluster.change_topology(|topology| {
        for partition in &mut topology.tables[0].partitions {
            partition.replicas.retain(|node| *node != NodeId(1));
            partition.leader = Some(NodeId(2));
        }
        topology.nodes.retain(|node| node.id != NodeId(1));
    });
    assert_eq!(client.get("k").await.unwrap().unwrap().value, "v");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.connections(NodeId(1)), 0);
    assert!(cluster.connections(NodeId(2)) > 0);
}

#[tokio::test(start_paused = true)]
async fn another_clusters_node_is_not_followed() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    cluster.change_topology(|topology| topology.cluster += 1);
    let error = client.topology().await.unwrap_err();
    assert!(matches!(error, NodeError::Map(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_leave_no_trace() {
    let cluster = MemoryCluster::new(Shape::default());
    let settings = Client::builder().pipeline(4);
    let client = cluster.client_with(settings).await.unwrap();
    // Far more abandoned calls than the connection has places.
    fail_first(&cluster, usize::MAX, Fault::Silence);
    for _ in 0..50 {
        let abandoned = tokio::time::timeout(Duration::from_millis(1), client.get("k")).await;
        assert!(abandoned.is_err());
    }
    fail_first(&cluster, 0, Fault::None);
    let start = Instant::now();
    assert_eq!(client.get("k").await, Ok(None));
    assert_eq!(start.elapsed(), Duration::ZERO);
}
