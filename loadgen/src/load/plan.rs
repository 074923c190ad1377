//! When operations are to begin: the steps of a timed phase, each closed loop or at a rate that is constant or ramps.
//!
//! In an **open** step, operation k is *due* at a moment that depends on nothing but k and the step's rates. Workers
//! take the operations in that order; one that finds every moment ahead of it waits, one that comes late begins at
//! once. Its latency counts from the moment it was due, so a system that stalls is charged for everything that should
//! have been sent meanwhile (Gil Tene's "coordinated omission"). What was due and never sent is counted and said.
//!
//! In a **closed** step each worker begins its next operation when its last was answered.
//!
//! Invariants: due moments ascend with k; a step's steps do not overlap; only the last step may be bound by a number
//! of operations.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::workload::spec::Spec;

/// How fast operations begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// As fast as the workers are answered.
    Closed,
    /// At this many a second at the step's start, and this many at its end, linear in between.
    Open {
        /// At the start, more than 0 unless `to` is.
        from: f64,
        /// At the end.
        to: f64,
    },
}

/// When a step ends. Operations under way are finished.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// After this long.
    Time(Duration),
    /// After this many operations of all workers together, failed ones included.
    Operations(u64),
}

/// One step of a timed phase.
#[derive(Debug)]
pub(crate) struct Step {
    /// What reports call it.
    pub(crate) name: String,
    /// When it starts, from the phase's start.
    pub(crate) starts: Duration,
    pub(crate) bound: Bound,
    pub(crate) pace: Pace,
    /// Whether its operations count, or only warm the system up.
    pub(crate) measured: bool,
    /// The workload, if it is another than the run's.
    pub(crate) workload: Option<Spec>,
    /// Operations begun (closed) or taken (open) so far.
    taken: AtomicU64,
}

/// What a worker that asks for its next operation is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Next {
    /// Begin at this time from the phase's start; `None`: now.
    Begin(Option<Duration>),
    /// The step has no more.
    Over,
}

impl Step {
    /// When the step ends, from the phase's start; `None`: when its operations are done.
    pub(crate) fn ends(&self) -> Option<Duration> {
        match self.bound {
            Bound::Time(length) => Some(self.starts + length),
            Bound::Operations(_) => None,
        }
    }

    /// The next operation, for a worker that asks at `now` from the phase's start.
    pub(crate) fn next(&self, now: Duration) -> Next {
        // What is due but was not begun when the time is over is never sent: `unsent` tells how much that was.
        if self.ends().is_some_and(|ends| now >= ends) {
            return Next::Over;
        }
        let nth = self.taken.fetch_add(1, Ordering::Relaxed);
        if matches!(self.bound, Bound::Operations(total) if nth >= total) {
            return Next::Over;
        }
        let Pace::Open { from, to } = self.pace else { return Next::Begin(None) };
        match due(nth, from, to, self.bound) {
            Some(due) => Next::Begin(Some(self.starts + due)),
            None => Next::Over,
        }
    }

    /// Operations that were due in the whole step, if it is open and bound by time.
    pub(crate) fn offered(&self) -> Option<u64> {
        match (self.pace, self.bound) {
            (Pace::Open { from, to }, Bound::Time(length)) => {
                Some(((from + to) / 2.0 * length.as_secs_f64()).round() as u64)
            }
            _ => None,
        }
    }

    /// Operations that were due and that no worker took: the system (or the workers) did not keep up.
    pub(crate) fn unsent(&self) -> u64 {
        let taken = self.taken.load(Ordering::Relaxed);
        self.offered().map_or(0, |offered| offered.saturating_sub(taken))
    }
}

