//! The engine, embedded: no network, no replication, the store in the load generator's own threads.
//!
//! One load thread is one shard: its runtime, its slice of one device file, its store. A key's place follows from its
//! hash as in a cluster; an operation on a key of another thread hops there over a ring and back. So any worker may
//! draw any key, as with other embedded stores, and pays what the design asks for it.
//!
//! `config` says with what the store is opened, `device` lays the file out, `shard` is the life of a thread, `mesh` and
//! `slots` are how the threads ask each other, `ring` is the runtime, `scan` merges, `panel` counts, `trace` records what
//! the media were asked to do.
//!
//! What is acknowledged: a put is appended, durable by the group's commit (with `durable`: on the medium; otherwise
//! when the direct write has completed), and applied. Groups have one replica, so durable is committed.
//!
//! Invariant: the load is driven on the shard's own runtime, whose wakers must not leave their thread: `load` may
//! wait only for its targets.

mod config;
mod device;
mod mesh;
mod panel;
mod ring;
mod scan;
mod shard;
mod slots;
#[cfg(test)]
mod tests;
mod trace;

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use terrane_engine::Store;
use terrane_engine::compression::ValueCompressor;
use terrane_ocssd::Device;
use terrane_ocssd::trace::Recorder;

use crate::measure::meter::Look;
use crate::measure::process;
pub(crate) use crate::target::engine::device::GiveUp;

use crate::target::engine::config::Config;
use crate::target::engine::panel::Panel;
use crate::target::engine::ring::Door;
use crate::target::engine::shard::{Shard, ShardEnd};
use crate::target::engine::trace::{ShardMedia, ShardTrace, Traces};
use crate::target::setup::Setup;
use crate::target::{Ability, Connect, Failure, Found, Row, Seat, Target, clock};

/// The embedded store of a folder. Clones share it; it is locked against other processes while one is alive.
#[derive(Debug, Clone)]
pub(crate) struct EngineConnect {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    device: Device,
    panels: Vec<Arc<Panel>>,
    /// The ends of the mesh of the crew that is starting, until its threads take them.
    ends: Mutex<Vec<Option<ShardEnd>>>,
    /// Where the first crew's media are recorded, if they are.
    traces: Option<Traces>,
}

impl EngineConnect {
    /// Opens the store in the setup's folder; where there is none it is laid out first, which writes its whole
    /// capacity once. Blocks; for good, if laying out is given up.
    ///
    /// # Errors
    /// If a setting is unknown or out of its limits, the folder cannot hold the store, or holds one that was laid out
    /// otherwise.
    pub(crate) fn new(setup: Setup, give_up: &GiveUp) -> anyhow::Result<EngineConnect> {
        let folder = setup.folder.clone();
        let config = Config::new(setup)?;
        let traces = config.trace.as_deref().map(|base| Traces::new(base, config.threads)).transpose()?;
        let device = device::open_or_lay_out(&folder, &config, give_up)?;
        let panels = (0..config.threads).map(|_| Arc::default()).collect();
        let shared = Shared { config, device, panels, ends: Mutex::default(), traces };
        Ok(EngineConnect { shared: Arc::new(shared) })
    }

