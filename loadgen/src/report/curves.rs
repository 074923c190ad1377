//! The charts of a run: which curves are made of a timeline, of histograms, of the cells of a comparison.
//!
//! Invariant: nothing is smoothed or left out here; what was not measured is a gap.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::measure::timeline::{Second, write_amplification_per_window};
use crate::report::axis::{Axis, Unit};
use crate::report::chart::{Bar, BarSeries, Bars, Chart, Lines, Percentiles, Series, Style};

/// Window of the write amplification that is drawn beside that of the whole phase.
const WINDOW: Duration = Duration::from_secs(10);

/// Kinds of series (see `chart`): reads are blue and writes orange in every chart, with a paler one of the
/// pair for what matters less.
const READS: usize = 0;
const READS_PALE: usize = 5;
const WRITES: usize = 1;
const WRITES_PALE: usize = 4;
const OTHERS: usize = 2;
const FAILURES: usize = 6;

/// An event in a chart over time: seconds from the phase's start, and what happened.
pub(crate) type Mark = (f64, String);

/// Where each step of a ramp or staircase begins.
pub(crate) fn steps(seconds: &[Second]) -> Vec<Mark> {
    let begins = seconds.iter().scan("", |last, second| {
        let new = *last != second.step;
        *last = &second.step;
        Some((new && !second.step.is_empty()).then(|| (begin(second), second.step.clone())))
    });
    begins.flatten().collect()
}

fn begin(second: &Second) -> f64 {
    (second.at_seconds - second.seconds).max(0.0)
}

/// Operations per second: reads, writes and others on top of one another, failures as a line.
pub(crate) fn throughput(seconds: &[Second], marks: Vec<Mark>) -> Chart {
    let others = |second: &Second| second.operations.saturating_sub(second.reads + second.writes);
    type Count<'a> = &'a dyn Fn(&Second) -> u64;
    let counted: [(&str, usize, Style, Count<'_>); 4] = [
        ("Reads", READS, Style::Stacked, &|second| second.reads),
        ("Writes", WRITES, Style::Stacked, &|second| second.writes),
        ("Other operations", OTHERS, Style::Stacked, &others),
        ("Failures", FAILURES, Style::Line, &|second| second.failed),
    ];
    let series = counted
        .into_iter()
        .filter(|(_, _, _, count)| seconds.iter().any(|second| count(second) > 0))
        .map(|(name, kind, style, count)| Series {
            style,
            ..over_time(name, kind, seconds, |second| second.rate(count(second)))
        })
        .collect();
    lines(Axis::linear("Operations per second", Unit::Count), series, marks)
}

/// Median and 99th percentile of reads and writes in each interval.
pub(crate) fn latency_over_time(seconds: &[Second], marks: Vec<Mark>) -> Chart {
    let series = [
        over_time("Read p50", READS_PALE, seconds, |second| second.read_p50_us),
        over_time("Read p99", READS, seconds, |second| second.read_p99_us),
        over_time("Write p50", WRITES_PALE, seconds, |second| second.write_p50_us),
        over_time("Write p99", WRITES, seconds, |second| second.write_p99_us),
    ];
    lines(Axis::log("Latency", Unit::Microseconds), measured(series), marks)
}

/// Write amplification: of the phase so far, and of the last ten seconds.
pub(crate) fn write_amplification(seconds: &[Second], marks: Vec<Mark>) -> Chart {
    let windows = write_amplification_per_window(seconds, WINDOW);
    let window_points =
        seconds.iter().zip(windows).map(|(second, wa)| (second.at_seconds, wa.unwrap_or(f64::NAN)));
    let name = format!("Last {} s", WINDOW.as_secs());
    let series = [
        over_time("Since the start", 0, seconds, Second::write_amplification),
        Series { name, kind: 1, points: window_points.collect(), style: Style::Line },
    ];
    lines(Axis::linear("Bytes written to the device per user byte", Unit::Ratio), measured(series), marks)
}

/// Resident memory.
pub(crate) fn memory(seconds: &[Second], marks: Vec<Mark>) -> Chart {
    let resident =
        over_time("Resident memory", 0, seconds, |second| second.resident_bytes.map(|bytes| bytes as f64));
    lines(Axis::linear("Memory", Unit::Bytes), measured([resident]), marks)
}

/// Processors kept busy in each interval; the last is a difference of the interval before.
pub(crate) fn cpu(seconds: &[Second], marks: Vec<Mark>) -> Chart {
    let mut before = Some(0.0);
    let busy = over_time("Processors busy", 0, seconds, |second| {
        let used = second.cpu_seconds.zip(before).map(|(now, before)| now - before);
        before = second.cpu_seconds;
        used.filter(|used| *used >= 0.0 && second.seconds > 0.0).map(|used| used / second.seconds)
    });
    lines(Axis::linear("Processors", Unit::Ratio), measured([busy]), marks)
}

/// Latency over percentiles, for histograms in nanoseconds. Those that hold nothing are left out
/// (but keep their colour: name reads first, then writes).
pub(crate) fn percentiles(histograms: &[(&str, &Histogram<u64>)]) -> Chart {
    let known = histograms.iter().enumerate().filter(|(_, (_, histogram))| !histogram.is_empty());
    let series = known.map(|(kind, (name, histogram))| Series {
        name: (*name).to_owned(),
        kind,
        points: quantiles(histogram),
        style: Style::Line,
    });
    Chart::Percentiles(Percentiles { y: Axis::log("Latency", Unit::Microseconds), series: series.collect() })
}

/// (quantile, microseconds): twenty to each further nine, as far as there are values to tell, and the
/// highest.
fn quantiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const PER_NINE: f64 = 20.0;
    let us = |ns: u64| ns as f64 / 1e3;
    let last = ((histogram.len() as f64).log10() * PER_NINE).floor() as u32;
    let ladder = (0..=last).map(|rung| 1.0 - 10f64.powf(-f64::from(rung) / PER_NINE));
    let mut points: Vec<_> =
        ladder.map(|quantile| (quantile, us(histogram.value_at_quantile(quantile)))).collect();
    points.push((1.0, us(histogram.max())));
    points
}

