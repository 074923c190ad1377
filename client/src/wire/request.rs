//! Requests: what a client asks of a server.
//!
//! Bodies (lengths are `u32`, in bytes; byte runs follow the fixed fields in the order of their lengths):
//! ```text
//! get     0 key bytes   4 key
//! put     0 key bytes   4 value bytes   8 u64 condition version   16 u64 expires (unix ms, 0 never)
//!        24 u8 condition   25 7 reserved   32 key, value
//! delete  0 key bytes   4 u8 condition   5 3 reserved   8 u64 condition version   16 key
//! scan    0 start bytes 4 end bytes   8 u32 rows at most   12 u32 bytes at most   16 u32 reserved   20 start, end
//! ```
//! ping, topology and status have no body.
//!
//! **Invariant:** a decoded request with a key carries that key's partition hash in its header, so a server may
//! route by the header alone.

use super::fields::Fields;
use super::{
    BODY_BYTES_MAX, Consistency, DecodeError, FLAG_RESPONSE, HEADER_BYTES, Header, Opcode, TableId,
    partition_hash,
};
use bytes::Bytes;

/// Most bytes of a key: 64 KiB. A key has at least one.
pub const KEY_BYTES_MAX: u32 = 64 << 10;

/// Most bytes of a value that any server can be configured to accept: a put of it with the longest key still fits
/// [`BODY_BYTES_MAX`], and so do the replies that carry it.
pub const VALUE_BYTES_MAX: u32 = BODY_BYTES_MAX - KEY_BYTES_MAX - 64;

const _: () = assert!(
    put_body_bytes(KEY_BYTES_MAX as usize, VALUE_BYTES_MAX as usize) <= BODY_BYTES_MAX as usize
        && 8 + super::row_bytes(KEY_BYTES_MAX as usize, VALUE_BYTES_MAX as usize) <= BODY_BYTES_MAX as usize,
    "a value that can be put can be got and scanned"
);

/// When a put or delete may take place. Checked by the leader, atomically with the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if the key does not exist.
    Absent,
    /// Only if the key's version is this one. Versions start at 1.
    Version(u64),
    /// Only if the key exists, at whatever version.
    Present,
}

impl Condition {
    /// The condition's number and version field.
    fn to_fields(self) -> (u8, u64) {
        match self {
            Condition::None => (0, 0),
            Condition::Absent => (1, 0),
            Condition::Version(version) => (2, version),
            Condition::Present => (3, 0),
        }
    }

    fn from_fields(kind: u8, version: u64) -> Result<Condition, DecodeError> {
        let condition = match kind {
            0 => Condition::None,
            1 => Condition::Absent,
            2 if version != 0 => return Ok(Condition::Version(version)),
            2 => return Err(DecodeError::BadValue { field: "condition version", value: 0 }),
            3 => Condition::Present,
            other => return Err(DecodeError::BadValue { field: "condition", value: other.into() }),
        };
        if version != 0 {
            return Err(DecodeError::ReservedNotZero { field: "condition version" });
        }
        Ok(condition)
    }

    /// Whether the condition holds for a key whose current version is `current` (`None`: it does not exist).
    pub fn holds(self, current: Option<u64>) -> bool {
        match self {
            Condition::None => true,
            Condition::Absent => current.is_none(),
            Condition::Version(version) => current == Some(version),
            Condition::Present => current.is_some(),
        }
    }
}

/// The header fields a request chooses; the rest follows from its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestHead {
    /// Repeated in the reply. Unique among the connection's unanswered requests, and not 0.
    pub request_id: u64,
    /// The table meant; 0 for ping, topology and status.
    pub table: TableId,
    /// [`partition_hash`] of the key; for a scan any hash of the partition, see
    /// [`first_hash_of`](super::first_hash_of).
    pub partition_hash: u64,
    /// What a read may return.
    pub consistency: Consistency,
    /// The partition map's version the client routes by; 0 when it has none.
    pub map_version: u32,
}

