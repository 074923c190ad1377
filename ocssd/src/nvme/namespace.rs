//! Opening a namespace's character device (`/dev/ngXnY`), and every reason not to.
//!
//! Invariants:
//! - The block device of the same namespace is locked for as long as its character device is in use, or a command of a
//!   ring to it is in flight: block writes and passthrough must never meet in one zone, since the kernel's own idea of
//!   the write pointer goes stale, and a mounted file system would be destroyed. A block device that cannot be locked is
//!   a refusal.
//! - What cannot be written whole (blocks with metadata), or in sectors that buffers can hold, is refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use super::command::{BLOCKS_MAX, Command, IDENTIFY_BYTES, Identify};
use super::identify::{CommandSet, Controller, IdentifyError, Namespace};
use super::ioctl::{self, CommandError};
use crate::layout::{SECTOR_BYTES_MAX, SECTOR_BYTES_MIN};
use crate::lock::{DeviceLock, LockError, LockedFile};
use crate::probe::Kind;

/// Most bytes of one command, whatever the device takes: a buffer of as many scattered pages still fits the segments
/// that the kernel maps for one request (127 of them in older kernels).
const TRANSFER_BYTES_MAX: u64 = 256 << 10;

/// Why a host-managed device (zones, placement handles) cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// Nothing is there.
    #[error("{}: there is no such device", .path.display())]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// A file, a folder, or a device of another kind.
    #[error("{} is {found}: {wanted} is needed", .path.display())]
    NotADevice {
        /// The path given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A conventional device was given as zoned.
    #[error(
        "{} is not zoned: it can be written anywhere. Give it as a conventional device, or give a zoned namespace",
        .path.display()
    )]
    NotZoned {
        /// The device.
        path: PathBuf,
    },
    /// A zoned device was given as one that can be written anywhere.
    #[error("{} is zoned: it cannot be written anywhere. Give it as a zoned device", .path.display())]
    Zoned {
        /// The device.
        path: PathBuf,
    },
    /// Its zones cannot serve as chunks.
    #[error("the zones of {} cannot be used: {reason}", .path.display())]
    Zones {
        /// The device.
        path: PathBuf,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// It has no flexible data placement, or it is off.
    #[error(
        "{} has no placement handles ({reason}). Give it as a conventional device, or turn flexible data placement \
         on (a feature of its endurance group) and make the namespace anew",
        .path.display()
    )]
    NoPlacement {
        /// The device.
        path: PathBuf,
        /// Which part is missing.
        reason: &'static str,
    },
    /// The process may not send commands.
    #[error(
        "this process may not use {}: run it with CAP_SYS_ADMIN, and with the right to read and write the device",
        .path.display()
    )]
    NotPermitted {
        /// The device.
        path: PathBuf,
    },
    /// Its blocks come with metadata.
    #[error(
        "the blocks of {} come with {metadata_bytes} bytes of metadata: format the namespace without",
        .path.display()
    )]
    Metadata {
        /// The device.
        path: PathBuf,
        /// Bytes with each block.
        metadata_bytes: u16,
    },
    /// Its blocks are too large or too small.
    #[error(
        "{} has blocks of {sector_bytes} bytes, and only powers of two from {SECTOR_BYTES_MIN} to {SECTOR_BYTES_MAX} can \
         be used: format the namespace with others",
        .path.display()
    )]
    Sector {
        /// The device.
        path: PathBuf,
        /// Bytes of a block.
        sector_bytes: u32,
    },
    /// What it says of itself makes no sense.
    #[error("{}: {source}", .path.display())]
    Identify {
        /// The device.
        path: PathBuf,
        /// What is wrong.
        source: IdentifyError,
    },
    /// Somebody else has it, or the block device of the same namespace.
    #[error(
        "{} is in use, it or the block device of the same namespace: is the node running already, or a file system \
         mounted?",
        .path.display()
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// The block device of the same namespace cannot be locked, since there is no way to it.
    #[error(
        "{} cannot be locked: the block device of the same namespace has to be, and {} is missing or stands for \
         another; make the node (udev does, or mknod with the numbers in sysfs)",
        .path.display(), .block.display()
    )]
    NoBlockNode {
        /// The character device.
        path: PathBuf,
        /// Where its block device should be.
        block: PathBuf,
    },
    /// The device cannot be divided so.
    #[error("{} has {has} {what}, too few for {shards} shards", .path.display())]
    TooFew {
        /// The device.
        path: PathBuf,
        /// Of what.
        what: &'static str,
        /// How many it has.
        has: u32,
        /// Among how many they would be divided.
        shards: u32,
    },
    /// The slice does not fit what is left of the device.
    #[error("no such slice of {}: {reason}", .path.display())]
    Slice {
        /// The device.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// The operating system or the device failed a step.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl NamespaceError {
    pub(crate) fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, path: path.to_path_buf(), source }
    }
}

