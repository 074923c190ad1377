//! What an [`ENTRY_OPS`](crate::ENTRY_OPS) payload asks of the state machine: unconditional puts and deletes.
//!
//! ```text
//! op      = tag u8, key length, [value length], [raw length], [expiry u64 le], key, [value]
//! tag     = 1 put | 2 put with expiry | 3 delete | 4 put, compressed | 5 put with expiry, compressed
//! lengths = LEB128, shortest form, at most 5 bytes
//! ```
//!
//! A payload is a run of ops, applied in order. Every payload has exactly one reading, and its ops one writing (overlong
//! lengths are refused), so that replicas can be compared byte for byte.
//!
//! The value of a compressed put is stored as [`crate::compression`] says; the raw length is what a reader gets. It is checked
//! here as far as that is cheap: it is more than what is stored, and bounded. That the stored bytes decompress to it is seen
//! when they are read.

use bytes::Bytes;

use crate::compression::{RAW_BYTES_MAX, ValueCompressor};

/// The largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 64 * 1024;

const TAG_PUT: u8 = 1;
const TAG_PUT_EXPIRING: u8 = 2;
const TAG_DELETE: u8 = 3;
const TAG_PUT_COMPRESSED: u8 = 4;
const TAG_PUT_COMPRESSED_EXPIRING: u8 = 5;

/// One op of a payload. It borrows the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// The key has this value from now on.
    Put {
        /// The key, at most [`KEY_BYTES_MAX`] bytes.
        key: &'a [u8],
        /// The value, as it is stored.
        value: Stored<'a>,
        /// When it expires, in milliseconds of Unix time, stamped by the leader.
        expires_unix_ms: Option<u64>,
    },
    /// The key has no value from now on.
    Delete {
        /// The key, at most [`KEY_BYTES_MAX`] bytes.
        key: &'a [u8],
    },
}

/// A value as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<'a> {
    /// As it is.
    Raw(&'a [u8]),
    /// Compressed ([`crate::compression`]).
    Compressed {
        /// What is stored.
        stored: &'a [u8],
        /// Bytes of the raw value: more than are stored, at most [`RAW_BYTES_MAX`].
        raw_bytes: u32,
    },
}

impl Stored<'_> {
    /// Bytes of the raw value.
    pub fn raw_bytes(&self) -> usize {
        match self {
            Stored::Raw(value) => value.len(),
            Stored::Compressed { raw_bytes, .. } => *raw_bytes as usize,
        }
    }
}

impl<'a> Op<'a> {
    /// The key it is about.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    /// Bytes of key and raw value, as a user counts them.
    pub fn user_bytes(&self) -> u64 {
        match self {
            Op::Put { key, value, .. } => key.len() as u64 + value.raw_bytes() as u64,
            Op::Delete { key } => key.len() as u64,
        }
    }
}

/// Why a payload is not a run of ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The tag is none of the known ones.
    #[error("unknown op tag {0}")]
    Tag(u8),
    /// The payload ends within an op.
    #[error("the payload ends within an op")]
    Short,
    /// A length is not in its shortest form or exceeds 32 bits.
    #[error("a length is not a 32-bit number in its shortest form")]
    Length,
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("a key of {0} bytes exceeds the limit of {KEY_BYTES_MAX}")]
    Key(usize),
    /// The raw length of a compressed value is not more than what is stored (and something must be), or exceeds
    /// [`RAW_BYTES_MAX`].
    #[error("a value of {raw_bytes} bytes, of which {stored_bytes} are stored, is not a compressed one")]
    RawLength {
        /// The raw length.
        raw_bytes: u32,
        /// Bytes that are stored.
        stored_bytes: u32,
    },
}

/// Builds a payload of several ops.
#[derive(Debug, Default)]
pub struct OpsBuilder {
    bytes: Vec<u8>,
}

impl OpsBuilder {
    /// An empty payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a put.
    ///
    /// # Panics
    /// If the key exceeds [`KEY_BYTES_MAX`] or the value 4 GiB: the host checks what clients send.
    pub fn put(&mut self, key: &[u8], value: &[u8], expires_unix_ms: Option<u64>) -> &mut Self {
        self.put_stored(key, Stored::Raw(value), expires_unix_ms)
    }

    /// Adds a put whose value is stored compressed, if that is worth it ([`ValueCompressor::compress`]).
    ///
    /// # Panics
    /// As [`OpsBuilder::put`] does.
    pub fn put_compressed(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_unix_ms: Option<u64>,
        compressor: &mut ValueCompressor,
    ) -> &mut Self {
        let raw_bytes = value.len() as u32;
        let value = match compressor.compress(value) {
            Some(stored) => Stored::Compressed { stored, raw_bytes },
            None => Stored::Raw(value),
        };
        self.put_stored(key, value, expires_unix_ms)
    }

