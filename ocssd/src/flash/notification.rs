//! The chunk notification log: what the device says without being asked (Open-Channel 2.0, section "Chunk
//! Notification Log"; the layout as in the public header of SPDK).
//!
//! ```text
//! byte  0       8       16        20    22    23       32     34       64
//!       | count | start | namesp. | what| mask| reserved| blocks| reserved |
//! ```
//!
//! `what`: bit 0 low, 1 medium, 2 high error rate, 3 unrecoverable, 4 refreshed by the device, 8 wear index beyond the
//! threshold. `mask`: bit 0 the logical blocks, 1 the chunk, 2 the parallel unit. `blocks` is one less than their
//! number, and counts with bit 0 of the mask alone.
//!
//! Invariants:
//! - Counts begin at 1, rise by 1, and never repeat on a device, whatever becomes of its power.
//! - The log is bounded; the oldest entries go first. What they said, the chunk's descriptor and its reads say too.

use std::collections::VecDeque;

use super::address::Ppa;
use crate::media::NoticeKind;

/// Bytes of an entry.
pub const NOTIFICATION_BYTES: usize = 64;

/// Entries that are kept.
const ENTRIES_MAX: usize = 4096;

/// The only namespace of the device.
const NAMESPACE: u32 = 1;

/// What an entry's address covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationScope {
    /// So many sectors from the address on, within one chunk.
    Sectors(u32),
    /// The whole chunk.
    Chunk,
    /// All chunks of the parallel unit.
    Unit,
}

/// One entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Its number, from 1.
    pub count: u64,
    /// Where.
    pub address: Ppa,
    /// How much from there.
    pub scope: NotificationScope,
    /// What. The log has one bit for data that is lost and for a chunk that went offline: an entry that says
    /// [`NoticeKind::Unrecoverable`] of a whole chunk means the latter if the chunk's descriptor says so.
    pub kind: NoticeKind,
}

impl Notification {
    /// The entry as it stands in the log.
    ///
    /// # Panics
    /// If it covers no sectors, or more than 65,536.
    pub fn encode(&self) -> [u8; NOTIFICATION_BYTES] {
        let mut bytes = [0; NOTIFICATION_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.count.to_le_bytes());
        put(8, &self.address.0.to_le_bytes());
        put(16, &NAMESPACE.to_le_bytes());
        let what: u16 = match self.kind {
            NoticeKind::EccLow => 1,
            NoticeKind::EccMedium => 1 << 1,
            NoticeKind::EccHigh => 1 << 2,
            NoticeKind::Unrecoverable | NoticeKind::Offline => 1 << 3,
            NoticeKind::Worn => 1 << 8,
        };
        put(20, &what.to_le_bytes());
        let (mask, blocks) = match self.scope {
            NotificationScope::Sectors(sectors) => {
                let blocks = sectors.checked_sub(1).and_then(|blocks| u16::try_from(blocks).ok());
                (1, blocks.expect("an entry covers 1 to 65,536 sectors"))
            }
            NotificationScope::Chunk => (1 << 1, 0),
            NotificationScope::Unit => (1 << 2, 0),
        };
        put(22, &[mask]);
        put(32, &blocks.to_le_bytes());
        bytes
    }

    /// What the bytes say; `None`: nothing that a host acts on, or no entry.
    pub fn decode(bytes: &[u8; NOTIFICATION_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
        let what = half(20);
        let kind = [
            (1 << 3, NoticeKind::Unrecoverable),
            (1 << 2, NoticeKind::EccHigh),
            (1 << 1, NoticeKind::EccMedium),
            (1, NoticeKind::EccLow),
            (1 << 8, NoticeKind::Worn),
        ]
        .into_iter()
        .find_map(|(bit, kind)| (what & bit != 0).then_some(kind))?;
        let scope = match bytes[22] & 0b111 {
            0b001 => NotificationScope::Sectors(u32::from(half(32)) + 1),
            0b010 => NotificationScope::Chunk,
            0b100 => NotificationScope::Unit,
            _ => return None,
        };
        Some(Self { count: word(0), address: Ppa(word(8)), scope, kind })
    }
}

/// The device's log.
#[derive(Debug)]
pub(super) struct NotificationLog {
    entries: VecDeque<Notification>,
    /// Entries ever made.
    count: u64,
}

impl NotificationLog {
    /// An empty log that goes on counting after `count`.
    pub(super) fn after(count: u64) -> Self {
        Self { entries: VecDeque::new(), count }
    }

    /// Number of the newest entry ever made.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn push(&mut self, address: Ppa, scope: NotificationScope, kind: NoticeKind) {
        self.count += 1;
        if self.entries.len() == ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Notification { count: self.count, address, scope, kind });
    }

    /// Entries newer than `seen`, oldest first.
    pub(super) fn since(&self, seen: u64) -> impl Iterator<Item = &Notification> {
        let from = self.entries.partition_point(|entry| entry.count <= seen);
        self.entries.range(from..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let entry = Notification {
            count: 0x0102,
            address: Ppa(0x0304_0506),
            scope: NotificationScope::Sectors(8),
            kind: NoticeKind::EccHigh,
        };
        let mut golden = [0; NOTIFICATION_BYTES];
        golden[..2].copy_from_slice(&[2, 1]);
        golden[8..12].copy_from_slice(&[6, 5, 4, 3]);
        golden[16] = 1;
        golden[20] = 4;
        golden[22] = 1;
        golden[32] = 7;
        assert_eq!(entry.encode(), golden);
        assert_eq!(Notification::decode(&golden), Some(entry));
        let worn = Notification { scope: NotificationScope::Unit, kind: NoticeKind::Worn, ..entry };
        assert_eq!(worn.encode()[20..23], [0, 1, 4]);
    }

    #[test]
    fn every_kind_and_scope_comes_back() {
        use NoticeKind::{EccHigh, EccLow, EccMedium, Unrecoverable, Worn};
        for kind in [EccLow, EccMedium, EccHigh, Unrecoverable, Worn] {
            for scope in [
                NotificationScope::Sectors(1),
                NotificationScope::Sectors(65_536),
                NotificationScope::Chunk,
                NotificationScope::Unit,
            ] {
                let entry = Notification { count: 9, address: Ppa(1), scope, kind };
                assert_eq!(Notification::decode(&entry.encode()), Some(entry));
            }
        }
        assert_eq!(Notification::decode(&[0; NOTIFICATION_BYTES]), None);
    }

    #[test]
    fn the_log_is_bounded_and_its_counts_go_on() {
        let mut log = NotificationLog::after(10);
        for _ in 0..=ENTRIES_MAX {
            log.push(Ppa(0), NotificationScope::Chunk, NoticeKind::Worn);
        }
        assert_eq!(log.count(), 11 + ENTRIES_MAX as u64);
        assert_eq!(log.since(0).count(), ENTRIES_MAX);
        assert_eq!(log.since(0).next().unwrap().count, 12);
        assert_eq!(log.since(log.count() - 1).map(|entry| entry.count).collect::<Vec<_>>(), [log.count()]);
        assert_eq!(log.since(log.count()).count(), 0);
    }
}
