//! `terrane put`, `get`, `del` and `scan`: one operation each, for people and scripts.
//!
//! Keys and values are bytes. Arguments give them as they are; `--hex` takes keys that cannot be typed.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};
use terrane_client::wire::ErrorReply;
use terrane_client::{Condition, DeleteError, GetError, KeyRange, PutError, ScanError};

use super::connection::{Connection, Target};
use super::{Exit, Failure, output};

/// Bytes of a scan's output that are gathered before they are written.
const SCAN_OUTPUT_BYTES: usize = 64 << 10;

const PUT_EXAMPLES: &str = "\
Prints the version written. A conditional put is refused with exit code 4 and tells the key's version.

Examples:
  terrane put greeting hello
  terrane put photo --file cat.jpg
  date | terrane put now -
  terrane put lock me --if-absent
  terrane put counter 2 --if-version 17
  terrane put --hex 00ff value          a key of two bytes
  terrane put -- -5 -6                  what begins with a dash comes after two";

/// Write a value.
#[derive(Debug, clap::Args)]
#[command(after_help = PUT_EXAMPLES, override_usage = "terrane put [OPTIONS] <KEY> <VALUE | - | --file FILE>")]
#[group(id = "source", required = true, multiple = false, args = ["value", "file"])]
pub(super) struct PutArgs {
    /// Key, 1 B to 64 KiB
    key: OsString,
    /// Value; - reads standard input
    value: Option<OsString>,
    /// Read the value from FILE
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only if the key does not exist
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if the key's version is VERSION
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    /// KEY is hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) fn put(args: &PutArgs) -> Result<(), Failure> {
    let key = key_bytes(&args.key, args.hex)?;
    let value = match (&args.value, &args.file) {
        (_, Some(path)) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        (Some(value), None) if value == "-" => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            bytes
        }
        (Some(value), None) => value.as_bytes().to_vec(),
        (None, None) => return Err(Failure::usage("give a value, --file, or - for standard input")),
    };
    let condition = match (args.if_absent, args.if_version) {
        (true, _) => Condition::Absent,
        (false, Some(version)) => Condition::Version(version),
        (false, None) => Condition::None,
    };
    let connection = Connection::open(&args.target)?;
    let version = connection.wait(connection.client.put_if(&key, &value, condition))?;
    if args.target.json {
        output::print_json(&json!({ "version": version }))
    } else {
        output::print(format!("version {version}\n"))
    }
}

const GET_EXAMPLES: &str = "\
Writes the value's bytes and nothing else (on a terminal, a line end after them). Exit code 3: no such key.

Examples:
  terrane get greeting
  terrane get photo --out cat.jpg
  terrane get greeting --json           with key and version; bytes that are not UTF-8 as value_hex";

