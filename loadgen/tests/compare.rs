//! `compare` from outside: its files and exit codes, what fails, and what an interrupt leaves.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// On the file system that the build writes to; a system's `/tmp` may be memory.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The engine and the probe on little data in `folder`.
fn compare(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    command.current_dir(folder).args("compare --target engine --target device --data-dir data".split(' '));
    command.args("--scale 64MiB --capacity 512MiB --value-sizes 4096 --clients 4 --warmup 0".split(' '));
    command.args(more);
    command
}

fn json(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("t.json")).unwrap()).unwrap()
}

/// The row of a target.
fn row<'a>(table: &'a Value, target: &str) -> &'a Value {
    table["rows"].as_array().unwrap().iter().find(|row| row["target"] == target).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder.join("data")).unwrap().next().is_none()
}

const FIGURES: [&str; 10] = [
    "load_ops_s",
    "mixed_ops_s",
    "read_p99_us",
    "write_p99_us",
    "cpu_s_per_mops",
    "wa",
    "wa_own",
    "load_wa",
    "sa",
    "rss_bytes",
];

#[test]
fn a_comparison_is_told_and_written() {
    let folder = folder();
    let files = ["--seconds", "1", "--repetitions", "2", "--json", "t.json", "--csv", "t.csv"];
    let output = compare(folder.path(), &files).args(["--html", "t.html"]).output().unwrap();
    let (table, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(table.contains("engine") && !table.contains("Partial"), "{table}");
    // The second repetition begins with the other one.
    let order: Vec<&str> =
        errors.lines().filter_map(|line| line.strip_prefix('[')?.split(' ').nth(1)).collect();
    assert_eq!(order, ["engine", "device", "device", "engine"], "{errors}");

    let table = json(folder.path());
    assert_eq!((&table["command"], &table["partial"]), (&"compare".into(), &false.into()));
    assert_eq!(table["provisional"], Value::Null);
    assert_eq!((&table["failures"], &table["remarks"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert!(table["warnings"].is_array());
    let documented: Vec<String> = FIGURES
        .iter()
        .flat_map(|name| ["", "_min", "_max", "_ratio"].map(|end| format!("{name}{end}")))
        .chain(["target", "value_bytes", "config", "mode", "clients", "repetitions"].map(str::to_owned))
        .chain(["device_share".to_owned()])
        .collect();
    for target in ["engine", "device"] {
        let row = row(&table, target).as_object().unwrap();
        assert_eq!(row["repetitions"], 2);
        assert_eq!(row.len(), documented.len());
        for key in &documented {
            assert!(row.contains_key(key), "{target} has no {key}");
        }
        for name in FIGURES {
            let figure = |end: &str| row[&format!("{name}{end}")].as_f64();
            assert_eq!(figure("_ratio"), None, "there is no RocksDB");
            if let (Some(min), Some(median), Some(max)) = (figure("_min"), figure(""), figure("_max")) {
                assert!(min <= median && median <= max, "{target} {name}");
            }
        }
        assert!(row["mixed_ops_s"].as_f64().unwrap() > 0.0);
    }
    let engine = row(&table, "engine");
    for name in FIGURES {
        assert!(engine[name].as_f64().is_some(), "{name}");
    }
    assert!(engine["sa"].as_f64().unwrap() > 1.0 && engine["device_share"].as_f64().unwrap() > 0.0);
    let configurations = table["configurations"].as_array().unwrap();
    assert_eq!(configurations.len(), 2, "the same in both repetitions: {configurations:?}");
    assert_eq!(
        (&configurations[0]["target"], &configurations[0]["value_bytes"]),
        (&"engine".into(), &Value::Null)
    );
    assert!(configurations[0]["settings"]["cache_bytes"].is_string());

    let csv = std::fs::read_to_string(folder.path().join("t.csv")).unwrap();
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    assert_eq!((header.len(), csv.lines().count()), (documented.len(), 3));
    let html = std::fs::read_to_string(folder.path().join("t.html")).unwrap();
    assert!(html.contains("Mixed throughput") && html.contains("Configuration of engine"), "{html}");
    assert!(is_empty(folder.path()));
}

#[cfg(not(feature = "rocksdb"))]
#[test]
fn a_peer_that_is_not_built_in_names_its_feature() {
    let folder = folder();
    let output = compare(folder.path(), &["--target", "rocksdb"]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("--features rocksdb"), "{errors}");
    assert!(output.stdout.is_empty() && !folder.path().join("data").exists());
}

/// The others are measured all the same, and files that cannot be written do not keep the table from being told.
#[test]
fn what_cannot_be_measured_is_told_beside_what_can() {
    let folder = folder();
    let wrong = ["--set", "engine.nonsense=1", "--seconds", "1", "--repetitions", "1"];
    let output =
        compare(folder.path(), &wrong).args(["--json", "t.json", "--csv", "/dev/full"]).output().unwrap();
    let (table, errors) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(table.contains("not measured: engine") && table.contains("Partial"), "{table}");
    assert!(errors.contains("/dev/full"), "{errors}");
    let table = json(folder.path());
    assert_eq!(table["partial"], true);
    let failures = table["failures"].as_array().unwrap();
    assert_eq!((failures.len(), &failures[0]["target"]), (1, &"engine".into()));
    assert!(failures[0]["reason"].as_str().unwrap().contains("--set nonsense: unknown"), "{failures:?}");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]["target"]), (1, &"device".into()));
    assert!(is_empty(folder.path()));
}

/// Ctrl-C during the first measurement: older tables stay.
#[test]
fn a_comparison_of_nothing_leaves_older_files() {
    let folder = folder();
    let files = ["t.json", "t.csv", "t.html"];
    for name in files {
        std::fs::write(folder.path().join(name), "the older").unwrap();
    }
    let args = ["--seconds", "600", "--json", "t.json", "--csv", "t.csv", "--html", "t.html"];
    let mut command = compare(folder.path(), &args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Its folder: the measurement is about to begin, or has.
    while std::fs::read_dir(folder.path().join("data")).map_or(0, Iterator::count) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("nothing was measured") && output.stdout.is_empty(), "{errors}");
    for name in files {
        assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), "the older");
    }
    assert!(is_empty(folder.path()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1 + files.len());
}

/// Ctrl-C during the second measurement, which would last for ten minutes.
#[test]
fn an_interrupted_comparison_tells_what_it_has() {
    let folder = folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"));
    command
        .current_dir(folder.path())
        .args("compare --target device --target engine --data-dir data".split(' '));
    command.args("--scale 64MiB --capacity 512MiB --value-sizes 4096 --clients 4 --seconds 600".split(' '));
    command.args(["--json", "t.json", "--html", "t.html"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("[1/") {
        line.clear();
        assert_ne!(errors.read_line(&mut line).unwrap(), 0, "it ended before it measured anything");
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut table = String::new();
    child.stdout.take().unwrap().read_to_string(&mut table).unwrap();
    errors.read_to_string(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{line}");
    assert!(table.contains("device") && table.contains("Partial"), "{table}");
    assert!(line.contains("interrupted"), "{line}");
    let table = json(folder.path());
    assert_eq!(table["partial"], true);
    assert!(row(&table, "device")["mixed_ops_s"].as_f64().unwrap() > 0.0);
    assert_eq!(table["rows"].as_array().unwrap().len(), 1);
    assert!(
        std::fs::read_to_string(folder.path().join("t.html"))
            .unwrap()
            .contains("Not everything was measured")
    );
    assert!(is_empty(folder.path()));
}
