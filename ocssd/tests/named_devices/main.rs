//! Every kind of device that the environment names, as a node's device: real drives, or the namespaces of the QEMU guest
//! (`ocssd/qemu/run --test named_devices`). **Everything on them is destroyed.** Where none is named, nothing is tested.

mod hard_reset;

use std::path::{Path, PathBuf};

use terrane_ocssd::superblock::{COPY_OFFSETS, FORMAT_VERSION, SUPERBLOCK_BYTES};
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Device, DeviceKind, DeviceOptions, Durability, FormatError,
    FormatOptions, KindOptions, Layout, Media, OpenError, Refusal, Superblock, ZonedDevice,
};

const OPTIONS: FormatOptions = FormatOptions {
    cluster: 0xfeed,
    node: 3,
    shards: 1,
    size_bytes: 0,
    chunk_bytes: None,
    sector_bytes: None,
    force: true,
};

#[expect(clippy::print_stdout, reason = "a test that did nothing says so")]
fn named(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

fn open(path: &Path) -> Result<Device, OpenError> {
    Device::open(path, &DeviceOptions::default())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

fn is_a_device(path: &Path, kind: DeviceKind, options: &FormatOptions) {
    assert_eq!(Device::look(path).unwrap(), kind);
    let format = |options: &FormatOptions, kind| {
        let kind = KindOptions { kind, ..KindOptions::default() };
        Device::format(path, options, &kind, &mut |_, _| {})
    };
    for other in DeviceKind::ALL.into_iter().filter(|other| *other != kind) {
        let error = format(options, Some(other)).unwrap_err();
        assert!(matches!(error, FormatError::Refused(Refusal::WrongKind { .. })), "{error}");
        let insisted = DeviceOptions { kind: Some(other), ..DeviceOptions::default() };
        let error = Device::open(path, &insisted).unwrap_err();
        assert!(matches!(error, OpenError::Refused(Refusal::WrongKind { .. })), "{error}");
    }

    let mut steps = Vec::new();
    let written =
        Device::format(path, options, &KindOptions::default(), &mut |done, all| steps.push((done, all)))
            .unwrap();
    assert!(steps.is_sorted() && steps.last().is_some_and(|(done, all)| done == all), "{steps:?}");
    assert_eq!((written.kind, written.node), (kind, 3));
    let again = format(&FormatOptions { force: false, ..*options }, None).unwrap_err();
    assert!(
        matches!(&again, FormatError::AlreadyFormatted { found: Ok(found), .. } if **found == written),
        "{again}"
    );

    for life in 0..3_u8 {
        let device = open(path).unwrap();
        assert_eq!(*device.superblock(), written);
        assert!(matches!(open(path), Err(OpenError::InUse { .. })));
        assert!(matches!(format(options, None), Err(FormatError::InUse { .. })));
        let inspected = Device::inspect(path).unwrap();
        let told = (kind != DeviceKind::Zoned).then_some(written);
        assert_eq!((inspected.kind, inspected.superblock), (kind, told), "while it is in use");
        run(async {
            let media = device.slice(0).await.unwrap();
            assert_eq!(media.geometry().slice_bytes(), written.slice_bytes);
            assert!(media.protects_buffer());
            let bytes = (media.geometry().sector_bytes * media.geometry().ws_min) as usize;
            if life > 0 {
                let (result, buf) = media.read(ChunkId(life.into()), 0, AlignedBuf::zeroed(bytes)).await;
                result.unwrap();
                assert!(buf.iter().all(|byte| *byte == life), "of life {life}");
            }
            let next = ChunkId(u32::from(life) + 1);
            if kind.is_host_managed() {
                assert_eq!(media.report().await.unwrap()[next.0 as usize].state, ChunkState::Free);
            } else {
                media.reset(next).await.unwrap();
            }
            let mut buf = AlignedBuf::zeroed(bytes);
            buf.fill(life + 1);
            media.write(next, 0, buf, Durability::Durable).await.0.unwrap();
            media.flush().await.unwrap();
        });
    }
}

#[test]
fn a_conventional_block_device() {
    let Some(path) = named("TERRANE_CONV_BLOCK") else { return };
    is_a_device(&path, DeviceKind::Conventional, &FormatOptions { chunk_bytes: Some(1 << 20), ..OPTIONS });
}

#[test]
fn a_zoned_block_device() {
    let Some(path) = named("TERRANE_ZNS_BLOCK") else { return };
    is_a_device(&path, DeviceKind::Zoned, &OPTIONS);
    is_no_copy_of_a_conventional_device(&path);
}

/// The image of a conventional device was copied to it, as far as that goes.
fn is_no_copy_of_a_conventional_device(path: &Path) {
    let layout = Layout::plan(64 << 20, 1, 4096, Some(1 << 20)).unwrap();
    let superblock = Superblock {
        version: FORMAT_VERSION,
        sequence: 1,
        cluster: OPTIONS.cluster,
        node: OPTIONS.node,
        shards: layout.shards,
        sector_bytes: layout.sector_bytes,
        chunk_bytes: layout.chunk_bytes,
        slice_bytes: layout.slice_bytes,
        kind: DeviceKind::Conventional,
        shape: layout.shape(layout.device_bytes()),
    };
    let zoned = ZonedDevice::open(path).unwrap();
    run(async {
        let media = zoned.slice(zoned.share(0, 1).unwrap()).unwrap();
        // Where the volume's metadata was.
        for zone in 0..4 {
            media.reset(ChunkId(zone)).await.unwrap();
        }
        let mut front = AlignedBuf::zeroed(128 << 10);
        for at in COPY_OFFSETS {
            front[at as usize..][..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        }
        media.write(ChunkId(0), 0, front, Durability::Durable).await.0.unwrap();
    });
    drop(zoned);
    let error = open(path).unwrap_err();
    let OpenError::KindDiffers { laid_out, found, .. } = error else { panic!("{error}") };
    assert_eq!((laid_out, found), (DeviceKind::Conventional, DeviceKind::Zoned));
}

#[test]
fn a_zoned_namespace_by_passthrough() {
    let Some(path) = named("TERRANE_ZNS_CHAR") else { return };
    is_a_device(&path, DeviceKind::Zoned, &OPTIONS);
}

#[test]
fn a_namespace_with_placement_handles() {
    let Some(path) = named("TERRANE_FDP_CHAR") else { return };
    is_a_device(&path, DeviceKind::Fdp, &OPTIONS);
    // It is no conventional device, although it can be overwritten: its block device knows whose it is.
    let block = path.to_str().unwrap().replace("/ng", "/nvme");
    let error = open(Path::new(&block)).unwrap_err();
    assert!(matches!(error, OpenError::KindDiffers { laid_out: DeviceKind::Fdp, .. }), "{error}");
}

#[test]
fn what_a_zoned_device_decides_cannot_be_chosen() {
    for variable in ["TERRANE_ZNS_BLOCK", "TERRANE_FDP_CHAR"] {
        let Some(path) = named(variable) else { continue };
        for options in [
            FormatOptions { size_bytes: 1 << 20, ..OPTIONS },
            FormatOptions { chunk_bytes: Some(1 << 20), ..OPTIONS },
            FormatOptions { sector_bytes: Some(4096), ..OPTIONS },
        ] {
            let error = Device::format(&path, &options, &KindOptions::default(), &mut |_, _| {}).unwrap_err();
            assert!(matches!(error, FormatError::NotChosen { .. }), "{error}");
        }
        let many = FormatOptions { shards: 2, ..OPTIONS };
        let error = Device::format(&path, &many, &KindOptions::default(), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, FormatError::TooFewChunks { .. }), "{error}");
    }
}
