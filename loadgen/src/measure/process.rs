//! What the kernel says a process used and holds: `/proc/<pid>/{stat,io,status}`.

use std::path::PathBuf;

use anyhow::Context;
use nix::unistd::{SysconfVar, sysconf};

use crate::measure::meter::{Counters, Gauges, Look};

/// A process, by its number; `None` is this one.
///
/// # Errors
/// If there is no such process, or it is someone else's.
pub(crate) fn look(pid: Option<u32>) -> anyhow::Result<Look> {
    let folder = PathBuf::from(match pid {
        Some(pid) => format!("/proc/{pid}"),
        None => "/proc/self".to_owned(),
    });
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let io = read("io")?;
    // The kernel counts a page of the page cache when it is dirtied. What was truncated or deleted before it was
    // written never reached the device: it is counted apart, and taken off.
    let cancelled = field(&io, "cancelled_write_bytes:").unwrap_or(0);
    let counters = Counters {
        cpu_us: cpu_us(&read("stat")?),
        device_written_bytes: None,
        proc_write_bytes: field(&io, "write_bytes:").map(|written| written.saturating_sub(cancelled)),
        user_bytes: None,
    };
    let status = read("status")?;
    let kib = |name: &str| field(&status, name).map(|kib| kib * 1024);
    let gauges =
        Gauges { resident_bytes: kib("VmRSS:"), resident_max_bytes: kib("VmHWM:"), occupied_bytes: None };
    Ok(Look { counters, gauges })
}

/// User and system time: fields 14 and 15 of proc_pid_stat(5), in clock ticks. The name in field 2 may hold anything,
/// so the fields are counted from its closing parenthesis.
fn cpu_us(stat: &str) -> Option<u64> {
    let ticks_per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks * 1_000_000 / ticks_per_second)
}

/// The number that follows `name` in a file of one field a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_name_of_the_process() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as u64;
        assert_eq!(cpu_us(stat), Some(300 * 1_000_000 / per_second));
        assert_eq!(
            field("rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 9\n", "write_bytes:"),
            Some(4096)
        );
        assert_eq!(field("VmRSS:\t  12 kB\n", "VmHWM:"), None);
    }

    #[test]
    fn this_process_is_there() {
        let seen = look(None).unwrap();
        assert!(seen.gauges.resident_bytes.unwrap() > 0);
        assert!(seen.gauges.resident_max_bytes >= seen.gauges.resident_bytes);
        assert!(seen.counters.proc_write_bytes.is_some() && seen.counters.cpu_us.is_some());
        assert!(look(Some(u32::MAX)).is_err());
    }
}
