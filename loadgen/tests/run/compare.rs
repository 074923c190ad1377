//! How `compare` ends early: the measurement under way is a process of its own, and must not outlive it.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::outside::Folder;

/// A comparison that measures for long: often, rather than long each time, which would need much space.
struct UnderWay {
    process: tokio::process::Child,
    pid: Pid,
    folder: Folder,
}

impl UnderWay {
    /// Starts it, in a process group of its own as a shell would, and waits until a measurement runs.
    async fn start() -> UnderWay {
        let folder = Folder::new();
        let mut command = folder.command(
            "compare --target engine --scale 1MiB --value-sizes 1024 --clients 8 --seconds 1 --warmup 0 \
             --repetitions 100 --shards 1 --data-dir {}/data",
        );
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let process = command.spawn().unwrap();
        let pid = Pid::from_raw(process.id().unwrap() as i32);
        let mut under_way = UnderWay { process, pid, folder };
        // The device is laid out: the measurement listens for signals.
        while !(under_way.laid_out() && under_way.measurements() == 1) {
            assert_eq!(under_way.process.try_wait().unwrap(), None);
            tokio::task::yield_now().await;
        }
        under_way
    }

    /// What lies in the folder of the data: one folder for the measurement.
    fn measurement_folders(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.folder.path("data"));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn laid_out(&self) -> bool {
        self.measurement_folders().iter().any(|folder| folder.join("data/engine.terrane").exists())
    }

    /// How many measurements of this comparison run: processes with its folder on their command line.
    fn measurements(&self) -> usize {
        let folder = self.folder.path("data");
        let folder = folder.to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap();
        // A process that ended meanwhile has no command line to read.
        let lines =
            processes.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok());
        lines.filter(|line| line.contains("\0run\0") && line.contains(folder)).count()
    }
}

/// Ctrl-C goes to the whole group of the terminal, yet the measurement is told once: it ends in order, and so does
/// compare.
#[tokio::test]
async fn ctrl_c_ends_the_measurement_and_leaves_nothing() {
    let mut under_way = UnderWay::start().await;
    killpg(under_way.pid, Signal::SIGINT).unwrap();
    assert_eq!(under_way.process.wait().await.unwrap().code(), Some(130));
    assert_eq!(under_way.measurements(), 0);
    assert_eq!(under_way.measurement_folders(), [""; 0].map(std::path::PathBuf::from));
}

/// Killed outright, compare can end nothing, but the kernel tells its measurement to end.
#[tokio::test]
async fn a_killed_comparison_leaves_no_process_behind() {
    let mut under_way = UnderWay::start().await;
    kill(under_way.pid, Signal::SIGKILL).unwrap();
    under_way.process.wait().await.unwrap();
    while under_way.measurements() > 0 {
        tokio::task::yield_now().await;
    }
}
