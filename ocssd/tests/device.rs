//! Laying a device out and opening it: what is refused, what is said, and what is left behind.

use std::fs::{self, OpenOptions};
use std::future::Future;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use terrane_ocssd::superblock::{COPY_OFFSETS, FORMAT_VERSION};
use terrane_ocssd::{
    AlignedBuf, ChunkId, Device, DeviceKind, DeviceOptions, DeviceShape, Durability, FileDevice, FileOptions,
    FormatError, FormatOptions, KindOptions, LayoutError, Media, MediaError, OpenError, Refusal, Superblock,
    SuperblockError, format,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// In the build's own temporary folder: a system's `/tmp` may be memory, without direct I/O.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn options() -> FormatOptions {
    FormatOptions {
        cluster: 0xfeed,
        node: 3,
        shards: 2,
        size_bytes: 3 * MIB,
        chunk_bytes: Some(64 * KIB),
        sector_bytes: None,
        force: false,
    }
}

fn quiet(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatError> {
    format(path, options, &mut |_, _| {})
}

/// A device file, laid out, in a folder that lives as long as the first value.
fn formatted() -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    quiet(&path, &options()).unwrap();
    (folder, path)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

#[test]
fn what_was_formatted_opens() {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    let mut steps = Vec::new();
    let written = format(&path, &options(), &mut |done, total| steps.push((done, total))).unwrap();
    assert_eq!(
        (written.version, written.cluster, written.node, written.shards),
        (FORMAT_VERSION, 0xfeed, 3, 2)
    );
    assert_eq!((written.chunk_bytes, written.slice_bytes), (64 * KIB, MIB));
    assert_eq!((steps.first(), steps.last()), (Some(&(0, 3 * MIB)), Some(&(3 * MIB, 3 * MIB))));
    assert!(steps.is_sorted());

    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 3 * MIB);
    assert!(metadata.blocks() * 512 >= 3 * MIB, "the file has holes");
    assert_eq!(metadata.mode() & 0o077, 0, "others may read it");

    let device = FileDevice::open(&path).unwrap();
    assert_eq!(*device.superblock(), written);
    assert_eq!(device.path(), path);
    let geometry = *device.slice(1).unwrap().geometry();
    assert_eq!(geometry, written.layout().geometry());
    assert_eq!(geometry.chunk_count(), 16);
}

fn open(path: &Path) -> Result<Device, OpenError> {
    Device::open(path, &DeviceOptions::default())
}

/// Puts another superblock in both places.
fn relabel(path: &Path, superblock: &Superblock) {
    for at in COPY_OFFSETS {
        overwrite(path, at, &superblock.encode());
    }
}

