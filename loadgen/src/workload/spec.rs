//! A workload as data: what is asked, of which records, with values of which size. Read from TOML, checked,
//! and written into reports as it was used.
//!
//! The built-in ones are files of the same form (`loadgen/workloads/`) and go through the same parser;
//! `example.toml` there teaches every setting. Sources: B. F. Cooper et al., "Benchmarking cloud serving
//! systems with YCSB", SoCC 2010 (A to E), and the property files of YCSB's core workloads (D, E, F). `w` is
//! not YCSB's: updates only.
//!
//! Invariants: a [`Spec`] that was parsed is valid; one whose fields were changed is valid once
//! [`Spec::validate`] says so. What a spec serialises to parses back to the same spec.

use std::fmt;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::target::Ability;
use crate::workload::names::{KEY_BYTES_MAX, KEY_BYTES_MIN, Names, Order};
use crate::workload::record::VALUE_BYTES_MIN;
use crate::workload::sizes::Sizes;

/// YCSB's exponent of Zipf's law.
pub(crate) const THETA: f64 = 0.99;
/// The exponents that Zipf's law is used with.
const THETAS: RangeInclusive<f64> = 0.0..=10.0;
/// The largest value a cluster can be configured to take.
pub(crate) const VALUE_BYTES_MAX: usize = 64 << 20;
/// Rows that a scan may ask for.
const ROWS: RangeInclusive<u32> = 1..=1_000_000;
/// Records that a multi-get or a batch may have.
const GROUP: RangeInclusive<u32> = 1..=4_096;
/// Seconds that a write may live.
const TTL_SECONDS: RangeInclusive<u64> = 1..=u32::MAX as u64;
/// How far off 1 the shares may add up to: a millionth, which writing thirds as 0.333333 loses, and a hair
/// for rounding.
const MIX_SLACK: f64 = 1e-6 + 1e-12;

/// The built-in workloads: name and file.
const BUILT_IN: [(&str, &str); 7] = [
    ("a", include_str!("../../workloads/a.toml")),
    ("b", include_str!("../../workloads/b.toml")),
    ("c", include_str!("../../workloads/c.toml")),
    ("d", include_str!("../../workloads/d.toml")),
    ("e", include_str!("../../workloads/e.toml")),
    ("f", include_str!("../../workloads/f.toml")),
    ("w", include_str!("../../workloads/w.toml")),
];

/// A workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Spec {
    /// What reports call it: "a".
    pub(crate) name: String,
    /// One line for people: "YCSB A (50/50)".
    pub(crate) title: String,
    /// Seconds after which each write vanishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ttl_seconds: Option<u64>,
    /// What share of the operations is what.
    pub(crate) mix: Mix,
    /// Which records, and what they are called.
    pub(crate) keys: KeySpec,
    /// What is written.
    pub(crate) values: ValueSpec,
    /// How long scans are.
    pub(crate) scan: ScanSpec,
    /// How large multi-gets are.
    pub(crate) multi_get: GroupSpec,
    /// How large batches are.
    pub(crate) batch: GroupSpec,
}

/// Shares of the operations, each 0 to 1, all together 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mix {
    /// Reads of a record.
    pub(crate) read: f64,
    /// Overwrites of a record's whole value.
    pub(crate) update: f64,
    /// Additions of a record.
    pub(crate) insert: f64,
    /// Reads of records in key order.
    pub(crate) scan: f64,
    /// A read and then an overwrite of the same record.
    pub(crate) read_modify_write: f64,
    /// Reads of several records in one request.
    pub(crate) multi_get: f64,
    /// Overwrites of several records in one request.
    pub(crate) batch: f64,
}

