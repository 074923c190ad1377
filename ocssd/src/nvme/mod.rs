//! NVMe as the host speaks it: commands, what comes back, and the ring that carries them.
//!
//! ```text
//! command ---> ring ---> kernel (IORING_OP_URING_CMD) ---> device
//!                |                                            |
//! status  <------+--------------------------------------------+
//! identify: what the device says of itself, asked once, at opening, by ioctl
//! ```
//!
//! Nothing here knows chunks; [`zoned`](crate::zoned) and [`fdp`](crate::fdp) make media of it.

pub mod command;
pub mod identify;
mod ioctl;
pub mod namespace;
pub(crate) mod ring;
pub mod status;

pub use namespace::NamespaceError;