#[test]
fn a_device_is_one_thing_whatever_kind_it_is() {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    let written = Device::format(&path, &options(), &KindOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(written.kind, DeviceKind::Conventional);
    assert_eq!(written.shape, written.layout().shape(3 * MIB));
    let device = open(&path).unwrap();
    assert_eq!((device.superblock(), device.path()), (&written, path.as_path()));
    assert!(matches!(open(&path), Err(OpenError::InUse { .. })));
    run(async {
        let media = device.slice(1).await.unwrap();
        assert!(matches!(device.slice(1).await, Err(OpenError::SliceInUse { .. })));
        assert!(matches!(device.slice(2).await, Err(OpenError::NoSuchSlice { .. })));
        assert_eq!(*media.geometry(), written.slice_geometry());
        media.reset(ChunkId(3)).await.unwrap();
        let mut buf = AlignedBuf::zeroed(8 << 10);
        buf.fill(7);
        media.write(ChunkId(3), 0, buf, Durability::Durable).await.0.unwrap();
        let (appended, _) = media.append(ChunkId(3), AlignedBuf::zeroed(4096), Durability::Volatile).await;
        assert_eq!(appended.unwrap() * media.geometry().sector_bytes, 8 << 10);
        media.flush().await.unwrap();
        let (result, buf) = media.read(ChunkId(3), 0, AlignedBuf::zeroed(8 << 10)).await;
        result.unwrap();
        assert!(buf.iter().all(|byte| *byte == 7));
        media.finish(ChunkId(3)).await.unwrap();
        let counters = media.counters();
        assert_eq!((counters.writes, counters.reads, counters.resets, counters.flushes), (2, 1, 1, 1));
    });
}

/// No larger than the conventional kind's own: what other kinds do costs it nothing.
#[test]
fn futures_are_as_large_as_the_conventional_kinds() {
    let (_folder, path) = formatted();
    let file = FileDevice::open(&path).unwrap();
    let direct = file.slice(0).unwrap();
    let of_file = future_sizes(&direct);
    drop((direct, file));
    let device = open(&path).unwrap();
    let of_device = run(async { future_sizes(&device.slice(0).await.unwrap()) });
    for (of_file, of_device) in of_file.into_iter().zip(of_device) {
        assert!(of_device <= of_file + 16, "{of_device} bytes instead of {of_file}");
    }
}

type FutureSizes = [usize; 5];

/// Of write, append, read, reset and flush.
fn future_sizes(media: &impl Media) -> FutureSizes {
    let buf = || AlignedBuf::zeroed(512);
    [
        size_of_val(&media.write(ChunkId(0), 0, buf(), Durability::Durable)),
        size_of_val(&media.append(ChunkId(0), buf(), Durability::Durable)),
        size_of_val(&media.read(ChunkId(0), 0, buf())),
        size_of_val(&media.reset(ChunkId(0))),
        size_of_val(&media.flush()),
    ]
}

#[test]
fn a_device_of_format_version_1_is_read() {
    let (_folder, path) = formatted();
    let new = *open(&path).unwrap().superblock();
    let old = Superblock { version: 1, ..new };
    relabel(&path, &old);
    let device = open(&path).unwrap();
    assert_eq!(*device.superblock(), old, "the shape follows from the layout");
    run(async {
        assert_eq!(*device.slice(0).await.unwrap().geometry(), new.slice_geometry());
    });
    drop(device);
    let refused = quiet(&path, &options()).unwrap_err();
    assert!(matches!(refused, FormatError::AlreadyFormatted { found: Ok(found), .. } if *found == old));
}

#[test]
fn a_device_laid_out_as_another_kind_is_refused() {
    let (_folder, path) = formatted();
    let conventional = *open(&path).unwrap().superblock();
    let zoned = Superblock {
        kind: DeviceKind::Zoned,
        shape: DeviceShape { zone_bytes: 64 * KIB, ..conventional.shape },
        ..conventional
    };
    relabel(&path, &zoned);
    let error = open(&path).unwrap_err();
    let OpenError::KindDiffers { laid_out, found, .. } = &error else { panic!("{error}") };
    assert_eq!((*laid_out, *found), (DeviceKind::Zoned, DeviceKind::Conventional));
    assert!(
        error.to_string().contains("is a conventional device, but was laid out as a zoned device"),
        "{error}"
    );
    // It is not formatted by mistake either.
    assert!(matches!(quiet(&path, &options()), Err(FormatError::AlreadyFormatted { found: Ok(_), .. })));
}

#[test]
fn a_kind_that_the_device_is_not_is_refused() {
    let (folder, path) = formatted();
    for kind in [DeviceKind::Flash, DeviceKind::Zoned, DeviceKind::Fdp] {
        let insisted = DeviceOptions { kind: Some(kind), ..DeviceOptions::default() };
        let error = Device::open(&path, &insisted).unwrap_err();
        let OpenError::Refused(Refusal::WrongKind { asked, found, .. }) = &error else { panic!("{error}") };
        assert_eq!((*asked, *found), (kind, DeviceKind::Conventional));
    }
    let of = |kind| KindOptions { kind: Some(kind), ..KindOptions::default() };
    let new = folder.path().join("new");
    for kind in [DeviceKind::Zoned, DeviceKind::Fdp] {
        let force = FormatOptions { force: true, ..options() };
        let error = Device::format(&path, &force, &of(kind), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, FormatError::Refused(Refusal::WrongKind { .. })), "{error}");
        let error = Device::format(&new, &force, &of(kind), &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, FormatError::Io { step: "look at", .. }), "{error}");
    }
    assert!(!new.exists());
    open(&path).unwrap();
    for path in ["/dev/null", "/dev/zero"] {
        let error = open(Path::new(path)).unwrap_err();
        assert!(matches!(error, OpenError::Refused(Refusal::NotNvme { .. })), "{error}");
        let error = quiet(Path::new(path), &options()).unwrap_err();
        assert!(matches!(error, FormatError::Refused(Refusal::NotNvme { .. })), "{error}");
    }
}

