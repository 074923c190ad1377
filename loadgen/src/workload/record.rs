//! Values that say what they are: any value read back can be proven to have been written, whole, to that very
//! key.
//!
//! Layout of a value, little-endian, at least [`VALUE_BYTES_MIN`] bytes:
//!
//! ```text
//! 0        8        16       24                      length-8
//! | key    | writer | op     | filler (any length)   | checksum |
//! | hash   |        | number | from a generator      | xxh3_64  |
//! ```
//!
//! The checksum covers everything before it, so a torn, shortened or mixed value fails; the key hash catches
//! a whole value that came back for another key. The filler is drawn from a generator seeded by the three
//! numbers before it: it does not compress, and no two values share a stretch that a dictionary could use.
//!
//! Where a share of the filler shall compress, that share of each of its [`GRAIN`]s is one byte repeated
//! (drawn for the value, never 0, so that nobody gets it cheaper still by looking for zeros): a compressor of
//! any block size meets the same mixture everywhere, and LZ4 spends some 8 bytes on each repetition: values
//! come out 4 % of their size above the share that does not compress.

use std::fmt;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use xxhash_rust::xxh3::xxh3_64;

use crate::workload::mix;

/// Bytes of filler within which the compressible share is kept: two bytes are one percent. Larger would let
/// small blocks see more or less than their share, smaller would cost compressors more for each repetition.
const GRAIN: usize = 200;

/// The smallest value that has room for its own description.
pub(crate) const VALUE_BYTES_MIN: usize = 32;

/// Who wrote a value: the run (drawn once per process start, so that two runs over the same data differ) and
/// the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Writer {
    /// The run's number.
    pub(crate) run: u32,
    /// The worker's number within the run.
    pub(crate) worker: u32,
}

impl Writer {
    fn word(self) -> u64 {
        u64::from(self.run) << 32 | u64::from(self.worker)
    }
}

/// A value ready to be sent, with the checksum that the ledger keeps of it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The bytes.
    pub(crate) value: Bytes,
    /// Their last eight bytes as a number: what tells this value from every other one written to the key.
    pub(crate) checksum: u64,
}

/// The value that `writer` writes to `key` as its `op`-th operation, `value_bytes` long (at least
/// [`VALUE_BYTES_MIN`]), of whose filler `compressible` percent (0 to 100) compress to next to nothing.
pub(crate) fn compose(key: &[u8], writer: Writer, op: u64, value_bytes: usize, compressible: u32) -> Record {
    assert!(value_bytes >= VALUE_BYTES_MIN, "a value needs {VALUE_BYTES_MIN} bytes to describe itself");
    assert!(compressible <= 100, "a share is at most 100 percent");
    let key_hash = xxh3_64(key);
    let body = value_bytes - 8;
    let seed = mix(mix(key_hash ^ writer.word()) ^ op);
    let repeated = if compressible == 0 { 0 } else { (seed >> 56) as u8 | 1 };
    let mut value = Vec::with_capacity(value_bytes);
    value.extend_from_slice(&key_hash.to_le_bytes());
    value.extend_from_slice(&writer.word().to_le_bytes());
    value.extend_from_slice(&op.to_le_bytes());
    value.resize(body, repeated);
    let filler = &mut value[24..];
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    match compressible {
        0 => rng.fill_bytes(filler),
        100 => {}
        _ => {
            for grain in filler.chunks_mut(GRAIN) {
                let random = (grain.len() * (100 - compressible as usize)).div_ceil(100);
                rng.fill_bytes(&mut grain[..random]);
            }
        }
    }
    let checksum = xxh3_64(&value);
    value.extend_from_slice(&checksum.to_le_bytes());
    Record { value: value.into(), checksum }
}

/// Why a value read back is not one that was ever written to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Fewer bytes than any value has.
    TooShort,
    /// The checksum does not fit the bytes before it.
    Checksum,
    /// A whole value, but of another key.
    OtherKey,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Damage::TooShort => "shorter than any value written",
            Damage::Checksum => "its checksum does not fit",
            Damage::OtherKey => "it belongs to another key",
        })
    }
}

