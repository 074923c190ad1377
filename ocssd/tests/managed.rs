//! Flash that the host manages, as a node's device: laid out, opened, and refused with the reason when it is not what it
//! was. On emulated flash, which breaks on demand.

use std::fs;
use std::path::{Path, PathBuf};

use terrane_ocssd::superblock::FORMAT_VERSION;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Device, DeviceKind, DeviceMedia, DeviceOptions, DeviceShape, Durability,
    FileDevice, FlashDevice, FlashLayout, FlashOptions, FormatError, FormatOptions, Geometry, KindOptions,
    Media, OpenError, Refusal, Superblock, SuperblockError, Volume, VolumeError, VolumeOptions,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const FLASH: KindOptions =
    KindOptions { kind: Some(DeviceKind::Flash), flash: FlashLayout { units: 2, protected_buffer: true } };

fn options() -> FormatOptions {
    FormatOptions {
        cluster: 0xfeed,
        node: 3,
        shards: 2,
        size_bytes: 24 * MIB,
        chunk_bytes: Some(512 * KIB),
        sector_bytes: None,
        force: false,
    }
}

fn format(path: &Path, options: &FormatOptions, kind: &KindOptions) -> Result<Superblock, FormatError> {
    Device::format(path, options, kind, &mut |_, _| {})
}

/// A device file, laid out, in a folder that lives as long as the first value.
fn formatted() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("flash.terrane");
    format(&path, &options(), &FLASH).unwrap();
    (folder, path)
}

