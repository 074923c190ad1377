//! What the cluster promised: per record, the highest version acknowledged to any worker and that value's checksum.
//!
//! The promise of an acknowledged write is that the key never again has a lower version, and that this version, if it
//! is still the newest, holds these bytes. A write whose outcome is unknown (a timeout) promises nothing: the record
//! may carry its value, at a higher version, or not.
//!
//! 16 bytes per record, in stripes with a lock each: workers on several threads meet only when they touch the same
//! stripe at the same moment, and no lock is held across an await.
//!
//! Invariant: a record's version never falls.

use std::sync::{Mutex, PoisonError};

/// What was promised of one record. Version 0: nothing yet (the cluster's versions start at 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Promise {
    /// The highest acknowledged version.
    pub(crate) version: u64,
    /// The checksum of the value acknowledged at that version.
    pub(crate) checksum: u64,
}

/// Two acknowledged writes of one record were given the same version: the cluster gave one promise twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionClash;

/// How a value read back breaks what had been promised before the read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breach {
    /// The record is not there at all.
    Missing,
    /// An older version than was acknowledged.
    Older,
    /// The acknowledged version, with other bytes.
    Different,
}

impl Promise {
    /// Compares what a read found (version and checksum; `None`: no such key) with what had been promised.
    pub(crate) fn check(self, found: Option<Promise>) -> Result<(), Breach> {
        match found {
            _ if self.version == 0 => Ok(()),
            None => Err(Breach::Missing),
            Some(found) if found.version < self.version => Err(Breach::Older),
            Some(found) if found.version == self.version && found.checksum != self.checksum => {
                Err(Breach::Different)
            }
            Some(_) => Ok(()),
        }
    }
}

/// The promises of all records 0..n.
#[derive(Debug)]
pub(crate) struct Ledger {
    records: u64,
    stripes: Box<[Mutex<Box<[Promise]>>]>,
}

/// Locks over the whole ledger: far more than workers, so that they rarely meet.
const STRIPES: u64 = 256;

impl Ledger {
    /// A ledger of `records` records, nothing promised.
    pub(crate) fn new(records: u64) -> Self {
        let stripes = (0..STRIPES.min(records.max(1)))
            .map(|stripe| {
                // Record r lives in stripe r mod STRIPES at place r / STRIPES.
                let places = (records + STRIPES - 1 - stripe) / STRIPES;
                Mutex::new(vec![Promise::default(); places as usize].into_boxed_slice())
            })
            .collect();
        Ledger { records, stripes }
    }

    /// How many records the ledger covers.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Notes that a write of `record` was acknowledged. An acknowledgement older than one already noted changes nothing.
    pub(crate) fn acknowledge(&self, record: u64, promise: Promise) -> Result<(), VersionClash> {
        self.with(record, |known| {
            if promise.version == known.version && promise.checksum != known.checksum {
                return Err(VersionClash);
            }
            if promise.version > known.version {
                *known = promise;
            }
            Ok(())
        })
    }

    /// What has been promised of `record` so far.
    pub(crate) fn promised(&self, record: u64) -> Promise {
        self.with(record, |known| *known)
    }

    fn with<R>(&self, record: u64, act: impl FnOnce(&mut Promise) -> R) -> R {
        assert!(record < self.records, "record {record} of {}", self.records);
        // A panic elsewhere cannot leave a promise half written: it is one assignment.
        let stripe = &self.stripes[(record % STRIPES) as usize];
        let mut places = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut places[(record / STRIPES) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(version: u64, checksum: u64) -> Promise {
        Promise { version, checksum }
    }

    #[test]
    fn the_highest_version_wins_in_any_order() {
        let ledger = Ledger::new(3);
        for version in [4, 9, 2, 7] {
            ledger.acknowledge(1, promise(version, version * 10)).unwrap();
        }
        assert_eq!(ledger.promised(1), promise(9, 90));
        assert_eq!(ledger.promised(0), Promise::default());
        assert_eq!(ledger.promised(2), Promise::default());
    }

    #[test]
    fn one_version_for_two_values_is_a_clash() {
        let ledger = Ledger::new(1);
        ledger.acknowledge(0, promise(5, 1)).unwrap();
        assert_eq!(ledger.acknowledge(0, promise(5, 1)), Ok(()));
        assert_eq!(ledger.acknowledge(0, promise(5, 2)), Err(VersionClash));
        assert_eq!(ledger.promised(0), promise(5, 1));
    }

    #[test]
    fn every_record_has_its_own_place() {
        for records in [1, 2, 255, 256, 257, 1_000] {
            let ledger = Ledger::new(records);
            for record in 0..records {
                ledger.acknowledge(record, promise(record + 1, record)).unwrap();
            }
            for record in 0..records {
                assert_eq!(ledger.promised(record), promise(record + 1, record));
            }
        }
    }

    #[test]
    fn what_breaks_a_promise() {
        let known = promise(5, 50);
        assert_eq!(known.check(Some(promise(5, 50))), Ok(()));
        assert_eq!(known.check(Some(promise(6, 1))), Ok(()), "a later write, acknowledged or not");
        assert_eq!(known.check(Some(promise(5, 51))), Err(Breach::Different));
        assert_eq!(known.check(Some(promise(4, 50))), Err(Breach::Older));
        assert_eq!(known.check(None), Err(Breach::Missing));
        for found in [None, Some(promise(1, 1))] {
            assert_eq!(Promise::default().check(found), Ok(()), "nothing promised");
        }
    }

    #[test]
    fn threads_agree_on_the_highest() {
        let ledger = Ledger::new(8);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for version in 1..=1_000 {
                        let version = version * 4 + thread;
                        ledger.acknowledge(version % 8, promise(version, version)).unwrap();
                    }
                });
            }
        });
        for record in 0..8 {
            let highest = (4..4_004).rev().find(|version| version % 8 == record).unwrap();
            assert_eq!(ledger.promised(record), promise(highest, highest));
        }
    }
}
