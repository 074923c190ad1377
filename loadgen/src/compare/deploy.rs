//! The servers that a networked target needs: started for one measurement, with their data in its folder, and stopped
//! after it.

use std::path::Path;

use crate::cli::compare::{CompareArgs, Contestant};
use crate::cli::target::Mode;
use crate::compare::child::Arguments;
use crate::compare::plan::Turn;
use crate::servers::terrane::config::Told;
use crate::servers::terrane::{self, Nodes};

/// Servers under way, or none where the target is embedded.
#[derive(Debug)]
pub(crate) enum Servers {
    None,
    Terrane(Nodes, Told),
    #[cfg(feature = "etcd")]
    Etcd(crate::servers::etcd::EtcdServers),
    #[cfg(feature = "redis")]
    Redis(crate::servers::redis::RedisServer),
}

impl Servers {
    /// Starts what the turn needs, and adds to the measurement's arguments where it is. Each node of a Terrane cluster
    /// gets `capacity` bytes of media, and `cache` bytes of memory to cache in.
    pub(crate) async fn start(
        turn: Turn,
        args: &CompareArgs,
        shards: u32,
        capacity: u64,
        cache: u64,
        folder: &Path,
        arguments: &mut Arguments,
    ) -> anyhow::Result<Servers> {
        match turn.target {
            Contestant::Cluster => {
                let binary = terrane::find_terrane(args.terrane.as_deref()).await?;
                let layout = terrane::lay_out(&binary, args.nodes, shards, folder, capacity).await?;
                let told = layout.configure(shards, cache, &settings(args, turn.target))?;
                let mut options = Vec::new();
                if turn.cell.mode == Mode::Nosync {
                    options.push("--nosync".to_owned());
                }
                let mut nodes = Nodes::start_with(&binary, &layout, options)?;
                terrane::wait_ready(&mut nodes, &layout).await?;
                arguments.list("addr", &layout.addresses());
                Ok(Servers::Terrane(nodes, told))
            }
            #[cfg(feature = "etcd")]
            Contestant::Etcd => {
                let overrides = overrides(args, turn.target);
                let servers =
                    crate::servers::etcd::EtcdServers::start(args.nodes as usize, folder, overrides).await?;
                arguments.list("addr", &servers.addresses());
                watched(arguments, &servers.pids(), &servers.folders());
                Ok(Servers::Etcd(servers))
            }
            #[cfg(feature = "redis")]
            Contestant::Redis | Contestant::RedisEverysec => {
                use crate::servers::redis::{AppendFsync, RedisServer};
                let fsync = match turn.target {
                    Contestant::Redis => AppendFsync::Always,
                    _ => AppendFsync::EverySec,
                };
                let server = RedisServer::start(folder, fsync, overrides(args, turn.target)).await?;
                arguments.list("addr", &server.addresses());
                watched(arguments, &server.pids(), &server.folders());
                Ok(Servers::Redis(server))
            }
            _ => Ok(Servers::None),
        }
    }

    /// Stops them in order; what did not stop cleanly is said.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        match self {
            Servers::None => Vec::new(),
            Servers::Terrane(nodes, _) => nodes.stop(),
            #[cfg(feature = "etcd")]
            Servers::Etcd(servers) => servers.stop(),
            #[cfg(feature = "redis")]
            Servers::Redis(server) => server.stop(),
        }
    }

    /// Fails if one of them has ended by itself, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self {
            Servers::None => Ok(()),
            Servers::Terrane(nodes, _) => nodes.check(),
            #[cfg(feature = "etcd")]
            Servers::Etcd(servers) => servers.check(),
            #[cfg(feature = "redis")]
            Servers::Redis(server) => server.check(),
        }
    }

    /// How many nodes there are for each copy of the data: a node's mean occupancy times this is a copy's.
    pub(crate) fn nodes_per_copy(&self, nodes: u32) -> f64 {
        match self {
            Servers::Terrane(_, told) => f64::from(nodes) / f64::from(told.copies.max(1)),
            // One node, or one copy on each.
            _ => 1.0,
        }
    }

    /// How they were set up, as far as only their starter knows.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        match self {
            Servers::None => Vec::new(),
            Servers::Terrane(_, told) => told.settings.clone(),
            #[cfg(feature = "etcd")]
            Servers::Etcd(servers) => servers.settings(),
            #[cfg(feature = "redis")]
            Servers::Redis(server) => server.settings(),
        }
    }
}

/// What was asked to be otherwise with a target.
fn settings(args: &CompareArgs, target: Contestant) -> Vec<(String, String)> {
    let of_target = args.settings.iter().filter(|setting| setting.target == target);
    of_target.map(|setting| (setting.name.clone(), setting.value.clone())).collect()
}

#[cfg(any(feature = "etcd", feature = "redis"))]
fn overrides(args: &CompareArgs, target: Contestant) -> crate::target::setup::Overrides {
    crate::target::setup::Overrides::new(settings(args, target))
}

#[cfg(any(feature = "etcd", feature = "redis"))]
fn watched(arguments: &mut Arguments, pids: &[u32], folders: &[std::path::PathBuf]) {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let folders: Vec<String> = folders.iter().map(|path| path.display().to_string()).collect();
    arguments.list("server-pid", &pids).list("server-data", &folders);
}