fn open(path: &Path) -> Result<Device, OpenError> {
    Device::open(path, &DeviceOptions::default())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

#[test]
fn emulated_flash_is_laid_out_opened_and_keeps_what_was_durable() {
    let (_folder, path) = formatted();
    assert_eq!(Device::look(&path).unwrap(), DeviceKind::Flash);
    let superblock = *open(&path).unwrap().superblock();
    assert_eq!((superblock.kind, superblock.node, superblock.shards), (DeviceKind::Flash, 3, 2));
    assert_eq!(superblock.chunk_bytes, 512 * KIB);
    let geometry = superblock.shape.geometry;
    assert_eq!((geometry.groups, geometry.parallel_units, superblock.shape.size_bytes), (2, 2, 24 * MIB));

    for life in 0..3_u8 {
        let device = open(&path).unwrap();
        assert!(matches!(open(&path), Err(OpenError::InUse { .. })));
        run(async {
            for shard in 0..2_u8 {
                let media = device.slice(shard.into()).await.unwrap();
                assert!(matches!(device.slice(shard.into()).await, Err(OpenError::SliceInUse { .. })));
                assert!(matches!(media, DeviceMedia::Flash(_)) && media.protects_buffer());
                assert_eq!(media.geometry().slice_bytes(), superblock.slice_bytes);
                assert_eq!(media.geometry().mw_cunits, 0);
                let chunk = ChunkId(u32::from(life));
                if life > 0 {
                    let before = ChunkId(u32::from(life) - 1);
                    let (result, buf) = media.read(before, 0, AlignedBuf::zeroed(16 << 10)).await;
                    result.unwrap();
                    assert!(buf.iter().all(|byte| *byte == 10 * life + shard));
                }
                let mut buf = AlignedBuf::zeroed(16 << 10);
                buf.fill(10 * (life + 1) + shard);
                media.write(chunk, 0, buf, Durability::Durable).await.0.unwrap();
                let state = media.report().await.unwrap()[chunk.0 as usize].state;
                assert_eq!(state, ChunkState::Open, "it remembers write pointers");
            }
            assert!(matches!(device.slice(2).await, Err(OpenError::NoSuchSlice { .. })));
        });
    }
}

#[test]
fn flash_is_formatted_over_by_force_only_and_as_flash_only() {
    let (folder, path) = formatted();
    let found = *open(&path).unwrap().superblock();
    for kind in [FLASH, KindOptions { kind: None, ..FLASH }] {
        let error = format(&path, &options(), &kind).unwrap_err();
        assert!(
            matches!(&error, FormatError::AlreadyFormatted { found: Ok(is), .. } if **is == found),
            "{error}"
        );
    }
    let force = FormatOptions { force: true, node: 4, ..options() };
    let conventional = KindOptions { kind: Some(DeviceKind::Conventional), ..FLASH };
    let error = format(&path, &force, &conventional).unwrap_err();
    assert!(matches!(error, FormatError::Refused(Refusal::WrongKind { .. })), "{error}");
    assert!(matches!(FileDevice::open(&path), Err(OpenError::Refused(Refusal::WrongKind { .. }))));
    let device = open(&path).unwrap();
    assert!(matches!(format(&path, &force, &FLASH), Err(FormatError::InUse { .. })));
    drop(device);
    format(&path, &force, &FLASH).unwrap();
    assert_eq!(open(&path).unwrap().superblock().node, 4);

    // What is not flash is not destroyed either.
    let notes = folder.path().join("notes.txt");
    fs::write(&notes, b"shopping list").unwrap();
    assert!(matches!(format(&notes, &options(), &FLASH), Err(FormatError::NotEmpty { .. })));
    let node = folder.path().join("node.terrane");
    format(&node, &options(), &KindOptions::default()).unwrap();
    assert!(matches!(format(&node, &options(), &FLASH), Err(FormatError::AlreadyFormatted { .. })));
    fs::write(&notes, b"").unwrap();
    format(&notes, &options(), &FLASH).unwrap();
}

/// Fails if the link is what is removed and made anew: what it led to would stay, unlocked and out of use.
#[test]
fn flash_behind_a_symbolic_link_is_formatted_over_where_it_is() {
    let (folder, path) = formatted();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("flash.terrane", &link).unwrap();
    let force = FormatOptions { force: true, node: 4, ..options() };
    let device = open(&path).unwrap();
    assert!(matches!(format(&link, &force, &FLASH), Err(FormatError::InUse { .. })));
    drop(device);
    format(&link, &force, &FLASH).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(open(&path).unwrap().superblock().node, 4);
}

/// Fails if the device is opened for that, which takes its lock and counts its openings.
#[test]
fn flash_is_inspected_while_a_node_runs_on_it() {
    let (_folder, path) = formatted();
    let before = fs::read(&path).unwrap();
    let found = Device::inspect(&path).unwrap();
    assert!(fs::read(&path).unwrap() == before, "it was written to");
    let device = open(&path).unwrap();
    assert_eq!((found.kind, found.superblock), (DeviceKind::Flash, Some(*device.superblock())));
    run(async {
        let media = device.slice(0).await.unwrap();
        for chunk in 0..4 {
            media
                .write(ChunkId(chunk), 0, AlignedBuf::zeroed(64 << 10), Durability::Durable)
                .await
                .0
                .unwrap();
            assert_eq!(Device::inspect(&path).unwrap(), found);
        }
    });
    drop(device);
    relabel(&path, 0, &Superblock { version: FORMAT_VERSION + 1, ..found.superblock.unwrap() });
    let error = Device::inspect(&path).unwrap_err();
    assert!(matches!(error, OpenError::Superblock { source: SuperblockError::Newer { .. }, .. }), "{error}");
}

#[test]
fn what_is_too_small_leaves_nothing_behind() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("flash.terrane");
    let small = FormatOptions { size_bytes: MIB, ..options() };
    assert!(matches!(format(&path, &small, &FLASH), Err(FormatError::Layout { .. })));
    assert!(!path.exists());
}

#[test]
fn flash_without_a_superblock_is_blank() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("flash");
    FlashDevice::create_file(&path, &FlashOptions::default(), &mut |_, _| {}).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Superblock { source: SuperblockError::Blank, .. }), "{error}");
    assert!(error.to_string().contains("vote without its memory"), "{error}");
    // It was never in use.
    format(&path, &options(), &FLASH).unwrap();
}

/// Makes a volume anew on a slice, with this label.
fn relabel(path: &Path, shard: u32, superblock: &Superblock) {
    let device = FlashDevice::open_file(path).unwrap();
    run(async {
        let media = device.slice(shard, 2).unwrap();
        let options = VolumeOptions {
            label: superblock.encode().to_vec(),
            spare_chunks_per_unit: 2,
            ..VolumeOptions::default()
        };
        Volume::create(media, &options).await.unwrap();
    });
}

