use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// A folder on the file system that the build writes to, which is a disk; a system's `/tmp` may be memory.
fn folder() -> TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

fn args(path: PathBuf) -> DeviceArgs {
    DeviceArgs {
        path,
        size: SIZE_BYTES_MIN,
        seconds_per_cell: Some(Duration::from_millis(10)),
        shards: 1,
        quick: true,
        force: false,
        json: None,
    }
}

/// A cell's numbers are there, and consistent with each other.
fn check(cell: &Measured) {
    let counts = [cell.reads, cell.writes].map(|latencies| latencies.map_or(0, |latencies| latencies.count));
    assert_eq!([cell.read_share > 0.0, cell.read_share < 1.0], counts.map(|count| count > 0), "{cell:?}");
    assert_eq!(cell.operations, counts.iter().sum::<u64>(), "{cell:?}");
    assert!(cell.seconds > 0.0 && cell.cpu_s_per_mops > 0.0, "{cell:?}");
    let close = |one: f64, other: f64| (one / other - 1.0).abs() < 1e-9;
    assert!(close(cell.ops_s * cell.seconds, cell.operations as f64), "{cell:?}");
    assert!(close(cell.mb_s * 1e6, cell.ops_s * f64::from(cell.bytes)), "{cell:?}");
    for latencies in [cell.reads, cell.writes].into_iter().flatten() {
        let rising = [0.0, latencies.p50_us, latencies.p99_us, latencies.p999_us, latencies.max_us];
        assert!(latencies.p50_us > 0.0 && rising.is_sorted(), "{cell:?}");
    }
}

#[test]
fn every_cell_of_the_full_table_has_numbers() {
    let folder = folder();
    let args = DeviceArgs { quick: false, shards: 2, ..args(folder.path().join("probe")) };
    let mut shown = 0;
    let probed = probe(&args, &Stop::default(), &Progress::new(), &mut |cell| {
        assert!(folder.path().join("probe").is_file());
        check(cell);
        shown += 1;
    })
    .unwrap();
    probed.ended.unwrap();
    let report = probed.report;
    assert!(!report.partial && report.ended_early.is_none());
    assert_eq!(report.cells.len(), shown);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file is removed");

    // All that the issue asks for: reads at every depth and size, sequential and single writes, mixes.
    let mut seen: Vec<_> =
        report.cells.iter().map(|cell| (cell.bytes, cell.depth, cell.read_share, cell.durable)).collect();
    let sector = report.sector_bytes;
    for kib in [4, 8, 16, 32] {
        for depth in [1, 8, 32, 128] {
            assert!(seen.contains(&(kib << 10, depth, 1.0, false)), "{kib} {depth}");
        }
    }
    for durable in [false, true] {
        for (bytes, depth) in [(4 << 10, 1), (128 << 10, 8), (1 << 20, 8)] {
            assert!(seen.contains(&(bytes, depth, 0.0, durable)), "{bytes} {durable}");
        }
        for (kib, depth) in [1_u32, 4, 16, 32].into_iter().flat_map(|kib| [(kib, 8), (kib, 32)]) {
            let bytes = (kib << 10).next_multiple_of(sector);
            assert!(seen.contains(&(bytes, depth, 0.5, durable)), "{kib} {depth} {durable}");
        }
    }
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "no cell is measured twice");

    let table = report.table();
    for words in ["random read", "sequential write, durable", "1:1 mix, nosync: reads", "its writes", "p99.9"]
    {
        assert!(table.contains(words), "{words}:\n{table}");
    }
}

