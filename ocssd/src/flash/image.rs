//! The file behind an emulated device: what the device itself would keep, then the chunks' data.
//!
//! ```text
//! 0         4096      8192                      whole MiB
//! | header  | state   | record of chunk 0, 1 .. | data of chunk 0 | data of chunk 1 | ...
//! ```
//!
//! The header never changes and says what device it is. The state holds what belongs to the device as a whole. A
//! record of 64 bytes holds one chunk's descriptor and what the device knows beyond it; it is rewritten, alone, with
//! one `pwrite` whenever the chunk changes, *after* the data it speaks of was transferred.
//!
//! A `pwrite` of a record costs about a microsecond (1.5 measured, through the page cache). A mapping would cost less, but
//! a process that is killed between two stores would leave a record half old and half new, which nothing could tell from
//! damage.
//!
//! Invariants:
//! - A record is written whole or not when the process dies, since it goes to the page cache in one copy; on the way
//!   to the disk it stays within one sector. So a record with a bad checksum is damage, not a torn write.
//! - The header comes last when a file is made: a file that has one is a whole device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

use super::address::AddressFormat;
use super::chunk::Chunk;
use super::options::{FlashOptions, FlashOptionsError};
use super::record::{
    self, DeviceState, HEADER_BYTES, HeaderError, IMAGE_VERSION, MAGIC, RECORD_BYTES, STATE_BYTES,
};
use super::wear;
use crate::buffer::AlignedBuf;
use crate::geometry::Geometry;
use crate::lock::{DeviceLock, LockError};
use crate::media::ChunkState;
use crate::probe::{self, Kind};

const STATE_OFFSET: u64 = 4096;
const RECORDS_OFFSET: u64 = 8192;

/// The data begins at a multiple of this, which is one of every sector size.
const DATA_ALIGN: u64 = 1 << 20;

/// Bytes of one write of zeros, and of one step of the progress.
const STEP_BYTES: usize = 4 << 20;

/// Looks at a file that another process may be writing to, before damage is believed.
const LOOKS_MAX: u32 = 4;

// A record never straddles two sectors.
const _: () = assert!((crate::layout::SECTOR_BYTES_MIN as usize).is_multiple_of(RECORD_BYTES));
const _: () = assert!(DATA_ALIGN.is_multiple_of(crate::layout::SECTOR_BYTES_MAX as u64));

/// Why an emulated device's file was not made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlashFileError {
    /// Nothing is there.
    #[error("{}: there is no such file", .path.display())]
    Missing {
        /// The path given.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("{} exists: remove it first, if nothing on it is needed", .path.display())]
    Exists {
        /// The path given.
        path: PathBuf,
    },
    /// It is no regular file.
    #[error("{} is not a regular file", .path.display())]
    NotAFile {
        /// The path given.
        path: PathBuf,
    },
    /// It holds something else, or an emulated device that was never made to its end.
    #[error("{} does not hold an emulated flash device, or making it was interrupted", .path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "{} has format version {version}, and this program knows versions up to {IMAGE_VERSION}: upgrade this \
         program",
        .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Ours, but it cannot be trusted.
    #[error("{} is damaged: {what}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        what: String,
    },
    /// The options describe no device; of an existing file: its header does not.
    #[error("{}: {source}", .path.display())]
    Options {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: FlashOptionsError,
    },
    /// It was cut after it was made.
    #[error("{} has {found_bytes} bytes, but its header says {needed_bytes}: it was truncated", .path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found_bytes: u64,
        /// Bytes it had when it was made.
        needed_bytes: u64,
    },
    /// Direct I/O where the file is needs larger sectors, or is not possible.
    #[error("{} cannot be read or written in sectors of {sector_bytes} bytes with direct I/O", .path.display())]
    Alignment {
        /// The file.
        path: PathBuf,
        /// Bytes of the device's sectors.
        sector_bytes: u32,
    },
    /// The file system is too small.
    #[error("there is no room for {needed_bytes} bytes at {}", .path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes of the file.
        needed_bytes: u64,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
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

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// For header, state and records, through the page cache.
    records: File,
    /// For data, with O_DIRECT.
    pub(super) data: File,
    data_offset: u64,
    /// `None`: only looked at.
    _lock: Option<DeviceLock>,
}

/// What an image says when it is opened.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) options: FlashOptions,
    pub(super) state: DeviceState,
    pub(super) chunks: Vec<Chunk>,
}

