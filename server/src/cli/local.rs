//! `terrane local`: a whole cluster on this machine, one process per node, watched until Ctrl-C.
//!
//! The nodes are real ones (`terrane start` of this same program), so they can be killed, stopped and
//! looked at one by one. What this process does is lay the folder out on the first run, start the nodes,
//! say who leads, report a node that dies, and stop them all in the end.
//!
//! Invariants:
//! - No node outlives this process: it is told to stop when we end, and gets SIGTERM from the kernel when
//!   we are killed.
//! - Ctrl-C reaches the nodes only through us: each has a process group of its own.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getppid};
use serde_json::json;
use terrane_client::wire::NodeId;
use terrane_ocssd::{Device, FormatOptions};

use super::connection::Connection;
use super::layout::{Layout, NodeFiles, Plan, Ports};
use super::status::{self, Picture};
use super::{Exit, Failure, config, format, output};
use crate::config::ByteSize;

/// How long nodes may take to hand over and flush before they are killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long elections may take before it is said what is missing.
const ELECTION_PATIENCE: Duration = Duration::from_secs(10);
/// How long one look at the cluster may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const LOG_TAIL_LINES: usize = 12;
const LOG_TAIL_BYTES: u64 = 8 << 10;

const EXAMPLES: &str = "\
The first run lays the folder out: node-1.toml, node-1.terrane (the device, fully written), and so
on. Later runs start the same cluster again and find its data. Logs go to node-1.log and so on.

Examples:
  terrane local --dir ./cluster                          three nodes of two shards from port 7400
  terrane local --nodes 1 --shards 4 --dir ./single
  terrane local --dir ./cluster --port auto --json       for scripts: one line of JSON when ready
  terrane local --dir ./cluster --init-only              lay out, start nothing";

/// Run a whole cluster on this machine, one process per node, until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Folder of the cluster; laid out on the first run
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Nodes [default: 3, or as laid out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    nodes: Option<u32>,
    /// Shards of each node [default: 2, or as laid out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: Option<u32>,
    /// Partitions of the table [default: 16, or as laid out]
    #[arg(long, value_name = "N")]
    partitions: Option<u32>,
    /// Base port of node 1, or auto for free ones [default: 7400, or as laid out]
    #[arg(long, value_name = "PORT|auto")]
    port: Option<Ports>,
    /// Bytes of each node's device, on the first run
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    size: ByteSize,
    /// Erase unit of the devices, on the first run (default: by size, at least 8 MiB)
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<ByteSize>,
    #[command(flatten)]
    kind: format::Kind,
    /// What the nodes log, instead of what their configurations say
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Lay the folder out (or check that it is) and start nothing
    #[arg(long)]
    init_only: bool,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let folder = std::path::absolute(&args.dir).context("finding --dir")?;
    let layout = match Layout::find(&folder).map_err(anyhow::Error::new)? {
        Some(layout) => {
            args.check_against(&folder, &layout)?;
            layout
        }
        None => args.lay_out(&folder)?,
    };
    if args.init_only {
        return print_layout(args, &layout);
    }
    // Two of us would start every node twice.
    let lock = File::open(&folder).with_context(|| format!("opening {}", folder.display()))?;
    if let Err(error) = lock.try_lock() {
        return Err(Failure::new(
            Exit::Failure,
            format!(
                "cannot lock {} ({error}): another `terrane local` is running this cluster",
                folder.display()
            ),
        ));
    }
    // Before the first child, so that no signal finds us without a plan.
    let signals = Signals::block()?;
    let mut nodes = Nodes::start(&layout, args.log.as_deref())?;
    let ready = wait_for_leaders(&layout, &mut nodes, &signals)?;
    if let Some(picture) = ready {
        print_ready(args, &layout, &nodes, &picture)?;
        watch(&mut nodes, &signals)?;
    }
    nodes.stop(&signals)
}