/// When operation `nth` is due, from the step's start; `None`: not within it.
///
/// By time t, N(t) = from·t + (to − from)·t²/2T operations have been due. Its inverse at n is written so that it loses
/// no precision where the ramp is flat.
fn due(nth: u64, from: f64, to: f64, bound: Bound) -> Option<Duration> {
    let n = nth as f64;
    let (bend, length) = match bound {
        Bound::Time(length) => ((to - from) / (2.0 * length.as_secs_f64()), Some(length)),
        Bound::Operations(_) => (0.0, None),
    };
    let root = from * from + 4.0 * bend * n;
    if root < 0.0 {
        return None;
    }
    let denominator = from + root.sqrt();
    let seconds = if n == 0.0 { 0.0 } else { 2.0 * n / denominator };
    if !seconds.is_finite() {
        return None;
    }
    let due = Duration::try_from_secs_f64(seconds).ok()?;
    length.is_none_or(|length| due < length).then_some(due)
}

/// The steps of a timed phase, in order.
#[derive(Debug)]
pub(crate) struct Plan {
    steps: Vec<Step>,
}

/// A step before it has its place: what the command line says of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outline {
    pub(crate) name: String,
    pub(crate) bound: Bound,
    pub(crate) pace: Pace,
    pub(crate) workload: Option<Spec>,
}

impl Plan {
    /// These steps one after another, after a warm-up at the first one's pace (zero: none).
    pub(crate) fn new(warm_up: Duration, outlines: Vec<Outline>) -> Plan {
        let mut starts = Duration::ZERO;
        let mut steps = Vec::with_capacity(outlines.len() + 1);
        if let (false, Some(first)) = (warm_up.is_zero(), outlines.first()) {
            let pace = match first.pace {
                Pace::Closed => Pace::Closed,
                Pace::Open { from, .. } => Pace::Open { from, to: from },
            };
            let outline =
                Outline { name: "warm-up".into(), bound: Bound::Time(warm_up), pace, ..first.clone() };
            steps.push(Step::placed(outline, starts, false));
            starts += warm_up;
        }
        for outline in outlines {
            let step = Step::placed(outline, starts, true);
            starts = step.ends().unwrap_or(starts);
            steps.push(step);
        }
        Plan { steps }
    }

    /// The steps.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How long all of it lasts; `None` if a number of operations bounds it.
    pub(crate) fn length(&self) -> Option<Duration> {
        self.steps.last().map_or(Some(Duration::ZERO), Step::ends)
    }

    /// The name of the step at a moment of the phase.
    pub(crate) fn at(&self, now: Duration) -> &str {
        self.step_at(now).map_or("", |step| &step.name)
    }

    /// Whether the step at a moment of the phase counts.
    pub(crate) fn is_measured(&self, now: Duration) -> bool {
        self.step_at(now).is_none_or(|step| step.measured)
    }

    /// Whether two moments lie in the same step.
    pub(crate) fn same_step(&self, one: Duration, other: Duration) -> bool {
        self.step_at(one).map(|step| step.starts) == self.step_at(other).map(|step| step.starts)
    }

    fn step_at(&self, now: Duration) -> Option<&Step> {
        let step = self.steps.iter().find(|step| step.ends().is_none_or(|ends| now < ends));
        step.or(self.steps.last())
    }
}

impl Step {
    fn placed(outline: Outline, starts: Duration, measured: bool) -> Step {
        Step {
            name: outline.name,
            starts,
            bound: outline.bound,
            pace: outline.pace,
            measured,
            workload: outline.workload,
            taken: AtomicU64::new(0),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pace::Closed => f.write_str("max"),
            Pace::Open { from, to } if from == to => write!(f, "{from}/s"),
            Pace::Open { from, to } => write!(f, "{from}..{to}/s"),
        }
    }
}

/// Reads a profile: steps separated by commas, each `[WORKLOAD:]PACE@SECONDS`, where PACE is `max` (closed loop), a
/// rate per second, a ramp `FROM..TO`, or a staircase `FROM..TO/STAIRS` (equal stairs, the first at FROM, the last at
/// TO, SECONDS each in all).
pub(crate) fn parse_profile(text: &str) -> Result<Vec<Outline>, String> {
    let mut outlines = Vec::new();
    for part in text.split(',') {
        outlines.extend(parse_step(part.trim()).map_err(|error| {
            format!("'{part}': {error}; a step is [WORKLOAD:]PACE@SECONDS, for example 5000@30, 1000..9000@60, 1000..9000/5@50 or c:max@10")
        })?);
    }
    Ok(outlines)
}

