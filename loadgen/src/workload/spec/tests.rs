//! What is understood, and how what is not understood is refused.

use super::*;

const EXAMPLE: &str = include_str!("../../../workloads/example.toml");

fn refusal(toml: &str) -> String {
    match Spec::parse(toml, "test") {
        Ok(spec) => panic!("understood as {spec:?}:\n{toml}"),
        Err(error) => format!("{error:#}"),
    }
}

#[track_caller]
fn refused(toml: &str, expected: &str) {
    assert_eq!(refusal(toml), expected, "\n{toml}");
}

/// A table beside a mix of reads.
fn reading(rest: &str) -> String {
    format!("mix = {{ read = 1 }}\n{rest}")
}

#[test]
fn the_built_in_ones_are_ycsbs() {
    let specs = Spec::built_in().unwrap();
    let shares = |name: &str| {
        let spec = specs.iter().find(|spec| spec.name == name).unwrap();
        spec.mix.shares().into_iter().filter(|(_, share)| *share > 0.0).collect::<Vec<_>>()
    };
    assert_eq!(shares("a"), [("read", 0.5), ("update", 0.5)]);
    assert_eq!(shares("b"), [("read", 0.95), ("update", 0.05)]);
    assert_eq!(shares("c"), [("read", 1.0)]);
    assert_eq!(shares("d"), [("read", 0.95), ("insert", 0.05)]);
    assert_eq!(shares("e"), [("insert", 0.05), ("scan", 0.95)]);
    assert_eq!(shares("f"), [("read", 0.5), ("read_modify_write", 0.5)]);
    assert_eq!(shares("w"), [("update", 1.0)]);
    assert_eq!(specs.len(), 7);
    for spec in &specs {
        let expected = match spec.name.as_str() {
            "d" => Distribution::Latest { theta: 0.99 },
            _ => Distribution::Zipfian { theta: 0.99, scrambled: true },
        };
        assert_eq!(spec.keys, KeySpec { distribution: expected, bytes: 24, order: Order::Hashed });
        assert_eq!(spec.values, ValueSpec { size: SizeLaw::Fixed { bytes: 1_024 }, compressible: 0 });
        assert_eq!(spec.scan, ScanSpec { rows: 100, distribution: RowLaw::Uniform });
        assert_eq!(spec.ttl(), None);
    }
    let titles: Vec<String> = specs.iter().map(Spec::to_string).collect();
    assert_eq!(titles[..3], ["YCSB A (50/50)", "YCSB B (95/5)", "YCSB C (reads only)"]);
    assert_eq!(titles[6], "updates only");
}

#[test]
fn names_are_found_in_either_case_and_others_are_told_what_there_is() {
    assert_eq!(Spec::named_or_file("A").unwrap(), Spec::named_or_file("a").unwrap());
    let error = Spec::named_or_file("z").unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown workload 'z': the built-in ones are a, b, c, d, e, f, w; or give the path of a \
         TOML file, like my.toml"
    );
}

/// A command line can take one as it is, and shows why it cannot.
#[test]
fn command_lines_understand_workloads() {
    let parse = |text: &str| {
        let workload = clap::Arg::new("workload").long("workload").value_parser(Spec::named_or_file);
        clap::Command::new("x").arg(workload).try_get_matches_from(["x", "--workload", text])
    };
    assert_eq!(parse("d").unwrap().get_one::<Spec>("workload").unwrap().name, "d");
    let error = parse("z").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("the built-in ones are a, b, c, d, e, f, w; or"), "{error}");
}

#[test]
fn files_are_read_and_named_after_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("Sessions.TOML");
    fs::write(&path, "[mix]\nread = 1").unwrap();
    let spec = Spec::named_or_file(path.to_str().unwrap()).unwrap();
    assert_eq!((spec.name.as_str(), spec.title.as_str()), ("Sessions", "Sessions"));

    fs::write(&path, "[mix]\nread = 2").unwrap();
    let error = Spec::named_or_file(path.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("workload file /"), "{error}");
    assert!(error.ends_with("Sessions.TOML: mix.read: 2 is out of range; 0 to 1 is allowed"), "{error}");

    let error = Spec::named_or_file("no/such.toml").unwrap_err().to_string();
    assert!(error.starts_with("cannot read the workload file no/such.toml: No such file"), "{error}");
}

