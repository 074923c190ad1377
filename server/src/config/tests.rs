//! Every limit of the configuration is tried from both sides, and the example is held to its word.

use super::*;

fn valid() -> Config {
    Config::parse(&Config::example()).expect("the example parses")
}

fn problem(change: impl FnOnce(&mut Config)) -> (&'static str, String) {
    let mut config = valid();
    change(&mut config);
    match config.validate() {
        Err(ConfigError::Invalid { field, problem, remedy }) => (field, format!("{problem}; {remedy}")),
        other => panic!("expected an invalid field, got {other:?}"),
    }
}

#[test]
fn the_example_parses_validates_and_shows_the_defaults() {
    let config = valid();
    config.validate().expect("the example validates");
    let defaults = Config::new(
        config.cluster_id,
        config.node_id,
        config.data.clone(),
        config.shards,
        config.nodes.clone(),
    );
    assert_eq!(config, defaults, "the example's values are the defaults");
}

#[test]
fn the_example_names_every_field() {
    let with_listen = Config { listen: Some(Ipv4Addr::LOCALHOST.into()), ..valid() };
    let table: toml::Table = with_listen.to_toml().parse().expect("valid TOML");
    for field in table.keys() {
        let named = |line: &str| {
            line.trim_start_matches("# ").starts_with(&format!("{field} =")) || line == "[[nodes]]"
        };
        assert!(Config::example().lines().any(named), "the example does not mention {field}");
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    for pin in [Pin::Auto, Pin::Always, Pin::Never] {
        let config =
            Config { pin, listen: Some(Ipv4Addr::UNSPECIFIED.into()), cache_bytes: 12_345, ..valid() };
        assert_eq!(Config::parse(&config.to_toml()).expect("parses"), config);
    }
}

#[test]
fn the_shortest_file_takes_the_defaults() {
    let config = Config::parse(
        r#"
        cluster_id = "6b1f0a52c8d94e7f93a4d17e5c20b8f6"
        node_id = 1
        data = "/dev/nvme0n1"
        shards = 4
        nodes = [{ id = 1, address = "localhost:7400" }]
        "#,
    )
    .expect("parses");
    config.validate().expect("validates");
    assert_eq!((config.replicas, config.replica_count()), (3, 1));
    assert_eq!(config.value_bytes_max, 4 << 20);
    assert_eq!(config.listen_ip(), IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn a_misspelt_field_is_an_error_that_names_it() {
    let text = format!("partitons = 8\n{}", Config::example());
    assert!(Config::parse(&text).expect_err("unknown field").to_string().contains("partitons"));
    let text = Config::example().replace("address = \"127.0.0.1:7420\"", "adress = \"127.0.0.1:7420\"");
    assert!(Config::parse(&text).expect_err("unknown field").to_string().contains("adress"));
}

#[test]
fn sizes_may_be_numbers_or_texts_with_units() {
    let text = Config::example().replace("\"64 MiB\"", "1048576").replace("\"4 MiB\"", "\"512KiB\"");
    let config = Config::parse(&text).expect("parses");
    assert_eq!((config.cache_bytes, config.value_bytes_max), (1 << 20, 512 << 10));
    let error = Config::parse(&Config::example().replace("\"4 MiB\"", "\"4 MB\"")).expect_err("decimal unit");
    assert!(error.to_string().contains("powers of two"), "{error}");
    let error = Config::parse(&Config::example().replace("\"4 MiB\"", "-1")).expect_err("negative");
    assert!(error.to_string().contains("negative"), "{error}");
}

#[test]
fn each_limit_is_checked_and_says_what_to_write() {
    type Break = fn(&mut Config);
    let cases: &[(&str, &str, Break)] = &[
        ("shards", "1 to 1024", |c| c.shards = 0),
        ("shards", "1 to 1024", |c| c.shards = 1025),
        ("replicas", "1 to 7", |c| c.replicas = 0),
        ("replicas", "1 to 7", |c| c.replicas = 8),
        ("partitions", "write 1", |c| c.partitions = 0),
        ("partitions", "write 32", |c| c.partitions = 17),
        ("partitions", "write 65536", |c| c.partitions = 1 << 17),
        ("value_bytes_max", "32 MiB", |c| c.value_bytes_max = 0),
        ("value_bytes_max", "32 MiB", |c| c.value_bytes_max = (32 << 20) + 1),
        ("cache_bytes", "1 TiB", |c| c.cache_bytes = u64::MAX),
        ("tail_bytes", "1 MiB", |c| c.tail_bytes = 1000),
        ("index_bytes_max", "64 MiB", |c| c.index_bytes_max = 1 << 20),
        ("connection_inflight_bytes_max", "lower value_bytes_max", |c| {
            c.connection_inflight_bytes_max = 4 << 20
        }),
        ("connection_inflight_bytes_max", "4 GiB", |c| c.connection_inflight_bytes_max = 5 << 30),
        ("shard_inflight_bytes_max", "at least \"16 MiB\"", |c| c.shard_inflight_bytes_max = 1),
        ("shard_inflight_bytes_max", "64 GiB", |c| c.shard_inflight_bytes_max = 65 << 30),
        ("election_timeout_ms", "50 to 60000 ms", |c| c.election_timeout_ms = 49),
        ("heartbeat_ms", "5 to", |c| c.heartbeat_ms = 4),
        ("heartbeat_ms", "at most 333", |c| c.heartbeat_ms = 334),
        ("clock_drift_ppm", "500 to", |c| c.clock_drift_ppm = 0),
        ("log", "info,terrane_raft=debug", |c| c.log = "a=b=c".into()),
        ("data", "the path of the device", |c| c.data = PathBuf::new()),
        ("nodes", "[[nodes]]", |c| c.nodes.clear()),
        ("nodes.id", "from 1", |c| c.nodes[1].id = 0),
        ("nodes.id", "its own id", |c| c.nodes[1].id = 3),
        ("node_id", "one of 1, 2, 3", |c| c.node_id = 9),
        ("nodes.address", "up to 65533", |c| c.nodes[1].address = "h:65534".parse().unwrap()),
        ("nodes.address", "at least 3 apart", |c| c.nodes[1].address = "127.0.0.1:7402".parse().unwrap()),
        ("nodes.address", "at least 3 apart", |c| c.nodes[1].address = "127.0.0.1:7420".parse().unwrap()),
    ];
    for &(field, remedy, change) in cases {
        let (found, message) = problem(change);
        assert_eq!(found, field, "{message}");
        assert!(message.contains(remedy), "{field}: {message:?} does not say {remedy:?}");
    }
    let mut config = valid();
    config.heartbeat_ms = 333;
    config.nodes[1].address = "127.0.0.1:7403".parse().unwrap();
    config.validate().expect("the edges themselves are allowed");
}

#[test]
fn a_reachable_node_must_say_where_it_listens() {
    let outside = |c: &mut Config| c.nodes[0].address = "10.0.0.1:7400".parse().unwrap();
    let (field, message) = problem(outside);
    assert_eq!(field, "listen");
    assert!(message.contains("10.0.0.1:7400") && message.contains("0.0.0.0"), "{message}");
    let (field, _) = problem(|c| {
        outside(c);
        c.listen = Some(Ipv4Addr::LOCALHOST.into());
    });
    assert_eq!(field, "listen");
    let mut config = valid();
    outside(&mut config);
    config.listen = Some(Ipv4Addr::UNSPECIFIED.into());
    config.validate().expect("an open listener on purpose");
    assert_eq!(config.listen_ip(), IpAddr::from([0, 0, 0, 0]));
    config.listen = None;
    config.nodes[0].address = "127.0.0.9:7400".parse().unwrap();
    assert_eq!(config.listen_ip(), IpAddr::from([127, 0, 0, 9]), "its own loopback address");
}

#[test]
fn a_device_of_another_cluster_node_or_shape_is_refused() {
    let config = valid();
    let cluster = config.cluster_id.0;
    config.check_device(cluster, 1, 2, 8 << 20).expect("the right device");
    for (cluster, node, shards, chunk, says) in [
        (cluster + 1, 1, 2, 8 << 20, "belongs to cluster"),
        (cluster, 2, 2, 8 << 20, "is node 2's"),
        (cluster, 1, 4, 8 << 20, "formatted for 4 shards"),
        (cluster, 1, 2, 4 << 20, "chunks of 4 MiB"),
    ] {
        let error = config.check_device(cluster, node, shards, chunk).expect_err(says).to_string();
        assert!(error.contains(says) && error.contains("node-1.terrane"), "{error}");
    }
}

#[test]
fn the_agreement_ignores_what_may_differ() {
    let one = valid();
    let mut two = Config { node_id: 2, data: "other".into(), cache_bytes: 0, ..valid() };
    two.nodes.reverse();
    assert_eq!(one.agreement(), two.agreement());
    for change in [
        (|c: &mut Config| c.partitions = 8) as fn(&mut Config),
        |c| c.shards = 1,
        |c| c.replicas = 1,
        |c| c.election_timeout_ms = 2000,
        |c| c.clock_drift_ppm = 2000,
        |c| c.nodes[2].address = "127.0.0.1:7500".parse().unwrap(),
    ] {
        let mut other = valid();
        change(&mut other);
        assert_ne!(one.agreement(), other.agreement());
    }
}

#[test]
fn a_missing_or_broken_file_is_explained() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.toml");
    let error = Config::load(&path).expect_err("missing").to_string();
    assert!(error.contains("node.toml") && error.contains("config --example"), "{error}");
    std::fs::write(&path, "node_id = \"one\"").expect("written");
    let error = Config::load(&path).expect_err("broken").to_string();
    assert!(error.contains("node.toml") && error.contains("node_id"), "{error}");
    std::fs::write(&path, Config::example()).expect("written");
    assert_eq!(Config::load(&path).expect("loads").data, folder.path().join("node-1.terrane"));
}
