//! What a phase was like over time: one [`Second`] per look, usually a second apart.
//!
//! Two kinds of number live side by side. What the workers did (operations, latencies) is counted afresh in
//! each interval. What it cost (bytes, CPU) is cumulative from the phase's start, because the counters behind
//! it lag and come in lumps: a difference over any window can be formed later, a sum of rounded differences
//! cannot.
//!
//! Invariant: nothing here reads a clock or a counter; it is data and arithmetic.

use std::time::Duration;

use serde::Serialize;

/// One interval of a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Second {
    /// End of the interval, seconds from the phase's start.
    pub(crate) at_seconds: f64,
    /// Length of the interval; the last one may be short.
    pub(crate) seconds: f64,
    /// Name of the step of a ramp or staircase that the interval belongs to; empty if there are no steps.
    pub(crate) step: String,
    /// Successful operations that ended in the interval, of all kinds.
    pub(crate) operations: u64,
    /// Operations that failed in it, after all retries.
    pub(crate) failed: u64,
    /// The reads among `operations`.
    pub(crate) reads: u64,
    /// The writes among `operations`.
    pub(crate) writes: u64,
    /// Latencies of the interval's successful operations, microseconds; `None`: there were none.
    pub(crate) read_p50_us: Option<f64>,
    pub(crate) read_p99_us: Option<f64>,
    pub(crate) write_p50_us: Option<f64>,
    pub(crate) write_p99_us: Option<f64>,
    /// Bytes written to the device since the phase's start; `None`, here and below: it is not known.
    pub(crate) device_written_bytes: Option<u64>,
    /// Bytes of keys and values written since the phase's start.
    pub(crate) user_bytes: Option<u64>,
    /// CPU time of the servers (or of the embedded store's process) since the phase's start.
    pub(crate) cpu_seconds: Option<f64>,
    /// Resident memory at the interval's end.
    pub(crate) resident_bytes: Option<u64>,
}

impl Second {
    /// Per second what was counted `count` times in this interval; `None` if the interval has no length.
    pub(crate) fn rate(&self, count: u64) -> Option<f64> {
        (self.seconds > 0.0).then(|| count as f64 / self.seconds)
    }

    /// Write amplification from the phase's start to the end of this interval.
    pub(crate) fn write_amplification(&self) -> Option<f64> {
        ratio(self.device_written_bytes?, self.user_bytes?)
    }
}

/// Write amplification in the trailing `window` before the end of each interval, in the order of `seconds`;
/// shorter at the beginning, where less has passed. `None` where nothing was written, or a counter is missing
/// or went back.
///
/// A window of one interval says little (device writes lag behind their cause); ten seconds or more are
/// readable.
pub(crate) fn write_amplification_per_window(seconds: &[Second], window: Duration) -> Vec<Option<f64>> {
    // Half a typical interval's slack: looks are never exactly a second apart.
    const SLACK_SECONDS: f64 = 0.5;
    let mut first = 0;
    let mut ratios = Vec::with_capacity(seconds.len());
    for (index, second) in seconds.iter().enumerate() {
        let begins = second.at_seconds - window.as_secs_f64();
        while first < index && seconds[first].at_seconds < begins - SLACK_SECONDS {
            first += 1;
        }
        // The window begins where an earlier interval ended, the last one at the latest, or at the phase's
        // start, when all counters were zero.
        let (device, user) = match index.checked_sub(1) {
            Some(last) if begins >= SLACK_SECONDS => {
                let before = &seconds[first.min(last)];
                (before.device_written_bytes, before.user_bytes)
            }
            _ => (Some(0), Some(0)),
        };
        ratios.push(difference_ratio(second, device, user));
    }
    ratios
}

fn difference_ratio(now: &Second, device: Option<u64>, user: Option<u64>) -> Option<f64> {
    ratio(now.device_written_bytes?.checked_sub(device?)?, now.user_bytes?.checked_sub(user?)?)
}

fn ratio(device: u64, user: u64) -> Option<f64> {
    (user > 0).then(|| device as f64 / user as f64)
}

#[cfg(test)]
impl Second {
    /// An interval of one second that ends at `at_seconds`, with the operations given and plausible
    /// latencies.
    pub(crate) fn example(at_seconds: f64, reads: u64, writes: u64) -> Second {
        Second {
            at_seconds,
            seconds: 1.0,
            step: String::new(),
            operations: reads + writes,
            failed: 0,
            reads,
            writes,
            read_p50_us: (reads > 0).then_some(90.0),
            read_p99_us: (reads > 0).then_some(700.0),
            write_p50_us: (writes > 0).then_some(210.0),
            write_p99_us: (writes > 0).then_some(1_900.0),
            device_written_bytes: None,
            user_bytes: None,
            cpu_seconds: None,
            resident_bytes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(at_seconds: f64, device: u64, user: u64) -> Second {
        Second {
            device_written_bytes: Some(device),
            user_bytes: Some(user),
            ..Second::example(at_seconds, 0, 10)
        }
    }

    #[test]
    fn rates_need_a_length() {
        let mut second = Second { seconds: 0.5, ..Second::example(7.5, 100, 50) };
        assert_eq!(second.rate(second.operations), Some(300.0));
        assert_eq!(second.rate(second.reads), Some(200.0));
        second.seconds = 0.0;
        assert_eq!(second.rate(second.operations), None);
    }

    #[test]
    fn amplification_so_far() {
        assert_eq!(written(1.0, 300, 200).write_amplification(), Some(1.5));
        assert_eq!(written(1.0, 300, 0).write_amplification(), None);
        assert_eq!(Second::example(1.0, 1, 1).write_amplification(), None);
    }

    #[test]
    fn amplification_per_window_is_of_differences() {
        // 1.0 for two seconds, then 3.0 (cleaning has begun), looks slightly late.
        let seconds = [
            written(1.01, 100, 100),
            written(2.02, 200, 200),
            written(3.03, 500, 300),
            written(4.04, 800, 400),
        ];
        let of = |secs| write_amplification_per_window(&seconds, Duration::from_secs(secs));
        assert_eq!(of(1), [Some(1.0), Some(1.0), Some(3.0), Some(3.0)]);
        assert_eq!(of(2), [Some(1.0), Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!(of(60), [Some(1.0), Some(1.0), Some(5.0 / 3.0), Some(2.0)]);
    }

    #[test]
    fn a_window_is_no_shorter_than_an_interval() {
        let seconds = [written(30.0, 100, 100), written(60.0, 300, 200), written(90.0, 600, 300)];
        let ratios = write_amplification_per_window(&seconds, Duration::from_secs(10));
        assert_eq!(ratios, [Some(1.0), Some(2.0), Some(3.0)]);
    }

    #[test]
    fn a_window_with_a_gap_has_no_ratio() {
        let mut seconds = vec![written(1.0, 100, 100), written(2.0, 200, 200), written(3.0, 300, 300)];
        seconds[1].user_bytes = None;
        let ratios = write_amplification_per_window(&seconds, Duration::from_secs(1));
        assert_eq!(ratios, [Some(1.0), None, None]);
        seconds[1].user_bytes = Some(400);
        let ratios = write_amplification_per_window(&seconds, Duration::from_secs(1));
        assert_eq!(ratios[2], None, "a counter that went back");
        assert_eq!(write_amplification_per_window(&[], Duration::from_secs(1)), []);
    }
}