#[test]
fn the_least_that_can_be_said_gets_the_defaults() {
    let spec = Spec::parse("[mix]\nread = 1", "mine").unwrap();
    assert_eq!(
        Spec { name: "c".into(), title: "YCSB C (reads only)".into(), ..spec },
        Spec::named_or_file("c").unwrap()
    );
    // An empty table says no more than none.
    let tables = "[keys]\n[values]\n[scan]\n[multi_get]\n[batch]";
    assert_eq!(Spec::parse(&reading(tables), "x").unwrap(), Spec::parse(&reading(""), "x").unwrap());
}

#[test]
fn the_example_parses_and_teaches_every_setting() {
    let spec = Spec::parse(EXAMPLE, "unused").unwrap();
    assert_eq!(spec.name, "example");
    assert_eq!(spec.needs(), [Ability::Scan, Ability::MultiGet, Ability::Batch, Ability::Ttl]);
    assert!(spec.mix.shares().iter().all(|(_, share)| *share > 0.0));
    assert_eq!(spec.values.size, SizeLaw::Zipfian { min: 64, max: 16_384, theta: 0.99 });

    // What each table knows, in the parser's own words.
    for table in ["", "[mix]", "[keys]", "[values]", "[scan]", "[multi_get]", "[batch]"] {
        let error = refusal(&format!("{table}\nnonsense = 1"));
        let (_, known) = error.split_once("expected ").unwrap_or_else(|| panic!("{table}: {error}"));
        let fields: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(!fields.is_empty(), "{table}: {error}");
        for field in fields {
            let taught = [format!("\n{field} "), format!("\n# {field} ="), format!("\n[{field}]\n")];
            assert!(
                taught.iter().any(|form| EXAMPLE.contains(form)),
                "{table} {field} is not in the example"
            );
        }
    }
}

/// The defaults that the example names are the ones in force.
#[test]
fn the_example_tells_the_defaults() {
    let spec = Spec::parse("[mix]\nread = 1", "mine").unwrap();
    assert_eq!((spec.keys.bytes, spec.keys.order), (24, Order::Hashed));
    assert_eq!(spec.keys.distribution, Distribution::Zipfian { theta: 0.99, scrambled: true });
    assert_eq!(spec.values, ValueSpec { size: SizeLaw::Fixed { bytes: 1_024 }, compressible: 0 });
    assert_eq!((spec.scan.rows, spec.scan.distribution), (100, RowLaw::Uniform));
    assert_eq!((spec.multi_get.records, spec.batch.records), (16, 16));
    let keys = |table: &str| Spec::parse(&reading(table), "x").unwrap().keys.distribution;
    let hotspot = Distribution::Hotspot { set: 0.2, operations: 0.8, scrambled: false };
    assert_eq!(keys("keys.distribution = 'hotspot'"), hotspot);
    assert_eq!(keys("keys.distribution = 'latest'"), Distribution::Latest { theta: 0.99 });
    let sizes = |table: &str| Spec::parse(&reading(table), "x").unwrap().values.size;
    let (min, max) = (64, 128);
    assert_eq!(sizes("values = { min = 64, max = 128 }"), SizeLaw::Uniform { min, max });
    let zipfian = SizeLaw::Zipfian { min, max, theta: 0.99 };
    assert_eq!(sizes("values = { min = 64, max = 128, distribution = 'zipfian' }"), zipfian);
}

#[test]
fn what_is_written_out_reads_back_the_same() {
    let mut specs = Spec::built_in().unwrap();
    specs.push(Spec::parse(EXAMPLE, "x").unwrap());
    for table in [
        "[keys]\ndistribution = 'uniform'\nbytes = 8\norder = 'ordered'",
        "[keys]\ndistribution = 'sequential'",
        "[keys]\ndistribution = 'hotspot'\nset = 0.01\noperations = 0.5\nscrambled = true",
        "[keys]\ndistribution = 'latest'\ntheta = 1.5",
        "[keys]\nscrambled = false",
        "[values]\nmin = 32\nmax = 33\ncompressible = 100",
        "[scan]\nrows = 7\ndistribution = 'fixed'",
    ] {
        specs.push(Spec::parse(&reading(table), "x").unwrap());
    }
    for spec in specs {
        let toml = toml::to_string(&spec).unwrap();
        assert_eq!(Spec::parse(&toml, "other").unwrap(), spec, "\n{toml}");
    }
    let json = serde_json::to_value(Spec::named_or_file("d").unwrap()).unwrap();
    assert_eq!(
        json["keys"],
        serde_json::json!({"distribution": "latest", "theta": 0.99, "bytes": 24, "order": "hashed"})
    );
    assert_eq!(
        json["values"],
        serde_json::json!({"distribution": "fixed", "bytes": 1024, "compressible": 0})
    );
}

