//! How RocksDB is configured for a comparison, each value with its reason.
//!
//! Sources: the project's wiki ("Setup Options and Basic Tuning", "RocksDB Tuning Guide", "Direct IO", "BlobDB", "Block
//! Cache"), the comments of its headers (`options.h`, `advanced_options.h`, `table.h`, `cache.h`) and its own benchmark
//! script for blobs (`tools/run_blob_bench.sh`). Whatever is not set here is the library's default.

use anyhow::{Context, bail};
use rocksdb::statistics::StatsLevel;
use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, Options};

use crate::target::rocksdb::Layout;
use crate::target::setup::Setup;

/// What can be set otherwise.
const KNOWN: [&str; 19] = [
    "cache",
    "block_size",
    "bloom_bits",
    "write_buffer_size",
    "max_write_buffer_number",
    "background_jobs",
    "max_subcompactions",
    "target_file_size_base",
    "max_bytes_for_level_base",
    "dynamic_level_bytes",
    "direct_reads",
    "direct_io_for_flush_and_compaction",
    "recycle_log_file_num",
    "min_blob_size",
    "blob_file_size",
    "blob_gc",
    "blob_gc_age_cutoff",
    "blob_gc_force_threshold",
    "blob_cache",
];

/// Which implementation caches blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheKind {
    HyperClock,
    Lru,
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// `WriteOptions::sync`.
    pub(super) durable: bool,
    /// LZ4 as the header and the wiki ("Compression") advise for fast levels; none otherwise.
    compressed: bool,
    /// One budget for blocks, indexes, filters and blobs. Memtables come on top, as in the other stores.
    cache_bytes: usize,
    /// HyperClockCache is "generally recommended over LRUCache" (`cache.h`): less contention on hits.
    cache: CacheKind,
    /// 4 KiB, the default. The wiki proposes 16 KiB to save memory on indexes; here values begin at 1 KB and point reads
    /// decide, so that larger blocks would only read more.
    block_size: usize,
    /// 10 bits a key, about 1 % false positives ("Setup Options and Basic Tuning").
    bloom_bits: f64,
    /// 64 MiB, the default, and the other stores' memtable.
    write_buffer_size: usize,
    /// 4 instead of 2: with 2, writers stop whenever one flush is slower than filling the other buffer ("RocksDB Tuning
    /// Guide").
    max_write_buffer_number: i32,
    /// As many as cores, at least 2: one flush beside one compaction ("RocksDB Tuning Guide").
    background_jobs: i32,
    /// 1, the default: with few cores the clients need them.
    max_subcompactions: u32,
    /// Leveled: 64 MiB, the default. Blob: see [`blob_table_bytes`].
    target_file_size_base: u64,
    /// Leveled: 256 MiB, the default, which is what level 0 holds when it is compacted (4 × 64 MiB). Blob: 8 tables, as
    /// run_blob_bench.sh.
    max_bytes_for_level_base: u64,
    /// On, the default and the wiki's advice: bounds space amplification to about 1.1.
    dynamic_level_bytes: bool,
    /// On: what is read is cached by RocksDB only, within the budget ("Direct IO").
    direct_reads: bool,
    /// On, for the same reason.
    direct_io_for_flush_and_compaction: bool,
    /// 4 in sync mode: a log that overwrites an old one's blocks needs no allocation, so that an fdatasync has no
    /// metadata to write (`options.h`). 0 otherwise, the default.
    recycle_log_file_num: usize,
    blobs: Option<Blobs>,
}

/// Integrated BlobDB.
#[derive(Debug, Clone)]
struct Blobs {
    /// From this length values go to blob files: 512, so that every value of a comparison does.
    min_blob_size: u64,
    /// 256 MiB, the default.
    blob_file_size: u64,
    /// Garbage is collected, as any store that is compared by space has to.
    gc: bool,
    /// The oldest share of the files that is collected. 0.25, the default.
    gc_age_cutoff: f64,
    /// Garbage share of these files from which compactions are started on purpose. 1.0, the default: never.
    gc_force_threshold: f64,
    /// Blobs are cached too, in the same cache as blocks: without, direct reads would never find a value in memory.
    cache: bool,
}

