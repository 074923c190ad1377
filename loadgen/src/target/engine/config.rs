//! What the embedded store is opened with: the common [`Setup`], turned into the engine's own options.
//!
//! Memory is shared out so that the engine keeps to the budget that its peers get: a shard's recent payloads (its
//! "tail") and its cache together take its share of `cache_bytes`, and no more.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use terrane_engine::Options;
use terrane_engine::compression::CompressionOptions;
use terrane_ocssd::{Device, DeviceKind};

use crate::target::setup::Setup;

/// What can be set with `--set`.
const KNOWN: [&str; 12] = [
    "cache_bytes",
    "tail_bytes",
    "index_bytes_max",
    "flush_bytes_max",
    "record_bytes_max",
    "append_reserve_chunks",
    "commit_mark_bytes",
    "compression_level",
    "compression_value_bytes_min",
    "groups",
    "chunk_bytes",
    "sector_bytes",
];

/// The tail's share of a shard's memory, and its limits in bytes. It serves young reads and holds what is not durable
/// yet; followers, for whom a server keeps a larger one, do not exist here.
const TAIL_SHARE: u64 = 8;
const TAIL_BYTES_MIN: u64 = 64 << 10;
const TAIL_BYTES_MAX: u64 = 32 << 20;

/// The effective configuration.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// Threads, and shards.
    pub(super) threads: u32,
    /// Groups of each shard.
    pub(super) groups: u32,
    /// Bytes of the device, if it must be laid out.
    pub(super) capacity_bytes: u64,
    /// Bytes of a chunk, if that was asked for.
    pub(super) chunk_bytes: Option<u64>,
    /// Bytes of a sector, if that was asked for.
    pub(super) sector_bytes: Option<u32>,
    /// Acknowledge when the direct write completes.
    pub(super) nosync: bool,
    /// Of each shard's store.
    pub(super) options: Options,
    /// How values are compressed, if they are.
    pub(super) compression: Option<CompressionOptions>,
    /// Where the media are recorded: `trace`.0 and so on.
    pub(super) trace: Option<PathBuf>,
}

