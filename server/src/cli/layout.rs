//! The folder of a `terrane local` cluster: for node *i* its `node-i.toml`, `node-i.terrane` and
//! `node-i.log`.
//!
//! Invariants:
//! - A folder is laid out once, whole: `layout.unfinished` is the first thing written and the last thing
//!   removed, so an interrupted layout is never taken for a cluster.
//! - Laying out never overwrites a file.
//! - Configurations hold the device's name relative to the folder, so a folder can be moved.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::statvfs::statvfs;

use crate::config::{ByteSize, ClusterId, Config, ConfigError, NodeAddress, NodeConfig};

const UNFINISHED: &str = "layout.unfinished";

/// Automatic ports are taken from here: below the range that Linux gives to outgoing connections
/// (`net.ipv4.ip_local_port_range`, 32768 up by default), which could take a port between two starts.
const AUTO_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where the nodes' ports begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ports {
    /// Node 1 at this base port, each next one at the next multiple of ten that leaves room for its shards.
    From(u16),
    /// Wherever ports are free now.
    Auto,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        match text.parse() {
            Ok(port) if port > 0 => Ok(Ports::From(port)),
            _ if text == "auto" => Ok(Ports::Auto),
            _ => Err("write a port from 1 to 65535, or auto".to_owned()),
        }
    }
}

/// What a new cluster shall be.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) cluster: ClusterId,
    pub(super) nodes: u32,
    pub(super) shards: u32,
    pub(super) partitions: u32,
    pub(super) ports: Ports,
    /// Bytes of each node's device.
    pub(super) size: ByteSize,
}

/// One node's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeFiles {
    pub(super) id: u32,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) data: PathBuf,
    pub(super) address: NodeAddress,
}

/// A laid-out folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) cluster: ClusterId,
    pub(super) shards: u32,
    pub(super) partitions: u32,
    /// By id, from 1 without gaps.
    pub(super) nodes: Vec<NodeFiles>,
}

/// Why a folder cannot be used, or not as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum LayoutError {
    #[error(
        "{} was being laid out and that never finished: it holds no data; remove it and run this again \
         (unless another `terrane local` is laying it out at this moment)", folder.display()
    )]
    Unfinished { folder: PathBuf },
    #[error(
        "{} is missing, but {} belongs to a cluster of {nodes} nodes: put the file back, or begin anew in \
         another folder", missing.display(), folder.display()
    )]
    Incomplete { folder: PathBuf, missing: PathBuf, nodes: usize },
    #[error("{} and {} contradict each other about {what}; restore the files as they were", first.display(), other.display())]
    Contradiction { first: PathBuf, other: PathBuf, what: &'static str },
    #[error("{} exists but is not a cluster's: give another folder, or remove it", file.display())]
    Foreign { file: PathBuf },
    #[error(
        "not enough disk space in {}: {nodes} nodes of {size} need {needed}, {free} is free; \
         lower --size or --nodes, or give another --dir", folder.display()
    )]
    NoSpace { folder: PathBuf, nodes: u32, size: ByteSize, needed: ByteSize, free: ByteSize },
    #[error("port {port} on 127.0.0.1 cannot be used ({source}): give another --port, or --port auto")]
    PortBusy { port: u16, source: io::Error },
    #[error(
        "no free ports on 127.0.0.1 between 20000 and 32000 for {nodes} nodes of {shards} shards: give --port"
    )]
    NoPorts { nodes: u32, shards: u32 },
    #[error("{nodes} nodes of {shards} shards from port {port} go past port 65535: give a lower --port")]
    PortsPastEnd { nodes: u32, shards: u32, port: u16 },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot lay out {}: {}", path.display(), super::told(source))]
    Format { path: PathBuf, source: anyhow::Error },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
    let path = path.to_owned();
    move |source| LayoutError::Io { action, path, source }
}

fn config_path(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("node-{id}.toml"))
}

impl NodeFiles {
    fn new(folder: &Path, id: u32, address: NodeAddress) -> NodeFiles {
        NodeFiles {
            id,
            config: config_path(folder, id),
            log: folder.join(format!("node-{id}.log")),
            data: folder.join(format!("node-{id}.terrane")),
            address,
        }
    }
}

