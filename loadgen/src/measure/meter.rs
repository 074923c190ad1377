//! What a phase cost the servers: differences of the counters that each node reports about itself.
//!
//! A node's counters begin at zero when its process starts, so a node that was restarted within the phase is measured
//! in pieces: up to the last look before it died, and from its new start.
//!
//! Definitions: write amplification of a node = bytes it wrote to its device / bytes of keys and values its engine
//! appended (each replica appends every write of its groups once). It is counted twice: by the node's own accounting
//! of its device writes, and by the kernel's of all writes of the process (`write_bytes` in /proc/self/io). The second
//! includes log files and lags behind what sits in the page cache; it is there to keep the first honest.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// The counters that are looked at, by the names the servers give them.
pub(crate) const CPU_US: &str = "cpu_us";
pub(crate) const DEVICE_WRITTEN_BYTES: &str = "device_written_bytes";
pub(crate) const PROC_WRITE_BYTES: &str = "proc_write_bytes";
pub(crate) const RSS_BYTES: &str = "rss_bytes";
pub(crate) const RSS_MAX_BYTES: &str = "rss_max_bytes";
pub(crate) const USED_BYTES: &str = "used_bytes";
pub(crate) const USER_BYTES: &str = "user_bytes";

/// One node's counters at one moment, or their differences over a phase. `None`: the node does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Counters {
    /// User and system time of the process, microseconds.
    pub(crate) cpu_us: Option<u64>,
    /// Bytes written to the device by the node's own count.
    pub(crate) device_written_bytes: Option<u64>,
    /// Bytes the process caused to be written, by the kernel's count.
    pub(crate) proc_write_bytes: Option<u64>,
    /// Bytes of keys and values that the node's engine appended.
    pub(crate) user_bytes: Option<u64>,
}

/// What a process holds at one moment. `None`: it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Gauges {
    /// Resident memory, bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// The most it ever was.
    pub(crate) resident_max_bytes: Option<u64>,
    /// Bytes of the device or the file system that the store occupies.
    pub(crate) occupied_bytes: Option<u64>,
}

/// One look at a process behind the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Look {
    /// What rises for ever.
    pub(crate) counters: Counters,
    /// What goes up and down.
    pub(crate) gauges: Gauges,
}

impl Counters {
    /// Combines each counter with its counterpart; what either side lacks is lacking.
    fn combine(self, other: Counters, op: impl Fn(u64, u64) -> u64) -> Counters {
        let both = |a: Option<u64>, b: Option<u64>| Some(op(a?, b?));
        Counters {
            cpu_us: both(self.cpu_us, other.cpu_us),
            device_written_bytes: both(self.device_written_bytes, other.device_written_bytes),
            proc_write_bytes: both(self.proc_write_bytes, other.proc_write_bytes),
            user_bytes: both(self.user_bytes, other.user_bytes),
        }
    }

    /// Bytes written to the device per user byte, by the node's own count. `written` stands in for the user's bytes
    /// where the node does not count them: what was acknowledged to this program.
    pub(crate) fn device_per_user_byte(&self, written: u64) -> Option<f64> {
        ratio(self.device_written_bytes?, self.user_bytes.unwrap_or(written))
    }

    /// Bytes written per user byte, by the kernel's count.
    pub(crate) fn proc_per_user_byte(&self, written: u64) -> Option<f64> {
        ratio(self.proc_write_bytes?, self.user_bytes.unwrap_or(written))
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// All nodes' use of a phase.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    nodes: BTreeMap<u64, NodeMeter>,
}

#[derive(Debug, Clone, Copy, Default)]
struct NodeMeter {
    /// What the next look is subtracted from; `None`: the node has not been seen since the phase began.
    last: Option<Counters>,
    used: Option<Counters>,
    gauges: Gauges,
}

/// What one node used in a phase, and what it held at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Used {
    /// Differences over the phase.
    #[serde(flatten)]
    pub(crate) counters: Counters,
    /// At its end; memory at its fullest.
    #[serde(flatten)]
    pub(crate) gauges: Gauges,
}

impl Meter {
    /// A look at a node. The first one starts its measurement.
    pub(crate) fn look(&mut self, node: u64, look: Look) {
        let now = look.counters;
        let meter = self.nodes.entry(node).or_default();
        if let Some(last) = meter.last {
            let piece = now.combine(last, u64::saturating_sub);
            meter.used = Some(match meter.used {
                Some(used) => used.combine(piece, u64::saturating_add),
                None => piece,
            });
        }
        meter.last = Some(now);
        let most = meter.gauges.resident_max_bytes;
        let most = most.max(look.gauges.resident_max_bytes).max(look.gauges.resident_bytes);
        meter.gauges = Gauges { resident_max_bytes: most, ..look.gauges };
    }

