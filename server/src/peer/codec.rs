//! What shards of different nodes say to each other: a hello, its answer, then batches of Raft messages.
//!
//! ```text
//! hello   | magic u32 | version u16 | 0 u16 | cluster u128 | from node u32 | to node u32 | shard u32 | shards u32 | boot epoch u32 | agreement u64 | crc32c u32 |
//! answer  | magic u32 | version u16 | verdict u16 | boot epoch u32 | crc32c u32 |
//! batch   | magic u32 | meta bytes u32 | payload bytes u32 | meta crc32c u32 | payload crc32c u32 | header crc32c u32 | meta | payload |
//! ```
//! All numbers little-endian. `meta` is an rkyv archive of `Vec<Envelope>`; `payload` holds the payloads of
//! the envelopes' entries, one after the other, in the order of the envelopes and their entries: Raft
//! messages know the length of each.
//!
//! Nodes of one cluster run one version of this format; the hello refuses any other. What a peer says is
//! checked like anything else from outside: bad bytes are an error that closes the link.

use bytes::{Bytes, BytesMut};
use rkyv::util::AlignedVec;
use terrane_raft::Message;

use crate::cluster::NodeId;

/// First bytes of a hello; never those of a client's frame.
pub const HELLO_MAGIC: u32 = u32::from_le_bytes(*b"TRNP");
const ANSWER_MAGIC: u32 = u32::from_le_bytes(*b"TRNA");
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"TRNB");
/// Version of everything in this file.
pub const PEER_VERSION: u16 = 1;
/// Bytes of an encoded [`Hello`].
pub const HELLO_BYTES: usize = 56;
/// Bytes of an encoded [`Answer`].
pub const ANSWER_BYTES: usize = 16;
/// Bytes of an encoded [`BatchHeader`].
pub const BATCH_HEADER_BYTES: usize = 24;

const _: () = assert!(HELLO_BYTES == 4 + 2 + 2 + 16 + 4 * 5 + 8 + 4);

/// Why bytes of a peer were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerDecodeError {
    /// The bytes are not what this place of the stream calls for.
    #[error("not a {0}: wrong magic")]
    Magic(&'static str),
    /// A checksum does not match.
    #[error("checksum of the {0} does not match")]
    Checksum(&'static str),
    /// Longer than this node accepts.
    #[error("a batch of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// As announced.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The archive of messages is damaged.
    #[error("the messages of a batch cannot be read: {0}")]
    Archive(String),
    /// Entry lengths and payload bytes disagree.
    #[error("payload of {payload} bytes for entries of {entries} bytes")]
    Payload {
        /// Bytes that the entries announce.
        entries: u64,
        /// Bytes that are there.
        payload: u64,
    },
}

/// The first thing a dialling shard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Version of the peer format.
    pub version: u16,
    /// Cluster the sender belongs to.
    pub cluster: u128,
    /// Who speaks.
    pub from: NodeId,
    /// Whom it wants.
    pub to: NodeId,
    /// Shard number on both sides.
    pub shard: u32,
    /// Shards of the sender's node.
    pub shards: u32,
    /// Start counter of the sender's shard: a new one means that it restarted.
    pub epoch: u32,
    /// Hash of what all nodes' configurations must agree on.
    pub agreement: u64,
}

