use super::*;
use crate::target::setup::Overrides;

fn setup(folder: &Path, durable: bool, compressed: bool, overrides: &[(&str, &str)]) -> Setup {
    let overrides = overrides.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Setup {
        folder: folder.to_owned(),
        durable,
        compressed,
        cache_bytes: 16 << 20,
        capacity_bytes: 1 << 30,
        threads: 2,
        overrides: Overrides::new(overrides),
        trace: None,
    }
}

/// Runs `test` as a load thread would.
fn with(connect: &RocksConnect, test: impl AsyncFnOnce(Rc<RocksTarget>)) {
    let seat = Seat { thread: 0, threads: 1, connections: 1 };
    connect.host(seat, async |targets| test(targets.unwrap().remove(0)).await).unwrap();
}

fn looks(connect: &RocksConnect) -> Look {
    let mut look = None;
    clock::on_tokio(async { look = connect.looks().await.pop() }).unwrap();
    look.unwrap().1
}

/// A value that LZ4 cannot shorten.
fn long(seed: u8) -> Bytes {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..5_000).map(|_| next()).collect()
}

const LAYOUTS: [Layout; 2] = [Layout::Leveled, Layout::Blob { value_bytes: 5_000 }];

#[test]
fn values_come_back_as_written_and_after_reopening() {
    for layout in LAYOUTS {
        for (durable, compressed) in [(true, false), (false, true)] {
            let folder = tempfile::tempdir().unwrap();
            let open = || {
                let setup = setup(folder.path(), durable, compressed, &[]);
                RocksConnect::open(setup, layout).unwrap()
            };
            let connect = open();
            with(&connect, async |target| {
                assert!(target.get(b"a").await.unwrap().is_none());
                assert_eq!(target.put(b"a", long(1), None).await.unwrap(), None);
                target.put(b"a", long(2), None).await.unwrap();
                let pairs = vec![(Bytes::from("b"), long(3)), (Bytes::from("c"), long(4))];
                assert_eq!(target.put_batch(pairs, None).await.unwrap(), [None, None]);
            });
            connect.settle().unwrap();
            with(&connect, async |target| {
                // This one stays in the log.
                target.put(b"d", long(5), None).await.unwrap();
            });
            drop(connect);

            let files = std::fs::read_dir(folder.path()).unwrap();
            let blobs =
                files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".blob"));
            assert_eq!(blobs.count() > 0, layout != Layout::Leveled);

            with(&open(), async |target| {
                assert_eq!(target.get(b"a").await.unwrap().unwrap().value, long(2));
                let keys = ["d", "none", "b"].map(Bytes::from);
                let read = target.multi_get(&keys).await.unwrap();
                let values: Vec<_> = read.into_iter().map(|found| found.map(|found| found.value)).collect();
                assert_eq!(values, [Some(long(5)), None, Some(long(3))]);
                let rows = target.scan(b"b", 2).await.unwrap();
                let pairs: Vec<_> = rows.iter().map(|row| (&row.key[..], row.found.value.clone())).collect();
                assert_eq!(pairs, [(&b"b"[..], long(3)), (b"c", long(4))]);
                assert_eq!(target.scan(b"", 10).await.unwrap().len(), 4);
            });
        }
    }
}

/// The counters follow every byte: a load of known size is written once to the log and once to tables or blobs.
#[test]
fn its_own_count_of_written_bytes_holds_log_and_files() {
    for layout in LAYOUTS {
        let folder = tempfile::tempdir().unwrap();
        let connect = RocksConnect::open(setup(folder.path(), false, false, &[]), layout).unwrap();
        let before = looks(&connect).counters.device_written_bytes.unwrap();
        let values = 400u64;
        with(&connect, async |target| {
            for number in 0..values {
                target.put(&number.to_be_bytes(), long(number as u8), None).await.unwrap();
            }
        });
        let user = values * 5_008;
        let log = looks(&connect).counters.device_written_bytes.unwrap() - before;
        assert!((user..user + user / 20).contains(&log), "{layout:?}: {log} of {user}");
        connect.settle().unwrap();
        let look = looks(&connect);
        let all = look.counters.device_written_bytes.unwrap() - before;
        assert!((2 * user..2 * user + user / 10).contains(&all), "{layout:?}: {all} of {user}");
        assert!(look.gauges.occupied_bytes.unwrap() >= user, "{look:?}");
        assert!(look.gauges.resident_bytes.unwrap() > 0);
    }
}

