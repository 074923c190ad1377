//! fjall as the target of load: an embedded LSM tree in Rust, here with key-value separation.
//!
//! Durability is the journal's. Without asking, every write is handed to the operating system (`PersistMode::Buffer`):
//! it survives the process. For power loss, fjall's way is to write and then call `Database::persist`, which syncs the
//! journal under the journal's lock: writes that were journaled meanwhile by other threads are covered, yet each of
//! these threads syncs again for itself. There is no group commit, and none is added here. `SyncData` (fdatasync) is
//! used where RocksDB also uses fdatasync.
//!
//! fjall reads and writes through the page cache: what the machine has free caches for it beside the budget. Its
//! settings say so; a comparison has to.

use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use fjall::config::{BlockSizePolicy, CompressionPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError, PersistMode,
    Slice,
};

use crate::measure::meter::Look;
use crate::target::setup::Setup;
use crate::target::{Ability, Connect, Failure, FailureKind, Found, Row, Seat, Target, clock, footprint};

/// What this program was built from: the crate does not tell its version.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// What can be set otherwise.
const KNOWN: [&str; 10] = [
    "separation",
    "separation_threshold",
    "blob_file_bytes",
    "blob_staleness",
    "blob_age_cutoff",
    "memtable_bytes",
    "journal_bytes",
    "block_bytes",
    "worker_threads",
    "persist",
];

/// How a store is configured; each with why.
#[derive(Debug, Clone)]
struct Config {
    /// Values apart from keys, as the comparison asks; off: everything in the tree.
    separation: bool,
    /// From this length values are separated. Default 512 instead of fjall's 1 KiB, so that values of 1 KB are not on
    /// the edge.
    separation_threshold: u32,
    /// 64 MiB: fjall's default.
    blob_file_bytes: u64,
    /// A blob file is rewritten when this share of it is dead. 0.25: fjall's default.
    blob_staleness: f32,
    /// Only this oldest share of the blob files is rewritten. 0.25: fjall's default.
    blob_age_cutoff: f32,
    /// 64 MiB: fjall's default, and the other peers'.
    memtable_bytes: u64,
    /// Journals that may wait for their memtables to be flushed. 512 MiB: fjall's default.
    journal_bytes: u64,
    /// 4 KiB: fjall's default, which it recommends for point reads.
    block_bytes: u32,
    /// Threads that flush and compact: as many as there are cores.
    worker_threads: usize,
    /// What `persist` is called with after every write in durable mode.
    persist: PersistMode,
    durable: bool,
    compression: CompressionType,
    cache_bytes: u64,
}

impl Config {
    fn new(setup: &mut Setup) -> anyhow::Result<Config> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let given = &mut setup.overrides;
        let config = Config {
            separation: given.parsed("separation", true)?,
            separation_threshold: given.parsed("separation_threshold", 512)?,
            blob_file_bytes: given.size("blob_file_bytes", 64 << 20)?,
            blob_staleness: given.parsed("blob_staleness", 0.25)?,
            blob_age_cutoff: given.parsed("blob_age_cutoff", 0.25)?,
            memtable_bytes: given.size("memtable_bytes", 64 << 20)?,
            journal_bytes: given.size("journal_bytes", 512 << 20)?,
            block_bytes: u32::try_from(given.size("block_bytes", 4 << 10)?).context("--set block_bytes")?,
            worker_threads: given.parsed("worker_threads", cores)?,
            persist: match given.parsed("persist", "data".to_owned())?.as_str() {
                "data" => PersistMode::SyncData,
                "all" => PersistMode::SyncAll,
                other => bail!("--set persist={other}: data (fdatasync) or all (fsync)"),
            },
            durable: setup.durable,
            compression: if setup.compressed { CompressionType::Lz4 } else { CompressionType::None },
            cache_bytes: setup.cache_bytes,
        };
        std::mem::take(given).finish(&KNOWN)?;
        // fjall panics at these.
        if config.journal_bytes < 64 << 20 {
            bail!("--set journal_bytes: at least 64MiB");
        }
        if !(1 << 10..=1 << 20).contains(&config.block_bytes) {
            bail!("--set block_bytes: from 1KiB to 1MiB");
        }
        if config.worker_threads == 0 {
            bail!("--set worker_threads: at least 1");
        }
        Ok(config)
    }

    fn keyspace(&self) -> KeyspaceCreateOptions {
        let separation = KvSeparationOptions::default()
            .compression(self.compression)
            .file_target_size(self.blob_file_bytes)
            .separation_threshold(self.separation_threshold)
            .staleness_threshold(self.blob_staleness)
            .age_cutoff(self.blob_age_cutoff);
        // With compression, fjall leaves the two upper levels as they are by default.
        let blocks = match self.compression {
            CompressionType::None => CompressionPolicy::disabled(),
            compression => {
                CompressionPolicy::new([CompressionType::None, CompressionType::None, compression])
            }
        };
        KeyspaceCreateOptions::default()
            .max_memtable_size(self.memtable_bytes)
            .data_block_size_policy(BlockSizePolicy::all(self.block_bytes))
            .data_block_compression_policy(blocks)
            .with_kv_separation(self.separation.then_some(separation))
    }

    fn settings(&self) -> Vec<(String, String)> {
        let persist = match (self.durable, self.persist) {
            (false, _) => "write to the operating system, no sync",
            (true, PersistMode::SyncAll) => "persist(SyncAll) after every write",
            (true, _) => "persist(SyncData) after every write",
        };
        let compression = match self.compression {
            CompressionType::None => "none",
            CompressionType::Lz4 => "lz4: journal, blobs, data blocks from level 2",
        };
        let mut settings = vec![
            ("version", version().to_owned()),
            ("durability", persist.to_owned()),
            ("compression", compression.to_owned()),
            ("cache_bytes", self.cache_bytes.to_string()),
            ("direct_io", "none: reads and writes use the page cache beside the budget".to_owned()),
            ("separation", self.separation.to_string()),
        ];
        if self.separation {
            settings.extend([
                ("separation_threshold", self.separation_threshold.to_string()),
                ("blob_file_bytes", self.blob_file_bytes.to_string()),
                ("blob_staleness", self.blob_staleness.to_string()),
                ("blob_age_cutoff", self.blob_age_cutoff.to_string()),
            ]);
        }
        settings.extend([
            ("memtable_bytes", self.memtable_bytes.to_string()),
            ("journal_bytes", self.journal_bytes.to_string()),
            ("block_bytes", self.block_bytes.to_string()),
            ("worker_threads", self.worker_threads.to_string()),
        ]);
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The version of fjall that Cargo.lock names.
fn version() -> &'static str {
    let package = LOCK.split("[[package]]").find(|package| package.contains("name = \"fjall\""));
    let line = package.and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")));
    line.map_or("unknown", |version| version.trim_matches('"'))
}

