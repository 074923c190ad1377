//! The binary as its users have it: started with arguments in a folder of its own, judged by its exit code, its output
//! and its files.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use terrane_client::testing::{MemoryCluster, Shape};
use terrane_client::wire::Request;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// What most tests run against.
pub(crate) const SHAPE: Shape = Shape { nodes: 3, shards: 2, partitions: 8 };

pub(crate) async fn memory_cluster() -> MemoryCluster {
    MemoryCluster::listen(SHAPE).await.unwrap()
}

/// A folder on a real file system: one for temporary files may be in memory, without direct I/O.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The report that `--json {}/json` wrote.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text("json")).unwrap()
    }

    /// Files of these names, as an earlier run left them.
    pub(crate) fn hold(&self, names: &[&str]) {
        for name in names {
            std::fs::write(self.path(name), format!("the older {name}")).unwrap();
        }
    }

    /// They are untouched.
    pub(crate) fn still_hold(&self, names: &[&str]) {
        for name in names {
            assert_eq!(self.text(name), format!("the older {name}"));
        }
    }

    /// The names of all that is in the folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The binary with these arguments, `{}` standing for this folder.
    pub(crate) fn command(&self, args: &str) -> Command {
        command(env!("CARGO_BIN_EXE_terrane-loadgen"), self.0.path(), args)
    }

    /// Runs it to its end, which must have this exit code.
    pub(crate) async fn ends(&self, code: i32, args: &str) -> Ended {
        Ended::of(self.command(args).output().await.unwrap()).with(code)
    }

    /// Starts it, to be waited for later.
    pub(crate) fn starts(&self, args: &str) -> UnderWay {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        UnderWay(command.spawn().unwrap())
    }
}

/// A program with these arguments, `{}` standing for the folder.
pub(crate) fn command(program: &str, folder: &Path, args: &str) -> Command {
    let mut command = Command::new(program);
    command.args(args.split_whitespace().map(|arg| arg.replace("{}", folder.to_str().unwrap())));
    // Where an embedded store without a named folder goes.
    command.env("TMPDIR", folder);
    command
}

/// `run` against this cluster.
pub(crate) fn run(cluster: &MemoryCluster, args: &str) -> String {
    format!("run --addr {} --json {{}}/json {args}", cluster.addresses().join(","))
}

/// `verify` of the record `acknowledged` against this cluster.
pub(crate) fn verify(cluster: &MemoryCluster, args: &str) -> String {
    format!("verify {{}}/acknowledged --addr {} --json {{}}/json {args}", cluster.addresses().join(","))
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }

    /// Complaints name what is wrong.
    pub(crate) fn complains(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "nothing of '{word}': {}", self.stderr);
        }
    }

    /// Results tell this.
    pub(crate) fn tells(&self, words: &[&str]) {
        for word in words {
            assert!(self.stdout.contains(word), "nothing of '{word}': {}{}", self.stdout, self.stderr);
        }
    }
}

/// A process that runs.
pub(crate) struct UnderWay(Child);

impl UnderWay {
    /// Waits until the cluster has received so many reads and writes.
    pub(crate) async fn until(
        &mut self,
        calls: &mut watch::Receiver<Calls>,
        enough: impl Fn(&Calls) -> bool,
    ) {
        tokio::select! {
            seen = calls.wait_for(enough) => drop(seen.unwrap()),
            ended = self.0.wait() => panic!("it ended before: {ended:?}"),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // A process that has ended already is what some wait for.
        if let Some(id) = self.0.id() {
            kill(Pid::from_raw(id as i32), signal).unwrap();
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id().unwrap()
    }

    /// Whether it still runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub(crate) async fn end(self) -> Ended {
        Ended::of(self.0.wait_with_output().await.unwrap())
    }
}

/// What a cluster has received.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) gets: u64,
    pub(crate) puts: u64,
}

/// Counts what the cluster receives from now on, for someone who waits.
pub(crate) fn calls(cluster: &MemoryCluster) -> watch::Receiver<Calls> {
    let (count, calls) = watch::channel(Calls::default());
    cluster.on_call(move |call| {
        count.send_modify(|calls| match call.request {
            Request::Get { .. } => calls.gets += 1,
            Request::Put { .. } => calls.puts += 1,
            _ => {}
        });
        terrane_client::testing::Fault::None
    });
    calls
}
