//! The frame header: 48 bytes, little-endian, the same for requests and replies.
//!
//! ```text
//!  0 u32 magic "TRNE"      4 u8 version     5 u8 opcode      6 u16 flags
//!  8 u64 request id
//! 16 u32 table            20 u16 status    22 u16 reserved (0)
//! 24 u64 partition hash
//! 32 u32 body bytes       36 u32 crc32c of the body
//! 40 u32 map version      44 u32 crc32c of bytes 0..44
//! ```
//!
//! **Invariant:** a header that decodes has a sound checksum and a body length within [`BODY_BYTES_MAX`]; its
//! opcode, flags and status may still be numbers this version does not know (they are answered, not dropped).

use super::TableId;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;

/// The first four bytes of every frame: `TRNE`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TRNE");

/// The protocol version spoken here.
pub const VERSION: u8 = 1;

/// Most bytes a body may have in this protocol version: 64 MiB. Servers and clients may accept less.
pub const BODY_BYTES_MAX: u32 = 64 << 20;

/// Flag bit 15: the frame is a reply.
pub const FLAG_RESPONSE: u16 = 1 << 15;

/// Flag bits 0 and 1 of a request: its consistency.
const FLAGS_CONSISTENCY: u16 = 0b11;

const _: () = assert!(HEADER_BYTES.is_multiple_of(8), "bodies start on an 8-byte boundary of the frame");

/// An operation's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Opcode {
    /// Is somebody there? Empty body both ways.
    Ping = 1,
    /// The cluster's nodes, tables, partitions and leaders.
    Topology = 2,
    /// The answering node's statistics.
    Status = 3,
    /// Read one key.
    Get = 16,
    /// Write one key, perhaps on a condition.
    Put = 17,
    /// Delete one key, perhaps on a condition.
    Delete = 18,
    /// Read a range of keys of one partition, in key order.
    Scan = 19,
    /// Several writes of one partition. Reserved: answered `Unsupported`.
    Batch = 20,
    /// Several reads of one partition. Reserved: answered `Unsupported`.
    MultiGet = 21,
    /// Open a session for exactly-once writes. Reserved: answered `Unsupported`.
    SessionOpen = 22,
}

impl Opcode {
    /// The operation with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Opcode> {
        Some(match number {
            1 => Opcode::Ping,
            2 => Opcode::Topology,
            3 => Opcode::Status,
            16 => Opcode::Get,
            17 => Opcode::Put,
            18 => Opcode::Delete,
            19 => Opcode::Scan,
            20 => Opcode::Batch,
            21 => Opcode::MultiGet,
            22 => Opcode::SessionOpen,
            _ => return None,
        })
    }

    /// The operation's name as people read it: `get`, `session-open`, ...
    pub fn name(self) -> &'static str {
        match self {
            Opcode::Ping => "ping",
            Opcode::Topology => "topology",
            Opcode::Status => "status",
            Opcode::Get => "get",
            Opcode::Put => "put",
            Opcode::Delete => "delete",
            Opcode::Scan => "scan",
            Opcode::Batch => "batch",
            Opcode::MultiGet => "multi-get",
            Opcode::SessionOpen => "session-open",
        }
    }
}

/// What a read may return. Chosen per request; two flag bits of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u16)]
pub enum Consistency {
    /// What the table is set to; linearizable unless configured otherwise.
    #[default]
    TableDefault = 0,
    /// The newest acknowledged write, in real time.
    Linearizable = 1,
    /// Never older than what this client has seen of the partition.
    Sequential = 2,
    /// What some replica has, at once.
    Eventual = 3,
}

/// One decoded header. Fields are raw numbers where an unknown one must still be answerable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The operation's number; see [`Opcode::from_u8`]. 0 only in an error that concerns the whole connection.
    pub opcode: u8,
    /// Bit 15: reply. Bits 0-1 of a request: [`Consistency`]. The others are 0 in this version.
    pub flags: u16,
    /// Chosen by the client, repeated in the reply. 0 is never a request's: it marks connection errors.
    pub request_id: u64,
    /// The table asked; 0 in replies.
    pub table: TableId,
    /// Replies: a [`StatusCode`](super::StatusCode) as a number, 0 is success. Requests: 0.
    pub status: u16,
    /// Requests: the hash of the key, or any hash of the partition meant. Replies: 0.
    pub partition_hash: u64,
    /// Bytes of body that follow, at most [`BODY_BYTES_MAX`].
    pub body_bytes: u32,
    /// CRC-32C of the body (0 for an empty body).
    pub body_crc32c: u32,
    /// Requests: the version of the partition map the client routes by, 0 when it has none. Replies: the
    /// server's; a higher one than the client's says that its map is old.
    pub map_version: u32,
}

/// Why 48 bytes are not a header this version can follow. Each is fatal to the connection: the stream's frame
/// boundaries can no longer be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The bytes do not start with [`MAGIC`]: not this protocol.
    #[error(
        "the frame starts with {found:#010x}, not with Terrane's magic {MAGIC:#010x}: not a Terrane peer"
    )]
    BadMagic {
        /// The first four bytes, read as a little-endian number.
        found: u32,
    },
    /// Another protocol version; its header may be laid out differently, so nothing more is read.
    #[error("the frame is of protocol version {found}, this side speaks version {VERSION}")]
    BadVersion {
        /// The version received.
        found: u8,
    },
    /// The checksum over bytes 0..44 does not match.
    #[error("the header's checksum does not match: damaged in transit")]
    BadChecksum,
    /// The reserved field is set.
    #[error("the header's reserved field holds {found:#06x}, it must be zero")]
    ReservedNotZero {
        /// What it held.
        found: u16,
    },
    /// The body is longer than the protocol allows.
    #[error("the body has {bytes} bytes, the limit is {limit}")]
    BodyTooLarge {
        /// The length claimed.
        bytes: u32,
        /// The protocol's limit, [`BODY_BYTES_MAX`].
        limit: u32,
    },
}

