//! Bytes as golden tests show them: eight to a line, each line with its offset.

use std::fmt::Write;

pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (line, bytes) in bytes.chunks(8).enumerate() {
        write!(out, "{:04} ", line * 8).expect("a string takes all");
        for byte in bytes {
            write!(out, " {byte:02x}").expect("a string takes all");
        }
        out.push('\n');
    }
    out
}
