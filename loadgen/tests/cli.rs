//! The binary from outside: exit codes, and messages that say what to do.

use std::net::TcpListener;
use std::process::{Command, Output};

fn loadgen(args: &[&str]) -> Output {
    // Without cargo's variable, as a user's shell would start it.
    Command::new(env!("CARGO_BIN_EXE_terrane-loadgen")).args(args).env_remove("CARGO").output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A loopback address where nobody listens: bound for a moment, so that it was free.
fn dead_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn wrong_usage_is_code_2_and_names_the_mistake() {
    const ONE_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/never-written");
    for (args, words) in [
        (&["run", "--workload", "z"][..], "--workload"),
        (&["run", "--frobnicate"], "--frobnicate"),
        (&["run", "--value-size", "8"], "32 bytes"),
        (&["run", "--value-size", "1.5KiB"], "is no unit"),
        (&["run", "--clients", "0"], "--clients"),
        (&["run", "--theta", "-1"], "0 to 10 is allowed"),
        (&["compare", "--value-sizes", "1024,12"], "32 bytes"),
        (&["run", "--workload", "/"], "is a folder"),
        (&["run", "--key-size", "4"], "--key-size"),
        (&["run", "--mode", "nosync"], "a server has its own configuration"),
        (&["run", "--set", "a=1"], "a server has its own configuration"),
        (&["run", "--capacity", "1GiB"], "a server has its own configuration"),
        (&["run", "--data", "d"], "--data is the folder of an embedded store"),
        (&["run", "--blob"], "--blob is of --target rocksdb"),
        (&["run", "--target", "engine", "--addr", "127.0.0.1:1"], "--addr is of servers"),
        (&["run", "--target", "engine", "--verify", "--check", "values"], "--check ledger"),
        (&["run", "--json", ONE_FILE, "--csv", ONE_FILE], "--json and --csv are one file"),
        (&["compare", "--scale", "0"], "at least 1.0 MiB"),
        (&["compare", "--set", "floppy.x=1"], "there are device, engine,"),
        (&["demo", "--nodes", "0"], "--nodes"),
        (&["demo", "--seconds", "0"], "--seconds"),
        (&["fly"], "fly"),
        (&[], "Usage"),
    ] {
        let output = loadgen(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", errors(&output));
        assert!(errors(&output).contains(words), "{args:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn help_teaches() {
    for (args, words) in [
        (&["--help"][..], &["demo", "run", "closed loop", "Exit codes"][..]),
        (&["demo", "--help"], &["Examples:", "--kills", "--data-dir", "Exit codes"]),
        (
            &["run", "--help"],
            &["Examples:", "terrane local", "--verify", "--skip-load", "Operations in flight"],
        ),
    ] {
        let output = loadgen(args);
        assert_eq!(code(&output), 0);
        let text = String::from_utf8(output.stdout).unwrap();
        for word in words {
            assert!(text.contains(word), "{args:?} says nothing of {word}:\n{text}");
        }
    }
}

#[test]
fn a_dead_address_is_code_1_and_says_what_to_do() {
    let address = dead_address();
    let output = loadgen(&["run", "--addr", &address]);
    assert_eq!(code(&output), 1);
    let errors = errors(&output);
    for words in [&address, "is it running", "terrane local", "--addr"] {
        assert!(errors.contains(words), "{errors}");
    }
}

#[test]
fn a_malformed_address_is_named() {
    let output = loadgen(&["run", "--addr", "nowhere"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("nowhere"), "{}", errors(&output));
}

#[test]
fn a_report_that_cannot_be_written_is_said_first() {
    let output = loadgen(&["run", "--addr", &dead_address(), "--json", "/nonexistent/out.json"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("/nonexistent/out.json"), "{}", errors(&output));
}

#[test]
fn a_missing_server_binary_is_code_1_and_says_what_to_do() {
    let output = loadgen(&["demo", "--terrane", "/nonexistent/terrane"]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("/nonexistent/terrane"), "{}", errors(&output));
}

/// Room is checked before anything is laid out.
#[test]
fn a_demo_that_does_not_fit_is_refused_at_once() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/burning.sh");
    let data = folder.path().join("data");
    let output =
        loadgen(&["demo", "--terrane", server, "--size", "1000000TiB", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("free"), "{}", errors(&output));
    assert!(!data.exists(), "nothing is left behind");
}

/// A server that dies at once is quoted, not waited for.
#[test]
fn a_server_that_cannot_lay_out_fails_the_demo() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/burning.sh");
    let output = loadgen(&[
        "demo",
        "--terrane",
        server,
        "--size",
        "1MiB",
        "--data-dir",
        folder.path().to_str().unwrap(),
    ]);
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("could not lay out"), "{}", errors(&output));
}
