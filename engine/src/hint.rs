//! The hint: what recovery needs of one record, which is all but the value.
//!
//! Recovery works on hints alone. They come from the footer of a sealed segment ([`crate::footer`]), or from the records
//! themselves where a segment has none.

use crate::entry::ENTRY_OPS;
use crate::op::{self, Op};
use crate::record::{Record, RecordHeader, RecordKind};

/// One record without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint<'a> {
    pub(crate) header: RecordHeader,
    pub(crate) about: About<'a>,
    /// The payload, if the record itself was read.
    pub(crate) payload: Option<&'a [u8]>,
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About<'a> {
    /// The key has a value from now on.
    Put { key: &'a [u8], expires_unix_ms: Option<u64> },
    /// The key has none from now on.
    Delete { key: &'a [u8] },
    /// An entry that says nothing of keys.
    Bare,
    /// A group's state: the whole payload, as it is small and newer than what is known elsewhere.
    State(&'a [u8]),
    /// The payload makes no sense.
    Nonsense,
}

impl<'a> Hint<'a> {
    /// Of a record that was read.
    pub(crate) fn of(record: &Record<'a>) -> Self {
        let (header, payload) = (record.header, record.payload);
        let ops = match header.kind {
            RecordKind::State => false,
            RecordKind::Entry => header.entry_kind == ENTRY_OPS && !payload.is_empty(),
            RecordKind::Settled | RecordKind::Tombstone => true,
        };
        let about = match header.kind {
            RecordKind::State => About::State(payload),
            _ if ops => About::op(payload),
            _ => About::Bare,
        };
        Self { header, about, payload: Some(payload) }
    }

    pub(crate) fn deletes(&self) -> bool {
        matches!(self.about, About::Delete { .. })
    }

    /// Bytes of the hint in a footer, at most, before it is packed.
    pub(crate) fn bytes_max(&self) -> u32 {
        let about = match self.about {
            About::Put { key, expires_unix_ms } => {
                key_bytes_max(key.len()) + if expires_unix_ms.is_some() { 8 } else { 0 }
            }
            About::Delete { key } => key_bytes_max(key.len()),
            About::State(payload) => payload.len(),
            About::Bare | About::Nonsense => 1,
        };
        header_bytes_max(&self.header) + about as u32
    }
}

impl<'a> About<'a> {
    /// What the only op of a payload says.
    fn op(payload: &'a [u8]) -> Self {
        let mut ops = op::decode(payload);
        match (ops.next(), ops.next()) {
            (Some(Ok(Op::Put { key, expires_unix_ms, .. })), None) => About::Put { key, expires_unix_ms },
            (Some(Ok(Op::Delete { key })), None) => About::Delete { key },
            _ => About::Nonsense,
        }
    }

    pub(crate) fn of_op(op: &Op<'a>) -> Self {
        match *op {
            Op::Put { key, expires_unix_ms, .. } => About::Put { key, expires_unix_ms },
            Op::Delete { key } => About::Delete { key },
        }
    }
}

/// Bytes of a number in [`put_varint`]'s form.
fn varint_bytes(value: u64) -> u32 {
    (u64::BITS - value.leading_zeros()).div_ceil(7).max(1)
}

/// Tag, context (its number, and all of it where it is new), index, parts left and length.
fn header_bytes_max(header: &RecordHeader) -> u32 {
    let context =
        varint_bytes(header.group.0) + varint_bytes(header.incarnation.into()) + varint_bytes(header.term);
    let parts = varint_bytes(header.parts_left.into());
    1 + 2 + context + varint_bytes(header.index) + parts + varint_bytes(header.payload_bytes.into())
}

/// Bytes in common with the key before, bytes that follow, and these.
fn key_bytes_max(key: usize) -> usize {
    1 + varint_bytes(key as u64) as usize + key
}

/// Most that [`header_bytes_max`] can be.
const HEADER_BYTES_MAX: u32 = 1 + 2 + (10 + 5 + 10) + 10 + 3 + 5;

/// Bytes of the hint, at most, of a state with a payload of so many bytes.
pub(crate) fn state_bytes_max(payload: u32) -> u32 {
    HEADER_BYTES_MAX + payload
}

/// Bytes of the hint, at most, of an entry of one op of which nothing is known but the bytes of its payload.
pub(crate) fn entry_bytes_max(payload: usize) -> u32 {
    HEADER_BYTES_MAX + 8 + key_bytes_max(payload.min(op::KEY_BYTES_MAX)) as u32
}

/// Writes a number as LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
