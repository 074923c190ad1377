//! Latencies over time as an HdrHistogram log, format 1.3: one compressed histogram per interval and tag.
//!
//! The format is that of Java's `HistogramLogWriter` (github.com/HdrHistogram/HdrHistogram). Its readers,
//! among them HistogramLogProcessor, HdrHistogramVisualizer and the Python package `hdrhistogram`, take times
//! from the start and base time lines, and latencies from the histograms alone. Our histograms count
//! nanoseconds; the readable column `Interval_Max` is in milliseconds, as theirs is by default, and the
//! header's divisor says so.
//!
//! Invariant: each interval is in the file when [`Log::interval`] returns, so a run cut short leaves a log
//! that reads; under its own name if it ended in order, as `FILE.unfinished` if it was killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::output::{Growing, Leftover};

/// Nanoseconds per unit of the `Interval_Max` column.
const MAX_DIVISOR: f64 = 1e6;

/// The line that names the columns; readers skip it, spreadsheets like it.
const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// A log that is being written.
pub(crate) struct Log {
    path: PathBuf,
    file: Growing,
    intervals: u64,
    serializer: V2DeflateSerializer,
}

impl Log {
    /// Begins a log; the times of its intervals count from `started`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn create(path: &Path, started: SystemTime) -> anyhow::Result<Log> {
        let file = Growing::begin(path, Leftover::Replaced)
            .with_context(|| format!("cannot write the latency log {}", path.display()))?;
        let serializer = V2DeflateSerializer::new();
        let mut log = Log { path: path.to_owned(), file, intervals: 0, serializer };
        let mut header = Vec::new();
        IntervalLogWriterBuilder::new()
            .add_comment(concat!("[Logged with terrane-loadgen ", env!("CARGO_PKG_VERSION"), "]"))
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[Values are latencies in nanoseconds, Interval_Max is in milliseconds]")
            .with_start_time(started)
            .with_base_time(started)
            .with_max_value_divisor(MAX_DIVISOR)
            .begin_log_with(&mut header, &mut log.serializer)
            .with_context(|| format!("cannot begin the latency log {}", path.display()))?;
        header.extend_from_slice(LEGEND.as_bytes());
        log.write(&header)?;
        Ok(log)
    }

    /// Adds the latencies (in nanoseconds) of an interval that began `start` after the log's start. A tag,
    /// such as `read`, tells the kinds of operation apart: readers process one tag at a time. An empty tag is
    /// none.
    ///
    /// # Errors
    /// If the file cannot be written, or the tag holds a comma, a space or a line break.
    pub(crate) fn interval(
        &mut self,
        tag: &str,
        start: Duration,
        length: Duration,
        latencies: &Histogram<u64>,
    ) -> anyhow::Result<()> {
        let of_log = match tag {
            "" => None,
            tag => Some(Tag::new(tag).with_context(|| {
                format!("'{tag}' cannot be a tag of a latency log: leave out commas, spaces and line breaks")
            })?),
        };
        // The crate's writer borrows its target for its whole life and begins with the header, so each line
        // is made in memory, and the header before it left out.
        let mut options = IntervalLogWriterBuilder::new();
        options.with_max_value_divisor(MAX_DIVISOR);
        let mut text = Vec::new();
        options.begin_log_with(&mut text, &mut self.serializer)?;
        let header_bytes = text.len();
        text.clear();
        options
            .begin_log_with(&mut text, &mut self.serializer)?
            .write_histogram(latencies, start, length, of_log)
            .with_context(|| format!("cannot encode latencies for {}", self.path.display()))?;
        self.write(&text[header_bytes..])?;
        self.intervals += 1;
        Ok(())
    }

    /// Ends the log, which gets its name; gives whether it holds anything. One without an interval is none, and an
    /// older one of that name stays.
    ///
    /// # Errors
    /// If the file cannot be brought to its end.
    pub(crate) fn finish(mut self) -> anyhow::Result<bool> {
        if self.intervals == 0 {
            self.file.discard();
            return Ok(false);
        }
        self.file
            .finish()
            .with_context(|| format!("cannot finish the latency log {}", self.path.display()))?;
        Ok(true)
    }

    fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        self.file
            .write_all(text)
            .with_context(|| format!("cannot write the latency log {}", self.path.display()))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // On the way out of an error: what was measured until then stays, unfinished.
        if self.intervals == 0 {
            self.file.discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::measure::tally::latencies;
    use crate::output::unfinished;

    fn second(of: u64) -> (Duration, Duration) {
        (Duration::from_secs(of), Duration::from_secs(1))
    }

    /// Reads one line's histogram, as any reader does: base64, then the compressed histogram.
    fn decode(text: &str) -> Histogram<u64> {
        let symbol = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => panic!("{other} is not base64"),
        };
        let mut bytes = Vec::new();
        for quad in text.trim_end_matches('=').as_bytes().chunks(4) {
            let bits = quad.iter().fold(0u32, |bits, c| bits << 6 | u32::from(symbol(*c)));
            let bits = bits << (8 * 4 - 6 * quad.len());
            bytes.extend_from_slice(&bits.to_be_bytes()[..quad.len() * 6 / 8]);
        }
        Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.hlog");
        let started = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500_000_000_250);
        let mut log = Log::create(&path, started).unwrap();
        let mut written = Vec::new();
        for at in 0..3 {
            for tag in ["read", "write"] {
                let mut histogram = latencies();
                for n in 1..=1_000 * (at + 1) {
                    histogram.record(n * if tag == "read" { 900 } else { 3_000 }).unwrap();
                }
                log.interval(tag, second(at).0, second(at).1, &histogram).unwrap();
                written.push((tag, at, histogram));
            }
        }
        // Not closed: a run that is killed leaves what it had.
        let text = std::fs::read_to_string(unfinished(&path)).unwrap();
        assert!(!path.exists());
        assert!(log.finish().unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let header: Vec<&str> = text.lines().take(7).collect();
        expect![[r##"
            #[Logged with terrane-loadgen VERSION]
            #[Histogram log format version 1.3]
            #[Values are latencies in nanoseconds, Interval_Max is in milliseconds]
            #[StartTime: 1500000000.250 (seconds since epoch)]
            #[BaseTime: 1500000000.250 (seconds since epoch)]
            #[MaxValueDivisor: 1000000.000]
            "StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"
        "##]]
        .assert_eq(&format!("{}\n", header.join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION")));
        assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 6, "no header comes twice");

        let mut intervals = Vec::new();
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            match entry.unwrap() {
                LogEntry::StartTime(time) | LogEntry::BaseTime(time) => {
                    assert_eq!(time, Duration::from_millis(1_500_000_000_250));
                }
                LogEntry::Interval(interval) => intervals.push(interval),
            }
        }
        assert_eq!(intervals.len(), written.len());
        for (read, (tag, at, histogram)) in intervals.iter().zip(&written) {
            assert_eq!(read.tag().unwrap().as_str(), *tag);
            assert_eq!((read.start_timestamp(), read.duration()), second(*at));
            assert!((read.max() - histogram.max() as f64 / 1e6).abs() < 1e-3, "{}", read.max());
            let decoded = decode(read.encoded_histogram());
            assert_eq!(decoded.len(), histogram.len());
            for quantile in [0.0, 0.5, 0.99, 0.999, 1.0] {
                assert_eq!(decoded.value_at_quantile(quantile), histogram.value_at_quantile(quantile));
            }
        }
    }

    #[test]
    fn an_interval_of_silence_and_no_tag() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.hlog");
        let mut log = Log::create(&path, SystemTime::UNIX_EPOCH).unwrap();
        log.interval("", second(5).0, second(5).1, &latencies()).unwrap();
        log.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().last().unwrap();
        let encoded = line.strip_prefix("5.000,1.000,0.000,").unwrap();
        assert_eq!(decode(encoded).len(), 0);
    }

    #[test]
    fn a_log_of_nothing_leaves_the_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.hlog");
        std::fs::write(&path, "before").unwrap();
        assert!(!Log::create(&path, SystemTime::UNIX_EPOCH).unwrap().finish().unwrap());
        drop(Log::create(&path, SystemTime::UNIX_EPOCH).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn bad_tags_and_bad_places_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(&folder.path().join("run.hlog"), SystemTime::UNIX_EPOCH).unwrap();
        let error = log.interval("a,b", second(0).0, second(0).1, &latencies()).unwrap_err();
        assert!(error.to_string().contains("'a,b'"), "{error}");
        let nowhere = folder.path().join("no/such/folder.hlog");
        let error = Log::create(&nowhere, SystemTime::UNIX_EPOCH).err().unwrap();
        assert!(error.to_string().contains("no/such/folder.hlog"), "{error}");
    }
}
