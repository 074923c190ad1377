//! Real block devices: loop devices over files, where this user may have them; else the tests say that they are skipped.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use terrane_ocssd::{
    AlignedBuf, ChunkId, Device, DeviceKind, DeviceOptions, Durability, FormatError, FormatOptions,
    KindOptions, Media, OpenError, Refusal, Superblock,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// One test at a time: a search for a free loop device claims each one that it tries, also the others'.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loop device over a file, gone when this is dropped.
struct Loop {
    device: PathBuf,
}

impl Loop {
    /// `None`: this system does not give us one.
    fn over(image: &Path, more: &[&str]) -> Option<Self> {
        let made = Command::new("losetup").args(["-f", "--show"]).args(more).arg(image).output().ok()?;
        if !made.status.success() {
            eprintln!("skipped: no loop device here ({})", String::from_utf8_lossy(&made.stderr).trim());
            return None;
        }
        Some(Self { device: String::from_utf8(made.stdout).unwrap().trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

/// Something is mounted there until this is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn image(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    (folder, path)
}

fn options() -> FormatOptions {
    FormatOptions {
        cluster: 0xfeed,
        node: 3,
        shards: 2,
        // All of it.
        size_bytes: 0,
        chunk_bytes: Some(64 * KIB),
        sector_bytes: None,
        force: false,
    }
}

fn format(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatError> {
    Device::format(path, options, &KindOptions::default(), &mut |_, _| {})
}

fn open(path: &Path) -> Result<Device, OpenError> {
    Device::open(path, &DeviceOptions::default())
}

#[test]
fn a_block_device_is_taken_whole_and_refused_once_it_shrank() {
    let _alone = alone();
    let (_folder, image) = image(4 * MIB + 32 * KIB);
    let Some(disk) = Loop::over(&image, &[]) else { return };
    let written = format(&disk.device, &options()).unwrap();
    assert_eq!((written.kind, written.shape.size_bytes), (DeviceKind::Conventional, 4 * MIB + 32 * KIB));
    let error = format(&disk.device, &options()).unwrap_err();
    assert!(
        matches!(&error, FormatError::AlreadyFormatted { found: Ok(found), .. } if **found == written),
        "{error}"
    );
    let device = open(&disk.device).unwrap();
    assert!(matches!(open(&disk.device), Err(OpenError::InUse { .. })));
    assert!(matches!(
        format(&disk.device, &FormatOptions { force: true, ..options() }),
        Err(FormatError::InUse { .. })
    ));
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(async {
        let media = device.slice(1).await.unwrap();
        media.reset(ChunkId(0)).await.unwrap();
        let written = media.write(ChunkId(0), 0, AlignedBuf::zeroed(8 << 10), Durability::Durable).await;
        written.0.unwrap();
    });
    drop((device, disk));

    // Even where every slice is still there: it is not the device that it was.
    OpenOptions::new().write(true).open(&image).unwrap().set_len(4 * MIB).unwrap();
    let Some(disk) = Loop::over(&image, &[]) else { return };
    let error = open(&disk.device).unwrap_err();
    assert!(matches!(error, OpenError::TooShort { found_bytes, .. } if found_bytes == 4 * MIB), "{error}");
}

#[test]
fn a_read_only_block_device_is_refused() {
    let _alone = alone();
    let (_folder, image) = image(4 * MIB);
    let Some(disk) = Loop::over(&image, &["-r"]) else { return };
    let error = format(&disk.device, &options()).unwrap_err();
    assert!(matches!(error, FormatError::Refused(Refusal::ReadOnly { .. })), "{error}");
    let error = open(&disk.device).unwrap_err();
    assert!(matches!(error, OpenError::Refused(Refusal::ReadOnly { .. })), "{error}");
}

#[test]
fn a_mounted_block_device_is_refused_and_its_place_named() {
    let _alone = alone();
    let (folder, image) = image(8 * MIB);
    let Some(disk) = Loop::over(&image, &[]) else { return };
    let at = folder.path().canonicalize().unwrap().join("mounted here");
    fs::create_dir(&at).unwrap();
    let ran = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !ran(Command::new("mkfs.ext4").arg("-q").arg(&disk.device))
        || !ran(Command::new("mount").arg(&disk.device).arg(&at))
    {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let _mounted = Mounted(at.clone());
    let force = FormatOptions { force: true, ..options() };
    let error = format(&disk.device, &force).unwrap_err();
    assert!(
        matches!(&error, FormatError::Refused(Refusal::Mounted { at: found, .. }) if *found == at),
        "{error}"
    );
    let error = open(&disk.device).unwrap_err();
    assert!(
        matches!(&error, OpenError::Refused(Refusal::Mounted { at: found, .. }) if *found == at),
        "{error}"
    );
}
