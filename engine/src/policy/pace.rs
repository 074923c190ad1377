//! How much cleaning may copy, from how much room is left: no cliff from either side.
//!
//! ```text
//!             reserve        low                              high
//!   room   ─────┼─────────────┼─────────────────────────────────┼─────▶
//!   copies      2 ──────────▶ 1 ─────────────────────────────▶  0        × what keeps even
//!   users       0 ──────────▶ 1 ─────────────────────────────▶  1        share of their rate
//!   victims     any           any ──────────────────────────▶  5 % alive at most
//! ```
//!
//! Cleaning segments of which the share *u* is alive gives room for 1 byte at the price of u / (1−u) copies. Copying that
//! much for each byte that users write keeps even, and that is what happens at the **low** mark, where the room
//! settles under constant load. Above it cleaning falls behind on purpose (what is not cleaned yet dies meanwhile), below
//! it cleaning catches up, and users are slowed down little by little: a store that is short of room has become slower long
//! before it has none. The **reserve** is cleaning's own: users get none of it, so cleaning can always finish.
//!
//! When reads suffer, cleaning yields as far as there is room to yield: wholly at the high mark, not at all at the low.
//!
//! Invariants:
//! - Each answer is a continuous function of the room, and never rises (copies), never falls (users) with it.
//! - At or below the reserve users get nothing; at or above the low mark they get everything.
//! - Copies never yield to latency at or below the low mark.

/// Copies at the reserve, against what keeps even.
const CATCH_UP: f64 = 2.0;
/// The least that is left of copies when latency is bad and room plenty.
const YIELD_MIN: f64 = 0.125;
/// With victims fuller than this, cleaning is not paced by them any more: it would be all that the device does.
const LIVE_SHARE_MAX: f64 = 0.95;
/// Share alive of the victims that are worth taking though there is plenty of room.
const LIVE_SHARE_AT_HIGH: f64 = 0.05;

/// Marks of the room left, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// Kept for cleaning. At least a segment more than one cleaning opens at a time.
    pub reserve_bytes: u64,
    /// Where the room settles under load. Each byte of it is a byte of space amplification; too little, and a burst
    /// of writes reaches the reserve.
    pub low_bytes: u64,
    /// Where cleaning begins. Closer to `low_bytes`: fuller use of the room, harder braking.
    pub high_bytes: u64,
}

/// Marks in the wrong order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("marks must rise: reserve {}, low {}, high {} bytes", .0.reserve_bytes, .0.low_bytes, .0.high_bytes)]
pub struct MarksError(pub Marks);

impl Marks {
    /// Marks for a slice of so many segments: a reserve of two (one to copy into, one for state records), low 1 % above that
    /// and high 4 % above low; at least two segments each.
    pub fn for_slice(segments: u32, segment_bytes: u64) -> Self {
        let percent = |percent: u64| (u64::from(segments) * percent / 100).max(2) * segment_bytes;
        let reserve_bytes = 2 * segment_bytes;
        let low_bytes = reserve_bytes + percent(1);
        Self { reserve_bytes, low_bytes, high_bytes: low_bytes + percent(4) }
    }

    /// Whether they rise.
    ///
    /// # Errors
    /// If they do not.
    pub fn validate(&self) -> Result<(), MarksError> {
        let rising = self.reserve_bytes < self.low_bytes && self.low_bytes < self.high_bytes;
        if rising { Ok(()) } else { Err(MarksError(*self)) }
    }

    /// Share alive up to which victims are worth taking now: 5 % while there is plenty of room, anything at the low mark.
    pub fn live_share_max(&self, room_bytes: u64) -> f64 {
        1.0 - (1.0 - LIVE_SHARE_AT_HIGH) * self.above_low(room_bytes)
    }

    /// How cleaning and users share the device now.
    pub fn pace(&self, load: &Load) -> Pace {
        let live_share = load.victim_live_share.clamp(0.0, LIVE_SHARE_MAX);
        let even = live_share / (1.0 - live_share);
        let above_low = self.above_low(load.room_bytes);
        let short = self.below_low(load.room_bytes);
        let relief = load.latency_over_goal.max(1.0).recip().max(YIELD_MIN);
        let copies = (1.0 - above_low) * (1.0 - above_low * (1.0 - relief)) + (CATCH_UP - 1.0) * short;
        Pace { copies_per_user_byte: even * copies, idle_share: short, user_share: 1.0 - short }
    }

