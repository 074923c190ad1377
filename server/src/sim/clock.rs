//! A node's clock: virtual time seen through an offset and a drift.

/// Where a node's clock stands against virtual time. All in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct DriftingClock {
    /// A moment of virtual time...
    base_true: u64,
    /// ...and what the node's clock showed then.
    base_shown: u64,
    /// By how many parts per million it runs fast (negative: slow).
    ppm: i32,
}

const MILLION: i128 = 1_000_000;

impl DriftingClock {
    pub(super) fn new(true_now: u64, shown: u64) -> Self {
        Self { base_true: true_now, base_shown: shown, ppm: 0 }
    }

    /// Goes on from where it is, at another speed.
    pub(super) fn set_drift(&mut self, true_now: u64, ppm: i32) {
        assert!(i128::from(ppm) > -MILLION, "a clock does not run backwards");
        *self = Self { base_true: true_now, base_shown: self.shown(true_now), ppm };
    }

    /// What the clock shows at a moment of virtual time, which is not before the last change of speed.
    pub(super) fn shown(&self, true_now: u64) -> u64 {
        let elapsed = i128::from(true_now - self.base_true) * (MILLION + i128::from(self.ppm));
        self.base_shown.saturating_add(u64::try_from(elapsed / MILLION).unwrap_or(u64::MAX))
    }

    /// The first moment of virtual time at which the clock shows `shown` or more.
    pub(super) fn true_moment(&self, shown: u64) -> u64 {
        let rest = i128::from(shown.saturating_sub(self.base_shown)) * MILLION;
        let speed = MILLION + i128::from(self.ppm);
        let elapsed = (rest + speed - 1) / speed;
        self.base_true.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_directions_agree() {
        for ppm in [-300_000, -200, 0, 1, 200, 300_000] {
            let mut clock = DriftingClock::new(1_000, 5_000_000);
            clock.set_drift(7_000, ppm);
            for shown in [5_006_000, 5_006_001, 6_000_000, 9_999_999_999] {
                let moment = clock.true_moment(shown);
                assert!(clock.shown(moment) >= shown, "{ppm} {shown}");
                assert!(moment <= 7_000 || clock.shown(moment - 1) < shown, "{ppm} {shown}");
            }
        }
    }

    #[test]
    fn a_change_of_speed_does_not_jump() {
        let mut clock = DriftingClock::new(0, 100);
        clock.set_drift(1_000_000, 500);
        assert_eq!(clock.shown(1_000_000), 1_000_100);
        assert_eq!(clock.shown(2_000_000), 2_000_600);
        clock.set_drift(2_000_000, 0);
        assert_eq!(clock.shown(2_000_000), 2_000_600);
        assert_eq!(clock.true_moment(0), 2_000_000, "the past is now");
        clock.set_drift(2_000_000, -500);
        assert_eq!(clock.true_moment(u64::MAX), u64::MAX, "saturates");
    }
}
