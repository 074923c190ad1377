//! The names of records: one key per record number, of a chosen length, in key order or not.
//!
//! A name begins with its head, which holds a 64-bit number whole, in the widest form that fits:
//!
//! ```text
//! bytes    head
//!  8-14    the number's 8 bytes, the highest first
//! 15-23    "user" and 11 digits of base 64 (6 bits each, the alphabet in the order of its bytes)
//! 24-256   "user" and 20 decimal digits, as YCSB's
//! ```
//!
//! The rest, if any, is filled with digits of base 64 that a mixing of the number gives: longer keys are as
//! hard to compress as their length says, and share no longer beginning than short ones.
//!
//! The number is the record's own where names are ordered, and mixed one-to-one where they are hashed, as in
//! YCSB, whose inserts come in no key order either. With "hashed" and 24 bytes names are what they have
//! always been here.
//!
//! Invariants: names are distinct for all 2^64 records and tell their record ([`Names::record`]); ordered
//! names sort as their records do.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::workload::mix;
#[cfg(test)]
use crate::workload::unmix;

/// The shortest key: a record number needs eight bytes.
pub(crate) const KEY_BYTES_MIN: usize = 8;
/// The longest key.
pub(crate) const KEY_BYTES_MAX: usize = 256;

/// Heads of the three forms, in bytes.
const RAW: usize = 8;
const DENSE: usize = 15;
const DECIMAL: usize = 24;

const PREFIX: &[u8; 4] = b"user";

/// Digits of base 64, ascending as bytes do: the order of numbers is the order of their digits.
const DIGITS: &[u8; 64] = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";

/// Whether names come in the order of their records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Order {
    /// No: neighbouring records lie anywhere.
    Hashed,
    /// Yes: names ascend with the record number.
    Ordered,
}

/// A record's name; lies where it is kept, without an allocation.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// The rule by which records are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Names {
    bytes: usize,
    order: Order,
}

impl Default for Names {
    fn default() -> Self {
        Names { bytes: DECIMAL, order: Order::Hashed }
    }
}

impl Names {
    /// Names of `bytes` bytes ([`KEY_BYTES_MIN`] to [`KEY_BYTES_MAX`]).
    pub(crate) fn new(bytes: usize, order: Order) -> Self {
        assert!((KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&bytes), "no key has {bytes} bytes");
        Names { bytes, order }
    }

    /// The order of the names.
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// Bytes of every name.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The name of a record.
    pub(crate) fn name(&self, record: u64) -> Key {
        let number = match self.order {
            Order::Hashed => mix(record),
            Order::Ordered => record,
        };
        let mut key = Key { bytes: [0; KEY_BYTES_MAX], len: self.bytes };
        let (head, tail) = key.bytes[..self.bytes].split_at_mut(self.head());
        match head.len() {
            RAW => head.copy_from_slice(&number.to_be_bytes()),
            DENSE => {
                head[..4].copy_from_slice(PREFIX);
                dense(number, &mut head[4..]);
            }
            _ => {
                head[..4].copy_from_slice(PREFIX);
                decimal(number, &mut head[4..]);
            }
        }
        let mut filler = number;
        // 10 digits are 60 bits: what a mixed word can fill.
        for digits in tail.chunks_mut(10) {
            filler = mix(filler);
            dense(filler, digits);
        }
        key
    }

    /// The record that has this name, `None` if none has: the proof that names are distinct.
    #[cfg(test)]
    pub(crate) fn record(&self, name: &[u8]) -> Option<u64> {
        let head = name.get(..self.head())?;
        let number = match head.len() {
            RAW => u64::from_be_bytes(head.try_into().ok()?),
            DENSE => head[4..].iter().try_fold(0u64, |number, digit| {
                let digit = DIGITS.binary_search(digit).ok()? as u64;
                number.checked_mul(64).map(|number| number | digit)
            })?,
            _ => std::str::from_utf8(&head[4..]).ok()?.parse().ok()?,
        };
        let record = match self.order {
            Order::Hashed => unmix(number),
            Order::Ordered => number,
        };
        // Whatever else may be wrong with it, a name is the one we would give.
        (*self.name(record) == *name).then_some(record)
    }

    /// Bytes of the head.
    fn head(&self) -> usize {
        match self.bytes {
            ..DENSE => RAW,
            DENSE..DECIMAL => DENSE,
            _ => DECIMAL,
        }
    }
}

/// The lowest digits of base 64 of a number, as many as there is room for.
fn dense(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = DIGITS[(number % 64) as usize];
        number /= 64;
    }
}

