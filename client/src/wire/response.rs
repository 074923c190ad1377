//! Replies: what a server answers.
//!
//! Bodies (of status 0; for the others see `error_reply.rs`):
//! ```text
//! ping         -
//! get          0 u64 version   8 value (to the body's end)
//! put, delete  0 u64 version
//! scan         0 u32 rows   4 u8 more   5 3 reserved
//!              then per row: u64 version, u32 key bytes, u32 value bytes, key, value
//! ```
//! topology and status: see `topology.rs` and `statistics.rs`.

use super::fields::Fields;
use super::{
    DecodeError, ErrorReply, FLAG_RESPONSE, HEADER_BYTES, Header, NodeStatus, Opcode, TableId, Topology,
};
use bytes::Bytes;

/// One key of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The version of its value.
    pub version: u64,
    /// Its value.
    pub value: Bytes,
}

/// A reply's body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Response {
    /// To a ping.
    Pong,
    /// To a topology request.
    Topology(Topology),
    /// To a status request.
    Status(NodeStatus),
    /// To a get that found its key.
    Value {
        /// The value's version: the index of the log entry that wrote it, at least 1.
        version: u64,
        /// The value.
        value: Bytes,
    },
    /// To a put or delete that was done.
    Written {
        /// The version it gave the key (for a delete: that of the deletion).
        version: u64,
    },
    /// To a scan.
    Rows {
        /// In ascending order of keys.
        rows: Vec<Row>,
        /// Whether the partition may hold more of the range: ask again from just behind the last row's key. Never
        /// set without rows.
        more: bool,
    },
    /// To anything that was not done.
    Error(ErrorReply),
}

impl Response {
    /// Appends the whole frame to `out`. `opcode` and `request_id` are the request's, `map_version` the server's.
    ///
    /// # Panics
    /// When the body exceeds 4 GiB; servers bound their pages and values far below.
    pub fn encode(&self, opcode: u8, request_id: u64, map_version: u32, out: &mut Vec<u8>) {
        let status = match self {
            Response::Error(error) => error.status(),
            _ => 0,
        };
        let start = begin_frame(out);
        match self {
            Response::Pong => {}
            Response::Topology(topology) => topology.encode_body(out),
            Response::Status(node) => node.encode_body(out),
            Response::Value { version, value } => {
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(value);
            }
            Response::Written { version } => out.extend_from_slice(&version.to_le_bytes()),
            Response::Rows { rows, more } => {
                begin_rows(out);
                for row in rows {
                    push_row(out, &row.key, row.version, &row.value);
                }
                end_rows(out, start, rows.len(), *more);
            }
            Response::Error(error) => error.encode_body(out),
        }
        end_frame(out, start, opcode, status, request_id, map_version);
    }

    /// Reads the body of a reply. Keys and values are slices of `body`.
    ///
    /// # Errors
    /// The server broke the protocol, or is too new to be understood.
    pub fn decode(header: &Header, body: Bytes) -> Result<Response, DecodeError> {
        if !header.is_response() {
            return Err(DecodeError::NotAResponse);
        }
        if header.status != 0 {
            return ErrorReply::decode_body(header.status, body).map(Response::Error);
        }
        let opcode =
            Opcode::from_u8(header.opcode).ok_or(DecodeError::UnknownOpcode { opcode: header.opcode })?;
        let mut fields = Fields::new(body);
        Ok(match opcode {
            Opcode::Ping => Response::Pong,
            Opcode::Topology => {
                let rest = fields.remaining();
                Response::Topology(Topology::decode_body(fields.bytes(rest, "topology")?)?)
            }
            Opcode::Status => {
                let rest = fields.remaining();
                Response::Status(NodeStatus::decode_body(fields.bytes(rest, "status")?)?)
            }
            Opcode::Get => {
                let version = fields.u64("version")?;
                let rest = fields.remaining();
                Response::Value { version, value: fields.bytes(rest, "value")? }
            }
            Opcode::Put | Opcode::Delete => Response::Written { version: fields.u64("version")? },
            Opcode::Scan => {
                let count = fields.u32("row count")?;
                let more = fields.u8("more")? != 0;
                fields.bytes(3, "reserved bytes")?;
                // Grown as rows are found, not reserved by the count: that is only a claim.
                let mut rows = Vec::new();
                for _ in 0..count {
                    let version = fields.u64("version")?;
                    let key_bytes = fields.u32("key length")?;
                    let value_bytes = fields.u32("value length")?;
                    rows.push(Row {
                        key: fields.bytes(key_bytes as usize, "key")?,
                        version,
                        value: fields.bytes(value_bytes as usize, "value")?,
                    });
                }
                if more && rows.is_empty() {
                    // A pager would ask for the same page for ever.
                    return Err(DecodeError::BadValue { field: "more", value: 1 });
                }
                Response::Rows { rows, more }
            }
            Opcode::Batch | Opcode::MultiGet | Opcode::SessionOpen => {
                return Err(DecodeError::Unsupported { what: opcode.name() });
            }
        })
    }
}

