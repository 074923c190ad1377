//! What goes to standard output: bytes as they are, or escaped so that a line stays a line, or JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Map, Value};

use super::{Exit, Failure};

/// Writes to standard output and flushes. A reader that went away (`terrane scan | head`) ends the command
/// quietly.
pub(super) fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(|error| {
        let message = match error.kind() {
            io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("cannot write to standard output: {error}"),
        };
        Failure::new(Exit::Failure, message)
    })
}

/// Prints one JSON value on a line of its own.
pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    print(format!("{value}\n"))
}

/// Bytes for people: UTF-8 as it is, but control characters, backslashes and bytes that are not UTF-8 as
/// `\t`, `\n`, `\r`, `\\` or `\xHH`. No two byte strings look the same, and a line stays a line.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                c => text.push(c),
            }
        }
        for byte in part.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Puts bytes into a JSON object: as text under `name` if they are UTF-8, else as hexadecimal digits under
/// `name_hex`.
pub(super) fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads what [`insert_bytes`] writes as hexadecimal digits. `None`: not an even number of digits.
pub(super) fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    pairs.iter().map(|&[high, low]| Some((digit(high)? << 4 | digit(low)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_bytes_stay_on_their_line_and_apart() {
        assert_eq!(escaped("grün".as_bytes()), "grün");
        assert_eq!(escaped(b"a\tb\nc\rd\\"), "a\\tb\\nc\\rd\\\\");
        assert_eq!(escaped(b"\x00\xff\x7f"), "\\x00\\xff\\x7f");
        assert_eq!(escaped("\u{85}".as_bytes()), "\\xc2\\x85", "control characters beyond ASCII too");
        assert_ne!(escaped(b"\\xff"), escaped(b"\xff"));
    }

    #[test]
    fn json_keeps_text_readable_and_bytes_exact() {
        let mut object = Map::new();
        insert_bytes(&mut object, "key", b"user\n1");
        insert_bytes(&mut object, "value", b"\xff\x00");
        assert_eq!(Value::Object(object).to_string(), r#"{"key":"user\n1","value_hex":"ff00"}"#);
    }

    #[test]
    fn hexadecimal_digits_read_back() {
        assert_eq!(unhex(hex(b"\x00\x9f\xff").as_bytes()), Some(b"\x00\x9f\xff".to_vec()));
        assert_eq!(unhex(b"FF"), Some(vec![255]));
        assert_eq!(unhex(b""), Some(vec![]));
        assert_eq!(unhex(b"f"), None);
        assert_eq!(unhex(b"fg"), None);
    }
}