impl Hello {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut out = [0; HELLO_BYTES];
        out[0..4].copy_from_slice(&HELLO_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[8..24].copy_from_slice(&self.cluster.to_le_bytes());
        for (k, n) in [self.from.0, self.to.0, self.shard, self.shards, self.epoch].into_iter().enumerate() {
            out[24 + 4 * k..28 + 4 * k].copy_from_slice(&n.to_le_bytes());
        }
        out[44..52].copy_from_slice(&self.agreement.to_le_bytes());
        let crc = crc32c::crc32c(&out[..52]);
        out[52..56].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a hello.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, PeerDecodeError> {
        if le32(bytes, 0) != HELLO_MAGIC {
            return Err(PeerDecodeError::Magic("hello"));
        }
        if le32(bytes, 52) != crc32c::crc32c(&bytes[..52]) {
            return Err(PeerDecodeError::Checksum("hello"));
        }
        Ok(Self {
            version: u16::from_le_bytes([bytes[4], bytes[5]]),
            cluster: u128::from_le_bytes(bytes[8..24].try_into().expect("16 bytes")),
            from: NodeId(le32(bytes, 24)),
            to: NodeId(le32(bytes, 28)),
            shard: le32(bytes, 32),
            shards: le32(bytes, 36),
            epoch: le32(bytes, 40),
            agreement: u64::from_le_bytes(bytes[44..52].try_into().expect("8 bytes")),
        })
    }
}

/// What the accepting shard thinks of a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Batches may follow.
    Welcome,
    /// The accepting node belongs to another cluster.
    OtherCluster,
    /// The accepting node, or the node that calls, is not the one configured at this address.
    OtherNode,
    /// The configurations differ where all nodes must agree, or the shard is not this one.
    OtherConfiguration,
    /// The nodes speak different versions.
    OtherVersion,
}

impl Verdict {
    const ALL: [Verdict; 5] =
        [Self::Welcome, Self::OtherCluster, Self::OtherNode, Self::OtherConfiguration, Self::OtherVersion];
}

/// The reply to a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Version of the accepting side.
    pub version: u16,
    /// Whether batches may follow.
    pub verdict: Verdict,
    /// Start counter of the accepting shard.
    pub epoch: u32,
}

impl Answer {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let mut out = [0; ANSWER_BYTES];
        out[0..4].copy_from_slice(&ANSWER_MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&(self.verdict as u16).to_le_bytes());
        out[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        let crc = crc32c::crc32c(&out[..12]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8; ANSWER_BYTES]) -> Result<Self, PeerDecodeError> {
        if le32(bytes, 0) != ANSWER_MAGIC {
            return Err(PeerDecodeError::Magic("answer to a hello"));
        }
        if le32(bytes, 12) != crc32c::crc32c(&bytes[..12]) {
            return Err(PeerDecodeError::Checksum("answer to a hello"));
        }
        let verdict = u16::from_le_bytes([bytes[6], bytes[7]]);
        let verdict =
            *Verdict::ALL.get(usize::from(verdict)).ok_or(PeerDecodeError::Magic("known verdict"))?;
        Ok(Self { version: u16::from_le_bytes([bytes[4], bytes[5]]), verdict, epoch: le32(bytes, 8) })
    }
}

/// One Raft message on its way between two replicas.
#[derive(Debug, Clone, PartialEq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Envelope {
    /// Group of both replicas.
    pub group: u64,
    /// Peer id of the sender.
    pub from: u64,
    /// Peer id of the receiver.
    pub to: u64,
    /// What it says.
    pub message: Message,
}

impl Envelope {
    /// Bytes of all payloads. A size that the sender did not know counts as what it says, and so is refused.
    fn entry_bytes(&self) -> u64 {
        match self.message.entries_range() {
            Some((_, entries)) => entries.iter().map(|entry| u64::from(entry.bytes)).sum(),
            None => 0,
        }
    }
}

/// Start of a batch on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    meta_bytes: u32,
    payload_bytes: u32,
    meta_crc: u32,
    payload_crc: u32,
}

impl BatchHeader {
    /// Reads a header; `limit` bounds the bytes that may follow it.
    pub fn decode(bytes: &[u8; BATCH_HEADER_BYTES], limit: u64) -> Result<Self, PeerDecodeError> {
        if le32(bytes, 0) != BATCH_MAGIC {
            return Err(PeerDecodeError::Magic("batch"));
        }
        if le32(bytes, 20) != crc32c::crc32c(&bytes[..20]) {
            return Err(PeerDecodeError::Checksum("batch header"));
        }
        let header = Self {
            meta_bytes: le32(bytes, 4),
            payload_bytes: le32(bytes, 8),
            meta_crc: le32(bytes, 12),
            payload_crc: le32(bytes, 16),
        };
        if header.body_bytes() as u64 > limit {
            return Err(PeerDecodeError::TooLarge { bytes: header.body_bytes() as u64, limit });
        }
        Ok(header)
    }