impl Layout {
    /// Finds what an earlier run laid out. `Ok(None)`: nothing yet (or no folder).
    pub(super) fn find(folder: &Path) -> Result<Option<Layout>, LayoutError> {
        if folder.join(UNFINISHED).exists() {
            return Err(LayoutError::Unfinished { folder: folder.to_owned() });
        }
        let first = config_path(folder, 1);
        if !first.exists() {
            return Ok(None);
        }
        let config = Config::load(&first)?;
        config.validate()?;
        let mut nodes = Vec::new();
        for id in 1..=config.nodes.len() as u32 {
            let path = config_path(folder, id);
            if !path.exists() {
                let nodes = config.nodes.len();
                return Err(LayoutError::Incomplete { folder: folder.to_owned(), missing: path, nodes });
            }
            let own = Config::load(&path)?;
            own.validate()?;
            let contradiction =
                |what| Err(LayoutError::Contradiction { first: first.clone(), other: path.clone(), what });
            if own.node_id != id {
                return contradiction("which node is which (node_id)");
            }
            if own.cluster_id != config.cluster_id {
                return contradiction("cluster_id");
            }
            if own.agreement() != config.agreement() {
                return contradiction("shards, replicas, partitions, times or nodes");
            }
            nodes.push(NodeFiles {
                data: own.data.clone(),
                ..NodeFiles::new(folder, id, own.own_node().address.clone())
            });
        }
        Ok(Some(Layout {
            cluster: config.cluster_id,
            shards: config.shards,
            partitions: config.partitions,
            nodes,
        }))
    }

    /// Lays a folder out, creating it if need be. `format` lays out one device. Durable when it returns.
    pub(super) fn create(
        folder: &Path,
        plan: &Plan,
        mut format: impl FnMut(&Path, &Config) -> anyhow::Result<()>,
    ) -> Result<Layout, LayoutError> {
        let addresses = choose_ports(plan)?;
        let nodes: Vec<NodeFiles> =
            (1..).zip(addresses).map(|(id, address)| NodeFiles::new(folder, id, address)).collect();
        let listed: Vec<NodeConfig> =
            nodes.iter().map(|node| NodeConfig { id: node.id, address: node.address.clone() }).collect();
        let mut configs = BTreeMap::new();
        for node in &nodes {
            let mut config =
                Config::new(plan.cluster, node.id, node.data.clone(), plan.shards, listed.clone());
            config.partitions = plan.partitions;
            config.validate()?;
            configs.insert(node.id, config);
        }

        fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        let unfinished = folder.join(UNFINISHED);
        if unfinished.exists() {
            return Err(LayoutError::Unfinished { folder: folder.to_owned() });
        }
        for path in nodes.iter().flat_map(|node| [&node.config, &node.data]) {
            if path.exists() {
                return Err(LayoutError::Foreign { file: path.clone() });
            }
        }
        check_space(folder, plan)?;

        File::create_new(&unfinished).and_then(|file| file.sync_all()).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => LayoutError::Unfinished { folder: folder.to_owned() },
                _ => LayoutError::Io { action: "create", path: unfinished.clone(), source },
            }
        })?;
        sync_folder(folder)?;
        let mut lay_out = |node: &NodeFiles| {
            let config = &configs[&node.id];
            format(&node.data, config)
                .map_err(|source| LayoutError::Format { path: node.data.clone(), source })?;
            let name = node.data.file_name().unwrap_or_default();
            write_config(node, &Config { data: name.into(), ..config.clone() })
        };
        if let Err(error) = nodes.iter().try_for_each(&mut lay_out) {
            // Nothing here existed before and nothing was acknowledged: leave the folder as it was, so that
            // the next run is a first run. Only a crash leaves the marker.
            for path in nodes.iter().flat_map(|node| [&node.config, &node.data]) {
                let _ = fs::remove_file(path);
            }
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        sync_folder(folder)?;
        fs::remove_file(&unfinished).map_err(io_error("remove", &unfinished))?;
        sync_folder(folder)?;
        Ok(Layout { cluster: plan.cluster, shards: plan.shards, partitions: plan.partitions, nodes })
    }
}

fn write_config(node: &NodeFiles, config: &Config) -> Result<(), LayoutError> {
    use io::Write;
    let text = format!(
        "# Node {} of a cluster that `terrane local` laid out here. Every field: terrane config --example\n\n{}",
        node.id,
        config.to_toml()
    );
    File::create_new(&node.config)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(io_error("write", &node.config))
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), LayoutError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(io_error("sync", folder))
}

