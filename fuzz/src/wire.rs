//! What clients and servers say to each other.

use bytes::{Bytes, BytesMut};
use terrane_client::wire::{
    BODY_BYTES_MAX, Condition, ErrorReply, FrameDecoder, HEADER_BYTES, Request, RequestHead, Response, Row,
    TableId,
};

use crate::seal;

/// A stream of frames; and its bytes as one frame, of which length and checksums are right.
pub(crate) fn frame(bytes: &[u8]) {
    check(bytes);
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let mut sealed = bytes.to_vec();
    let (header, body) = sealed.split_at_mut(HEADER_BYTES);
    header[32..36].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[36..40].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    seal(header, 44);
    check(&sealed);
}

fn check(bytes: &[u8]) {
    let mut decoder = FrameDecoder::new(BODY_BYTES_MAX);
    let mut input = BytesMut::from(bytes);
    loop {
        let _ = (decoder.bytes_wanted(&input), decoder.is_idle(&input));
        match decoder.decode(&mut input) {
            Ok(Some((header, body))) if header.is_response() => {
                if let Ok(response) = Response::decode(&header, body) {
                    let mut out = Vec::new();
                    response.encode(header.opcode, header.request_id, header.map_version, &mut out);
                    assert_eq!(
                        again(&out, |header, body| Response::decode(header, body).ok()),
                        Some(response)
                    );
                }
            }
            Ok(Some((header, body))) => {
                if let Ok(request) = Request::decode(&header, body) {
                    let mut out = Vec::new();
                    let (request_id, partition_hash) = (header.request_id, header.partition_hash);
                    request.encode(
                        &RequestHead { request_id, partition_hash, ..RequestHead::default() },
                        &mut out,
                    );
                    assert_eq!(again(&out, |header, body| Request::decode(header, body).ok()), Some(request));
                }
            }
            Ok(None) => return,
            Err(error) if error.is_fatal() => {
                let _ = (error.to_reply(), error.to_string());
                return;
            }
            Err(error) => _ = error.to_reply(),
        }
    }
}

fn again<T>(out: &[u8], decode: impl Fn(&terrane_client::wire::Header, Bytes) -> Option<T>) -> Option<T> {
    let (header, body) =
        FrameDecoder::new(BODY_BYTES_MAX).decode(&mut BytesMut::from(out)).expect("sound").expect("whole");
    decode(&header, body)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let key = Bytes::from_static(b"key");
    let value = Bytes::from_static(b"value");
    let requests = [
        Request::Ping,
        Request::Get { key: key.clone() },
        Request::Put { key: key.clone(), value: value.clone(), condition: Condition::Absent, expires_ms: 9 },
        Request::Delete { key: key.clone(), condition: Condition::Version(3) },
        Request::Scan { start: key.clone(), end: Bytes::new(), count_max: 3, bytes_max: 4 },
    ];
    let responses = [
        (16, Response::Value { version: 3, value: value.clone() }),
        (17, Response::Written { version: 4 }),
        (19, Response::Rows { rows: vec![Row { key: key.clone(), version: 5, value }], more: true }),
        (16, Response::Error(ErrorReply::Busy { retry_after_ms: 6 })),
    ];
    let mut seeds = Vec::new();
    for request in requests {
        let mut out = Vec::new();
        let head = RequestHead { request_id: 7, ..RequestHead::for_key(TableId(1), &key) };
        request.encode(&head, &mut out);
        seeds.push(out);
    }
    for (opcode, response) in responses {
        let mut out = Vec::new();
        response.encode(opcode, 7, 8, &mut out);
        seeds.push(out);
    }
    seeds
}
