//! The `terrane` command as a script sees it: arguments in, exit code and two streams out.
//!
//! Clusters are real processes on real files (below the target folder, because the file system must have
//! direct I/O), as small as the format allows. Nothing here waits for a fixed time.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The smallest device of one shard: a mebibyte in front, eight chunks of eight mebibytes.
const SMALL: &str = "65MiB";
/// With room for the chunk that each start may leave half-used.
const ROOMY: &str = "161MiB";

fn terrane() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane"));
    command.env_remove("TERRANE_ADDR").stdin(Stdio::null());
    command
}

fn temporary() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary folder")
}

/// What a finished command left.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        Done {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("errors are text"),
        }
    }
}

impl Done {
    #[track_caller]
    fn code(self, code: i32) -> Done {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    fn says(self, text: &str) -> Done {
        assert!(self.stderr.contains(text), "no {text:?} in: {}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    fn text(self) -> String {
        String::from_utf8(self.stdout).expect("this output is text")
    }

    fn json(self) -> Value {
        serde_json::from_slice(&self.stdout).expect("this output is JSON")
    }
}

fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Done {
    terrane().args(arguments).output().expect("the binary runs").into()
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> Done {
    let mut child = terrane()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("piped").write_all(input).expect("it reads its input");
    child.wait_with_output().expect("it ends").into()
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .expect("readable")
        .map(|file| file.expect("readable").file_name().to_string_lossy().into_owned())
        .collect()
}

// --- usage, configuration

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    for arguments in [
        &["--no-such-flag"][..],
        &[],
        &["no-such-command"],
        &["start"],
        &["start", "--config", "x", "--no-such-flag"],
        &["format", "--data", "x"],
        &["format", "--data", "x", "--cluster", "not hexadecimal", "--node", "1", "--shards", "1"],
        &["format", "--config", "x", "--media", "tape"],
        &["format", "--config", "x", "--flash-units", "4"],
        &["local"],
        &["local", "--dir", "x", "--port", "0"],
        &["local", "--dir", "x", "--nodes", "0"],
        &["config"],
        &["get"],
        &["put", "key"],
        &["put", "key", "value", "--file", "x"],
        &["put", "key", "value", "--if-absent", "--if-version", "1"],
        &["put", "key", "value", "--if-version", "0"],
        &["put", "--hex", "xy", "value"],
        &["scan", "--prefix", "a", "--start", "b"],
        &["get", "key", "--timeout", "soon"],
        &["get", "key", "--addr", "no-port"],
    ] {
        let done = run(arguments).code(2);
        assert!(!done.stderr.is_empty(), "{arguments:?} says nothing");
        assert!(done.stdout.is_empty(), "{arguments:?} writes to standard output");
    }
    let help = run(["--help"]).code(0).text();
    for code in ["0  done", "3  not found", "4  the condition", "5  unavailable"] {
        assert!(help.contains(code), "{help}");
    }
    assert!(run(["--version"]).code(0).text().starts_with("terrane "));
}

#[test]
fn the_example_passes_its_own_check_with_an_id_of_its_own() {
    let folder = temporary();
    let path = folder.path().join("node-1.toml");
    let example = run(["config", "--example"]).code(0).text();
    fs::write(&path, &example).expect("written");
    let checked = run(["config", "--check", path.to_str().unwrap()]).code(0).text();
    assert!(checked.contains("node 1 of 3"), "{checked}");
    assert_ne!(example, run(["config", "--example"]).text(), "two clusters must not share an id");

    fs::write(&path, example.replace("shards = 2", "shards = 0")).expect("written");
    run(["config", "--check", path.to_str().unwrap()])
        .code(1)
        .says("shards: 0 is out of range; write 1 to 1024");
    fs::write(&path, example.replace("shards = 2", "shard = 2")).expect("written");
    run(["config", "--check", path.to_str().unwrap()]).code(1).says("unknown field `shard`");
    run(["config", "--check", "/no/such/file"]).code(1).says("config --example");
}

// --- devices

/// A configuration of one node in a folder, and its device's path.
struct OneNode {
    folder: TempDir,
    config: PathBuf,
    data: PathBuf,
}

const CLUSTER: &str = "00112233445566778899aabbccddeeff";

impl OneNode {
    fn new() -> OneNode {
        let folder = temporary();
        let node = OneNode {
            config: folder.path().join("node.toml"),
            data: folder.path().join("node.terrane"),
            folder,
        };
        node.configure(CLUSTER, 1, 1, free_ports(2), "");
        node
    }

    fn configure(&self, cluster: &str, id: u32, shards: u32, port: u16, more: &str) {
        let text = format!(
            "cluster_id = \"{cluster}\"\nnode_id = {id}\ndata = \"node.terrane\"\nshards = {shards}\n{more}\n\
             [[nodes]]\nid = {id}\naddress = \"127.0.0.1:{port}\"\n"
        );
        fs::write(&self.config, text).expect("written");
    }

    fn format(&self, more: &[&str]) -> Done {
        run(["format", "--config", self.config.to_str().unwrap()].iter().chain(more))
    }

    /// Starts the node, which must refuse.
    #[track_caller]
    fn refuses(&self, reason: &str) {
        let before = names(self.folder.path());
        run(["start", "--config", self.config.to_str().unwrap()]).code(1).says(reason);
        assert_eq!(names(self.folder.path()), before, "a refused start creates nothing");
    }
}

/// A port such that it and the next ones are free at this moment.
fn free_ports(count: u16) -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let base = first.local_addr().expect("its address").port();
        let rest: Result<Vec<_>, _> = (1..count)
            .map(|offset| TcpListener::bind((Ipv4Addr::LOCALHOST, base.checked_add(offset).unwrap_or(1))))
            .collect();
        if rest.is_ok() {
            return base;
        }
    }
}

