//! Laying a conventional device out: the one place where its data is created.
//!
//! Every byte is written once here, so that later writes touch neither file-system metadata nor
//! unwritten extents (on one machine: 9 to 10 thousand durable 4 KiB writes a second into written
//! blocks, 4 thousand into merely allocated ones).
//!
//! Invariants:
//! - The superblock comes last, after everything before it is durable: a device that has one was laid
//!   out to its end. What the slices' owners write first comes after that: a crash in between leaves slices
//!   that are blank, and a device that only `force` formats again.
//! - Nothing that exists is destroyed without `force`, and never while a process has it open.
//! - With `force`, an old superblock is gone for good before anything else is touched.
//! - A file created here is removed again if laying it out fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use crate::buffer::{AlignedBuf, BUFFER_ALIGN};
use crate::device::{DeviceKind, Host, LookError, OpenError, Refusal, Site};
use crate::flash::FlashFileError;
use crate::layout::{FIRST_SLICE_OFFSET, Layout, LayoutError, SECTOR_BYTES_MIN};
use crate::lock::{DeviceLock, LockError};
use crate::nvme::NamespaceError;
use crate::probe::{self, Kind};
use crate::superblock::{
    COPY_BYTES, COPY_OFFSETS, FORMAT_VERSION, SUPERBLOCK_BYTES, Superblock, SuperblockError,
};
use crate::volume::VolumeError;

/// Bytes of one write of zeros, and of one step of the progress.
const STEP_BYTES: usize = 4 << 20;

/// What to lay out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    /// The cluster that the node belongs to.
    pub cluster: u128,
    /// The node whose device this will be.
    pub node: u32,
    /// Slices, one for each shard of the node; fixed for the device's life.
    pub shards: u32,
    /// Bytes to use. A file gets this size, rounded down to whole chunks for each slice; of a block
    /// device 0 takes all.
    pub size_bytes: u64,
    /// Bytes of a chunk. Default: about 512 chunks in a slice, from 8 to 64 MiB.
    pub chunk_bytes: Option<u64>,
    /// Bytes of a sector, the unit that small writes are padded to. Default: what direct I/O on the
    /// device asks for, at least 512.
    pub sector_bytes: Option<u32>,
    /// Destroy whatever the device or file holds.
    pub force: bool,
}

/// Why a device was not laid out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It is a Terrane device already.
    #[error(
        "{} already is a Terrane device ({}): formatting it destroys its data; to do so anyway, force it",
        .path.display(), describe(.found)
    )]
    AlreadyFormatted {
        /// The device.
        path: PathBuf,
        /// Its superblock, or why it cannot be read.
        found: Result<Box<Superblock>, SuperblockError>,
    },
    /// It holds something else.
    #[error(
        "{} is not empty: formatting it destroys what it holds (an interrupted format leaves such a \
         file too); to do so anyway, force it",
        .path.display()
    )]
    NotEmpty {
        /// The file or block device.
        path: PathBuf,
    },
    /// A process has it open, or it is mounted.
    #[error("{} is in use by another process: stop the node that runs on it first", .path.display())]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// Neither a regular file nor a device.
    #[error(
        "{} is neither a regular file, nor a block device, nor the character device of an NVMe namespace (/dev/ngXnY)",
        .path.display()
    )]
    NotADevice {
        /// The path given.
        path: PathBuf,
    },
    /// It is not what was asked for, or nothing can be written to it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is there, but cannot be read.
    #[error(transparent)]
    Open(Box<OpenError>),
    /// Its zones or reclaim units are too few.
    #[error(
        "{} has {has} chunks for each of {shards} shards beside spares and metadata, and at least {needed} are needed: ask \
         for fewer shards",
        .path.display()
    )]
    TooFewChunks {
        /// The device.
        path: PathBuf,
        /// Slices asked for.
        shards: u32,
        /// Chunks that each would have.
        has: u32,
        /// Chunks that each must have.
        needed: u32,
    },
    /// The device decides this itself.
    #[error("{} is {kind}, whose {what} cannot be chosen: leave it out", .path.display())]
    NotChosen {
        /// The device.
        path: PathBuf,
        /// What it is.
        kind: DeviceKind,
        /// What was asked for.
        what: &'static str,
    },
    /// A slice cannot hold a volume: too many bad chunks, a limit of the device.
    #[error("the slice of shard {shard} on {} cannot be laid out: {source}", .path.display())]
    Volume {
        /// The device.
        path: PathBuf,
        /// Whose slice it would be.
        shard: u32,
        /// What is wrong with it.
        source: VolumeError,
    },
    /// An emulated device's file cannot be made.
    #[error(transparent)]
    Flash(FlashFileError),
    /// A namespace cannot be used.
    #[error(transparent)]
    Namespace(NamespaceError),
    /// The device cannot be divided as asked.
    #[error("{}: {source}", .path.display())]
    Layout {
        /// The device.
        path: PathBuf,
        /// What does not fit.
        source: LayoutError,
    },
    /// The sector size asked for is smaller than the device's own.
    #[error(
        "{} cannot be read or written in sectors of {sector_bytes} bytes: the device asks for multiples of \
         {device_bytes}",
        .path.display()
    )]
    Sector {
        /// The device.
        path: PathBuf,
        /// Bytes of a sector, as asked for.
        sector_bytes: u32,
        /// Bytes that direct I/O must be a multiple of.
        device_bytes: u32,
    },
    /// The file system cannot do direct I/O.
    #[error(
        "{} is on a file system without direct I/O: put it on another one (ext4 and XFS have it), or use a \
         block device",
        .path.display()
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
    },
    /// The file system or the block device is too small.
    #[error("there is no room for {needed_bytes} bytes at {}: free some, or ask for less", .path.display())]
    NoSpace {
        /// The file or block device.
        path: PathBuf,
        /// Bytes asked for.
        needed_bytes: u64,
    },
    /// The operating system failed a step.
    #[error("cannot {step} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl From<LookError> for FormatError {
    fn from(error: LookError) -> Self {
        match error {
            LookError::Refused(refusal) => Self::Refused(refusal),
            LookError::Namespace(error) => error.into(),
            LookError::Io { step, path, source } => Self::Io { step, path, source },
        }
    }
}