/// Devices are written whole at format: better to say now that they do not fit than after minutes.
fn check_space(folder: &Path, plan: &Plan) -> Result<(), LayoutError> {
    let disk = statvfs(folder).map_err(|errno| LayoutError::Io {
        action: "ask for the free space of",
        path: folder.to_owned(),
        source: errno.into(),
    })?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let needed = plan.size.0.saturating_mul(plan.nodes.into());
    if needed > free {
        return Err(LayoutError::NoSpace {
            folder: folder.to_owned(),
            nodes: plan.nodes,
            size: plan.size,
            needed: ByteSize(needed),
            // Whole MiB read better than a count of bytes.
            free: ByteSize::mib(free >> 20),
        });
    }
    Ok(())
}

/// A base port for each node, such that it and the shards' ports after it are free on loopback now.
fn choose_ports(plan: &Plan) -> Result<Vec<NodeAddress>, LayoutError> {
    let Plan { nodes, shards, .. } = *plan;
    let bases = match plan.ports {
        Ports::From(port) => {
            let step = u64::from(shards + 1).next_multiple_of(10);
            let last = u64::from(port) + step * u64::from(nodes.saturating_sub(1)) + u64::from(shards);
            if last > 65_535 {
                return Err(LayoutError::PortsPastEnd { nodes, shards, port });
            }
            // At most `last`, so the casts lose nothing.
            let bases = (0..u64::from(nodes)).map(|node| port + (node * step) as u16).collect::<Vec<_>>();
            for &base in &bases {
                hold(base, shards).map_err(|(port, source)| LayoutError::PortBusy { port, source })?;
            }
            bases
        }
        Ports::Auto => {
            // Clusters laid out at the same moment should not all look at the same ports first.
            let range = u32::from(AUTO_PORTS.start)..u32::from(AUTO_PORTS.end);
            let start = range.start + (plan.cluster.0 % (range.len() as u128)) as u32;
            let mut found = free_bases(start..range.end, nodes, shards);
            if found.len() < nodes as usize {
                found = free_bases(range, nodes, shards);
            }
            if found.len() < nodes as usize {
                return Err(LayoutError::NoPorts { nodes, shards });
            }
            found
        }
    };
    Ok(bases.into_iter().map(|base| NodeAddress::from_ip(Ipv4Addr::LOCALHOST.into(), base)).collect())
}

/// Up to `nodes` base ports in `range` that are free together with their shards' ports.
fn free_bases(range: std::ops::Range<u32>, nodes: u32, shards: u32) -> Vec<u16> {
    let mut bases = Vec::new();
    let mut next = range.start;
    while bases.len() < nodes as usize && next + shards < range.end {
        match hold(next as u16, shards) {
            Ok(_) => {
                bases.push(next as u16);
                next += shards + 1;
            }
            Err((busy, _)) => next = u32::from(busy) + 1,
        }
    }
    bases
}