    /// The node's process was started anew: its counters begin at zero again.
    pub(crate) fn restarted(&mut self, node: u64) {
        let zero = Counters {
            cpu_us: Some(0),
            device_written_bytes: Some(0),
            proc_write_bytes: Some(0),
            user_bytes: Some(0),
        };
        self.nodes.entry(node).or_default().last = Some(zero);
    }

    /// The nodes that were looked at.
    pub(crate) fn nodes(&self) -> BTreeSet<u64> {
        self.nodes.keys().copied().collect()
    }

    /// What each node used so far, of those that were seen at both ends.
    pub(crate) fn used(&self) -> BTreeMap<u64, Used> {
        self.nodes
            .iter()
            .filter_map(|(node, meter)| Some((*node, Used { counters: meter.used?, gauges: meter.gauges })))
            .collect()
    }
}

/// Sum over the nodes of what is known; `None` if no node knows it.
pub(crate) fn sum<'a>(
    used: impl IntoIterator<Item = &'a Used>,
    of: impl Fn(&Used) -> Option<u64>,
) -> Option<u64> {
    used.into_iter().filter_map(of).fold(None, |sum, part| Some(sum.unwrap_or(0) + part))
}

/// Mean and maximum over the nodes of a ratio.
pub(crate) fn mean_and_max(ratios: impl Iterator<Item = Option<f64>>) -> Option<(f64, f64)> {
    let known: Vec<f64> = ratios.flatten().collect();
    let max = known.iter().copied().reduce(f64::max)?;
    Some((known.iter().sum::<f64>() / known.len() as f64, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(cpu_us: u64, device: u64, user: u64) -> Counters {
        Counters {
            cpu_us: Some(cpu_us),
            device_written_bytes: Some(device),
            proc_write_bytes: None,
            user_bytes: Some(user),
        }
    }

    fn look(cpu_us: u64, device: u64, user: u64) -> Look {
        Look { counters: counters(cpu_us, device, user), gauges: Gauges::default() }
    }

    #[test]
    fn differences_over_a_phase() {
        let mut meter = Meter::default();
        meter.look(1, look(1_000, 500, 400));
        meter.look(2, look(9, 9, 9));
        assert!(meter.used().is_empty(), "one look is no difference");
        meter.look(1, look(4_000, 1_700, 1_400));
        let used = meter.used();
        assert_eq!(used.keys().collect::<Vec<_>>(), [&1]);
        assert_eq!(used[&1].counters, counters(3_000, 1_200, 1_000));
        assert_eq!(used[&1].counters.device_per_user_byte(9), Some(1.2));
        assert_eq!(used[&1].counters.proc_per_user_byte(9), None);
        assert_eq!(sum(used.values(), |used| used.counters.cpu_us), Some(3_000));
        assert_eq!(sum(used.values(), |used| used.counters.proc_write_bytes), None);
    }

    /// A node killed in the middle: its two lives add up, and the counters' fall is no negative use.
    #[test]
    fn a_restarted_node_is_measured_in_pieces() {
        let mut meter = Meter::default();
        meter.look(1, look(100, 100, 100));
        meter.look(1, look(150, 180, 160));
        meter.restarted(1);
        meter.look(1, look(30, 20, 10));
        assert_eq!(meter.used()[&1].counters, counters(80, 100, 70));
    }

    #[test]
    fn memory_is_kept_at_its_fullest() {
        let mut meter = Meter::default();
        for resident in [10, 30, 20] {
            let gauges = Gauges { resident_bytes: Some(resident), ..Gauges::default() };
            meter.look(1, Look { counters: counters(0, 0, 0), gauges });
        }
        let gauges = meter.used()[&1].gauges;
        assert_eq!((gauges.resident_bytes, gauges.resident_max_bytes), (Some(20), Some(30)));
    }

    #[test]
    fn who_does_not_count_the_users_bytes_is_told() {
        let silent = Counters { user_bytes: None, proc_write_bytes: Some(300), ..counters(0, 200, 0) };
        assert_eq!(silent.device_per_user_byte(100), Some(2.0));
        assert_eq!(silent.proc_per_user_byte(100), Some(3.0));
    }

    #[test]
    fn nothing_written_has_no_ratio() {
        assert_eq!(counters(1, 100, 0).device_per_user_byte(5), None);
        assert_eq!(mean_and_max([None, None].into_iter()), None);
        assert_eq!(mean_and_max([Some(1.0), None, Some(2.0)].into_iter()), Some((1.5, 2.0)));
    }
}
