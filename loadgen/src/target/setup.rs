//! How an embedded store is set up: one structure for Terrane's engine and its peers, so that what is compared gets the
//! same folder, cache, durability and compressibility, and what differs is written down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;

use crate::report::figures;

/// What an embedded store is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Where it lives; exists, and belongs to it alone.
    pub(crate) folder: PathBuf,
    /// Every acknowledged write survives power loss; otherwise it survives the process only.
    pub(crate) durable: bool,
    /// Values are compressible, and the store compresses as it usually does; otherwise it does not try.
    pub(crate) compressed: bool,
    /// Bytes of memory that it may cache values or blocks in.
    pub(crate) cache_bytes: u64,
    /// Bytes of media that a store which lays its device out is given.
    pub(crate) capacity_bytes: u64,
    /// Threads that call it at once.
    pub(crate) threads: u32,
    /// Settings that someone asked to be otherwise.
    pub(crate) overrides: Overrides,
    /// Where what the store asks of its media is recorded; of the embedded engine only.
    pub(crate) trace: Option<PathBuf>,
}

/// Settings by name, each taken by the store that knows it; what nobody took is a mistake.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    values: BTreeMap<String, String>,
}

impl Overrides {
    /// These settings.
    pub(crate) fn new(settings: impl IntoIterator<Item = (String, String)>) -> Self {
        Overrides { values: settings.into_iter().collect() }
    }

    /// Takes a size in bytes (`64MiB`), or `default` where it was not set.
    pub(crate) fn size(&mut self, name: &str, default: u64) -> anyhow::Result<u64> {
        self.take(name, default, figures::size)
    }

    /// Takes anything that can be parsed, or `default` where it was not set.
    pub(crate) fn parsed<T: std::str::FromStr>(&mut self, name: &str, default: T) -> anyhow::Result<T>
    where
        T::Err: std::fmt::Display,
    {
        self.take(name, default, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    fn take<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let Some(text) = self.values.remove(name) else { return Ok(default) };
        parse(&text).map_err(|error| anyhow::anyhow!("--set {name}={text}: {error}"))
    }

    /// Fails if a setting is left that nobody took; `known` are the names that could have been.
    pub(crate) fn finish(self, known: &[&str]) -> anyhow::Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => bail!("--set {name}: unknown here; this target knows {}", known.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(pairs: &[(&str, &str)]) -> Overrides {
        Overrides::new(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())))
    }

    #[test]
    fn settings_are_taken_by_name_and_the_rest_is_a_mistake() {
        let mut given = overrides(&[("memtable", "64MiB"), ("jobs", "3"), ("typo", "1")]);
        assert_eq!(given.size("memtable", 1).unwrap(), 64 << 20);
        assert_eq!(given.parsed("jobs", 2u32).unwrap(), 3);
        assert_eq!(given.parsed("absent", 7u32).unwrap(), 7);
        let error = given.finish(&["memtable", "jobs"]).unwrap_err().to_string();
        assert_eq!(error, "--set typo: unknown here; this target knows memtable, jobs");
        let error = overrides(&[("jobs", "many")]).parsed("jobs", 2u32).unwrap_err().to_string();
        assert!(error.starts_with("--set jobs=many: "), "{error}");
    }
}
