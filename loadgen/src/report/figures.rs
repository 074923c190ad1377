//! How numbers are read and written: sizes on the command line, counts, latencies and bytes in tables.

use std::time::Duration;

/// Reads a size in bytes: a whole number, alone or followed by KiB, MiB, GiB, TiB (powers of 1024) or just k, m, g, t.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        _ => return Err(format!("'{unit}' is no unit: write for example 1024, 4KiB, 64MiB or 2GiB")),
    };
    let number: u64 =
        number.parse().map_err(|_| "a size is a whole number, for example 1024, 4KiB or 2GiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that many bytes cannot be counted".to_owned())
}

/// A count with separators: 1,234,567.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency in the unit that suits it, three digits or so: 87 µs, 1.24 ms, 2.05 s.
pub(crate) fn latency(time: Duration) -> String {
    let us = time.as_nanos() as f64 / 1e3;
    match us {
        us if us < 9.95 => format!("{us:.1} µs"),
        us if us < 999.5 => format!("{us:.0} µs"),
        us if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        us if us < 99_950.0 => format!("{:.1} ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Bytes in the unit that suits them: 512 B, 1.5 GiB.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = number as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || scaled >= 100.0 {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("1k", 1024),
            ("4KiB", 4096),
            ("4 kib", 4096),
            ("64MiB", 64 << 20),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1.5GiB", "-1", "4kb", "4 potatoes", "99999999999TiB", "99999999999999999999"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn counts_and_latencies_and_bytes() {
        let counts = [0, 999, 1_000, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
        let latencies = [900, 87_400, 1_240_000, 99_949_000, 250_000_000, 2_050_000_000]
            .map(|ns| latency(Duration::from_nanos(ns)));
        assert_eq!(latencies, ["0.9 µs", "87 µs", "1.24 ms", "99.9 ms", "250 ms", "2.05 s"]);
        let sizes = [512, 1536, 3 << 29, 700 << 20].map(bytes);
        assert_eq!(sizes, ["512 B", "1.5 KiB", "1.5 GiB", "700 MiB"]);
    }
}
