//! A cluster of child processes on this machine: finding the server's binary, laying data out, starting, killing and
//! stopping nodes.
//!
//! Invariants: every process started here is ended here, by its own process id, on every way out (drop, error,
//! Ctrl-C); if this process is killed outright, the kernel ends them (PR_SET_PDEATHSIG). Nodes run in process groups of
//! their own, so that a Ctrl-C on the terminal reaches them only through us.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};
use serde::Deserialize;

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
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    files: NodeFiles,
    process: Option<Child>,
}

/// How long a node may take to stop by itself before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The same on the way out of an error or an interruption.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// How often processes are looked at while waiting for them.
const LOOK: Duration = Duration::from_millis(10);

impl Nodes {
    /// Starts all nodes of a layout. Must be called on the main thread: the kernel ends the nodes with the *thread*
    /// that started them.
    pub(crate) fn start(terrane: &Path, layout: &Layout) -> anyhow::Result<Nodes> {
        let nodes = layout.nodes.iter().map(|files| Node { files: files.clone(), process: None }).collect();
        let mut nodes = Nodes { terrane: terrane.to_owned(), nodes };
        for node in layout.nodes.iter() {
            nodes.start_node(node.id)?;
        }
        Ok(nodes)
    }

    /// Starts one node that is not running; its output is appended to its log.
    pub(crate) fn start_node(&mut self, id: u64) -> anyhow::Result<()> {
        let terrane = self.terrane.clone();
        let node = self.node(id)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&node.files.log)
            .with_context(|| format!("cannot open the log {}", node.files.log.display()))?;
        let mut command = Command::new(&terrane);
        command.arg("start").arg("--config").arg(&node.files.config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let parent = getpid();
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // Had the parent died before the line above, nothing would end this process.
                if getppid() == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
            });
        }
        let process =
            command.spawn().with_context(|| format!("cannot start node {id} ({})", terrane.display()))?;
        node.process = Some(process);
        Ok(())
    }

    /// Kills one node with SIGKILL; gives the moment just before. Returns once the process is gone.
    pub(crate) fn kill_node(&mut self, id: u64) -> anyhow::Result<Instant> {
        let node = self.node(id)?;
        let mut process = node.process.take().ok_or_else(|| anyhow!("node {id} is not running"))?;
        let at = Instant::now();
        process.kill().with_context(|| format!("cannot kill node {id}"))?;
        process.wait().with_context(|| format!("cannot wait for node {id}"))?;
        Ok(at)
    }

    /// Fails if a node that should be running has ended, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else { continue };
            if let Some(status) = process.try_wait().context("cannot look at a node's process")? {
                node.process = None;
                let (id, log) = (node.files.id, log_tail(&node.files.log));
                bail!("node {id} {} by itself. The end of its log:\n{log}", ended(status));
            }
        }
        Ok(())
    }

    /// The ends of all nodes' logs, for an error message.
    pub(crate) fn log_tails(&self) -> String {
        let tail = |node: &Node| format!("node {}:\n{}", node.files.id, log_tail(&node.files.log));
        self.nodes.iter().map(tail).collect::<Vec<_>>().join("\n")
    }

    /// Stops all nodes in order: SIGTERM, a while to finish, SIGKILL for those that do not. Names the nodes that did
    /// not stop cleanly.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        self.stop_within(STOP_LIMIT)
    }

    fn stop_within(&mut self, limit: Duration) -> Vec<String> {
        let mut complaints = Vec::new();
        for node in &mut self.nodes {
            if let Some(process) = &node.process {
                // The process is our own child and was not waited for, so its id cannot be another's.
                let pid = Pid::from_raw(process.id() as i32);
                if let Err(errno) = kill(pid, Signal::SIGTERM) {
                    complaints.push(format!("node {} could not be told to stop: {errno}", node.files.id));
                }
            }
        }
        let begun = Instant::now();
        for node in &mut self.nodes {
            let Some(mut process) = node.process.take() else { continue };
            let id = node.files.id;
            let status = loop {
                match process.try_wait() {
                    Ok(Some(status)) => break Some(status),
                    Ok(None) if begun.elapsed() < limit => std::thread::sleep(LOOK),
                    _ => break None,
                }
            };
            match status {
                Some(status) if status.success() => {}
                Some(status) => complaints.push(format!("node {id} {} when told to stop", ended(status))),
                None => {
                    complaints
                        .push(format!("node {id} did not stop within {} s and was killed", limit.as_secs()));
                    if let Err(error) = process.kill().and_then(|()| process.wait().map(drop)) {
                        complaints.push(format!("node {id} could not be killed: {error}"));
                    }
                }
            }
        }
        complaints
    }

    fn node(&mut self, id: u64) -> anyhow::Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.files.id == id)
            .ok_or_else(|| anyhow!("node {id} is none of ours"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // What went wrong here cannot be acted upon any more; the error that led here matters.
        let _ = self.stop_within(DROP_LIMIT);
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (_, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        _ => "ended".to_owned(),
    }
}

/// Bytes and lines of a log that an error message quotes at most.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 15;

/// The end of a log.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.is_empty() => format!("  ({} is empty)", path.display()),
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("  ({}: {error})", path.display()),
    }
}

#[cfg(test)]
mod tests;
