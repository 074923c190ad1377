//! Cutting a byte stream into frames.
//!
//! **Invariants**
//! - A body is handed out only after its checksum matched; it is split off the input buffer, never copied.
//! - The decoder allocates nothing: a claimed length costs memory only as its bytes arrive, and a body beyond the
//!   limit is discarded as it arrives.
//! - After a fatal error every further call returns that error: the stream is lost.

use super::{BODY_BYTES_MAX, ErrorReply, HEADER_BYTES, Header, HeaderError};
use bytes::{Buf, Bytes, BytesMut};

/// What is wrong with the next frame of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The header cannot be followed. Fatal.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The body does not match its checksum. Fatal.
    #[error("the body's checksum does not match: damaged in transit")]
    BadBodyChecksum {
        /// The damaged frame's header.
        header: Header,
    },
    /// The body is larger than this side accepts. **Not** fatal: its bytes are skipped as they arrive, and the
    /// next frame can be read.
    #[error("the body has {} bytes, the limit is {limit}", .header.body_bytes)]
    BodyTooLarge {
        /// The header of the frame that is skipped, so that its request can be answered.
        header: Header,
        /// Most bytes of body that this decoder accepts.
        limit: u32,
    },
}

impl FrameError {
    /// Whether the stream is lost (close the connection) or only this frame.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, FrameError::BodyTooLarge { .. })
    }

    /// What a server tells the peer, before it closes if the error is fatal.
    pub fn to_reply(&self) -> ErrorReply {
        match self {
            FrameError::Header(HeaderError::BadVersion { .. }) => {
                ErrorReply::VersionMismatch { supported: super::VERSION }
            }
            FrameError::BodyTooLarge { limit, .. }
            | FrameError::Header(HeaderError::BodyTooLarge { limit, .. }) => {
                ErrorReply::TooLarge { limit: *limit }
            }
            other => ErrorReply::Malformed { why: other.to_string() },
        }
    }
}

/// An incremental decoder for one direction of one connection. The caller owns the buffer and fills it by
/// whatever means its runtime has.
///
/// ```
/// use bytes::BytesMut;
/// use terrane_client::wire::{FrameDecoder, Opcode, Request, RequestHead};
///
/// let mut sent = Vec::new();
/// Request::Ping.encode(&RequestHead { request_id: 7, ..RequestHead::default() }, &mut sent);
///
/// let mut decoder = FrameDecoder::new(4 << 20);
/// let mut input = BytesMut::new();
/// input.extend_from_slice(&sent[..20]);
/// assert_eq!(decoder.decode(&mut input), Ok(None)); // more bytes are needed
/// input.extend_from_slice(&sent[20..]);
/// let (header, body) = decoder.decode(&mut input).unwrap().unwrap();
/// assert_eq!((header.request_id, header.opcode), (7, Opcode::Ping as u8));
/// assert_eq!(Request::decode(&header, body), Ok(Request::Ping));
/// ```
#[derive(Debug)]
pub struct FrameDecoder {
    body_bytes_max: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The next bytes are a header.
    Header,
    /// The header is read, its body is not complete.
    Body(Header),
    /// So many bytes of an oversized body are still to be thrown away.
    Discarding(u32),
    /// The stream is lost.
    Lost(FrameError),
}

impl FrameDecoder {
    /// A decoder that accepts bodies of at most `body_bytes_max` bytes (no more than [`BODY_BYTES_MAX`]).
    pub fn new(body_bytes_max: u32) -> FrameDecoder {
        FrameDecoder { body_bytes_max: body_bytes_max.min(BODY_BYTES_MAX), state: State::Header }
    }

