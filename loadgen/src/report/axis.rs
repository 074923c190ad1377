//! Axes of charts: which range is shown, where the ticks stand, and how they are labelled.
//!
//! A value's *place* is where it stands along an axis: itself, or its decimal logarithm on a logarithmic
//! axis. Charts are drawn in places.
//!
//! Invariants: ranges have a positive, finite length whatever the data; no number overflows on the way; a
//! linear axis of amounts begins at zero (a difference of heights is then a difference of amounts); ticks lie
//! within the range.

use std::ops::Range;

use crate::report::figures::count;

/// The smallest amount that a logarithmic axis shows, and the largest that any does: what arithmetic on axes
/// is safe with.
const LEAST: f64 = 1e-9;
const MOST: f64 = 1e18;

/// What an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Things, or things per second: 500, 20 K, 1.5 M.
    Count,
    /// Bytes: 512 MiB.
    Bytes,
    /// Latencies, given in microseconds: 80 µs, 1 ms, 2 s.
    Microseconds,
    /// Time since the start, given in seconds: 30 s, 5 min.
    Seconds,
    /// A plain number: 1.5.
    Ratio,
}

/// An axis as a chart's maker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) unit: Unit,
    /// Logarithmic; values that are not positive are not shown.
    pub(crate) log: bool,
}

impl Axis {
    /// A linear axis.
    pub(crate) fn linear(label: &str, unit: Unit) -> Axis {
        Axis { label: label.to_owned(), unit, log: false }
    }

    /// A logarithmic axis.
    pub(crate) fn log(label: &str, unit: Unit) -> Axis {
        Axis { label: label.to_owned(), unit, log: true }
    }

    /// Where a value stands; `None`: nowhere on this axis. What lies beyond [`LEAST`] and [`MOST`] is no
    /// measurement.
    pub(crate) fn place(&self, value: f64) -> Option<f64> {
        let shown = if self.log { (LEAST..=MOST).contains(&value) } else { value.abs() <= MOST };
        shown.then(|| if self.log { value.log10() } else { value })
    }

    /// The scale that shows these values (those that have a place), with about so many ticks.
    pub(crate) fn scale(&self, values: impl Iterator<Item = f64>, ticks: usize) -> Scale {
        let shown = values.filter(|value| self.place(*value).is_some());
        let (low, high) = shown
            .fold(None, |range: Option<(f64, f64)>, value| {
                Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
            })
            .unwrap_or((1.0, 1.0));
        match (self.log, self.unit) {
            (true, unit) => log_scale(unit, low, high, ticks.max(2)),
            (false, Unit::Seconds) => time_scale(low, high, ticks.max(2)),
            (false, unit) => linear_scale(unit, low.min(0.0), high.max(0.0), ticks.max(2)),
        }
    }
}

/// A labelled place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub(crate) place: f64,
    pub(crate) label: String,
}

/// What is shown of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    /// First and last place.
    pub(crate) range: Range<f64>,
    /// In rising order.
    pub(crate) ticks: Vec<Tick>,
    /// Places of faint lines between the ticks.
    pub(crate) minor: Vec<f64>,
}

impl Scale {
    /// A range and ticks made by hand.
    pub(crate) fn of(range: Range<f64>, ticks: Vec<Tick>) -> Scale {
        Scale { range, ticks, minor: Vec::new() }
    }
}

fn linear_scale(unit: Unit, low: f64, high: f64, about: usize) -> Scale {
    let high = if high > low { high } else { low + 1.0 };
    let rough = (high - low) / about as f64;
    let step = if unit == Unit::Bytes { binary_step(rough) } else { decimal_step(rough) };
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    let values: Vec<f64> = (0..=(last - first) as usize).map(|n| (first + n as f64) * step).collect();
    let ticks =
        values.iter().map(|value| Tick { place: *value, label: label(unit, *value, step, high) }).collect();
    Scale::of(first * step..last * step, ticks)
}