impl Args {
    fn lay_out(&self, folder: &Path) -> Result<Layout, Failure> {
        let plan = Plan {
            cluster: config::new_cluster_id()?,
            nodes: self.nodes.unwrap_or(3),
            shards: self.shards.unwrap_or(2),
            partitions: self.partitions.unwrap_or(16),
            ports: self.port.unwrap_or(Ports::From(7400)),
            size: self.size,
        };
        let kind = self.kind.options()?;
        let chunk_bytes = self.chunk_size.map(|size| size.0);
        let layout = Layout::create(folder, &plan, |path, config| {
            let options = FormatOptions {
                cluster: config.cluster_id.0,
                node: config.node_id,
                shards: config.shards,
                size_bytes: plan.size.0,
                chunk_bytes,
                sector_bytes: None,
                force: false,
            };
            format::format_device(path, &options, &kind).map(drop)
        })
        .map_err(anyhow::Error::new)?;
        eprintln!("laid out {} nodes of {} in {}", plan.nodes, plan.size, folder.display());
        Ok(layout)
    }

    /// What was asked for must be what is there: silently running something else would mislead.
    fn check_against(&self, folder: &Path, layout: &Layout) -> Result<(), Failure> {
        if let Some(asked) = self.kind.options()?.kind {
            let found = Device::look(&layout.nodes[0].data).map_err(anyhow::Error::new)?;
            if asked != found {
                return Err(Failure::new(
                    Exit::Failure,
                    format!(
                        "the devices in {} are {found}, not {asked}: leave --media out to run them as they are, or give \
                         another --dir",
                        folder.display()
                    ),
                ));
            }
        }
        let port = layout.nodes[0].address.port();
        let asked_port = match self.port {
            Some(Ports::From(port)) => Some(u32::from(port)),
            Some(Ports::Auto) | None => None,
        };
        for (flag, asked, found) in [
            ("--nodes", self.nodes, layout.nodes.len() as u32),
            ("--shards", self.shards, layout.shards),
            ("--partitions", self.partitions, layout.partitions),
            ("--port", asked_port, port.into()),
        ] {
            if let Some(asked) = asked.filter(|&asked| asked != found) {
                return Err(Failure::new(
                    Exit::Failure,
                    format!(
                        "{} was laid out with {flag} {found}, not {asked}: leave the flag out to run it as \
                         it is, or give another --dir",
                        folder.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn node_json(node: &NodeFiles) -> serde_json::Map<String, serde_json::Value> {
    let mut object = serde_json::Map::new();
    object.insert("id".to_owned(), node.id.into());
    object.insert("address".to_owned(), node.address.to_string().into());
    for (name, path) in [("config", &node.config), ("log", &node.log), ("data", &node.data)] {
        object.insert(name.to_owned(), path.to_string_lossy().into());
    }
    object
}

fn print_layout(args: &Args, layout: &Layout) -> Result<(), Failure> {
    if args.json {
        let nodes: Vec<_> = layout.nodes.iter().map(node_json).collect();
        return output::print_json(&json!({ "cluster": layout.cluster.to_string(), "nodes": nodes }));
    }
    let mut text = String::new();
    for node in &layout.nodes {
        text.push_str(&format!("terrane start --config {}    # {}\n", node.config.display(), node.address));
    }
    output::print(text)
}

fn print_ready(args: &Args, layout: &Layout, nodes: &Nodes<'_>, picture: &Picture) -> Result<(), Failure> {
    let leads = |id: u32| picture.leads(NodeId(id.into()));
    if args.json {
        let listed: Vec<_> = nodes
            .list
            .iter()
            .map(|node| {
                let mut object = node_json(node.files);
                object.insert("pid".to_owned(), node.child.id().into());
                object.insert("leads".to_owned(), leads(node.files.id).into());
                object
            })
            .collect();
        return output::print_json(&json!({ "cluster": layout.cluster.to_string(), "nodes": listed }));
    }
    let mut table = status::plain_table(["node", "address", "pid", "leads", "log"]);
    for node in &nodes.list {
        table.add_row([
            node.files.id.to_string(),
            node.files.address.to_string(),
            match node.ended {
                None => node.child.id().to_string(),
                Some(_) => "ended".to_owned(),
            },
            format!("{} of {}", leads(node.files.id), layout.partitions),
            node.files.log.display().to_string(),
        ]);
    }
    let first = &layout.nodes[0].address;
    output::print(format!(
        "{}\nready: cluster {}\n  terrane put --addr {first} greeting hello\n  \
         terrane status --addr {first}\nCtrl-C stops all nodes; the data stays.\n",
        status::lines(&table),
        layout.cluster
    ))
}

/// SIGINT, SIGTERM, SIGHUP and SIGCHLD, taken when we ask instead of whenever they come.
struct Signals(SignalFd);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Somebody wants us to stop.
    Stop,
    /// A child changed, or nothing happened in time.
    Look,
}

impl Signals {
    fn block() -> anyhow::Result<Signals> {
        let set: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
        set.thread_block().context("blocking signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("opening a signalfd")?;
        Ok(Signals(fd))
    }

    /// Waits for a signal, at most `timeout` (for ever if `None`).
    fn wait(&self, timeout: Option<Duration>) -> anyhow::Result<Heard> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(timeout) => PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for signals"),
        }
        let mut heard = Heard::Look;
        while let Some(signal) = self.0.read_signal().context("reading a signal")? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                heard = Heard::Stop;
            }
        }
        Ok(heard)
    }
}

struct Node<'a> {
    files: &'a NodeFiles,
    child: Child,
    ended: Option<ExitStatus>,
}

/// The running nodes. Dropping them kills what still runs.
struct Nodes<'a> {
    list: Vec<Node<'a>>,
}

impl<'a> Nodes<'a> {
    fn start(layout: &'a Layout, log: Option<&str>) -> anyhow::Result<Nodes<'a>> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut nodes = Nodes { list: Vec::new() };
        for files in &layout.nodes {
            let child = start_node(&program, files, log)?;
            nodes.list.push(Node { files, child, ended: None });
        }
        Ok(nodes)
    }