/// One cell of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// What the cells beside each other share, such as the value size.
    pub(crate) group: String,
    /// What they differ in, such as the target.
    pub(crate) series: String,
    /// `None`: it was not measured.
    pub(crate) bar: Option<Bar>,
}

/// Bars of a comparison; groups and series come in the order of their first cells.
pub(crate) fn comparison(y: Axis, cells: &[Cell], reference: Option<(f64, String)>) -> Chart {
    let in_order = |name: fn(&Cell) -> &String| {
        let mut names: Vec<String> = Vec::new();
        for cell in cells {
            if !names.contains(name(cell)) {
                names.push(name(cell).clone());
            }
        }
        names
    };
    let groups = in_order(|cell| &cell.group);
    let bar = |series: &String, group: &String| {
        cells.iter().find(|cell| cell.series == *series && cell.group == *group).and_then(|cell| cell.bar)
    };
    let series = in_order(|cell| &cell.series)
        .into_iter()
        .map(|name| BarSeries { bars: groups.iter().map(|group| bar(&name, group)).collect(), name });
    let series = series.collect();
    Chart::Bars(Bars { y, groups, series, reference })
}

fn over_time(
    name: &str,
    kind: usize,
    seconds: &[Second],
    mut value: impl FnMut(&Second) -> Option<f64>,
) -> Series {
    let points = seconds.iter().map(|second| (second.at_seconds, value(second).unwrap_or(f64::NAN)));
    Series { name: name.to_owned(), kind, points: points.collect(), style: Style::Line }
}

/// The series of which there is anything.
fn measured(series: impl IntoIterator<Item = Series>) -> Vec<Series> {
    series.into_iter().filter(|series| series.points.iter().any(|(_, y)| y.is_finite())).collect()
}

