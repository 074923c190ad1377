//! Acknowledged writes in a file, so that they can be checked later, by another process, in bounded memory.
//!
//! Layout, little-endian: a header of 64 bytes, then one entry of 32 bytes for each acknowledged write, in no order:
//!
//! ```text
//! header   magic "terrjrnl" | format u32 | key bytes u32 | key order u8 | zeros | xxh3_64 of the rest
//! entry    record u64 | version u64 | checksum of the value u64 | xxh3_64 of the first 24 bytes
//! ```
//!
//! Entries are buffered; each write that comes a second or more after the last flush flushes them, and so does the end.
//! A load generator that is killed loses the entries since then: of its last second if writes kept coming, of longer if
//! they had ceased. That proves less and claims nothing false. A tail that was cut short is left out and said; damage
//! before the tail is an error.
//!
//! While it is written it is called `FILE.unfinished`; every end but being killed gives it its name. What was killed can
//! be verified under that name.
//!
//! Invariant: a record is replaced only by one that holds a write, and an unfinished one by nothing.
//!
//! To check, the file is read once per *window* of records, and only the window's promises are held ([`Ledger`]).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::check::ledger::{Ledger, Promise};
use crate::output::{self, Growing, Leftover, unfinished};
use crate::workload::names::{KEY_BYTES_MAX, KEY_BYTES_MIN, Names, Order};

const MAGIC: &[u8; 8] = b"terrjrnl";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;

/// A write that comes so long after the last flush takes along what waits.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// What has to be known to find the records again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    /// How records are named.
    pub(crate) names: Names,
}

impl About {
    fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.names.bytes() as u32).to_le_bytes());
        bytes[16] = u8::from(self.names.order() == Order::Ordered);
        let sum = xxh3_64(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> anyhow::Result<About> {
        ensure!(
            bytes.starts_with(MAGIC),
            "it is no record of acknowledged writes (`run --record` makes them)"
        );
        let format = le32(&bytes[8..12]);
        ensure!(format == FORMAT, "its format is {format}, this program reads {FORMAT}");
        ensure!(
            xxh3_64(&bytes[..HEADER_BYTES - 8]) == le64(&bytes[HEADER_BYTES - 8..]),
            "its header is damaged"
        );
        let order = match bytes[16] {
            0 => Order::Hashed,
            1 => Order::Ordered,
            other => bail!("its header names an order of keys that does not exist ({other})"),
        };
        let length = le32(&bytes[12..16]) as usize;
        ensure!((KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&length), "its header names keys of {length} bytes");
        let names = Names::new(length, order);
        Ok(About { names })
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn encode_entry(record: u64, promise: Promise) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..8].copy_from_slice(&record.to_le_bytes());
    bytes[8..16].copy_from_slice(&promise.version.to_le_bytes());
    bytes[16..24].copy_from_slice(&promise.checksum.to_le_bytes());
    let sum = xxh3_64(&bytes[..24]);
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The record and its promise; `None`: the entry is damaged.
fn decode_entry(bytes: &[u8; ENTRY_BYTES]) -> Option<(u64, Promise)> {
    let intact = xxh3_64(&bytes[..24]) == le64(&bytes[24..]);
    let promise = Promise { version: le64(&bytes[8..16]), checksum: le64(&bytes[16..24]) };
    intact.then(|| (le64(&bytes[..8]), promise))
}

/// The file while it is written; shared by all workers.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: BufWriter<Growing>,
    flushed: Instant,
    /// Writes noted.
    writes: u64,
}

