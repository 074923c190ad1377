//! The embedded engine: the store in the load generator's own threads, on a file.

use nix::sys::signal::Signal;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::Value;
use terrane_ocssd::trace::{Tail, Trace};

use crate::outside::Folder;

/// A small device of small chunks.
const SMALL: &str = "--target engine --capacity 40MiB --set chunk_bytes=256KiB";

fn run(args: &str) -> String {
    format!("run --json {{}}/json {SMALL} {args}")
}

/// Loaded, measured and read back in each mode, by one shard and by two; found again by later processes.
async fn is_kept(mode: &str, threads: u32) {
    let folder = Folder::new();
    let common = format!("--data {{}}/data --mode {mode} --threads {threads}");
    let sizes = format!("--records 300 --value-size 256 --clients 8 {common}");
    let args = run(&format!("{sizes} --operations 800 --verify --record {{}}/acknowledged"));
    folder.ends(0, &args).await.tells(&[&format!("engine, {mode}, plain")]);
    let json = folder.json();
    assert_eq!((&json["settings"]["mode"], &json["settings"]["threads"]), (&mode.into(), &threads.into()));
    assert_eq!((&json["run"]["operations"], &json["verify"]["intact"]), (&800.into(), &300.into()));
    assert_eq!(json["settings"]["target_settings"]["chunk_bytes"], "262144");
    let device = json["run"]["servers"]["device_bytes_per_user_byte"]["max"].as_f64().unwrap();
    assert!(device >= 1.0, "{device}");
    let last = json["run"]["timeline"].as_array().unwrap().last().unwrap();
    for counter in ["device_written_bytes", "user_bytes"] {
        assert_eq!(last[counter], json["run"]["servers"]["nodes"]["0"][counter], "{json:#}");
    }
    assert!(json["space_amplification"].as_f64().unwrap() >= 1.0);

    let verify = format!("verify {{}}/acknowledged --json {{}}/json --target engine {common}");
    folder.ends(0, &verify).await;
    assert_eq!(folder.json()["verify"]["intact"], 300);

    folder.ends(0, &run(&format!("{sizes} --skip-load --operations 500 --workload c --verify"))).await;
    let json = folder.json();
    assert_eq!((&json["load"], &json["run"]["not_found"]), (&Value::Null, &0.into()));
    assert_eq!(json["verify"]["intact"], 300);
}

#[tokio::test]
async fn one_shard_keeps_what_it_acknowledged() {
    is_kept("sync", 1).await;
}

#[tokio::test]
async fn one_shard_keeps_what_it_acknowledged_without_syncs() {
    is_kept("nosync", 1).await;
}

#[tokio::test]
async fn two_shards_keep_what_they_acknowledged() {
    is_kept("sync", 2).await;
}

#[tokio::test]
async fn two_shards_keep_what_they_acknowledged_without_syncs() {
    is_kept("nosync", 2).await;
}

#[tokio::test]
async fn inserts_and_scans_over_two_shards() {
    let folder = Folder::new();
    let sizes = "--records 100 --operations 300 --value-size 100 --threads 2 --clients 6 --verify";
    for workload in ["d", "e", "f"] {
        folder.ends(0, &run(&format!("{sizes} --workload {workload}"))).await;
        let json = folder.json();
        let inserts = json["run"]["inserts"]["count"].as_u64().unwrap_or(0);
        assert_eq!(json["verify"]["intact"], 100 + inserts, "{workload}");
    }
    assert!(!folder.path("data").exists());
}

/// The device fills up while it is loaded: all that was acknowledged is there, in this process and the next.
#[tokio::test]
async fn a_device_too_small_for_the_records_loses_nothing() {
    let folder = Folder::new();
    let args = "--data {}/data --records 20000 --value-size 8KiB --verify --record {}/acknowledged";
    let output = folder.ends(1, &run(args)).await;
    output.tells(&["Ended early: the target's space is used up. These results are partial."]);
    let json = folder.json();
    assert_eq!((&json["partial"], &json["ok"], &json["run"]), (&true.into(), &false.into(), &Value::Null));
    let loaded = json["load"]["operations"].as_u64().unwrap();
    assert!((1_000..20_000).contains(&loaded), "{loaded}");
    assert_eq!((&json["verify"]["intact"], &json["verify"]["lost"]), (&loaded.into(), &0.into()));
    assert!(json["load"]["failures"]["full"]["count"].as_u64().unwrap() >= 1);
    folder.ends(0, "verify {}/acknowledged --json {}/json --target engine --data {}/data").await;
    assert_eq!(folder.json()["verify"]["lost"], 0);
}