    /// 0 at the low mark and below, 1 at the high mark and above.
    fn above_low(&self, room_bytes: u64) -> f64 {
        share(room_bytes, self.low_bytes, self.high_bytes)
    }

    /// 1 at the reserve and below, 0 at the low mark and above.
    fn below_low(&self, room_bytes: u64) -> f64 {
        1.0 - share(room_bytes, self.reserve_bytes, self.low_bytes)
    }
}

/// How far `at` is from `from` to `to`, 0 to 1.
fn share(at: u64, from: u64, to: u64) -> f64 {
    (at.saturating_sub(from) as f64 / to.saturating_sub(from).max(1) as f64).min(1.0)
}

/// What the pace depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Bytes that can be written before something must be erased: free segments and what open ones have left.
    pub room_bytes: u64,
    /// Share alive of the next victim, or of the last few.
    pub victim_live_share: f64,
    /// What the foreground's p99 is, over what it should be. At most 1: cleaning disturbs nobody. Smoothed by whoever
    /// measures it.
    pub latency_over_goal: f64,
}

/// How cleaning and users share the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Bytes to copy for each byte of user records written.
    pub copies_per_user_byte: f64,
    /// Share of the background budget that cleaning may use whatever users write, 0 to 1: a store short of room cleans
    /// even if nobody writes.
    pub idle_share: f64,
    /// Share of their rate that users are admitted with, 0 to 1.
    pub user_share: f64,
}

