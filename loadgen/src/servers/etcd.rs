//! An etcd cluster of one or three members on loopback.
//!
//! What the members are given, and why (etcd 3.4, "Configuration flags", "System limits" and "Maintenance"):
//! - Every write is synced on a majority before its answer; this cannot be switched off in 3.4, so there is no nosync.
//! - `quota-backend-bytes` 8 GiB, the largest that etcd recommends, instead of 2 GiB: a load should not end at the quota.
//! - `auto-compaction-retention 0` (default, off): every version of every key is kept, as by an etcd out of the box;
//!   its space amplification grows with every overwrite and ends in a full database. Another retention can be asked for
//!   (compaction frees pages for use within the file; the file itself shrinks only by defragmentation).
//! - `snapshot-count` 100,000, `heartbeat-interval` 100 ms, `election-timeout` 1 s, `max-txn-ops` 128,
//!   `max-request-bytes` 1.5 MiB: defaults.
//! - `log-level warn`: nothing is logged per request.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::servers::loopback::{ask, await_ready, find, free_ports};
use crate::servers::process::{self, STOP_LIMIT, Server};
use crate::target::setup::Overrides;

/// What can be set otherwise.
const KNOWN: [&str; 4] =
    ["quota_backend_bytes", "snapshot_count", "auto_compaction_mode", "auto_compaction_retention"];

/// The running members. Dropping it stops them.
#[derive(Debug)]
pub(crate) struct EtcdServers {
    /// One for each member, in order, as `ports` and `folders`.
    servers: Vec<Server>,
    ports: Vec<u16>,
    folders: Vec<PathBuf>,
    settings: Vec<(String, String)>,
}

impl EtcdServers {
    /// Starts that many members, each with its data in a folder of its own under `folder` (created if missing) and its
    /// log beside it, and waits until all of them serve. Knows the overrides `quota_backend_bytes`, `snapshot_count`,
    /// `auto_compaction_mode` and `auto_compaction_retention`. Must be called on the main thread: the kernel ends the
    /// members with the thread that started them.
    pub(crate) async fn start(
        members: usize,
        folder: &Path,
        overrides: Overrides,
    ) -> anyhow::Result<EtcdServers> {
        let ports = free_ports(members * 2)?;
        let (client_ports, peer_ports) = ports.split_at(members);
        Self::start_on(client_ports, peer_ports, folder, overrides).await
    }

    async fn start_on(
        client_ports: &[u16],
        peer_ports: &[u16],
        folder: &Path,
        mut overrides: Overrides,
    ) -> anyhow::Result<EtcdServers> {
        let quota = overrides.size("quota_backend_bytes", 8 << 30)?;
        let snapshot_count: u64 = overrides.parsed("snapshot_count", 100_000)?;
        let compaction_mode: String = overrides.parsed("auto_compaction_mode", "periodic".to_owned())?;
        let retention: String = overrides.parsed("auto_compaction_retention", "0".to_owned())?;
        overrides.finish(&KNOWN)?;

        let program = find("etcd", "etcd-server")?;
        let version = version(&program)?;
        let members = client_ports.len();
        let flags = [
            ("quota-backend-bytes", quota.to_string()),
            ("snapshot-count", snapshot_count.to_string()),
            ("auto-compaction-mode", compaction_mode),
            ("auto-compaction-retention", retention.clone()),
            ("heartbeat-interval", "100".to_owned()),
            ("election-timeout", "1000".to_owned()),
            ("max-txn-ops", "128".to_owned()),
            ("max-request-bytes", "1572864".to_owned()),
        ];
        let peer = |member: usize| format!("http://127.0.0.1:{}", peer_ports[member]);
        let client = |member: usize| format!("http://127.0.0.1:{}", client_ports[member]);
        let name = |member: usize| format!("member-{}", member + 1);
        let cluster: Vec<String> =
            (0..members).map(|member| format!("{}={}", name(member), peer(member))).collect();

        let mut servers = Vec::new();
        let mut folders = Vec::new();
        for member in 0..members {
            let data = folder.join(name(member));
            if data.exists() {
                bail!("{} exists already; a new cluster needs folders of its own", data.display());
            }
            std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
            let mut command = Command::new(&program);
            // Its flags could also come from the environment.
            for (variable, _) in std::env::vars_os() {
                if variable.as_encoded_bytes().starts_with(b"ETCD_") {
                    command.env_remove(variable);
                }
            }
            command.args(["--name", &name(member), "--data-dir"]).arg(&data);
            command.args(["--listen-client-urls", &client(member)]);
            command.args(["--advertise-client-urls", &client(member)]);
            command.args(["--listen-peer-urls", &peer(member)]);
            command.args(["--initial-advertise-peer-urls", &peer(member)]);
            command.args(["--initial-cluster", &cluster.join(",")]);
            command.args(["--initial-cluster-state", "new"]);
            command.args(["--logger", "zap", "--log-level", "warn", "--log-outputs", "stderr"]);
            for (flag, value) in &flags {
                command.arg(format!("--{flag}")).arg(value);
            }
            let log = folder.join(format!("{}.log", name(member)));
            let mut server = Server::new(format!("etcd {}", name(member)), log).dying_of_sigterm();
            server.start(&mut command)?;
            servers.push(server);
            folders.push(data);
        }
        await_ready(&mut servers, async || {
            for port in client_ports {
                if !healthy(*port).await {
                    return false;
                }
            }
            true
        })
        .await?;

        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut settings = vec![own("version", &version), own("members", &members.to_string())];
        settings.extend(flags.into_iter().map(|(flag, value)| (flag.to_owned(), value)));
        if retention == "0" {
            settings.push(own("history", "every version is kept: no compaction by default"));
        }
        Ok(EtcdServers { servers, ports: client_ports.to_vec(), folders, settings })
    }

