//! Laying emulated flash out in a file: a device of the wanted size, and a volume for each shard on it.
//!
//! Sizes are those of a plain device of the kind that the specification's authors had (pages of 16 KiB, a few of them
//! hidden in the write buffer), in whole parallel units for each shard: one group for each, as if it were a channel.

use std::io;
use std::path::Path;

use crate::device::detect::Site;
use crate::device::managed::{self, Raw};
use crate::flash::{FlashDevice, FlashFileError, FlashOptions};
use crate::format::{FormatError, FormatOptions, read_superblock};
use crate::geometry::Geometry;
use crate::layout::{LayoutError, SLICE_CHUNKS_MIN, chunk_bytes_for};
use crate::lock::{DeviceLock, LockError};
use crate::superblock::{Superblock, SuperblockError};

/// Bytes of a sector, unless told otherwise.
const SECTOR_BYTES: u32 = 4096;

/// Bytes of the smallest write: a page.
const PAGE_BYTES: u32 = 16 << 10;

/// Bytes of the best write, and so of a stripe's part on one unit.
const BEST_WRITE_BYTES: u32 = 64 << 10;

/// Bytes below a write pointer that the device has not programmed yet.
const HIDDEN_BYTES: u32 = 64 << 10;

/// A chunk of one unit has at least two parts of a stripe.
const CHUNK_BYTES_MIN: u64 = 2 * BEST_WRITE_BYTES as u64;

/// What emulated flash is laid out as, beside what every device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlashLayout {
    /// Parallel units of each shard, over which its segments are striped. Default 4.
    pub units: u32,
    /// Whether its write buffer survives a power cut. Default true: the log does not write on behind a durable record,
    /// as a device without it would ask for.
    pub protected_buffer: bool,
}

impl Default for FlashLayout {
    fn default() -> Self {
        Self { units: 4, protected_buffer: true }
    }
}

/// The device for the options.
fn plan(options: &FormatOptions, flash: &FlashLayout) -> Result<FlashOptions, LayoutError> {
    let FormatOptions { shards, size_bytes, .. } = *options;
    if shards == 0 {
        return Err(LayoutError::NoShards);
    }
    let sector_bytes = options.sector_bytes.unwrap_or(SECTOR_BYTES);
    let sectors = |bytes: u32| bytes.checked_div(sector_bytes).unwrap_or(0).max(1);
    let units = flash.units.max(1);
    // A segment is a line: a chunk of each unit.
    let line_bytes = options.chunk_bytes.unwrap_or_else(|| chunk_bytes_for(size_bytes / u64::from(shards)));
    let part_bytes = u64::from(BEST_WRITE_BYTES.max(sector_bytes));
    let chunk_bytes = line_bytes / u64::from(units) / part_bytes * part_bytes;
    let chunk_sectors = u32::try_from(chunk_bytes / u64::from(sector_bytes.max(1))).ok();
    let Some(chunk_sectors) = chunk_sectors.filter(|_| chunk_bytes >= CHUNK_BYTES_MIN.max(2 * part_bytes))
    else {
        return Err(LayoutError::FlashChunk { chunk_bytes: line_bytes, units });
    };
    let row_bytes = u128::from(chunk_bytes) * u128::from(units) * u128::from(shards);
    let chunks = u32::try_from(u128::from(size_bytes) / row_bytes).unwrap_or(u32::MAX);
    let geometry = Geometry {
        groups: shards,
        parallel_units: units,
        chunks,
        chunk_sectors,
        sector_bytes,
        ws_min: sectors(PAGE_BYTES),
        ws_opt: sectors(BEST_WRITE_BYTES),
        mw_cunits: sectors(HIDDEN_BYTES),
        max_open: 0,
    };
    let slice = Geometry { groups: 1, ..geometry };
    let lines = |slice: &Geometry| {
        let volume = managed::volume_options(slice);
        volume.geometry_on(*slice, flash.protected_buffer).map_or(0, |slice| slice.chunks)
    };
    if u64::from(lines(&slice)) < SLICE_CHUNKS_MIN {
        let enough = (1..=1024)
            .find(|chunks| u64::from(lines(&Geometry { chunks: *chunks, ..slice })) >= SLICE_CHUNKS_MIN);
        // With no number of chunks, or with too many: then one of them cannot hold the metadata.
        let Some(enough) = enough.filter(|enough| *enough > chunks) else {
            return Err(LayoutError::FlashChunk { chunk_bytes: line_bytes, units });
        };
        let needed_bytes = u64::try_from(row_bytes * u128::from(enough)).unwrap_or(u64::MAX);
        return Err(LayoutError::TooSmall { size_bytes, shards, chunk_bytes: line_bytes, needed_bytes });
    }
    Ok(FlashOptions { geometry, protected_buffer: flash.protected_buffer, ..FlashOptions::default() })
}

