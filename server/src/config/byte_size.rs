//! Sizes as people write them: `4096`, `"64 KiB"`, `"4MiB"`, `"1.5 GiB"`.
//!
//! Binary units only, because devices and buffers are cut in powers of two; `KB`, `MB` and `GB` are
//! refused by name rather than read as one of their two meanings.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
///
/// Parsed from an integer or from a number with a unit (`B`, `KiB`, `MiB`, `GiB`, `TiB`, any case, with or
/// without a space). Printed in the largest unit that divides it evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

impl ByteSize {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> ByteSize {
        ByteSize(n * MIB)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> ByteSize {
        ByteSize(n * GIB)
    }
}

/// A text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: {problem}")]
pub struct ByteSizeError {
    text: String,
    problem: &'static str,
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<ByteSize, ByteSizeError> {
        let error = |problem| ByteSizeError { text: text.to_owned(), problem };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => KIB,
            "mib" => MIB,
            "gib" => GIB,
            "tib" => TIB,
            "k" | "kb" | "m" | "mb" | "g" | "gb" | "t" | "tb" => {
                return Err(error("write KiB, MiB, GiB or TiB, which mean powers of two"));
            }
            _ => return Err(error("write a number of bytes, or a number with KiB, MiB, GiB or TiB")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 =
            whole.parse().map_err(|_| error("write a number first, as in \"64 MiB\" or \"4096\""))?;
        let mut bytes = whole.checked_mul(unit).ok_or_else(|| error("it does not fit 64 bits"))?;
        if !fraction.is_empty() {
            if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return Err(error("write at most six decimals"));
            }
            let scale = 10u64.pow(fraction.len() as u32);
            let part = u128::from(unit) * u128::from(fraction.parse::<u64>().unwrap_or(0));
            if !part.is_multiple_of(u128::from(scale)) {
                return Err(error("it is not a whole number of bytes"));
            }
            // part / scale < unit <= 2^40
            bytes = bytes
                .checked_add((part / u128::from(scale)) as u64)
                .ok_or_else(|| error("it does not fit 64 bits"))?;
        }
        Ok(ByteSize(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0 => (1, "B"),
            n if n % TIB == 0 => (TIB, "TiB"),
            n if n % GIB == 0 => (GIB, "GiB"),
            n if n % MIB == 0 => (MIB, "MiB"),
            n if n % KIB == 0 => (KIB, "KiB"),
            _ => (1, "B"),
        };
        f.pad(&format!("{} {name}", self.0 / unit))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or a size such as \"4 MiB\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// For `#[serde(with = "byte_size::as_bytes")]`: a plain `u64` field that people write with a unit.
pub(crate) mod as_bytes {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        ByteSize(*bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        ByteSize::deserialize(deserializer).map(|size| size.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512 B", 512),
            ("64KiB", 64 << 10),
            ("4 mib", 4 << 20),
            ("1.5 GiB", 3 << 29),
            (" 2TiB ", 2 << 40),
            ("0.25KiB", 256),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_way_out() {
        for (text, hint) in [
            ("", "number first"),
            ("MiB", "number first"),
            ("4MB", "powers of two"),
            ("4 parsecs", "KiB, MiB"),
            ("1.0001KiB", "whole number"),
            ("1.2.3KiB", "decimals"),
            ("99999999999TiB", "64 bits"),
            ("18446744073709551615.5KiB", "64 bits"),
            ("-1", "KiB, MiB"),
        ] {
            let error = text.parse::<ByteSize>().expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn display_reads_back_as_itself() {
        for bytes in [0, 1, 1000, 1024, 4 << 20, 3 << 29, 5 << 40, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }
}