fn lines(y: Axis, series: Vec<Series>, marks: Vec<Mark>) -> Chart {
    Chart::Lines(Lines { x: Axis::linear("Time", Unit::Seconds), y, series, marks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::tally::latencies;

    fn of_lines(chart: Chart) -> Vec<(String, Vec<(f64, f64)>)> {
        let Chart::Lines(lines) = chart else { panic!("not lines: {chart:?}") };
        lines.series.into_iter().map(|series| (series.name, series.points)).collect()
    }

    #[test]
    fn only_what_happened_is_a_series() {
        let names = |seconds: &[Second]| {
            let series = of_lines(throughput(seconds, vec![]));
            series.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let mut seconds = vec![Second::example(1.0, 0, 10), Second::example(2.0, 0, 20)];
        assert_eq!(names(&seconds), ["Writes"]);
        seconds[1].failed = 1;
        seconds[1].operations += 5;
        assert_eq!(names(&seconds), ["Writes", "Other operations", "Failures"]);
        assert_eq!(of_lines(throughput(&seconds, vec![]))[1].1, [(1.0, 0.0), (2.0, 5.0)]);
        assert!(of_lines(write_amplification(&seconds, vec![])).is_empty());
    }

    #[test]
    fn steps_begin_where_their_first_interval_does() {
        let step = |at, name: &str| Second { step: name.into(), ..Second::example(at, 1, 1) };
        let seconds = [step(1.0, ""), step(2.0, "a"), step(3.0, "a"), step(4.0, "b"), step(5.0, "a")];
        assert_eq!(steps(&seconds), [(1.0, "a".to_owned()), (3.0, "b".to_owned()), (4.0, "a".to_owned())]);
    }

    #[test]
    fn processors_are_differences() {
        let at = |at, cpu| Second { cpu_seconds: cpu, ..Second::example(at, 1, 1) };
        let series = of_lines(cpu(
            &[at(1.0, Some(1.5)), at(2.0, Some(3.5)), at(3.0, None), at(4.0, Some(9.0))],
            vec![],
        ));
        let busy: Vec<f64> = series[0].1.iter().map(|(_, busy)| *busy).collect();
        assert_eq!(busy[..2], [1.5, 2.0]);
        assert!(busy[2].is_nan() && busy[3].is_nan());
    }

    #[test]
    fn quantiles_reach_as_far_as_there_are_values() {
        let mut histogram = latencies();
        for us in 1..=1_000 {
            histogram.record(us * 1_000).unwrap();
        }
        let points = quantiles(&histogram);
        assert_eq!(points[0].0, 0.0);
        let near = |quantile: f64| points.iter().find(|(q, _)| (q - quantile).abs() < 1e-9).unwrap().1;
        assert!((near(0.9) - 900.0).abs() < 2.0 && (near(0.99) - 990.0).abs() < 2.0, "{points:?}");
        let last = &points[points.len() - 2..];
        assert!(
            (last[0].0 - 0.999).abs() < 1e-9 && last[1].0 == 1.0,
            "a thousand values have three nines: {last:?}"
        );
        assert!((last[1].1 - 1_000.0).abs() < 1.0);
        let Chart::Percentiles(plot) = percentiles(&[("none", &latencies()), ("some", &histogram)]) else {
            panic!()
        };
        assert_eq!(plot.series.iter().map(|series| series.name.as_str()).collect::<Vec<_>>(), ["some"]);
        let mut one = latencies();
        one.record(5_000).unwrap();
        assert_eq!(quantiles(&one).len(), 2);
    }

    #[test]
    fn cells_become_groups_and_series() {
        let cell = |group: &str, series: &str, value: f64| Cell {
            group: group.into(),
            series: series.into(),
            bar: Some(Bar { value, min: value, max: value }),
        };
        let cells = [cell("1K", "b", 1.0), cell("1K", "a", 2.0), cell("4K", "a", 3.0)];
        let Chart::Bars(bars) = comparison(Axis::linear("", Unit::Count), &cells, None) else { panic!() };
        assert_eq!(bars.groups, ["1K", "4K"]);
        let values: Vec<(&str, Vec<Option<f64>>)> = bars
            .series
            .iter()
            .map(|series| {
                (series.name.as_str(), series.bars.iter().map(|bar| bar.map(|bar| bar.value)).collect())
            })
            .collect();
        assert_eq!(values, [("b", vec![Some(1.0), None]), ("a", vec![Some(2.0), Some(3.0)])]);
    }
}