/// Proves that `value` is whole and was written to `key`; gives its checksum.
pub(crate) fn check(key: &[u8], value: &[u8]) -> Result<u64, Damage> {
    if value.len() < VALUE_BYTES_MIN {
        return Err(Damage::TooShort);
    }
    let (body, tail) = value.split_last_chunk::<8>().ok_or(Damage::TooShort)?;
    let checksum = u64::from_le_bytes(*tail);
    if xxh3_64(body) != checksum {
        return Err(Damage::Checksum);
    }
    let hash = body.first_chunk::<8>().map(|head| u64::from_le_bytes(*head)).ok_or(Damage::TooShort)?;
    if hash == xxh3_64(key) { Ok(checksum) } else { Err(Damage::OtherKey) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer { run: 3, worker: 7 };

    #[test]
    fn what_was_written_is_recognised_at_every_length() {
        for value_bytes in [32, 33, 63, 64, 100, 1024, 70_001] {
            let record = compose(b"user1", WRITER, 9, value_bytes, 0);
            assert_eq!(record.value.len(), value_bytes);
            assert_eq!(check(b"user1", &record.value), Ok(record.checksum));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let record = compose(b"user1", WRITER, 9, 96, 0);
        for bit in 0..record.value.len() * 8 {
            let mut bent = record.value.to_vec();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(b"user1", &bent), Err(Damage::Checksum), "bit {bit}");
        }
        for len in 0..record.value.len() {
            assert!(check(b"user1", &record.value[..len]).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn a_value_of_another_key_is_noticed() {
        let record = compose(b"user1", WRITER, 9, 64, 0);
        assert_eq!(check(b"user2", &record.value), Err(Damage::OtherKey));
        assert_eq!(check(b"user1", &record.value[..31]), Err(Damage::TooShort));
    }

    #[test]
    fn every_write_differs_and_repeats() {
        let one = compose(b"user1", WRITER, 9, 64, 0);
        assert_eq!(one.value, compose(b"user1", WRITER, 9, 64, 0).value);
        let others = [
            compose(b"user2", WRITER, 9, 64, 0),
            compose(b"user1", Writer { run: 4, ..WRITER }, 9, 64, 0),
            compose(b"user1", Writer { worker: 8, ..WRITER }, 9, 64, 0),
            compose(b"user1", WRITER, 10, 64, 0),
        ];
        for other in others {
            assert_ne!(one.checksum, other.checksum);
            assert_ne!(one.value[24..56], other.value[24..56]);
        }
    }

    /// Incompressible: bytes of the filler are evenly spread (every byte value within 25 % of its
    /// expectation).
    #[test]
    fn filler_is_random() {
        let record = compose(b"user1", WRITER, 9, 1 << 20, 0);
        let mut counts = [0u32; 256];
        for byte in &record.value[24..(1 << 20) - 8] {
            counts[usize::from(*byte)] += 1;
        }
        assert!(counts.iter().all(|count| (3_072..=5_120).contains(count)), "{counts:?}");
    }

    /// Without compressibility the bytes are what they have always been: old data can be told from new.
    #[test]
    fn incompressible_values_are_what_they_always_were() {
        let record = compose(b"user1", WRITER, 9, 96, 0);
        assert_eq!(record.checksum, 0x9655_ea8c_ced7_7feb);
    }

    fn packed(bytes: &[u8]) -> f64 {
        lz4_flex::block::compress(bytes).len() as f64
    }

    /// LZ4 gets out of a value what was put in: the header, the checksum and the random share of the filler.
    #[test]
    fn values_compress_as_far_as_they_say() {
        for value_bytes in [1 << 10, 4 << 10, 32 << 10] {
            for percent in [0, 1, 25, 50, 75, 99, 100] {
                let due = 32.0 + (value_bytes - 32) as f64 * f64::from(100 - percent) / 100.0;
                let one = compose(b"user1", WRITER, 9, value_bytes, percent).value;
                let off = (packed(&one) - due) / value_bytes as f64;
                assert!((-0.01..0.045).contains(&off), "{value_bytes} bytes, {percent} %: off by {off:.3}");
                let many: Vec<u8> = (0..64u64)
                    .flat_map(|op| compose(&op.to_be_bytes(), WRITER, op, value_bytes, percent).value)
                    .collect();
                let off = (packed(&many) / 64.0 - due) / value_bytes as f64;
                assert!(
                    (-0.01..0.045).contains(&off),
                    "64 times {value_bytes}, {percent} %: off by {off:.3}"
                );
            }
        }
    }

    /// Whatever blocks a store cuts its values into, each block compresses as the whole does.
    #[test]
    fn every_block_compresses_alike() {
        let value = compose(b"user1", WRITER, 9, 1 << 20, 50).value;
        for block_bytes in [512, 4 << 10, 16 << 10] {
            for (at, block) in value.chunks(block_bytes).enumerate() {
                let ratio = packed(block) / block.len() as f64;
                let slack = 0.04 + 200.0 / block_bytes as f64 / 2.0;
                assert!((ratio - 0.5).abs() < slack, "block {at} of {block_bytes} bytes: {ratio:.3}");
            }
        }
    }

    #[test]
    fn compressible_values_say_what_they_are_too() {
        for value_bytes in [32, 33, 40, 131, 132, 1_000] {
            for percent in [1, 50, 100] {
                let record = compose(b"user1", WRITER, 9, value_bytes, percent);
                assert_eq!(record.value.len(), value_bytes);
                assert_eq!(check(b"user1", &record.value), Ok(record.checksum));
                assert_ne!(record.checksum, compose(b"user1", WRITER, 10, value_bytes, percent).checksum);
            }
        }
    }
}
