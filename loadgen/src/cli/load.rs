//! What load to send: the same for every command that sends some.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::load::plan::{self, Bound, Outline, Pace, Plan};
use crate::load::runner::Shape;
use crate::report::figures;
use crate::workload::names::Order;
use crate::workload::record::VALUE_BYTES_MIN;
use crate::workload::spec::{Distribution, Law, SizeLaw, Spec, VALUE_BYTES_MAX};

/// What load to send.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadArgs {
    /// The workload: YCSB a, b, c, d, e or f, w (updates only), or a TOML file that defines one.
    #[arg(long, default_value = "a", value_name = "NAME|FILE", value_parser = Spec::named_or_file, help_heading = "Workload")]
    pub(crate) workload: Spec,

    /// How many records are loaded and used.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1 << 40), value_name = "N", help_heading = "Workload")]
    pub(crate) records: u64,

    /// Bytes of each value, at least 32 (a value describes itself): 1024, 4KiB, 64..4096 (uniform) or zipf:64..4096
    /// (small ones popular); by default as the workload says, 1024.
    #[arg(long, value_name = "BYTES", value_parser = size_law, help_heading = "Workload")]
    pub(crate) value_size: Option<SizeLaw>,

    /// Bytes of each key, 8 to 256; by default as the workload says, 24.
    #[arg(long, value_name = "BYTES", value_parser = RangedU64ValueParser::<usize>::new().range(8..=256), help_heading = "Workload")]
    pub(crate) key_size: Option<usize>,

    /// By which law records are picked; by default as the workload says.
    #[arg(long, value_enum, value_name = "LAW", help_heading = "Workload")]
    pub(crate) distribution: Option<Law>,

    /// Does not scatter the popular records over the key space (zipfian, hotspot).
    #[arg(long, help_heading = "Workload")]
    pub(crate) unscrambled: bool,

    /// The order of keys: hashed (as YCSB's) or ordered (ascending with the records' numbers).
    #[arg(long, value_name = "hashed|ordered", value_parser = key_order, help_heading = "Workload")]
    pub(crate) key_order: Option<Order>,

    /// Exponent of Zipf's law over the records: 0 is uniform, YCSB's is 0.99.
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = "Workload")]
    pub(crate) theta: Option<f64>,

    /// Percent of each value that compresses away.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100), help_heading = "Workload")]
    pub(crate) compressible: Option<u32>,

    /// Values vanish after this many seconds (of targets that can do this).
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workload")]
    pub(crate) ttl: Option<u32>,

    /// Seed of the operations' order; equal seeds ask for the same.
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Workload")]
    pub(crate) seed: u64,

    /// Operations in flight: workers that each send an operation when their last one was answered. [default: 32]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N", conflicts_with = "pipeline", help_heading = "Load")]
    pub(crate) clients: Option<u32>,

    /// Connections that the workers share; each is a client library of its own with its own sockets. [default: one a
    /// thread]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N", help_heading = "Load")]
    pub(crate) connections: Option<u32>,

    /// Operations in flight on each connection, instead of --clients in all.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N", help_heading = "Load")]
    pub(crate) pipeline: Option<u32>,

    /// Threads that the workers are spread over. Embedded peers, whose calls block, get one for each worker instead;
    /// the embedded engine has a shard on each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N", help_heading = "Load")]
    pub(crate) threads: u32,

    /// Pins the threads, in turn, to these CPUs: 0,1 or 0-3.
    #[arg(long, value_name = "CPUS", value_parser = cpus, help_heading = "Load")]
    pub(crate) pin: Option<CpuList>,

    /// How long the timed phase lasts.
    #[arg(long, default_value_t = 30.0, value_parser = window, value_name = "S", help_heading = "Load")]
    pub(crate) seconds: f64,

    /// Open loop: begins this many operations a second, however slow the answers; latency counts from when each was due.
    #[arg(long, value_name = "RATE", value_parser = plan::parse_rate, help_heading = "Load")]
    pub(crate) rate: Option<f64>,

    /// Steps one after another, each [WORKLOAD:]PACE@SECONDS, separated by commas. PACE is max (closed loop), a rate
    /// (5000), a ramp (1000..9000) or a staircase (1000..9000/5).
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["rate", "seconds"], value_parser = profile, help_heading = "Load")]
    pub(crate) profile: Option<Profile>,

    /// Seconds of the same load before the timed phase that do not count.
    #[arg(long, default_value = "0", value_parser = seconds, value_name = "S", help_heading = "Load")]
    pub(crate) warmup: Duration,

    /// Writes all numbers to this file as JSON (stable keys; units in the names).
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub(crate) json: Option<PathBuf>,

    /// Writes a page with charts to this file; it needs no network to be looked at.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub(crate) html: Option<PathBuf>,

    /// Writes what happened in each second of the timed phase to this file.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub(crate) csv: Option<PathBuf>,

    /// Writes the latencies of each second of the timed phase as an HdrHistogram log.
    #[arg(long, value_name = "FILE", help_heading = "Reports")]
    pub(crate) hlog: Option<PathBuf>,
}