impl Header {
    /// The header as it goes over the wire, its own checksum included.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = VERSION;
        bytes[5] = self.opcode;
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.request_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.table.0.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.status.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.partition_hash.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.body_crc32c.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.map_version.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header: magic, then version, then checksum, then bounds.
    ///
    /// # Errors
    /// See [`HeaderError`]; the stream behind a refused header cannot be followed any further.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;

        if u32_at(0) != MAGIC {
            return Err(HeaderError::BadMagic { found: u32_at(0) });
        }
        if bytes[4] != VERSION {
            return Err(HeaderError::BadVersion { found: bytes[4] });
        }
        if crc32c::crc32c(&bytes[..44]) != u32_at(44) {
            return Err(HeaderError::BadChecksum);
        }
        if u16_at(22) != 0 {
            return Err(HeaderError::ReservedNotZero { found: u16_at(22) });
        }
        let header = Header {
            opcode: bytes[5],
            flags: u16_at(6),
            request_id: u64_at(8),
            table: TableId(u32_at(16)),
            status: u16_at(20),
            partition_hash: u64_at(24),
            body_bytes: u32_at(32),
            body_crc32c: u32_at(36),
            map_version: u32_at(40),
        };
        if header.body_bytes > BODY_BYTES_MAX {
            return Err(HeaderError::BodyTooLarge { bytes: header.body_bytes, limit: BODY_BYTES_MAX });
        }
        Ok(header)
    }

    /// Whether the frame is a reply.
    pub fn is_response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// The consistency a request asks for.
    pub fn consistency(&self) -> Consistency {
        match self.flags & FLAGS_CONSISTENCY {
            1 => Consistency::Linearizable,
            2 => Consistency::Sequential,
            3 => Consistency::Eventual,
            _ => Consistency::TableDefault,
        }
    }

    /// The flag bits of a request that this version gives no meaning.
    pub(super) fn unknown_request_flags(&self) -> u16 {
        self.flags & !(FLAG_RESPONSE | FLAGS_CONSISTENCY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fields::hex;
    use expect_test::expect;
    use proptest::prelude::*;

    fn request() -> Header {
        Header {
            opcode: Opcode::Get as u8,
            flags: Consistency::Eventual as u16,
            request_id: 0x0102_0304_0506_0708,
            table: TableId(1),
            status: 0,
            partition_hash: 0xfedc_ba98_7654_3210,
            body_bytes: 9,
            body_crc32c: 0xaabb_ccdd,
            map_version: 7,
        }
    }

    #[test]
    fn golden_header() {
        expect![[r#"
            54 52 4e 45 01 10 03 00 08 07 06 05 04 03 02 01
            01 00 00 00 00 00 00 00 10 32 54 76 98 ba dc fe
            09 00 00 00 dd cc bb aa 07 00 00 00 fd 53 f0 e5"#]]
        .assert_eq(&hex(&request().encode()));
    }

    #[test]
    fn every_field_survives() {
        let header = request();
        let back = Header::decode(&header.encode()).unwrap();
        assert_eq!(back, header);
        assert_eq!(back.consistency(), Consistency::Eventual);
        assert!(!back.is_response());
    }

    #[test]
    fn each_damage_has_its_own_error() {
        let good = request().encode();
        let broken = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Header::decode(&bytes).unwrap_err()
        };
        assert!(matches!(broken(0, b'H'), HeaderError::BadMagic { .. }));
        assert_eq!(broken(4, 2), HeaderError::BadVersion { found: 2 });
        assert_eq!(broken(40, 8), HeaderError::BadChecksum);
        assert_eq!(broken(47, !good[47]), HeaderError::BadChecksum);

        let large = Header { body_bytes: BODY_BYTES_MAX + 1, ..request() };
        assert_eq!(
            Header::decode(&large.encode()),
            Err(HeaderError::BodyTooLarge { bytes: BODY_BYTES_MAX + 1, limit: BODY_BYTES_MAX })
        );
        let largest = Header { body_bytes: BODY_BYTES_MAX, ..request() };
        assert_eq!(Header::decode(&largest.encode()), Ok(largest));

        let mut reserved = good;
        reserved[22] = 1;
        let checksum = crc32c::crc32c(&reserved[..44]);
        reserved[44..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&reserved), Err(HeaderError::ReservedNotZero { found: 1 }));
    }

    #[test]
    fn opcodes_and_numbers_agree() {
        let known: Vec<(u8, &str)> =
            (0..=255).filter_map(|n| Opcode::from_u8(n).map(|op| (op as u8, op.name()))).collect();
        expect![[r#"[(1, "ping"), (2, "topology"), (3, "status"), (16, "get"), (17, "put"), (18, "delete"), (19, "scan"), (20, "batch"), (21, "multi-get"), (22, "session-open")]"#]].assert_eq(&format!("{known:?}"));
    }

    proptest! {
        #[test]
        fn any_header_survives(
            opcode: u8, flags: u16, request_id: u64, table: u32, status: u16, partition_hash: u64,
            body_bytes in 0..=BODY_BYTES_MAX, body_crc32c: u32, map_version: u32,
        ) {
            let header = Header {
                opcode, flags, request_id, table: TableId(table), status, partition_hash, body_bytes,
                body_crc32c, map_version,
            };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn a_flipped_bit_is_never_accepted(bit in 0usize..HEADER_BYTES * 8) {
            let mut bytes = request().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&bytes).is_err());
        }
    }
}
