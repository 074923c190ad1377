//! What is sent, how fast, by how many, and how closely it is checked.

use serde_json::Value;
use terrane_client::testing::Fault;
use terrane_client::wire::{ErrorReply, Request};

use crate::outside::{Folder, calls, memory_cluster, run};

fn sum(numbers: &Value) -> u64 {
    numbers.as_object().unwrap().values().map(|failure| failure["count"].as_u64().unwrap()).sum()
}

/// What became of what was due: answered, failed, or never sent.
fn accounted(step: &Value) -> u64 {
    step["operations"].as_u64().unwrap() + step["unsent"].as_u64().unwrap() + sum(&step["failures"])
}

#[tokio::test]
async fn an_open_loop_accounts_for_all_that_was_due() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, "--records 100 --rate 400 --seconds 1 --clients 8 --workload b")).await;
    let json = folder.json();
    let run = &json["run"];
    assert_eq!(accounted(run), 400);
    assert_eq!(run["lag"]["count"], run["operations"]);
    assert_eq!(run["steps"][0]["offered_per_second"], 400.0);
    assert_eq!(json["settings"]["profile"], serde_json::json!(["400/s"]));
    assert_eq!(run["seconds"], 1.0);
}

/// One worker, and answers that come too seldom: what it cannot send is said.
#[tokio::test]
async fn a_rate_that_is_not_reached_is_said() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args = "--records 1 --rate 5000k --seconds 0.5 --clients 1 --workload c";
    let output = folder.ends(0, &run(&cluster, args)).await;
    let json = folder.json();
    assert_eq!(accounted(&json["run"]), 2_500_000);
    // One connection was seen to answer 50,000 times a second; none does so every 200 ns.
    assert!(json["run"]["unsent"].as_u64().unwrap() > 0);
    assert!(json["warnings"].to_string().contains("due and never sent"), "{json}");
    output.tells(&["operations due and never sent"]);
}

#[tokio::test]
async fn each_step_of_a_profile_has_its_own_numbers() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args = "--records 50 --clients 8 --workload w --profile c:max@0.3,500@0.5,200..800/3@0.6";
    let output = folder.ends(0, &run(&cluster, args)).await;
    let json = folder.json();
    let steps = json["run"]["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c:max@0.3", "500@0.5", "200/s", "500/s", "800/s"]);
    let paces: Vec<&str> = steps.iter().map(|step| step["pace"].as_str().unwrap()).collect();
    assert_eq!(paces, ["max", "500/s", "200/s", "500/s", "800/s"]);
    output.tells(&names);
    // The first only reads, the others only write.
    assert_eq!(steps[0]["reads"]["count"], steps[0]["operations"]);
    assert_eq!((&steps[0]["updates"], &steps[0]["lag"]), (&Value::Null, &Value::Null));
    for (step, offered) in steps[1..].iter().zip([250, 40, 100, 160]) {
        assert_eq!(accounted(step), offered, "{step}");
        assert_eq!((&step["reads"], &step["measured"]), (&Value::Null, &true.into()));
        assert_eq!(step["updates"]["count"], step["operations"]);
    }
    let all: u64 = steps.iter().map(|step| step["operations"].as_u64().unwrap()).sum();
    assert_eq!(json["run"]["operations"], all);
    assert_eq!(json["settings"]["seconds"].as_f64().unwrap().mul_add(10.0, 0.5) as u64, 14);
}

#[tokio::test]
async fn a_warm_up_does_not_count() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let mut calls = calls(&cluster);
    folder.ends(0, &run(&cluster, "--records 50 --warmup 0.3 --operations 400 --workload c")).await;
    let json = folder.json();
    let steps = &json["run"]["steps"];
    assert_eq!((&steps[0]["name"], &steps[0]["measured"]), (&"warm-up".into(), &false.into()));
    assert_eq!((&steps[1]["operations"], &json["run"]["operations"]), (&400.into(), &400.into()));
    let warm = steps[0]["operations"].as_u64().unwrap();
    assert!(warm > 0);
    assert_eq!(calls.borrow_and_update().gets, warm + 400);
    assert_eq!(json["settings"]["warmup_seconds"], 0.3);
}

