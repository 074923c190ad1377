//! A cluster of real `terrane` processes on loopback, for tests.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use terrane_server::config::Config;

/// The binary under test.
pub(crate) const TERRANE: &str = env!("CARGO_BIN_EXE_terrane");

/// Three nodes, or as many as asked for; all are killed when it goes away.
pub(crate) struct Processes {
    /// Holds the devices; removed at the end. On the build's own file system, which takes direct I/O.
    _dir: tempfile::TempDir,
    nodes: Vec<Node>,
}

struct Node {
    config: PathBuf,
    address: String,
    child: Option<Child>,
}

impl Processes {
    /// Lays a cluster out and starts it. `adjust` may change each node's configuration.
    pub(crate) fn start(nodes: u32, shards: u32, adjust: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the devices");
        let layout = Command::new(TERRANE)
            .args(["local", "--init-only", "--json", "--port", "auto", "--size", "256MiB"])
            .args(["--nodes", &nodes.to_string(), "--shards", &shards.to_string(), "--dir"])
            .arg(dir.path())
            .output()
            .expect("the binary runs");
        assert!(layout.status.success(), "{}", String::from_utf8_lossy(&layout.stderr));
        let layout: serde_json::Value =
            serde_json::from_slice(&layout.stdout).expect("JSON on standard output");
        let nodes = layout["nodes"].as_array().expect("a list of nodes").iter().map(|node| {
            let config = PathBuf::from(node["config"].as_str().expect("a path"));
            let mut settings = Config::load(&config).expect("a configuration that was just written");
            adjust(&mut settings);
            settings.validate().expect("the test's changes are valid");
            std::fs::write(&config, settings.to_toml()).expect("the configuration can be rewritten");
            Node { config, address: node["address"].as_str().expect("an address").to_owned(), child: None }
        });
        let mut cluster = Self { nodes: nodes.collect(), _dir: dir };
        for node in 0..cluster.nodes.len() {
            cluster.restart(node);
        }
        cluster
    }

    /// Base addresses of all nodes.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Starts a node that is not running.
    pub(crate) fn restart(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        assert!(node.child.is_none(), "it runs already");
        node.child = Some(spawn(&node.config));
    }

    /// Sends a signal to a node that runs.
    pub(crate) fn signal(&self, node: usize, signal: nix::sys::signal::Signal) {
        let child = self.nodes[node].child.as_ref().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("our own child can be signalled");
    }

    /// SIGKILL, at once.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut child = self.nodes[node].child.take().expect("it runs");
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(config: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(config.with_extension("log"));
    let log = log.expect("a log file beside the configuration");
    let mut command = Command::new(TERRANE);
    command.arg("start").arg("--config").arg(config).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a second handle")).stderr(log);
    // SAFETY: prctl is async-signal-safe and touches only the child, which is all that is allowed between
    // fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into)
        });
    }
    command.spawn().expect("the binary starts")
}
