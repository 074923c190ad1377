//! Whether the system under load keeps its word.
//!
//! [`ledger`] holds what was acknowledged, record by record; every read is held against it. [`journal`] keeps
//! acknowledged writes in a file, to be checked by another process.

pub(crate) mod books;
pub(crate) mod journal;
pub(crate) mod ledger;