#[test]
fn a_read_only_file_is_refused() {
    let (_folder, path) = formatted();
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Refused(Refusal::ReadOnly { .. })), "{error}");
    let force = FormatOptions { force: true, ..options() };
    let error = quiet(&path, &force).unwrap_err();
    assert!(matches!(error, FormatError::Refused(Refusal::ReadOnly { .. })), "{error}");
}

#[test]
fn slices_do_not_overlap() {
    let (_folder, path) = formatted();
    let write = |shard: u32, byte: u8| {
        let device = FileDevice::open(&path).unwrap();
        let media = device.slice(shard).unwrap();
        run(async {
            for chunk in 0..media.geometry().chunk_count() {
                media.reset(ChunkId(chunk)).await.unwrap();
                let mut buf = AlignedBuf::zeroed(64 << 10);
                buf.fill(byte);
                media.write(ChunkId(chunk), 0, buf, Durability::Volatile).await.0.unwrap();
            }
            media.flush().await.unwrap();
        });
    };
    let before = fs::read(&path).unwrap();
    write(0, 1);
    write(1, 2);
    let after = fs::read(&path).unwrap();
    let mib = MIB as usize;
    assert!(after[..mib] == before[..mib], "the superblocks changed");
    assert!(after[mib..2 * mib].iter().all(|byte| *byte == 1));
    assert!(after[2 * mib..].iter().all(|byte| *byte == 2));
}

#[test]
fn an_existing_device_is_formatted_by_force_only() {
    let (_folder, path) = formatted();
    let other = FormatOptions { node: 4, ..options() };
    let error = quiet(&path, &other).unwrap_err();
    assert!(matches!(&error, FormatError::AlreadyFormatted { found: Ok(found), .. } if found.node == 3));
    assert!(error.to_string().contains("node 3 of cluster"), "{error}");
    assert_eq!(FileDevice::open(&path).unwrap().superblock().node, 3);

    overwrite(&path, MIB, b"old data");
    let smaller = FormatOptions { force: true, shards: 1, size_bytes: 2 * MIB, ..other };
    quiet(&path, &smaller).unwrap();
    assert_eq!(FileDevice::open(&path).unwrap().superblock().node, 4);
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len() as u64, 2 * MIB);
    assert!(content[MIB as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn damaged_and_newer_devices_are_not_formatted_over() {
    let (_folder, path) = formatted();
    for at in COPY_OFFSETS {
        overwrite(&path, at + 40, &[0xff; 4]);
    }
    let error = quiet(&path, &options()).unwrap_err();
    assert!(matches!(error, FormatError::AlreadyFormatted { found: Err(_), .. }), "{error}");
    let force = FormatOptions { force: true, ..options() };
    quiet(&path, &force).unwrap();
    FileDevice::open(&path).unwrap();
}

#[test]
fn files_of_others_are_left_alone() {
    let folder = folder();
    let path = folder.path().join("notes.txt");
    fs::write(&path, b"shopping list").unwrap();
    assert!(matches!(quiet(&path, &options()), Err(FormatError::NotEmpty { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"shopping list");

    let empty = folder.path().join("empty");
    fs::write(&empty, b"").unwrap();
    quiet(&empty, &options()).unwrap();
}

#[test]
fn a_device_in_use_is_neither_formatted_nor_opened() {
    let (_folder, path) = formatted();
    let device = FileDevice::open(&path).unwrap();
    let slice = device.slice(0).unwrap();
    let force = FormatOptions { force: true, ..options() };
    assert!(matches!(quiet(&path, &force), Err(FormatError::InUse { .. })));
    assert!(matches!(FileDevice::open(&path), Err(OpenError::InUse { .. })));
    drop(device);
    assert!(matches!(FileDevice::open(&path), Err(OpenError::InUse { .. })), "a slice is still open");
    drop(slice);
    FileDevice::open(&path).unwrap();
}

#[test]
fn a_failed_format_leaves_nothing_behind() {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    let small = FormatOptions { chunk_bytes: None, ..options() };
    let error = quiet(&path, &small).unwrap_err();
    let FormatError::Layout { source: LayoutError::TooSmall { needed_bytes, .. }, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(needed_bytes, 129 * MIB);

    // More than any disk has.
    let huge = FormatOptions { size_bytes: 1 << 60, chunk_bytes: Some(1 << 30), ..options() };
    assert!(matches!(quiet(&path, &huge), Err(FormatError::NoSpace { .. })));
    assert!(!path.exists());

    let error = quiet(&folder.path().join("nowhere/node.terrane"), &options()).unwrap_err();
    assert!(matches!(error, FormatError::Io { step: "create", .. }), "{error}");
    assert!(matches!(quiet(folder.path(), &options()), Err(FormatError::NotADevice { .. })));
}

#[test]
fn sectors_are_those_of_the_device_or_larger() {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    let large = FormatOptions { sector_bytes: Some(16384), ..options() };
    assert_eq!(quiet(&path, &large).unwrap().sector_bytes, 16384);
    let media = FileDevice::open(&path).unwrap().slice(0).unwrap();
    assert_eq!(media.geometry().chunk_sectors, 4);
    for sector_bytes in [100, 256, 3 * 4096, 1 << 20] {
        let odd = FormatOptions { sector_bytes: Some(sector_bytes), force: true, ..options() };
        let error = quiet(&folder.path().join("odd"), &odd).unwrap_err();
        assert!(matches!(error, FormatError::Layout { .. } | FormatError::Sector { .. }), "{error}");
    }
}

#[test]
fn missing_and_blank_devices_are_refused_with_the_reason() {
    let folder = folder();
    let path = folder.path().join("node.terrane");
    let error = FileDevice::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }));
    assert!(!path.exists());
    for part in ["terrane format", "vote without its memory"] {
        assert!(error.to_string().contains(part), "{error}");
    }

    for len in [0, 100, 3 * MIB] {
        fs::write(&path, vec![0; len as usize]).unwrap();
        let error = FileDevice::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Superblock { source: SuperblockError::Blank, .. }), "{error}");
        assert!(error.to_string().contains("vote without its memory"), "{error}");
    }
    for path in [folder.path(), Path::new("/proc")] {
        let opened = FileDevice::open(path).unwrap_err();
        assert!(matches!(opened, OpenError::NotADevice { .. }), "{opened}");
        let laid_out = quiet(path, &options()).unwrap_err();
        // Whoever gave the wrong path learns of every kind that there is.
        for text in [opened.to_string(), laid_out.to_string()] {
            assert!(text.contains("regular file") && text.contains("block device"), "{text}");
            assert!(text.contains("character device of an NVMe namespace (/dev/ngXnY)"), "{text}");
        }
    }
}

/// Fails if the device is opened for that: a node that runs on it would be in the way, or one that starts be refused.
#[test]
fn a_device_is_inspected_while_a_node_runs_on_it() {
    let (_folder, path) = formatted();
    let inspected = || Device::inspect(&path).unwrap();
    let device = open(&path).unwrap();
    let found = inspected();
    assert_eq!((found.kind, found.superblock), (DeviceKind::Conventional, Some(*device.superblock())));
    drop(device);
    overwrite(&path, COPY_OFFSETS[0], &[0; 512]);
    let before = fs::read(&path).unwrap();
    assert_eq!(inspected(), found);
    assert!(fs::read(&path).unwrap() == before, "it was written to");
    let error = Device::inspect(path.with_extension("none")).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2 * MIB).unwrap();
    assert!(matches!(Device::inspect(&path), Err(OpenError::TooShort { .. })));
}

