//! The live line: phase, throughput, tail latency, failures, time left. On standard error and only on a terminal, so
//! that output which is piped or logged holds results and events, not animation.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::load::runner::{Outcome, Phase};
use crate::measure::tally::latencies;
use crate::report::figures::{count, latency};

/// How far a phase will go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// This many operations.
    Operations(u64),
    /// This long.
    Time(Duration),
}

/// How often the line is redrawn and the end of a phase looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Throughput and percentiles on the line are of this long, so that they can be read.
const SHOWN: Duration = Duration::from_millis(500);

/// The live line, or nothing where nobody would see it move.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    bar: ProgressBar,
    seen: bool,
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

    /// Follows a phase to its end and gives what it came to.
    pub(crate) async fn follow(&self, phase: Phase, goal: Goal) -> anyhow::Result<Outcome> {
        let mut recent = latencies();
        let (mut since, mut before) = (Instant::now(), 0);
        let mut rate = String::from("...");
        let mut looks = tokio::time::interval(LOOK);
        while !phase.finished() {
            looks.tick().await;
            let glance = phase.glance(&mut recent);
            let passed = since.elapsed();
            if passed >= SHOWN {
                let ops = (glance.operations - before) as f64 / passed.as_secs_f64();
                let p99 = Duration::from_nanos(recent.value_at_quantile(0.99));
                rate = format!("{} ops/s  p99 {}", count(ops as u64), latency(p99));
                recent.reset();
                (since, before) = (Instant::now(), glance.operations);
            }
            let elapsed = phase.elapsed();
            let left = match goal {
                Goal::Operations(total) => {
                    self.bar.set_position(glance.operations.min(total));
                    let speed = glance.operations as f64 / elapsed.as_secs_f64().max(0.001);
                    let left = total.saturating_sub(glance.operations) as f64 / speed;
                    (speed > 0.0).then(|| Duration::from_secs_f64(left))
                }
                Goal::Time(window) => {
                    self.bar.set_position(elapsed.min(window).as_millis() as u64);
                    Some(window.saturating_sub(elapsed))
                }
            };
            let mut message = format!("{rate}  failed {}", count(glance.failed));
            if glance.broken > 0 {
                message.push_str(&format!("  BROKEN PROMISES {}", count(glance.broken)));
            }
            if let Some(left) = left {
                message.push_str(&format!("  {:.0} s left", left.as_secs_f64().ceil()));
            }
            self.bar.set_message(message);
        }
        self.bar.finish_and_clear();
        phase.join()
    }
}
