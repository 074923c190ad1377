//! The `device` command from outside: its output, what it refuses, and what an interrupt leaves.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// On the file system that the build writes to; a system's `/tmp` may be memory.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn probe(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    command.current_dir(folder).args(["device", "--path", "probe", "--size", "64MiB"]).args(more);
    command
}

fn refused(output: &Output, code: i32, words: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(words), "{errors}");
    assert!(output.stdout.is_empty());
}

fn json(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("d.json")).unwrap()).unwrap()
}

#[test]
fn a_quick_probe_prints_a_table_and_writes_json() {
    let folder = folder();
    let output =
        probe(folder.path(), &["--quick", "--seconds-per-cell", "0.01", "--json", "d.json"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("IOPS") && table.contains("random read"), "{table}");
    assert!(!String::from_utf8(output.stderr).unwrap().contains('\r'), "no animation where nobody sees it");
    let report = json(folder.path());
    assert_eq!((&report["command"], &report["partial"]), (&"device".into(), &false.into()));
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 12);
    assert!(cells.iter().all(|cell| cell["ops_s"].as_f64().unwrap() > 0.0));
    assert!(!folder.path().join("probe").exists(), "the probe's file is removed");
}

#[test]
fn bad_input_says_what_to_do() {
    let folder = folder();
    for (more, words) in [
        (&["--seconds-per-cell", "0"][..], "0.001 to 3600"),
        (&["--shards", "0"], "--shards"),
        (&["--json", "/nonexistent/d.json"], "/nonexistent/d.json"),
    ] {
        let code = if more[0] == "--json" { 1 } else { 2 };
        refused(&probe(folder.path(), more).output().unwrap(), code, words);
    }
    let mut small = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    refused(
        &small.args(["device", "--path", "p", "--size", "1MiB"]).output().unwrap(),
        2,
        "at least 64.0 MiB",
    );
    std::fs::write(folder.path().join("probe"), "precious").unwrap();
    refused(
        &probe(folder.path(), &[]).output().unwrap(),
        1,
        "it holds data; name another path or say --force",
    );
    assert_eq!(std::fs::read(folder.path().join("probe")).unwrap(), b"precious");
}

/// Ctrl-C once the first cells are being measured, in the midst of an hour's table.
#[test]
fn an_interrupted_probe_tells_what_it_has_and_removes_its_file() {
    let folder = folder();
    let mut child = probe(folder.path(), &["--seconds-per-cell", "3600", "--json", "d.json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Measuring") {
        line.clear();
        assert_ne!(errors.read_line(&mut line).unwrap(), 0, "it ended before it measured anything");
    }
    assert!(folder.path().join("probe").exists());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    line.clear();
    errors.read_to_string(&mut line).unwrap();
    assert_eq!(status.code(), Some(130), "{line}");
    assert!(line.contains("interrupted"), "{line}");
    let report = json(folder.path());
    assert_eq!((&report["partial"], &report["ended_early"]), (&true.into(), &"interrupted".into()));
    assert!(report["cells"].as_array().unwrap().is_empty());
    assert!(!folder.path().join("probe").exists());
}

/// Ctrl-C as soon as the file is there, while it is still being laid out or filled.
#[test]
fn an_interrupt_while_it_prepares_leaves_nothing() {
    let folder = folder();
    std::fs::write(folder.path().join("d.json"), "the older").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    let mut child = command
        .current_dir(folder.path())
        .args([
            "device",
            "--path",
            "probe",
            "--size",
            "512MiB",
            "--seconds-per-cell",
            "3600",
            "--json",
            "d.json",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !folder.path().join("probe").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(folder.path().join("d.json")).unwrap(), "the older");
}