    /// Notices nodes that ended, and says so with the end of their logs.
    fn reap(&mut self) -> anyhow::Result<()> {
        for node in &mut self.list {
            if node.ended.is_some() {
                continue;
            }
            if let Some(status) = node.child.try_wait().context("asking for a node's state")? {
                node.ended = Some(status);
                eprintln!(
                    "node {} (pid {}) ended: {}; the end of {}:\n{}",
                    node.files.id,
                    node.child.id(),
                    describe(status),
                    node.files.log.display(),
                    log_tail(&node.files.log)
                );
            }
        }
        Ok(())
    }

    fn running(&self) -> usize {
        self.list.iter().filter(|node| node.ended.is_none()).count()
    }

    fn signal(&self, signal: Signal) {
        for node in self.list.iter().filter(|node| node.ended.is_none()) {
            // Not yet waited for, so the pid is still this child's; failing means that it just ended.
            let _ = kill(Pid::from_raw(node.child.id() as i32), signal);
        }
    }

    /// Asks all to stop, and kills those that have not after [`STOP_PATIENCE`] or at a second Ctrl-C.
    fn stop(mut self, signals: &Signals) -> Result<(), Failure> {
        if self.running() == 0 {
            return Err(Failure::new(Exit::Failure, "all nodes have ended"));
        }
        eprintln!("stopping {} nodes", self.running());
        self.signal(Signal::SIGTERM);
        let mut deadline = Some(Instant::now() + STOP_PATIENCE);
        let mut failed = Vec::new();
        loop {
            for node in self.list.iter_mut().filter(|node| node.ended.is_none()) {
                node.ended = node.child.try_wait().context("asking for a node's state")?;
                // Dying of SIGTERM is stopping too: the node was not yet up far enough to do it gracefully.
                let stopped =
                    |status: &ExitStatus| status.success() || status.signal() == Some(Signal::SIGTERM as i32);
                if let Some(status) = node.ended.filter(|status| !stopped(status)) {
                    failed.push(format!(
                        "node {} stopped with {}; see {}",
                        node.files.id,
                        describe(status),
                        node.files.log.display()
                    ));
                }
            }
            if self.running() == 0 {
                break;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) || signals.wait(left)? == Heard::Stop {
                eprintln!("killing {} nodes that have not stopped", self.running());
                self.signal(Signal::SIGKILL);
                // Nothing survives that: from here on it is only a wait.
                deadline = None;
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Failure, failed.join("\n"))) }
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        for node in self.list.iter_mut().filter(|node| node.ended.is_none()) {
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

fn start_node(program: &Path, files: &NodeFiles, log_filter: Option<&str>) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(&files.log)
        .with_context(|| format!("opening {}", files.log.display()))?;
    let mut command = Command::new(program);
    command.arg("start").arg("--config").arg(&files.config);
    if let Some(filter) = log_filter {
        command.arg("--log").arg(filter);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("duplicating the log's descriptor")?)
        .stderr(log)
        .process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec the closure only makes the system calls sigprocmask, prctl and getppid,
    // which are async-signal-safe, and neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            // The child inherits our blocked signals, and must die of what is meant to end it.
            SigSet::empty().thread_set_mask()?;
            set_pdeathsig(Signal::SIGTERM)?;
            // The parent may have died before the request; then nobody would stop this node.
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(nix::libc::ECHILD));
            }
            Ok(())
        });
    }
    command.spawn().with_context(|| format!("starting node {}", files.id))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => signal.to_string(),
            Err(_) => format!("signal {signal}"),
        },
        (None, None) => "no status".to_owned(),
    }
}

