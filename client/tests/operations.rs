//! What each operation of the client does when nothing goes wrong, and what it says when the caller is wrong.

use terrane_client::testing::{MemoryCluster, Shape, VALUE_BYTES_MAX};
use terrane_client::wire::{self, KEY_BYTES_MAX, NodeId, ReplicaRole};
use terrane_client::{
    Client, Condition, ConnectError, DEFAULT_TABLE, DeleteError, GetError, NodeError, PutError, Scanner,
    Table,
};

const SHAPE: Shape = Shape { nodes: 3, shards: 2, partitions: 8 };

#[tokio::test(start_paused = true)]
async fn what_is_put_is_got_until_it_is_deleted() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    assert_eq!(client.get("k").await, Ok(None));
    let first = client.put("k", "one").await.unwrap();
    let second = client.put("k", b"two").await.unwrap();
    assert!(second > first);
    let read = client.get("k").await.unwrap().unwrap();
    assert_eq!((&read.value[..], read.version), (&b"two"[..], second));
    assert!(client.delete("k").await.unwrap().unwrap() > second);
    assert_eq!(client.get("k").await, Ok(None));
    assert_eq!(client.delete("k").await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn conditions_are_checked_and_say_what_is_there() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    let failed = |current| Err(PutError::ConditionFailed { current });
    assert_eq!(client.put_if("k", "v", Condition::Present).await, failed(None));
    assert_eq!(client.put_if("k", "v", Condition::Version(9)).await, failed(None));
    let version = client.put_if("k", "v", Condition::Absent).await.unwrap();
    assert_eq!(client.put_if("k", "w", Condition::Absent).await, failed(Some(version)));
    assert_eq!(client.put_if("k", "w", Condition::Version(version + 1)).await, failed(Some(version)));
    let version = client.put_if("k", "w", Condition::Version(version)).await.unwrap();
    let version = client.put_if("k", "x", Condition::Present).await.map(|next| next.max(version)).unwrap();

    let failed = |current| Err(DeleteError::ConditionFailed { current });
    assert_eq!(client.delete_if("k", Condition::Absent).await, failed(Some(version)));
    assert_eq!(client.delete_if("k", Condition::Version(1 << 40)).await, failed(Some(version)));
    assert!(client.delete_if("k", Condition::Version(version)).await.unwrap().is_some());
    assert_eq!(client.delete_if("k", Condition::Present).await, failed(None));
    assert_eq!(client.delete_if("k", Condition::Absent).await, Ok(None));
    assert!(matches!(client.put_if("k", "v", Condition::Version(0)).await, Err(PutError::Refused(_))));
}

#[tokio::test(start_paused = true)]
async fn keys_and_values_have_their_limits() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    let requests = |nodes: std::ops::RangeInclusive<u64>| -> u64 {
        nodes.map(|node| cluster.requests(NodeId(node))).sum()
    };
    let before = requests(1..=3);
    assert_eq!(client.get("").await, Err(GetError::EmptyKey));
    assert_eq!(client.put("", "v").await, Err(PutError::EmptyKey));
    assert_eq!(client.delete("").await, Err(DeleteError::EmptyKey));
    let long = vec![b'k'; KEY_BYTES_MAX as usize + 1];
    let limit = KEY_BYTES_MAX;
    assert_eq!(client.get(&long).await, Err(GetError::KeyTooLarge { limit }));
    assert_eq!(client.put(&long, "v").await, Err(PutError::KeyTooLarge { limit }));
    assert_eq!(client.delete(&long).await, Err(DeleteError::KeyTooLarge { limit }));
    let huge = vec![0; wire::VALUE_BYTES_MAX as usize + 1];
    assert_eq!(client.put("k", &huge).await, Err(PutError::TooLarge { limit: wire::VALUE_BYTES_MAX }));
    assert_eq!(requests(1..=3), before, "none of these is worth a request");

    // The largest of both is accepted and comes back whole.
    let longest = &long[1..];
    let largest: Vec<u8> = (0..VALUE_BYTES_MAX).map(|at| (at % 251) as u8).collect();
    client.put(longest, &largest).await.unwrap();
    assert_eq!(client.get(longest).await.unwrap().unwrap().value, largest);
    client.put("empty", "").await.unwrap();
    assert_eq!(client.get("empty").await.unwrap().unwrap().value, "");

    // Beyond the server's own limit the server says so, whether it reads the frame or skips it.
    for more in [1, KEY_BYTES_MAX as usize + 1] {
        let value = vec![0; VALUE_BYTES_MAX as usize + more];
        assert_eq!(client.put("k", &value).await, Err(PutError::TooLarge { limit: VALUE_BYTES_MAX }));
    }
    assert_eq!(client.get("k").await, Ok(None), "and the connection goes on");
}

