//! Commands by ioctl: for opening, and for what is asked seldom. They block the thread until the device answers,
//! an admin command for as long as a millisecond, so nothing on the data path comes here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

use super::command::{COMMAND_BYTES, Command};
use super::status::Status;

/// `struct nvme_passthru_cmd`: a [`Command`] whose last word is the result.
type Raw = [u8; COMMAND_BYTES];

/// Where the result stands in [`Raw`].
const RESULT_AT: usize = COMMAND_BYTES - 4;

nix::ioctl_none!(nvme_id, b'N', 0x40);
nix::ioctl_readwrite!(nvme_admin_cmd, b'N', 0x41, Raw);
nix::ioctl_readwrite!(nvme_io_cmd, b'N', 0x43, Raw);

/// Why a command by ioctl failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The device refused it.
    #[error("{0}")]
    Status(Status),
    /// The kernel did.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<CommandError> for io::Error {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Status(status) => Self::other(status.to_string()),
            CommandError::Io(error) => error,
        }
    }
}

/// The namespace that an NVMe device node stands for; `None`: it is no such node.
pub(crate) fn namespace_id(device: &File) -> io::Result<Option<u32>> {
    // SAFETY: the descriptor is open, and the call takes no argument.
    match unsafe { nvme_id(device.as_raw_fd()) } {
        Ok(id) => Ok(u32::try_from(id).ok().filter(|id| *id != 0)),
        Err(Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends an admin command whose data, if any, goes to `buf`. Returns its result.
pub(crate) fn admin(device: &File, command: Command, buf: &mut [u8]) -> Result<u32, CommandError> {
    // SAFETY: as `send` says.
    send(command, buf, |raw| unsafe { nvme_admin_cmd(device.as_raw_fd(), raw) })
}

/// Sends an I/O command whose data, if any, goes to `buf`. Returns its result.
pub(crate) fn io(device: &File, command: Command, buf: &mut [u8]) -> Result<u32, CommandError> {
    // SAFETY: as `send` says.
    send(command, buf, |raw| unsafe { nvme_io_cmd(device.as_raw_fd(), raw) })
}

/// `call` gets a whole, writable `struct nvme_passthru_cmd` whose address is that of `buf`, which has all the bytes
/// that the command moves and outlives the call: the kernel is done with both when it returns.
fn send(
    command: Command,
    buf: &mut [u8],
    call: impl FnOnce(*mut Raw) -> nix::Result<libc::c_int>,
) -> Result<u32, CommandError> {
    assert!(command.data_bytes as usize <= buf.len(), "the command moves more than the buffer holds");
    let addr = if command.data_bytes == 0 { 0 } else { buf.as_mut_ptr() as u64 };
    let mut raw = Command { addr, ..command }.encode();
    let status = call(&mut raw).map_err(io::Error::from)?;
    if let Some(status) = Status::of(status) {
        return Err(CommandError::Status(status));
    }
    let mut result = [0; 4];
    result.copy_from_slice(&raw[RESULT_AT..]);
    Ok(u32::from_ne_bytes(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_nvme_device_is_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(namespace_id(&file).unwrap(), None);
        let null = File::open("/dev/null").unwrap();
        assert_eq!(namespace_id(&null).unwrap(), None);
        assert!(matches!(admin(&null, Command::flush(1), &mut []), Err(CommandError::Io(_))));
        assert!(matches!(io(&null, Command::flush(1), &mut []), Err(CommandError::Io(_))));
    }
}