    /// Where the members answer clients, as host:port, in order.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Their processes, in order; none once they were stopped.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(Server::pid).collect()
    }

    /// Where their data live, in order.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.folders.clone()
    }

    /// The effective configuration and the version, by the names of etcd's flags.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    /// Fails if a member has ended by itself, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.servers.iter_mut().try_for_each(Server::check)
    }

    /// Stops all members; gives a complaint for each that did not stop cleanly. Harmless when they were stopped
    /// already.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        process::stop(&mut self.servers, STOP_LIMIT)
    }
}

impl Drop for EtcdServers {
    fn drop(&mut self) {
        process::drop_all(&mut self.servers);
    }
}

/// Whether a member serves linearizable requests: it knows a leader, and raised no alarm.
async fn healthy(port: u16) -> bool {
    let request = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let answer = ask(port, request.as_bytes(), |text| text.contains('}')).await;
    answer.split_ascii_whitespace().nth(1) == Some("200") && answer.contains(r#""health":"true""#)
}

/// `etcd Version: 3.4.23\n...` → `3.4.23`.
fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {} --version", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(found.unwrap_or(text.trim()).to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;
    use crate::target::clock::on_tokio;

    /// Says so and gives true where there is nothing to test with.
    #[expect(clippy::print_stdout, reason = "a skipped test says so")]
    fn skipped() -> bool {
        let missing = find("etcd", "etcd-server").is_err();
        if missing {
            println!("skipped: etcd not installed");
        }
        missing
    }

    fn alive(pid: u32) -> bool {
        kill(Pid::from_raw(pid as i32), None).is_ok()
    }

    #[test]
    fn three_members_start_and_stop_without_a_trace() {
        if skipped() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        on_tokio(async {
            let mut servers = EtcdServers::start(3, folder.path(), Overrides::default()).await.unwrap();
            servers.check().unwrap();
            let pids = servers.pids();
            assert_eq!((pids.len(), servers.addresses().len(), servers.folders().len()), (3, 3, 3));
            assert!(pids.iter().all(|pid| alive(*pid)));
            assert!(servers.folders().iter().all(|folder| folder.join("member/wal").is_dir()));
            let error = EtcdServers::start(1, folder.path(), Overrides::default()).await.unwrap_err();
            assert!(error.to_string().contains("exists already"), "{error}");
            assert_eq!(servers.stop(), Vec::<String>::new());
            assert!(!pids.iter().any(|pid| alive(*pid)));
            assert_eq!(servers.stop(), Vec::<String>::new(), "stopping twice is harmless");
        })
        .unwrap();
    }

    #[test]
    fn a_taken_port_is_an_error_with_the_servers_own_words() {
        if skipped() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let free = free_ports(1).unwrap();
        on_tokio(async {
            let started = EtcdServers::start_on(&[port], &free, folder.path(), Overrides::default()).await;
            let error = started.unwrap_err().to_string();
            assert!(error.contains("etcd member-1 ended with code 1 by itself"), "{error}");
            assert!(error.contains("in use"), "{error}");
        })
        .unwrap();
    }

    #[test]
    fn an_unknown_override_starts_nothing() {
        on_tokio(async {
            let overrides = Overrides::new([("fsync".to_owned(), "no".to_owned())]);
            let error = EtcdServers::start(1, Path::new("/nonexistent"), overrides).await.unwrap_err();
            assert!(
                error.to_string().contains("--set fsync: unknown here; this target knows quota"),
                "{error}"
            );
        })
        .unwrap();
    }
}