    /// Takes the next frame off the front of `input`. `Ok(None)`: it is not complete, read more and call again.
    /// Call until `Ok(None)`, as one read may bring many frames.
    ///
    /// # Errors
    /// See [`FrameError`]. After an error that is not [fatal](FrameError::is_fatal) decoding goes on.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<(Header, Bytes)>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(bytes) = input.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
                    let header = match Header::decode(bytes) {
                        Ok(header) => header,
                        Err(error) => return Err(self.lose(error.into())),
                    };
                    input.advance(HEADER_BYTES);
                    if header.body_bytes > self.body_bytes_max {
                        self.state = State::Discarding(header.body_bytes);
                        return Err(FrameError::BodyTooLarge { header, limit: self.body_bytes_max });
                    }
                    self.state = State::Body(header);
                }
                State::Body(header) => {
                    let bytes = header.body_bytes as usize;
                    if input.len() < bytes {
                        return Ok(None);
                    }
                    let body = input.split_to(bytes).freeze();
                    if crc32c::crc32c(&body) != header.body_crc32c {
                        return Err(self.lose(FrameError::BadBodyChecksum { header }));
                    }
                    self.state = State::Header;
                    return Ok(Some((header, body)));
                }
                State::Discarding(left) => {
                    let now = (left as usize).min(input.len());
                    input.advance(now);
                    // `now` is at most `left`, a u32.
                    let left = left - now as u32;
                    if left > 0 {
                        self.state = State::Discarding(left);
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::Lost(error) => return Err(error),
            }
        }
    }

    /// How many bytes beyond `input` the current frame still needs, at least: a hint for the size of the next
    /// read. 0 while an oversized body is thrown away. Bounded by the largest body accepted, so a reader that
    /// reserves it must do so knowing that the peer only *claims* to send that much.
    pub fn bytes_wanted(&self, input: &BytesMut) -> usize {
        match self.state {
            State::Header => HEADER_BYTES.saturating_sub(input.len()),
            State::Body(header) => (header.body_bytes as usize).saturating_sub(input.len()),
            State::Discarding(_) | State::Lost(_) => 0,
        }
    }

    /// Whether the stream stands between two frames, given what is left in `input`: an end of stream here is a
    /// close, anywhere else it cut a frame.
    pub fn is_idle(&self, input: &BytesMut) -> bool {
        matches!(self.state, State::Header) && input.is_empty()
    }

    fn lose(&mut self, error: FrameError) -> FrameError {
        self.state = State::Lost(error);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Opcode, Request, RequestHead, TableId};
    use proptest::prelude::*;

    fn put(request_id: u64, value_bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let request = Request::Put {
            key: Bytes::from_static(b"key"),
            value: vec![0x5a; value_bytes].into(),
            condition: Default::default(),
            expires_ms: 0,
        };
        let head = RequestHead { request_id, ..RequestHead::for_key(TableId(1), b"key") };
        request.encode(&head, &mut out);
        out
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let mut stream = Vec::new();
        for id in 1..=5 {
            stream.extend(put(id, id as usize * 100));
        }
        for step in [1, 7, 47, 48, 49, 1000, stream.len()] {
            let mut decoder = FrameDecoder::new(1 << 20);
            let mut input = BytesMut::new();
            let mut ids = Vec::new();
            for chunk in stream.chunks(step) {
                input.extend_from_slice(chunk);
                while let Some((header, body)) = decoder.decode(&mut input).unwrap() {
                    ids.push(header.request_id);
                    assert!(Request::decode(&header, body).is_ok());
                }
            }
            assert_eq!(ids, [1, 2, 3, 4, 5], "in steps of {step}");
            assert!(decoder.is_idle(&input));
        }
    }

    #[test]
    fn an_oversized_body_is_reported_at_once_skipped_and_survived() {
        let mut decoder = FrameDecoder::new(1000);
        let mut stream = put(1, 5000);
        stream.extend(put(2, 10));
        let mut input = BytesMut::from(&stream[..HEADER_BYTES]);
        let error = decoder.decode(&mut input).unwrap_err();
        assert!(!error.is_fatal());
        assert!(matches!(
            error,
            FrameError::BodyTooLarge { limit: 1000, header: Header { request_id: 1, .. } }
        ));
        assert_eq!(error.to_reply(), ErrorReply::TooLarge { limit: 1000 });
        for chunk in stream[HEADER_BYTES..].chunks(100) {
            // Nothing of the skipped body piles up.
            assert!(input.len() < 200);
            input.extend_from_slice(chunk);
            if let Some((header, _)) = decoder.decode(&mut input).unwrap() {
                assert_eq!(header.request_id, 2);
                return;
            }
        }
        panic!("the frame behind the oversized one was lost");
    }

    #[test]
    fn a_damaged_body_loses_the_stream() {
        let mut stream = put(9, 10);
        *stream.last_mut().unwrap() ^= 1;
        stream.extend(put(10, 10));
        let mut decoder = FrameDecoder::new(1000);
        let mut input = BytesMut::from(&stream[..]);
        let error = decoder.decode(&mut input).unwrap_err();
        assert!(error.is_fatal());
        assert!(matches!(error, FrameError::BadBodyChecksum { header: Header { request_id: 9, .. } }));
        assert_eq!(decoder.decode(&mut input), Err(error), "a lost stream stays lost");
    }

    #[test]
    fn another_version_is_answered_with_ours() {
        let mut stream = put(1, 1);
        stream[4] = 9;
        let error = FrameDecoder::new(1000).decode(&mut BytesMut::from(&stream[..])).unwrap_err();
        assert!(error.is_fatal());
        assert_eq!(error.to_reply(), ErrorReply::VersionMismatch { supported: 1 });
    }

    #[test]
    fn a_huge_claim_reserves_nothing() {
        let header = Header {
            opcode: Opcode::Put as u8,
            flags: 0,
            request_id: 1,
            table: TableId(1),
            status: 0,
            partition_hash: 0,
            body_bytes: BODY_BYTES_MAX,
            body_crc32c: 0,
            map_version: 0,
        };
        let mut input = BytesMut::from(&header.encode()[..]);
        let before = input.capacity();
        let mut decoder = FrameDecoder::new(BODY_BYTES_MAX);
        assert_eq!(decoder.decode(&mut input), Ok(None));
        assert_eq!(decoder.bytes_wanted(&input), BODY_BYTES_MAX as usize);
        assert!(input.capacity() <= before);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut input = BytesMut::from(&bytes[..]);
            let _ = FrameDecoder::new(1000).decode(&mut input);
        }

        #[test]
        fn a_mutated_stream_never_yields_what_was_not_sent(at in 0usize..300, byte: u8) {
            let mut stream = put(1, 100);
            stream.extend(put(2, 100));
            let at = at % stream.len();
            let sound = stream[at] == byte;
            stream[at] = byte;
            let mut decoder = FrameDecoder::new(1000);
            let mut input = BytesMut::from(&stream[..]);
            let mut frames = 0;
            let result = loop {
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => frames += 1,
                    other => break other,
                }
            };
            prop_assert_eq!(sound, frames == 2 && result == Ok(None));
        }
    }
}