impl Config {
    /// Takes what it knows of the setup.
    pub(super) fn new(setup: Setup, layout: Layout) -> anyhow::Result<Config> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut given = setup.overrides;
        let write_buffer_size = given.size("write_buffer_size", 64 << 20)?;
        let table_bytes = match layout {
            Layout::Leveled => 64 << 20,
            Layout::Blob { value_bytes } => blob_table_bytes(write_buffer_size, value_bytes),
        };
        let target_file_size_base = given.size("target_file_size_base", table_bytes)?;
        let base_bytes = match layout {
            Layout::Leveled => 256 << 20,
            Layout::Blob { .. } => 8 * target_file_size_base,
        };
        let mut config = Config {
            durable: setup.durable,
            compressed: setup.compressed,
            cache_bytes: usize::try_from(setup.cache_bytes)?,
            cache: match given.parsed("cache", "hyperclock".to_owned())?.as_str() {
                "hyperclock" => CacheKind::HyperClock,
                "lru" => CacheKind::Lru,
                other => bail!("--set cache={other}: hyperclock or lru"),
            },
            block_size: usize::try_from(given.size("block_size", 4 << 10)?)?,
            bloom_bits: given.parsed("bloom_bits", 10.0)?,
            write_buffer_size: usize::try_from(write_buffer_size)?,
            max_write_buffer_number: given.parsed("max_write_buffer_number", 4)?,
            background_jobs: given.parsed("background_jobs", i32::try_from(cores.max(2))?)?,
            max_subcompactions: given.parsed("max_subcompactions", 1)?,
            target_file_size_base,
            max_bytes_for_level_base: given.size("max_bytes_for_level_base", base_bytes)?,
            dynamic_level_bytes: given.parsed("dynamic_level_bytes", true)?,
            direct_reads: given.parsed("direct_reads", true)?,
            direct_io_for_flush_and_compaction: given.parsed("direct_io_for_flush_and_compaction", true)?,
            recycle_log_file_num: given.parsed("recycle_log_file_num", if setup.durable { 4 } else { 0 })?,
            blobs: None,
        };
        if let Layout::Blob { .. } = layout {
            config.blobs = Some(Blobs {
                min_blob_size: given.size("min_blob_size", 512)?,
                blob_file_size: given.size("blob_file_size", 256 << 20)?,
                gc: given.parsed("blob_gc", true)?,
                gc_age_cutoff: given.parsed("blob_gc_age_cutoff", 0.25)?,
                gc_force_threshold: given.parsed("blob_gc_force_threshold", 1.0)?,
                cache: given.parsed("blob_cache", true)?,
            });
        }
        let known = KNOWN.iter().filter(|name| config.blobs.is_some() || !name.contains("blob"));
        given.finish(&known.copied().collect::<Vec<_>>()).context("rocksdb")?;
        Ok(config)
    }

    /// As RocksDB takes it.
    pub(super) fn options(&self) -> Options {
        let cache = match self.cache {
            CacheKind::HyperClock => Cache::new_hyper_clock_cache(self.cache_bytes, 0),
            CacheKind::Lru => Cache::new_lru_cache(self.cache_bytes),
        };
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_block_size(self.block_size);
        table.set_bloom_filter(self.bloom_bits, false);
        // Indexes and filters within the budget too, those of level 0 always there ("Block Cache", "Setup Options").
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);

        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(self.compression());
        options.set_write_buffer_size(self.write_buffer_size);
        options.set_max_write_buffer_number(self.max_write_buffer_number);
        options.set_max_background_jobs(self.background_jobs);
        options.set_max_subcompactions(self.max_subcompactions);
        options.set_target_file_size_base(self.target_file_size_base);
        options.set_max_bytes_for_level_base(self.max_bytes_for_level_base);
        options.set_level_compaction_dynamic_level_bytes(self.dynamic_level_bytes);
        options.set_use_direct_reads(self.direct_reads);
        options.set_use_direct_io_for_flush_and_compaction(self.direct_io_for_flush_and_compaction);
        options.set_recycle_log_file_num(self.recycle_log_file_num);
        // Counters of bytes, without the timers that cost most ("Statistics"). The crate's name promises no histograms
        // either, but its number 2 is `kExceptTimers` in the library's `statistics.h`; the level below has no name there.
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        // Neither dumps of statistics nor their history: nobody reads them here.
        options.set_stats_dump_period_sec(0);
        options.set_stats_persist_period_sec(0);
        if let Some(blobs) = &self.blobs {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(blobs.min_blob_size);
            options.set_blob_file_size(blobs.blob_file_size);
            options.set_blob_compression_type(self.compression());
            options.set_enable_blob_gc(blobs.gc);
            options.set_blob_gc_age_cutoff(blobs.gc_age_cutoff);
            options.set_blob_gc_force_threshold(blobs.gc_force_threshold);
            if blobs.cache {
                options.set_blob_cache(&cache);
            }
        }
        options
    }

    fn compression(&self) -> DBCompressionType {
        if self.compressed { DBCompressionType::Lz4 } else { DBCompressionType::None }
    }

    /// By the names of the library where it has one.
    pub(super) fn settings(&self) -> Vec<(String, String)> {
        let durability = match self.durable {
            true => "sync: fdatasync of the log before every write returns",
            false => "log written without sync",
        };
        let cache = match self.cache {
            CacheKind::HyperClock => "hyperclock",
            CacheKind::Lru => "lru",
        };
        let compression = if self.compressed { "lz4" } else { "none" };
        let mut settings = vec![
            ("durability", durability.to_owned()),
            ("compression", compression.to_owned()),
            ("cache", cache.to_owned()),
            ("cache_bytes", self.cache_bytes.to_string()),
            ("cache_index_and_filter_blocks", "true".to_owned()),
            ("pin_l0_filter_and_index_blocks_in_cache", "true".to_owned()),
            ("block_size", self.block_size.to_string()),
            ("bloom_bits", self.bloom_bits.to_string()),
            ("write_buffer_size", self.write_buffer_size.to_string()),
            ("max_write_buffer_number", self.max_write_buffer_number.to_string()),
            ("max_background_jobs", self.background_jobs.to_string()),
            ("max_subcompactions", self.max_subcompactions.to_string()),
            ("target_file_size_base", self.target_file_size_base.to_string()),
            ("max_bytes_for_level_base", self.max_bytes_for_level_base.to_string()),
            ("level_compaction_dynamic_level_bytes", self.dynamic_level_bytes.to_string()),
            ("use_direct_reads", self.direct_reads.to_string()),
            ("use_direct_io_for_flush_and_compaction", self.direct_io_for_flush_and_compaction.to_string()),
            ("recycle_log_file_num", self.recycle_log_file_num.to_string()),
            ("enable_blob_files", self.blobs.is_some().to_string()),
        ];
        if let Some(blobs) = &self.blobs {
            settings.extend([
                ("min_blob_size", blobs.min_blob_size.to_string()),
                ("blob_file_size", blobs.blob_file_size.to_string()),
                ("blob_compression_type", compression.to_owned()),
                ("enable_blob_garbage_collection", blobs.gc.to_string()),
                ("blob_garbage_collection_age_cutoff", blobs.gc_age_cutoff.to_string()),
                ("blob_garbage_collection_force_threshold", blobs.gc_force_threshold.to_string()),
                ("blob_cache", if blobs.cache { "the block cache" } else { "none" }.to_owned()),
            ]);
        }
        settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Length of a table that holds the keys and blob references of one memtable: 32 bytes for each value that fits into it
/// (run_blob_bench.sh). With tables as long as those that hold values, the few megabytes of references would sit in one
/// or two files that every compaction rewrites as a whole.
fn blob_table_bytes(write_buffer_size: u64, value_bytes: u64) -> u64 {
    const SHORTEST: u64 = 64 << 10;
    (32 * write_buffer_size / value_bytes.max(1)).clamp(SHORTEST, write_buffer_size.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_references_shrink_with_the_length_of_values() {
        assert_eq!(blob_table_bytes(64 << 20, 1 << 10), 2 << 20);
        assert_eq!(blob_table_bytes(64 << 20, 4 << 10), 512 << 10);
        assert_eq!(blob_table_bytes(64 << 20, 32 << 10), 64 << 10);
        assert_eq!(blob_table_bytes(64 << 20, 0), 64 << 20);
        assert_eq!(blob_table_bytes(4 << 10, 1 << 30), 64 << 10);
    }
}