/// Appends the reply to a get: the same bytes as [`Response::Value`], from a borrowed value.
pub fn encode_value(request_id: u64, map_version: u32, version: u64, value: &[u8], out: &mut Vec<u8>) {
    out.reserve(HEADER_BYTES + 8 + value.len());
    let start = begin_frame(out);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(value);
    end_frame(out, start, Opcode::Get as u8, 0, request_id, map_version);
}

/// Appends an error that concerns the connection and no single request (opcode 0, request id 0): the last frame
/// a server sends before it closes.
pub fn encode_connection_error(error: &ErrorReply, map_version: u32, out: &mut Vec<u8>) {
    Response::Error(error.clone()).encode(0, 0, map_version, out);
}

/// Bytes that a row adds to a scan's reply: what `bytes_max` of a scan counts.
pub const fn row_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    16 + key_bytes + value_bytes
}

/// Builds the reply to a scan row by row, straight into the output.
///
/// ```
/// use terrane_client::wire::RowsEncoder;
/// let mut out = Vec::new();
/// let mut rows = RowsEncoder::begin(&mut out);
/// rows.push(b"key", 7, b"value");
/// rows.finish(1, 1, false);
/// ```
#[derive(Debug)]
#[must_use = "the frame is complete only after `finish`"]
pub struct RowsEncoder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count: usize,
}

impl<'a> RowsEncoder<'a> {
    /// Begins a frame at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>) -> RowsEncoder<'a> {
        let start = begin_frame(out);
        begin_rows(out);
        RowsEncoder { out, start, count: 0 }
    }

    /// Appends one row; keys ascend.
    pub fn push(&mut self, key: &[u8], version: u64, value: &[u8]) {
        push_row(self.out, key, version, value);
        self.count += 1;
    }

    /// How many rows there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many bytes they take ([`row_bytes`] each).
    pub fn bytes(&self) -> usize {
        self.out.len() - self.start - HEADER_BYTES - ROWS_PREFIX_BYTES
    }

    /// Completes the frame. `more`: whether the range goes on behind the last row.
    pub fn finish(self, request_id: u64, map_version: u32, more: bool) {
        let RowsEncoder { out, start, count } = self;
        end_rows(out, start, count, more);
        end_frame(out, start, Opcode::Scan as u8, 0, request_id, map_version);
    }

    /// Takes the frame back, as when an error must be answered instead.
    pub fn abandon(self) {
        self.out.truncate(self.start);
    }
}

/// Row count, `more`, reserved.
const ROWS_PREFIX_BYTES: usize = 8;

fn begin_rows(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; ROWS_PREFIX_BYTES]);
}

fn push_row(out: &mut Vec<u8>, key: &[u8], version: u64, value: &[u8]) {
    let length =
        |run: &[u8]| u32::try_from(run.len()).expect("keys and values are below 4 GiB").to_le_bytes();
    out.reserve(row_bytes(key.len(), value.len()));
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&length(key));
    out.extend_from_slice(&length(value));
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn end_rows(out: &mut [u8], start: usize, count: usize, more: bool) {
    debug_assert!(!more || count > 0, "a page that promises more must say where from");
    let at = start + HEADER_BYTES;
    let count = u32::try_from(count).expect("a page's rows fit a body");
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
    out[at + 4] = u8::from(more);
}

/// Leaves room for the header; [`end_frame`] writes it once length and checksum are known.
fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

