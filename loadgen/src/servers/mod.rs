//! Servers that this program starts on loopback, watches, and stops on every way out.

pub(crate) mod terrane;