/// It fills up in the timed phase.
#[tokio::test]
async fn a_device_too_small_for_the_updates_loses_nothing() {
    let folder = Folder::new();
    let args = "--mode nosync --records 200 --value-size 16KiB --workload w --operations 100000 --verify";
    folder.ends(1, &run(args)).await.tells(&["Load: 200 records", "Run: ", "the target's space is used up"]);
    let json = folder.json();
    assert_eq!((&json["load"]["operations"], &json["verify"]["intact"]), (&200.into(), &200.into()));
    let updates = json["run"]["operations"].as_u64().unwrap();
    assert!((500..100_000).contains(&updates), "{updates}");
    assert_eq!((&json["partial"], &json["verify"]["lost"]), (&true.into(), &0.into()));
}

#[tokio::test]
async fn an_interrupted_run_leaves_a_store_that_opens() {
    let folder = Folder::new();
    let args = "--data {}/data --mode nosync --records 100 --value-size 64 --rate 500 --seconds 600 --record {}/acknowledged --trace {}/trace";
    let mut under_way = folder.starts(&run(args));
    // The device is open when the record is begun; one that runs is nobody else's.
    while !folder.path("acknowledged.unfinished").exists() {
        assert!(under_way.runs());
        tokio::task::yield_now().await;
    }
    let elsewhere = folder.path("data");
    let second = format!("run {SMALL} --data {} --skip-load", elsewhere.display());
    folder.ends(1, &second).await.complains(&["engine.terrane", "in use"]);
    under_way.signal(Signal::SIGINT);
    let ended = under_way.end().await.with(130);
    assert!(
        ended.stdout.contains("it was interrupted") || ended.stderr.contains("interrupted"),
        "{}",
        ended.stderr
    );
    assert!(folder.names().iter().all(|name| !name.ends_with("unfinished")), "{:?}", folder.names());
    let verify = "verify {}/acknowledged --target engine --data {}/data";
    // Interrupted before its first write it has nothing to verify.
    folder.ends(i32::from(!folder.path("acknowledged").exists()), verify).await;
    // Interrupted before its shards were open it has no trace.
    if let Ok(trace) = std::fs::File::open(folder.path("trace.0")) {
        assert_eq!(Trace::read(trace).unwrap().tail, Tail::Ended);
    }
}

/// Laying out a large device can be interrupted: it leaves nothing, and reports of the same names as they were. The next
/// run lays it out anew.
#[tokio::test]
async fn an_interrupted_layout_leaves_nothing_and_is_done_again() {
    let folder = Folder::new();
    let older = ["acknowledged", "csv", "hlog", "html", "json", "trace.0"];
    folder.hold(&older);
    let files =
        "--json {}/json --csv {}/csv --hlog {}/hlog --html {}/html --record {}/acknowledged --trace {}/trace";
    let mut under_way =
        folder.starts(&format!("run --target engine --capacity 2GiB --data {{}}/data {files}"));
    while !folder.path("data/engine.terrane.unfinished").exists() {
        assert!(under_way.runs());
        tokio::task::yield_now().await;
    }
    under_way.signal(Signal::SIGINT);
    under_way.end().await.with(130).complains(&[
        "Laying out",
        "nothing is left of the device",
        "interrupted",
    ]);
    folder.still_hold(&older);
    assert_eq!(folder.names(), older);
    folder.ends(0, &run("--data {}/data --records 10 --operations 10 --verify")).await;
    assert!(folder.path("data/engine.terrane").metadata().unwrap().len() <= 40 << 20);
}

