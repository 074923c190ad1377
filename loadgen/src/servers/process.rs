//! A server as a child process: started with its output in a log, watched, stopped by its own process id.
//!
//! Invariants: every process started here is ended here on every way out (drop, error, Ctrl-C); if this process is
//! killed outright, the kernel ends them (PR_SET_PDEATHSIG). They run in process groups of their own, so that a Ctrl-C
//! on the terminal reaches them only through us.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

/// How long a server may take to stop by itself before it is killed.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The same on the way out of an error or an interruption.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// How often processes are looked at while waiting for them.
const LOOK: Duration = Duration::from_millis(10);

/// One server, running or not. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    log: PathBuf,
    dies_of_sigterm: bool,
    process: Option<Child>,
}

impl Server {
    /// A server that is not running yet; `name` is how messages call it.
    pub(crate) fn new(name: impl Into<String>, log: impl Into<PathBuf>) -> Server {
        Server { name: name.into(), log: log.into(), dies_of_sigterm: false, process: None }
    }

    #[cfg(any(feature = "etcd", feature = "redis", test))]
    /// The server, stopped cleanly, ends by raising SIGTERM once more instead of by exiting with 0: no complaint.
    pub(crate) fn dying_of_sigterm(mut self) -> Server {
        self.dies_of_sigterm = true;
        self
    }

    /// Starts it; its output is appended to its log. Must be called on the main thread: the kernel ends the server with
    /// the *thread* that started it.
    pub(crate) fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("{} is running already", self.name);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open the log {}", self.log.display()))?;
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
        let spawned = command.spawn();
        let program = Path::new(command.get_program());
        self.process =
            Some(spawned.with_context(|| format!("cannot start {} ({})", self.name, program.display()))?);
        Ok(())
    }

    #[cfg(any(feature = "etcd", feature = "redis", test))]
    /// Its process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Kills it with SIGKILL; gives the moment just before. Returns once the process is gone.
    pub(crate) fn kill(&mut self) -> anyhow::Result<Instant> {
        let mut process = self.process.take().ok_or_else(|| anyhow!("{} is not running", self.name))?;
        let at = Instant::now();
        process.kill().with_context(|| format!("cannot kill {}", self.name))?;
        process.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(at)
    }

    /// Fails if it should be running and has ended, quoting its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let status = process.try_wait().with_context(|| format!("cannot look at {}'s process", self.name))?;
        match status {
            None => Ok(()),
            Some(status) => {
                self.process = None;
                let log = self.log_tail();
                bail!("{} {} by itself. The end of its log:\n{log}", self.name, ended(status));
            }
        }
    }

    /// The end of its log, for an error message.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What went wrong here cannot be acted upon any more; the error that led here matters.
        let _ = stop(std::slice::from_mut(self), DROP_LIMIT);
    }
}

/// Stops servers together: SIGTERM to all, `limit` in all for them to finish, SIGKILL for those that do not. Those that
/// do not run are passed over. Gives a complaint for each that did not stop cleanly.
pub(crate) fn stop(servers: &mut [Server], limit: Duration) -> Vec<String> {
    let mut complaints = Vec::new();
    for server in servers.iter() {
        if let Some(process) = &server.process {
            // The process is our own child and was not waited for, so its id cannot be another's.
            let pid = Pid::from_raw(process.id() as i32);
            if let Err(errno) = kill(pid, Signal::SIGTERM) {
                complaints.push(format!("{} could not be told to stop: {errno}", server.name));
            }
        }
    }
    let begun = Instant::now();
    for server in servers.iter_mut() {
        let Some(mut process) = server.process.take() else { continue };
        let name = &server.name;
        let status = loop {
            match process.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if begun.elapsed() < limit => std::thread::sleep(LOOK),
                _ => break None,
            }
        };
        match status {
            Some(status) if status.success() => {}
            Some(status) if server.dies_of_sigterm && status.signal() == Some(Signal::SIGTERM as i32) => {}
            Some(status) => complaints.push(format!("{name} {} when told to stop", ended(status))),
            None => {
                complaints.push(format!("{name} did not stop within {} s and was killed", limit.as_secs()));
                if let Err(error) = process.kill().and_then(|()| process.wait().map(drop)) {
                    complaints.push(format!("{name} could not be killed: {error}"));
                }
            }
        }
    }
    complaints
}

/// Stops servers as [`stop`] does, on the way out.
pub(crate) fn drop_all(servers: &mut [Server]) {
    let _ = stop(servers, DROP_LIMIT);
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
mod tests {
    use super::*;

    #[test]
    fn long_logs_are_quoted_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let lines: Vec<String> = (0..5_000).map(|line| format!("line {line}")).collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let tail = log_tail(&log);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 4999"), "{tail}");
        assert!(log_tail(&folder.path().join("none")).contains("No such file"));
        File::create(&log).unwrap();
        assert!(log_tail(&log).contains("is empty"));
    }

    /// `sleep` does not handle SIGTERM: it is the simplest server that dies of it.
    #[test]
    fn death_by_sigterm_is_clean_only_where_expected() {
        let folder = tempfile::tempdir().unwrap();
        let mut servers = [
            Server::new("one", folder.path().join("one")),
            Server::new("two", folder.path().join("two")).dying_of_sigterm(),
        ];
        for server in &mut servers {
            server.start(Command::new("sleep").arg("600")).unwrap();
        }
        let error = servers[0].start(Command::new("sleep").arg("600")).unwrap_err().to_string();
        assert_eq!(error, "one is running already");
        assert_eq!(stop(&mut servers, STOP_LIMIT), ["one was ended by SIGTERM when told to stop"]);
        assert!(servers.iter().all(|server| server.pid().is_none()));
        assert_eq!(stop(&mut servers, STOP_LIMIT), Vec::<String>::new(), "stopping twice is harmless");
    }
}
