//! Values that are stored compressed, each by itself, with zstd.
//!
//! ```text
//! host: value -> ValueCompressor -> op with stored bytes and raw length -> log, replicas, cleaning: as it is
//! read: op -> Decompressor -> value
//! ```
//!
//! A value is compressed before it enters the log, if it is worth it, and travels in that form: replicas get the same bytes,
//! the cache holds more of them, and cleaning moves less. Only a reader sees the raw value.
//!
//! What is stored is one zstd frame (RFC 8878) without magic number, content size, dictionary id and checksum: the op has the
//! raw length and the record a checksum, so that no two numbers can differ.
//!
//! Invariants:
//! - A stored value is shorter than the raw one, which has at most [`RAW_BYTES_MAX`] bytes. Decompressing never takes more
//!   memory than the raw length that the op names, and anything but exactly that length is an error.
//! - Data that does not compress is left alone, mostly after a look at some hundred bytes ([`sample`]).
//! - No threads: it costs time where it is called.
//!
//! [`dictionary`] makes dictionaries of what values have in common, for what cleaning moves; the store does not use it yet.

mod compressor;
mod decompressor;
pub mod dictionary;
pub mod sample;

pub use compressor::{CompressionOptions, ValueCompressor};
pub use decompressor::{DecompressError, Decompressor};

/// The largest value that is stored compressed, in bytes. A larger one would keep its shard busy for more than some
/// milliseconds, and bounds what a reader must set aside for a stored value of any length.
pub const RAW_BYTES_MAX: u32 = 4 << 20;

/// What compressing must save, at least, as a share of the raw value: an eighth, as RocksDB asks for
/// (`GoodCompressionRatio`). For less, no reader should have to decompress.
const GAIN_SHARE_LEAST: usize = 8;

/// The longest form in which a raw value of this length is worth storing, in bytes.
const fn stored_bytes_max(raw_bytes: usize) -> usize {
    raw_bytes - raw_bytes.div_ceil(GAIN_SHARE_LEAST)
}