    /// Adds a put of a value as it is stored. Panics as [`OpsBuilder::put`] does.
    pub(crate) fn put_stored(
        &mut self,
        key: &[u8],
        value: Stored<'_>,
        expires_unix_ms: Option<u64>,
    ) -> &mut Self {
        let (tag, stored, raw_bytes) = match (value, expires_unix_ms) {
            (Stored::Raw(value), None) => (TAG_PUT, value, None),
            (Stored::Raw(value), Some(_)) => (TAG_PUT_EXPIRING, value, None),
            (Stored::Compressed { stored, raw_bytes }, None) => (TAG_PUT_COMPRESSED, stored, Some(raw_bytes)),
            (Stored::Compressed { stored, raw_bytes }, Some(_)) => {
                (TAG_PUT_COMPRESSED_EXPIRING, stored, Some(raw_bytes))
            }
        };
        self.bytes.reserve(put_bytes_max(key, stored));
        self.bytes.push(tag);
        push_key_length(&mut self.bytes, key);
        push_length(&mut self.bytes, u32::try_from(stored.len()).expect("a value is shorter than 4 GiB"));
        if let Some(raw_bytes) = raw_bytes {
            push_length(&mut self.bytes, raw_bytes);
        }
        if let Some(expires) = expires_unix_ms {
            self.bytes.extend_from_slice(&expires.to_le_bytes());
        }
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(stored);
        self
    }

    /// Adds a delete.
    ///
    /// # Panics
    /// If the key exceeds [`KEY_BYTES_MAX`].
    pub fn delete(&mut self, key: &[u8]) -> &mut Self {
        self.bytes.push(TAG_DELETE);
        push_key_length(&mut self.bytes, key);
        self.bytes.extend_from_slice(key);
        self
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no op yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The payload.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
}

/// A payload of one put. Panics as [`OpsBuilder::put`] does.
pub fn encode_put(key: &[u8], value: &[u8], expires_unix_ms: Option<u64>) -> Bytes {
    let mut builder = OpsBuilder { bytes: Vec::with_capacity(put_bytes_max(key, value)) };
    builder.put(key, value, expires_unix_ms);
    builder.finish()
}

/// A payload of one put whose value is stored compressed, if that is worth it. Panics as [`OpsBuilder::put`] does.
pub fn encode_put_compressed(
    key: &[u8],
    value: &[u8],
    expires_unix_ms: Option<u64>,
    compressor: &mut ValueCompressor,
) -> Bytes {
    let mut builder = OpsBuilder::new();
    builder.put_compressed(key, value, expires_unix_ms, compressor);
    builder.finish()
}

/// A payload of one delete. Panics as [`OpsBuilder::delete`] does.
pub fn encode_delete(key: &[u8]) -> Bytes {
    let mut builder = OpsBuilder::new();
    builder.delete(key);
    builder.finish()
}

/// Upper bound of a put's encoding, in bytes; a compressed one is shorter.
pub const fn put_bytes_max(key: &[u8], value: &[u8]) -> usize {
    1 + 5 + 5 + 5 + 8 + key.len() + value.len()
}

/// The ops of `payload`, in order. The iterator ends at the end of the payload or after the first error.
pub fn decode(payload: &[u8]) -> Ops<'_> {
    Ops { rest: payload }
}

/// Iterator over a payload's ops.
#[derive(Debug, Clone)]
pub struct Ops<'a> {
    rest: &'a [u8],
}

impl Ops<'_> {
    /// Bytes of the payload that were not read yet.
    pub(crate) fn rest_bytes(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, OpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let op = take_op(&mut self.rest);
        if op.is_err() {
            self.rest = &[];
        }
        Some(op)
    }
}

fn take_op<'a>(rest: &mut &'a [u8]) -> Result<Op<'a>, OpError> {
    let tag = take(rest, 1)?[0];
    match tag {
        TAG_PUT | TAG_PUT_EXPIRING | TAG_PUT_COMPRESSED | TAG_PUT_COMPRESSED_EXPIRING => {
            let key_length = take_key_length(rest)?;
            let stored_bytes = take_length(rest)?;
            let compressed = matches!(tag, TAG_PUT_COMPRESSED | TAG_PUT_COMPRESSED_EXPIRING);
            let raw_bytes = if compressed { Some(take_raw_length(rest, stored_bytes)?) } else { None };
            let expires_unix_ms = if matches!(tag, TAG_PUT_EXPIRING | TAG_PUT_COMPRESSED_EXPIRING) {
                let (bytes, tail) = rest.split_first_chunk::<8>().ok_or(OpError::Short)?;
                *rest = tail;
                Some(u64::from_le_bytes(*bytes))
            } else {
                None
            };
            let key = take(rest, key_length)?;
            let stored = take(rest, stored_bytes as usize)?;
            let value = match raw_bytes {
                Some(raw_bytes) => Stored::Compressed { stored, raw_bytes },
                None => Stored::Raw(stored),
            };
            Ok(Op::Put { key, value, expires_unix_ms })
        }
        TAG_DELETE => {
            let key_length = take_key_length(rest)?;
            Ok(Op::Delete { key: take(rest, key_length)? })
        }
        _ => Err(OpError::Tag(tag)),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], OpError> {
    let (head, tail) = rest.split_at_checked(count).ok_or(OpError::Short)?;
    *rest = tail;
    Ok(head)
}