impl Mix {
    /// The shares with their names, in the order of the fields.
    pub(crate) fn shares(&self) -> [(&'static str, f64); 7] {
        [
            ("read", self.read),
            ("update", self.update),
            ("insert", self.insert),
            ("scan", self.scan),
            ("read_modify_write", self.read_modify_write),
            ("multi_get", self.multi_get),
            ("batch", self.batch),
        ]
    }
}

/// Which records, and what they are called.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct KeySpec {
    /// How records are picked.
    #[serde(flatten)]
    pub(crate) distribution: Distribution,
    /// Bytes of every key.
    pub(crate) bytes: usize,
    /// Whether keys ascend with the records.
    pub(crate) order: Order,
}

/// How records are picked; see [`Keys`](crate::workload::distribution::Keys) for each law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "distribution", rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// Zipf's law with exponent `theta`, the popular records scattered or the first ones.
    Zipfian { theta: f64, scrambled: bool },
    /// Each as often as any other.
    Uniform,
    /// Zipf's law by age.
    Latest { theta: f64 },
    /// A share `operations` of the picks on a share `set` of the records, scattered or the first ones.
    Hotspot { set: f64, operations: f64, scrambled: bool },
    /// One after the other.
    Sequential,
}

/// The names of the distributions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Law {
    /// A few records very often, by Zipf's law.
    Zipfian,
    /// Each record as often as any other.
    Uniform,
    /// The newest records most often, by Zipf's law.
    Latest,
    /// Most picks on a fixed share of the records.
    Hotspot,
    /// One record after the other.
    Sequential,
}

impl Law {
    /// The distribution of this name with the usual settings.
    fn usual(self) -> Distribution {
        match self {
            Law::Zipfian => Distribution::Zipfian { theta: THETA, scrambled: true },
            Law::Uniform => Distribution::Uniform,
            Law::Latest => Distribution::Latest { theta: THETA },
            Law::Hotspot => Distribution::Hotspot { set: 0.2, operations: 0.8, scrambled: false },
            Law::Sequential => Distribution::Sequential,
        }
    }
}

impl Distribution {
    /// Its name.
    pub(crate) fn law(&self) -> Law {
        match self {
            Distribution::Zipfian { .. } => Law::Zipfian,
            Distribution::Uniform => Law::Uniform,
            Distribution::Latest { .. } => Law::Latest,
            Distribution::Hotspot { .. } => Law::Hotspot,
            Distribution::Sequential => Law::Sequential,
        }
    }

    /// The exponent of Zipf's law, where it is one.
    pub(crate) fn theta(&self) -> Option<f64> {
        match self {
            Distribution::Zipfian { theta, .. } | Distribution::Latest { theta } => Some(*theta),
            _ => None,
        }
    }
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Law::Zipfian => "zipfian",
            Law::Uniform => "uniform",
            Law::Latest => "latest",
            Law::Hotspot => "hotspot",
            Law::Sequential => "sequential",
        })
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct ValueSpec {
    /// How large values are.
    #[serde(flatten)]
    pub(crate) size: SizeLaw,
    /// Percent of a value's filler that compresses to next to nothing.
    pub(crate) compressible: u32,
}

/// How large values are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "distribution", rename_all = "lowercase")]
pub(crate) enum SizeLaw {
    /// All alike.
    Fixed { bytes: usize },
    /// Each size of the range as likely as any other.
    Uniform { min: usize, max: usize },
    /// The size min + r - 1 with a probability proportional to r^-theta.
    Zipfian { min: usize, max: usize, theta: f64 },
}

/// How long scans are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScanSpec {
    /// Rows: the most, or always so many.
    pub(crate) rows: u32,
    /// Which of the two.
    pub(crate) distribution: RowLaw,
}

impl Default for ScanSpec {
    fn default() -> Self {
        ScanSpec { rows: 100, distribution: RowLaw::Uniform }
    }
}

/// How the rows of scans vary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowLaw {
    /// From 1 to the most, evenly.
    Uniform,
    /// Not.
    Fixed,
}

/// How many records a request for several has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GroupSpec {
    /// That many, all different.
    pub(crate) records: u32,
}