fn parse_step(text: &str) -> Result<Vec<Outline>, String> {
    let (front, seconds) = text.rsplit_once('@').ok_or("it does not say how long (@SECONDS)")?;
    let seconds: f64 =
        seconds.trim_end_matches('s').parse().map_err(|_| format!("'{seconds}' is no number of seconds"))?;
    if !(0.01..=1e6).contains(&seconds) {
        return Err(format!("{seconds} s is out of range"));
    }
    let (workload, pace) = match front.rsplit_once(':') {
        Some((name, pace)) => (Some(Spec::named_or_file(name).map_err(|error| format!("{error:#}"))?), pace),
        None => (None, front),
    };
    let outline = |name: &str, pace, seconds| Outline {
        name: name.to_owned(),
        bound: Bound::Time(Duration::from_secs_f64(seconds)),
        pace,
        workload: workload.clone(),
    };
    if pace.eq_ignore_ascii_case("max") {
        return Ok(vec![outline(text, Pace::Closed, seconds)]);
    }
    let Some((from, rest)) = pace.split_once("..") else {
        let rate = parse_rate(pace)?;
        return Ok(vec![outline(text, Pace::Open { from: rate, to: rate }, seconds)]);
    };
    let from = parse_rate(from)?;
    let Some((to, stairs)) = rest.split_once('/') else {
        return Ok(vec![outline(text, Pace::Open { from, to: parse_rate(rest)? }, seconds)]);
    };
    let to = parse_rate(to)?;
    let stairs: u32 = match stairs.parse() {
        Ok(stairs @ 2..=1000) => stairs,
        _ => return Err(format!("'{stairs}' stairs: from 2 to 1000 make sense")),
    };
    let length = seconds / f64::from(stairs);
    Ok((0..stairs)
        .map(|stair| {
            let rate = from + (to - from) * f64::from(stair) / f64::from(stairs - 1);
            outline(&format!("{rate:.0}/s"), Pace::Open { from: rate, to: rate }, length)
        })
        .collect())
}

