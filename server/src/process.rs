//! What the operating system counts of this process, for the status answer.

use nix::sys::resource::{UsageWho, getrusage};

/// CPU time in microseconds, bytes that this process caused the device to read and write (`/proc/self/io`, which
/// counts direct I/O), and resident memory, now and at its fullest. What cannot be read is left out.
pub fn counters() -> Vec<(&'static str, u64)> {
    let mut counters = Vec::new();
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let micros = [usage.user_time(), usage.system_time()].map(|time| {
            let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
            u64::try_from(micros).unwrap_or(0)
        });
        counters.push(("cpu_us", micros.iter().sum()));
    }
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    for (field, name) in [("read_bytes:", "proc_read_bytes"), ("write_bytes:", "proc_write_bytes")] {
        counters.extend(number_after(&io, field).map(|bytes| (name, bytes)));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, name) in [("VmRSS:", "rss_bytes"), ("VmHWM:", "rss_max_bytes")] {
        counters.extend(number_after(&status, field).map(|kib| (name, kib * 1024)));
    }
    counters
}

/// The number of the line that begins with `field`.
fn number_after(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_the_name_of_their_line() {
        let text = "rchar: 7\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        assert_eq!(number_after(text, "write_bytes:"), Some(8192));
        assert_eq!(number_after("VmRSS:\t    5320 kB\n", "VmRSS:"), Some(5320));
        assert_eq!(number_after(text, "nothing:"), None);
    }

    #[test]
    fn this_process_has_counters() {
        let counters = counters();
        for name in ["cpu_us", "proc_write_bytes", "rss_bytes", "rss_max_bytes"] {
            assert!(counters.iter().any(|(known, _)| *known == name), "{name} in {counters:?}");
        }
    }
}
