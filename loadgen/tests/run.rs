//! `run` from outside, over TCP, against the client library's in-memory cluster and the faults it can play.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use terrane_client::testing::{Fault, MemoryCluster, Shape};
use terrane_client::wire::{ErrorReply, NodeId, Request};

const SHAPE: Shape = Shape { nodes: 3, shards: 2, partitions: 8 };

/// Runs the binary while the cluster serves; gives its output and the JSON it wrote, if it did.
async fn run(cluster: &MemoryCluster, args: &str) -> (Output, Option<Value>) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let json = folder.path().join("out.json");
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_terrane-loadgen"))
        .args(["run", "--addr", &cluster.addresses().join(","), "--json"])
        .arg(&json)
        .args(args.split_whitespace())
        .output()
        .await
        .unwrap();
    let json = read_json(&json);
    (output, json)
}

fn read_json(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn check(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test]
async fn a_sound_cluster_is_loaded_measured_and_read_back() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let args = "--records 300 --operations 2000 --clients 8 --threads 2 --value-size 100 --verify";
    let (output, json) = run(&cluster, args).await;
    check(&output, 0);
    let json = json.unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["load"]["operations"], 300);
    assert_eq!(json["load"]["inserts"]["count"], 300);
    assert_eq!(json["run"]["operations"], 2000);
    assert_eq!(json["verify"]["intact"], 300);
    assert_eq!(json["settings"]["workload"]["values"]["bytes"], 100);
    let stdout = text(&output.stdout);
    for words in ["throughput", "p99.9", "acknowledged writes lost", "Every acknowledged write is there."] {
        assert!(stdout.contains(words), "{stdout}");
    }
    assert!(output.stderr.is_empty(), "piped, so nothing moves: {}", text(&output.stderr));
}

#[tokio::test]
async fn a_second_run_finds_what_the_first_loaded() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let (output, _) = run(&cluster, "--records 200 --operations 1 --workload c").await;
    check(&output, 0);
    let (output, json) =
        run(&cluster, "--records 200 --operations 1000 --workload b --skip-load --verify").await;
    check(&output, 0);
    let json = json.unwrap();
    assert_eq!(json["load"], Value::Null);
    assert_eq!(json["run"]["not_found"], 0);
    assert_eq!(json["verify"]["intact"], 200);
}

#[tokio::test]
async fn lost_connections_and_answers_lose_nothing() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let mut calls = 0;
    cluster.on_call(move |call| {
        calls += 1;
        match call.request {
            Request::Put { .. } if calls % 97 == 0 => Fault::DoThenClose,
            Request::Put { .. } | Request::Get { .. } if calls % 61 == 0 => Fault::Close,
            _ => Fault::None,
        }
    });
    let args = "--records 200 --operations 3000 --clients 4 --value-size 64 --verify";
    let (output, json) = run(&cluster, args).await;
    check(&output, 0);
    assert_eq!(json.unwrap()["verify"]["intact"], 200);
}

#[tokio::test]
async fn a_full_cluster_ends_the_run_and_what_it_took_is_still_there() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let mut puts = 0;
    cluster.on_call(move |call| match call.request {
        Request::Put { .. } => {
            puts += 1;
            if puts > 150 { Fault::Answer(ErrorReply::Full) } else { Fault::None }
        }
        _ => Fault::None,
    });
    let (output, json) = run(&cluster, "--records 400 --operations 1000 --verify").await;
    check(&output, 1);
    let json = json.unwrap();
    assert_eq!(json["ended_early"], "the target's space is used up");
    assert_eq!(json["run"], Value::Null, "it was not begun");
    assert_eq!((&json["verify"]["intact"], &json["verify"]["lost"]), (&150.into(), &0.into()));
    assert_eq!(json["verify"]["not_written"], 250);
}

#[tokio::test]
async fn a_cluster_that_forgets_is_found_out() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let mut gets = 0;
    cluster.on_call(move |call| match call.request {
        Request::Get { .. } => {
            gets += 1;
            if gets == 500 { Fault::Answer(ErrorReply::NotFound) } else { Fault::None }
        }
        _ => Fault::None,
    });
    let (output, json) = run(&cluster, "--records 100 --operations 1000 --workload c").await;
    check(&output, 1);
    let json = json.unwrap();
    assert_eq!((&json["ok"], &json["run"]["broken_promises"]["missing"]), (&false.into(), &1.into()));
    assert!(text(&output.stdout).contains("FAILED"), "{}", text(&output.stdout));
}

#[tokio::test]
async fn values_beyond_the_limit_end_the_run_with_the_reason() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let (output, json) = run(&cluster, "--records 10 --operations 1 --value-size 5MiB").await;
    check(&output, 1);
    let json = json.unwrap();
    assert!(json["ended_early"].as_str().unwrap().contains("too large"), "{json}");
}

#[tokio::test]
async fn leaders_that_move_are_followed() {
    let cluster = MemoryCluster::listen(SHAPE).await.unwrap();
    let (output, _) = run(&cluster, "--records 100 --operations 1").await;
    check(&output, 0);
    cluster.set_leaders(Some(NodeId(3)));
    let (output, json) = run(&cluster, "--records 100 --operations 500 --workload w --verify").await;
    check(&output, 0);
    assert_eq!(json.unwrap()["verify"]["intact"], 100);
}
