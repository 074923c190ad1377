//! Flash that the host manages, as a node's device: emulated or zoned, a volume for each slice.
//!
//! ```text
//! device      | units or zones of slice 0      | of slice 1                     | ...
//! slice       | metadata, spares, lines        |                                |
//!               `- label: the superblock
//! ```
//!
//! The superblock cannot stand in front, where nothing may be overwritten: every slice's volume has it as its label.
//! Slice 0 begins at the device's first chunk, so that its label is found before it is known how the device is divided:
//! where a slice keeps metadata depends only on whether it has one parallel unit or more, and both are tried.
//!
//! Invariants:
//! - Slice 0's label alone says what a device is: it is the last thing that a format writes. A device that has one was
//!   laid out to its end.
//! - A format erases the label of an earlier one, and flushes that, before any of its data: after a power cut at any
//!   moment an old device is whole, or has no label.
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
use crate::layout::{LayoutError, SLICE_CHUNKS_MIN};
use crate::media::{ChunkState, Media, MediaError};
use crate::overlay::Overlay;
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

/// The same call on whichever it is.
macro_rules! of_each {
    ($raw:expr, $device:ident => $call:expr) => {
        match $raw {
            Raw::Flash($device) => $call,
            Raw::Zoned($device) => $call,
        }
    };
}

/// A device as a layout needs it: whole, and in slices.
trait Divided {
    const KIND: DeviceKind;
    type Slice: Media;

    /// What the device says of itself now.
    fn shape(&self) -> DeviceShape;

    /// The medium of a slice, for this thread.
    fn slice_of(&self, path: &Path, shard: u32, shards: u32) -> Result<Self::Slice, OpenError>;
}

impl Divided for FlashDevice {
    const KIND: DeviceKind = DeviceKind::Flash;
    type Slice = FlashMedia;

    fn shape(&self) -> DeviceShape {
        let geometry = *self.geometry();
        DeviceShape { geometry, zone_bytes: 0, size_bytes: geometry.slice_bytes() }
    }

    fn slice_of(&self, path: &Path, shard: u32, shards: u32) -> Result<FlashMedia, OpenError> {
        self.slice(shard, shards).map_err(|source| match source {
            FlashSliceError::InUse { .. } => OpenError::SliceInUse { path: path.to_path_buf(), shard },
            source => OpenError::FlashSlice { path: path.to_path_buf(), source },
        })
    }
}

impl Divided for ZonedDevice {
    const KIND: DeviceKind = DeviceKind::Zoned;
    type Slice = ZonedMedia;

    fn shape(&self) -> DeviceShape {
        let shape = ZonedDevice::shape(self);
        let geometry = shape.geometry(shape.zones, shape.open_max);
        let zone_bytes = shape.zone_sectors * u64::from(shape.sector_bytes);
        DeviceShape { geometry, zone_bytes, size_bytes: zone_bytes * u64::from(shape.zones) }
    }

    fn slice_of(&self, _path: &Path, shard: u32, shards: u32) -> Result<ZonedMedia, OpenError> {
        Ok(self.slice(self.share(shard, shards)?)?)
    }
}

/// An open device. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub(crate) struct Managed {
    path: PathBuf,
    superblock: Superblock,
    raw: Raw,
}

