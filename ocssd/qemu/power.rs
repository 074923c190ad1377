//! Ends or restarts the QEMU guest in which the media tests run (`ocssd/qemu/run`).
//!
//! * `power pass`, `power fail`: the verdict leaves through QEMU's `isa-debug-exit` device. A number `v` written to its
//!   port ends QEMU with the status `2 v + 1`, so with 33 or 35. Writing to a port needs `ioperm`: the guest's kernel
//!   has no `/dev/port`.
//! * `power reset`: a hard reset, by the kernel's sysrq. Nothing is unmounted, synced or shut down.
//!
//! **Invariant:** the serial line is drained first. Both stop the machine at once, and lines that it still held would
//! be lost.

use std::io;
use std::process::ExitCode;

use nix::libc;

const PASS: u32 = 16;
const FAIL: u32 = 17;

/// Where `run` puts the device.
const EXIT_PORT: u16 = 0xf4;
const EXIT_PORT_COUNT: u16 = 4;

fn drain(descriptor: i32) -> io::Result<()> {
    // SAFETY: takes a number, and touches no memory of ours.
    match unsafe { libc::tcdrain(descriptor) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_arch = "x86_64")]
fn debug_exit(value: u32) -> io::Result<()> {
    // SAFETY: the call takes three numbers and changes nothing but which ports this thread may use.
    let status = unsafe {
        libc::syscall(
            libc::SYS_ioperm,
            libc::c_ulong::from(EXIT_PORT),
            libc::c_ulong::from(EXIT_PORT_COUNT),
            1,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the port was granted above, and the instruction touches neither memory nor the stack.
    unsafe {
        std::arch::asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") value, options(nomem, nostack, preserves_flags));
    }
    Err(io::Error::other("the machine has no isa-debug-exit device"))
}

#[cfg(not(target_arch = "x86_64"))]
fn debug_exit(value: u32) -> io::Result<()> {
    Err(io::Error::other(format!(
        "{value} cannot be written to port {EXIT_PORT:#x}+{EXIT_PORT_COUNT}: not x86-64"
    )))
}

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = drain(libc::STDOUT_FILENO).and_then(|()| match command.as_str() {
        "pass" => debug_exit(PASS),
        "fail" => debug_exit(FAIL),
        "reset" => std::fs::write("/proc/sysrq-trigger", "b"),
        _ => Err(io::Error::other("usage: power pass | fail | reset")),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("power {command}: {error}");
            ExitCode::FAILURE
        }
    }
}