impl Default for GroupSpec {
    fn default() -> Self {
        GroupSpec { records: 16 }
    }
}

impl Spec {
    /// The built-in workload of this name (in either case), or the one in this file if the text ends with
    /// `.toml`.
    pub(crate) fn named_or_file(text: &str) -> anyhow::Result<Spec> {
        let path = Path::new(text);
        if path.is_dir() && text.contains(std::path::MAIN_SEPARATOR) {
            bail!("{text} is a folder: give the path of a TOML file");
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
            let toml = fs::read_to_string(path)
                .map_err(|error| anyhow!("cannot read the workload file {text}: {error}"))?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            return Spec::parse(&toml, &stem).map_err(|error| anyhow!("workload file {text}: {error:#}"));
        }
        let lower = text.to_ascii_lowercase();
        match BUILT_IN.iter().find(|(name, _)| *name == lower) {
            Some((name, toml)) => Spec::parse(toml, name),
            None => bail!(
                "unknown workload '{text}': the built-in ones are {}; or give the path of a TOML file, like \
                 my.toml",
                BUILT_IN.map(|(name, _)| name).join(", ")
            ),
        }
    }

    /// The built-in workloads, in the order of their names.
    #[cfg(test)]
    pub(crate) fn built_in() -> anyhow::Result<Vec<Spec>> {
        BUILT_IN.iter().map(|(name, toml)| Spec::parse(toml, name)).collect()
    }

    /// The workload that this TOML text describes, called `default_name` unless it names itself.
    pub(crate) fn parse(toml: &str, default_name: &str) -> anyhow::Result<Spec> {
        let file: File = toml::from_str(toml).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
        let spec = file.resolve(default_name)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Says which field is impossible, and what is possible. What was parsed is valid; this is for changed
    /// fields.
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        ensure!(!self.name.trim().is_empty(), "name: a workload needs a name");
        if let Some(seconds) = self.ttl_seconds {
            within("ttl_seconds", seconds, TTL_SECONDS)?;
        }
        for (name, share) in self.mix.shares() {
            within(&format!("mix.{name}"), share, 0.0..=1.0)?;
        }
        let sum: f64 = self.mix.shares().iter().map(|(_, share)| share).sum();
        // Rounded to what the slack is about: 1.2, not 1.2000000000000002.
        let shown = (sum * 1e7).round() / 1e7;
        ensure!((sum - 1.0).abs() <= MIX_SLACK, "impossible mix: the shares add up to {shown}, not 1");

        within("keys.bytes", self.keys.bytes, KEY_BYTES_MIN..=KEY_BYTES_MAX)?;
        if let Some(theta) = self.keys.distribution.theta() {
            within("keys.theta", theta, THETAS)?;
        }
        if let Distribution::Hotspot { set, operations, .. } = self.keys.distribution {
            ensure!(
                set > 0.0 && set <= 1.0,
                "keys.set: {set} is out of range; a number above 0, up to 1 is allowed"
            );
            within("keys.operations", operations, 0.0..=1.0)?;
        }

        let sizes = VALUE_BYTES_MIN..=VALUE_BYTES_MAX;
        match self.values.size {
            SizeLaw::Fixed { bytes } => within("values.bytes", bytes, sizes)?,
            SizeLaw::Uniform { min, max } | SizeLaw::Zipfian { min, max, .. } => {
                within("values.min", min, sizes.clone())?;
                within("values.max", max, sizes)?;
                ensure!(min <= max, "values.min: {min} is more than values.max, {max}; it must not be");
            }
        }
        if let SizeLaw::Zipfian { theta, .. } = self.values.size {
            within("values.theta", theta, THETAS)?;
        }
        within("values.compressible", self.values.compressible, 0..=100)?;
        within("scan.rows", self.scan.rows, ROWS)?;
        within("multi_get.records", self.multi_get.records, GROUP)?;
        within("batch.records", self.batch.records, GROUP)
    }

