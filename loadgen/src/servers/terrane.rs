//! A cluster of child processes on this machine: finding the server's binary, laying data out, starting, killing and
//! stopping nodes ([`process`](super::process) has the invariants).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

use crate::target::cluster::Cluster;
use crate::target::leaders::Leaders;

use crate::servers::process::{self, STOP_LIMIT, Server};

/// The server's binary: `named` if given; else built by cargo if cargo started us (`cargo run --bin terrane-loadgen`
/// builds no other package's binary); else beside our own.
pub(crate) async fn find_terrane(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        if !named.is_file() {
            bail!("--terrane {}: there is no such file", named.display());
        }
        return Ok(named.canonicalize()?);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    if let (Some(cargo), Some(workspace)) = (std::env::var_os("CARGO"), workspace)
        && workspace.join("Cargo.toml").is_file()
    {
        return build(Path::new(&cargo), workspace).await;
    }
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let beside = own.with_file_name("terrane");
    if beside.is_file() {
        return Ok(beside);
    }
    bail!(
        "there is no terrane binary beside {}: build it with `cargo build --release --bin terrane`, or name it with --terrane PATH",
        own.display()
    )
}

/// Builds the server with our own profile, showing cargo's progress, and asks cargo where it put it.
async fn build(cargo: &Path, workspace: &Path) -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    let mut command = tokio::process::Command::new(cargo);
    // No package is named, as in the command that started us: so dependencies have the same features, and are not
    // built twice.
    command.args(["build", "--bin", "terrane"]);
    command.arg("--message-format=json-render-diagnostics").current_dir(workspace);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = command
        .spawn()
        .with_context(|| format!("cannot run {}", cargo.display()))?
        .wait_with_output()
        .await
        .context("cannot wait for cargo")?;
    if !output.status.success() {
        bail!(
            "the server could not be built (cargo's messages are above); name a built one with --terrane PATH"
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .find(|message| message.target.as_ref().is_some_and(|target| target.name == "terrane"))
        .and_then(|message| message.executable)
        .context("cargo built the server but did not say where; name it with --terrane PATH")
}

/// What `terrane local --init-only --json` laid out.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Layout {
    /// The nodes, by id.
    pub(crate) nodes: Vec<NodeFiles>,
}

/// One node's files and address.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeFiles {
    /// The node's number.
    pub(crate) id: u64,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// Its base address, host:port.
    pub(crate) address: String,
}

impl Layout {
    /// All addresses, as the client wants them.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }
}

/// Whether a folder already holds a cluster's data.
pub(crate) fn is_laid_out(folder: &Path) -> bool {
    folder.join("node-1.toml").exists()
}

/// Lays out configurations and formatted devices in `folder`, or finds those of an earlier run.
pub(crate) async fn lay_out(
    terrane: &Path,
    nodes: u32,
    shards: u32,
    folder: &Path,
    bytes_per_node: u64,
) -> anyhow::Result<Layout> {
    let mut command = tokio::process::Command::new(terrane);
    command.args(["local", "--init-only", "--json", "--port", "auto"]);
    command.args(["--nodes", &nodes.to_string(), "--shards", &shards.to_string()]);
    command.args(["--size", &bytes_per_node.to_string()]).arg("--dir").arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = command
        .spawn()
        .with_context(|| format!("cannot run {}", terrane.display()))?
        .wait_with_output()
        .await
        .context("cannot wait for terrane")?;
    if !output.status.success() {
        bail!("`terrane local --init-only` could not lay out {} ({})", folder.display(), output.status);
    }
    let mut layout: Layout = serde_json::from_slice(&output.stdout)
        .context("`terrane local --init-only --json` printed something else than the nodes it laid out")?;
    if layout.nodes.len() != nodes as usize {
        bail!("{} holds {} nodes, not {nodes}", folder.display(), layout.nodes.len());
    }
    for node in &mut layout.nodes {
        // Paths as printed may be relative to the folder that the command ran in, which is ours.
        node.config = std::path::absolute(&node.config)?;
        node.log = std::path::absolute(&node.log)?;
    }
    layout.nodes.sort_by_key(|node| node.id);
    Ok(layout)
}

