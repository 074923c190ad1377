//! Runs that end before their time: interrupted, abandoned by their target, out of disk. What was measured until then
//! is kept, and what was acknowledged can be verified.

use nix::sys::signal::Signal;
use serde_json::Value;
use terrane_client::testing::{Fault, MemoryCluster, Presence};
use terrane_client::wire::{ErrorReply, NodeId, Request};

use crate::outside::{Ended, Folder, UnderWay, calls, command, memory_cluster, run, verify};

const FILES: &str = "--csv {}/csv --hlog {}/hlog --html {}/html --record {}/acknowledged";

/// What the CSV and the log of latencies look like beside the timeline in the JSON.
fn files_agree(folder: &Folder) {
    let json = folder.json();
    let timeline = json["run"]["timeline"].as_array().unwrap();
    let csv = folder.text("csv");
    let mut lines = csv.lines();
    assert_eq!(
        lines.next().unwrap(),
        "at_seconds,seconds,step,operations,failed,reads,writes,read_p50_us,read_p99_us,write_p50_us,\
         write_p99_us,device_written_bytes,user_bytes,cpu_seconds,resident_bytes"
    );
    let operations: Vec<u64> = lines.map(|line| line.split(',').nth(3).unwrap().parse().unwrap()).collect();
    assert_eq!(operations.len(), timeline.len());
    assert_eq!(json["run"]["operations"], operations.iter().sum::<u64>());
    let hlog = folder.text("hlog");
    let mut lines = hlog.lines();
    assert!(lines.next().unwrap().starts_with("#[Logged with terrane-loadgen "), "{hlog}");
    assert_eq!(lines.filter(|line| line.starts_with("Tag=read,")).count(), timeline.len(), "{hlog}");
    let html = folder.text("html");
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("</html>"), "{html}");
}

#[tokio::test]
async fn all_files_are_written_and_agree() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, &format!("--records 50 --seconds 1.2 --rate 500 {FILES}"))).await;
    assert!(folder.json()["run"]["timeline"].as_array().unwrap().len() >= 2);
    files_agree(&folder);
}

#[tokio::test]
async fn an_interrupted_run_keeps_what_it_measured() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut calls = calls(&cluster);
    let args = format!("--records 200 --seconds 600 --clients 8 --verify {FILES}");
    let mut under_way = folder.starts(&run(&cluster, &args));
    under_way.until(&mut calls, |calls| calls.gets >= 500).await;
    under_way.signal(Signal::SIGINT);
    let ended = under_way.end().await.with(130);
    ended.tells(&[
        "Load: 200 records",
        "Run: YCSB A",
        "throughput",
        "Ended early: it was interrupted",
        "partial",
    ]);
    let json = folder.json();
    assert_eq!((&json["partial"], &json["ok"]), (&true.into(), &false.into()));
    assert_eq!(json["ended_early"], "it was interrupted");
    assert_eq!(json["load"]["operations"], 200);
    let count = |name: &str| json["run"][name]["count"].as_u64().unwrap();
    let sent = *calls.borrow();
    // Every answer counts, the last ones too.
    assert_eq!((count("reads"), count("updates")), (sent.gets, sent.puts - 200));
    assert!(json["run"]["seconds"].as_f64().unwrap() < 600.0, "the time that it lasted, not the planned one");
    assert_eq!(json["verify"], Value::Null, "whoever interrupts does not want to wait for a read-back");
    files_agree(&folder);
    folder.ends(0, &verify(&cluster, "")).await;
    assert_eq!(folder.json()["verify"]["intact"], 200);
}

#[tokio::test]
async fn an_interrupted_load_keeps_what_it_measured() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut calls = calls(&cluster);
    // What there is to tell replaces older files; where there is nothing they stay.
    folder.hold(&["json", "csv", "hlog", "html", "acknowledged"]);
    let mut under_way = folder.starts(&run(&cluster, &format!("--records 100000000 {FILES}")));
    under_way.until(&mut calls, |calls| calls.puts >= 300).await;
    under_way.signal(Signal::SIGTERM);
    let ended = under_way.end().await.with(130);
    ended.tells(&["Load: ", "inserts", "Ended early: it was interrupted"]);
    let not_written = |option: &str, name: &str| {
        format!("{option} {}: not written, for nothing was measured", folder.path(name).display())
    };
    let acknowledged = format!("acknowledged holds {} acknowledged writes", calls.borrow().puts);
    ended.complains(&[&not_written("--csv", "csv"), &not_written("--hlog", "hlog"), &acknowledged]);
    folder.still_hold(&["csv", "hlog"]);
    assert_eq!(folder.names(), ["acknowledged", "csv", "hlog", "html", "json"]);
    let json = folder.json();
    assert_eq!((&json["partial"], &json["run"]), (&true.into(), &Value::Null));
    assert_eq!(json["load"]["operations"], calls.borrow().puts);
    folder.ends(0, &verify(&cluster, "")).await;
}

