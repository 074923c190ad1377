//! What the shards of different nodes say to each other.

use bytes::{Bytes, BytesMut};
use terrane_raft::{Body, EntryKind, EntryMeta, Message, Stamp, Time};
use terrane_server::cluster::NodeId;
use terrane_server::peer::codec::{
    ANSWER_BYTES, Answer, BATCH_HEADER_BYTES, BatchHeader, Envelope, HELLO_BYTES, Hello, PEER_VERSION,
    Verdict, decode_batch, encode_batch,
};

use crate::seal;

/// More than any input has.
const LIMIT_BYTES: u64 = 64 << 20;

/// A hello, and the answer to one.
pub(crate) fn handshake(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for sealed in [false, true] {
        if sealed {
            seal(&mut bytes, HELLO_BYTES - 4);
        }
        if let Some(Ok(hello)) = bytes.first_chunk().map(Hello::decode) {
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
        if sealed {
            seal(&mut bytes, ANSWER_BYTES - 4);
        }
        if let Some(Ok(answer)) = bytes.first_chunk().map(Answer::decode) {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }
}

/// A batch of messages, its lengths and checksums as they are and made right.
pub(crate) fn batch(bytes: &[u8]) {
    check(bytes);
    let mut sealed = bytes.to_vec();
    let Some((header, body)) = sealed.split_first_chunk_mut::<BATCH_HEADER_BYTES>() else { return };
    let claimed = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let (meta, payload) = body.split_at(claimed.min(body.len()));
    let numbers = [meta.len() as u32, payload.len() as u32, crc32c::crc32c(meta), crc32c::crc32c(payload)];
    for (place, number) in header[4..20].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    seal(header, 20);
    check(&sealed);
}

fn check(bytes: &[u8]) {
    let Some(Ok(header)) = bytes.first_chunk().map(|bytes| BatchHeader::decode(bytes, LIMIT_BYTES)) else {
        return;
    };
    let Some(body) = bytes.get(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.body_bytes()) else { return };
    let Ok(deliveries) = decode_batch(&header, BytesMut::from(body)) else { return };
    let envelopes = deliveries.iter().map(|delivery| delivery.envelope.clone()).collect();
    let payloads: Vec<Bytes> = deliveries.iter().flat_map(|delivery| delivery.payloads.clone()).collect();
    let mut out = Vec::new();
    encode_batch(&envelopes, &payloads, &mut out);
    let header = BatchHeader::decode(out.first_chunk().expect("a header"), LIMIT_BYTES).expect("sound");
    let again = decode_batch(&header, BytesMut::from(&out[BATCH_HEADER_BYTES..]));
    assert_eq!(again, Ok(deliveries));
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        version: PEER_VERSION,
        cluster: 1,
        from: NodeId(1),
        to: NodeId(2),
        shard: 3,
        shards: 4,
        epoch: 5,
        agreement: 6,
    };
    let answer = Answer { version: PEER_VERSION, verdict: Verdict::OtherNode, epoch: 9 };
    let entry = |bytes| EntryMeta { term: 3, bytes, kind: EntryKind::Ops };
    let body = Body::Append {
        prev_index: 7,
        prev_term: 3,
        commit: 5,
        leader_last: 9,
        stamp: Stamp { sent_at: Time(11), round: 2 },
        entries: vec![entry(3), entry(0)],
    };
    let envelope = |group, body| Envelope { group, from: 1, to: 2, message: Message { term: 3, body } };
    let envelopes = vec![envelope(10, body), envelope(11, Body::TimeoutNow)];
    let mut batch = Vec::new();
    encode_batch(&envelopes, &[Bytes::from_static(b"one"), Bytes::new()], &mut batch);
    vec![
        ("peer_handshake", hello.encode().to_vec()),
        ("peer_handshake", answer.encode().to_vec()),
        ("peer_batch", batch),
    ]
}