/// What a path that exists is, in words.
pub(crate) fn describe(kind: &fs::FileType) -> &'static str {
    if kind.is_file() {
        "a file"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "neither a file nor a device"
    }
}

/// A namespace that takes commands. Any thread may use it.
#[derive(Debug)]
pub(crate) struct Passthrough {
    pub(crate) path: PathBuf,
    pub(crate) device: LockedFile,
    pub(crate) nsid: u32,
    pub(crate) namespace: Namespace,
    pub(crate) controller: Controller,
    pub(crate) command_set: CommandSet,
    /// Most logical blocks of one command.
    pub(crate) transfer_blocks_max: u32,
}

impl Passthrough {
    /// Opens a namespace's character device, locks it, and asks what it is. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self, NamespaceError> {
        let owned = || path.to_path_buf();
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NamespaceError::Missing { path: owned() },
            _ => NamespaceError::io("look at", path)(source),
        })?;
        let wanted = "the character device of an NVMe namespace (/dev/ngXnY)";
        if !metadata.file_type().is_char_device() {
            let found = describe(&metadata.file_type());
            return Err(NamespaceError::NotADevice { path: owned(), found, wanted });
        }
        let device =
            OpenOptions::new().read(true).write(true).open(path).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied => not_permitted(path),
                _ => NamespaceError::io("open", path)(source),
            })?;
        let nsid =
            ioctl::namespace_id(&device).map_err(NamespaceError::io("ask", path))?.ok_or_else(|| {
                NamespaceError::NotADevice {
                    path: owned(),
                    found: "a character device of another kind",
                    wanted,
                }
            })?;
        let lock = lock(path, metadata.rdev())?;
        let device = LockedFile::new(device, Arc::new(lock));

        let command_set = identify(device.file(), path, nsid, Identify::NamespaceDescriptors)?;
        let command_set = CommandSet::parse(&command_set).map_err(bad_answer(path))?;
        let namespace = identify(device.file(), path, nsid, Identify::Namespace)?;
        let namespace = Namespace::parse(&namespace).map_err(bad_answer(path))?;
        let controller = identify(device.file(), path, nsid, Identify::Controller)?;
        let controller = Controller::parse(&controller).map_err(bad_answer(path))?;
        if namespace.metadata_bytes != 0 {
            return Err(NamespaceError::Metadata { path: owned(), metadata_bytes: namespace.metadata_bytes });
        }
        check_sector(path, namespace.block_bytes)?;
        let transfer_blocks_max = blocks_of(controller.transfer_bytes_max, namespace.block_bytes);
        Ok(Self { path: owned(), device, nsid, namespace, controller, command_set, transfer_blocks_max })
    }

    /// An answer to an identify command.
    pub(crate) fn identify(&self, what: Identify) -> Result<Vec<u8>, NamespaceError> {
        identify(self.device.file(), &self.path, self.nsid, what)
    }

    /// An admin command. Blocks.
    pub(crate) fn admin(
        &self,
        step: &'static str,
        command: Command,
        buf: &mut [u8],
    ) -> Result<u32, NamespaceError> {
        ioctl::admin(self.device.file(), command, buf).map_err(failed(step, &self.path))
    }

    /// An I/O command. Blocks.
    pub(crate) fn io(
        &self,
        step: &'static str,
        command: Command,
        buf: &mut [u8],
    ) -> Result<u32, NamespaceError> {
        ioctl::io(self.device.file(), command, buf).map_err(failed(step, &self.path))
    }

    /// What a wrong answer of this device is reported as.
    pub(crate) fn bad_answer(&self) -> impl FnOnce(IdentifyError) -> NamespaceError {
        bad_answer(&self.path)
    }
}

/// Refuses sectors that the rest of this program cannot address.
pub(crate) fn check_sector(path: &Path, sector_bytes: u32) -> Result<(), NamespaceError> {
    if sector_bytes.is_power_of_two() && (SECTOR_BYTES_MIN..=SECTOR_BYTES_MAX).contains(&sector_bytes) {
        return Ok(());
    }
    Err(NamespaceError::Sector { path: path.to_path_buf(), sector_bytes })
}

/// Logical blocks of the largest command, where the device takes `bytes` (`None`: any number).
pub(crate) fn blocks_of(bytes: Option<u64>, block_bytes: u32) -> u32 {
    let bytes = bytes.unwrap_or(TRANSFER_BYTES_MAX).min(TRANSFER_BYTES_MAX);
    ((bytes / u64::from(block_bytes)) as u32).clamp(1, BLOCKS_MAX)
}