#[tokio::test]
async fn an_interrupted_verification_is_no_success() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder
        .ends(
            0,
            &run(
                &cluster,
                "--records 20000 --clients 64 --only-load --value-size 32 --record {}/acknowledged",
            ),
        )
        .await;
    let mut calls = calls(&cluster);
    let mut under_way = folder.starts(&verify(&cluster, "--clients 1"));
    under_way.until(&mut calls, |calls| calls.gets >= 100).await;
    under_way.signal(Signal::SIGINT);
    under_way.end().await.with(130);
    let json = folder.json();
    let read = json["verify"]["intact"].as_u64().unwrap();
    assert!((100..20_000).contains(&read), "{json}");
    assert_eq!(json["verify"]["unread"].as_u64().unwrap(), 20_000 - read);
    assert_eq!((&json["partial"], &json["ok"]), (&true.into(), &false.into()));
}

/// Killed, it leaves older files as they were, and its own under names that say what they are. What it had recorded as
/// acknowledged can be verified, and is not overwritten by the next run.
#[tokio::test]
async fn a_killed_run_leaves_older_files_and_an_unfinished_record() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let older = ["csv", "hlog", "html", "json"];
    folder.hold(&older);
    let args = run(&cluster, &format!("--records 200 --clients 4 --seconds 600 {FILES}"));
    let mut under_way = folder.starts(&args);
    let unfinished = folder.path("acknowledged.unfinished");
    // The record's first entries are flushed a second later, the log's first second is written then too.
    let written = |name: &str, least: u64| folder.path(name).metadata().is_ok_and(|file| file.len() > least);
    while !(written("acknowledged.unfinished", 64 + 200 * 32) && written("hlog.unfinished", 1024)) {
        assert!(under_way.runs());
        tokio::task::yield_now().await;
    }
    under_way.signal(Signal::SIGKILL);
    under_way.end().await;
    folder.still_hold(&older);
    let mut names = [&older[..], &["acknowledged.unfinished", "hlog.unfinished"]].concat();
    names.sort_unstable();
    assert_eq!(folder.names(), names);

    let left = std::fs::read(&unfinished).unwrap();
    folder.ends(1, &args).await.complains(&[
        "--record",
        "acknowledged.unfinished",
        "verify it",
        "move it away",
    ]);
    assert_eq!(std::fs::read(&unfinished).unwrap(), left);
    folder.still_hold(&older);
    folder.ends(1, &verify(&cluster, "")).await.complains(&[
        "is not there",
        "acknowledged.unfinished",
        "verify that",
    ]);
    folder.ends(0, &verify(&cluster, "").replace("acknowledged", "acknowledged.unfinished")).await;
    assert_eq!(folder.json()["verify"]["intact"], 200);
}

/// All nodes, so that nobody leads.
fn all(cluster: &MemoryCluster, presence: Presence) {
    for node in 1..=3 {
        cluster.set_presence(NodeId(node), presence);
    }
}

/// Signals again and again until the process has ended: the first asks for an end, the next one does not wait for it.
async fn insist(mut under_way: UnderWay) -> Ended {
    while under_way.runs() {
        under_way.signal(Signal::SIGINT);
        tokio::task::yield_now().await;
    }
    under_way.end().await
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_answers() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut calls = calls(&cluster);
    let mut under_way = folder.starts(&run(&cluster, "--records 10 --seconds 600"));
    under_way.until(&mut calls, |calls| calls.gets >= 100).await;
    all(&cluster, Presence::Hung);
    insist(under_way).await.with(130);
}

/// Nobody answers the first connection: the run can be ended all the same.
#[tokio::test]
async fn a_run_that_still_connects_can_be_interrupted() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    all(&cluster, Presence::Hung);
    let older = ["acknowledged", "csv", "hlog", "html", "json"];
    folder.hold(&older);
    let mut under_way = folder.starts(&run(&cluster, &format!("--records 10 {FILES}")));
    while cluster.connections(NodeId(1)) == 0 {
        assert!(under_way.runs());
        tokio::task::yield_now().await;
    }
    under_way.signal(Signal::SIGINT);
    under_way.end().await.with(130);
    folder.still_hold(&older);
    assert_eq!(folder.names(), older);
}

