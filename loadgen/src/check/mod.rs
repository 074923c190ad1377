//! Whether the system under load keeps its word.
//!
//! [`ledger`] holds what was acknowledged, record by record; every read is held against it.

pub(crate) mod ledger;