fn identify(device: &File, path: &Path, nsid: u32, what: Identify) -> Result<Vec<u8>, NamespaceError> {
    let mut answer = vec![0; IDENTIFY_BYTES as usize];
    ioctl::admin(device, Command::identify(nsid, what), &mut answer).map_err(failed("identify", path))?;
    Ok(answer)
}

fn bad_answer(path: &Path) -> impl FnOnce(IdentifyError) -> NamespaceError {
    move |source| NamespaceError::Identify { path: path.to_path_buf(), source }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(CommandError) -> NamespaceError {
    move |error| match error {
        CommandError::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => not_permitted(path),
        other => NamespaceError::io(step, path)(other.into()),
    }
}

fn not_permitted(path: &Path) -> NamespaceError {
    NamespaceError::NotPermitted { path: path.to_path_buf() }
}

/// Locks the namespace: by its block device if it has one, since that is what others would open.
fn lock(path: &Path, device: u64) -> Result<DeviceLock, NamespaceError> {
    let block = block_device_of(Path::new("/sys"), Path::new("/dev"), device)
        .map_err(|block| NamespaceError::NoBlockNode { path: path.to_path_buf(), block })?;
    let taken = match block {
        Some(block) => DeviceLock::take(&block, Kind::BlockDevice),
        // Only the plain lock: a character device cannot be opened exclusively.
        None => DeviceLock::take(path, Kind::RegularFile),
    };
    taken.map_err(|error| match error {
        LockError::Held => NamespaceError::InUse { path: path.to_path_buf() },
        LockError::Io(source) => NamespaceError::io("lock", path)(source),
    })
}

/// The block device beside a namespace's character device: `ng0n1` stands in sysfs beside `nvme0n1`. `None`: the kernel
/// has none for it (it has no use for the command set).
///
/// # Errors
/// If there is one, but no node of it where that should be: there.
fn block_device_of(sys: &Path, dev: &Path, device: u64) -> Result<Option<PathBuf>, PathBuf> {
    let numbers = |device: u64| format!("{}:{}", libc::major(device), libc::minor(device));
    let Ok(char) = fs::canonicalize(sys.join("dev/char").join(numbers(device))) else { return Ok(None) };
    let name = char.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("ng"));
    let Some(name) = name.map(|numbers| format!("nvme{numbers}")) else { return Ok(None) };
    let Ok(block) = fs::read_to_string(char.with_file_name(&name).join("dev")) else { return Ok(None) };
    let node = dev.join(name);
    let is_it = fs::metadata(&node).is_ok_and(|found| numbers(found.rdev()) == block.trim());
    if is_it { Ok(Some(node)) } else { Err(node) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused_with_the_reason() {
        let refused = |path: &str| Passthrough::open(Path::new(path)).unwrap_err().to_string();
        assert_eq!(refused("/dev/ng-none"), "/dev/ng-none: there is no such device");
        assert_eq!(
            refused("/"),
            "/ is a folder: the character device of an NVMe namespace (/dev/ngXnY) is needed"
        );
        assert_eq!(
            refused("/dev/null"),
            "/dev/null is a character device of another kind: the character device of an NVMe namespace \
             (/dev/ngXnY) is needed"
        );
    }

    /// Taken for a namespace that has none, its block device would be open to everybody.
    #[test]
    fn a_block_device_without_a_node_is_no_missing_block_device() {
        let root = tempfile::tempdir().unwrap();
        let (sys, dev) = (root.path().join("sys"), root.path().join("dev"));
        let controller = sys.join("devices/nvme0");
        for folder in [controller.join("ng0n1"), sys.join("dev/char"), dev.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        std::os::unix::fs::symlink(controller.join("ng0n1"), sys.join("dev/char/240:7")).unwrap();
        let block_device = || block_device_of(&sys, &dev, libc::makedev(240, 7));
        assert_eq!(block_device_of(&sys, &dev, libc::makedev(1, 3)), Ok(None));
        assert_eq!(block_device(), Ok(None), "the kernel has no block device for it");

        let node = dev.join("nvme0n1");
        fs::create_dir(controller.join("nvme0n1")).unwrap();
        // A file has these numbers.
        fs::write(controller.join("nvme0n1/dev"), "0:0\n").unwrap();
        assert_eq!(block_device(), Err(node.clone()));
        fs::write(&node, "").unwrap();
        assert_eq!(block_device(), Ok(Some(node.clone())));
        fs::write(controller.join("nvme0n1/dev"), "259:0\n").unwrap();
        assert_eq!(block_device(), Err(node), "another device's");
    }

    #[test]
    fn commands_are_as_large_as_device_kernel_and_field_allow() {
        assert_eq!(blocks_of(None, 512), 512);
        assert_eq!(blocks_of(Some(128 << 10), 4096), 32);
        assert_eq!(blocks_of(Some(1 << 40), 4096), 64);
        assert_eq!(blocks_of(Some(4096), 64 << 10), 1);
    }
}
