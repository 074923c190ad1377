//! Runs against a cluster, sound and not.

use serde_json::Value;
use terrane_client::testing::Fault;
use terrane_client::wire::{ErrorReply, NodeId, Request};

use crate::outside::{Folder, memory_cluster, run};

#[tokio::test]
async fn a_sound_cluster_is_loaded_measured_and_read_back() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args = "--records 300 --operations 2000 --clients 8 --threads 2 --value-size 100 --verify";
    let output = folder.ends(0, &run(&cluster, args)).await;
    let json = folder.json();
    assert_eq!(json["ok"], true);
    assert_eq!(json["load"]["operations"], 300);
    assert_eq!(json["load"]["inserts"]["count"], 300);
    assert_eq!(json["run"]["operations"], 2000);
    assert_eq!(json["verify"]["intact"], 300);
    assert_eq!(json["settings"]["workload"]["values"]["bytes"], 100);
    output.tells(&["throughput", "p99.9", "acknowledged writes lost", "Every acknowledged write is there."]);
    assert_eq!(output.stderr, "", "piped, so nothing moves");
}

#[tokio::test]
async fn a_second_run_finds_what_the_first_loaded() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, "--records 200 --operations 1 --workload c")).await;
    folder.ends(0, &run(&cluster, "--records 200 --operations 1000 --workload b --skip-load --verify")).await;
    let json = folder.json();
    assert_eq!(json["load"], Value::Null);
    assert_eq!(json["run"]["not_found"], 0);
    assert_eq!(json["verify"]["intact"], 200);
}

#[tokio::test]
async fn lost_connections_and_answers_lose_nothing() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
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
    folder.ends(0, &run(&cluster, args)).await;
    assert_eq!(folder.json()["verify"]["intact"], 200);
}

#[tokio::test]
async fn a_full_cluster_ends_the_run_and_what_it_took_is_still_there() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut puts = 0;
    cluster.on_call(move |call| match call.request {
        Request::Put { .. } => {
            puts += 1;
            if puts > 150 { Fault::Answer(ErrorReply::Full) } else { Fault::None }
        }
        _ => Fault::None,
    });
    folder.ends(1, &run(&cluster, "--records 400 --operations 1000 --verify")).await;
    let json = folder.json();
    assert_eq!(json["ended_early"], "the target's space is used up");
    assert_eq!(json["run"], Value::Null, "it was not begun");
    assert_eq!((&json["verify"]["intact"], &json["verify"]["lost"]), (&150.into(), &0.into()));
    assert_eq!(json["verify"]["not_written"], 250);
}

#[tokio::test]
async fn a_cluster_that_forgets_is_found_out() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut gets = 0;
    cluster.on_call(move |call| match call.request {
        Request::Get { .. } => {
            gets += 1;
            if gets == 500 { Fault::Answer(ErrorReply::NotFound) } else { Fault::None }
        }
        _ => Fault::None,
    });
    let output = folder.ends(1, &run(&cluster, "--records 100 --operations 1000 --workload c")).await;
    let json = folder.json();
    assert_eq!((&json["ok"], &json["run"]["broken_promises"]["missing"]), (&false.into(), &1.into()));
    output.tells(&["FAILED"]);
}

#[tokio::test]
async fn values_beyond_the_limit_end_the_run_with_the_reason() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(1, &run(&cluster, "--records 10 --operations 1 --value-size 5MiB")).await;
    let json = folder.json();
    assert!(json["ended_early"].as_str().unwrap().contains("too large"), "{json}");
}

#[tokio::test]
async fn leaders_that_move_are_followed() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, "--records 100 --operations 1")).await;
    cluster.set_leaders(Some(NodeId(3)));
    folder.ends(0, &run(&cluster, "--records 100 --operations 500 --workload w --verify")).await;
    assert_eq!(folder.json()["verify"]["intact"], 100);
}
