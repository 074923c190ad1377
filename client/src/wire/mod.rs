//! The client's wire format, without any I/O.
//!
//! **What.** Every message is one *frame*: a fixed 48-byte little-endian [`Header`], then a body whose layout
//! the header's opcode (and, in a reply, its status) decides. [`FrameDecoder`] cuts a byte stream into frames;
//! [`Request`] and [`Response`] are the bodies. `docs/protocol.md` describes the same bytes for writers of other
//! clients; the golden tests beside each codec are what both are held to.
//!
//! **Why sans-IO.** The async client runs on tokio, the server on its own reactor and the simulator on virtual
//! time: all three speak through this one codec.
//!
//! **Invariants**
//! - Nothing a peer sends can panic here, and no length it claims is allocated before the bytes are there.
//! - Decoded keys and values are slices of the received buffer: they keep that whole buffer alive, so what is
//!   kept for long must be copied out.
//! - Requests are read strictly (an unknown flag, a reserved field that is set, or a trailing byte is an error:
//!   the sender asked for something this side does not know). Replies are read tolerantly (bytes behind the
//!   known fields are skipped), so that a newer server does not break an older client.

mod error_reply;
mod fields;
mod frame;
mod header;
mod request;
mod response;
mod statistics;
mod topology;

pub use error_reply::{ErrorReply, StatusCode};
pub use frame::{FrameDecoder, FrameError};
pub use header::{
    BODY_BYTES_MAX, Consistency, FLAG_RESPONSE, HEADER_BYTES, Header, HeaderError, MAGIC, Opcode, VERSION,
};
pub use request::{
    Condition, KEY_BYTES_MAX, Request, RequestHead, VALUE_BYTES_MAX, encode_delete, encode_get, encode_put,
    encode_scan, put_body_bytes,
};
pub use response::{Response, Row, RowsEncoder, encode_connection_error, encode_value, row_bytes};
pub use statistics::{GroupStatus, NodeStatus, ReplicaRole};
pub use topology::{NodeId, NodeInfo, PartitionInfo, TableId, TableInfo, Topology};

/// The hash that places a key: XXH3, 64 bits, seed 0, default secret, over the key's bytes.
///
/// It is part of the protocol: the same in every version and language.
pub fn partition_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The partition that `hash` falls into, of `partitions` (a power of two): its highest `log2(partitions)` bits.
///
/// # Panics
/// When `partitions` is not a power of two. Counts from the network are checked when a [`Topology`] is decoded.
pub fn partition_of_hash(hash: u64, partitions: u32) -> u32 {
    assert!(partitions.is_power_of_two(), "a table has 2^n partitions, not {partitions}");
    match partitions.trailing_zeros() {
        0 => 0,
        // At most 31 bits remain, so the cast loses nothing.
        bits => (hash >> (64 - bits)) as u32,
    }
}

/// The lowest hash of a partition: what a request addressed to a whole partition (scan) carries in its header.
///
/// # Panics
/// When `partitions` is not a power of two, or `partition` is not below it.
pub fn first_hash_of(partition: u32, partitions: u32) -> u64 {
    assert!(partitions.is_power_of_two(), "a table has 2^n partitions, not {partitions}");
    assert!(partition < partitions, "partition {partition} of {partitions}");
    match partitions.trailing_zeros() {
        0 => 0,
        bits => u64::from(partition) << (64 - bits),
    }
}

/// Why a body could not be read. The frame around it was sound (its checksums matched), so the connection
/// can go on: the sender is told with [`DecodeError::to_reply`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No operation has this number.
    #[error("no operation has opcode {opcode}")]
    UnknownOpcode {
        /// The number received.
        opcode: u8,
    },
    /// The operation has a number and a name but is not served.
    #[error("the operation {what} is not supported by this version")]
    Unsupported {
        /// The operation's name, as in [`Opcode::name`].
        what: &'static str,
    },
    /// A reply came where a request belongs.
    #[error("expected a request, got a response")]
    NotARequest,
    /// A request came where a reply belongs.
    #[error("expected a response, got a request")]
    NotAResponse,
    /// The header's flags hold bits this version gives no meaning.
    #[error("unknown flag bits {flags:#06x}")]
    UnknownFlags {
        /// The bits nobody knows.
        flags: u16,
    },
    /// A request's status or a reserved field is not zero.
    #[error("{field} must be zero")]
    ReservedNotZero {
        /// Which field.
        field: &'static str,
    },
    /// The body ends inside a field.
    #[error("the body ends inside {field}")]
    Truncated {
        /// The field that did not fit.
        field: &'static str,
    },
    /// The body goes on after its last field.
    #[error("{bytes} bytes follow the end of the body's last field")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// Keys have at least one byte.
    #[error("a key must have at least one byte")]
    EmptyKey,
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("the key has {bytes} bytes, the limit is {limit}")]
    KeyTooLarge {
        /// The key's length.
        bytes: u64,
        /// [`KEY_BYTES_MAX`].
        limit: u32,
    },
    /// The header's partition hash is not the hash of the body's key.
    #[error("the header's partition hash is not the key's hash")]
    HashMismatch,
    /// A field holds a value that means nothing.
    #[error("{field} holds the meaningless value {value}")]
    BadValue {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: u64,
    },
    /// A text field is not UTF-8.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// Which field.
        field: &'static str,
    },
}

impl DecodeError {
    /// What a server answers to a request it could not read.
    pub fn to_reply(&self) -> ErrorReply {
        match self {
            DecodeError::UnknownOpcode { opcode } => ErrorReply::UnknownOpcode { opcode: *opcode },
            DecodeError::Unsupported { what } => ErrorReply::Unsupported { what: (*what).to_owned() },
            DecodeError::KeyTooLarge { limit, .. } => ErrorReply::KeyTooLarge { limit: *limit },
            other => ErrorReply::Malformed { why: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_xxh3_64_with_seed_zero_and_default_secret() {
        // The empty input's is the value that XXH3's own test vectors give; all are what other clients must match.
        assert_eq!(partition_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(partition_hash(b"user1"), 0xeff8_9d01_8b2a_ae9c);
        assert_eq!(partition_hash(b"hello"), 0x9555_e855_5c62_dcfd);
    }

    #[test]
    fn partitions_are_the_highest_bits() {
        assert_eq!(partition_of_hash(u64::MAX, 1), 0);
        assert_eq!(partition_of_hash(u64::MAX, 2), 1);
        assert_eq!(partition_of_hash(0x7fff_ffff_ffff_ffff, 2), 0);
        assert_eq!(partition_of_hash(0xa123_4567_89ab_cdef, 16), 0xa);
        assert_eq!(partition_of_hash(u64::MAX, 1 << 31), (1 << 31) - 1);
    }

    #[test]
    fn the_first_hash_of_a_partition_lies_in_it_and_its_predecessor_does_not() {
        for bits in 0..=10 {
            let partitions = 1u32 << bits;
            for partition in 0..partitions {
                let first = first_hash_of(partition, partitions);
                assert_eq!(partition_of_hash(first, partitions), partition);
                if partition > 0 {
                    assert_eq!(partition_of_hash(first - 1, partitions), partition - 1);
                }
            }
        }
    }
}
