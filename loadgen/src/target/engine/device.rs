//! The one file that the shards' slices lie in: laid out at its first use, opened ever after.
//!
//! Invariant: the file has its name only once it is laid out to its end, every slice with an empty store in it. What
//! was interrupted is removed, or laid out anew where it could not be.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use terrane_engine::{SliceId, Store};
use terrane_ocssd::{Device, DeviceOptions, FormatOptions, KindOptions};
use tokio::sync::Notify;

use crate::report::figures::bytes;
use crate::target::engine::config::Config;
use crate::target::engine::ring;

/// The file's name in its folder.
const NAME: &str = "engine.terrane";
/// Its name while it is being laid out.
const UNFINISHED: &str = "engine.terrane.unfinished";

/// Whose the slices are: it tells them from those of servers.
const CLUSTER: u128 = u128::from_be_bytes(*b"terrane-loadgen!");
const NODE: u32 = 1;

/// The identity of a shard's slice.
pub(super) fn slice_id(shard: u32) -> SliceId {
    SliceId { cluster: CLUSTER, node: NODE, shard }
}

/// How whoever waits for a device to be laid out, which may take minutes, can be done with it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct GiveUp {
    asked: Arc<AtomicBool>,
    done: Arc<Notify>,
}

impl GiveUp {
    /// Asks for it; resolves when the unfinished file is removed, and never if the layout comes to its end before.
    pub(crate) async fn give_up(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.done.notified().await;
    }

    /// If it was asked for, removes the file and stays here for good. Formatting cannot be told to stop: its thread
    /// halts between two writes, and ends with the process.
    fn obey(&self, unfinished: &Path) {
        if self.asked.load(Ordering::SeqCst) {
            // What cannot be removed is laid out anew by the next run.
            let _ = std::fs::remove_file(unfinished);
            self.done.notify_one();
            loop {
                std::thread::park();
            }
        }
    }
}

/// Opens the device in `folder`, laying it out if there is none. Blocks: laying out writes the whole file once.
pub(super) fn open_or_lay_out(folder: &Path, config: &Config, give_up: &GiveUp) -> anyhow::Result<Device> {
    let path = folder.join(NAME);
    if !path.try_exists().with_context(|| format!("cannot look for {}", path.display()))? {
        eprintln!("Laying out {} in {}", bytes(config.capacity_bytes), folder.display());
        lay_out(folder, config, give_up)?;
    }
    let device = Device::open(&path, &DeviceOptions { nosync: config.nosync, ..DeviceOptions::default() })?;
    let found = *device.superblock();
    let advice = "name another folder to have it laid out anew";
    if (found.cluster, found.node) != (CLUSTER, NODE) {
        bail!("{} is the device of a server, not of this program: name another folder", path.display());
    }
    if found.shards != config.threads {
        bail!(
            "{} was laid out for {} threads, not for {}: use as many, or {advice}",
            path.display(),
            found.shards,
            config.threads
        );
    }
    let differs = |wanted: Option<u64>, is: u64| wanted.is_some_and(|wanted| wanted != is);
    if differs(config.chunk_bytes, found.chunk_bytes) {
        bail!("{} was laid out with chunk_bytes={}: {advice}", path.display(), found.chunk_bytes);
    }
    if differs(config.sector_bytes.map(u64::from), found.sector_bytes.into()) {
        bail!("{} was laid out with sector_bytes={}: {advice}", path.display(), found.sector_bytes);
    }
    Ok(device)
}

fn lay_out(folder: &Path, config: &Config, give_up: &GiveUp) -> anyhow::Result<()> {
    let unfinished = folder.join(UNFINISHED);
    let options = FormatOptions {
        cluster: CLUSTER,
        node: NODE,
        shards: config.threads,
        size_bytes: config.capacity_bytes,
        chunk_bytes: config.chunk_bytes,
        sector_bytes: config.sector_bytes,
        // Only this function makes a file of this name.
        force: true,
    };
    let mut progress = |_, _| give_up.obey(&unfinished);
    Device::format(&unfinished, &options, &KindOptions::default(), &mut progress)?;
    // The caller may be on a runtime, within which no other can run.
    let formatted = std::thread::scope(|scope| {
        let format = || -> anyhow::Result<()> {
            let device = Device::open(&unfinished, &DeviceOptions::default())?;
            ring::run(async {
                for shard in 0..config.threads {
                    Store::format(&device.slice(shard).await?, slice_id(shard)).await?;
                }
                Ok(())
            })?
        };
        scope.spawn(format).join()
    });
    formatted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    std::fs::rename(&unfinished, folder.join(NAME)).context("cannot give the device its name")?;
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}
