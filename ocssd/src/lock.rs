//! One process at a time: the lock on a device.
//!
//! The lock is a `flock` on a descriptor of its own, so it ends exactly when this value is dropped or the
//! process dies, whatever other descriptors are still open or on their way out. A block device is opened
//! exclusively as well, which the kernel refuses while a file system on it is mounted.
//!
//! Invariant: whoever may still have something on its way to the device shares the lock ([`LockedFile`]), so that the next
//! owner does not meet it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::probe::Kind;

/// Held while a process works on a device.
#[derive(Debug)]
pub(crate) struct DeviceLock(Flock<File>);

/// Why the lock was not taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another process holds it, or the block device is mounted.
    Held,
    /// The system failed.
    Io(io::Error),
}

impl DeviceLock {
    /// Opens the device for reading and locks it, or says at once that somebody else did.
    pub(crate) fn take(path: &Path, kind: Kind) -> Result<Self, LockError> {
        let flags = match kind {
            Kind::RegularFile | Kind::CharacterDevice => 0,
            // Without O_CREAT this is defined for block devices only.
            Kind::BlockDevice => libc::O_EXCL,
        };
        let file =
            OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::ResourceBusy => LockError::Held,
                    _ => LockError::Io(error),
                }
            })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::Held),
            Err((_, errno)) => Err(LockError::Io(errno.into())),
        }
    }

    /// The locked file, open for reading through the page cache.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

/// A descriptor of a locked device. The device stays locked until the last duplicate is dropped.
#[derive(Debug)]
pub(crate) struct LockedFile {
    file: File,
    lock: Arc<DeviceLock>,
}

impl LockedFile {
    /// `file` is of the device that `lock` locks.
    pub(crate) fn new(file: File, lock: Arc<DeviceLock>) -> Self {
        Self { file, lock }
    }

    /// The same device again.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, lock: self.lock.clone() })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn lock(&self) -> &Arc<DeviceLock> {
        &self.lock
    }
}
