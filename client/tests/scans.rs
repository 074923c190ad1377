//! Scans against a model: every partition's rows, merged in key order, whatever the pages.

use std::collections::BTreeMap;
use terrane_client::testing::{Fault, MemoryCluster, Shape};
use terrane_client::wire::{ErrorReply, KEY_BYTES_MAX, NodeId, Request, Response, Row};
use terrane_client::{Client, KeyRange, ScanError};

/// 3,000 keys of uneven lengths, more than one page of each partition.
async fn filled(cluster: &MemoryCluster) -> (Client, BTreeMap<Vec<u8>, Vec<u8>>) {
    let client = cluster.client().await.unwrap();
    let mut model = BTreeMap::new();
    for number in 0..3000u32 {
        let key = format!("{:x}", number.wrapping_mul(2_654_435_761)).into_bytes();
        let value = vec![number as u8; number as usize % 300];
        client.put(&key, &value).await.unwrap();
        model.insert(key, value);
    }
    (client, model)
}

fn pairs(rows: Vec<Row>) -> Vec<(Vec<u8>, Vec<u8>)> {
    rows.into_iter().map(|row| (row.key.to_vec(), row.value.to_vec())).collect()
}

#[tokio::test(start_paused = true)]
async fn ranges_and_limits_give_what_a_map_gives() {
    for partitions in [1, 2, 8] {
        let cluster = MemoryCluster::new(Shape { nodes: 3, shards: 2, partitions });
        let (client, model) = filled(&cluster).await;
        let ranges = [
            KeyRange::all(),
            KeyRange::from("3".."a"),
            KeyRange::from("3"..="3fffffff"),
            KeyRange::from("c"..),
            KeyRange::from(.."1"),
            KeyRange::prefix("7"),
            KeyRange::prefix("zz"),
            KeyRange::from("a".."a"),
        ];
        for range in ranges {
            for limit in [0, 1, 7, 100, 2999, 3000, usize::MAX] {
                let expected: Vec<_> = model
                    .iter()
                    .filter(|(key, _)| range.contains(key))
                    .take(limit)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                let rows = client.scan(range.clone(), limit).await.unwrap();
                assert_eq!(pairs(rows), expected, "{range:?}, {limit} rows of {partitions} partitions");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_scan_reads_little() {
    let cluster = MemoryCluster::new(Shape { nodes: 1, shards: 1, partitions: 4 });
    let (client, _) = filled(&cluster).await;
    let before = cluster.requests(NodeId(1));
    assert_eq!(client.scan(.., 20).await.unwrap().len(), 20);
    let pages = cluster.requests(NodeId(1)) - before;
    assert!((4..=8).contains(&pages), "{pages} pages for 20 rows of 4 partitions");
}

#[tokio::test(start_paused = true)]
async fn leaders_may_move_during_a_scan() {
    let cluster = MemoryCluster::new(Shape { nodes: 3, shards: 2, partitions: 4 });
    let (client, model) = filled(&cluster).await;
    let mut scans = 0u64;
    cluster.on_call(move |call| {
        scans += u64::from(matches!(call.request, Request::Scan { .. }));
        if scans % 4 == 3 { Fault::Close } else { Fault::None }
    });
    let mut scanner = client.scanner(..);
    let mut rows = Vec::new();
    while let Some(row) = scanner.next().await.unwrap() {
        rows.push(row);
        if rows.len().is_multiple_of(100) {
            cluster.set_leaders(Some(NodeId(1 + rows.len() as u64 / 100 % 3)));
        }
    }
    assert_eq!(pairs(rows), model.into_iter().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_scanner_goes_on_after_an_error() {
    let cluster = MemoryCluster::new(Shape { nodes: 1, shards: 1, partitions: 4 });
    let (client, model) = filled(&cluster).await;
    // A refusal that is final for one call.
    let mut refusals = 0u64;
    let mut keys = Vec::new();
    let mut scanner = client.scanner(..);
    cluster.on_call(move |call| {
        refusals += u64::from(matches!(call.request, Request::Scan { .. }));
        let unsupported = ErrorReply::Unsupported { what: "now".to_owned() };
        if refusals.is_multiple_of(3) { Fault::Answer(unsupported) } else { Fault::None }
    });
    let mut errors = 0;
    loop {
        match scanner.next().await {
            Ok(Some(row)) => keys.push(row.key.to_vec()),
            Ok(None) => break,
            Err(ScanError::Refused(_)) => errors += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(errors > 0);
    assert_eq!(keys, model.into_keys().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_servers_nonsense_is_refused() {
    let cluster = MemoryCluster::new(Shape::default());
    let client = cluster.client().await.unwrap();
    let row = |key: &'static str| Row { key: key.into(), version: 1, value: "".into() };
    for rows in [vec![row("b"), row("a")], vec![row("z")]] {
        cluster.on_call(move |call| {
            if !matches!(call.request, Request::Scan { .. }) {
                return Fault::None;
            }
            let mut bytes = Vec::new();
            let response = Response::Rows { rows: rows.clone(), more: false };
            response.encode(call.header.opcode, call.header.request_id, 1, &mut bytes);
            Fault::Bytes(bytes)
        });
        let error = client.scan("a".."c", 10).await.unwrap_err();
        assert!(matches!(error, ScanError::Protocol { .. }), "{error}");
    }
    let long = vec![b'k'; KEY_BYTES_MAX as usize + 1];
    let error = client.scan(long.as_slice().., 1).await.unwrap_err();
    assert_eq!(error, ScanError::KeyTooLarge { limit: KEY_BYTES_MAX });
}