#[tokio::test(start_paused = true)]
async fn many_calls_share_the_connections() {
    let cluster = MemoryCluster::new(SHAPE);
    let settings = Client::builder().connections_per_shard(2).pipeline(16);
    let client = cluster.client_with(settings).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1000u32 {
        let client = client.clone();
        tasks.spawn(async move {
            let key = format!("key{number}");
            client.put(&key, number.to_le_bytes()).await.unwrap();
            assert_eq!(client.get(&key).await.unwrap().unwrap().value, &number.to_le_bytes()[..]);
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert_eq!(client.scan(.., usize::MAX).await.unwrap().len(), 1000);
    assert_eq!(cluster.requests(NodeId(2)) + cluster.requests(NodeId(3)), 0, "all went to the leader");
}

#[tokio::test(start_paused = true)]
async fn tables_are_found_by_name() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    let table = client.table(DEFAULT_TABLE).unwrap();
    assert_eq!(table.get("k").await.unwrap().unwrap().value, "v");
    assert_eq!(client.table("other").unwrap_err().name, "other");

    // A table that is gone from the server and the map.
    cluster.change_topology(|topology| topology.tables.clear());
    assert_eq!(table.get("k").await, Err(GetError::UnknownTable));
    assert_eq!(client.put("k", "v").await, Err(PutError::UnknownTable));
}

#[tokio::test(start_paused = true)]
async fn nodes_tell_of_themselves_and_the_cluster() {
    let cluster = MemoryCluster::new(SHAPE);
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    let topology = client.topology().await.unwrap();
    assert_eq!((topology.nodes.len(), topology.tables[0].partitions.len()), (3, 8));
    assert_eq!(client.cluster(), topology.cluster);

    let second = topology.nodes[1].base_address();
    assert_eq!(client.topology_at(&second).await.unwrap(), topology);
    client.ping(&second).await.unwrap();
    client.ping(&topology.nodes[1].shard_address(1).unwrap()).await.unwrap();
    let status = client.status(&second).await.unwrap();
    assert_eq!(status.node, NodeId(2));
    assert!(status.counter("requests").unwrap() > 0);
    assert!(status.groups.iter().all(|group| group.role == ReplicaRole::Follower));
    assert_eq!(status.groups.iter().map(|group| group.last).sum::<u64>(), 1);

    let nobody = client.ping("node9:1").await.unwrap_err();
    assert!(matches!(&nobody, NodeError::Unreachable { why } if why.starts_with("node9:1: ")), "{nobody}");
}

#[tokio::test]
async fn addresses_come_in_several_shapes() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let list = cluster.addresses();
    let joined = format!(" {} ,{}", list[0], list[1]);
    for client in [
        Client::connect(joined.as_str()).await,
        Client::connect(&joined).await,
        Client::connect(joined.clone()).await,
        Client::connect(&list).await,
        Client::connect(&list[1..]).await,
        Client::connect([joined.as_str(), &list[2]]).await,
        Client::connect(list.clone()).await,
    ] {
        assert_eq!(client.unwrap().get("k").await, Ok(None));
    }
}

#[tokio::test]
async fn bad_addresses_are_named() {
    assert_eq!(Client::connect("").await.unwrap_err(), ConnectError::NoAddress);
    assert_eq!(Client::connect(" , ").await.unwrap_err(), ConnectError::NoAddress);
    for bad in ["localhost", "localhost:", ":7400", "localhost:0", "localhost:70000", "a:b"] {
        let error = Client::connect(bad).await.unwrap_err();
        assert_eq!(error, ConnectError::BadAddress { address: bad.to_owned() });
    }
    let error = Client::builder().pipeline(0).connect("localhost:1").await.unwrap_err();
    assert!(matches!(error, ConnectError::BadSetting { setting: "pipeline", .. }));
    let error = Client::builder().connections_per_shard(0).connect("localhost:1").await.unwrap_err();
    assert!(matches!(error, ConnectError::BadSetting { setting: "connections_per_shard", .. }));
}

#[tokio::test]
async fn nobody_there_is_said_for_each_address() {
    // A port that was free a moment ago, and that nobody else is given while it is still held unlistened.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = held.local_addr().unwrap().to_string();
    let ConnectError::Unreachable { problems } = Client::connect(&[&address, &address]).await.unwrap_err()
    else {
        panic!("nobody listens there");
    };
    assert_eq!(problems.len(), 2);
    assert!(problems[0].starts_with(&format!("{address}: cannot connect: ")), "{problems:?}");
}

#[tokio::test]
async fn the_first_address_that_answers_is_enough() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = held.local_addr().unwrap().to_string();
    let client = Client::connect([&dead, &cluster.addresses()[2]]).await.unwrap();
    client.put("k", "v").await.unwrap();
}

#[test]
fn clients_and_their_futures_go_between_threads() {
    fn both<T: Send + Sync + Clone>() {}
    fn send<T: Send>(_: &T) {}
    both::<Client>();
    both::<Table>();
    let uses = |client: Client, mut scanner: Scanner| async move {
        let _ = client.put("k", "v").await;
        let _ = client.get(String::from("k")).await;
        let _ = client.delete(b"k").await;
        let _ = client.scan(.., 1).await;
        let _ = scanner.next().await;
        let _ = client.topology().await;
        let _ = client.status("a:1").await;
    };
    send(&uses);
    fn future<F: Future + Send, A, B>(_: impl FnOnce(A, B) -> F) {}
    future(uses);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_client_ends_its_connections() {
    let cluster = MemoryCluster::new(Shape::default());
    let client = cluster.client().await.unwrap();
    client.put("k", "v").await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    assert!(runtime.metrics().num_alive_tasks() > 0);
    drop(client);
    // Both ends' tasks finish by themselves; one that did not would make this wait for ever.
    while runtime.metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}