/// A folder that was mistyped is no empty store in which everything is lost.
#[tokio::test]
async fn a_store_that_is_not_there_is_not_created() {
    let folder = Folder::new();
    let acknowledged = "--data {}/data --mode nosync --records 10 --operations 10 --record {}/acknowledged";
    folder.ends(0, &run(acknowledged)).await;
    std::fs::create_dir(folder.path("empty")).unwrap();
    for data in ["typo", "empty"] {
        let words = [data, "no store is there"];
        let loaded = run(&format!("--data {{}}/{data} --records 10 --operations 10 --skip-load"));
        folder.ends(2, &loaded).await.complains(&words);
        let verified = format!("verify {{}}/acknowledged --target engine --data {{}}/{data}");
        folder.ends(2, &verified).await.complains(&words);
    }
    assert!(!folder.path("typo").exists());
    assert_eq!(std::fs::read_dir(folder.path("empty")).unwrap().count(), 0);
    folder.ends(0, "verify {}/acknowledged --target engine --data {}/data").await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let folder = Folder::new();
    let tiny = "--records 5 --operations 5";
    for (args, words) in [
        (format!("{SMALL} {tiny} --set x=1"), &["--set x: unknown", "chunk_bytes", "cache_bytes"][..]),
        (format!("{SMALL} {tiny} --pin 4000"), &["pin", "CPU 4000"]),
        (format!("{SMALL} {tiny} --ttl 5"), &["unsupported", "TTL"]),
        (format!("--target engine {tiny} --capacity 2MiB"), &["too few", "at least"]),
        (format!("{SMALL} {tiny} --data /proc/nothing"), &["/proc/nothing"]),
        (format!("--target rocksdb {tiny}"), &["rocksdb", "--features rocksdb"]),
        (format!("--target rocksdb --blob {tiny}"), &["blobdb", "--features rocksdb"]),
        (format!("--target etcd {tiny}"), &["etcd", "--features etcd"]),
    ] {
        // Where a peer is compiled in there is nothing to refuse.
        let feature = words.last().unwrap().strip_prefix("--features ");
        if feature.is_some_and(is_compiled_in) {
            continue;
        }
        folder.ends(1, &format!("run {args}")).await.complains(words);
    }
    folder.ends(2, &format!("run {SMALL} --skip-load")).await.complains(&["--skip-load", "--data"]);
}

fn is_compiled_in(feature: &str) -> bool {
    match feature {
        "rocksdb" => cfg!(feature = "rocksdb"),
        "etcd" => cfg!(feature = "etcd"),
        _ => unreachable!(),
    }
}

/// What is recorded of two shards is all that was measured, and what cannot be recorded is said.
#[tokio::test]
async fn a_run_leaves_a_trace_of_each_shard() {
    let folder = Folder::new();
    let sizes = "--threads 2 --clients 4 --records 300 --value-size 1KiB --operations 500";
    folder.ends(0, &run(&format!("{sizes} --trace {{}}/trace"))).await;
    let json = folder.json();
    let measured: u64 = ["load", "run"]
        .map(|phase| json[phase]["servers"]["nodes"]["0"]["device_written_bytes"].as_u64().unwrap())
        .iter()
        .sum();
    let traces = ["trace.0", "trace.1"].map(|name| std::fs::File::open(folder.path(name)).unwrap());
    let traces = traces.map(|file| Trace::read(file).unwrap());
    assert!(traces.iter().all(|trace| trace.tail == Tail::Ended));
    let recorded: u64 = traces.iter().map(Trace::written_bytes).sum();
    // Each shard's opening is no part of a phase: one anchor, and little else.
    assert!(
        recorded > measured && recorded - measured < 64 << 10,
        "{recorded}, of those {measured} measured"
    );
    assert!(json["settings"]["target_settings"]["trace"].as_str().unwrap().contains("trace.0"));

    std::os::unix::fs::symlink("/dev/full", folder.path("full.0")).unwrap();
    let full = format!("{sizes} --threads 1 --trace {{}}/full").replacen("--threads 2 ", "", 1);
    folder.ends(1, &run(&full)).await.complains(&["--trace", "full.0", "No space left"]);
    let nowhere = format!("{sizes} --trace {{}}/none/trace");
    folder.ends(1, &run(&nowhere)).await.complains(&["--trace", "none/trace.0", "cannot be written"]);
    folder.ends(2, "run --trace {}/trace").await.complains(&["--trace", "--target engine"]);
}

#[tokio::test]
async fn a_store_is_not_opened_otherwise_than_it_was_laid_out() {
    let folder = Folder::new();
    let data = "--data {}/data --records 10 --operations 10";
    folder.ends(0, &run(data)).await;
    folder.ends(1, &run(&format!("{data} --threads 2"))).await.complains(&["1 thread", "another folder"]);
    let args = format!("run --target engine {data} --set chunk_bytes=512KiB");
    folder.ends(1, &args).await.complains(&["chunk_bytes=262144", "another folder"]);
}

#[tokio::test]
async fn memory_is_no_place_for_durable_data() {
    let shm = std::path::Path::new("/dev/shm");
    // Where the machine has no tmpfs there is nothing to refuse.
    if statfs(shm).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) {
        let folder = tempfile::tempdir_in(shm).unwrap();
        let args = format!("--data {}", folder.path().display());
        Folder::new()
            .ends(1, &run(&args))
            .await
            .complains(&["memory (tmpfs)", folder.path().to_str().unwrap()]);
    }
}