/// A rate of operations per second: `5000`, `5k`, `0.5`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let (number, factor) = match text.trim().to_ascii_lowercase() {
        text if text.ends_with('k') => (text[..text.len() - 1].to_owned(), 1e3),
        text if text.ends_with('m') => (text[..text.len() - 1].to_owned(), 1e6),
        text => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(rate) if (1e-3..=1e9).contains(&(rate * factor)) => Ok(rate * factor),
        _ => Err(format!("'{text}' is no rate: operations per second, for example 5000 or 20k")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn plan(text: &str, warm_up: f64) -> Plan {
        Plan::new(seconds(warm_up), parse_profile(text).unwrap())
    }

    /// All moments at which a step's operations are due.
    fn moments(step: &Step) -> Vec<f64> {
        let mut moments = Vec::new();
        while let Next::Begin(Some(due)) = step.next(step.starts) {
            moments.push((due - step.starts).as_secs_f64());
        }
        moments
    }

    #[test]
    fn a_constant_rate_is_evenly_spaced() {
        let plan = plan("1000@2", 0.0);
        let due = moments(&plan.steps()[0]);
        assert_eq!((due.len(), due[0], due[500]), (2000, 0.0, 0.5));
        assert_eq!(plan.steps()[0].offered(), Some(2000));
        assert_eq!(plan.steps()[0].unsent(), 0);
    }

    /// On a ramp, the number of operations due by any time is the integral of the rate up to it.
    #[test]
    fn a_ramp_follows_the_integral_of_its_rate() {
        for text in ["100..1100@10", "1100..100@10", "0.001..2000@10", "2000..0.001@10"] {
            let plan = plan(text, 0.0);
            let step = &plan.steps()[0];
            let Pace::Open { from, to } = step.pace else { panic!("{text}") };
            let due = moments(step);
            assert!(due.is_sorted(), "{text}");
            assert!(due.len().abs_diff(step.offered().unwrap() as usize) <= 1, "{text}: {}", due.len());
            for t in [0.1, 1.0, 2.5, 5.0, 9.9] {
                let integral = from * t + (to - from) * t * t / 20.0;
                let seen = due.iter().filter(|moment| **moment < t).count() as f64;
                assert!((seen - integral).abs() <= 1.0, "{text}: {seen} due by {t} s, not {integral}");
            }
        }
    }

    #[test]
    fn steps_follow_each_other_after_the_warm_up() {
        let plan = plan("50@1,max@2,10..30@4", 0.5);
        let starts: Vec<f64> = plan.steps().iter().map(|step| step.starts.as_secs_f64()).collect();
        assert_eq!(starts, [0.0, 0.5, 1.5, 3.5]);
        assert_eq!(plan.length(), Some(seconds(7.5)));
        let measured: Vec<bool> = plan.steps().iter().map(|step| step.measured).collect();
        assert_eq!(measured, [false, true, true, true]);
        assert_eq!(plan.steps()[0].pace, Pace::Open { from: 50.0, to: 50.0 });
        let names = [0.1, 0.6, 2.0, 7.0, 9.0].map(|at| plan.at(seconds(at)));
        assert_eq!(names, ["warm-up", "50@1", "max@2", "10..30@4", "10..30@4"]);
        assert!(!plan.is_measured(seconds(0.1)) && plan.is_measured(seconds(0.5)));
        assert!(plan.same_step(seconds(1.5), seconds(3.4)) && !plan.same_step(seconds(1.4), seconds(1.5)));
    }

    #[test]
    fn stairs_go_from_the_first_rate_to_the_last() {
        let plan = plan("1000..5000/5@10", 0.0);
        let rates: Vec<Pace> = plan.steps().iter().map(|step| step.pace).collect();
        let flat = |rate| Pace::Open { from: rate, to: rate };
        assert_eq!(rates, [1000.0, 2000.0, 3000.0, 4000.0, 5000.0].map(flat));
        assert_eq!(plan.length(), Some(seconds(10.0)));
        assert_eq!(plan.steps()[4].name, "5000/s");
    }

    /// A worker that comes late begins at once, its operation having been due earlier; what nobody took is counted.
    #[test]
    fn lateness_is_visible_and_what_was_never_sent_is_counted() {
        let plan = plan("100@1", 0.0);
        let step = &plan.steps()[0];
        assert_eq!(step.next(seconds(0.0)), Next::Begin(Some(seconds(0.0))));
        assert_eq!(step.next(seconds(0.9)), Next::Begin(Some(seconds(0.01))), "due long ago");
        assert_eq!(step.next(seconds(1.0)), Next::Over);
        assert_eq!(step.unsent(), 98);
    }

    #[test]
    fn a_number_of_operations_ends_a_step_too() {
        let outline =
            Outline { name: "run".into(), bound: Bound::Operations(3), pace: Pace::Closed, workload: None };
        let plan = Plan::new(Duration::ZERO, vec![outline]);
        let step = &plan.steps()[0];
        let answers: Vec<Next> = (0..4).map(|_| step.next(seconds(1e6))).collect();
        assert_eq!(answers, [Next::Begin(None), Next::Begin(None), Next::Begin(None), Next::Over]);
        assert_eq!((plan.length(), step.offered(), step.unsent()), (None, None, 0));
    }

    #[test]
    fn steps_can_have_a_workload_of_their_own() {
        let plan = plan("c:max@1,100@1", 0.0);
        assert_eq!(plan.steps()[0].workload.as_ref().unwrap().name, "c");
        assert!(plan.steps()[1].workload.is_none());
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for text in [
            "", "5000", "fast@1", "0@1", "-5@1", "5@0", "5@x", "1..@3", "1..2/1@3", "1..2/x@3", "zz:5@1",
            "1e99@1",
        ] {
            let error = parse_profile(text).expect_err(text);
            assert!(error.contains("[WORKLOAD:]PACE@SECONDS"), "{text}: {error}");
        }
        assert_eq!(parse_rate("20k"), Ok(20_000.0));
    }
}