#[test]
fn a_geometry_that_differs_is_refused_and_every_number_named() {
    let (_folder, path) = formatted();
    let superblock = *open(&path).unwrap().superblock();
    let DeviceShape { geometry, size_bytes, .. } = superblock.shape;
    // As if it had been laid out on a device with more chunks, and smaller writes.
    let larger = Geometry { chunks: geometry.chunks + 3, ws_min: geometry.ws_min / 2, ..geometry };
    let shape = DeviceShape { geometry: larger, size_bytes: size_bytes + 3 * MIB, ..superblock.shape };
    relabel(&path, 0, &Superblock { shape, ..superblock });
    let error = open(&path).unwrap_err();
    let OpenError::ShapeDiffers { differences, shrank, .. } = &error else { panic!("{error}") };
    assert_eq!((differences.len(), *shrank), (3, true));
    let text = error.to_string();
    for part in [
        "it shrank and part of the data is gone",
        &format!("the superblock says {} chunks a unit, the device has {}", larger.chunks, geometry.chunks),
        &format!("{} sectors a smallest write, the device has {}", larger.ws_min, geometry.ws_min),
        &format!("{} bytes, the device has {size_bytes}", shape.size_bytes),
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // More hidden sectors than it was laid out for, but it did not shrink.
    let protected = Geometry { mw_cunits: 0, ..geometry };
    let shape = DeviceShape { geometry: protected, ..superblock.shape };
    relabel(&path, 0, &Superblock { shape, ..superblock });
    let error = open(&path).unwrap_err();
    assert!(
        matches!(&error, OpenError::ShapeDiffers { differences, shrank: false, .. } if differences.len() == 1)
    );
}

#[test]
fn a_device_laid_out_as_another_kind_is_refused() {
    let (_folder, path) = formatted();
    let superblock = *open(&path).unwrap().superblock();
    let shape = DeviceShape { zone_bytes: superblock.shape.geometry.chunk_bytes(), ..superblock.shape };
    relabel(&path, 0, &Superblock { kind: DeviceKind::Zoned, shape, ..superblock });
    let error = open(&path).unwrap_err();
    let OpenError::KindDiffers { laid_out, found, .. } = error else { panic!("{error}") };
    assert_eq!((laid_out, found), (DeviceKind::Zoned, DeviceKind::Flash));
}

#[test]
fn a_slice_of_another_device_is_refused() {
    let (_folder, path) = formatted();
    let superblock = *open(&path).unwrap().superblock();
    relabel(&path, 1, &Superblock { cluster: 1, ..superblock });
    let device = open(&path).unwrap();
    run(async {
        device.slice(0).await.unwrap();
        let error = device.slice(1).await.unwrap_err();
        assert!(matches!(error, OpenError::ForeignSlice { shard: 1, .. }), "{error}");
    });
}

#[test]
fn more_bad_chunks_than_spares_are_refused() {
    let (_folder, path) = formatted();
    {
        let flash = FlashDevice::open_file(&path).unwrap();
        // Of the second shard: units 2 and 3.
        let geometry = *flash.geometry();
        for nth in 4..geometry.chunks {
            flash.take_offline(geometry.chunk_of(2, nth));
        }
    }
    let device = open(&path).unwrap();
    run(async {
        device.slice(0).await.unwrap();
        let error = device.slice(1).await.unwrap_err();
        assert!(
            matches!(error, OpenError::Volume { shard: 1, source: VolumeError::TooFewSpares { .. }, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("too few spare chunks"), "{error}");
    });
}

#[test]
fn a_file_that_was_cut_is_refused() {
    let (_folder, path) = formatted();
    let bytes = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes - MIB).unwrap();
    assert!(matches!(open(&path), Err(OpenError::TooShort { .. })));
}

#[test]
fn durability_cannot_be_left_out() {
    let (_folder, path) = formatted();
    let nosync = DeviceOptions { nosync: true, ..DeviceOptions::default() };
    let error = Device::open(&path, &nosync).unwrap_err();
    assert!(matches!(error, OpenError::NoSync { kind: DeviceKind::Flash, .. }), "{error}");
}

/// Whoever cannot write on behind what must be durable sees it.
#[test]
fn a_buffer_that_power_takes_is_told() {
    let (folder, _) = formatted();
    let path = folder.path().join("unprotected");
    let unprotected = KindOptions { flash: FlashLayout { protected_buffer: false, ..FLASH.flash }, ..FLASH };
    format(&path, &options(), &unprotected).unwrap();
    let device = open(&path).unwrap();
    run(async {
        let media = device.slice(0).await.unwrap();
        assert!(!media.protects_buffer() && media.geometry().mw_cunits > 0);
    });
}