/// Print a value.
#[derive(Debug, clap::Args)]
#[command(after_help = GET_EXAMPLES)]
pub(super) struct GetArgs {
    /// Key
    key: OsString,
    /// Write the value to FILE, which is not touched unless the key is found
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// KEY is hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) fn get(args: &GetArgs) -> Result<(), Failure> {
    let key = key_bytes(&args.key, args.hex)?;
    let connection = Connection::open(&args.target)?;
    let Some(found) = connection.wait(connection.client.get(&key))? else {
        return Err(not_found(&key));
    };
    if args.target.json {
        return output::print_json(&row_json(&key, Some(&found.value), found.version));
    }
    match &args.out {
        Some(path) => write_file(path, &found.value),
        None => {
            output::print(&found.value)?;
            if io::stdout().is_terminal() { output::print("\n") } else { Ok(()) }
        }
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

const DEL_EXAMPLES: &str = "\
Deleting a key that does not exist is no failure, so a script can repeat it; --if-exists makes it one
(exit code 3).

Examples:
  terrane del greeting
  terrane del greeting --if-exists
  terrane del counter --if-version 17";

/// Delete a key.
#[derive(Debug, clap::Args)]
#[command(after_help = DEL_EXAMPLES)]
pub(super) struct DelArgs {
    /// Key
    key: OsString,
    /// Fail with exit code 3 if the key does not exist
    #[arg(long, conflicts_with = "if_version")]
    if_exists: bool,
    /// Only if the key's version is VERSION
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    /// KEY is hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) fn del(args: &DelArgs) -> Result<(), Failure> {
    let key = key_bytes(&args.key, args.hex)?;
    let condition = match (args.if_exists, args.if_version) {
        (true, _) => Condition::Present,
        (false, Some(version)) => Condition::Version(version),
        (false, None) => Condition::None,
    };
    let connection = Connection::open(&args.target)?;
    let version = match connection.wait(connection.client.delete_if(&key, condition)) {
        Ok(None) | Err(DeleteError::ConditionFailed { current: None }) if args.if_exists => {
            return Err(not_found(&key));
        }
        outcome => outcome?,
    };
    if args.target.json { output::print_json(&json!({ "version": version })) } else { Ok(()) }
}

const SCAN_EXAMPLES: &str = "\
Prints one line per key, in the order of the keys' bytes: key, tab, value. What could break a line or is
not UTF-8 is escaped (\\t, \\n, \\r, \\\\, \\xHH). With --json one object per line. A scan is read in pages:
writes that happen meanwhile may or may not be seen.

Examples:
  terrane scan --prefix user
  terrane scan --start a --end b --limit 10
  terrane scan --keys-only | wc -l
  terrane scan --prefix user --json | jq .value";

/// List keys and values in key order.
#[derive(Debug, clap::Args)]
#[command(after_help = SCAN_EXAMPLES)]
pub(super) struct ScanArgs {
    /// First key (inclusive)
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    start: Option<OsString>,
    /// End of the range (exclusive)
    #[arg(long, value_name = "KEY", conflicts_with = "prefix")]
    end: Option<OsString>,
    /// Only keys that begin with this
    #[arg(long, value_name = "KEY")]
    prefix: Option<OsString>,
    /// At most this many [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print keys without values
    #[arg(long)]
    keys_only: bool,
    /// Keys in arguments are hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    pub(super) target: Target,
}

pub(super) fn scan(args: &ScanArgs) -> Result<(), Failure> {
    let bytes = |key: &Option<OsString>| key.as_ref().map(|key| decode(key, args.hex)).transpose();
    let range = match (bytes(&args.prefix)?, bytes(&args.start)?, bytes(&args.end)?) {
        (Some(prefix), ..) => KeyRange::prefix(prefix),
        (None, start, Some(end)) => KeyRange::from(start.unwrap_or_default()..end),
        (None, Some(start), None) => KeyRange::from(start..),
        (None, None, None) => KeyRange::all(),
    };
    let connection = Connection::open(&args.target)?;
    let mut scanner = connection.client.scanner(range);
    if let Some(limit) = args.limit {
        scanner = scanner.rows_wanted(limit);
    }
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut text = Vec::new();
    while left > 0 {
        let Some(row) = connection.wait(scanner.next())? else { break };
        left -= 1;
        let value = (!args.keys_only).then_some(&row.value[..]);
        if args.target.json {
            text.extend_from_slice(row_json(&row.key, value, row.version).to_string().as_bytes());
        } else {
            text.extend_from_slice(output::escaped(&row.key).as_bytes());
            if let Some(value) = value {
                text.push(b'\t');
                text.extend_from_slice(output::escaped(value).as_bytes());
            }
        }
        text.push(b'\n');
        if text.len() >= SCAN_OUTPUT_BYTES {
            output::print(&text)?;
            text.clear();
        }
    }
    output::print(text)
}

fn decode(text: &OsStr, hex: bool) -> Result<Vec<u8>, Failure> {
    if !hex {
        return Ok(text.as_bytes().to_vec());
    }
    output::unhex(text.as_bytes()).ok_or_else(|| {
        Failure::usage(format!("{text:?} is not hexadecimal digits: write two for each byte, as in 00ff"))
    })
}

fn key_bytes(text: &OsStr, hex: bool) -> Result<Vec<u8>, Failure> {
    let key = decode(text, hex)?;
    if key.is_empty() {
        return Err(Failure::usage("the key is empty: a key has at least one byte"));
    }
    Ok(key)
}

fn not_found(key: &[u8]) -> Failure {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key);
    Failure {
        details: object,
        ..Failure::new(Exit::NotFound, format!("not found: {}", output::escaped(key)))
    }
}

fn row_json(key: &[u8], value: Option<&[u8]>, version: u64) -> Value {
    let mut object = Map::new();
    output::insert_bytes(&mut object, "key", key);
    if let Some(value) = value {
        output::insert_bytes(&mut object, "value", value);
    }
    object.insert("version".to_owned(), version.into());
    object.into()
}

/// A condition that did not hold, with the version that a script needs for its next try.
fn condition_failed(message: String, current: Option<u64>) -> Failure {
    Failure::new(Exit::ConditionFailed, message).with("current_version", current)
}

/// The exit code of an answer that has no variant of its own in an operation's errors.
fn refused(error: &ErrorReply) -> Exit {
    match error {
        ErrorReply::NotLeader { .. }
        | ErrorReply::WrongPartition { .. }
        | ErrorReply::Busy { .. }
        | ErrorReply::Unavailable { .. }
        | ErrorReply::OutcomeUnknown
        | ErrorReply::StorageFailed => Exit::Unavailable,
        _ => Exit::Failure,
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Failure {
        let exit = match &error {
            GetError::TimedOut { .. } => Exit::Unavailable,
            GetError::Refused(reply) => refused(reply),
            _ => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<PutError> for Failure {
    fn from(error: PutError) -> Failure {
        let exit = match &error {
            PutError::ConditionFailed { current } => return condition_failed(error.to_string(), *current),
            PutError::TimedOut { .. } | PutError::OutcomeUnknown { .. } => Exit::Unavailable,
            PutError::Refused(reply) => refused(reply),
            _ => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<DeleteError> for Failure {
    fn from(error: DeleteError) -> Failure {
        let exit = match &error {
            DeleteError::ConditionFailed { current } => return condition_failed(error.to_string(), *current),
            DeleteError::TimedOut { .. } | DeleteError::OutcomeUnknown { .. } => Exit::Unavailable,
            DeleteError::Refused(reply) => refused(reply),
            _ => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Failure {
        let exit = match &error {
            ScanError::TimedOut { .. } => Exit::Unavailable,
            ScanError::Refused(reply) => refused(reply),
            _ => Exit::Failure,
        };
        Failure::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bytes_or_hexadecimal_digits() {
        assert_eq!(key_bytes(OsStr::new("00ff"), false).expect("text"), b"00ff");
        assert_eq!(key_bytes(OsStr::new("00ff"), true).expect("digits"), b"\x00\xff");
        assert_eq!(key_bytes(OsStr::from_bytes(b"\xff"), false).expect("any bytes"), b"\xff");
        for (text, hex) in [("", false), ("", true), ("0", true), ("zz", true)] {
            assert_eq!(key_bytes(OsStr::new(text), hex).expect_err(text).exit, Exit::Usage);
        }
    }

    #[test]
    fn a_script_can_tell_what_to_do_from_the_exit_code() {
        let busy = ErrorReply::Busy { retry_after_ms: 5 };
        assert_eq!(Failure::from(GetError::Refused(busy.clone())).exit, Exit::Unavailable);
        assert_eq!(Failure::from(ScanError::Refused(busy)).exit, Exit::Unavailable);
        assert_eq!(Failure::from(PutError::Full).exit, Exit::Failure);
        assert_eq!(Failure::from(PutError::Refused(ErrorReply::UnknownTable)).exit, Exit::Failure);
        let failed = Failure::from(PutError::ConditionFailed { current: Some(7) });
        assert_eq!((failed.exit, &failed.details["current_version"]), (Exit::ConditionFailed, &json!(7)));
        let failed = Failure::from(DeleteError::ConditionFailed { current: None });
        assert_eq!((failed.exit, &failed.details["current_version"]), (Exit::ConditionFailed, &Value::Null));
    }
}