impl From<FlashFileError> for FormatError {
    fn from(error: FlashFileError) -> Self {
        match error {
            FlashFileError::InUse { path } => Self::InUse { path },
            FlashFileError::NoSpace { path, needed_bytes } => Self::NoSpace { path, needed_bytes },
            error => Self::Flash(error),
        }
    }
}

impl From<NamespaceError> for FormatError {
    fn from(error: NamespaceError) -> Self {
        match error {
            NamespaceError::InUse { path } => Self::InUse { path },
            error => Self::Namespace(error),
        }
    }
}

fn describe(found: &Result<Box<Superblock>, SuperblockError>) -> String {
    match found {
        Ok(found) => format!("node {} of cluster {:032x}", found.node, found.cluster),
        Err(error) => error.to_string(),
    }
}

/// Lays out the file or block device at `path` as a conventional device, creating the file if there is none, and
/// returns the superblock as written. Everything is durable when it returns. Blocks the calling thread.
///
/// `progress` is called with bytes written so far and bytes to write in all.
pub fn format(
    path: &Path,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    let host = Host::default();
    let found = look(&host, path)?;
    let path = found.as_ref().map_or(path, Site::path);
    if let Some(site) = &found {
        site.kind(Some(DeviceKind::Conventional))?;
    } else {
        // Said before a file appears and disappears again.
        plan(path, options, options.size_bytes, options.sector_bytes.unwrap_or(SECTOR_BYTES_MIN))?;
        create(path)?;
    }
    let result = format_at(&host, path, options, progress);
    if found.is_none() && result.is_err() {
        // The first error is the one worth reporting.
        let _ = std::fs::remove_file(path);
    }
    result
}

fn format_at(
    host: &Host,
    path: &Path,
    options: &FormatOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Superblock, FormatError> {
    let site = look(host, path)?.ok_or_else(|| io_error("look at", path, io::ErrorKind::NotFound.into()))?;
    Target { path, kind: site.node(), site: &site }.format(options, progress)
}

/// What is at a path. `None`: nothing.
pub(crate) fn look(host: &Host, path: &Path) -> Result<Option<Site>, FormatError> {
    match Site::look(host, path) {
        Ok(Some(site)) => Ok(Some(site)),
        Ok(None) => Err(FormatError::NotADevice { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match std::fs::read_link(path) {
            Ok(target) => Err(Refusal::LinkToNothing { path: path.to_path_buf(), target }.into()),
            Err(_) => Ok(None),
        },
        Err(source) => Err(io_error("look at", path, source)),
    }
}

fn io_error(step: &'static str, path: &Path, source: io::Error) -> FormatError {
    FormatError::Io { step, path: path.to_path_buf(), source }
}

fn create(path: &Path) -> Result<(), FormatError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|source| io_error("create", path, source))
}

fn plan(
    path: &Path,
    options: &FormatOptions,
    size_bytes: u64,
    sector_bytes: u32,
) -> Result<Layout, FormatError> {
    Layout::plan(size_bytes, options.shards, sector_bytes, options.chunk_bytes)
        .map_err(|source| FormatError::Layout { path: path.to_path_buf(), source })
}

/// An existing file or block device that is to be laid out.
struct Target<'a> {
    path: &'a Path,
    kind: Kind,
    site: &'a Site,
}