/// Makes the file and lays it out. Blocks.
pub(crate) fn format(
    path: &Path,
    site: Option<&Site>,
    options: &FormatOptions,
    flash: &FlashLayout,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    let planned =
        plan(options, flash).map_err(|source| FormatError::Layout { path: path.to_path_buf(), source })?;
    planned.validate().map_err(|source| FlashFileError::Options { path: path.to_path_buf(), source })?;
    if let Some(site) = site {
        remove_what_was_there(path, site, options.force)?;
    }
    FlashDevice::create_file(path, &planned, progress)?;
    let laid_out = FlashDevice::open_file(path)
        .map_err(FormatError::from)
        .and_then(|device| managed::lay_out(path, &Raw::Flash(device), options, &mut |_, _| {}));
    if laid_out.is_err() {
        // The first error is the one worth reporting.
        let _ = std::fs::remove_file(path);
    }
    laid_out
}

fn remove_what_was_there(path: &Path, site: &Site, force: bool) -> Result<(), FormatError> {
    let error = |step| move |source: io::Error| FormatError::Io { step, path: path.to_path_buf(), source };
    if !force {
        match FlashDevice::open_file(path) {
            Ok(device) => managed::refuse_to_destroy(path, &Raw::Flash(device))?,
            Err(FlashFileError::NotOurs { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let lock = DeviceLock::take(path, site.node()).map_err(|refused| match refused {
        LockError::Held => FormatError::InUse { path: path.to_path_buf() },
        LockError::Io(source) => error("open")(source),
    })?;
    let is_flash = FlashDevice::is_in_file(path).map_err(error("read"))?;
    if !force && !is_flash {
        let found = read_superblock(lock.file()).map_err(error("read"))?;
        if !matches!(found, Err(SuperblockError::Blank | SuperblockError::NotOurs)) {
            return Err(FormatError::AlreadyFormatted {
                path: path.to_path_buf(),
                found: found.map(Box::new),
            });
        }
        if lock.file().metadata().map_err(error("look at"))?.len() > 0 {
            return Err(FormatError::NotEmpty { path: path.to_path_buf() });
        }
    }
    // While it is locked: nobody works on it.
    std::fs::remove_file(path).map_err(error("remove"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn options(size_bytes: u64, shards: u32, chunk_bytes: Option<u64>) -> FormatOptions {
        FormatOptions {
            cluster: 1,
            node: 1,
            shards,
            size_bytes,
            chunk_bytes,
            sector_bytes: None,
            force: false,
        }
    }

    #[test]
    fn segments_are_as_large_as_on_a_conventional_device() {
        for (size, shards, units, line) in
            [(1024 * MIB, 2, 4, 8 * MIB), (64 << 30, 2, 8, 64 * MIB), (1024 * MIB, 1, 1, 8 * MIB)]
        {
            let flash = FlashLayout { units, ..FlashLayout::default() };
            let planned = plan(&options(size, shards, None), &flash).unwrap();
            planned.validate().unwrap();
            let Geometry { groups, parallel_units, .. } = planned.geometry;
            assert_eq!((groups, parallel_units), (shards, units));
            assert_eq!(planned.geometry.chunk_bytes() * u64::from(units), line);
            let used = planned.geometry.slice_bytes();
            assert!(used <= size && used > size - line * u64::from(shards), "{used} of {size}");
        }
    }

    #[test]
    fn what_is_too_small_says_how_much_is_needed() {
        let flash = FlashLayout::default();
        let error = plan(&options(MIB, 2, Some(MIB)), &flash).unwrap_err();
        let LayoutError::TooSmall { needed_bytes, .. } = error else { panic!("{error}") };
        assert!(plan(&options(needed_bytes, 2, Some(MIB)), &flash).is_ok());
        assert!(plan(&options(needed_bytes - 1, 2, Some(MIB)), &flash).is_err());
        // Parts of 64 KiB are smaller than two best writes; those of 128 KiB leave no room beside what the buffer hides,
        // and those of 256 KiB none for the list of so many chunks.
        for (size, line) in [(1 << 30, 256 << 10), (1 << 30, 512 << 10), (64 << 30, MIB)] {
            let error = plan(&options(size, 2, Some(line)), &flash).unwrap_err();
            assert!(matches!(error, LayoutError::FlashChunk { units: 4, .. }), "{size} in {line}: {error}");
        }
        assert_eq!(plan(&options(1 << 30, 0, None), &flash), Err(LayoutError::NoShards));
    }
}