/// What a link leads to is what is locked, and what is laid out.
#[test]
fn a_symbolic_link_stands_for_what_it_leads_to() {
    let (folder, path) = formatted();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("node.terrane", &link).unwrap();
    let device = open(&link).unwrap();
    assert_eq!(device.path(), path.canonicalize().unwrap());
    let other = FormatOptions { force: true, node: 4, ..options() };
    assert!(matches!(quiet(&path, &other), Err(FormatError::InUse { .. })));
    drop(device);
    quiet(&link, &other).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(open(&path).unwrap().superblock().node, 4);

    fs::remove_file(&path).unwrap();
    for kind in [None, Some(DeviceKind::Flash)] {
        let kind = KindOptions { kind, ..KindOptions::default() };
        let error = Device::format(&link, &other, &kind, &mut |_, _| {}).unwrap_err();
        assert!(matches!(error, FormatError::Refused(Refusal::LinkToNothing { .. })), "{error}");
    }
    assert!(matches!(open(&link), Err(OpenError::Missing { .. })));
}

#[test]
fn foreign_newer_damaged_and_short_devices_are_told_apart() {
    let (folder, path) = formatted();
    let error = |path: &Path| FileDevice::open(path).unwrap_err();

    let foreign = folder.path().join("foreign");
    fs::write(&foreign, b"SQLite format 3").unwrap();
    assert!(matches!(error(&foreign), OpenError::Superblock { source: SuperblockError::NotOurs, .. }));

    // One damaged copy is survived, whichever it is; both are not.
    let good = fs::read(&path).unwrap();
    for at in COPY_OFFSETS {
        overwrite(&path, at, &[0; 512]);
        FileDevice::open(&path).unwrap();
        fs::write(&path, &good).unwrap();
    }
    for at in COPY_OFFSETS {
        overwrite(&path, at + 44, &[9]);
    }
    assert!(matches!(error(&path), OpenError::Superblock { source: SuperblockError::Damaged { .. }, .. }));

    let newer = Superblock { version: FORMAT_VERSION + 1, ..superblock_of(&good) };
    for at in COPY_OFFSETS {
        overwrite(&path, at, &newer.encode());
    }
    assert!(matches!(error(&path), OpenError::Superblock { source: SuperblockError::Newer { .. }, .. }));
    assert!(error(&path).to_string().contains("upgrade"), "{}", error(&path));

    fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(matches!(error(&path), OpenError::TooShort { needed_bytes, .. } if needed_bytes == 3 * MIB));
}

