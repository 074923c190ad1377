//! The live line: phase, throughput, tail latency, failures, time left. On standard error and only on a terminal, so
//! that output which is piped or logged holds results and events, not animation.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::measure::tally::{Recent, latencies, merge};
use crate::report::figures::{count, latency};

/// How far a phase will go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// This many operations.
    Operations(u64),
    /// This long.
    Time(Duration),
}

/// Throughput and percentiles on the line are of this long, so that they can be read.
const SHOWN: Duration = Duration::from_millis(500);

/// The live line, or nothing where nobody would see it move.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    bar: ProgressBar,
    seen: bool,
}

/// What the line has shown of a phase so far.
#[derive(Debug)]
pub(crate) struct Shown {
    goal: Goal,
    operations: u64,
    failed: u64,
    broken: u64,
    /// Since the rate was last worked out.
    since: Instant,
    recent: Recent,
    rate: String,
}

impl Shown {
    /// Nothing yet of a phase that goes so far.
    pub(crate) fn new(goal: Goal) -> Self {
        Shown {
            goal,
            operations: 0,
            failed: 0,
            broken: 0,
            since: Instant::now(),
            recent: Recent::new(),
            rate: "...".into(),
        }
    }
}

impl Live {
    /// The line of a phase called `name`.
    pub(crate) fn new(name: &str, goal: Goal) -> Self {
        let seen = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(match goal {
                Goal::Operations(total) => total,
                Goal::Time(window) => window.as_millis() as u64,
            }),
            if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        match ProgressStyle::with_template("{prefix:>9} {bar:24.cyan/blue} {percent:>3} %  {msg}") {
            Ok(style) => bar.set_style(style),
            Err(error) => unreachable!("a constant template is valid: {error}"),
        }
        bar.set_prefix(name.to_owned());
        Live { bar, seen }
    }

    /// Says that something happened; printed in any case, above the line if there is one.
    pub(crate) fn event(&self, text: &str) {
        if self.seen {
            self.bar.suspend(|| eprintln!("{text}"));
        } else {
            eprintln!("{text}");
        }
    }

    /// Shows what happened since the last call, `elapsed` into the phase and in the step of that name.
    pub(crate) fn show(&self, shown: &mut Shown, elapsed: Duration, step: &str, since_last: &Recent) {
        if !self.seen {
            return;
        }
        shown.operations += since_last.operations();
        shown.failed += since_last.failed;
        shown.broken += since_last.broken;
        shown.recent.add(since_last);
        let passed = shown.since.elapsed();
        if passed >= SHOWN {
            let ops = shown.recent.operations() as f64 / passed.as_secs_f64();
            let mut all = latencies();
            merge(&mut all, &shown.recent.reads);
            merge(&mut all, &shown.recent.writes);
            let p99 = Duration::from_nanos(all.value_at_quantile(0.99));
            shown.rate = format!("{} ops/s  p99 {}", count(ops as u64), latency(p99));
            shown.recent.clear();
            shown.since = Instant::now();
        }
        let left = match shown.goal {
            Goal::Operations(total) => {
                self.bar.set_position(shown.operations.min(total));
                let speed = shown.operations as f64 / elapsed.as_secs_f64().max(0.001);
                let left = total.saturating_sub(shown.operations) as f64 / speed;
                (speed > 0.0).then(|| Duration::from_secs_f64(left))
            }
            Goal::Time(window) => {
                self.bar.set_position(elapsed.min(window).as_millis() as u64);
                Some(window.saturating_sub(elapsed))
            }
        };
        let mut message = format!("{}  failed {}", shown.rate, count(shown.failed));
        if shown.broken > 0 {
            message.push_str(&format!("  BROKEN PROMISES {}", count(shown.broken)));
        }
        if !step.is_empty() {
            message.push_str(&format!("  {step}"));
        }
        if let Some(left) = left {
            message.push_str(&format!("  {:.0} s left", left.as_secs_f64().ceil()));
        }
        self.bar.set_message(message);
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
