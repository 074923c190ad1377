//! `run --record`, and `verify` in another process.

use nix::sys::signal::Signal;
use terrane_client::testing::MemoryCluster;

use crate::outside::{Folder, calls, memory_cluster, run, verify};

/// A cluster, and a record of what it acknowledged.
async fn recorded(args: &str) -> (MemoryCluster, Folder) {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, &format!("--record {{}}/acknowledged {args}"))).await;
    (cluster, folder)
}

const SMALL: &str = "--records 100 --operations 400 --value-size 64 --clients 8";

/// Writers on several threads, of few records, note their writes in no order; the highest version counts.
#[tokio::test]
async fn what_many_writers_recorded_is_verified() {
    let args = "--records 60 --operations 3000 --workload w --value-size 40..400 --threads 2 --clients 32";
    let (cluster, folder) = recorded(args).await;
    assert_eq!(folder.path("acknowledged").metadata().unwrap().len(), 64 + 32 * 3060);
    let output = folder.ends(0, &verify(&cluster, "--threads 2 --clients 16")).await;
    output.complains(&["3,060 acknowledged writes of 60 records"]);
    output.tells(&["Every acknowledged write is there."]);
    let json = folder.json();
    assert_eq!((&json["command"], &json["ok"]), (&"verify".into(), &true.into()));
    assert_eq!((&json["verify"]["records"], &json["verify"]["intact"]), (&60.into(), &60.into()));
}

/// Records that were inserted are in the record too; names come from it, not from the command line.
#[tokio::test]
async fn names_and_inserts_are_in_the_record() {
    let args = format!("{SMALL} --workload d --key-size 16 --key-order ordered");
    let (cluster, folder) = recorded(&args).await;
    let inserted = folder.json()["run"]["inserts"]["count"].as_u64().unwrap();
    folder.ends(0, &verify(&cluster, "")).await;
    assert_eq!(folder.json()["verify"]["intact"], 100 + inserted);
}

/// With memory for sixteen records at a time the file is read seven times.
#[tokio::test]
async fn little_memory_takes_many_windows() {
    let (cluster, folder) = recorded(SMALL).await;
    folder.ends(0, &verify(&cluster, "--memory 256")).await;
    let json = folder.json();
    assert_eq!((&json["verify"]["records"], &json["verify"]["intact"]), (&100.into(), &100.into()));

    let client = cluster.client().await.unwrap();
    let rows = client.scan(.., 100).await.unwrap();
    client.delete(rows[7].key.clone()).await.unwrap();
    folder.ends(1, &verify(&cluster, "--memory 256")).await;
    let json = folder.json();
    assert_eq!((&json["verify"]["lost"], &json["verify"]["intact"]), (&1.into(), &99.into()));
}

#[tokio::test]
async fn a_record_that_is_gone_or_damaged_is_named() {
    let (cluster, folder) = recorded(SMALL).await;
    let client = cluster.client().await.unwrap();
    let rows = client.scan(.., 100).await.unwrap();
    let name = |nth: usize| std::str::from_utf8(&rows[nth].key).unwrap();
    client.delete(rows[3].key.clone()).await.unwrap();
    let mut bent = rows[5].value.to_vec();
    bent[40] ^= 1;
    client.put(rows[5].key.clone(), bent).await.unwrap();
    let output = folder.ends(1, &verify(&cluster, "")).await;
    output.tells(&["FAILED", name(3), name(5)]);
    let json = folder.json();
    assert_eq!((&json["ok"], &json["verify"]["lost"]), (&false.into(), &2.into()));
    assert_eq!(
        (&json["verify"]["intact"], &json["verify"]["broken_promises"]["missing"]),
        (&98.into(), &1.into())
    );
}

/// Another cluster with the same keys, written by another run: every record is older or different.
#[tokio::test]
async fn another_clusters_values_do_not_pass() {
    let (_, folder) = recorded(SMALL).await;
    let other = memory_cluster().await;
    let elsewhere = Folder::new();
    elsewhere.ends(0, &run(&other, "--records 100 --value-size 64 --only-load")).await;
    folder.ends(1, &verify(&other, "")).await;
    let json = folder.json();
    assert_eq!((&json["verify"]["lost"], &json["verify"]["intact"]), (&100.into(), &0.into()));
}

/// Versions only rise: whoever writes meanwhile disturbs no verification.
#[tokio::test]
async fn others_may_write_meanwhile() {
    let (cluster, folder) = recorded(SMALL).await;
    let elsewhere = Folder::new();
    let mut calls = calls(&cluster);
    let args = "--records 100 --skip-load --workload w --value-size 64 --seconds 600 --clients 4";
    let mut writer = elsewhere.starts(&run(&cluster, args));
    writer.until(&mut calls, |calls| calls.puts >= 100).await;
    let before = calls.borrow().puts;
    folder.ends(0, &verify(&cluster, "--clients 2 --memory 320")).await;
    assert_eq!(folder.json()["verify"]["intact"], 100);
    assert!(calls.borrow().puts > before && writer.runs(), "nobody wrote meanwhile");
    writer.signal(Signal::SIGINT);
    writer.end().await.with(130);
}

#[tokio::test]
async fn a_torn_tail_is_said_and_the_rest_verified() {
    let (cluster, folder) = recorded(SMALL).await;
    let path = folder.path("acknowledged");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    folder.ends(0, &verify(&cluster, "")).await;
    let json = folder.json();
    assert_eq!((&json["ok"], &json["verify"]["lost"]), (&true.into(), &0.into()));
    assert!(json["warnings"][0].as_str().unwrap().contains("in the middle of an entry (27 bytes)"), "{json}");
}

#[tokio::test]
async fn a_file_that_cannot_be_trusted_is_refused() {
    let (cluster, folder) = recorded("--records 5 --operations 1").await;
    let path = folder.path("acknowledged");
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    for (bytes, words) in [
        (&damaged[..], "entry 1 of"),
        (&whole[..64], "no acknowledged write"),
        (&whole[..20], "too short"),
        (&[b'x'; 200], "no record of acknowledged writes"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        folder.ends(1, &verify(&cluster, "")).await.complains(&[path.to_str().unwrap(), words]);
    }
    std::fs::remove_file(&path).unwrap();
    folder.ends(1, &verify(&cluster, "")).await.complains(&[path.to_str().unwrap(), "No such file"]);
}
