//! Flash that the host manages, as a node's device: emulated or zoned, a volume for each slice.
//!
//! ```text
//! device      | units or zones of slice 0      | of slice 1                     | ...
//! slice       | metadata, spares, lines        |                                |
//!               `- label: the superblock
//! ```
//!
//! The superblock cannot stand in front, where nothing may be overwritten: every slice's volume has it as its label.
//! Slice 0 begins at the device's first chunk, so that its label is found before it is known how the device is divided.
//!
//! Invariants:
//! - `format` makes slice 0's old metadata unreadable before anything else, and writes its new label last: a device that
//!   has one was laid out to its end.
//! - Whatever a medium needs a ring for happens on a thread of its own here, since the caller may be on a runtime
//!   already.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use crate::device::error::OpenError;
use crate::device::kind::{DeviceKind, DeviceShape};
use crate::device::media::DeviceMedia;
use crate::flash::{FlashDevice, FlashMedia, FlashSliceError};
use crate::format::{FormatError, FormatOptions, read_superblock};
use crate::geometry::Geometry;
use crate::layout::SLICE_CHUNKS_MIN;
use crate::media::{ChunkState, Media, MediaError};
use crate::superblock::{FORMAT_VERSION, Superblock, SuperblockError};
use crate::volume::{Volume, VolumeError, VolumeOptions};
use crate::zoned::{ZonedDevice, ZonedMedia};

/// Of so many chunks of a parallel unit one is kept to take the place of a bad one.
const CHUNKS_PER_SPARE: u32 = 64;

/// Fewest of them, where a unit is small.
const SPARES_MIN: u32 = 2;

/// A device beneath its volumes.
#[derive(Debug, Clone)]
pub(crate) enum Raw {
    Flash(FlashDevice),
    Zoned(ZonedDevice),
}

/// A slice beneath its volume.
#[expect(clippy::large_enum_variant, reason = "one of them, for the moment until its volume has it")]
enum RawMedia {
    Flash(FlashMedia),
    Zoned(ZonedMedia),
}

/// The same call on whichever it is.
macro_rules! of_each {
    ($media:expr, $slice:ident => $call:expr) => {
        match $media {
            RawMedia::Flash($slice) => $call,
            RawMedia::Zoned($slice) => $call,
        }
    };
}

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub(crate) struct Managed {
    path: PathBuf,
    superblock: Superblock,
    raw: Raw,
}

impl Raw {
    fn kind(&self) -> DeviceKind {
        match self {
            Self::Flash(_) => DeviceKind::Flash,
            Self::Zoned(_) => DeviceKind::Zoned,
        }
    }

    /// What the device says of itself now.
    fn shape(&self) -> DeviceShape {
        match self {
            Self::Flash(device) => {
                let geometry = *device.geometry();
                DeviceShape { geometry, zone_bytes: 0, size_bytes: geometry.slice_bytes() }
            }
            Self::Zoned(device) => {
                let shape = device.shape();
                let geometry = shape.geometry(shape.zones, shape.open_max);
                let zone_bytes = shape.zone_sectors * u64::from(shape.sector_bytes);
                DeviceShape { geometry, zone_bytes, size_bytes: zone_bytes * u64::from(shape.zones) }
            }
        }
    }

    /// The medium of a slice, for this thread.
    fn slice(&self, path: &Path, shard: u32, shards: u32) -> Result<RawMedia, OpenError> {
        match self {
            Self::Flash(device) => match device.slice(shard, shards) {
                Ok(media) => Ok(RawMedia::Flash(media)),
                Err(FlashSliceError::InUse { .. }) => {
                    Err(OpenError::SliceInUse { path: path.to_path_buf(), shard })
                }
                Err(source) => Err(OpenError::FlashSlice { path: path.to_path_buf(), source }),
            },
            Self::Zoned(device) => Ok(RawMedia::Zoned(device.slice(device.share(shard, shards)?)?)),
        }
    }
}