impl Image {
    /// Makes a file with a new device on it, durable when this returns. `progress` is called with bytes written so far
    /// and bytes to write in all. A file that was not made to its end is removed.
    pub(super) fn create(
        path: &Path,
        options: &FlashOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), FlashFileError> {
        let error = |step| move |source| FlashFileError::Io { step, path: path.to_path_buf(), source };
        options.validate().map_err(|source| FlashFileError::Options { path: path.to_path_buf(), source })?;
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FlashFileError::Exists { path: path.to_path_buf() },
            _ => error("create")(source),
        })?;
        let result = Self::fill(path, &file, options, progress);
        if result.is_err() {
            // The first error is the one worth reporting.
            let _ = std::fs::remove_file(path);
        }
        result
    }

    fn fill(
        path: &Path,
        file: &File,
        options: &FlashOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), FlashFileError> {
        let error = |step| move |source| FlashFileError::Io { step, path: path.to_path_buf(), source };
        let _lock = lock(path)?;
        check_alignment(path, file, options.geometry.sector_bytes)?;
        let data_offset = data_offset(&options.geometry);
        let total = data_offset + options.geometry.slice_bytes();
        fallocate(file, FallocateFlags::empty(), 0, total as i64).map_err(|errno| match errno {
            Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT => {
                FlashFileError::NoSpace { path: path.to_path_buf(), needed_bytes: total }
            }
            errno => error("allocate")(errno.into()),
        })?;
        // Written once, so that later writes meet no unwritten extents.
        let direct = open_data(path, true)?;
        let zeros = AlignedBuf::zeroed(STEP_BYTES);
        let mut at = 0;
        while at < total {
            let step = (total - at).min(STEP_BYTES as u64) as usize;
            direct.write_all_at(&zeros[..step], at).map_err(error("write"))?;
            at += step as u64;
            progress(at, total);
        }
        let format = AddressFormat::of(&options.geometry);
        let mut records = Vec::new();
        for index in 0..options.geometry.chunk_count() {
            let birth = wear::birth(options, index);
            let state = if birth.bad { ChunkState::Offline } else { ChunkState::Free };
            let chunk = Chunk::new(state, 0, 0, birth.erases_max);
            records.extend(record::encode_record(options, &format, index, &chunk));
        }
        file.write_all_at(&records, RECORDS_OFFSET).map_err(error("write"))?;
        file.write_all_at(&record::encode_state(&DeviceState::default()), STATE_OFFSET)
            .map_err(error("write"))?;
        file.sync_all().map_err(error("sync"))?;
        file.write_all_at(&record::encode_header(options), 0).map_err(error("write"))?;
        file.sync_all().map_err(error("sync"))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(error("open the folder of"))?;
        folder.sync_all().map_err(error("sync the folder of"))
    }

    /// Opens a file that [`Self::create`] made, and makes durable whatever a process that died left in memory.
    pub(super) fn open(path: &Path) -> Result<Opened, FlashFileError> {
        let error = |step| move |source| FlashFileError::Io { step, path: path.to_path_buf(), source };
        check_file(path)?;
        let lock = lock(path)?;
        let records = OpenOptions::new().read(true).write(true).open(path).map_err(error("open"))?;
        let (options, mut state, chunks) = read(path, &records)?;
        records.sync_data().map_err(error("sync"))?;
        state.openings += 1;
        records.write_all_at(&record::encode_state(&state), STATE_OFFSET).map_err(error("write"))?;
        let (data, data_offset) = (open_data(path, true)?, data_offset(&options.geometry));
        let image = Self { path: path.to_path_buf(), records, data, data_offset, _lock: Some(lock) };
        Ok(Opened { image, options, state, chunks })
    }

    /// Opens a file to read what it holds at this moment. Takes no lock, and nothing can be written to it: another process
    /// may be at work on it.
    pub(super) fn look(path: &Path) -> Result<Opened, FlashFileError> {
        let error = |step| move |source| FlashFileError::Io { step, path: path.to_path_buf(), source };
        check_file(path)?;
        let records = File::open(path).map_err(error("open"))?;
        let mut found = read(path, &records);
        for _ in 1..LOOKS_MAX {
            // A record that was being rewritten looks damaged.
            if !matches!(found, Err(FlashFileError::Damaged { .. })) {
                break;
            }
            found = read(path, &records);
        }
        let (options, state, chunks) = found?;
        let (data, data_offset) = (open_data(path, false)?, data_offset(&options.geometry));
        let image = Self { path: path.to_path_buf(), records, data, data_offset, _lock: None };
        Ok(Opened { image, options, state, chunks })
    }

    /// As [`Self::look`], with the lock: no other process is at work on it.
    pub(super) fn look_locked(path: &Path) -> Result<Opened, FlashFileError> {
        check_file(path)?;
        let lock = lock(path)?;
        let mut opened = Self::look(path)?;
        opened.image._lock = Some(lock);
        Ok(opened)
    }

    /// Whether a file begins with our magic.
    pub(super) fn is_one(path: &Path) -> io::Result<bool> {
        let mut magic = [0; MAGIC.len()];
        match File::open(path)?.read_exact_at(&mut magic, 0) {
            Ok(()) => Ok(magic == MAGIC),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes what the device would remember of a chunk.
    pub(super) fn write_record(
        &self,
        options: &FlashOptions,
        format: &AddressFormat,
        index: u32,
        chunk: &Chunk,
    ) -> io::Result<()> {
        let bytes = record::encode_record(options, format, index, chunk);
        self.records.write_all_at(&bytes, RECORDS_OFFSET + u64::from(index) * RECORD_BYTES as u64)
    }

    /// Writes what the device would remember of itself.
    pub(super) fn write_state(&self, state: &DeviceState) -> io::Result<()> {
        self.records.write_all_at(&record::encode_state(state), STATE_OFFSET)
    }

    /// Where a sector's data stands, in bytes.
    pub(super) fn offset(&self, geometry: &Geometry, chunk: u32, sector: u32) -> u64 {
        self.data_offset
            + u64::from(chunk) * geometry.chunk_bytes()
            + u64::from(sector) * u64::from(geometry.sector_bytes)
    }
}

fn lock(path: &Path) -> Result<DeviceLock, FlashFileError> {
    DeviceLock::take(path, Kind::RegularFile).map_err(|error| match error {
        LockError::Held => FlashFileError::InUse { path: path.to_path_buf() },
        LockError::Io(source) => FlashFileError::Io { step: "open", path: path.to_path_buf(), source },
    })
}

fn open_data(path: &Path, write: bool) -> Result<File, FlashFileError> {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(path).map_err(|source| {
        FlashFileError::Io { step: "open for direct I/O", path: path.to_path_buf(), source }
    })
}

/// Refuses what is not a regular file.
fn check_file(path: &Path) -> Result<(), FlashFileError> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FlashFileError::Missing { path: path.to_path_buf() },
        _ => FlashFileError::Io { step: "look at", path: path.to_path_buf(), source },
    })?;
    match Kind::of(&metadata) {
        Some(Kind::RegularFile) => Ok(()),
        _ => Err(FlashFileError::NotAFile { path: path.to_path_buf() }),
    }
}

