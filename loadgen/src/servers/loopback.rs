//! Other people's servers on loopback: found in PATH, given ports of their own, awaited until they answer.
//!
//! Invariant: a server that the system already runs on its usual port is never touched: every port here was free a
//! moment ago, and a server that finds its port taken after all ends, which [`await_ready`] reports with its log.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::servers::process::Server;

/// How long servers may take from their start until they answer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long one question may take, and how long to wait between two.
const ASK_LIMIT: Duration = Duration::from_secs(2);
const ASK_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of an answer that are looked at.
const ANSWER_BYTES: u64 = 4 << 10;

/// Finds a program in PATH; `package` is what Debian calls the package that holds it.
pub(crate) fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    find_in(std::env::var_os("PATH").as_deref(), program, package)
}

fn find_in(path: Option<&OsStr>, program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let found = folders.iter().map(|folder| folder.join(program)).find(|candidate| candidate.is_file());
    found.with_context(|| {
        format!("{program} is not installed: on Debian, apt-get install {package} (as root)")
    })
}

/// Ports of 127.0.0.1 that nobody listens on now; all different.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<Vec<_>>>()
        .context("cannot find a free port on 127.0.0.1")?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Sends `request` to a port of 127.0.0.1 and gives the beginning of the answer, up to where `complete` says that it is
/// enough. An empty answer: nobody answers.
pub(crate) async fn ask(port: u16, request: &[u8], complete: impl Fn(&str) -> bool) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.write_all(request).await?;
        let mut stream = stream.take(ANSWER_BYTES);
        let mut answer = Vec::new();
        while stream.read_buf(&mut answer).await? > 0 && !complete(&String::from_utf8_lossy(&answer)) {}
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(ASK_LIMIT, exchange).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// Waits until `ready` says so.
///
/// # Errors
/// If one of the servers ends by itself, or the time is up; both quote logs.
pub(crate) async fn await_ready(
    servers: &mut [Server],
    mut ready: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        servers.iter_mut().try_for_each(Server::check)?;
        if ready().await {
            // Who answered may be another program on the port that ours found taken.
            return servers.iter_mut().try_for_each(Server::check);
        }
        if begun.elapsed() > READY_LIMIT {
            let tails: Vec<String> = servers.iter().map(Server::log_tail).collect();
            bail!(
                "no answer within {} s. The ends of the logs:\n{}",
                READY_LIMIT.as_secs(),
                tails.join("\n")
            );
        }
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().as_os_str();
        for path in [None, Some(path)] {
            let error = find_in(path, "redis-server", "redis-server").unwrap_err().to_string();
            assert_eq!(
                error,
                "redis-server is not installed: on Debian, apt-get install redis-server (as root)"
            );
        }
        std::fs::write(folder.path().join("etcd"), "").unwrap();
        assert_eq!(find_in(Some(path), "etcd", "etcd-server").unwrap(), folder.path().join("etcd"));
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(20).unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