/// The cluster dies in the middle of the timed phase, for good: with what it had answered, the run goes to its end.
#[tokio::test]
async fn a_cluster_that_goes_down_is_counted_and_said() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut calls = calls(&cluster);
    let mut under_way =
        folder.starts(&run(&cluster, &format!("--records 50 --seconds 1 --clients 4 {FILES}")));
    under_way.until(&mut calls, |calls| calls.gets >= 100).await;
    all(&cluster, Presence::Down);
    let ended = under_way.end().await.with(0);
    ended.tells(&[
        "Load: 50 records",
        "Run: ",
        "failed operations, run",
        "nothing was answered any more from",
    ]);
    let json = folder.json();
    assert!(json["run"]["operations"].as_u64().unwrap() >= 100);
    let failures = json["run"]["failures"].as_object().unwrap();
    let failed: u64 = failures.values().map(|failure| failure["count"].as_u64().unwrap()).sum();
    assert!(
        failed >= 1 && failures.keys().all(|kind| kind == "timed_out" || kind == "outcome_unknown"),
        "{failures:?}"
    );
    files_agree(&folder);
}

/// Nothing but failures is no result.
#[tokio::test]
async fn a_run_that_nobody_answers_fails() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    cluster.on_call(|call| match call.request {
        Request::Get { .. } => Fault::Answer(ErrorReply::UnknownTable),
        _ => Fault::None,
    });
    let ended = folder.ends(1, &run(&cluster, "--records 20 --workload c --operations 30 --clients 4")).await;
    ended.tells(&["Load: 20 records", "Ended early: no operation of the timed phase was answered", "table"]);
    let json = folder.json();
    assert_eq!(json["run"]["failures"]["refused"]["count"], 30);
    assert_eq!((&json["run"]["operations"], &json["ok"]), (&0.into(), &false.into()));
}

/// Reports that cannot be written are said, after the tables.
#[tokio::test]
async fn a_report_that_finds_the_disk_full_is_said() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let addr = cluster.addresses().join(",");
    for (option, said) in [("--json", "/dev/full"), ("--csv", "/dev/full"), ("--html", "/dev/full")] {
        let args = format!("run --addr {addr} --records 20 --operations 20 {option} /dev/full");
        let ended = folder.ends(1, &args).await;
        ended.tells(&["Load: 20 records", "Run: ", "throughput"]);
        ended.complains(&[said, "No space left"]);
    }
    // These are begun before anything is sent.
    for option in ["--hlog", "--record"] {
        let args = format!("run --addr {addr} --records 20 --operations 20 {option} /dev/full");
        folder.ends(1, &args).await.complains(&["/dev/full", "No space left"]);
    }
}

/// The binary where no file may grow beyond so many units of 512 bytes, or of 1 KiB, as the shell likes.
async fn limited(folder: &Folder, units: u32, args: &str) -> Ended {
    // The signal that comes with the limit is ignored, so that the error is seen.
    let script = format!("trap '' XFSZ; ulimit -f {units}; exec \"$0\" \"$@\"");
    let plain = folder.command(args);
    let mut shell = command("sh", &folder.path("."), "");
    shell.args(["-c", &script]).arg(plain.as_std().get_program()).args(plain.as_std().get_args());
    Ended::of(shell.output().await.unwrap())
}

/// The record meets the limit of a file's size in the middle of the load: that ends it, and what it holds is true.
#[tokio::test]
async fn a_record_that_cannot_grow_ends_the_phase() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args = run(&cluster, "--records 40000 --value-size 32 --clients 64 --record {}/acknowledged");
    let ended = limited(&folder, 600, &args).await.with(1);
    ended.tells(&["Load: 40,000 records", "can no longer be recorded", "File too large", "partial"]);
    let json = folder.json();
    assert_eq!((&json["partial"], &json["ok"], &json["run"]), (&true.into(), &false.into(), &Value::Null));
    let done = json["load"]["operations"].as_u64().unwrap();
    assert!((1000..40_000).contains(&done), "{done}");
    folder.ends(0, &verify(&cluster, "")).await;
    let json = folder.json();
    assert!(json["verify"]["intact"].as_u64().unwrap() >= 1000, "{json}");
}

/// So does the log of latencies.
#[tokio::test]
async fn a_log_that_cannot_grow_ends_the_phase() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args =
        format!("run --addr {} --records 100 --seconds 600 --hlog {{}}/hlog", cluster.addresses().join(","));
    let ended = limited(&folder, 1, &args).await.with(1);
    ended.tells(&["Load: 100 records", "Run: ", "throughput", "Ended early: ", "hlog", "File too large"]);
}