impl RequestHead {
    /// A head for a request about `key`: its table and hash set, everything else default.
    pub fn for_key(table: TableId, key: &[u8]) -> RequestHead {
        RequestHead { table, partition_hash: partition_hash(key), ..RequestHead::default() }
    }
}

/// A request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Is somebody there? Answered [`Response::Pong`](super::Response::Pong).
    Ping,
    /// Answered [`Response::Topology`](super::Response::Topology).
    Topology,
    /// Answered [`Response::Status`](super::Response::Status) about the node that was asked.
    Status,
    /// Answered [`Response::Value`](super::Response::Value) or `NotFound`.
    Get {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
    },
    /// Answered [`Response::Written`](super::Response::Written) once it is durable on a quorum and applied.
    Put {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
        /// May be empty; the server's configuration limits it.
        value: Bytes,
        /// When to write.
        condition: Condition,
        /// When the value expires, in milliseconds since 1970 (UTC); 0 never.
        expires_ms: u64,
    },
    /// Answered [`Response::Written`](super::Response::Written). If the condition held and there was nothing to
    /// delete, `NotFound` or (the deletion being recorded all the same) `Written`, as the server likes.
    Delete {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        key: Bytes,
        /// When to delete.
        condition: Condition,
    },
    /// Answered [`Response::Rows`](super::Response::Rows): one page, in key order, of the partition that the
    /// header's hash falls into.
    Scan {
        /// The first key wanted; empty: from the partition's first.
        start: Bytes,
        /// The first key no longer wanted; empty: to the partition's end.
        end: Bytes,
        /// At most so many rows; 0: as many as the server likes.
        count_max: u32,
        /// Stop before the page exceeds so many bytes of rows (but send at least one row); 0: the server's choice.
        bytes_max: u32,
    },
}

impl Request {
    /// The operation's number.
    pub fn opcode(&self) -> Opcode {
        match self {
            Request::Ping => Opcode::Ping,
            Request::Topology => Opcode::Topology,
            Request::Status => Opcode::Status,
            Request::Get { .. } => Opcode::Get,
            Request::Put { .. } => Opcode::Put,
            Request::Delete { .. } => Opcode::Delete,
            Request::Scan { .. } => Opcode::Scan,
        }
    }

    /// The key the request is about, if it is about one.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Request::Get { key } | Request::Put { key, .. } | Request::Delete { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Appends the whole frame to `out`.
    ///
    /// # Panics
    /// When the body exceeds 4 GiB; callers check their keys and values first.
    pub fn encode(&self, head: &RequestHead, out: &mut Vec<u8>) {
        match self {
            Request::Ping | Request::Topology | Request::Status => {
                encode_frame(head, self.opcode(), 0, out, |_| {});
            }
            Request::Get { key } => encode_get(head, key, out),
            Request::Put { key, value, condition, expires_ms } => {
                encode_put(head, key, value, *condition, *expires_ms, out);
            }
            Request::Delete { key, condition } => encode_delete(head, key, *condition, out),
            Request::Scan { start, end, count_max, bytes_max } => {
                encode_scan(head, start, end, *count_max, *bytes_max, out);
            }
        }
    }

