//! What the target promised: per record, the highest version acknowledged to any worker and that value's checksum.
//!
//! The promise of an acknowledged write is that the key never again has a lower version, and that this version, if it
//! is still the newest, holds these bytes. A write whose outcome is unknown (a timeout) promises nothing: the record
//! may carry its value, at a higher version, or not. Of a target that tells no versions only this can be held: a record
//! once acknowledged is there.
//!
//! 16 bytes per record, in stripes with a lock each: workers on several threads meet only when they touch the same
//! stripe at the same moment, and no lock is held across an await. The ledger covers a window of the records, which
//! grows at its end as records are inserted.
//!
//! Invariant: a record's version never falls.

use std::sync::{Mutex, PoisonError};

/// What was promised of one record. Version 0: nothing yet (versions start at 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Promise {
    /// The highest acknowledged version.
    pub(crate) version: u64,
    /// The checksum of the value acknowledged at that version.
    pub(crate) checksum: u64,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `None`: the target tells no versions.
    pub(crate) version: Option<u64>,
    /// The value's checksum.
    pub(crate) checksum: u64,
}

impl Promise {
    /// What an acknowledged write promises; `None`: the target tells no versions, so the record is there, no more.
    pub(crate) fn of(version: Option<u64>, checksum: u64) -> Self {
        match version {
            Some(version) => Promise { version, checksum },
            None => Promise { version: 1, checksum: 0 },
        }
    }
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
    /// Compares what a read found (`None`: no such key) with what had been promised.
    pub(crate) fn check(self, seen: Option<Seen>) -> Result<(), Breach> {
        let Some(seen) = seen else {
            return if self.version == 0 { Ok(()) } else { Err(Breach::Missing) };
        };
        match seen.version {
            Some(version) if version < self.version => Err(Breach::Older),
            Some(version) if version == self.version && seen.checksum != self.checksum => {
                Err(Breach::Different)
            }
            _ => Ok(()),
        }
    }
}

/// The promises of the records from `first` on.
#[derive(Debug)]
pub(crate) struct Ledger {
    first: u64,
    stripes: Box<[Mutex<Vec<Promise>>]>,
}

/// Locks over the whole ledger: far more than workers, so that they rarely meet.
const STRIPES: u64 = 256;

impl Ledger {
    /// A ledger of the records from `first` on, with room for `records` of them; nothing promised.
    pub(crate) fn new(first: u64, records: u64) -> Self {
        let places = records.div_ceil(STRIPES) as usize;
        let stripes = (0..STRIPES).map(|_| Mutex::new(Vec::with_capacity(places))).collect();
        Ledger { first, stripes }
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
        let (stripe, place) = self.place(record);
        let places = self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        places.get(place).copied().unwrap_or_default()
    }

    fn with<R>(&self, record: u64, act: impl FnOnce(&mut Promise) -> R) -> R {
        let (stripe, place) = self.place(record);
        // A panic elsewhere cannot leave a promise half written: it is one assignment.
        let mut places = self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() <= place {
            places.resize(place + 1, Promise::default());
        }
        act(&mut places[place])
    }

    /// Record r of the window lives in stripe r mod STRIPES at place r / STRIPES.
    fn place(&self, record: u64) -> (usize, usize) {
        assert!(record >= self.first, "record {record} lies before {}", self.first);
        let nth = record - self.first;
        ((nth % STRIPES) as usize, (nth / STRIPES) as usize)
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
        let ledger = Ledger::new(0, 3);
        for version in [4, 9, 2, 7] {
            ledger.acknowledge(1, promise(version, version * 10)).unwrap();
        }
        assert_eq!(ledger.promised(1), promise(9, 90));
        assert_eq!(ledger.promised(0), Promise::default());
        assert_eq!(ledger.promised(2), Promise::default());
    }

    #[test]
    fn one_version_for_two_values_is_a_clash() {
        let ledger = Ledger::new(0, 1);
        ledger.acknowledge(0, promise(5, 1)).unwrap();
        assert_eq!(ledger.acknowledge(0, promise(5, 1)), Ok(()));
        assert_eq!(ledger.acknowledge(0, promise(5, 2)), Err(VersionClash));
        assert_eq!(ledger.promised(0), promise(5, 1));
    }

    #[test]
    fn every_record_has_its_own_place() {
        for (first, records) in [(0, 1), (0, 2), (7, 255), (0, 256), (1_000, 257), (0, 1_000)] {
            // Room for half of them: it grows.
            let ledger = Ledger::new(first, records / 2);
            for record in first..first + records {
                ledger.acknowledge(record, promise(record + 1, record)).unwrap();
            }
            for record in first..first + records {
                assert_eq!(ledger.promised(record), promise(record + 1, record));
            }
            assert_eq!(ledger.promised(first + records + 999), Promise::default());
        }
    }

    #[test]
    fn what_breaks_a_promise() {
        let known = promise(5, 50);
        let seen = |version, checksum| Some(Seen { version, checksum });
        assert_eq!(known.check(seen(Some(5), 50)), Ok(()));
        assert_eq!(known.check(seen(Some(6), 1)), Ok(()), "a later write, acknowledged or not");
        assert_eq!(known.check(seen(Some(5), 51)), Err(Breach::Different));
        assert_eq!(known.check(seen(Some(4), 50)), Err(Breach::Older));
        assert_eq!(known.check(None), Err(Breach::Missing));
        for found in [None, seen(Some(1), 1), seen(None, 1)] {
            assert_eq!(Promise::default().check(found), Ok(()), "nothing promised");
        }
    }

    #[test]
    fn without_versions_only_presence_is_promised() {
        let known = Promise::of(None, 7);
        assert_eq!(known.check(Some(Seen { version: None, checksum: 8 })), Ok(()));
        assert_eq!(known.check(None), Err(Breach::Missing));
        let ledger = Ledger::new(0, 1);
        for checksum in 0..3 {
            assert_eq!(ledger.acknowledge(0, Promise::of(None, checksum)), Ok(()));
        }
    }

    #[test]
    fn threads_agree_on_the_highest() {
        let ledger = Ledger::new(0, 8);
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