impl Pace {
    /// As a rate for the budget (`terrane_ocssd::policy::budget::Rate`): what users write in a second, times what goes
    /// with it, and no more than the background may have at all.
    pub fn copy_bytes_per_s(&self, user_bytes_per_s: u64, background_bytes_per_s: u64) -> u64 {
        let with_users = user_bytes_per_s as f64 * self.copies_per_user_byte;
        let idle = background_bytes_per_s as f64 * self.idle_share;
        (with_users.max(idle) as u64).min(background_bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARKS: Marks = Marks { reserve_bytes: 100, low_bytes: 300, high_bytes: 700 };

    fn load(room_bytes: u64) -> Load {
        Load { room_bytes, victim_live_share: 0.5, latency_over_goal: 1.0 }
    }

    #[test]
    fn at_the_marks() {
        let cases = [
            // room, copies, idle, users, fullest victim
            (0, 2.0, 1.0, 0.0, 1.0),
            (100, 2.0, 1.0, 0.0, 1.0),
            (200, 1.5, 0.5, 0.5, 1.0),
            (300, 1.0, 0.0, 1.0, 1.0),
            (500, 0.5, 0.0, 1.0, 0.525),
            (700, 0.0, 0.0, 1.0, 0.05),
            (u64::MAX, 0.0, 0.0, 1.0, 0.05),
        ];
        for (room, copies, idle, users, fullest) in cases {
            let pace = MARKS.pace(&load(room));
            let found =
                [pace.copies_per_user_byte, pace.idle_share, pace.user_share, MARKS.live_share_max(room)];
            for (found, expected) in found.into_iter().zip([copies, idle, users, fullest]) {
                assert!((found - expected).abs() < 1e-9, "room {room}: {found} instead of {expected}");
            }
        }
    }

    #[test]
    fn fuller_victims_take_more_copies() {
        let copies =
            |victim_live_share| MARKS.pace(&Load { victim_live_share, ..load(300) }).copies_per_user_byte;
        assert_eq!(copies(0.0), 0.0);
        assert!((copies(0.8) - 4.0).abs() < 1e-9);
        assert!((copies(1.0) - 19.0).abs() < 1e-9, "bounded");
    }

    #[test]
    fn yields_to_latency_as_far_as_there_is_room() {
        let copies = |room, latency_over_goal| {
            MARKS.pace(&Load { latency_over_goal, ..load(room) }).copies_per_user_byte
        };
        for room in [0, 200, 300] {
            assert_eq!(copies(room, 100.0), copies(room, 0.5), "no room to yield at {room}");
        }
        assert!((copies(500, 2.0) - 0.375).abs() < 1e-9, "half-way it yields half of the half");
        assert!((copies(500, 1e9) - 0.28125).abs() < 1e-9, "and never all");
    }

    #[test]
    fn as_a_rate() {
        let pace = MARKS.pace(&load(200));
        assert_eq!(pace.copy_bytes_per_s(100, 1_000), 500, "idle: half of the background");
        assert_eq!(pace.copy_bytes_per_s(400, 1_000), 600, "with users");
        assert_eq!(pace.copy_bytes_per_s(4_000, 1_000), 1_000, "and no more than there is");
    }

    #[test]
    fn marks_for_slices() {
        for segments in [16, 512, 100_000] {
            Marks::for_slice(segments, 1 << 20).validate().unwrap();
        }
        let marks = Marks::for_slice(1_000, 10);
        assert_eq!(marks, Marks { reserve_bytes: 20, low_bytes: 120, high_bytes: 520 });
        let wrong = Marks { high_bytes: 120, ..marks };
        assert_eq!(wrong.validate(), Err(MarksError(wrong)));
    }

    /// A store under constant load whose cleaning is bounded by the device: the room comes to rest above the reserve, on
    /// the way neither copies nor users jump, and users end with what the device leaves them.
    #[test]
    fn constant_load_settles_without_a_stall() {
        for (wanted, live_share) in [(20.0, 0.3), (60.0, 0.5), (100.0, 0.8), (100.0, 0.95)] {
            let device = 100.0; // bytes a step, for users and copies together
            let mut room = 2_000.0;
            let mut last: Option<(f64, f64)> = None;
            for step in 0..200_000 {
                let load = Load { victim_live_share: live_share, ..load(room as u64) };
                let marks = Marks { reserve_bytes: 10_000, low_bytes: 30_000, high_bytes: 70_000 };
                let pace = marks.pace(&load);
                // Users and the copies that go with them share the device.
                let user = (wanted * pace.user_share).min(device / (1.0 + pace.copies_per_user_byte));
                let copies = f64::max(user * pace.copies_per_user_byte, (device - user) * pace.idle_share);
                let copies = copies.min(device - user);
                room += copies * (1.0 - live_share) / live_share - user;
                assert!(room > 0.0, "no room left at step {step}");
                if let Some((last_user, last_copies)) = last {
                    assert!((user - last_user).abs() < device / 20.0, "users jump at step {step}");
                    assert!((copies - last_copies).abs() < device / 20.0, "copies jump at step {step}");
                }
                last = Some((user, copies));
            }
            let (user, _) = last.unwrap();
            let fair = f64::min(wanted, device * (1.0 - live_share));
            assert!(user > fair * 0.95, "users got {user} of {fair}");
            assert!((10_000.0..31_000.0).contains(&room), "the room settled at {room}");
        }
    }

    proptest! {
        #[test]
        fn monotonic_and_without_a_jump(
            room in 0u64..1_000_000,
            step in 0u64..1_000,
            live_share in 0.0f64..=1.0,
            latency in 0.0f64..100.0,
        ) {
            let marks = Marks { reserve_bytes: 100_000, low_bytes: 300_000, high_bytes: 700_000 };
            let at = |room_bytes| marks.pace(&Load {
                room_bytes, victim_live_share: live_share, latency_over_goal: latency,
            });
            let (less, more) = (at(room), at(room + step));
            prop_assert!(more.copies_per_user_byte <= less.copies_per_user_byte + 1e-9);
            prop_assert!(more.user_share >= less.user_share);
            prop_assert!(more.idle_share <= less.idle_share);
            prop_assert!(marks.live_share_max(room + step) <= marks.live_share_max(room));
            // A thousandth of the slice changes nothing by more than a hundredth of its range.
            prop_assert!(less.copies_per_user_byte - more.copies_per_user_byte <= 19.0 * 0.01);
            prop_assert!(more.user_share - less.user_share <= 0.01);
        }

        #[test]
        fn worse_latency_never_means_more_copies(room in 0u64..1_000, latency in 0.0f64..50.0) {
            let at = |latency_over_goal| MARKS.pace(&Load { latency_over_goal, ..load(room) });
            prop_assert!(at(latency + 1.0).copies_per_user_byte <= at(latency).copies_per_user_byte);
        }
    }
}