    /// Reads the body of a request. Keys and values are slices of `body`.
    ///
    /// # Errors
    /// Answer them with [`DecodeError::to_reply`]; the connection can go on.
    pub fn decode(header: &Header, body: Bytes) -> Result<Request, DecodeError> {
        if header.is_response() {
            return Err(DecodeError::NotARequest);
        }
        let opcode =
            Opcode::from_u8(header.opcode).ok_or(DecodeError::UnknownOpcode { opcode: header.opcode })?;
        if header.unknown_request_flags() != 0 {
            return Err(DecodeError::UnknownFlags { flags: header.unknown_request_flags() });
        }
        if header.status != 0 {
            return Err(DecodeError::ReservedNotZero { field: "a request's status" });
        }
        let mut fields = Fields::new(body);
        let request = match opcode {
            Opcode::Ping => Request::Ping,
            Opcode::Topology => Request::Topology,
            Opcode::Status => Request::Status,
            Opcode::Get => {
                let key_bytes = fields.u32("key length")?;
                Request::Get { key: key(&mut fields, key_bytes)? }
            }
            Opcode::Put => {
                let key_bytes = fields.u32("key length")?;
                let value_bytes = fields.u32("value length")?;
                let condition_version = fields.u64("condition version")?;
                let expires_ms = fields.u64("expiry")?;
                let condition = Condition::from_fields(fields.u8("condition")?, condition_version)?;
                fields.zeros(7, "reserved bytes")?;
                Request::Put {
                    key: key(&mut fields, key_bytes)?,
                    value: fields.bytes(value_bytes as usize, "value")?,
                    condition,
                    expires_ms,
                }
            }
            Opcode::Delete => {
                let key_bytes = fields.u32("key length")?;
                let kind = fields.u8("condition")?;
                fields.zeros(3, "reserved bytes")?;
                let condition = Condition::from_fields(kind, fields.u64("condition version")?)?;
                Request::Delete { key: key(&mut fields, key_bytes)?, condition }
            }
            Opcode::Scan => {
                let start_bytes = fields.u32("start length")?;
                let end_bytes = fields.u32("end length")?;
                let count_max = fields.u32("row limit")?;
                let bytes_max = fields.u32("byte limit")?;
                fields.zeros(4, "reserved bytes")?;
                Request::Scan {
                    start: bound(&mut fields, start_bytes)?,
                    end: bound(&mut fields, end_bytes)?,
                    count_max,
                    bytes_max,
                }
            }
            Opcode::Batch | Opcode::MultiGet | Opcode::SessionOpen => {
                return Err(DecodeError::Unsupported { what: opcode.name() });
            }
        };
        fields.end()?;
        if let Some(key) = request.key()
            && partition_hash(key) != header.partition_hash
        {
            return Err(DecodeError::HashMismatch);
        }
        Ok(request)
    }
}

fn key(fields: &mut Fields, bytes: u32) -> Result<Bytes, DecodeError> {
    if bytes == 0 {
        return Err(DecodeError::EmptyKey);
    }
    bound(fields, bytes)
}

/// An end of a range: a key, or nothing.
fn bound(fields: &mut Fields, bytes: u32) -> Result<Bytes, DecodeError> {
    if bytes > KEY_BYTES_MAX {
        return Err(DecodeError::KeyTooLarge { bytes: bytes.into(), limit: KEY_BYTES_MAX });
    }
    fields.bytes(bytes as usize, "key")
}

/// Appends a get's frame; the same as [`Request::encode`] for a borrowed key.
pub fn encode_get(head: &RequestHead, key: &[u8], out: &mut Vec<u8>) {
    encode_frame(head, Opcode::Get, 4 + key.len(), out, |out| {
        out.extend_from_slice(&length(key));
        out.extend_from_slice(key);
    });
}

/// Appends a put's frame; the same as [`Request::encode`] for a borrowed key and value.
pub fn encode_put(
    head: &RequestHead,
    key: &[u8],
    value: &[u8],
    condition: Condition,
    expires_ms: u64,
    out: &mut Vec<u8>,
) {
    let (kind, version) = condition.to_fields();
    encode_frame(head, Opcode::Put, put_body_bytes(key.len(), value.len()), out, |out| {
        out.extend_from_slice(&length(key));
        out.extend_from_slice(&length(value));
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&expires_ms.to_le_bytes());
        out.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    });
}

/// Bytes of a put's body: the largest of any request, so what a server's frame limit follows from
/// (`put_body_bytes(KEY_BYTES_MAX, value_bytes_max)`).
pub const fn put_body_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    32 + key_bytes + value_bytes
}

/// Appends a delete's frame; the same as [`Request::encode`] for a borrowed key.
pub fn encode_delete(head: &RequestHead, key: &[u8], condition: Condition, out: &mut Vec<u8>) {
    let (kind, version) = condition.to_fields();
    encode_frame(head, Opcode::Delete, 16 + key.len(), out, |out| {
        out.extend_from_slice(&length(key));
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(key);
    });
}