fn take_key_length(rest: &mut &[u8]) -> Result<usize, OpError> {
    let length = take_length(rest)? as usize;
    if length > KEY_BYTES_MAX { Err(OpError::Key(length)) } else { Ok(length) }
}

/// The raw length of a compressed value of which so many bytes are stored.
fn take_raw_length(rest: &mut &[u8], stored_bytes: u32) -> Result<u32, OpError> {
    let raw_bytes = take_length(rest)?;
    match stored_bytes > 0 && raw_bytes > stored_bytes && raw_bytes <= RAW_BYTES_MAX {
        true => Ok(raw_bytes),
        false => Err(OpError::RawLength { raw_bytes, stored_bytes }),
    }
}

fn take_length(rest: &mut &[u8]) -> Result<u32, OpError> {
    let mut length = 0_u64;
    for position in 0..5 {
        let byte = take(rest, 1)?[0];
        length |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            // A last group of zeros would be a second spelling of the same number.
            if position > 0 && byte == 0 {
                return Err(OpError::Length);
            }
            return u32::try_from(length).map_err(|_| OpError::Length);
        }
    }
    Err(OpError::Length)
}

fn push_key_length(out: &mut Vec<u8>, key: &[u8]) {
    assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes exceeds the limit", key.len());
    push_length(out, key.len() as u32);
}

fn push_length(out: &mut Vec<u8>, mut length: u32) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// What a payload last says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Put { value: Stored<'a>, expires_unix_ms: Option<u64> },
    Deleted,
}

