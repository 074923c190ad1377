//! What is kept of acknowledged writes while load runs: a [`Ledger`] to hold reads against, a [`Journal`] to check by
//! later, both, or neither.

use std::time::Instant;

use crate::check::journal::Journal;
use crate::check::ledger::{Ledger, Promise, Seen};
use crate::measure::tally::Fault;
use crate::target::Found;
use crate::workload::record;

/// The books of a run.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// In memory: 16 bytes a record.
    pub(crate) ledger: Option<Ledger>,
    /// In a file: 32 bytes a write.
    pub(crate) journal: Option<Journal>,
}

/// Why a write could not be entered.
#[derive(Debug)]
pub(crate) enum Entry {
    /// The target broke its word.
    Fault(Fault),
    /// The journal takes no more: what it holds proves nothing about what comes after.
    Journal(String),
}

impl Books {
    /// Enters an acknowledged write.
    pub(crate) fn acknowledge(
        &self,
        record: u64,
        version: Option<u64>,
        checksum: u64,
        now: Instant,
    ) -> Result<(), Entry> {
        let promise = Promise::of(version, checksum);
        if let Some(journal) = &self.journal {
            journal.note(record, promise, now).map_err(Entry::Journal)?;
        }
        match self.ledger.as_ref().map(|ledger| ledger.acknowledge(record, promise)) {
            Some(Err(_)) => Err(Entry::Fault(Fault::VersionClash)),
            _ => Ok(()),
        }
    }

    /// What has been promised of a record so far; nothing, where no ledger is kept.
    pub(crate) fn promised(&self, record: u64) -> Promise {
        self.ledger.as_ref().map_or(Promise::default(), |ledger| ledger.promised(record))
    }
}

/// Whether what a read found is there, is a value written to that very key, and keeps what had been promised before the
/// read began.
pub(crate) fn judge(promised: Promise, key: &[u8], found: Option<&Found>) -> Result<bool, Fault> {
    let Some(found) = found else {
        promised.check(None)?;
        return Ok(false);
    };
    let checksum = record::check(key, &found.value)?;
    promised.check(Some(Seen { version: found.version, checksum }))?;
    Ok(true)
}
