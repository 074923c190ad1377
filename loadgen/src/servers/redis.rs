//! A Redis server on loopback, with an append-only file.
//!
//! What it is given, and why (redis.conf of Redis 7.0 explains each):
//! - `save ''`: no snapshots beside the append-only file, which alone decides what survives.
//! - `appendonly yes`, `appendfsync always`: every write is in the file and synced before its answer; several clients'
//!   writes of one turn of the event loop share a sync. `everysec`: up to a second of answered writes is lost with
//!   power, none with the process.
//! - `no-appendfsync-on-rewrite no` (default): a rewrite does not suspend the syncs.
//! - `auto-aof-rewrite-percentage 100`, `auto-aof-rewrite-min-size 64mb` (defaults): the file is rewritten by a forked
//!   child whenever it has doubled. This is Redis's cleaning, and part of what it costs.
//! - `maxmemory-policy noeviction`, no `maxmemory`: all data stay in memory; a cache budget does not apply.
//! - `io-threads 1` (default).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::servers::loopback::{ask, await_ready, find, free_ports};
use crate::servers::process::{self, STOP_LIMIT, Server};
use crate::target::setup::Overrides;

/// When the append-only file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppendFsync {
    /// Before every answer.
    Always,
    /// Once a second.
    EverySec,
}

impl AppendFsync {
    /// As redis.conf spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            AppendFsync::Always => "always",
            AppendFsync::EverySec => "everysec",
        }
    }
}

/// The running server. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct RedisServer {
    server: Server,
    folder: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
}

impl RedisServer {
    /// Starts a server with its data and its log in `folder` (created if missing; data found there are kept), and
    /// waits until it answers. Knows the overrides `auto_aof_rewrite_percentage`, `auto_aof_rewrite_min_size` and
    /// `io_threads`. Must be called on the main thread: the kernel ends the server with the thread that started it.
    pub(crate) async fn start(
        folder: &Path,
        fsync: AppendFsync,
        overrides: Overrides,
    ) -> anyhow::Result<RedisServer> {
        let port = free_ports(1)?[0];
        Self::start_on(port, folder, fsync, overrides).await
    }

    async fn start_on(
        port: u16,
        folder: &Path,
        fsync: AppendFsync,
        mut overrides: Overrides,
    ) -> anyhow::Result<RedisServer> {
        let rewrite_percentage: u32 = overrides.parsed("auto_aof_rewrite_percentage", 100)?;
        let rewrite_bytes = overrides.size("auto_aof_rewrite_min_size", 64 << 20)?;
        let io_threads: u32 = overrides.parsed("io_threads", 1)?;
        overrides.finish(&["auto_aof_rewrite_percentage", "auto_aof_rewrite_min_size", "io_threads"])?;

        let program = find("redis-server", "redis-server")?;
        let version = version(&program)?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let settings: Vec<(String, String)> = [
            ("bind", "127.0.0.1".to_owned()),
            ("save", String::new()),
            ("appendonly", "yes".to_owned()),
            ("appendfsync", fsync.name().to_owned()),
            ("no-appendfsync-on-rewrite", "no".to_owned()),
            ("auto-aof-rewrite-percentage", rewrite_percentage.to_string()),
            ("auto-aof-rewrite-min-size", rewrite_bytes.to_string()),
            ("maxmemory", "0".to_owned()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("io-threads", io_threads.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();

        let mut command = Command::new(&program);
        command.current_dir(folder).args(["--port", &port.to_string(), "--daemonize", "no"]);
        command.args(["--loglevel", "notice", "--dir"]).arg(std::path::absolute(folder)?);
        for (name, value) in &settings {
            command.arg(format!("--{name}")).arg(value);
        }
        let mut server = Server::new("redis-server", folder.join("redis.log"));
        server.start(&mut command)?;
        // Until its data are in memory it answers `-LOADING`.
        await_ready(std::slice::from_mut(&mut server), async || {
            ask(port, b"PING\r\n", |answer| answer.contains('\n')).await.starts_with("+PONG")
        })
        .await?;
        let mut settings = settings;
        settings.insert(0, ("version".to_owned(), version));
        settings.push(("memory".to_owned(), "holds all data; the cache budget does not apply".to_owned()));
        Ok(RedisServer { server, folder: folder.to_owned(), port, settings })
    }

    /// Where it answers, as host:port; one address.
    pub(crate) fn addresses(&self) -> Vec<String> {
        vec![format!("127.0.0.1:{}", self.port)]
    }

    /// Its process; none once it was stopped.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.server.pid().into_iter().collect()
    }

    /// Where its data live.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        vec![self.folder.clone()]
    }

    /// The effective configuration and the version, by the names of redis.conf.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    /// Fails if it has ended by itself, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.server.check()
    }

    /// Stops it; gives a complaint if it did not stop cleanly. Harmless when it was stopped already.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        process::stop(std::slice::from_mut(&mut self.server), STOP_LIMIT)
    }
}

/// `Redis server v=7.0.15 sha=...` → `7.0.15`.
fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {} --version", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.split_ascii_whitespace().find_map(|word| word.strip_prefix("v="));
    Ok(found.map_or_else(|| text.trim().to_owned(), str::to_owned))
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
        let missing = find("redis-server", "redis-server").is_err();
        if missing {
            println!("skipped: redis-server not installed");
        }
        missing
    }

    fn alive(pid: u32) -> bool {
        kill(Pid::from_raw(pid as i32), None).is_ok()
    }

    #[test]
    fn it_starts_as_told_and_stops_without_a_trace() {
        if skipped() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        on_tokio(async {
            let overrides = Overrides::new([("io_threads".to_owned(), "2".to_owned())]);
            let mut server = RedisServer::start(folder.path(), AppendFsync::Always, overrides).await.unwrap();
            server.check().unwrap();
            for (name, value) in server.settings() {
                if name == "version" {
                    assert!(value.starts_with(|first: char| first.is_ascii_digit()), "{value}");
                } else if name != "memory" {
                    let question = format!("CONFIG GET {name}\r\n");
                    let answer =
                        ask(server.port, question.as_bytes(), |text| text.lines().count() >= 5).await;
                    assert_eq!(answer.lines().nth(4), Some(value.as_str()), "{name}");
                }
            }
            let pid = server.pids()[0];
            assert!(alive(pid));
            assert_eq!(server.stop(), Vec::<String>::new());
            assert!(!alive(pid));
            assert_eq!(server.stop(), Vec::<String>::new(), "stopping twice is harmless");
            assert!(server.pids().is_empty());
            assert!(server.folders()[0].join("appendonlydir").is_dir());

            let server =
                RedisServer::start(folder.path(), AppendFsync::EverySec, Overrides::default()).await.unwrap();
            let pid = server.pids()[0];
            drop(server);
            assert!(!alive(pid));
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
        on_tokio(async {
            let started =
                RedisServer::start_on(port, folder.path(), AppendFsync::Always, Overrides::default()).await;
            let error = started.unwrap_err().to_string();
            assert!(error.contains("redis-server ended with code 1 by itself"), "{error}");
            assert!(error.contains("in use"), "{error}");
        })
        .unwrap();
    }

    #[test]
    fn an_unknown_override_starts_nothing() {
        on_tokio(async {
            let overrides = Overrides::new([("appendfsync".to_owned(), "no".to_owned())]);
            let folder = Path::new("/nonexistent");
            let error = RedisServer::start(folder, AppendFsync::Always, overrides).await.unwrap_err();
            assert!(error.to_string().contains("--set appendfsync: unknown here"), "{error}");
        })
        .unwrap();
    }
}
