//! Which records exist: those that were loaded, and those inserted since, as far as everything below them is there too.
//!
//! As YCSB's acknowledged counter: a workload that prefers the newest records must not ask for one whose insert is
//! still under way. An insert that fails for good leaves a hole, which counts as done: reading it finds nothing, and
//! nothing was promised.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The records 0..[`known`](Population::known), and those being inserted.
#[derive(Debug)]
pub(crate) struct Population {
    next: AtomicU64,
    known: AtomicU64,
    /// Inserts that are done while an earlier one is not.
    ahead: Mutex<BTreeSet<u64>>,
}

impl Population {
    /// The records 0..`records`.
    pub(crate) fn new(records: u64) -> Self {
        Population { next: AtomicU64::new(records), known: AtomicU64::new(records), ahead: Mutex::default() }
    }

    /// How many records there are.
    pub(crate) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// How many there are or may be, inserts of unknown outcome included.
    pub(crate) fn begun(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// The number of a new record, which its worker inserts.
    pub(crate) fn begin(&self) -> u64 {
        self.next.fetch_add(1, Ordering::AcqRel)
    }

    /// The insert of a record has been answered, or given up.
    pub(crate) fn done(&self, record: u64) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.insert(record);
        let mut known = self.known.load(Ordering::Acquire);
        while ahead.remove(&known) {
            known += 1;
        }
        self.known.store(known, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_known_when_all_below_them_are() {
        let population = Population::new(10);
        let records = [population.begin(), population.begin(), population.begin()];
        assert_eq!((records, population.known(), population.begun()), ([10, 11, 12], 10, 13));
        population.done(12);
        population.done(11);
        assert_eq!(population.known(), 10);
        population.done(10);
        assert_eq!(population.known(), 13);
        assert!(population.ahead.lock().unwrap().is_empty());
    }
}