impl Journal {
    /// Whether [`create`](Self::create) would succeed; changes nothing.
    ///
    /// # Errors
    /// If it would not.
    pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
        output::check("--record", path)?;
        if unfinished(path).exists() {
            bail!(left_over(path));
        }
        Ok(())
    }

    /// Begins the file.
    ///
    /// # Errors
    /// If it cannot be written, or a run that was killed left one of this name.
    pub(crate) fn create(path: &Path, about: About) -> anyhow::Result<Journal> {
        let told = |error: io::Error| match error.kind() {
            ErrorKind::AlreadyExists => anyhow::anyhow!(left_over(path)),
            _ => anyhow::Error::from(error).context(output::cannot_be_written("--record", path)),
        };
        let mut file = Growing::begin(path, Leftover::Refused).map_err(told)?;
        if let Err(error) = file.write_all(&about.encode()) {
            file.discard();
            return Err(told(error));
        }
        let file = BufWriter::with_capacity(1 << 18, file);
        let open = Open { file, flushed: Instant::now(), writes: 0 };
        Ok(Journal { path: path.to_owned(), open: Mutex::new(open) })
    }

    /// Notes an acknowledged write.
    ///
    /// # Errors
    /// If the file cannot take more: then what is acknowledged from here on would go unrecorded.
    pub(crate) fn note(&self, record: u64, promise: Promise, now: Instant) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = open.file.write_all(&encode_entry(record, promise));
        open.writes += 1;
        if now.saturating_duration_since(open.flushed) >= FLUSH_EVERY {
            done = done.and_then(|()| open.file.flush());
            open.flushed = now;
        }
        done.map_err(|error| {
            format!("acknowledged writes can no longer be recorded in {}: {error}", self.path.display())
        })
    }

    /// Writes out what is buffered, waits until it is durable, and gives the file its name; tells how many writes were
    /// noted. A record of none is removed, and an older one of that name stays.
    ///
    /// # Errors
    /// If it could not be written to its end; what could be has the name.
    pub(crate) fn finish(&self) -> anyhow::Result<u64> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = open.writes;
        if writes == 0 {
            open.file.get_mut().discard();
            return Ok(0);
        }
        let flushed = open.file.flush();
        let named = open.file.get_mut().finish();
        flushed
            .and(named)
            .map(|()| writes)
            .with_context(|| format!("--record {}: it could not be written to its end", self.path.display()))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let path = self.path.display();
        let open = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Unless it was finished, something went wrong: what it holds is what someone will want to see.
        match open.writes {
            0 => open.file.get_mut().discard(),
            writes => {
                if let Some(unfinished) = open.file.get_ref().unfinished() {
                    eprintln!(
                        "--record {path}: {writes} acknowledged writes are in {}",
                        unfinished.display()
                    );
                }
            }
        }
    }
}

/// What to do where a run that was killed left a record.
fn left_over(path: &Path) -> String {
    let left = unfinished(path);
    format!(
        "--record {}: a run that was killed, or still goes on, left {}: verify it (`terrane-loadgen verify {}`), and \
         move it away",
        path.display(),
        left.display(),
        left.display()
    )
}

/// The file when it is read back.
#[derive(Debug)]
pub(crate) struct Recorded {
    path: PathBuf,
    pub(crate) about: About,
    /// Acknowledged writes in it.
    pub(crate) writes: u64,
    /// One more than the highest record.
    pub(crate) records: u64,
    /// Bytes at the end that are no whole entry: the load generator was killed as it wrote.
    pub(crate) torn_bytes: u64,
}

