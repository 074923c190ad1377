//! `docs/protocol.md` is true: its example bytes are what the codec writes, its hashes what the client computes, its
//! numbers the enums'.

use bytes::Bytes;
use terrane_client::wire::{
    Condition, Consistency, ErrorReply, FrameDecoder, Header, NodeId, NodeInfo, Opcode, PartitionInfo,
    Request, RequestHead, Response, Row, TableId, TableInfo, Topology, partition_hash, partition_of_hash,
};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/protocol.md");
    std::fs::read_to_string(path).expect("docs/protocol.md is part of the repository")
}

/// The bytes of the page's block that follows the mark `<!-- bytes: NAME -->`. What follows two spaces and a `|`
/// on a line is explanation.
fn bytes_of(page: &str, name: &str) -> Vec<u8> {
    let mark = format!("<!-- bytes: {name} -->");
    let (_, after) = page.split_once(&mark).unwrap_or_else(|| panic!("the page has no block {name}"));
    let block = after.split("```").nth(1).unwrap_or_else(|| panic!("no block follows {mark}"));
    let digits: String =
        block.lines().skip(1).flat_map(|line| line.split("  |").next().unwrap_or("").split(' ')).collect();
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).unwrap()).collect()
}

fn hello(request_id: u64) -> RequestHead {
    RequestHead {
        request_id,
        consistency: Consistency::Linearizable,
        map_version: 3,
        ..RequestHead::for_key(TableId(1), b"hello")
    }
}

fn request(head: RequestHead, request: Request) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(&head, &mut out);
    let (header, body) = FrameDecoder::new(1 << 20).decode(&mut out[..].into()).unwrap().unwrap();
    assert_eq!(Request::decode(&header, body).unwrap(), request);
    out
}

fn response(opcode: Opcode, request_id: u64, response: Response) -> Vec<u8> {
    let mut out = Vec::new();
    response.encode(opcode as u8, request_id, 3, &mut out);
    let (header, body) = FrameDecoder::new(1 << 20).decode(&mut out[..].into()).unwrap().unwrap();
    assert_eq!(Response::decode(&header, body).unwrap(), response);
    out
}

#[test]
fn example_bytes_are_the_codecs() {
    let page = page();
    let topology = Topology {
        cluster: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        map_version: 3,
        nodes: vec![NodeInfo { id: NodeId(1), host: "10.0.0.1".into(), base_port: 7400, shards: 2 }],
        tables: vec![TableInfo {
            id: TableId(1),
            name: "default".into(),
            partitions: vec![
                PartitionInfo { shard: 0, replicas: vec![NodeId(1)], leader: Some(NodeId(1)) },
                PartitionInfo { shard: 1, replicas: vec![NodeId(1)], leader: Some(NodeId(1)) },
            ],
        }],
    };
    let put = Request::Put {
        key: "hello".into(),
        value: "world".into(),
        condition: Condition::None,
        expires_ms: 0,
    };
    let scan = Request::Scan { start: "a".into(), end: "zz".into(), count_max: 100, bytes_max: 65_536 };
    let scan_head = RequestHead { partition_hash: 1 << 63, ..hello(44) };
    let rows = vec![
        Row { key: "a".into(), version: 1, value: "one".into() },
        Row { key: "bb".into(), version: 2, value: Bytes::new() },
    ];
    let not_leader = ErrorReply::NotLeader { leader: Some(NodeId(2)), address: Some("10.0.0.2:7402".into()) };
    let examples = [
        ("topology request", request(RequestHead { request_id: 1, ..Default::default() }, Request::Topology)),
        ("topology reply", response(Opcode::Topology, 1, Response::Topology(topology))),
        ("put request", request(hello(42), put)),
        ("put reply", response(Opcode::Put, 42, Response::Written { version: 2571 })),
        ("not leader reply", response(Opcode::Put, 42, Response::Error(not_leader))),
        ("get request", request(hello(43), Request::Get { key: "hello".into() })),
        ("get reply", response(Opcode::Get, 43, Response::Value { version: 2571, value: "world".into() })),
        ("scan request", request(scan_head, scan)),
        ("scan reply", response(Opcode::Scan, 44, Response::Rows { rows, more: true })),
    ];
    for (name, expected) in examples {
        let lines: Vec<String> = expected
            .chunks(16)
            .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(bytes_of(&page, name), expected, "{name} should be\n{}\n", lines.join("\n"));
    }
}

#[test]
fn example_hashes_are_the_clients() {
    let page = page();
    let rows = page.split("<!-- hashes -->").nth(1).expect("the page has a table of hashes");
    let mut seen = 0;
    for row in rows.lines().skip_while(|line| !line.starts_with("|--")).skip(1) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, key, hash, of_2, of_16, of_1024, _] = cells[..] else { break };
        let expected = partition_hash(key.trim_matches('"').as_bytes());
        assert_eq!(hash, format!("{expected:016x}"), "{key}");
        for (cell, partitions) in [(of_2, 2), (of_16, 16), (of_1024, 1024)] {
            assert_eq!(cell, partition_of_hash(expected, partitions).to_string(), "{key} of {partitions}");
        }
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn numbers_are_the_enums() {
    let page = page();
    let mut opcodes = 0;
    for number in 0..=u8::MAX {
        let Some(opcode) = Opcode::from_u8(number) else { continue };
        assert!(page.contains(&format!("| {number} | {} |", opcode.name())), "{}", opcode.name());
        opcodes += 1;
    }
    assert_eq!(opcodes, 10);
    let errors = [
        (ErrorReply::NotFound, "not found"),
        (ErrorReply::ConditionFailed { current: None }, "condition failed"),
        (ErrorReply::NotLeader { leader: None, address: None }, "not leader"),
        (ErrorReply::WrongPartition { map_version: 0 }, "wrong partition"),
        (ErrorReply::Busy { retry_after_ms: 0 }, "busy"),
        (ErrorReply::Full, "full"),
        (ErrorReply::TooLarge { limit: 0 }, "too large"),
        (ErrorReply::KeyTooLarge { limit: 0 }, "key too large"),
        (ErrorReply::Unsupported { what: String::new() }, "unsupported"),
        (ErrorReply::UnknownTable, "unknown table"),
        (ErrorReply::Malformed { why: String::new() }, "malformed"),
        (ErrorReply::VersionMismatch { supported: 0 }, "version mismatch"),
        (ErrorReply::Unavailable { why: String::new() }, "unavailable"),
        (ErrorReply::OutcomeUnknown, "outcome unknown"),
        (ErrorReply::StorageFailed, "storage failed"),
        (ErrorReply::UnknownOpcode { opcode: 0 }, "unknown opcode"),
    ];
    for (error, name) in errors {
        assert!(page.contains(&format!("| {} | {name} |", error.status())), "{name}");
    }
}

#[test]
fn the_example_header_is_explained_field_by_field() {
    let bytes = bytes_of(&page(), "get request");
    let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!((header.opcode, header.flags, header.request_id), (16, 1, 43));
    assert_eq!((header.table, header.map_version, header.body_bytes), (TableId(1), 3, 9));
}
