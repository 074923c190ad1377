//! A node: one process, its device, and a thread for each shard.
//!
//! Invariants:
//! - Nothing here creates data but [`format_device`]. A node whose device is missing or blank does not start:
//!   it would vote without its memory.
//! - Each shard binds its own port before anything else, so a second instance fails before it can do harm.
//! - After the start the main thread only waits for signals.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use terrane_engine::{SliceId, Store};
use terrane_ocssd::{Device, DeviceMedia, DeviceOptions, FormatOptions, KindOptions, Media, Superblock};

use crate::cluster::{ClusterMap, DEFAULT_TABLE, NodeAddress, NodeId, Table};
use crate::config::{Config, DEFAULT_TABLE_NAME, KEY_BYTES_MAX, Pin};
use crate::mesh::Mesh;
use crate::process;
use crate::reactor::{self, DoorbellKit, EventDoorbell};
use crate::seam::World;
use crate::shard::{Context, Control, Settings, Shard, ShardMesh};

/// Unanswered requests from one shard to another.
const MESH_CAPACITY: usize = 1024;
/// Submissions that a shard's ring takes at once.
const RING_ENTRIES: u32 = 1024;

/// What an entry's payload has beside one key and one value, at most.
const PAYLOAD_OVERHEAD_BYTES: u32 = 4096;

/// The real world of a shard.
type Reactor = reactor::Reactor<DeviceMedia>;

/// The cluster as a configuration describes it. Resolves host names.
pub fn cluster_map(config: &Config) -> anyhow::Result<ClusterMap> {
    let mut nodes = Vec::new();
    for node in &config.nodes {
        let port = node.address.port();
        let address =
            node.address.resolve(port).with_context(|| format!("cannot resolve {}", node.address))?;
        nodes.push(NodeAddress { id: NodeId(node.id), host: node.address.host().to_owned(), port, address });
    }
    nodes.sort_by_key(|node| node.id);
    let name = DEFAULT_TABLE_NAME.to_owned();
    Ok(ClusterMap {
        cluster: config.cluster_id.0,
        version: 1,
        nodes,
        shards: config.shards,
        replicas: config.replica_count() as u32,
        tables: vec![Table { id: DEFAULT_TABLE, name, partitions: config.partitions }],
        agreement: terrane_client::wire::partition_hash(config.agreement().as_bytes()),
    })
}

/// The part of a configuration that shards go by.
pub fn settings(config: &Config) -> Settings {
    Settings {
        value_bytes_max: config.value_bytes_max as u32,
        election_timeout: Duration::from_millis(config.election_timeout_ms),
        heartbeat_interval: Duration::from_millis(config.heartbeat_ms),
        clock_drift_ppm: config.clock_drift_ppm,
        connection_inflight_bytes_max: config.connection_inflight_bytes_max,
        connection_answer_bytes_max: (4 * config.connection_inflight_bytes_max) as usize,
        shard_inflight_bytes_max: config.shard_inflight_bytes_max,
    }
}

pub(crate) fn slice_id(superblock: &Superblock, shard: u32) -> SliceId {
    SliceId { cluster: superblock.cluster, node: superblock.node, shard }
}

/// The slice of a shard, on a device whose flushes cover everything.
async fn slice(device: &Device, shard: u32) -> anyhow::Result<DeviceMedia> {
    let media = device.slice(shard).await?;
    anyhow::ensure!(
        media.protects_buffer(),
        "{} is {} whose write buffer does not survive a power cut: the last {} sectors of an open chunk would be lost even \
         after a flush, and the log does not yet write on behind them. Use a device with power-loss protection (emulated \
         flash has it unless it was made without)",
        device.path().display(),
        device.superblock().kind,
        media.geometry().mw_cunits
    );
    Ok(media)
}