/// Appends a scan's frame; the same as [`Request::encode`] for borrowed bounds.
pub fn encode_scan(
    head: &RequestHead,
    start: &[u8],
    end: &[u8],
    count_max: u32,
    bytes_max: u32,
    out: &mut Vec<u8>,
) {
    encode_frame(head, Opcode::Scan, 20 + start.len() + end.len(), out, |out| {
        out.extend_from_slice(&length(start));
        out.extend_from_slice(&length(end));
        out.extend_from_slice(&count_max.to_le_bytes());
        out.extend_from_slice(&bytes_max.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(start);
        out.extend_from_slice(end);
    });
}

fn length(run: &[u8]) -> [u8; 4] {
    u32::try_from(run.len()).expect("keys and values are below 4 GiB").to_le_bytes()
}

/// Leaves room for the header, appends the body, and writes the header once length and checksum are known.
fn encode_frame(
    head: &RequestHead,
    opcode: Opcode,
    body_bytes: usize,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.reserve(HEADER_BYTES + body_bytes);
    out.extend_from_slice(&[0; HEADER_BYTES]);
    body(out);
    let written = &out[start + HEADER_BYTES..];
    debug_assert_eq!(written.len(), body_bytes, "{opcode:?}'s length was foretold wrongly");
    let header = Header {
        opcode: opcode as u8,
        flags: head.consistency as u16 & !FLAG_RESPONSE,
        request_id: head.request_id,
        table: head.table,
        status: 0,
        partition_hash: head.partition_hash,
        body_bytes: u32::try_from(written.len()).expect("a body is below 4 GiB"),
        body_crc32c: crc32c::crc32c(written),
        map_version: head.map_version,
    };
    out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fields::hex;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn frame(request: &Request) -> (Header, Bytes, Vec<u8>) {
        let key = request.key().map_or(&b""[..], |key| key);
        let hash = if key.is_empty() { 0 } else { partition_hash(key) };
        let head = RequestHead {
            request_id: 42,
            table: TableId(if request.opcode() < Opcode::Get { 0 } else { 1 }),
            partition_hash: hash,
            consistency: Consistency::Linearizable,
            map_version: 3,
        };
        let mut out = Vec::new();
        request.encode(&head, &mut out);
        let header = Header::decode(out.first_chunk().unwrap()).unwrap();
        let body = Bytes::copy_from_slice(&out[HEADER_BYTES..]);
        assert_eq!(header.body_bytes as usize, body.len());
        assert_eq!(header.body_crc32c, crc32c::crc32c(&body));
        (header, body, out)
    }

    fn golden(request: Request, expected: Expect) {
        let (header, body, bytes) = frame(&request);
        expected.assert_eq(&hex(&bytes));
        assert_eq!(header.consistency(), Consistency::Linearizable);
        assert_eq!(Request::decode(&header, body), Ok(request));
    }

    #[test]
    fn golden_ping() {
        golden(
            Request::Ping,
            expect![[r#"
                54 52 4e 45 01 01 01 00 2a 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 03 00 00 00 b7 2a fb ec"#]],
        );
    }

    #[test]
    fn golden_topology() {
        golden(
            Request::Topology,
            expect![[r#"
                54 52 4e 45 01 02 01 00 2a 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 03 00 00 00 35 29 f9 8d"#]],
        );
    }

    #[test]
    fn golden_status() {
        golden(
            Request::Status,
            expect![[r#"
                54 52 4e 45 01 03 01 00 2a 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                00 00 00 00 00 00 00 00 03 00 00 00 4b 28 07 ad"#]],
        );
    }

    #[test]
    fn golden_get() {
        golden(
            Request::Get { key: Bytes::from_static(b"hello") },
            expect![[r#"
            54 52 4e 45 01 10 01 00 2a 00 00 00 00 00 00 00
            01 00 00 00 00 00 00 00 fd dc 62 5c 55 e8 55 95
            09 00 00 00 a1 b1 17 4e 03 00 00 00 40 5d 16 a2
            05 00 00 00 68 65 6c 6c 6f"#]],
        );
    }

    #[test]
    fn golden_put() {
        let request = Request::Put {
            key: Bytes::from_static(b"hello"),
            value: Bytes::from_static(b"world"),
            condition: Condition::Version(0x0a0b),
            expires_ms: 0x0102_0304,
        };
        golden(
            request,
            expect![[r#"
            54 52 4e 45 01 11 01 00 2a 00 00 00 00 00 00 00
            01 00 00 00 00 00 00 00 fd dc 62 5c 55 e8 55 95
            2a 00 00 00 8d 2a 1e 69 03 00 00 00 2a c7 fa 2e
            05 00 00 00 05 00 00 00 0b 0a 00 00 00 00 00 00
            04 03 02 01 00 00 00 00 02 00 00 00 00 00 00 00
            68 65 6c 6c 6f 77 6f 72 6c 64"#]],
        );
    }

    #[test]
    fn golden_delete() {
        let request = Request::Delete { key: Bytes::from_static(b"hello"), condition: Condition::Present };
        golden(
            request,
            expect![[r#"
            54 52 4e 45 01 12 01 00 2a 00 00 00 00 00 00 00
            01 00 00 00 00 00 00 00 fd dc 62 5c 55 e8 55 95
            15 00 00 00 50 43 57 c8 03 00 00 00 18 8a 33 51
            05 00 00 00 03 00 00 00 00 00 00 00 00 00 00 00
            68 65 6c 6c 6f"#]],
        );
    }

    #[test]
    fn golden_scan() {
        let request = Request::Scan {
            start: Bytes::from_static(b"a"),
            end: Bytes::from_static(b"zz"),
            count_max: 100,
            bytes_max: 65_536,
        };
        golden(
            request,
            expect![[r#"
            54 52 4e 45 01 13 01 00 2a 00 00 00 00 00 00 00
            01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            17 00 00 00 4d 62 4b e8 03 00 00 00 11 c9 24 fe
            01 00 00 00 02 00 00 00 64 00 00 00 00 00 01 00
            00 00 00 00 61 7a 7a"#]],
        );
    }

    #[test]
    fn conditions_hold_when_they_should() {
        let holds = |condition: Condition| [None, Some(1), Some(2)].map(|current| condition.holds(current));
        assert_eq!(holds(Condition::None), [true, true, true]);
        assert_eq!(holds(Condition::Absent), [true, false, false]);
        assert_eq!(holds(Condition::Present), [false, true, true]);
        assert_eq!(holds(Condition::Version(2)), [false, false, true]);
    }

    fn refused(request: &Request, spoil: impl FnOnce(&mut Header, &mut Vec<u8>)) -> DecodeError {
        let (mut header, body, _) = frame(request);
        let mut body = body.to_vec();
        spoil(&mut header, &mut body);
        Request::decode(&header, body.into()).unwrap_err()
    }

    fn get() -> Request {
        Request::Get { key: Bytes::from_static(b"hello") }
    }

    fn put() -> Request {
        Request::Put {
            key: Bytes::from_static(b"hello"),
            value: Bytes::from_static(b"v"),
            condition: Condition::Absent,
            expires_ms: 0,
        }
    }

    #[test]
    fn requests_are_read_strictly() {
        assert_eq!(refused(&get(), |_, body| body.push(0)), DecodeError::TrailingBytes { bytes: 1 });
        assert_eq!(refused(&get(), |_, body| body.truncate(6)), DecodeError::Truncated { field: "key" });
        assert_eq!(
            refused(&get(), |header, _| header.flags |= 1 << 7),
            DecodeError::UnknownFlags { flags: 1 << 7 }
        );
        assert_eq!(refused(&get(), |header, _| header.flags |= FLAG_RESPONSE), DecodeError::NotARequest);
        assert_eq!(refused(&get(), |header, _| header.partition_hash ^= 1), DecodeError::HashMismatch);
        assert!(matches!(
            refused(&get(), |header, _| header.status = 1),
            DecodeError::ReservedNotZero { .. }
        ));
        assert!(matches!(refused(&put(), |_, body| body[25] = 1), DecodeError::ReservedNotZero { .. }));
        assert_eq!(
            refused(&put(), |_, body| body[24] = 4),
            DecodeError::BadValue { field: "condition", value: 4 }
        );
        // Version 0 is nobody's version.
        assert!(matches!(refused(&put(), |_, body| body[24] = 2), DecodeError::BadValue { .. }));
        assert!(matches!(refused(&put(), |_, body| body[8] = 1), DecodeError::ReservedNotZero { .. }));
        assert_eq!(refused(&Request::Ping, |_, body| body.push(0)), DecodeError::TrailingBytes { bytes: 1 });
    }

    #[test]
    fn keys_have_one_byte_to_64_kib() {
        assert_eq!(refused(&get(), |_, body| *body = vec![0, 0, 0, 0]), DecodeError::EmptyKey);
        let with_key = |bytes: usize| frame(&Request::Get { key: vec![b'k'; bytes].into() });
        let (header, body, _) = with_key(KEY_BYTES_MAX as usize);
        assert!(Request::decode(&header, body).is_ok());
        let (header, body, _) = with_key(KEY_BYTES_MAX as usize + 1);
        let error = Request::decode(&header, body).unwrap_err();
        assert_eq!(error.to_reply(), crate::wire::ErrorReply::KeyTooLarge { limit: KEY_BYTES_MAX });
    }

    #[test]
    fn reserved_and_unknown_operations_are_named() {
        let reply = |opcode: u8| refused(&get(), |header, _| header.opcode = opcode).to_reply();
        assert_eq!(reply(20), crate::wire::ErrorReply::Unsupported { what: "batch".into() });
        assert_eq!(reply(21), crate::wire::ErrorReply::Unsupported { what: "multi-get".into() });
        assert_eq!(reply(22), crate::wire::ErrorReply::Unsupported { what: "session-open".into() });
        assert_eq!(reply(99), crate::wire::ErrorReply::UnknownOpcode { opcode: 99 });
    }

    #[test]
    fn keys_and_values_are_not_copied() {
        let (header, body, _) = frame(&put());
        let range = body.as_ptr_range();
        let Ok(Request::Put { key, value, .. }) = Request::decode(&header, body.clone()) else {
            panic!("a put was sent");
        };
        assert!(range.contains(&key.as_ptr()) && range.contains(&value.as_ptr()));
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let bytes = |least: usize| proptest::collection::vec(any::<u8>(), least..200).prop_map(Bytes::from);
        let condition = prop_oneof![
            Just(Condition::None),
            Just(Condition::Absent),
            (1u64..).prop_map(Condition::Version),
            Just(Condition::Present),
        ];
        prop_oneof![
            Just(Request::Ping),
            Just(Request::Topology),
            Just(Request::Status),
            bytes(1).prop_map(|key| Request::Get { key }),
            (bytes(1), bytes(0), condition.clone(), any::<u64>()).prop_map(
                |(key, value, condition, expires_ms)| Request::Put { key, value, condition, expires_ms }
            ),
            (bytes(1), condition).prop_map(|(key, condition)| Request::Delete { key, condition }),
            (bytes(0), bytes(0), any::<u32>(), any::<u32>()).prop_map(
                |(start, end, count_max, bytes_max)| Request::Scan { start, end, count_max, bytes_max }
            ),
        ]
    }

    proptest! {
        #[test]
        fn any_request_survives(request in any_request()) {
            let (header, body, _) = frame(&request);
            prop_assert_eq!(Request::decode(&header, body), Ok(request));
        }

        #[test]
        fn random_bodies_never_panic(opcode: u8, flags: u16, body: Vec<u8>) {
            let (mut header, ..) = frame(&get());
            header.opcode = opcode;
            header.flags = flags;
            let _ = Request::decode(&header, body.into());
        }

        #[test]
        fn a_cut_body_is_never_another_request(request in any_request(), cut: prop::sample::Index) {
            let (header, body, _) = frame(&request);
            prop_assume!(!body.is_empty());
            let cut = cut.index(body.len());
            prop_assert!(Request::decode(&header, body.slice(..cut)).is_err());
        }
    }
}