/// An open store; clones share it. The last one closes it.
#[derive(Clone)]
pub(crate) struct FjallConnect {
    store: Arc<Store>,
}

struct Store {
    // In this order: the keyspace goes before the database it belongs to.
    keyspace: Keyspace,
    database: Database,
    config: Config,
    folder: std::path::PathBuf,
}

impl FjallConnect {
    /// Opens the store in the setup's folder, creating it if it is not there.
    pub(crate) fn open(mut setup: Setup) -> anyhow::Result<Self> {
        let config = Config::new(&mut setup)?;
        let opened = || -> fjall::Result<(Keyspace, Database)> {
            let database = Database::builder(&setup.folder)
                .cache_size(config.cache_bytes)
                .journal_compression(config.compression)
                .max_journaling_size(config.journal_bytes)
                .worker_threads(config.worker_threads)
                .open()?;
            let keyspace = database.keyspace("load", || config.keyspace())?;
            Ok((keyspace, database))
        };
        let (keyspace, database) =
            opened().with_context(|| format!("cannot open a fjall store in {}", setup.folder.display()))?;
        let store = Store { keyspace, database, config, folder: setup.folder };
        Ok(FjallConnect { store: Arc::new(store) })
    }

    /// The effective configuration and the version.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.store.config.settings()
    }

    fn settle_within(&self, limit: Duration) -> anyhow::Result<()> {
        let Store { keyspace, database, folder, .. } = &*self.store;
        let begun = Instant::now();
        keyspace.rotate_memtable().context("cannot flush fjall's memtable")?;
        // Between the end of one compaction and the start of the next there is a moment without any.
        let mut quiet = 0;
        let mut completed = database.compactions_completed();
        while quiet < QUIET_LOOKS {
            std::thread::sleep(QUIET_PAUSE);
            let now = database.compactions_completed();
            let (unflushed, compacting) = (keyspace.sealed_memtable_count(), database.active_compactions());
            let idle = unflushed == 0 && database.outstanding_flushes() == 0 && compacting == 0;
            quiet = if idle && now == completed { quiet + 1 } else { 0 };
            completed = now;
            if quiet == 0 && begun.elapsed() >= limit {
                bail!(
                    "fjall has not come to rest in {} s: {unflushed} memtables not flushed, {compacting} compactions \
                     under way. Is there room in {}, and is the folder still there?",
                    limit.as_secs(),
                    folder.display()
                );
            }
        }
        Ok(())
    }
}

/// A store is settled when it looked idle this often, so far apart.
const QUIET_LOOKS: u32 = 10;
const QUIET_PAUSE: Duration = Duration::from_millis(20);

/// How long it may take: fjall tells nobody that a flush failed, it just never ends.
const SETTLE_LIMIT: Duration = Duration::from_secs(600);