/// The running nodes. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct Nodes {
    terrane: PathBuf,
    files: Vec<NodeFiles>,
    /// Of `terrane start`, beside the configuration.
    arguments: Vec<String>,
    /// In the order of `files`.
    servers: Vec<Server>,
}

impl Nodes {
    /// Starts all nodes of a layout. Must be called on the main thread: the kernel ends the nodes with the *thread*
    /// that started them.
    pub(crate) fn start(terrane: &Path, layout: &Layout) -> anyhow::Result<Nodes> {
        Self::start_with(terrane, layout, Vec::new())
    }

    /// The same, with more arguments to `terrane start`.
    pub(crate) fn start_with(
        terrane: &Path,
        layout: &Layout,
        arguments: Vec<String>,
    ) -> anyhow::Result<Nodes> {
        let server = |files: &NodeFiles| Server::new(format!("node {}", files.id), &files.log);
        let servers = layout.nodes.iter().map(server).collect();
        let mut nodes =
            Nodes { terrane: terrane.to_owned(), files: layout.nodes.clone(), arguments, servers };
        for node in &layout.nodes {
            nodes.start_node(node.id)?;
        }
        Ok(nodes)
    }

    /// Starts one node that is not running; its output is appended to its log.
    pub(crate) fn start_node(&mut self, id: u64) -> anyhow::Result<()> {
        let node = self.place(id)?;
        let mut command = Command::new(&self.terrane);
        command.arg("start").arg("--config").arg(&self.files[node].config).args(&self.arguments);
        self.servers[node].start(&mut command)
    }

    /// Kills one node with SIGKILL; gives the moment just before. Returns once the process is gone.
    pub(crate) fn kill_node(&mut self, id: u64) -> anyhow::Result<Instant> {
        let node = self.place(id)?;
        self.servers[node].kill()
    }

    /// Fails if a node that should be running has ended, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.servers.iter_mut().try_for_each(Server::check)
    }

    /// The ends of all nodes' logs, for an error message.
    pub(crate) fn log_tails(&self) -> String {
        let tail =
            |(files, server): (&NodeFiles, &Server)| format!("node {}:\n{}", files.id, server.log_tail());
        self.files.iter().zip(&self.servers).map(tail).collect::<Vec<_>>().join("\n")
    }

    /// Stops all nodes in order: SIGTERM, a while to finish, SIGKILL for those that do not. Names the nodes that did
    /// not stop cleanly.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        self.stop_within(STOP_LIMIT)
    }

    fn stop_within(&mut self, limit: Duration) -> Vec<String> {
        process::stop(&mut self.servers, limit)
    }

    /// Where in the vectors the node is.
    fn place(&self, id: u64) -> anyhow::Result<usize> {
        let place = self.files.iter().position(|files| files.id == id);
        place.ok_or_else(|| anyhow!("node {id} is none of ours"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        process::drop_all(&mut self.servers);
    }
}

/// How long a cluster may take until every partition has a leader.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);

/// How often the cluster is asked while waiting for something to become true.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// Waits until every partition has a leader.
pub(crate) async fn wait_ready(nodes: &mut Nodes, layout: &Layout) -> anyhow::Result<Leaders> {
    let begun = Instant::now();
    let mut last = String::from("no node answered");
    while begun.elapsed() < READY_LIMIT {
        nodes.check()?;
        match look_for_leaders(&layout.addresses()).await {
            Ok(leaders) if leaders.missing() == 0 => return Ok(leaders),
            Ok(leaders) => {
                last = format!("{} of {} partitions have no leader", leaders.missing(), leaders.partitions());
            }
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!(
        "the cluster did not become ready within {} s ({last}). The ends of the nodes' logs:\n{}",
        READY_LIMIT.as_secs(),
        nodes.log_tails()
    )
}

async fn look_for_leaders(addresses: &[String]) -> anyhow::Result<Leaders> {
    Cluster::connect(addresses).await?.leaders().await
}

pub(crate) mod config;
#[cfg(test)]
mod tests;
