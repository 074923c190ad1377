//! How long a leader may answer alone, and how long a follower holds back its vote.
//!
//! A follower that hears from a leader promises to vote for nobody for one election timeout, measured on its
//! own clock from the moment it heard. The leader counts from the moment it *sent* what the follower heard,
//! which is earlier, for a slightly shorter time: with clocks whose rates are off by at most `d`, the
//! follower's promise lasts at least `E / (1 + d)` of true time and the leader's lease at most `L / (1 - d)`,
//! so `L = E (1 - d) / (1 + d)`.
//!
//! A promise is kept in memory only. A replica that restarts has forgotten it, and so votes for nobody until
//! the longest promise it can have made has run out. The promise outlives a change of term: it was made to a
//! leader that cannot know of the new one.
//!
//! Invariant: no leader is elected while the lease of an earlier one is valid, except one that the earlier
//! leader asked to take over, and an earlier leader that has asked never claims a lease in that term again.

use std::time::Duration;

use crate::config::Config;

/// Durations in nanoseconds, derived from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// How long a follower's promise holds, and the shortest wait before it campaigns.
    pub(crate) election: u64,
    /// Between heartbeats.
    pub(crate) heartbeat: u64,
    /// How long a leader counts on a promise after sending what caused it.
    pub(crate) lease: u64,
    /// How long a restarted replica votes for nobody.
    pub(crate) rejoin: u64,
}

const MILLION: u64 = 1_000_000;

impl Timing {
    pub(crate) fn new(config: &Config) -> Timing {
        let election = nanos(config.election_timeout);
        let drift = u64::from(config.clock_drift_ppm);
        Timing {
            election,
            heartbeat: nanos(config.heartbeat_interval),
            lease: scale(election, MILLION - drift, MILLION + drift),
            // One election timeout would do; the drift on top costs nothing and covers rounding.
            rejoin: scale(election, MILLION + drift, MILLION - drift) + 1,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `value * numerator / denominator`, rounded down.
fn scale(value: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(numerator) / u128::from(denominator);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PeerId;

    #[test]
    fn lease_ends_before_the_promise_under_the_worst_drift() {
        for drift in [0u32, 1, 500, 100_000] {
            let config = Config { clock_drift_ppm: drift, ..Config::new(PeerId(1)) };
            let timing = Timing::new(&config);
            let (slow, fast) = (1.0 - f64::from(drift) / 1e6, 1.0 + f64::from(drift) / 1e6);
            let lease_true = timing.lease as f64 / slow;
            let promise_true = timing.election as f64 / fast;
            let rejoin_true = timing.rejoin as f64 / fast;
            assert!(lease_true <= promise_true, "drift {drift}: {lease_true} > {promise_true}");
            assert!(lease_true <= rejoin_true, "drift {drift}: {lease_true} > {rejoin_true}");
            assert!(
                timing.lease > timing.election / 2,
                "drift {drift}: a lease of {} is useless",
                timing.lease
            );
        }
    }
}