/// Writes of threads at once share a sync, but there is one before any of them returns; without sync there is none.
#[test]
fn threads_share_one_database_and_sync_means_sync() {
    for durable in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let connect = RocksConnect::open(setup(folder.path(), durable, false, &[]), LAYOUTS[1]).unwrap();
        let synced = || connect.store.options.get_ticker_count(Ticker::WalFileSynced);
        let before = synced();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let connect = connect.clone();
                scope.spawn(move || {
                    with(&connect, async |target| {
                        for number in 0..50 {
                            target.put(&[thread, number], long(number), None).await.unwrap();
                        }
                    });
                });
            }
        });
        let syncs = synced() - before;
        assert!(if durable { (50..=200).contains(&syncs) } else { syncs == 0 }, "{durable}: {syncs}");
        with(&connect, async |target| {
            let rows = target.scan(b"", 1000).await.unwrap();
            assert_eq!(rows.len(), 200);
            assert!(rows.iter().all(|row| row.found.value == long(row.key[1])));
        });
    }
}

#[test]
fn what_it_cannot_do_it_refuses_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let connect = RocksConnect::open(setup(folder.path(), false, false, &[]), Layout::Leveled).unwrap();
    assert!(connect.blocks() && connect.can(Ability::Scan) && connect.can(Ability::MultiGet));
    assert!(connect.can(Ability::Batch) && !connect.can(Ability::Ttl));
    with(&connect, async |target| {
        let ttl = Some(Duration::from_secs(1));
        for failure in [
            target.put(b"a", long(1), ttl).await.unwrap_err(),
            target.put_batch(Vec::new(), ttl).await.unwrap_err(),
        ] {
            assert_eq!(failure.kind, FailureKind::Unsupported);
            assert!(failure.message.contains("TTL"), "{}", failure.message);
        }
    });
}

/// What RocksDB wrote down of its options after it sanitized them.
fn options_file(folder: &Path) -> String {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let options = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("OPTIONS-"));
    std::fs::read_to_string(options.max().unwrap()).unwrap()
}

#[test]
fn the_settings_are_those_that_rocksdb_took() {
    let given = [("write_buffer_size", "8MiB"), ("blob_gc", "false"), ("recycle_log_file_num", "3")];
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::Blob { value_bytes: 1024 };
    let connect = RocksConnect::open(setup(folder.path(), true, true, &given), layout).unwrap();
    let taken = options_file(folder.path());
    let settings = connect.settings();
    let mut compared = 0;
    for (name, value) in &settings {
        let line = taken.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}=")));
        if let Some(taken) = line {
            let same = taken.parse::<f64>().ok().zip(value.parse::<f64>().ok()).is_some_and(|(a, b)| a == b);
            let none = taken == "kNoCompression" && value == "none";
            let lz4 = taken == "kLZ4Compression" && value == "lz4";
            assert!(taken == value || same || none || lz4, "{name}: {taken}, not {value}");
            compared += 1;
        }
    }
    assert!(compared >= 18, "only {compared} of {settings:?} in\n{taken}");
    let has = |name: &str, value: &str| settings.contains(&(name.to_owned(), value.to_owned()));
    assert!(has("write_buffer_size", "8388608") && has("enable_blob_garbage_collection", "false"));
    assert!(has("target_file_size_base", "262144") && has("max_bytes_for_level_base", "2097152"));
    assert!(settings[0].1.starts_with(|first: char| first.is_ascii_digit()), "{settings:?}");
    assert!(settings[1].1.starts_with("Supported") || settings[1].1.starts_with("Not"), "{settings:?}");
}

#[test]
fn mistakes_are_named() {
    for (layout, name, value, words) in [
        (Layout::Leveled, "memtable", "1", "--set memtable: unknown here"),
        (Layout::Leveled, "blob_gc", "false", "--set blob_gc: unknown here"),
        (Layout::Leveled, "cache", "clock", "hyperclock or lru"),
        (LAYOUTS[1], "blob_gc", "maybe", "--set blob_gc=maybe"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let setup = setup(folder.path(), false, false, &[(name, value)]);
        let error = RocksConnect::open(setup, layout).err().unwrap();
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
    let folder = tempfile::tempdir().unwrap();
    let open = || RocksConnect::open(setup(folder.path(), false, false, &[]), Layout::Leveled);
    let first = open().unwrap();
    let error = format!("{:#}", open().err().unwrap());
    assert!(error.contains("cannot open a RocksDB database in") && error.contains("lock"), "{error}");
    drop(first);
    open().unwrap();
}
