//! The demo with real processes, small: three nodes on loopback, a kill under load, everything read back.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The demo on devices of 160 MiB (two shards need 129). The server is the one of the same build, if that is there;
/// under `cargo test -p terrane-loadgen` it may not be, and the demo has cargo build it.
fn demo(folder: &Path, args: &str) -> Command {
    demo_of("160MiB", folder, args)
}

/// On devices of another size.
fn demo_of(size: &str, folder: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    command.args(["demo", "--size", size, "--json"]).arg(folder.join("out.json"));
    command.args(args.split_whitespace());
    let server = PathBuf::from(env!("CARGO_BIN_EXE_terrane-loadgen")).with_file_name("terrane");
    if server.is_file() {
        command.arg("--terrane").arg(server);
    }
    command
}

/// Little enough for a test.
const SMALL: &str = "--records 500 --value-size 256 --clients 8";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("out.json")).unwrap()).unwrap()
}

#[test]
fn a_leader_is_killed_and_nothing_is_lost() {
    let folder = folder();
    let output = demo(folder.path(), &format!("{SMALL} --seconds 4 --restart-after 0.5")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let json = json(folder.path());
    assert_eq!((&json["verify"]["intact"], &json["verify"]["lost"]), (&500.into(), &0.into()), "{json:#}");
    let outage = &json["outages"][0];
    assert!(outage["max_ms"].is_number(), "all its partitions answered again: {json:#}");
    assert!(outage["partitions"].as_u64().unwrap() > 0);
    assert!(told(&output).contains("killed node"), "{}", told(&output));
    assert_eq!(json["run"]["servers"]["nodes"].as_object().unwrap().len(), 3, "{json:#}");
    assert!(json["run"]["servers"]["device_bytes_per_user_byte"]["max"].as_f64().unwrap() >= 1.0, "{json:#}");
}

/// The data of a named folder is used again: the second run skips the layout and finds the same cluster.
#[test]
fn a_named_folder_is_used_again() {
    let folder = folder();
    let data = folder.path().join("data");
    let args = format!("{SMALL} --seconds 1 --kills 0 --nodes 1");
    for words in ["Laying out", "Using the cluster's data"] {
        let output = demo(folder.path(), &args).arg("--data-dir").arg(&data).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
        assert!(told(&output).contains(words), "{}", told(&output));
        assert_eq!(json(folder.path())["verify"]["intact"], 500);
    }
}

/// A device that fills up ends the demo early, says so, and still proves that what was acknowledged is there.
#[test]
fn a_full_device_ends_early_and_loses_nothing() {
    let folder = folder();
    let args = "--records 100 --value-size 64KiB --workload w --seconds 600 --kills 0 --nodes 1";
    let output = demo(folder.path(), args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert!(told(&output).contains("are full"), "{}", told(&output));
    let json = json(folder.path());
    assert_eq!(json["ended_early"], "the target's space is used up");
    assert_eq!((&json["verify"]["lost"], &json["verify"]["unread"]), (&0.into(), &0.into()));
}

/// A demo under way: its temporary folder lies where we can watch it.
struct UnderWay {
    process: std::process::Child,
    folder: tempfile::TempDir,
}

impl UnderWay {
    /// Starts a long demo and waits until its nodes serve.
    fn start() -> UnderWay {
        let folder = folder();
        let mut command = demo(folder.path(), &format!("{SMALL} --seconds 600 --nodes 1 --kills 0"));
        let errors = File::create(folder.path().join("stderr")).unwrap();
        command.env("TMPDIR", folder.path()).stderr(errors).stdout(Stdio::null());
        let mut demo = UnderWay { process: command.spawn().unwrap(), folder };
        while !demo.errors().contains("partitions; node") {
            assert_eq!(demo.process.try_wait().unwrap(), None, "{}", demo.errors());
            std::thread::yield_now();
        }
        assert!(demo.data().is_some() && demo.nodes() == 1);
        demo
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    /// The temporary folder that holds the nodes' data.
    fn data(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().path()).find(|path| path.is_dir())
    }

    /// How many nodes of this demo run: processes that were started with a configuration in its folder.
    fn nodes(&self) -> usize {
        let folder = self.folder.path().to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap();
        // A process that ended meanwhile has no command line to read.
        let lines =
            processes.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok());
        lines.filter(|line| line.contains("\0start\0") && line.contains(folder)).count()
    }
}

/// Ctrl-C ends the nodes and removes the temporary folder.
#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let mut demo = UnderWay::start();
    kill(Pid::from_raw(demo.process.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(demo.process.wait().unwrap().code(), Some(130), "{}", demo.errors());
    assert_eq!((demo.data(), demo.nodes()), (None, 0));
}

/// Ctrl-C while the devices are being laid out: older reports stay, and what is left of the devices is said.
#[test]
fn an_interrupted_layout_leaves_older_reports() {
    let folder = folder();
    std::fs::write(folder.path().join("out.json"), "the older").unwrap();
    let data = folder.path().join("data");
    let args = format!("{SMALL} --seconds 1 --kills 0 --nodes 1");
    let mut command = demo_of("2GiB", folder.path(), &args);
    let errors = folder.path().join("stderr");
    command.arg("--data-dir").arg(&data).stderr(File::create(&errors).unwrap()).stdout(Stdio::null());
    let mut process = command.spawn().unwrap();
    let errors = || std::fs::read_to_string(&errors).unwrap();
    while !errors().contains("Laying out") {
        assert_eq!(process.try_wait().unwrap(), None, "{}", errors());
        std::thread::yield_now();
    }
    kill(Pid::from_raw(process.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(130), "{}", errors());
    for words in [data.to_str().unwrap(), "was being laid out", "remove it", "interrupted"] {
        assert!(errors().contains(words), "{}", errors());
    }
    assert_eq!(std::fs::read_to_string(folder.path().join("out.json")).unwrap(), "the older");
    std::fs::remove_dir_all(&data).unwrap();
    let output = demo(folder.path(), &args).arg("--data-dir").arg(&data).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
}

/// An interrupt under load ends the phase in order: what was measured so far is told, and marked as partial.
#[test]
fn an_interrupted_demo_tells_what_it_measured() {
    let folder = folder();
    let log = folder.path().join("hlog");
    let mut command = demo(folder.path(), &format!("{SMALL} --seconds 600 --nodes 1 --kills 0"));
    command
        .arg("--hlog")
        .arg(&log)
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // A second of the timed phase is written down when it is over.
    let unfinished = folder.path().join("hlog.unfinished");
    while !std::fs::read_to_string(&unfinished).is_ok_and(|text| text.contains("Tag=read,")) {
        assert_eq!(process.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    kill(Pid::from_raw(process.id() as i32), Signal::SIGINT).unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", told(&output));
    let json = json(folder.path());
    assert_eq!((&json["partial"], &json["ok"]), (&true.into(), &false.into()), "{json:#}");
    assert_eq!(json["ended_early"], "it was interrupted");
    assert!(std::fs::read_to_string(&log).unwrap().contains("Tag=read,") && !unfinished.exists());
    assert!(json["run"]["operations"].as_u64().unwrap() > 0, "{json:#}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("it was interrupted"), "{}", told(&output));
}

/// Killed outright, the demo can remove nothing, but the kernel ends its nodes.
#[test]
fn a_killed_demo_leaves_no_process_behind() {
    let mut demo = UnderWay::start();
    demo.process.kill().unwrap();
    demo.process.wait().unwrap();
    while demo.nodes() > 0 {
        std::thread::yield_now();
    }
}