#[test]
fn what_was_measured_before_an_interrupt_is_kept() {
    let folder = folder();
    let stop = Stop::default();
    let mut left = 2;
    let probed = probe(&args(folder.path().join("probe")), &stop, &Progress::new(), &mut |_| {
        left -= 1;
        if left == 0 {
            stop.set();
        }
    })
    .unwrap();
    assert!(probed.ended.unwrap_err().is::<Interrupted>());
    assert_eq!(probed.report.cells.len(), 2);
    probed.report.cells.iter().for_each(check);
    assert!(probed.report.partial);
    assert_eq!(probed.report.ended_early.as_deref(), Some("interrupted"));
    assert!(probed.report.table().contains("not all cells were measured: interrupted"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupt_while_the_device_is_prepared_leaves_nothing() {
    let folder = folder();
    let stop = Stop::default();
    stop.set();
    let probed = probe(&args(folder.path().join("probe")), &stop, &Progress::new(), &mut |_| {});
    assert!(probed.unwrap_err().is::<Interrupted>());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn one_cell_by_itself() {
    let folder = folder();
    for (shards, depth) in [(1, 1), (2, 3), (3, 2)] {
        // Not a whole number of sectors.
        let cell = Cell { bytes: 5_000, depth, read_share: 0.5, durable: true };
        let (window, stop) = (Duration::from_millis(20), Stop::default());
        let measured = measure(folder.path(), 32 << 20, cell, shards, window, &stop).unwrap();
        check(&measured);
        assert!(measured.bytes >= 5_000 && measured.bytes <= 8_192, "whole sectors: {}", measured.bytes);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_cell_that_does_not_fit_is_refused() {
    let folder = folder();
    let stop = Stop::default();
    let refused = |cell: Cell, bytes: u64| {
        let window = Duration::from_millis(1);
        measure(folder.path(), bytes, cell, 1, window, &stop).unwrap_err().to_string()
    };
    let cell = Cell { bytes: 4096, depth: 100, read_share: 0.5, durable: false };
    assert!(refused(cell, 4 << 20).contains("larger size"), "too few chunks for so many writes");
    assert!(refused(Cell { bytes: 1 << 20, ..cell }, 4 << 20).contains("too few"), "too few chunks at all");
    assert!(refused(Cell { read_share: 1.5, ..cell }, 16 << 20).contains("from 0 to 1"));
    assert!(refused(cell, 1 << 60).contains("free"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_keys_of_the_json_are_stable() {
    let latencies =
        report::Latencies { count: 2, mean_us: 1.5, p50_us: 1.0, p99_us: 2.0, p999_us: 2.0, max_us: 2.0 };
    let cell = Measured {
        bytes: 4096,
        depth: 8,
        read_share: 0.5,
        durable: true,
        seconds: 3.0,
        operations: 4,
        ops_s: 1.5,
        mb_s: 0.25,
        cpu_s_per_mops: 2.5,
        reads: Some(latencies),
        writes: None,
    };
    let report = DeviceReport {
        format: report::FORMAT,
        command: report::COMMAND.to_owned(),
        version: "0".to_owned(),
        partial: true,
        ended_early: Some("interrupted".to_owned()),
        path: "probe".to_owned(),
        size_bytes: 1 << 20,
        sector_bytes: 512,
        chunk_bytes: 1 << 16,
        shards: 1,
        cells: vec![cell],
    };
    expect_test::expect![[r#"{"format":1,"command":"device","version":"0","partial":true,"ended_early":"interrupted","path":"probe","size_bytes":1048576,"sector_bytes":512,"chunk_bytes":65536,"shards":1,"cells":[{"bytes":4096,"depth":8,"read_share":0.5,"durable":true,"seconds":3.0,"operations":4,"ops_s":1.5,"mb_s":0.25,"cpu_s_per_mops":2.5,"reads":{"count":2,"mean_us":1.5,"p50_us":1.0,"p99_us":2.0,"p999_us":2.0,"max_us":2.0},"writes":null}]}"#]]
        .assert_eq(&serde_json::to_string(&report).unwrap());
    let folder = folder();
    let path = folder.path().join("probe.json");
    report.write_json(&path).unwrap();
    assert_eq!(DeviceReport::read_json(&path).unwrap(), report);
}

#[test]
fn a_report_of_something_else_is_refused() {
    let folder = folder();
    let path = folder.path().join("report.json");
    for (text, words) in [
        ("", "not a report of the device probe"),
        (r#"{"format": 1, "command": "run"}"#, "not a report of the device probe"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", DeviceReport::read_json(&path).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(DeviceReport::read_json(&path).unwrap_err().to_string().contains("report.json"));
}