/// Time is shown as it was: the range ends where the data does.
fn time_scale(low: f64, high: f64, about: usize) -> Scale {
    const STEPS: [f64; 19] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0,
        7_200.0, 21_600.0, 43_200.0,
    ];
    const DAY: f64 = 86_400.0;
    let low = low.min(0.0);
    let high = if high > low { high } else { low + 1.0 };
    let rough = (high - low) / about as f64;
    let known = STEPS.into_iter().find(|step| *step >= rough && *step >= 0.1);
    let step = known.unwrap_or_else(|| decimal_step(rough / DAY).max(1.0) * DAY);
    let (first, last) = ((low / step).ceil(), (high / step + 1e-9).floor());
    let ticks = (0..=(last - first) as usize)
        .map(|n| (first + n as f64) * step)
        .map(|value| Tick { place: value, label: label(Unit::Seconds, value, step, high) })
        .collect();
    Scale::of(low..high, ticks)
}

fn log_scale(unit: Unit, low: f64, high: f64, about: usize) -> Scale {
    if unit == Unit::Bytes {
        return binary_log_scale(low, high, about);
    }
    // All of 1, 2, 5 × 10ⁿ from the last at or below the lowest value to the first at or above the highest.
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32 + 1;
    let marks: Vec<(i32, f64)> = decades
        .flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| (decade, digit * 10f64.powi(decade))))
        .collect();
    let tolerance = 1.0 + 1e-9;
    let first = marks.iter().rposition(|(_, mark)| *mark <= low * tolerance).unwrap_or(0);
    let last = marks.iter().position(|(_, mark)| *mark * tolerance >= high).unwrap_or(marks.len() - 1);
    let last = last.max(first + 1);
    let shown = &marks[first..=last];
    let range = shown[0].1.log10()..shown[shown.len() - 1].1.log10();
    let every_decade = |(decade, mark): &(i32, f64)| *mark / 10f64.powi(*decade) < 1.5;
    let mut ticks: Vec<f64> = shown.iter().map(|(_, mark)| *mark).collect();
    let whole = shown.iter().filter(|mark| every_decade(mark)).count();
    if ticks.len() > about + 2 && whole >= 2 {
        let apart = whole.div_ceil(about) as i32;
        ticks = shown
            .iter()
            .filter(|mark| every_decade(mark) && mark.0 % apart == 0)
            .map(|(_, mark)| *mark)
            .collect();
    }
    let minor = (range.start.floor() as i32..=range.end.ceil() as i32)
        .flat_map(|decade| (1..10).map(move |digit| f64::from(digit).log10() + f64::from(decade)))
        .filter(|place| range.contains(place) && range.end - range.start <= 6.0)
        .collect();
    let ticks =
        ticks.into_iter().map(|value| Tick { place: value.log10(), label: lone(unit, value) }).collect();
    Scale { range, ticks, minor }
}

fn binary_log_scale(low: f64, high: f64, about: usize) -> Scale {
    let (first, last) = (low.log2().floor() as i32, high.log2().ceil() as i32);
    let last = last.max(first + 1);
    let apart = ((last - first) as usize).div_ceil(about).max(1);
    let ticks = (first..=last)
        .step_by(apart)
        .map(|power| 2f64.powi(power))
        .map(|value| Tick { place: value.log10(), label: lone(Unit::Bytes, value) })
        .collect();
    Scale::of(2f64.powi(first).log10()..2f64.powi(last).log10(), ticks)
}

/// The smallest of 1, 2, 5 × 10ⁿ that is no smaller than `rough`.
fn decimal_step(rough: f64) -> f64 {
    let decade = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * decade >= rough * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * decade
}

/// The smallest power of two that is no smaller than `rough`.
fn binary_step(rough: f64) -> f64 {
    2f64.powf((rough.log2() - 1e-9).ceil())
}

/// Labels a tick of a linear axis with steps of `step` up to `high`: all have the same unit and as many
/// decimals.
fn label(unit: Unit, value: f64, step: f64, high: f64) -> String {
    let (divisor, name) = match unit {
        Unit::Seconds if step >= 3_600.0 => (3_600.0, "h"),
        Unit::Seconds if step >= 60.0 => (60.0, "min"),
        unit => suffix(unit, high),
    };
    if value == 0.0 {
        return "0".to_owned();
    }
    number(value / divisor, decimals(step / divisor), name)
}