    /// What a target must be able to do beyond reading and writing single records.
    pub(crate) fn needs(&self) -> Vec<Ability> {
        [
            (self.mix.scan > 0.0, Ability::Scan),
            (self.mix.multi_get > 0.0, Ability::MultiGet),
            (self.mix.batch > 0.0, Ability::Batch),
            (self.ttl_seconds.is_some(), Ability::Ttl),
        ]
        .into_iter()
        .filter_map(|(needed, ability)| needed.then_some(ability))
        .collect()
    }

    /// The share of operations that write, 0 to 1.
    pub(crate) fn update_share(&self) -> f64 {
        self.mix.update + self.mix.insert + self.mix.read_modify_write + self.mix.batch
    }

    /// Values written per operation, on average: a batch writes several.
    pub(crate) fn values_per_operation(&self) -> f64 {
        self.update_share() + self.mix.batch * f64::from(self.batch.records - 1)
    }

    /// The mean size of a value, in bytes.
    pub(crate) fn mean_value_bytes(&self) -> f64 {
        Sizes::new(&self.values.size).mean()
    }

    /// The largest size of a value, in bytes.
    #[cfg(test)]
    pub(crate) fn max_value_bytes(&self) -> usize {
        match self.values.size {
            SizeLaw::Fixed { bytes } => bytes,
            SizeLaw::Uniform { max, .. } | SizeLaw::Zipfian { max, .. } => max,
        }
    }

    /// How records are named.
    pub(crate) fn names(&self) -> Names {
        Names::new(self.keys.bytes, self.keys.order)
    }

    /// How long each write lives, if not for good.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.ttl_seconds.map(Duration::from_secs)
    }

    /// Picks records by another law, with its usual settings; an exponent stays where both laws have one.
    pub(crate) fn set_distribution(&mut self, law: Law) {
        let old = self.keys.distribution;
        if old.law() == law {
            return;
        }
        self.keys.distribution = law.usual();
        if let (Distribution::Zipfian { theta, .. } | Distribution::Latest { theta }, Some(old)) =
            (&mut self.keys.distribution, old.theta())
        {
            *theta = old;
        }
    }

    /// Sets the exponent of the law by which records are picked; refused if that has none.
    pub(crate) fn set_theta(&mut self, new: f64) -> anyhow::Result<()> {
        match &mut self.keys.distribution {
            Distribution::Zipfian { theta, .. } | Distribution::Latest { theta } => *theta = new,
            other => bail!(
                "theta: the keys of this workload are {}, which has no exponent; zipfian and latest have",
                other.law()
            ),
        }
        self.validate()
    }

    /// Makes all values this large.
    #[cfg(test)]
    pub(crate) fn set_value_bytes(&mut self, bytes: usize) -> anyhow::Result<()> {
        self.values.size = SizeLaw::Fixed { bytes };
        self.validate()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)
    }
}

/// Fails unless a field's value lies in a range; refuses what is no number at all.
fn within<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> anyhow::Result<()> {
    let (first, last) = (range.start(), range.end());
    ensure!(range.contains(&value), "{field}: {value} is out of range; {first} to {last} is allowed");
    Ok(())
}

/// A workload as the file says it, before the defaults are in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    title: Option<String>,
    ttl_seconds: Option<u64>,
    mix: Mix,
    #[serde(default)]
    keys: KeysTable,
    #[serde(default)]
    values: ValuesTable,
    #[serde(default)]
    scan: ScanSpec,
    #[serde(default)]
    multi_get: GroupSpec,
    #[serde(default)]
    batch: GroupSpec,
}

/// The table `[keys]`: the settings of all laws.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeysTable {
    distribution: Option<Law>,
    theta: Option<f64>,
    scrambled: Option<bool>,
    set: Option<f64>,
    operations: Option<f64>,
    bytes: Option<usize>,
    order: Option<Order>,
}

