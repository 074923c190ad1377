//! The traces of what the shards' media were asked to do, one file a shard.
//!
//! They are for the bench that replays them on a model of an ordinary drive (`cargo bench -p terrane-ocssd --bench ftl`).
//! A trace holds the writes, resets and finishes of one crew, from the opening of the store to its end. Laying the device
//! out is no part of it. While it is recorded it is called `FILE.N.unfinished`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};
use terrane_ocssd::DeviceMedia;
use terrane_ocssd::trace::{Recorder, Recording};

use crate::output::{self, Growing, Leftover};

/// A shard's medium, recorded or not.
pub(super) type ShardMedia = Recorder<DeviceMedia, Growing>;

/// Where the shards' media are recorded.
#[derive(Debug)]
pub(super) struct Traces {
    base: PathBuf,
    /// Shards that were recorded.
    begun: Mutex<BTreeSet<u32>>,
}

impl Traces {
    /// `base`.0, `base`.1 and so on. That one of them cannot be written is told before anything is laid out or measured.
    pub(super) fn new(base: &Path, shards: u32) -> anyhow::Result<Traces> {
        let traces = Traces { base: base.to_owned(), begun: Mutex::default() };
        (0..shards).try_for_each(|shard| output::check("--trace", &traces.path(shard)))?;
        Ok(traces)
    }

    fn path(&self, shard: u32) -> PathBuf {
        let mut path = self.base.as_os_str().to_owned();
        path.push(format!(".{shard}"));
        PathBuf::from(path)
    }

    /// Records a shard's medium from now on.
    pub(super) fn record(&self, shard: u32, media: DeviceMedia) -> anyhow::Result<(ShardMedia, ShardTrace)> {
        let new = self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(shard);
        ensure!(new, "shard {shard} was recorded before: a trace has one crew");
        let path = self.path(shard);
        let file = Growing::begin(&path, Leftover::Replaced)
            .with_context(|| output::cannot_be_written("--trace", &path))?;
        let (media, recording) = Recorder::new(media, file).with_context(|| broke(&path))?;
        Ok((media, ShardTrace { path, recording }))
    }

    /// Removes what is unfinished. What cannot be removed stays so.
    pub(super) fn discard(&self) {
        for shard in &*self.begun.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = std::fs::remove_file(output::unfinished(&self.path(*shard)));
        }
    }
}

/// A trace that is being recorded.
pub(super) struct ShardTrace {
    path: PathBuf,
    recording: Recording<Growing>,
}

impl ShardTrace {
    /// Ends it; its file gets its name.
    ///
    /// # Errors
    /// If the file does not hold all of it: the load went on, but the disk is full, say. Then it stays unfinished.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.recording.end().and_then(|mut file| file.finish()).with_context(|| broke(&self.path))
    }
}

fn broke(path: &Path) -> String {
    format!("--trace {}: what was recorded is incomplete", path.display())
}
