//! A run's report as a page: the verdict, what was measured and where, and the charts that people look at first.

use crate::measure::tally::Kind;
use crate::report::curves::{self, Mark};
use crate::report::figures::{bytes, count, latency};
use crate::report::page::{Page, Section, Table, Verdict};
use crate::report::{LatencyReport, Numbers, PhaseReport, Report};

impl Report {
    /// The page.
    pub(crate) fn page(&self) -> Page {
        let settings = &self.settings;
        let mut subtitle = format!("{} on {}", settings.workload, settings.target);
        for part in [settings.mode, settings.config].into_iter().flatten() {
            subtitle.push_str(&format!(", {part}"));
        }
        let value_bytes = settings.workload.mean_value_bytes();
        subtitle.push_str(&format!(
            "; {} records of {} on average, {} in flight over {} connections and {} threads",
            count(settings.records),
            bytes(value_bytes as u64),
            count(settings.clients.into()),
            settings.connections,
            settings.threads
        ));
        let verdict = match (self.ok, self.partial, self.kept_every_promise()) {
            (true, ..) => Verdict::Good(self.verdict()),
            (false, true, true) => Verdict::Partial(self.verdict()),
            _ => Verdict::Bad(self.verdict()),
        };
        let mut sections = Vec::new();
        if !self.warnings.is_empty() {
            sections.push(Section::text("What makes these numbers doubtful", &self.warnings.join("\n")));
        }
        if let Some(run) = &self.run {
            self.tell_run(run, &mut sections);
        }
        if let Some(load) = &self.load {
            sections.push(Section::table("Loading", None, latencies(&load.numbers)));
            if load.timeline.len() > 1 {
                sections.push(Section::chart(
                    "Throughput while loading",
                    None,
                    curves::throughput(&load.timeline, Vec::new()),
                ));
            }
        }
        sections.push(Section::table("Settings", None, self.settings_table()));
        Page {
            title: format!("terrane-loadgen {}", self.command),
            subtitle,
            verdict,
            facts: self.machine.facts(),
            command: self.machine.command.clone(),
            sections,
        }
    }

    fn tell_run(&self, run: &PhaseReport, sections: &mut Vec<Section>) {
        let seconds = &run.timeline;
        let marks = || -> Vec<Mark> {
            let kill = |outage: &crate::report::OutageReport| {
                (outage.at_seconds, format!("node {} killed", outage.node))
            };
            let mut marks = if run.steps.len() > 1 { curves::steps(seconds) } else { Vec::new() };
            marks.extend(self.outages.iter().map(kill));
            marks
        };
        sections.push(Section::chart(
            "Throughput",
            Some("Successful operations a second, and failed ones."),
            curves::throughput(seconds, marks()),
        ));
        sections.push(Section::chart(
            "Latency over time",
            Some("Of each second. In open steps from when an operation was due, not from when it was sent."),
            curves::latency_over_time(seconds, marks()),
        ));
        let (reads, writes) = (run.latencies.merged(false), run.latencies.merged(true));
        sections.push(Section::chart(
            "Latency by percentile",
            Some("Of the whole timed phase, warm-up left out."),
            curves::percentiles(&[("reads", &reads), ("writes", &writes)]),
        ));
        sections.push(Section::table("Latencies", None, latencies(&run.numbers)));
        if run.steps.len() > 1 {
            sections.push(Section::table("Steps", None, steps(run)));
        }
        if seconds.iter().any(|second| second.write_amplification().is_some()) {
            sections.push(Section::chart(
                "Write amplification",
                Some("Bytes written to the device per byte of keys and values that users wrote."),
                curves::write_amplification(seconds, marks()),
            ));
        }
        sections.push(Section::chart("Processors in use", None, curves::cpu(seconds, marks())));
        if seconds.iter().any(|second| second.resident_bytes.is_some()) {
            sections.push(Section::chart("Resident memory", None, curves::memory(seconds, marks())));
        }
        sections.push(Section::table("What it cost", None, self.costs(run)));
    }

    fn costs(&self, run: &PhaseReport) -> Table {
        let mut rows = Vec::new();
        let mut row = |name: &str, value: Option<String>| {
            rows.extend(value.map(|value| vec![name.to_owned(), value]));
        };
        let servers = run.servers.as_ref();
        row(
            "CPU seconds per million operations",
            servers.and_then(|servers| Some(format!("{:.1}", servers.cpu_seconds_per_million_ops?))),
        );
        row(
            "Write amplification, the store's own count (mean, max over nodes)",
            servers
                .and_then(|servers| servers.device_bytes_per_user_byte)
                .map(|ratio| format!("{:.3}, {:.3}", ratio.mean, ratio.max)),
        );
        row(
            "Write amplification, the kernel's count (mean, max over nodes)",
            servers
                .and_then(|servers| servers.proc_bytes_per_user_byte)
                .map(|ratio| format!("{:.3}, {:.3}", ratio.mean, ratio.max)),
        );
        row("Space amplification", self.space_amplification.map(|space| format!("{space:.2}")));
        row("Resident memory, most", servers.and_then(|servers| servers.resident_bytes()).map(bytes));
        row(
            "Share of the device",
            self.device.as_ref().map(|device| format!("{:.0} % ({})", device.share * 100.0, device.cell)),
        );
        row("Operations due and never sent", (run.numbers.unsent > 0).then(|| count(run.numbers.unsent)));
        for outage in &self.outages {
            let silence = outage.mean_ms.zip(outage.max_ms);
            row(
                &format!("Without a leader after node {} was killed", outage.node),
                silence.map(|(mean, max)| format!("{mean:.0} ms mean, {max:.0} ms max")),
            );
        }
        Table { header: vec!["".into(), "".into()], rows }
    }

    fn settings_table(&self) -> Table {
        let settings = &self.settings;
        let mut rows = vec![
            vec!["Seed".to_owned(), settings.seed.to_string()],
            vec!["Pace".to_owned(), settings.profile.join(", ")],
            vec!["Warm-up".to_owned(), format!("{} s", settings.warmup_seconds)],
        ];
        let pairs = settings.target_settings.iter();
        rows.extend(pairs.map(|(name, value)| vec![name.clone(), value.clone()]));
        Table { header: vec!["Setting".into(), "Value".into()], rows }
    }
}

fn us(us: f64) -> String {
    latency(std::time::Duration::from_nanos((us * 1e3) as u64))
}

fn latencies(numbers: &Numbers) -> Table {
    let header = ["", "operations", "mean", "p50", "p99", "p99.9", "max"].map(str::to_owned).to_vec();
    let rows = Kind::ALL
        .into_iter()
        .filter_map(|kind| {
            let LatencyReport { count: operations, mean_us, p50_us, p99_us, p999_us, max_us } =
                *numbers.of(kind)?;
            let mut row = vec![kind.words().to_owned(), count(operations)];
            row.extend([mean_us, p50_us, p99_us, p999_us, max_us].map(us));
            Some(row)
        })
        .collect();
    Table { header, rows }
}

fn steps(run: &PhaseReport) -> Table {
    let header = ["step", "offered/s", "done/s", "never sent"].map(str::to_owned).to_vec();
    let row = |step: &crate::report::StepReport| {
        vec![
            step.name.clone(),
            step.offered_per_second.map_or("max".to_owned(), |rate| count(rate.round() as u64)),
            count(step.numbers.ops_per_second.round() as u64),
            count(step.numbers.unsent),
        ]
    };
    Table { header, rows: run.steps.iter().map(row).collect() }
}