impl Managed {
    /// Reads the superblock, and compares it with the device. Blocks.
    pub(crate) fn open(path: &Path, raw: Raw) -> Result<Self, OpenError> {
        let found = raw.kind();
        let superblock = match label_of(path, &raw)? {
            Ok(superblock) => superblock,
            // It may be the copy of a device that could be overwritten, or have been one itself.
            Err(source) => match File::open(path).and_then(|file| read_superblock(&file)) {
                Ok(Ok(front)) => front,
                _ => return Err(OpenError::Superblock { path: path.to_path_buf(), source }),
            },
        };
        if superblock.kind != found {
            let laid_out = superblock.kind;
            return Err(OpenError::KindDiffers { path: path.to_path_buf(), laid_out, found });
        }
        let shape = raw.shape();
        let differences = superblock.shape.differences(&shape);
        if !differences.is_empty() {
            let shrank = superblock.shape.shrank(&shape);
            return Err(OpenError::ShapeDiffers { path: path.to_path_buf(), differences, shrank });
        }
        Ok(Self { path: path.to_path_buf(), superblock, raw })
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the volume of a slice.
    pub(crate) async fn slice(&self, shard: u32) -> Result<DeviceMedia, OpenError> {
        let shards = self.superblock.shards;
        let path = || self.path.clone();
        if shard >= shards {
            return Err(OpenError::NoSuchSlice { path: path(), shard, shards });
        }
        let refused = |source| OpenError::Volume { path: path(), shard, source };
        let media = match self.raw.slice(&self.path, shard, shards)? {
            RawMedia::Flash(media) => DeviceMedia::Flash(Volume::open(media).await.map_err(refused)?),
            RawMedia::Zoned(media) => DeviceMedia::Zoned(Volume::open(media).await.map_err(refused)?),
        };
        // The whole device is what it was; this slice may still be a stranger's, or of another time.
        let label = match &media {
            DeviceMedia::Flash(volume) => volume.label(),
            DeviceMedia::Zoned(volume) => volume.label(),
            DeviceMedia::File(_) | DeviceMedia::Fdp(_) => unreachable!("it was just made"),
        };
        match Superblock::choose([label, &[]]) {
            Ok(label) if label == self.superblock => Ok(media),
            _ => Err(OpenError::ForeignSlice { path: path(), shard }),
        }
    }
}

/// The superblock in slice 0's label. Blocks.
fn label_of(path: &Path, raw: &Raw) -> Result<Result<Superblock, SuperblockError>, OpenError> {
    let read = on_a_ring(async || {
        let media = raw.slice(path, 0, 1)?;
        let label = of_each!(&media, media => Volume::read_label(media).await);
        match label {
            Ok(label) => Ok(Superblock::choose([&label, &[]])),
            Err(VolumeError::Blank) => Ok(Err(SuperblockError::Blank)),
            Err(VolumeError::Newer { version, .. }) => Ok(Err(SuperblockError::Newer { version })),
            Err(VolumeError::Damaged(_)) => Ok(Err(SuperblockError::Damaged {
                reason: "no copy of the volume's metadata can be trusted",
            })),
            Err(source) => Err(OpenError::Volume { path: path.to_path_buf(), shard: 0, source }),
        }
    });
    read.map_err(|source| OpenError::Io { step: "set up a ring for", path: path.to_path_buf(), source })?
}

/// Runs what needs a ring on a thread of its own, and waits for it.
pub(crate) fn on_a_ring<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> io::Result<T> {
    let run = || {
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
        Ok(runtime.block_on(work()))
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What is refused without force: a device that holds anything.
pub(crate) fn refuse_to_destroy(path: &Path, raw: &Raw) -> Result<(), FormatError> {
    let path_buf = || path.to_path_buf();
    match label_of(path, raw) {
        Ok(Err(SuperblockError::Blank)) => {}
        Ok(found) => {
            return Err(FormatError::AlreadyFormatted { path: path_buf(), found: found.map(Box::new) });
        }
        Err(error) => return Err(FormatError::Open(Box::new(error))),
    }
    let holds_data = on_a_ring(async || {
        let media = raw.slice(path, 0, 1)?;
        let report = of_each!(&media, media => media.report().await);
        let report = report.map_err(|source| OpenError::Media { path: path_buf(), source })?;
        Ok(report.iter().any(|info| matches!(info.state, ChunkState::Open | ChunkState::Closed)))
    });
    match holds_data {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(FormatError::NotEmpty { path: path_buf() }),
        Ok(Err(error)) => Err(FormatError::Open(Box::new(error))),
        Err(source) => Err(FormatError::Io { step: "set up a ring for", path: path_buf(), source }),
    }
}

/// Resets every chunk and makes a volume on each slice, slice 0's label last. Blocks. `progress` is called with bytes of
/// chunks that were reset or free, and bytes of all.
pub(crate) fn lay_out(
    path: &Path,
    raw: &Raw,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    let (said, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let laid_out = scope.spawn(move || {
            let refused = |error| FormatError::Open(Box::new(error));
            let no_ring =
                |source| FormatError::Io { step: "set up a ring for", path: path.to_path_buf(), source };
            on_a_ring(async || {
                reset_all(path, raw, options.shards, &said).await.map_err(refused)?;
                make_volumes(path, raw, options).await
            })
            .map_err(no_ring)?
        });
        // Until the thread is done with it.
        for (done, all) in heard {
            progress(done, all);
        }
        laid_out.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn reset_all(
    path: &Path,
    raw: &Raw,
    shards: u32,
    said: &mpsc::Sender<(u64, u64)>,
) -> Result<(), OpenError> {
    let all = raw.shape().geometry.slice_bytes();
    let mut done = 0;
    let _ = said.send((0, all));
    for shard in 0..shards {
        let media = raw.slice(path, shard, shards)?;
        of_each!(&media, media => reset_slice(media, &mut done, |done| _ = said.send((done, all))).await)
            .map_err(|source| OpenError::Media { path: path.to_path_buf(), source })?;
    }
    let _ = said.send((all, all));
    Ok(())
}

/// From the first chunk on, where the metadata is. A chunk that cannot be reset is for the volume to judge.
async fn reset_slice(media: &impl Media, done: &mut u64, said: impl Fn(u64)) -> Result<(), MediaError> {
    let chunk_bytes = media.geometry().chunk_bytes();
    for info in media.report().await? {
        if matches!(info.state, ChunkState::Open | ChunkState::Closed) {
            let reset = media.reset(info.id).await;
            if let Err(error @ (MediaError::PowerLost | MediaError::Rule { .. })) = reset {
                return Err(error);
            }
        }
        *done += chunk_bytes;
        said(*done);
    }
    media.flush().await
}

async fn make_volumes(path: &Path, raw: &Raw, options: &FormatOptions) -> Result<Superblock, FormatError> {
    let shards = options.shards;
    let mut superblock = None;
    for shard in (0..shards).rev() {
        let media = raw.slice(path, shard, shards).map_err(|error| FormatError::Open(Box::new(error)))?;
        let refused = |source| FormatError::Volume { path: path.to_path_buf(), shard, source };
        let device = of_each!(&media, media => *media.geometry());
        let protected = of_each!(&media, media => media.protects_buffer());
        let mut volume = volume_options(&device);
        let slice = volume.geometry_on(device, protected).map_err(refused)?;
        let planned = superblock_for(raw, options, &slice);
        if u64::from(slice.chunk_count()) < SLICE_CHUNKS_MIN {
            let (has, needed) = (slice.chunk_count(), SLICE_CHUNKS_MIN as u32);
            return Err(FormatError::TooFewChunks { path: path.to_path_buf(), shards, has, needed });
        }
        volume.label = planned.encode().to_vec();
        superblock = Some(planned);
        match media {
            RawMedia::Flash(media) => drop(Volume::create(media, &volume).await.map_err(refused)?),
            RawMedia::Zoned(media) => drop(Volume::create(media, &volume).await.map_err(refused)?),
        }
    }
    superblock.ok_or_else(|| FormatError::Layout {
        path: path.to_path_buf(),
        source: crate::layout::LayoutError::NoShards,
    })
}

/// One stripe over all units of a slice, and spares in each.
pub(crate) fn volume_options(slice: &Geometry) -> VolumeOptions {
    let spare_chunks_per_unit = (slice.chunks / CHUNKS_PER_SPARE).max(SPARES_MIN);
    VolumeOptions { spare_chunks_per_unit, ..VolumeOptions::default() }
}

fn superblock_for(raw: &Raw, options: &FormatOptions, slice: &Geometry) -> Superblock {
    Superblock {
        version: FORMAT_VERSION,
        sequence: 1,
        cluster: options.cluster,
        node: options.node,
        shards: options.shards,
        sector_bytes: slice.sector_bytes,
        chunk_bytes: slice.chunk_bytes(),
        slice_bytes: slice.slice_bytes(),
        kind: raw.kind(),
        shape: raw.shape(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flash::FlashOptions;

    fn folder() -> tempfile::TempDir {
        // In the build's folder: a system's `/tmp` may be memory, without direct I/O.
        let program = std::env::current_exe().unwrap();
        tempfile::tempdir_in(program.parent().unwrap()).unwrap()
    }

    const OPTIONS: FormatOptions = FormatOptions {
        cluster: 7,
        node: 2,
        shards: 2,
        size_bytes: 0,
        chunk_bytes: None,
        sector_bytes: None,
        force: false,
    };

    fn device(path: &Path, bad_at_birth: f64) -> Raw {
        let geometry = Geometry { chunks: 20, ..FlashOptions::default().geometry };
        let options =
            FlashOptions { geometry, bad_at_birth, protected_buffer: true, ..FlashOptions::default() };
        FlashDevice::create_file(path, &options, &mut |_, _| {}).unwrap();
        Raw::Flash(FlashDevice::open_file(path).unwrap())
    }

    #[test]
    fn every_chunk_is_reset_with_progress_and_slice_0_is_labelled() {
        let folder = folder();
        let path = folder.path().join("flash");
        let raw = device(&path, 0.0);
        let laid_out = lay_out(&path, &raw, &OPTIONS, &mut |_, _| {}).unwrap();
        let mut steps = Vec::new();
        let again = lay_out(&path, &raw, &OPTIONS, &mut |done, all| steps.push((done, all))).unwrap();
        assert_eq!(laid_out, again);
        let all = laid_out.shape.size_bytes;
        assert_eq!((steps.first(), steps.last()), (Some(&(0, all)), Some(&(all, all))));
        assert!(steps.is_sorted() && steps.len() >= 80);
        assert!(matches!(
            refuse_to_destroy(&path, &raw),
            Err(FormatError::AlreadyFormatted { found: Ok(_), .. })
        ));
        assert_eq!(*Managed::open(&path, raw).unwrap().superblock(), laid_out);
    }

    #[test]
    fn what_holds_something_else_is_not_laid_out_by_mistake() {
        let folder = folder();
        let path = folder.path().join("flash");
        let raw = device(&path, 0.0);
        refuse_to_destroy(&path, &raw).unwrap();
        on_a_ring(async || {
            let media = raw.slice(&path, 1, 2).unwrap();
            let buf = crate::AlignedBuf::zeroed(16 << 10);
            let chunk = crate::ChunkId(9);
            of_each!(&media, media => media.write(chunk, 0, buf, crate::Durability::Durable).await.0)
                .unwrap();
        })
        .unwrap();
        assert!(matches!(refuse_to_destroy(&path, &raw), Err(FormatError::NotEmpty { .. })));
    }

    #[test]
    fn more_bad_chunks_than_spares_are_refused() {
        let folder = folder();
        let path = folder.path().join("flash");
        let raw = device(&path, 0.5);
        let error = lay_out(&path, &raw, &OPTIONS, &mut |_, _| {}).unwrap_err();
        assert!(
            matches!(error, FormatError::Volume { source: VolumeError::TooFewSpares { .. }, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("too few spare chunks"), "{error}");
    }
}