#[test]
fn a_node_never_starts_on_a_missing_blank_or_foreign_device() {
    let node = OneNode::new();
    node.refuses("terrane format");
    fs::File::create(&node.data).and_then(|file| file.set_len(80 << 20)).expect("a blank file");
    node.refuses("blank");
    fs::write(&node.data, "letters to grandmother ".repeat(100_000)).expect("a foreign file");
    node.refuses("something other than a Terrane device");
    run(["start", "--config", "/no/such/file"]).code(1).says("/no/such/file");
}

#[test]
fn a_device_of_another_cluster_node_shape_or_version_is_refused() {
    let node = OneNode::new();
    node.format(&["--size", SMALL]).code(0);
    let port = free_ports(3);
    node.configure("ff112233445566778899aabbccddeeff", 1, 1, port, "");
    node.refuses(&format!("belongs to cluster {CLUSTER}"));
    node.configure(CLUSTER, 2, 1, port, "");
    node.refuses("is node 1's");
    node.configure(CLUSTER, 1, 2, port, "");
    node.refuses("formatted for 1 shards");
    node.configure(CLUSTER, 1, 1, port, "value_bytes_max = \"8 MiB\"");
    node.refuses("lower value_bytes_max");

    node.configure(CLUSTER, 1, 1, port, "");
    let device = fs::File::options().read(true).write(true).open(&node.data).expect("opens");
    for copy in [0, 64 << 10] {
        let mut superblock = [0; 128];
        device.read_exact_at(&mut superblock, copy).expect("readable");
        superblock[8..12].copy_from_slice(&77u32.to_le_bytes());
        let checksum = crc32c::crc32c(&superblock[..124]);
        superblock[124..].copy_from_slice(&checksum.to_le_bytes());
        device.write_all_at(&superblock, copy).expect("writable");
    }
    node.refuses("77");
    for copy in [0, 64 << 10] {
        device.write_all_at(b"scratch", copy + 40).expect("writable");
    }
    node.refuses("damaged");
}

#[test]
fn format_refuses_what_would_destroy_or_cannot_work() {
    let node = OneNode::new();
    node.format(&[]).code(2).says("--size");
    let small = node.format(&["--size", "10MiB"]).code(1).says("at least");
    assert_eq!(small.stderr.matches("are too few").count(), 1, "it is said once: {}", small.stderr);
    // No node with this configuration would start on it.
    node.format(&["--size", SMALL, "--chunk-size", "3MiB"]).code(1).says("lower value_bytes_max");
    assert!(!node.data.exists(), "a refused format creates nothing");
    node.format(&["--size", "4 MB"]).code(2).says("powers of two");
    let done = node.format(&["--size", SMALL]).code(0);
    assert!(done.stderr.is_empty(), "no progress bar off a terminal: {}", done.stderr);
    let text = done.text();
    assert!(text.contains("a conventional device, laid out for node 1 of cluster"), "{text}");
    assert!(text.contains("1 slices of 64 MiB, chunks of 8 MiB"));
    node.format(&["--size", SMALL]).code(1).says("--force");
    node.format(&["--size", SMALL, "--force"]).code(0);
}

