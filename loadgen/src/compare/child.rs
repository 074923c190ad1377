//! One measurement: `run` in a process of its own, and what its JSON says.

use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use serde_json::Value;

use crate::compare::table::Sample;
use crate::interrupt::{Interrupt, Interrupted};

/// What a measurement came to.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) sample: Sample,
    /// The target's effective settings.
    pub(crate) settings: Vec<(String, String)>,
    /// Why the sample stands for nothing: the run ended early, or promises were broken.
    pub(crate) failure: Option<String>,
    /// What makes the sample doubtful: what the run warned of, and operations that failed.
    pub(crate) warnings: Vec<String>,
}

/// Runs `terrane-loadgen run` with these arguments, its report going to `json`. An interrupt is passed on, and the
/// process waited for: whatever it started is stopped by itself. It runs in a process group of its own, so that a Ctrl-C
/// on the terminal reaches it only through us, once; if this process is killed outright, the kernel tells it to end.
/// Must be called on the main thread: the kernel goes by the *thread* that started it.
pub(crate) async fn measure(args: &[String], json: &Path, interrupt: &Interrupt) -> anyhow::Result<Measured> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = tokio::process::Command::new(program);
    command.arg("run").args(args).arg("--json").arg(json);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            // Had the parent died before the line above, nothing would end this process.
            if getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let child = command.spawn().context("cannot start a measurement")?;
    let pid = child.id();
    let mut ended = std::pin::pin!(child.wait_with_output());
    let output = tokio::select! {
        output = &mut ended => output,
        () = interrupt.raised() => {
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                // Gone already: then it is waited for just the same.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = ended.await;
            bail!(Interrupted);
        }
    };
    let output = output.context("cannot wait for a measurement")?;
    let text = std::fs::read_to_string(json).unwrap_or_default();
    match serde_json::from_str::<Value>(&text) {
        Ok(report) => Ok(read(&report)),
        Err(_) => bail!("{}", last_words(&output)),
    }
}

/// The last line that a process wrote to its standard error.
fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("it said nothing").trim_start_matches("terrane-loadgen: ");
    format!("{line} ({})", output.status)
}

/// What a report says.
fn read(report: &Value) -> Measured {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let resident = report.pointer("/run/servers/nodes").and_then(Value::as_object).and_then(|nodes| {
        nodes.values().map(|node| node["resident_max_bytes"].as_f64()).sum::<Option<f64>>()
    });
    let sample = Sample {
        load_ops_s: number("/load/ops_per_second"),
        mixed_ops_s: number("/run/ops_per_second"),
        read_p99_us: number("/run/reads/p99_us"),
        write_p99_us: number("/run/updates/p99_us"),
        cpu_s_per_mops: number("/run/servers/cpu_seconds_per_million_ops"),
        wa: number("/run/servers/proc_bytes_per_user_byte/mean"),
        wa_own: number("/run/servers/device_bytes_per_user_byte/mean"),
        load_wa: number("/load/servers/proc_bytes_per_user_byte/mean"),
        sa: number("/space_amplification"),
        rss_bytes: resident,
    };
    let settings = report.pointer("/settings/target_settings").and_then(Value::as_object);
    let settings = settings
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    let failed: u64 = ["load", "run"]
        .iter()
        .filter_map(|phase| report[phase]["failures"].as_object())
        .flat_map(|kinds| kinds.values().filter_map(|kind| kind["count"].as_u64()))
        .sum();
    let broken = ["load", "run"]
        .iter()
        .any(|phase| report[phase]["broken_promises"].as_object().is_some_and(|kinds| !kinds.is_empty()));
    let failure = match report["ended_early"].as_str() {
        Some(why) => Some(format!("ended early: {why}")),
        None => broken.then(|| "values were lost or damaged".to_owned()),
    };
    let warned = report["warnings"].as_array().into_iter().flatten();
    let mut warnings: Vec<String> = warned.filter_map(Value::as_str).map(str::to_owned).collect();
    if failed > 0 {
        warnings.push(format!("{failed} operations failed"));
    }
    Measured { sample, settings: settings.collect(), failure, warnings }
}

/// The arguments of a measurement, put together.
#[derive(Debug, Default)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// Adds an option with its value.
    pub(crate) fn option(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        self.0.extend([format!("--{name}"), value.to_string()]);
        self
    }

    /// Adds an option whose value is a path.
    pub(crate) fn path(&mut self, name: &str, path: &Path) -> &mut Self {
        self.option(name, path.display())
    }

    /// Adds an option with several values.
    pub(crate) fn list(&mut self, name: &str, values: &[String]) -> &mut Self {
        if values.is_empty() { self } else { self.option(name, values.join(",")) }
    }

    /// All of them.
    pub(crate) fn list_all(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The report that the golden test of `run`'s JSON holds still: what is read from it is what is written to it.
    #[test]
    fn every_figure_is_found_in_a_real_report() {
        let report: Value = serde_json::from_str(include_str!("../../tests/golden/report.json")).unwrap();
        let measured = read(&report);
        let Sample {
            mixed_ops_s, read_p99_us, write_p99_us, cpu_s_per_mops, wa, wa_own, sa, rss_bytes, ..
        } = measured.sample;
        assert_eq!(mixed_ops_s, Some(50.0));
        assert!(read_p99_us.is_some() && write_p99_us.is_some());
        assert_eq!(cpu_s_per_mops, Some(40.0));
        assert_eq!((wa, wa_own), (Some(1.3), Some(1.15)));
        assert!(sa.is_some());
        assert_eq!(rss_bytes, Some(2.0 * f64::from(50 << 20)), "of both nodes");
        assert_eq!((measured.failure, measured.warnings), (None, vec!["1 operations failed".to_owned()]));
    }

    #[test]
    fn what_a_run_warns_of_is_passed_on() {
        let measured = read(&serde_json::json!({"warnings": ["the clock jumped"], "ended_early": null}));
        assert_eq!((measured.failure, measured.warnings), (None, vec!["the clock jumped".to_owned()]));
        let broken = serde_json::json!({"run": {"broken_promises": {"lost": 1}}});
        assert_eq!(read(&broken).failure.as_deref(), Some("values were lost or damaged"));
    }

    #[test]
    fn a_report_of_nothing_has_no_figures() {
        let measured = read(&serde_json::json!({"ended_early": "the target's space is used up"}));
        assert_eq!(measured.sample, Sample::default());
        assert_eq!(measured.failure.as_deref(), Some("ended early: the target's space is used up"));
    }
}