/// The table `[values]`: the settings of all laws.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ValuesTable {
    distribution: Option<SizeLawName>,
    bytes: Option<usize>,
    min: Option<usize>,
    max: Option<usize>,
    theta: Option<f64>,
    compressible: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SizeLawName {
    Fixed,
    Uniform,
    Zipfian,
}

impl File {
    fn resolve(self, default_name: &str) -> anyhow::Result<Spec> {
        let name = self.name.unwrap_or_else(|| default_name.to_owned());
        Ok(Spec {
            title: self.title.unwrap_or_else(|| name.clone()),
            name,
            ttl_seconds: self.ttl_seconds,
            mix: self.mix,
            keys: KeySpec {
                bytes: self.keys.bytes.unwrap_or(Names::default().bytes()),
                order: self.keys.order.unwrap_or(Order::Hashed),
                distribution: self.keys.distribution()?,
            },
            values: ValueSpec { size: self.values.size()?, compressible: self.values.compressible },
            scan: self.scan,
            multi_get: self.multi_get,
            batch: self.batch,
        })
    }
}

impl KeysTable {
    /// The law with its settings; one that it does not have is refused.
    fn distribution(&self) -> anyhow::Result<Distribution> {
        let law = self.distribution.unwrap_or(Law::Zipfian);
        let (mut theta, mut scrambled) = (self.theta, self.scrambled);
        let (mut set, mut operations) = (self.set, self.operations);
        let distribution = match law.usual() {
            Distribution::Zipfian { theta: t, scrambled: s } => Distribution::Zipfian {
                theta: theta.take().unwrap_or(t),
                scrambled: scrambled.take().unwrap_or(s),
            },
            Distribution::Latest { theta: t } => Distribution::Latest { theta: theta.take().unwrap_or(t) },
            Distribution::Hotspot { set: hot, operations: share, scrambled: s } => Distribution::Hotspot {
                set: set.take().unwrap_or(hot),
                operations: operations.take().unwrap_or(share),
                scrambled: scrambled.take().unwrap_or(s),
            },
            other @ (Distribution::Uniform | Distribution::Sequential) => other,
        };
        for (left, field, owners) in [
            (theta.is_some(), "theta", "zipfian and latest"),
            (scrambled.is_some(), "scrambled", "zipfian and hotspot"),
            (set.is_some(), "set", "hotspot"),
            (operations.is_some(), "operations", "hotspot"),
        ] {
            ensure!(
                !left,
                "keys.{field}: means nothing with distribution = \"{law}\"; it belongs to {owners}"
            );
        }
        Ok(distribution)
    }
}

impl ValuesTable {
    /// The law with its settings; one that it does not have is refused.
    fn size(&self) -> anyhow::Result<SizeLaw> {
        let ranged = self.min.is_some() || self.max.is_some();
        let law = self.distribution.unwrap_or(if ranged { SizeLawName::Uniform } else { SizeLawName::Fixed });
        if law == SizeLawName::Fixed {
            ensure!(
                !ranged,
                "values.min and values.max: mean nothing with distribution = \"fixed\"; use values.bytes"
            );
        } else {
            ensure!(
                self.bytes.is_none(),
                "values.bytes: is for values of one size; use either bytes, or min and max"
            );
        }
        ensure!(
            law == SizeLawName::Zipfian || self.theta.is_none(),
            "values.theta: belongs to distribution = \"zipfian\" only"
        );
        let min = || self.min.context("values.min: is needed where values.max is, or a range's distribution");
        let max = || self.max.context("values.max: is needed where values.min is, or a range's distribution");
        Ok(match law {
            SizeLawName::Fixed => SizeLaw::Fixed { bytes: self.bytes.unwrap_or(1_024) },
            SizeLawName::Uniform => SizeLaw::Uniform { min: min()?, max: max()? },
            SizeLawName::Zipfian => {
                SizeLaw::Zipfian { min: min()?, max: max()?, theta: self.theta.unwrap_or(THETA) }
            }
        })
    }
}

#[cfg(test)]
mod tests;