/// The decimal digits of a number, zero padded to the room, which holds all of them.
fn decimal(mut number: u64, room: &mut [u8]) {
    for digit in room.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const LENGTHS: [usize; 12] = [8, 9, 14, 15, 16, 20, 23, 24, 25, 34, 100, 256];

    /// Records that a narrow form would confuse first: the smallest, powers of the bases, the largest.
    fn records() -> Vec<u64> {
        let powers = (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) - 1]);
        let tens = (0..20).flat_map(|power| [10u64.pow(power), 10u64.pow(power) - 1]);
        let mut records: Vec<u64> =
            (0..3_000).chain(powers).chain(tens).chain([u64::MAX - 1, u64::MAX]).collect();
        records.sort_unstable();
        records.dedup();
        records
    }

    #[test]
    fn the_usual_names_are_what_they_always_were() {
        let names = Names::default();
        assert_eq!(&*names.name(0), b"user16294208416658607535");
        for record in records() {
            assert_eq!(*names.name(record), *format!("user{:020}", mix(record)).as_bytes());
        }
    }

    #[test]
    fn forms_by_length() {
        let name = |bytes, order, record| Names::new(bytes, order).name(record);
        assert_eq!(&*name(8, Order::Ordered, 0x0102), b"\0\0\0\0\0\0\x01\x02");
        assert_eq!(&*name(15, Order::Ordered, 0), b"user-----------");
        assert_eq!(&*name(15, Order::Ordered, u64::MAX), b"userEzzzzzzzzzz");
        assert_eq!(&name(16, Order::Ordered, 64)[..15], b"user---------0-");
        assert_eq!(&*name(24, Order::Ordered, 42), b"user00000000000000000042");
        assert_eq!(&name(40, Order::Ordered, 42)[..24], b"user00000000000000000042");
        assert_eq!(name(16, Order::Hashed, 1).len(), 16);
        assert!(name(16, Order::Hashed, 1).starts_with(b"user"));
    }

    #[test]
    fn names_are_distinct_and_tell_their_record() {
        for order in [Order::Hashed, Order::Ordered] {
            for bytes in LENGTHS {
                let names = Names::new(bytes, order);
                let mut seen = BTreeSet::new();
                for record in records() {
                    let name = names.name(record);
                    assert_eq!(name.len(), bytes);
                    assert_eq!(names.record(&name), Some(record), "{order:?}, {bytes} bytes: {name:?}");
                    assert!(seen.insert(name.to_vec()), "{order:?}, {bytes} bytes: {name:?} twice");
                }
            }
        }
    }

    #[test]
    fn ordered_names_ascend_and_hashed_ones_do_not() {
        for bytes in LENGTHS {
            let records = records();
            let sorted = |order| {
                let names = Names::new(bytes, order);
                records.windows(2).filter(|pair| *names.name(pair[0]) < *names.name(pair[1])).count()
            };
            assert_eq!(sorted(Order::Ordered), records.len() - 1, "{bytes} bytes");
            let up = sorted(Order::Hashed) as f64 / (records.len() - 1) as f64;
            assert!((0.45..0.55).contains(&up), "{bytes} bytes: {up} of the neighbours ascend");
        }
    }

    #[test]
    fn what_is_no_name_has_no_record() {
        for bytes in LENGTHS {
            let names = Names::new(bytes, Order::Hashed);
            let name = names.name(7);
            assert_eq!(names.record(&name[..bytes - 1]), None, "cut");
            assert_eq!(names.record(&[&*name, b"0"].concat()), None, "longer");
            assert_eq!(names.record(b""), None);
            for at in 0..bytes {
                let mut bent = name.to_vec();
                bent[at] ^= 0x80;
                // Raw names of 8 bytes leave no byte string unused: there, another name is another record's.
                let other = names.record(&bent);
                assert!(
                    if bytes == RAW { other != Some(7) } else { other.is_none() },
                    "byte {at} of {bytes}"
                );
            }
        }
        assert_eq!(Names::new(15, Order::Ordered).record(b"userF----------"), None, "more than 64 bits");
        assert_eq!(Names::default().record(b"user99999999999999999999"), None, "more than 64 bits");
        assert_eq!(Names::default().record(b"user+6294208416658607535"), None);
    }

    /// Long keys share no more than "user": no store gets them cheaper by prefixes, or by a constant filling.
    #[test]
    fn fillings_differ() {
        for order in [Order::Hashed, Order::Ordered] {
            let names = Names::new(256, order);
            let (one, two) = (names.name(1), names.name(2));
            let same = one[DECIMAL..].iter().zip(&two[DECIMAL..]).filter(|(a, b)| a == b).count();
            assert!(same < 20, "{same} of 232 bytes are the same");
        }
    }
}
