//! RocksDB as the target of load: leveled compaction, or integrated BlobDB.
//!
//! It survives the process in nosync mode (the log is written, not synced) and power loss in sync mode
//! (`WriteOptions::sync`: fdatasync of the log before the write returns, shared by concurrent writers of a group).
//!
//! The configuration is in [`config`]; what RocksDB made of it is in the `OPTIONS-*` file of its folder.

mod config;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use rocksdb::statistics::Ticker;
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBPinnableSlice, Direction, Error, ErrorKind, IteratorMode, Options,
    ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};

use crate::measure::meter::Look;
use crate::target::setup::Setup;
use crate::target::{Ability, Connect, Failure, FailureKind, Found, Row, Seat, Target, clock, footprint};
use config::Config;

/// The one column family. Named when opening, so that a handle exists: batched reads ask for it.
const FAMILY: &str = "default";

/// What RocksDB counts of its own writes: the log, what flushes and compactions wrote to tables, and blob files.
const WRITTEN: [Ticker; 3] = [Ticker::WalFileBytes, Ticker::FlushWriteBytes, Ticker::CompactWriteBytes];

/// Where values live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// With their keys, in the levels.
    Leveled,
    /// In blob files, cleaned by compaction.
    Blob {
        /// Typical length of a value, bytes: the tables hold keys and references only, and are sized by it.
        value_bytes: u64,
    },
}

/// An open database; clones share it. The last one closes it, as any user would: what is in memtables stays in the log.
#[derive(Clone)]
pub(crate) struct RocksConnect {
    store: Arc<Store>,
}

struct Store {
    database: DB,
    /// Holds the statistics.
    options: Options,
    config: Config,
    folder: PathBuf,
}

impl RocksConnect {
    /// Opens the database in the setup's folder, creating it if it is not there.
    pub(crate) fn open(setup: Setup, layout: Layout) -> anyhow::Result<Self> {
        let folder = setup.folder.clone();
        let config = Config::new(setup, layout)?;
        let options = config.options();
        let family = ColumnFamilyDescriptor::new(FAMILY, options.clone());
        let database = DB::open_cf_descriptors(&options, &folder, [family])
            .with_context(|| format!("cannot open a RocksDB database in {}", folder.display()))?;
        Ok(RocksConnect { store: Arc::new(Store { database, options, config, folder }) })
    }

    /// The effective configuration and the library's version.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let Store { config, folder, .. } = &*self.store;
        let told = |words: &str| told(folder, words).unwrap_or_else(|| "unknown".to_owned());
        let mut settings = vec![
            ("version".to_owned(), told("RocksDB version: ")),
            // Compiled in only where the compiler was allowed the instructions (RUSTFLAGS="-C target-cpu=native").
            ("fast_crc32".to_owned(), told("Fast CRC32 supported: ")),
        ];
        settings.extend(config.settings());
        settings
    }
}

/// What follows `words` in the log that RocksDB keeps of itself; it begins every log with its version and options.
fn told(folder: &Path, words: &str) -> Option<String> {
    let log = std::fs::read(folder.join("LOG")).ok()?;
    let log = String::from_utf8_lossy(&log);
    let rest = log.lines().find_map(|line| line.split_once(words))?.1;
    Some(rest.trim().to_owned())
}

impl Connect for RocksConnect {
    type Target = RocksTarget;

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::Scan | Ability::MultiGet | Ability::Batch => true,
            // Its TTL is one for the whole database and acts when compaction comes along: not that of a write.
            Ability::Ttl => false,
        }
    }

    fn tells_versions(&self) -> bool {
        false
    }

    fn blocks(&self) -> bool {
        true
    }

    /// Waits until no flush and no compaction is due or running any more, having flushed the memtable. Blocks.
    fn settle(&self) -> anyhow::Result<()> {
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        self.store.database.wait_for_compact(&options).context("RocksDB's compactions did not finish")
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<RocksTarget>>>),
    ) -> anyhow::Result<()> {
        let target = || Rc::new(RocksTarget::new(self.store.clone()));
        clock::on_tokio(load(Ok((0..seat.connections).map(|_| target()).collect())))
    }

    async fn looks(&self) -> Vec<(u64, Look)> {
        let Some(mut look) = footprint::of_own(&self.store.folder) else { return Vec::new() };
        let options = &self.store.options;
        let written = WRITTEN.iter().map(|ticker| options.get_ticker_count(*ticker)).sum();
        look.counters.device_written_bytes = Some(written);
        vec![(0, look)]
    }
}

/// The database, used by one thread. Its calls block.
pub(crate) struct RocksTarget {
    store: Arc<Store>,
    read: ReadOptions,
    write: WriteOptions,
}

impl RocksTarget {
    fn new(store: Arc<Store>) -> Self {
        let mut write = WriteOptions::default();
        write.set_sync(store.config.durable);
        RocksTarget { store, read: ReadOptions::default(), write }
    }
}

impl Target for RocksTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        let value = self.store.database.get_pinned_opt(key, &self.read);
        Ok(value.map_err(|error| failure(&error))?.map(found))
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let done = self.store.database.put_opt(key, &value, &self.write);
        done.map(|()| None).map_err(|error| failure(&error))
    }

    async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
        let mut read = ReadOptions::default();
        read.set_total_order_seek(true);
        let mode = IteratorMode::From(from, Direction::Forward);
        let mut rows = Vec::new();
        for pair in self.store.database.iterator_opt(mode, read).take(limit) {
            let (key, value) = pair.map_err(|error| failure(&error))?;
            rows.push(Row { key: key.into(), found: Found { version: None, value: value.into() } });
        }
        Ok(rows)
    }

    async fn multi_get(&self, keys: &[Bytes]) -> Result<Vec<Option<Found>>, Failure> {
        let database = &self.store.database;
        let Some(family) = database.cf_handle(FAMILY) else {
            unreachable!("the database was opened with this family")
        };
        let values = database.batched_multi_get_cf_opt(&family, keys, false, &self.read);
        values.into_iter().map(|value| Ok(value.map_err(|error| failure(&error))?.map(found))).collect()
    }

    /// One entry of the log: all or nothing.
    async fn put_batch(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
        ttl: Option<Duration>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let mut batch = WriteBatch::default();
        for (key, value) in &pairs {
            batch.put(key, value);
        }
        self.store.database.write_opt(batch, &self.write).map_err(|error| failure(&error))?;
        Ok(vec![None; pairs.len()])
    }

    async fn sleep_until(&self, at: Instant) {
        clock::block_until(at);
    }
}

fn found(value: DBPinnableSlice<'_>) -> Found {
    Found { version: None, value: Bytes::copy_from_slice(&value) }
}

/// What an error counts as.
fn failure(error: &Error) -> Failure {
    let kind = match error.kind() {
        // The library tells the sub-code only in words.
        ErrorKind::IOError if error.as_ref().contains("No space left") => FailureKind::Full,
        ErrorKind::Busy | ErrorKind::TryAgain => FailureKind::Busy,
        ErrorKind::TimedOut => FailureKind::TimedOut,
        _ => FailureKind::Refused,
    };
    Failure { kind, message: error.to_string() }
}

#[cfg(test)]
mod tests;