impl Connect for FjallConnect {
    type Target = FjallTarget;

    fn can(&self, ability: Ability) -> bool {
        match ability {
            Ability::Scan | Ability::Batch => true,
            // Its interface has no read of several keys at once.
            Ability::MultiGet | Ability::Ttl => false,
        }
    }

    fn tells_versions(&self) -> bool {
        false
    }

    fn blocks(&self) -> bool {
        true
    }

    /// Flushes the memtable and waits until nothing is flushed or compacted any more. Blocks.
    fn settle(&self) -> anyhow::Result<()> {
        self.settle_within(SETTLE_LIMIT)
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<FjallTarget>>>),
    ) -> anyhow::Result<()> {
        let target = || Rc::new(FjallTarget { store: self.store.clone() });
        clock::on_tokio(load(Ok((0..seat.connections).map(|_| target()).collect())))
    }

    async fn looks(&self) -> Vec<(u64, Look)> {
        footprint::of_own(&self.store.folder).map(|look| (0, look)).into_iter().collect()
    }
}

/// The store, used by one thread. Its calls block.
pub(crate) struct FjallTarget {
    store: Arc<Store>,
}

impl Target for FjallTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        let value = self.store.keyspace.get(key).map_err(|error| failure(&error))?;
        Ok(value.map(found))
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let Store { keyspace, database, config, .. } = &*self.store;
        keyspace.insert(key, &value[..]).map_err(|error| failure(&error))?;
        if config.durable {
            database.persist(config.persist).map_err(|error| failure(&error))?;
        }
        Ok(None)
    }

    async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
        let range = self.store.keyspace.range::<&[u8], _>((Bound::Included(from), Bound::Unbounded));
        let row = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner()?;
            Ok(Row { key: bytes(key), found: found(value) })
        };
        range.take(limit).map(row).collect::<fjall::Result<_>>().map_err(|error| failure(&error))
    }

    /// One entry of the journal: all or nothing.
    async fn put_batch(
        &self,
        pairs: Vec<(Bytes, Bytes)>,
        ttl: Option<Duration>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        let Store { keyspace, database, config, .. } = &*self.store;
        let mode = if config.durable { config.persist } else { PersistMode::Buffer };
        let mut batch = database.batch().durability(Some(mode));
        for (key, value) in &pairs {
            batch.insert(keyspace, &key[..], &value[..]);
        }
        batch.commit().map_err(|error| failure(&error))?;
        Ok(vec![None; pairs.len()])
    }

    async fn sleep_until(&self, at: Instant) {
        clock::block_until(at);
    }
}

fn found(value: Slice) -> Found {
    Found { version: None, value: bytes(value) }
}

/// Shares what fjall holds already; nothing is copied.
fn bytes(slice: Slice) -> Bytes {
    Bytes::from_owner(slice)
}

