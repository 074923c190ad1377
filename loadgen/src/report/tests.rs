//! The JSON's keys and the tables, as golden texts.

use super::*;
use crate::load::runner::EarlyEnd;
use crate::measure::tally::{Fault, Kind};
use crate::target::Failure;
use expect_test::expect;

fn outcome() -> Outcome {
    let mut tally = Tally::new();
    for nth in 1..=100 {
        let (latency, ended) = (Duration::from_micros(nth * 10), Duration::from_millis(nth * 20));
        tally.success(if nth % 2 == 0 { Kind::Read } else { Kind::Update }, ended, latency);
    }
    tally.failure(Failure { kind: FailureKind::TimedOut, message: "no answer in 5 s".to_owned() });
    Outcome { tally, early: None }
}

fn report() -> Report {
    let counters = Counters {
        cpu_us: Some(2_000),
        device_written_bytes: Some(1_200),
        proc_write_bytes: Some(1_300),
        user_bytes: Some(1_000),
    };
    let nodes =
        BTreeMap::from([(1, counters), (2, Counters { device_written_bytes: Some(1_100), ..counters })]);
    let outage = Outage {
        partitions: vec![(3, Some(Duration::from_millis(900))), (4, Some(Duration::from_millis(1_100)))],
    };
    Report {
        format: FORMAT,
        command: "demo",
        version: "0.1.0",
        ok: true,
        ended_early: None,
        settings: Settings {
            workload: Workload::A,
            theta: 0.99,
            records: 100,
            value_bytes: 1024,
            connections: 4,
            threads: 1,
            seconds: Some(2),
            operations: None,
            seed: 1,
            nodes: Some(3),
            shards: Some(2),
        },
        load: None,
        run: Some(PhaseReport::new(
            &outcome(),
            Some(Duration::from_secs(2)),
            Duration::from_millis(1),
            ServersReport::new(nodes, 100),
        )),
        outages: vec![OutageReport::new(2, Duration::from_secs(1), Duration::from_millis(1_010), &outage)],
        verify: Some(VerifyReport::new(&outcome(), 100, 0)),
    }
}

#[test]
fn json_keys_are_stable() {
    let json = serde_json::to_string_pretty(&report()).unwrap();
    expect![[r#"
        {
          "format": 1,
          "command": "demo",
          "version": "0.1.0",
          "ok": true,
          "ended_early": null,
          "settings": {
            "workload": "a",
            "theta": 0.99,
            "records": 100,
            "value_bytes": 1024,
            "connections": 4,
            "threads": 1,
            "seconds": 2,
            "operations": null,
            "seed": 1,
            "nodes": 3,
            "shards": 2
          },
          "load": null,
          "run": {
            "seconds": 2.0,
            "operations": 100,
            "ops_per_second": 49.5,
            "reads": {
              "count": 50,
              "mean_us": 510.01232,
              "p50_us": 500.223,
              "p99_us": 1000.447,
              "p999_us": 1000.447,
              "max_us": 1000.447
            },
            "updates": {
              "count": 50,
              "mean_us": 500.00951999999995,
              "p50_us": 490.239,
              "p99_us": 990.207,
              "p999_us": 990.207,
              "max_us": 990.207
            },
            "failures": {
              "timed_out": {
                "count": 1,
                "example": "no answer in 5 s"
              }
            },
            "broken_promises": {},
            "not_found": 0,
            "per_second": [
              49,
              50,
              1
            ],
            "client_cpu_seconds": 0.001,
            "servers": {
              "cpu_seconds": 0.004,
              "cpu_seconds_per_million_ops": 40.0,
              "device_bytes_per_user_byte": {
                "mean": 1.15,
                "max": 1.2
              },
              "proc_bytes_per_user_byte": {
                "mean": 1.3,
                "max": 1.3
              },
              "nodes": {
                "1": {
                  "cpu_us": 2000,
                  "device_written_bytes": 1200,
                  "proc_write_bytes": 1300,
                  "user_bytes": 1000
                },
                "2": {
                  "cpu_us": 2000,
                  "device_written_bytes": 1100,
                  "proc_write_bytes": 1300,
                  "user_bytes": 1000
                }
              }
            }
          },
          "outages": [
            {
              "node": 2,
              "at_seconds": 1.0,
              "partitions": 2,
              "max_ms": 1100.0,
              "mean_ms": 1000.0,
              "down_ms": 1010.0
            }
          ],
          "verify": {
            "records": 100,
            "intact": 100,
            "lost": 0,
            "unread": 0,
            "not_written": 0,
            "seconds": 2.0,
            "broken_promises": {},
            "examples": []
          }
        }"#]]
    .assert_eq(&json);
}

#[test]
fn tables_are_readable() {
    expect![[r#"

        Run: YCSB A (50/50), 100 operations in 2.0 s, 50 ops/s
        ┌──────────────────────────────────────────────────────────────────────┐
        │           operations     mean      p50       p99     p99.9       max │
        ╞══════════════════════════════════════════════════════════════════════╡
        │ reads             50   510 µs   500 µs   1.00 ms   1.00 ms   1.00 ms │
        │ updates           50   500 µs   490 µs    990 µs    990 µs    990 µs │
        └──────────────────────────────────────────────────────────────────────┘

        Summary
        ┌───────────────────────────────────────────────────────────────────────────────────┐
        │ throughput                                                               50 ops/s │
        │ failed operations, run                                                1 timed out │
        │ server CPU per million ops, run (all nodes)                                40.0 s │
        │ load generator's CPU per million ops, run                                  10.0 s │
        │ device bytes per user byte per node, run                    1.150 mean, 1.200 max │
        │   the same by the kernel's count                            1.300 mean, 1.300 max │
        │ time without a leader (node 2 killed at 1.0 s, led 2)   1000 ms mean, 1100 ms max │
        │ records read back                                                      100 of 100 │
        │ acknowledged writes lost                                                        0 │
        │ stale, lost or damaged reads on the way                                         0 │
        └───────────────────────────────────────────────────────────────────────────────────┘
          first 'timed out': no answer in 5 s
    "#]]
    .assert_eq(&report().tables());
}

/// What ended after the window counts for latency only; a phase cut short is measured by what it did.
#[test]
fn throughput_is_of_the_window() {
    let mut late = outcome();
    late.tally.success(Kind::Read, Duration::from_millis(6_500), Duration::from_secs(5));
    let window = Some(Duration::from_secs(2));
    let phase = PhaseReport::new(&late, window, Duration::ZERO, None);
    // The last of the hundred ends exactly as the window does.
    assert_eq!((phase.operations, phase.ops_per_second), (101, 49.5));
    late.early = Some(EarlyEnd::Full);
    let phase = PhaseReport::new(&late, window, Duration::ZERO, None);
    assert_eq!((phase.seconds, phase.ops_per_second), (6.5, 101.0 / 6.5));
}

#[test]
fn losses_and_unread_records_fail() {
    let mut bad = outcome();
    bad.tally.fault(Fault::Missing, b"user1");
    bad.tally.not_found = 3;
    let verify = VerifyReport::new(&bad, 100, 0);
    assert_eq!((verify.intact, verify.lost, verify.not_written, verify.passed()), (96, 1, 3, false));
    assert_eq!(verify.examples, ["user1: missing"]);
    assert!(!VerifyReport::new(&outcome(), 100, 1).passed());
    assert!(VerifyReport::new(&outcome(), 100, 0).passed());
    assert!(report().kept_every_promise());
    let report = Report { verify: Some(verify), ..report() };
    assert!(!report.kept_every_promise());
    assert!(report.tables().contains("broken promise: user1: missing"));
}
