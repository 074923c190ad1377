//! Where a key's record stands, and how a page packs it.
//!
//! A page gives each part of its locations the fewest bytes that hold all of them ([`Widths`]), so that the locations of
//! one page have one size: an update overwrites the old one in place. Chunk numbers have at least five bits to spare (a
//! slice has fewer than 2^27 chunks), so a flag, such as "the value expires", costs a bit of them and no byte.

use crate::policy::heat::Heat;

/// Where a record stands. The chunk's generation is the segment table's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the chunk.
    pub chunk: u32,
    /// Bytes from the start of the chunk to the record's header.
    pub offset: u32,
    /// Bytes of the record, header included; 0: not on the medium yet, its payload is in the tail.
    pub length: u32,
}

impl Place {
    /// Of a record that is not on the medium yet.
    pub const PENDING: Self = Self { chunk: 0, offset: 0, length: 0 };

    /// Whether the record is not on the medium yet.
    pub fn is_pending(&self) -> bool {
        self.length == 0
    }
}

/// What the index knows of a live key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Raft index of the entry that put the key.
    pub version: u64,
    /// Where its record stands.
    pub place: Place,
    /// How often it is overwritten.
    pub heat: Heat,
}

impl Located {
    /// What a separator carries: it takes no bytes.
    pub(super) const NOTHING: Self = Self { version: 0, place: Place::PENDING, heat: Heat::NEW };

    /// A version of a key of which nothing else is known.
    pub fn new(version: u64, place: Place) -> Self {
        Self { version, place, heat: Heat::NEW }
    }
}

/// Bytes that each part of a page's locations takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Widths {
    chunk: u8,
    offset: u8,
    length: u8,
    version: u8,
    heat: u8,
}

/// The widest location, in bytes.
pub(super) const LOCATION_BYTES_MAX: usize = 22;

/// Locations are packed and unpacked by words, the last of which may reach beyond the location.
const WORD_BYTES: usize = 8;
type Unpacked = [u8; LOCATION_BYTES_MAX + WORD_BYTES];

/// Bytes that hold `value`: 0 for 0.
fn width(value: u64) -> u8 {
    (u64::BITS - value.leading_zeros()).div_ceil(8) as u8
}

fn put_word(bytes: &mut Unpacked, at: usize, value: u64) {
    bytes[at..at + WORD_BYTES].copy_from_slice(&value.to_le_bytes());
}

/// The `width` bytes at `at`.
fn word(bytes: &Unpacked, at: usize, width: u8) -> u64 {
    let mut word = [0; WORD_BYTES];
    word.copy_from_slice(&bytes[at..at + WORD_BYTES]);
    let beyond = u64::BITS - 8 * u32::from(width);
    u64::from_le_bytes(word) & u64::MAX.checked_shr(beyond).unwrap_or(0)
}

impl Widths {
    pub(super) fn of(located: Located) -> Self {
        Self {
            chunk: width(located.place.chunk.into()),
            offset: width(located.place.offset.into()),
            length: width(located.place.length.into()),
            version: width(located.version),
            heat: width(located.heat.to_bits().into()),
        }
    }

    /// The least widths that hold what either holds.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            chunk: self.chunk.max(other.chunk),
            offset: self.offset.max(other.offset),
            length: self.length.max(other.length),
            version: self.version.max(other.version),
            heat: self.heat.max(other.heat),
        }
    }

    /// Bytes of a location.
    pub(super) fn total(self) -> usize {
        usize::from(self.chunk + self.offset + self.length + self.version + self.heat)
    }

    /// Fills `out`, which has [`Widths::total`] bytes, with a location that the widths hold.
    pub(super) fn pack(self, located: Located, out: &mut [u8]) {
        debug_assert_eq!(self.union(Self::of(located)), self, "the widths hold the location");
        let mut bytes = [0; LOCATION_BYTES_MAX + WORD_BYTES];
        let mut at = 0;
        // In this order: each word overwrites what the one before had beyond its width, which is zeros.
        for (value, width) in [
            (located.place.chunk.into(), self.chunk),
            (located.place.offset.into(), self.offset),
            (located.place.length.into(), self.length),
            (located.version, self.version),
            (located.heat.to_bits().into(), self.heat),
        ] {
            put_word(&mut bytes, at, value);
            at += usize::from(width);
        }
        out.copy_from_slice(&bytes[..at]);
    }

    /// The location in `packed`, which begins with [`Widths::total`] bytes of it.
    pub(super) fn unpack(self, packed: &[u8]) -> Located {
        let mut bytes = [0; LOCATION_BYTES_MAX + WORD_BYTES];
        let total = self.total();
        bytes[..total].copy_from_slice(&packed[..total]);
        let offset_at = usize::from(self.chunk);
        let length_at = offset_at + usize::from(self.offset);
        let version_at = length_at + usize::from(self.length);
        let heat_at = version_at + usize::from(self.version);
        Located {
            version: word(&bytes, version_at, self.version),
            place: Place {
                chunk: word(&bytes, 0, self.chunk) as u32,
                offset: word(&bytes, offset_at, self.offset) as u32,
                length: word(&bytes, length_at, self.length) as u32,
            },
            heat: Heat::from_bits(word(&bytes, heat_at, self.heat) as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn located() -> impl Strategy<Value = Located> {
        let number =
            || any::<u32>().prop_flat_map(|value| (0..=32_u32).prop_map(move |bits| value.checked_shr(bits)));
        (number(), number(), number(), any::<u64>(), 0..=64_u32, any::<u16>()).prop_map(
            |(chunk, offset, length, version, bits, heat)| Located {
                heat: Heat::from_bits(heat),
                version: version.checked_shr(bits).unwrap_or(0),
                place: Place {
                    chunk: chunk.unwrap_or(0),
                    offset: offset.unwrap_or(0),
                    length: length.unwrap_or(0),
                },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back_whatever_the_widths(one in located(), other in located()) {
            let widths = Widths::of(one).union(Widths::of(other));
            for located in [one, other] {
                let mut packed = [0xee; LOCATION_BYTES_MAX + 1];
                widths.pack(located, &mut packed[..widths.total()]);
                prop_assert_eq!(widths.unpack(&packed), located);
            }
        }
    }

    #[test]
    fn widths_are_the_least_ones() {
        let place = Place { chunk: 255, offset: 256, length: 0 };
        assert_eq!(Widths::of(Located::new(1 << 56, place)).total(), 1 + 2 + 8);
        assert_eq!(Widths::of(Located::NOTHING).total(), 0);
        let most = Located {
            heat: Heat::from_bits(u16::MAX),
            version: u64::MAX,
            place: Place { chunk: u32::MAX, offset: u32::MAX, length: u32::MAX },
        };
        assert_eq!(Widths::of(most).total(), LOCATION_BYTES_MAX);
    }
}