impl Managed {
    /// Reads the superblock, and compares it with the device. Blocks.
    pub(crate) fn open(path: &Path, raw: Raw) -> Result<Self, OpenError> {
        let found = of_each!(&raw, device => kind_of(device));
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
        let shape = of_each!(&raw, device => Divided::shape(device));
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

    /// Opens the volume of a slice. If it is only to be read, what that repairs is repaired in memory.
    pub(crate) async fn slice(&self, shard: u32, read_only: bool) -> Result<DeviceMedia, OpenError> {
        let shards = self.superblock.shards;
        let path = || self.path.clone();
        if shard >= shards {
            return Err(OpenError::NoSuchSlice { path: path(), shard, shards });
        }
        let refused = |source| OpenError::Volume { path: path(), shard, source };
        let unread = |source| OpenError::Media { path: path(), source };
        let media = match &self.raw {
            Raw::Flash(device) => {
                let media = device.slice_of(&self.path, shard, shards)?;
                if read_only {
                    let media = Overlay::new(media).await.map_err(unread)?;
                    DeviceMedia::FlashOverlay(Volume::open(media).await.map_err(refused)?)
                } else {
                    DeviceMedia::Flash(Volume::open(media).await.map_err(refused)?)
                }
            }
            Raw::Zoned(device) => {
                let media = device.slice_of(&self.path, shard, shards)?;
                if read_only {
                    let media = Overlay::new(media).await.map_err(unread)?;
                    DeviceMedia::ZonedOverlay(Volume::open(media).await.map_err(refused)?)
                } else {
                    DeviceMedia::Zoned(Volume::open(media).await.map_err(refused)?)
                }
            }
        };
        // The whole device is what it was; this slice may still be a stranger's, or of another time.
        let label = match &media {
            DeviceMedia::Flash(volume) => volume.label(),
            DeviceMedia::FlashOverlay(volume) => volume.label(),
            DeviceMedia::Zoned(volume) => volume.label(),
            DeviceMedia::ZonedOverlay(volume) => volume.label(),
            DeviceMedia::File(_) | DeviceMedia::Fdp(_) => unreachable!("it was just made"),
        };
        match Superblock::choose([label, &[]]) {
            Ok(label) if label == self.superblock => Ok(media),
            _ => Err(OpenError::ForeignSlice { path: path(), shard }),
        }
    }
}

fn kind_of<D: Divided>(_device: &D) -> DeviceKind {
    D::KIND
}

/// The superblock in slice 0's label. Blocks.
fn label_of(path: &Path, raw: &Raw) -> Result<Result<Superblock, SuperblockError>, OpenError> {
    let read = on_a_ring(async || of_each!(raw, device => find_label(path, device).await));
    read.map_err(|source| OpenError::Io { step: "set up a ring for", path: path.to_path_buf(), source })?
}

/// The superblock in slice 0's label, however the device is divided.
async fn find_label<D: Divided>(
    path: &Path,
    device: &D,
) -> Result<Result<Superblock, SuperblockError>, OpenError> {
    let units = device.shape().geometry.unit_count();
    let of_several = read_label(path, device, 1).await?;
    let is_of_lone = |label: &Superblock| units > 1 && label.shards == units;
    if units < 2 || of_several.as_ref().is_ok_and(|label| !is_of_lone(label)) {
        return Ok(of_several);
    }
    // What was read may be the label of slice 1, whose metadata stands where slices of several units keep a second copy.
    let of_lone = read_label(path, device, units).await?;
    Ok(match (of_several, of_lone) {
        (_, Ok(label)) if is_of_lone(&label) => Ok(label),
        (Ok(_), Ok(_)) => Err(SuperblockError::Damaged { reason: "they are of two devices" }),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    })
}

/// The superblock in slice 0's label, of a device divided into so many slices.
async fn read_label<D: Divided>(
    path: &Path,
    device: &D,
    shards: u32,
) -> Result<Result<Superblock, SuperblockError>, OpenError> {
    let Some(media) = first_slice(path, device, shards)? else { return Ok(Err(SuperblockError::Blank)) };
    match Volume::read_label(&media).await {
        Ok(label) => Ok(Superblock::choose([&label, &[]])),
        Err(VolumeError::Blank) => Ok(Err(SuperblockError::Blank)),
        Err(VolumeError::Newer { version, .. }) => Ok(Err(SuperblockError::Newer { version })),
        Err(VolumeError::Damaged(_)) => {
            Ok(Err(SuperblockError::Damaged { reason: "no copy of the volume's metadata can be trusted" }))
        }
        Err(source) => Err(OpenError::Volume { path: path.to_path_buf(), shard: 0, source }),
    }
}

/// Slice 0 of a device divided into so many. `None`: it cannot be.
fn first_slice<D: Divided>(path: &Path, device: &D, shards: u32) -> Result<Option<D::Slice>, OpenError> {
    match device.slice_of(path, 0, shards) {
        Ok(media) => Ok(Some(media)),
        Err(OpenError::FlashSlice {
            source: FlashSliceError::Indivisible { .. } | FlashSliceError::TooFewOpen { .. },
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
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
        let report = of_each!(raw, device => device.slice_of(path, 0, 1)?.report().await);
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

/// Erases the old label, resets every chunk and makes a volume on each slice, slice 0's label last. Blocks. `progress` is
/// called with bytes of chunks that were reset or free, and bytes of all.
pub(crate) fn lay_out(
    path: &Path,
    raw: &Raw,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    let (said, heard) = mpsc::channel();
    std::thread::scope(|scope| {
        let laid_out = scope.spawn(move || {
            let no_ring =
                |source| FormatError::Io { step: "set up a ring for", path: path.to_path_buf(), source };
            on_a_ring(async || of_each!(raw, device => lay_out_on(path, device, options, &said).await))
                .map_err(no_ring)?
        });
        // Until the thread is done with it.
        for (done, all) in heard {
            progress(done, all);
        }
        laid_out.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn lay_out_on<D: Divided>(
    path: &Path,
    device: &D,
    options: &FormatOptions,
    said: &mpsc::Sender<(u64, u64)>,
) -> Result<Superblock, FormatError> {
    let refused = |error| FormatError::Open(Box::new(error));
    // What cannot be laid out destroys nothing.
    let (superblock, volume) = plan(path, device, options)?;
    erase_label(path, device).await.map_err(refused)?;
    reset_all(path, device, options.shards, said).await.map_err(refused)?;
    for shard in (0..options.shards).rev() {
        let media = device.slice_of(path, shard, options.shards).map_err(refused)?;
        let made = Volume::create(media, &volume).await;
        made.map_err(|source| FormatError::Volume { path: path.to_path_buf(), shard, source })?;
    }
    Ok(superblock)
}

/// The superblock, and the volume of every slice: they are alike.
fn plan<D: Divided>(
    path: &Path,
    device: &D,
    options: &FormatOptions,
) -> Result<(Superblock, VolumeOptions), FormatError> {
    let shards = options.shards;
    if shards == 0 {
        return Err(FormatError::Layout { path: path.to_path_buf(), source: LayoutError::NoShards });
    }
    let media = device.slice_of(path, 0, shards).map_err(|error| FormatError::Open(Box::new(error)))?;
    let mut volume = volume_options(media.geometry());
    let slice = volume
        .geometry_on(*media.geometry(), media.protects_buffer())
        .map_err(|source| FormatError::Volume { path: path.to_path_buf(), shard: 0, source })?;
    if u64::from(slice.chunk_count()) < SLICE_CHUNKS_MIN {
        let (has, needed) = (slice.chunk_count(), SLICE_CHUNKS_MIN as u32);
        return Err(FormatError::TooFewChunks { path: path.to_path_buf(), shards, has, needed });
    }
    let superblock = Superblock {
        version: FORMAT_VERSION,
        sequence: 1,
        cluster: options.cluster,
        node: options.node,
        shards,
        sector_bytes: slice.sector_bytes,
        chunk_bytes: slice.chunk_bytes(),
        slice_bytes: slice.slice_bytes(),
        kind: D::KIND,
        shape: device.shape(),
    };
    volume.label = superblock.encode().to_vec();
    Ok((superblock, volume))
}

/// Erases slice 0's metadata, wherever a device that was laid out before keeps it. What counts goes first: after that
/// there is no device any more, and nothing that the rest holds is read.
async fn erase_label<D: Divided>(path: &Path, device: &D) -> Result<(), OpenError> {
    let units = device.shape().geometry.unit_count();
    let of_lone = matches!(find_label(path, device).await?, Ok(label) if label.shards == units);
    for shards in if of_lone { [units, 1] } else { [1, units] } {
        if let Some(media) = first_slice(path, device, shards)? {
            let refused = |source| OpenError::Volume { path: path.to_path_buf(), shard: 0, source };
            Volume::erase(&media).await.map_err(refused)?;
        }
    }
    Ok(())
}

async fn reset_all<D: Divided>(
    path: &Path,
    device: &D,
    shards: u32,
    said: &mpsc::Sender<(u64, u64)>,
) -> Result<(), OpenError> {
    let all = device.shape().geometry.slice_bytes();
    let mut done = 0;
    let _ = said.send((0, all));
    for shard in 0..shards {
        let media = device.slice_of(path, shard, shards)?;
        reset_slice(&media, &mut done, |done| _ = said.send((done, all)))
            .await
            .map_err(|source| OpenError::Media { path: path.to_path_buf(), source })?;
    }
    let _ = said.send((all, all));
    Ok(())
}

/// Durable when it resolves. A chunk that cannot be reset is for the volume to judge.
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

/// One stripe over all units of a slice, and spares in each.
pub(crate) fn volume_options(slice: &Geometry) -> VolumeOptions {
    let spare_chunks_per_unit = (slice.chunks / CHUNKS_PER_SPARE).max(SPARES_MIN);
    VolumeOptions { spare_chunks_per_unit, ..VolumeOptions::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::buffer::AlignedBuf;
    use crate::flash::FlashOptions;
    use crate::geometry::ChunkId;
    use crate::media::{ChunkInfo, Durability, MediaCounters};
    use crate::sim::{SimMedia, SimOptions};

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
        device_of(path, 2, bad_at_birth)
    }

    /// Two groups of so many units.
    fn device_of(path: &Path, parallel_units: u32, bad_at_birth: f64) -> Raw {
        let geometry = Geometry { chunks: 20, parallel_units, ..FlashOptions::default().geometry };
        let options =
            FlashOptions { geometry, bad_at_birth, protected_buffer: true, ..FlashOptions::default() };
        FlashDevice::create_file(path, &options, &mut |_, _| {}).unwrap();
        Raw::Flash(FlashDevice::open_file(path).unwrap())
    }

    fn flash(raw: &Raw) -> &FlashDevice {
        let Raw::Flash(device) = raw else { panic!("it was made as flash") };
        device
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
            let media = flash(&raw).slice(1, 2).unwrap();
            let buf = AlignedBuf::zeroed(16 << 10);
            media.write(ChunkId(9), 0, buf, Durability::Durable).await.0.unwrap();
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

    /// Fails if the device is searched as if its slices had several units: there slice 1 has its metadata where a second
    /// copy of slice 0's would be.
    #[test]
    fn a_label_is_found_where_a_slice_has_one_unit() {
        let folder = folder();
        let path = folder.path().join("flash");
        let raw = device_of(&path, 1, 0.0);
        let laid_out = lay_out(&path, &raw, &OPTIONS, &mut |_, _| {}).unwrap();
        let label = || label_of(&path, &raw).unwrap();
        assert_eq!(label(), Ok(laid_out));
        // One copy of each slice's metadata is damaged, the other is not.
        let geometry = *flash(&raw).geometry();
        let first_chunks = [geometry.chunk_of(0, 0), geometry.chunk_of(1, 0)];
        first_chunks.iter().for_each(|chunk| flash(&raw).corrupt(*chunk, 0, 0));
        assert_eq!(label(), Ok(laid_out));
        first_chunks.iter().for_each(|chunk| flash(&raw).corrupt(*chunk, 0, 0));
        // Only slice 1 was made when the power went.
        on_a_ring(async || Volume::erase(&flash(&raw).slice(0, 2).unwrap()).await.unwrap()).unwrap();
        assert_eq!(label(), Err(SuperblockError::Blank));
    }

    /// A simulated device, whose cache loses resets, in slices of whole units.
    struct Simulated {
        media: SimMedia,
        /// A chunk that cannot be reset, and is read as before.
        stuck: Option<ChunkId>,
    }

    /// A run of a simulated device's chunks.
    struct Run {
        media: SimMedia,
        stuck: Option<ChunkId>,
        first: u32,
        geometry: Geometry,
    }

    impl Run {
        fn at(&self, chunk: ChunkId) -> ChunkId {
            ChunkId(self.first + chunk.0)
        }
    }

    impl Divided for Simulated {
        const KIND: DeviceKind = DeviceKind::Flash;
        type Slice = Run;

        fn shape(&self) -> DeviceShape {
            let geometry = *self.media.geometry();
            DeviceShape { geometry, zone_bytes: 0, size_bytes: geometry.slice_bytes() }
        }

        fn slice_of(&self, _path: &Path, shard: u32, shards: u32) -> Result<Run, OpenError> {
            let whole = *self.media.geometry();
            let parallel_units = whole.unit_count() / shards;
            let geometry = Geometry { groups: 1, parallel_units, ..whole };
            let first = shard * geometry.chunk_count();
            Ok(Run { media: self.media.clone(), stuck: self.stuck, first, geometry })
        }
    }

    impl Media for Run {
        fn geometry(&self) -> &Geometry {
            &self.geometry
        }

        async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
            let whole = self.media.report().await?;
            let run = &whole[self.first as usize..][..self.geometry.chunk_count() as usize];
            Ok(run.iter().map(|info| ChunkInfo { id: ChunkId(info.id.0 - self.first), ..*info }).collect())
        }

        async fn write(
            &self,
            chunk: ChunkId,
            sector: u32,
            buf: AlignedBuf,
            durability: Durability,
        ) -> (Result<(), MediaError>, AlignedBuf) {
            self.media.write(self.at(chunk), sector, buf, durability).await
        }

        async fn append(
            &self,
            chunk: ChunkId,
            buf: AlignedBuf,
            durability: Durability,
        ) -> (Result<u32, MediaError>, AlignedBuf) {
            self.media.append(self.at(chunk), buf, durability).await
        }

        async fn read(
            &self,
            chunk: ChunkId,
            sector: u32,
            buf: AlignedBuf,
        ) -> (Result<(), MediaError>, AlignedBuf) {
            self.media.read(self.at(chunk), sector, buf).await
        }

        async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
            if self.stuck == Some(self.at(chunk)) {
                let source = io::ErrorKind::Other.into();
                return Err(MediaError::Io { operation: "reset", chunk, sector: 0, source });
            }
            self.media.reset(self.at(chunk)).await
        }

        async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
            self.media.finish(self.at(chunk)).await
        }

        async fn flush(&self) -> Result<(), MediaError> {
            self.media.flush().await
        }

        fn counters(&self) -> MediaCounters {
            self.media.counters()
        }
    }

    /// A simulated device wakes itself, so polling again is all that waking does.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value;
            }
        }
    }

    const LINES_WRITTEN: u32 = 2;

    impl Simulated {
        /// Laid out, with data in every slice.
        fn in_use(units: u32, chunks: u32, options: &FormatOptions, seed: u64) -> Self {
            let geometry = Geometry {
                groups: 1,
                parallel_units: units,
                chunks,
                chunk_sectors: 16,
                sector_bytes: 512,
                ws_min: 1,
                ws_opt: 4,
                mw_cunits: 0,
                max_open: 0,
            };
            let options_of_sim = SimOptions { seed, conventional: false, ..SimOptions::default() };
            let device = Self { media: SimMedia::new(geometry, options_of_sim), stuck: None };
            device.lay_out(options).unwrap();
            for shard in 0..options.shards {
                let volume = device.volume(shard, options.shards).unwrap();
                for line in (0..LINES_WRITTEN).map(ChunkId) {
                    let buf = Self::content(shard, volume.geometry());
                    block_on(volume.write(line, 0, buf, Durability::Volatile)).0.unwrap();
                }
                block_on(volume.flush()).unwrap();
            }
            device
        }

        fn content(shard: u32, geometry: &Geometry) -> AlignedBuf {
            let mut buf = AlignedBuf::zeroed(geometry.chunk_bytes() as usize);
            buf.fill(10 + shard as u8);
            buf
        }

        fn lay_out(&self, options: &FormatOptions) -> Result<Superblock, FormatError> {
            let (said, _heard) = mpsc::channel();
            block_on(lay_out_on(Path::new("sim"), self, options, &said))
        }

        fn volume(&self, shard: u32, shards: u32) -> Result<Volume<Run>, VolumeError> {
            block_on(Volume::open(self.slice_of(Path::new("sim"), shard, shards).unwrap()))
        }

        /// What a node would find: its superblock if it would start, and whether every line is as it was left.
        fn found(&self) -> Option<(Superblock, BTreeSet<bool>)> {
            let label = block_on(find_label(Path::new("sim"), self)).unwrap().ok()?;
            let mut old = BTreeSet::new();
            for shard in 0..label.shards {
                let volume = self.volume(shard, label.shards).ok()?;
                if volume.label() != label.encode() {
                    return None;
                }
                let report = block_on(volume.report()).unwrap();
                for line in (0..LINES_WRITTEN).map(ChunkId) {
                    let expected = Self::content(shard, volume.geometry());
                    old.insert(report[line.0 as usize].state == ChunkState::Closed);
                    if report[line.0 as usize].write_pointer > 0 {
                        let read = block_on(volume.read(line, 0, AlignedBuf::zeroed(expected.len())));
                        assert!(
                            read.0.is_ok() && *read.1 == *expected,
                            "{line:?} of slice {shard} is damaged"
                        );
                    }
                }
            }
            Some((label, old))
        }
    }

    /// Fails if the device is planned only when it was erased.
    #[test]
    fn what_cannot_be_laid_out_destroys_nothing() {
        let old = FormatOptions { shards: 1, ..OPTIONS };
        // Each shard has more metadata and spares of its own than these units have chunks.
        let device = Simulated::in_use(2, 13, &old, 1);
        let refused = device.lay_out(&FormatOptions { shards: 2, force: true, ..OPTIONS });
        assert!(matches!(refused, Err(FormatError::TooFewChunks { shards: 2, .. })), "{refused:?}");
        let refused = device.lay_out(&FormatOptions { shards: 0, force: true, ..OPTIONS });
        assert!(matches!(refused, Err(FormatError::Layout { source: LayoutError::NoShards, .. })));
        assert!(device.found().is_some_and(|(_, lines)| lines == BTreeSet::from([true])));
    }

    /// A zone that is read-only, for one. Fails if the rest is laid out all the same: what it keeps of the old device would
    /// count whenever the power goes before the new one is there.
    #[test]
    fn what_cannot_be_erased_is_refused_with_the_old_data_whole() {
        let mut device = Simulated::in_use(4, 16, &OPTIONS, 1);
        // The first place of slice 0's metadata.
        device.stuck = Some(ChunkId(0));
        let refused = device.lay_out(&FormatOptions { force: true, ..OPTIONS }).unwrap_err();
        assert!(refused.to_string().contains("cannot be erased"), "{refused}");
        assert!(device.found().is_some_and(|(_, lines)| lines == BTreeSet::from([true])));
        // A chunk with data is a bad one like others.
        device.stuck = Some(ChunkId(4));
        device.lay_out(&FormatOptions { force: true, ..OPTIONS }).unwrap();
        assert!(device.found().is_some_and(|(_, lines)| lines == BTreeSet::from([false])));
    }

    /// Power goes at every operation of a format over an older one. Fails without the flush behind the old label's
    /// erasure, if what is newest of it goes before what is older, or if data goes before it: a node would start on a part
    /// of its data. The same node, so that nothing but the order tells old slices from new ones.
    #[test]
    fn a_format_that_is_cut_short_leaves_an_old_device_whole_or_none() {
        let shapes = [(4, 2, 2), (2, 2, 2), (1, 1, 1), (2, 2, 1), (4, 1, 4), (4, 4, 2)];
        let mut seen = [0; 3];
        for seed in 0..12 {
            for (units, old_shards, new_shards) in shapes {
                let old = FormatOptions { shards: old_shards, ..OPTIONS };
                let new = FormatOptions { shards: new_shards, force: true, ..OPTIONS };
                for nth in 1.. {
                    let device = Simulated::in_use(units, 16, &old, seed);
                    device.media.crash_after(nth);
                    let ended = device.lay_out(&new).is_ok();
                    device.media.power_on();
                    let told = format!(
                        "seed {seed}, {units} units, {old_shards} shards to {new_shards}, cut at {nth}"
                    );
                    let found = device.found();
                    match &found {
                        None => seen[0] += 1,
                        Some((label, lines)) if *lines == BTreeSet::from([true]) => {
                            assert_eq!(label.shards, old_shards, "{told}");
                            seen[1] += 1;
                        }
                        Some((label, lines)) => {
                            assert_eq!(
                                *lines,
                                BTreeSet::from([false]),
                                "{told}: a part of the data is there"
                            );
                            assert_eq!(label.shards, new_shards, "{told}");
                            seen[2] += 1;
                        }
                    }
                    if ended {
                        assert!(found.is_some_and(|(_, lines)| lines == BTreeSet::from([false])), "{told}");
                        break;
                    }
                    // Whatever was left can be laid out.
                    device.lay_out(&new).unwrap();
                    assert!(device.found().is_some(), "{told}");
                }
            }
        }
        assert!(seen.iter().all(|times| *times > 0), "refused, old and new: {seen:?}");
    }
}