#[tokio::test]
async fn connections_times_pipeline_are_the_clients() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let args = "--records 60 --operations 300 --threads 2 --connections 3 --pipeline 5 --pin 0 --verify";
    folder.ends(0, &run(&cluster, args)).await;
    let json = folder.json();
    let settings = &json["settings"];
    let shape = ["clients", "connections", "threads"].map(|name| settings[name].as_u64().unwrap());
    assert_eq!(shape, [15, 3, 2]);
    assert_eq!(settings["pinned_to"], serde_json::json!([0]));
    assert_eq!(json["verify"]["intact"], 60);
}

/// The kernel says where each load thread may run: in turn, on the CPUs that were named.
#[tokio::test]
async fn threads_are_pinned_in_turn() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let allowed = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    // The last CPU that the test itself may use.
    let own = allowed(&std::fs::read_to_string("/proc/self/status").unwrap());
    let cpu = own.rsplit([',', '-']).next().unwrap();
    let mut calls = calls(&cluster);
    let args = format!("--records 10 --seconds 600 --threads 2 --pin {cpu}");
    let mut under_way = folder.starts(&run(&cluster, &args));
    under_way.until(&mut calls, |calls| calls.gets >= 10).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", under_way.pid())).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let of = |task: &std::path::Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap();
    let mut load: Vec<(String, String)> = tasks
        .map(|task| (of(&task, "comm").trim().to_owned(), allowed(&of(&task, "status"))))
        .filter(|(name, _)| name.starts_with("load-"))
        .collect();
    load.sort();
    let pinned = |name: &str| (name.to_owned(), cpu.to_owned());
    assert_eq!(load, [pinned("load-0"), pinned("load-1")]);
    under_way.signal(nix::sys::signal::Signal::SIGINT);
    under_way.end().await.with(130);
}

/// A probe's report beside the run, of the engine and of a cluster: the share is our rate over that of the nearest cell.
#[tokio::test]
async fn a_run_is_told_as_a_share_of_the_device() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let probe = "device --path {}/probe --size 64MiB --quick --seconds-per-cell 0.01 --json {}/device";
    folder.ends(0, probe).await;
    let cells: Value = serde_json::from_str(&folder.text("device")).unwrap();
    let cells = cells["cells"].as_array().unwrap();
    let load = "--records 50 --operations 300 --clients 32 --value-size 4096 --device {}/device";
    let engine =
        format!("run --json {{}}/json --target engine --capacity 40MiB --set chunk_bytes=256KiB {load}");
    for args in [engine, run(&cluster, load)] {
        folder.ends(0, &args).await.tells(&["share of the device", "4.0 KiB", "depth 32"]);
        let json = folder.json();
        let cell = cells.iter().find(|cell| {
            (&cell["bytes"], &cell["depth"], &cell["read_share"], &cell["durable"])
                == (&4096.into(), &32.into(), &0.5.into(), &true.into())
        });
        assert_eq!(json["device"]["ops_per_second"], cell.unwrap()["ops_s"]);
        let number = |value: &Value| value.as_f64().unwrap();
        let ratio = number(&json["run"]["ops_per_second"]) / number(&cell.unwrap()["ops_s"]);
        assert!((number(&json["device"]["share"]) / ratio - 1.0).abs() < 1e-9, "{json:#}");
    }
}

#[tokio::test]
async fn a_cpu_that_is_not_there_is_named() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(1, &run(&cluster, "--pin 4000")).await.complains(&["pin", "CPU 4000"]);
    folder.ends(1, &run(&cluster, "--pin 1000")).await.complains(&["pin", "CPU 1000"]);
}

