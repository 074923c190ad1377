//! The traces of what the shards' media were asked to do, one file a shard.
//!
//! They are for the bench that replays them on a model of an ordinary drive (`cargo bench -p terrane-ocssd --bench ftl`).
//! A trace holds the writes, resets and finishes of one crew, from the opening of the store to its end. Laying the device
//! out is no part of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use terrane_ocssd::DeviceMedia;
use terrane_ocssd::trace::{Recorder, Recording};

/// A shard's medium, recorded or not.
pub(super) type ShardMedia = Recorder<DeviceMedia, File>;

/// The files, until their shards take them.
#[derive(Debug)]
pub(super) struct Traces {
    files: Vec<Mutex<Option<(PathBuf, File)>>>,
}

impl Traces {
    /// Begins `base`.0, `base`.1 and so on, empty: what cannot be written is told before anything is measured.
    pub(super) fn begin(base: &Path, shards: u32) -> anyhow::Result<Traces> {
        let begin = |shard| {
            let mut path = base.as_os_str().to_owned();
            path.push(format!(".{shard}"));
            let path = PathBuf::from(path);
            let file = File::create(&path)
                .with_context(|| format!("--trace {}: it cannot be written", path.display()))?;
            Ok(Mutex::new(Some((path, file))))
        };
        Ok(Traces { files: (0..shards).map(begin).collect::<anyhow::Result<_>>()? })
    }

    /// Records a shard's medium from now on.
    pub(super) fn record(&self, shard: u32, media: DeviceMedia) -> anyhow::Result<(ShardMedia, ShardTrace)> {
        let file = self.files[shard as usize].lock().unwrap_or_else(PoisonError::into_inner).take();
        let (path, file) =
            file.with_context(|| format!("shard {shard} was recorded before: a trace has one crew"))?;
        let (media, recording) = Recorder::new(media, file).with_context(|| broke(&path))?;
        Ok((media, ShardTrace { path, recording }))
    }
}

/// A trace that is being recorded.
pub(super) struct ShardTrace {
    path: PathBuf,
    recording: Recording<File>,
}

impl ShardTrace {
    /// Ends it.
    ///
    /// # Errors
    /// If the file does not hold all of it: the load went on, but the disk is full, say.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.recording.end().map(drop).with_context(|| broke(&self.path))
    }
}

fn broke(path: &Path) -> String {
    format!("--trace {}: what was recorded is incomplete", path.display())
}