impl Config {
    /// Reads the setup and its overrides.
    pub(super) fn new(setup: Setup) -> anyhow::Result<Config> {
        let Setup { folder: _, durable, compressed, cache_bytes, capacity_bytes, threads, overrides, trace } =
            setup;
        ensure!(threads > 0, "an embedded store needs at least one thread");
        let mut set = overrides;
        let usual = Options::default();
        let share = cache_bytes / u64::from(threads);
        let tail_bytes = (share / TAIL_SHARE).clamp(TAIL_BYTES_MIN, TAIL_BYTES_MAX);
        let tail_bytes = set.size("tail_bytes", tail_bytes)?;
        let cache_bytes = set.size("cache_bytes", share.saturating_sub(tail_bytes))?;
        let u32_size = |name: &'static str, bytes: u64| {
            u32::try_from(bytes).with_context(|| format!("--set {name}: it must be below 4 GiB"))
        };
        let flush_bytes_max = set.size("flush_bytes_max", usual.flush_bytes_max.into())?;
        let record_bytes_max = set.size("record_bytes_max", usual.record_bytes_max.into())?;
        let append_reserve_chunks = set.parsed("append_reserve_chunks", usual.append_reserve_chunks)?;
        let options = Options {
            cache_bytes,
            tail_bytes,
            index_bytes_max: set.size("index_bytes_max", usual.index_bytes_max)?,
            flush_bytes_max: u32_size("flush_bytes_max", flush_bytes_max)?,
            record_bytes_max: u32_size("record_bytes_max", record_bytes_max)?,
            append_reserve_chunks,
            // A leader's room for what its followers may hold up: without followers nobody asks for it.
            propose_reserve_chunks: append_reserve_chunks.saturating_add(1),
            commit_mark_bytes: set.size("commit_mark_bytes", usual.commit_mark_bytes)?,
        };
        options.validate().map_err(|error| anyhow::anyhow!("--set {error}"))?;
        let usual = CompressionOptions::default();
        let level = set.parsed("compression_level", usual.level)?;
        let value_bytes_min = set.size("compression_value_bytes_min", usual.value_bytes_min.into())?;
        let value_bytes_min = u32_size("compression_value_bytes_min", value_bytes_min)?;
        let compression = CompressionOptions { level, value_bytes_min };
        compression.validate().map_err(|error| anyhow::anyhow!("--set compression_{error}"))?;
        let groups = set.parsed("groups", 1_u32)?;
        ensure!((1..=1 << 20).contains(&groups), "--set groups={groups}: it must be 1 to 1048576");
        // 0 stands for "as the device suggests", and is no size that could be asked for.
        let asked = |bytes: u64| (bytes > 0).then_some(bytes);
        let chunk_bytes = asked(set.size("chunk_bytes", 0)?);
        let sector_bytes = asked(set.size("sector_bytes", 0)?);
        let sector_bytes = sector_bytes.map(|bytes| u32_size("sector_bytes", bytes)).transpose()?;
        set.finish(&KNOWN)?;
        Ok(Config {
            threads,
            groups,
            capacity_bytes,
            chunk_bytes,
            sector_bytes,
            nosync: !durable,
            options,
            compression: compressed.then_some(compression),
            trace,
        })
    }

    /// What is in force on this device, for the report.
    pub(super) fn settings(&self, device: &Device) -> Vec<(String, String)> {
        let found = device.superblock();
        let options = &self.options;
        let durability = match self.nosync {
            false => "acknowledged when durable: group commit, O_DSYNC or one flush",
            true => "acknowledged when the O_DIRECT write completes, without FUA or flush",
        };
        let compression = match self.compression {
            None => "none".to_owned(),
            Some(CompressionOptions { level, value_bytes_min }) => {
                format!("zstd level {level}, each value of at least {value_bytes_min} bytes by itself")
            }
        };
        let io = match found.kind {
            DeviceKind::Conventional => "io_uring, O_DIRECT, preallocated file",
            DeviceKind::Flash => "emulated Open-Channel flash in a file, managed by the host",
            DeviceKind::Zoned => "zoned device, managed by the host",
            DeviceKind::Fdp => "NVMe passthrough, placement handles",
        };
        let settings = [
            ("durability", durability.to_owned()),
            ("compression", compression),
            ("i/o", io.to_owned()),
            ("shards", format!("{} (one a thread)", self.threads)),
            ("groups", format!("{} a shard, of one replica", self.groups)),
            ("slice_bytes", format!("{} a shard", found.slice_bytes)),
            ("chunk_bytes", found.chunk_bytes.to_string()),
            ("sector_bytes", found.sector_bytes.to_string()),
            ("cache_bytes", format!("{} a shard", options.cache_bytes)),
            ("tail_bytes", format!("{} a shard", options.tail_bytes)),
            ("index_bytes_max", format!("{} a shard", options.index_bytes_max)),
            ("flush_bytes_max", options.flush_bytes_max.to_string()),
            ("record_bytes_max", options.record_bytes_max.to_string()),
            ("append_reserve_chunks", options.append_reserve_chunks.to_string()),
            ("commit_mark_bytes", options.commit_mark_bytes.to_string()),
        ];
        let trace = self.trace.iter().map(|base| ("trace", format!("{}.0 and so on", base.display())));
        settings.into_iter().chain(trace).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::setup::Overrides;

    fn config(cache_bytes: u64, threads: u32, set: &[(&str, &str)]) -> anyhow::Result<Config> {
        let pairs = set.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::new(Setup {
            folder: "unused".into(),
            durable: true,
            compressed: false,
            cache_bytes,
            capacity_bytes: 1 << 30,
            threads,
            overrides: Overrides::new(pairs),
            trace: None,
        })
    }

    #[test]
    fn the_memory_budget_is_shared_out_and_kept() {
        for (cache_bytes, threads) in [(128 << 20, 1), (128 << 20, 2), (1 << 30, 3), (1 << 20, 2)] {
            let options = config(cache_bytes, threads, &[]).unwrap().options;
            let used = (options.cache_bytes + options.tail_bytes) * u64::from(threads);
            assert!(used <= cache_bytes && used + u64::from(threads) > cache_bytes, "{used}");
        }
        // Less than the smallest tail: no cache, rather than a wrapped number.
        assert_eq!(config(1, 1, &[]).unwrap().options.cache_bytes, 0);
    }

    #[test]
    fn overrides_are_taken_by_the_engines_names() {
        let set = [("cache_bytes", "3MiB"), ("tail_bytes", "1MiB"), ("groups", "4"), ("chunk_bytes", "8MiB")];
        let config = self::config(1 << 30, 2, &set).unwrap();
        assert_eq!((config.options.cache_bytes, config.options.tail_bytes), (3 << 20, 1 << 20));
        assert_eq!((config.groups, config.chunk_bytes, config.sector_bytes), (4, Some(8 << 20), None));
    }

    #[test]
    fn bad_overrides_are_refused_by_name() {
        for (set, words) in [
            (("memtable", "1MiB"), "--set memtable: unknown here; this target knows cache_bytes"),
            (("groups", "0"), "--set groups=0: it must be 1"),
            (("tail_bytes", "1"), "--set tail_bytes is 1: it must be at least 64 KiB"),
            (("flush_bytes_max", "5GiB"), "--set flush_bytes_max: it must be below 4 GiB"),
            (("append_reserve_chunks", "0"), "--set append_reserve_chunks is 0"),
            (("commit_mark_bytes", "much"), "--set commit_mark_bytes=much"),
            (("compression_level", "10"), "--set compression_level is 10: it must be -20 to 9"),
            (("compression_value_bytes_min", "1"), "--set compression_value_bytes_min is 1"),
        ] {
            let error = format!("{:#}", config(1 << 30, 1, &[set]).unwrap_err());
            assert!(error.starts_with(words), "{error}");
        }
        assert!(config(1 << 30, 0, &[]).is_err());
    }
}