impl Target<'_> {
    fn format(
        &self,
        options: &FormatOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Superblock, FormatError> {
        let lock = DeviceLock::take(self.path, self.kind).map_err(|error| match error {
            LockError::Held => self
                .site
                .holder()
                .map_or_else(|| FormatError::InUse { path: self.path.to_path_buf() }, FormatError::Refused),
            LockError::Io(source) => self.error("open", source),
        })?;
        let held = probe::size_bytes(lock.file()).map_err(|source| self.error("measure", source))?;
        if !options.force {
            self.refuse_to_destroy(lock.file(), held)?;
        }

        let sector_bytes = self.sector_bytes(lock.file(), options)?;
        let size_bytes = self.size_bytes(options, held)?;
        let layout = plan(self.path, options, size_bytes, sector_bytes)?;

        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(self.path).map_err(
                |source| match source.kind() {
                    io::ErrorKind::InvalidInput => FormatError::NoDirectIo { path: self.path.to_path_buf() },
                    _ => match self.site.not_writable(&source) {
                        Some(refusal) => FormatError::Refused(refusal),
                        None => self.error("open", source),
                    },
                },
            )?;
        self.erase_superblocks(&file, held)?;
        if self.kind == Kind::RegularFile {
            self.allocate(&file, layout.device_bytes())?;
        }
        self.fill_with_zeros(&file, layout.device_bytes(), progress)?;

        let superblock = Superblock {
            version: FORMAT_VERSION,
            sequence: 1,
            cluster: options.cluster,
            node: options.node,
            shards: layout.shards,
            sector_bytes: layout.sector_bytes,
            chunk_bytes: layout.chunk_bytes,
            slice_bytes: layout.slice_bytes,
            kind: DeviceKind::Conventional,
            shape: layout.shape(match self.kind {
                // It has no more than its slices need, whatever was asked for.
                Kind::RegularFile => layout.device_bytes(),
                _ => size_bytes,
            }),
        };
        self.write_superblocks(&file, &superblock)?;
        if self.kind == Kind::RegularFile {
            self.sync_folder()?;
        }
        Ok(superblock)
    }

    fn refuse_to_destroy(&self, file: &File, held: u64) -> Result<(), FormatError> {
        let found = read_superblock(file).map_err(|source| self.error("read", source))?;
        let path = self.path.to_path_buf();
        match found {
            Ok(_) | Err(SuperblockError::Newer { .. } | SuperblockError::Damaged { .. }) => {
                return Err(FormatError::AlreadyFormatted { path, found: found.map(Box::new) });
            }
            Err(SuperblockError::Blank | SuperblockError::NotOurs) => {}
        }
        let empty = match self.kind {
            Kind::RegularFile => held == 0,
            Kind::BlockDevice | Kind::CharacterDevice => {
                let mut front = vec![0; FIRST_SLICE_OFFSET as usize];
                let read = read_up_to(file, &mut front, 0).map_err(|source| self.error("read", source))?;
                front[..read].iter().all(|byte| *byte == 0)
            }
        };
        if empty { Ok(()) } else { Err(FormatError::NotEmpty { path }) }
    }

    fn sector_bytes(&self, file: &File, options: &FormatOptions) -> Result<u32, FormatError> {
        let no_direct_io = || FormatError::NoDirectIo { path: self.path.to_path_buf() };
        let alignment = probe::alignment(file)
            .map_err(|source| self.error("look at", source))?
            .filter(|alignment| alignment.memory as usize <= BUFFER_ALIGN)
            .ok_or_else(no_direct_io)?;
        let sector_bytes = options.sector_bytes.unwrap_or(alignment.offset.max(SECTOR_BYTES_MIN));
        if !sector_bytes.is_multiple_of(alignment.offset) {
            let path = self.path.to_path_buf();
            return Err(FormatError::Sector { path, sector_bytes, device_bytes: alignment.offset });
        }
        Ok(sector_bytes)
    }

    fn size_bytes(&self, options: &FormatOptions, held: u64) -> Result<u64, FormatError> {
        match self.kind {
            Kind::RegularFile => Ok(options.size_bytes),
            _ if options.size_bytes == 0 => Ok(held),
            _ if options.size_bytes <= held => Ok(options.size_bytes),
            _ => Err(self.no_space(options.size_bytes)),
        }
    }

    /// Zeros over whatever superblocks an earlier format left, durable before anything else changes.
    fn erase_superblocks(&self, file: &File, held: u64) -> Result<(), FormatError> {
        if held >= FIRST_SLICE_OFFSET {
            self.zero(file, 0, FIRST_SLICE_OFFSET as usize)?;
            file.sync_all().map_err(|source| self.error("flush", source))?;
        }
        Ok(())
    }

    fn allocate(&self, file: &File, bytes: u64) -> Result<(), FormatError> {
        file.set_len(0).map_err(|source| self.error("empty", source))?;
        let length = i64::try_from(bytes).map_err(|_| self.no_space(bytes))?;
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            Err(Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT) => Err(self.no_space(bytes)),
            // Without preallocation the zeros claim the space, only less contiguously.
            Err(Errno::EOPNOTSUPP) => file.set_len(bytes).map_err(|source| self.error("extend", source)),
            Err(errno) => Err(self.error("allocate", errno.into())),
        }
    }

    fn fill_with_zeros(
        &self,
        file: &File,
        bytes: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), FormatError> {
        let zeros = AlignedBuf::zeroed(STEP_BYTES);
        let mut written = 0;
        progress(0, bytes);
        while written < bytes {
            let step = (bytes - written).min(STEP_BYTES as u64);
            self.write(file, &zeros[..step as usize], written, bytes)?;
            written += step;
            progress(written, bytes);
        }
        file.sync_all().map_err(|source| self.error("flush", source))
    }

    fn zero(&self, file: &File, at: u64, len: usize) -> Result<(), FormatError> {
        self.write(file, &AlignedBuf::zeroed(len), at, at + len as u64)
    }

    fn write(&self, file: &File, bytes: &[u8], at: u64, whole: u64) -> Result<(), FormatError> {
        file.write_all_at(bytes, at).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                self.no_space(whole)
            }
            _ => self.error("write", source),
        })
    }

    /// The second copy first, so that the first, when it is there, never stands alone.
    fn write_superblocks(&self, file: &File, superblock: &Superblock) -> Result<(), FormatError> {
        let mut block = AlignedBuf::zeroed(COPY_BYTES.max(superblock.sector_bytes as usize));
        block[..SUPERBLOCK_BYTES].copy_from_slice(&superblock.encode());
        for offset in COPY_OFFSETS.into_iter().rev() {
            self.write(file, &block, offset, superblock.layout().device_bytes())?;
            file.sync_all().map_err(|source| self.error("flush", source))?;
        }
        Ok(())
    }

    /// Makes the file's name durable.
    fn sync_folder(&self) -> Result<(), FormatError> {
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let sync = File::open(folder).and_then(|folder| folder.sync_all());
        sync.map_err(|source| io_error("flush the folder", folder, source))
    }

    fn no_space(&self, needed_bytes: u64) -> FormatError {
        FormatError::NoSpace { path: self.path.to_path_buf(), needed_bytes }
    }

    fn error(&self, step: &'static str, source: io::Error) -> FormatError {
        io_error(step, self.path, source)
    }
}

/// The superblock of an open file or block device. The outer error is the system's.
pub(crate) fn read_superblock(file: &File) -> io::Result<Result<Superblock, SuperblockError>> {
    let copies = read_copies(file)?;
    Ok(Superblock::choose([&copies[0], &copies[1]]))
}

/// What stands in the places of both copies, as far as the file reaches.
pub(crate) fn read_copies(file: &File) -> io::Result<[Vec<u8>; 2]> {
    let mut copies = [vec![0; COPY_BYTES], vec![0; COPY_BYTES]];
    for (copy, offset) in copies.iter_mut().zip(COPY_OFFSETS) {
        let read = read_up_to(file, copy, offset)?;
        copy.truncate(read);
    }
    Ok(copies)
}

/// Fills `bytes` as far as the file reaches.
fn read_up_to(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