/// Listens on a node's ports, or tells the first that is taken.
fn hold(base: u16, shards: u32) -> Result<Vec<TcpListener>, (u16, io::Error)> {
    (base..=base + shards as u16)
        .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| (port, error)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            cluster: ClusterId(7),
            nodes: 3,
            shards: 2,
            partitions: 16,
            ports: Ports::Auto,
            size: ByteSize::mib(1),
        }
    }

    fn touch(path: &Path, _config: &Config) -> anyhow::Result<()> {
        fs::write(path, "device")?;
        Ok(())
    }

    #[test]
    fn a_folder_is_found_again_as_it_was_laid_out() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = temporary.path().join("a/b");
        assert!(Layout::find(&folder).expect("nothing there").is_none());
        let created = Layout::create(&folder, &plan(), touch).expect("laid out");
        assert_eq!(Layout::find(&folder).expect("found"), Some(created.clone()));
        assert_eq!(created.nodes.len(), 3);
        let again = Layout::create(&folder, &plan(), touch).expect_err("not over itself");
        assert!(matches!(again, LayoutError::Foreign { .. }), "{again}");

        let moved = temporary.path().join("moved");
        fs::rename(&folder, &moved).expect("moved");
        let found = Layout::find(&moved).expect("found").expect("a cluster");
        assert_eq!(found.nodes[2].data, moved.join("node-3.terrane"), "devices move with their folder");
    }

    #[test]
    fn an_interrupted_layout_is_explained_and_not_touched() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = temporary.path();
        Layout::create(folder, &plan(), touch).expect("laid out");
        // What a crash before the last step leaves behind.
        fs::write(folder.join(UNFINISHED), "").expect("written");
        let error = Layout::find(folder).expect_err("unfinished");
        assert!(matches!(error, LayoutError::Unfinished { .. }), "{error}");
        let error =
            Layout::create(folder, &plan(), |_, _| panic!("must not format")).expect_err("unfinished");
        assert!(matches!(error, LayoutError::Unfinished { .. }), "{error}");
    }

    #[test]
    fn a_layout_that_fails_leaves_the_folder_as_it_was() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = temporary.path();
        fs::write(folder.join("notes.txt"), "mine").expect("written");
        let mut formatted = 0;
        let error = Layout::create(folder, &plan(), |path, config| {
            formatted += 1;
            anyhow::ensure!(formatted < 2, "the disk is gone");
            touch(path, config)
        })
        .expect_err("failed");
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        let left: Vec<_> =
            fs::read_dir(folder).expect("readable").map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        Layout::create(folder, &plan(), touch).expect("laid out at the second try");
    }

    #[test]
    fn what_went_missing_or_was_mixed_up_is_named() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = temporary.path();
        Layout::create(folder, &plan(), touch).expect("laid out");
        let second = config_path(folder, 2);
        let text = fs::read_to_string(&second).expect("readable");
        for (from, to, what) in [
            ("node_id = 2", "node_id = 3", "node_id"),
            ("00000007\"", "00000008\"", "cluster_id"),
            ("partitions = 16", "partitions = 8", "partitions"),
        ] {
            assert!(text.contains(from), "{text}");
            fs::write(&second, text.replace(from, to)).expect("written");
            let error = Layout::find(folder).expect_err(what).to_string();
            assert!(error.contains(what) && error.contains("node-2.toml"), "{error}");
        }
        fs::remove_file(&second).expect("removed");
        let error = Layout::find(folder).expect_err("missing").to_string();
        assert!(error.contains("node-2.toml is missing"), "{error}");
    }

    #[test]
    fn a_disk_too_small_is_said_before_anything_is_written() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = temporary.path().join("cluster");
        let huge = Plan { size: ByteSize(u64::MAX / 2), ..plan() };
        let error = Layout::create(&folder, &huge, |_, _| panic!("must not format")).expect_err("too large");
        assert!(matches!(error, LayoutError::NoSpace { .. }), "{error}");
        assert_eq!(fs::read_dir(&folder).expect("readable").count(), 0);
    }

    #[test]
    fn automatic_ports_do_not_overlap_wherever_the_search_begins() {
        for cluster in [0, 11_999, 12_000, u128::MAX] {
            let plan = Plan { cluster: ClusterId(cluster), ..plan() };
            let mut bases: Vec<u16> =
                choose_ports(&plan).expect("free ports").iter().map(NodeAddress::port).collect();
            assert!(bases.iter().all(|base| AUTO_PORTS.contains(base)), "{bases:?}");
            bases.sort_unstable();
            assert!(bases.windows(2).all(|pair| pair[1] - pair[0] > 2), "{bases:?}");
        }
        let too_many = Plan { nodes: 12, shards: 1000, ..plan() };
        assert!(matches!(choose_ports(&too_many), Err(LayoutError::NoPorts { .. })));
    }

    #[test]
    fn a_busy_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = taken.local_addr().expect("its address").port();
        // The node's second port is the one that is taken.
        let busy = Plan { ports: Ports::From(port - 1), nodes: 1, shards: 1, ..plan() };
        let error = choose_ports(&busy).expect_err("busy").to_string();
        assert!(error.contains("--port auto"), "{error}");
    }

    #[test]
    fn ports_past_the_last_are_refused() {
        for (port, nodes, shards) in [(65_535, 1, 1), (65_500, 5, 1), (1, u32::MAX, 1024)] {
            let past = Plan { ports: Ports::From(port), nodes, shards, ..plan() };
            let error = choose_ports(&past).expect_err("past the end");
            assert!(matches!(error, LayoutError::PortsPastEnd { .. }), "{error}");
        }
        assert!("0".parse::<Ports>().is_err());
        assert!("x".parse::<Ports>().is_err());
        assert_eq!("auto".parse(), Ok(Ports::Auto));
        assert_eq!("7400".parse(), Ok(Ports::From(7400)));
    }
}
