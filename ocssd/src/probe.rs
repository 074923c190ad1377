//! What the operating system says of a path: what sort of file it is, its size, and how direct I/O on it must be
//! aligned.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::libc;

/// Assumed where neither the kernel nor sysfs says: right for every device with sectors up to 4 KiB.
const FALLBACK_ALIGN: u32 = 4096;

/// The sorts of file that can be, or lead to, a Terrane device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    RegularFile,
    BlockDevice,
    /// Perhaps a namespace's.
    CharacterDevice,
}

impl Kind {
    /// `None`: a directory, pipe or whatever else cannot hold a device.
    pub(crate) fn of(metadata: &Metadata) -> Option<Self> {
        if metadata.is_file() {
            Some(Self::RegularFile)
        } else if metadata.file_type().is_block_device() {
            Some(Self::BlockDevice)
        } else if metadata.file_type().is_char_device() {
            Some(Self::CharacterDevice)
        } else {
            None
        }
    }
}

/// What direct I/O on a file must be multiples of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Address of the buffer.
    pub(crate) memory: u32,
    /// Offset in the file, and length.
    pub(crate) offset: u32,
}

/// Bytes that the file or block device holds. Moves the file's cursor.
pub(crate) fn size_bytes(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// The alignment of direct I/O: the kernel's word (`STATX_DIOALIGN`, Linux 6.1), else the logical block
/// size of a block device from sysfs, else 4096. `None`: the file system has no direct I/O.
pub(crate) fn alignment(file: &File) -> io::Result<Option<Alignment>> {
    if let Some(said) = dio_alignment(file)? {
        return Ok(Some(said).filter(|alignment| alignment.offset != 0 && alignment.memory != 0));
    }
    let metadata = file.metadata()?;
    let block = match Kind::of(&metadata) {
        Some(Kind::BlockDevice) => logical_block_bytes(metadata.rdev()),
        _ => None,
    };
    let offset = block.unwrap_or(FALLBACK_ALIGN);
    Ok(Some(Alignment { memory: offset, offset }))
}

/// `None`: the kernel does not say.
fn dio_alignment(file: &File) -> io::Result<Option<Alignment>> {
    let mut answer = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string as AT_EMPTY_PATH asks, and the
    // answer is a valid place for one `statx`.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain integers, zeroed before and filled by the kernel.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    Ok(Some(Alignment { memory: answer.stx_dio_mem_align, offset: answer.stx_dio_offset_align }))
}

/// `queue/logical_block_size` of the device, or of the disk that a partition belongs to.
fn logical_block_bytes(device: u64) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    ["", "../"].iter().find_map(|up| {
        let path = format!("/sys/dev/block/{major}:{minor}/{up}queue/logical_block_size");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_is_probed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(12_345).unwrap();
        assert_eq!(Kind::of(&file.metadata().unwrap()), Some(Kind::RegularFile));
        assert_eq!(size_bytes(&file).unwrap(), 12_345);
        if let Some(alignment) = alignment(&file).unwrap() {
            assert!(alignment.offset.is_power_of_two() && alignment.memory.is_power_of_two());
        }
    }

    #[test]
    fn a_folder_cannot_hold_a_device() {
        assert_eq!(Kind::of(&std::fs::metadata("/").unwrap()), None);
        assert_eq!(Kind::of(&std::fs::metadata("/dev/null").unwrap()), Some(Kind::CharacterDevice));
    }
}