#[test]
fn impossible_mixes_are_refused() {
    refused("[mix]\nread = 0.7\nupdate = 0.5", "impossible mix: the shares add up to 1.2, not 1");
    refused("[mix]\nread = 0.9", "impossible mix: the shares add up to 0.9, not 1");
    refused("[mix]", "impossible mix: the shares add up to 0, not 1");
    refused("[mix]\nread = 0.999998", "impossible mix: the shares add up to 0.999998, not 1");
    refused("[mix]\nread = 1.5\nupdate = -0.5", "mix.read: 1.5 is out of range; 0 to 1 is allowed");
    refused("[mix]\nupdate = -0.5\nread = 1", "mix.update: -0.5 is out of range; 0 to 1 is allowed");
    refused("[mix]\nscan = nan\nread = 1", "mix.scan: NaN is out of range; 0 to 1 is allowed");
    refused("[mix]\nread = inf", "mix.read: inf is out of range; 0 to 1 is allowed");
    Spec::parse("[mix]\nread = 0.333333\nupdate = 0.333333\nscan = 0.333333", "thirds").unwrap();
}

#[test]
fn what_is_unknown_or_no_toml_is_shown_where_it_stands() {
    for (toml, words) in [
        ("[mix]\nreeds = 1", "unknown field `reeds`, expected one of `read`, `update`, `insert`"),
        ("mix = { read = 1 }\ncolour = 1", "unknown field `colour`, expected one of `name`, `title`"),
        ("name = 'x'", "missing field `mix`"),
        ("", "missing field `mix`"),
        ("[mix]\nread = 'much'", "invalid type: string \"much\", expected f64"),
        ("[mix]\nread = 1\n[keys]\nbytes = -1", "invalid value: integer `-1`, expected usize"),
        (
            "[mix]\nread = 1\n[keys]\ndistribution = 'gauss'",
            "unknown variant `gauss`, expected one of `zipfian`",
        ),
        ("[mix]\nread = 1\n[values]\nsize = 1", "unknown field `size`"),
        ("[mix\nread = 1", "line 1"),
        ("[mix]\nread = 1\nread = 0", "duplicate key"),
    ] {
        let error = refusal(toml);
        assert!(error.contains(words), "{toml}\n{error}");
    }
    assert!(refusal("[mix]\nreeds = 1").contains("line 2"), "{}", refusal("[mix]\nreeds = 1"));
}

#[test]
fn values_out_of_range_are_refused() {
    for (table, expected) in [
        ("ttl_seconds = 0", "ttl_seconds: 0 is out of range; 1 to 4294967295 is allowed"),
        ("name = ' '", "name: a workload needs a name"),
        ("keys.theta = -0.1", "keys.theta: -0.1 is out of range; 0 to 10 is allowed"),
        ("keys.theta = 10.5", "keys.theta: 10.5 is out of range; 0 to 10 is allowed"),
        ("keys.theta = nan", "keys.theta: NaN is out of range; 0 to 10 is allowed"),
        (
            "keys = { distribution = 'latest', theta = inf }",
            "keys.theta: inf is out of range; 0 to 10 is allowed",
        ),
        ("keys.bytes = 0", "keys.bytes: 0 is out of range; 8 to 256 is allowed"),
        ("keys.bytes = 257", "keys.bytes: 257 is out of range; 8 to 256 is allowed"),
        (
            "keys = { distribution = 'hotspot', set = 0 }",
            "keys.set: 0 is out of range; a number above 0, up to 1 is allowed",
        ),
        (
            "keys = { distribution = 'hotspot', set = nan }",
            "keys.set: NaN is out of range; a number above 0, up to 1 is allowed",
        ),
        (
            "keys = { distribution = 'hotspot', operations = 1.1 }",
            "keys.operations: 1.1 is out of range; 0 to 1 is allowed",
        ),
        ("values.bytes = 0", "values.bytes: 0 is out of range; 32 to 67108864 is allowed"),
        ("values.bytes = 67_108_865", "values.bytes: 67108865 is out of range; 32 to 67108864 is allowed"),
        ("values = { min = 0, max = 64 }", "values.min: 0 is out of range; 32 to 67108864 is allowed"),
        ("values = { min = 65, max = 64 }", "values.min: 65 is more than values.max, 64; it must not be"),
        (
            "values = { min = 64, max = 128, distribution = 'zipfian', theta = nan }",
            "values.theta: NaN is out of range; 0 to 10 is allowed",
        ),
        ("values.compressible = 101", "values.compressible: 101 is out of range; 0 to 100 is allowed"),
        ("scan.rows = 0", "scan.rows: 0 is out of range; 1 to 1000000 is allowed"),
        ("multi_get.records = 0", "multi_get.records: 0 is out of range; 1 to 4096 is allowed"),
        ("batch.records = 4097", "batch.records: 4097 is out of range; 1 to 4096 is allowed"),
    ] {
        refused(&reading(table), expected);
    }
}

