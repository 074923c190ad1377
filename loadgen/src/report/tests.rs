//! The JSON's keys and the tables, as golden texts.

use super::*;
use crate::load::plan::{Outline, Pace};
use crate::load::runner::{EarlyEnd, Outcome, Shape};
use crate::measure::meter::Gauges;
use crate::measure::tally::{Success, Tally};
use crate::target::Failure;
use expect_test::{expect, expect_file};

fn success(kind: Kind, ended: Duration, latency: Duration) -> Success {
    Success {
        kind,
        due: ended - latency,
        sent: ended - latency,
        ended,
        in_time: ended <= Duration::from_secs(2),
        open: false,
        written_bytes: if kind.writes() { 1_048 } else { 0 },
        records: 1,
    }
}

fn tally() -> Tally {
    let mut tally = Tally::new();
    for nth in 1..=100 {
        let (latency, ended) = (Duration::from_micros(nth * 10), Duration::from_millis(nth * 20));
        let kind = if nth % 2 == 0 { Kind::Read } else { Kind::Update };
        tally.success(0, &success(kind, ended, latency));
    }
    tally.failure(0, Failure { kind: FailureKind::TimedOut, message: "no answer in 5 s".to_owned() });
    tally
}

fn measured(tally: Tally) -> Measured {
    let counters = Counters {
        cpu_us: Some(2_000),
        device_written_bytes: Some(1_200),
        proc_write_bytes: Some(1_300),
        user_bytes: Some(1_000),
    };
    let gauges = Gauges {
        resident_bytes: Some(40 << 20),
        resident_max_bytes: Some(50 << 20),
        occupied_bytes: Some(160_000),
    };
    let other = Counters { device_written_bytes: Some(1_100), ..counters };
    Measured {
        outcome: Outcome { tally, early: None, elapsed: Duration::from_secs(2), stopped_at: None },
        used: BTreeMap::from([(1, Used { counters, gauges }), (2, Used { counters: other, gauges })]),
        client_cpu: Duration::from_millis(1),
        timeline: vec![Second::example(1.0, 25, 25)],
        warnings: Vec::new(),
        settled: Duration::ZERO,
    }
}

fn plan(bound: Bound) -> Plan {
    let outline = Outline { name: "run".into(), bound, pace: Pace::Closed, workload: None };
    Plan::new(Duration::ZERO, vec![outline])
}

fn two_seconds() -> Plan {
    plan(Bound::Time(Duration::from_secs(2)))
}

fn machine() -> Machine {
    Machine {
        cpu: Some("a processor".into()),
        cores: Some(2),
        memory_bytes: Some(1 << 34),
        kernel: Some("6.18".into()),
        distribution: None,
        storage: None,
        load_average: Some([0.5, 0.25, 0.0]),
        version: "0.1.0",
        at: "2026-11-22T00:00:00Z".into(),
        command: "terrane-loadgen demo".into(),
    }
}

fn report() -> Report {
    let outage = Outage {
        partitions: vec![(3, Some(Duration::from_millis(900))), (4, Some(Duration::from_millis(1_100)))],
    };
    let subject = Subject {
        spec: Spec::named_or_file("a").unwrap(),
        records: 100,
        seed: 1,
        shape: Shape { threads: 1, connections: 1, workers: 4, cpus: vec![] },
    };
    let mut settings = Settings::new(&subject, &two_seconds(), "cluster", Vec::new());
    (settings.nodes, settings.shards) = (Some(3), Some(2));
    let mut report = Report::begin("demo", machine(), settings);
    report.ok = true;
    report.run = Some(PhaseReport::timed(measured(tally()), &two_seconds()));
    report.note_space(100.0 * 1_048.0);
    report.device =
        Some(DeviceShare { cell: "1:1, 1 KiB, depth 8".into(), ops_per_second: 200.0, share: 0.25 });
    report.outages =
        vec![OutageReport::new(2, Duration::from_secs(1), Duration::from_millis(1_010), &outage)];
    let mut verify = VerifyReport::default();
    verify.add(&measured(tally()), 100, 0);
    report.verify = Some(verify);
    report
}