fn end_frame(out: &mut [u8], start: usize, opcode: u8, status: u16, request_id: u64, map_version: u32) {
    let body = &out[start + HEADER_BYTES..];
    let header = Header {
        opcode,
        flags: FLAG_RESPONSE,
        request_id,
        table: TableId(0),
        status,
        partition_hash: 0,
        body_bytes: u32::try_from(body.len()).expect("a body is below 4 GiB"),
        body_crc32c: crc32c::crc32c(body),
        map_version,
    };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fields::hex;
    use crate::wire::{GroupStatus, NodeId, NodeInfo, PartitionInfo, ReplicaRole, TableInfo};
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn frame(opcode: Opcode, response: &Response) -> (Header, Bytes, Vec<u8>) {
        let mut out = Vec::new();
        response.encode(opcode as u8, 42, 3, &mut out);
        let header = Header::decode(out.first_chunk().unwrap()).unwrap();
        let body = Bytes::copy_from_slice(&out[HEADER_BYTES..]);
        assert_eq!(header.body_bytes as usize, body.len());
        assert_eq!(header.body_crc32c, crc32c::crc32c(&body));
        assert!(header.is_response());
        (header, body, out)
    }

    fn golden(opcode: Opcode, response: Response, expected: Expect) {
        let (header, body, bytes) = frame(opcode, &response);
        expected.assert_eq(&hex(&bytes));
        assert_eq!(Response::decode(&header, body), Ok(response));
    }

    #[test]
    fn golden_pong() {
        golden(
            Opcode::Ping,
            Response::Pong,
            expect![[r#"
            54 52 4e 45 01 01 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 03 00 00 00 49 d7 92 b6"#]],
        );
    }

    #[test]
    fn golden_topology() {
        golden(
            Opcode::Topology,
            Response::Topology(Topology::sample()),
            expect![[r#"
            54 52 4e 45 01 02 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            bd 00 00 00 e4 c6 b8 96 03 00 00 00 97 5c 42 ff
            ff ee dd cc bb aa 99 88 77 66 55 44 33 22 11 00
            03 00 00 00 03 00 01 00 16 00 01 00 00 00 00 00
            00 00 e8 1c 02 00 08 00 31 30 2e 30 2e 30 2e 31
            16 00 02 00 00 00 00 00 00 00 e8 1c 02 00 08 00
            31 30 2e 30 2e 30 2e 32 16 00 03 00 00 00 00 00
            00 00 e8 1c 02 00 08 00 31 30 2e 30 2e 30 2e 33
            11 00 01 00 00 00 02 00 00 00 07 00 64 65 66 61
            75 6c 74 23 00 00 00 02 00 00 00 00 00 00 00 03
            01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00
            03 00 00 00 00 00 00 00 23 00 01 00 00 00 00 00
            00 00 00 00 03 01 00 00 00 00 00 00 00 02 00 00
            00 00 00 00 00 03 00 00 00 00 00 00 00"#]],
        );
    }

    #[test]
    fn golden_status() {
        golden(
            Opcode::Status,
            Response::Status(NodeStatus::sample()),
            expect![[r#"
            54 52 4e 45 01 03 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            71 00 00 00 5d ea 3b 84 03 00 00 00 80 80 a2 8e
            01 00 00 00 00 00 00 00 02 00 00 00 01 00 00 00
            06 00 63 70 75 5f 75 73 40 42 0f 00 00 00 00 00
            0a 00 75 73 65 72 5f 62 79 74 65 73 00 10 00 00
            00 00 00 00 3b 00 09 00 00 00 00 00 00 00 01 00
            00 00 01 00 00 00 01 00 02 05 00 00 00 00 00 00
            00 64 00 00 00 00 00 00 00 63 00 00 00 00 00 00
            00 65 00 00 00 00 00 00 00 01 00 00 00 00 00 00
            00"#]],
        );
    }

    #[test]
    fn golden_value() {
        let response = Response::Value { version: 0x0a0b, value: Bytes::from_static(b"world") };
        golden(
            Opcode::Get,
            response,
            expect![[r#"
            54 52 4e 45 01 10 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            0d 00 00 00 f8 d0 09 f6 03 00 00 00 a5 c0 66 cc
            0b 0a 00 00 00 00 00 00 77 6f 72 6c 64"#]],
        );
    }

    #[test]
    fn golden_written() {
        golden(
            Opcode::Put,
            Response::Written { version: 0x0a0c },
            expect![[r#"
            54 52 4e 45 01 11 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            08 00 00 00 fe 90 25 71 03 00 00 00 8f d8 2f 40
            0c 0a 00 00 00 00 00 00"#]],
        );
    }

    #[test]
    fn golden_rows() {
        let row = |key: &'static str, version, value: &'static str| Row {
            key: key.into(),
            version,
            value: value.into(),
        };
        let rows = vec![row("a", 1, "one"), row("bb", 2, "")];
        golden(
            Opcode::Scan,
            Response::Rows { rows, more: true },
            expect![[r#"
            54 52 4e 45 01 13 00 80 2a 00 00 00 00 00 00 00
            00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            2e 00 00 00 03 7e 17 69 03 00 00 00 0d 5f b1 44
            02 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00
            01 00 00 00 03 00 00 00 61 6f 6e 65 02 00 00 00
            00 00 00 00 02 00 00 00 00 00 00 00 62 62"#]],
        );
    }

    #[test]
    fn golden_errors() {
        let mut shown = String::new();
        for error in ErrorReply::samples() {
            let (header, body, _) = frame(Opcode::Put, &Response::Error(error.clone()));
            shown += &format!("{:2} [{}] {error}\n", header.status, hex(&body));
            assert_eq!(Response::decode(&header, body), Ok(Response::Error(error)));
        }
        expect![[r#"
             1 [] no such key
             2 [02 01 00 00 00 00 00 00] the condition did not hold (the key is at version 258)
             3 [02 00 00 00 00 00 00 00 0d 00 31 30 2e 30 2e 30
            2e 32 3a 37 34 30 31] not the leader (10.0.0.2:7401 is)
             4 [04 00 00 00] the server does not host this partition (its partition map is version 4)
             5 [fa 00 00 00] the server is busy: try again in 250 ms
             6 [] the storage is full: delete something or add capacity
             7 [00 00 40 00] the value is too large: at most 4194304 bytes
             8 [00 00 01 00] the key is too large: at most 65536 bytes
             9 [05 00 62 61 74 63 68] not supported by the server: batch
            10 [] no such table
            11 [02 00 6e 6f] the server could not read the request: no
            12 [01] the server speaks protocol version 1, this client version 1
            13 [09 00 6e 6f 20 6c 65 61 64 65 72] unavailable: no leader
            14 [] the outcome is unknown: leadership was lost while the write was under way
            15 [] the server's storage failed
            16 [63] the server knows no operation with opcode 99
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn a_status_of_a_newer_server_is_still_an_error() {
        let (mut header, ..) = frame(Opcode::Get, &Response::Error(ErrorReply::Full));
        header.status = 999;
        let reply = Response::decode(&header, Bytes::from_static(b"whatever"));
        assert_eq!(reply, Ok(Response::Error(ErrorReply::Unknown { status: 999 })));
    }

    #[test]
    fn borrowed_encoders_write_the_same_bytes() {
        let value = Response::Value { version: 5, value: Bytes::from_static(b"v") };
        let (.., owned) = frame(Opcode::Get, &value);
        let mut borrowed = Vec::new();
        encode_value(42, 3, 5, b"v", &mut borrowed);
        assert_eq!(borrowed, owned);

        let rows = vec![Row { key: "k".into(), version: 5, value: "v".into() }];
        let (.., owned) = frame(Opcode::Scan, &Response::Rows { rows, more: true });
        let mut borrowed = b"before".to_vec();
        let mut encoder = RowsEncoder::begin(&mut borrowed);
        encoder.push(b"k", 5, b"v");
        assert_eq!((encoder.count(), encoder.bytes()), (1, row_bytes(1, 1)));
        encoder.finish(42, 3, true);
        assert_eq!(borrowed[6..], owned);

        let mut encoder = RowsEncoder::begin(&mut borrowed);
        encoder.push(b"k", 5, b"v");
        encoder.abandon();
        assert_eq!(borrowed[6..], owned);
    }

    #[test]
    fn a_claimed_row_count_is_not_reserved() {
        let (header, ..) = frame(Opcode::Scan, &Response::Rows { rows: vec![], more: false });
        let body = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(Response::decode(&header, body), Err(DecodeError::Truncated { field: "version" }));
    }

    #[test]
    fn more_without_rows_is_refused() {
        let (header, ..) = frame(Opcode::Scan, &Response::Rows { rows: vec![], more: false });
        let body = Bytes::from_static(&[0, 0, 0, 0, 1, 0, 0, 0]);
        assert!(matches!(Response::decode(&header, body), Err(DecodeError::BadValue { .. })));
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from)
    }

    fn any_topology() -> impl Strategy<Value = Topology> {
        let node = (any::<u64>(), "[a-z0-9.:]{0,20}", any::<u16>(), any::<u16>())
            .prop_map(|(id, host, base_port, shards)| NodeInfo { id: NodeId(id), host, base_port, shards });
        let partition = (any::<u16>(), proptest::collection::vec(any::<u64>(), 0..5), any::<u64>()).prop_map(
            |(shard, replicas, leader)| PartitionInfo {
                shard,
                replicas: replicas.into_iter().map(NodeId).collect(),
                leader: (leader != 0).then_some(NodeId(leader)),
            },
        );
        let partitions =
            (0u32..4).prop_flat_map(move |bits| proptest::collection::vec(partition.clone(), 1usize << bits));
        let table = (any::<u32>(), ".{0,12}", partitions).prop_map(|(id, name, partitions)| TableInfo {
            id: TableId(id),
            name,
            partitions,
        });
        let nodes = proptest::collection::vec(node, 0..4);
        let tables = proptest::collection::vec(table, 0..3);
        (any::<u128>(), any::<u32>(), nodes, tables).prop_map(|(cluster, map_version, nodes, tables)| {
            Topology { cluster, map_version, nodes, tables }
        })
    }

    fn any_status() -> impl Strategy<Value = NodeStatus> {
        let counters = proptest::collection::vec((".{0,12}", any::<u64>()), 0..5);
        let numbers = proptest::array::uniform6(any::<u64>());
        let group = (numbers, any::<u32>(), any::<u32>(), any::<u16>(), any::<u8>()).prop_map(
            |([group, term, commit, applied, last, leader], table, partition, shard, role)| GroupStatus {
                group,
                table: TableId(table),
                partition,
                shard,
                role: ReplicaRole::from_number(role),
                term,
                commit,
                applied,
                last,
                leader: (leader != 0).then_some(NodeId(leader)),
            },
        );
        (any::<u64>(), counters, proptest::collection::vec(group, 0..4))
            .prop_map(|(node, counters, groups)| NodeStatus { node: NodeId(node), counters, groups })
    }

    fn any_response() -> impl Strategy<Value = (Opcode, Response)> {
        let row = (any_bytes(), any::<u64>(), any_bytes()).prop_map(|(key, version, value)| Row {
            key,
            version,
            value,
        });
        prop_oneof![
            Just((Opcode::Ping, Response::Pong)),
            any_topology().prop_map(|topology| (Opcode::Topology, Response::Topology(topology))),
            any_status().prop_map(|status| (Opcode::Status, Response::Status(status))),
            (any::<u64>(), any_bytes())
                .prop_map(|(version, value)| (Opcode::Get, Response::Value { version, value })),
            any::<u64>().prop_map(|version| (Opcode::Put, Response::Written { version })),
            any::<u64>().prop_map(|version| (Opcode::Delete, Response::Written { version })),
            (proptest::collection::vec(row, 0..6), any::<bool>()).prop_map(|(rows, more)| {
                let more = more && !rows.is_empty();
                (Opcode::Scan, Response::Rows { rows, more })
            }),
            proptest::sample::select(ErrorReply::samples())
                .prop_map(|error| (Opcode::Get, Response::Error(error))),
        ]
    }

    proptest! {
        #[test]
        fn any_response_survives((opcode, response) in any_response()) {
            let (header, body, _) = frame(opcode, &response);
            prop_assert_eq!(Response::decode(&header, body), Ok(response));
        }

        #[test]
        fn random_bodies_never_panic(opcode: u8, status in 0u16..20, body: Vec<u8>) {
            let (mut header, ..) = frame(Opcode::Ping, &Response::Pong);
            header.opcode = opcode;
            header.status = status;
            let _ = Response::decode(&header, body.into());
        }

        #[test]
        fn mutated_bodies_never_panic(
            (opcode, response) in any_response(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
        ) {
            let (header, body, _) = frame(opcode, &response);
            let mut body = body.to_vec();
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
                body.truncate(cut.index(body.len()) + 1);
            }
            let _ = Response::decode(&header, body.into());
        }
    }
}
