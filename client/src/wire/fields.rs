//! Reading and writing the fields of a body: bounds-checked little-endian numbers and zero-copy byte runs.
//!
//! **Invariant:** a length read from a body is only believed once that many bytes are known to be there.

use super::DecodeError;
use bytes::Bytes;

/// Reads a body's fields front to back. Byte runs come out as slices of the body's buffer.
pub(super) struct Fields {
    rest: Bytes,
}

impl Fields {
    pub(super) fn new(body: Bytes) -> Fields {
        Fields { rest: body }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn bytes(&mut self, count: usize, field: &'static str) -> Result<Bytes, DecodeError> {
        if count > self.rest.len() {
            return Err(DecodeError::Truncated { field });
        }
        Ok(self.rest.split_to(count))
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(array) = self.rest.first_chunk::<N>().copied() else {
            return Err(DecodeError::Truncated { field });
        };
        bytes::Buf::advance(&mut self.rest, N);
        Ok(array)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        self.array(field).map(u128::from_le_bytes)
    }

    /// A `u16` length, then that many bytes of UTF-8.
    pub(super) fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let count = self.u16(field)?;
        let run = self.bytes(usize::from(count), field)?;
        std::str::from_utf8(&run).map(str::to_owned).map_err(|_| DecodeError::NotUtf8 { field })
    }

    /// A `u16` length, then a record of that many bytes: its reader takes the fields it knows, and what a newer
    /// sender put behind them is skipped.
    pub(super) fn record(&mut self, field: &'static str) -> Result<Fields, DecodeError> {
        let count = self.u16(field)?;
        Ok(Fields::new(self.bytes(usize::from(count), field)?))
    }

    /// `count` bytes that must be zero.
    pub(super) fn zeros(&mut self, count: usize, field: &'static str) -> Result<(), DecodeError> {
        if self.bytes(count, field)?.iter().any(|&byte| byte != 0) {
            return Err(DecodeError::ReservedNotZero { field });
        }
        Ok(())
    }

    /// Requests end with their last field.
    pub(super) fn end(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

/// Appends `text` as a `u16` length and its bytes; a text beyond 65,535 bytes is cut at a character boundary.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&(end as u16).to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// Appends a record: a `u16` length, then what `fill` appends.
///
/// # Panics
/// When the record exceeds 65,535 bytes: the caller's bug, records hold a handful of short fields.
pub(super) fn put_record(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 2]);
    fill(out);
    let bytes = u16::try_from(out.len() - at - 2).expect("a record holds a handful of short fields");
    out[at..at + 2].copy_from_slice(&bytes.to_le_bytes());
}

/// Sixteen bytes to a line, two digits each: how the golden tests and `docs/protocol.md` show bytes.
#[cfg(test)]
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}