    /// Bytes after the header.
    pub fn body_bytes(&self) -> usize {
        self.meta_bytes as usize + self.payload_bytes as usize
    }
}

/// Appends one batch to `out`. `payloads` are those of all entries of all envelopes, in order.
pub fn encode_batch(envelopes: &Vec<Envelope>, payloads: &[Bytes], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + BATCH_HEADER_BYTES, 0);
    let meta = rkyv::to_bytes::<rkyv::rancor::Error>(envelopes).expect("messages in memory always archive");
    out.extend_from_slice(&meta);
    let payload_start = out.len();
    for payload in payloads {
        out.extend_from_slice(payload);
    }
    let lengths =
        [meta.len(), out.len() - payload_start].map(|n| u32::try_from(n).expect("batches are bounded"));
    let crcs = [crc32c::crc32c(&meta), crc32c::crc32c(&out[payload_start..])];
    let header = &mut out[start..start + BATCH_HEADER_BYTES];
    for (k, n) in [BATCH_MAGIC, lengths[0], lengths[1], crcs[0], crcs[1]].into_iter().enumerate() {
        header[4 * k..4 * k + 4].copy_from_slice(&n.to_le_bytes());
    }
    let crc = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&crc.to_le_bytes());
}

/// A message with the payloads of its entries, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The message.
    pub envelope: Envelope,
    /// One for each entry it appends.
    pub payloads: Vec<Bytes>,
}

