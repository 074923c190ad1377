//! One thread's runtime, set up as a shard of the server sets its own up (`server/src/reactor.rs`): the embedded engine
//! runs on it, and the device probe, so that what is measured through it is what a shard could get.

use std::io;

use nix::libc;

/// Submissions that the ring takes at once, at least; as the server's.
const ENTRIES_MIN: u32 = 256;

type Runtime = monoio::Runtime<monoio::time::TimeDriver<monoio::IoUringDriver>>;

/// A runtime on this thread's own io_uring that will have `in_flight` operations in flight, with
/// `SINGLE_ISSUER | DEFER_TASKRUN` where the kernel has them (6.1).
///
/// # Errors
/// If io_uring is missing or forbidden here; says which.
pub(crate) fn runtime(in_flight: u32) -> anyhow::Result<Runtime> {
    let entries = in_flight.next_power_of_two().max(ENTRIES_MIN);
    let mut deferred = io_uring::IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun();
    match build(deferred, entries) {
        // An older kernel does not know the flags.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            build(io_uring::IoUring::builder(), entries)
        }
        built => built,
    }
    .map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::ENOSYS) => "this kernel has no io_uring",
            Some(libc::EPERM) => {
                "io_uring is forbidden here: see the sysctl kernel.io_uring_disabled, or the container's seccomp \
                 profile"
            }
            Some(libc::ENOMEM) => "not enough locked memory for io_uring: raise the limit (ulimit -l)",
            _ => "cannot set up io_uring",
        };
        anyhow::Error::new(error).context(hint)
    })
}

fn build(ring: io_uring::Builder, entries: u32) -> io::Result<Runtime> {
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
        .with_entries(entries)
        .uring_builder(ring)
        .enable_timer()
        .build()
}