impl Recorded {
    /// Reads the header, and once through the entries.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Recorded> {
        let name = || format!("{}", path.display());
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound if unfinished(path).exists() => anyhow::anyhow!(
                "it is not there, but {} is, from a run that was killed: verify that",
                unfinished(path).display()
            ),
            _ => error.into(),
        });
        let mut file = BufReader::new(file.with_context(name)?);
        let mut header = [0; HEADER_BYTES];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                bail!("{}: it is too short for a record of acknowledged writes", path.display())
            }
            Err(error) => return Err(error).with_context(name),
        }
        let about = About::decode(&header).with_context(name)?;
        let mut recorded = Recorded { path: path.to_owned(), about, writes: 0, records: 0, torn_bytes: 0 };
        let (mut writes, mut records) = (0, 0);
        recorded.torn_bytes = recorded.each(|record, _| {
            writes += 1;
            records = records.max(record.saturating_add(1));
        })?;
        (recorded.writes, recorded.records) = (writes, records);
        Ok(recorded)
    }

    /// The promises about the records from `first` on, `count` of them.
    pub(crate) fn window(&self, first: u64, count: u64) -> anyhow::Result<Ledger> {
        let ledger = Ledger::new(first, count);
        let mut clash = None;
        self.each(|record, promise| {
            let inside = record >= first && record - first < count;
            if inside && ledger.acknowledge(record, promise).is_err() {
                clash = Some(record);
            }
        })?;
        if let Some(record) = clash {
            bail!("{}: two acknowledged writes of record {record} have one version", self.path.display());
        }
        Ok(ledger)
    }

    /// Calls `act` for each entry; gives the bytes of a torn tail.
    fn each(&self, mut act: impl FnMut(u64, Promise)) -> anyhow::Result<u64> {
        let name = || format!("{}", self.path.display());
        let file = File::open(&self.path).with_context(name)?;
        let entries = file.metadata().with_context(name)?.len().saturating_sub(HEADER_BYTES as u64);
        let mut file = BufReader::with_capacity(1 << 20, file);
        file.read_exact(&mut [0; HEADER_BYTES]).with_context(name)?;
        let whole = entries / ENTRY_BYTES as u64;
        for nth in 0..whole {
            let mut bytes = [0; ENTRY_BYTES];
            file.read_exact(&mut bytes).with_context(name)?;
            match decode_entry(&bytes) {
                Some((record, promise)) => act(record, promise),
                None => bail!("{}: entry {nth} of {whole} is damaged", self.path.display()),
            }
        }
        Ok(entries % ENTRY_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { names: Names::new(24, Order::Hashed) }
    }

    fn promise(version: u64) -> Promise {
        Promise { version, checksum: version * 3 }
    }

    fn written(folder: &Path, entries: &[(u64, u64)]) -> PathBuf {
        let path = folder.join("journal");
        let journal = Journal::create(&path, about()).unwrap();
        for (record, version) in entries {
            journal.note(*record, promise(*version), Instant::now()).unwrap();
        }
        journal.finish().unwrap();
        path
    }

    #[test]
    fn bytes_are_golden() {
        let header = about().encode();
        assert_eq!(&header[..18], b"terrjrnl\x01\0\0\0\x18\0\0\0\0\0");
        assert_eq!(le64(&header[56..]), xxh3_64(&header[..56]));
        let entry = encode_entry(0x0102, Promise { version: 3, checksum: 4 });
        assert_eq!(&entry[..24], b"\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0");
        assert_eq!(decode_entry(&entry), Some((0x0102, Promise { version: 3, checksum: 4 })));
        let ordered = About { names: Names::new(16, Order::Ordered) };
        assert_eq!(About::decode(&ordered.encode()).unwrap(), ordered);
    }

    #[test]
    fn windows_hold_the_highest_promise_of_each_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(5, 1), (0, 2), (5, 9), (5, 4), (99, 7)]);
        let recorded = Recorded::open(&path).unwrap();
        assert_eq!((recorded.writes, recorded.records, recorded.torn_bytes), (5, 100, 0));
        let window = recorded.window(0, 50).unwrap();
        assert_eq!([0, 1, 5].map(|record| window.promised(record).version), [2, 0, 9]);
        let window = recorded.window(50, 50).unwrap();
        assert_eq!(window.promised(99), promise(7));
    }

    #[test]
    fn a_torn_tail_is_left_out_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(1, 1), (2, 1), (3, 1)]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let recorded = Recorded::open(&path).unwrap();
        assert_eq!((recorded.writes, recorded.torn_bytes), (2, 31));

        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            format!("{:#}", Recorded::open(&path).unwrap_err())
        };
        assert!(error(&|bytes| bytes[HEADER_BYTES + 40] ^= 1).contains("entry 1 of 3 is damaged"));
        assert!(error(&|bytes| bytes[13] ^= 1).contains("header is damaged"));
        assert!(error(&|bytes| bytes[0] ^= 1).contains("no record of acknowledged writes"));
        assert!(error(&|bytes| bytes[8] = 9).contains("its format is 9"));
        assert!(error(&|bytes| bytes.truncate(10)).contains("too short"));
    }

    /// A run that came to nothing emptied the record of the one before.
    #[test]
    fn a_record_of_nothing_leaves_the_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(1, 1)]);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(Journal::create(&path, about()).unwrap().finish().unwrap(), 0);
        drop(Journal::create(&path, about()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Dropped before its end, as by an error; killed, it has what was flushed until then.
    #[test]
    fn what_was_recorded_until_an_error_stays_and_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &[(1, 1)]);
        Journal::check(&path).unwrap();
        let journal = Journal::create(&path, about()).unwrap();
        journal.note(2, promise(2), Instant::now()).unwrap();
        drop(journal);
        let left = unfinished(&path);
        assert_eq!(Recorded::open(&left).unwrap().records, 3);
        assert_eq!(Recorded::open(&path).unwrap().records, 2, "the older one");
        for refused in [Journal::check(&path), Journal::create(&path, about()).map(drop)] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(left.to_str().unwrap()) && error.contains("verify it"), "{error}");
        }
        assert_eq!(Recorded::open(&left).unwrap().records, 3);
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", Recorded::open(&path).unwrap_err());
        assert!(error.contains(left.to_str().unwrap()) && error.contains("verify that"), "{error}");
    }

    #[test]
    fn a_clash_in_the_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::create(&path, about()).unwrap();
        for checksum in [1, 2] {
            journal.note(8, Promise { version: 5, checksum }, Instant::now()).unwrap();
        }
        journal.finish().unwrap();
        let error = Recorded::open(&path).unwrap().window(0, 10).unwrap_err();
        assert!(error.to_string().contains("record 8"), "{error}");
    }
}