/// The last lines of a log, indented.
fn log_tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = fs::metadata(path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    match read() {
        Ok(tail) => {
            let text = String::from_utf8_lossy(&tail);
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LOG_TAIL_LINES);
            lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
        }
        Err(error) => format!("    (cannot be read: {error})"),
    }
}

/// Waits until every partition has a leader. `None`: told to stop, or no node is left.
fn wait_for_leaders(
    layout: &Layout,
    nodes: &mut Nodes<'_>,
    signals: &Signals,
) -> Result<Option<Picture>, Failure> {
    let addresses: Vec<String> = layout.nodes.iter().map(|node| node.address.to_string()).collect();
    let mut patience = Some(Instant::now() + ELECTION_PATIENCE);
    loop {
        if signals.wait(Some(LOOK_INTERVAL))? == Heard::Stop {
            return Ok(None);
        }
        nodes.reap()?;
        if nodes.running() == 0 {
            return Ok(None);
        }
        let missing = match Connection::to(&addresses, LOOK_TIMEOUT).and_then(|found| Picture::look(&found)) {
            Ok(picture) => {
                let missing = picture.leaderless();
                if missing.is_empty() {
                    return Ok(Some(picture));
                }
                format!("no leader yet for {}", missing.join(", "))
            }
            Err(failure) => failure.message,
        };
        if patience.is_some_and(|patience| Instant::now() >= patience) {
            patience = None;
            eprintln!("still waiting: {missing}; the logs say more");
        }
    }
}

/// Reports nodes that end, until told to stop or none is left.
fn watch(nodes: &mut Nodes<'_>, signals: &Signals) -> anyhow::Result<()> {
    while nodes.running() > 0 {
        if signals.wait(None)? == Heard::Stop {
            return Ok(());
        }
        nodes.reap()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logs_end_is_shown_and_its_beginning_left_out() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let path = temporary.path().join("log");
        assert!(log_tail(&path).contains("cannot be read"));
        let lines: Vec<String> = (0..5000).map(|line| format!("line {line}")).collect();
        fs::write(&path, lines.join("\n")).expect("written");
        let tail = log_tail(&path);
        assert_eq!(tail.lines().count(), LOG_TAIL_LINES);
        assert!(tail.ends_with("    line 4999"), "{tail}");
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "SIGKILL");
    }
}