/// CPUs to pin threads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuList(pub(crate) Vec<usize>);

/// The steps of a timed phase.
#[derive(Debug, Clone)]
pub(crate) struct Profile(Vec<Outline>);

impl LoadArgs {
    /// The workload, with what the command line says otherwise.
    pub(crate) fn spec(&self) -> anyhow::Result<Spec> {
        let mut spec = self.workload.clone();
        if let Some(law) = &self.value_size {
            spec.values.size = *law;
        }
        if let Some(bytes) = self.key_size {
            spec.keys.bytes = bytes;
        }
        if let Some(order) = self.key_order {
            spec.keys.order = order;
        }
        if let Some(law) = self.distribution {
            spec.set_distribution(law);
        }
        if self.unscrambled {
            match &mut spec.keys.distribution {
                Distribution::Zipfian { scrambled, .. } | Distribution::Hotspot { scrambled, .. } => {
                    *scrambled = false;
                }
                other => bail!("--unscrambled: {} keys are not scrambled anyway", other.law()),
            }
        }
        if let Some(theta) = self.theta {
            spec.set_theta(theta).context("--theta")?;
        }
        if let Some(percent) = self.compressible {
            spec.values.compressible = percent;
        }
        if let Some(ttl) = self.ttl {
            spec.ttl_seconds = Some(u64::from(ttl));
        }
        spec.validate()?;
        Ok(spec)
    }

    /// Workers, connections, threads.
    pub(crate) fn shape(&self) -> Shape {
        let connections = self.connections.unwrap_or(self.threads);
        let workers = match (self.clients, self.pipeline) {
            (Some(clients), _) => clients,
            (None, Some(pipeline)) => connections.saturating_mul(pipeline),
            (None, None) => 32,
        };
        let cpus = self.pin.as_ref().map_or(Vec::new(), |pin| pin.0.clone());
        Shape { threads: self.threads, connections, workers, cpus }
    }

    /// The steps of the timed phase; it ends after `operations` if that is given.
    pub(crate) fn plan(&self, operations: Option<u64>) -> Plan {
        let outlines = match &self.profile {
            Some(profile) => profile.0.clone(),
            None => {
                let pace = self.rate.map_or(Pace::Closed, |rate| Pace::Open { from: rate, to: rate });
                let bound = operations.map_or(Bound::Time(self.window()), Bound::Operations);
                vec![Outline { name: "run".into(), bound, pace, workload: None }]
            }
        };
        Plan::new(self.warmup, outlines)
    }

    /// How long the timed phase is to last, where a time bounds it.
    pub(crate) fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn profile(text: &str) -> Result<Profile, String> {
    plan::parse_profile(text).map(Profile)
}

fn size_law(text: &str) -> Result<SizeLaw, String> {
    let bytes = |text: &str| match usize::try_from(figures::size(text)?) {
        Ok(bytes) if (VALUE_BYTES_MIN..=VALUE_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("a value has {VALUE_BYTES_MIN} bytes to 64MiB")),
    };
    let (zipfian, range) = match text.strip_prefix("zipf:") {
        Some(range) => (true, range),
        None => (false, text),
    };
    match (range.split_once(".."), zipfian) {
        (Some((min, max)), true) => Ok(SizeLaw::Zipfian { min: bytes(min)?, max: bytes(max)?, theta: 0.99 }),
        (Some((min, max)), false) => Ok(SizeLaw::Uniform { min: bytes(min)?, max: bytes(max)? }),
        (None, false) => Ok(SizeLaw::Fixed { bytes: bytes(text)? }),
        (None, true) => Err("after zipf: comes MIN..MAX".to_owned()),
    }
}

fn key_order(text: &str) -> Result<Order, String> {
    match text {
        "hashed" => Ok(Order::Hashed),
        "ordered" => Ok(Order::Ordered),
        _ => Err("hashed or ordered".to_owned()),
    }
}

fn cpus(text: &str) -> Result<CpuList, String> {
    let wrong = || format!("'{text}' is no list of CPUs: write 0,1 or 0-3");
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if last < first || last > 4096 {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    Ok(CpuList(cpus))
}

fn window(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("seconds are a number from 0.1 to 1000000".to_owned()),
    }
}

/// A time in seconds, with a fraction if need be.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are a number from 0 to 86400, for example 1 or 0.5".to_owned()),
    }
}