    /// What the store is opened with, for the report.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.shared.config.settings(&self.shared.device)
    }

    /// Removes the traces that were begun and not ended, their threads being left to the end of the process: it was
    /// interrupted before it did anything.
    pub(crate) fn discard_traces(&self) {
        self.shared.traces.iter().for_each(Traces::discard);
    }

    /// This seat's end of its crew's mesh; the first thread of a crew makes the mesh.
    fn take_end(&self, seat: Seat) -> anyhow::Result<ShardEnd> {
        let threads = self.shared.config.threads;
        anyhow::ensure!(
            seat.threads == threads && seat.thread < threads,
            "this store has a shard for each of {threads} threads, and cannot be driven by {}: use as many threads, \
             and at least one connection for each",
            seat.threads
        );
        let mut ends = self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.iter().all(Option::is_none) {
            *ends = mesh::mesh(threads as usize, mesh::CAPACITY)?.into_iter().map(Some).collect();
        }
        let end = ends[seat.thread as usize].take();
        end.with_context(|| format!("thread {} is there already: the crew before has not ended", seat.thread))
    }

    /// Opens the shard of an end, and begins its trace if there is to be one.
    async fn open(&self, end: ShardEnd) -> anyhow::Result<(Rc<Shard<ShardMedia>>, Option<ShardTrace>)> {
        let Shared { config, device, panels, traces, .. } = &*self.shared;
        let number = end.me() as u32;
        let media = device.slice(number).await?;
        let (media, trace) = match traces {
            None => (Recorder::idle(media), None),
            Some(traces) => {
                let (media, trace) = traces.record(number, media)?;
                (media, Some(trace))
            }
        };
        let (store, recovery) = Store::open(media, device::slice_id(number), config.options.clone())
            .await
            .with_context(|| format!("cannot open the slice of shard {number}"))?;
        let chunk_bytes = device.superblock().chunk_bytes;
        let panel = panels[number as usize].clone();
        let compressor = config.compression.map(ValueCompressor::new).transpose()?;
        let shard = Shard::new(store, &recovery, end, config.groups, compressor, panel, chunk_bytes).await?;
        Ok((shard, trace))
    }
}

impl Connect for EngineConnect {
    type Target = EngineTarget;

    fn can(&self, ability: Ability) -> bool {
        // The engine keeps no expiry yet, and neither batches nor multi-gets.
        ability == Ability::Scan
    }

    fn host(
        &self,
        seat: Seat,
        load: impl AsyncFnOnce(anyhow::Result<Vec<Rc<EngineTarget>>>),
    ) -> anyhow::Result<()> {
        let end = match self.take_end(seat) {
            Ok(end) => end,
            Err(error) => return clock::on_tokio(load(Err(error))),
        };
        let mut load = Some(load);
        let hosted = ring::run(async {
            let load = load.take().expect("it runs once");
            let _running = self.shared.panels[end.me()].runs(end.crew().post(end.me()).clone());
            let opened = async {
                let door = Door::new(end.bell_file()?)?;
                Ok((self.open(end).await?, door))
            };
            match opened.await {
                Ok(((shard, trace), mut door)) => {
                    let target = Rc::new(EngineTarget { shard: shard.clone() });
                    let targets = (0..seat.connections).map(|_| target.clone()).collect();
                    drop(target);
                    let lived = shard.live(load(Ok(targets)), &mut door).await;
                    let recorded = trace.map_or(Ok(()), ShardTrace::end);
                    lived.and(recorded)
                }
                Err(error) => {
                    load(Err(error)).await;
                    Ok(())
                }
            }
        });
        match (hosted, load) {
            (Ok(ended), _) => ended,
            (Err(error), Some(load)) => clock::on_tokio(load(Err(error))),
            (Err(error), None) => Err(error),
        }
    }

    async fn looks(&self) -> Vec<(u64, Look)> {
        let (mut device_written, mut user, mut occupied) = (0, 0, 0);
        for counts in
            futures_util::future::join_all(self.shared.panels.iter().map(|panel| panel.look())).await
        {
            device_written += counts.device_written;
            user += counts.user;
            occupied += counts.occupied;
        }
        // Without /proc the engine's own counters are all there is.
        let mut look = process::look(None).unwrap_or_default();
        look.counters.device_written_bytes = Some(device_written);
        look.counters.user_bytes = Some(user);
        look.gauges.occupied_bytes = Some(occupied);
        vec![(0, look)]
    }
}

/// The store, as the workers of one thread use it.
pub(crate) struct EngineTarget {
    shard: Rc<Shard<ShardMedia>>,
}

impl Target for EngineTarget {
    async fn get(&self, key: &[u8]) -> Result<Option<Found>, Failure> {
        self.shard.get(key).await
    }

    async fn put(&self, key: &[u8], value: Bytes, ttl: Option<Duration>) -> Result<Option<u64>, Failure> {
        if ttl.is_some() {
            return Err(Failure::unsupported(Ability::Ttl));
        }
        self.shard.put(key, &value).await.map(Some)
    }

    async fn scan(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
        scan::scan(&self.shard, from, limit).await
    }

    async fn sleep_until(&self, at: Instant) {
        self.shard.timers().sleep_until(at).await;
    }
}
