//! How long partitions were without a leader after a node was killed, as a client sees it.
//!
//! For each partition that the killed node led: the time from the kill to the end of the first acknowledged operation
//! of that partition which *began* after the kill. (An operation that was already under way may have been answered
//! before the node died.) Workers report their successes; while nothing was killed that costs them one relaxed load.
//!
//! The figure includes noticing, election, the new leader's first commit, the client's own search for the leader, and
//! the operation itself: it is what an application would have felt.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// "Not seen yet" in [`OutageWatch::first_ns`].
const UNSEEN: u64 = u64::MAX;

/// Watches for each partition's first sign of life after a kill. Shared by the workers and the one who kills.
#[derive(Debug)]
pub(crate) struct OutageWatch {
    zero: Instant,
    armed: AtomicBool,
    /// The kill, in nanoseconds from `zero`.
    killed_ns: AtomicU64,
    /// Per partition: the end of the first success that began after the kill, in nanoseconds from `zero`.
    first_ns: Box<[AtomicU64]>,
}

/// What one kill cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    /// Per partition that the killed node led, in the order asked: how long it gave no answer; `None` if it gave none
    /// until the watch was read.
    pub(crate) partitions: Vec<(u32, Option<Duration>)>,
}

impl Outage {
    /// The longest silence; `None` if a partition never came back or there was none to watch.
    pub(crate) fn max(&self) -> Option<Duration> {
        self.ended()?.into_iter().max()
    }

    /// The mean silence; `None` if a partition never came back or there was none to watch.
    pub(crate) fn mean(&self) -> Option<Duration> {
        let ended = self.ended()?;
        let count = u32::try_from(ended.len()).ok().filter(|count| *count > 0)?;
        Some(ended.iter().sum::<Duration>() / count)
    }

    fn ended(&self) -> Option<Vec<Duration>> {
        self.partitions.iter().map(|(_, silence)| *silence).collect()
    }
}

impl OutageWatch {
    /// A watch over `partitions` partitions (a power of two).
    pub(crate) fn new(partitions: u32) -> Self {
        assert!(partitions.is_power_of_two(), "partitions come in powers of two");
        OutageWatch {
            zero: Instant::now(),
            armed: AtomicBool::new(false),
            killed_ns: AtomicU64::new(0),
            first_ns: (0..partitions).map(|_| AtomicU64::new(UNSEEN)).collect(),
        }
    }

    /// The partition that a key's hash belongs to: its topmost bits.
    pub(crate) fn partition(&self, key_hash: u64) -> usize {
        let bits = self.first_ns.len().trailing_zeros();
        if bits == 0 { 0 } else { (key_hash >> (u64::BITS - bits)) as usize }
    }

    /// Starts watching: a node was killed at `at`.
    pub(crate) fn killed(&self, at: Instant) {
        self.armed.store(false, Ordering::SeqCst);
        for first in &self.first_ns {
            first.store(UNSEEN, Ordering::SeqCst);
        }
        self.killed_ns.store(self.ns(at), Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Reports an acknowledged operation; `key_hash` is only asked for while watching.
    pub(crate) fn success(&self, began: Instant, ended: Instant, key_hash: impl FnOnce() -> u64) {
        if !self.armed.load(Ordering::Relaxed) || !self.armed.load(Ordering::SeqCst) {
            return;
        }
        if self.ns(began) < self.killed_ns.load(Ordering::SeqCst) {
            return;
        }
        self.first_ns[self.partition(key_hash())].fetch_min(self.ns(ended), Ordering::SeqCst);
    }

    /// What the last kill cost the partitions named (those that the killed node led).
    pub(crate) fn outage(&self, partitions: &[u32]) -> Outage {
        let killed_ns = self.killed_ns.load(Ordering::SeqCst);
        let silence = |partition: u32| {
            let first = self.first_ns.get(partition as usize)?.load(Ordering::SeqCst);
            (first != UNSEEN).then(|| Duration::from_nanos(first.saturating_sub(killed_ns)))
        };
        Outage { partitions: partitions.iter().map(|p| (*p, silence(*p))).collect() }
    }

    fn ns(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.zero).as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn counts_only_what_began_after_the_kill() {
        let watch = OutageWatch::new(4);
        let at = |offset| watch.zero + ms(offset);
        let hash = |partition: u64| partition << 62 | 5;
        watch.success(at(10), at(20), || unreachable!("nothing was killed"));
        watch.killed(at(100));
        watch.success(at(99), at(150), || hash(2));
        assert_eq!(watch.outage(&[2]).max(), None, "it was under way before");
        watch.success(at(101), at(400), || hash(2));
        watch.success(at(300), at(350), || hash(2));
        watch.success(at(500), at(501), || hash(2));
        watch.success(at(120), at(160), || hash(0));
        let outage = watch.outage(&[0, 2]);
        assert_eq!(outage.partitions, [(0, Some(ms(60))), (2, Some(ms(250)))]);
        assert_eq!((outage.max(), outage.mean()), (Some(ms(250)), Some(ms(155))));
        assert_eq!(watch.outage(&[0, 3]).mean(), None, "partition 3 stayed silent");
    }

    #[test]
    fn a_second_kill_starts_over() {
        let watch = OutageWatch::new(1);
        let at = |offset| watch.zero + ms(offset);
        watch.killed(at(10));
        watch.success(at(11), at(12), || u64::MAX);
        watch.killed(at(20));
        assert_eq!(watch.outage(&[0]).max(), None);
        watch.success(at(21), at(25), || u64::MAX);
        assert_eq!(watch.outage(&[0]).max(), Some(ms(5)));
        assert_eq!(watch.outage(&[]).max(), None);
    }

    #[test]
    fn partitions_are_the_top_bits() {
        let watch = OutageWatch::new(16);
        assert_eq!(watch.partition(0x7fff_ffff_ffff_ffff), 7);
        assert_eq!(watch.partition(u64::MAX), 15);
        assert_eq!(OutageWatch::new(1).partition(u64::MAX), 0);
    }
}