#[test]
fn json_keys_are_stable() {
    let mut json = serde_json::to_string_pretty(&report()).unwrap();
    json.push('\n');
    expect_file!["../../tests/golden/report.json"].assert_eq(&json);
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
        │ target                                                                    cluster │
        │ throughput                                                               50 ops/s │
        │ failed operations, run                                                1 timed out │
        │ server CPU per million ops, run (all nodes)                                40.0 s │
        │ load generator's CPU per million ops, run                                  10.0 s │
        │ device bytes per user byte per node, run                    1.150 mean, 1.200 max │
        │   by the kernel's count, run                                1.300 mean, 1.300 max │
        │ bytes occupied per live byte                                                 1.53 │
        │ resident memory, most (all nodes)                                         100 MiB │
        │ share of the device (1:1, 1 KiB, depth 8)                       25 % of 200 ops/s │
        │ time without a leader (node 2 killed at 1.0 s, led 2)   1000 ms mean, 1100 ms max │
        │ records read back                                                      100 of 100 │
        │ acknowledged writes lost                                                        0 │
        │ stale, lost or damaged reads on the way                                         0 │
        └───────────────────────────────────────────────────────────────────────────────────┘
          first 'timed out': no answer in 5 s

        Every acknowledged write is there.
        Next: keep a cluster with `terrane local --nodes 3 --dir DIR`, and use it with `terrane put`, `terrane get`, and `terrane-loadgen run`."#]].assert_eq(&format!("{}\n{}", report().tables(), report().verdict()));
}

#[test]
fn throughput_is_of_the_window() {
    let mut late = tally();
    late.success(0, &success(Kind::Read, Duration::from_millis(6_500), Duration::from_secs(5)));
    let phase = PhaseReport::timed(measured(late.clone()), &two_seconds());
    // The last of the hundred ends exactly as the window does.
    assert_eq!((phase.numbers.operations, phase.numbers.ops_per_second), (101, 50.0));
    let phase = PhaseReport::timed(measured(late), &plan(Bound::Operations(101)));
    assert!((phase.numbers.ops_per_second - 101.0 / 6.5).abs() < 0.001);
}

#[test]
fn the_warm_up_does_not_count() {
    let outline = Outline {
        name: "run".into(),
        bound: Bound::Time(Duration::from_secs(1)),
        pace: Pace::Closed,
        workload: None,
    };
    let plan = Plan::new(Duration::from_secs(1), vec![outline]);
    let mut tally = Tally::new();
    for (step, count) in [(0, 7), (1, 3)] {
        for _ in 0..count {
            tally.success(step, &success(Kind::Read, Duration::from_millis(1_500), Duration::from_millis(1)));
        }
    }
    let phase = PhaseReport::timed(measured(tally), &plan);
    assert_eq!((phase.numbers.operations, phase.numbers.ops_per_second), (3, 3.0));
    assert_eq!(phase.steps.iter().map(|step| step.numbers.operations).collect::<Vec<_>>(), [7, 3]);
    assert_eq!(phase.servers.unwrap().cpu_seconds_per_million_ops, Some(400.0), "of all ten");
}

/// Cut short after half of it, a phase is as long as it was, and nobody is blamed for what was not sent.
#[test]
fn a_phase_that_was_cut_short_is_as_long_as_it_was() {
    let outline = Outline {
        name: "run".into(),
        bound: Bound::Time(Duration::from_secs(4)),
        pace: Pace::Open { from: 100.0, to: 100.0 },
        workload: None,
    };
    let mut cut = measured(tally());
    cut.outcome.early = Some(EarlyEnd::Interrupted);
    let phase = PhaseReport::timed(cut, &Plan::new(Duration::ZERO, vec![outline]));
    assert_eq!((phase.numbers.seconds, phase.numbers.ops_per_second, phase.numbers.unsent), (2.0, 50.0, 0));
}

#[test]
fn a_rate_that_was_not_reached_is_said() {
    let outline = Outline {
        name: "fast".into(),
        bound: Bound::Time(Duration::from_secs(2)),
        pace: Pace::Open { from: 100.0, to: 100.0 },
        workload: None,
    };
    let mut report = report();
    report.run = Some(PhaseReport::timed(measured(tally()), &Plan::new(Duration::ZERO, vec![outline])));
    report.note_doubts();
    assert_eq!(report.run.as_ref().unwrap().numbers.unsent, 200);
    assert!(report.warnings[0].contains("step 'fast': 200 operations were due and never sent"));
    assert!(report.tables().contains("warning: step 'fast'"));
}

#[test]
fn losses_and_unread_records_fail() {
    let mut bad = tally();
    bad.fault(0, Fault::Missing, b"user1");
    (0..3).for_each(|_| bad.not_found(0));
    let mut verify = VerifyReport::default();
    verify.add(&measured(bad), 100, 0);
    assert_eq!((verify.intact, verify.lost, verify.not_written, verify.passed()), (96, 1, 3, false));
    let mut report = report();
    report.verify = Some(verify);
    assert!(report.verdict().contains("FAILED") && report.tables().contains("user1: missing"));
    let mut verify = VerifyReport::default();
    verify.add(&measured(tally()), 100, 1);
    assert!(!verify.passed(), "unread is unproven");
    verify.add(&measured(tally()), 50, 0);
    assert_eq!((verify.records, verify.intact), (150, 149), "pieces add up");
}