/// Labels a value that stands alone: 1.5 ms.
pub(crate) fn lone(unit: Unit, value: f64) -> String {
    let (divisor, name) = suffix(unit, value);
    let scaled = value / divisor;
    // Three significant digits, no zeros at the end.
    let most = match scaled.abs() {
        scaled if scaled >= 99.95 => 0,
        scaled if scaled >= 9.995 => 1,
        scaled if scaled >= 0.9995 => 2,
        _ => 3,
    };
    let decimals = (0..most).find(|decimals| is_whole(round(scaled, most) * 10f64.powi(*decimals)));
    number(scaled, decimals.unwrap_or(most) as usize, name)
}

fn round(value: f64, decimals: i32) -> f64 {
    (value * 10f64.powi(decimals)).round() / 10f64.powi(decimals)
}

fn number(scaled: f64, decimals: usize, name: &str) -> String {
    let text = if decimals == 0 && (0.0..1e15).contains(&scaled) {
        count(scaled.round() as u64)
    } else {
        format!("{scaled:.decimals$}")
    };
    if name.is_empty() { text } else { format!("{text} {name}") }
}

/// The prefix that suits a value, as divisor and name.
fn suffix(unit: Unit, value: f64) -> (f64, &'static str) {
    let steps: &[(f64, &'static str)] = match unit {
        Unit::Count => &[(1e9, "G"), (1e6, "M"), (1e3, "K")],
        Unit::Bytes => &[
            (1024.0 * 1024.0 * 1024.0 * 1024.0, "TiB"),
            (1024.0 * 1024.0 * 1024.0, "GiB"),
            (1024.0 * 1024.0, "MiB"),
            (1024.0, "KiB"),
        ],
        Unit::Microseconds => &[(1e6, "s"), (1e3, "ms")],
        Unit::Seconds | Unit::Ratio => &[],
    };
    let least = match unit {
        Unit::Bytes => "B",
        Unit::Microseconds => "µs",
        Unit::Seconds => "s",
        Unit::Count | Unit::Ratio => "",
    };
    // Thousands are written out while they are short: 5,000 but 20 K.
    let written_out = unit == Unit::Count && value.abs() < 1e4;
    let step = steps.iter().find(|(divisor, _)| value.abs() >= *divisor * (1.0 - 1e-9));
    step.filter(|_| !written_out).copied().unwrap_or((1.0, least))
}

/// Decimals that a multiple of `step` needs.
fn decimals(step: f64) -> usize {
    (0..6).find(|decimals| is_whole(step * 10f64.powi(*decimals))).unwrap_or(6) as usize
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6 * value.abs().max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis, values: &[f64], ticks: usize) -> String {
        let scale = axis.scale(values.iter().copied(), ticks);
        let (start, end) = (scale.range.start, scale.range.end);
        assert!(start.is_finite() && end > start, "{scale:?}");
        for tick in &scale.ticks {
            assert!((start - 1e-9..=end + 1e-9).contains(&tick.place), "{scale:?}");
        }
        scale.ticks.into_iter().map(|tick| tick.label).collect::<Vec<_>>().join(" | ")
    }

    #[test]
    fn amounts_begin_at_zero_in_round_steps() {
        let of = |unit, high| labels(&Axis::linear("", unit), &[high / 2.0, high], 5);
        assert_eq!(of(Unit::Count, 4_321.0), "0 | 1,000 | 2,000 | 3,000 | 4,000 | 5,000");
        assert_eq!(of(Unit::Count, 123_456.0), "0 | 50 K | 100 K | 150 K");
        assert_eq!(of(Unit::Count, 1_700_000.0), "0 | 0.5 M | 1.0 M | 1.5 M | 2.0 M");
        assert_eq!(of(Unit::Count, 3.0), "0 | 1 | 2 | 3");
        assert_eq!(of(Unit::Ratio, 1.62), "0 | 0.5 | 1.0 | 1.5 | 2.0");
        assert_eq!(of(Unit::Microseconds, 870.0), "0 | 200 µs | 400 µs | 600 µs | 800 µs | 1,000 µs");
        assert_eq!(of(Unit::Microseconds, 3_870.0), "0 | 1 ms | 2 ms | 3 ms | 4 ms");
        assert_eq!(of(Unit::Bytes, 700.0 * 1048576.0), "0 | 256 MiB | 512 MiB | 768 MiB");
        assert_eq!(labels(&Axis::linear("", Unit::Ratio), &[-1.0, 1.0], 2), "-1 | 0 | 1");
    }

    #[test]
    fn time_ends_where_it_ended() {
        let axis = Axis::linear("", Unit::Seconds);
        assert_eq!(labels(&axis, &[1.0, 25.0], 6), "0 | 5 s | 10 s | 15 s | 20 s | 25 s");
        assert_eq!(labels(&axis, &[1.0, 299.0], 6), "0 | 1 min | 2 min | 3 min | 4 min");
        assert_eq!(
            labels(&axis, &[1.0, 2.5 * 3_600.0], 6),
            "0 | 30 min | 60 min | 90 min | 120 min | 150 min"
        );
        assert_eq!(labels(&axis, &[1.0, 86_400.0], 5), "0 | 6 h | 12 h | 18 h | 24 h");
        assert_eq!(axis.scale([1.0, 26.5].into_iter(), 6).range, 0.0..26.5);
    }

    #[test]
    fn logarithmic_axes() {
        let axis = Axis::log("", Unit::Microseconds);
        assert_eq!(labels(&axis, &[90.0, 1_900.0], 6), "50 µs | 100 µs | 200 µs | 500 µs | 1 ms | 2 ms");
        assert_eq!(labels(&axis, &[3.0, 4e6], 6), "10 µs | 100 µs | 1 ms | 10 ms | 100 ms | 1 s");
        assert_eq!(labels(&axis, &[700.0, 700.0], 6), "500 µs | 1 ms");
        assert_eq!(labels(&axis, &[0.0, -5.0, 200.0, f64::NAN], 6), "200 µs | 500 µs");
        assert_eq!(labels(&Axis::log("", Unit::Count), &[1.0, 1e9], 5), "1 | 100 | 10 K | 1 M | 100 M");
        assert_eq!(
            labels(&Axis::log("", Unit::Bytes), &[1024.0, 16384.0], 6),
            "1 KiB | 2 KiB | 4 KiB | 8 KiB | 16 KiB"
        );
        assert_eq!(axis.place(0.0), None);
        assert_eq!(axis.place(1_000.0), Some(3.0));
    }

    #[test]
    fn whatever_the_data_there_is_a_range() {
        for unit in [Unit::Count, Unit::Bytes, Unit::Microseconds, Unit::Seconds, Unit::Ratio] {
            for log in [false, true] {
                let axis = Axis { label: String::new(), unit, log };
                for values in [
                    &[][..],
                    &[0.0],
                    &[f64::NAN, f64::INFINITY],
                    &[5.0],
                    &[1e-9],
                    &[1e15],
                    &[-3.0],
                    &[1e-3, 1e12],
                ] {
                    for ticks in [0, 1, 3, 8] {
                        labels(&axis, values, ticks);
                    }
                }
            }
        }
    }

    #[test]
    fn values_alone() {
        let of = |unit, values: &[f64]| values.iter().map(|v| lone(unit, *v)).collect::<Vec<_>>().join(" | ");
        assert_eq!(
            of(Unit::Count, &[0.0, 12.0, 9_999.0, 12_345.0, 2_500_000.0]),
            "0 | 12 | 9,999 | 12.3 K | 2.5 M"
        );
        assert_eq!(
            of(Unit::Microseconds, &[0.5, 87.4, 1_240.0, 999_000.0, 2e6]),
            "0.5 µs | 87.4 µs | 1.24 ms | 999 ms | 2 s"
        );
        assert_eq!(of(Unit::Bytes, &[512.0, 1536.0]), "512 B | 1.5 KiB");
        assert_eq!(of(Unit::Ratio, &[1.0, 1.256]), "1 | 1.26");
    }
}
