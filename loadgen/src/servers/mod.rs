//! Servers that this program starts on loopback, watches, and stops on every way out.

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod loopback;
pub(crate) mod process;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod terrane;