/// What `payload` last says of `key`: `None` if nothing.
pub(crate) fn last_said<'a>(payload: &'a [u8], key: &[u8]) -> Result<Option<Said<'a>>, OpError> {
    let mut said = None;
    for op in decode(payload) {
        match op? {
            Op::Put { key: at, value, expires_unix_ms } if at == key => {
                said = Some(Said::Put { value, expires_unix_ms });
            }
            Op::Delete { key: at } if at == key => said = Some(Said::Deleted),
            _ => {}
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{CompressionOptions, Decompressor};
    use crate::golden;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let mut builder = OpsBuilder::new();
        builder.put(b"key", b"value", None).put(b"k", b"", Some(0x0102_0304_0506_0708)).delete(b"gone");
        let value = Stored::Compressed { stored: b"less", raw_bytes: 300 };
        builder.put_stored(b"c", value, None).put_stored(b"d", value, Some(0x0102_0304_0506_0708));
        expect![[r#"
            0000  01 03 05 6b 65 79 76 61
            0008  6c 75 65 02 01 00 08 07
            0016  06 05 04 03 02 01 6b 03
            0024  04 67 6f 6e 65 04 01 04
            0032  ac 02 63 6c 65 73 73 05
            0040  01 04 ac 02 08 07 06 05
            0048  04 03 02 01 64 6c 65 73
            0056  73
        "#]]
        .assert_eq(&golden::dump(&builder.finish()));
        expect![[r#"
            0000  01 80 01 ac 02
        "#]]
        .assert_eq(&golden::dump(&encode_put(&[7; 128], &[8; 300], None)[..5]));
    }

    #[test]
    fn overlong_and_oversized_lengths_are_refused() {
        assert_eq!(decode(&[TAG_DELETE, 0x81, 0x00, 1]).next(), Some(Err(OpError::Length)));
        assert_eq!(decode(&[TAG_DELETE, 0xff, 0xff, 0xff, 0xff, 0x1f]).next(), Some(Err(OpError::Length)));
        assert_eq!(decode(&[TAG_DELETE, 0x81, 0x80, 0x04]).next(), Some(Err(OpError::Key(65537))));
        assert_eq!(decode(&[TAG_PUT, 1, 2, b'k', b'v']).next(), Some(Err(OpError::Short)));
        assert_eq!(decode(&[9]).next(), Some(Err(OpError::Tag(9))));
    }

    #[test]
    fn a_raw_length_that_cannot_be_is_refused() {
        let decoded = |stored: &[u8], raw_bytes| {
            let mut builder = OpsBuilder::new();
            builder.put_stored(b"k", Stored::Compressed { stored, raw_bytes }, None);
            decode(&builder.finish()).next().unwrap().map(|op| op.user_bytes())
        };
        let refused = |raw_bytes, stored_bytes| Err(OpError::RawLength { raw_bytes, stored_bytes });
        assert_eq!(decoded(&[1; 9], 10), Ok(11));
        assert_eq!(decoded(&[1; 10], 10), refused(10, 10));
        assert_eq!(decoded(&[], 10), refused(10, 0));
        assert_eq!(decoded(&[1; 9], RAW_BYTES_MAX), Ok(1 + u64::from(RAW_BYTES_MAX)));
        assert_eq!(decoded(&[1; 9], RAW_BYTES_MAX + 1), refused(RAW_BYTES_MAX + 1, 9));
        assert_eq!(decoded(&[1; 9], u32::MAX), refused(u32::MAX, 9));
    }

    #[test]
    fn a_value_is_compressed_if_it_is_worth_it() {
        let mut compressor = ValueCompressor::new(CompressionOptions::default()).unwrap();
        let mut payload = |value: &[u8]| encode_put_compressed(b"key", value, Some(7), &mut compressor);
        let repeats = b"again and ".repeat(100);
        let stored = payload(&repeats);
        assert!(stored.len() < 100, "{}", stored.len());
        let Some(Ok(Op::Put {
            value: Stored::Compressed { stored, raw_bytes: 1000 },
            expires_unix_ms: Some(7),
            ..
        })) = decode(&stored).next()
        else {
            panic!("{:?}", decode(&stored).next())
        };
        assert_eq!(Decompressor::new().decompress(stored, 1000).unwrap(), repeats);
        assert_eq!(payload(b"short"), encode_put(b"key", b"short", Some(7)));
    }

    #[test]
    fn the_last_op_of_a_key_counts() {
        let mut builder = OpsBuilder::new();
        builder.put(b"a", b"1", None).put(b"b", b"2", None).put(b"a", b"3", Some(4)).delete(b"b");
        let payload = builder.finish();
        assert_eq!(
            last_said(&payload, b"a"),
            Ok(Some(Said::Put { value: Stored::Raw(b"3"), expires_unix_ms: Some(4) }))
        );
        assert_eq!(last_said(&payload, b"b"), Ok(Some(Said::Deleted)));
        assert_eq!(last_said(&payload, b"c"), Ok(None));
    }

    /// Key; of a put, what is stored, how much longer the raw value is if it is compressed, and expiry.
    type OwnedOp = (Vec<u8>, Option<(Vec<u8>, Option<u32>, Option<u64>)>);

    fn arbitrary_ops() -> impl Strategy<Value = Vec<OwnedOp>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        let stored = prop::collection::vec(any::<u8>(), 1..300);
        let put = prop::option::of((stored, prop::option::of(1_u32..1000), prop::option::of(any::<u64>())));
        prop::collection::vec((bytes(), put), 0..8)
    }

    fn encode(ops: &[OwnedOp]) -> Bytes {
        let mut builder = OpsBuilder::new();
        for (key, put) in ops {
            match put {
                Some((stored, more, expires)) => {
                    let value = match more {
                        Some(more) => Stored::Compressed { stored, raw_bytes: stored.len() as u32 + more },
                        None => Stored::Raw(stored),
                    };
                    builder.put_stored(key, value, *expires)
                }
                None => builder.delete(key),
            };
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn ops_come_back_as_they_were(ops in arbitrary_ops()) {
            let payload = encode(&ops);
            let back: Vec<OwnedOp> = decode(&payload)
                .map(|op| match op.unwrap() {
                    Op::Put { key, value, expires_unix_ms } => {
                        let (stored, more) = match value {
                            Stored::Raw(value) => (value, None),
                            Stored::Compressed { stored, raw_bytes } => {
                                (stored, Some(raw_bytes - stored.len() as u32))
                            }
                        };
                        (key.to_vec(), Some((stored.to_vec(), more, expires_unix_ms)))
                    }
                    Op::Delete { key } => (key.to_vec(), None),
                })
                .collect();
            prop_assert_eq!(back, ops);
        }

        #[test]
        fn any_bytes_decode_or_fail_and_what_decodes_has_one_spelling(
            ops in arbitrary_ops(), at in any::<prop::sample::Index>(), byte in any::<u8>()
        ) {
            let mut payload = encode(&ops).to_vec();
            if payload.is_empty() {
                return Ok(());
            }
            let at = at.index(payload.len());
            payload[at] = byte;
            let mut builder = OpsBuilder::new();
            for op in decode(&payload) {
                match op {
                    Ok(Op::Put { key, value, expires_unix_ms }) => {
                        builder.put_stored(key, value, expires_unix_ms)
                    }
                    Ok(Op::Delete { key }) => builder.delete(key),
                    Err(_) => return Ok(()),
                };
            }
            prop_assert_eq!(&builder.finish()[..], &payload[..]);
        }
    }
}