/// What an error counts as.
fn failure(error: &fjall::Error) -> Failure {
    let io = match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => Some(error.kind()),
        _ => None,
    };
    let kind = match io {
        Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => FailureKind::Full,
        _ => FailureKind::Refused,
    };
    Failure { kind, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::target::setup::Overrides;

    fn setup(folder: &Path, durable: bool, compressed: bool, overrides: &[(&str, &str)]) -> Setup {
        let overrides = overrides.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Setup {
            folder: folder.to_owned(),
            durable,
            compressed,
            cache_bytes: 16 << 20,
            capacity_bytes: 1 << 30,
            threads: 2,
            overrides: Overrides::new(overrides),
            trace: None,
        }
    }

    /// Runs `test` as a load thread would.
    fn with(connect: &FjallConnect, test: impl AsyncFnOnce(Rc<FjallTarget>)) {
        let seat = Seat { thread: 0, threads: 1, connections: 1 };
        connect.host(seat, async |targets| test(targets.unwrap().remove(0)).await).unwrap();
    }

    fn long(fill: u8) -> Bytes {
        Bytes::from(vec![fill; 5_000])
    }

    #[test]
    fn values_come_back_as_written_and_after_reopening() {
        for (durable, compressed, separation) in
            [(true, false, "true"), (false, true, "true"), (false, false, "false")]
        {
            let folder = tempfile::tempdir().unwrap();
            let open = || {
                let setup = setup(folder.path(), durable, compressed, &[("separation", separation)]);
                FjallConnect::open(setup).unwrap()
            };
            let connect = open();
            assert_eq!(connect.store.keyspace.is_kv_separated(), separation == "true");
            with(&connect, async |target| {
                assert!(target.get(b"a").await.unwrap().is_none());
                assert_eq!(target.put(b"a", long(1), None).await.unwrap(), None);
                target.put(b"a", long(2), None).await.unwrap();
                let pairs = vec![(Bytes::from("b"), long(3)), (Bytes::from("c"), long(4))];
                assert_eq!(target.put_batch(pairs, None).await.unwrap(), [None, None]);
            });
            connect.settle().unwrap();
            // Separated values are in blob files once their memtable was flushed.
            assert_eq!(connect.store.keyspace.blob_file_count() > 0, separation == "true");
            drop(connect);

            let connect = open();
            with(&connect, async |target| {
                assert_eq!(target.get(b"a").await.unwrap().unwrap().value, long(2));
                let rows = target.scan(b"b", 10).await.unwrap();
                let pairs: Vec<_> = rows.iter().map(|row| (&row.key[..], row.found.value.clone())).collect();
                assert_eq!(pairs, [(&b"b"[..], long(3)), (b"c", long(4))]);
                assert_eq!(target.scan(b"a", 2).await.unwrap().len(), 2);
            });
            let look = footprint::of_own(folder.path()).unwrap();
            assert!(look.gauges.occupied_bytes.unwrap() > 0);
        }
    }

    #[test]
    fn threads_share_one_store() {
        let folder = tempfile::tempdir().unwrap();
        let connect = FjallConnect::open(setup(folder.path(), true, false, &[])).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let connect = connect.clone();
                scope.spawn(move || {
                    with(&connect, async |target| {
                        for number in 0..50 {
                            target.put(&[thread, number], long(number), None).await.unwrap();
                        }
                    });
                });
            }
        });
        with(&connect, async |target| {
            let rows = target.scan(b"", 1000).await.unwrap();
            assert_eq!(rows.len(), 200);
            assert!(rows.iter().all(|row| row.found.value == long(row.key[1])));
        });
    }

    /// A flush that fails, here for want of a folder, is never reported by fjall: it must not be waited for for ever.
    #[test]
    fn a_store_that_cannot_flush_does_not_settle_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let connect = FjallConnect::open(setup(folder.path(), false, false, &[])).unwrap();
        with(&connect, async |target| assert!(target.put(b"a", long(1), None).await.is_ok()));
        std::fs::remove_dir_all(folder.path()).unwrap();
        let error = connect.settle_within(Duration::from_millis(100)).unwrap_err();
        assert!(format!("{error:#}").contains("1 memtables not flushed"), "{error:#}");
    }

    #[test]
    fn what_it_cannot_do_it_refuses_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let connect = FjallConnect::open(setup(folder.path(), false, false, &[])).unwrap();
        assert!(connect.blocks() && connect.can(Ability::Scan) && connect.can(Ability::Batch));
        assert!(!connect.can(Ability::MultiGet) && !connect.can(Ability::Ttl));
        with(&connect, async |target| {
            let ttl = Some(Duration::from_secs(1));
            for (failure, name) in [
                (target.put(b"a", long(1), ttl).await.unwrap_err(), "TTL"),
                (target.put_batch(Vec::new(), ttl).await.unwrap_err(), "TTL"),
                (target.multi_get(&[]).await.unwrap_err(), "multi-get"),
            ] {
                assert_eq!(failure.kind, FailureKind::Unsupported);
                assert!(failure.message.contains(name), "{}", failure.message);
            }
        });
    }

    #[test]
    fn settings_are_taken_and_mistakes_named() {
        let folder = tempfile::tempdir().unwrap();
        let given = [("memtable_bytes", "8MiB"), ("persist", "all")];
        let connect = FjallConnect::open(setup(folder.path(), true, true, &given)).unwrap();
        let settings = connect.settings();
        let has = |name: &str, value: &str| settings.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("memtable_bytes", "8388608") && has("cache_bytes", "16777216"), "{settings:?}");
        assert!(has("version", version()) && version().starts_with("3."), "{settings:?}");
        assert!(has("durability", "persist(SyncAll) after every write"), "{settings:?}");
        for (name, value, words) in [
            ("memtable", "1", "unknown here"),
            ("persist", "maybe", "data (fdatasync) or all (fsync)"),
            ("journal_bytes", "1MiB", "at least 64MiB"),
            ("block_bytes", "1", "from 1KiB to 1MiB"),
            ("worker_threads", "0", "at least 1"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let error = FjallConnect::open(setup(folder.path(), true, true, &[(name, value)])).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
        let error = FjallConnect::open(setup(folder.path(), true, true, &[])).err().unwrap();
        assert!(format!("{error:#}").contains("Locked"), "{error:#}");
    }

    #[test]
    fn a_full_disk_is_full() {
        let io = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(failure(&fjall::Error::Io(io())).kind, FailureKind::Full);
        assert_eq!(failure(&fjall::Error::Storage(LsmError::Io(io()))).kind, FailureKind::Full);
        assert_eq!(failure(&fjall::Error::Poisoned).kind, FailureKind::Refused);
    }
}