/// Reads the body of a batch. Payloads are slices of `body`: nothing is copied.
pub fn decode_batch(header: &BatchHeader, mut body: BytesMut) -> Result<Vec<Delivery>, PeerDecodeError> {
    assert_eq!(body.len(), header.body_bytes(), "the caller reads as many bytes as the header says");
    let meta = body.split_to(header.meta_bytes as usize);
    let mut payload = body.freeze();
    if crc32c::crc32c(&meta) != header.meta_crc {
        return Err(PeerDecodeError::Checksum("messages of a batch"));
    }
    if crc32c::crc32c(&payload) != header.payload_crc {
        return Err(PeerDecodeError::Checksum("payloads of a batch"));
    }
    let mut aligned: AlignedVec = AlignedVec::with_capacity(meta.len());
    aligned.extend_from_slice(&meta);
    let envelopes = rkyv::from_bytes::<Vec<Envelope>, rkyv::rancor::Error>(&aligned)
        .map_err(|error| PeerDecodeError::Archive(error.to_string()))?;
    let entries = envelopes.iter().map(Envelope::entry_bytes).sum();
    if entries != payload.len() as u64 {
        return Err(PeerDecodeError::Payload { entries, payload: payload.len() as u64 });
    }
    let deliveries = envelopes.into_iter().map(|envelope| {
        let payloads = match envelope.message.entries_range() {
            Some((_, entries)) => {
                entries.iter().map(|entry| payload.split_to(entry.bytes as usize)).collect()
            }
            None => Vec::new(),
        };
        Delivery { envelope, payloads }
    });
    Ok(deliveries.collect())
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use terrane_raft::{Body, EntryKind, EntryMeta, Stamp, Time};

    fn hex(bytes: &[u8]) -> String {
        bytes
            .chunks(16)
            .map(|row| row.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
            .collect()
    }

    fn hello() -> Hello {
        Hello {
            version: PEER_VERSION,
            cluster: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            from: NodeId(1),
            to: NodeId(2),
            shard: 3,
            shards: 4,
            epoch: 5,
            agreement: 0x1122_3344_5566_7788,
        }
    }

    #[test]
    fn golden_hello_and_answer() {
        expect![[r#"
            54524e5001000000100f0e0d0c0b0a09
            08070605040302010100000002000000
            03000000040000000500000088776655
            44332211097eb36f
        "#]]
        .assert_eq(&hex(&hello().encode()));
        assert_eq!(Hello::decode(&hello().encode()), Ok(hello()));
        let answer = Answer { version: PEER_VERSION, verdict: Verdict::OtherNode, epoch: 9 };
        expect![[r#"
            54524e41010002000900000052abadc1
        "#]]
        .assert_eq(&hex(&answer.encode()));
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }

    #[test]
    fn every_flipped_bit_of_a_hello_is_noticed() {
        let good = hello().encode();
        for bit in 0..8 * HELLO_BYTES {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Hello::decode(&bad).is_err() || bit / 8 >= 6 && bit / 8 < 8, "bit {bit}");
        }
    }

    fn append(entries: &[u32]) -> Message {
        let entry = |&bytes| EntryMeta { term: 3, bytes, kind: EntryKind::Ops };
        let body = Body::Append {
            prev_index: 7,
            prev_term: 3,
            commit: 5,
            leader_last: 9,
            stamp: Stamp { sent_at: Time(11), round: 2 },
            entries: entries.iter().map(entry).collect(),
        };
        Message { term: 3, body }
    }

    fn batch() -> (Vec<Envelope>, Vec<Bytes>) {
        let envelope = |group, message| Envelope { group, from: 1, to: 2, message };
        let envelopes = vec![
            envelope(10, append(&[3, 0])),
            envelope(11, Message { term: 4, body: Body::TimeoutNow }),
            envelope(12, append(&[5])),
        ];
        (envelopes, ["one", "", "three"].map(|text| Bytes::from_static(text.as_bytes())).to_vec())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Delivery>, PeerDecodeError> {
        let header = BatchHeader::decode(bytes[..BATCH_HEADER_BYTES].try_into().unwrap(), 1 << 20)?;
        let body = bytes.get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.body_bytes());
        decode_batch(&header, BytesMut::from(body.expect("the header is sound, so is the length")))
    }

    #[test]
    fn payloads_find_their_entries_again() {
        let (envelopes, payloads) = batch();
        let mut out = Vec::new();
        encode_batch(&envelopes, &payloads, &mut out);
        let deliveries = decode(&out).unwrap();
        let messages: Vec<_> = deliveries.iter().map(|delivery| delivery.envelope.clone()).collect();
        assert_eq!(messages, envelopes);
        let found: Vec<_> = deliveries.iter().map(|delivery| delivery.payloads.len()).collect();
        assert_eq!(found, [2, 0, 1]);
        assert_eq!(deliveries[0].payloads[0], "one");
        assert_eq!(deliveries[2].payloads[0], "three");
    }

    #[test]
    fn every_flipped_bit_of_a_batch_is_noticed() {
        let (envelopes, payloads) = batch();
        let mut out = Vec::new();
        encode_batch(&envelopes, &payloads, &mut out);
        for bit in 0..8 * out.len() {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn sound_checksums_over_a_lie_are_refused() {
        let (envelopes, mut payloads) = batch();
        payloads.pop();
        let mut out = Vec::new();
        encode_batch(&envelopes, &payloads, &mut out);
        assert_eq!(decode(&out), Err(PeerDecodeError::Payload { entries: 8, payload: 3 }));
        // An archive that is no archive, under a correct checksum.
        for seed in 0..=255_u8 {
            let meta: Vec<u8> = (0..64_u8).map(|k| k.wrapping_mul(seed).wrapping_add(seed)).collect();
            let header = BatchHeader {
                meta_bytes: 64,
                payload_bytes: 0,
                meta_crc: crc32c::crc32c(&meta),
                payload_crc: crc32c::crc32c(&[]),
            };
            // Whatever it says, it neither panics nor invents payloads.
            if let Ok(deliveries) = decode_batch(&header, BytesMut::from(&meta[..])) {
                assert!(deliveries.iter().all(|delivery| delivery.payloads.is_empty()));
            }
        }
    }

    #[test]
    fn a_batch_beyond_the_limit_is_refused_before_it_is_read() {
        let (envelopes, payloads) = batch();
        let mut out = Vec::new();
        encode_batch(&envelopes, &payloads, &mut out);
        let header = out[..BATCH_HEADER_BYTES].try_into().unwrap();
        assert!(matches!(BatchHeader::decode(&header, 8), Err(PeerDecodeError::TooLarge { limit: 8, .. })));
    }
}