#[test]
fn a_device_is_laid_out_as_what_it_is_or_not_at_all() {
    let node = OneNode::new();
    let checked = || run(["config", "--check", node.config.to_str().unwrap()]).code(0).text();
    assert!(checked().contains("node.terrane: not there yet"), "{}", checked());
    for media in ["zoned", "fdp"] {
        node.format(&["--media", media]).code(2).says("--size");
        node.format(&["--media", media, "--size", SMALL]).code(1).says("cannot look at");
        assert!(!node.data.exists(), "a refused format creates nothing");
    }
    node.format(&["--media", "file", "--size", SMALL]).code(0);
    assert!(
        checked().contains("a conventional device, laid out for node 1: 1 slices of 64 MiB"),
        "{}",
        checked()
    );
    for media in ["zoned", "fdp"] {
        let done = node.format(&["--media", media, "--size", SMALL, "--force"]).code(1);
        done.says("is a conventional device, not ");
    }
    let mut permissions = fs::metadata(&node.data).expect("it is there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&node.data, permissions).expect("ours");
    node.refuses("is read-only");
}

/// A node in a process of its own, killed when this goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_on_emulated_flash_keeps_what_it_was_given_through_kills() {
    let node = OneNode::new();
    let port = free_ports(2);
    node.configure(CLUSTER, 1, 1, port, "partitions = 2\nelection_timeout_ms = 100\nheartbeat_ms = 20");
    node.format(&["--media", "flash", "--size", "10MiB"]).code(1).says("at least");
    assert!(!node.data.exists(), "a refused format creates nothing");
    let text = node.format(&["--media", "flash", "--size", "192MiB"]).code(0).text();
    assert!(
        text.contains("emulated flash, laid out for node 1") && text.contains("chunks of 8 MiB"),
        "{text}"
    );
    node.format(&["--media", "file", "--size", SMALL, "--force"]).code(1).says("is emulated flash, not a");

    let address = format!("127.0.0.1:{port}");
    for life in 0..3 {
        let child = terrane()
            .args(["start", "--config", node.config.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let running = Running(child);
        let key = |life: i32| format!("key{life}");
        until(|| run(["put", &key(life), &format!("value{life}"), "--addr", &address]).code == Some(0));
        for before in 0..=life {
            let read = run(["get", &key(before), "--addr", &address]).code(0);
            assert_eq!(read.text(), format!("value{before}"));
        }
        let text = run(["config", "--check", node.config.to_str().unwrap()]).code(0).text();
        assert!(text.contains("emulated flash, laid out for node 1: 1 slices of"), "{text}");
        drop(running);
    }
}

/// Fails if the check opens the device: that takes its lock, and counts the openings of emulated flash in its file.
#[test]
fn a_check_leaves_the_device_alone_and_says_what_a_start_would() {
    let node = OneNode::new();
    let checked = || run(["config", "--check", node.config.to_str().unwrap()]).code(0).text();
    node.format(&["--media", "flash", "--size", "192MiB"]).code(0);
    // The header, the state and the records of emulated flash.
    let front = || {
        let mut front = vec![0; 1 << 20];
        let device = fs::File::open(&node.data).expect("it is there");
        device.read_exact_at(&mut front, 0).expect("readable");
        front
    };
    let before = front();
    let text = checked();
    assert!(text.contains("laid out for node 1") && !text.contains("refuse"), "{text}");
    assert!(front() == before, "the check wrote to the device");
    let port = free_ports(3);
    node.configure(CLUSTER, 1, 2, port, "");
    assert!(checked().contains("`terrane start` will refuse it"), "{}", checked());
    node.refuses("formatted for 1 shards");
}

/// All bytes of the device.
fn bytes_of(path: &Path) -> Vec<u8> {
    fs::read(path).expect("readable")
}

/// A stopped node's device is told, verified, and not changed; while the node runs, and where something is broken, that is
/// said. Fails on emulated flash if looking opens it as a start does: that counts the openings in its file, and finishes
/// what was open.
#[test]
fn a_stopped_device_is_inspected_and_left_as_it_was() {
    for media in [&["--size", ROOMY][..], &["--media", "flash", "--size", "192MiB"]] {
        let node = OneNode::new();
        let data = node.data.to_str().unwrap();
        let port = free_ports(2);
        node.configure(CLUSTER, 1, 1, port, "partitions = 2\nelection_timeout_ms = 100\nheartbeat_ms = 20");
        run(["inspect", data]).code(1);
        node.format(media).code(0);
        let text = run(["inspect", data, "--verify"]).code(0).text();
        assert_eq!(text, "sound\n");

        let address = format!("127.0.0.1:{port}");
        let child = terrane()
            .args(["start", "--config", node.config.to_str().unwrap()])
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let running = Running(child);
        until(|| run(["put", "key", "value", "--addr", &address]).code == Some(0));
        run(["inspect", data]).code(1).says("in use");
        // As a crash leaves it.
        drop(running);

        let before = bytes_of(&node.data);
        let objects: Vec<Value> = run(["inspect", data, "--json", "--frames", "--groups"])
            .code(0)
            .text()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object on each line"))
            .collect();
        let (device, slice) = (&objects[0]["device"], &objects[objects.len() - 1]["slice"]);
        assert_eq!((&device["node"], &device["slices"]), (&1.into(), &1.into()));
        assert_eq!(slice["sound"], true, "{slice}");
        let frames: Vec<&Value> =
            objects.iter().map(|object| &object["frame"]).filter(|at| at.is_object()).collect();
        let told: u64 =
            slice["segments"].as_array().unwrap().iter().map(|at| at["frames"].as_u64().unwrap_or(0)).sum();
        assert_eq!((frames.len() as u64, slice["log"]["frames"].as_u64()), (told, Some(told)));
        let groups = slice["log"]["groups"].as_array().expect("groups were asked for");
        assert_eq!(groups.len(), 2);
        // The put, applied or known by the log alone.
        assert!(groups.iter().any(|group| group["last"].as_u64() > Some(1)), "{groups:?}");

        let text = run(["inspect", data, "--groups", "--frames"]).code(0).text();
        assert!(text.contains("laid out for node 1") && text.contains("valid, newest"), "{text}");
        assert!(text.contains("state at") && text.contains("counts"), "{text}");
        let text = run(["inspect", data, "--headers"]).code(0).text();
        assert!(text.contains("slice 0") && !text.contains("frames count"), "{text}");
        run(["inspect", data, "--slice", "1"]).code(2).says("no slice 1");
        run(["inspect", data, "--verify", "--frames"]).code(2);
        assert!(bytes_of(&node.data) == before, "looking at it wrote to it");

        // One byte of the frame before the last.
        if media[0] == "--size" {
            let frame = frames[frames.len() - 2];
            let number = |name: &str| frame[name].as_u64().unwrap();
            let sector_bytes = device["sector_bytes"].as_u64().unwrap();
            let at = (1 << 20) + number("chunk") * (8 << 20) + number("sector") * sector_bytes + 70;
            let file = fs::File::options().write(true).open(&node.data).expect("writable");
            file.write_all_at(&[!before[at as usize]], at).expect("written");
            let done = run(["inspect", data, "--verify"]).code(6).says("missing or broken: slice 0");
            let text = done.text();
            assert!(text.contains(&format!("frame {} of epoch 1 is missing", number("number"))), "{text}");
            assert!(text.contains(&format!("sector {}: a frame is not whole", number("sector"))), "{text}");
            // And the first copy of the superblock.
            file.write_all_at(&[7], 40).expect("written");
            let done = run(["inspect", data, "--json"]).code(6).says("superblock copy 0, slice 0");
            let text = done.text();
            let objects: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(objects[0]["device"]["superblock_copies"][0]["valid"], false);
            assert_eq!(objects[0]["device"]["superblock_copies"][1]["valid"], true);
            assert_eq!(
                (&objects[1]["slice"]["sound"], &objects[2]["error"]),
                (&false.into(), &"damaged".into())
            );
        }
    }
}

#[test]
fn a_busy_port_is_named() {
    let node = OneNode::new();
    node.format(&["--size", SMALL]).code(0);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().expect("its address").port();
    // The taken port is that of shard 0.
    node.configure(CLUSTER, 1, 1, port - 1, "");
    node.refuses(&format!("127.0.0.1:{port}"));
}

// --- clusters

/// A running `terrane local`.
struct Local {
    child: Child,
    ready: Value,
}

impl Local {
    fn start(folder: &Path, arguments: &[&str]) -> Local {
        let mut child = terrane()
            .args(["local", "--json", "--dir"])
            .arg(folder)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("readable");
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        if !ready["nodes"].is_array() {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            panic!(
                "it never got ready: {line} {:#?}",
                Done::from(child.wait_with_output().expect("it ends"))
            );
        }
        Local { child, ready }
    }

    fn nodes(&self) -> &[Value] {
        self.ready["nodes"].as_array().expect("a list of nodes")
    }

    fn addresses(&self) -> String {
        let addresses: Vec<&str> =
            self.nodes().iter().map(|node| node["address"].as_str().expect("text")).collect();
        addresses.join(",")
    }

    fn pids(&self) -> Vec<Pid> {
        self.nodes().iter().map(|node| Pid::from_raw(node["pid"].as_i64().expect("a pid") as i32)).collect()
    }

    /// Runs a client command against it.
    fn run(&self, arguments: &[&str]) -> Done {
        run(arguments.iter().chain(&["--addr", &self.addresses()]))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    /// Stops it as Ctrl-C does; all nodes must end well.
    fn stop(mut self) -> String {
        self.signal(Signal::SIGINT);
        let status = self.child.wait().expect("it ends");
        let mut stderr = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
        assert!(status.success(), "{status}: {stderr}");
        assert!(self.pids().into_iter().all(ended), "a node outlived its cluster");
        stderr
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process is gone, or only waits for its parent to notice.
fn ended(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

/// Looks again and again until it is so. Gives way between looks; a test that waits for ever has failed.
fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

#[test]
fn one_node_keeps_what_it_was_given() {
    let folder = temporary();
    let cluster = Local::start(
        folder.path(),
        &["--nodes", "1", "--shards", "1", "--partitions", "4", "--size", ROOMY, "--port", "auto"],
    );
    cluster.run(&["get", "greeting"]).code(3).says("not found");
    cluster.run(&["put", "greeting", "hello"]).code(0);
    assert_eq!(cluster.run(&["get", "greeting"]).code(0).stdout, b"hello", "the bytes and nothing else");

    let written = cluster.run(&["put", "greeting", "hi", "--json"]).code(0).json();
    let version = written["version"].as_u64().expect("a version");
    let read = cluster.run(&["get", "greeting", "--json"]).code(0).json();
    assert_eq!(
        (&read["key"], &read["value"], &read["version"]),
        (&"greeting".into(), &"hi".into(), &version.into())
    );

    // Conditions.
    cluster.run(&["put", "greeting", "x", "--if-absent"]).code(4).says(&version.to_string());
    let other = (version + 1000).to_string();
    cluster.run(&["put", "greeting", "x", "--if-version", &other]).code(4);
    let refused = cluster.run(&["put", "greeting", "x", "--if-version", &other, "--json"]).code(4).json();
    assert_eq!(refused["error"], "condition_failed");
    assert_eq!(refused["current_version"], version);
    cluster.run(&["put", "greeting", "hey", "--if-version", &version.to_string()]).code(0);
    cluster.run(&["put", "fresh", "x", "--if-absent"]).code(0);
    assert_eq!(cluster.run(&["get", "greeting"]).code(0).stdout, b"hey");
    let missing = cluster.run(&["get", "nothing", "--json"]).code(3).json();
    assert_eq!(missing["error"], "not_found");

    // Values from a file and from standard input, byte for byte.
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let file = folder.path().join("value");
    fs::write(&file, &bytes).expect("written");
    cluster.run(&["put", "binary", "--file", file.to_str().unwrap()]).code(0);
    assert_eq!(cluster.run(&["get", "binary"]).code(0).stdout, bytes);
    let addresses = cluster.addresses();
    run_with_input(&["put", "piped", "-", "--addr", &addresses], b"a\0b\n").code(0);
    assert_eq!(cluster.run(&["get", "piped"]).code(0).stdout, b"a\0b\n");
    let out = folder.path().join("out");
    assert!(cluster.run(&["get", "piped", "--out", out.to_str().unwrap()]).code(0).stdout.is_empty());
    assert_eq!(fs::read(&out).expect("readable"), b"a\0b\n");
    cluster.run(&["get", "nothing", "--out", out.to_str().unwrap()]).code(3);
    assert_eq!(fs::read(&out).expect("readable"), b"a\0b\n", "not found leaves the file alone");

    // Keys that are not text.
    cluster.run(&["put", "--hex", "00ff0a", "raw"]).code(0);
    assert_eq!(cluster.run(&["get", "--hex", "00ff0a"]).code(0).stdout, b"raw");
    let row = cluster.run(&["scan", "--end", "a", "--json"]).code(0).json();
    assert_eq!((&row["key_hex"], &row["value"]), (&"00ff0a".into(), &"raw".into()));

    // Deletion and scans.
    cluster.run(&["del", "fresh", "--if-version", &other]).code(4);
    cluster.run(&["del", "fresh"]).code(0);
    cluster.run(&["del", "fresh"]).code(0);
    cluster.run(&["del", "fresh", "--if-exists"]).code(3);
    cluster.run(&["put", "fresh", "again"]).code(0);
    cluster.run(&["del", "fresh", "--if-exists"]).code(0);
    cluster.run(&["get", "fresh"]).code(3);
    for number in 0..20 {
        cluster.run(&["put", &format!("user{number:02}"), &format!("value\t{number}")]).code(0);
    }
    let rows = cluster.run(&["scan", "--prefix", "user"]).code(0).text();
    let expected: Vec<String> = (0..20).map(|n| format!("user{n:02}\tvalue\\t{n}")).collect();
    assert_eq!(rows.lines().collect::<Vec<_>>(), expected, "in key order across partitions");
    let keys = cluster.run(&["scan", "--start", "user05", "--end", "user08", "--keys-only"]).code(0).text();
    assert_eq!(keys, "user05\nuser06\nuser07\n");
    let first = cluster.run(&["scan", "--prefix", "user", "--limit", "3", "--keys-only"]).code(0).text();
    assert_eq!(first, "user00\nuser01\nuser02\n");
    assert_eq!(cluster.run(&["scan", "--prefix", "zzz"]).code(0).text(), "");

    // Limits.
    let long_key = "k".repeat((64 << 10) + 1);
    cluster.run(&["put", &long_key, "x"]).code(1).says("65536");
    cluster.run(&["put", "", "x"]).code(2).says("empty");
    let large = folder.path().join("large");
    fs::File::create(&large).and_then(|file| file.set_len((4 << 20) + 1)).expect("written");
    cluster.run(&["put", "large", "--file", large.to_str().unwrap()]).code(1).says("4194304");
    fs::File::options().write(true).open(&large).and_then(|file| file.set_len(4 << 20)).expect("shortened");
    cluster.run(&["put", "large", "--file", large.to_str().unwrap()]).code(0);
    assert_eq!(cluster.run(&["get", "large"]).code(0).stdout.len(), 4 << 20);

    // Two of a kind.
    let again = run(["local", "--dir", folder.path().to_str().unwrap()]).code(1);
    again.says("another `terrane local`");
    cluster.stop();

    // Everything is still there, at the same address.
    let cluster = Local::start(folder.path(), &[]);
    assert_eq!(cluster.addresses(), addresses);
    assert_eq!(cluster.run(&["get", "binary"]).code(0).stdout, bytes);
    cluster.run(&["get", "fresh"]).code(3);
    let rows = cluster.run(&["scan", "--prefix", "user", "--keys-only"]).code(0).text();
    assert_eq!(rows.lines().count(), 20);
    cluster.stop();
}

#[test]
fn three_nodes_survive_one_and_say_who_leads() {
    let folder = temporary();
    let cluster = Local::start(
        folder.path(),
        &["--shards", "1", "--partitions", "8", "--size", ROOMY, "--port", "auto"],
    );
    assert_eq!(cluster.nodes().len(), 3);
    let leads: u64 = cluster.nodes().iter().map(|node| node["leads"].as_u64().expect("a count")).sum();
    assert_eq!(leads, 8, "every partition has one leader: {}", cluster.ready);
    for number in 0..30 {
        cluster.run(&["put", &format!("key{number}"), &format!("value{number}")]).code(0);
    }
    let status = cluster.run(&["status", "--json"]).code(0).json();
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3), "{status}");
    assert!(status["nodes"].as_array().unwrap().iter().all(|node| node["reachable"] == true), "{status}");
    let text = cluster.run(&["status"]).code(0).text();
    for address in cluster.addresses().split(',') {
        assert!(text.contains(address), "{text}");
    }

    // One node dies; the others elect and serve, and every value is still there.
    kill(cluster.pids()[1], Signal::SIGKILL).expect("it runs");
    until(|| cluster.run(&["status", "--timeout", "30s"]).code == Some(0));
    for number in 0..30 {
        let value = cluster.run(&["get", &format!("key{number}"), "--timeout", "30s"]).code(0).stdout;
        assert_eq!(value, format!("value{number}").as_bytes());
    }
    cluster.run(&["put", "after", "the fall", "--timeout", "30s"]).code(0);
    let status = cluster.run(&["status", "--json"]).code(0).json();
    assert_eq!(status["nodes"][1]["reachable"], false, "{status}");
    let stderr = cluster.stop();
    assert!(stderr.contains("node 2") && stderr.contains("SIGKILL"), "its death was not reported: {stderr}");

    // All three again, with the fallen one.
    let cluster = Local::start(folder.path(), &["--nodes", "3"]);
    assert_eq!(cluster.run(&["get", "after"]).code(0).stdout, b"the fall");
    let rows = cluster.run(&["scan", "--prefix", "key", "--keys-only"]).code(0).text();
    assert_eq!(rows.lines().count(), 30);

    // Nobody is left behind when the cluster's own process is killed.
    cluster.signal(Signal::SIGKILL);
    let pids = cluster.pids();
    until(|| pids.iter().copied().all(ended));
}

#[test]
fn a_folder_is_laid_out_once_and_only_run_as_it_is() {
    let folder = temporary();
    let dir = folder.path().join("cluster");
    let dir = dir.to_str().unwrap();
    let small = ["local", "--dir", dir, "--port", "auto", "--shards", "1", "--init-only"];
    run(small.iter().chain(&["--nodes", "2", "--size", "10MiB"])).code(1).says("at least");
    run(small.iter().chain(&["--nodes", "2", "--size", "1000TiB"])).code(1).says("not enough disk space");
    let first = run(small.iter().chain(&["--nodes", "2", "--size", SMALL, "--json"])).code(0).json();
    let nodes = first["nodes"].as_array().expect("a list of nodes");
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        assert!(Path::new(node["config"].as_str().expect("text")).is_file());
        assert!(Path::new(node["data"].as_str().expect("text")).is_file());
        run(["config", "--check", node["config"].as_str().unwrap()]).code(0);
    }
    let again = run(small.iter().chain(&["--json"])).code(0).json();
    assert_eq!(again, first, "the second run finds what the first laid out");
    run(small.iter().chain(&["--nodes", "3"])).code(1).says("laid out with --nodes 2, not 3");
    run(["local", "--dir", dir, "--shards", "4"]).code(1).says("laid out with --shards 1, not 4");
    run(["local", "--dir", dir, "--port", "1"]).code(1).says("laid out with --port");

    fs::write(Path::new(dir).join("layout.unfinished"), "").expect("written");
    run(small).code(1).says("never finished");
    fs::remove_file(Path::new(dir).join("layout.unfinished")).expect("removed");
    fs::remove_file(Path::new(dir).join("node-2.toml")).expect("removed");
    run(["local", "--dir", dir]).code(1).says("node-2.toml is missing");
}

#[test]
fn a_cluster_whose_nodes_cannot_start_says_why() {
    let folder = temporary();
    let dir = folder.path().to_str().unwrap();
    run([
        "local",
        "--dir",
        dir,
        "--nodes",
        "1",
        "--shards",
        "1",
        "--port",
        "auto",
        "--size",
        SMALL,
        "--init-only",
    ])
    .code(0);
    fs::remove_file(folder.path().join("node-1.terrane")).expect("removed");
    let done = run(["local", "--dir", dir]).code(1);
    assert!(done.stdout.is_empty());
    done.says("node 1").says("terrane format").says("all nodes have ended");
}

#[test]
fn a_dead_address_is_unavailable() {
    let address = format!("127.0.0.1:{}", free_ports(1));
    for arguments in [&["get", "key"][..], &["put", "key", "value"], &["del", "key"], &["scan"], &["status"]]
    {
        let done = run(arguments.iter().chain(&["--addr", &address, "--timeout", "200ms"])).code(5);
        assert!(done.stdout.is_empty());
        done.says(&address);
    }
    let done = run(["get", "key", "--json", "--addr", &address, "--timeout", "200ms"]).code(5).json();
    assert_eq!(done["error"], "unavailable");
    let from_environment =
        terrane().args(["get", "key", "--timeout", "200ms"]).env("TERRANE_ADDR", &address).output();
    Done::from(from_environment.expect("the binary runs")).code(5).says(&address);
}
