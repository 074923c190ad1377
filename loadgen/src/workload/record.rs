//! Values that say what they are: any value read back can be proven to have been written, whole, to that very key.
//!
//! Layout of a value, little-endian, at least [`VALUE_BYTES_MIN`] bytes:
//!
//! ```text
//! 0        8        16       24                      length-8
//! | key    | writer | op     | filler (any length)   | checksum |
//! | hash   |        | number | from a generator      | xxh3_64  |
//! ```
//!
//! The checksum covers everything before it, so a torn, shortened or mixed value fails; the key hash catches a whole
//! value that came back for another key. The filler is drawn from a generator seeded by the three numbers before it:
//! it does not compress, and no two values share a stretch that a dictionary could use.

use std::fmt;

use bytes::Bytes;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use xxhash_rust::xxh3::xxh3_64;

use crate::workload::mix;

/// The smallest value that has room for its own description.
pub(crate) const VALUE_BYTES_MIN: usize = 32;

/// Who wrote a value: the run (drawn once per process start, so that two runs over the same data differ) and the worker.
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

/// The value that `writer` writes to `key` as its `op`-th operation, `value_bytes` long (at least [`VALUE_BYTES_MIN`]).
pub(crate) fn compose(key: &[u8], writer: Writer, op: u64, value_bytes: usize) -> Record {
    assert!(value_bytes >= VALUE_BYTES_MIN, "a value needs {VALUE_BYTES_MIN} bytes to describe itself");
    let key_hash = xxh3_64(key);
    let body = value_bytes - 8;
    let mut value = Vec::with_capacity(value_bytes);
    value.extend_from_slice(&key_hash.to_le_bytes());
    value.extend_from_slice(&writer.word().to_le_bytes());
    value.extend_from_slice(&op.to_le_bytes());
    value.resize(body, 0);
    let seed = mix(mix(key_hash ^ writer.word()) ^ op);
    Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut value[24..]);
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
            let record = compose(b"user1", WRITER, 9, value_bytes);
            assert_eq!(record.value.len(), value_bytes);
            assert_eq!(check(b"user1", &record.value), Ok(record.checksum));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let record = compose(b"user1", WRITER, 9, 96);
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
        let record = compose(b"user1", WRITER, 9, 64);
        assert_eq!(check(b"user2", &record.value), Err(Damage::OtherKey));
        assert_eq!(check(b"user1", &record.value[..31]), Err(Damage::TooShort));
    }

    #[test]
    fn every_write_differs_and_repeats() {
        let one = compose(b"user1", WRITER, 9, 64);
        assert_eq!(one.value, compose(b"user1", WRITER, 9, 64).value);
        let others = [
            compose(b"user2", WRITER, 9, 64),
            compose(b"user1", Writer { run: 4, ..WRITER }, 9, 64),
            compose(b"user1", Writer { worker: 8, ..WRITER }, 9, 64),
            compose(b"user1", WRITER, 10, 64),
        ];
        for other in others {
            assert_ne!(one.checksum, other.checksum);
            assert_ne!(one.value[24..56], other.value[24..56]);
        }
    }

    /// Incompressible: bytes of the filler are evenly spread (every byte value within 25 % of its expectation).
    #[test]
    fn filler_is_random() {
        let record = compose(b"user1", WRITER, 9, 1 << 20);
        let mut counts = [0u32; 256];
        for byte in &record.value[24..(1 << 20) - 8] {
            counts[usize::from(*byte)] += 1;
        }
        assert!(counts.iter().all(|count| (3_072..=5_120).contains(count)), "{counts:?}");
    }
}