#[test]
fn settings_that_mean_nothing_together_are_refused() {
    for (table, expected) in [
        (
            "keys = { distribution = 'uniform', theta = 0.5 }",
            "keys.theta: means nothing with distribution = \"uniform\"; it belongs to zipfian and latest",
        ),
        (
            "keys = { distribution = 'latest', scrambled = true }",
            "keys.scrambled: means nothing with distribution = \"latest\"; it belongs to zipfian and hotspot",
        ),
        ("keys.set = 0.1", "keys.set: means nothing with distribution = \"zipfian\"; it belongs to hotspot"),
        (
            "keys = { distribution = 'sequential', operations = 0.1 }",
            "keys.operations: means nothing with distribution = \"sequential\"; it belongs to hotspot",
        ),
        (
            "values = { bytes = 64, min = 64, max = 128 }",
            "values.bytes: is for values of one size; use either bytes, or min and max",
        ),
        (
            "values = { distribution = 'fixed', min = 64 }",
            "values.min and values.max: mean nothing with distribution = \"fixed\"; use values.bytes",
        ),
        ("values.theta = 0.5", "values.theta: belongs to distribution = \"zipfian\" only"),
        ("values.min = 64", "values.max: is needed where values.min is, or a range's distribution"),
        ("values.max = 64", "values.min: is needed where values.max is, or a range's distribution"),
        (
            "values.distribution = 'uniform'",
            "values.min: is needed where values.max is, or a range's distribution",
        ),
    ] {
        refused(&reading(table), expected);
    }
}

#[test]
fn a_spec_can_be_changed_and_is_checked_again() {
    let mut spec = Spec::named_or_file("a").unwrap();
    spec.set_theta(0.5).unwrap();
    assert_eq!(spec.keys.distribution, Distribution::Zipfian { theta: 0.5, scrambled: true });
    spec.set_distribution(Law::Latest);
    assert_eq!(spec.keys.distribution, Distribution::Latest { theta: 0.5 }, "the exponent stays");
    assert_eq!(
        spec.clone().set_theta(f64::NAN).unwrap_err().to_string(),
        "keys.theta: NaN is out of range; 0 to 10 is allowed"
    );
    spec.set_distribution(Law::Uniform);
    assert_eq!(
        spec.set_theta(0.5).unwrap_err().to_string(),
        "theta: the keys of this workload are uniform, which has no exponent; zipfian and latest have"
    );
    spec.set_distribution(Law::Zipfian);
    assert_eq!(spec.keys.distribution, Distribution::Zipfian { theta: 0.99, scrambled: true });
    spec.set_value_bytes(4_096).unwrap();
    assert_eq!((spec.mean_value_bytes(), spec.max_value_bytes()), (4_096.0, 4_096));
    assert!(spec.clone().set_value_bytes(31).is_err());
    spec.values.compressible = 200;
    assert!(spec.validate().is_err());
}

#[test]
fn needs_and_shares_follow_from_the_mix() {
    let builtin = |name| Spec::named_or_file(name).unwrap();
    assert_eq!(builtin("a").needs(), []);
    assert_eq!(builtin("e").needs(), [Ability::Scan]);
    for (name, share) in
        [("a", 0.5), ("b", 0.05), ("c", 0.0), ("d", 0.05), ("e", 0.05), ("f", 0.5), ("w", 1.0)]
    {
        assert_eq!(builtin(name).update_share(), share, "{name}");
        assert_eq!(builtin(name).values_per_operation(), share, "{name}");
    }
    let batches = Spec::parse("[mix]\nread = 0.5\nbatch = 0.5\n[batch]\nrecords = 10", "x").unwrap();
    assert_eq!((batches.update_share(), batches.values_per_operation()), (0.5, 5.0));
    assert_eq!(batches.needs(), [Ability::Batch]);
    let mut ttl = builtin("a");
    ttl.ttl_seconds = Some(60);
    assert_eq!((ttl.needs(), ttl.ttl()), (vec![Ability::Ttl], Some(Duration::from_secs(60))));
}