#[tokio::test]
async fn inserts_scans_and_read_modify_writes_are_sent_and_checked() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let common = "--records 80 --operations 600 --clients 4 --value-size 64 --verify";
    folder.ends(0, &run(&cluster, &format!("{common} --workload d"))).await;
    let json = folder.json();
    let inserts = json["run"]["inserts"]["count"].as_u64().unwrap();
    assert!(inserts > 0);
    assert_eq!(json["verify"]["intact"], 80 + inserts, "what was inserted is read back too");

    folder.ends(0, &run(&cluster, &format!("{common} --workload e"))).await;
    let json = folder.json();
    let scans = json["run"]["scans"]["count"].as_u64().unwrap();
    let inserts = json["run"]["inserts"]["count"].as_u64().unwrap();
    assert_eq!(scans + inserts, 600);
    assert!(json["run"]["records"].as_u64().unwrap() > scans + inserts, "a scan has many rows");

    folder.ends(0, &run(&cluster, &format!("{common} --workload f"))).await;
    let json = folder.json();
    let both = json["run"]["read_modify_writes"]["count"].as_u64().unwrap();
    assert_eq!(both + json["run"]["reads"]["count"].as_u64().unwrap(), 600);
    assert_eq!(json["verify"]["lost"], 0);
}

#[tokio::test]
async fn what_the_cluster_cannot_do_is_refused_by_name() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let calls = calls(&cluster);
    std::fs::write(folder.path("many.toml"), "[mix]\nread = 0.5\nmulti_get = 0.5\n").unwrap();
    std::fs::write(folder.path("batch.toml"), "[mix]\nread = 0.5\nbatch = 0.5\n").unwrap();
    for (args, words) in [
        ("--workload {}/many.toml", &["unsupported: workload 'many'", "multi-get"][..]),
        ("--workload {}/batch.toml", &["unsupported: workload 'batch'", "batch"]),
        ("--ttl 60", &["unsupported: workload 'a'", "TTL"]),
        // Of a step of a profile, too, and before anything is loaded.
        ("--profile c:max@0.1,{}/many.toml:max@0.1", &["unsupported: workload 'many'", "multi-get"]),
    ] {
        folder.ends(1, &run(&cluster, &format!("--records 10 {args}"))).await.complains(words);
    }
    assert_eq!(calls.borrow().puts, 0);
}

/// A cluster that once says of a record that it is not there: a broken promise only to who keeps a ledger.
#[tokio::test]
async fn checks_are_as_close_as_asked_for() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    let forget_once = || {
        let mut gets = 0;
        cluster.on_call(move |call| match call.request {
            Request::Get { .. } => {
                gets += 1;
                if gets == 50 { Fault::Answer(ErrorReply::NotFound) } else { Fault::None }
            }
            _ => Fault::None,
        });
    };
    let args = "--records 20 --operations 100 --workload c --check";
    forget_once();
    folder.ends(0, &run(&cluster, &format!("{args} values"))).await;
    assert_eq!(folder.json()["run"]["not_found"], 1);
    forget_once();
    folder.ends(1, &run(&cluster, &format!("{args} ledger"))).await.tells(&["FAILED", "missing"]);
    folder.ends(2, &run(&cluster, &format!("{args} values --verify"))).await.complains(&["--check ledger"]);
}

/// Whoever keeps no ledger still finds what is no value of its key.
#[tokio::test]
async fn damage_is_found_without_a_ledger() {
    let (cluster, folder) = (memory_cluster().await, Folder::new());
    folder.ends(0, &run(&cluster, "--records 20 --only-load")).await;
    let client = cluster.client().await.unwrap();
    let rows = client.scan(.., 20).await.unwrap();
    client.put(rows[0].key.clone(), rows[1].value.clone()).await.unwrap();
    let args = "--records 20 --skip-load --operations 400 --workload c --distribution sequential";
    let output = folder.ends(1, &run(&cluster, &format!("{args} --check values"))).await;
    output.tells(&["FAILED", "broken promise", std::str::from_utf8(&rows[0].key).unwrap()]);
    // The ledger of a run that loaded nothing is empty, and reading back checks the values alone.
    folder.ends(1, &run(&cluster, "--records 20 --skip-load --operations 1 --verify")).await;
    assert_eq!(folder.json()["verify"]["lost"], 1);
}