/// What the device in a file is, and remembers.
fn read(path: &Path, file: &File) -> Result<(FlashOptions, DeviceState, Vec<Chunk>), FlashFileError> {
    let error = |step| move |source| FlashFileError::Io { step, path: path.to_path_buf(), source };
    let damaged = |what: String| FlashFileError::Damaged { path: path.to_path_buf(), what };
    let found_bytes = probe::size_bytes(file).map_err(error("measure"))?;
    let options = read_header(path, file)?;
    options.validate().map_err(|source| FlashFileError::Options { path: path.to_path_buf(), source })?;
    let needed_bytes = data_offset(&options.geometry) + options.geometry.slice_bytes();
    if found_bytes < needed_bytes {
        return Err(FlashFileError::TooShort { path: path.to_path_buf(), found_bytes, needed_bytes });
    }
    check_alignment(path, file, options.geometry.sector_bytes)?;

    let mut bytes = [0; STATE_BYTES];
    file.read_exact_at(&mut bytes, STATE_OFFSET).map_err(error("read"))?;
    let state = record::decode_state(&bytes)
        .ok_or_else(|| damaged("the state of the device has a bad checksum".into()))?;
    let format = AddressFormat::of(&options.geometry);
    let mut bytes = vec![0; options.geometry.chunk_count() as usize * RECORD_BYTES];
    file.read_exact_at(&mut bytes, RECORDS_OFFSET).map_err(error("read"))?;
    let chunks = bytes
        .chunks_exact(RECORD_BYTES)
        .zip(0..)
        .map(|(bytes, index)| {
            let bytes = bytes.try_into().expect("chunks of one record");
            record::decode_record(&options, &format, index, bytes)
                .map_err(|what| damaged(format!("the record of chunk {index} {what}")))
        })
        .collect::<Result<_, _>>()?;
    Ok((options, state, chunks))
}

fn check_alignment(path: &Path, file: &File, sector_bytes: u32) -> Result<(), FlashFileError> {
    let alignment = probe::alignment(file).map_err(|source| FlashFileError::Io {
        step: "ask for the alignment of",
        path: path.to_path_buf(),
        source,
    })?;
    match alignment {
        Some(needs)
            if sector_bytes.is_multiple_of(needs.offset)
                && crate::buffer::BUFFER_ALIGN.is_multiple_of(needs.memory as usize) =>
        {
            Ok(())
        }
        _ => Err(FlashFileError::Alignment { path: path.to_path_buf(), sector_bytes }),
    }
}

fn data_offset(geometry: &Geometry) -> u64 {
    let records = u64::from(geometry.chunk_count()) * RECORD_BYTES as u64;
    (RECORDS_OFFSET + records).next_multiple_of(DATA_ALIGN)
}

fn read_header(path: &Path, file: &File) -> Result<FlashOptions, FlashFileError> {
    let path = || path.to_path_buf();
    let mut bytes = [0; HEADER_BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FlashFileError::NotOurs { path: path() });
        }
        Err(source) => return Err(FlashFileError::Io { step: "read", path: path(), source }),
    }
    record::decode_header(&bytes).map_err(|error| match error {
        HeaderError::NotOurs => FlashFileError::NotOurs { path: path() },
        HeaderError::Newer { version } => FlashFileError::Newer { path: path(), version },
        HeaderError::Damaged(what) => FlashFileError::Damaged { path: path(), what: what.to_owned() },
    })
}
