//! What a host chooses, with limits.

use std::time::Duration;

use crate::types::PeerId;

/// Settings of one replica. `election_timeout`, `heartbeat_interval` and `clock_drift_ppm` must be the same
/// on all replicas of a group: the safety of leases rests on the first and the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This replica.
    pub id: PeerId,
    /// A follower that hears no leader for this long to twice this long (drawn at random) campaigns; a leader
    /// that hears no quorum for this long steps down. Default 1 s; 1 ms to 1 h. Shorter: faster fail-over,
    /// more false alarms.
    pub election_timeout: Duration,
    /// How often an idle leader makes itself heard. Default 100 ms; at most a third of `election_timeout`.
    /// Shorter: more messages, earlier discovery of lost ones.
    pub heartbeat_interval: Duration,
    /// The rates of no two hosts' clocks differ from true time by more than this many millionths. Default 500
    /// (quartz stays below 100; clock discipline may slew by up to 500). At most 100,000. Larger: shorter
    /// leases.
    pub clock_drift_ppm: u32,
    /// Entries sent to one peer and not yet acknowledged. Default 4,096; at least 1. Larger: deeper
    /// pipelining, more to send again after a loss.
    pub inflight_entries_max: usize,
    /// Bytes sent to one peer and not yet acknowledged; one message may always be in flight. Default 8 MiB;
    /// at least 1.
    pub inflight_bytes_max: u64,
    /// Bytes of payload in one append, unless a single entry is larger. Default 1 MiB; at least 1.
    pub append_bytes_max: u64,
    /// Entries in one append. Default 1,024; at least 1.
    pub append_entries_max: usize,
    /// For the random part of election timeouts. Mixed with `id`, so replicas may share it.
    pub seed: u64,
}

/// Why a [`Config`] cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// 0 and the greatest number are reserved.
    #[error("{0} is not a valid peer id")]
    InvalidId(PeerId),
    /// See [`Config::election_timeout`].
    #[error("election_timeout must be between 1 ms and 1 h, not {0:?}")]
    ElectionTimeout(Duration),
    /// See [`Config::heartbeat_interval`].
    #[error("heartbeat_interval must be above zero and at most a third of election_timeout, not {0:?}")]
    HeartbeatInterval(Duration),
    /// See [`Config::clock_drift_ppm`].
    #[error("clock_drift_ppm must be at most 100000, not {0}")]
    ClockDrift(u32),
    /// One of the windows could never let an entry through.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

/// Greatest [`Config::clock_drift_ppm`]: a tenth. Such clocks are broken.
const DRIFT_PPM_MAX: u32 = 100_000;

impl Config {
    /// The defaults, for the replica `id`.
    #[must_use]
    pub fn new(id: PeerId) -> Config {
        Config {
            id,
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(100),
            clock_drift_ppm: 500,
            inflight_entries_max: 4096,
            inflight_bytes_max: 8 << 20,
            append_bytes_max: 1 << 20,
            append_entries_max: 1024,
            seed: 0,
        }
    }

    /// Checks the limits given at each field.
    ///
    /// # Errors
    /// The first limit found broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !self.id.is_valid() {
            return Err(ConfigError::InvalidId(self.id));
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&self.election_timeout) {
            return Err(ConfigError::ElectionTimeout(self.election_timeout));
        }
        if self.heartbeat_interval.is_zero() || self.heartbeat_interval > self.election_timeout / 3 {
            return Err(ConfigError::HeartbeatInterval(self.heartbeat_interval));
        }
        if self.clock_drift_ppm > DRIFT_PPM_MAX {
            return Err(ConfigError::ClockDrift(self.clock_drift_ppm));
        }
        let windows = [
            ("inflight_entries_max", self.inflight_entries_max == 0),
            ("inflight_bytes_max", self.inflight_bytes_max == 0),
            ("append_bytes_max", self.append_bytes_max == 0),
            ("append_entries_max", self.append_entries_max == 0),
        ];
        match windows.iter().find(|(_, zero)| *zero) {
            Some((name, _)) => Err(ConfigError::Zero(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked() {
        let good = Config::new(PeerId(1));
        assert_eq!(good.validate(), Ok(()));
        let hour = Duration::from_secs(3600);
        let bad = [
            Config { id: PeerId(0), ..good.clone() },
            Config { id: PeerId::SPENT, ..good.clone() },
            Config { election_timeout: Duration::ZERO, ..good.clone() },
            Config { election_timeout: hour + Duration::from_nanos(1), ..good.clone() },
            Config { heartbeat_interval: Duration::ZERO, ..good.clone() },
            Config { heartbeat_interval: Duration::from_millis(334), ..good.clone() },
            Config { clock_drift_ppm: 100_001, ..good.clone() },
            Config { inflight_entries_max: 0, ..good.clone() },
            Config { inflight_bytes_max: 0, ..good.clone() },
            Config { append_bytes_max: 0, ..good.clone() },
            Config { append_entries_max: 0, ..good.clone() },
        ];
        for config in bad {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