/// Lays a device out: superblock, slices, and the first anchor of each slice.
///
/// # Errors
/// When the device holds data already and `force` is not set, is of another kind, is too small, or cannot be written;
/// the message says what to do.
pub fn format_device(
    path: &Path,
    options: &FormatOptions,
    kind: &KindOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Superblock> {
    let superblock = Device::format(path, options, kind, progress)?;
    let device = Device::open(path, &DeviceOptions::default())?;
    reactor::run_shard(None, RING_ENTRIES, |_: Reactor| async {
        for shard in 0..superblock.shards {
            let media = slice(&device, shard).await?;
            Store::format(&media, slice_id(&superblock, shard)).await?;
        }
        anyhow::Ok(())
    })??;
    Ok(superblock)
}

/// Runs a node until SIGTERM or SIGINT; a second one ends it at once.
///
/// # Errors
/// When it cannot start (the message says what to do), or when a shard's storage failed while it ran.
pub fn run(config: &Config) -> anyhow::Result<()> {
    config.validate()?;
    let (events, happened) = mpsc::channel();
    watch_signals(events.clone())?;

    let options = DeviceOptions { nosync: config.nosync, ..DeviceOptions::default() };
    let device = Device::open(&config.data, &options)?;
    let superblock = *device.superblock();
    tracing::info!(device = %config.data.display(), "{}, {} slices", superblock.kind, superblock.shards);
    config.check_device(superblock.cluster, superblock.node, superblock.shards, superblock.chunk_bytes)?;
    if config.nosync {
        tracing::warn!("nosync is set: acknowledged writes do not survive a power loss");
    }
    let map = Arc::new(cluster_map(config)?);
    let cpus = pinning(config)?;

    let mut doorbells = Vec::new();
    for _ in 0..config.shards {
        doorbells.push(DoorbellKit::new().context("cannot create an eventfd")?);
    }
    let bells: Vec<_> = doorbells.iter().map(DoorbellKit::bell).collect();
    let Mesh { ends, mut control } = Mesh::new(MESH_CAPACITY, &bells);
    let mut threads = Vec::new();
    for (shard, (end, doorbell)) in ends.into_iter().zip(doorbells).enumerate() {
        let shard = shard as u32;
        let launch = Launch {
            config: config.clone(),
            map: map.clone(),
            shard,
            device: device.clone(),
            superblock,
            mesh: end,
            doorbell,
            events: events.clone(),
        };
        let cpu = cpus.as_ref().map(|cpus| cpus[shard as usize % cpus.len()]);
        let thread = std::thread::Builder::new().name(format!("shard-{shard}"));
        let events = events.clone();
        let body = move || {
            let served = reactor::run_shard(cpu, RING_ENTRIES, |world| launch.run(world));
            served.unwrap_or_else(|error| {
                // No runtime, so nobody else has said how the start went.
                let _ = events.send(Event::Started(Err(anyhow::Error::from(error))));
                Ok(())
            })
        };
        threads.push(thread.spawn(body).context("cannot start a shard's thread")?);
    }
    drop(events);
    let mut failure = None;
    let mut starting = config.shards;
    loop {
        match happened.recv() {
            Ok(Event::Started(Ok(()))) => {
                starting -= 1;
                if starting == 0 {
                    let address = &config.own_node().address;
                    tracing::info!(node = config.node_id, %address, shards = config.shards, "ready");
                }
            }
            Ok(Event::Started(Err(error))) => {
                failure = Some(error);
                break;
            }
            Ok(Event::Signal) if starting > 0 => {
                // Nothing was served yet, so nothing is lost by leaving as a crash would.
                tracing::info!("stopped while starting");
                std::process::exit(0);
            }
            Ok(Event::Signal) => break,
            Err(mpsc::RecvError) => unreachable!("the thread that waits for signals never ends"),
        }
    }
    for shard in 0..config.shards as usize {
        // A shard that has ended needs no telling.
        let _ = control.send(shard, Control::Shutdown);
    }
    for thread in threads {
        let outcome = thread.join().map_err(|_| anyhow::anyhow!("a shard's thread panicked"))?;
        failure = failure.or(outcome.err());
    }
    match failure {
        Some(error) => Err(error),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// What the main thread waits for.
enum Event {
    /// A shard serves, or could not start.
    Started(anyhow::Result<()>),
    /// SIGTERM or SIGINT.
    Signal,
}

/// Reports the first SIGTERM or SIGINT, and ends the process at the second. To be called before any other thread
/// exists, so that all of them leave these signals to the one that waits for them.
fn watch_signals(events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("cannot block signals")?;
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            tracing::info!(%signal, "stopping");
            if events.send(Event::Signal).is_err() {
                break;
            }
            if signals.wait().is_ok() {
                tracing::warn!("second signal: stopping at once");
                std::process::exit(1);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// The cores for the shards, or `None` to leave it to the scheduler.
fn pinning(config: &Config) -> anyhow::Result<Option<Vec<usize>>> {
    let cpus = reactor::allowed_cpus().context("cannot read the affinity of this process")?;
    let shards = config.shards as usize;
    let alone = config.nodes.iter().filter(|node| node.address.is_loopback()).count() <= 1;
    if cpus.len() < shards && config.pin != Pin::Never {
        tracing::warn!(cores = cpus.len(), shards, "fewer cores than shards: several shards share a core");
    }
    Ok(match config.pin {
        Pin::Always => Some(cpus),
        Pin::Auto if alone && cpus.len() >= shards => Some(cpus),
        Pin::Auto | Pin::Never => None,
    })
}

/// What a shard's thread needs to start.
struct Launch {
    config: Config,
    map: Arc<ClusterMap>,
    shard: u32,
    device: Device,
    superblock: Superblock,
    mesh: ShardMesh<Reactor>,
    doorbell: DoorbellKit,
    events: mpsc::Sender<Event>,
}

impl Launch {
    async fn run(self, world: Reactor) -> anyhow::Result<()> {
        let events = self.events.clone();
        match self.start(&world).await {
            Ok((shard, listeners, doorbell)) => {
                let _ = events.send(Event::Started(Ok(())));
                shard.run(listeners, doorbell).await.context("the storage failed")
            }
            Err(error) => {
                let _ = events.send(Event::Started(Err(error)));
                Ok(())
            }
        }
    }

    async fn start(self, world: &Reactor) -> anyhow::Result<Started> {
        let Self { config, map, shard, device, superblock, mesh, doorbell, events: _ } = self;
        let ip = config.listen_ip();
        let own = map.node(NodeId(config.node_id)).expect("validated").clone();
        let mut listeners = Vec::new();
        // The exclusive port first: if another instance runs, this fails before the device is touched.
        for (port, shared) in [(own.shard_port(shard), false), (own.port, true)] {
            let address = SocketAddr::new(ip, port);
            listeners.push(world.listen(address, shared).await.with_context(|| {
                format!(
                    "cannot listen on {address} (shard {shard}): is another node running there? \
                     Stop it, or give this node other ports in [[nodes]]"
                )
            })?);
        }
        let media = slice(&device, shard).await?;
        let options = terrane_engine::Options {
            record_bytes_max: (config.value_bytes_max + KEY_BYTES_MAX) as u32 + PAYLOAD_OVERHEAD_BYTES,
            cache_bytes: config.cache_bytes,
            tail_bytes: config.tail_bytes,
            index_bytes_max: config.index_bytes_max,
            ..terrane_engine::Options::default()
        };
        let (store, recovery) = Store::open(media, slice_id(&superblock, shard), options).await?;
        tracing::info!(
            shard,
            epoch = recovery.epoch,
            groups = recovery.groups.len(),
            entries = recovery.entries,
            scanned_bytes = recovery.bytes_scanned,
            damage = recovery.damage.len(),
            "recovered"
        );
        for damage in &recovery.damage {
            tracing::error!(
                shard,
                ?damage,
                "damage in the log: groups vote again once their leaders repaired them"
            );
        }
        let context = Context {
            node: own.id,
            shard,
            map,
            settings: settings(&config),
            process_counters: Arc::new(process::counters),
        };
        let shard = Shard::new(world.clone(), context, store, &recovery, mesh)?;
        Ok((shard, listeners, doorbell.open().context("cannot open an eventfd")?))
    }
}

type Started = (std::rc::Rc<Shard<Reactor>>, Vec<<Reactor as World>::Listener>, EventDoorbell);

#[cfg(test)]
mod tests {
    use super::*;
    use terrane_ocssd::{DeviceKind, FlashLayout};

    #[test]
    fn flash_whose_buffer_dies_with_the_power_is_refused_with_the_reason() {
        // In the build's folder: a system's `/tmp` may be memory, without direct I/O.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let options = FormatOptions {
            cluster: 1,
            node: 1,
            shards: 1,
            size_bytes: 16 << 20,
            chunk_bytes: Some(1 << 20),
            sector_bytes: None,
            force: false,
        };
        let format = |name: &str, protected_buffer| {
            let flash = FlashLayout { protected_buffer, ..FlashLayout::default() };
            let kind = KindOptions { kind: Some(DeviceKind::Flash), flash };
            format_device(&folder.path().join(name), &options, &kind, &mut |_, _| {})
        };
        assert_eq!(format("protected", true).unwrap().kind, DeviceKind::Flash);
        let error = format("unprotected", false).unwrap_err().to_string();
        assert!(error.contains("does not survive a power cut"), "{error}");
    }
}