fn superblock_of(device: &[u8]) -> Superblock {
    Superblock::choose(COPY_OFFSETS.map(|at| &device[at as usize..][..4096])).unwrap()
}

#[test]
fn a_slice_is_handed_out_once_at_a_time() {
    let (_folder, path) = formatted();
    let device = FileDevice::open(&path).unwrap();
    let slice = device.slice(0).unwrap();
    assert!(matches!(device.slice(0), Err(OpenError::SliceInUse { shard: 0, .. })));
    assert!(matches!(device.slice(2), Err(OpenError::NoSuchSlice { shard: 2, shards: 2, .. })));
    drop(slice);
    device.slice(0).unwrap();
}

#[test]
fn slices_work_on_threads_of_their_own() {
    let (_folder, path) = formatted();
    let device = FileDevice::open(&path).unwrap();
    std::thread::scope(|scope| {
        for shard in 0..2 {
            let device = device.clone();
            scope.spawn(move || {
                let media = device.slice(shard).unwrap();
                run(async {
                    media.reset(ChunkId(0)).await.unwrap();
                    let mut buf = AlignedBuf::zeroed(4096);
                    buf.fill(1 + shard as u8);
                    let (result, buf) = media.write(ChunkId(0), 0, buf, Durability::Durable).await;
                    result.unwrap();
                    let (result, buf) = media.read(ChunkId(0), 0, buf).await;
                    result.unwrap();
                    assert!(buf.iter().all(|byte| *byte == 1 + shard as u8));
                });
            });
        }
    });
}

/// A write whose future is gone may still land, so neither its chunk nor its slice is used again.
#[test]
fn a_dropped_write_pins_chunk_and_slice() {
    let (_folder, path) = formatted();
    let device = FileDevice::open(&path).unwrap();
    let media = device.slice(0).unwrap();
    run(async {
        media.reset(ChunkId(0)).await.unwrap();
        {
            let mut write = pin!(media.write(ChunkId(0), 0, AlignedBuf::zeroed(4096), Durability::Volatile));
            let first = write.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(first, Poll::Pending));
        }
        assert!(matches!(media.reset(ChunkId(0)).await, Err(MediaError::Rule { operation: "reset", .. })));
        media.flush().await.unwrap();
    });
    drop(media);
    assert!(matches!(device.slice(0), Err(OpenError::SliceInUse { .. })));
    drop(device);
    FileDevice::open(&path).unwrap().slice(0).unwrap();
}

/// The device shrinks under us: transfers that come back short are errors, never silence.
#[test]
fn short_transfers_are_errors() {
    let (_folder, path) = formatted();
    let device = FileDevice::open_with(&path, FileOptions::default()).unwrap();
    let media = device.slice(1).unwrap();
    let cut = 2 * MIB + 64 * KIB + 8 * KIB;
    OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
    run(async {
        media.read(ChunkId(1), 0, AlignedBuf::zeroed(8 << 10)).await.0.unwrap();
        for len in [16 << 10, 64 << 10] {
            let (result, buf) = media.read(ChunkId(1), 0, AlignedBuf::zeroed(len)).await;
            assert!(matches!(result, Err(MediaError::Io { operation: "read", .. })), "{result:?}");
            assert_eq!(buf.len(), len);
        }
    });
}
